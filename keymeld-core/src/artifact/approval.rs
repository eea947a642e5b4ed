//! Approvals, declines and cancellations: short signatures over an intent's digest.

use serde::{Deserialize, Serialize};

use super::{VERSION, check_version};
use crate::bytes::{Blob, Hash, Signature, XOnlyKey};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::hash::Tag;
use crate::entropy::Entropy;
use crate::id::{SigningId, UserId};
use crate::refusal::Code;

/// A user's consent to exactly one intent. It cannot be revoked before the intent expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// [`VERSION`].
    #[n(0)]
    pub version: u64,
    /// The signing session.
    #[n(1)]
    pub signing_id: SigningId,
    /// Who approves.
    #[n(2)]
    pub user_id: UserId,
    /// What is approved.
    #[n(3)]
    pub intent_digest: Hash,
    /// Whether messages that do not say what they are are approved too.
    #[n(4)]
    pub blind: bool,
    /// By the user's auth key.
    #[n(5)]
    pub signature: Signature,
}

impl Approval {
    /// Approves an intent that was opened, verified and read.
    ///
    /// # Errors
    /// [`Code::EntropyFailed`].
    pub fn sign(
        signing_id: SigningId,
        user_id: UserId,
        intent_digest: Hash,
        blind: bool,
        key: &AuthKey,
        entropy: &mut Entropy,
    ) -> Result<Approval, Code> {
        let mut approval = Approval {
            version: VERSION,
            signing_id,
            user_id,
            intent_digest,
            blind,
            signature: Signature([0; 64]),
        };
        approval.signature = approval.with_parts(|parts| key.sign(Tag::Approve, parts, entropy))?;
        Ok(approval)
    }

    fn with_parts<T>(&self, use_parts: impl FnOnce(&[&[u8]]) -> T) -> T {
        use_parts(&[
            &self.intent_digest.0,
            self.signing_id.as_bytes(),
            self.user_id.as_bytes(),
            &[u8::from(self.blind)],
        ])
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`Code::ApprovalInvalid`], [`Code::UnsupportedVersion`].
    pub fn verify(&self, auth_key: &XOnlyKey) -> Result<(), Code> {
        check_version(self.version)?;
        let valid = self.with_parts(|parts| auth::verify(auth_key, Tag::Approve, parts, &self.signature));
        if valid { Ok(()) } else { Err(Code::ApprovalInvalid) }
    }
}

/// An approver's no, or the requester's cancellation. It ends the session at the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// [`VERSION`].
    #[n(0)]
    pub version: u64,
    /// The signing session.
    #[n(1)]
    pub signing_id: SigningId,
    /// Who says no.
    #[n(2)]
    pub user_id: UserId,
    /// To what.
    #[n(3)]
    pub intent_digest: Hash,
    /// By the user's auth key over the digest.
    #[n(4)]
    pub signature: Signature,
    /// Why, sealed for the participants.
    #[n(5)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Blob>,
}

/// Which kind of no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithdrawalKind {
    /// By an approver.
    Decline,
    /// By the requester.
    Cancel,
}

impl WithdrawalKind {
    fn tag(self) -> Tag {
        match self {
            WithdrawalKind::Decline => Tag::Decline,
            WithdrawalKind::Cancel => Tag::Cancel,
        }
    }

    /// The kind that a session failed of, if it was one.
    pub fn of(code: Code) -> Option<WithdrawalKind> {
        [WithdrawalKind::Decline, WithdrawalKind::Cancel].into_iter().find(|kind| kind.code() == code)
    }

    /// The reason that a session ended this way fails with.
    pub fn code(self) -> Code {
        match self {
            WithdrawalKind::Decline => Code::Declined,
            WithdrawalKind::Cancel => Code::Cancelled,
        }
    }
}

impl Withdrawal {
    /// Signs a no.
    ///
    /// # Errors
    /// [`Code::EntropyFailed`].
    pub fn sign(
        kind: WithdrawalKind,
        signing_id: SigningId,
        user_id: UserId,
        intent_digest: Hash,
        reason: Option<Blob>,
        key: &AuthKey,
        entropy: &mut Entropy,
    ) -> Result<Withdrawal, Code> {
        let signature = key.sign(kind.tag(), &[&intent_digest.0], entropy)?;
        Ok(Withdrawal { version: VERSION, signing_id, user_id, intent_digest, signature, reason })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`Code::ApprovalInvalid`], [`Code::UnsupportedVersion`].
    pub fn verify(&self, kind: WithdrawalKind, auth_key: &XOnlyKey) -> Result<(), Code> {
        check_version(self.version)?;
        if auth::verify(auth_key, kind.tag(), &[&self.intent_digest.0], &self.signature) {
            Ok(())
        } else {
            Err(Code::ApprovalInvalid)
        }
    }
}
