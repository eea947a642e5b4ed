//! `sign`, `intent`, `approve`, `decline`, `cancel`: the steps to a signature.

use std::fmt::Write;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::str;

use clap::Args;
use keymeld_core::api::rest::SignRequest;
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::result::VerifiedOutcome;
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Hash, Message, Signature, XOnlyKey};
use keymeld_core::client::{Done, Job, Review, VerifiedKey};
use keymeld_core::id::{ItemId, SigningId, SubsetId, UserId};
use keymeld_core::refusal::Code;
use serde::Serialize;

use super::keygen::{Names, TWEAK_HELP, names, tweak};
use super::keys::{hex, origin_of_file};
use super::seat::{Seat, called, name_of, now_unix_ms};
use super::{Contradiction, End, Failure, Member, Report, refusal_text};
use crate::home::HomeError;
use crate::{os_entropy, shown};

/// Request signatures.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld sign --text 'pay 1 to Bob' --home alice --key-file alice.key --policy policy.json\n",
    "  keymeld sign --file contract.pdf --wait --timeout 600 ...\n",
    "  keymeld sign --blind 00ab... --subset Alice,Bob --tweak taproot ...\n\n",
    "Items are signed in the order: texts, files, blind messages. A request is kept before it is sent. Until its\n",
    "acceptance (with --wait: its end) was shown, the same command again goes on with it; --new asks once more."
))]
pub struct Sign {
    /// A text; its tagged hash KeyMeld/text/v1 is signed.
    #[arg(long = "text")]
    texts: Vec<String>,
    /// A file; its SHA-256 is signed, and approvers see its bytes.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// 32 bytes that approvers cannot read.
    #[arg(long = "blind", value_name = "HEX", value_parser = hex::<Message>)]
    messages: Vec<Message>,
    /// Who signs; everybody otherwise. `reserve` must have named this group.
    #[arg(long, value_name = "NAME,NAME[,...]", value_parser = names)]
    subset: Option<Names>,
    /// A tweak of the key.
    #[arg(long = "tweak", value_name = "TWEAK", value_parser = tweak, help = TWEAK_HELP)]
    tweaks: Vec<TweakStep>,
    /// Sign under the key without any tweak, not even the keygen's default.
    #[arg(long, conflicts_with = "tweaks")]
    no_tweak: bool,
    /// After how long the request expires; an hour otherwise.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    expires_in: Option<u32>,
    /// Wait for the signatures.
    #[arg(long)]
    wait: bool,
    /// Ask once more, although the same request was kept and its acceptance was never shown.
    #[arg(long)]
    new: bool,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

#[derive(Serialize)]
struct RequestReport {
    signing_id: SigningId,
    digest: Hash,
    expires_at: u64,
    resumed: bool,
}

/// What `sign --wait` and `status` print of signatures.
#[derive(Serialize)]
struct SignedReport {
    signing_id: SigningId,
    signatures: Vec<OutcomeReport>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OutcomeReport {
    Signed { item_id: ItemId, key: XOnlyKey, message: Message, signature: Signature },
    Refused { code: &'static str, culprits: Vec<UserId> },
}

/// `keymeld sign`.
///
/// # Errors
/// [`Failure`].
pub fn sign(options: &Sign) -> Result<Report, Failure> {
    if options.texts.is_empty() && options.files.is_empty() && options.messages.is_empty() {
        return Err(Contradiction::NoItems.into());
    }
    let mut seat = options.member.resume(None)?;
    let key = seat.key()?;
    let items = options.items(&key)?;
    let kept = options.kept_request(&seat, &items)?;
    let resumed = kept.is_some();
    let id = match kept {
        Some(request) => {
            let id = request.signing_id;
            of_session(id, seat.run(Job::Resend(request)))?;
            id
        }
        None => options.request(&mut seat, items)?,
    };
    let report = if options.wait {
        match of_session(id, seat.run(Job::AwaitSignatures(id)))? {
            Done::Signed(id, signed) => outcomes(id, &signed),
            _ => return Err(Failure::Refused(Code::Internal)),
        }
    } else {
        requested(&seat, id, resumed)?
    };
    // Whoever was shown it knows that it was accepted. Killed before, the same command asks for the same again.
    let folder = seat.folder().clone();
    let home = seat.into_home();
    Ok(report.then(move || {
        let _locked = home;
        folder.forget_request(id)
    }))
}

fn requested(seat: &Seat, id: SigningId, resumed: bool) -> Result<Report, Failure> {
    let kept = seat.folder().requests()?.into_iter().find(|request| request.signing_id == id);
    let SignRequest { intent_digest: digest, expires_at, .. } = kept.ok_or(Code::Internal)?;
    let report = RequestReport { signing_id: id, digest, expires_at, resumed };
    let text = format!(
        "signing {id} is requested{}, until {}\ndigest  {digest}\nnext: keymeld intent {id}, keymeld status {id}",
        if resumed { " (by an earlier command)" } else { "" },
        shown::time(expires_at)
    );
    Ok(Report::new(&report, text))
}

impl Sign {
    fn items(&self, key: &VerifiedKey) -> Result<Vec<Item>, Failure> {
        let mut entropy = os_entropy();
        let mut items = Vec::new();
        for text in &self.texts {
            items.push(Item::of(Origin::Text(text.clone()), &mut entropy)?);
        }
        for file in &self.files {
            items.push(Item::of(origin_of_file(file)?, &mut entropy)?);
        }
        for message in &self.messages {
            items.push(Item::blind(*message, &mut entropy)?);
        }
        let subset = self.subset.as_ref().map(|names| subset(key, names)).transpose()?;
        let tweak = (self.no_tweak || !self.tweaks.is_empty()).then(|| self.tweaks.clone());
        for item in &mut items {
            item.subset = subset;
            item.tweak.clone_from(&tweak);
        }
        Ok(items)
    }

    /// A request for the same whose acceptance nobody was shown.
    fn kept_request(&self, seat: &Seat, items: &[Item]) -> Result<Option<SignRequest>, Failure> {
        for request in seat.folder().requests()? {
            let asked = seat
                .machine()
                .read_request(&request)
                .map_err(|code| HomeError::Request(seat.folder().request_path(request.signing_id), code))?;
            if !same(&asked.intent().items, items) {
                continue;
            }
            let expired = now_unix_ms() >= request.expires_at;
            match (self.new, expired) {
                (false, false) => return Ok(Some(request)),
                (false, true) => return Err(Contradiction::Uncertain(request.signing_id).into()),
                // Nothing can come of it any more, and its owner knows.
                (true, true) => {
                    let forgotten = seat.folder().forget_request(request.signing_id);
                    forgotten.map_err(Failure::System)?;
                }
                (true, false) => {}
            }
        }
        Ok(None)
    }

    fn request(&self, seat: &mut Seat, items: Vec<Item>) -> Result<SigningId, Failure> {
        let expires_at = self.expires_in.map(|seconds| now_unix_ms() + u64::from(seconds) * 1_000);
        let before: Vec<SigningId> = ids(seat)?;
        let outcome = seat.run(Job::Request { items, expires_at });
        match outcome {
            Ok(Done::Requested(id)) => Ok(id),
            Ok(_) => Err(Failure::Refused(Code::Internal)),
            // It was kept, and may have been sent.
            Err(failure) => match ids(seat)?.into_iter().find(|id| !before.contains(id)) {
                Some(id) => of_session(id, Err(failure)).map(|_| id),
                None => Err(failure),
            },
        }
    }
}

fn ids(seat: &Seat) -> Result<Vec<SigningId>, Failure> {
    Ok(seat.folder().requests()?.iter().map(|request| request.signing_id).collect())
}

/// Whether two lists ask for the same, whatever their ids.
fn same(some: &[Item], others: &[Item]) -> bool {
    some.len() == others.len()
        && some
            .iter()
            .zip(others)
            .all(|(one, other)| Item { item_id: other.item_id, ..one.clone() } == *other)
}

/// The manifest's subset of exactly these participants.
fn subset(key: &VerifiedKey, names: &Names) -> Result<SubsetId, Failure> {
    let manifest = key.roster().manifest();
    let mut members = Vec::new();
    for name in &names.0 {
        let mut called =
            manifest.participants.iter().filter(|participant| participant.name.as_ref() == Some(name));
        match (called.next(), called.next()) {
            (Some(participant), None) => members.push(participant.user_id),
            (None, _) => return Err(Contradiction::UnknownName(name.clone()).into()),
            (Some(_), Some(_)) => return Err(Contradiction::AmbiguousName(name.clone()).into()),
        }
    }
    members.sort();
    let is_this = |subset: &&keymeld_core::artifact::manifest::Subset| {
        let mut others = subset.members.clone();
        others.sort();
        others == members
    };
    let found = manifest.subsets.iter().find(is_this).ok_or(Contradiction::UnknownSubset)?;
    Ok(found.subset_id)
}

/// Names the session that a fault is about.
pub(super) fn of_session(id: SigningId, outcome: Result<Done, Failure>) -> Result<Done, Failure> {
    outcome.map_err(|failure| Failure::Signing(id, Box::new(failure)))
}

/// Signatures, each verified by the client; a failed item fails the command.
pub(super) fn outcomes(id: SigningId, signed: &[VerifiedOutcome]) -> Report {
    let mut text = format!("signing {id} is completed; every signature was verified\n");
    let mut reports = Vec::with_capacity(signed.len());
    for outcome in signed {
        match outcome {
            Ok(one) => {
                writeln!(text, "\nkey        {}\nmessage    {}", one.output_key, one.message)
                    .and_then(|()| writeln!(text, "signature  {}", one.signature))
                    .expect("a string takes everything");
                reports.push(OutcomeReport::Signed {
                    item_id: one.item_id,
                    key: one.output_key,
                    message: one.message,
                    signature: one.signature,
                });
            }
            Err(refusal) => {
                writeln!(text, "\nNOT SIGNED: {}", refusal_text(refusal)).expect("a string takes everything");
                let culprits = refusal.culprits.clone();
                reports.push(OutcomeReport::Refused { code: refusal.code.name(), culprits });
            }
        }
    }
    let end = if signed.iter().all(Result::is_ok) { End::Done } else { End::Failed };
    Report::new(&SignedReport { signing_id: id, signatures: reports }, text).ending(end)
}

/// Show all that a request for signatures asks for, so that you can decide.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Example:\n  keymeld intent 3f0e...-... --home bob --key-file bob.key --policy policy.json\n\n",
    "The digest stands for every byte of it: `keymeld approve ID --digest DIGEST` approves exactly this."
))]
pub struct IntentOptions {
    /// The signing session.
    #[arg(value_name = "SIGNING_ID")]
    signing: SigningId,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

#[derive(Serialize)]
struct IntentReport {
    signing_id: SigningId,
    digest: Hash,
    requester: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    requester_name: Option<String>,
    created_at: u64,
    expires_at: u64,
    approved: Vec<UserId>,
    missing: Vec<UserId>,
    waits_for_you: bool,
    blind: bool,
    items: Vec<ItemReport>,
}

#[derive(Serialize)]
struct ItemReport {
    item_id: ItemId,
    message: Message,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subset: Option<SubsetId>,
    signers: Vec<UserId>,
    tweak: Vec<TweakStep>,
    key: XOnlyKey,
}

/// `keymeld intent`.
///
/// # Errors
/// [`Failure`].
pub fn intent(options: &IntentOptions) -> Result<Report, Failure> {
    let mut seat = options.member.resume(None)?;
    let review = review(&mut seat, options.signing)?;
    let key = seat.key()?;
    let report = intent_report(&review, &key, seat.machine().user_id())?;
    Ok(Report::new(&report, intent_text(&report, &key, seat.machine().user_id())))
}

fn review(seat: &mut Seat, id: SigningId) -> Result<Box<Review>, Failure> {
    match of_session(id, seat.run(Job::Review(id)))? {
        Done::Reviewed(review) => Ok(review),
        _ => Err(Failure::Refused(Code::Internal)),
    }
}

fn intent_report(review: &Review, key: &VerifiedKey, own: UserId) -> Result<IntentReport, Code> {
    let intent = review.intent.intent();
    let roster = key.roster();
    let item = |item: &Item| {
        let tweak = roster.tweak(item.tweak.as_ref());
        Ok(ItemReport {
            item_id: item.item_id,
            message: item.message,
            origin: item.origin.clone(),
            subset: item.subset,
            signers: roster.signers(item.subset)?.iter().map(|record| record.user_id).collect(),
            tweak: tweak.to_vec(),
            key: XOnlyKey(roster.key_agg(item.subset, tweak)?.output_key()),
        })
    };
    Ok(IntentReport {
        signing_id: intent.signing_id,
        digest: review.intent.digest(),
        requester: intent.requester,
        requester_name: name_of(key, intent.requester),
        created_at: intent.created_at,
        expires_at: intent.expires_at,
        approved: review.approved.clone(),
        missing: review.missing.clone(),
        waits_for_you: review.missing.contains(&own),
        blind: intent.items.iter().any(|item| item.origin.is_none()),
        items: intent.items.iter().map(item).collect::<Result<_, Code>>()?,
    })
}

fn intent_text(report: &IntentReport, key: &VerifiedKey, own: UserId) -> String {
    let names = |users: &[UserId]| -> String {
        let names: Vec<String> = users.iter().map(|user_id| called(key, *user_id)).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    };
    let you = if report.requester == own { ", you" } else { "" };
    let mut text = format!(
        "signing    {}\ndigest     {}\nrequester  {}{you}\ncreated    {}\nexpires    {}\napproved   {}\nmissing    {}\n",
        report.signing_id,
        report.digest,
        called(key, report.requester),
        shown::time(report.created_at),
        shown::time(report.expires_at),
        names(&report.approved),
        names(&report.missing),
    );
    let everybody = key.roster().records().len();
    for (number, item) in (1..).zip(&report.items) {
        let signers =
            if item.signers.len() == everybody { "everybody".to_owned() } else { names(&item.signers) };
        write!(
            text,
            "\nitem {number} of {}\n  signers  {signers}\n  key      {}\n  message  {}\n{}",
            report.items.len(),
            item.key,
            item.message,
            origin_text(item.origin.as_ref()),
        )
        .expect("a string takes everything");
    }
    if report.blind {
        text += "\nBLIND: nobody can tell what some of these messages are. Approving them needs --blind.\n";
    }
    text
}

/// What an item is, in full.
fn origin_text(origin: Option<&Origin>) -> String {
    match origin {
        None => "  BLIND    the request does not say what this message is\n".to_owned(),
        Some(Origin::Text(text)) => format!("  text     {}\n", shown::text(text)),
        Some(Origin::Bytes(bytes)) => {
            let bytes = &bytes.0;
            let mut text = format!("  bytes    {}, the message is their SHA-256\n", bytes.len());
            match str::from_utf8(bytes) {
                Ok(readable) => text += &format!("  as text  {}\n", shown::text(readable)),
                Err(_) => {
                    text += "  as hex   ";
                    for byte in bytes {
                        write!(text, "{byte:02x}").expect("a string takes everything");
                    }
                    text.push('\n');
                }
            }
            text
        }
        Some(Origin::Psbt { index, input, .. }) => format!("  PSBT     {index}, input {input}\n"),
    }
}

/// Consent to a request for signatures. It cannot be taken back before the request expires.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld approve 3f0e...-... --home bob --key-file bob.key --policy policy.json       (shows it and asks)\n",
    "  keymeld approve 3f0e...-... --digest 77aa... ...     (exactly what `keymeld intent` showed)\n"
))]
pub struct Approve {
    /// The signing session.
    #[arg(value_name = "SIGNING_ID")]
    signing: SigningId,
    /// Approve without asking, but only the intent with this digest.
    #[arg(long, value_name = "HEX", value_parser = hex::<Hash>)]
    digest: Option<Hash>,
    /// Approve messages too that do not say what they are.
    #[arg(long)]
    blind: bool,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

#[derive(Serialize)]
struct DecisionReport {
    signing_id: SigningId,
    digest: Hash,
    decision: &'static str,
}

/// `keymeld approve`.
///
/// # Errors
/// [`Failure`].
pub fn approve(options: &Approve) -> Result<Report, Failure> {
    if options.digest.is_none() {
        // Before anything is asked for: where nobody can answer, nobody is asked.
        let asks = io::stdin().is_terminal() && !options.member.key.is_input() && !options.member.json;
        if !asks {
            return Err(Contradiction::NobodyToAsk.into());
        }
    }
    let mut seat = options.member.resume(None)?;
    let review = review(&mut seat, options.signing)?;
    let digest = review.intent.digest();
    match options.digest {
        Some(reviewed) if reviewed == digest => {}
        Some(_) => return Err(Contradiction::OtherDigest(digest).into()),
        None => {
            let key = seat.key()?;
            let own = seat.machine().user_id();
            let shown = intent_text(&intent_report(&review, &key, own)?, &key, own);
            eprint!("{shown}\nType yes to approve: ");
            if !says_yes(&mut io::stdin().lock()).map_err(Failure::System)? {
                return Err(Contradiction::NotConfirmed.into());
            }
        }
    }
    let id = options.signing;
    of_session(id, seat.run(Job::Approve { review, blind: options.blind }))?;
    let report = DecisionReport { signing_id: id, digest, decision: "approved" };
    Ok(Report::new(&report, format!("signing {id} is approved\ndigest  {digest}")))
}

/// Anything but the whole word is a no.
fn says_yes(input: &mut impl BufRead) -> io::Result<bool> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line.trim_end() == "yes")
}

