//! Seals: AES-256-GCM under a shared key, the whole context as additional data, padded plaintext.
//!
//! ```text
//! version 1 (1 byte) | nonce (12 bytes) | ciphertext of the padded plaintext | tag (16 bytes)
//! padding: 0x80, then zeros up to a size bucket
//! ```

use alloc::vec::Vec;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use zeroize::Zeroizing;

use crate::bytes::{Blob, Hash, PublicKey};
use crate::crypto::derive::{Purpose, derive};
use crate::entropy::{Entropy, EntropyFailed};
use crate::id::{AttemptId, EnclaveId, KeygenId, SigningId, UserId};
use crate::limits::SEALED_BYTES_MAX;
use crate::secret::Secret;

const VERSION: u8 = 1;
const OVERHEAD: usize = 1 + 12 + 16;

/// What is sealed and where it belongs. All of it is authenticated; none of it is in the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// A keygen's manifest.
    Manifest {
        /// The session.
        keygen_id: KeygenId,
        /// The hash of the plaintext.
        manifest_hash: Hash,
    },
    /// One participant's record.
    Record {
        /// The session.
        keygen_id: KeygenId,
        /// The manifest it was made for.
        manifest_hash: Hash,
        /// Whose record it is.
        user_id: UserId,
    },
    /// An enclave's certificate.
    Certificate {
        /// The session.
        keygen_id: KeygenId,
        /// The roster it certifies.
        roster_hash: Hash,
        /// The certifying enclave's ECIES key.
        enclave_key: PublicKey,
    },
    /// A signing request's intent.
    Intent {
        /// The keygen session.
        keygen_id: KeygenId,
        /// The signing session.
        signing_id: SigningId,
        /// The intent's digest.
        digest: Hash,
    },
    /// A signing session's result.
    Result {
        /// The keygen session.
        keygen_id: KeygenId,
        /// The signing session.
        signing_id: SigningId,
        /// The intent's digest.
        digest: Hash,
    },
    /// Why an approver declined or a requester cancelled.
    Reason {
        /// The keygen session.
        keygen_id: KeygenId,
        /// The signing session.
        signing_id: SigningId,
        /// Who says so.
        user_id: UserId,
    },
    /// Public nonces, enclave to enclave.
    Nonces(Round),
    /// Partial signatures, enclave to aggregator.
    Partials(Round),
    /// An enclave's seed, at rest.
    Seed {
        /// The enclave.
        enclave_id: EnclaveId,
        /// Its epoch.
        epoch: u32,
        /// The KMS key that encrypts the data key; empty in development.
        key_arn: Vec<u8>,
        /// Its ECIES key.
        ecies_key: PublicKey,
        /// Its identity key.
        identity_key: crate::bytes::XOnlyKey,
        /// PCR0 of the image that made it.
        birth_pcr0: Vec<u8>,
    },
}

/// One run of the signing rounds, as seen by a message from one enclave to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The keygen session.
    pub keygen_id: KeygenId,
    /// The verified roster.
    pub roster_hash: Hash,
    /// The intent's digest.
    pub digest: Hash,
    /// The run.
    pub attempt: AttemptId,
    /// The aggregator's ECIES key.
    pub aggregator: PublicKey,
    /// The sender's ECIES key.
    pub sender: PublicKey,
    /// The recipient's ECIES key.
    pub recipient: PublicKey,
}

