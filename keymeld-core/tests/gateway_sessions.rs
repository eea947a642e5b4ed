//! Whole keygens and signings at the gateway: order of states, durability, crashes, idempotency.

mod gateway_support;

use std::collections::BTreeSet;

use gateway_support::enclave::refused;
use gateway_support::party::{Party, by, no_wait, outcome_of, signing_id};
use gateway_support::{World, body, enclave_id, outcome};
use keymeld_core::api::http::Response;
use keymeld_core::api::rest::{KeygenState, KeygenStatus, SigningState, SigningStatus, SlotsResponse};
use keymeld_core::api::router::Call;
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::gateway::{Command, Event, RequestId};
use keymeld_core::link::message::Request;
use keymeld_core::record::PersistError;
use keymeld_core::refusal::Code;

use SigningState::{
    CollectingNonces, CollectingPartialSignatures, CollectingParticipants, Completed, Failed,
    FinalizingSignature, GeneratingNonces, GeneratingPartialSignatures,
};

#[test]
fn a_keygen_and_a_signing_complete() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    let sign = party.sign(&mut world, 1);
    assert_eq!(outcome_of(&mut world, sign), "201");
    let status = party.signing_status(&mut world, 1);
    assert_eq!(status.state, Completed);
    assert!(status.result.is_some());
    assert_eq!(world.gateway.sessions(), 0, "ended sessions are not kept in memory");
    assert_eq!(world.gateway.next_deadline(), None, "and leave no timer behind");
}

#[test]
fn the_coordinator_is_signer_0_and_enclaves_are_dealt_out_round_robin() {
    let mut world = World::new(3);
    let mut dealt = Vec::new();
    for number in 1..=2 {
        let party = Party::new(number, 5);
        let reserve = party.reserve(&mut world);
        let slots: SlotsResponse = body(&world.call(reserve));
        assert_eq!(slots.slots[0].user_id, party.users[0].user_id);
        let indices: Vec<u32> = slots.slots.iter().map(|slot| slot.signer_index).collect();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
        dealt.extend(slots.slots.iter().map(|slot| slot.enclave_id));
    }
    let expected: Vec<_> = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1].map(enclave_id).to_vec();
    assert_eq!(dealt, expected);
}

#[test]
fn reserving_needs_a_healthy_enclave_and_only_such_are_dealt_out() {
    let mut world = World::unstarted(3);
    world.start();
    world.run();
    let party = Party::new(1, 3);
    let reserve = party.reserve(&mut world);
    assert_eq!(outcome_of(&mut world, reserve), "enclave-away");
    world.find(enclave_id(2));
    world.run();
    let reserve = party.reserve(&mut world);
    let slots: SlotsResponse = body(&world.call(reserve));
    assert!(slots.slots.iter().all(|slot| slot.enclave_id == enclave_id(2)));
    world.find(enclave_id(3));
    world.lose(enclave_id(2));
    world.run();
    let reserve = Party::new(2, 3).reserve(&mut world);
    let slots: SlotsResponse = body(&world.call(reserve));
    assert!(slots.slots.iter().all(|slot| slot.enclave_id == enclave_id(3)));
}

/// Carries everything out one by one and asks for the status after each; gives the states in order.
fn states(
    world: &mut World,
    ask: impl Fn(&mut World) -> Call,
    state: impl Fn(&Response) -> String,
) -> Vec<String> {
    let mut asked: Vec<RequestId> = Vec::new();
    while let Some(command) = world.outbox.pop_front() {
        let is_load = matches!(command, Command::Load(_));
        world.carry_out(command);
        // To ask again after a load of an ended session would load it for ever.
        if !is_load {
            let call = ask(world);
            asked.push(world.ask(call));
        }
    }
    let mut states: Vec<String> =
        asked.iter().filter_map(|request| world.answer(*request)).map(|response| state(&response)).collect();
    states.dedup();
    states
}