/// Say no to a request of somebody else. That ends it for everybody.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Example:\n  keymeld decline 3f0e...-... --reason 'who is this for?' --home bob --key-file bob.key --policy policy.json"
))]
pub struct Decline {
    #[command(flatten)]
    withdrawal: WithdrawalOptions,
}

/// Take back a request of your own.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Example:\n  keymeld cancel 3f0e...-... --home alice --key-file alice.key --policy policy.json\n\n",
    "What was signed already stays signed."
))]
pub struct Cancel {
    #[command(flatten)]
    withdrawal: WithdrawalOptions,
}

#[derive(Args, Clone, Debug)]
struct WithdrawalOptions {
    /// The signing session.
    #[arg(value_name = "SIGNING_ID")]
    signing: SigningId,
    /// Why, for the other participants.
    #[arg(long)]
    reason: Option<String>,
    /// Who is at work.
    #[command(flatten)]
    pub member: Member,
}

/// `keymeld decline`.
///
/// # Errors
/// [`Failure`].
pub fn decline(options: &Decline) -> Result<Report, Failure> {
    withdraw(&options.withdrawal, false)
}

/// `keymeld cancel`.
///
/// # Errors
/// [`Failure`].
pub fn cancel(options: &Cancel) -> Result<Report, Failure> {
    withdraw(&options.withdrawal, true)
}

