//! The gateway machine: slots, sessions, enclaves, and who may ask for what. It sees only ciphertext.
//!
//! Sessions live in memory while they have work to do. A session is loaded from its record by the first
//! event for it; events that come while it is being loaded, or while it waits for its writes to become
//! durable, stand in its queue. Whatever a step does that shows its new state outside (a response, a request
//! to an enclave) is held back until those writes are durable.

mod enclaves;
mod keygen;
mod proofs;
mod record;
mod signing;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use subtle::ConstantTimeEq;

use crate::api::http::Response;
use crate::api::problem;
use crate::api::proof::Caller;
use crate::api::rest::{HealthResponse, VersionResponse};
use crate::api::router::{Call, Wait};
use crate::bounded::BoundedMap;
use crate::bytes::PublicKey;
use crate::entropy::Entropy;
use crate::id::{EnclaveId, KeygenId, SigningId};
use crate::link::message::{Reply, Request};
use crate::record::{Family, LoadError, Persist, PersistError, Query, RecordKey, Row, Token, Write};
use crate::refusal::{Code, Refusal};
use crate::time::{Deadline, DeadlineReason, Time};
use enclaves::Member;
use keygen::Keygen;
use proofs::ProofCache;
use signing::Signing;

pub use proofs::{PROOFS_MAX, PROOFS_PER_KEY_MAX};

/// Sessions in memory at a time.
pub const SESSIONS_MAX: usize = 100_000;
/// Events that wait for one session.
pub const QUEUE_MAX: usize = 256;
/// Long polls that wait for one session.
pub const WAITERS_PER_SESSION_MAX: usize = 256;
/// Completed keygens that are kept at hand for signing.
pub const KEYGENS_CACHED_MAX: usize = 4_096;
/// Timers that one tick serves; the rest follows at once in the next.
pub const EXPIRIES_MAX: usize = 64;
/// Open records that one page of the start-up brings.
pub const RESUME_PAGE: u32 = 128;
/// The most commands that one event yields.
pub const COMMANDS_MAX: usize = 262_144;
/// Attempts that may end in a refusal before a signing session fails.
pub const ATTEMPTS_REFUSED_MAX: u32 = 8;
/// The first pause before something that failed for a passing reason is tried again.
pub const RETRY_MS_MIN: u64 = 100;
/// The longest such pause.
pub const RETRY_MS_MAX: u64 = 5_000;

/// What an operator configures.
#[derive(Clone, Debug)]
pub struct Config {
    /// The enclaves, in the order that slots are dealt out.
    pub enclaves: Vec<EnclaveId>,
    /// What reserving needs, where set.
    pub api_token: Option<String>,
    /// How long a keygen may take where the coordinator does not say.
    pub keygen_timeout_default_ms: u64,
    /// How long a keygen may take at most.
    pub keygen_timeout_max_ms: u64,
}

impl Config {
    /// The defaults: a day for a keygen, at most a month, no token.
    pub fn new(enclaves: Vec<EnclaveId>) -> Config {
        const DAY_MS: u64 = 24 * 3_600_000;
        Config {
            enclaves,
            api_token: None,
            keygen_timeout_default_ms: DAY_MS,
            keygen_timeout_max_ms: 30 * DAY_MS,
        }
    }
}

/// Names an HTTP request until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names a call to an enclave until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The process is up and the store is open.
    Started,
    /// A well-formed request came.
    Requested {
        /// Names the response.
        request: RequestId,
        /// What is asked.
        call: Call,
    },
    /// Whoever made a request is gone.
    Abandoned {
        /// The request.
        request: RequestId,
    },
    /// A connection to an enclave is up.
    EnclaveFound {
        /// Which.
        enclave_id: EnclaveId,
    },
    /// The last connection to an enclave is gone.
    EnclaveLost {
        /// Which.
        enclave_id: EnclaveId,
    },
    /// An enclave answered.
    Replied {
        /// The call.
        call: CallId,
        /// The message.
        body: Vec<u8>,
    },
    /// A call will not be answered: connection lost, deadline passed, queue full.
    CallFailed {
        /// The call.
        call: CallId,
    },
    /// The store answered [`Command::Load`].
    Loaded {
        /// What was asked.
        query: Query,
        /// The rows.
        rows: Result<Vec<Row>, LoadError>,
    },
    /// Writes are durable.
    Persisted {
        /// Of the command.
        token: Token,
    },
    /// Writes did not take effect.
    PersistFailed {
        /// Of the command.
        token: Token,
        /// Why.
        error: PersistError,
    },
    /// The operator wants a new epoch of an enclave.
    RotationAsked {
        /// Which.
        enclave_id: EnclaveId,
    },
    /// A deadline passed, or not.
    Ticked,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read from the store.
    Load(Query),
    /// Write to the store.
    Persist(Persist),
    /// Answer a request.
    Respond {
        /// The request.
        request: RequestId,
        /// The answer.
        response: Response,
    },
    /// Ask an enclave.
    Send {
        /// Which.
        enclave_id: EnclaveId,
        /// Names the reply.
        call: CallId,
        /// For the frame's header.
        routing_id: [u8; 16],
        /// The message.
        body: Vec<u8>,
    },
    /// Something that an operator should know. Ids and codes only.
    Report(Report),
}

