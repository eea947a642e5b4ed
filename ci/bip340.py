"""Verifies the signatures in the JSON object that `keymeld demo --json` prints.

Plain integers from BIP-340's text, for checking only: slow, and not meant for secrets.
"""

import hashlib
import json
import sys

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)


def add(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, P) % P
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(point, scalar):
    result = None
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def tagged_hash(tag, data):
    tag_hash = hashlib.sha256(tag.encode()).digest()
    return hashlib.sha256(tag_hash + tag_hash + data).digest()


def verify(key, message, signature):
    x = int.from_bytes(key, "big")
    if x >= P or len(key) != 32 or len(message) != 32 or len(signature) != 64:
        return False
    square = (pow(x, 3, P) + 7) % P
    y = pow(square, (P + 1) // 4, P)
    if y * y % P != square:
        return False
    public = (x, y if y % 2 == 0 else P - y)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if r >= P or s >= N:
        return False
    challenge = tagged_hash("BIP0340/challenge", signature[:32] + key + message)
    e = int.from_bytes(challenge, "big") % N
    nonce = add(multiply(G, s), multiply(public, N - e))
    return nonce is not None and nonce[1] % 2 == 0 and nonce[0] == r


def main():
    demo = json.load(sys.stdin)
    key = bytes.fromhex(demo["aggregate_public_key"])
    assert demo["verified"] is True and demo["signatures"], demo
    for item in demo["signatures"]:
        message, signature = bytes.fromhex(item["message"]), bytes.fromhex(item["signature"])
        assert verify(key, message, signature), item
        altered = bytes([message[0] ^ 1]) + message[1:]
        assert not verify(key, altered, signature), "the verifier accepts anything"
    print(f"{len(demo['signatures'])} signatures verified under {demo['aggregate_public_key']}")


main()
