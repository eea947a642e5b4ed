//! Every message with each field flipped or truncated: no panic, one typed answer, nothing gained (S8).

mod hostile;

use std::sync::LazyLock;

use keymeld_core::bytes::Hash;
use keymeld_core::enclave::Event;
use keymeld_core::entropy::test_entropy;
use keymeld_core::link::message::{Attest, CreateIdentity, Reply, Request};
use keymeld_core::refusal::{Code, Refusal};
use proptest::prelude::{ProptestConfig, any, prop, proptest};
use proptest::test_runner::FileFailurePersistence;

use hostile::host::{Host, born};
use hostile::party::{Group, Person, careful, delegated};
use hostile::round::{Case, Run};
use hostile::{World, refused};

/// An honest request of each kind, with the enclave that it is for and the requests that come before it there.
struct Sample {
    name: &'static str,
    at: usize,
    routing_id: [u8; 16],
    body: Vec<u8>,
    before: Vec<Request>,
    /// Parts of the body that the gateway chooses freely: other bytes there are another honest request.
    free: Vec<Vec<u8>>,
}

impl Sample {
    fn new(name: &'static str, at: usize, request: &Request, before: Vec<Request>, free: &[&[u8]]) -> Sample {
        let free = free.iter().map(|part| part.to_vec()).collect();
        Sample { name, at, routing_id: request.routing_id(), body: request.clone().encode(), before, free }
    }

    /// Whether these bytes differ in nothing but what the gateway chooses.
    fn is_honest(&self, body: &[u8]) -> bool {
        let is_free = |index: usize| {
            self.free.iter().any(|part| {
                let start = self.body.windows(part.len()).position(|window| window == part);
                start.is_some_and(|start| (start..start + part.len()).contains(&index))
            })
        };
        body.len() == self.body.len()
            && (0..body.len()).all(|index| body[index] == self.body[index] || is_free(index))
    }

    /// The enclave as it is when the request comes.
    fn host(&self) -> Host {
        let mut host =
            if self.name == "open identity" { Host::restarted(self.at) } else { Host::ready(self.at) };
        // The same nonces as in the run that the sample is from, so that it is honest here too.
        host.entropy = test_entropy(SEED + self.at as u64);
        for request in &self.before {
            host.ask(request.clone()).expect("honest");
        }
        host
    }

    fn ask(&self, body: Vec<u8>) -> Result<Reply, Refusal> {
        self.host().ask_bytes(self.routing_id, body)
    }
}

/// Of the generators of the enclaves in [`SAMPLES`].
const SEED: u64 = 1 << 48;

/// The rounds are run once; their messages are then given to enclaves that come to the same state.
static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let people =
        vec![Person::at(0, careful()), Person::at(1, careful()), Person::at(1, delegated()).invited()];
    let mut case = Case::new(Group::of(people));
    let opens: Vec<Request> = [0, 1].map(|at| case.group.open_request(at)).to_vec();
    for (at, host) in case.world.hosts.iter_mut().enumerate() {
        host.entropy = test_entropy(SEED + at as u64);
    }
    case.world.open_all(&case.group).expect("opens");
    let mut run = case.run();
    let Case { world, group, .. } = &mut case;
    let nonces: Vec<Request> = [0, 1].map(|at| run.nonces_request(at)).to_vec();
    run.all_nonces(world).expect("authorised");
    let partials = run.partials_request(1);
    run.all_partials(world).expect("honest nonces");
    let check = Request::CheckRegistration(group.check_message(1));
    let attest = Request::Attest(Attest { epoch: 0, nonce: Hash([0x33; 32]) });
    let create = Request::CreateIdentity(CreateIdentity { epoch: 0x7777 });
    let before = |at: usize| vec![opens[at].clone(), nonces[at].clone()];
    vec![
        Sample::new("hello", 0, &Request::Hello, vec![], &[]),
        Sample::new("create identity", 0, &create, vec![], &[&[0x77, 0x77]]),
        Sample::new("open identity", 0, &Request::OpenIdentity(born(0).row.clone()), vec![], &[]),
        Sample::new("attest", 0, &attest, vec![], &[&[0x33; 32]]),
        Sample::new("check registration", 1, &check, vec![], &[]),
        Sample::new("open keygen", 1, &opens[1], vec![], &[]),
        Sample::new("make nonces", 1, &nonces[1], vec![opens[1].clone()], &[run.key.attempt.as_bytes()]),
        Sample::new("make partials", 1, &partials, before(1), &[]),
        Sample::new("aggregate", 0, &run.aggregate_request(), before(0), &[]),
    ]
});

fn sample(name: &str) -> &'static Sample {
    SAMPLES.iter().find(|sample| sample.name == name).expect("one of the samples")
}

/// Altered bytes are refused.
#[track_caller]
fn check(sample: &Sample, body: Vec<u8>) {
    let honest = sample.is_honest(&body);
    match sample.ask(body.clone()) {
        Err(refusal) => assert_ne!(refusal.code, Code::Internal, "{}: {body:02x?}", sample.name),
        Ok(reply) => assert!(honest, "{}: {body:02x?} gives {reply:?}", sample.name),
    }
}

