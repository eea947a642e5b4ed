//! A gateway, enclaves and clients in one thread: every event by hand, nothing runs by itself.
//!
//! [`World::step`] is all there is to driving KeyMeld: hand one machine one event, carry out its commands,
//! and remember what comes of them as further events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keymeld_core::api::http::{Request, Response};
use keymeld_core::api::{problem, router};
use keymeld_core::attestation::Root;
use keymeld_core::attestation::policy::{ImagePcrs, Policy};
use keymeld_core::bytes::Hash;
use keymeld_core::client::{self, Client, Done, Fault, Job, JobId, Keep};
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{self, DataKeyContext, Enclave, Failed};
use keymeld_core::entropy::Entropy;
use keymeld_core::gateway::{self, Gateway};
use keymeld_core::id::EnclaveId;
use keymeld_core::record::Persist;
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{Pcrs, SoftwareNsm, SoftwareRoot};

use crate::disk::Disk;

/// Host and port that proofs name, though nothing listens there.
pub const AUTHORITY: &str = "gateway.example:80";
const CONFIG_HASH: [u8; 32] = [7; 32];
const FRESHNESS_MS: u64 = 300_000;
/// Far more than any story here takes.
const STEPS_MAX: usize = 1_000_000;

/// Something that one machine is to be told next.
#[derive(Debug)]
enum Happening {
    Gateway(gateway::Event),
    Enclave(usize, enclave::Event),
    Client(usize, client::Event),
}

/// An enclave with the security module and the key service that it would find outside.
struct Host {
    enclave_id: EnclaveId,
    machine: Enclave,
    nsm: SoftwareNsm,
    entropy: Entropy,
    /// Stands in for a key service: what it encrypted, by the ciphertext.
    keyring: BTreeMap<Vec<u8>, (DataKeyContext, Secret<32>)>,
}

/// A client and what it had stored.
struct Seat {
    machine: Client,
    /// Jobs that have not finished yet.
    asked: BTreeSet<JobId>,
    finished: BTreeMap<JobId, Result<Done, Fault>>,
    last_job: u64,
    kept: Vec<Keep>,
    deeds: Vec<Deed>,
}

/// What a client did to the world outside.
#[derive(Debug)]
pub enum Deed {
    /// It stored what stands here in [`World::kept`].
    Kept(usize),
    /// It sent a request, whatever became of it.
    Sent(Request),
}

/// What becomes of a client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out and answered.
    Answered,
    /// It gets lost, and the client hears so at once.
    Lost,
    /// It gets lost, and the client hears nothing until it gives up.
    Silence,
    /// It is carried out, but the answer gets lost.
    AnswerLost,
    /// Something in between answers.
    Intercepted(Response),
}

/// Kills the gateway at one of its commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// At which commit, from 1.
    pub at_commit: u64,
    /// Whether that commit still reaches the disk.
    pub committed: bool,
}

/// Changes an answer on its way to a client.
pub type Tamper = Box<dyn FnMut(&Request, Response) -> Response>;

/// Decides what becomes of requests, by the client's place.
pub type Wire = Box<dyn FnMut(usize, &Request) -> Fate>;

/// Says whether what a client keeps becomes durable, by the client's place.
pub type Keeper = Box<dyn FnMut(usize, &Keep) -> bool>;

/// Everything that there is.
pub struct World<D> {
    time: Time,
    /// What the security modules' clocks read.
    clock: Arc<AtomicU64>,
    entropy: Entropy,
    root: SoftwareRoot,
    gateway: Gateway,
    /// The disk, for tests to look at.
    pub disk: D,
    hosts: Vec<Host>,
    seats: Vec<Seat>,
    happenings: VecDeque<Happening>,
    /// Whoever made an HTTP request, by the gateway's number for it.
    requests: BTreeMap<u64, Asked>,
    /// When clients give up requests that got lost: monotonic milliseconds.
    silences: BTreeSet<(u64, usize, client::CallId)>,
    calls: BTreeMap<u64, gateway::CallId>,
    last_request: u64,
    commits: u64,
    /// When to kill the gateway.
    pub kill: Option<Kill>,
    /// What happens to answers on their way to a client.
    pub tamper: Option<Tamper>,
    /// What becomes of clients' requests; `None` for the best.
    pub wire: Option<Wire>,
    /// Whether clients' disks work; `None` for always.
    pub keeper: Option<Keeper>,
    /// How far clients' clocks are ahead, in milliseconds, by place.
    pub skews: BTreeMap<usize, i64>,
}

