//! The gateway machine: slots, sessions, enclaves, and who may ask for what. It sees only ciphertext.
//!
//! Sessions live in memory while they have work to do. A session is loaded from its record by the first
//! event for it; events that come while it is being loaded, or while it waits for its writes to become
//! durable, stand in its queue. Whatever a step does that shows its new state outside (a response, a request
//! to an enclave) is held back until those writes are durable.
//!
//! ```
//! use keymeld_core::api::http::{Method, Request};
//! use keymeld_core::api::{rest::HealthResponse, router};
//! use keymeld_core::gateway::{Command, Config, Event, Gateway, RequestId};
//! use keymeld_core::id::EnclaveId;
//! use keymeld_core::strict;
//! use keymeld_core::time::Time;
//!
//! # let mut entropy = keymeld_core::entropy::test_entropy(1); // in earnest the operating system's
//! let now = Time { unix_ms: 1_800_000_000_000, mono_ms: 0 };
//! let mut gateway = Gateway::new(Config::new(vec![EnclaveId([1; 16])]));
//! gateway.handle(now, Event::Started, &mut entropy);
//! // It wants to read what it knows of its enclaves; the answer would go back as `Event::Loaded`.
//! while let Some(command) = gateway.poll_command() {
//!     assert!(matches!(command, Command::Load(_)));
//! }
//! let request = Request {
//!     method: Method::Get,
//!     authority: "gateway.example".into(),
//!     target: "/api/v1/health".into(),
//!     proof: None,
//!     authorization: None,
//!     body: Vec::new(),
//! };
//! let call = router::route(&request).expect("well-formed");
//! gateway.handle(now, Event::Requested { request: RequestId(7), call }, &mut entropy);
//! let Some(Command::Respond { request, response }) = gateway.poll_command() else { panic!("no answer") };
//! assert_eq!((request, response.status), (RequestId(7), 200));
//! let health: HealthResponse = strict::from_json(&response.body, 1_000).expect("the API's");
//! assert_eq!((health.enclaves_ready, health.enclaves), (0, 1));
//! ```

mod admission;
mod dormant;
mod enclaves;
mod keygen;
mod loading;
mod memory;
mod polls;
mod proofs;
mod queue;
mod record;
mod registration;
mod rounds;
mod session;
mod signing;
mod timers;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::api::http::Response;
use crate::api::problem;
use crate::api::router::Call;
use crate::bounded::BoundedMap;
use crate::entropy::Entropy;
use crate::id::{EnclaveId, KeygenId, SigningId};
use crate::link::message::{Reply, Request};
use crate::record::{LoadError, Persist, PersistError, Query, RecordKey, Row, Token};
use crate::refusal::Code;
use crate::secret::ApiToken;
use crate::time::{Deadline, DeadlineReason, Time};
use enclaves::Member;
use keygen::Keygen;
use memory::{Memory, OpenSignings, Unregistered};
use proofs::ProofCache;
use session::{Entry, Purpose, SessionKey, Work};
use timers::{Timer, TimerKind};

pub use enclaves::{GREET_AGAIN_MS, GREET_AGAIN_MS_MAX};
pub use proofs::{PROOFS_MAX, PROOFS_PER_KEY_MAX};

/// Sessions in memory at a time; further ones take the place of those that wait for nothing but requests.
pub const SESSIONS_MAX: usize = 100_000;
/// Bytes that sessions in memory weigh together; more make others sleep, or wait to be let in.
pub const SESSIONS_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Keygens in which nobody has registered: anybody may have reserved them. The oldest gives way to one more.
pub const UNREGISTERED_MAX: usize = 10_000;
/// Signing sessions that one requester may have open at a time, so that one participant cannot take up all places.
pub const OPEN_PER_REQUESTER_MAX: usize = 1_000;
/// Corrupt records that are remembered, so that each is reported once.
pub const CORRUPT_NOTED_MAX: usize = 1_024;
/// Open sessions that sleep outside memory, by default. Each costs a timer, and a signing its place among its
/// requester's.
pub const ASLEEP_MAX: usize = 1_000_000;
/// Sessions that are looked at for one that can make room.
pub const EVICTION_TRIES_MAX: usize = 64;
/// Requests that wait for one session.
pub const QUEUE_MAX: usize = 256;
/// Challenges of clients that one enclave may have to answer at a time: anybody can send them, and each costs the
/// enclave's security module a signature.
pub const ATTESTATIONS_IN_FLIGHT_MAX: usize = 32;
/// Long polls that wait for one session.
pub const WAITERS_PER_SESSION_MAX: usize = 256;
/// Bytes of completed keygens that are kept at hand for signing.
pub const KEYGENS_CACHED_BYTES_MAX: usize = 256 * 1024 * 1024;
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
    pub api_token: Option<ApiToken>,
    /// How long a keygen may take where the coordinator does not say.
    pub keygen_timeout_default_ms: u64,
    /// How long a keygen may take at most.
    pub keygen_timeout_max_ms: u64,
    /// Sessions in memory at a time.
    pub sessions_max: usize,
    /// Bytes that they weigh together.
    pub sessions_bytes_max: usize,
    /// Open sessions that sleep outside memory.
    pub asleep_max: usize,
    /// Keygens in which nobody has registered.
    pub unregistered_max: usize,
    /// Signing sessions that one requester may have open at a time; their requests weigh together at most a sixteenth
    /// of `sessions_bytes_max`. After a start they count as they are read.
    pub open_per_requester_max: usize,
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
            sessions_max: SESSIONS_MAX,
            sessions_bytes_max: SESSIONS_BYTES_MAX,
            asleep_max: ASLEEP_MAX,
            unregistered_max: UNREGISTERED_MAX,
            open_per_requester_max: OPEN_PER_REQUESTER_MAX,
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

