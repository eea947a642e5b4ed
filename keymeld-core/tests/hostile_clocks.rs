//! What an enclave is surrounded by: clocks that its host sets, a security module, a key service and a
//! generator that fail (S2).

mod hostile;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::bytes::Hash;
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{
    ATTESTATIONS_PENDING_MAX, Command, Event, PENDING_MAX, TIME_REFRESH_MS, TIME_RETRY_MS,
};
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};
use keymeld_core::link::message::{Attest, CreateIdentity, HelloReply, OpenKeygen, Reply, Request};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;

use hostile::host::{Host, Module, ROOT, born, config, failing_entropy, stuck_entropy};
use hostile::party::{Group, Person, careful, delegated, fresh_entropy};
use hostile::round::{Case, Run};
use hostile::{DAY_MS, NOW, World, refused};

fn group() -> Group {
    Group::of(vec![Person::at(0, careful()), Person::at(1, delegated())])
}

fn case() -> Case {
    Case::new(group())
}

fn attest(epoch: u32) -> Request {
    Request::Attest(Attest { epoch, nonce: Hash([1; 32]) })
}

fn code_of<T>(result: Result<T, Refusal>) -> Code {
    result.map(|_| ()).expect_err("not refused").code
}

/// An opened session after round 1.
fn after_round_1() -> (World, Group, Run) {
    let mut case = case();
    case.world.open_all(&case.group).expect("opens");
    let mut run = case.run();
    let Case { mut world, group, .. } = case;
    run.all_nonces(&mut world).expect("authorised");
    (world, group, run)
}

#[test]
fn an_enclave_serves_nobody_before_its_row_was_handed_back_and_opened() {
    let mut host = Host::new(config(0), Arc::clone(&born(0).module), fresh_entropy());
    host.deliver(Event::Started);
    let hello = |host: &mut Host| match host.ask(Request::Hello) {
        Ok(Reply::Hello(HelloReply { epochs, .. })) => epochs,
        other => panic!("not a hello: {other:?}"),
    };
    let row = host.create(0);
    let enclave = EnclaveKeys { enclave_key: row.ecies_key, identity_key: row.identity_key };
    let person = || Person { at: Some(0), ..Person::at_keys(enclave, careful()) };
    let group = Group::of(vec![person(), person()]);
    let check = Request::CheckRegistration(group.check_message(0));
    let open = OpenKeygen { enclave_key: row.ecies_key, ..group.open_message(0) };
    let open = Request::OpenKeygen(open);
    assert!(hello(&mut host).is_empty());
    for request in [attest(0), check.clone(), open.clone()] {
        assert_eq!(code_of(host.ask(request)), Code::IdentityMissing);
    }
    assert_eq!(host.ask(Request::OpenIdentity(row)), Ok(Reply::IdentityOpened));
    assert_eq!(hello(&mut host), [0]);
    for request in [attest(0), check, open] {
        assert!(host.ask(request).is_ok());
    }
    assert_eq!(code_of(host.ask(attest(1))), Code::WrongEpoch);
}

#[test]
fn an_enclave_that_does_not_know_the_time_signs_nothing() {
    let forgetful = |case: &mut Case| {
        for at in [0, 1] {
            let mut host = Host::restarted(at);
            host.deliver(Event::IdentityShared(Arc::clone(&born(at).identity)));
            case.world.hosts[at] = host;
        }
    };
    refused(Code::TimeUnknown, case, Case::signatures, forgetful);
    let mut host = Host::restarted(1);
    host.deliver(Event::IdentityShared(Arc::clone(&born(1).identity)));
    let check = Request::CheckRegistration(group().check_message(1));
    assert_eq!(code_of(host.ask(check.clone())), Code::TimeUnknown);
    host.deliver(Event::Started);
    assert_eq!(host.ask(check), Ok(Reply::RegistrationChecked));
}

#[test]
fn the_hosts_clock_changes_nothing() {
    for unix_ms in [0, NOW - 400 * DAY_MS, NOW + 400 * DAY_MS, u64::MAX] {
        let at_that_time = || {
            let mut case = case();
            case.before(move |_, _, world| {
                world.hosts.iter_mut().for_each(|host| host.unix_ms = unix_ms);
            });
            case
        };
        refused(Code::IntentExpired, at_that_time, Case::signatures, |case| {
            case.before(|_, _, world| world.pass_ms(DAY_MS));
        });
    }
}

/// An enclave whose module has a clock of its own.
fn with_clock() -> (Host, Arc<Module>) {
    let module = Arc::new(Module::new(&ROOT, 40, "image"));
    let mut host = Host::new(config(0), Arc::clone(&module), fresh_entropy());
    host.deliver(Event::IdentityShared(Arc::clone(&born(0).identity)));
    host.deliver(Event::Started);
    (host, module)
}

