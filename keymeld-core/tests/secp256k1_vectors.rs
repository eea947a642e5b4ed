//! Wycheproof through both implementations of secp256k1: ECDH of envelopes (the `ecies` crate) and of the
//! seals between enclaves (libsecp256k1), and the ECDSA verifier of libsecp256k1.

mod vectors;

use hkdf::Hkdf;
use keymeld_core::bytes::PublicKey;
use keymeld_core::crypto::auth::shared_secret;
use keymeld_core::secret::Secret;
use secp256k1::{Message, ecdsa};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vectors::{array, number, text, unhex, unhex_array};

/// What stands before an uncompressed point in a SubjectPublicKeyInfo of the named curve, in DER.
const UNCOMPRESSED: &str = "3056301006072a8648ce3d020106052b8104000a034200";
/// The same before a compressed point.
const COMPRESSED: &str = "3036301006072a8648ce3d020106052b8104000a032200";

/// Every case that is not run: its point is not in the one DER encoding of a key of the named curve. KeyMeld
/// reads bare points and no ASN.1, so that there is no parser to test.
#[derive(Debug, Default, PartialEq)]
struct NotRun {
    /// Sound keys in BER, or with the curve's parameters spelled out.
    acceptable: usize,
    /// Other curves, spelled-out parameters that are wrong, no key at all.
    invalid: usize,
}

#[test]
fn both_implementations_of_ecdh_agree_with_wycheproof() {
    let Some(bytes) = vectors::read("wycheproof/ecdh_secp256k1_test.json") else { return };
    let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
    let (mut agreed, mut refused, mut not_run) = (0, 0, NotRun::default());
    for case in array(&file["testGroups"]).iter().flat_map(|group| array(&group["tests"])) {
        let der = text(&case["public"]);
        let (verdict, bare) =
            (text(&case["result"]), der.strip_prefix(UNCOMPRESSED).or(der.strip_prefix(COMPRESSED)));
        // "Acceptable" leaves a reader of ASN.1 the choice; what is left without its frame is no point.
        let damaged = array(&case["flags"]).iter().any(|flag| flag == "InvalidAsn");
        match (verdict, bare) {
            ("valid" | "acceptable", Some(point)) if !damaged => {
                assert_agreed(case, &unhex(point));
                agreed += 1;
            }
            ("invalid" | "acceptable", Some(point)) => {
                let point = unhex(point);
                assert!(secp256k1::PublicKey::from_slice(&point).is_err(), "{case}");
                assert!(ecies::PublicKey::parse_slice(&point, None).is_err(), "{case}");
                refused += 1;
            }
            ("acceptable", None) => not_run.acceptable += 1,
            ("invalid", None) => not_run.invalid += 1,
            (other, _) => panic!("{other}: {case}"),
        }
    }
    assert_eq!((agreed, refused), (474, 23));
    assert_eq!(not_run, NotRun { acceptable: 227, invalid: 28 });
    assert_eq!(agreed + refused + not_run.acceptable + not_run.invalid, number(&file["numberOfTests"]));
}

fn assert_agreed(case: &Value, point: &[u8]) {
    let x: [u8; 32] = unhex_array(text(&case["shared"]));
    let private = private_key(text(&case["private"]));
    let public = secp256k1::PublicKey::from_slice(point).expect("a point");
    let expected = |hash: fn(u8, &[u8; 32]) -> [u8; 32]| [hash(2, &x), hash(3, &x)];

    // libsecp256k1 hashes the compressed shared point.
    let secret = Secret::copied_from(&private);
    let shared = shared_secret(&secret, &PublicKey(public.serialize())).expect("keys");
    let hash = |parity, x: &[u8; 32]| Sha256::new().chain_update([parity]).chain_update(x).finalize().into();
    assert!(expected(hash).contains(shared.expose()), "{case}");

    // The `ecies` crate derives from the sender's key and the shared point, both compressed if it is told to.
    let recipient = ecies::PublicKey::parse_slice(point, None).expect("a point");
    let sender = ecies::SecretKey::parse_slice(&private).expect("a scalar");
    let sender_key = ecies::PublicKey::from_secret_key(&sender).serialize_compressed();
    let encapsulated = ecies::utils::encapsulate(&sender, &recipient, true).expect("a key");
    let derived = [2, 3].map(|parity| {
        let mut key = [0; 32];
        let input = [&sender_key[..], &[parity], &x].concat();
        Hkdf::<Sha256>::new(None, &input).expand(&[], &mut key).expect("in range");
        key
    });
    assert!(derived.contains(&encapsulated), "{case}");
}

/// A private key as Wycheproof spells it: with a sign byte, or with leading zeros left out.
fn private_key(hex: &str) -> [u8; 32] {
    let digits = hex.trim_start_matches('0');
    unhex_array(&format!("{digits:0>64}"))
}

#[test]
fn the_ecdsa_verifier_agrees_with_wycheproof() {
    let Some(bytes) = vectors::read("wycheproof/ecdsa_secp256k1_sha256_bitcoin_test.json") else { return };
    let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
    let (mut accepted, mut malformed, mut wrong) = (0, 0, 0);
    for group in array(&file["testGroups"]) {
        let key = unhex(text(&group["publicKey"]["uncompressed"]));
        let key = secp256k1::PublicKey::from_slice(&key).expect("a point");
        for case in array(&group["tests"]) {
            let digest: [u8; 32] = Sha256::digest(unhex(text(&case["msg"]))).into();
            let signature = ecdsa::Signature::from_der(&unhex(text(&case["sig"])));
            let verified = signature.map(|it| ecdsa::verify(&it, Message::from_digest(digest), &key));
            assert_eq!(text(&case["result"]) == "valid", matches!(verified, Ok(Ok(()))), "{case}");
            match verified {
                Ok(Ok(())) => accepted += 1,
                Ok(Err(_)) => wrong += 1,
                Err(_) => malformed += 1,
            }
        }
    }
    assert_eq!((accepted, malformed, wrong), (162, 190, 111));
    assert_eq!(accepted + malformed + wrong, number(&file["numberOfTests"]));
}
