//! Enclaves: processes of one or more machines, a security module, a key service, and the link to each.

use std::collections::BTreeMap;

use keymeld_core::attestation::Root;
use keymeld_core::bytes::Hash;
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{self, Command, DataKeyContext, Enclave, Event, Failed};
use keymeld_core::entropy::{Entropy, Origin as EntropyOrigin};
use keymeld_core::gateway::CallId;
use keymeld_core::id::EnclaveId;
use keymeld_core::link::frame::{Frame, Kind};
use keymeld_core::link::message::{Reply, Request};
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::nsm::software::Pcrs;

use super::chance::{Health, Switch, generator, hash, mix};
use super::module::{self, Make};
use super::world::{Happening, ModuleAsked, World};

/// What attestations of all enclaves say about their configuration.
pub(crate) const CONFIG_HASH: [u8; 32] = [7; 32];
/// How long the gateway's pool waits for an answer.
const CALL_MS: u64 = 30_000;
/// How long it takes to notice that a link is dead.
const NOTICED_MS_MAX: u64 = 7_000;

/// Who sent a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The gateway, on a link.
    Gateway { generation: u64, request_id: u64 },
    /// The hostile wire, for itself.
    Hostile { number: u64 },
}

/// A frame that a process has not answered yet.
pub(crate) struct Asked {
    origin: Origin,
    routing_id: [u8; 16],
    request: Option<Request>,
}

/// A process.
pub(crate) struct Process {
    pub(crate) life: u64,
    machines: Vec<Enclave>,
    entropy: Vec<Entropy>,
    switches: Vec<Switch>,
    started_ms: u64,
    mono_begin_ms: u64,
    asked: BTreeMap<u64, Asked>,
    last_call: u64,
    ticks_at_ms: Vec<Option<u64>>,
}

/// The gateway's link to an enclave.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) generation: u64,
    pub(crate) up: bool,
    /// Nothing comes through any more, and nobody has noticed yet.
    silent: bool,
    calls: BTreeMap<u64, CallId>,
}

impl Link {
    /// Nothing that is under way arrives any more.
    pub(crate) fn cut(&mut self) {
        self.generation += 1;
        self.up = false;
        self.silent = false;
        self.calls.clear();
    }
}

/// An enclave and what is around it.
pub(crate) struct Host {
    pub(crate) id: EnclaveId,
    seed: u64,
    workers: usize,
    /// The process that the gateway reaches, and clones that only a hostile host knows.
    pub(crate) processes: Vec<Process>,
    pub(crate) link: Link,
    /// Between a death and the next start.
    down: bool,
    keys: KeyService,
}

/// Wraps data keys; it outlives every process.
struct KeyService {
    entropy: Entropy,
    keyring: BTreeMap<Vec<u8>, (DataKeyContext, Secret<32>)>,
}

impl KeyService {
    fn generate(&mut self, context: DataKeyContext) -> Result<DataKey, Failed> {
        let key = Secret::random(&mut self.entropy).map_err(|_| Failed)?;
        let encrypted = self.entropy.bytes::<48>().map_err(|_| Failed)?.to_vec();
        self.keyring.insert(encrypted.clone(), (context, Secret::copied_from(key.expose())));
        Ok(DataKey { key, encrypted })
    }

    fn decrypt(&self, context: &DataKeyContext, encrypted: &[u8]) -> Result<Secret<32>, Failed> {
        let found = self.keyring.get(encrypted).filter(|(of, _)| of == context);
        found.map(|(_, key)| Secret::copied_from(key.expose())).ok_or(Failed)
    }
}

impl Host {
    pub(crate) fn new(seed: u64, at: usize, workers: usize) -> Host {
        let mut id = [0; 16];
        for half in id.chunks_mut(8) {
            half.copy_from_slice(&mix(seed ^ mix(at as u64 + 50)).to_be_bytes());
        }
        Host {
            id: EnclaveId(id),
            seed,
            workers,
            processes: Vec::new(),
            link: Link::default(),
            down: true,
            keys: KeyService { entropy: generator(seed, 300 + at as u64).0, keyring: BTreeMap::new() },
        }
    }