/// What an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// An enclave holds its identities and serves.
    EnclaveReady(EnclaveId),
    /// An enclave refused something of its identity or answered as another enclave.
    EnclaveRefused(EnclaveId, Code),
    /// A keygen ended.
    KeygenEnded(KeygenId, Option<Code>),
    /// A signing session ended.
    SigningEnded(SigningId, Option<Code>),
    /// A run of the signing rounds ended in a refusal.
    AttemptRefused(SigningId, Code),
    /// A record cannot be read.
    RecordCorrupt(RecordKey),
}

/// A session of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SessionKey {
    Keygen(KeygenId),
    Signing(SigningId),
}

impl SessionKey {
    fn record(self) -> RecordKey {
        match self {
            SessionKey::Keygen(id) => record::keygen_key(id),
            SessionKey::Signing(id) => record::signing_key(id),
        }
    }

    fn of(record: RecordKey) -> Option<SessionKey> {
        match record.family {
            Family::Keygen => Some(SessionKey::Keygen(KeygenId(record.id))),
            Family::Signing => Some(SessionKey::Signing(SigningId(record.id))),
            Family::Enclave => None,
        }
    }
}

/// Something for one session to do.
#[derive(Debug)]
enum Work {
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
    /// Long polls have waited long enough.
    AnswerPolls,
}

/// What a call to an enclave is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    CheckRegistration { slot: usize, request: RequestId },
    OpenForKeygen { enclave_key: PublicKey },
    OpenForSigning { enclave_key: PublicKey, attempt: crate::id::AttemptId },
    Nonces { enclave_key: PublicKey, attempt: crate::id::AttemptId },
    Partials { enclave_key: PublicKey, attempt: crate::id::AttemptId },
    Aggregate { attempt: crate::id::AttemptId },
}

/// Who waits for a call.
#[derive(Debug)]
enum CallOwner {
    Session(SessionKey, Purpose),
    Fleet(EnclaveId),
    Attestation(RequestId, EnclaveId, u32),
}

/// Who waits for a write.
#[derive(Debug)]
enum TokenOwner {
    Session(SessionKey),
    Identity(EnclaveId),
}

/// What a step does that shows its new state outside.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "short-lived and few")]
enum Effect {
    Respond(RequestId, Response),
    Send(EnclaveId, Purpose, Request),
    Report(Report),
}

/// What a step wants.
#[derive(Debug, Default)]
struct Step {
    writes: Vec<Write>,
    effects: Vec<Effect>,
    /// The state that status shows has changed.
    changed: bool,
    /// Try again after a pause.
    retry: bool,
    /// Try again at once.
    again: bool,
}

impl Step {
    fn respond(&mut self, request: RequestId, response: Response) {
        self.effects.push(Effect::Respond(request, response));
    }

    fn refuse(&mut self, request: RequestId, refusal: impl Into<Refusal>) {
        self.respond(request, problem::refused(&refusal.into()));
    }

    fn send(&mut self, enclave_id: EnclaveId, purpose: Purpose, request: Request) {
        self.effects.push(Effect::Send(enclave_id, purpose, request));
    }

    fn report(&mut self, report: Report) {
        self.effects.push(Effect::Report(report));
    }
}

/// What a session is, once loaded.
#[derive(Debug)]
enum Session {
    /// Its record is being read, or the keygen of a signing session is.
    Loading,
    /// There is no such record.
    Absent,
    Keygen(Arc<Keygen>),
    Signing(Box<Signing>),
}

#[derive(Debug)]
struct Waiter {
    request: RequestId,
    due_mono_ms: u64,
    until_ended: bool,
}

