//! What clients are asked for, and what comes of it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use zeroize::Zeroizing;

use super::VerifiedKey;
use crate::api::rest::{KeygenState, SignRequest, SigningState};
use crate::artifact::intent::{Item, VerifiedIntent};
use crate::artifact::manifest::Pin;
use crate::artifact::result::VerifiedOutcome;
use crate::attestation::AttestationError;
use crate::id::{EnclaveId, SigningId, UserId};
use crate::refusal::{Code, Refusal};

/// What a driver wants done.
#[derive(Debug)]
pub enum Job {
    /// Coordinator: reserve the slots.
    Reserve,
    /// Coordinator: publish the manifest. From then on invites can be handed out.
    Init,
    /// Attest the slot's enclave and register there.
    Join,
    /// Look where the keygen is, without waiting for it.
    LookAtKeygen,
    /// Wait for the keygen to complete, and verify all of it.
    AwaitKey,
    /// Ask for signatures, without waiting for them.
    Request {
        /// What to sign.
        items: Vec<Item>,
        /// Until when, milliseconds since 1970; `None` for an hour, or less where something ends before.
        expires_at: Option<u64>,
    },
    /// Have items signed, and verify the signatures.
    Sign {
        /// What.
        items: Vec<Item>,
        /// Until when, milliseconds since 1970; `None` for an hour, or less where something ends before.
        expires_at: Option<u64>,
    },
    /// Send a stored request again, without waiting for signatures.
    Resend(SignRequest),
    /// Go on with a stored request until there are signatures.
    Resume(SignRequest),
    /// Fetch and verify an intent, so that a person can decide about it.
    Review(SigningId),
    /// Consent to a reviewed intent. It cannot be taken back before the intent expires.
    Approve {
        /// What.
        review: Box<Review>,
        /// Whether items that do not say what they are are consented to.
        blind: bool,
    },
    /// Say no to a reviewed intent: an approver declines, the requester cancels.
    Withdraw {
        /// To what.
        review: Box<Review>,
        /// Why, for the other participants.
        reason: Option<String>,
    },
    /// Look where a session that anybody requested is, without waiting for its end; whatever ended is
    /// verified as [`AwaitSignatures`](Job::AwaitSignatures) does.
    LookAtSigning(SigningId),
    /// Wait for the signatures of a session that anybody requested, and verify them.
    AwaitSignatures(SigningId),
}

/// An intent that was opened and verified, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// What is asked for.
    pub intent: VerifiedIntent,
    /// Whose valid approvals are there.
    pub approved: Vec<UserId>,
    /// Signers whose consent is still missing, by their own rules, the requester's apart.
    pub missing: Vec<UserId>,
}

/// Where a keygen is, on the gateway's word, but for the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeygenProgress {
    /// Its state.
    pub state: KeygenState,
    /// When it fails if it has not completed, milliseconds since 1970.
    pub deadline: u64,
    /// By signer index.
    pub slots: Vec<SlotProgress>,
    /// Why it failed.
    pub failure: Option<Code>,
}

impl KeygenProgress {
    /// Whether nothing more will come.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, KeygenState::Completed | KeygenState::Failed)
    }
}

/// One slot of a keygen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotProgress {
    /// Whose.
    pub user_id: UserId,
    /// What the manifest says about it, once there is one.
    pub participant: Option<(Option<String>, Pin)>,
    /// The enclave to register at.
    pub enclave_id: EnclaveId,
    /// Whether it is filled.
    pub registered: bool,
}

/// Where a signing session is that has not ended, on the gateway's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningProgress {
    /// What is asked for, verified.
    pub intent: VerifiedIntent,
    /// Its state.
    pub state: SigningState,
    /// Who approved.
    pub approved: Vec<UserId>,
    /// Whose approval is awaited.
    pub awaited: Vec<UserId>,
}

/// What came of a job.
#[derive(Debug)]
pub enum Done {
    /// The slots are reserved.
    Reserved,
    /// The manifest is published.
    Initialised,
    /// The gateway says that the enclave has taken the key. Only [`Done::Key`] shows it.
    Joined,
    /// Where the keygen is.
    Keygen(Box<KeygenProgress>),
    /// The keygen is completed and verified.
    Key(Arc<VerifiedKey>),
    /// The request is durable at the gateway; approvers can read it.
    Requested(SigningId),
    /// Where the session is: it has not ended.
    Signing(Box<SigningProgress>),
    /// Every final signature that there is, verified, in the intent's order.
    Signed(SigningId, Vec<VerifiedOutcome>),
    /// To be decided about.
    Reviewed(Box<Review>),
    /// The approval is durable.
    Approved,
    /// The session has ended.
    Withdrawn,
}

/// Why nothing came of a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The gateway refused, or this client itself before anything was sent.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The session ended without a key or a signature; with the words of whoever declined or cancelled, which
    /// is the only thing that somebody is named for.
    #[error("the session failed: {0}")]
    Ended(Refusal, Option<String>),
    /// What came back does not verify: the gateway or an enclave misbehaves.
    #[error("what the gateway returned does not verify: {0}")]
    Unverified(Refusal),
    /// An enclave is not to be trusted.
    #[error("the attestation of enclave {0} was refused: {1}")]
    Unattested(EnclaveId, AttestationError),
    /// What had to be kept could not be.
    #[error("the state could not be stored")]
    NotStored,
    /// The job's time was over first. The request may still be carried out.
    #[error("not done in time")]
    TimedOut,
}

impl From<Code> for Fault {
    fn from(code: Code) -> Fault {
        Fault::Refused(code.into())
    }
}

/// What has to outlast the process.
#[derive(PartialEq, Eq)]
pub enum Keep {
    /// The membership, a secret. It replaces the one before. [`Client::resume`](super::Client::resume) reads it.
    Membership(Zeroizing<Vec<u8>>),
    /// A request for signatures, so that the same one can be sent again: see [`Job::Resume`].
    Request(Box<SignRequest>),
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keep::Membership(_) => f.write_str("Membership"),
            Keep::Request(request) => f.debug_tuple("Request").field(&request.signing_id).finish(),
        }
    }
}
