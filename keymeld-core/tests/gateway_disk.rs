//! A disk that is corrupt or fails: reported, answered with 5xx, never written over, never in a storm.

mod gateway_support;

use gateway_support::party::{Party, no_wait, outcome_of};
use gateway_support::{World, enclave_id, outcome, record_of_keygen, record_of_signing};
use keymeld_core::api::rest::{KeygenState, SigningState};
use keymeld_core::gateway::{Event, Report};
use keymeld_core::record::{Family, Query, RecordKey, RowKey};

fn corrupt(world: &mut World, record: RecordKey, part: u32, change: impl Fn(&mut Vec<u8>)) {
    let row = world.disk.rows.get_mut(&RowKey { record, part }).expect("written");
    change(&mut row.body);
}

fn reports_of(world: &World, record: RecordKey) -> usize {
    world.reports.iter().filter(|report| **report == Report::RecordCorrupt(record)).count()
}

#[test]
fn a_corrupt_keygen_is_reported_and_answered_with_500_and_left_alone() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(u32, Change); 4] = [
        (0, |body| body.truncate(5)),
        (0, |body| body.push(0)),
        (0, |body| body[1] = 2),
        (1, |body| body.clear()),
    ];
    for (part, change) in changes {
        let mut world = World::new(3);
        let party = Party::new(1, 3);
        party.begin(&mut world);
        let record = record_of_keygen(party.keygen_id);
        corrupt(&mut world, record, part, change);
        let before = world.disk.clone();
        world.crash();
        world.run();
        assert_eq!(reports_of(&world, record), 1, "at the start");
        for call in [
            party.reserve(&mut world),
            party.init(&mut world),
            party.slots_call(&mut world),
            party.status_call(&mut world, no_wait()),
        ] {
            let response = world.call(call);
            assert_eq!((response.status, outcome(&response).as_str()), (500, "internal"));
        }
        world.pass(3_600_000);
        assert_eq!(world.disk, before, "never overwritten");
        assert_eq!(world.gateway.sessions(), 0);
    }
}

#[test]
fn a_record_whose_parts_contradict_each_other_is_corrupt() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    let record = record_of_keygen(party.keygen_id);
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    let signing = record_of_signing(gateway_support::party::signing_id(1));
    // Ended, without an end; and a state of the rounds, which is never written.
    for (record, parts) in [(record, vec![2]), (record, vec![1]), (signing, vec![2]), (signing, vec![1])] {
        let before = world.disk.clone();
        for part in parts {
            world.disk.rows.remove(&RowKey { record, part });
        }
        world.crash();
        world.run();
        let call = if record.family == Family::Keygen {
            party.status_call(&mut world, no_wait())
        } else {
            party.signing_status_call(&mut world, 1, no_wait())
        };
        assert_eq!(outcome_of(&mut world, call), "internal");
        assert!(reports_of(&world, record) > 0);
        world.disk = before;
    }
    for state in 1..=6 {
        let before = world.disk.clone();
        corrupt(&mut world, signing, 0, |body| {
            let last = body.len() - 2;
            assert_eq!(body[last..], [7, 0x80], "Completed");
            body[last] = state;
        });
        world.disk.open.insert(signing);
        world.crash();
        world.run();
        assert!(reports_of(&world, signing) > 0, "{state}");
        world.disk = before;
    }
}

#[test]
fn requests_for_a_corrupt_record_leave_no_timers_behind() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.begin(&mut world);
    let record = record_of_keygen(party.keygen_id);
    corrupt(&mut world, record, 0, |body| body.truncate(5));
    world.crash();
    world.run();
    for _ in 0..50 {
        let call = party.status_call(&mut world, no_wait());
        world.call(call);
        world.sleep(1);
    }
    let before = world.reports.len();
    world.pass(600_000);
    assert!(world.reports.len() - before <= 1, "{} reports", world.reports.len() - before);
    assert_eq!(world.gateway.next_deadline(), None);
}

#[test]
fn requests_that_cannot_be_loaded_leave_no_timers_behind() {
    let mut world = World::new(3);
    world.disk_fails = true;
    for number in 1..=50 {
        let party = Party::new(number, 2);
        let call = party.status_call(&mut world, no_wait());
        assert_eq!(outcome_of(&mut world, call), "storage-failed");
        world.sleep(1);
    }
    assert_eq!((world.gateway.sessions(), world.gateway.next_deadline()), (0, None));
}

#[test]
fn open_sessions_go_on_by_themselves_when_the_disk_is_back() {
    let mut world = World::new(3);
    let mut party = Party::new(1, 3);
    party.users[1].approves = true;
    party.complete(&mut world);
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    let waiting = Party::new(2, 3);
    waiting.begin(&mut world);
    world.disk_fails = true;
    // The approval fails to be written, then the session to be read.
    let approve = party.approve(&mut world, 1, 1);
    assert_eq!(outcome_of(&mut world, approve), "storage-failed");
    world.pass(60_000);
    assert_eq!(world.gateway.sessions(), 1, "only the keygen that was not touched");
    world.disk_fails = false;
    world.pass(5_000);
    assert_eq!(world.gateway.sessions(), 2, "it was read again without a visitor");
    let approve = party.approve(&mut world, 1, 1);
    assert_eq!(outcome_of(&mut world, approve), "201");
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}

#[test]
fn a_start_with_a_failing_disk_goes_on_when_it_is_back() {
    let mut world = World::new(3);
    let mut party = Party::new(1, 3);
    party.timeout_ms = Some(300_000);
    party.begin(&mut world);
    let before = world.disk.clone();
    world.disk_fails = true;
    world.crash();
    world.run();
    world.pass(60_000);
    assert_eq!(world.disk, before, "no identity is made while rows cannot be read");
    world.disk_fails = false;
    world.pass(10_000);
    assert_eq!(world.gateway.sessions(), 1);
    world.pass(300_000);
    assert_eq!(party.status(&mut world).state, KeygenState::Failed);
}

#[test]
fn a_corrupt_identity_row_is_reported_and_makes_no_new_identity() {
    let mut world = World::new(1);
    let record = RecordKey { family: Family::Enclave, id: enclave_id(1).0 };
    corrupt(&mut world, record, 1, |body| body.truncate(3));
    let before = world.disk.clone();
    world.crash();
    world.run();
    world.pass(10_000);
    assert!(reports_of(&world, record) > 0);
    assert_eq!(world.disk, before);
    let reserve = Party::new(1, 2).reserve(&mut world);
    assert_eq!(outcome_of(&mut world, reserve), "enclave-away");
}

#[test]
fn answers_of_the_store_that_nobody_waits_for_change_nothing() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let reserve = party.reserve(&mut world);
    world.call(reserve);
    let query = Query::Record(record_of_keygen(party.keygen_id));
    let old = world.disk.read(query);
    let identities = Query::Record(RecordKey { family: Family::Enclave, id: enclave_id(1).0 });
    let init = party.init(&mut world);
    world.call(init);
    world.handle(Event::Loaded { query, rows: Ok(old) });
    world.handle(Event::Loaded { query: identities, rows: Ok(Vec::new()) });
    world.run();
    assert_eq!(party.status(&mut world).state, KeygenState::CollectingParticipants);
    world.lose(enclave_id(1));
    world.find(enclave_id(1));
    world.run();
    assert_eq!(world.enclaves[&enclave_id(1)].epochs.len(), 1, "the identity was not made twice");
    for index in 0..3 {
        let register = party.register(&mut world, index);
        assert_eq!(outcome_of(&mut world, register), "201");
    }
    assert_eq!(party.status(&mut world).state, KeygenState::Completed);
}
