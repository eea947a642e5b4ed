//! A signing session at the gateway: approvals, then runs of the rounds until one gives a result.
//!
//! Only what was accepted, approved and ended is durable. Where the rounds are is not: after a crash a new
//! attempt starts from the first one.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::keygen::{Keygen, failure};
use super::memory::request_bytes;
use super::record::{
    FailureRow, PART_END, PART_REQUEST, SigningEnd, SigningHead, SigningRows, head_row, new_row, signing_key,
    slot_part,
};
use super::rounds::Run;
use super::session::{Session, Step, Work};
use super::{Gateway, Report, RequestId};
use crate::api::problem;
use crate::api::proof::Caller;
use crate::api::rest::{IntentResponse, SignRequest, SigningState, SigningStatus};
use crate::api::router::Call;
use crate::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use crate::bytes::XOnlyKey;
use crate::entropy::Entropy;
use crate::id::{SigningId, UserId};
use crate::limits::{
    INTENT_LIFETIME_MAX_MS, ITEMS_MAX, REASON_BYTES_MAX, SEALED_INTENT_BYTES_MAX, SHARES_MAX, SKEW_MS,
};
use crate::refusal::{Code, Refusal};
use crate::time::Time;

use SigningState::{
    AggregatingNonces, CollectingNonces, CollectingPartialSignatures, CollectingParticipants, Completed,
    Failed, FinalizingSignature, GeneratingNonces, GeneratingPartialSignatures,
};

/// Every legal change of state within an attempt; any state that has not ended may also go back to
/// CollectingParticipants (the attempt is over) or to Failed. Another change stops the gateway.
const TRANSITIONS: [(SigningState, SigningState); 10] = [
    (CollectingParticipants, GeneratingNonces),
    (GeneratingNonces, CollectingNonces),
    // All signers at one enclave: round 1 gives the result.
    (GeneratingNonces, Completed),
    (CollectingNonces, AggregatingNonces),
    (AggregatingNonces, GeneratingPartialSignatures),
    (GeneratingPartialSignatures, CollectingPartialSignatures),
    (GeneratingPartialSignatures, FinalizingSignature),
    (CollectingPartialSignatures, FinalizingSignature),
    (FinalizingSignature, Completed),
    (CollectingNonces, CollectingNonces),
];

/// A signing session in memory.
#[derive(Debug)]
pub(super) struct Signing {
    pub(super) rows: SigningRows,
    pub(super) keygen: Arc<Keygen>,
    pub(super) state: SigningState,
    /// Whose approval is needed: hinted by registrations, or named by an enclave.
    pub(super) needed: BTreeSet<UserId>,
    pub(super) run: Option<Run>,
    pub(super) attempts_refused: u32,
}

