//! Runs of the signing rounds, each an attempt of its own.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::keygen::is_passing;
use super::record::SigningEnd;
use super::session::{Purpose, Step};
use super::signing::Signing;
use super::{ATTEMPTS_REFUSED_MAX, Gateway, Report};
use crate::api::rest::SigningState::{
    AggregatingNonces, CollectingNonces, CollectingPartialSignatures, CollectingParticipants,
    FinalizingSignature, GeneratingNonces, GeneratingPartialSignatures,
};
use crate::bytes::{Blob, PublicKey};
use crate::entropy::Entropy;
use crate::id::{AttemptId, EnclaveId, SigningId};
use crate::link::message::{Addressed, Aggregate, MakeNonces, MakePartials, Reply, Request, RunKey};
use crate::refusal::{Code, Refusal};

/// One run of the rounds.
#[derive(Debug)]
pub(super) struct Run {
    attempt: AttemptId,
    aggregator: PublicKey,
    members: BTreeMap<PublicKey, Member>,
    /// How many approvals there were when it started.
    approvals: usize,
}

/// An enclave key in a run.
#[derive(Debug)]
struct Member {
    enclave_id: EnclaveId,
    /// The session was opened for it within this attempt; it may not get lost twice.
    opened: bool,
    nonces: Option<Vec<Addressed>>,
    partials: Option<Blob>,
}

impl Run {
    /// The bundles of everybody else that are addressed to `recipient`.
    fn nonces_for(&self, recipient: PublicKey) -> Option<Vec<Addressed>> {
        let others = self.members.iter().filter(|(sender, _)| **sender != recipient);
        others
            .map(|(sender, member)| {
                let bundles = member.nonces.as_ref()?;
                let bundle = bundles.iter().find(|bundle| bundle.peer == recipient)?;
                Some(Addressed { peer: *sender, blob: bundle.blob.clone() })
            })
            .collect()
    }

    fn partials(&self) -> Option<Vec<Addressed>> {
        let others = self.members.iter().filter(|(sender, _)| **sender != self.aggregator);
        others
            .map(|(sender, member)| Some(Addressed { peer: *sender, blob: member.partials.clone()? }))
            .collect()
    }
}

impl Signing {
    /// About how much memory the run takes: what its enclaves have sent so far.
    pub(super) fn run_bytes(&self) -> usize {
        let members = self.run.iter().flat_map(|run| run.members.values());
        let bytes = |member: &Member| {
            let nonces = member.nonces.iter().flatten().map(|bundle| 64 + bundle.blob.0.len());
            256 + nonces.sum::<usize>() + member.partials.as_ref().map_or(0, |partials| partials.0.len())
        };
        members.map(bytes).sum()
    }

    fn run_key(&self, id: SigningId, run: &Run, enclave_key: PublicKey) -> RunKey {
        RunKey {
            enclave_key,
            keygen_id: self.rows.head.keygen_id,
            signing_id: id,
            digest: self.rows.request.intent_digest,
            attempt: run.attempt,
            aggregator: run.aggregator,
        }
    }

    fn nonces_request(&self, id: SigningId, run: &Run, enclave_key: PublicKey) -> Request {
        Request::MakeNonces(MakeNonces {
            run: self.run_key(id, run, enclave_key),
            intent: self.rows.request.intent.clone(),
            approvals: self.rows.approvals.clone(),
        })
    }
}

impl Gateway {
    /// Starts a run where every approval that is known to be needed is there.
    pub(super) fn start_run(
        &mut self,
        id: SigningId,
        signing: &mut Signing,
        step: &mut Step,
        entropy: &mut Entropy,
    ) {
        if signing.is_ended() || signing.run.is_some() || !signing.awaited().is_empty() {
            return;
        }
        let mut members = BTreeMap::new();
        let mut coordinators_key = None;
        for user_id in signing.concerned() {
            let Some((_, registration)) = signing.keygen.registration(user_id) else { continue };
            let enclave_key = registration.enclave_key;
            // One that is away would end the attempt for all: it is waited for before anybody is asked.
            let Some((enclave_id, _)) = self.ready_enclave_of(&enclave_key) else {
                step.retry = true;
                return;
            };
            if user_id == signing.keygen.coordinator() {
                coordinators_key = Some(enclave_key);
            }
            let member = Member { enclave_id, opened: false, nonces: None, partials: None };
            members.insert(enclave_key, member);
        }
        let attempt = AttemptId::random(entropy);
        let first_key = members.keys().next().copied();
        let (Ok(attempt), Some(aggregator)) = (attempt, coordinators_key.or(first_key)) else {
            step.retry = true;
            return;
        };
        let run = Run { attempt, aggregator, members, approvals: signing.rows.approvals.len() };
        signing.move_to(GeneratingNonces, step);
        for (enclave_key, member) in &run.members {
            let purpose = Purpose::Nonces { enclave_key: *enclave_key, attempt };
            step.send(member.enclave_id, purpose, signing.nonces_request(id, &run, *enclave_key));
        }
        signing.run = Some(run);
    }