/// A request that the gateway owes an answer to.
struct Asked {
    at: usize,
    call: client::CallId,
    request: Request,
    answer_lost: bool,
}

impl<D: Disk> World<D> {
    /// Starts everything; `entropy` gives each machine a generator of its own, by number.
    ///
    /// # Panics
    /// Where the generator fails.
    pub fn new(enclaves: usize, disk: D, start_unix_ms: u64, entropy: impl Fn(u64) -> Entropy) -> World<D> {
        let clock = Arc::new(AtomicU64::new(start_unix_ms));
        let mut own = entropy(0);
        let root = SoftwareRoot::generate(&mut own).expect("the generator works");
        let hosts = (1..=enclaves as u64).map(|number| {
            let read = Arc::clone(&clock);
            let nsm = root.nsm(number, Pcrs::default(), move || read.load(Ordering::SeqCst), entropy(number));
            let enclave_id = EnclaveId::random(&mut own).expect("the generator works");
            Host {
                enclave_id,
                machine: machine(&root, enclave_id, &own),
                nsm: nsm.expect("the generator works"),
                entropy: entropy(1_000 + number),
                keyring: BTreeMap::new(),
            }
        });
        let hosts: Vec<Host> = hosts.collect();
        let ids = hosts.iter().map(|host| host.enclave_id).collect();
        let mut world = World {
            time: Time { unix_ms: start_unix_ms, mono_ms: 0 },
            clock,
            entropy: own,
            root,
            gateway: Gateway::new(gateway::Config::new(ids)),
            disk,
            hosts,
            seats: Vec::new(),
            happenings: VecDeque::new(),
            requests: BTreeMap::new(),
            silences: BTreeSet::new(),
            calls: BTreeMap::new(),
            last_request: 0,
            commits: 0,
            kill: None,
            tamper: None,
            wire: None,
            keeper: None,
            skews: BTreeMap::new(),
        };
        for at in 0..enclaves {
            world.happenings.push_back(Happening::Enclave(at, enclave::Event::Started));
        }
        world.gateway_started();
        while world.next_happening() {}
        world
    }

    /// What the clocks say.
    pub fn time(&self) -> Time {
        self.time
    }

    /// How often the gateway has committed.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// A client's configuration: the policy trusts exactly the enclaves of this world.
    ///
    /// # Panics
    /// Never: the root is a certificate.
    pub fn client_config(&self) -> client::Config {
        let Pcrs { pcr0, pcr1, pcr2, .. } = Pcrs::default();
        let root = Root::development(self.root.certificate()).expect("a certificate");
        client::Config {
            authority: AUTHORITY.into(),
            policy: Policy {
                roots: vec![root],
                images: vec![ImagePcrs { pcr0, pcr1, pcr2, pcr8: None }],
                birth_pcr0: vec![pcr0],
                config_hashes: vec![CONFIG_HASH],
                freshness_ms: FRESHNESS_MS,
            },
            api_token: None,
            newest_births: BTreeMap::new(),
        }
    }

    /// What makes the enclaves' security modules.
    pub fn root(&self) -> &SoftwareRoot {
        &self.root
    }

    /// Adds a client; the answer is its place.
    pub fn seat(&mut self, machine: Client) -> usize {
        let seat = Seat {
            machine,
            asked: BTreeSet::new(),
            finished: BTreeMap::new(),
            last_job: 0,
            kept: Vec::new(),
            deeds: Vec::new(),
        };
        self.seats.push(seat);
        self.seats.len() - 1
    }

    /// The client at a place.
    pub fn client(&self, at: usize) -> &Client {
        &self.seats[at].machine
    }

    /// What the client at a place has stored, oldest first.
    pub fn kept(&self, at: usize) -> &[Keep] {
        &self.seats[at].kept
    }

    /// What the client at a place has done, oldest first.
    pub fn deeds(&self, at: usize) -> &[Deed] {
        &self.seats[at].deeds
    }