impl Context {
    /// The additional data: the purpose, then every field, each with its length.
    fn additional_data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        let mut put = |field: &[u8]| {
            let length = u32::try_from(field.len()).expect("contexts are small");
            data.extend_from_slice(&length.to_be_bytes());
            data.extend_from_slice(field);
        };
        let mut put_round = |purpose: &[u8], round: &Round| {
            put(purpose);
            put(round.keygen_id.as_bytes());
            put(&round.roster_hash.0);
            put(&round.digest.0);
            put(round.attempt.as_bytes());
            put(&round.aggregator.0);
            put(&round.sender.0);
            put(&round.recipient.0);
        };
        match self {
            Context::Nonces(round) => put_round(b"keymeld-nonces-v1", round),
            Context::Partials(round) => put_round(b"keymeld-partials-v1", round),
            Context::Manifest { keygen_id, manifest_hash } => {
                put(b"keymeld-manifest-v1");
                put(keygen_id.as_bytes());
                put(&manifest_hash.0);
            }
            Context::Record { keygen_id, manifest_hash, user_id } => {
                put(b"keymeld-record-v1");
                put(keygen_id.as_bytes());
                put(&manifest_hash.0);
                put(user_id.as_bytes());
            }
            Context::Certificate { keygen_id, roster_hash, enclave_key } => {
                put(b"keymeld-certificate-v1");
                put(keygen_id.as_bytes());
                put(&roster_hash.0);
                put(&enclave_key.0);
            }
            Context::Intent { keygen_id, signing_id, digest } => {
                put(b"keymeld-intent-v1");
                put(keygen_id.as_bytes());
                put(signing_id.as_bytes());
                put(&digest.0);
            }
            Context::Result { keygen_id, signing_id, digest } => {
                put(b"keymeld-result-v1");
                put(keygen_id.as_bytes());
                put(signing_id.as_bytes());
                put(&digest.0);
            }
            Context::Reason { keygen_id, signing_id, user_id } => {
                put(b"keymeld-reason-v1");
                put(keygen_id.as_bytes());
                put(signing_id.as_bytes());
                put(user_id.as_bytes());
            }
            Context::Seed { enclave_id, epoch, key_arn, ecies_key, identity_key, birth_pcr0 } => {
                put(b"keymeld-enclave-seed-v1");
                put(enclave_id.as_bytes());
                put(&epoch.to_be_bytes());
                put(key_arn);
                put(&ecies_key.0);
                put(&identity_key.0);
                put(birth_pcr0);
            }
        }
        data
    }
}

/// Why a blob was not opened. Nothing more is said to whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sealed blob does not open under this key and context")]
pub struct OpenError;

/// Why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No randomness for the nonce.
    #[error(transparent)]
    Entropy(#[from] EntropyFailed),
    /// More than [`SEALED_BYTES_MAX`].
    #[error("too large to seal")]
    TooLarge,
}

/// A key that seals and opens.
#[derive(Debug)]
pub struct SealKey(Secret<32>);

impl SealKey {
    /// A key as it is.
    pub fn new(key: Secret<32>) -> SealKey {
        SealKey(key)
    }

    /// The key derived for a purpose.
    pub fn derived(from: &Secret<32>, purpose: Purpose) -> SealKey {
        SealKey(derive(from, purpose))
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.0.expose().into())
    }

    /// Pads and seals `plaintext` for `context` under a fresh random nonce.
    ///
    /// # Errors
    /// [`SealError`].
    ///
    /// # Panics
    /// Never: AES-GCM does not fail below 64 GiB.
    pub fn seal(
        &self,
        context: &Context,
        plaintext: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Blob, SealError> {
        let padded_length = bucket(plaintext.len() + 1);
        if padded_length + OVERHEAD > SEALED_BYTES_MAX {
            return Err(SealError::TooLarge);
        }
        let nonce = entropy.bytes::<12>()?;
        let mut padded = Zeroizing::new(Vec::with_capacity(padded_length));
        padded.extend_from_slice(plaintext);
        padded.push(0x80);
        padded.resize(padded_length, 0);
        let payload = Payload { msg: &padded, aad: &context.additional_data() };
        let sealed = self.cipher().encrypt(&Nonce::from(nonce), payload).expect("far below 64 GiB");
        let mut blob = Vec::with_capacity(OVERHEAD + padded_length);
        blob.push(VERSION);
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(&sealed);
        Ok(Blob(blob))
    }

    /// Opens a blob sealed for exactly this context.
    ///
    /// # Errors
    /// [`OpenError`], whatever is wrong.
    pub fn open(&self, context: &Context, blob: &Blob) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let blob = blob.0.as_slice();
        if blob.len() > SEALED_BYTES_MAX || blob.len() < OVERHEAD || blob[0] != VERSION {
            return Err(OpenError);
        }
        let nonce: [u8; 12] = blob[1..13].try_into().map_err(|_| OpenError)?;
        let payload = Payload { msg: &blob[13..], aad: &context.additional_data() };
        let padded = self.cipher().decrypt(&Nonce::from(nonce), payload).map_err(|_| OpenError)?;
        let mut plaintext = Zeroizing::new(padded);
        let length = plaintext.iter().rposition(|byte| *byte != 0).ok_or(OpenError)?;
        if plaintext[length] != 0x80 || bucket(length + 1) != plaintext.len() {
            return Err(OpenError);
        }
        plaintext.truncate(length);
        Ok(plaintext)
    }
}

