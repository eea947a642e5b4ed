//! The gateway's process: the machine, the database and the batches of its core thread, as in the program.

use std::collections::{BTreeMap, VecDeque};

use keymeld_core::entropy::Entropy;
use keymeld_core::gateway::{self, CallId, Command, Config, Event, Gateway, Report, RequestId};
use keymeld_core::id::EnclaveId;
use keymeld_core::record::{LoadError, Persist, PersistError, Query};
use keymeld_store::limits::GROUP_TOKENS_MAX;

use super::chance::{Switch, generator};
use super::disk::{Disk, Files};
use super::host::Host;
use super::world::{Happening, World};

/// Snapshots of the database that a hostile host keeps.
const SNAPSHOTS_MAX: usize = 8;

/// The process and its disk.
pub(crate) struct GatewayNode {
    pub(crate) life: u64,
    machine: Option<Gateway>,
    pub(crate) disk: Disk,
    entropy: Entropy,
    pub(crate) switch: Switch,
    pub(crate) skew_ms: i64,
    enclaves: Vec<EnclaveId>,
    sessions_max: Option<usize>,
    started_ms: u64,
    inbox: VecDeque<Event>,
    /// When it looks into its inbox next.
    works_at_ms: Option<u64>,
    answers: VecDeque<Event>,
    writes: Vec<Persist>,
    /// Which exchange each request came with.
    pub(crate) requests: BTreeMap<RequestId, u64>,
    last_request: u64,
    snapshots: Vec<Files>,
}

impl GatewayNode {
    pub(crate) fn new(seed: u64, hosts: &[Host], sessions_max: Option<usize>) -> GatewayNode {
        let (entropy, switch) = generator(seed, 1);
        GatewayNode {
            life: 0,
            machine: None,
            disk: Disk::new(),
            entropy,
            switch,
            skew_ms: 0,
            enclaves: hosts.iter().map(|host| host.id).collect(),
            sessions_max,
            started_ms: 0,
            inbox: VecDeque::new(),
            works_at_ms: None,
            answers: VecDeque::new(),
            writes: Vec::new(),
            requests: BTreeMap::new(),
            last_request: 0,
            snapshots: Vec::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.machine.is_some()
    }

    /// A number for a request that came with an exchange.
    pub(crate) fn request(&mut self, exchange: u64) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.requests.insert(request, exchange);
        request
    }
}

impl World {
    pub(crate) fn gateway_starts(&mut self) {
        self.gateway.life = self.new_life();
        let mut config = Config::new(self.gateway.enclaves.clone());
        if let Some(sessions_max) = self.gateway.sessions_max {
            config.sessions_max = sessions_max;
        }
        self.gateway.machine = Some(Gateway::new(config));
        self.gateway.started_ms = self.now_ms;
        self.log.note(format_args!("the gateway starts"));
        self.gateway_hears(Event::Started);
        for at in 0..self.hosts.len() {
            let up_ms = self.chance.below("link up", 500);
            self.later(up_ms, Happening::LinkUp { at });
        }
    }

    /// Puts an event into the core thread's inbox.
    pub(crate) fn gateway_hears(&mut self, event: Event) {
        if self.gateway.is_up() {
            self.gateway.inbox.push_back(event);
            self.gateway_wakes(self.now_ms);
        }
    }

    fn gateway_wakes(&mut self, at_ms: u64) {
        if self.gateway.works_at_ms.is_none_or(|works_at_ms| works_at_ms > at_ms) {
            self.gateway.works_at_ms = Some(at_ms);
            let life = self.gateway.life;
            self.later(at_ms - self.now_ms, Happening::GatewayWorks { life });
        }
    }

    /// One batch of the core thread; `Core::batch` of the program.
    pub(crate) fn gateway_works(&mut self, life: u64) {
        if life != self.gateway.life || self.gateway.works_at_ms != Some(self.now_ms) {
            return;
        }
        self.gateway.works_at_ms = None;
        if self.fault("fault the gateway dies before a batch", 4 * self.plan.rates.gateway) {
            return self.gateway_dies(None);
        }
        for _ in 0..GROUP_TOKENS_MAX {
            let Some(event) = self.gateway.inbox.pop_front() else { break };
            self.gateway_handles(event);
        }
        let now = self.gateway_time().mono_ms;
        let deadline = |world: &World| world.gateway.machine.as_ref().and_then(Gateway::next_deadline);
        if deadline(self).is_some_and(|deadline| deadline.mono_ms <= now) {
            self.gateway_handles(Event::Ticked);
        }
        if !self.gateway_commits() {
            return;
        }
        if !self.gateway.inbox.is_empty() {
            self.gateway_wakes(self.now_ms);
        } else if let Some(deadline) = deadline(self) {
            let due_ms = self.gateway.started_ms.saturating_add(deadline.mono_ms);
            self.gateway_wakes(due_ms.max(self.now_ms));
        }
    }

    fn gateway_time(&self) -> keymeld_core::time::Time {
        self.clock(self.gateway.skew_ms, self.gateway.started_ms)
    }

