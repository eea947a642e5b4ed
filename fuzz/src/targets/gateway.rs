//! The gateway machine: any events in any order, and records of any content.

use std::collections::BTreeSet;

use keymeld_core::api::proof::Caller;
use keymeld_core::api::router::Call;
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::gateway::{CallId, Command, Config, Event, Gateway, Report, RequestId};
use keymeld_core::id::{EnclaveId, KeygenId, SigningId, UserId};
use keymeld_core::link::message::{Refused, Reply, Request};
use keymeld_core::record::{Family, LoadError, Persist, PersistError, Query, RecordKey, Row};
use keymeld_core::refusal::Code;
use keymeld_core::time::Time;
use keymeld_examples::disk::{Disk as _, MemoryDisk};

use super::program::Program;
use crate::stage::START;
use crate::stage::host::Host;
use crate::stage::story::{ENCLAVES, STORY};

/// Events of one input.
const EVENTS_MAX: usize = 200;
/// Deadlines that are met before nobody may wait any more: far more than long polls and retries take.
const SETTLING_MAX: usize = 2_000;

/// A gateway between a driver that does as it likes and a disk that can be trusted.
struct Play {
    gateway: Gateway,
    enclaves: Vec<EnclaveId>,
    disk: MemoryDisk,
    time: Time,
    entropy: Entropy,
    last_request: u64,
    waiting: BTreeSet<u64>,
    /// Nobody waits for these any more; they may be answered or not.
    gone: BTreeSet<u64>,
    reports: Vec<Report>,
    loads: Vec<Query>,
    persists: Vec<Persist>,
    calls: Vec<(EnclaveId, CallId, Request)>,
}