fn signing_states(world: &mut World, party: &Party) -> Vec<String> {
    let state = |response: &Response| format!("{:?}", body::<SigningStatus>(response).state);
    states(world, |world| party.signing_status_call(world, 1, no_wait()), state)
}

fn names(states: &[SigningState]) -> Vec<String> {
    states.iter().map(|state| format!("{state:?}")).collect()
}

#[test]
fn status_shows_the_states_of_a_keygen_in_order() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let mut seen = Vec::new();
    for (_, call) in actions().into_iter().take(5) {
        let call = call(&party, &mut world);
        world.ask(call);
        let state = |response: &Response| {
            if response.status == 200 {
                format!("{:?}", body::<KeygenStatus>(response).state)
            } else {
                outcome(response)
            }
        };
        seen.extend(states(&mut world, |world| party.status_call(world, no_wait()), state));
    }
    seen.dedup();
    let order = [
        KeygenState::Reserved,
        KeygenState::CollectingParticipants,
        KeygenState::KeyGeneration,
        KeygenState::Completed,
    ];
    assert_eq!(seen, order.map(|state| format!("{state:?}")));
}

// AggregatingNonces begins and ends within one step, so nobody sees it; every other legal change is seen here
// or, as an end in Failed and a way back to CollectingParticipants, in the test after the next.
#[test]
fn status_shows_the_states_of_a_signing_in_order() {
    let one = [GeneratingNonces, Completed];
    let two =
        [GeneratingNonces, CollectingNonces, GeneratingPartialSignatures, FinalizingSignature, Completed];
    let three = [
        GeneratingNonces,
        CollectingNonces,
        GeneratingPartialSignatures,
        CollectingPartialSignatures,
        FinalizingSignature,
        Completed,
    ];
    for (enclaves, expected) in [(1, one.as_slice()), (2, &two), (3, &three)] {
        let mut world = World::new(enclaves);
        let mut party = Party::new(1, 3);
        party.users[2].approves = true;
        party.complete(&mut world);
        let sign = party.sign(&mut world, 1);
        world.ask(sign);
        assert_eq!(signing_states(&mut world, &party), names(&[CollectingParticipants]));
        let approve = party.approve(&mut world, 2, 1);
        world.ask(approve);
        assert_eq!(signing_states(&mut world, &party), names(expected), "{enclaves}");
    }
}

#[test]
fn a_signing_may_fail_in_every_state_and_an_attempt_may_end_in_every_state() {
    for refused_by in 0..6 {
        for code in [Code::PartialInvalid, Code::EnclaveAway] {
            let mut world = World::new(3);
            let party = Party::new(1, 3);
            party.complete(&mut world);
            let mut calls = 0;
            let sign = party.sign(&mut world, 1);
            world.ask(sign);
            let mut observed = Vec::new();
            while let Some(command) = world.outbox.pop_front() {
                let is_send = matches!(command, Command::Send { .. });
                let is_load = matches!(command, Command::Load(_));
                calls += usize::from(is_send);
                if is_send && calls == refused_by + 1 {
                    for enclave in world.enclaves.values_mut() {
                        enclave.script = Some(Box::new(move |_| Some(refused(code))));
                    }
                }
                world.carry_out(command);
                for enclave in world.enclaves.values_mut() {
                    enclave.script = None;
                }
                if !is_load {
                    let status = party.signing_status_call(&mut world, 1, no_wait());
                    observed.push(world.ask(status));
                }
            }
            let states: BTreeSet<SigningState> = observed
                .iter()
                .filter_map(|request| world.answer(*request))
                .map(|response| body::<SigningStatus>(&response).state)
                .collect();
            if code == Code::PartialInvalid {
                let failure = party.signing_status(&mut world, 1).failure.expect("failed");
                assert_eq!((states.contains(&Failed), failure.code.as_str()), (true, "partial-invalid"));
            } else {
                assert!(
                    !states.contains(&Failed) && !states.contains(&Completed),
                    "{refused_by}: {states:?}"
                );
                world.pass(10_000);
                assert_eq!(party.signing_status(&mut world, 1).state, Completed, "{refused_by}");
            }
        }
    }
}

