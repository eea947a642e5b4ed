//! The client machine: one user in one keygen, as coordinator or as participant. It verifies before it trusts.
//!
//! A driver asks for jobs; each ends in exactly one [`Command::Finish`]. What has to outlast the process
//! leaves as [`Command::Store`] before anything that depends on it is sent. Requests are repeated while the
//! gateway is away, until the job's time is over; every one of them is idempotent.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use keymeld_core::artifact::registration::Rules;
//! use keymeld_core::attestation::{Root, policy::{ImagePcrs, Policy}};
//! use keymeld_core::client::{Client, Command, Config, Event, Invitee, Job, JobId, Plan};
//! use keymeld_core::secret::Secret;
//! use keymeld_core::time::Time;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut entropy = keymeld_core::entropy::test_entropy(1); // in earnest the operating system's
//! let image = ImagePcrs { pcr0: [1; 48], pcr1: [2; 48], pcr2: [3; 48], pcr8: None };
//! let policy = Policy {
//!     roots: vec![Root::aws_nitro_g1()],
//!     birth_pcr0: vec![image.pcr0],
//!     images: vec![image],
//!     config_hashes: vec![[4; 32]],
//!     freshness_ms: 300_000,
//! };
//! let authority = "gateway.example".to_owned();
//! let config = Config { authority, policy, api_token: None, newest_births: BTreeMap::new() };
//! let now = Time { unix_ms: 1_800_000_000_000, mono_ms: 0 };
//! let rules = Rules::careful(now.unix_ms + 86_400_000);
//! let bob = Invitee { name: Some("Bob".into()), signing_key: None };
//! let plan = Plan::new("https://gateway.example".into(), vec![bob], rules);
//! let key = Secret::random(&mut entropy)?;
//! let mut client = Client::coordinate(config, key, plan, now, &mut entropy)?;
//!
//! let event = Event::Asked { job_id: JobId(1), job: Job::Reserve, timeout_ms: 60_000 };
//! client.handle(now, event, &mut entropy);
//! // First what it would lose: make it durable, and say so.
//! let Some(Command::Store { token, .. }) = client.poll_command() else { panic!("nothing to keep") };
//! client.handle(now, Event::Stored { token }, &mut entropy);
//! // Then the request, signed; the answer goes back as `Event::Replied`.
//! let Some(Command::Send { request, .. }) = client.poll_command() else { panic!("nothing to send") };
//! assert_eq!(request.target, "/api/v1/keygen/reserve");
//! assert!(client.poll_command().is_none() && client.next_deadline().is_some());
//! # Ok(())
//! # }
//! ```

mod exchange;
mod job;
mod key;
mod keygen;
mod membership;
mod signing;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::api::http::{Request, Response};
use crate::api::rest::SignRequest;
use crate::artifact::intent::{Item, VerifiedIntent};
use crate::artifact::invite::Invite;
use crate::artifact::registration::{Rules, user_auth_key};
use crate::attestation::policy::Policy;
use crate::crypto::auth::AuthKey;
use crate::entropy::Entropy;
use crate::id::{EnclaveId, KeygenId, SigningId, UserId};
use crate::record::Token;
use crate::refusal::Code;
use crate::secret::{ApiToken, Secret};
use crate::time::{Deadline, DeadlineReason, Time};
use exchange::{Answer, Exchange, Question};
use keygen::Attested;
use membership::Membership;

pub use job::{Done, Fault, Job, Keep, KeygenProgress, Review, SigningProgress, SlotProgress};
pub use key::VerifiedKey;
pub use membership::{Invitee, MEMBERSHIP_BYTES_MAX, MembershipError, Plan, birth_in};

/// Jobs that one client does at a time.
pub const JOBS_MAX: usize = 256;
/// The first pause before a request is repeated.
pub const RETRY_MS_MIN: u64 = 100;
/// The longest such pause.
pub const RETRY_MS_MAX: u64 = 5_000;

