//! What strangers, who need nothing but a key of their own, can take up: no place in a session's queue, a bounded
//! number of bytes, no place of a keygen in which somebody has registered, one line of the log.

mod gateway_support;

use gateway_support::party::{Party, no_wait, outcome_of, poll, signing_id};
use gateway_support::{World, enclave_id, outcome, record_of_keygen};
use keymeld_core::api::rest::{KeygenState, SigningState};
use keymeld_core::api::router::{Call, Wait};
use keymeld_core::bytes::Blob;
use keymeld_core::gateway::{QUEUE_MAX, RETRY_MS_MAX, Report, UNREGISTERED_MAX};
use keymeld_core::id::KeygenId;
use keymeld_core::link::message::Request;
use keymeld_core::record::{Family, RecordKey, RowKey};

fn with(change: impl FnOnce(&mut keymeld_core::gateway::Config)) -> World {
    let mut world = World::unstarted(3);
    change(&mut world.config);
    world.crash();
    for number in 1..=3 {
        world.find(enclave_id(number));
    }
    world.run();
    world
}

/// A keygen of its own with the keys of party 1.
fn numbered(number: u8) -> Party {
    let mut party = Party::new(1, 2);
    party.keygen_id = KeygenId([number; 16]);
    party
}

#[test]
fn strangers_take_no_place_in_the_queue_of_a_keygen() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let reserve = party.reserve(&mut world);
    world.call(reserve);
    let init = party.init(&mut world);
    let init = world.ask(init);
    world.run_until_writes();
    let stranger = Party::new(9, 3);
    for number in 0..QUEUE_MAX {
        let caller = world.caller(stranger.session.public());
        let keygen_id = party.keygen_id;
        let call = match number % 4 {
            0 => Call::KeygenStatus { caller, keygen_id, wait: Wait { wait_ms: 30_000, ..no_wait() } },
            1 => Call::Slots { caller, keygen_id },
            2 => Call::Init { caller, keygen_id, request: party.init_request() },
            _ => Call::Reserve { caller, request: stranger_request(&stranger, &party), token: None },
        };
        let request = world.ask(call);
        assert_eq!(outcome(&world.answer(request).expect("at once")), "too-many", "{number}");
    }
    let own = poll(&mut world, &party, no_wait());
    assert!(world.answer(own).is_none(), "it waits for its turn");
    world.run();
    assert_eq!(outcome(&world.answer(own).expect("answered")), "200");
    assert_eq!(outcome(&world.answer(init).expect("answered")), "201");
    // When there is nothing to wait for the stranger hears what is wrong.
    let caller = world.caller(stranger.session.public());
    let slots = Call::Slots { caller, keygen_id: party.keygen_id };
    assert_eq!(outcome_of(&mut world, slots), "key-not-allowed");
}

/// A reservation of the same id with keys of the stranger's.
fn stranger_request(stranger: &Party, party: &Party) -> keymeld_core::api::rest::ReserveRequest {
    keymeld_core::api::rest::ReserveRequest { keygen_id: party.keygen_id, ..stranger.reserve_request() }
}

#[test]
fn strangers_take_no_place_in_the_queue_of_a_signing() {
    let mut world = World::new(3);
    let mut party = Party::new(1, 3);
    party.users[1].approves = true;
    party.complete(&mut world);
    let sign = party.sign(&mut world, 1);
    assert_eq!(outcome_of(&mut world, sign), "201");
    let approve = party.approve(&mut world, 1, 1);
    let approve = world.ask(approve);
    world.run_until_writes();
    let stranger = Party::new(9, 3);
    for _ in 0..QUEUE_MAX {
        let caller = world.caller(stranger.users[0].auth.public());
        let sign = Call::Sign { caller, request: party.sign_request(1) };
        let caller = world.caller(stranger.session.public());
        let status = Call::SigningStatus { caller, signing_id: signing_id(1), wait: no_wait() };
        for call in [sign, status] {
            let request = world.ask(call);
            assert_eq!(outcome(&world.answer(request).expect("at once")), "too-many");
        }
    }
    let status = party.signing_status_call(&mut world, 1, no_wait());
    let status = world.ask(status);
    world.run();
    assert_eq!(outcome(&world.answer(status).expect("answered")), "200");
    assert_eq!(outcome(&world.answer(approve).expect("answered")), "201");
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}

