//! The two rounds seen from outside the signers: nonces in, a verified signature or the guilty out.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use secp256k1::musig::{AggregatedNonce, PartialSignature, PublicNonce, Session as NativeSession};
use secp256k1::{PublicKey, XOnlyPublicKey, schnorr};

use super::MusigError;
use super::aggregate::{KEYS_MAX, KeyAgg};

/// Adds up the signers' public nonces.
///
/// BIP-327, *NonceAgg*. A half of the sum that is the point at infinity becomes 33 zero bytes, and the
/// session goes on: whoever caused that cannot make its partial signature, and is named by [`finish`].
///
/// # Errors
/// [`MusigError::NoNonces`], [`TooManyNonces`](MusigError::TooManyNonces),
/// [`InvalidPublicNonce`](MusigError::InvalidPublicNonce) with the index of the bad contribution.
pub fn aggregate_nonces(nonces: &[[u8; 66]]) -> Result<[u8; 66], MusigError> {
    if nonces.is_empty() {
        return Err(MusigError::NoNonces);
    }
    if nonces.len() > KEYS_MAX {
        return Err(MusigError::TooManyNonces);
    }
    let parse = |(index, bytes)| parse_nonce(bytes, index);
    let parsed = nonces.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok(AggregatedNonce::new(&parsed.iter().collect::<Vec<_>>()).serialize())
}

/// Whether `signature` is a valid BIP-340 signature of the 32-byte `message` under the x-only `output_key`.
///
/// Bytes that are no key or no signature are not valid; there is no error.
///
/// ```
/// use keymeld_core::bytes::{Message, Signature, XOnlyKey};
/// use keymeld_core::musig::round::verify;
///
/// # fn main() -> Result<(), keymeld_core::bytes::HexError> {
/// // BIP-340, test vector 0.
/// let key = XOnlyKey::from_hex("f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9")?;
/// let signature = Signature::from_hex(concat!(
///     "e907831f80848d1069a5371b402410364bdf1c5f8307b0084c55f1ce2dca8215",
///     "25f66a4a85ea8b71e482a74f382d2ce5ebeee8fdb2172f477df4900d310536c0",
/// ))?;
/// assert!(verify(&key.0, &[0; 32], &signature.0));
/// assert!(!verify(&key.0, &Message([1; 32]).0, &signature.0));
/// # Ok(())
/// # }
/// ```
pub fn verify(output_key: &[u8; 32], message: &[u8; 32], signature: &[u8; 64]) -> bool {
    match XOnlyPublicKey::from_byte_array(*output_key) {
        Ok(key) => verify_under(&key, message, signature),
        Err(_) => false,
    }
}

/// One signature in the making: a key aggregation, an aggregate nonce and a message.
pub struct Session {
    key_agg: KeyAgg,
    aggregate_nonce: [u8; 66],
    message: [u8; 32],
    native: NativeSession,
}

impl Session {
    /// Fixes what is signed, by whom and with which aggregate nonce.
    ///
    /// BIP-327, *GetSessionValues*: the nonce coefficient, the final nonce (the generator where it would be
    /// the point at infinity) and the challenge. 33 zero bytes in `aggregate_nonce` are the point at infinity.
    ///
    /// # Errors
    /// [`MusigError::InvalidAggregateNonce`].
    pub fn new(
        key_agg: &KeyAgg,
        aggregate_nonce: [u8; 66],
        message: [u8; 32],
    ) -> Result<Session, MusigError> {
        let parsed = AggregatedNonce::from_byte_array(&aggregate_nonce)
            .map_err(|_| MusigError::InvalidAggregateNonce)?;
        let native = NativeSession::new(key_agg.cache(), parsed, &message);
        Ok(Session { key_agg: key_agg.clone(), aggregate_nonce, message, native })
    }

    /// Whose signature it is.
    pub fn key_agg(&self) -> &KeyAgg {
        &self.key_agg
    }

    /// The aggregate nonce.
    pub fn aggregate_nonce(&self) -> &[u8; 66] {
        &self.aggregate_nonce
    }

    /// The message.
    pub fn message(&self) -> &[u8; 32] {
        &self.message
    }

