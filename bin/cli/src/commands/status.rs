//! `status`: where a keygen or a signing session is.

use std::fmt::Write;

use clap::Args;
use keymeld_core::api::rest::{KeygenState, SigningState};
use keymeld_core::artifact::manifest::Pin;
use keymeld_core::bytes::Hash;
use keymeld_core::client::{Done, Fault, Job, KeygenProgress, SigningProgress, SlotProgress, VerifiedKey};
use keymeld_core::id::{EnclaveId, KeygenId, SigningId, UserId};
use keymeld_core::refusal::Code;
use serde::Serialize;

use super::seat::{Seat, called};
use super::signing::{self, outcomes};
use super::{End, Failure, Member, Report};
use crate::shown;

/// Show where the keygen is, or a signing session and its signatures.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld status --home alice --key-file alice.key --policy policy.json\n",
    "  keymeld status 3f0e...-... --wait --home alice --key-file alice.key --policy policy.json\n\n",
    "What has not ended is told on the gateway's word; signatures are verified. Ends with 3 while there is no end\n",
    "and with 1 for what failed."
))]
pub struct Status {
    /// The signing session; without it the keygen's status is shown.
    #[arg(value_name = "SIGNING_ID")]
    signing: Option<SigningId>,
    /// Wait for the end.
    #[arg(long)]
    wait: bool,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

#[derive(Serialize)]
struct KeygenReport {
    keygen_id: KeygenId,
    user_id: UserId,
    state: KeygenState,
    deadline: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'static str>,
    participants: Vec<SlotReport>,
}

#[derive(Serialize)]
struct SlotReport {
    user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned: Option<bool>,
    registered: bool,
    enclave_id: EnclaveId,
}

#[derive(Serialize)]
struct SigningReport {
    signing_id: SigningId,
    state: SigningState,
    digest: Hash,
    requester: UserId,
    expires_at: u64,
    approved: Vec<UserId>,
    awaited: Vec<UserId>,
}

/// `keymeld status`.
///
/// # Errors
/// [`Failure`].
pub fn status(options: &Status) -> Result<Report, Failure> {
    let mut seat = options.member.resume(None)?;
    match options.signing {
        Some(id) => signing_status(&mut seat, id, options.wait),
        None => keygen_status(&mut seat, options.wait),
    }
}

fn keygen_status(seat: &mut Seat, wait: bool) -> Result<Report, Failure> {
    // Whoever has not joined cannot wait for the key, and is told what there is.
    if wait && seat.machine().is_registered() {
        match seat.key() {
            // What it is then is shown below.
            Ok(_) | Err(Failure::Job(Fault::TimedOut | Fault::Ended(..))) => {}
            Err(failure) => return Err(failure),
        }
    }
    let Done::Keygen(progress) = seat.run(Job::LookAtKeygen)? else {
        return Err(Failure::Refused(Code::Internal));
    };
    let end = match progress.state {
        KeygenState::Completed => End::Done,
        KeygenState::Failed => End::Failed,
        KeygenState::Reserved | KeygenState::CollectingParticipants | KeygenState::KeyGeneration => {
            End::NotYet
        }
    };
    let KeygenProgress { state, deadline, slots, failure } = *progress;
    let report = KeygenReport {
        keygen_id: seat.machine().keygen_id(),
        user_id: seat.machine().user_id(),
        state,
        deadline,
        failure: failure.map(Code::name),
        participants: slots.into_iter().map(slot_report).collect(),
    };
    Ok(Report::new(&report, keygen_text(&report)).ending(end))
}

fn slot_report(slot: SlotProgress) -> SlotReport {
    let SlotProgress { user_id, participant, enclave_id, registered } = slot;
    let (name, pinned) = match participant {
        Some((name, pin)) => (name, Some(matches!(pin, Pin::SigningKey(_)))),
        None => (None, None),
    };
    SlotReport { user_id, name, pinned, registered, enclave_id }
}

fn keygen_text(report: &KeygenReport) -> String {
    let mut text = format!("keygen {}: {:?}", report.keygen_id, report.state);
    match (report.state, report.failure) {
        (KeygenState::Failed, failure) => text += &format!(" ({})", failure.unwrap_or("internal")),
        (KeygenState::Completed, _) => {}
        (KeygenState::Reserved | KeygenState::CollectingParticipants | KeygenState::KeyGeneration, _) => {
            text += &format!(", until {}", shown::time(report.deadline));
        }
    }
    text.push('\n');
    for slot in &report.participants {
        let joined = if slot.registered { "joined" } else { "absent" };
        let pin = match slot.pinned {
            Some(true) => "pinned ",
            Some(false) => "invited",
            None => "       ",
        };
        let name = slot.name.as_deref().map_or_else(|| slot.user_id.to_string(), shown::text);
        let you = if slot.user_id == report.user_id { ", you" } else { "" };
        writeln!(text, "{joined}  {pin}  {name}{you}").expect("a string takes everything");
    }
    text
}

fn signing_status(seat: &mut Seat, id: SigningId, wait: bool) -> Result<Report, Failure> {
    let job = if wait { Job::AwaitSignatures(id) } else { Job::LookAtSigning(id) };
    let done = signing::of_session(id, seat.run(job))?;
    let key = seat.key()?;
    match done {
        Done::Signing(progress) => {
            let report = signing_report(&progress);
            Ok(Report::new(&report, signing_text(&report, &key)).ending(End::NotYet))
        }
        Done::Signed(id, signed) => Ok(outcomes(id, &signed)),
        _ => Err(Failure::Refused(Code::Internal)),
    }
}

fn signing_report(progress: &SigningProgress) -> SigningReport {
    let SigningProgress { intent, state, approved, awaited } = progress;
    SigningReport {
        signing_id: intent.intent().signing_id,
        state: *state,
        digest: intent.digest(),
        requester: intent.intent().requester,
        expires_at: intent.intent().expires_at,
        approved: approved.clone(),
        awaited: awaited.clone(),
    }
}

fn signing_text(report: &SigningReport, key: &VerifiedKey) -> String {
    let names = |users: &[UserId]| -> String {
        let names: Vec<String> = users.iter().map(|user_id| called(key, *user_id)).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    };
    format!(
        "signing {}: {:?}, until {}\nrequested by  {}\napproved by   {}\nwaits for     {}\n",
        report.signing_id,
        report.state,
        shown::time(report.expires_at),
        called(key, report.requester),
        names(&report.approved),
        names(&report.awaited),
    )
}