#[test]
fn time_never_runs_backwards_whatever_the_module_says() {
    let people = || vec![Person::at(0, careful()), Person::at(0, delegated())];
    let run = |back: bool| {
        let (mut host, module) = with_clock();
        // The module is asked again at its time, and not before.
        let clock = |host: &mut Host, unix_ms: u64, after_ms: u64| {
            module.clock.store(unix_ms, Ordering::Relaxed);
            host.mono_ms += after_ms;
            host.deliver(Event::Ticked);
        };
        let ahead = if back { NOW + DAY_MS } else { NOW + 1_000 };
        clock(&mut host, ahead, TIME_REFRESH_MS);
        clock(&mut host, NOW, TIME_REFRESH_MS);
        let mut case = Case::new(Group::of(people()));
        case.world.hosts[0] = host;
        case.signatures()
    };
    assert!(run(false).is_ok());
    assert_eq!(code_of(run(true)), Code::IntentExpired);
}

#[test]
fn a_module_that_fails_is_asked_for_the_time_again_soon_and_the_clock_goes_on() {
    let mut host = Host::restarted(0);
    host.module_works = false;
    host.deliver(Event::Started);
    let due = host.enclave.next_deadline().expect("it wants to know the time").mono_ms;
    assert_eq!(due, host.mono_ms + TIME_RETRY_MS);
    // Too early, and nothing is asked.
    host.enclave.handle(Time { unix_ms: 0, mono_ms: due - 1 }, Event::Ticked, &mut host.entropy);
    assert!(host.enclave.poll_command().is_none());
    host.module_works = true;
    host.mono_ms = due;
    host.deliver(Event::Ticked);
    let due = host.enclave.next_deadline().expect("and again later").mono_ms;
    assert_eq!(due, host.mono_ms + TIME_REFRESH_MS);
}

#[test]
fn a_security_module_that_fails_is_a_refusal() {
    let mut host = Host::ready(0);
    host.module_works = false;
    assert_eq!(code_of(host.ask(attest(0))), Code::NotAttested);
    let create = Request::CreateIdentity(CreateIdentity { epoch: 5 });
    assert_eq!(code_of(host.ask(create.clone())), Code::NotAttested);
    host.module_works = true;
    assert!(host.ask(attest(0)).is_ok());
    assert!(host.ask(create).is_ok());
}

#[test]
fn a_key_service_that_fails_or_answers_too_much_is_a_refusal() {
    let mut host = Host::ready(0);
    let create = Request::CreateIdentity(CreateIdentity { epoch: 5 });
    host.key_service_works = false;
    assert_eq!(code_of(host.ask(create.clone())), Code::KeyServiceFailed);
    host.key_service_works = true;
    assert!(host.ask(create.clone()).is_ok());
    for (length, code) in [(4_096, None), (4_097, Some(Code::KeyServiceFailed))] {
        let now = Time { unix_ms: 0, mono_ms: host.mono_ms };
        let event = Event::Requested { call: 99, routing_id: [0; 16], body: create.clone().encode() };
        host.enclave.handle(now, event, &mut host.entropy);
        let Some(Command::GenerateDataKey { token, .. }) = host.enclave.poll_command() else {
            panic!("asks")
        };
        let key = Ok(DataKey { key: Secret::copied_from(&[1; 32]), encrypted: vec![1; length] });
        host.enclave.handle(now, Event::DataKeyGenerated { token, key }, &mut host.entropy);
        let refused = match host.enclave.poll_command() {
            Some(Command::Reply { call: 99, body }) => match Reply::decode(&body) {
                Ok(Reply::Refused(refused)) => Some(refused.refusal().code),
                other => panic!("not a refusal: {other:?}"),
            },
            Some(Command::Attest { .. }) => None,
            other => panic!("neither: {other:?}"),
        };
        assert_eq!(refused, code);
    }
}

#[test]
fn answers_to_no_question_or_to_one_of_another_kind_change_nothing() {
    let mut host = Host::ready(0);
    let now = Time { unix_ms: 0, mono_ms: host.mono_ms };
    let event = Event::Requested { call: 7, routing_id: [0; 16], body: attest(0).encode() };
    host.enclave.handle(now, event, &mut host.entropy);
    let Some(Command::Attest { token, .. }) = host.enclave.poll_command() else { panic!("asks") };
    let data_key = || DataKey { key: Secret::copied_from(&[1; 32]), encrypted: vec![1] };
    for event in [
        Event::Attested { token: token + 1, document: Ok(vec![1]) },
        Event::DataKeyGenerated { token, key: Ok(data_key()) },
        Event::DataKeyDecrypted { token, key: Ok(Secret::copied_from(&[1; 32])) },
    ] {
        host.enclave.handle(now, event, &mut host.entropy);
        assert!(host.enclave.poll_command().is_none());
    }
    for answered in [true, false] {
        host.enclave.handle(now, Event::Attested { token, document: Ok(vec![1]) }, &mut host.entropy);
        assert_eq!(host.enclave.poll_command().is_some(), answered, "answered exactly once");
    }
}