/// A session in memory and everything that waits for it.
#[derive(Debug)]
struct Entry {
    session: Session,
    /// Rows that were read and wait for their keygen.
    rows: Option<record::SigningRows>,
    token: Option<Token>,
    held: Vec<Effect>,
    held_change: bool,
    queue: VecDeque<Work>,
    waiters: Vec<Waiter>,
    revision: u64,
    retries: u32,
    timers: BTreeMap<TimerKind, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TimerKind {
    Expire,
    Retry,
    Poll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Session(TimerKind, SessionKey),
    Enclave(EnclaveId),
    ResumePage,
}

/// The gateway machine.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    proofs: ProofCache,
    members: BTreeMap<EnclaveId, Member>,
    next_member: usize,
    entries: BTreeMap<SessionKey, Entry>,
    completed: BoundedMap<KeygenId, Arc<Keygen>>,
    tokens: BTreeMap<Token, TokenOwner>,
    calls: BTreeMap<CallId, CallOwner>,
    timers: BTreeSet<(u64, Timer)>,
    /// Sessions that wait for an enclave to come back.
    waiting: BTreeSet<SessionKey>,
    /// Requests that wait for a change, and of which session.
    polls: BTreeMap<RequestId, SessionKey>,
    /// Where the page of open records begins that is being resumed.
    resume_after: Option<RecordKey>,
    todo: VecDeque<(SessionKey, Work)>,
    last_token: u64,
    last_call: u64,
    commands: VecDeque<Command>,
}

impl Gateway {
    /// A gateway that knows its configuration and nothing else yet.
    pub fn new(config: Config) -> Gateway {
        let members = config.enclaves.iter().map(|id| (*id, Member::new())).collect();
        Gateway {
            config,
            proofs: ProofCache::default(),
            members,
            next_member: 0,
            entries: BTreeMap::new(),
            completed: BoundedMap::new(KEYGENS_CACHED_MAX),
            tokens: BTreeMap::new(),
            calls: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiting: BTreeSet::new(),
            polls: BTreeMap::new(),
            resume_after: None,
            todo: VecDeque::new(),
            last_token: 0,
            last_call: 0,
            commands: VecDeque::new(),
        }
    }

