//! The commands of people who sign: one module for each group, and how all of them end.

pub mod enclaves;
pub mod keygen;
pub mod keys;
pub mod policy;
pub mod roster;
mod seat;
pub mod signing;
pub mod status;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use keymeld_core::attestation::AttestationError;
use keymeld_core::client::Fault;
use keymeld_core::id::{EnclaveId, KeygenId, SigningId, UserId};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_transport::http::client::{BaseUrlError, ClientError, RootsError};
use serde::Serialize;

use crate::given::GivenError;
use crate::home::HomeError;
use crate::shown;

pub use seat::{Member, Timeout, Vouchers};

/// What the exit codes mean, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed
  2  the command line, a file or a directory is not usable
  3  not yet: out of time, or another command works in the directory
  4  something does not verify: an attestation, a key, a signature

With --json a failure is one object too: {\"error\":{\"code\":...,\"message\":...,\"exit_code\":...}}.";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A key, token or policy.
    #[error(transparent)]
    Given(#[from] GivenError),
    /// The state directory.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The gateway's address.
    #[error("the gateway's URL: {0}")]
    Url(#[from] BaseUrlError),
    /// The file of those who vouch for the gateway.
    #[error("{0}: {1}")]
    Roots(PathBuf, #[source] RootsError),
    /// The gateway cannot be asked.
    #[error(transparent)]
    Http(#[from] ClientError),
    /// A job failed.
    #[error("{0}")]
    Job(#[from] Fault),
    /// Nobody waits for what is not there yet.
    #[error("the keygen is not completed yet: see `keymeld status`, or wait with --wait")]
    NotCompleted,
    /// It happened in this signing session.
    #[error("signing {0}: {1}")]
    Signing(SigningId, #[source] Box<Failure>),
    /// This side refuses already.
    #[error("refused: {code}: {advice}", code = .0, advice = .0.advice())]
    Refused(#[from] Code),
    /// The command line contradicts itself, the keygen or the state directory.
    #[error("{0}")]
    Contradiction(Contradiction),
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
    /// The operating system refuses something.
    #[error("the operating system refuses: {0}")]
    System(#[source] io::Error),
    /// The gateway's answer is none.
    #[error("the gateway's answer is none of its API")]
    BadAnswer,
    /// The settings of an enclave.
    #[cfg(feature = "dev")]
    #[error(transparent)]
    Enclave(#[from] keymeld_enclave::Error),
    /// The root of development enclaves.
    #[cfg(feature = "dev")]
    #[error(transparent)]
    Platform(#[from] keymeld_enclave::PlatformError),
}

/// What does not fit together.
#[derive(Debug, thiserror::Error)]
pub enum Contradiction {
    /// A name that nobody has.
    #[error("no participant is called {}", shown::text(.0))]
    UnknownName(String),
    /// A name that several have.
    #[error("several participants are called {}", shown::text(.0))]
    AmbiguousName(String),
    /// A subset that the manifest does not have.
    #[error("the keygen has no subset of exactly these participants")]
    UnknownSubset,
    /// A new keygen was begun in this directory with other words.
    #[error("this keygen was joined under other rules, which cannot be changed; leave the options out")]
    OtherRules,
    /// An invite to another keygen.
    #[error("the invite is for keygen {0}")]
    OtherKeygen(KeygenId),
    /// Somebody else's invite.
    #[error("this directory holds another participant's place in the same keygen")]
    OtherInvite,
    /// A participant who is no coordinator.
    #[error("only the coordinator's directory can do this")]
    NotCoordinator,
    /// Invites before the manifest is published.
    #[error("there are no invites before `keymeld init` has succeeded")]
    NotInitialised,
    /// Nobody was told what to join.
    #[error("--invite FILE is needed: this directory holds no keygen to join")]
    NoInvite,
    /// A file that is there already.
    #[error("{0}: there is another file with this name; it is left as it is")]
    FileExists(PathBuf),
    /// Not an invite.
    #[error("{0}: not an invite: {1}")]
    BadInvite(PathBuf, Code),
    /// Nothing to sign.
    #[error("nothing to sign: give --text, --file or --blind")]
    NoItems,
    /// A request that may have been carried out.
    #[error(
        "signing {0} asks for the same and was never seen accepted; it has expired but may have been signed: see \
         `keymeld status {0}`; `--new` asks once more"
    )]
    Uncertain(SigningId),
    /// The intent is not the one that was reviewed.
    #[error("the digest is not this intent's, which is {0}: read it with `keymeld intent` first")]
    OtherDigest(keymeld_core::bytes::Hash),
    /// Nobody can be asked.
    #[error("nobody can be asked here: read `keymeld intent` and name its digest with --digest")]
    NobodyToAsk,
    /// The person said no.
    #[error("not approved: nothing was sent")]
    NotConfirmed,
    /// A decline by the requester.
    #[error("this is your own request: use `keymeld cancel`")]
    OwnRequest,
    /// A cancellation by somebody else.
    #[error("this is not your request: use `keymeld decline`")]
    NotOwnRequest,
    /// Nothing to verify with.
    #[error("exactly one of --message, --text and --file is needed")]
    OneMessage,
}

impl From<Contradiction> for Failure {
    fn from(contradiction: Contradiction) -> Failure {
        Failure::Contradiction(contradiction)
    }
}

impl From<crate::kept::KeptError> for Failure {
    fn from(error: crate::kept::KeptError) -> Failure {
        Failure::Home(error.into())
    }
}

/// How a command ends: see [`EXIT_CODES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Done.
    Done = 0,
    /// Refused or failed.
    Failed = 1,
    /// Not usable.
    Usage = 2,
    /// Not yet.
    NotYet = 3,
    /// Something does not verify.
    Unverified = 4,
}

impl Failure {
    /// Its exit code.
    pub fn end(&self) -> End {
        match self {
            Failure::Home(HomeError::Busy(_)) | Failure::NotCompleted => End::NotYet,
            Failure::Given(_) | Failure::Home(_) | Failure::Url(_) | Failure::Roots(..) => End::Usage,
            Failure::Contradiction(
                Contradiction::Uncertain(_)
                | Contradiction::OtherDigest(_)
                | Contradiction::NotConfirmed
                | Contradiction::NotInitialised,
            ) => End::Failed,
            Failure::Contradiction(_) => End::Usage,
            Failure::Http(ClientError::Unreachable | ClientError::TimedOut) => End::NotYet,
            Failure::Http(ClientError::Untrusted) => End::Unverified,
            Failure::Signing(_, failure) => failure.end(),
            Failure::Job(fault) => match fault {
                Fault::TimedOut => End::NotYet,
                Fault::Unverified(_) | Fault::Unattested(..) => End::Unverified,
                Fault::Refused(_) | Fault::Ended(..) | Fault::NotStored => End::Failed,
            },
            Failure::Refused(_)
            | Failure::File(..)
            | Failure::System(_)
            | Failure::BadAnswer
            | Failure::Http(ClientError::TooLarge | ClientError::Malformed) => End::Failed,
            #[cfg(feature = "dev")]
            Failure::Enclave(_) | Failure::Platform(_) => End::Usage,
        }
    }

    /// What became of a job, in a signing session or out of one.
    fn fault(&self) -> Option<&Fault> {
        match self {
            Failure::Job(fault) => Some(fault),
            Failure::Signing(_, failure) => failure.fault(),
            _ => None,
        }
    }

    /// A stable word for programs: the refusal's code where there is one.
    fn word(&self) -> &'static str {
        match self {
            Failure::Given(_) => "bad-input",
            Failure::Home(HomeError::Busy(_)) => "busy",
            Failure::NotCompleted => "not-completed",
            Failure::Home(_) => "bad-state-directory",
            Failure::Url(_) => "bad-url",
            Failure::Roots(..) => "bad-ca",
            Failure::Http(ClientError::Untrusted) => "untrusted-gateway",
            Failure::Http(_) => "gateway-away",
            Failure::Signing(_, failure) => failure.word(),
            Failure::Job(fault) => match fault {
                Fault::Refused(refusal) | Fault::Ended(refusal, _) | Fault::Unverified(refusal) => {
                    refusal.code.name()
                }
                Fault::Unattested(..) => "unattested",
                Fault::NotStored => "not-stored",
                Fault::TimedOut => "timed-out",
            },
            Failure::Refused(code) => code.name(),
            Failure::Contradiction(Contradiction::Uncertain(_)) => "uncertain",
            Failure::Contradiction(Contradiction::OtherDigest(_)) => "other-digest",
            Failure::Contradiction(Contradiction::NotConfirmed) => "not-confirmed",
            Failure::Contradiction(Contradiction::NotInitialised) => "not-initialised",
            Failure::Contradiction(_) => "usage",
            Failure::File(..) | Failure::System(_) => "system",
            Failure::BadAnswer => "bad-answer",
            #[cfg(feature = "dev")]
            Failure::Enclave(_) | Failure::Platform(_) => "bad-enclave-settings",
        }
    }
}

/// What `--json` prints of a failure.
#[derive(Serialize)]
struct FailureReport<'a> {
    error: ErrorReport<'a>,
}

#[derive(Serialize)]
struct ErrorReport<'a> {
    code: &'static str,
    message: String,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_id: Option<SigningId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enclave_id: Option<EnclaveId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    culprits: Vec<UserId>,
    /// The words of whoever declined or cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

fn failure_report(failure: &Failure) -> FailureReport<'_> {
    let signing_id = match failure {
        Failure::Signing(id, _) | Failure::Contradiction(Contradiction::Uncertain(id)) => Some(*id),
        _ => None,
    };
    let mut report = ErrorReport {
        code: failure.word(),
        message: message(failure),
        exit_code: failure.end() as u8,
        signing_id,
        enclave_id: None,
        culprits: Vec::new(),
        reason: None,
    };
    match failure.fault() {
        Some(Fault::Ended(refusal, reason)) => {
            report.culprits.clone_from(&refusal.culprits);
            report.reason = reason.as_deref();
        }
        Some(Fault::Refused(refusal) | Fault::Unverified(refusal)) => {
            report.culprits.clone_from(&refusal.culprits);
        }
        Some(Fault::Unattested(enclave_id, _)) => report.enclave_id = Some(*enclave_id),
        Some(Fault::NotStored | Fault::TimedOut) | None => {}
    }
    FailureReport { error: report }
}

/// On one line; what others wrote is escaped.
fn message(failure: &Failure) -> String {
    let mut message = failure.to_string();
    let Some(fault) = failure.fault() else { return message };
    match fault {
        Fault::Refused(refusal) => message += &format!(": {}", refusal.code.advice()),
        Fault::Ended(_, Some(reason)) => message += &format!(": {}", shown::text(reason)),
        Fault::Unattested(_, AttestationError::BornBeforeNewest) => {
            message += ": the gateway offers an older epoch than you have seen";
        }
        Fault::Ended(_, None)
        | Fault::Unverified(_)
        | Fault::Unattested(..)
        | Fault::NotStored
        | Fault::TimedOut => {}
    }
    message
}

/// What a command has to show, and what is left to do once it was shown.
pub struct Report {
    json: String,
    text: String,
    end: End,
    then: Option<Then>,
}

type Then = Box<dyn FnOnce() -> io::Result<()>>;

impl Report {
    /// A report for programs, and the same for people.
    pub fn new(json: &impl Serialize, text: String) -> Report {
        Report { json: shown::json(json), text, end: End::Done, then: None }
    }

    fn ending(self, end: End) -> Report {
        Report { end, ..self }
    }

    fn then(self, then: impl FnOnce() -> io::Result<()> + 'static) -> Report {
        Report { then: Some(Box::new(then)), ..self }
    }
}

/// Shows what a command did; the whole of its end.
pub fn finish(name: &str, json: bool, outcome: Result<Report, Failure>) -> ExitCode {
    let (shown, end, then) = match outcome {
        Ok(Report { json: report, text, end, then }) => (if json { report } else { text }, end, then),
        Err(failure) => {
            eprintln!("keymeld {name}: {}", message(&failure));
            let report = if json { shown::json(&failure_report(&failure)) } else { String::new() };
            (report, failure.end(), None)
        }
    };
    match print(&shown).and_then(|()| then.map_or(Ok(()), |then| then())) {
        Ok(()) => ExitCode::from(end as u8),
        Err(error) => {
            eprintln!("keymeld {name}: {error}");
            ExitCode::from(End::Failed as u8)
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !text.is_empty() {
        out.write_all(text.trim_end_matches('\n').as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Who can be blamed in a refusal, for people.
fn refusal_text(refusal: &Refusal) -> String {
    format!("{}: {}", refusal.code, refusal.code.advice())
}