/// What a client has to know beforehand.
#[derive(Clone)]
pub struct Config {
    /// Host and port of the gateway, as the Host header carries them.
    pub authority: String,
    /// Which enclaves are trusted.
    pub policy: Policy,
    /// What the operator demands of those who reserve.
    pub api_token: Option<ApiToken>,
    /// When the newest epoch was born that this user has ever seen of an enclave: see [`Client::birth`].
    pub newest_births: BTreeMap<EnclaveId, u64>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// Names a job until it is finished; the driver's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Names a request to the gateway until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A job is wanted.
    Asked {
        /// Names it.
        job_id: JobId,
        /// What.
        job: Job,
        /// How long it may take.
        timeout_ms: u64,
    },
    /// Whoever wanted a job is gone.
    Abandoned {
        /// The job.
        job_id: JobId,
    },
    /// The gateway answered.
    Replied {
        /// The request.
        call: CallId,
        /// The answer.
        response: Response,
    },
    /// There is no answer; the request may have been carried out.
    CallFailed {
        /// The request.
        call: CallId,
    },
    /// What was to be kept is durable.
    Stored {
        /// Of the command.
        token: Token,
    },
    /// What was to be kept is not.
    StoreFailed {
        /// Of the command.
        token: Token,
    },
    /// A deadline passed, or not.
    Ticked,
}

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Make it durable, then say so.
    Store {
        /// Names the answer.
        token: Token,
        /// What.
        keep: Keep,
    },
    /// Ask the gateway.
    Send {
        /// Names the answer.
        call: CallId,
        /// The request.
        request: Request,
        /// How long the answer may take, a long poll's wait included.
        timeout_ms: u64,
    },
    /// A job is finished.
    Finish {
        /// Which.
        job_id: JobId,
        /// What came of it.
        outcome: Result<Done, Fault>,
    },
}

/// A job under way, apart from the exchange that it is in.
#[derive(Debug)]
struct Task {
    job_id: JobId,
    goal: Goal,
    ends_mono_ms: u64,
}

/// A task that waits for something.
#[derive(Debug)]
struct Waiting {
    task: Task,
    stage: Stage,
}

/// What a task is after once the key is verified; [`Job`] less what is sent only once.
#[derive(Debug)]
enum Goal {
    Reserve,
    Init,
    Join,
    KeygenProgress,
    Key,
    Request { items: Vec<Item>, expires_at: Option<u64> },
    Sign { items: Vec<Item>, expires_at: Option<u64> },
    Resend(Box<SignRequest>),
    Resume(Box<SignRequest>),
    Review(SigningId),
    Approve(Box<Review>, bool),
    Withdraw(Box<Review>, Option<String>),
    SigningProgress(SigningId),
    Signatures(SigningId),
}

#[derive(Debug)]
enum Stage {
    /// Something has to be durable first: this revision of the membership, or a request.
    Storing { token: Token, revision: u64, then: Then },
    /// The exchange is under way.
    Asking(CallId, Box<Exchange>),
    /// The exchange is repeated then.
    Pausing { until_mono_ms: u64, exchange: Box<Exchange> },
}

/// What follows once something is durable.
#[derive(Debug)]
enum Then {
    Ask(Box<Exchange>),
    Finish(Box<Done>),
}

/// Where a task goes next.
#[derive(Debug)]
enum Turn {
    Ask(Box<Exchange>),
    /// Keep a request for signatures, then send it.
    Store(Box<SignRequest>, Box<Exchange>),
    /// A long poll showed no end yet.
    Again(Question),
    /// Keep the membership, which has changed, then finish.
    Keep(Done),
    Done(Done),
}

impl Turn {
    fn ask(exchange: Exchange) -> Turn {
        Turn::Ask(Box::new(exchange))
    }
}

/// The client machine.
#[derive(Debug)]
pub struct Client {
    config: Config,
    private_key: Secret<32>,
    user_auth: AuthKey,
    membership: Membership,
    /// Counts the states of the membership; the first is 1.
    revision: u64,
    /// The newest of them that is durable; 0 for none.
    durable_revision: u64,
    key: Option<Arc<VerifiedKey>>,
    /// The newest birth that was seen of each enclave, what the configuration says included.
    births: BTreeMap<EnclaveId, u64>,
    /// What to add to the own clock in proofs, so that the gateway's accepts them.
    proof_offset_ms: i64,
    waiting: BTreeMap<JobId, Waiting>,
    last_call: u64,
    last_token: u64,
    commands: VecDeque<Command>,
}

impl Client {
    /// A coordinator of a new keygen, with a fresh session secret and fresh ids. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Code`]: the plan contradicts itself or the limits, or no entropy.
    pub fn coordinate(
        config: Config,
        private_key: Secret<32>,
        plan: Plan,
        now: Time,
        entropy: &mut Entropy,
    ) -> Result<Client, Code> {
        let membership = Membership::coordinator(&private_key, plan, now.unix_ms, entropy)?;
        Client::new(config, private_key, membership, 0)
    }

