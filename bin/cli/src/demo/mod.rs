//! `keymeld demo`: a gateway, enclaves and participants, a keygen, signatures, verified.

mod party;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use clap::Args;
use keymeld_core::api::http::Method;
use keymeld_core::api::rest::HealthResponse;
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::client::Fault;
use keymeld_core::limits::{ITEMS_MAX, JSON_INTEGER_MAX, PARTICIPANTS_MAX, PARTICIPANTS_MIN};
use keymeld_core::musig::round;
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::strict;
use keymeld_transport::http::client::{BaseUrlError, Client as Http, ClientError, Outgoing};

use crate::children::{ChildError, Children};
use crate::kept::KeptError;
use crate::os_entropy;
use party::Party;
use show::{Report, ReportedSignature, Show, Timings};

/// The most enclaves that a demo starts.
const ENCLAVES_MAX: usize = 16;
/// How long enclaves may take to make their identities.
const READY_MS_MAX: u64 = 60_000;

/// What to demonstrate.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many participants.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = between::<PARTICIPANTS_MIN, PARTICIPANTS_MAX>)]
    pub participants: usize,
    /// How many enclaves.
    #[arg(long, default_value_t = 3, value_name = "M", value_parser = between::<1, ENCLAVES_MAX>)]
    pub enclaves: usize,
    /// How many messages to sign, in one session.
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = between::<1, ITEMS_MAX>)]
    pub messages: usize,
    /// Let every participant read and approve; otherwise they delegate to the coordinator.
    #[arg(long)]
    pub require_approval: bool,
    /// Keep settings, database and the participants' files in this folder.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    pub json: bool,
}

fn between<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
    number.ok_or_else(|| format!("a number from {MIN} to {MAX}"))
}

/// Why a demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A gateway or an enclave does not run.
    #[error(transparent)]
    Children(#[from] ChildError),
    /// A job of a participant failed.
    #[error("{0}: {1}")]
    Job(String, #[source] Fault),
    /// Something could not be made.
    #[error("refused: {0}")]
    Refused(#[from] Code),
    /// An item was not signed.
    #[error("an item was not signed: {0}")]
    NotSigned(#[from] Refusal),
    /// A signature does not verify.
    #[error("a signature does not verify")]
    Unverified,
    /// The enclaves did not get ready in time.
    #[error("the enclaves do not get ready")]
    NotReady,
    /// The gateway's address is none.
    #[error(transparent)]
    Url(#[from] BaseUrlError),
    /// The gateway cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The participants' files.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The folder for the files.
    #[error("{0}: {1}")]
    Folder(&'static str, #[source] io::Error),
}

/// The whole command.
pub fn main(options: &Options) -> ExitCode {
    match demonstrate(options) {
        Ok(report) if options.json => {
            println!("{}", serde_json::to_string(&report).expect("texts and numbers"));
            ExitCode::SUCCESS
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keymeld demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the demo in a temporary folder, or in the one that is to be kept.
fn demonstrate(options: &Options) -> Result<Report, DemoError> {
    let folder = |error| DemoError::Folder("cannot use the folder", error);
    let temporary = tempfile::tempdir().map_err(folder)?;
    let home = match &options.keep {
        Some(kept) => {
            fs::create_dir_all(kept).map_err(folder)?;
            // Children run elsewhere: their settings name absolute paths.
            let kept = fs::canonicalize(kept).map_err(folder)?;
            if fs::read_dir(&kept).map_err(folder)?.next().is_some() {
                return Err(DemoError::Folder(
                    "--keep wants an empty folder",
                    io::ErrorKind::DirectoryNotEmpty.into(),
                ));
            }
            kept
        }
        None => temporary.path().to_owned(),
    };
    let show = Show::new(options.json);
    show.title(options);
    let started = Instant::now();
    let program = env::current_exe().map_err(folder)?;
    let children = Children::start(&program, &home, options.enclaves)?;
    let http = Http::new(&children.url())?;
    wait_until_ready(&http, options.enclaves)?;
    show.step(started, &format!("gateway at {}, {} behind it", children.url(), enclaves(options.enclaves)));
    let report = play(options, &show, &children, &home)?;
    // The gateway first: enclaves that go away are news to it.
    drop(children);
    show.end(&report, options.keep.as_deref());
    Ok(report)
}

fn play(
    options: &Options,
    show: &Show,
    children: &Children,
    home: &std::path::Path,
) -> Result<Report, DemoError> {
    let began = Instant::now();
    let mut party = Party::reserve(options, children, home)?;
    show.step(began, &format!("Alice reserved {} slots and handed out the invites", options.participants));
    let joining = Instant::now();
    party.join()?;
    show.step(joining, "everybody verified an enclave's attestation and sealed a key to it");
    let waiting = Instant::now();
    let key = party.verify_key()?;
    let keygen = began.elapsed();
    show.step(waiting, "everybody recomputed the roster and verified the certificates");
    show.fact("aggregate key", &key.output_key().to_string());
    show.fact("roster", &key.short_code());

    let mut entropy = os_entropy();
    let texts: Vec<String> =
        (1..=options.messages).map(|number| format!("KeyMeld demo, message {number}")).collect();
    let items = texts.iter().map(|text| Item::of(Origin::Text(text.clone()), &mut entropy));
    let items = items.collect::<Result<Vec<Item>, Code>>()?;
    let began = Instant::now();
    let outcomes = if options.require_approval {
        let signing_id = party.request(items)?;
        let approving = Instant::now();
        party.approve(signing_id)?;
        show.step(approving, "everybody else read the intent and approved it");
        party.await_signatures(signing_id)?
    } else {
        party.sign(items)?
    };
    let signing = began.elapsed();
    let mut signatures = Vec::with_capacity(outcomes.len());
    for (outcome, text) in outcomes.into_iter().zip(&texts) {
        let signed = outcome?;
        let expected = Origin::Text(text.clone()).message()?;
        let valid = signed.message == expected
            && round::verify(&key.output_key().0, &signed.message.0, &signed.signature.0);
        if !valid {
            return Err(DemoError::Unverified);
        }
        signatures.push(ReportedSignature {
            item_id: signed.item_id,
            message: signed.message,
            signature: signed.signature,
        });
    }
    if signatures.len() != options.messages {
        return Err(DemoError::Unverified);
    }
    show.step(began, &format!("{} signed and verified", messages(options.messages)));
    Ok(Report {
        keygen_id: party.keygen_id(),
        participants: options.participants,
        enclaves: options.enclaves,
        aggregate_public_key: key.output_key(),
        signatures,
        timings_ms: Timings { keygen: millis(keygen), signing: millis(signing) },
        verified: true,
    })
}

fn enclaves(count: usize) -> String {
    if count == 1 { "one enclave".into() } else { format!("{count} enclaves") }
}

fn messages(count: usize) -> String {
    if count == 1 { "one message".into() } else { format!("{count} messages") }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(JSON_INTEGER_MAX)
}

/// Until then a reservation would deal all slots to the enclaves that are ready already.
fn wait_until_ready(http: &Http, count: usize) -> Result<(), DemoError> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(READY_MS_MAX) {
        let outgoing = Outgoing {
            method: Method::Get,
            target: "/api/v1/health",
            proof: None,
            authorization: None,
            body: b"",
            timeout_ms: READY_MS_MAX,
        };
        let response = http.send(&outgoing)?;
        let health: HealthResponse =
            strict::from_json(&response.body, response.body.len()).map_err(|_| DemoError::NotReady)?;
        if health.enclaves_ready == count as u64 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(DemoError::NotReady)
}