/// Asks without an answer being given; the question's token.
fn ask_only(host: &mut Host, request: Request) -> u64 {
    let now = Time { unix_ms: 0, mono_ms: host.mono_ms };
    let event = Event::Requested { call: 1, routing_id: request.routing_id(), body: request.encode() };
    host.enclave.handle(now, event, &mut host.entropy);
    match host.enclave.poll_command() {
        Some(Command::Attest { token, .. } | Command::GenerateDataKey { token, .. }) => token,
        other => panic!("asks: {other:?}"),
    }
}

#[test]
fn challenges_that_nobody_answers_are_bounded_and_leave_room_for_identities_and_the_time() {
    let mut host = Host::ready(0);
    let tokens: Vec<u64> = (0..ATTESTATIONS_PENDING_MAX).map(|_| ask_only(&mut host, attest(0))).collect();
    assert_eq!(code_of(host.ask(attest(0))), Code::TooMany);
    // The rest goes on, the time and births too.
    assert!(host.ask(Request::CheckRegistration(group().check_message(0))).is_ok());
    host.mono_ms += TIME_REFRESH_MS;
    let now = Time { unix_ms: 0, mono_ms: host.mono_ms };
    host.enclave.handle(now, Event::Ticked, &mut host.entropy);
    let asked = host.enclave.poll_command();
    assert!(matches!(asked, Some(Command::Attest { nonce: None, .. })), "{asked:?}");
    ask_only(&mut host, Request::CreateIdentity(CreateIdentity { epoch: 9 }));
    let answer = Event::Attested { token: tokens[0], document: Ok(vec![1]) };
    host.enclave.handle(now, answer, &mut host.entropy);
    while host.enclave.poll_command().is_some() {}
    assert!(host.ask(attest(0)).is_ok());
}

#[test]
fn questions_that_nobody_answers_are_bounded() {
    let mut host = Host::ready(0);
    for number in 0..PENDING_MAX {
        let create = Request::CreateIdentity(CreateIdentity { epoch: 100 + number as u32 });
        ask_only(&mut host, if number < ATTESTATIONS_PENDING_MAX { attest(0) } else { create });
    }
    let create = Request::CreateIdentity(CreateIdentity { epoch: 99 });
    assert_eq!(code_of(host.ask(create)), Code::TooMany);
    // The rest goes on.
    assert!(host.ask(Request::CheckRegistration(group().check_message(0))).is_ok());
}

#[test]
fn randomness_of_another_origin_serves_for_nothing() {
    for origin in [Origin::Nsm, Origin::Os] {
        let foreign = move || {
            let mut inner = fresh_entropy();
            Entropy::new(origin, move |out| inner.fill(out))
        };
        refused(Code::ProductionOnly, case, Case::signatures, |case| {
            case.before(move |_, _, world| world.hosts[0].entropy = foreign());
        });
        refused(Code::ProductionOnly, case, Case::signatures, |case| {
            case.between(move |_, _, world| world.hosts[1].entropy = foreign());
        });
    }
}

/// Gives some blocks and then fails.
fn lasting(blocks: usize) -> Entropy {
    let (mut left, mut inner) = (blocks, fresh_entropy());
    Entropy::new(Origin::Test, move |out| {
        left = left.checked_sub(1).ok_or(EntropyFailed)?;
        inner.fill(out)
    })
}

/// Gives some blocks and then the last of them for ever.
fn repeating(blocks: usize) -> Entropy {
    let (mut left, mut inner, mut last) = (blocks, fresh_entropy(), vec![0; 32]);
    Entropy::new(Origin::Test, move |out| {
        if left > 0 {
            left -= 1;
            inner.fill(&mut last)?;
        }
        out.copy_from_slice(&last[..out.len()]);
        Ok(())
    })
}

const BREAKING: [fn(usize) -> Entropy; 2] = [lasting, repeating];

/// Breaks the generator after every number of blocks until the step succeeds.
fn break_everywhere(mut step: impl FnMut(Entropy) -> Result<(), Refusal>) {
    for breaking in BREAKING {
        let mut failures = 0;
        while let Err(refusal) = step(breaking(failures)) {
            assert_eq!(refusal, Refusal::from(Code::EntropyFailed));
            failures += 1;
            assert!(failures < 50, "it never succeeds");
        }
        assert!(failures > 0, "it needs no randomness at all");
    }
}

