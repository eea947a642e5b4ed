//! Verification of AWS Nitro attestation documents, whole and pure (DESIGN 4.1 and 4.2).
//!
//! - [`document`] parses the COSE_Sign1 bytes that a Nitro Security Module (NSM) returns.
//! - [`Root`] is a pinned trust anchor; [`verify`] checks signature, certificate path and that an enclave,
//!   not in debug mode, made the document.
//! - [`policy`] is what a client demands on top of that: freshness, nonce, images, configuration.
//! - [`verify_birth`] is what an enclave demands of the row that it restarts from (S7).
//!
//! Work is bounded for any input: [`document::DOCUMENT_BYTES_MAX`] bytes are read once, then one P-384
//! signature of the document and at most 100 of certificates (webpki's own limit, needed only by a bundle made
//! to confuse it) are checked. Nothing in here reads a clock.
//!
//! **Invariant:** a signature or a certificate path is never accepted outside the validity window of every
//! certificate in it, the root's included (`every_real_document_gets_its_listed_verdict`).

mod birth;
mod chain;
pub mod document;
mod error;
mod hex;
pub mod policy;
mod user_data;

pub use birth::{Birth, BirthExpectation, verify_birth};
pub use chain::{AWS_NITRO_ROOT_G1_SHA256, Root, RootKind};
pub use error::AttestationError;
pub use user_data::{BirthUserData, ServiceUserData};

use document::{Document, Sign1};

/// The bytes of a platform configuration register: one SHA-384.
pub const PCR_BYTES: usize = 48;

/// Checks a document at its own time: signature, path to `root`, kind of module, debug mode.
///
/// Says nothing about which image runs, who asked or when: that is [`policy::Policy::check`].
///
/// # Errors
/// [`AttestationError`], one variant per reason.
pub fn verify(bytes: &[u8], root: &Root) -> Result<Document, AttestationError> {
    let sign1 = Sign1::parse(bytes)?;
    let document = sign1.document()?;
    let unix_time_s = document.timestamp_ms / 1_000;
    check(&sign1, document, root, unix_time_s)
}

/// As [`verify`], but with the validity windows checked at another time, in seconds since 1970.
///
/// Only for tools and tests that ask what a document was worth at a time: a verifier takes [`verify`].
///
/// # Errors
/// As [`verify`].
pub fn verify_at(bytes: &[u8], root: &Root, unix_time_s: u64) -> Result<Document, AttestationError> {
    let sign1 = Sign1::parse(bytes)?;
    let document = sign1.document()?;
    check(&sign1, document, root, unix_time_s)
}

/// The order is by cost: the document's one signature goes before the path's several.
fn check(
    sign1: &Sign1<'_>,
    document: Document,
    root: &Root,
    unix_time_s: u64,
) -> Result<Document, AttestationError> {
    if document.cabundle.first().map(alloc::vec::Vec::as_slice) != Some(root.der()) {
        return Err(AttestationError::RootUntrusted);
    }
    chain::verify_signature(sign1, &document.certificate)?;
    chain::verify_path(&document.certificate, &document.cabundle, root, unix_time_s)?;
    if !document.is_from_enclave() {
        return Err(AttestationError::NotAnEnclave);
    }
    if document.pcr(0)? == [0; PCR_BYTES] {
        return Err(AttestationError::DebugMode);
    }
    Ok(document)
}
