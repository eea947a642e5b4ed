//! Seals opened without KeyMeld's own code: AES-256-GCM, with additional data that is put together here.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use keymeld_core::bytes::Blob;
use keymeld_core::crypto::seal::{Context, Round};
use keymeld_core::secret::Secret;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 12;

/// What was sealed under this key for exactly this context.
pub(crate) fn open(key: &Secret<32>, context: &Context, blob: &Blob) -> Option<Vec<u8>> {
    let (header, sealed) = blob.0.split_at_checked(HEADER_BYTES)?;
    let (version, nonce) = header.split_first()?;
    let nonce: [u8; 12] = nonce.try_into().ok()?;
    let payload = Payload { msg: sealed, aad: &additional_data(context) };
    let cipher = Aes256Gcm::new(key.expose().into());
    let padded = cipher.decrypt(&Nonce::from(nonce), payload).ok().filter(|_| *version == VERSION)?;
    let end = padded.iter().rposition(|byte| *byte != 0)?;
    (padded[end] == 0x80).then(|| padded[..end].to_vec())
}

/// The purpose and every field, each after its length in four bytes.
fn additional_data(context: &Context) -> Vec<u8> {
    let epoch_bytes;
    let (purpose, fields): (&str, Vec<&[u8]>) = match context {
        Context::Manifest { keygen_id, manifest_hash } => {
            ("keymeld-manifest-v1", vec![&keygen_id.0, &manifest_hash.0])
        }
        Context::Record { keygen_id, manifest_hash, user_id } => {
            ("keymeld-record-v1", vec![&keygen_id.0, &manifest_hash.0, &user_id.0])
        }
        Context::Certificate { keygen_id, roster_hash, enclave_key } => {
            ("keymeld-certificate-v1", vec![&keygen_id.0, &roster_hash.0, &enclave_key.0])
        }
        Context::Intent { keygen_id, signing_id, digest } => {
            ("keymeld-intent-v1", vec![&keygen_id.0, &signing_id.0, &digest.0])
        }
        Context::Result { keygen_id, signing_id, digest } => {
            ("keymeld-result-v1", vec![&keygen_id.0, &signing_id.0, &digest.0])
        }
        Context::Reason { keygen_id, signing_id, user_id } => {
            ("keymeld-reason-v1", vec![&keygen_id.0, &signing_id.0, &user_id.0])
        }
        Context::Nonces(round) => ("keymeld-nonces-v1", of_round(round)),
        Context::Partials(round) => ("keymeld-partials-v1", of_round(round)),
        Context::Seed { enclave_id, epoch, key_arn, ecies_key, identity_key, birth_pcr0 } => {
            epoch_bytes = epoch.to_be_bytes();
            let fields: Vec<&[u8]> =
                vec![&enclave_id.0, &epoch_bytes, key_arn, &ecies_key.0, &identity_key.0, birth_pcr0];
            ("keymeld-enclave-seed-v1", fields)
        }
    };
    let mut data = Vec::new();
    for field in [purpose.as_bytes()].into_iter().chain(fields) {
        data.extend((field.len() as u32).to_be_bytes());
        data.extend(field);
    }
    data
}

fn of_round(round: &Round) -> Vec<&[u8]> {
    let Round { keygen_id, roster_hash, digest, attempt, aggregator, sender, recipient } = round;
    vec![&keygen_id.0, &roster_hash.0, &digest.0, &attempt.0, &aggregator.0, &sender.0, &recipient.0]
}
