//! The birth document: what makes a stored row of keys more than bytes that a host made up (S7).

use super::{AttestationError, BirthUserData, PCR_BYTES, Root, verify};

/// What the row says, and the birth document has to say too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BirthExpectation {
    /// The enclave's id, a UUID.
    pub enclave_id: [u8; 16],
    /// Counts the seeds of this enclave.
    pub epoch: u32,
    /// The ECIES public key, compressed.
    pub ecies_key: [u8; 33],
    /// The BIP-340 public key.
    pub identity_key: [u8; 32],
    /// The SHA-256 of the row's encrypted data-encryption key.
    pub encrypted_dek_hash: [u8; 32],
}

/// What a verified birth document adds to the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// PCR0 of the image that made the keys.
    pub pcr0: [u8; PCR_BYTES],
    /// When it made them, by the NSM's clock, in milliseconds since 1970.
    pub time_ms: u64,
}

/// Verifies the birth document of a row that a host handed back (DESIGN 4.2).
///
/// It is the whole verifier at the document's own time, except nonce, freshness and a client's lists. The
/// document's PCR0 must be `running_pcr0`, as read from the NSM, or one of `predecessors`, which is measured.
///
/// # Errors
/// [`AttestationError`], one variant per reason.
pub fn verify_birth(
    bytes: &[u8],
    root: &Root,
    expected: &BirthExpectation,
    running_pcr0: &[u8; PCR_BYTES],
    predecessors: &[[u8; PCR_BYTES]],
) -> Result<Birth, AttestationError> {
    let document = verify(bytes, root)?;
    let user_data = document.user_data.as_deref().ok_or(AttestationError::UserDataMissing)?;
    let stated = BirthUserData::decode(user_data)?;
    if stated.enclave_id != expected.enclave_id {
        return Err(AttestationError::EnclaveIdDiffers);
    }
    if stated.epoch != expected.epoch {
        return Err(AttestationError::EpochDiffers);
    }
    if stated.ecies_key != expected.ecies_key {
        return Err(AttestationError::EciesKeyDiffers);
    }
    if stated.identity_key != expected.identity_key {
        return Err(AttestationError::IdentityKeyDiffers);
    }
    if stated.encrypted_dek_hash != expected.encrypted_dek_hash {
        return Err(AttestationError::EncryptedDekDiffers);
    }
    let pcr0 = document.pcr(0)?;
    if pcr0 != *running_pcr0 && !predecessors.contains(&pcr0) {
        return Err(AttestationError::NotAPredecessor);
    }
    Ok(Birth { pcr0, time_ms: document.timestamp_ms })
}