#[test]
fn a_generator_that_breaks_makes_no_identity_and_no_certificate() {
    break_everywhere(|entropy| {
        let mut host = Host::ready(0);
        host.entropy = entropy;
        host.ask(Request::CreateIdentity(CreateIdentity { epoch: 4 })).map(|_| ())
    });
    let mut world = World::new(2);
    let group = group();
    break_everywhere(|entropy| {
        world.hosts[0].enclave.evict_all();
        world.hosts[0].entropy = entropy;
        let opened = world.open(&group, 0);
        assert_eq!(world.hosts[0].enclave.sessions_open(), usize::from(opened.is_ok()));
        opened.map(|_| ())
    });
}

#[test]
fn a_generator_that_breaks_in_round_1_leaves_no_nonces_behind() {
    let mut case = case();
    case.world.open_all(&case.group).expect("opens");
    let run = case.run();
    let Case { mut world, .. } = case;
    let mut attempt = run.again();
    break_everywhere(|entropy| {
        world.hosts[1].entropy = entropy;
        let held = world.hosts[1].enclave.attempts_held();
        let made = attempt.round_1(&mut world, 1);
        if made.is_ok() {
            attempt = run.again();
        } else {
            assert_eq!(world.hosts[1].enclave.attempts_held(), held);
            let again = attempt.clone().round_2(&mut world, 1).expect_err("no nonces");
            assert_eq!(again.code, Code::UnknownAttempt);
        }
        made.map(|_| ())
    });
}

#[test]
fn a_generator_that_breaks_in_round_2_or_3_uses_the_nonces_up() {
    for breaking in [failing_entropy, stuck_entropy_drawn] {
        let (mut world, _, mut run) = after_round_1();
        world.hosts[1].entropy = breaking();
        assert_eq!(code_of(run.round_2(&mut world, 1)), Code::EntropyFailed);
        world.hosts[1].entropy = fresh_entropy();
        assert_eq!(code_of(run.round_2(&mut world, 1)), Code::AttemptConsumed);
        assert_eq!(code_of(run.round_1(&mut world, 1)), Code::AttemptConsumed);

        let (mut world, _, mut run) = after_round_1();
        run.all_partials(&mut world).expect("honest nonces");
        world.hosts[0].entropy = breaking();
        assert_eq!(code_of(run.aggregate(&mut world)), Code::EntropyFailed);
        world.hosts[0].entropy = fresh_entropy();
        assert_eq!(code_of(run.aggregate(&mut world)), Code::AttemptConsumed);
        assert_eq!(code_of(run.round_1(&mut world, 0)), Code::AttemptConsumed);
        // A new attempt has nonces of its own.
        assert!(run.again().finish(&mut world).is_ok());
    }
}

/// Stuck from before the enclave draws for the first time.
fn stuck_entropy_drawn() -> Entropy {
    let mut entropy = stuck_entropy();
    entropy.bytes::<32>().expect("the first block is new");
    entropy
}

#[test]
fn a_generator_that_breaks_where_all_signers_share_an_enclave_reuses_no_nonce() {
    let mut case = Case::new(Group::of(vec![Person::at(0, careful()), Person::at(0, delegated())]));
    case.world.open_all(&case.group).expect("opens");
    let mut run = case.run();
    let Case { mut world, group, .. } = case;
    break_everywhere(|entropy| {
        world.hosts[0].entropy = entropy;
        let held = world.hosts[0].enclave.attempts_held();
        let made = run.clone().round_1(&mut world, 0);
        match &made {
            Ok(result) => {
                let result = result.as_ref().expect("all signers are here");
                assert!(run.read(&group, result).expect("verifies")[0].is_ok());
                run = run.again();
            }
            Err(_) => assert_eq!(world.hosts[0].enclave.attempts_held(), held),
        }
        made.map(|_| ())
    });
}

#[test]
fn a_restarted_enclave_has_no_nonces() {
    let (mut world, group, mut run) = after_round_1();
    world.hosts[1] = Host::ready(1);
    assert_eq!(code_of(run.round_2(&mut world, 1)), Code::UnknownAttempt);
    assert_eq!(code_of(run.round_1(&mut world, 1)), Code::UnknownSession);
    world.open(&group, 1).expect("opens");
    assert_eq!(code_of(run.round_2(&mut world, 1)), Code::UnknownAttempt);
    // Where it makes nonces under the old attempt's id they are others, which the other enclave has not got.
    let old = run.clone();
    run.round_1(&mut world, 1).expect("authorised");
    run.round_2(&mut world, 1).expect("the other's nonces are as they were");
    let mut mixed = Run { partials: run.partials.clone(), ..old };
    assert_eq!(code_of(mixed.aggregate(&mut world)), Code::NonceViewsDiffer);
    assert!(run.aggregate(&mut world).is_ok());
}
