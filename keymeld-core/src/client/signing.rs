//! A client's part in a signing session: intents, reviews, approvals, verified signatures.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::exchange::{Exchange, Question, Signer, decode, unverified};
use super::key::VerifiedKey;
use super::{Client, Done, Fault, Goal, Review, SigningProgress, Turn};
use crate::api::rest::{Failure, IntentResponse, ItemHint, SignRequest, SigningState, SigningStatus};
use crate::artifact::VERSION;
use crate::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use crate::artifact::authority::{VerifiedApprovals, authorise};
use crate::artifact::intent::{Intent, Item, SealedIntent, VerifiedIntent};
use crate::artifact::registration::Record;
use crate::artifact::result::SigningResult;
use crate::bytes::{Blob, Salt};
use crate::crypto::derive::Purpose;
use crate::crypto::seal::Context;
use crate::entropy::Entropy;
use crate::id::{SigningId, UserId};
use crate::limits::{INTENT_LIFETIME_DEFAULT_MS, REASON_BYTES_MAX};
use crate::refusal::{Code, Refusal};
use crate::time::Time;

impl Client {
    /// Makes an intent, which is kept before it is sent: another one for the same payment would be another
    /// payment.
    pub(super) fn sign(
        &self,
        now: Time,
        key: &VerifiedKey,
        items: Vec<Item>,
        expires_at: Option<u64>,
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        let roster = key.roster();
        let signing_id = SigningId::random(entropy).map_err(Code::from)?;
        let intent = Intent {
            version: VERSION,
            salt: Salt(entropy.bytes().map_err(Code::from)?),
            keygen_id: self.membership.keygen_id,
            manifest_hash: roster.manifest_hash(),
            roster_hash: roster.roster_hash(),
            signing_id,
            requester: self.membership.user_id,
            created_at: now.unix_ms,
            expires_at: expires_at.unwrap_or_else(|| expiry(now, key)),
            items,
            psbts: Vec::new(),
        };
        let seal_key = self.membership.seal_key(Purpose::SigningSeal(signing_id));
        let sealed = intent.seal(&self.user_auth, &seal_key, entropy)?;
        // Whatever an enclave would refuse is refused here.
        let verified = VerifiedIntent::open(roster, signing_id, &seal_key, &sealed)?;
        verified.check_time(now.unix_ms)?;
        let hint = |item: &Item| ItemHint { item_id: item.item_id, subset: item.subset };
        let request = SignRequest {
            signing_id,
            keygen_id: self.membership.keygen_id,
            requester: self.membership.user_id,
            intent: sealed.sealed,
            intent_digest: sealed.digest,
            expires_at: intent.expires_at,
            items: intent.items.iter().map(hint).collect(),
        };
        let exchange = Box::new(submit(&request, verified));
        Ok(Turn::Store(Box::new(request), exchange))
    }

    /// Sends a kept request again.
    pub(super) fn submit_again(&self, key: &VerifiedKey, request: &SignRequest) -> Result<Turn, Fault> {
        let intent = self.open_request(key, request)?;
        Ok(Turn::ask(submit(request, intent)))
    }

    pub(super) fn open_request(
        &self,
        key: &VerifiedKey,
        request: &SignRequest,
    ) -> Result<VerifiedIntent, Code> {
        let sealed = SealedIntent { sealed: request.intent.clone(), digest: request.intent_digest };
        self.open_intent(key, request.signing_id, &sealed)
    }

    fn open_intent(
        &self,
        key: &VerifiedKey,
        signing_id: SigningId,
        sealed: &SealedIntent,
    ) -> Result<VerifiedIntent, Code> {
        let seal_key = self.membership.seal_key(Purpose::SigningSeal(signing_id));
        VerifiedIntent::open(key.roster(), signing_id, &seal_key, sealed)
    }

    /// Only an answer of the API shows that the request arrived: it is forgotten then.
    pub(super) fn submitted(
        &self,
        goal: &Goal,
        intent: Box<VerifiedIntent>,
        body: &[u8],
    ) -> Result<Turn, Fault> {
        let signing_id = intent.intent().signing_id;
        status_of(signing_id, body)?;
        match goal {
            Goal::Request { .. } | Goal::Resend(_) => Ok(Turn::Done(Done::Requested(signing_id))),
            Goal::Reserve
            | Goal::Init
            | Goal::Join
            | Goal::KeygenProgress
            | Goal::Key
            | Goal::Sign { .. }
            | Goal::Resume(_)
            | Goal::Review(_)
            | Goal::Approve(..)
            | Goal::Withdraw(..)
            | Goal::SigningProgress(_)
            | Goal::Signatures(_) => Ok(self.ask_for_signatures(intent)),
        }
    }

    pub(super) fn approved(&self, signing_id: SigningId, body: &[u8]) -> Result<Turn, Fault> {
        if status_of(signing_id, body)?.approved.contains(&self.membership.user_id) {
            Ok(Turn::Done(Done::Approved))
        } else {
            Err(unverified(Code::ApprovalMissing))
        }
    }