    /// Checks one signer's partial signature.
    ///
    /// BIP-327, *PartialSigVerify*. It proves nothing on its own: partial signatures are not unforgeable,
    /// only good for telling who spoiled a session.
    ///
    /// # Errors
    /// [`MusigError::NotAMember`] where the session is not `signer_key`'s,
    /// [`InvalidPublicNonce`](MusigError::InvalidPublicNonce),
    /// [`PartialOutOfRange`](MusigError::PartialOutOfRange), [`WrongPartial`](MusigError::WrongPartial).
    pub fn verify_partial(
        &self,
        signer_key: &[u8; 33],
        public_nonce: &[u8; 66],
        partial: &[u8; 32],
    ) -> Result<(), MusigError> {
        // The library computes a coefficient for any key, and its equation can hold for a non-member's.
        if !self.key_agg.contains(signer_key) {
            return Err(MusigError::NotAMember);
        }
        let nonce = parse_nonce(public_nonce, 0)?;
        let partial = parse_partial(partial, 0)?;
        let key = PublicKey::from_byte_array_compressed(*signer_key)
            .expect("every member was parsed when the keys were aggregated");
        match self.native.partial_verify(self.key_agg.cache(), &partial, &nonce, key) {
            true => Ok(()),
            false => Err(MusigError::WrongPartial),
        }
    }

    /// Adds up the partial signatures, one of each key, in any order. The result is not verified.
    ///
    /// BIP-327, *PartialSigAgg*.
    ///
    /// # Errors
    /// [`MusigError::PartialCount`], [`PartialOutOfRange`](MusigError::PartialOutOfRange) with the index of
    /// the bad contribution.
    pub fn aggregate_partials(&self, partials: &[[u8; 32]]) -> Result<[u8; 64], MusigError> {
        if partials.len() != self.key_agg.keys().len() {
            return Err(MusigError::PartialCount);
        }
        self.add_up(partials.iter())
    }

    fn add_up<'a>(&self, partials: impl Iterator<Item = &'a [u8; 32]>) -> Result<[u8; 64], MusigError> {
        let parse = |(index, bytes)| parse_partial(bytes, index);
        let parsed = partials.enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        let sum = self.native.partial_sig_agg(&parsed.iter().collect::<Vec<_>>());
        Ok(sum.assume_valid().to_byte_array())
    }

    /// What the library needs to know of the session.
    pub(super) fn native(&self) -> &NativeSession {
        &self.native
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

/// What one signer gave in the two rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution {
    /// The signer's key, compressed.
    pub key: [u8; 33],
    /// Its public nonce, as it went into the aggregate nonce.
    pub public_nonce: [u8; 66],
    /// Its partial signature.
    pub partial: [u8; 32],
}

/// Why a session gave no signature. An `index` counts from 0 in the contributions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// A contribution comes from a key that is no member.
    #[error("contribution {index} is not from a member")]
    NotAMember {
        /// Which contribution.
        index: usize,
    },
    /// A contribution is a member's second.
    #[error("contribution {index} is a member's second")]
    Repeated {
        /// Which contribution.
        index: usize,
    },
    /// A member has not contributed.
    #[error("a member has not contributed")]
    Missing,
    /// The session's aggregate nonce is not the sum of the public nonces. None of the signers is to blame:
    /// whoever aggregated or passed on the nonces is.
    #[error("the aggregate nonce is not the sum of the public nonces")]
    AggregateNonceMismatch,
    /// These contributions are wrong: a malformed nonce or partial signature, or one that does not verify.
    #[error("wrong contributions: {0:?}")]
    Culprits(Vec<usize>),
    /// All partial signatures verify, but the nonces cancel out. It takes all signers together to do that.
    #[error("the nonces cancel out")]
    NoncesCancel,
}

impl FinishError {
    /// The indexes of the contributions whose signers are to blame, ascending; empty where none can be named.
    pub fn culprits(&self) -> &[usize] {
        match self {
            FinishError::Culprits(indexes) => indexes,
            FinishError::NotAMember { .. }
            | FinishError::Repeated { .. }
            | FinishError::Missing
            | FinishError::AggregateNonceMismatch
            | FinishError::NoncesCancel => &[],
        }
    }
}

/// Makes the signature out of one contribution of each member, in any order, and verifies it.
///
/// BIP-327, *PartialSigAgg*, then BIP-340, *Verify*. Only where that fails are the contributions checked one
/// by one, with *PartialSigVerify*, to name the guilty: honest sessions cost a third less.
///
/// # Errors
/// [`FinishError`]; see [`FinishError::culprits`].
pub fn finish(session: &Session, contributions: &[Contribution]) -> Result<[u8; 64], FinishError> {
    check_membership(session.key_agg(), contributions)?;
    let output_key = session.key_agg().cache().agg_pk();
    match session.add_up(contributions.iter().map(|contribution| &contribution.partial)) {
        Ok(signature) if verify_under(&output_key, session.message(), &signature) => Ok(signature),
        Ok(_) | Err(_) => Err(blame(session, contributions)),
    }
}

