//! BIP-340 signatures of KeyMeld itself: proofs, intents, approvals, certificates. Never of bitcoin.

use alloc::boxed::Box;
use core::fmt;

use secp256k1::{Keypair, XOnlyPublicKey, schnorr};
use zeroize::Zeroizing;

use super::derive::{Purpose, derive};
use super::hash::{Tag, tagged_hash};
use crate::bytes::{PublicKey, Signature, XOnlyKey};
use crate::entropy::{Entropy, EntropyFailed};
use crate::secret::Secret;

/// 32 bytes that are no private key: zero, or not below the group order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a private key of secp256k1")]
pub struct InvalidKey;

/// A key that makes KeyMeld's own signatures. Wiped on drop, shows nothing.
pub struct AuthKey(Box<Keypair>);

impl AuthKey {
    /// The key with these 32 bytes.
    ///
    /// # Errors
    /// [`InvalidKey`] for zero and for values from the group order.
    pub fn new(secret: &Secret<32>) -> Result<AuthKey, InvalidKey> {
        Keypair::from_secret_bytes(*secret.expose())
            .map(|pair| AuthKey(Box::new(pair)))
            .map_err(|_| InvalidKey)
    }

    /// The key derived for a purpose.
    ///
    /// # Errors
    /// [`InvalidKey`], with probability 2^-128.
    pub fn derived(from: &Secret<32>, purpose: Purpose) -> Result<AuthKey, InvalidKey> {
        AuthKey::new(&derive(from, purpose))
    }

    /// Its BIP-340 public key.
    pub fn public(&self) -> XOnlyKey {
        XOnlyKey(self.0.x_only_public_key().0.to_byte_array())
    }

    /// Signs `hash_tag(parts)` with fresh auxiliary randomness, as BIP-340 recommends.
    ///
    /// # Errors
    /// [`EntropyFailed`].
    pub fn sign(&self, tag: Tag, parts: &[&[u8]], entropy: &mut Entropy) -> Result<Signature, EntropyFailed> {
        let aux = Zeroizing::new(entropy.bytes::<32>()?);
        let hash = tagged_hash(tag, parts);
        Ok(Signature(schnorr::sign_with_aux_rand(&hash.0, &self.0, &aux).to_byte_array()))
    }
}

impl Drop for AuthKey {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthKey(public {})", self.public())
    }
}

/// Whether `signature` is `key`'s over `hash_tag(parts)`. A key that is not on the curve verifies nothing.
pub fn verify(key: &XOnlyKey, tag: Tag, parts: &[&[u8]], signature: &Signature) -> bool {
    let Ok(key) = XOnlyPublicKey::from_byte_array(key.0) else {
        return false;
    };
    let hash = tagged_hash(tag, parts);
    schnorr::verify(&schnorr::Signature::from_byte_array(signature.0), &hash.0, &key).is_ok()
}

/// Whether these bytes are a BIP-340 public key.
pub fn is_x_only_key(key: &XOnlyKey) -> bool {
    XOnlyPublicKey::from_byte_array(key.0).is_ok()
}

/// Whether these bytes are a point of the curve, compressed.
pub fn is_public_key(key: &PublicKey) -> bool {
    secp256k1::PublicKey::from_byte_array_compressed(key.0).is_ok()
}

/// The compressed public key of a private key.
///
/// # Errors
/// [`InvalidKey`].
pub fn public_key(secret: &Secret<32>) -> Result<PublicKey, InvalidKey> {
    let mut pair = Keypair::from_secret_bytes(*secret.expose()).map_err(|_| InvalidKey)?;
    let public = PublicKey(pair.public_key().serialize());
    pair.non_secure_erase();
    Ok(public)
}

/// The x coordinate of a compressed point, as BIP-340 uses it.
pub fn x_only(key: &PublicKey) -> XOnlyKey {
    let mut x = [0; 32];
    x.copy_from_slice(&key.0[1..]);
    XOnlyKey(x)
}

/// The x coordinate of `secret * point`, hashed: the static ECDH of libsecp256k1 (SHA-256 of the compressed point).
///
/// # Errors
/// [`InvalidKey`] where either is not a key.
pub fn shared_secret(secret: &Secret<32>, point: &PublicKey) -> Result<Secret<32>, InvalidKey> {
    let point = secp256k1::PublicKey::from_byte_array_compressed(point.0).map_err(|_| InvalidKey)?;
    let mut scalar = secp256k1::SecretKey::from_secret_bytes(*secret.expose()).map_err(|_| InvalidKey)?;
    let mut shared = secp256k1::ecdh::SharedSecret::new(&point, &scalar);
    scalar.non_secure_erase();
    let secret = Secret::copied_from(shared.as_secret_bytes());
    shared.non_secure_erase();
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::{AuthKey, InvalidKey, public_key, shared_secret, verify, x_only};
    use crate::bytes::XOnlyKey;
    use crate::crypto::hash::Tag;
    use crate::entropy::test_entropy;
    use crate::secret::Secret;

    static_assertions::assert_not_impl_any!(AuthKey: Clone, Copy, serde::Serialize);

    #[test]
    fn signatures_hold_for_their_key_tag_and_content_alone() {
        let mut entropy = test_entropy(1);
        let secret = Secret::random(&mut entropy).expect("never fails");
        let key = AuthKey::new(&secret).expect("a key");
        let signature = key.sign(Tag::Approve, &[b"content"], &mut entropy).expect("never fails");
        assert!(verify(&key.public(), Tag::Approve, &[b"content"], &signature));
        assert!(!verify(&key.public(), Tag::Decline, &[b"content"], &signature));
        assert!(!verify(&key.public(), Tag::Approve, &[b"contents"], &signature));
        let other = AuthKey::new(&Secret::random(&mut entropy).expect("never fails")).expect("a key");
        assert!(!verify(&other.public(), Tag::Approve, &[b"content"], &signature));
        assert!(!verify(&XOnlyKey([0xff; 32]), Tag::Approve, &[b"content"], &signature));
        assert_eq!(format!("{key:?}"), format!("AuthKey(public {})", key.public()));
        assert_eq!(x_only(&public_key(&secret).expect("a key")), key.public());
    }

    #[test]
    fn zero_and_the_group_order_are_no_keys() {
        assert_eq!(AuthKey::new(&Secret::copied_from(&[0; 32])).expect_err("zero"), InvalidKey);
        assert_eq!(public_key(&Secret::copied_from(&[0xff; 32])), Err(InvalidKey));
    }

    #[test]
    fn both_sides_share_one_secret() {
        let mut entropy = test_entropy(2);
        let a = Secret::random(&mut entropy).expect("never fails");
        let b = Secret::random(&mut entropy).expect("never fails");
        let ab = shared_secret(&a, &public_key(&b).expect("a key")).expect("keys");
        let ba = shared_secret(&b, &public_key(&a).expect("a key")).expect("keys");
        assert_eq!(ab, ba);
    }
}