    /// The requests that the client at a place has sent, oldest first.
    pub fn sent(&self, at: usize) -> impl Iterator<Item = &Request> {
        self.seats[at].deeds.iter().filter_map(|deed| match deed {
            Deed::Sent(request) => Some(request),
            Deed::Kept(_) => None,
        })
    }

    /// Asks for a job that may take a day.
    pub fn ask(&mut self, at: usize, job: Job) -> JobId {
        self.ask_within(at, job, 24 * 3_600_000)
    }

    /// Asks for a job that may take only so long.
    pub fn ask_within(&mut self, at: usize, job: Job, timeout_ms: u64) -> JobId {
        let seat = &mut self.seats[at];
        seat.last_job += 1;
        let job_id = JobId(seat.last_job);
        seat.asked.insert(job_id);
        self.happenings.push_back(Happening::Client(at, client::Event::Asked { job_id, job, timeout_ms }));
        job_id
    }

    /// Tells a client that nobody waits for a job any more.
    pub fn abandon(&mut self, at: usize, job_id: JobId) {
        self.seats[at].asked.remove(&job_id);
        self.happenings.push_back(Happening::Client(at, client::Event::Abandoned { job_id }));
    }

    /// Runs until a job is finished.
    ///
    /// # Errors
    /// The job's own.
    ///
    /// # Panics
    /// Where it never is.
    pub fn finish(&mut self, at: usize, job_id: JobId) -> Result<Done, Fault> {
        for _ in 0..STEPS_MAX {
            if let Some(outcome) = self.seats[at].finished.remove(&job_id) {
                return outcome;
            }
            self.step();
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

    /// Gives a generator to whoever makes artifacts outside.
    pub fn entropy(&mut self) -> &mut Entropy {
        &mut self.entropy
    }

    /// Tells one machine one thing; where there is nothing to tell, lets time pass until there is.
    pub fn step(&mut self) {
        if !self.next_happening() {
            self.pass_time();
        }
    }

    fn next_happening(&mut self) -> bool {
        match self.happenings.pop_front() {
            None => return false,
            Some(Happening::Gateway(event)) => {
                self.gateway.handle(self.time, event, &mut self.entropy);
                self.carry_out_gateway();
            }
            Some(Happening::Enclave(at, event)) => {
                let host = &mut self.hosts[at];
                host.machine.handle(self.time, event, &mut host.entropy);
                self.carry_out_enclave(at);
            }
            Some(Happening::Client(at, event)) => {
                let skew = self.skews.get(&at).copied().unwrap_or(0);
                let time = Time { unix_ms: self.time.unix_ms.saturating_add_signed(skew), ..self.time };
                self.seats[at].machine.handle(time, event, &mut self.entropy);
                self.carry_out_client(at);
            }
        }
        true
    }

    /// Goes on to the next deadline and tells everybody.
    fn pass_time(&mut self) {
        let gateway = self.gateway.next_deadline();
        let enclaves = self.hosts.iter().filter_map(|host| host.machine.next_deadline());
        let clients = self.seats.iter().filter_map(|seat| seat.machine.next_deadline());
        let deadlines = gateway.into_iter().chain(enclaves).chain(clients).map(|deadline| deadline.mono_ms);
        let next = deadlines.chain(self.silences.first().map(|(gives_up, ..)| *gives_up)).min();
        self.sleep(next.unwrap_or(self.time.mono_ms).saturating_sub(self.time.mono_ms));
    }

    /// Lets this much time pass at once.
    pub fn sleep(&mut self, ms: u64) {
        self.time.mono_ms += ms;
        self.time.unix_ms += ms;
        self.clock.store(self.time.unix_ms, Ordering::SeqCst);
        while let Some((gives_up, at, call)) = self.silences.pop_first() {
            if gives_up > self.time.mono_ms {
                self.silences.insert((gives_up, at, call));
                break;
            }
            self.happenings.push_back(Happening::Client(at, client::Event::CallFailed { call }));
        }
        self.happenings.push_back(Happening::Gateway(gateway::Event::Ticked));
        for at in 0..self.hosts.len() {
            self.happenings.push_back(Happening::Enclave(at, enclave::Event::Ticked));
        }
        for at in 0..self.seats.len() {
            self.happenings.push_back(Happening::Client(at, client::Event::Ticked));
        }
    }

    fn gateway_started(&mut self) {
        self.happenings.push_back(Happening::Gateway(gateway::Event::Started));
        for host in &self.hosts {
            let enclave_id = host.enclave_id;
            self.happenings.push_back(Happening::Gateway(gateway::Event::EnclaveFound { enclave_id }));
        }
    }

    /// The gateway dies and comes back: its memory is gone, its disk is not, and clients hear nothing.
    pub fn kill_gateway(&mut self) {
        self.disk.reopen();
        let ids = self.hosts.iter().map(|host| host.enclave_id).collect();
        self.gateway = Gateway::new(gateway::Config::new(ids));
        self.happenings.retain(|happening| !matches!(happening, Happening::Gateway(_)));
        self.calls.clear();
        for Asked { at, call, .. } in std::mem::take(&mut self.requests).into_values() {
            self.happenings.push_back(Happening::Client(at, client::Event::CallFailed { call }));
        }
        self.gateway_started();
    }

    /// An enclave dies and comes back: it holds nothing any more.
    pub fn kill_enclave(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.machine = machine(&self.root, host.enclave_id, &host.entropy);
        let enclave_id = host.enclave_id;
        self.happenings
            .retain(|happening| !matches!(happening, Happening::Enclave(other, _) if *other == at));
        self.happenings.push_back(Happening::Enclave(at, enclave::Event::Started));
        self.happenings.push_back(Happening::Gateway(gateway::Event::EnclaveLost { enclave_id }));
        let lost: Vec<u64> =
            self.calls.keys().copied().filter(|call| *call % self.count() == at as u64).collect();
        for call in lost {
            if let Some(call) = self.calls.remove(&call) {
                self.happenings.push_back(Happening::Gateway(gateway::Event::CallFailed { call }));
            }
        }
        self.happenings.push_back(Happening::Gateway(gateway::Event::EnclaveFound { enclave_id }));
    }

    fn count(&self) -> u64 {
        self.hosts.len() as u64
    }

    fn carry_out_gateway(&mut self) {
        let mut batch = Vec::new();
        while let Some(command) = self.gateway.poll_command() {
            match command {
                gateway::Command::Load(query) => {
                    let rows = self.disk.load(&query);
                    let event = gateway::Event::Loaded { query, rows };
                    self.happenings.push_back(Happening::Gateway(event));
                }
                gateway::Command::Persist(persist) => batch.push(persist),
                gateway::Command::Respond { request, response } => {
                    if let Some(Asked { at, call, request, answer_lost }) = self.requests.remove(&request.0) {
                        let event = match &mut self.tamper {
                            _ if answer_lost => client::Event::CallFailed { call },
                            Some(tamper) => {
                                client::Event::Replied { call, response: tamper(&request, response) }
                            }
                            None => client::Event::Replied { call, response },
                        };
                        self.happenings.push_back(Happening::Client(at, event));
                    }
                }
                gateway::Command::Send { enclave_id, call, routing_id, body } => {
                    let at = self.hosts.iter().position(|host| host.enclave_id == enclave_id);
                    let at = at.expect("the gateway knows only these enclaves");
                    // The number says which enclave it is with.
                    self.last_request += 1;
                    let number = self.last_request * self.count() + at as u64;
                    self.calls.insert(number, call);
                    let event = enclave::Event::Requested { call: number, routing_id, body };
                    self.happenings.push_back(Happening::Enclave(at, event));
                }
                gateway::Command::Report(_) => {}
            }
        }
        if !batch.is_empty() {
            self.commit(&batch);
        }
    }

    /// One transaction for the batch, unless the gateway is killed before it or after.
    fn commit(&mut self, batch: &[Persist]) {
        self.commits += 1;
        let killed = self.kill.filter(|kill| kill.at_commit == self.commits);
        if killed.is_none_or(|kill| kill.committed) {
            for (token, answer) in self.disk.commit(batch) {
                let event = match answer {
                    Ok(()) => gateway::Event::Persisted { token },
                    Err(error) => gateway::Event::PersistFailed { token, error },
                };
                self.happenings.push_back(Happening::Gateway(event));
            }
        }
        if killed.is_some() {
            self.kill_gateway();
        }
    }

    fn carry_out_enclave(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        while let Some(command) = host.machine.poll_command() {
            let event = match command {
                enclave::Command::Reply { call, body } => {
                    if let Some(call) = self.calls.remove(&call) {
                        let event = gateway::Event::Replied { call, body };
                        self.happenings.push_back(Happening::Gateway(event));
                    }
                    continue;
                }
                enclave::Command::Attest { token, public_key, nonce, user_data } => {
                    let document =
                        host.nsm.attest(public_key.as_deref(), nonce.as_deref(), user_data.as_deref());
                    enclave::Event::Attested { token, document: document.map_err(|_| Failed) }
                }
                enclave::Command::GenerateDataKey { token, context } => {
                    let key = host.generate_data_key(context);
                    enclave::Event::DataKeyGenerated { token, key }
                }
                enclave::Command::DecryptDataKey { token, context, encrypted } => {
                    let found = host.keyring.get(&encrypted).filter(|(of, _)| *of == context);
                    let key = found.map(|(_, key)| Secret::copied_from(key.expose())).ok_or(Failed);
                    enclave::Event::DataKeyDecrypted { token, key }
                }
                // There is one worker.
                enclave::Command::ShareIdentity(_) => continue,
            };
            self.happenings.push_back(Happening::Enclave(at, event));
        }
    }

    fn carry_out_client(&mut self, at: usize) {
        while let Some(command) = self.seats[at].machine.poll_command() {
            let seat = &mut self.seats[at];
            match command {
                client::Command::Store { token, keep } => {
                    let event = if self.keeper.as_mut().is_none_or(|keeper| keeper(at, &keep)) {
                        seat.deeds.push(Deed::Kept(seat.kept.len()));
                        seat.kept.push(keep);
                        client::Event::Stored { token }
                    } else {
                        client::Event::StoreFailed { token }
                    };
                    self.happenings.push_back(Happening::Client(at, event));
                }
                client::Command::Send { call, request, timeout_ms } => {
                    seat.deeds.push(Deed::Sent(request.clone()));
                    self.send(at, call, request, timeout_ms);
                }
                client::Command::Finish { job_id, outcome } => {
                    assert!(seat.asked.remove(&job_id), "a job finishes once");
                    seat.finished.insert(job_id, outcome);
                }
            }
        }
    }

    fn send(&mut self, at: usize, call: client::CallId, request: Request, timeout_ms: u64) {
        let fate = self.wire.as_mut().map_or(Fate::Answered, |wire| wire(at, &request));
        let answer_lost = fate == Fate::AnswerLost;
        let event = match fate {
            Fate::Lost => client::Event::CallFailed { call },
            Fate::Intercepted(response) => client::Event::Replied { call, response },
            Fate::Silence => {
                self.silences.insert((self.time.mono_ms + timeout_ms, at, call));
                return;
            }
            Fate::Answered | Fate::AnswerLost => match router::route(&request) {
                Ok(routed) => {
                    self.last_request += 1;
                    self.requests.insert(self.last_request, Asked { at, call, request, answer_lost });
                    let request = gateway::RequestId(self.last_request);
                    let event = gateway::Event::Requested { request, call: routed };
                    return self.happenings.push_back(Happening::Gateway(event));
                }
                Err(code) => client::Event::Replied { call, response: problem::refused(&Code::into(code)) },
            },
        };
        self.happenings.push_back(Happening::Client(at, event));
    }
}

impl Host {
    fn generate_data_key(&mut self, context: DataKeyContext) -> Result<DataKey, Failed> {
        let key = Secret::random(&mut self.entropy).map_err(|_| Failed)?;
        let encrypted = self.entropy.bytes::<48>().map_err(|_| Failed)?.to_vec();
        self.keyring.insert(encrypted.clone(), (context, Secret::copied_from(key.expose())));
        Ok(DataKey { key, encrypted })
    }
}

fn machine(root: &SoftwareRoot, enclave_id: EnclaveId, entropy: &Entropy) -> Enclave {
    Enclave::new(enclave::Config {
        enclave_id,
        root: Root::development(root.certificate()).expect("a certificate"),
        running_pcr0: Pcrs::default().pcr0,
        predecessors: Vec::new(),
        config_hash: Hash(CONFIG_HASH),
        key_arn: String::new(),
        entropy_origin: entropy.origin(),
    })
}