    /// Takes an event in. To be called only when [`poll_command`](Self::poll_command) gives nothing.
    ///
    /// # Panics
    /// Where commands were left undone: that is a fault of the driver.
    pub fn handle(&mut self, now: Time, event: Event, entropy: &mut Entropy) {
        assert!(self.commands.is_empty(), "commands are drained before the next event");
        match event {
            Event::Started => self.started(),
            Event::Requested { request, call } => self.requested(now, request, call),
            Event::Abandoned { request } => self.abandoned(now, request),
            Event::EnclaveFound { enclave_id } => self.enclave_found(enclave_id),
            Event::EnclaveLost { enclave_id } => self.enclave_lost(enclave_id),
            Event::RotationAsked { enclave_id } => self.rotation_asked(now, enclave_id),
            Event::Replied { call, body } => self.replied(now, call, Reply::decode(&body)),
            Event::CallFailed { call } => self.replied(now, call, Err(Code::EnclaveAway)),
            Event::Loaded { query, rows } => self.loaded(now, query, rows),
            Event::Persisted { token } => self.persisted(now, token),
            Event::PersistFailed { token, error } => self.persist_failed(now, token, error),
            Event::Ticked => self.ticked(now),
        }
        while let Some((key, work)) = self.todo.pop_front() {
            self.submit(now, key, work, entropy);
        }
        assert!(self.commands.len() <= COMMANDS_MAX, "one event yields a bounded number of commands");
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When to tick.
    pub fn next_deadline(&self) -> Option<Deadline> {
        let (mono_ms, timer) = self.timers.first()?;
        let reason = match timer {
            Timer::Session(TimerKind::Expire, _) => DeadlineReason::SessionExpiry,
            Timer::Session(TimerKind::Poll, _) => DeadlineReason::LongPoll,
            Timer::Session(TimerKind::Retry, _) | Timer::Enclave(_) | Timer::ResumePage => {
                DeadlineReason::Retry
            }
        };
        Some(Deadline { mono_ms: *mono_ms, reason })
    }

    /// Sessions in memory, for tests and gauges.
    pub fn sessions(&self) -> usize {
        self.entries.len()
    }

    fn started(&mut self) {
        for enclave_id in self.config.enclaves.clone() {
            self.commands.push_back(Command::Load(Query::Record(record::enclave_key(enclave_id))));
        }
        self.load_page();
    }

    fn load_page(&mut self) {
        let query = Query::Open { after: self.resume_after, count_max: RESUME_PAGE };
        self.commands.push_back(Command::Load(query));
    }

    fn respond(&mut self, request: RequestId, response: Response) {
        self.commands.push_back(Command::Respond { request, response });
    }

    fn refuse(&mut self, request: RequestId, code: Code) {
        self.respond(request, problem::refused(&code.into()));
    }

    fn requested(&mut self, now: Time, request: RequestId, call: Call) {
        let key = match &call {
            Call::Enclaves => return self.respond_enclaves(request),
            Call::Attestation { enclave_id, nonce, epoch } => {
                return self.attest(request, *enclave_id, *nonce, *epoch);
            }
            Call::Version => {
                let version = VersionResponse { version: env!("CARGO_PKG_VERSION").into(), api: "1".into() };
                return self.respond(request, problem::ok(200, &version));
            }
            Call::Health => {
                let ready = self.members.values().filter(|member| member.is_ready()).count();
                let health =
                    HealthResponse { enclaves_ready: ready as u64, enclaves: self.members.len() as u64 };
                return self.respond(request, problem::ok(200, &health));
            }
            Call::Reserve { request: body, caller, token } => {
                if let Err(response) = self.admit_reservation(now, caller, body.session_key, token.as_deref())
                {
                    return self.respond(request, response);
                }
                SessionKey::Keygen(body.keygen_id)
            }
            Call::Init { keygen_id, .. }
            | Call::Slots { keygen_id, .. }
            | Call::Register { keygen_id, .. }
            | Call::KeygenStatus { keygen_id, .. } => SessionKey::Keygen(*keygen_id),
            Call::Sign { request: body, .. } => {
                if let Some(keygen) = self.completed.get_mut(&body.keygen_id) {
                    let keygen = Arc::clone(keygen);
                    let key = SessionKey::Signing(body.signing_id);
                    return self.todo.push_back((key, Work::Accept(request, call, keygen)));
                }
                SessionKey::Keygen(body.keygen_id)
            }
            Call::Intent { signing_id, .. }
            | Call::Approve { signing_id, .. }
            | Call::Withdraw { signing_id, .. }
            | Call::SigningStatus { signing_id, .. } => SessionKey::Signing(*signing_id),
        };
        self.todo.push_back((key, Work::Call(request, call)));
    }

    fn admit_reservation(
        &mut self,
        now: Time,
        caller: &Caller,
        session_key: crate::bytes::XOnlyKey,
        token: Option<&str>,
    ) -> Result<(), Response> {
        if let Some(expected) = &self.config.api_token {
            let given = token.unwrap_or_default();
            if !bool::from(given.as_bytes().ct_eq(expected.as_bytes())) {
                return Err(problem::refused(&Code::TokenRequired.into()));
            }
        }
        self.admit(now, caller, caller.key == session_key)
    }

    /// Whether a caller may go on: its proof is fresh, its key allowed, the proof unused.
    fn admit(&mut self, now: Time, caller: &Caller, allowed: bool) -> Result<(), Response> {
        if !ProofCache::is_fresh(now.unix_ms, caller) {
            return Err(problem::stale(now.unix_ms));
        }
        let spent = if allowed { self.proofs.spend(now.unix_ms, caller) } else { Err(Code::KeyNotAllowed) };
        spent.map_err(|code| problem::refused(&code.into()))
    }

    fn abandoned(&mut self, now: Time, request: RequestId) {
        let Some(key) = self.polls.remove(&request) else { return };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.waiters.retain(|waiter| waiter.request != request);
        }
        self.set_poll_timer(key);
        self.settle(now, key);
    }

    /// Gives work to a session, or to its queue.
    fn submit(&mut self, now: Time, key: SessionKey, work: Work, entropy: &mut Entropy) {
        let full = self.entries.len() >= SESSIONS_MAX;
        let entry = match self.entries.entry(key) {
            alloc::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            alloc::collections::btree_map::Entry::Vacant(vacant) => {
                if full {
                    return self.turn_away(now, key, work, Code::TooMany);
                }
                self.commands.push_back(Command::Load(Query::Record(key.record())));
                vacant.insert(Entry::loading())
            }
        };
        if entry.is_blocked() || !entry.queue.is_empty() {
            if entry.queue.len() >= QUEUE_MAX {
                return self.turn_away(now, key, work, Code::TooMany);
            }
            entry.queue.push_back(work);
        } else {
            self.run(now, key, work, entropy);
        }
    }

