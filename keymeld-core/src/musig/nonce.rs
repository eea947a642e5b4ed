//! NonceGen and Sign: the one place that holds secret nonces.
//!
//! **Invariant:** a secret nonce comes from fresh entropy mixed with key, message and key aggregation,
//! signs at most once, and leaves this module in no form but the partial signature.

use alloc::boxed::Box;
use core::fmt;
use core::mem;

use secp256k1::musig::{SecretNonce, SessionSecretRand, new_nonce_pair};
use secp256k1::{Keypair, SecretKey};

use super::MusigError;
use super::aggregate::KeyAgg;
use super::round::Session;
use crate::entropy::Entropy;
use crate::secret::Secret;

/// A secret nonce together with all that it may be used for: one key, one key aggregation, one message.
///
/// It cannot be copied, serialised, printed or imported, and is wiped when it is dropped. Signing consumes it:
///
/// ```
/// # use keymeld_core::musig::{nonce::SigningNonce, round::Session};
/// fn sign(nonce: SigningNonce, session: &Session) {
///     let _ = nonce.sign(session);
/// }
/// ```
///
/// so that it cannot sign twice:
///
/// ```compile_fail
/// # use keymeld_core::musig::{nonce::SigningNonce, round::Session};
/// fn sign(nonce: SigningNonce, session: &Session) {
///     let _ = nonce.sign(session);
///     let _ = nonce.sign(session);
/// }
/// ```
///
/// Not even where it did not sign the first time. A session that was refused needs a nonce of its own:
///
/// ```
/// # use keymeld_core::musig::{nonce::SigningNonce, round::Session};
/// fn sign(nonce: SigningNonce, other: SigningNonce, session: &Session) {
///     if nonce.sign(session).is_err() {
///         let _ = other.sign(session);
///     }
/// }
/// ```
///
/// ```compile_fail
/// # use keymeld_core::musig::{nonce::SigningNonce, round::Session};
/// fn sign(nonce: SigningNonce, other: SigningNonce, session: &Session) {
///     if nonce.sign(session).is_err() {
///         let _ = nonce.sign(session);
///     }
/// }
/// ```
///
/// A borrowed nonce does not sign; only its owner can give it away:
///
/// ```
/// # use keymeld_core::musig::{nonce::SigningNonce, round::Session};
/// fn sign(nonce: &SigningNonce) -> [u8; 66] {
///     nonce.public()
/// }
/// ```
///
/// ```compile_fail
/// # use keymeld_core::musig::{nonce::SigningNonce, round::Session};
/// fn sign(nonce: &SigningNonce, session: &Session) {
///     let _ = nonce.sign(session);
/// }
/// ```
///
/// It can be moved:
///
/// ```
/// # use keymeld_core::musig::nonce::SigningNonce;
/// fn hand_over(nonce: SigningNonce) -> SigningNonce {
///     nonce
/// }
/// ```
///
/// but not cloned:
///
/// ```compile_fail
/// # use keymeld_core::musig::nonce::SigningNonce;
/// fn hand_over(nonce: SigningNonce) -> SigningNonce {
///     nonce.clone()
/// }
/// ```
pub struct SigningNonce {
    key_agg: KeyAgg,
    message: [u8; 32],
    public: [u8; 66],
    held: Box<Held>,
}

/// The secrets. They stay in one place on the heap, however often their owner moves.
struct Held {
    nonce: SecretNonce,
    keypair: Keypair,
}

impl SigningNonce {
    /// Makes a nonce for signing `message` with `key` as a member of `key_agg`.
    ///
    /// BIP-327, *NonceGen*, with every optional argument but extra_in: the nonce depends on 32 fresh random
    /// bytes, the secret key, the tweaked aggregate key and the message.
    ///
    /// # Errors
    /// [`MusigError::SecretKeyOutOfRange`], [`NotAMember`](MusigError::NotAMember) where the key's point is
    /// not in `key_agg`, [`Entropy`](MusigError::Entropy) where the generator fails, repeats itself or gives
    /// zeros.
    pub fn generate(
        key: &Secret<32>,
        key_agg: &KeyAgg,
        message: [u8; 32],
        entropy: &mut Entropy,
    ) -> Result<SigningNonce, MusigError> {
        let mut secret_key =
            SecretKey::from_secret_bytes(*key.expose()).map_err(|_| MusigError::SecretKeyOutOfRange)?;
        let nonce = SigningNonce::generate_for(&secret_key, key_agg, message, entropy);
        secret_key.non_secure_erase();
        nonce
    }

