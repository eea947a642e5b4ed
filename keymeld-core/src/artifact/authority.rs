//! S1 as code: whether a user's key may sign what an intent asks for.

use alloc::vec::Vec;

use super::approval::Approval;
use super::intent::VerifiedIntent;
use super::registration::{ApprovalRule, Record};
use super::roster::Roster;
use crate::id::UserId;
use crate::limits::PARTICIPANTS_MAX;
use crate::refusal::{Code, Refusal};

/// Approvals whose signatures were checked against a roster and an intent, one of each user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedApprovals(Vec<Approval>);

impl VerifiedApprovals {
    /// Keeps those that verify, of the users that are asked about. Whatever else came is as good as not
    /// sent: whoever put it there is unknown, and nobody's consent gets lost by it.
    ///
    /// # Errors
    /// [`Code::TooManyParticipants`] for more approvals than a session can have.
    pub fn verify(
        roster: &Roster,
        intent: &VerifiedIntent,
        approvals: &[Approval],
        mut asked: impl FnMut(&Record) -> bool,
    ) -> Result<VerifiedApprovals, Code> {
        if approvals.len() > PARTICIPANTS_MAX {
            return Err(Code::TooManyParticipants);
        }
        let mut verified: Vec<Approval> = Vec::new();
        for approval in approvals {
            let Some(record) = roster.record(approval.user_id).filter(|record| asked(record)) else {
                continue;
            };
            let about_this = approval.intent_digest == intent.digest()
                && approval.signing_id == intent.intent().signing_id;
            let first = verified.iter().all(|earlier| earlier.user_id != approval.user_id);
            if about_this && first && approval.verify(&record.auth_key).is_ok() {
                verified.push(*approval);
            }
        }
        Ok(VerifiedApprovals(verified))
    }

    /// Whose they are.
    pub fn users(&self) -> impl Iterator<Item = UserId> {
        self.0.iter().map(|approval| approval.user_id)
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