    fn process(&self, life: u64, now_ms: u64) -> Process {
        let config = enclave::Config {
            enclave_id: self.id,
            root: Root::development(module::root().certificate()).expect("a certificate"),
            running_pcr0: Pcrs::default().pcr0,
            predecessors: Vec::new(),
            config_hash: Hash(CONFIG_HASH),
            key_arn: String::new(),
            entropy_origin: EntropyOrigin::Test,
        };
        let generators =
            (0..self.workers).map(|worker| generator(self.seed, 1_000 * life + worker as u64 + 400));
        let (entropy, switches) = generators.unzip();
        Process {
            life,
            machines: (0..self.workers).map(|_| Enclave::new(config.clone())).collect(),
            entropy,
            switches,
            started_ms: now_ms,
            mono_begin_ms: mix(life) % 1_000_000,
            asked: BTreeMap::new(),
            last_call: 0,
            ticks_at_ms: vec![None; self.workers],
        }
    }

    pub(crate) fn set_generators(&mut self, health: Health) {
        for process in &self.processes {
            process.switches.iter().for_each(|switch| switch.set(health));
        }
    }

    fn of_life(&mut self, life: u64) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.life == life)
    }

    /// The process that the gateway reaches.
    pub(crate) fn life(&self) -> Option<u64> {
        self.processes.first().filter(|_| !self.down).map(|process| process.life)
    }

    /// The host has the key service wrap a key, and knows it.
    pub(crate) fn wrap_key(&mut self, context: DataKeyContext) -> Option<DataKey> {
        self.keys.generate(context).ok()
    }

    /// The data key that a row's seed is sealed under: what only the key service and an enclave know.
    pub(crate) fn data_key(&self, encrypted: &[u8]) -> Option<Secret<32>> {
        self.keys.keyring.get(encrypted).map(|(_, key)| Secret::copied_from(key.expose()))
    }
}

impl Process {
    fn now(&self, now_ms: u64) -> Time {
        // An enclave ignores the host's time of day; it gets a wrong one.
        Time { unix_ms: 1, mono_ms: self.mono_begin_ms + now_ms - self.started_ms }
    }
}

impl World {
    /// The process that the gateway reaches starts, or starts again.
    pub(crate) fn host_starts(&mut self, at: usize) {
        let life = self.new_life();
        let process = self.hosts[at].process(life, self.now_ms);
        match self.hosts[at].processes.is_empty() {
            true => self.hosts[at].processes.push(process),
            false => self.hosts[at].processes[0] = process,
        }
        self.hosts[at].down = false;
        self.log.note(format_args!("enclave {at} starts"));
        for worker in 0..self.plan.workers {
            self.host_hears(at, life, worker, Event::Started);
        }
        let up_ms = self.chance.below("link up", 500);
        self.later(up_ms, Happening::LinkUp { at });
    }

    /// A second process of the same enclave, which the hostile host keeps to itself.
    pub(crate) fn clone_starts(&mut self, at: usize) -> u64 {
        let life = self.new_life();
        let process = self.hosts[at].process(life, self.now_ms);
        self.hosts[at].processes.push(process);
        for worker in 0..self.plan.workers {
            self.host_hears(at, life, worker, Event::Started);
        }
        life
    }

    fn host_dies(&mut self, at: usize) {
        self.log.note(format_args!("enclave {at} dies"));
        let life = self.new_life();
        if let Some(process) = self.hosts[at].processes.first_mut() {
            process.life = life;
            process.asked.clear();
        }
        self.hosts[at].down = true;
        self.hosts[at].link.silent = true;
        let generation = self.hosts[at].link.generation;
        let (noticed_ms, down_ms) =
            (self.chance.below("death noticed", 2_000), self.chance.between("enclave down", 2_000, 20_000));
        self.later(noticed_ms, Happening::LinkDown { at, generation });
        self.later(down_ms, Happening::HostStarts { at });
    }