/// The unaltered messages, which every other test here depends on.
#[test]
fn every_sample_is_honest() {
    for sample in SAMPLES.iter() {
        let honest = sample.ask(sample.body.clone());
        assert!(honest.is_ok(), "{}: {honest:?}", sample.name);
    }
}

#[test]
fn every_byte_of_the_small_messages_may_be_flipped() {
    for name in ["hello", "create identity", "attest"] {
        let sample = sample(name);
        for index in 0..sample.body.len() {
            for bit in 0..8 {
                let mut body = sample.body.clone();
                body[index] ^= 1 << bit;
                check(sample, body);
            }
        }
    }
}

#[test]
fn every_message_may_be_truncated_anywhere_or_lengthened() {
    for sample in SAMPLES.iter() {
        let mut host = sample.host();
        let step = 1 + sample.body.len() / 400;
        for length in (0..sample.body.len()).step_by(step) {
            let refused = host.ask_bytes(sample.routing_id, sample.body[..length].to_vec());
            assert_eq!(refused.expect_err("truncated").code, Code::Malformed, "{} at {length}", sample.name);
        }
        let longer = [sample.body.as_slice(), &[0]].concat();
        let refused = host.ask_bytes(sample.routing_id, longer);
        assert_eq!(refused.expect_err("lengthened").code, Code::Malformed, "{}", sample.name);
    }
}

#[test]
fn every_message_of_another_version_is_refused() {
    for sample in SAMPLES.iter() {
        let mut body = sample.body.clone();
        assert_eq!(body[1], 1, "the version");
        body[1] = 2;
        assert_eq!(sample.ask(body).expect_err("a later version").code, Code::UnsupportedVersion);
    }
}

/// Keeps no files of failures: a failing case prints its values.
fn config(cases: u32) -> ProptestConfig {
    let failure_persistence = Some(Box::new(FileFailurePersistence::Off) as Box<_>);
    ProptestConfig { cases, failure_persistence, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn a_flipped_bit_anywhere_is_refused(
        which in 0..9_usize,
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let sample = &SAMPLES[which];
        let index = at.index(sample.body.len());
        let mut body = sample.body.clone();
        body[index] ^= 1 << bit;
        check(sample, body);
    }

    #[test]
    fn a_part_of_one_message_in_another_is_refused(
        from in 0..9_usize,
        // In the small ones it could make another honest message.
        to in 4..9_usize,
        source in any::<prop::sample::Index>(),
        target in any::<prop::sample::Index>(),
        length in 1..80_usize,
    ) {
        let (from, to) = (&SAMPLES[from], &SAMPLES[to]);
        let (source, target) = (source.index(from.body.len()), target.index(to.body.len()));
        let part = &from.body[source..from.body.len().min(source + length)];
        let mut body = to.body.clone();
        let end = body.len().min(target + part.len());
        body.splice(target..end, part.iter().copied());
        check(to, body);
    }

    #[test]
    fn any_bytes_are_answered(body in prop::collection::vec(any::<u8>(), 0..300), routing_id in any::<[u8; 16]>()) {
        let mut host = Host::ready(0);
        let refused = host.ask_bytes(routing_id, body);
        assert!(refused.is_err());
    }
}

/// Fields rather than bytes: every field of the messages that name a run.
#[test]
fn every_field_of_a_run_is_refused_with_another_value() {
    let case = || Case::new(Group::of(vec![Person::at(0, careful()), Person::at(1, delegated())]));
    type Change = fn(&mut Run);
    let changes: [(Code, Change); 5] = [
        (Code::UnknownSession, |run| run.key.keygen_id.0[0] ^= 1),
        (Code::SealUnreadable, |run| run.key.signing_id.0[0] ^= 1),
        (Code::SealUnreadable, |run| run.key.digest.0[0] ^= 1),
        (Code::AggregatorInvalid, |run| run.key.aggregator = hostile::keys(2).enclave_key),
        (Code::SealUnreadable, |run| run.intent.0.truncate(50)),
    ];
    for (code, change) in changes {
        refused(code, case, Case::signatures, |case| case.before(move |run, _, _| change(run)));
    }
    let mut world = World::new(2);
    let mut other = case();
    other.world.open_all(&other.group).expect("opens");
    let run = other.run();
    let Request::MakeNonces(mut make) = run.nonces_request(1) else { panic!("a MakeNonces") };
    make.run.enclave_key = hostile::keys(0).enclave_key;
    let refusal = world.ask(1, Request::MakeNonces(make)).expect_err("another enclave's key");
    assert_eq!(refusal.code, Code::WrongEnclaveKey);
}

/// Requests mixed up in any order are each answered once, which the driver of these tests asserts.
#[test]
fn messages_in_any_order_are_each_answered_once() {
    for first in SAMPLES.iter() {
        for second in SAMPLES.iter().filter(|second| second.at == first.at) {
            let mut host = first.host();
            for sample in [first, second, first] {
                let _ = host.ask_bytes(sample.routing_id, sample.body.clone());
                host.deliver(Event::Ticked);
            }
        }
    }
}
