//! What clients make and read: JSON, signed and hashed as the exact bytes sent.
//!
//! A signed artifact is `{body, signatures}` with the body as hex of its exact bytes, so that nobody ever
//! has to encode it again to verify it.

pub mod approval;
pub mod authority;
pub mod certificate;
pub mod intent;
pub mod invite;
pub mod manifest;
pub mod registration;
pub mod result;
pub mod roster;
pub mod tweak;

use serde::{Deserialize, Serialize};

use crate::bytes::{Blob, PublicKey};
use crate::crypto::auth;
use crate::refusal::Code;
use crate::strict::{self, JsonError};

/// The version of every artifact so far.
pub const VERSION: u64 = 1;

/// A body as signed, with its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<S> {
    /// The exact bytes.
    pub body: Blob,
    /// The signatures over them.
    pub signatures: S,
}

/// Reads a body with its signatures: as many bytes as the hex of the largest body takes, and the signatures.
fn decode_signed<S: for<'de> Deserialize<'de> + Serialize>(
    bytes: &[u8],
    body_bytes_max: usize,
) -> Result<Signed<S>, JsonError> {
    const SIGNATURES_BYTES_MAX: usize = 512;
    strict::from_json(bytes, 2 * body_bytes_max + SIGNATURES_BYTES_MAX)
}

/// Refuses any version but [`VERSION`].
fn check_version(version: u64) -> Result<(), Code> {
    if version == VERSION { Ok(()) } else { Err(Code::UnsupportedVersion) }
}

/// Refuses bytes that are no point of the curve.
pub(crate) fn check_public_key(key: &PublicKey) -> Result<(), Code> {
    if key.0.iter().all(|byte| *byte == 0) {
        Err(Code::PointAtInfinity)
    } else if auth::is_public_key(key) {
        Ok(())
    } else {
        Err(Code::NotOnCurve)
    }
}
