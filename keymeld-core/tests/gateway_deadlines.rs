//! Ends of sessions and long polls: by their deadlines, in every state, after restarts.

mod gateway_support;

use gateway_support::enclave::refused;
use gateway_support::party::{Party, by, no_wait, outcome_of, poll};
use gateway_support::{START_UNIX_MS, World, body, enclave_id, outcome};
use keymeld_core::api::rest::{KeygenState, KeygenStatus, SignRequest, SigningState, SigningStatus};
use keymeld_core::api::router::Wait;
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::gateway::{Command, EXPIRIES_MAX, Event, Report, WAITERS_PER_SESSION_MAX};
use keymeld_core::link::message::Request;
use keymeld_core::refusal::Code;
use keymeld_core::time::DeadlineReason;

const TIMEOUT_MS: u64 = 60_000;

fn party_with_timeout(number: u8) -> Party {
    let mut party = Party::new(number, 3);
    party.timeout_ms = Some(TIMEOUT_MS);
    party
}

/// Brings a keygen to one of its three open states.
fn keygen_in(world: &mut World, state: KeygenState) -> Party {
    let party = party_with_timeout(1);
    if state == KeygenState::Reserved {
        let reserve = party.reserve(world);
        world.call(reserve);
    } else {
        party.begin(world);
    }
    if state == KeygenState::KeyGeneration {
        for enclave in world.enclaves.values_mut() {
            let is = |request: &Request| matches!(request, Request::OpenKeygen(_));
            enclave.script = Some(Box::new(move |request| is(request).then(|| refused(Code::TimeUnknown))));
        }
        for index in 0..3 {
            let register = party.register(world, index);
            world.call(register);
        }
    }
    assert_eq!(party.status(world).state, state);
    party
}

const OPEN: [KeygenState; 3] =
    [KeygenState::Reserved, KeygenState::CollectingParticipants, KeygenState::KeyGeneration];

#[test]
fn a_keygen_fails_at_its_deadline_in_every_open_state() {
    for state in OPEN {
        let mut world = World::new(3);
        let party = keygen_in(&mut world, state);
        world.pass(TIMEOUT_MS - 1);
        assert_eq!(party.status(&mut world).state, state);
        world.pass(1);
        let status = party.status(&mut world);
        assert_eq!(status.state, KeygenState::Failed);
        assert_eq!(status.failure.expect("failed").code, "expired");
        assert!(world.reports.contains(&Report::KeygenEnded(party.keygen_id, Some(Code::Expired))));
        assert_eq!((world.gateway.sessions(), world.gateway.next_deadline()), (0, None));
    }
}

#[test]
fn a_deadline_holds_across_restarts_on_another_monotonic_clock() {
    for state in OPEN {
        let mut world = World::new(3);
        let party = keygen_in(&mut world, state);
        world.pass(TIMEOUT_MS / 2);
        world.crash();
        world.run();
        world.pass(TIMEOUT_MS / 2 - 1);
        assert_eq!(party.status(&mut world).state, state);
        world.pass(1);
        assert_eq!(party.status(&mut world).state, KeygenState::Failed);
    }
}

#[test]
fn a_session_whose_deadline_passed_while_the_gateway_was_down_fails_at_once() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::CollectingParticipants);
    world.sleep(TIMEOUT_MS + 5);
    world.crash();
    world.run();
    world.pass(0);
    assert_eq!(party.status(&mut world).state, KeygenState::Failed);
}

#[test]
fn a_clock_that_was_ahead_and_was_set_right_ends_nothing_early() {
    const AHEAD_MS: u64 = 137_000;
    let mut world = World::new(3);
    let keygen = party_with_timeout(1);
    keygen.begin(&mut world);
    world.now.unix_ms += AHEAD_MS;
    let mut party = Party::new(2, 3);
    party.users[1].approves = true;
    party.complete(&mut world);
    let expires_at = world.now.unix_ms + 300_000;
    let request = SignRequest { expires_at, ..party.sign_request(1) };
    let sign = party.sign_with(&mut world, request);
    assert_eq!(outcome_of(&mut world, sign), "201");
    world.now.unix_ms -= AHEAD_MS;
    world.pass(TIMEOUT_MS - 1);
    assert_eq!(keygen.status(&mut world).state, KeygenState::CollectingParticipants);
    world.pass(1);
    assert_eq!(keygen.status(&mut world).state, KeygenState::Failed);
    let left = expires_at - world.now.unix_ms;
    world.pass(left - 1);
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::CollectingParticipants);
    world.pass(1);
    assert_eq!(party.signing_status(&mut world, 1).failure.expect("failed").code, "expired");
}

