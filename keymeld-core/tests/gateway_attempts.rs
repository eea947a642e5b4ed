//! Attempts: what the gateway does when enclaves are lost, forget, refuse, or answer nonsense.

mod gateway_support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use gateway_support::enclave::{ecies_key, refused, result_of};
use gateway_support::party::{Party, outcome_of};
use gateway_support::{World, enclave_id};
use keymeld_core::api::rest::{KeygenState, SigningState};
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::gateway::{ATTEMPTS_REFUSED_MAX, Command, Event, Report};
use keymeld_core::id::AttemptId;
use keymeld_core::link::message::{HelloReply, KeygenOpened, Refused, Reply, Request};
use keymeld_core::refusal::{Code, Refusal};

fn ready_to_sign() -> (World, Party) {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    (world, party)
}

fn is_nonces(request: &Request) -> bool {
    matches!(request, Request::MakeNonces(_))
}

fn is_open(request: &Request) -> bool {
    matches!(request, Request::OpenKeygen(_))
}

fn attempts(world: &World) -> BTreeSet<AttemptId> {
    let attempt = |request: &Request| match request {
        Request::MakeNonces(make) => Some(make.run.attempt),
        _ => None,
    };
    world.sent.iter().filter_map(|(_, request)| attempt(request)).collect()
}

/// Answers one request of a kind otherwise than an honest enclave would.
fn once(world: &mut World, is: fn(&Request) -> bool, reply: &Reply) {
    for enclave in world.enclaves.values_mut() {
        let mut reply = Some(reply.clone());
        enclave.script = Some(Box::new(move |request| if is(request) { reply.take() } else { None }));
    }
}

#[test]
fn a_lost_enclave_ends_the_attempt_and_its_return_starts_another() {
    for lost_after in 0..7 {
        let (mut world, party) = ready_to_sign();
        let sign = party.sign(&mut world, 1);
        world.ask(sign);
        for _ in 0..=lost_after {
            if let Some(command) = world.outbox.pop_front() {
                world.carry_out(command);
            }
        }
        world.lose(enclave_id(2));
        world.run();
        let status = party.signing_status(&mut world, 1);
        if status.state == SigningState::Completed {
            continue;
        }
        assert_eq!(status.state, SigningState::CollectingParticipants, "{lost_after}");
        let (before, revision) = (world.sent.len(), status.revision);
        world.pass(60_000);
        assert_eq!(world.sent.len(), before, "the other enclaves are left alone meanwhile");
        assert_eq!(party.signing_status(&mut world, 1).revision, revision, "and long polls too");
        world.find(enclave_id(2));
        world.run();
        world.pass(1);
        assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed, "{lost_after}");
        assert!(attempts(&world).len() <= 2);
    }
}

#[test]
fn an_enclave_that_forgot_the_session_gets_it_once_more() {
    let (mut world, party) = ready_to_sign();
    let opened = world.sent_count(is_open);
    for enclave in world.enclaves.values_mut() {
        enclave.opened.clear();
    }
    for number in 1..=2 {
        let sign = party.sign(&mut world, number);
        assert_eq!(outcome_of(&mut world, sign), "201");
        assert_eq!(party.signing_status(&mut world, number).state, SigningState::Completed);
    }
    assert_eq!(world.sent_count(is_open) - opened, 3);
    assert_eq!(world.sent_count(is_nonces), 6 + 3);
    assert_eq!(attempts(&world).len(), 2);
}

#[test]
fn an_enclave_that_never_knows_the_session_is_not_asked_in_a_storm() {
    let (mut world, party) = ready_to_sign();
    let enclave = world.enclaves.get_mut(&enclave_id(2)).expect("configured");
    enclave.script = Some(Box::new(|request| is_nonces(request).then(|| refused(Code::UnknownSession))));
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    let before = world.sent.len();
    world.pass(60_000);
    // 100, 200, ... 3,200 ms, then 5 s: at most 18 runs of 3 + 1 + 1 requests.
    assert!(world.sent.len() - before <= 18 * 5, "{}", world.sent.len() - before);
    world.enclaves.get_mut(&enclave_id(2)).expect("configured").script = None;
    world.pass(5_000);
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}