/// Reserves and sends a manifest of so many bytes.
fn begin_with(world: &mut World, party: &Party, bytes: usize) {
    let reserve = party.reserve(world);
    assert_eq!(outcome_of(world, reserve), "201");
    let Call::Init { caller, keygen_id, mut request } = party.init(world) else { unreachable!("as made") };
    request.manifest = Blob(vec![1; bytes]);
    assert_eq!(outcome_of(world, Call::Init { caller, keygen_id, request }), "201");
}

#[test]
fn sessions_that_weigh_too_much_together_make_room_and_lose_nothing() {
    const BYTES_MAX: usize = 300_000;
    let mut world = with(|config| config.sessions_bytes_max = BYTES_MAX);
    let parties: Vec<Party> = (1..=30).map(numbered).collect();
    // All are light at first, and in memory; then each grows.
    for party in &parties {
        let reserve = party.reserve(&mut world);
        assert_eq!(outcome_of(&mut world, reserve), "201");
    }
    assert_eq!(world.gateway.sessions(), 30);
    for party in &parties {
        let Call::Init { caller, keygen_id, mut request } = party.init(&mut world) else {
            unreachable!("as made")
        };
        request.manifest = Blob(vec![1; 30_000]);
        assert_eq!(outcome_of(&mut world, Call::Init { caller, keygen_id, request }), "201");
        let bytes = world.gateway.sessions_bytes();
        assert!(bytes <= BYTES_MAX, "{bytes}");
    }
    let left = world.gateway.sessions();
    assert!((5..=9).contains(&left), "{left}");
    for party in &parties {
        for index in 0..2 {
            let register = party.register(&mut world, index);
            assert_eq!(outcome_of(&mut world, register), "201");
        }
        assert_eq!(party.status(&mut world).state, KeygenState::Completed);
        assert!(world.gateway.sessions_bytes() <= BYTES_MAX);
    }
    assert_eq!((world.gateway.sessions(), world.gateway.sessions_bytes()), (0, 0));
}

#[test]
fn where_nothing_that_weighs_can_sleep_others_wait_to_be_let_in() {
    let mut world = with(|config| config.sessions_bytes_max = 100_000);
    let heavy = numbered(1);
    let reserve = heavy.reserve(&mut world);
    world.call(reserve);
    let Call::Init { caller, keygen_id, mut request } = heavy.init(&mut world) else { unreachable!() };
    request.manifest = Blob(vec![1; 200_000]);
    let init = world.ask(Call::Init { caller, keygen_id, request });
    world.run_until_writes();
    let other = numbered(2).reserve(&mut world);
    let other = world.ask(other);
    assert_eq!(outcome(&world.answer(other).expect("at once")), "too-many");
    world.run();
    assert_eq!(outcome(&world.answer(init).expect("answered")), "201");
    let other = numbered(2).reserve(&mut world);
    assert_eq!(outcome_of(&mut world, other), "201");
    // The heavy one is let in again when it is asked for, alone.
    assert_eq!(heavy.status(&mut world).state, KeygenState::CollectingParticipants);
}

#[test]
fn a_keygen_weighs_once_however_many_signings_hold_it() {
    let mut world = World::new(3);
    let mut party = numbered(1);
    party.users[1].approves = true;
    begin_with(&mut world, &party, 100_000);
    for index in 0..2 {
        let register = party.register(&mut world, index);
        assert_eq!(outcome_of(&mut world, register), "201");
    }
    assert_eq!(world.gateway.sessions_bytes(), 0);
    let mut before = 0;
    for number in 1..=20 {
        let sign = party.sign(&mut world, number);
        assert_eq!(outcome_of(&mut world, sign), "201");
        let bytes = world.gateway.sessions_bytes();
        match number {
            1 => assert!(bytes > 100_000, "{bytes}"),
            _ => assert!(bytes - before < 10_000, "{bytes}"),
        }
        before = bytes;
    }
    for number in 1..=20 {
        let approve = party.approve(&mut world, 1, number);
        assert_eq!(outcome_of(&mut world, approve), "201");
    }
    assert_eq!((world.gateway.sessions(), world.gateway.sessions_bytes()), (0, 0));
}

fn states(world: &mut World, parties: &[Party]) -> Vec<String> {
    let show = |party: &Party| {
        let status = party.status(world);
        status.failure.map_or_else(|| format!("{:?}", status.state), |failure| failure.code)
    };
    parties.iter().map(show).collect()
}