impl Signing {
    pub(super) fn read(rows: SigningRows, keygen: Arc<Keygen>) -> Signing {
        let state = rows.head.state;
        let needed = hinted_approvers(&keygen, &rows.request);
        Signing { rows, keygen, state, needed, run: None, attempts_refused: 0 }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state, Completed | Failed)
    }

    /// Why it takes nothing more, once it has ended.
    fn wrong_state(&self) -> Code {
        match &self.rows.end {
            Some(SigningEnd::Failed(row)) => row.closes_with(),
            Some(SigningEnd::Completed(_)) | None => Code::WrongState,
        }
    }

    pub(super) fn waits_for_requests(&self) -> bool {
        self.run.is_none() && !self.awaited().is_empty()
    }

    /// About how much memory it takes, its keygen apart.
    pub(super) fn bytes(&self) -> usize {
        let request = &self.rows.request;
        let end = match &self.rows.end {
            Some(SigningEnd::Completed(result)) => result.0.len(),
            Some(SigningEnd::Failed(row)) => row
                .withdrawal
                .as_ref()
                .and_then(|said| said.reason.as_ref())
                .map_or(0, |reason| reason.0.len()),
            None => 0,
        };
        let users = 64 * self.needed.len() + 256 * self.rows.approvals.len();
        request_bytes(request) + users + end + self.run_bytes()
    }

    pub(super) fn deadline_unix_ms(&self) -> u64 {
        self.rows.request.expires_at
    }

    pub(super) fn may_read(&self, key: &XOnlyKey) -> bool {
        self.keygen.may_read_signing(key)
    }

    pub(super) fn awaited(&self) -> Vec<UserId> {
        if self.is_ended() {
            return Vec::new();
        }
        self.needed.iter().filter(|user_id| self.approval(**user_id).is_none()).copied().collect()
    }

    pub(super) fn approval(&self, user_id: UserId) -> Option<&Approval> {
        self.rows.approvals.iter().find(|approval| approval.user_id == user_id)
    }

    pub(super) fn status(&self, signing_id: SigningId, revision: u64) -> SigningStatus {
        let (failed, result) = match &self.rows.end {
            None => (None, None),
            Some(SigningEnd::Completed(result)) => (None, Some(result.clone())),
            Some(SigningEnd::Failed(row)) => (Some(failure(row)), None),
        };
        SigningStatus {
            signing_id,
            keygen_id: self.rows.head.keygen_id,
            state: self.state,
            revision,
            approved: self.rows.approvals.iter().map(|approval| approval.user_id).collect(),
            awaited: self.awaited(),
            failure: failed,
            result,
        }
    }

    pub(super) fn move_to(&mut self, state: SigningState, step: &mut Step) {
        let legal = TRANSITIONS.contains(&(self.state, state))
            || (!self.is_ended() && matches!(state, CollectingParticipants | Failed));
        assert!(legal, "a signing session never goes from {:?} to {state:?}", self.state);
        self.state = state;
        step.changed = true;
    }

    pub(super) fn end(&mut self, id: SigningId, end: SigningEnd, step: &mut Step) {
        let (state, code) = match &end {
            SigningEnd::Completed(_) => (Completed, None),
            SigningEnd::Failed(row) => (Failed, Code::from_number(row.code)),
        };
        self.move_to(state, step);
        self.run = None;
        self.rows.head.state = state;
        step.writes.push(head_row(signing_key(id), self.rows.head_version, false, self.rows.head));
        self.rows.head_version += 1;
        step.writes.push(new_row(signing_key(id), PART_END, end.clone()));
        self.rows.end = Some(end);
        step.report(Report::SigningEnded(id, code));
    }

    pub(super) fn fail(
        &mut self,
        id: SigningId,
        refusal: Refusal,
        withdrawal: Option<Withdrawal>,
        step: &mut Step,
    ) {
        let row = FailureRow { code: refusal.code.number(), culprits: refusal.culprits, withdrawal };
        self.end(id, SigningEnd::Failed(row), step);
    }

    /// Users whose signature is asked for, as far as the gateway can tell.
    pub(super) fn concerned(&self) -> BTreeSet<UserId> {
        concerned(&self.keygen, &self.rows.request)
    }
}

fn concerned(keygen: &Keygen, request: &SignRequest) -> BTreeSet<UserId> {
    request.items.iter().filter_map(|item| keygen.signers(item.subset)).flatten().collect()
}

fn hinted_approvers(keygen: &Keygen, request: &SignRequest) -> BTreeSet<UserId> {
    let required = |user_id: &UserId| {
        keygen.registration(*user_id).is_some_and(|(_, registration)| registration.approval_required)
    };
    let users = concerned(keygen, request);
    users.into_iter().filter(|user_id| *user_id != request.requester && required(user_id)).collect()
}

impl Gateway {
    pub(super) fn step_signing(
        &mut self,
        now: Time,
        id: SigningId,
        session: Session,
        work: Work,
        step: &mut Step,
        entropy: &mut Entropy,
    ) -> Session {
        let mut signing = match session {
            Session::Signing(signing) => signing,
            Session::Absent | Session::Loading | Session::Keygen(_) => {
                return self.step_absent_signing(now, id, work, step);
            }
        };
        match work {
            Work::Accept(request, Call::Sign { caller, request: body }, _) => {
                match self.admit_requester(now, &signing.keygen, &caller, &body) {
                    Ok(()) if signing.rows.request == body => {
                        step.respond(request, problem::ok(200, &signing.status(id, 0)));
                    }
                    Ok(()) => step.refuse(request, Code::IdConflict),
                    Err(response) => step.respond(request, response),
                }
            }
            Work::Call(request, call) => self.signing_call(now, id, &mut signing, request, call, step),
            Work::Accept(request, _, _) => step.refuse(request, Code::Internal),
            Work::Answered(purpose, reply) => self.signing_answered(id, &mut signing, purpose, reply, step),
            Work::Resume => self.start_run(id, &mut signing, step, entropy),
            Work::Expire if !signing.is_ended() => {
                signing.fail(id, Code::Expired.into(), None, step);
            }
            Work::Expire | Work::GiveWay | Work::AnswerPolls | Work::Supply(_) => {}
        }
        Session::Signing(signing)
    }