#[test]
fn passing_refusals_are_retried_with_growing_pauses() {
    let (mut world, party) = ready_to_sign();
    for enclave in world.enclaves.values_mut() {
        enclave.script = Some(Box::new(|request| is_nonces(request).then(|| refused(Code::TimeUnknown))));
    }
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    for _ in 0..6 {
        let due = world.gateway.next_deadline().expect("a retry").mono_ms;
        let before = attempts(&world).len();
        world.pass(due - world.now.mono_ms - 1);
        assert_eq!(attempts(&world).len(), before, "not before its time");
        world.pass(1);
        assert_eq!(attempts(&world).len(), before + 1, "one run for each pause");
    }
    let before = attempts(&world).len();
    world.pass(50_000);
    assert_eq!(attempts(&world).len() - before, 10, "every five seconds in the long run");
}

#[test]
fn attempts_that_end_in_refusals_are_limited() {
    // A fault of the enclave's own is none that passes unseen.
    for code in [Code::AttemptConsumed, Code::Internal] {
        let (mut world, party) = ready_to_sign();
        for enclave in world.enclaves.values_mut() {
            let is = |request: &Request| matches!(request, Request::MakePartials(_));
            enclave.script = Some(Box::new(move |request| is(request).then(|| refused(code))));
        }
        let sign = party.sign(&mut world, 1);
        world.call(sign);
        let status = party.signing_status(&mut world, 1);
        assert_eq!(status.failure.expect("failed").code, "too-many-attempts");
        assert_eq!(attempts(&world).len(), ATTEMPTS_REFUSED_MAX as usize);
        let is_refused =
            |report: &&Report| matches!(report, Report::AttemptRefused(_, other) if *other == code);
        assert_eq!(world.reports.iter().filter(is_refused).count(), ATTEMPTS_REFUSED_MAX as usize);
    }
}

/// An enclave forgets attempts when others push them out: that is nobody's fault, and ends no session.
#[test]
fn attempts_that_enclaves_forget_are_begun_anew_until_one_is_not_forgotten() {
    let (mut world, party) = ready_to_sign();
    let forgotten = Rc::new(Cell::new(0));
    for enclave in world.enclaves.values_mut() {
        let forgotten = Rc::clone(&forgotten);
        enclave.script = Some(Box::new(move |request| {
            let forgets = matches!(request, Request::MakePartials(_)) && forgotten.get() < 20;
            forgets.then(|| {
                forgotten.set(forgotten.get() + 1);
                refused(Code::UnknownAttempt)
            })
        }));
    }
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    world.pass(2_000);
    assert!(attempts(&world).len() < 8, "with pauses");
    world.pass(120_000);
    let status = party.signing_status(&mut world, 1);
    assert_eq!(status.state, SigningState::Completed, "{:?}", status.failure);
    assert!(attempts(&world).len() > usize::try_from(ATTEMPTS_REFUSED_MAX).expect("few"));
}

#[test]
fn late_replies_of_an_old_attempt_are_ignored() {
    let (mut world, party) = ready_to_sign();
    let sign = party.sign(&mut world, 1);
    world.ask(sign);
    while !matches!(world.outbox.front(), Some(Command::Send { .. })) {
        let command = world.outbox.pop_front().expect("the load and the write");
        world.carry_out(command);
    }
    let late = world.outbox.pop_front().expect("the first of three requests");
    let Command::Send { enclave_id: to, call, body, .. } = late else { panic!("{late:?}") };
    let request = Request::decode(&body).expect("valid");
    let old = world.enclaves.get_mut(&to).expect("configured").answer(&request).expect("nonces");
    once(&mut world, is_nonces, &refused(Code::NonceInvalid));
    let refusing = world.outbox.pop_front().expect("the second");
    world.carry_out(refusing);
    for enclave in world.enclaves.values_mut() {
        enclave.script = None;
    }
    let before = world.outbox.len();
    world.handle(Event::Replied { call, body: old.clone().encode() });
    assert_eq!(world.outbox.len(), before, "it moves nothing");
    world.run();
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
    world.handle(Event::Replied { call, body: old.encode() });
    world.run();
    assert_eq!(world.asked.len(), 0);
}