/// The size that a plaintext is padded to: at least 256, above that at most 12 % more (Padmé).
fn bucket(length: usize) -> usize {
    if length <= 256 {
        return 256;
    }
    let exponent = length.ilog2();
    let free_bits = exponent - (exponent.ilog2() + 1);
    length.next_multiple_of(1 << free_bits)
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::{Context, OpenError, Round, SealKey, bucket};
    use crate::bytes::{Blob, Hash, PublicKey, XOnlyKey};
    use crate::entropy::test_entropy;
    use crate::id::{AttemptId, EnclaveId, KeygenId, SigningId, UserId};
    use crate::secret::Secret;

    fn contexts() -> Vec<Context> {
        let keygen_id = KeygenId([1; 16]);
        let signing_id = SigningId([1; 16]);
        let user_id = UserId([1; 16]);
        let hash = Hash([2; 32]);
        let key = PublicKey([2; 33]);
        let round = Round {
            keygen_id,
            roster_hash: hash,
            digest: hash,
            attempt: AttemptId([1; 16]),
            aggregator: key,
            sender: key,
            recipient: PublicKey([3; 33]),
        };
        vec![
            Context::Manifest { keygen_id, manifest_hash: hash },
            Context::Record { keygen_id, manifest_hash: hash, user_id },
            Context::Record { keygen_id, manifest_hash: hash, user_id: UserId([2; 16]) },
            Context::Certificate { keygen_id, roster_hash: hash, enclave_key: key },
            Context::Intent { keygen_id, signing_id, digest: hash },
            Context::Intent { keygen_id, signing_id, digest: Hash([3; 32]) },
            Context::Result { keygen_id, signing_id, digest: hash },
            Context::Reason { keygen_id, signing_id, user_id },
            Context::Nonces(round),
            Context::Partials(round),
            Context::Nonces(Round { sender: round.recipient, recipient: round.sender, ..round }),
            Context::Nonces(Round { attempt: AttemptId([2; 16]), ..round }),
            Context::Nonces(Round { aggregator: PublicKey([3; 33]), ..round }),
            Context::Seed {
                enclave_id: EnclaveId([1; 16]),
                epoch: 1,
                key_arn: vec![],
                ecies_key: key,
                identity_key: XOnlyKey([2; 32]),
                birth_pcr0: vec![0; 48],
            },
        ]
    }

    #[test]
    fn a_blob_opens_in_its_own_context_alone() {
        let mut entropy = test_entropy(3);
        let key = SealKey::new(Secret::random(&mut entropy).expect("never fails"));
        let contexts = contexts();
        for (index, context) in contexts.iter().enumerate() {
            let blob = key.seal(context, b"plain", &mut entropy).expect("small");
            for (other, wrong) in contexts.iter().enumerate() {
                let opened = key.open(wrong, &blob);
                if index == other {
                    assert_eq!(opened.expect("own context").as_slice(), b"plain");
                } else {
                    assert_eq!(opened, Err(OpenError), "{context:?} as {wrong:?}");
                }
            }
        }
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_refused() {
        let mut entropy = test_entropy(4);
        let key = SealKey::new(Secret::random(&mut entropy).expect("never fails"));
        let context = &contexts()[0];
        let blob = key.seal(context, b"plain", &mut entropy).expect("small");
        for bit in 0..blob.0.len() * 8 {
            let mut flipped = blob.clone();
            flipped.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(context, &flipped), Err(OpenError));
        }
        for end in 0..blob.0.len() {
            assert_eq!(key.open(context, &Blob(blob.0[..end].to_vec())), Err(OpenError));
        }
    }

    #[test]
    fn sizes_fall_into_few_buckets() {
        let mut entropy = test_entropy(5);
        let key = SealKey::new(Secret::random(&mut entropy).expect("never fails"));
        for length in [0, 1, 254, 255, 256, 1_000, 1_023, 1_024, 5_000, 100_000] {
            let plaintext = vec![0x80; length];
            let blob = key.seal(&contexts()[0], &plaintext, &mut entropy).expect("small");
            assert_eq!(blob.0.len(), bucket(length + 1) + 29);
            assert!(bucket(length + 1) <= 256.max((length + 1) * 9 / 8));
            assert_eq!(key.open(&contexts()[0], &blob).expect("own").as_slice(), plaintext);
        }
        assert_eq!(bucket(256), 256);
        assert_eq!((257..=100_000).map(bucket).collect::<alloc::collections::BTreeSet<_>>().len(), 145);
    }
}