    pub(super) fn withdrawn(&self, signing_id: SigningId, body: &[u8]) -> Result<Turn, Fault> {
        let no = status_of(signing_id, body)?.failure.and_then(|failure| failure.withdrawal);
        if no.is_some_and(|no| no.signing_id == signing_id && no.user_id == self.membership.user_id) {
            Ok(Turn::Done(Done::Withdrawn))
        } else {
            Err(unverified(Code::WrongState))
        }
    }

    pub(super) fn ask_for_signatures(&self, intent: Box<VerifiedIntent>) -> Turn {
        let path = format!("signing/{}/status", intent.intent().signing_id);
        Turn::ask(Exchange::get(Question::SigningStatus(intent), &path, Signer::User).until_ended())
    }

    fn ask_for_signing_progress(&self, intent: Box<VerifiedIntent>) -> Turn {
        let path = format!("signing/{}/status", intent.intent().signing_id);
        Turn::ask(Exchange::get(Question::SigningStatus(intent), &path, Signer::User))
    }

    pub(super) fn signing_shown(
        &self,
        goal: &Goal,
        intent: Box<VerifiedIntent>,
        body: &[u8],
    ) -> Result<Turn, Fault> {
        let shown: SigningStatus = decode(body)?;
        match (shown.state, &shown.result, &shown.failure) {
            (SigningState::Completed, Some(result), None) => {
                let key = self.key.as_ref().ok_or(Code::WrongState)?;
                let signing_id = intent.intent().signing_id;
                let seal_key = self.membership.seal_key(Purpose::SigningSeal(signing_id));
                let outcomes =
                    SigningResult::open(key.roster(), &intent, &seal_key, result).map_err(unverified)?;
                Ok(Turn::Done(Done::Signed(signing_id, outcomes)))
            }
            (SigningState::Failed, None, Some(failure)) => Err(self.ended(&intent, failure)),
            (SigningState::Completed | SigningState::Failed, _, _) | (_, Some(_), _) | (_, _, Some(_)) => {
                Err(unverified(Code::WrongState))
            }
            (
                SigningState::CollectingParticipants
                | SigningState::GeneratingNonces
                | SigningState::CollectingNonces
                | SigningState::AggregatingNonces
                | SigningState::GeneratingPartialSignatures
                | SigningState::CollectingPartialSignatures
                | SigningState::FinalizingSignature,
                None,
                None,
            ) if matches!(goal, Goal::SigningProgress(_)) => {
                let SigningStatus { state, approved, awaited, .. } = shown;
                let intent = *intent;
                Ok(Turn::Done(Done::Signing(Box::new(SigningProgress { intent, state, approved, awaited }))))
            }
            (
                SigningState::CollectingParticipants
                | SigningState::GeneratingNonces
                | SigningState::CollectingNonces
                | SigningState::AggregatingNonces
                | SigningState::GeneratingPartialSignatures
                | SigningState::CollectingPartialSignatures
                | SigningState::FinalizingSignature,
                None,
                None,
            ) => Ok(Turn::Again(Question::SigningStatus(intent))),
        }
    }

    /// Why a session ended. Nobody is named on the gateway's word alone: a no has to be signed.
    fn ended(&self, intent: &VerifiedIntent, failure: &Failure) -> Fault {
        let code = Code::from_name(&failure.code).unwrap_or(Code::Internal);
        match (WithdrawalKind::of(code), &failure.withdrawal) {
            (None, None) => Fault::Ended(code.into(), None),
            (Some(kind), Some(no)) if self.said_no(intent, kind, no) => {
                Fault::Ended(Refusal::blaming(code, [no.user_id].into()), self.reason(no))
            }
            (Some(_), _) | (_, Some(_)) => unverified(Code::ApprovalInvalid),
        }
    }

    fn said_no(&self, intent: &VerifiedIntent, kind: WithdrawalKind, no: &Withdrawal) -> bool {
        let by_requester = no.user_id == intent.intent().requester;
        let record = self.key.as_ref().and_then(|key| key.roster().record(no.user_id));
        by_requester == (kind == WithdrawalKind::Cancel)
            && no.signing_id == intent.intent().signing_id
            && no.intent_digest == intent.digest()
            && record.is_some_and(|record| no.verify(kind, &record.auth_key).is_ok())
    }

    /// A decliner's or canceller's words. Whoever knows the session secret could have written them.
    fn reason(&self, no: &Withdrawal) -> Option<String> {
        let seal_key = self.membership.seal_key(Purpose::SigningSeal(no.signing_id));
        let context = self.reason_context(no.signing_id, no.user_id);
        let plaintext = seal_key.open(&context, no.reason.as_ref()?).ok()?;
        String::from_utf8(plaintext.to_vec()).ok()
    }

    fn reason_context(&self, signing_id: SigningId, user_id: UserId) -> Context {
        Context::Reason { keygen_id: self.membership.keygen_id, signing_id, user_id }
    }

    pub(super) fn fetch_intent(&self, signing_id: SigningId) -> Turn {
        let path = format!("signing/{signing_id}/intent");
        Turn::ask(Exchange::get(Question::Intent(signing_id), &path, Signer::User))
    }

