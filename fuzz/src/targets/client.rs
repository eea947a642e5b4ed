//! The client machine: any of the story's memberships, any jobs, and a gateway that answers as it likes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::Discriminant;
use std::sync::{LazyLock, PoisonError};

use keymeld_core::api::http::{Method, Request, Response};
use keymeld_core::api::problem;
use keymeld_core::api::rest::{AttestationResponse, SignRequest};
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::attestation::ServiceUserData;
use keymeld_core::attestation::document::Document;
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::client::{CallId, Client, Command, Config, Done, Event, Fault, Job, JobId, Keep};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::EnclaveId;
use keymeld_core::musig::round::verify;
use keymeld_core::record::Token;
use keymeld_core::refusal::Code;
use keymeld_core::strict;
use keymeld_core::time::Time;

use super::program::Program;
use crate::stage::START;
use crate::stage::story::{STORY, client_config, rules, signing_key};

/// Events of one input.
const EVENTS_MAX: usize = 32;
/// How long each job may take: a few repetitions.
const JOB_MS: u64 = 3_000;
/// Ticks after which every job must be over.
const SETTLING_MAX: usize = 1_000;

static CONFIG: LazyLock<Config> = LazyLock::new(|| client_config(&STORY.root));

/// A client between a user and a gateway.
struct Play {
    client: Client,
    place: usize,
    time: Time,
    entropy: Entropy,
    last_job: u64,
    jobs: BTreeSet<u64>,
    /// The kinds of what came of jobs.
    done: Vec<Discriminant<Done>>,
    sends: Vec<(CallId, Request)>,
    stores: Vec<(Token, Keep)>,
    /// Requests for signatures that are durable.
    durable: BTreeSet<Vec<u8>>,
    /// What was sent to register: once made, always the same.
    registration: BTreeMap<String, Vec<u8>>,
}