impl Play {
    /// A gateway on a disk that holds the first `writes` of the story's.
    fn new(writes: usize) -> Play {
        let mut disk = MemoryDisk::default();
        for persist in &STORY.journal.persists[..writes] {
            assert!(disk.commit(std::slice::from_ref(persist)).iter().all(|(_, answer)| answer.is_ok()));
        }
        let hosts = STORY.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let enclaves: Vec<EnclaveId> = hosts.iter().map(Host::enclave_id).collect();
        Play {
            gateway: Gateway::new(Config::new(enclaves.clone())),
            enclaves,
            disk,
            time: Time { unix_ms: START + 60_000, mono_ms: 1 },
            entropy: test_entropy(21),
            last_request: 0,
            waiting: BTreeSet::new(),
            gone: BTreeSet::new(),
            reports: Vec::new(),
            loads: Vec::new(),
            persists: Vec::new(),
            calls: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        self.gateway.handle(self.time, event, &mut self.entropy);
        while let Some(command) = self.gateway.poll_command() {
            match command {
                Command::Load(query) => {
                    // An enclave's rows may be asked for twice; the second answer changes nothing.
                    let of_enclave = matches!(query, Query::Record(of) if of.family == Family::Enclave);
                    let twice = self.loads.contains(&query) && !of_enclave;
                    assert!(!twice, "one load for each session at a time");
                    self.loads.push(query);
                }
                Command::Persist(persist) => {
                    assert!(!persist.writes.is_empty(), "a write of nothing");
                    self.persists.push(persist);
                }
                Command::Respond { request, response } => {
                    let awaited = self.waiting.remove(&request.0) || self.gone.remove(&request.0);
                    assert!(awaited, "answered once, whoever asked");
                    assert!((200..600).contains(&response.status));
                }
                Command::Send { enclave_id, call, body, .. } => {
                    assert!(self.enclaves.contains(&enclave_id));
                    let asked = Request::decode(&body).expect("requests are well-formed");
                    self.calls.push((enclave_id, call, asked));
                }
                Command::Report(report) => self.reports.push(report),
            }
        }
    }

    fn request(&mut self, call: Call) {
        self.last_request += 1;
        self.waiting.insert(self.last_request);
        self.tell(Event::Requested { request: RequestId(self.last_request), call });
    }

    /// One process ends and the next begins: what was not durable is gone.
    fn restart(&mut self) {
        self.gateway = Gateway::new(Config::new(self.enclaves.clone()));
        self.waiting.clear();
        self.gone.clear();
        self.loads.clear();
        self.persists.clear();
        self.calls.clear();
        self.tell(Event::Started);
    }

    fn load(&mut self, query: Query) {
        let rows = self.disk.load(&query);
        self.tell(Event::Loaded { query, rows });
    }

    /// Does what it asks; where rows are as they were handed out it must get their versions right.
    fn persist(&mut self, persist: &Persist) {
        let event = match self.disk.commit(std::slice::from_ref(persist)).remove(0) {
            (token, Ok(())) => Event::Persisted { token },
            (_, Err(error)) => panic!("a write that does not follow from what was read: {error}"),
        };
        self.tell(event);
    }

    /// From here on the disk works, enclaves are gone and time passes: nobody may be left waiting.
    fn settle(&mut self) {
        for enclave_id in self.enclaves.clone() {
            self.tell(Event::EnclaveLost { enclave_id });
        }
        for _ in 0..SETTLING_MAX {
            while !(self.loads.is_empty() && self.persists.is_empty() && self.calls.is_empty()) {
                for query in std::mem::take(&mut self.loads) {
                    self.load(query);
                }
                for persist in std::mem::take(&mut self.persists) {
                    self.persist(&persist);
                }
                for (_, call, _) in std::mem::take(&mut self.calls) {
                    self.tell(Event::CallFailed { call });
                }
            }
            if self.waiting.is_empty() {
                return;
            }
            let deadline = self.gateway.next_deadline().expect("somebody waits, so there is a deadline");
            self.pass(deadline.mono_ms.saturating_sub(self.time.mono_ms));
            self.tell(Event::Ticked);
        }
        panic!("requests that nobody answers: {:?}", self.waiting);
    }

    fn pass(&mut self, ms: u64) {
        self.time.mono_ms += ms;
        self.time.unix_ms += ms;
    }
}

/// A driver that does anything: requests, replies, losses, crashes, a disk that fails.
///
/// # Panics
/// Where a request is answered twice or never, or a write does not follow from what was read.
pub fn events(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let mut play = Play::new(program.below(STORY.journal.persists.len() + 1));
    play.tell(Event::Started);
    for _ in 0..EVENTS_MAX {
        if program.is_over() {
            break;
        }
        step(&mut play, &mut program);
    }
    play.settle();
}

fn step(play: &mut Play, program: &mut Program<'_>) {
    match program.byte() % 16 {
        0..=3 => {
            let call = program.pick(&STORY.journal.calls).expect("there are some").clone();
            let call = changed(call, play, program);
            play.request(call);
        }
        4 | 5 if !play.loads.is_empty() => {
            let query = play.loads.remove(program.below(play.loads.len()));
            play.load(query);
        }
        6 if !play.loads.is_empty() => {
            let query = play.loads.remove(program.below(play.loads.len()));
            play.tell(Event::Loaded { query, rows: Err(LoadError) });
        }
        7 | 8 if !play.persists.is_empty() => {
            let persist = play.persists.remove(program.below(play.persists.len()));
            play.persist(&persist);
        }
        9 if !play.persists.is_empty() => {
            let persist = play.persists.remove(program.below(play.persists.len()));
            let errors = [PersistError::DiskFull, PersistError::ReadOnly, PersistError::Failed];
            let error = *program.pick(&errors).expect("three");
            play.tell(Event::PersistFailed { token: persist.token, error });
        }
        10 | 11 if !play.calls.is_empty() => {
            let (_, call, _) = play.calls.remove(program.below(play.calls.len()));
            let event = answer(call, program);
            play.tell(event);
        }
        12 => {
            let enclave_id = *program.pick(&play.enclaves).expect("there are some");
            match program.below(3) {
                0 => play.tell(Event::EnclaveFound { enclave_id }),
                1 => play.tell(Event::EnclaveLost { enclave_id }),
                _ => play.tell(Event::RotationAsked { enclave_id }),
            }
        }
        13 => {
            let exponent = program.below(31);
            play.pass(1 << exponent);
            play.tell(Event::Ticked);
        }
        14 => match program.below(4) {
            0 => play.restart(),
            1 => {
                let request = RequestId(program.below(64) as u64);
                if play.waiting.remove(&request.0) {
                    play.gone.insert(request.0);
                }
                play.tell(Event::Abandoned { request });
            }
            2 => play.tell(Event::CallFailed { call: CallId(program.below(64) as u64) }),
            _ => play.tell(Event::Ticked),
        },
        _ => {
            if !play.calls.is_empty() {
                let (_, call, _) = play.calls.remove(0);
                let body = genuine(program);
                play.tell(Event::Replied { call, body });
            }
        }
    }
}

fn genuine(program: &mut Program<'_>) -> Vec<u8> {
    program.pick(&STORY.journal.replies).expect("there are some").clone()
}

fn answer(call: CallId, program: &mut Program<'_>) -> Event {
    match program.below(4) {
        0 => Event::Replied { call, body: genuine(program) },
        1 => {
            let genuine = genuine(program);
            Event::Replied { call, body: program.altered(&genuine) }
        }
        2 => {
            let code = *program.pick(Code::ALL).expect("there are some");
            let refused = Refused { code: code.number(), culprits: vec![UserId([1; 16])] };
            Event::Replied { call, body: Reply::Refused(refused).encode() }
        }
        _ => Event::CallFailed { call },
    }
}

/// A genuine call with a fresh proof, as it is or with one thing changed.
fn changed(mut call: Call, play: &Play, program: &mut Program<'_>) -> Call {
    let change = program.byte() % 8;
    let other = program.pick(&STORY.journal.calls).cloned();
    if let Some(caller) = caller(&mut call) {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&(play.last_request + 1).to_be_bytes());
        *caller = Caller { unix_ms: play.time.unix_ms, nonce, ..*caller };
        if change == 1 {
            caller.unix_ms = program.below(1 << 16) as u64;
        }
        if let (2, Some(mut other)) = (change, other) {
            caller.key = self::caller(&mut other).map_or(caller.key, |other| other.key);
        }
    }
    if change == 3 {
        rename(&mut call, program);
    }
    if change >= 4 {
        reshape(&mut call, program);
    }
    call
}