fn wrong_replies(world: &World) -> Vec<Reply> {
    let roster_hash = Hash([!6; 32]);
    let is_nonces = |request: &&Request| is_nonces(request);
    let run = world.sent.iter().map(|(_, request)| request).find(is_nonces).map(|request| match request {
        Request::MakeNonces(make) => make.run,
        _ => unreachable!("filtered"),
    });
    let result = run.map_or(Blob(vec![1]), |run| result_of(&run));
    vec![
        Reply::Hello(HelloReply { enclave_id: enclave_id(1), epochs: vec![1] }),
        Reply::IdentityCreated(gateway_support::enclave::identity_row(enclave_id(1), 1)),
        Reply::IdentityOpened,
        Reply::Attested(Blob(vec![1])),
        Reply::RegistrationChecked,
        Reply::KeygenOpened(KeygenOpened { roster_hash, certificate: Blob(vec![1]) }),
        Reply::NoncesMade(Vec::new()),
        Reply::PartialsMade(Blob(vec![1])),
        Reply::Aggregated(result),
    ]
}

#[test]
fn a_reply_to_another_question_ends_the_attempt_and_no_more() {
    let kinds: [fn(&Request) -> bool; 3] = [
        is_nonces,
        |request| matches!(request, Request::MakePartials(_)),
        |request| matches!(request, Request::Aggregate(_)),
    ];
    let honest = |request: usize, reply: &Reply| match reply {
        // No bundle for anybody is wrong as well.
        Reply::PartialsMade(_) => request == 1,
        Reply::Aggregated(_) => request == 2,
        _ => false,
    };
    for (request, is) in kinds.into_iter().enumerate() {
        let replies = wrong_replies(&ready_to_sign().0);
        for reply in replies.iter().filter(|reply| !honest(request, reply)) {
            let (mut world, party) = ready_to_sign();
            once(&mut world, is, reply);
            let sign = party.sign(&mut world, 1);
            assert_eq!(outcome_of(&mut world, sign), "201");
            world.pass(10_000);
            let status = party.signing_status(&mut world, 1);
            assert_eq!(status.state, SigningState::Completed, "{request} {reply:?}: {:?}", status.failure);
            assert!(attempts(&world).len() >= 2, "{request} {reply:?}: the attempt was over");
            assert!(attempts(&world).len() <= 4, "{request} {reply:?}");
        }
    }
}

#[test]
fn nonsense_for_ever_fails_the_session_within_its_attempts() {
    for reply in wrong_replies(&ready_to_sign().0) {
        let (mut world, party) = ready_to_sign();
        for enclave in world.enclaves.values_mut() {
            let reply = reply.clone();
            enclave.script = Some(Box::new(move |request| is_nonces(request).then(|| reply.clone())));
        }
        let sign = party.sign(&mut world, 1);
        world.call(sign);
        let status = party.signing_status(&mut world, 1);
        assert_eq!(status.failure.expect("failed").code, "too-many-attempts", "{reply:?}");
    }
}

#[test]
fn another_roster_at_signing_fails_the_session() {
    let (mut world, party) = ready_to_sign();
    for enclave in world.enclaves.values_mut() {
        enclave.opened.clear();
    }
    let other = KeygenOpened { roster_hash: Hash([1; 32]), certificate: Blob(Vec::new()) };
    once(&mut world, is_open, &Reply::KeygenOpened(other));
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    let status = party.signing_status(&mut world, 1);
    assert_eq!(status.failure.expect("failed").code, "roster-hash-mismatch");
}

#[test]
fn an_approval_that_an_enclave_asks_for_is_waited_for() {
    let (mut world, party) = ready_to_sign();
    let user_id = party.users[1].user_id;
    for enclave in world.enclaves.values_mut() {
        enclave.script = Some(Box::new(move |request| match request {
            Request::MakeNonces(make) if make.approvals.is_empty() => {
                let refusal = Refusal::blaming(Code::ApprovalMissing, vec![user_id]);
                Some(Reply::Refused(Refused::from(refusal)))
            }
            _ => None,
        }));
    }
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    let status = party.signing_status(&mut world, 1);
    assert_eq!((status.state, status.awaited), (SigningState::CollectingParticipants, vec![user_id]));
    let before = world.sent.len();
    world.pass(60_000);
    assert_eq!(world.sent.len(), before, "nothing is tried without it");
    let approve = party.approve(&mut world, 1, 1);
    assert_eq!(outcome_of(&mut world, approve), "201");
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}

