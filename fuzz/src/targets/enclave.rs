//! The enclave machine: two enclaves under a host that mixes everything with everything.
//!
//! The host has the genuine story to copy from. An oracle with the enclaves' private keys reads what they send
//! each other.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use keymeld_core::artifact::approval::Approval;
use keymeld_core::bytes::{Blob, Hash, PublicKey};
use keymeld_core::crypto::auth::shared_secret;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::{Context, Round, SealKey};
use keymeld_core::enclave::bundle::NonceBundle;
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{COMMANDS_MAX, Command, Config, Enclave, Event, Failed};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::AttemptId;
use keymeld_core::link::message::{
    Addressed, Aggregate, Attest, CheckRegistration, CreateIdentity, IdentityRow, MakeNonces, MakePartials,
    OpenKeygen, Reply, Request, RunKey,
};
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;

use super::program::Program;
use super::sealed::identity_rows;
use crate::stage::story::{ENCLAVES, STORY};

/// Events of one input.
const EVENTS_MAX: usize = 32;
/// Identity rows that one input has opened: each costs as much as all its other events.
const ROWS_MAX: usize = 1;
/// How often one input has keygens opened, the story's two among them: it was more than half of all its time.
const OPENINGS_MAX: usize = 4;
/// Public nonces of the story's first intent at each enclave, and of the others.
const COUNTS: [[usize; ENCLAVES]; 2] = [[4, 1], [2, 1]];

/// What the host copies from, and what only the oracle knows.
struct Known {
    configs: Vec<Config>,
    rows: Vec<IdentityRow>,
    ecies: Vec<Secret<32>>,
    checks: Vec<(usize, CheckRegistration)>,
    opens: Vec<OpenKeygen>,
    approval: Approval,
    roster_hash: Hash,
    time_document: Vec<u8>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let hosts = STORY.hosts.lock().expect("unpoisoned");
    let rows = identity_rows();
    let asked = || {
        let asked = STORY.journal.asked.iter();
        asked.map(|asked| (asked.at, Request::decode(&asked.body).expect("genuine")))
    };
    let mut opens: Vec<OpenKeygen> = asked()
        .filter_map(|(_, request)| match request {
            Request::OpenKeygen(open) => Some(open),
            _ => None,
        })
        .collect();
    opens.sort_by_key(|open| rows.iter().position(|row| row.ecies_key == open.enclave_key));
    opens.dedup_by_key(|open| open.enclave_key);
    let check = |(at, request)| match request {
        Request::CheckRegistration(check) => Some((at, check)),
        _ => None,
    };
    let approvals = asked().find_map(|(_, request)| match request {
        Request::MakeNonces(make) => make.approvals.first().copied(),
        _ => None,
    });
    Known {
        configs: hosts.iter().map(|host| host.config.clone()).collect(),
        ecies: hosts.iter().zip(&rows).map(|(host, row)| host.ecies(row)).collect(),
        checks: asked().filter_map(check).collect(),
        opens,
        approval: approvals.expect("the second participant approved the first intent"),
        roster_hash: STORY.key.roster().roster_hash(),
        time_document: STORY.journal.documents[0].clone(),
        rows,
    }
});

/// Everything under one host.
struct Play {
    enclaves: Vec<Enclave>,
    entropy: Entropy,
    mono_ms: u64,
    last_call: u64,
    /// Requests that are not answered yet, and at which enclave.
    waiting: BTreeMap<u64, (usize, Option<Request>)>,
    /// What enclaves want of their surroundings.
    wants: Vec<(usize, Command)>,
    /// Every request so far, as it was sent.
    sent: Vec<(usize, [u8; 16], Vec<u8>)>,
    nonces: Vec<(PublicKey, Addressed)>,
    partials: Vec<(PublicKey, Blob)>,
    genuine_next: usize,
    rows_opened: usize,
    openings: usize,
    oracle: Oracle,
}