fn caller(call: &mut Call) -> Option<&mut Caller> {
    match call {
        Call::Reserve { caller, .. }
        | Call::Init { caller, .. }
        | Call::Slots { caller, .. }
        | Call::Register { caller, .. }
        | Call::KeygenStatus { caller, .. }
        | Call::Sign { caller, .. }
        | Call::Intent { caller, .. }
        | Call::Approve { caller, .. }
        | Call::Withdraw { caller, .. }
        | Call::SigningStatus { caller, .. } => Some(caller),
        Call::Enclaves | Call::Attestation { .. } | Call::Version | Call::Health => None,
    }
}

/// Names another session.
fn rename(call: &mut Call, program: &mut Program<'_>) {
    let id = [program.byte(); 16];
    match call {
        Call::Reserve { request, .. } => request.keygen_id = KeygenId(id),
        Call::Init { keygen_id, .. }
        | Call::Slots { keygen_id, .. }
        | Call::Register { keygen_id, .. }
        | Call::KeygenStatus { keygen_id, .. } => *keygen_id = KeygenId(id),
        Call::Sign { request, .. } => request.signing_id = SigningId(id),
        Call::Intent { signing_id, .. }
        | Call::Approve { signing_id, .. }
        | Call::Withdraw { signing_id, .. }
        | Call::SigningStatus { signing_id, .. } => {
            *signing_id = STORY.requests[program.below(STORY.requests.len())].signing_id;
        }
        Call::Attestation { enclave_id, .. } => *enclave_id = EnclaveId(id),
        Call::Enclaves | Call::Version | Call::Health => {}
    }
}

/// Changes what is asked.
fn reshape(call: &mut Call, program: &mut Program<'_>) {
    match call {
        Call::Reserve { request, .. } => match program.below(4) {
            0 => request.slots.truncate(program.below(4)),
            1 => request.slots.extend_from_within(..program.below(request.slots.len().max(1))),
            2 => request.coordinator = UserId([program.byte(); 16]),
            _ => request.timeout_ms = Some(1 << program.below(53)),
        },
        Call::Init { request, .. } => match program.below(3) {
            0 => request.manifest_hash = Hash([program.byte(); 32]),
            1 => request.manifest = Blob(vec![0; program.below(1 << 16)]),
            _ => request.subsets.extend_from_within(..),
        },
        Call::Register { request, .. } => match program.below(4) {
            0 => request.user_id = STORY.registrations[program.below(3)].user_id,
            1 => request.auth_key = STORY.registrations[program.below(3)].auth_key,
            2 => request.approval_required = !request.approval_required,
            _ => request.envelope = Blob(program.altered(&request.envelope.0)),
        },
        Call::Sign { request, .. } => match program.below(5) {
            0 => request.items.truncate(program.below(3)),
            1 => request.items.extend_from_within(..),
            2 => request.expires_at = START + (1 << program.below(40)),
            3 => request.intent_digest = Hash([program.byte(); 32]),
            _ => request.requester = STORY.registrations[program.below(3)].user_id,
        },
        Call::Approve { approval, .. } => match program.below(3) {
            0 => approval.user_id = STORY.registrations[program.below(3)].user_id,
            1 => approval.intent_digest = Hash([program.byte(); 32]),
            _ => approval.signature.0[program.below(64)] ^= 1,
        },
        Call::Withdraw { withdrawal, kind, .. } => match program.below(3) {
            0 => withdrawal.user_id = STORY.registrations[program.below(3)].user_id,
            1 => {
                *kind = match program.below(2) {
                    0 => keymeld_core::artifact::approval::WithdrawalKind::Cancel,
                    _ => keymeld_core::artifact::approval::WithdrawalKind::Decline,
                }
            }
            _ => withdrawal.reason = None,
        },
        Call::KeygenStatus { wait, .. } | Call::SigningStatus { wait, .. } => {
            wait.wait_ms = program.below(30_001) as u64;
            wait.since = (program.byte().is_multiple_of(2)).then_some(program.below(100) as u64);
            wait.until_ended = program.byte().is_multiple_of(2);
        }
        Call::Attestation { epoch, nonce, .. } => {
            *epoch = Some(program.below(4) as u32);
            nonce.0[0] = program.byte();
        }
        Call::Slots { .. } | Call::Intent { .. } | Call::Enclaves | Call::Version | Call::Health => {}
    }
}