/// Who waits for a call.
#[derive(Debug)]
enum CallOwner {
    Session(SessionKey, Purpose),
    Fleet,
    Attestation(RequestId, u32),
}

/// Who waits for a write.
#[derive(Debug)]
enum TokenOwner {
    Session(SessionKey),
    Identity(EnclaveId),
}

/// The gateway machine.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    proofs: ProofCache,
    members: BTreeMap<EnclaveId, Member>,
    next_member: usize,
    entries: BTreeMap<SessionKey, Entry>,
    memory: Memory,
    unregistered: Unregistered,
    open_signings: OpenSignings,
    /// Records that were reported as corrupt.
    corrupt: BTreeSet<RecordKey>,
    /// Sessions in memory by when they were used last.
    by_use: BTreeSet<(u64, SessionKey)>,
    uses: u64,
    /// Of all sessions, so that none comes back with a revision that it had before.
    last_revision: u64,
    /// Open sessions that are not in memory, and when they are read again.
    dormant: BTreeMap<SessionKey, u64>,
    completed: BoundedMap<KeygenId, Arc<Keygen>>,
    tokens: BTreeMap<Token, TokenOwner>,
    /// Calls under way, at which enclave and for whom.
    calls: BTreeMap<CallId, (EnclaveId, CallOwner)>,
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
            memory: Memory::default(),
            unregistered: Unregistered::default(),
            open_signings: OpenSignings::default(),
            corrupt: BTreeSet::new(),
            by_use: BTreeSet::new(),
            uses: 0,
            last_revision: 0,
            dormant: BTreeMap::new(),
            completed: BoundedMap::new(KEYGENS_CACHED_BYTES_MAX),
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
            Event::EnclaveFound { enclave_id } => self.enclave_found(now, enclave_id),
            Event::EnclaveLost { enclave_id } => self.enclave_lost(enclave_id),
            Event::RotationAsked { enclave_id } => self.rotation_asked(now, enclave_id),
            Event::Replied { call, body } => {
                // Whoever asked did nothing wrong where an enclave answers what is no answer.
                self.replied(now, call, Reply::decode(&body).map_err(|_| Code::EnclaveAway));
            }
            Event::CallFailed { call } => self.replied(now, call, Err(Code::EnclaveAway)),
            Event::Loaded { query, rows } => self.loaded(now, query, rows),
            Event::Persisted { token } => self.persisted(now, token),
            Event::PersistFailed { token, error } => self.persist_failed(now, token, error),
            Event::Ticked => self.ticked(now),
        }
        while let Some((key, work)) = self.todo.pop_front() {
            self.submit(now, key, work, entropy);
        }
        self.shed();
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

    /// Reports a record that cannot be read, once: who asks for it again changes nothing about it.
    fn report_corrupt(&mut self, record: RecordKey) {
        if self.corrupt.len() < CORRUPT_NOTED_MAX && self.corrupt.insert(record) {
            self.commands.push_back(Command::Report(Report::RecordCorrupt(record)));
        }
    }

    fn respond(&mut self, request: RequestId, response: Response) {
        self.commands.push_back(Command::Respond { request, response });
    }

    fn refuse(&mut self, request: RequestId, code: Code) {
        self.respond(request, problem::refused(&code.into()));
    }

    fn call(&mut self, enclave_id: EnclaveId, owner: CallOwner, request: Request) {
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.calls.insert(call, (enclave_id, owner));
        let routing_id = request.routing_id();
        self.commands.push_back(Command::Send { enclave_id, call, routing_id, body: request.encode() });
    }

    fn replied(&mut self, now: Time, call: CallId, reply: Result<Reply, Code>) {
        let Some((enclave_id, owner)) = self.calls.remove(&call) else { return };
        match owner {
            CallOwner::Fleet => self.member_replied(now, enclave_id, reply),
            CallOwner::Session(key, purpose) => {
                self.doubt(now, enclave_id, &reply);
                self.todo.push_back((key, Work::Answered(purpose, reply)));
            }
            CallOwner::Attestation(request, epoch) => {
                self.doubt(now, enclave_id, &reply);
                self.attested(request, enclave_id, epoch, reply);
            }
        }
    }
}