/// What was seen of nonces: by enclave and attempt, those that an enclave holds now.
#[derive(Default)]
struct Oracle {
    /// By nonce, the enclave, attempt and request that it was made for.
    made: BTreeMap<[u8; 66], (usize, AttemptId, Vec<u8>)>,
    held: BTreeMap<(usize, AttemptId), Held>,
    /// Whether attempts may have expired, and some may still be held that are not known here.
    time_passed: bool,
}

struct Held {
    nonces: Vec<[u8; 66]>,
    request: Vec<u8>,
    answer: Option<(Vec<u8>, Reply)>,
}

impl Oracle {
    fn saw(&mut self, at: usize, request: &Request, reply: &Reply) {
        match (request, reply) {
            (Request::MakeNonces(make), Reply::NoncesMade(addressed)) => {
                assert!(authorised(at, make), "nonces without the approval that they need");
                self.saw_nonces(at, make, addressed);
            }
            (Request::MakePartials(MakePartials { run, .. }), Reply::PartialsMade(_))
            | (Request::Aggregate(Aggregate { run, .. }), Reply::Aggregated(_)) => {
                let Some(held) = self.held.get_mut(&(at, run.attempt)) else {
                    return assert!(self.time_passed, "nonces come first");
                };
                let request = request.clone().encode();
                let (first, answer) = held.answer.get_or_insert_with(|| (request.clone(), reply.clone()));
                assert_eq!((&*first, &*answer), (&request, reply), "nonces answer one request alone");
            }
            _ => {}
        }
    }

    fn saw_nonces(&mut self, at: usize, make: &MakeNonces, addressed: &[Addressed]) {
        let run = &make.run;
        let request = Request::MakeNonces(make.clone()).encode();
        let opened: Vec<Vec<[u8; 66]>> =
            addressed.iter().map(|to| open_nonces(at, run, &to.peer, &to.blob)).collect();
        let nonces = opened.first().expect("signers are at both enclaves").clone();
        assert!(opened.iter().all(|other| *other == nonces), "peers are told different nonces");
        if let Some(held) = self.held.get(&(at, run.attempt)) {
            assert_eq!((&held.nonces, &held.request), (&nonces, &request), "nonces change within an attempt");
            return;
        }
        for nonce in &nonces {
            let made = (at, run.attempt, request.clone());
            let first = self.made.entry(*nonce).or_insert_with(|| made.clone());
            assert_eq!(*first, made, "a nonce was made twice");
        }
        self.held.insert((at, run.attempt), Held { nonces, request, answer: None });
    }

    /// An enclave lost its memory.
    fn forgot(&mut self, at: usize) {
        self.held.retain(|(of, _), _| *of != at);
    }
}

fn open_nonces(at: usize, run: &RunKey, peer: &PublicKey, blob: &Blob) -> Vec<[u8; 66]> {
    let secret = shared_secret(&KNOWN.ecies[at], peer).expect("a point");
    let context = Context::Nonces(Round {
        keygen_id: run.keygen_id,
        roster_hash: KNOWN.roster_hash,
        digest: run.digest,
        attempt: run.attempt,
        aggregator: run.aggregator,
        sender: run.enclave_key,
        recipient: *peer,
    });
    let plaintext = SealKey::derived(&secret, Purpose::Pair(run.attempt)).open(&context, blob);
    let plaintext = plaintext.expect("sealed for the peer, in the run's own context");
    let first = usize::from(run.digest != STORY.requests[0].intent_digest);
    let bundle = NonceBundle::decode(&plaintext, COUNTS[first][at]).expect("one for each signature");
    bundle.nonces.iter().map(|nonce| nonce.0).collect()
}

/// The second participant, at the second enclave, approves by itself; the others are asked by the coordinator.
fn authorised(at: usize, make: &MakeNonces) -> bool {
    let approver = STORY.registrations[1].enclave_key;
    let genuine = make.approvals.contains(&KNOWN.approval) && make.run.digest == KNOWN.approval.intent_digest;
    KNOWN.rows[at].ecies_key != approver || genuine
}

