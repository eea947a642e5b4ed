//! A gateway with everything around it played by hand: driver, disk, enclaves, clients.
#![allow(dead_code, reason = "each test file uses its own part of it")]

pub(crate) mod enclave;
pub(crate) mod party;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use keymeld_core::api::http::Response;
use keymeld_core::api::problem::Problem;
use keymeld_core::api::proof::Caller;
use keymeld_core::api::router::Call;
use keymeld_core::bytes::XOnlyKey;
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::gateway::{CallId, Command, Config, Event, Gateway, Report, RequestId};
use keymeld_core::id::{EnclaveId, KeygenId, SigningId};
use keymeld_core::link::message::Request;
use keymeld_core::record::{Family, LoadError, Persist, PersistError, Query, RecordKey, Row, RowKey, Token};
use keymeld_core::strict;
use keymeld_core::time::Time;
use serde::{Deserialize, Serialize};

use enclave::Enclave;

/// When every test begins.
pub(crate) const START_UNIX_MS: u64 = 1_800_000_000_000;

/// What survives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) rows: BTreeMap<RowKey, Row>,
    pub(crate) open: BTreeSet<RecordKey>,
}

impl Disk {
    /// Writes as a store does: all or nothing, each against the version that it replaces.
    pub(crate) fn write(&mut self, persist: &Persist) {
        assert!(!persist.writes.is_empty(), "a write is never empty");
        for write in &persist.writes {
            let version = self.rows.get(&write.key).map_or(0, |row| row.version);
            assert_eq!(version, write.replaces, "every write knows the row that it replaces");
        }
        for write in &persist.writes {
            let row = Row { key: write.key, version: write.replaces + 1, body: write.body.clone() };
            self.rows.insert(write.key, row);
            if write.key.part == 0 {
                let record = write.key.record;
                if write.open {
                    self.open.insert(record)
                } else {
                    self.open.remove(&record)
                };
            }
        }
    }

    pub(crate) fn read(&self, query: Query) -> Vec<Row> {
        match query {
            Query::Record(record) => {
                self.rows.values().filter(|row| row.key.record == record).cloned().collect()
            }
            Query::Open { after, count_max } => {
                let open = self.open.iter().filter(|record| after.is_none_or(|after| **record > after));
                open.take(count_max as usize)
                    .map(|record| self.rows[&RowKey { record: *record, part: 0 }].clone())
                    .collect()
            }
        }
    }
}

/// A gateway and its world.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) gateway: Gateway,
    pub(crate) entropy: Entropy,
    pub(crate) now: Time,
    pub(crate) disk: Disk,
    pub(crate) disk_fails: bool,
    pub(crate) enclaves: BTreeMap<EnclaveId, Enclave>,
    /// Commands that were not carried out yet; responses and reports are noted at once.
    pub(crate) outbox: VecDeque<Command>,
    pub(crate) asked: BTreeMap<RequestId, Vec<RecordKey>>,
    pub(crate) answers: BTreeMap<RequestId, Response>,
    pub(crate) reports: Vec<Report>,
    /// Records with writes that are not durable yet.
    pub(crate) in_flight: BTreeMap<Token, Vec<RecordKey>>,
    /// Writes carried out so far, whatever came of them.
    pub(crate) writes: usize,
    /// The number of the write at which the process dies, and whether the write takes effect.
    pub(crate) crash_at: Option<(usize, bool)>,
    /// Requests that enclaves got, in order.
    pub(crate) sent: Vec<(EnclaveId, Request)>,
    proofs: u64,
    requests: u64,
}

pub(crate) fn enclave_id(number: u8) -> EnclaveId {
    EnclaveId([number; 16])
}

/// Reads a body or says what it is instead.
pub(crate) fn body<T: for<'de> Deserialize<'de> + Serialize>(response: &Response) -> T {
    match strict::from_json(&response.body, usize::MAX) {
        Ok(body) => body,
        Err(error) => panic!("{error:?}: {} {}", response.status, String::from_utf8_lossy(&response.body)),
    }
}

/// The code of a refusal, or the status of anything else.
pub(crate) fn outcome(response: &Response) -> String {
    if response.status < 300 { response.status.to_string() } else { body::<Problem>(response).code }
}

impl World {
    /// A gateway that was started, with `count` enclaves that are up and ready.
    pub(crate) fn new(count: u8) -> World {
        let mut world = World::unstarted(count);
        world.start();
        for number in 1..=count {
            world.find(enclave_id(number));
        }
        world.run();
        world
    }

