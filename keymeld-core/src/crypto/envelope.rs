//! Envelopes to an enclave: ECIES in the wire format of the `ecies` crate, eciesjs and eciespy.
//!
//! ```text
//! ephemeral public key (65 bytes, uncompressed) | nonce (16) | tag (16) | ciphertext
//! ```
//! An envelope says nothing about who sent it. What it is for stands in a header inside its plaintext,
//! which the typed artifacts check ([`crate::artifact::registration`]).

use alloc::vec::Vec;

use aes_gcm::aead::array::Array;
use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, Tag};
use zeroize::Zeroizing;

use crate::bytes::{Blob, PublicKey};
use crate::entropy::{Entropy, EntropyFailed};
use crate::limits::ENVELOPE_BYTES_MAX;
use crate::secret::Secret;

const EPHEMERAL_BYTES: usize = 65;
const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const OVERHEAD: usize = EPHEMERAL_BYTES + NONCE_BYTES + TAG_BYTES;

type Cipher = AesGcm<Aes256, U16>;

/// Why no envelope was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncryptError {
    /// No randomness for the ephemeral key or the nonce.
    #[error(transparent)]
    Entropy(#[from] EntropyFailed),
    /// The recipient's key is not a point of the curve.
    #[error("not a public key")]
    InvalidKey,
    /// More than [`ENVELOPE_BYTES_MAX`] bytes.
    #[error("too large for an envelope")]
    TooLarge,
}

/// The envelope does not open under this key; nothing more is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the envelope does not open under this key")]
pub struct DecryptError;

fn symmetric_key(shared: Result<[u8; 32], impl Sized>) -> Option<Secret<32>> {
    let shared = Zeroizing::new(shared.ok()?);
    Some(Secret::copied_from(&shared))
}

/// Encrypts `plaintext` to an enclave's key.
///
/// # Errors
/// [`EncryptError`].
///
/// # Panics
/// Never: AES-GCM does not fail below 64 GiB.
pub fn encrypt(to: &PublicKey, plaintext: &[u8], entropy: &mut Entropy) -> Result<Blob, EncryptError> {
    if plaintext.len() > ENVELOPE_BYTES_MAX {
        return Err(EncryptError::TooLarge);
    }
    let recipient = ecies::PublicKey::parse_slice(&to.0, None).map_err(|_| EncryptError::InvalidKey)?;
    let ephemeral_bytes = Secret::<32>::random(entropy)?;
    // Zero and values from the group order come up with probability 2^-128; the caller may try again.
    let ephemeral = ecies::SecretKey::parse_slice(ephemeral_bytes.expose()).map_err(|_| EntropyFailed)?;
    let nonce = entropy.bytes::<NONCE_BYTES>()?;
    let key = symmetric_key(ecies::utils::encapsulate(&ephemeral, &recipient, false))
        .ok_or(EncryptError::InvalidKey)?;
    let mut buffer = Zeroizing::new(plaintext.to_vec());
    let tag = Cipher::new(key.expose().into())
        .encrypt_inout_detached(&Array(nonce), &[], buffer.as_mut_slice().into())
        .expect("far below 64 GiB");
    let mut envelope = Vec::with_capacity(OVERHEAD + plaintext.len());
    envelope.extend_from_slice(&ecies::PublicKey::from_secret_key(&ephemeral).serialize());
    envelope.extend_from_slice(&nonce);
    envelope.extend_from_slice(&tag);
    envelope.extend_from_slice(&buffer);
    Ok(Blob(envelope))
}

/// Decrypts an envelope with an enclave's private key.
///
/// # Errors
/// [`DecryptError`], whatever is wrong.
pub fn decrypt(with: &Secret<32>, envelope: &Blob) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
    let envelope = envelope.0.as_slice();
    if envelope.len() < OVERHEAD || envelope.len() > OVERHEAD + ENVELOPE_BYTES_MAX {
        return Err(DecryptError);
    }
    let (ephemeral, rest) = envelope.split_at(EPHEMERAL_BYTES);
    let (nonce, rest) = rest.split_at(NONCE_BYTES);
    let (tag, ciphertext) = rest.split_at(TAG_BYTES);
    let ephemeral = ecies::PublicKey::parse_slice(ephemeral, None).map_err(|_| DecryptError)?;
    let secret = ecies::SecretKey::parse_slice(with.expose()).map_err(|_| DecryptError)?;
    let key = symmetric_key(ecies::utils::decapsulate(&ephemeral, &secret, false)).ok_or(DecryptError)?;
    let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| DecryptError)?;
    let tag = Tag::try_from(tag).map_err(|_| DecryptError)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    Cipher::new(key.expose().into())
        .decrypt_inout_detached(&Array(nonce), &[], buffer.as_mut_slice().into(), &tag)
        .map_err(|_| DecryptError)?;
    Ok(buffer)
}