#[test]
fn where_there_are_too_many_the_oldest_keygen_that_nobody_registered_in_gives_way() {
    // In memory, or asleep.
    for sessions_max in [100, 2] {
        let mut world = with(|config| {
            config.unregistered_max = 4;
            config.sessions_max = sessions_max;
        });
        let parties: Vec<Party> = (1..=8).map(numbered).collect();
        for party in &parties[..4] {
            let reserve = party.reserve(&mut world);
            assert_eq!(outcome_of(&mut world, reserve), "201");
        }
        // The second has a manifest, and somebody registers; the third has a manifest only.
        for party in &parties[1..3] {
            let init = party.init(&mut world);
            assert_eq!(outcome_of(&mut world, init), "201");
        }
        let register = parties[1].register(&mut world, 0);
        assert_eq!(outcome_of(&mut world, register), "201");
        for party in &parties[4..7] {
            let reserve = party.reserve(&mut world);
            assert_eq!(outcome_of(&mut world, reserve), "201");
        }
        let mut expected =
            ["too-many", "CollectingParticipants", "too-many", "Reserved", "Reserved"].to_vec();
        expected.extend(["Reserved", "Reserved"]);
        assert_eq!(states(&mut world, &parties[..7]), expected, "{sessions_max}");
        // Whoever holds them keeps them, restarts included; and the next one finds its place.
        world.crash();
        for number in 1..=3 {
            world.find(enclave_id(number));
        }
        world.run();
        world.pass(4 * RETRY_MS_MAX);
        let reserve = parties[7].reserve(&mut world);
        assert_eq!(outcome_of(&mut world, reserve), "201");
        let after = states(&mut world, &parties);
        assert_eq!(after.iter().filter(|state| *state == "Reserved").count(), 4, "{after:?}");
        assert_eq!((after[1].as_str(), after[7].as_str()), ("CollectingParticipants", "Reserved"));
        let register = parties[1].register(&mut world, 1);
        assert_eq!(outcome_of(&mut world, register), "201");
        assert_eq!(parties[1].status(&mut world).state, KeygenState::Completed);
    }
    const { assert!(UNREGISTERED_MAX > 1_000) };
}

#[test]
fn a_keygen_whose_first_registration_is_being_checked_does_not_give_way() {
    let mut world = with(|config| config.unregistered_max = 1);
    let (first, second) = (numbered(1), numbered(2));
    first.begin(&mut world);
    let register = first.register(&mut world, 0);
    let register = world.ask(register);
    let reserve = second.reserve(&mut world);
    world.ask(reserve);
    world.run();
    assert_eq!(outcome(&world.answer(register).expect("answered")), "201");
    assert_eq!(first.status(&mut world).registered, 1);
    assert_eq!(second.status(&mut world).state, KeygenState::Reserved);
    assert_eq!(world.sent_count(|request| matches!(request, Request::CheckRegistration(_))), 1);
}

#[test]
fn a_record_that_is_corrupt_is_reported_once_however_often_it_is_asked_for() {
    let mut world = World::new(1);
    let party = Party::new(1, 2);
    party.begin(&mut world);
    let keygen = record_of_keygen(party.keygen_id);
    let identity = RecordKey { family: Family::Enclave, id: enclave_id(1).0 };
    let good = world.disk.clone();
    for (record, part) in [(keygen, 0), (identity, 1)] {
        world.disk.rows.get_mut(&RowKey { record, part }).expect("written").body.truncate(3);
    }
    world.crash();
    world.run();
    for _ in 0..50 {
        let call = party.slots_call(&mut world);
        assert_eq!(outcome_of(&mut world, call), "internal");
    }
    world.pass(600_000);
    for record in [keygen, identity] {
        let of_it = |report: &&Report| **report == Report::RecordCorrupt(record);
        assert_eq!(world.reports.iter().filter(of_it).count(), 1, "{record:?}");
    }
    // Mended, it serves again, and the next damage is news.
    world.disk = good;
    world.pass(60_000);
    assert_eq!(party.status(&mut world).state, KeygenState::CollectingParticipants);
    let health = world.call(Call::Health);
    assert!(String::from_utf8_lossy(&health.body).contains("\"enclaves_ready\":1"));
}