    pub(crate) fn link_up(&mut self, at: usize) {
        if !self.gateway.is_up() || self.hosts[at].link.up || self.hosts[at].down {
            return;
        }
        self.hosts[at].link.cut();
        self.hosts[at].link.up = true;
        let enclave_id = self.hosts[at].id;
        self.log.note(format_args!("link {at} up"));
        self.gateway_hears(keymeld_core::gateway::Event::EnclaveFound { enclave_id });
    }

    /// What the pool tells the gateway when it takes a link down: every call under way fails.
    pub(crate) fn link_down(&mut self, at: usize, generation: u64) {
        if self.hosts[at].link.generation != generation || !self.hosts[at].link.up {
            return;
        }
        let calls = std::mem::take(&mut self.hosts[at].link.calls);
        self.hosts[at].link.cut();
        self.log.note(format_args!("link {at} down"));
        for call in calls.into_values() {
            self.gateway_hears(keymeld_core::gateway::Event::CallFailed { call });
        }
        let enclave_id = self.hosts[at].id;
        self.gateway_hears(keymeld_core::gateway::Event::EnclaveLost { enclave_id });
        let up_ms = self.chance.between("link back", 50, 3_000);
        self.later(up_ms, Happening::LinkUp { at });
    }

    /// The gateway sends a frame.
    pub(crate) fn sends_frame(&mut self, at: usize, call: CallId, routing_id: [u8; 16], body: Vec<u8>) {
        let link = &mut self.hosts[at].link;
        if !link.up {
            return self.gateway_hears(keymeld_core::gateway::Event::CallFailed { call });
        }
        link.calls.insert(call.0, call);
        let generation = link.generation;
        self.later(CALL_MS, Happening::CallTimesOut { at, generation, request_id: call.0 });
        if self.fault("fault a link is cut", self.plan.rates.cut) {
            self.link_breaks(at);
            return;
        }
        if self.hosts[at].link.silent {
            return;
        }
        let origin = Origin::Gateway { generation, request_id: call.0 };
        self.frame_on_wire(at, routing_id, body, origin);
    }

    /// One side or both notice at once or after a while that nothing comes through any more.
    fn link_breaks(&mut self, at: usize) {
        let half_open = self.chance.one_in("half open", 2);
        let generation = self.hosts[at].link.generation;
        self.hosts[at].link.silent = true;
        let noticed_ms = if half_open { self.chance.below("cut noticed", NOTICED_MS_MAX) } else { 0 };
        self.later(noticed_ms, Happening::LinkDown { at, generation });
    }

    /// Sends a frame to the process that the gateway reaches.
    pub(crate) fn deliver_frame(&mut self, at: usize, routing_id: [u8; 16], body: Vec<u8>, origin: Origin) {
        let Some(life) = self.hosts[at].life() else { return };
        self.deliver_frame_to(at, life, routing_id, body, origin);
    }

    /// Sends a frame to a process.
    pub(crate) fn deliver_frame_to(
        &mut self,
        at: usize,
        life: u64,
        routing_id: [u8; 16],
        body: Vec<u8>,
        origin: Origin,
    ) {
        let request_id = match origin {
            Origin::Gateway { request_id, .. } => request_id,
            Origin::Hostile { number } => number,
        };
        let frame = Frame { kind: Kind::Request, request_id, routing_id, body };
        // The pool tells the gateway so; here nothing is as large as that.
        let Ok(bytes) = frame.encode() else { return };
        let mut after_ms = self.latency_ms();
        if self.fault("fault a frame is late", self.plan.rates.frame) {
            after_ms += self.chance.below("late frame", 10_000);
        }
        self.later(after_ms, Happening::FrameArrives { at, life, bytes, origin });
    }

