//! Events in any order: every request is answered exactly once, and every session ends.

mod gateway_support;

use std::collections::BTreeSet;

use gateway_support::enclave::refused;
use gateway_support::party::{Party, signing_id};
use gateway_support::{World, enclave_id};
use keymeld_core::api::router::{Call, Wait};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::gateway::{CallId, Command, Event, Report, RequestId};
use keymeld_core::record::{PersistError, Query, RecordKey, RowKey, Token};
use keymeld_core::refusal::Code;
use proptest::prelude::{ProptestConfig, any, prop, proptest};

/// Two keygens; three signings each.
fn parties() -> [Party; 2] {
    [1, 2].map(|number| {
        let mut party = Party::new(number, 3);
        party.users[2].approves = number == 1;
        party.timeout_ms = Some(1_000_000);
        party
    })
}

fn some_call(world: &mut World, party: &Party, kind: u8, choice: u8) -> Call {
    let index = usize::from(choice % 3);
    let number = party.keygen_id.0[0] * 10 + choice % 3;
    let wait_ms = if choice & 0x40 == 0 { 0 } else { u64::from(choice) * 100 };
    let wait = Wait { wait_ms, since: None, until_ended: choice & 0x80 != 0 };
    match kind % 14 {
        0 => party.reserve(world),
        1 => party.init(world),
        2..=4 => {
            // Made without a request for the slots: those are dealt out in an order that tests know.
            let caller = world.caller(party.users[index].slot.public());
            let enclaves = world.disk.rows.values().filter(|row| row.key.record.family as u8 == 3).count();
            let enclave = enclave_id(choice / 3 % u8::try_from(enclaves.max(1)).expect("few") + 1);
            let enclave_key = gateway_support::enclave::ecies_key(enclave, 1);
            let request = keymeld_core::api::rest::RegisterRequest {
                user_id: party.users[index].user_id,
                auth_key: party.users[index].auth.public(),
                approval_required: party.users[index].approves,
                enclave_key,
                envelope: keymeld_core::bytes::Blob(vec![5]),
                record: keymeld_core::bytes::Blob(enclave_key.0.to_vec()),
            };
            Call::Register { caller, keygen_id: party.keygen_id, request }
        }
        5 => party.status_call(world, wait),
        6 => party.slots_call(world),
        7 | 8 => party.sign(world, number),
        9 => party.approve(world, 2, number),
        10 => party.withdraw(world, WithdrawalKind::Decline, 1, number),
        11 => party.withdraw(world, WithdrawalKind::Cancel, 0, number),
        12 => party.signing_status_call(world, number, wait),
        _ => {
            let caller = world.caller(party.session.public());
            Call::Intent { caller, signing_id: signing_id(number) }
        }
    }
}

fn carry_out_some(world: &mut World, choice: u8, how: u8) {
    if world.outbox.is_empty() {
        return;
    }
    let index = usize::from(choice) % world.outbox.len();
    let command = world.outbox.remove(index).expect("in range");
    match (command, how % 8) {
        (Command::Persist(persist), 0) => {
            world.handle(Event::PersistFailed { token: persist.token, error: PersistError::DiskFull });
        }
        (Command::Send { call, .. }, 0) => world.handle(Event::CallFailed { call }),
        (Command::Send { call, .. }, 1) => world.handle(Event::Replied { call, body: vec![how] }),
        (Command::Send { call, .. }, 2) => {
            let code = Code::ALL[usize::from(choice) % Code::ALL.len()];
            world.handle(Event::Replied { call, body: refused(code).encode() });
            world.handle(Event::Replied { call, body: refused(code).encode() });
        }
        (Command::Load(query), 0) => {
            world.handle(Event::Loaded { query, rows: Err(keymeld_core::record::LoadError) });
        }
        (command, _) => world.carry_out(command),
    }
}