    pub(crate) fn unstarted(count: u8) -> World {
        let config = Config::new((1..=count).map(enclave_id).collect());
        World {
            gateway: Gateway::new(config.clone()),
            config,
            entropy: test_entropy(7),
            now: Time { unix_ms: START_UNIX_MS, mono_ms: 5_000 },
            disk: Disk::default(),
            disk_fails: false,
            enclaves: (1..=count)
                .map(|number| (enclave_id(number), Enclave::new(enclave_id(number))))
                .collect(),
            outbox: VecDeque::new(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            reports: Vec::new(),
            in_flight: BTreeMap::new(),
            writes: 0,
            crash_at: None,
            sent: Vec::new(),
            proofs: 0,
            requests: 0,
        }
    }

    pub(crate) fn start(&mut self) {
        self.handle(Event::Started);
    }

    /// An enclave's link comes up.
    pub(crate) fn find(&mut self, enclave_id: EnclaveId) {
        self.enclaves.get_mut(&enclave_id).expect("configured").linked = true;
        self.handle(Event::EnclaveFound { enclave_id });
    }

    /// An enclave dies with all it knew; calls to it fail.
    pub(crate) fn lose(&mut self, enclave_id: EnclaveId) {
        self.enclaves.insert(enclave_id, Enclave::new(enclave_id));
        let is_to =
            |command: &Command| matches!(command, Command::Send { enclave_id: to, .. } if *to == enclave_id);
        let (lost, left) = self.outbox.drain(..).partition(is_to);
        let lost: VecDeque<Command> = lost;
        self.outbox = left;
        self.handle(Event::EnclaveLost { enclave_id });
        for command in lost {
            let Command::Send { call, .. } = command else { continue };
            self.handle(Event::CallFailed { call });
        }
    }

    /// The process dies: everything but the disk and the enclaves is gone, and so are the requests.
    pub(crate) fn crash(&mut self) {
        self.gateway = Gateway::new(self.config.clone());
        self.outbox.clear();
        self.asked.clear();
        self.in_flight.clear();
        self.now.mono_ms = 77;
        self.start();
        let linked: Vec<EnclaveId> =
            self.enclaves.values().filter(|own| own.linked).map(|own| own.enclave_id).collect();
        for enclave_id in linked {
            self.find(enclave_id);
        }
    }

    /// One event in; notes the answers, keeps the rest of the commands for the outbox.
    ///
    /// Watches S6 in every test: nothing that shows a record's state leaves while a write of it is in flight.
    pub(crate) fn handle(&mut self, event: Event) {
        if let Event::Persisted { token } | Event::PersistFailed { token, .. } = &event {
            self.in_flight.remove(token);
        }
        self.gateway.handle(self.now, event, &mut self.entropy);
        while let Some(command) = self.gateway.poll_command() {
            match command {
                Command::Respond { request, response } => {
                    let about = self.asked.remove(&request);
                    let about = about.unwrap_or_else(|| panic!("{request:?} is answered once: {response:?}"));
                    if response.status < 300 {
                        self.assert_durable(&about);
                    }
                    self.answers.insert(request, response);
                }
                Command::Report(report) => {
                    match report {
                        Report::KeygenEnded(id, _) => self.assert_durable(&[record_of_keygen(id)]),
                        Report::SigningEnded(id, _) => self.assert_durable(&[record_of_signing(id)]),
                        Report::EnclaveReady(_)
                        | Report::EnclaveRefused(..)
                        | Report::AttemptRefused(..)
                        | Report::RecordCorrupt(_) => {}
                    }
                    self.reports.push(report);
                }
                Command::Send { ref body, .. } => {
                    self.assert_durable(&records_of_request(body));
                    self.outbox.push_back(command);
                }
                Command::Persist(ref persist) => {
                    let records: Vec<RecordKey> =
                        persist.writes.iter().map(|write| write.key.record).collect();
                    self.assert_durable(&records);
                    self.in_flight.insert(persist.token, records);
                    self.outbox.push_back(command);
                }
                Command::Load(_) => self.outbox.push_back(command),
            }
        }
    }

    fn assert_durable(&self, records: &[RecordKey]) {
        for record in records {
            let written = self.in_flight.values().flatten().any(|other| other == record);
            assert!(!written, "{record:?} is not shown before it is durable");
        }
    }

    /// Carries one command out as a well-behaved driver does.
    pub(crate) fn carry_out(&mut self, command: Command) {
        match command {
            Command::Load(query) => {
                let rows = if self.disk_fails { Err(LoadError) } else { Ok(self.disk.read(query)) };
                self.handle(Event::Loaded { query, rows });
            }
            Command::Persist(persist) => {
                let token = persist.token;
                if self.disk_fails {
                    return self.handle(Event::PersistFailed { token, error: PersistError::Failed });
                }
                self.writes += 1;
                match self.crash_at {
                    Some((write, takes_effect)) if write == self.writes => {
                        if takes_effect {
                            self.disk.write(&persist);
                        }
                        self.crash();
                    }
                    Some(_) | None => {
                        self.disk.write(&persist);
                        self.handle(Event::Persisted { token });
                    }
                }
            }
            Command::Send { enclave_id, call, body, .. } => self.deliver(enclave_id, call, &body),
            Command::Respond { .. } | Command::Report(_) => unreachable!("noted at once"),
        }
    }

    fn deliver(&mut self, enclave_id: EnclaveId, call: CallId, body: &[u8]) {
        let request = Request::decode(body).expect("the gateway speaks its own language");
        self.sent.push((enclave_id, request.clone()));
        let enclave = self.enclaves.get_mut(&enclave_id).expect("configured");
        if !enclave.linked {
            return self.handle(Event::CallFailed { call });
        }
        match enclave.answer(&request) {
            Some(reply) => self.handle(Event::Replied { call, body: reply.encode() }),
            None => self.handle(Event::CallFailed { call }),
        }
    }

    /// Carries out whatever there is to do, until nothing is left but timers.
    pub(crate) fn run(&mut self) {
        for _ in 0..200_000 {
            let Some(command) = self.outbox.pop_front() else { return };
            self.carry_out(command);
        }
        panic!("the gateway never comes to rest");
    }

    /// Lets time pass, with a tick at each deadline, carrying everything out.
    pub(crate) fn pass(&mut self, ms: u64) {
        let end = self.now.mono_ms + ms;
        for _ in 0..200_000 {
            let due = self.gateway.next_deadline().map(|deadline| deadline.mono_ms).filter(|due| *due <= end);
            let Some(due) = due else {
                self.sleep(end - self.now.mono_ms);
                return;
            };
            self.sleep(due.saturating_sub(self.now.mono_ms));
            self.handle(Event::Ticked);
            self.run();
        }
        panic!("the gateway never stops to tick");
    }

    /// Lets time pass and nothing happen.
    pub(crate) fn sleep(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
    }

    pub(crate) fn caller(&mut self, key: XOnlyKey) -> Caller {
        self.proofs += 1;
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.proofs.to_be_bytes());
        Caller { key, unix_ms: self.now.unix_ms, nonce }
    }

