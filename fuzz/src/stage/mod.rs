//! A gateway, enclaves and clients, hand-driven: what is on its way stands in a queue, and whoever holds the
//! stage decides what is delivered, in which order, and whether at all.
//!
//! [`Stage::settle`] delivers everything in order. [`story`] plays one genuine story through and keeps all that
//! was said: the fuzz targets and the corpus live on it.

pub mod host;
pub mod journal;
pub mod story;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keymeld_core::api::http::{Request, Response};
use keymeld_core::api::{problem, router};
use keymeld_core::client::{self, Client, Done, Fault, Job, JobId};
use keymeld_core::enclave;
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::gateway::{self, Gateway};
use keymeld_core::id::EnclaveId;
use keymeld_core::refusal::Code;
use keymeld_core::time::Time;
use keymeld_examples::disk::{Disk as _, MemoryDisk};
use keymeld_transport::nsm::software::SoftwareRoot;

use host::Host;
use journal::Journal;

/// When every stage begins, milliseconds since 1970.
pub const START: u64 = 1_800_000_000_000;
/// Host and port that proofs name, though nothing listens there.
pub const AUTHORITY: &str = "gateway.example:80";
/// Far more than any story takes.
const STEPS_MAX: usize = 100_000;

/// Something that one machine is to be told.
#[derive(Debug)]
pub enum Message {
    /// The gateway.
    Gateway(gateway::Event),
    /// The enclave at a place.
    Enclave(usize, enclave::Event),
    /// The client at a place.
    Client(usize, client::Event),
}

/// A client and what became of its jobs.
#[derive(Debug)]
pub struct Seat {
    /// The client.
    pub machine: Client,
    finished: BTreeMap<JobId, Result<Done, Fault>>,
    last_job: u64,
}

/// Everything that there is.
pub struct Stage {
    /// What the clocks say.
    pub time: Time,
    clock: Arc<AtomicU64>,
    /// What gateway and clients draw from.
    pub entropy: Entropy,
    /// What makes the enclaves' security modules.
    pub root: SoftwareRoot,
    /// The gateway.
    pub gateway: Gateway,
    /// What it keeps.
    pub disk: MemoryDisk,
    /// The enclaves.
    pub hosts: Vec<Host>,
    /// The clients.
    pub seats: Vec<Seat>,
    /// What is on its way, oldest first.
    pub underway: VecDeque<Message>,
    /// What was said.
    pub journal: Journal,
    requests: BTreeMap<u64, (usize, client::CallId, Request)>,
    calls: BTreeMap<u64, (usize, gateway::CallId)>,
    last_number: u64,
}

impl Stage {
    /// So many enclaves, each with an identity, and a gateway that knows them.
    ///
    /// # Panics
    /// Where something of the set-up fails, which is a fault of this crate.
    pub fn new(enclaves: usize, seed: u64) -> Stage {
        let clock = Arc::new(AtomicU64::new(START));
        let mut entropy = test_entropy(seed);
        let root = SoftwareRoot::generate(&mut entropy).expect("test entropy");
        let host = |at| Host::new(at, &root, &clock, seed);
        let hosts: Vec<Host> = (0..enclaves).map(host).collect();
        let ids = hosts.iter().map(Host::enclave_id).collect();
        let mut stage = Stage {
            time: Time { unix_ms: START, mono_ms: 0 },
            clock,
            entropy,
            root,
            gateway: Gateway::new(gateway::Config::new(ids)),
            disk: MemoryDisk::default(),
            hosts,
            seats: Vec::new(),
            underway: VecDeque::new(),
            journal: Journal::default(),
            requests: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_number: 0,
        };
        for at in 0..enclaves {
            stage.underway.push_back(Message::Enclave(at, enclave::Event::Started));
        }
        stage.gateway_started();
        stage.settle();
        stage
    }

    /// Where the enclave with this id stands.
    pub fn place(&self, enclave_id: EnclaveId) -> Option<usize> {
        self.hosts.iter().position(|host| host.enclave_id() == enclave_id)
    }

    /// Adds a client; the answer is its place.
    pub fn seat(&mut self, machine: Client) -> usize {
        self.seats.push(Seat { machine, finished: BTreeMap::new(), last_job: 0 });
        self.seats.len() - 1
    }