    fn step_absent_signing(&mut self, now: Time, id: SigningId, work: Work, step: &mut Step) -> Session {
        match work {
            Work::Accept(request, Call::Sign { caller, request: body }, keygen) => {
                if let Err(response) = self.admit_requester(now, &keygen, &caller, &body) {
                    step.respond(request, response);
                } else if let Err(code) = check_request(now, &keygen, &body) {
                    step.refuse(request, code);
                } else if self.has_its_share(&body) {
                    step.refuse(request, Code::TooMany);
                } else {
                    return accept(id, request, body, keygen, step);
                }
            }
            Work::Call(request, _) | Work::Accept(request, _, _) => step.refuse(request, Code::UnknownId),
            Work::Answered(..)
            | Work::Resume
            | Work::Expire
            | Work::GiveWay
            | Work::AnswerPolls
            | Work::Supply(_) => {}
        }
        Session::Absent
    }

    fn admit_requester(
        &mut self,
        now: Time,
        keygen: &Keygen,
        caller: &Caller,
        body: &SignRequest,
    ) -> Result<(), crate::api::http::Response> {
        let registration = keygen.registration(body.requester);
        let allowed = registration.is_some_and(|(_, own)| own.auth_key == caller.key);
        self.admit(now, caller, allowed)
    }

    fn signing_call(
        &mut self,
        now: Time,
        id: SigningId,
        signing: &mut Signing,
        request: RequestId,
        call: Call,
        step: &mut Step,
    ) {
        match call {
            Call::Intent { caller, .. } => match self.admit(now, &caller, signing.may_read(&caller.key)) {
                Ok(()) => {
                    let body = IntentResponse {
                        signing_id: id,
                        keygen_id: signing.rows.head.keygen_id,
                        intent: signing.rows.request.intent.clone(),
                        intent_digest: signing.rows.request.intent_digest,
                        approvals: signing.rows.approvals.clone(),
                    };
                    step.respond(request, problem::ok(200, &body));
                }
                Err(response) => step.respond(request, response),
            },
            Call::Approve { caller, approval, .. } => {
                let keygen = Arc::clone(&signing.keygen);
                let Some((slot, own)) = keygen.registration(approval.user_id) else {
                    return step.refuse(request, Code::UserNotInRoster);
                };
                match self.admit(now, &caller, own.auth_key == caller.key) {
                    Ok(()) => approve(now, id, signing, request, slot, &own.auth_key, approval, step),
                    Err(response) => step.respond(request, response),
                }
            }
            Call::Withdraw { caller, kind, withdrawal, .. } => {
                let keygen = Arc::clone(&signing.keygen);
                let Some((_, own)) = keygen.registration(withdrawal.user_id) else {
                    return step.refuse(request, Code::UserNotInRoster);
                };
                let allowed = own.auth_key == caller.key && may_withdraw(signing, kind, withdrawal.user_id);
                match self.admit(now, &caller, allowed) {
                    Ok(()) => withdraw(id, signing, request, kind, &own.auth_key, withdrawal, step),
                    Err(response) => step.respond(request, response),
                }
            }
            Call::Reserve { .. }
            | Call::Init { .. }
            | Call::Slots { .. }
            | Call::Register { .. }
            | Call::KeygenStatus { .. }
            | Call::Sign { .. }
            | Call::SigningStatus { .. }
            | Call::Enclaves
            | Call::Attestation { .. }
            | Call::Version
            | Call::Health => step.refuse(request, Code::Internal),
        }
    }
}