/// Answers that nobody waits for.
fn nonsense(world: &mut World, kind: u8, choice: u8) {
    let number = u64::from(choice);
    match kind % 6 {
        0 if !world.in_flight.contains_key(&Token(number)) => {
            world.handle(Event::Persisted { token: Token(number) });
        }
        1 if !world.in_flight.contains_key(&Token(number)) => {
            world.handle(Event::PersistFailed { token: Token(number), error: PersistError::Failed });
        }
        2 => world.handle(Event::CallFailed { call: CallId(number + 1_000_000) }),
        3 => world.handle(Event::Replied { call: CallId(number + 1_000_000), body: Vec::new() }),
        4 => {
            let loads: Vec<RecordKey> = world.disk.rows.keys().map(|key: &RowKey| key.record).collect();
            if let Some(record) = loads.get(usize::from(choice) % loads.len().max(1)) {
                let query = Query::Record(*record);
                // As if it had been asked twice: the second answer comes when the first has been taken in.
                let asked = world.outbox.iter().any(|command| *command == Command::Load(query));
                if !asked {
                    let rows = Ok(world.disk.read(query));
                    world.handle(Event::Loaded { query, rows });
                }
            }
        }
        _ => world.handle(Event::Ticked),
    }
}

fn one_event(
    world: &mut World,
    parties: &[Party; 2],
    abandoned: &mut BTreeSet<RequestId>,
    event: (u8, u8, u8),
) {
    let (what, kind, choice) = event;
    match what % 16 {
        0..=4 => {
            let call = some_call(world, &parties[usize::from(what & 1)], kind, choice);
            world.ask(call);
        }
        5..=10 => carry_out_some(world, choice, kind),
        11 => {
            let request = RequestId(u64::from(choice));
            abandoned.insert(request);
            world.handle(Event::Abandoned { request });
        }
        12 => {
            let enclave_id = enclave_id(choice % 3 + 1);
            if world.enclaves[&enclave_id].linked { world.lose(enclave_id) } else { world.find(enclave_id) }
        }
        13 => {
            world.sleep(u64::from(choice) * u64::from(kind));
            world.handle(Event::Ticked);
        }
        14 => nonsense(world, kind, choice),
        _ if kind < 16 => {
            let was_asked: Vec<RequestId> = world.asked.keys().copied().collect();
            world.crash();
            abandoned.extend(was_asked);
        }
        _ if kind < 24 => world.handle(Event::RotationAsked { enclave_id: enclave_id(choice % 3 + 1) }),
        _ => {
            for _ in 0..10 {
                carry_out_some(world, 0, 255);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    // World::handle panics where a request is answered twice, or before its state is durable.
    #[test]
    fn every_request_is_answered_once_and_every_session_ends(
        sessions_max in 3_usize..12,
        events in prop::collection::vec(any::<(u8, u8, u8)>(), 0..600),
    ) {
        let mut world = World::unstarted(3);
        world.config.sessions_max = sessions_max;
        world.crash();
        for number in 1..=3 {
            world.find(enclave_id(number));
        }
        world.run();
        let parties = parties();
        let mut abandoned = BTreeSet::new();
        for event in events {
            one_event(&mut world, &parties, &mut abandoned, event);
        }
        for number in 1..=3 {
            if !world.enclaves[&enclave_id(number)].linked {
                world.find(enclave_id(number));
            }
        }
        world.run();
        world.pass(60_000);
        let unanswered: Vec<_> = world.asked.keys().filter(|request| !abandoned.contains(request)).collect();
        assert!(unanswered.is_empty(), "{unanswered:?} are never answered");
        world.pass(8_000_000);
        assert!(world.disk.open.is_empty(), "{:?} never end", world.disk.open);
        assert_eq!(world.gateway.sessions(), 0);
        assert_eq!(world.gateway.next_deadline(), None, "nothing is left to wait for");
        for enclave_id in (1..=3).map(enclave_id) {
            if world.enclaves[&enclave_id].epochs.is_empty() {
                // It refused its rows for good, which holds until the next connection.
                let refused = |report: &Report| matches!(report, Report::EnclaveRefused(id, _) if *id == enclave_id);
                assert!(world.reports.iter().any(refused), "{enclave_id:?} has no identity for no reason");
                world.lose(enclave_id);
                world.find(enclave_id);
                world.run();
            }
            assert!(!world.enclaves[&enclave_id].epochs.is_empty());
        }
    }
}
