//! The invite: what the coordinator hands one participant out of band. It is a secret.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::check_version;
use crate::bytes::Hash;
use crate::id::{KeygenId, UserId};
use crate::limits::INVITE_BYTES_MAX;
use crate::refusal::Code;
use crate::secret::{self, Secret};
use crate::strict;

/// What the coordinator hands one participant out of band.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// [`super::VERSION`].
    pub version: u64,
    /// Where the gateway is.
    pub gateway_url: String,
    /// The session.
    pub keygen_id: KeygenId,
    /// Who the invited participant is in it.
    pub user_id: UserId,
    /// The hash of the manifest.
    pub manifest_hash: Hash,
    /// Opens the session's sealed blobs.
    #[serde(with = "secret::hex")]
    pub session_secret: Secret<32>,
    /// Signs the slot's HTTP requests and nothing else.
    #[serde(with = "secret::hex")]
    pub slot_key: Secret<32>,
    /// Co-signs the record, unless the participant's signing key is pinned.
    #[serde(default, with = "secret::hex::option", skip_serializing_if = "Option::is_none")]
    pub invite_key: Option<Secret<32>>,
}

impl Invite {
    /// The canonical bytes, wiped on drop.
    ///
    /// # Errors
    /// [`Code::TooLarge`] for an overlong URL.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Code> {
        Ok(strict::to_secret_json(self, INVITE_BYTES_MAX)?)
    }

    /// Reads an invite in its canonical form.
    ///
    /// # Errors
    /// [`Code`], one for each reason.
    pub fn decode(bytes: &[u8]) -> Result<Invite, Code> {
        let invite: Invite = strict::from_secret_json(bytes, INVITE_BYTES_MAX)?;
        check_version(invite.version)?;
        Ok(invite)
    }
}