impl Play {
    fn new() -> Play {
        let mut play = Play {
            enclaves: KNOWN.configs.iter().map(|config| Enclave::new(config.clone())).collect(),
            entropy: test_entropy(31),
            mono_ms: 1_000,
            last_call: 0,
            waiting: BTreeMap::new(),
            wants: Vec::new(),
            sent: Vec::new(),
            nonces: Vec::new(),
            partials: Vec::new(),
            genuine_next: 0,
            rows_opened: 0,
            openings: 0,
            oracle: Oracle::default(),
        };
        for at in 0..ENCLAVES {
            play.boot(at);
        }
        play
    }

    /// A restarted enclave that holds its identity and the time.
    fn boot(&mut self, at: usize) {
        self.enclaves[at] = Enclave::new(KNOWN.configs[at].clone());
        self.waiting.retain(|_, (of, _)| *of != at);
        self.wants.retain(|(of, _)| *of != at);
        self.oracle.forgot(at);
        self.tell(at, Event::IdentityShared(Arc::clone(&STORY.identities[at])));
        self.tell(at, Event::Started);
        let Some((_, Command::Attest { token, .. })) = self.wants.pop() else {
            panic!("a started enclave asks for the time");
        };
        self.tell(at, Event::Attested { token, document: Ok(KNOWN.time_document.clone()) });
    }

    fn tell(&mut self, at: usize, event: Event) {
        let now = Time { unix_ms: 0, mono_ms: self.mono_ms };
        self.enclaves[at].handle(now, event, &mut self.entropy);
        let mut count = 0;
        while let Some(command) = self.enclaves[at].poll_command() {
            count += 1;
            match command {
                Command::Reply { call, body } => self.replied(at, call, &body),
                Command::Attest { .. }
                | Command::GenerateDataKey { .. }
                | Command::DecryptDataKey { .. }
                | Command::ShareIdentity(_) => self.wants.push((at, command)),
            }
        }
        assert!(count <= COMMANDS_MAX);
    }

    fn replied(&mut self, at: usize, call: u64, body: &[u8]) {
        let (of, request) = self.waiting.remove(&call).expect("one answer for each request");
        assert_eq!(of, at);
        let reply = Reply::decode(body).expect("replies are well-formed");
        let Some(request) = request else {
            assert!(matches!(reply, Reply::Refused(_)), "an unreadable request was not refused");
            return;
        };
        match &reply {
            Reply::NoncesMade(addressed) => {
                let own = KNOWN.rows[at].ecies_key;
                self.nonces.extend(addressed.iter().map(|addressed| (own, addressed.clone())));
            }
            Reply::PartialsMade(blob) => self.partials.push((KNOWN.rows[at].ecies_key, blob.clone())),
            _ => {}
        }
        self.oracle.saw(at, &request, &reply);
    }

    fn ask(&mut self, at: usize, request: Request) {
        let routing_id = request.routing_id();
        self.ask_bytes(at, routing_id, request.encode());
    }

    fn ask_bytes(&mut self, at: usize, routing_id: [u8; 16], body: Vec<u8>) {
        let request = Request::decode(&body).ok();
        if matches!(request, Some(Request::OpenKeygen(_))) {
            self.openings += 1;
            if self.openings > OPENINGS_MAX {
                return;
            }
        }
        self.last_call += 1;
        self.waiting.insert(self.last_call, (at, request));
        self.sent.push((at, routing_id, body.clone()));
        self.tell(at, Event::Requested { call: self.last_call, routing_id, body });
    }