    /// Work that cannot be taken on: whoever waits for it is told.
    fn turn_away(&mut self, now: Time, key: SessionKey, work: Work, code: Code) {
        match work {
            Work::Call(request, _) | Work::Accept(request, _, _) => self.refuse(request, code),
            Work::Supply(signing_id) => self.supply(now, signing_id, None),
            // Calls and timers that get lost here are made up for by the retry timer.
            Work::Answered(Purpose::CheckRegistration { request, .. }, _) => self.refuse(request, code),
            Work::Answered(..) | Work::Resume | Work::Expire | Work::AnswerPolls => {
                if let Some(entry) = self.entries.get(&key) {
                    let retry = entry.timers.get(&TimerKind::Retry).copied();
                    self.set_timer(key, TimerKind::Retry, retry.or(Some(now.mono_ms + RETRY_MS_MIN)));
                }
            }
        }
    }

    /// Lets a session take one step and does what the step wants.
    fn run(&mut self, now: Time, key: SessionKey, work: Work, entropy: &mut Entropy) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let mut session = core::mem::replace(&mut entry.session, Session::Loading);
        let revision = entry.revision;
        let mut step = Step::default();
        let mut wait = None;
        let work = match work {
            Work::AnswerPolls => {
                self.put_back(key, session);
                return self.answer_polls(now, key, Some(now.mono_ms));
            }
            Work::Call(request, call) => match status_wait(&call) {
                Some((caller, asked)) => {
                    let allowed = session_allows_reading(&session, &caller.key);
                    if matches!(session, Session::Absent) {
                        self.put_back(key, session);
                        self.refuse(request, Code::UnknownId);
                        return self.settle(now, key);
                    }
                    match self.admit(now, &caller, allowed) {
                        Ok(()) => wait = Some((request, asked)),
                        Err(response) => self.respond(request, response),
                    }
                    None
                }
                None => Some(Work::Call(request, call)),
            },
            other => Some(other),
        };
        if let Some(work) = work {
            session = match key {
                SessionKey::Keygen(id) => self.step_keygen(now, id, session, work, &mut step),
                SessionKey::Signing(id) => self.step_signing(now, id, session, work, &mut step, entropy),
            };
        }
        self.put_back(key, session);
        self.take_step(now, key, step);
        if let Some((request, asked)) = wait {
            self.wait_for_change(now, key, request, asked, revision);
        }
        self.settle(now, key);
    }

    fn put_back(&mut self, key: SessionKey, session: Session) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.session = session;
        }
    }

    fn take_step(&mut self, now: Time, key: SessionKey, step: Step) {
        let Step { writes, effects, changed, retry, again } = step;
        if retry {
            self.retry_later(now, key);
        }
        if again {
            self.todo.push_back((key, Work::Resume));
        }
        if writes.is_empty() {
            for effect in effects {
                self.effect(key, effect);
            }
            if changed {
                self.show_change(now, key);
            }
            return;
        }
        self.last_token += 1;
        let token = Token(self.last_token);
        self.tokens.insert(token, TokenOwner::Session(key));
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.token = Some(token);
            entry.held = effects;
            entry.held_change = changed;
        }
        self.commands.push_back(Command::Persist(Persist { token, writes }));
    }

    fn effect(&mut self, key: SessionKey, effect: Effect) {
        match effect {
            Effect::Respond(request, response) => self.respond(request, response),
            Effect::Report(report) => self.commands.push_back(Command::Report(report)),
            Effect::Send(enclave_id, purpose, request) => {
                if self.members.get(&enclave_id).is_some_and(Member::is_ready) {
                    self.call(enclave_id, CallOwner::Session(key, purpose), request);
                } else {
                    self.todo.push_back((key, Work::Answered(purpose, Err(Code::EnclaveAway))));
                }
            }
        }
    }

    fn call(&mut self, enclave_id: EnclaveId, owner: CallOwner, request: Request) {
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.calls.insert(call, owner);
        let routing_id = request.routing_id();
        self.commands.push_back(Command::Send { enclave_id, call, routing_id, body: request.encode() });
    }

    fn replied(&mut self, now: Time, call: CallId, reply: Result<Reply, Code>) {
        match self.calls.remove(&call) {
            Some(CallOwner::Session(key, purpose)) => {
                self.todo.push_back((key, Work::Answered(purpose, reply)));
            }
            Some(CallOwner::Fleet(enclave_id)) => self.member_replied(now, enclave_id, reply),
            Some(CallOwner::Attestation(request, enclave_id, epoch)) => {
                self.attested(request, enclave_id, epoch, reply);
            }
            None => {}
        }
    }

    fn persisted(&mut self, now: Time, token: Token) {
        match self.tokens.remove(&token) {
            Some(TokenOwner::Identity(enclave_id)) => self.identity_stored(now, enclave_id, true),
            Some(TokenOwner::Session(key)) => {
                let Some(entry) = self.entries.get_mut(&key) else { return };
                entry.token = None;
                let effects = core::mem::take(&mut entry.held);
                let changed = core::mem::take(&mut entry.held_change);
                for effect in effects {
                    self.effect(key, effect);
                }
                if changed {
                    self.show_change(now, key);
                }
                self.drain(key);
                self.settle(now, key);
            }
            None => {}
        }
    }

    /// What was not written did not happen: the session is forgotten and read again.
    fn persist_failed(&mut self, now: Time, token: Token, error: PersistError) {
        let code = match error {
            PersistError::DiskFull => Code::DiskFull,
            PersistError::ReadOnly | PersistError::Failed => Code::StorageFailed,
            // Another writer or a changed file: nothing that this process believes holds any more.
            PersistError::VersionMismatch => panic!("the database was changed by somebody else"),
        };
        match self.tokens.remove(&token) {
            Some(TokenOwner::Identity(enclave_id)) => self.identity_stored(now, enclave_id, false),
            Some(TokenOwner::Session(key)) => self.forget(now, key, code),
            None => {}
        }
    }

    fn forget(&mut self, now: Time, key: SessionKey, code: Code) {
        self.clear_timers(key);
        let Some(entry) = self.entries.remove(&key) else { return };
        self.waiting.remove(&key);
        for effect in entry.held {
            match effect {
                Effect::Respond(request, _) => self.refuse(request, code),
                Effect::Send(_, Purpose::CheckRegistration { request, .. }, _) => self.refuse(request, code),
                Effect::Send(..) | Effect::Report(_) => {}
            }
        }
        for waiter in entry.waiters {
            self.polls.remove(&waiter.request);
            self.refuse(waiter.request, code);
        }
        for work in entry.queue {
            self.turn_away(now, key, work, code);
        }
        // The record may be there and open: read it again after a pause, or it would wait for a visitor.
        let due = now.mono_ms + RETRY_MS_MAX;
        self.timers.insert((due, Timer::Session(TimerKind::Retry, key)));
    }

    fn loaded(&mut self, now: Time, query: Query, rows: Result<Vec<Row>, LoadError>) {
        match query {
            Query::Open { .. } => match rows {
                Ok(heads) => self.resume_page(&heads),
                Err(LoadError) => {
                    self.timers.insert((now.mono_ms + RETRY_MS_MAX, Timer::ResumePage));
                }
            },
            Query::Record(record) if record.family == Family::Enclave => {
                self.rows_loaded(now, EnclaveId(record.id), rows);
            }
            Query::Record(record) => {
                let Some(key) = SessionKey::of(record) else { return };
                match rows {
                    Ok(rows) => self.session_loaded(now, key, &rows),
                    Err(LoadError) => self.forget(now, key, Code::StorageFailed),
                }
            }
        }
    }

    fn resume_page(&mut self, heads: &[Row]) {
        for key in heads.iter().filter_map(|row| SessionKey::of(row.key.record)) {
            self.todo.push_back((key, Work::Resume));
        }
        if heads.len() == RESUME_PAGE as usize {
            self.resume_after = heads.last().map(|row| row.key.record);
            self.load_page();
        }
    }

    fn session_loaded(&mut self, now: Time, key: SessionKey, rows: &[Row]) {
        let session = match key {
            _ if rows.is_empty() => Ok(Session::Absent),
            SessionKey::Keygen(_) => Keygen::read(rows).map(|keygen| Session::Keygen(Arc::new(keygen))),
            SessionKey::Signing(signing_id) => match record::SigningRows::read(rows) {
                Ok(rows) => {
                    self.want_keygen(now, signing_id, rows);
                    return;
                }
                Err(error) => Err(error),
            },
        };
        match session {
            Ok(session) => self.install(now, key, session),
            Err(_) => {
                self.commands.push_back(Command::Report(Report::RecordCorrupt(key.record())));
                self.forget(now, key, Code::Internal);
            }
        }
    }

    /// A signing session is nothing without its keygen.
    fn want_keygen(&mut self, now: Time, signing_id: SigningId, rows: record::SigningRows) {
        let keygen_id = rows.head.keygen_id;
        if let Some(entry) = self.entries.get_mut(&SessionKey::Signing(signing_id)) {
            entry.rows = Some(rows);
        }
        match self.completed.get_mut(&keygen_id).cloned() {
            Some(keygen) => self.supply(now, signing_id, Some(keygen)),
            None => self.todo.push_back((SessionKey::Keygen(keygen_id), Work::Supply(signing_id))),
        }
    }

    fn supply(&mut self, now: Time, signing_id: SigningId, keygen: Option<Arc<Keygen>>) {
        let key = SessionKey::Signing(signing_id);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let Some(rows) = entry.rows.take() else { return };
        match keygen {
            Some(keygen) => {
                entry.session = Session::Signing(Box::new(Signing::read(rows, keygen)));
                entry.queue.push_front(Work::Resume);
                self.drain(key);
            }
            None => self.forget(now, key, Code::StorageFailed),
        }
    }

    fn install(&mut self, now: Time, key: SessionKey, session: Session) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.session = session;
        if let Session::Keygen(_) = entry.session {
            entry.queue.push_front(Work::Resume);
        }
        self.drain(key);
        self.settle(now, key);
    }

    /// Moves the next of a session's queue to the work that is done before this event ends.
    fn drain(&mut self, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        for work in core::mem::take(&mut entry.queue) {
            self.todo.push_back((key, work));
        }
    }

    /// Forgets a session that has nothing left to do.
    fn settle(&mut self, now: Time, key: SessionKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        let idle = entry.token.is_none() && entry.queue.is_empty() && entry.waiters.is_empty();
        let pending = self.todo.iter().any(|(other, _)| *other == key);
        let over = match &entry.session {
            Session::Loading => false,
            Session::Absent => true,
            Session::Keygen(keygen) => {
                if keygen.is_completed()
                    && let SessionKey::Keygen(id) = key
                {
                    self.completed.insert(id, 1, Arc::clone(keygen));
                }
                keygen.is_ended()
            }
            Session::Signing(signing) => signing.is_ended(),
        };
        if idle && over && !pending {
            self.clear_timers(key);
            self.waiting.remove(&key);
            self.entries.remove(&key);
        } else if !over {
            self.set_deadline(now, key);
        }
    }

    fn set_deadline(&mut self, now: Time, key: SessionKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        let deadline_unix_ms = match &entry.session {
            Session::Loading | Session::Absent => return,
            Session::Keygen(keygen) => keygen.deadline_unix_ms(),
            Session::Signing(signing) => signing.deadline_unix_ms(),
        };
        if !entry.timers.contains_key(&TimerKind::Expire) {
            let due = now.mono_ms.saturating_add(deadline_unix_ms.saturating_sub(now.unix_ms));
            self.set_timer(key, TimerKind::Expire, Some(due));
        }
    }

    fn set_timer(&mut self, key: SessionKey, kind: TimerKind, due: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let timer = Timer::Session(kind, key);
        let before = match due {
            Some(due) => entry.timers.insert(kind, due),
            None => entry.timers.remove(&kind),
        };
        if let Some(before) = before {
            self.timers.remove(&(before, timer));
        }
        if let Some(due) = due {
            self.timers.insert((due, timer));
        }
    }

    fn clear_timers(&mut self, key: SessionKey) {
        for kind in [TimerKind::Expire, TimerKind::Retry, TimerKind::Poll] {
            self.set_timer(key, kind, None);
        }
    }

    /// Tries again when an enclave comes back, or after a pause that grows.
    fn retry_later(&mut self, now: Time, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let pause = (RETRY_MS_MIN << entry.retries.min(6)).min(RETRY_MS_MAX);
        entry.retries += 1;
        self.waiting.insert(key);
        self.set_timer(key, TimerKind::Retry, Some(now.mono_ms + pause));
    }

    fn ticked(&mut self, now: Time) {
        for _ in 0..EXPIRIES_MAX {
            let Some((due, timer)) = self.timers.first().copied() else { return };
            if due > now.mono_ms {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Enclave(enclave_id) => self.greet(enclave_id),
                Timer::ResumePage => self.load_page(),
                Timer::Session(kind, key) => {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        entry.timers.remove(&kind);
                    }
                    let work = match kind {
                        TimerKind::Expire => Work::Expire,
                        TimerKind::Retry => Work::Resume,
                        TimerKind::Poll => Work::AnswerPolls,
                    };
                    self.todo.push_back((key, work));
                }
            }
        }
    }

    /// Long polls are answered, or set to wait.
    fn wait_for_change(&mut self, now: Time, key: SessionKey, request: RequestId, wait: Wait, revision: u64) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let changed = wait.since.is_some_and(|since| since != revision) && !wait.until_ended;
        if wait.wait_ms == 0 || changed || entry.is_ended() {
            let response = self.status(key);
            return self.respond(request, response);
        }
        if entry.waiters.len() >= WAITERS_PER_SESSION_MAX {
            return self.refuse(request, Code::TooMany);
        }
        let due_mono_ms = now.mono_ms + wait.wait_ms;
        entry.waiters.push(Waiter { request, due_mono_ms, until_ended: wait.until_ended });
        self.polls.insert(request, key);
        self.set_poll_timer(key);
    }

    fn set_poll_timer(&mut self, key: SessionKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        let due = entry.waiters.iter().map(|waiter| waiter.due_mono_ms).min();
        self.set_timer(key, TimerKind::Poll, due);
    }

    fn show_change(&mut self, now: Time, key: SessionKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.revision += 1;
        }
        self.answer_polls(now, key, None);
    }

    /// Answers waiters: those that are due, or, on a change, those that it matters to.
    fn answer_polls(&mut self, now: Time, key: SessionKey, due_by: Option<u64>) {
        let response = self.status(key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let ended = entry.is_ended();
        let answered = |waiter: &Waiter| match due_by {
            Some(mono_ms) => waiter.due_mono_ms <= mono_ms,
            None => ended || !waiter.until_ended,
        };
        let (now_answered, still_waiting) =
            core::mem::take(&mut entry.waiters).into_iter().partition(answered);
        entry.waiters = still_waiting;
        let now_answered: Vec<Waiter> = now_answered;
        for waiter in now_answered {
            self.polls.remove(&waiter.request);
            self.respond(waiter.request, response.clone());
        }
        self.set_poll_timer(key);
        if due_by.is_some() {
            self.settle(now, key);
        }
    }

    fn status(&self, key: SessionKey) -> Response {
        let Some(entry) = self.entries.get(&key) else {
            return problem::refused(&Code::UnknownId.into());
        };
        match (&entry.session, key) {
            (Session::Keygen(keygen), SessionKey::Keygen(id)) => {
                problem::ok(200, &keygen.status(id, entry.revision))
            }
            (Session::Signing(signing), SessionKey::Signing(id)) => {
                problem::ok(200, &signing.status(id, entry.revision))
            }
            (Session::Loading | Session::Absent | Session::Keygen(_) | Session::Signing(_), _) => {
                problem::refused(&Code::UnknownId.into())
            }
        }
    }
}