    /// An invited participant.
    ///
    /// # Errors
    /// [`Code::InvalidPrivateKey`].
    pub fn join(
        config: Config,
        private_key: Secret<32>,
        invite: Invite,
        rules: Rules,
    ) -> Result<Client, Code> {
        let membership = Membership::invited(&private_key, invite, rules)?;
        Client::new(config, private_key, membership, 0)
    }

    /// Whoever stored this [`Keep::Membership`]. What was registered stays registered as it was.
    ///
    /// # Errors
    /// [`MembershipError`]: not a membership, altered, or of another key.
    pub fn resume(
        config: Config,
        private_key: Secret<32>,
        membership: &[u8],
    ) -> Result<Client, MembershipError> {
        let membership = Membership::decode(&private_key, membership)?;
        Ok(Client::new(config, private_key, membership, 1)?)
    }

    fn new(
        config: Config,
        private_key: Secret<32>,
        membership: Membership,
        durable_revision: u64,
    ) -> Result<Client, Code> {
        Ok(Client {
            user_auth: user_auth_key(&private_key, membership.keygen_id)?,
            births: config.newest_births.clone(),
            config,
            private_key,
            membership,
            revision: 1,
            durable_revision,
            key: None,
            proof_offset_ms: 0,
            waiting: BTreeMap::new(),
            last_call: 0,
            last_token: 0,
            commands: VecDeque::new(),
        })
    }

    /// The session.
    pub fn keygen_id(&self) -> KeygenId {
        self.membership.keygen_id
    }

    /// Who this is in it.
    pub fn user_id(&self) -> UserId {
        self.membership.user_id
    }

    /// What the coordinator hands out, one for each of the plan's invitees, in its order. Empty for others,
    /// and before the gateway has the manifest: see [`Job::Init`].
    pub fn invites(&self) -> &[Invite] {
        let published = self.membership.coordination.as_ref().filter(|coordination| coordination.published);
        published.map_or(&[], |coordination| &coordination.invites)
    }

    /// Whether this is the coordinator.
    pub fn is_coordinator(&self) -> bool {
        self.membership.coordination.is_some()
    }

    /// What the user's key may be used for.
    pub fn rules(&self) -> Rules {
        self.membership.rules
    }

    /// Whether there is a registration. It is kept, and may have been sent.
    pub fn is_registered(&self) -> bool {
        self.membership.registration.is_some()
    }

    /// The enclave that this user registered at, and when its keys were made: what [`Config::newest_births`]
    /// wants to hear in the user's next keygens.
    pub fn birth(&self) -> Option<(EnclaveId, u64)> {
        self.membership.birth()
    }

    /// The newest birth that was seen of each enclave, [`Config::newest_births`] included: what a user keeps
    /// for its next clients.
    pub fn births(&self) -> &BTreeMap<EnclaveId, u64> {
        &self.births
    }

    fn saw_birth(&mut self, enclave_id: EnclaveId, birth_time_ms: u64) {
        let newest = self.births.entry(enclave_id).or_default();
        *newest = birth_time_ms.max(*newest);
    }

    /// Reads a kept request back, once a job has verified the key.
    ///
    /// # Errors
    /// [`Code::WrongState`] before that; otherwise as [`VerifiedIntent::open`].
    pub fn read_request(&self, request: &SignRequest) -> Result<VerifiedIntent, Code> {
        let key = self.key.as_ref().ok_or(Code::WrongState)?;
        self.open_request(key, request)
    }

    /// The key, once a job has verified it.
    pub fn key(&self) -> Option<&Arc<VerifiedKey>> {
        self.key.as_ref()
    }