type Action = Box<dyn Fn(&Party, &mut World) -> Call>;

/// Everything that changes state, in order, for a party whose user 2 approves.
fn actions() -> Vec<(&'static str, Action)> {
    vec![
        ("reserve", Box::new(|party, world| party.reserve(world))),
        ("init", Box::new(|party, world| party.init(world))),
        ("register 0", Box::new(|party, world| party.register(world, 0))),
        ("register 1", Box::new(|party, world| party.register(world, 1))),
        ("register 2", Box::new(|party, world| party.register(world, 2))),
        ("sign 1", Box::new(|party, world| party.sign(world, 1))),
        ("approve 1", Box::new(|party, world| party.approve(world, 2, 1))),
        ("sign 2", Box::new(|party, world| party.sign(world, 2))),
        ("decline 2", Box::new(|party, world| party.withdraw(world, WithdrawalKind::Decline, 1, 2))),
        ("sign 3", Box::new(|party, world| party.sign(world, 3))),
        ("cancel 3", Box::new(|party, world| party.withdraw(world, WithdrawalKind::Cancel, 0, 3))),
    ]
}

fn approving_party() -> Party {
    let mut party = Party::new(1, 3);
    party.users[2].approves = true;
    party
}

#[test]
fn no_change_is_acknowledged_or_shown_before_it_is_durable() {
    let mut world = World::new(3);
    let party = approving_party();
    for (name, action) in actions() {
        let call = action(&party, &mut world);
        let request = world.ask(call);
        world.run_until_writes();
        assert!(world.open_write().is_some(), "{name} writes");
        assert_eq!(world.answer(request), None, "{name} waits for its write");
        // World::handle asserts that what is asked now is not answered with the new state either.
        let early =
            [party.status_call(&mut world, no_wait()), party.signing_status_call(&mut world, 1, no_wait())];
        let early = early.map(|call| world.ask(call));
        world.run();
        assert!(world.answer(request).expect("durable").status < 300, "{name}");
        for request in early {
            assert!(world.answer(request).is_some(), "{name}");
        }
    }
}

#[test]
fn what_cannot_be_written_did_not_happen_and_may_be_asked_again() {
    for error in [PersistError::DiskFull, PersistError::ReadOnly, PersistError::Failed] {
        let mut world = World::new(3);
        let party = approving_party();
        for (name, action) in actions() {
            let call = action(&party, &mut world);
            let request = world.ask(call);
            world.run_until_writes();
            let token = world.open_write().expect("writes");
            world.outbox.clear();
            world.handle(Event::PersistFailed { token, error });
            let expected = if error == PersistError::DiskFull { "disk-full" } else { "storage-failed" };
            assert_eq!(outcome(&world.answer(request).expect("answered")), expected, "{name}");
            let again = action(&party, &mut world);
            assert!(world.call(again).status < 300, "{name}");
            world.run();
        }
        world.pass(20_000);
        assert_eq!(party.signing_status(&mut world, 1).state, Completed);
    }
}

/// Sends a request until it is acknowledged, as clients do.
fn insist(world: &mut World, party: &Party, name: &str, action: &Action) {
    for _ in 0..10 {
        let call = action(party, world);
        match world.try_call(call) {
            Some(response) if response.status < 300 => return,
            Some(response) => assert!(response.status == 503, "{name}: {}", outcome(&response)),
            None => {}
        }
        world.pass(6_000);
    }
    panic!("{name} is never acknowledged");
}