    fn generate_for(
        secret_key: &SecretKey,
        key_agg: &KeyAgg,
        message: [u8; 32],
        entropy: &mut Entropy,
    ) -> Result<SigningNonce, MusigError> {
        let mut keypair = Keypair::from_secret_key(secret_key);
        let public_key = keypair.public_key();
        if !key_agg.contains(&public_key.serialize()) {
            keypair.non_secure_erase();
            return Err(MusigError::NotAMember);
        }
        let random = match Secret::<32>::random(entropy) {
            Ok(random) => random,
            Err(failed) => {
                keypair.non_secure_erase();
                return Err(failed.into());
            }
        };
        // Entropy refuses a block of zeros, on which the library would panic.
        let (nonce, public) = new_nonce_pair(
            SessionSecretRand::assume_uniformly_random(*random.expose()),
            Some(key_agg.cache()),
            Some(*secret_key),
            public_key,
            Some(&message),
            None,
        );
        let held = Box::new(Held { nonce, keypair });
        keypair.non_secure_erase();
        Ok(SigningNonce { key_agg: key_agg.clone(), message, public: public.serialize(), held })
    }

    /// The public nonce, for NonceAgg.
    pub fn public(&self) -> [u8; 66] {
        self.public
    }

    /// Signs: the nonce's key contributes its partial signature to `session`.
    ///
    /// BIP-327, *Sign*. The result is not verified here: [`finish`](super::round::finish) verifies the whole.
    ///
    /// # Errors
    /// [`MusigError::OtherKeyAgg`] and [`OtherMessage`](MusigError::OtherMessage) where the session is not
    /// about what the nonce was made for. The nonce is wiped in any case.
    pub fn sign(mut self, session: &Session) -> Result<[u8; 32], MusigError> {
        if *session.key_agg() != self.key_agg {
            return Err(MusigError::OtherKeyAgg);
        }
        if *session.message() != self.message {
            return Err(MusigError::OtherMessage);
        }
        // The library aborts on a nonce of another key; this one was made with this very keypair.
        let nonce = self.held.take_nonce();
        let partial = session.native().partial_sign(nonce, &self.held.keypair, self.key_agg.cache());
        Ok(partial.serialize())
    }
}

impl fmt::Debug for SigningNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningNonce")
    }
}

impl Held {
    /// Moves the nonce out and leaves zeros, so that the heap keeps no copy. The zeros are never signed
    /// with: the only caller owns `self` and drops it.
    fn take_nonce(&mut self) -> SecretNonce {
        mem::replace(&mut self.nonce, SecretNonce::dangerous_from_bytes([0; _]))
    }