    pub(crate) fn frame_arrives(&mut self, at: usize, life: u64, bytes: &[u8], origin: Origin) {
        let by_gateway = matches!(origin, Origin::Gateway { .. });
        if by_gateway && self.fault("fault an enclave dies", self.plan.rates.enclave) {
            return self.host_dies(at);
        }
        if self.fault("fault an enclave forgets", 2 * self.plan.rates.enclave) {
            self.log.note(format_args!("enclave {at} forgets its sessions"));
            if let Some(process) = self.hosts[at].of_life(life) {
                process.machines.iter_mut().for_each(Enclave::evict_all);
            }
        }
        let mut length = [0; 4];
        length.copy_from_slice(&bytes[..4]);
        assert_eq!(Frame::length(length), Ok(bytes.len() - 4), "a frame has the length that it says");
        let frame = Frame::decode(bytes[4..].to_vec()).expect("a frame that was just encoded");
        let workers = self.plan.workers as u64;
        let Some(process) = self.hosts[at].of_life(life) else { return };
        process.last_call += 1;
        let call = process.last_call;
        let request = Request::decode(&frame.body).ok();
        let asked = Asked { origin, routing_id: frame.routing_id, request };
        process.asked.insert(call, asked);
        let shard = if frame.routing_id == [0; 16] { 0 } else { hash(1, &frame.routing_id) % workers };
        let event = Event::Requested { call, routing_id: frame.routing_id, body: frame.body };
        self.host_hears(at, life, shard as usize, event);
    }

    pub(crate) fn host_hears(&mut self, at: usize, life: u64, worker: usize, event: Event) {
        let now_ms = self.now_ms;
        let Some(process) = self.hosts[at].of_life(life) else { return };
        let now = process.now(now_ms);
        let machine = &mut process.machines[worker];
        machine.handle(now, event, &mut process.entropy[worker]);
        let mut commands = Vec::new();
        while let Some(command) = machine.poll_command() {
            commands.push(command);
        }
        if let Some(deadline) = machine.next_deadline() {
            let due_ms = process.started_ms + deadline.mono_ms.saturating_sub(process.mono_begin_ms);
            let due_ms = due_ms.max(now_ms);
            if process.ticks_at_ms[worker].is_none_or(|at_ms| at_ms > due_ms || at_ms <= now_ms) {
                process.ticks_at_ms[worker] = Some(due_ms);
                self.later(due_ms - now_ms, Happening::HostTicks { at, life, worker });
            }
        }
        for command in commands {
            self.host_executes(at, life, worker, command);
        }
    }

    fn host_executes(&mut self, at: usize, life: u64, worker: usize, command: Command) {
        match command {
            Command::Reply { call, body } => self.host_replies(at, life, call, body),
            Command::Attest { token, public_key, nonce, user_data } => {
                let asked = ModuleAsked { token, public_key, nonce, user_data };
                let after_ms = self.chance.below("module", 10);
                self.later(after_ms, Happening::ModuleAnswers { at, life, worker, asked });
            }
            Command::GenerateDataKey { token, context } => {
                let failed = self.fault("fault the key service fails", self.plan.rates.services);
                let key = if failed { Err(Failed) } else { self.hosts[at].keys.generate(context) };
                self.key_service_answers(at, life, worker, Event::DataKeyGenerated { token, key });
            }
            Command::DecryptDataKey { token, context, encrypted } => {
                let failed = self.fault("fault the key service fails", self.plan.rates.services);
                let key =
                    if failed { Err(Failed) } else { self.hosts[at].keys.decrypt(&context, &encrypted) };
                self.key_service_answers(at, life, worker, Event::DataKeyDecrypted { token, key });
            }
            Command::ShareIdentity(identity) => {
                for other in (0..self.plan.workers).filter(|other| *other != worker) {
                    let event = Event::IdentityShared(std::sync::Arc::clone(&identity));
                    let after_ms = self.chance.below("shared", 3);
                    self.later(after_ms, Happening::HostHears { at, life, worker: other, event });
                }
            }
        }
    }