    /// Asks a client for a job that may take an hour.
    pub fn ask(&mut self, at: usize, job: Job) -> JobId {
        let seat = &mut self.seats[at];
        seat.last_job += 1;
        let job_id = JobId(seat.last_job);
        let event = client::Event::Asked { job_id, job, timeout_ms: 3_600_000 };
        self.underway.push_back(Message::Client(at, event));
        job_id
    }

    /// What became of a job, if it is finished; it is told once.
    pub fn outcome(&mut self, at: usize, job_id: JobId) -> Option<Result<Done, Fault>> {
        self.seats[at].finished.remove(&job_id)
    }

    /// Runs until a job is finished, and lets time pass where it has to.
    ///
    /// # Errors
    /// The job's own.
    ///
    /// # Panics
    /// Where it never is.
    pub fn finish(&mut self, at: usize, job_id: JobId) -> Result<Done, Fault> {
        for _ in 0..STEPS_MAX {
            if let Some(outcome) = self.outcome(at, job_id) {
                return outcome;
            }
            if !self.deliver_next() {
                self.pass_time();
            }
        }
        panic!("client {at} never finishes its job");
    }

    /// Asks for a job and runs until it is finished.
    ///
    /// # Errors
    /// The job's own.
    pub fn run(&mut self, at: usize, job: Job) -> Result<Done, Fault> {
        let job_id = self.ask(at, job);
        self.finish(at, job_id)
    }

    /// Delivers what is on its way, and what comes of that, until nothing is.
    pub fn settle(&mut self) {
        while self.deliver_next() {}
    }

    /// Delivers the oldest message; whether there was one.
    pub fn deliver_next(&mut self) -> bool {
        let next = self.underway.pop_front();
        next.map(|message| self.deliver(message)).is_some()
    }

    /// Delivers a message.
    pub fn deliver(&mut self, message: Message) {
        match message {
            Message::Gateway(event) => {
                self.journal.gateway(&event);
                self.gateway.handle(self.time, event, &mut self.entropy);
                self.carry_out_gateway();
            }
            Message::Enclave(at, event) => {
                self.journal.enclave(at, &event);
                let host = &mut self.hosts[at];
                host.machine.handle(self.time, event, &mut host.entropy);
                self.carry_out_enclave(at);
            }
            Message::Client(at, event) => {
                self.seats[at].machine.handle(self.time, event, &mut self.entropy);
                self.carry_out_client(at);
            }
        }
    }

    /// Goes on to the next deadline and tells everybody.
    pub fn pass_time(&mut self) {
        let gateway = self.gateway.next_deadline();
        let enclaves = self.hosts.iter().filter_map(|host| host.machine.next_deadline());
        let clients = self.seats.iter().filter_map(|seat| seat.machine.next_deadline());
        let next = gateway.into_iter().chain(enclaves).chain(clients).map(|deadline| deadline.mono_ms).min();
        self.sleep(next.unwrap_or(0).saturating_sub(self.time.mono_ms));
    }

    /// Lets so much time pass at once.
    pub fn sleep(&mut self, ms: u64) {
        self.time.mono_ms += ms;
        self.time.unix_ms += ms;
        self.clock.store(self.time.unix_ms, Ordering::SeqCst);
        self.underway.push_back(Message::Gateway(gateway::Event::Ticked));
        for at in 0..self.hosts.len() {
            self.underway.push_back(Message::Enclave(at, enclave::Event::Ticked));
        }
        for at in 0..self.seats.len() {
            self.underway.push_back(Message::Client(at, client::Event::Ticked));
        }
    }

    fn gateway_started(&mut self) {
        self.underway.push_back(Message::Gateway(gateway::Event::Started));
        for host in &self.hosts {
            let enclave_id = host.enclave_id();
            self.underway.push_back(Message::Gateway(gateway::Event::EnclaveFound { enclave_id }));
        }
    }

    /// The gateway dies and comes back: its memory is gone, its disk is not, and clients hear nothing.
    pub fn kill_gateway(&mut self) {
        let ids = self.hosts.iter().map(Host::enclave_id).collect();
        self.gateway = Gateway::new(gateway::Config::new(ids));
        self.underway.retain(|message| !matches!(message, Message::Gateway(_)));
        self.calls.clear();
        for (at, call, _) in std::mem::take(&mut self.requests).into_values() {
            self.underway.push_back(Message::Client(at, client::Event::CallFailed { call }));
        }
        self.gateway_started();
    }