#[test]
fn an_approval_that_comes_while_an_enclave_refuses_for_want_of_it_starts_another_attempt() {
    for code in [Code::ApprovalMissing, Code::RequesterNotAllowed, Code::BlindNotAllowed] {
        let (mut world, party) = ready_to_sign();
        let user_id = party.users[1].user_id;
        for enclave in world.enclaves.values_mut() {
            enclave.script = Some(Box::new(move |request| match request {
                Request::MakeNonces(make) if make.approvals.is_empty() => {
                    Some(Reply::Refused(Refused::from(Refusal::blaming(code, vec![user_id]))))
                }
                _ => None,
            }));
        }
        let sign = party.sign(&mut world, 1);
        world.ask(sign);
        while !matches!(world.outbox.front(), Some(Command::Send { .. })) {
            let command = world.outbox.pop_front().expect("a run starts");
            world.carry_out(command);
        }
        let approve = party.approve(&mut world, 1, 1);
        world.ask(approve);
        world.run();
        assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed, "{code}");
        assert_eq!(attempts(&world).len(), 2, "{code}");
    }
}

#[test]
fn a_keygen_waits_for_its_enclaves_without_a_storm_and_fails_for_faults_of_the_roster() {
    for (code, ends) in
        [(Code::TimeUnknown, false), (Code::SessionSecretsDiffer, true), (Code::Internal, true)]
    {
        let mut world = World::new(3);
        let party = Party::new(1, 3);
        party.begin(&mut world);
        for enclave in world.enclaves.values_mut() {
            enclave.script = Some(Box::new(move |request| is_open(request).then(|| refused(code))));
        }
        for index in 0..3 {
            let register = party.register(&mut world, index);
            assert_eq!(outcome_of(&mut world, register), "201");
        }
        world.pass(60_000);
        let status = party.status(&mut world);
        if ends {
            assert_eq!(status.failure.expect("failed").code, code.name());
            assert!(world.reports.contains(&Report::KeygenEnded(party.keygen_id, Some(code))));
            continue;
        }
        assert_eq!(status.state, KeygenState::KeyGeneration);
        assert!(world.sent_count(is_open) <= 3 * 19, "{}", world.sent_count(is_open));
        for enclave in world.enclaves.values_mut() {
            enclave.script = None;
        }
        world.pass(5_000);
        assert_eq!(party.status(&mut world).state, KeygenState::Completed);
    }
}

#[test]
fn a_keygen_leaves_ready_enclaves_alone_while_another_is_away() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.begin(&mut world);
    for index in 0..3 {
        let register = party.register(&mut world, index);
        world.ask(register);
        while world.sent_count(is_open) == 0 {
            let Some(command) = world.outbox.pop_front() else { break };
            world.carry_out(command);
        }
    }
    world.lose(enclave_id(3));
    world.run();
    let before = world.sent_count(is_open);
    world.pass(60_000);
    assert_eq!(world.sent_count(is_open), before);
    world.find(enclave_id(3));
    world.run();
    world.pass(1);
    assert_eq!(party.status(&mut world).state, KeygenState::Completed);
}

#[test]
fn different_rosters_fail_the_keygen() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let enclave = world.enclaves.get_mut(&enclave_id(2)).expect("configured");
    enclave.script = Some(Box::new(|request| {
        let opened = KeygenOpened { roster_hash: Hash([1; 32]), certificate: Blob(Vec::new()) };
        is_open(request).then_some(Reply::KeygenOpened(opened))
    }));
    party.begin(&mut world);
    for index in 0..3 {
        let register = party.register(&mut world, index);
        world.call(register);
    }
    assert_eq!(party.status(&mut world).failure.expect("failed").code, "certificates-differ");
}

#[test]
fn a_rotation_asked_while_identities_are_opened_leaves_none_closed() {
    let mut world = World::new(1);
    world.handle(Event::RotationAsked { enclave_id: enclave_id(1) });
    world.run();
    assert_eq!(world.enclaves[&enclave_id(1)].epochs, BTreeSet::from([1, 2]));
    world.lose(enclave_id(1));
    world.find(enclave_id(1));
    // Hello, then the first of two rows; the rotation is asked in between.
    let hello = world.outbox.pop_front().expect("hello");
    world.carry_out(hello);
    world.handle(Event::RotationAsked { enclave_id: enclave_id(1) });
    world.run();
    world.pass(5_000);
    assert_eq!(world.enclaves[&enclave_id(1)].epochs, BTreeSet::from([1, 2, 3]));
    let refusals = world.reports.iter().filter(|report| matches!(report, Report::EnclaveRefused(..)));
    assert_eq!(refusals.count(), 0);
    assert_ne!(ecies_key(enclave_id(1), 1), ecies_key(enclave_id(1), 3));
}