    fn key_service_answers(&mut self, at: usize, life: u64, worker: usize, event: Event) {
        let slow = self.fault("fault the key service is slow", self.plan.rates.services);
        let after_ms = self.chance.below("key service", if slow { 40_000 } else { 50 });
        self.later(after_ms, Happening::HostHears { at, life, worker, event });
    }

    pub(crate) fn module_answers(&mut self, at: usize, life: u64, worker: usize, asked: ModuleAsked) {
        let ModuleAsked { token, public_key, nonce, user_data } = asked;
        let document = if self.fault("fault the security module fails", self.plan.rates.services) {
            Err(Failed)
        } else {
            Ok(module::document(
                (Make::Genuine, at as u64 + 1),
                self.unix_ms(),
                public_key.as_deref(),
                nonce.as_deref(),
                user_data.as_deref(),
            ))
        };
        self.host_hears(at, life, worker, Event::Attested { token, document });
    }

    fn host_replies(&mut self, at: usize, life: u64, call: u64, body: Vec<u8>) {
        let Some(process) = self.hosts[at].of_life(life) else { return };
        let asked = process.asked.remove(&call).expect("a machine replies once to each request");
        let worked = process.switches.iter().all(Switch::works);
        let reply = Reply::decode(&body).expect("an enclave speaks the protocol");
        self.god.leaks.scan(&body, "a frame from an enclave");
        if let Some(request) = &asked.request {
            let routed = asked.routing_id == request.routing_id() || matches!(reply, Reply::Refused(_));
            assert!(routed, "S3: an enclave carries out a frame that is routed to another session");
            self.judge_reply((at, life), worked, request, &reply);
        }
        if let (Some(Request::OpenIdentity(row)), Reply::IdentityOpened, Origin::Gateway { .. }) =
            (&asked.request, &reply, asked.origin)
        {
            self.god.identity_used(row.ecies_key);
        }
        self.reply_on_wire(at, asked.origin, asked.routing_id, body, &reply);
    }

    /// Takes a reply back to the gateway.
    pub(crate) fn deliver_reply(
        &mut self,
        at: usize,
        (generation, request_id): (u64, u64),
        routing_id: [u8; 16],
        body: Vec<u8>,
    ) {
        if self.hosts[at].link.silent {
            return;
        }
        if self.fault("fault a link is cut", self.plan.rates.cut) {
            return self.link_breaks(at);
        }
        let frame = Frame { kind: Kind::Reply, request_id, routing_id, body };
        let Ok(bytes) = frame.encode() else { return };
        let mut after_ms = self.latency_ms();
        if self.fault("fault a frame is late", self.plan.rates.frame) {
            after_ms += self.chance.below("late frame", 40_000);
        }
        self.later(after_ms, Happening::ReplyArrives { at, generation, bytes });
    }

    pub(crate) fn reply_arrives(&mut self, at: usize, generation: u64, bytes: &[u8]) {
        let frame = Frame::decode(bytes[4..].to_vec()).expect("a frame that was just encoded");
        let link = &mut self.hosts[at].link;
        if link.generation != generation {
            return;
        }
        // Late: the pool has given it up.
        let Some(call) = link.calls.remove(&frame.request_id) else { return };
        self.gateway_hears(keymeld_core::gateway::Event::Replied { call, body: frame.body });
    }

    pub(crate) fn call_fails(&mut self, at: usize, generation: u64, request_id: u64) {
        let link = &mut self.hosts[at].link;
        if link.generation == generation
            && let Some(call) = link.calls.remove(&request_id)
        {
            self.gateway_hears(keymeld_core::gateway::Event::CallFailed { call });
        }
    }
}
