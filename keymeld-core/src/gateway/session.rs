//! A session in memory: what it is, what waits for it, and what one step of it wants.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::keygen::Keygen;
use super::memory::Weight;
use super::polls::Waiter;
use super::record;
use super::signing::Signing;
use super::timers::TimerKind;
use super::{Report, RequestId};
use crate::api::http::Response;
use crate::api::problem;
use crate::api::router::Call;
use crate::bytes::PublicKey;
use crate::id::{AttemptId, EnclaveId, KeygenId, SigningId};
use crate::link::message::{Reply, Request};
use crate::record::{Family, RecordKey, Token, Write};
use crate::refusal::{Code, Refusal};

/// A session of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SessionKey {
    Keygen(KeygenId),
    Signing(SigningId),
}

impl SessionKey {
    pub(super) fn record(self) -> RecordKey {
        match self {
            SessionKey::Keygen(id) => record::keygen_key(id),
            SessionKey::Signing(id) => record::signing_key(id),
        }
    }

    pub(super) fn of(record: RecordKey) -> Option<SessionKey> {
        match record.family {
            Family::Keygen => Some(SessionKey::Keygen(KeygenId(record.id))),
            Family::Signing => Some(SessionKey::Signing(SigningId(record.id))),
            Family::Enclave => None,
        }
    }
}

/// Something for one session to do.
#[derive(Debug)]
pub(super) enum Work {
    /// A request.
    Call(RequestId, Call),
    /// A request for a signature, with the keygen that it is for.
    Accept(RequestId, Call, Arc<Keygen>),
    /// A signing session wants this keygen.
    Supply(SigningId),
    /// An enclave answered, or will not.
    Answered(Purpose, Result<Reply, Code>),
    /// Go on after a start, or after a failure that may have passed.
    Resume,
    /// The session's time is over.
    Expire,
    /// Where nobody has registered, others need the place.
    GiveWay,
    /// Long polls have waited long enough.
    AnswerPolls,
}

impl Work {
    /// Whether it comes of a request, and so without end. Replies and timers are bounded by what the session
    /// itself began; to lose one would leave the session waiting.
    pub(super) fn is_asked_for(&self) -> bool {
        match self {
            Work::Call(..) | Work::Accept(..) | Work::Supply(_) => true,
            Work::Answered(..) | Work::Resume | Work::Expire | Work::GiveWay | Work::AnswerPolls => false,
        }
    }
}

/// What a call to an enclave is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    CheckRegistration { slot: usize, request: RequestId },
    OpenForKeygen { enclave_key: PublicKey },
    OpenForSigning { enclave_key: PublicKey, attempt: AttemptId },
    Nonces { enclave_key: PublicKey, attempt: AttemptId },
    Partials { enclave_key: PublicKey, attempt: AttemptId },
    Aggregate { attempt: AttemptId },
}

/// What a step does that shows its new state outside.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "short-lived and few")]
pub(super) enum Effect {
    Respond(RequestId, Response),
    Send(EnclaveId, Purpose, Request),
    Report(Report),
}

/// What a step wants.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) writes: Vec<Write>,
    pub(super) effects: Vec<Effect>,
    /// The state that status shows has changed.
    pub(super) changed: bool,
    /// Try again after a pause.
    pub(super) retry: bool,
    /// Try again at once.
    pub(super) again: bool,
}

impl Step {
    pub(super) fn respond(&mut self, request: RequestId, response: Response) {
        self.effects.push(Effect::Respond(request, response));
    }

    pub(super) fn refuse(&mut self, request: RequestId, refusal: impl Into<Refusal>) {
        self.respond(request, problem::refused(&refusal.into()));
    }

    pub(super) fn send(&mut self, enclave_id: EnclaveId, purpose: Purpose, request: Request) {
        self.effects.push(Effect::Send(enclave_id, purpose, request));
    }

    pub(super) fn report(&mut self, report: Report) {
        self.effects.push(Effect::Report(report));
    }
}

/// What a session is, once loaded.
#[derive(Debug)]
pub(super) enum Session {
    /// Its record is being read, or the keygen of a signing session is.
    Loading,
    /// There is no such record.
    Absent,
    Keygen(Arc<Keygen>),
    Signing(Box<Signing>),
}

impl Session {
    pub(super) fn deadline_unix_ms(&self) -> Option<u64> {
        match self {
            Session::Loading | Session::Absent => None,
            Session::Keygen(keygen) => Some(keygen.deadline_unix_ms()),
            Session::Signing(signing) => Some(signing.deadline_unix_ms()),
        }
    }
}

/// A session in memory and everything that waits for it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) session: Session,
    /// Known to have work to do: to be read again where it gets lost.
    pub(super) open: bool,
    /// When it was used last.
    pub(super) used: u64,
    pub(super) weight: Weight,
    /// Rows that were read and wait for their keygen.
    pub(super) rows: Option<record::SigningRows>,
    pub(super) token: Option<Token>,
    pub(super) held: Vec<Effect>,
    pub(super) held_change: bool,
    pub(super) queue: VecDeque<Work>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) revision: u64,
    pub(super) retries: u32,
    pub(super) timers: BTreeMap<TimerKind, u64>,
}

impl Entry {
    pub(super) fn loading(open: bool, revision: u64) -> Entry {
        Entry {
            session: Session::Loading,
            open,
            used: 0,
            weight: Weight::default(),
            rows: None,
            token: None,
            held: Vec::new(),
            held_change: false,
            queue: VecDeque::new(),
            waiters: Vec::new(),
            revision,
            retries: 0,
            timers: BTreeMap::new(),
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.token.is_some() || matches!(self.session, Session::Loading)
    }

    /// Whether a request may wait for its turn: its caller's key has to be one of the session's, where those are
    /// known. The proof itself is judged when its turn comes.
    pub(super) fn lets_wait(&self, work: &Work) -> bool {
        let (Work::Call(_, call) | Work::Accept(_, call, _)) = work else { return true };
        let Some(caller) = call.caller() else { return true };
        match &self.session {
            Session::Loading | Session::Absent => true,
            Session::Keygen(keygen) => keygen.may_read(&caller.key),
            Session::Signing(signing) => signing.may_read(&caller.key),
        }
    }

    /// Whether status shows an end: one that is durable.
    pub(super) fn is_ended(&self) -> bool {
        let ended = match &self.session {
            Session::Loading | Session::Absent => false,
            Session::Keygen(keygen) => keygen.is_ended(),
            Session::Signing(signing) => signing.is_ended(),
        };
        ended && self.token.is_none()
    }
}