#[test]
fn a_keygens_timeout_has_a_default_and_a_maximum() {
    let mut world = World::new(3);
    let (default, max) = (world.config.keygen_timeout_default_ms, world.config.keygen_timeout_max_ms);
    let cases = [
        (None, Ok(default)),
        (Some(1), Ok(1)),
        (Some(max), Ok(max)),
        (Some(0), Err(())),
        (Some(max + 1), Err(())),
    ];
    for (number, (timeout_ms, expected)) in (1..).zip(cases) {
        let mut party = Party::new(number, 2);
        party.timeout_ms = timeout_ms;
        let reserve = party.reserve(&mut world);
        let outcome = outcome_of(&mut world, reserve);
        match expected {
            Ok(ms) => assert_eq!(party.slots(&mut world).deadline, START_UNIX_MS + ms),
            Err(()) => assert_eq!(outcome, "bad-times"),
        }
    }
}

#[test]
fn a_signing_fails_when_its_intent_expires_waiting_for_approval_or_for_an_enclave() {
    for approves in [true, false] {
        for restart in [true, false] {
            let mut world = World::new(3);
            let mut party = Party::new(1, 3);
            party.users[1].approves = approves;
            party.complete(&mut world);
            world.lose(enclave_id(2));
            let sign = party.sign(&mut world, 1);
            assert_eq!(outcome_of(&mut world, sign), "201");
            let left = START_UNIX_MS + 3_600_000 - world.now.unix_ms;
            if restart {
                world.crash();
                world.run();
            }
            world.pass(left - 1);
            assert_eq!(party.signing_status(&mut world, 1).state, SigningState::CollectingParticipants);
            world.pass(1);
            let status = party.signing_status(&mut world, 1);
            assert_eq!(status.failure.expect("failed").code, "expired");
            assert!(world.disk.open.is_empty());
            let approve = party.approve(&mut world, 1, 1);
            assert_eq!(outcome_of(&mut world, approve), "expired");
        }
    }
}

#[test]
fn one_tick_ends_a_bounded_number_of_sessions_and_asks_for_another_at_once() {
    let mut world = World::new(1);
    let count = EXPIRIES_MAX as u8 + 1;
    for number in 1..=count {
        let reserve = party_with_timeout(number).reserve(&mut world);
        world.call(reserve);
    }
    world.sleep(TIMEOUT_MS);
    world.handle(Event::Ticked);
    let writes =
        |world: &World| world.outbox.iter().filter(|command| matches!(command, Command::Persist(_))).count();
    assert_eq!(writes(&world), EXPIRIES_MAX);
    let deadline = world.gateway.next_deadline().expect("there is more");
    assert!(deadline.mono_ms <= world.now.mono_ms);
    assert_eq!(deadline.reason, DeadlineReason::SessionExpiry);
    world.handle(Event::Ticked);
    assert_eq!(writes(&world), EXPIRIES_MAX + 1);
    world.run();
    assert!(world.disk.open.is_empty());
}

#[test]
fn a_spurious_tick_does_nothing() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::Reserved);
    let deadline = world.gateway.next_deadline();
    for _ in 0..10 {
        world.handle(Event::Ticked);
        assert!(world.outbox.is_empty());
    }
    assert_eq!(world.gateway.next_deadline(), deadline);
    assert_eq!(party.status(&mut world).state, KeygenState::Reserved);
}

fn wait(wait_ms: u64) -> Wait {
    Wait { wait_ms, since: None, until_ended: false }
}

#[test]
fn a_long_poll_is_answered_at_its_deadline_and_not_before() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::Reserved);
    let request = poll(&mut world, &party, wait(30_000));
    world.run();
    assert_eq!(world.answer(request), None);
    let deadline = world.gateway.next_deadline().expect("a deadline");
    assert_eq!(deadline.reason, DeadlineReason::LongPoll);
    assert_eq!(deadline.mono_ms, world.now.mono_ms + 30_000);
    world.pass(29_999);
    assert_eq!(world.answer(request), None);
    world.pass(1);
    let status: KeygenStatus = body(&world.answer(request).expect("answered"));
    assert_eq!(status.state, KeygenState::Reserved);
}