/// Records of any content: a torn, swapped or forged database. Each session's first visitor reads them.
///
/// # Panics
/// Where a request is not answered in the end.
pub fn rows(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let mut play = Play::new(0);
    play.disk = MemoryDisk::default();
    play.tell(Event::Started);
    let rows = all_rows();
    let mut shown: Vec<Row> = Vec::new();
    for _ in 0..8 {
        for row in rows_of(&mut program, &rows) {
            shown.retain(|other| other.key != row.key);
            shown.push(row);
        }
        // The answers to what is asked until then come out of these rows, and nothing can be written.
        answer_loads(&mut play, &shown, &mut program);
        if program.is_over() {
            break;
        }
        let call = program.pick(&STORY.journal.calls).expect("there are some").clone();
        let call = changed(call, &play, &mut program);
        play.request(call);
    }
    for enclave_id in play.enclaves.clone() {
        play.tell(Event::EnclaveFound { enclave_id });
        answer_loads(&mut play, &shown, &mut program);
    }
    for _ in 0..SETTLING_MAX {
        answer_loads(&mut play, &shown, &mut program);
        if play.waiting.is_empty() {
            return;
        }
        let deadline = play.gateway.next_deadline().expect("somebody waits, so there is a deadline");
        play.pass(deadline.mono_ms.saturating_sub(play.time.mono_ms));
        play.tell(Event::Ticked);
    }
    panic!("requests that nobody answers: {:?}", play.waiting);
}

fn all_rows() -> Vec<Row> {
    let row = |write: &keymeld_core::record::Write| Row {
        key: write.key,
        version: write.replaces + 1,
        body: write.body.clone(),
    };
    STORY.journal.persists.iter().flat_map(|persist| persist.writes.iter().map(row)).collect()
}

/// Some of the story's rows, each as it was or with one thing changed.
fn rows_of(program: &mut Program<'_>, rows: &[Row]) -> Vec<Row> {
    let mut chosen = Vec::new();
    let from = program.below(rows.len());
    for row in rows.iter().skip(from).take(program.below(rows.len() - from) + 1) {
        let mut row = row.clone();
        match program.byte() % 8 {
            0 => row.body = program.altered(&row.body),
            1 => row.body = rows[program.below(rows.len())].body.clone(),
            2 => row.version = u64::from(program.byte()),
            3 => row.key.part = u32::from(program.byte()),
            4 => {
                let families = [Family::Keygen, Family::Signing, Family::Enclave];
                row.key.record.family = *program.pick(&families).expect("three");
            }
            5 => row.key.record.id = [program.byte(); 16],
            6 => continue,
            _ => {}
        }
        chosen.push(row);
    }
    chosen
}

