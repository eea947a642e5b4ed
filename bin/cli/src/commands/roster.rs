//! `roster`: who is in a keygen, and the keys that came of it.

use std::fmt::Write;

use clap::Args;
use keymeld_core::artifact::manifest::{Pin, Requesters};
use keymeld_core::artifact::registration::{ApprovalRule, Rules};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Hash, PublicKey, XOnlyKey};
use keymeld_core::client::{Done, Job, VerifiedKey};
use keymeld_core::id::{KeygenId, SubsetId, UserId};
use keymeld_core::refusal::Code;
use serde::Serialize;

use super::seat::called;
use super::{Failure, Member, Report};
use crate::shown;

/// Verify a completed keygen, and show its key and everybody in it.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Example:\n  keymeld roster --wait --home alice --key-file alice.key --policy policy.json\n\n",
    "Compare the code with everybody else over a channel that you trust: equal codes are equal rosters. Who is\n",
    "pinned was named by its public key; who is only invited is whoever got the invite."
))]
pub struct RosterOptions {
    /// Wait until everybody has joined.
    #[arg(long)]
    wait: bool,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

#[derive(Serialize)]
struct RosterReport {
    keygen_id: KeygenId,
    user_id: UserId,
    /// The BIP-340 key that items verify under which name neither subset nor tweak.
    key: XOnlyKey,
    /// BIP-327's aggregate, before any tweak.
    aggregate_key: PublicKey,
    code: String,
    roster_hash: Hash,
    default_tweak: Vec<TweakStep>,
    requesters: Requesters,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    participants: Vec<ParticipantReport>,
    subsets: Vec<SubsetReport>,
}

#[derive(Serialize)]
struct ParticipantReport {
    user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    public_key: PublicKey,
    pinned: bool,
    coordinator: bool,
    you: bool,
    rules: Rules,
}

#[derive(Serialize)]
struct SubsetReport {
    subset_id: SubsetId,
    members: Vec<UserId>,
    key: XOnlyKey,
}

/// `keymeld roster`.
///
/// # Errors
/// [`Failure`].
pub fn roster(options: &RosterOptions) -> Result<Report, Failure> {
    let mut seat = options.member.resume(None)?;
    if !options.wait {
        // Where the key is, it is verified; where it is not, nobody waits.
        let Done::Keygen(progress) = seat.run(Job::LookAtKeygen)? else {
            return Err(Failure::Refused(Code::Internal));
        };
        if !progress.is_ended() {
            return Err(Failure::NotCompleted);
        }
    }
    let key = seat.key()?;
    let report = report(&key, seat.machine().user_id())?;
    Ok(Report::new(&report, text(&report, &key)))
}

fn report(key: &VerifiedKey, own: UserId) -> Result<RosterReport, Code> {
    let roster = key.roster();
    let manifest = roster.manifest();
    let participant = |participant: &keymeld_core::artifact::manifest::Participant| {
        let record = roster.record(participant.user_id).ok_or(Code::RosterIncomplete)?;
        Ok(ParticipantReport {
            user_id: participant.user_id,
            name: participant.name.clone(),
            public_key: record.public_key,
            pinned: matches!(participant.pin, Pin::SigningKey(_)),
            coordinator: participant.user_id == manifest.coordinator.user_id,
            you: participant.user_id == own,
            rules: record.rules,
        })
    };
    let subset = |subset: &keymeld_core::artifact::manifest::Subset| {
        Ok(SubsetReport {
            subset_id: subset.subset_id,
            members: subset.members.clone(),
            key: key.subset_key(Some(subset.subset_id))?,
        })
    };
    Ok(RosterReport {
        keygen_id: manifest.keygen_id,
        user_id: own,
        key: key.output_key(),
        aggregate_key: roster.aggregate_key(),
        code: key.short_code(),
        roster_hash: roster.roster_hash(),
        default_tweak: manifest.default_tweak.clone(),
        requesters: manifest.requesters,
        expires_at: manifest.expires_at,
        participants: manifest.participants.iter().map(participant).collect::<Result<_, Code>>()?,
        subsets: manifest.subsets.iter().map(subset).collect::<Result<_, Code>>()?,
    })
}

fn text(report: &RosterReport, key: &VerifiedKey) -> String {
    let mut text = format!("keygen {}\nkey    {}\ncode   {}\n\n", report.keygen_id, report.key, report.code);
    for one in &report.participants {
        let pin = if one.pinned { "pinned " } else { "invited" };
        let consent = match one.rules.approval {
            ApprovalRule::Required => "approves each request",
            ApprovalRule::Delegated => "delegates",
        };
        let role = match (one.coordinator, one.you) {
            (true, true) => ", coordinator, you",
            (true, false) => ", coordinator",
            (false, true) => ", you",
            (false, false) => "",
        };
        let until = shown::time(one.rules.valid_until);
        let name = called(key, one.user_id);
        writeln!(text, "{pin}  {}  {name}{role}: {consent}, until {until}", one.public_key)
            .expect("a string takes everything");
    }
    for subset in &report.subsets {
        let names: Vec<String> = subset.members.iter().map(|member| called(key, *member)).collect();
        writeln!(text, "subset   {}  {}", subset.key, names.join(", ")).expect("a string takes everything");
    }
    text + "\nCompare the code with everybody over a channel that you trust.\n"
}