    /// The security module and the key service answer, or fail.
    fn answer(&mut self, index: usize, works: bool) {
        let (at, want) = self.wants.remove(index);
        let event = match want {
            Command::Attest { token, .. } => {
                let document = KNOWN.time_document.clone();
                Event::Attested { token, document: works.then_some(document).ok_or(Failed) }
            }
            Command::GenerateDataKey { token, .. } => {
                let key = DataKey { key: Secret::copied_from(&[9; 32]), encrypted: vec![9; 48] };
                Event::DataKeyGenerated { token, key: works.then_some(key).ok_or(Failed) }
            }
            Command::DecryptDataKey { token, .. } => {
                let key = works.then(|| Secret::copied_from(&[9; 32])).ok_or(Failed);
                Event::DataKeyDecrypted { token, key }
            }
            Command::ShareIdentity(identity) => Event::IdentityShared(identity),
            Command::Reply { .. } => unreachable!("replies are taken at once"),
        };
        self.tell(at, event);
    }
}

/// A run of the input's choice, addressed to an enclave.
fn run(at: usize, program: &mut Program<'_>) -> RunKey {
    let number = program.below(STORY.requests.len());
    let asked = &STORY.requests[number];
    let mixed = &STORY.requests[if program.byte() < 240 { number } else { program.below(3) }];
    let key = |of: usize| KNOWN.rows[of].ecies_key;
    RunKey {
        enclave_key: if program.byte() < 240 { key(at) } else { key(1 - at) },
        keygen_id: asked.keygen_id,
        signing_id: asked.signing_id,
        digest: mixed.intent_digest,
        attempt: AttemptId([program.byte() % 4; 16]),
        aggregator: match program.byte() {
            0..=199 => key(0),
            200..=240 => key(1),
            _ => PublicKey([2; 33]),
        },
    }
}

fn approvals(program: &mut Program<'_>) -> Vec<Approval> {
    let genuine = KNOWN.approval;
    match program.byte() % 8 {
        0..=2 => vec![genuine],
        3 => vec![],
        4 => vec![genuine, genuine],
        5 => vec![Approval { blind: !genuine.blind, ..genuine }],
        6 => {
            let other = &STORY.requests[1 + program.below(2)];
            vec![Approval { signing_id: other.signing_id, intent_digest: other.intent_digest, ..genuine }]
        }
        _ => {
            let user_id = STORY.registrations[program.below(3)].user_id;
            vec![Approval { user_id, ..genuine }]
        }
    }
}

fn make_nonces(run: RunKey, approvals: Vec<Approval>) -> Request {
    let of = |request: &&keymeld_core::api::rest::SignRequest| request.signing_id == run.signing_id;
    let request = STORY.requests.iter().find(of).unwrap_or(&STORY.requests[0]);
    Request::MakeNonces(MakeNonces { run, intent: request.intent.clone(), approvals })
}

/// Bundles out of all that were seen; the newest that is for this enclave where the input does not say otherwise.
fn bundles(
    seen: &[(PublicKey, PublicKey, Blob)],
    own: PublicKey,
    program: &mut Program<'_>,
) -> Vec<Addressed> {
    let fitting = seen.iter().rev().find(|(_, to, _)| *to == own);
    match program.byte() % 8 {
        0..=3 => {
            fitting.map(|(peer, _, blob)| Addressed { peer: *peer, blob: blob.clone() }).into_iter().collect()
        }
        4 => Vec::new(),
        5 => seen.iter().map(|(peer, _, blob)| Addressed { peer: *peer, blob: blob.clone() }).collect(),
        _ => {
            let chosen = program.pick(seen).cloned();
            let altered =
                chosen.map(|(peer, _, blob)| Addressed { peer, blob: Blob(program.altered(&blob.0)) });
            altered.into_iter().collect()
        }
    }
}

/// Every nonce bundle that was seen: sender, recipient, blob.
fn seen_nonces(play: &Play) -> Vec<(PublicKey, PublicKey, Blob)> {
    play.nonces.iter().map(|(from, to)| (*from, to.peer, to.blob.clone())).collect()
}