impl Play {
    /// The client that kept this, or that was only just invited.
    fn new(program: &mut Program<'_>) -> Play {
        let memberships: Vec<_> = STORY.memberships().collect();
        let chosen = program.below(memberships.len() + STORY.invites.len());
        let (place, client) = match memberships.get(chosen) {
            Some((place, bytes)) => {
                let client = Client::resume(CONFIG.clone(), signing_key(*place), bytes);
                (*place, client.expect("genuine"))
            }
            None => {
                let invite = &STORY.invites[chosen - memberships.len()];
                let place = 1 + chosen - memberships.len();
                let invite = Invite::decode(&invite.encode().expect("small")).expect("its own");
                let client = Client::join(CONFIG.clone(), signing_key(place), invite, rules(place));
                (place, client.expect("genuine"))
            }
        };
        Play {
            client,
            place,
            time: Time { unix_ms: START, mono_ms: 1 },
            entropy: test_entropy(41),
            last_job: 0,
            jobs: BTreeSet::new(),
            done: Vec::new(),
            sends: Vec::new(),
            stores: Vec::new(),
            durable: BTreeSet::new(),
            registration: BTreeMap::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        self.client.handle(self.time, event, &mut self.entropy);
        while let Some(command) = self.client.poll_command() {
            match command {
                Command::Store { token, keep } => self.stores.push((token, keep)),
                Command::Send { call, request, timeout_ms } => {
                    assert!(timeout_ms > 0);
                    self.check_sent(&request);
                    self.sends.push((call, request));
                }
                Command::Finish { job_id, outcome } => {
                    assert!(self.jobs.remove(&job_id.0), "a job finishes once");
                    self.check_outcome(outcome);
                }
            }
        }
    }

    /// What has to be kept is durable before it is sent, and is only ever sent as it was.
    fn check_sent(&mut self, request: &Request) {
        if request.method != Method::Post {
            return;
        }
        if request.target.ends_with("/signing") {
            assert!(self.durable.contains(&request.body), "a request for signatures that was not kept");
        }
        if request.target.ends_with("/participants") {
            let first =
                self.registration.entry(request.target.clone()).or_insert_with(|| request.body.clone());
            assert_eq!(*first, request.body, "another registration");
        }
    }

    /// Whatever the gateway says, only what is genuine is reported.
    fn check_outcome(&mut self, outcome: Result<Done, Fault>) {
        if let Ok(done) = &outcome {
            self.done.push(std::mem::discriminant(done));
        }
        match outcome {
            Ok(Done::Key(key)) => {
                assert_eq!(key.output_key(), STORY.key.output_key());
                assert_eq!(key.roster().roster_hash(), STORY.key.roster().roster_hash());
            }
            Ok(Done::Signed(signing_id, outcomes)) => {
                let known =
                    STORY.reviews.iter().find(|review| review.intent.intent().signing_id == signing_id);
                for signed in outcomes.into_iter().flatten() {
                    assert!(verify(&signed.output_key.0, &signed.message.0, &signed.signature.0));
                    let asked = known.map(|review| &review.intent.intent().items);
                    let asked =
                        asked.is_none_or(|items| items.iter().any(|item| item.message == signed.message));
                    assert!(asked, "a signature of something else");
                }
            }
            Ok(Done::Reviewed(review)) => {
                let genuine = STORY.reviews.iter().any(|known| known.intent == review.intent);
                assert!(genuine, "an intent that nobody signed");
            }
            Ok(Done::Signing(progress)) => {
                let genuine = STORY.reviews.iter().any(|known| known.intent == progress.intent);
                assert!(genuine, "an intent that nobody signed");
            }
            Ok(Done::Reserved | Done::Initialised | Done::Joined | Done::Requested(_) | Done::Keygen(_))
            | Ok(Done::Approved | Done::Withdrawn)
            | Err(_) => {}
        }
    }

    fn ask(&mut self, job: Job) {
        self.last_job += 1;
        self.jobs.insert(self.last_job);
        self.tell(Event::Asked { job_id: JobId(self.last_job), job, timeout_ms: JOB_MS });
    }

    fn stored(&mut self, index: usize, works: bool) {
        let (token, keep) = self.stores.remove(index);
        if !works {
            return self.tell(Event::StoreFailed { token });
        }
        match keep {
            Keep::Request(request) => {
                self.durable.insert(strict::to_json(&*request));
            }
            Keep::Membership(bytes) => {
                let resumed = Client::resume(CONFIG.clone(), signing_key(self.place), &bytes);
                assert!(resumed.is_ok(), "what was kept cannot be read");
            }
        }
        self.tell(Event::Stored { token });
    }
}

/// A gateway and a user that do anything.
///
/// # Panics
/// Where a job is not finished exactly once and in time, or reports what is not genuine.
pub fn events(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let mut play = Play::new(&mut program);
    for _ in 0..EVENTS_MAX {
        if program.is_over() {
            break;
        }
        step(&mut play, &mut program);
    }
    for _ in 0..SETTLING_MAX {
        while !play.stores.is_empty() {
            play.stored(0, true);
        }
        for (call, _) in std::mem::take(&mut play.sends) {
            play.tell(Event::CallFailed { call });
        }
        if play.jobs.is_empty() {
            return;
        }
        let deadline = play.client.next_deadline().expect("a job is under way");
        let left_ms = deadline.mono_ms.saturating_sub(play.time.mono_ms);
        pass(&mut play, left_ms);
        play.tell(Event::Ticked);
    }
    assert!(play.jobs.is_empty(), "jobs that never finish");
}

fn pass(play: &mut Play, ms: u64) {
    play.time.mono_ms += ms;
    play.time.unix_ms += ms;
}

fn step(play: &mut Play, program: &mut Program<'_>) {
    match program.byte() % 16 {
        0..=2 => {
            if let Some(job) = job(play, program) {
                play.ask(job);
            }
        }
        3..=7 if !play.sends.is_empty() => {
            let (call, request) = play.sends.remove(program.below(play.sends.len()));
            if let Some(response) = genuine(&request, program) {
                play.tell(Event::Replied { call, response });
            }
        }
        8 | 9 if !play.sends.is_empty() => {
            let (call, request) = play.sends.remove(program.below(play.sends.len()));
            if let Some(mut response) = genuine(&request, program) {
                response.body = program.altered(&response.body);
                play.tell(Event::Replied { call, response });
            }
        }
        10 if !play.sends.is_empty() => {
            let (call, _) = play.sends.remove(program.below(play.sends.len()));
            let (_, _, response) = program.pick(&STORY.journal.exchanges).expect("there are some");
            play.tell(Event::Replied { call, response: response.clone() });
        }
        11 if !play.sends.is_empty() => {
            let (call, _) = play.sends.remove(program.below(play.sends.len()));
            let response = match program.below(3) {
                0 => problem::refused(&(*program.pick(Code::ALL).expect("some")).into()),
                1 => problem::stale(START + (1 << program.below(50))),
                _ => {
                    let status = 100 + program.below(500) as u16;
                    let count = program.below(256);
                    let body = program.take(count).to_vec();
                    Response { status, content_type: problem::JSON, retry_after_s: None, body }
                }
            };
            play.tell(Event::Replied { call, response });
        }
        12 if !play.sends.is_empty() => {
            let (call, _) = play.sends.remove(program.below(play.sends.len()));
            play.tell(Event::CallFailed { call });
        }
        13 if !play.stores.is_empty() => {
            let index = program.below(play.stores.len());
            play.stored(index, program.byte() % 4 != 3);
        }
        14 => {
            pass(play, 1 << program.below(14));
            play.tell(Event::Ticked);
        }
        15 => {
            let number = program.below(8) as u64;
            match program.below(4) {
                0 => {
                    play.jobs.remove(&number);
                    play.tell(Event::Abandoned { job_id: JobId(number) });
                }
                1 => {
                    let known = play.sends.iter().any(|(call, _)| call.0 == number);
                    if !known {
                        play.tell(Event::CallFailed { call: CallId(number) });
                    }
                }
                2 if !play.stores.iter().any(|(token, _)| token.0 == number) => {
                    play.tell(Event::StoreFailed { token: Token(number) });
                }
                _ => play.tell(Event::Ticked),
            }
        }
        _ => {}
    }
}

fn job(play: &mut Play, program: &mut Program<'_>) -> Option<Job> {
    let request = program.pick(&STORY.requests).expect("three");
    let review = program.pick(&STORY.reviews).cloned();
    Some(match program.below(14) {
        0 => Job::AwaitKey,
        1 => Job::AwaitSignatures(request.signing_id),
        2 => Job::Review(request.signing_id),
        3 => Job::Approve { review: Box::new(review?), blind: program.byte() % 2 == 1 },
        4 => Job::Withdraw { review: Box::new(review?), reason: Some("fuzz".into()) },
        5 => Job::Reserve,
        6 => Job::Init,
        7 => Job::Join,
        8 => Job::Request { items: items(play, program), expires_at: None },
        9 => Job::Sign { items: items(play, program), expires_at: Some(START + (1 << program.below(40))) },
        11 => Job::LookAtKeygen,
        12 => Job::LookAtSigning(request.signing_id),
        number => {
            // Whoever resumes a request has kept it.
            play.durable.insert(strict::to_json::<SignRequest>(request));
            if number == 13 { Job::Resend(request.clone()) } else { Job::Resume(request.clone()) }
        }
    })
}

fn items(play: &mut Play, program: &mut Program<'_>) -> Vec<Item> {
    let count = program.below(3);
    let item =
        |text: &[u8], entropy: &mut Entropy| Item::of(Origin::Bytes(Blob(text.to_vec())), entropy).ok();
    (0..count).filter_map(|_| item(program.take(4), &mut play.entropy)).collect()
}

/// What the genuine gateway answered to this request, or to such a one, at any time of the story.
fn genuine(request: &Request, program: &mut Program<'_>) -> Option<Response> {
    let path = |request: &Request| request.target.split('?').next().unwrap_or_default().to_owned();
    if path(request).ends_with("/attestation") {
        return attestation(request);
    }
    let alike = |(_, asked, _): &&(usize, Request, Response)| {
        asked.method == request.method && path(asked) == path(request)
    };
    let mut alike: Vec<_> = STORY.journal.exchanges.iter().filter(alike).collect();
    if alike.iter().any(|(_, asked, _)| asked.body == request.body) {
        alike.retain(|(_, asked, _)| asked.body == request.body);
    }
    let newest = alike.len().checked_sub(1)?;
    Some(alike[newest - program.below(newest + 1)].2.clone())
}

thread_local! {
    /// Documents by enclave and nonce: making one is slow, and clients here ask with few nonces.
    static MADE: RefCell<BTreeMap<(EnclaveId, Hash), Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
}

/// A document for the nonce that is asked with.
fn attestation(request: &Request) -> Option<Response> {
    let (path, query) = request.target.split_once('?')?;
    let enclave_id: EnclaveId = path.rsplit('/').nth(1)?.parse().ok()?;
    let nonce = query.split('&').find_map(|pair| pair.strip_prefix("nonce="))?;
    let nonce = Hash::from_hex(nonce).ok()?;
    let document = MADE.with_borrow_mut(|made| {
        if made.len() >= 1_000 {
            made.clear();
        }
        match made.get(&(enclave_id, nonce)) {
            Some(document) => Some(document.clone()),
            None => {
                let document = attest(enclave_id, nonce)?;
                made.insert((enclave_id, nonce), document.clone());
                Some(document)
            }
        }
    })?;
    let body = AttestationResponse { enclave_id, epoch: epoch(), document: Blob(document) };
    Some(problem::ok(200, &body))
}

fn epoch() -> u32 {
    STORY.identities[0].epoch()
}

fn attest(enclave_id: EnclaveId, nonce: Hash) -> Option<Vec<u8>> {
    let documents = STORY.journal.documents.iter().filter_map(|bytes| Document::parse_unverified(bytes).ok());
    let (key, stated) =
        documents.filter_map(|document| Some((document.public_key?, document.user_data?))).find(
            |(_, stated)| ServiceUserData::decode(stated).is_ok_and(|data| data.enclave_id == enclave_id.0),
        )?;
    let mut hosts = STORY.hosts.lock().unwrap_or_else(PoisonError::into_inner);
    let host = hosts.iter_mut().find(|host| host.enclave_id() == enclave_id)?;
    Some(host.attest(Some(&key), Some(&nonce.0), Some(&stated)))
}

/// Programs in which an honest gateway answers: each membership with each job that asks something.
pub fn honest() -> Vec<Vec<u8>> {
    let seats = STORY.memberships().count() + STORY.invites.len();
    let jobs: [&[u8]; 12] =
        [&[0], &[1], &[2], &[3, 0], &[4], &[5], &[7], &[8, 1, 7, 7, 7, 7], &[10], &[11], &[12], &[13]];
    let mut programs = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let seat = u8::try_from((index * 2 + 1) % seats).expect("few");
        programs.push(honest_program(seat, job));
    }
    for seat in 0..seats {
        programs.push(honest_program(u8::try_from(seat).expect("few"), &[7]));
    }
    programs
}