    /// Takes one event. To be called only when [`poll_command`](Self::poll_command) has nothing left.
    ///
    /// # Panics
    /// Where commands are left.
    pub fn handle(&mut self, now: Time, event: Event, entropy: &mut Entropy) {
        assert!(self.commands.is_empty(), "drain the commands before the next event");
        match event {
            Event::Asked { job_id, job, timeout_ms } => self.asked(now, job_id, job, timeout_ms, entropy),
            Event::Abandoned { job_id } => {
                self.waiting.remove(&job_id);
            }
            Event::Replied { call, response } => {
                if let Some((task, exchange)) = self.take_asking(call) {
                    self.replied(now, task, exchange, &response, entropy);
                }
            }
            Event::CallFailed { call } => {
                if let Some((task, exchange)) = self.take_asking(call) {
                    self.pause(now, task, exchange);
                }
            }
            Event::Stored { token } => {
                if let Some((task, revision, then)) = self.take_storing(token) {
                    self.durable_revision = self.durable_revision.max(revision);
                    match then {
                        Then::Ask(exchange) => self.send(now, task, exchange, entropy),
                        Then::Finish(done) => self.finish(task.job_id, Ok(*done)),
                    }
                }
            }
            Event::StoreFailed { token } => {
                if let Some((task, _, _)) = self.take_storing(token) {
                    self.finish(task.job_id, Err(Fault::NotStored));
                }
            }
            Event::Ticked => self.ticked(now, entropy),
        }
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When to tick.
    pub fn next_deadline(&self) -> Option<Deadline> {
        let of_waiting = |Waiting { task, stage }: &Waiting| match stage {
            Stage::Pausing { until_mono_ms, .. } if *until_mono_ms < task.ends_mono_ms => {
                Deadline { mono_ms: *until_mono_ms, reason: DeadlineReason::Retry }
            }
            Stage::Pausing { .. } | Stage::Storing { .. } | Stage::Asking(..) => {
                Deadline { mono_ms: task.ends_mono_ms, reason: DeadlineReason::JobExpiry }
            }
        };
        self.waiting.values().map(of_waiting).min_by_key(|deadline| deadline.mono_ms)
    }

    fn asked(&mut self, now: Time, job_id: JobId, job: Job, timeout_ms: u64, entropy: &mut Entropy) {
        if self.waiting.contains_key(&job_id) {
            return self.finish(job_id, Err(Code::IdConflict.into()));
        }
        if self.waiting.len() >= JOBS_MAX {
            return self.finish(job_id, Err(Code::TooMany.into()));
        }
        let goal = match job {
            Job::Reserve => Goal::Reserve,
            Job::Init => Goal::Init,
            Job::Join => Goal::Join,
            Job::LookAtKeygen => Goal::KeygenProgress,
            Job::AwaitKey => Goal::Key,
            Job::Request { items, expires_at } => Goal::Request { items, expires_at },
            Job::Sign { items, expires_at } => Goal::Sign { items, expires_at },
            Job::Resend(request) => Goal::Resend(Box::new(request)),
            Job::Resume(request) => Goal::Resume(Box::new(request)),
            Job::Review(signing_id) => Goal::Review(signing_id),
            Job::Approve { review, blind } => Goal::Approve(review, blind),
            Job::Withdraw { review, reason } => Goal::Withdraw(review, reason),
            Job::LookAtSigning(signing_id) => Goal::SigningProgress(signing_id),
            Job::AwaitSignatures(signing_id) => Goal::Signatures(signing_id),
        };
        let mut task = Task { job_id, goal, ends_mono_ms: now.mono_ms.saturating_add(timeout_ms) };
        let turn = self.begin(now, &mut task.goal, entropy);
        self.turn(now, task, turn, entropy);
    }

    /// The first exchange of a job; where it needs the verified key and there is none, that of the key.
    fn begin(&mut self, now: Time, goal: &mut Goal, entropy: &mut Entropy) -> Result<Turn, Fault> {
        match goal {
            Goal::Reserve => self.reserve(),
            Goal::Init => self.init(),
            Goal::Join => self.join_slot(),
            Goal::KeygenProgress => Ok(self.ask_for_progress()),
            Goal::Key
            | Goal::Request { .. }
            | Goal::Sign { .. }
            | Goal::Resend(_)
            | Goal::Resume(_)
            | Goal::Review(_)
            | Goal::Approve(..)
            | Goal::Withdraw(..)
            | Goal::SigningProgress(_)
            | Goal::Signatures(_) => match self.key.clone() {
                Some(key) => self.with_key(now, &key, goal, entropy),
                None => self.ask_for_key(goal),
            },
        }
    }

    /// What a job does once the key is verified.
    fn with_key(
        &mut self,
        now: Time,
        key: &Arc<VerifiedKey>,
        goal: &mut Goal,
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        match goal {
            Goal::Reserve | Goal::Init | Goal::Join | Goal::KeygenProgress | Goal::Key => {
                Ok(Turn::Done(Done::Key(Arc::clone(key))))
            }
            Goal::Request { items, expires_at } | Goal::Sign { items, expires_at } => {
                self.sign(now, key, core::mem::take(items), *expires_at, entropy)
            }
            Goal::Resend(request) | Goal::Resume(request) => self.submit_again(key, request),
            Goal::Review(id) | Goal::SigningProgress(id) | Goal::Signatures(id) => Ok(self.fetch_intent(*id)),
            Goal::Approve(review, blind) => self.approve(now, key, review, *blind, entropy),
            Goal::Withdraw(review, reason) => self.withdraw(review, reason.take(), entropy),
        }
    }

    fn turn(&mut self, now: Time, task: Task, turn: Result<Turn, Fault>, entropy: &mut Entropy) {
        match turn {
            Err(fault) => self.finish(task.job_id, Err(fault)),
            Ok(Turn::Done(done)) => self.finish(task.job_id, Ok(done)),
            // What was not kept is not sent.
            Ok(Turn::Ask(exchange)) if self.durable_revision == self.revision => {
                self.send(now, task, exchange, entropy);
            }
            Ok(Turn::Ask(exchange)) => self.store_membership(task, Then::Ask(exchange)),
            Ok(Turn::Keep(done)) => self.store_membership(task, Then::Finish(Box::new(done))),
            Ok(Turn::Store(request, exchange)) => {
                self.store(task, Keep::Request(request), 0, Then::Ask(exchange));
            }
            Ok(Turn::Again(_)) => unreachable!("only an answer asks for the same exchange again"),
        }
    }

    fn store_membership(&mut self, task: Task, then: Then) {
        match self.membership.encode(&self.private_key) {
            Ok(bytes) => self.store(task, Keep::Membership(bytes), self.revision, then),
            Err(code) => self.finish(task.job_id, Err(code.into())),
        }
    }

    fn store(&mut self, task: Task, keep: Keep, revision: u64, then: Then) {
        self.last_token += 1;
        let token = Token(self.last_token);
        let stage = Stage::Storing { token, revision, then };
        self.waiting.insert(task.job_id, Waiting { task, stage });
        self.commands.push_back(Command::Store { token, keep });
    }

    fn send(&mut self, now: Time, task: Task, mut exchange: Box<Exchange>, entropy: &mut Entropy) {
        let left_ms = task.ends_mono_ms.saturating_sub(now.mono_ms);
        if left_ms == 0 {
            return self.finish(task.job_id, Err(Fault::TimedOut));
        }
        match self.request(now, &mut exchange.ask, left_ms, entropy) {
            Ok((request, timeout_ms)) => {
                self.last_call += 1;
                let call = CallId(self.last_call);
                self.waiting.insert(task.job_id, Waiting { task, stage: Stage::Asking(call, exchange) });
                self.commands.push_back(Command::Send { call, request, timeout_ms });
            }
            Err(code) => self.finish(task.job_id, Err(code.into())),
        }
    }

    fn finish(&mut self, job_id: JobId, outcome: Result<Done, Fault>) {
        self.commands.push_back(Command::Finish { job_id, outcome });
    }

    fn take_asking(&mut self, call: CallId) -> Option<(Task, Box<Exchange>)> {
        let asks = |waiting: &Waiting| matches!(&waiting.stage, Stage::Asking(asked, _) if *asked == call);
        let job_id = *self.waiting.iter().find(|(_, waiting)| asks(waiting))?.0;
        match self.waiting.remove(&job_id)? {
            Waiting { task, stage: Stage::Asking(_, exchange) } => Some((task, exchange)),
            Waiting { stage: Stage::Storing { .. } | Stage::Pausing { .. }, .. } => None,
        }
    }

    fn take_storing(&mut self, stored: Token) -> Option<(Task, u64, Then)> {
        let stores =
            |waiting: &Waiting| matches!(&waiting.stage, Stage::Storing { token, .. } if *token == stored);
        let job_id = *self.waiting.iter().find(|(_, waiting)| stores(waiting))?.0;
        match self.waiting.remove(&job_id)? {
            Waiting { task, stage: Stage::Storing { revision, then, .. } } => Some((task, revision, then)),
            Waiting { stage: Stage::Asking(..) | Stage::Pausing { .. }, .. } => None,
        }
    }

    fn replied(
        &mut self,
        now: Time,
        mut task: Task,
        mut exchange: Box<Exchange>,
        response: &Response,
        entropy: &mut Entropy,
    ) {
        let body = match exchange::read(response) {
            Answer::Body(body) => body,
            Answer::Stale(gateway_unix_ms) if !exchange.ask.restaled => {
                exchange.ask.restaled = true;
                self.proof_offset_ms = offset(gateway_unix_ms, now.unix_ms);
                return self.send(now, task, exchange, entropy);
            }
            Answer::Stale(_) => return self.finish(task.job_id, Err(Code::ProofStale.into())),
            Answer::Away => return self.pause(now, task, exchange),
            Answer::Refused(refusal) => return self.finish(task.job_id, Err(Fault::Refused(refusal))),
        };
        let Exchange { question, mut ask } = *exchange;
        match self.answered(now, &mut task.goal, question, body, entropy) {
            Ok(Turn::Again(question)) => {
                // A gateway that answers a long poll too early is not asked in a tight loop.
                let waited_ms = now.mono_ms.saturating_sub(ask.asked_mono_ms);
                let waited = waited_ms > 0 && waited_ms >= ask.wait_ms / 2;
                // Each poll's proof may be corrected once.
                ask.restaled = false;
                let mut exchange = Box::new(Exchange { question, ask });
                if waited {
                    exchange.ask.failures = 0;
                    self.send(now, task, exchange, entropy);
                } else {
                    self.pause(now, task, exchange);
                }
            }
            turn => self.turn(now, task, turn, entropy),
        }
    }

    /// What an answer means.
    fn answered(
        &mut self,
        now: Time,
        goal: &mut Goal,
        question: Question,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        match question {
            Question::Reserve => self.reserved(body),
            Question::Init => self.initialised(body),
            Question::Slots => self.slots_shown(body, entropy),
            Question::OwnEnclave(own) => self.own_enclave_attested(now, *own, body, entropy),
            Question::Register => self.registered(body),
            Question::KeygenProgress => self.progress_shown(body),
            Question::ProgressSlots(status) => self.progress_slots_shown(*status, body),
            Question::KeygenStatus => self.keygen_shown(goal, body, entropy),
            Question::Enclave(enclave) => match self.enclave_attested(now, *enclave, body, entropy)? {
                Attested::Next(turn) => Ok(turn),
                Attested::All(key) => {
                    self.key = Some(Arc::clone(&key));
                    self.with_key(now, &key, goal, entropy)
                }
            },
            Question::Intent(signing_id) => self.intent_shown(now, goal, signing_id, body),
            Question::Submit(intent) => self.submitted(goal, intent, body),
            Question::SigningStatus(intent) => self.signing_shown(goal, intent, body),
            Question::Approve(signing_id) => self.approved(signing_id, body),
            Question::Withdraw(signing_id) => self.withdrawn(signing_id, body),
        }
    }

    /// Repeats an exchange after a pause that doubles.
    fn pause(&mut self, now: Time, task: Task, mut exchange: Box<Exchange>) {
        let doubled = RETRY_MS_MIN << exchange.ask.failures.min(10);
        exchange.ask.failures = exchange.ask.failures.saturating_add(1);
        // Whoever answers next may have another clock.
        exchange.ask.restaled = false;
        let until_mono_ms = now.mono_ms.saturating_add(doubled.min(RETRY_MS_MAX));
        let stage = Stage::Pausing { until_mono_ms, exchange };
        self.waiting.insert(task.job_id, Waiting { task, stage });
    }

    fn ticked(&mut self, now: Time, entropy: &mut Entropy) {
        let is_due = |Waiting { task, stage }: &Waiting| {
            let resumes =
                matches!(stage, Stage::Pausing { until_mono_ms, .. } if *until_mono_ms <= now.mono_ms);
            resumes || task.ends_mono_ms <= now.mono_ms
        };
        let due: Vec<JobId> =
            self.waiting.iter().filter(|(_, waiting)| is_due(waiting)).map(|(job_id, _)| *job_id).collect();
        for job_id in due {
            match self.waiting.remove(&job_id) {
                Some(Waiting { task, stage: Stage::Pausing { exchange, .. } }) => {
                    self.send(now, task, exchange, entropy);
                }
                Some(Waiting { stage: Stage::Storing { .. } | Stage::Asking(..), .. }) => {
                    self.finish(job_id, Err(Fault::TimedOut));
                }
                None => {}
            }
        }
    }
}

fn offset(theirs_unix_ms: u64, ours_unix_ms: u64) -> i64 {
    // Both are below 2^53 or wrong anyway.
    let signed = |unix_ms: u64| i64::try_from(unix_ms).unwrap_or(i64::MAX);
    signed(theirs_unix_ms).saturating_sub(signed(ours_unix_ms))
}