    pub(super) fn intent_shown(
        &self,
        now: Time,
        goal: &Goal,
        signing_id: SigningId,
        body: &[u8],
    ) -> Result<Turn, Fault> {
        let shown: IntentResponse = decode(body)?;
        let key = self.key.as_ref().ok_or(Code::WrongState)?;
        let sealed = SealedIntent { sealed: shown.intent, digest: shown.intent_digest };
        let intent = self.open_intent(key, signing_id, &sealed).map_err(unverified)?;
        match goal {
            Goal::Signatures(_) => return Ok(self.ask_for_signatures(Box::new(intent))),
            Goal::SigningProgress(_) => return Ok(self.ask_for_signing_progress(Box::new(intent))),
            Goal::Reserve
            | Goal::Init
            | Goal::Join
            | Goal::KeygenProgress
            | Goal::Key
            | Goal::Request { .. }
            | Goal::Sign { .. }
            | Goal::Resend(_)
            | Goal::Resume(_)
            | Goal::Review(_)
            | Goal::Approve(..)
            | Goal::Withdraw(..) => {}
        }
        intent.check_time(now.unix_ms)?;
        let roster = key.roster();
        let approvals = VerifiedApprovals::verify(roster, &intent, &shown.approvals, |_| true);
        let approvals = approvals.map_err(unverified)?;
        let lacks_consent = |record: &&Record| {
            let of_record = |other: &Record| other.user_id == record.user_id;
            authorise(roster, &intent, &approvals, now.unix_ms, of_record).is_err()
        };
        let missing = roster.records().iter().filter(lacks_consent).map(|record| record.user_id).collect();
        let approved = approvals.users().collect();
        Ok(Turn::Done(Done::Reviewed(Box::new(Review { intent, approved, missing }))))
    }

    pub(super) fn approve(
        &self,
        now: Time,
        key: &Arc<VerifiedKey>,
        review: &Review,
        blind: bool,
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        let intent = review.intent.intent();
        if intent.roster_hash != key.roster().roster_hash() {
            return Err(Code::RosterHashMismatch.into());
        }
        review.intent.check_time(now.unix_ms)?;
        if !blind && intent.items.iter().any(|item| item.origin.is_none()) {
            return Err(Code::BlindNotAllowed.into());
        }
        let Client { membership, user_auth, .. } = self;
        let digest = review.intent.digest();
        let approval =
            Approval::sign(intent.signing_id, membership.user_id, digest, blind, user_auth, entropy)?;
        let path = format!("signing/{}/approve", intent.signing_id);
        Ok(Turn::ask(Exchange::post(Question::Approve(intent.signing_id), &path, Signer::User, &approval)))
    }

    pub(super) fn withdraw(
        &self,
        review: &Review,
        reason: Option<String>,
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        let signing_id = review.intent.intent().signing_id;
        let user_id = self.membership.user_id;
        let kind = if review.intent.intent().requester == user_id {
            WithdrawalKind::Cancel
        } else {
            WithdrawalKind::Decline
        };
        let reason = reason.map(|reason| self.seal_reason(signing_id, &reason, entropy)).transpose()?;
        let digest = review.intent.digest();
        let withdrawal =
            Withdrawal::sign(kind, signing_id, user_id, digest, reason, &self.user_auth, entropy)?;
        let (question, signer) = (Question::Withdraw(signing_id), Signer::User);
        Ok(Turn::ask(match kind {
            WithdrawalKind::Cancel => {
                Exchange::delete(question, &format!("signing/{signing_id}"), signer, &withdrawal)
            }
            WithdrawalKind::Decline => {
                Exchange::post(question, &format!("signing/{signing_id}/decline"), signer, &withdrawal)
            }
        }))
    }

    fn seal_reason(&self, signing_id: SigningId, reason: &str, entropy: &mut Entropy) -> Result<Blob, Code> {
        if reason.len() > REASON_BYTES_MAX {
            return Err(Code::TooLarge);
        }
        let seal_key = self.membership.seal_key(Purpose::SigningSeal(signing_id));
        let context = self.reason_context(signing_id, self.membership.user_id);
        Ok(seal_key.seal(&context, reason.as_bytes(), entropy)?)
    }
}

/// The status with which the gateway takes a request, an approval or a no.
fn status_of(signing_id: SigningId, body: &[u8]) -> Result<SigningStatus, Fault> {
    let shown: SigningStatus = decode(body)?;
    if shown.signing_id == signing_id { Ok(shown) } else { Err(unverified(Code::IdConflict)) }
}

fn submit(request: &SignRequest, intent: VerifiedIntent) -> Exchange {
    Exchange::post(Question::Submit(Box::new(intent)), "signing", Signer::User, request)
}

/// An hour, or what registrations and the manifest leave of it.
fn expiry(now: Time, key: &VerifiedKey) -> u64 {
    let roster = key.roster();
    let registrations = roster.records().iter().map(|record| record.rules.valid_until);
    let ends = registrations.chain(roster.manifest().expires_at);
    ends.fold(now.unix_ms.saturating_add(INTENT_LIFETIME_DEFAULT_MS), u64::min)
}