#[test]
fn a_crash_at_any_write_loses_nothing_acknowledged_and_everything_completes() {
    let writes = {
        let mut world = World::new(3);
        let party = approving_party();
        for (name, action) in actions() {
            insist(&mut world, &party, name, &action);
        }
        world.pass(1_000);
        world.writes
    };
    assert!(writes > 15, "{writes}");
    for crash_at in (1..=writes).flat_map(|write| [(write, false), (write, true)]) {
        let mut world = World::unstarted(3);
        world.crash_at = Some(crash_at);
        world.start();
        for number in 1..=3 {
            world.find(enclave_id(number));
        }
        world.run();
        let party = approving_party();
        for (name, action) in actions() {
            // A slot can be asked for only at ready enclaves.
            world.pass(2_000);
            insist(&mut world, &party, name, &action);
            acknowledged_is_there(&mut world, &party, name);
        }
        world.pass(20_000);
        let keygen = party.status(&mut world);
        assert_eq!((keygen.state, keygen.registered), (KeygenState::Completed, 3), "{crash_at:?}");
        let ends = [1, 2, 3].map(|number| {
            let status = party.signing_status(&mut world, number);
            (status.state, status.failure.map(|failure| failure.code))
        });
        let expected =
            [(Completed, None), (Failed, Some("declined".into())), (Failed, Some("cancelled".into()))];
        assert_eq!(ends, expected, "{crash_at:?}");
        assert!(world.disk.open.is_empty(), "{crash_at:?}");
        let identities = world.disk.rows.keys().filter(|key| key.record.family as u8 == 3).count();
        assert_eq!(identities, 3, "{crash_at:?}: every enclave got one identity");
    }
}

/// What was acknowledged last is there, in memory or after a load.
fn acknowledged_is_there(world: &mut World, party: &Party, name: &str) {
    if let Some(index) = name.strip_prefix("register ") {
        let index: usize = index.parse().expect("a number");
        let slots = party.slots(world);
        let user_id = party.users[index].user_id;
        assert!(slots.slots.iter().any(|slot| slot.user_id == user_id && slot.registered), "{name}");
    } else if let Some((verb, number)) = name.split_once(' ') {
        let status = party.signing_status(world, number.parse().expect("a number"));
        match verb {
            "approve" => assert_eq!(status.approved, [party.users[2].user_id]),
            "decline" | "cancel" => assert_eq!(status.state, Failed),
            _ => assert_eq!(status.signing_id, signing_id(number.parse().expect("a number"))),
        }
    } else {
        party.slots(world);
    }
}

#[test]
fn the_same_request_again_gets_the_same_answer_before_and_after_a_restart() {
    let mut world = World::new(3);
    let party = approving_party();
    for (name, action) in actions() {
        let first = action(&party, &mut world);
        assert!(world.call(first.clone()).status < 300, "{name}");
        for restart in [false, true] {
            if restart {
                world.crash();
                world.run();
            }
            let before = world.disk.clone();
            let mut call = first.clone();
            let key = gateway_support::party::caller_of(&mut call).expect("a proof").key;
            let again = by(&mut world, &call, key);
            assert_eq!(outcome_of(&mut world, again), "200", "{name}");
            if !name.starts_with("approve") && !name.starts_with("register 2") {
                assert_eq!(world.disk, before, "{name} is not written twice");
            }
        }
    }
}

#[test]
fn an_id_with_other_content_is_a_conflict() {
    let mut world = World::new(3);
    let party = approving_party();
    for (name, action) in actions() {
        let call = action(&party, &mut world);
        assert!(world.call(call.clone()).status < 300, "{name}");
        for other in others(&party, &call) {
            let mut call = other.clone();
            let key = gateway_support::party::caller_of(&mut call).expect("a proof").key;
            let call = by(&mut world, &other, key);
            let before = world.disk.clone();
            let response = world.call(call);
            assert_eq!(response.status, 409, "{name}: {}", outcome(&response));
            assert_eq!(world.disk, before, "{name}");
        }
    }
}

