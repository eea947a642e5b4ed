//! The arithmetic that a nonce used twice allows.

use musig2::secp::{MaybeScalar, Point, Scalar};

/// A BIP-340 signature as an equation: `s G = R + e P`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Equation {
    pub(crate) challenge: [u8; 32],
    pub(crate) s: [u8; 32],
}

/// Two equations with one nonce and one key: the private key, where its public half is `key`.
///
/// Whatever the parities of R and P were, one of the signs fits.
pub(crate) fn solve(first: Equation, second: Equation, key_x: [u8; 32]) -> Option<[u8; 32]> {
    let scalar = |bytes: &[u8; 32]| MaybeScalar::from_slice(bytes).ok();
    let challenges = scalar(&first.challenge)? - scalar(&second.challenge)?;
    let inverse = inverse(Scalar::try_from(challenges).ok()?);
    let (one, two) = (scalar(&first.s)?, scalar(&second.s)?);
    [one - two, one + two].into_iter().find_map(|difference| {
        let key = Scalar::try_from(difference * inverse).ok()?;
        let point: Point = key.base_point_mul();
        (point.serialize_xonly() == key_x).then(|| key.serialize())
    })
}

/// BIP-340's challenge.
pub(crate) fn challenge(nonce_x: &[u8; 32], key_x: &[u8; 32], message: &[u8; 32]) -> Option<[u8; 32]> {
    let key = Point::lift_x(*key_x).ok()?;
    let e: MaybeScalar = musig2::compute_challenge_hash_tweak(nonce_x, &key, message);
    Some(e.serialize())
}

/// Fermat: the power of the group order less 2.
fn inverse(scalar: Scalar) -> Scalar {
    let minus_one = MaybeScalar::from(Scalar::max()).serialize();
    let mut exponent = minus_one;
    // The order is odd, its last byte 0x41: nothing is borrowed.
    exponent[31] -= 1;
    let mut power = Scalar::one();
    for bit in (0..256).map(|bit| exponent[bit / 8] >> (7 - bit % 8) & 1) {
        power *= power;
        if bit == 1 {
            power *= scalar;
        }
    }
    power
}

#[cfg(test)]
mod tests {
    use musig2::secp::{MaybeScalar, Point, Scalar};

    use super::{Equation, challenge, solve};

    #[test]
    fn a_nonce_that_signs_twice_gives_the_key_away() {
        let key = Scalar::from_slice(&[3; 32]).expect("in range");
        let nonce = Scalar::from_slice(&[5; 32]).expect("in range");
        let even = |scalar: Scalar| {
            let point: Point = scalar.base_point_mul();
            scalar.negate_if(point.parity())
        };
        let (key, nonce) = (even(key), even(nonce));
        let point = |scalar: Scalar| -> Point { scalar.base_point_mul() };
        let (key_x, nonce_x) = (point(key).serialize_xonly(), point(nonce).serialize_xonly());
        let equation = |message: [u8; 32]| {
            let challenge = challenge(&nonce_x, &key_x, &message).expect("points");
            let e = MaybeScalar::from_slice(&challenge).expect("in range");
            Equation { challenge, s: (MaybeScalar::from(nonce) + e * key).serialize() }
        };
        let (first, second) = (equation([1; 32]), equation([2; 32]));
        assert_eq!(solve(first, second, key_x), Some(key.serialize()));
        assert_eq!(solve(first, first, key_x), None);
        assert_eq!(solve(first, second, nonce_x), None);
    }
}