/// The caller and the wait of a status call.
fn status_wait(call: &Call) -> Option<(Caller, Wait)> {
    match call {
        Call::KeygenStatus { caller, wait, .. } | Call::SigningStatus { caller, wait, .. } => {
            Some((*caller, *wait))
        }
        Call::Reserve { .. }
        | Call::Init { .. }
        | Call::Slots { .. }
        | Call::Register { .. }
        | Call::Sign { .. }
        | Call::Intent { .. }
        | Call::Approve { .. }
        | Call::Withdraw { .. }
        | Call::Enclaves
        | Call::Attestation { .. }
        | Call::Version
        | Call::Health => None,
    }
}

fn session_allows_reading(session: &Session, key: &crate::bytes::XOnlyKey) -> bool {
    match session {
        Session::Loading | Session::Absent => false,
        Session::Keygen(keygen) => keygen.may_read(key),
        Session::Signing(signing) => signing.may_read(key),
    }
}

impl Entry {
    fn loading() -> Entry {
        Entry {
            session: Session::Loading,
            rows: None,
            token: None,
            held: Vec::new(),
            held_change: false,
            queue: VecDeque::new(),
            waiters: Vec::new(),
            revision: 0,
            retries: 0,
            timers: BTreeMap::new(),
        }
    }

    fn is_blocked(&self) -> bool {
        self.token.is_some() || matches!(self.session, Session::Loading)
    }

    /// Whether status shows an end: one that is durable.
    fn is_ended(&self) -> bool {
        let ended = match &self.session {
            Session::Loading | Session::Absent => false,
            Session::Keygen(keygen) => keygen.is_ended(),
            Session::Signing(signing) => signing.is_ended(),
        };
        ended && self.token.is_none()
    }
}