    /// Puts a request in; nothing is carried out.
    pub(crate) fn ask(&mut self, call: Call) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.asked.insert(request, records_of_call(&call));
        self.handle(Event::Requested { request, call });
        request
    }

    /// Puts a request in, carries everything out, and gives the answer.
    pub(crate) fn call(&mut self, call: Call) -> Response {
        self.try_call(call).expect("answered")
    }

    /// As [`call`](Self::call); `None` where the request was lost with the process.
    pub(crate) fn try_call(&mut self, call: Call) -> Option<Response> {
        let request = self.ask(call);
        self.run();
        self.answers.remove(&request)
    }

    /// The answer to a request, where it came.
    pub(crate) fn answer(&mut self, request: RequestId) -> Option<Response> {
        self.answers.remove(&request)
    }

    /// The first write in the outbox.
    pub(crate) fn open_write(&self) -> Option<Token> {
        self.outbox.iter().find_map(|command| match command {
            Command::Persist(persist) => Some(persist.token),
            Command::Load(_) | Command::Send { .. } | Command::Respond { .. } | Command::Report(_) => None,
        })
    }

    /// Carries everything out but writes.
    pub(crate) fn run_until_writes(&mut self) {
        let mut writes = VecDeque::new();
        while let Some(command) = self.outbox.pop_front() {
            match command {
                Command::Persist(_) => writes.push_back(command),
                other => self.carry_out(other),
            }
        }
        self.outbox = writes;
    }

    /// How many requests of a kind enclaves got.
    pub(crate) fn sent_count(&self, is: impl Fn(&Request) -> bool) -> usize {
        self.sent.iter().filter(|(_, request)| is(request)).count()
    }
}

pub(crate) fn record_of_keygen(id: KeygenId) -> RecordKey {
    RecordKey { family: Family::Keygen, id: id.0 }
}

pub(crate) fn record_of_signing(id: SigningId) -> RecordKey {
    RecordKey { family: Family::Signing, id: id.0 }
}

/// The records whose state an answer may show.
fn records_of_call(call: &Call) -> Vec<RecordKey> {
    match call {
        Call::Reserve { request, .. } => vec![record_of_keygen(request.keygen_id)],
        Call::Init { keygen_id, .. }
        | Call::Slots { keygen_id, .. }
        | Call::Register { keygen_id, .. }
        | Call::KeygenStatus { keygen_id, .. } => vec![record_of_keygen(*keygen_id)],
        Call::Sign { request, .. } => {
            vec![record_of_keygen(request.keygen_id), record_of_signing(request.signing_id)]
        }
        Call::Intent { signing_id, .. }
        | Call::Approve { signing_id, .. }
        | Call::Withdraw { signing_id, .. }
        | Call::SigningStatus { signing_id, .. } => vec![record_of_signing(*signing_id)],
        Call::Enclaves | Call::Attestation { .. } | Call::Version | Call::Health => Vec::new(),
    }
}

/// The records that a request to an enclave tells of.
fn records_of_request(body: &[u8]) -> Vec<RecordKey> {
    match Request::decode(body).expect("the gateway speaks its own language") {
        Request::Hello | Request::CreateIdentity(_) | Request::OpenIdentity(_) | Request::Attest(_) => {
            Vec::new()
        }
        Request::CheckRegistration(check) => vec![record_of_keygen(check.keygen_id)],
        Request::OpenKeygen(open) => vec![record_of_keygen(open.keygen_id)],
        Request::MakeNonces(make) => vec![record_of_signing(make.run.signing_id)],
        Request::MakePartials(make) => vec![record_of_signing(make.run.signing_id)],
        Request::Aggregate(aggregate) => vec![record_of_signing(aggregate.run.signing_id)],
    }
}