/// Exactly one contribution for each occurrence of a key.
fn check_membership(key_agg: &KeyAgg, contributions: &[Contribution]) -> Result<(), FinishError> {
    let mut awaited = BTreeMap::<&[u8; 33], usize>::new();
    for key in key_agg.keys() {
        *awaited.entry(key).or_default() += 1;
    }
    for (index, contribution) in contributions.iter().enumerate() {
        match awaited.get_mut(&contribution.key) {
            None => return Err(FinishError::NotAMember { index }),
            Some(0) => return Err(FinishError::Repeated { index }),
            Some(count) => *count -= 1,
        }
    }
    match awaited.values().all(|count| *count == 0) {
        true => Ok(()),
        false => Err(FinishError::Missing),
    }
}

/// Finds out why contributions of the right members give no valid signature.
fn blame(session: &Session, contributions: &[Contribution]) -> FinishError {
    // A malformed nonce cannot have been aggregated, so that nothing follows for the others.
    let malformed: Vec<usize> = (0..contributions.len())
        .filter(|&index| parse_nonce(&contributions[index].public_nonce, index).is_err())
        .collect();
    if !malformed.is_empty() {
        return FinishError::Culprits(malformed);
    }
    // Against an aggregate nonce that is not the sum of theirs, honest signers' partial signatures fail too.
    let nonces: Vec<[u8; 66]> = contributions.iter().map(|contribution| contribution.public_nonce).collect();
    if aggregate_nonces(&nonces) != Ok(session.aggregate_nonce) {
        return FinishError::AggregateNonceMismatch;
    }
    let is_wrong = |contribution: &Contribution| {
        session.verify_partial(&contribution.key, &contribution.public_nonce, &contribution.partial).is_err()
    };
    let culprits: Vec<usize> =
        (0..contributions.len()).filter(|&index| is_wrong(&contributions[index])).collect();
    match culprits.is_empty() {
        true => FinishError::NoncesCancel,
        false => FinishError::Culprits(culprits),
    }
}

fn verify_under(key: &XOnlyPublicKey, message: &[u8; 32], signature: &[u8; 64]) -> bool {
    schnorr::verify(&schnorr::Signature::from_byte_array(*signature), message, key).is_ok()
}

fn parse_nonce(bytes: &[u8; 66], index: usize) -> Result<PublicNonce, MusigError> {
    PublicNonce::from_byte_array(bytes).map_err(|_| MusigError::InvalidPublicNonce { index })
}

