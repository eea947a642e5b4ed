//! S1 as code: whether a user's key may sign what an intent asks for.

use alloc::vec::Vec;

use super::approval::Approval;
use super::intent::VerifiedIntent;
use super::registration::{ApprovalRule, Record};
use super::roster::Roster;
use crate::id::UserId;
use crate::refusal::{Code, Refusal};

/// Approvals whose signatures were checked against a roster and an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedApprovals(Vec<Approval>);

impl VerifiedApprovals {
    /// Verifies all approvals that came with an intent. One bad approval refuses them all: whoever put it
    /// there could as well have left it out.
    ///
    /// # Errors
    /// [`Code::ApprovalInvalid`], [`Code::UserNotInRoster`], [`Code::DuplicateUser`], blaming nobody.
    pub fn verify(
        roster: &Roster,
        intent: &VerifiedIntent,
        approvals: &[Approval],
    ) -> Result<VerifiedApprovals, Code> {
        for (index, approval) in approvals.iter().enumerate() {
            let record = roster.record(approval.user_id).ok_or(Code::UserNotInRoster)?;
            if approval.intent_digest != intent.digest() || approval.signing_id != intent.intent().signing_id
            {
                return Err(Code::ApprovalInvalid);
            }
            if approvals[..index].iter().any(|earlier| earlier.user_id == approval.user_id) {
                return Err(Code::DuplicateUser);
            }
            approval.verify(&record.auth_key)?;
        }
        Ok(VerifiedApprovals(approvals.to_vec()))
    }

    fn of(&self, user_id: UserId) -> Option<&Approval> {
        self.0.iter().find(|approval| approval.user_id == user_id)
    }
}

/// Decides whether the signers' rules let their keys sign this intent now. `signers` are the users whose
/// authority is asked for: for an enclave its own, for a client all.
///
/// # Errors
/// [`Refusal`] naming the first user whose authority is missing, and why.
pub fn authorise(
    roster: &Roster,
    intent: &VerifiedIntent,
    approvals: &VerifiedApprovals,
    now_unix_ms: u64,
    mut signers: impl FnMut(&Record) -> bool,
) -> Result<(), Refusal> {
    intent.check_time(now_unix_ms)?;
    let coordinator = roster.manifest().coordinator.user_id;
    for item in &intent.intent().items {
        for record in roster.signers(item.subset)? {
            if signers(record) {
                let requester = intent.intent().requester;
                let consent = Consent::of(record, requester, coordinator, approvals.of(record.user_id));
                let decided = consent.allows(record, item.origin.is_none());
                decided.map_err(|code| Refusal::blaming(code, [record.user_id].into()))?;
                if now_unix_ms >= record.rules.valid_until {
                    return Err(Refusal::blaming(Code::RegistrationExpired, [record.user_id].into()));
                }
            }
        }
    }
    Ok(())
}

/// What a user said about an intent, if anything.
enum Consent {
    /// It made the request itself: it knows what it asks for.
    Requested,
    /// It approved.
    Approved { blind: bool },
    /// Nothing; the coordinator asks.
    AskedByCoordinator,
    /// Nothing; another participant asks.
    AskedByOther,
}

impl Consent {
    fn of(record: &Record, requester: UserId, coordinator: UserId, approval: Option<&Approval>) -> Consent {
        if record.user_id == requester {
            Consent::Requested
        } else if let Some(approval) = approval {
            Consent::Approved { blind: approval.blind }
        } else if requester == coordinator {
            Consent::AskedByCoordinator
        } else {
            Consent::AskedByOther
        }
    }

    fn allows(&self, record: &Record, blind_item: bool) -> Result<(), Code> {
        let rules = &record.rules;
        match self {
            Consent::Requested => Ok(()),
            Consent::Approved { blind } if blind_item && !blind => Err(Code::BlindNotAllowed),
            Consent::Approved { .. } => Ok(()),
            Consent::AskedByCoordinator | Consent::AskedByOther
                if rules.approval == ApprovalRule::Required =>
            {
                Err(Code::ApprovalMissing)
            }
            Consent::AskedByOther if !rules.allow_any_requester => Err(Code::RequesterNotAllowed),
            Consent::AskedByCoordinator | Consent::AskedByOther if blind_item && !rules.allow_blind => {
                Err(Code::BlindNotAllowed)
            }
            Consent::AskedByCoordinator | Consent::AskedByOther => Ok(()),
        }
    }
}