fn honest_program(seat: u8, job: &[u8]) -> Vec<u8> {
    honest_play(seat, job).0
}

fn honest_play(seat: u8, job: &[u8]) -> (Vec<u8>, Play) {
    let mut bytes = vec![seat];
    let mut play = Play::new(&mut Program::new(&[seat]));
    // Each job names the request and the review that it is about.
    let mut then = [&[0, 0, 0][..], job].concat();
    for _ in 0..16 {
        step(&mut play, &mut Program::new(&then));
        bytes.append(&mut then);
        if !play.stores.is_empty() {
            then = vec![13, 0];
        } else if !play.sends.is_empty() {
            then = vec![3, 0];
        } else {
            break;
        }
    }
    (bytes, play)
}

#[cfg(test)]
mod tests {
    use super::{STORY, honest_play};

    #[test]
    fn honest_programs_come_to_something() {
        let places: Vec<usize> = STORY.memberships().map(|(place, _)| place).collect();
        // The gateway's answer to an approval is the second participant's, who gave the only one.
        let approver = places.iter().rposition(|place| *place == 1).expect("a participant");
        let jobs: [&[u8]; 8] = [&[0], &[1], &[2], &[3], &[7], &[10], &[12], &[13]];
        for job in jobs {
            let seat = if *job == [3] { approver } else { places.len() - 1 };
            let (_, play) = honest_play(u8::try_from(seat).expect("few"), job);
            assert_eq!((play.done.len(), play.jobs.len()), (1, 0), "{job:?} {:?}", play.sends);
        }
    }
}