fn seen_partials(play: &Play, own: PublicKey) -> Vec<(PublicKey, PublicKey, Blob)> {
    play.partials.iter().map(|(from, blob)| (*from, own, blob.clone())).collect()
}

/// A host that does anything.
///
/// # Panics
/// Where a request is not answered once, a nonce answers twice, or an authority is missing.
pub fn events(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let mut play = Play::new();
    for _ in 0..EVENTS_MAX {
        if program.is_over() {
            break;
        }
        step(&mut play, &mut program);
    }
    while !play.wants.is_empty() {
        play.answer(0, false);
    }
    assert!(play.waiting.is_empty(), "requests that nobody answers");
}

fn step(play: &mut Play, program: &mut Program<'_>) {
    let kind = program.byte() % 16;
    let at = if kind == 0 { 0 } else { program.below(ENCLAVES) };
    let own = KNOWN.rows[at].ecies_key;
    match kind {
        0 => genuine(play),
        1 => open(play, at, program),
        2 => check(play, program),
        3 | 4 => {
            let run = run(at, program);
            let approvals = approvals(program);
            play.ask(at, make_nonces(run, approvals));
        }
        5 | 6 => {
            let run = run(at, program);
            let nonces = bundles(&seen_nonces(play), own, program);
            play.ask(at, Request::MakePartials(MakePartials { run, nonces }));
        }
        7 | 8 => {
            let run = run(at, program);
            let nonces = bundles(&seen_nonces(play), own, program);
            let partials = bundles(&seen_partials(play, own), own, program);
            play.ask(at, Request::Aggregate(Aggregate { run, nonces, partials }));
        }
        9 if !play.sent.is_empty() => {
            let (of, routing_id, body) = play.sent[program.below(play.sent.len())].clone();
            play.ask_bytes(if program.byte() < 200 { of } else { at }, routing_id, body);
        }
        10 if !play.sent.is_empty() => {
            let (of, mut routing_id, body) = play.sent[program.below(play.sent.len())].clone();
            let body = program.altered(&body);
            routing_id[0] ^= u8::from(program.byte() == 1);
            play.ask_bytes(of, routing_id, body);
        }
        11 => match program.below(3) {
            0 => play.boot(at),
            1 => {
                play.enclaves[at].evict_all();
                play.oracle.forgot(at);
            }
            _ => {
                play.mono_ms += 1 << program.below(32);
                // Attempts may have expired; so have their intents then, and their names do not come free.
                play.oracle.time_passed = true;
                play.tell(at, Event::Ticked);
            }
        },
        12 => identity(play, at, program),
        13 if !play.wants.is_empty() => {
            let index = program.below(play.wants.len());
            play.answer(index, !program.byte().is_multiple_of(4));
        }
        14 => {
            let nonce = Hash([program.byte(); 32]);
            play.ask(at, Request::Attest(Attest { epoch: u32::from(program.byte() % 2), nonce }));
        }
        _ => {
            let genuine = &STORY.journal.asked[program.below(STORY.journal.asked.len())];
            let body = program.altered(&genuine.body);
            play.ask_bytes(at, genuine.routing_id, body);
        }
    }
}

/// The next step of the flow as an honest gateway drives it.
fn genuine(play: &mut Play) {
    let key = |of: usize| KNOWN.rows[of].ecies_key;
    let request = &STORY.requests[0];
    let run = |at: usize| RunKey {
        enclave_key: key(at),
        keygen_id: request.keygen_id,
        signing_id: request.signing_id,
        digest: request.intent_digest,
        attempt: AttemptId([0; 16]),
        aggregator: key(0),
    };
    let to = |play: &Play, at: usize| bundles(&seen_nonces(play), key(at), &mut Program::new(&[]));
    match play.genuine_next {
        step @ (0 | 1) => play.ask(step, Request::OpenKeygen(KNOWN.opens[step].clone())),
        step @ (2 | 3) => play.ask(step - 2, make_nonces(run(step - 2), vec![KNOWN.approval])),
        4 => {
            let nonces = to(play, 1);
            play.ask(1, Request::MakePartials(MakePartials { run: run(1), nonces }));
        }
        5 => {
            let nonces = to(play, 0);
            let partials = bundles(&seen_partials(play, key(0)), key(0), &mut Program::new(&[]));
            play.ask(0, Request::Aggregate(Aggregate { run: run(0), nonces, partials }));
        }
        _ => play.ask(0, Request::Hello),
    }
    play.genuine_next += 1;
}