fn check_request(now: Time, keygen: &Keygen, body: &SignRequest) -> Result<(), Code> {
    if body.items.is_empty() || body.items.len() > ITEMS_MAX {
        return Err(Code::BadItems);
    }
    // It is shown to whoever asks, as often as they ask.
    if body.intent.0.len() > SEALED_INTENT_BYTES_MAX {
        return Err(Code::TooLarge);
    }
    if body.expires_at <= now.unix_ms {
        return Err(Code::IntentExpired);
    }
    if body.expires_at > now.unix_ms + SKEW_MS + INTENT_LIFETIME_MAX_MS {
        return Err(Code::IntentLifetime);
    }
    let ids: BTreeSet<_> = body.items.iter().map(|item| item.item_id).collect();
    let mut shares = 0;
    for item in &body.items {
        shares += keygen.signers(item.subset).ok_or(Code::UnknownSubset)?.len();
    }
    if ids.len() != body.items.len() || shares > SHARES_MAX { Err(Code::BadItems) } else { Ok(()) }
}

fn accept(
    id: SigningId,
    request: RequestId,
    body: SignRequest,
    keygen: Arc<Keygen>,
    step: &mut Step,
) -> Session {
    let head = SigningHead { keygen_id: body.keygen_id, state: CollectingParticipants };
    step.writes.push(head_row(signing_key(id), 0, true, head));
    step.writes.push(new_row(signing_key(id), PART_REQUEST, body.clone()));
    let rows = SigningRows { head, head_version: 1, request: body, end: None, approvals: Vec::new() };
    let signing = Signing::read(rows, keygen);
    step.respond(request, problem::ok(201, &signing.status(id, 0)));
    step.again = signing.awaited().is_empty();
    Session::Signing(Box::new(signing))
}

#[expect(clippy::too_many_arguments, reason = "one call, from the router's fields")]
fn approve(
    now: Time,
    id: SigningId,
    signing: &mut Signing,
    request: RequestId,
    slot: usize,
    auth_key: &XOnlyKey,
    approval: Approval,
    step: &mut Step,
) {
    let about_this = approval.signing_id == id
        && approval.intent_digest == signing.rows.request.intent_digest
        && approval.verify(auth_key).is_ok();
    if !about_this {
        return step.refuse(request, Code::ApprovalInvalid);
    }
    if !signing.concerned().contains(&approval.user_id) {
        return step.refuse(request, Code::KeyNotAllowed);
    }
    if let Some(held) = signing.approval(approval.user_id) {
        return if held.blind == approval.blind {
            step.respond(request, problem::ok(200, &signing.status(id, 0)));
        } else {
            step.refuse(request, Code::IdConflict);
        };
    }
    if signing.is_ended() {
        return step.refuse(request, signing.wrong_state());
    }
    if now.unix_ms >= signing.deadline_unix_ms() {
        return step.refuse(request, Code::Expired);
    }
    step.writes.push(new_row(signing_key(id), slot_part(slot), approval));
    signing.rows.approvals.push(approval);
    step.changed = true;
    step.respond(request, problem::ok(201, &signing.status(id, 0)));
    step.again = signing.awaited().is_empty();
}

/// Approvers decline, the requester cancels.
fn may_withdraw(signing: &Signing, kind: WithdrawalKind, user_id: UserId) -> bool {
    match kind {
        WithdrawalKind::Cancel => user_id == signing.rows.request.requester,
        WithdrawalKind::Decline => {
            user_id != signing.rows.request.requester && signing.concerned().contains(&user_id)
        }
    }
}

fn withdraw(
    id: SigningId,
    signing: &mut Signing,
    request: RequestId,
    kind: WithdrawalKind,
    auth_key: &XOnlyKey,
    withdrawal: Withdrawal,
    step: &mut Step,
) {
    let about_this = withdrawal.signing_id == id
        && withdrawal.intent_digest == signing.rows.request.intent_digest
        && withdrawal.verify(kind, auth_key).is_ok();
    if !about_this {
        return step.refuse(request, Code::ApprovalInvalid);
    }
    if withdrawal.reason.as_ref().is_some_and(|reason| reason.0.len() > 2 * REASON_BYTES_MAX) {
        return step.refuse(request, Code::TooLarge);
    }
    if signing.is_ended() {
        let same = matches!(&signing.rows.end, Some(SigningEnd::Failed(row))
            if row.code == kind.code().number() && row.culprits == [withdrawal.user_id]);
        return if same {
            step.respond(request, problem::ok(200, &signing.status(id, 0)));
        } else {
            step.refuse(request, signing.wrong_state());
        };
    }
    let refusal = Refusal::blaming(kind.code(), [withdrawal.user_id].into());
    signing.fail(id, refusal, Some(withdrawal), step);
    step.respond(request, problem::ok(200, &signing.status(id, 0)));
}