    /// Hands the machine an event, and the answers to its commands until there are none.
    fn gateway_handles(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            let now = self.gateway_time();
            let GatewayNode { machine, entropy, .. } = &mut self.gateway;
            let Some(machine) = machine else { return };
            machine.handle(now, event, entropy);
            let mut commands = Vec::new();
            while let Some(command) = machine.poll_command() {
                commands.push(command);
            }
            let sessions_max = self.gateway.sessions_max;
            let sessions = self.gateway.machine.as_ref().map_or(0, Gateway::sessions);
            assert!(sessions_max.is_none_or(|max| sessions <= max), "S8: {sessions} sessions in memory");
            for command in commands {
                self.gateway_executes(command);
            }
            next = self.gateway.answers.pop_front();
        }
    }

    /// Makes the batch durable and whatever follows from that; false where the process did not outlive it.
    fn gateway_commits(&mut self) -> bool {
        while !self.gateway.writes.is_empty() {
            let one_in = self.plan.rates.gateway;
            if self.fault("fault the gateway dies before a commit", one_in) {
                self.gateway_dies(None);
                return false;
            }
            let writes = std::mem::take(&mut self.gateway.writes);
            for write in writes.iter().flat_map(|persist| &persist.writes) {
                self.god.leaks.scan(&write.body, "a row");
            }
            if self.fault("fault a commit fails", self.plan.rates.disk) {
                let errors = [PersistError::DiskFull, PersistError::ReadOnly, PersistError::Failed];
                let error = errors[self.chance.place("disk error", errors.len())];
                for persist in writes {
                    self.gateway_handles(Event::PersistFailed { token: persist.token, error });
                }
                continue;
            }
            let torn = self.fault("fault the machine dies in a commit", one_in);
            let before = torn.then(|| self.gateway.disk.files());
            let answers = self.gateway.disk.commit(&writes);
            if let Some(before) = before {
                let after = self.gateway.disk.files();
                let files = Disk::torn(&before, &after, &mut self.chance);
                self.gateway_dies(Some(files));
                return false;
            }
            for (persist, (_, answer)) in writes.iter().zip(&answers) {
                match answer {
                    Ok(()) => self.god.committed(&self.log, persist),
                    Err(error) => panic!("S6: the database refuses a write: {error}"),
                }
            }
            if self.plan.hostile && self.chance.one_in("snapshot", 4) {
                self.snapshot();
            }
            if self.fault("fault the gateway dies after a commit", one_in) {
                self.gateway_dies(None);
                return false;
            }
            for (token, _) in answers {
                self.gateway_handles(Event::Persisted { token });
            }
        }
        true
    }

    fn snapshot(&mut self) {
        if self.gateway.snapshots.len() == SNAPSHOTS_MAX {
            self.gateway.snapshots.remove(0);
        }
        let files = self.gateway.disk.files();
        self.gateway.snapshots.push(files);
    }

    /// The process is gone with its memory; what is on the disk is left, or these files.
    pub(crate) fn gateway_dies(&mut self, files: Option<Files>) {
        let torn = files.is_some();
        let mut files = files.unwrap_or_else(|| self.gateway.disk.files());
        let rolls_back = self.plan.hostile && !self.gateway.snapshots.is_empty();
        if rolls_back && self.fault("hostile: a database of before", 4) {
            let at = self.chance.place("which snapshot", self.gateway.snapshots.len());
            files = self.gateway.snapshots[at].clone();
            self.god.ledger.rolled_back();
        }
        self.log.note(format_args!("the gateway dies{}", if torn { " in a commit" } else { "" }));
        self.gateway.disk.reopen(&files);
        self.god.gateway_died(&mut self.gateway.disk);
        self.gateway.life = self.new_life();
        self.gateway.machine = None;
        self.gateway.inbox.clear();
        self.gateway.answers.clear();
        self.gateway.writes.clear();
        self.gateway.works_at_ms = None;
        for exchange in std::mem::take(&mut self.gateway.requests).into_values() {
            // Some hear of it, the others wait until they give up.
            if !self.chance.one_in("nobody hears of the death", 3) {
                self.later(1, Happening::ExchangeFails { exchange });
            }
        }
        for host in &mut self.hosts {
            host.link.cut();
        }
        let down_ms = self.chance.between("gateway down", 1, 5_000);
        self.later(down_ms, Happening::GatewayStarts);
    }

    fn gateway_executes(&mut self, command: Command) {
        match command {
            Command::Load(query) => self.gateway_loads(query),
            Command::Persist(persist) => self.gateway.writes.push(persist),
            Command::Respond { request, response } => {
                if let Some(exchange) = self.gateway.requests.remove(&request) {
                    self.gateway_responds(exchange, response);
                }
            }
            Command::Send { enclave_id, call, routing_id, body } => {
                self.gateway_sends(enclave_id, call, routing_id, body);
            }
            Command::Report(report) => self.gateway_reports(&report),
        }
    }

    fn gateway_loads(&mut self, query: Query) {
        let rows = if self.fault("fault a read fails", 4 * self.plan.rates.disk) {
            Err(LoadError)
        } else {
            self.gateway.disk.load(&query)
        };
        self.gateway.answers.push_back(Event::Loaded { query, rows });
    }

    fn gateway_sends(&mut self, enclave_id: EnclaveId, call: CallId, routing_id: [u8; 16], body: Vec<u8>) {
        let at = self.hosts.iter().position(|host| host.id == enclave_id);
        let at = at.expect("the gateway knows these enclaves and no others");
        self.god.leaks.scan(&body, "a frame to an enclave");
        self.sends_frame(at, call, routing_id, body);
    }

    fn gateway_reports(&mut self, report: &Report) {
        self.log.note(format_args!("the gateway reports {report:?}"));
        if let gateway::Report::RecordCorrupt(key) = report {
            // A read that failed shows itself like this, where it was an enclave's.
            let failing = self.plan.rates.disk != 0;
            assert!(failing || self.plan.hostile, "S6: the gateway cannot read its own {key:?}");
        }
    }
}