fn parse_partial(bytes: &[u8; 32], index: usize) -> Result<PartialSignature, MusigError> {
    PartialSignature::from_byte_array(bytes).map_err(|_| MusigError::PartialOutOfRange { index })
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;
    use alloc::vec::Vec;

    use secp256k1::musig::{SecretNonce, SessionSecretRand, new_nonce_pair};
    use secp256k1::{Keypair, PublicKey, SecretKey};

    use super::{Contribution, FinishError, KEYS_MAX, Session, aggregate_nonces, finish, verify};
    use crate::entropy::test_entropy;
    use crate::musig::MusigError;
    use crate::musig::aggregate::KeyAgg;
    use crate::musig::nonce::SigningNonce;
    use crate::secret::Secret;

    const MESSAGE: [u8; 32] = [7; 32];
    const OUT_OF_RANGE: [u8; 32] = [0xff; 32];

    fn key(byte: u8) -> [u8; 33] {
        PublicKey::from_secret_key(&SecretKey::from_secret_bytes([byte; 32]).expect("in range")).serialize()
    }

    /// A session of the secret keys `bytes` with everybody's honest contribution.
    fn session_of(bytes: &[u8]) -> (Session, Vec<Contribution>) {
        let keys: Vec<[u8; 33]> = bytes.iter().map(|byte| key(*byte)).collect();
        let key_agg = KeyAgg::new(&keys, &[]).expect("valid keys");
        let mut entropy = test_entropy(bytes.len() as u64);
        let nonces: Vec<SigningNonce> = bytes
            .iter()
            .map(|byte| {
                let secret = Secret::copied_from(&[*byte; 32]);
                SigningNonce::generate(&secret, &key_agg, MESSAGE, &mut entropy).expect("a member")
            })
            .collect();
        let publics: Vec<[u8; 66]> = nonces.iter().map(SigningNonce::public).collect();
        let aggregate = aggregate_nonces(&publics).expect("valid nonces");
        let session = Session::new(&key_agg, aggregate, MESSAGE).expect("valid");
        let contributions = nonces
            .into_iter()
            .zip(keys)
            .map(|(nonce, key)| Contribution {
                key,
                public_nonce: nonce.public(),
                partial: nonce.sign(&session).expect("its session"),
            })
            .collect();
        (session, contributions)
    }

    #[test]
    fn empty_and_wrong_lists_are_refused() {
        let (session, contributions) = session_of(&[1, 2]);
        assert_eq!(aggregate_nonces(&[]), Err(MusigError::NoNonces));
        let nonce = contributions[0].public_nonce;
        assert_eq!(aggregate_nonces(&vec![nonce; KEYS_MAX + 1]), Err(MusigError::TooManyNonces));
        assert_eq!(session.aggregate_partials(&[]), Err(MusigError::PartialCount));
        assert_eq!(session.aggregate_partials(&[[1; 32]; 3]), Err(MusigError::PartialCount));
        assert_eq!(finish(&session, &[]), Err(FinishError::Missing));
    }

    #[test]
    fn malformed_contributions_are_named() {
        let (session, contributions) = session_of(&[1, 2]);
        let Contribution { key, public_nonce, partial } = contributions[0];
        for bad in [[0; 66], [0xff; 66]] {
            let refused = Err(MusigError::InvalidPublicNonce { index: 1 });
            assert_eq!(aggregate_nonces(&[public_nonce, bad]), refused);
            let refused = Err(MusigError::InvalidPublicNonce { index: 0 });
            assert_eq!(session.verify_partial(&key, &bad, &partial), refused);
        }
        let refused = Err(MusigError::PartialOutOfRange { index: 1 });
        assert_eq!(session.aggregate_partials(&[partial, OUT_OF_RANGE]), refused);
        let refused = Err(MusigError::PartialOutOfRange { index: 0 });
        assert_eq!(session.verify_partial(&key, &public_nonce, &OUT_OF_RANGE), refused);
        let malformed = Session::new(session.key_agg(), [0xff; 66], MESSAGE);
        assert_eq!(malformed.expect_err("no points"), MusigError::InvalidAggregateNonce);
    }

    #[test]
    fn a_non_member_s_partial_signature_is_refused_though_the_library_calls_it_valid() {
        let (session, contributions) = session_of(&[1, 2]);
        let outsider = Keypair::from_secret_bytes([3; 32]).expect("in range");
        let (secret_nonce, public_nonce) = new_nonce_pair(
            SessionSecretRand::assume_uniformly_random([5; 32]),
            None,
            None,
            outsider.public_key(),
            None,
            None,
        );
        let cache = session.key_agg().cache();
        let partial = session.native().partial_sign(secret_nonce, &outsider, cache);
        assert!(session.native().partial_verify(cache, &partial, &public_nonce, outsider.public_key()));

        let key = outsider.public_key().serialize();
        let refused = session.verify_partial(&key, &public_nonce.serialize(), &partial.serialize());
        assert_eq!(refused, Err(MusigError::NotAMember));
        let (public_nonce, partial) = (public_nonce.serialize(), partial.serialize());
        let mut contributions = contributions;
        contributions[1] = Contribution { key, public_nonce, partial };
        let refused = finish(&session, &contributions).expect_err("no member");
        assert_eq!(refused, FinishError::NotAMember { index: 1 });
        assert!(refused.culprits().is_empty());
    }

    #[test]
    fn each_member_contributes_exactly_once() {
        let (session, contributions) = session_of(&[1, 2, 3]);
        let [first, second, third] = &contributions[..] else { panic!("three signers") };
        let pick = |picked: &[&Contribution]| {
            finish(&session, &picked.iter().map(|one| (*one).clone()).collect::<Vec<_>>())
        };
        assert_eq!(pick(&[first, second]), Err(FinishError::Missing));
        assert_eq!(pick(&[first, second, first]), Err(FinishError::Repeated { index: 2 }));
        assert_eq!(pick(&[first, second, third, third]), Err(FinishError::Repeated { index: 3 }));
        let signature = pick(&[third, first, second]).expect("the order makes no difference");
        assert!(verify(&session.key_agg().output_key(), &MESSAGE, &signature));
        assert_eq!(format!("{session:?}"), "Session");
    }

    #[test]
    fn a_key_that_is_listed_twice_contributes_twice() {
        let (session, contributions) = session_of(&[1, 1, 2]);
        let signature = finish(&session, &contributions).expect("all three contributed");
        assert!(verify(&session.key_agg().output_key(), &MESSAGE, &signature));
    }

    #[test]
    fn a_malformed_contribution_is_its_signer_s_fault() {
        let (session, contributions) = session_of(&[1, 2, 3]);
        let mut partial_spoiled = contributions.clone();
        partial_spoiled[2].partial = OUT_OF_RANGE;
        let mut nonce_spoiled = contributions.clone();
        nonce_spoiled[2].public_nonce = [0xff; 66];
        nonce_spoiled[2].partial = [1; 32];
        for spoiled in [partial_spoiled, nonce_spoiled] {
            let failed = finish(&session, &spoiled).expect_err("spoiled");
            assert_eq!(failed.culprits(), [2]);
        }
    }

    #[test]
    fn signers_are_not_blamed_for_a_wrong_aggregate_nonce() {
        let (session, contributions) = session_of(&[1, 2, 3]);
        let (other, _) = session_of(&[1, 2]);
        let session = Session::new(session.key_agg(), *other.aggregate_nonce(), MESSAGE).expect("valid");
        assert_eq!(finish(&session, &contributions), Err(FinishError::AggregateNonceMismatch));
    }

    #[test]
    fn nonces_that_cancel_out_are_an_error_without_a_culprit() {
        let keypairs = [1, 2].map(|byte| Keypair::from_secret_bytes([byte; 32]).expect("in range"));
        let key_agg =
            KeyAgg::new(&keypairs.map(|keypair| keypair.public_key().serialize()), &[]).expect("two points");
        let make = |keypair: &Keypair| {
            let random = SessionSecretRand::assume_uniformly_random([5; 32]);
            new_nonce_pair(random, None, None, keypair.public_key(), None, None)
        };
        let (secret, public) = make(&keypairs[0]);
        // Secret nonces are a mark of 4 bytes, two scalars and the public key.
        let first = secret.dangerous_into_bytes();
        let mut second = make(&keypairs[1]).0.dangerous_into_bytes();
        for half in [4..36, 36..68] {
            let scalar = first[half.clone()].try_into().expect("32 bytes");
            let negated = SecretKey::from_secret_bytes(scalar).expect("in range").negate();
            second[half].copy_from_slice(negated.as_secret_bytes());
        }
        let mut publics = [public.serialize(); 2];
        (publics[1][0], publics[1][33]) = (publics[0][0] ^ 1, publics[0][33] ^ 1);
        let aggregate = aggregate_nonces(&publics).expect("valid nonces");
        assert_eq!(aggregate, [0; 66]);

        let session = Session::new(&key_agg, aggregate, MESSAGE).expect("infinity is allowed");
        let contribute = |index: usize, secret: [u8; 132]| {
            let nonce = SecretNonce::dangerous_from_bytes(secret);
            let partial = session.native().partial_sign(nonce, &keypairs[index], key_agg.cache());
            let key = keypairs[index].public_key().serialize();
            Contribution { key, public_nonce: publics[index], partial: partial.serialize() }
        };
        let contributions = [contribute(0, first), contribute(1, second)];
        assert_eq!(finish(&session, &contributions), Err(FinishError::NoncesCancel));
        // Whoever merely negates another's public nonce cannot sign with it, and is named.
        let mut contributions = contributions;
        contributions[1].partial = [1; 32];
        assert_eq!(finish(&session, &contributions), Err(FinishError::Culprits(vec![1])));
    }

    #[test]
    fn bytes_that_are_no_key_or_no_signature_do_not_verify() {
        assert!(!verify(&[0xff; 32], &MESSAGE, &[0; 64]));
        let (session, contributions) = session_of(&[1, 2]);
        let output_key = session.key_agg().output_key();
        assert!(!verify(&output_key, &MESSAGE, &[0xff; 64]));
        let signature = finish(&session, &contributions).expect("honest");
        assert!(verify(&output_key, &MESSAGE, &signature));
        assert!(!verify(&output_key, &[8; 32], &signature));
    }
}