    pub(super) fn signing_answered(
        &mut self,
        id: SigningId,
        signing: &mut Signing,
        purpose: Purpose,
        reply: Result<Reply, Code>,
        step: &mut Step,
    ) {
        let (attempt, enclave_key) = match purpose {
            Purpose::OpenForSigning { enclave_key, attempt }
            | Purpose::Nonces { enclave_key, attempt }
            | Purpose::Partials { enclave_key, attempt } => (attempt, Some(enclave_key)),
            Purpose::Aggregate { attempt } => (attempt, None),
            Purpose::CheckRegistration { .. } | Purpose::OpenForKeygen { .. } => return,
        };
        // An answer to an attempt that is over says nothing.
        let Some(mut run) = signing.run.take_if(|run| run.attempt == attempt) else { return };
        let key = enclave_key.unwrap_or(run.aggregator);
        let progress = match (purpose, reply) {
            (_, Err(code)) => Err(code.into()),
            (Purpose::Nonces { .. }, Ok(Reply::Refused(refused)))
                if refused.refusal().code == Code::UnknownSession =>
            {
                reopen(signing, &mut run, key, step)
            }
            (_, Ok(Reply::Refused(refused))) => Err(refused.refusal()),
            (Purpose::OpenForSigning { .. }, Ok(Reply::KeygenOpened(opened))) => {
                // Another roster than the one that was certified: a fault that no attempt can mend.
                if signing.keygen.roster_hash() == Some(opened.roster_hash) {
                    if let Some(member) = run.members.get(&key) {
                        let purpose = Purpose::Nonces { enclave_key: key, attempt };
                        step.send(member.enclave_id, purpose, signing.nonces_request(id, &run, key));
                    }
                    Ok(())
                } else {
                    Err(Code::RosterHashMismatch.into())
                }
            }
            (Purpose::Nonces { .. }, Ok(Reply::NoncesMade(bundles))) => {
                nonces_made(id, signing, &mut run, key, bundles, step)
            }
            (Purpose::Partials { .. }, Ok(Reply::PartialsMade(partials))) => {
                partials_made(id, signing, &mut run, key, partials, step)
            }
            // Round 1 gives the result where all signers share one enclave, and only there.
            (Purpose::Nonces { .. }, Ok(Reply::Aggregated(result))) if run.members.len() == 1 => {
                return signing.end(id, SigningEnd::Completed(result), step);
            }
            (Purpose::Aggregate { .. }, Ok(Reply::Aggregated(result))) => {
                return signing.end(id, SigningEnd::Completed(result), step);
            }
            // An answer to another question.
            (
                _,
                Ok(
                    Reply::Hello(_)
                    | Reply::IdentityCreated(_)
                    | Reply::IdentityOpened
                    | Reply::Attested(_)
                    | Reply::RegistrationChecked
                    | Reply::KeygenOpened(_)
                    | Reply::NoncesMade(_)
                    | Reply::PartialsMade(_)
                    | Reply::Aggregated(_),
                ),
            ) => Err(Code::BundleMismatch.into()),
        };
        match progress {
            Ok(()) => signing.run = Some(run),
            Err(refusal) => attempt_failed(id, signing, &run, refusal, step),
        }
    }
}

/// The enclave has forgotten the session: it gets it once more, then the request again.
fn reopen(signing: &Signing, run: &mut Run, enclave_key: PublicKey, step: &mut Step) -> Result<(), Refusal> {
    let attempt = run.attempt;
    let member = run.members.get_mut(&enclave_key).ok_or(Code::UnknownSession)?;
    if member.opened {
        return Err(Code::UnknownSession.into());
    }
    member.opened = true;
    let request = signing.keygen.open_request(signing.rows.head.keygen_id, enclave_key);
    let request = request.ok_or(Code::Internal)?;
    step.send(member.enclave_id, Purpose::OpenForSigning { enclave_key, attempt }, request);
    Ok(())
}