fn withdraw(options: &WithdrawalOptions, cancels: bool) -> Result<Report, Failure> {
    let mut seat = options.member.resume(None)?;
    let review = review(&mut seat, options.signing)?;
    let is_own = review.intent.intent().requester == seat.machine().user_id();
    match (cancels, is_own) {
        (true, true) | (false, false) => {}
        (true, false) => return Err(Contradiction::NotOwnRequest.into()),
        (false, true) => return Err(Contradiction::OwnRequest.into()),
    }
    let (id, digest) = (options.signing, review.intent.digest());
    of_session(id, seat.run(Job::Withdraw { review, reason: options.reason.clone() }))?;
    let decision = if cancels { "cancelled" } else { "declined" };
    let report = DecisionReport { signing_id: id, digest, decision };
    Ok(Report::new(&report, format!("signing {id} is {decision}\ndigest  {digest}")))
}

impl Decline {
    /// Whether one JSON object is wanted.
    pub fn json(&self) -> bool {
        self.withdrawal.member.json
    }
}

impl Cancel {
    /// Whether one JSON object is wanted.
    pub fn json(&self) -> bool {
        self.withdrawal.member.json
    }
}

#[cfg(test)]
mod tests {
    use super::says_yes;

    #[test]
    fn only_the_whole_word_is_a_yes() {
        for (answer, is_yes) in [
            ("yes\n", true),
            ("yes", true),
            ("yes \r\n", true),
            ("", false),
            ("y\n", false),
            ("no\nyes\n", false),
            ("yes please\n", false),
            ("YES\n", false),
        ] {
            assert_eq!(says_yes(&mut answer.as_bytes()).expect("reads"), is_yes, "{answer:?}");
        }
    }
}