    fn wipe(&mut self) {
        self.nonce.non_secure_erase();
        self.keypair.non_secure_erase();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use secp256k1::{PublicKey, SecretKey};

    use super::SigningNonce;
    use crate::entropy::{Entropy, EntropyFailed, Origin, test_entropy};
    use crate::musig::MusigError;
    use crate::musig::aggregate::KeyAgg;
    use crate::musig::round::{Session, aggregate_nonces};
    use crate::musig::tweak::Tweak;
    use crate::secret::Secret;

    static_assertions::assert_not_impl_any!(SigningNonce: Clone, Copy, serde::Serialize, core::fmt::Display, core::fmt::LowerHex);
    static_assertions::assert_impl_all!(SigningNonce: Send);

    const MESSAGE: [u8; 32] = [7; 32];

    fn secret(byte: u8) -> Secret<32> {
        Secret::copied_from(&[byte; 32])
    }

    fn key(byte: u8) -> [u8; 33] {
        PublicKey::from_secret_key(&SecretKey::from_secret_bytes([byte; 32]).expect("in range")).serialize()
    }

    fn key_agg() -> KeyAgg {
        KeyAgg::new(&[key(1), key(2)], &[]).expect("two points")
    }

    fn nonce(seed: u64) -> SigningNonce {
        SigningNonce::generate(&secret(1), &key_agg(), MESSAGE, &mut test_entropy(seed)).expect("a member")
    }

    #[test]
    fn a_key_that_is_no_member_gets_no_nonce() {
        let refused = SigningNonce::generate(&secret(3), &key_agg(), MESSAGE, &mut test_entropy(1));
        assert_eq!(refused.expect_err("no member"), MusigError::NotAMember);
    }

    #[test]
    fn the_negated_key_is_no_member() {
        let negated = SecretKey::from_secret_bytes([1; 32]).expect("in range").negate();
        let negated = Secret::copied_from(negated.as_secret_bytes());
        let refused = SigningNonce::generate(&negated, &key_agg(), MESSAGE, &mut test_entropy(1));
        assert_eq!(refused.expect_err("no member"), MusigError::NotAMember);
    }

    #[test]
    fn a_key_out_of_range_is_refused() {
        for byte in [0, 0xff] {
            let refused = SigningNonce::generate(&secret(byte), &key_agg(), MESSAGE, &mut test_entropy(1));
            assert_eq!(refused.expect_err("out of range"), MusigError::SecretKeyOutOfRange);
        }
    }

    #[test]
    fn zero_stuck_and_failing_randomness_is_refused() {
        let mut zero = Entropy::new(Origin::Test, |_| Ok(()));
        let mut failing = Entropy::new(Origin::Test, |_| Err(EntropyFailed));
        for entropy in [&mut zero, &mut failing] {
            let refused = SigningNonce::generate(&secret(1), &key_agg(), MESSAGE, entropy);
            assert_eq!(refused.expect_err("no entropy"), MusigError::Entropy(EntropyFailed));
        }
        let mut stuck = Entropy::new(Origin::Test, |out| {
            out.fill(9);
            Ok(())
        });
        assert!(SigningNonce::generate(&secret(1), &key_agg(), MESSAGE, &mut stuck).is_ok());
        let again = SigningNonce::generate(&secret(1), &key_agg(), MESSAGE, &mut stuck);
        assert_eq!(again.expect_err("the same block"), MusigError::Entropy(EntropyFailed));
    }

    #[test]
    fn the_nonce_depends_on_randomness_key_message_and_key_aggregation() {
        let tweaked = KeyAgg::new(&[key(1), key(2)], &[Tweak::Plain([3; 32])]).expect("valid");
        let make = |byte, key_agg: &KeyAgg, message, seed| {
            SigningNonce::generate(&secret(byte), key_agg, message, &mut test_entropy(seed))
                .expect("a member")
                .public()
        };
        let all = [
            make(1, &key_agg(), MESSAGE, 1),
            make(1, &key_agg(), MESSAGE, 2),
            make(1, &key_agg(), [8; 32], 1),
            make(1, &tweaked, MESSAGE, 1),
            make(2, &key_agg(), MESSAGE, 1),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| one[..33] != other[..33] && one[33..] != other[33..]));
        }
    }

    #[test]
    fn a_session_about_something_else_is_refused() {
        let aggregate = aggregate_nonces(&[nonce(1).public(), nonce(2).public()]).expect("two nonces");
        let tweaked = KeyAgg::new(&[key(1), key(2)], &[Tweak::Plain([3; 32])]).expect("valid");
        let larger = KeyAgg::new(&[key(1), key(2), key(3)], &[]).expect("valid");
        for other in [tweaked, larger] {
            let session = Session::new(&other, aggregate, MESSAGE).expect("valid");
            assert_eq!(nonce(1).sign(&session), Err(MusigError::OtherKeyAgg));
        }
        let session = Session::new(&key_agg(), aggregate, [8; 32]).expect("valid");
        assert_eq!(nonce(1).sign(&session), Err(MusigError::OtherMessage));
        let session = Session::new(&key_agg(), aggregate, MESSAGE).expect("valid");
        assert!(nonce(1).sign(&session).is_ok());
    }

    #[test]
    fn debug_shows_the_type_name_only() {
        let nonce = nonce(1);
        assert_eq!(format!("{nonce:?} {nonce:#?}"), "SigningNonce SigningNonce");
    }

    #[test]
    fn taking_and_wiping_leave_no_secret_behind() {
        // Key 2, because the library overwrites keys with ones.
        let mut nonce =
            SigningNonce::generate(&secret(2), &key_agg(), MESSAGE, &mut test_entropy(1)).expect("a member");
        let before = nonce.held.keypair.to_secret_bytes();
        let taken = nonce.held.take_nonce().dangerous_into_bytes();
        assert_ne!(taken[..], [0; 132][..]);
        nonce.held.wipe();
        assert_ne!(nonce.held.keypair.to_secret_bytes(), before);
        assert_eq!(nonce.held.take_nonce().dangerous_into_bytes(), [0; 132]);

        let mut unused = self::nonce(2);
        unused.held.wipe();
        let left: Vec<u8> = unused.held.take_nonce().dangerous_into_bytes().into();
        assert!(left.iter().all(|byte| *byte == 0));
    }
}