fn nonces_made(
    id: SigningId,
    signing: &mut Signing,
    run: &mut Run,
    enclave_key: PublicKey,
    bundles: Vec<Addressed>,
    step: &mut Step,
) -> Result<(), Refusal> {
    let member = run.members.get_mut(&enclave_key).ok_or(Code::BundleMismatch)?;
    if member.nonces.is_some() || !matches!(signing.state, GeneratingNonces | CollectingNonces) {
        return Ok(());
    }
    member.nonces = Some(bundles);
    signing.move_to(CollectingNonces, step);
    // An enclave that holds all signers has nobody to send nonces to.
    if run.members.len() == 1 {
        return Err(Code::BundleMismatch.into());
    }
    if run.members.values().any(|member| member.nonces.is_none()) {
        return Ok(());
    }
    signing.move_to(AggregatingNonces, step);
    for (enclave_key, member) in &run.members {
        if *enclave_key != run.aggregator {
            let nonces = run.nonces_for(*enclave_key).ok_or(Code::BundleMismatch)?;
            let make = MakePartials { run: signing.run_key(id, run, *enclave_key), nonces };
            let purpose = Purpose::Partials { enclave_key: *enclave_key, attempt: run.attempt };
            step.send(member.enclave_id, purpose, Request::MakePartials(make));
        }
    }
    signing.move_to(GeneratingPartialSignatures, step);
    Ok(())
}

fn partials_made(
    id: SigningId,
    signing: &mut Signing,
    run: &mut Run,
    enclave_key: PublicKey,
    partials: Blob,
    step: &mut Step,
) -> Result<(), Refusal> {
    let member = run.members.get_mut(&enclave_key).ok_or(Code::BundleMismatch)?;
    let awaited = matches!(signing.state, GeneratingPartialSignatures | CollectingPartialSignatures);
    if member.partials.is_some() || !awaited {
        return Ok(());
    }
    member.partials = Some(partials);
    let Some(partials) = run.partials() else {
        if signing.state == GeneratingPartialSignatures {
            signing.move_to(CollectingPartialSignatures, step);
        }
        return Ok(());
    };
    let aggregator = run.members.get(&run.aggregator).ok_or(Code::Internal)?;
    let nonces = run.nonces_for(run.aggregator).ok_or(Code::BundleMismatch)?;
    let aggregate = Aggregate { run: signing.run_key(id, run, run.aggregator), nonces, partials };
    let purpose = Purpose::Aggregate { attempt: run.attempt };
    step.send(aggregator.enclave_id, purpose, Request::Aggregate(aggregate));
    signing.move_to(FinalizingSignature, step);
    Ok(())
}

/// Decides what a refusal in a run means for the session.
fn attempt_failed(id: SigningId, signing: &mut Signing, run: &Run, refusal: Refusal, step: &mut Step) {
    let code = refusal.code;
    if signing.state != CollectingParticipants {
        signing.move_to(CollectingParticipants, step);
    }
    // A signer's rules ask for an approval that the hints did not: wait for it.
    let asks_approval = matches!(code, Code::ApprovalMissing | Code::RequesterNotAllowed);
    let unasked = refusal.culprits.iter().any(|user_id| signing.approval(*user_id).is_none());
    if asks_approval && unasked {
        let concerned = signing.concerned();
        signing.needed.extend(refusal.culprits.iter().filter(|user_id| concerned.contains(user_id)));
        if !signing.awaited().is_empty() {
            return;
        }
    }
    // An attempt that is not known was lost with the enclave's memory, or pushed out by others': a pause helps.
    if is_passing(code) || code == Code::UnknownAttempt {
        step.retry = true;
        return;
    }
    // What was missing may have come since: approvals are few, and so are these attempts.
    let wants_consent = asks_approval || code == Code::BlindNotAllowed;
    if wants_consent && signing.rows.approvals.len() > run.approvals {
        step.again = true;
        return;
    }
    step.report(Report::AttemptRefused(id, code));
    // Nonces were used up or mixed up, or an enclave has a fault of its own: another attempt may do better,
    // within reason.
    let worth_another = matches!(
        code,
        Code::AttemptConsumed
            | Code::NonceViewsDiffer
            | Code::BundleUnreadable
            | Code::BundleMismatch
            | Code::NonceInvalid
            | Code::RoutingMismatch
            | Code::Malformed
            | Code::Internal
    );
    signing.attempts_refused += 1;
    if !worth_another {
        signing.fail(id, refusal, None, step);
    } else if signing.attempts_refused >= ATTEMPTS_REFUSED_MAX {
        signing.fail(id, Refusal::blaming(Code::TooManyAttempts, refusal.culprits), None, step);
    } else {
        step.again = true;
    }
}