fn answer_loads(play: &mut Play, shown: &[Row], program: &mut Program<'_>) {
    while !(play.loads.is_empty() && play.persists.is_empty() && play.calls.is_empty()) {
        for query in std::mem::take(&mut play.loads) {
            let rows = match query {
                Query::Record(record) => of_record(shown, record),
                Query::Open { after, count_max } => {
                    let mut heads: Vec<Row> = shown
                        .iter()
                        .filter(|row| row.key.part == 0 && Some(row.key.record) > after)
                        .cloned()
                        .collect();
                    heads.sort_by_key(|row| row.key);
                    heads.truncate(count_max as usize);
                    heads
                }
            };
            play.tell(Event::Loaded { query, rows: Ok(rows) });
        }
        for persist in std::mem::take(&mut play.persists) {
            let error = PersistError::ReadOnly;
            play.tell(Event::PersistFailed { token: persist.token, error });
        }
        for (_, call, _) in std::mem::take(&mut play.calls) {
            let event = answer(call, program);
            play.tell(event);
        }
    }
}

fn of_record(shown: &[Row], record: RecordKey) -> Vec<Row> {
    let mut rows: Vec<Row> = shown.iter().filter(|row| row.key.record == record).cloned().collect();
    rows.sort_by_key(|row| row.key);
    rows
}

/// Programs in which disk and enclaves do what they should: the whole story, from its beginning and from a
/// restart at each of some writes.
pub fn honest() -> Vec<Vec<u8>> {
    let writes = STORY.journal.persists.len();
    let from = [0, writes / 4, writes / 2, 3 * writes / 4, writes];
    from.iter().map(|from| honest_program(u8::try_from(*from).expect("few writes"))).collect()
}

fn honest_program(from: u8) -> Vec<u8> {
    let (mut bytes, _) = honest_play(from);
    bytes.truncate(500);
    bytes
}

fn honest_play(from: u8) -> (Vec<u8>, Play) {
    let mut bytes = vec![from];
    let mut play = Play::new(usize::from(from));
    play.tell(Event::Started);
    let mut run = |then: &[u8], play: &mut Play| {
        step(play, &mut Program::new(then));
        bytes.extend_from_slice(then);
    };
    let calls = STORY.journal.calls.len().min(40);
    let found = (0..ENCLAVES).map(|at| vec![12, u8::try_from(at).expect("few"), 0]);
    let calls = (0..calls).map(|index| vec![0, u8::try_from(index).expect("few"), 0, 0]);
    for first in found.chain(calls) {
        run(&first, &mut play);
        for _ in 0..8 {
            if !play.loads.is_empty() {
                run(if play.loads.len() > 1 { &[4, 0] } else { &[4] }, &mut play);
            } else if !play.persists.is_empty() {
                run(if play.persists.len() > 1 { &[7, 0] } else { &[7] }, &mut play);
            } else if let Some((enclave_id, _, request)) = play.calls.first() {
                let reply = fitting(*enclave_id, request);
                run(&[15, reply], &mut play);
            }
        }
    }
    (bytes, play)
}

/// The story's reply to such a request, by its place among the replies.
fn fitting(enclave_id: EnclaveId, request: &Request) -> u8 {
    let answers = |reply: &Reply| match (request, reply) {
        (Request::Hello, Reply::Hello(hello)) => hello.enclave_id == enclave_id,
        (Request::CreateIdentity(_), Reply::IdentityCreated(row)) => row.enclave_id == enclave_id,
        (Request::MakeNonces(make), Reply::NoncesMade(addressed)) => {
            addressed.iter().all(|to| to.peer != make.run.enclave_key)
        }
        (Request::OpenIdentity(_), Reply::IdentityOpened)
        | (Request::Attest(_), Reply::Attested(_))
        | (Request::CheckRegistration(_), Reply::RegistrationChecked)
        | (Request::OpenKeygen(_), Reply::KeygenOpened(_))
        | (Request::MakePartials(_), Reply::PartialsMade(_))
        | (Request::Aggregate(_), Reply::Aggregated(_)) => true,
        _ => false,
    };
    let replies = STORY.journal.replies.iter().map(|body| Reply::decode(body).expect("genuine"));
    let index = replies.into_iter().position(|reply| answers(&reply)).unwrap_or(0);
    u8::try_from(index).expect("few replies")
}

#[cfg(test)]
mod tests {
    use keymeld_core::gateway::Report;

    use super::honest_play;

    #[test]
    fn an_honest_program_completes_a_keygen_and_a_signing() {
        let (_, play) = honest_play(0);
        let keygen = |report: &Report| matches!(report, Report::KeygenEnded(_, None));
        let signing = |report: &Report| matches!(report, Report::SigningEnded(_, None));
        assert!(play.reports.iter().any(keygen), "{:?}", play.reports);
        assert!(play.reports.iter().any(signing), "{:?}", play.reports);
    }
}