fn open(play: &mut Play, at: usize, program: &mut Program<'_>) {
    let mut open = KNOWN.opens[at].clone();
    match program.byte() % 8 {
        0 | 1 => {}
        2 => open.records.truncate(program.below(3)),
        3 => open.records.extend_from_within(..1),
        4 => open.envelopes.clone_from(&KNOWN.opens[1 - at].envelopes),
        5 => {
            let record = program.below(open.records.len());
            open.records[record].blob = Blob(program.altered(&open.records[record].blob.0));
        }
        6 => open.enclave_key = KNOWN.opens[1 - at].enclave_key,
        _ => {
            let (first, second) = (program.below(3), program.below(3));
            let user = open.records[first].user_id;
            open.records[second].user_id = user;
        }
    }
    play.ask(at, Request::OpenKeygen(open));
}

fn check(play: &mut Play, program: &mut Program<'_>) {
    let (at, mut check) = program.pick(&KNOWN.checks).expect("there are some").clone();
    let (_, other) = program.pick(&KNOWN.checks).expect("there are some");
    match program.byte() % 8 {
        0 => {}
        1 => check.user_id = other.user_id,
        2 => check.envelope.clone_from(&other.envelope),
        3 => check.record.clone_from(&other.record),
        4 => check.auth_key = other.auth_key,
        5 => check.approval_required = !check.approval_required,
        6 => check.envelope = Blob(program.altered(&check.envelope.0)),
        _ => check.enclave_key = other.enclave_key,
    }
    play.ask(at, Request::CheckRegistration(check));
}

fn identity(play: &mut Play, at: usize, program: &mut Program<'_>) {
    if program.byte().is_multiple_of(2) {
        let epoch = u32::from(program.byte() % 3);
        return play.ask(at, Request::CreateIdentity(CreateIdentity { epoch }));
    }
    play.rows_opened += 1;
    if play.rows_opened > ROWS_MAX {
        return play.ask(at, Request::Hello);
    }
    let mut row = KNOWN.rows[program.below(ENCLAVES)].clone();
    match program.byte() % 8 {
        0 => row.epoch = u32::from(program.byte()),
        1 => row.ecies_key = KNOWN.rows[1 - at].ecies_key,
        2 => row.identity_key = KNOWN.rows[1 - at].identity_key,
        3 => row.birth_pcr0 = Blob(vec![program.byte(); program.below(100)]),
        4 => row.encrypted_data_key = Blob(program.altered(&row.encrypted_data_key.0)),
        5 => row.encrypted_seed = Blob(program.altered(&row.encrypted_seed.0)),
        6 => row.birth_document = Blob(program.altered(&row.birth_document.0)),
        _ => row.version = u32::from(program.byte()),
    }
    play.ask(at, Request::OpenIdentity(row));
}

#[cfg(test)]
mod tests {
    use keymeld_core::link::message::Reply;

    use super::{Play, genuine};

    #[test]
    fn the_genuine_flow_of_a_play_ends_in_a_result() {
        let mut play = Play::new();
        for _ in 0..6 {
            genuine(&mut play);
        }
        assert_eq!(play.oracle.held.len(), 2);
        let answers = play.oracle.held.values().filter_map(|held| held.answer.as_ref());
        let aggregated = answers.filter(|(_, reply)| matches!(reply, Reply::Aggregated(_)));
        assert_eq!(aggregated.count(), 1);
    }
}