    /// An enclave dies and comes back: it holds nothing any more, and its calls fail.
    pub fn kill_enclave(&mut self, at: usize) {
        self.hosts[at].restart();
        let enclave_id = self.hosts[at].enclave_id();
        self.underway.retain(|message| !matches!(message, Message::Enclave(other, _) if *other == at));
        self.underway.push_back(Message::Enclave(at, enclave::Event::Started));
        self.underway.push_back(Message::Gateway(gateway::Event::EnclaveLost { enclave_id }));
        let lost: Vec<u64> =
            self.calls.iter().filter(|(_, (of, _))| *of == at).map(|(number, _)| *number).collect();
        for number in lost {
            if let Some((_, call)) = self.calls.remove(&number) {
                self.underway.push_back(Message::Gateway(gateway::Event::CallFailed { call }));
            }
        }
        self.underway.push_back(Message::Gateway(gateway::Event::EnclaveFound { enclave_id }));
    }

    fn carry_out_gateway(&mut self) {
        let mut batch = Vec::new();
        while let Some(command) = self.gateway.poll_command() {
            match command {
                gateway::Command::Load(query) => {
                    let rows = self.disk.load(&query);
                    self.underway.push_back(Message::Gateway(gateway::Event::Loaded { query, rows }));
                }
                gateway::Command::Persist(persist) => batch.push(persist),
                gateway::Command::Respond { request, response } => {
                    if let Some((at, call, asked)) = self.requests.remove(&request.0) {
                        self.answer(at, call, asked, response);
                    }
                }
                gateway::Command::Send { enclave_id, call, routing_id, body } => {
                    let at = self.place(enclave_id).expect("the gateway knows only these enclaves");
                    let number = self.number();
                    self.calls.insert(number, (at, call));
                    let event = enclave::Event::Requested { call: number, routing_id, body };
                    self.underway.push_back(Message::Enclave(at, event));
                }
                gateway::Command::Report(_) => {}
            }
        }
        self.journal.persists.extend(batch.iter().cloned());
        for (token, answer) in self.disk.commit(&batch) {
            let event = match answer {
                Ok(()) => gateway::Event::Persisted { token },
                Err(error) => gateway::Event::PersistFailed { token, error },
            };
            self.underway.push_back(Message::Gateway(event));
        }
    }

    fn carry_out_enclave(&mut self, at: usize) {
        while let Some(command) = self.hosts[at].machine.poll_command() {
            if let enclave::Command::Reply { call, body } = command {
                self.journal.replies.push(body.clone());
                if let Some((_, call)) = self.calls.remove(&call) {
                    self.underway.push_back(Message::Gateway(gateway::Event::Replied { call, body }));
                }
            } else if let Some(event) = self.hosts[at].carry_out(command) {
                self.underway.push_back(Message::Enclave(at, event));
            }
        }
    }

    fn carry_out_client(&mut self, at: usize) {
        while let Some(command) = self.seats[at].machine.poll_command() {
            match command {
                client::Command::Store { token, keep } => {
                    self.journal.kept.push((at, keep));
                    self.underway.push_back(Message::Client(at, client::Event::Stored { token }));
                }
                client::Command::Send { call, request, .. } => self.send(at, call, request),
                client::Command::Finish { job_id, outcome } => {
                    self.seats[at].finished.insert(job_id, outcome);
                }
            }
        }
    }

    fn send(&mut self, at: usize, call: client::CallId, request: Request) {
        match router::route(&request) {
            Ok(routed) => {
                let number = self.number();
                self.requests.insert(number, (at, call, request));
                let request = gateway::RequestId(number);
                self.underway
                    .push_back(Message::Gateway(gateway::Event::Requested { request, call: routed }));
            }
            Err(code) => self.answer(at, call, request, problem::refused(&Code::into(code))),
        }
    }

    fn answer(&mut self, at: usize, call: client::CallId, request: Request, response: Response) {
        self.journal.exchanges.push((at, request, response.clone()));
        self.underway.push_back(Message::Client(at, client::Event::Replied { call, response }));
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("time", &self.time)
            .field("underway", &self.underway)
            .finish_non_exhaustive()
    }
}