/// The call with one field after another changed.
fn others(party: &Party, call: &Call) -> Vec<Call> {
    let mut others = Vec::new();
    let mut with = |change: &dyn Fn(&mut Call)| {
        let mut other = call.clone();
        change(&mut other);
        assert_ne!(&other, call);
        others.push(other);
    };
    match call {
        Call::Reserve { .. } => {
            with(&|call| {
                if let Call::Reserve { request, .. } = call {
                    request.timeout_ms = Some(5_000)
                }
            });
            with(&|call| {
                if let Call::Reserve { request, .. } = call {
                    request.coordinator = party.users[1].user_id
                }
            });
            with(&|call| {
                if let Call::Reserve { request, .. } = call {
                    request.slots.truncate(2)
                }
            });
        }
        Call::Init { .. } => {
            with(&|call| {
                if let Call::Init { request, .. } = call {
                    request.manifest_hash.0[0] ^= 1
                }
            });
            with(&|call| {
                if let Call::Init { request, .. } = call {
                    request.manifest.0.push(0)
                }
            });
        }
        Call::Register { .. } => {
            with(&|call| {
                if let Call::Register { request, .. } = call {
                    request.record.0.push(0)
                }
            });
            with(&|call| {
                if let Call::Register { request, .. } = call {
                    request.envelope.0.push(0)
                }
            });
            with(&|call| {
                if let Call::Register { request, .. } = call {
                    request.approval_required = !request.approval_required;
                }
            });
        }
        Call::Sign { .. } => {
            with(&|call| {
                if let Call::Sign { request, .. } = call {
                    request.intent.0.push(0)
                }
            });
            with(&|call| {
                if let Call::Sign { request, .. } = call {
                    request.intent_digest.0[0] ^= 1
                }
            });
            with(&|call| {
                if let Call::Sign { request, .. } = call {
                    request.expires_at += 1
                }
            });
            with(&|call| {
                if let Call::Sign { request, .. } = call {
                    request.items.clear()
                }
            });
        }
        Call::Approve { .. } => with(&|call| {
            if let Call::Approve { approval, .. } = call {
                *approval = party.approval(2, 1, true)
            }
        }),
        // A withdrawal says nothing but no; another one is that of another user, or of the other kind.
        Call::Withdraw { .. } => with(&|call| {
            let mut world = World::unstarted(1);
            let (kind, index, number) = match call {
                Call::Withdraw { kind: WithdrawalKind::Decline, .. } => (WithdrawalKind::Decline, 2, 2),
                _ => (WithdrawalKind::Decline, 1, 3),
            };
            *call = party.withdraw(&mut world, kind, index, number);
        }),
        Call::Slots { .. }
        | Call::KeygenStatus { .. }
        | Call::Intent { .. }
        | Call::SigningStatus { .. }
        | Call::Enclaves
        | Call::Attestation { .. }
        | Call::Version
        | Call::Health => {}
    }
    others
}

#[test]
fn a_keygen_is_not_used_for_signing_before_its_end_is_durable() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.begin(&mut world);
    for index in 0..2 {
        let register = party.register(&mut world, index);
        assert_eq!(outcome_of(&mut world, register), "201");
    }
    let register = party.register(&mut world, 2);
    world.ask(register);
    // The registration, then the end: only the first is written.
    world.run_until_writes();
    let command = world.outbox.pop_front().expect("the registration");
    world.carry_out(command);
    world.run_until_writes();
    let token = world.open_write().expect("the end");
    let sign = party.sign(&mut world, 1);
    let request = world.ask(sign);
    world.run_until_writes();
    assert_eq!(world.sent_count(|request| matches!(request, Request::MakeNonces(_))), 0);
    world.outbox.clear();
    world.handle(Event::PersistFailed { token, error: PersistError::Failed });
    world.run();
    assert_eq!(outcome(&world.answer(request).expect("answered")), "storage-failed");
    world.pass(10_000);
    let sign = party.sign(&mut world, 1);
    assert_eq!(outcome_of(&mut world, sign), "201");
}