#[test]
fn a_long_poll_is_answered_by_a_change_once_that_is_durable() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::Reserved);
    let [any, ended] = [false, true].map(|until_ended| {
        let wait = Wait { wait_ms: 30_000, since: None, until_ended };
        poll(&mut world, &party, wait)
    });
    let init = party.init(&mut world);
    world.ask(init);
    world.run_until_writes();
    assert_eq!(world.answer(any), None);
    world.run();
    let status: KeygenStatus = body(&world.answer(any).expect("answered"));
    assert_eq!(status.state, KeygenState::CollectingParticipants);
    assert_eq!(world.answer(ended), None, "that was not the end");
    world.pass(TIMEOUT_MS / 2 - 1);
    let late = poll(&mut world, &party, Wait { wait_ms: 30_000, since: None, until_ended: true });
    world.pass(TIMEOUT_MS);
    let status: KeygenStatus = body(&world.answer(late).expect("answered"));
    assert_eq!(status.state, KeygenState::CollectingParticipants, "the poll's time was over before");
}

#[test]
fn a_poll_until_the_end_is_answered_by_failure_and_by_completion() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    let until_ended = Wait { wait_ms: 30_000, since: None, until_ended: true };
    for (number, cancelled) in [(1, true), (2, false)] {
        world.lose(enclave_id(1));
        let sign = party.sign(&mut world, number);
        world.call(sign);
        let call = party.signing_status_call(&mut world, number, until_ended);
        let request = world.ask(call);
        world.run();
        assert_eq!(world.answer(request), None);
        if cancelled {
            let cancel = party.withdraw(&mut world, WithdrawalKind::Cancel, 0, number);
            world.call(cancel);
        }
        world.find(enclave_id(1));
        world.run();
        world.pass(10);
        let status: SigningStatus = body(&world.answer(request).expect("answered"));
        let expected = if cancelled { SigningState::Failed } else { SigningState::Completed };
        assert_eq!(status.state, expected);
        // Of a session that has ended every poll is answered at once.
        let call = party.signing_status_call(&mut world, number, until_ended);
        assert_eq!(outcome_of(&mut world, call), "200");
    }
}

#[test]
fn a_poll_since_another_revision_is_answered_at_once() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::CollectingParticipants);
    let revision = party.status(&mut world).revision;
    let since = |revision| Wait { wait_ms: 30_000, since: Some(revision), until_ended: false };
    let old = poll(&mut world, &party, since(revision + 1));
    let same = poll(&mut world, &party, since(revision));
    assert!(world.answer(old).is_some());
    assert_eq!(world.answer(same), None);
    let register = party.register(&mut world, 0);
    world.call(register);
    let status: KeygenStatus = body(&world.answer(same).expect("answered"));
    assert_eq!((status.registered, status.revision), (1, revision + 1));
}

#[test]
fn long_polls_of_one_session_are_bounded_and_abandoned_ones_make_room() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::Reserved);
    let mut polls: Vec<_> =
        (0..WAITERS_PER_SESSION_MAX).map(|_| poll(&mut world, &party, wait(20_000))).collect();
    assert!(polls.iter().all(|request| !world.answers.contains_key(request)));
    let refused = poll(&mut world, &party, wait(20_000));
    assert_eq!(outcome(&world.answer(refused).expect("refused")), "too-many");
    let status = poll(&mut world, &party, no_wait());
    assert_eq!(outcome(&world.answer(status).expect("no wait needs no room")), "200");
    let abandoned = polls.pop().expect("many");
    world.handle(Event::Abandoned { request: abandoned });
    world.asked.remove(&abandoned);
    polls.push(poll(&mut world, &party, wait(20_000)));
    world.pass(20_000);
    for request in polls {
        assert_eq!(outcome(&world.answer(request).expect("answered")), "200");
    }
}

#[test]
fn a_poll_with_a_wrong_key_does_not_wait() {
    let mut world = World::new(3);
    let party = keygen_in(&mut world, KeygenState::Reserved);
    let call = party.status_call(&mut world, wait(30_000));
    let stranger = by(&mut world, &call, party.users[0].auth.public());
    let request = world.ask(stranger);
    assert_eq!(outcome(&world.answer(request).expect("refused")), "key-not-allowed");
}
