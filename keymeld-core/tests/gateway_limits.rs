//! Every bound of the gateway: at the bound it works, one past it is refused, and nothing else suffers.

mod gateway_support;

use std::collections::BTreeMap;

use gateway_support::party::{Party, no_wait, outcome_of, poll, signing_id};
use gateway_support::{START_UNIX_MS, World, body, outcome};
use keymeld_core::api::rest::{
    ItemHint, KeygenState, RegisterRequest, ReserveRequest, SignRequest, SigningState, SubsetHint,
};
use keymeld_core::api::router::{Call, Wait};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::bytes::{Blob, Hash, XOnlyKey};
use keymeld_core::gateway::{
    ATTESTATIONS_IN_FLIGHT_MAX, COMMANDS_MAX, Command, Event, QUEUE_MAX, RETRY_MS_MAX, RequestId,
};
use keymeld_core::id::{ItemId, KeygenId, SubsetId, UserId};
use keymeld_core::limits::{
    ENVELOPE_BYTES_MAX, INTENT_LIFETIME_MAX_MS, ITEMS_MAX, MANIFEST_BYTES_MAX, PARTICIPANTS_MAX,
    RECORD_BYTES_MAX, SEALED_INTENT_BYTES_MAX, SHARES_MAX, SKEW_MS, SUBSET_MEMBERS_SUM_MAX, SUBSETS_MAX,
};
use keymeld_core::link::message::Request;
use keymeld_core::record::PersistError;

fn id(number: usize) -> [u8; 16] {
    (number as u128 + 1).to_be_bytes()
}

#[test]
fn a_session_has_two_to_a_hundred_participants() {
    for (count, expected) in [
        (1, "too-few-participants"),
        (2, "201"),
        (PARTICIPANTS_MAX, "201"),
        (PARTICIPANTS_MAX + 1, "too-many-participants"),
    ] {
        let mut world = World::new(1);
        let reserve = Party::new(1, u8::try_from(count).expect("small")).reserve(&mut world);
        assert_eq!(outcome_of(&mut world, reserve), expected, "{count}");
    }
}

#[test]
fn a_reservation_that_contradicts_itself_is_refused() {
    type Change = fn(&mut ReserveRequest);
    let changes: [(Change, &str); 6] = [
        (|request| request.slots[1].user_id = request.slots[0].user_id, "duplicate-user"),
        (|request| request.slots[1].slot_key = request.slots[0].slot_key, "duplicate-key"),
        (|request| request.slots[1].slot_key = request.session_key, "duplicate-key"),
        (|request| request.coordinator = UserId([1; 16]), "coordinator-not-participant"),
        (|request| request.slots[1].slot_key = XOnlyKey([0; 32]), "not-on-curve"),
        (|request| request.timeout_ms = Some(0), "bad-times"),
    ];
    for (change, expected) in changes {
        let mut world = World::new(1);
        let Call::Reserve { caller, mut request, token } = Party::new(1, 3).reserve(&mut world) else {
            unreachable!("as made")
        };
        change(&mut request);
        assert_eq!(outcome_of(&mut world, Call::Reserve { caller, request, token }), expected);
        assert_eq!(world.gateway.sessions(), 0);
    }
}

/// Initialises a keygen of `count` with subsets; gives the outcome.
fn init_with(count: u8, manifest_bytes: usize, subsets: Vec<Vec<usize>>, same_id: bool) -> String {
    let mut world = World::new(1);
    let party = Party::new(1, count);
    let reserve = party.reserve(&mut world);
    world.call(reserve);
    let Call::Init { caller, keygen_id, mut request } = party.init(&mut world) else {
        unreachable!("as made")
    };
    request.manifest = Blob(vec![0; manifest_bytes]);
    let user_id = |index: usize| party.users.get(index).map_or(UserId([1; 16]), |user| user.user_id);
    let hint = |(number, members): (usize, Vec<usize>)| SubsetHint {
        subset_id: SubsetId(id(if same_id { 0 } else { number })),
        members: members.into_iter().map(user_id).collect(),
    };
    request.subsets = subsets.into_iter().enumerate().map(hint).collect();
    outcome_of(&mut world, Call::Init { caller, keygen_id, request })
}

#[test]
fn manifests_and_subsets_are_bounded() {
    let pairs = |count: usize| vec![vec![0, 1]; count];
    assert_eq!(init_with(3, 2 * MANIFEST_BYTES_MAX, pairs(1), false), "201");
    assert_eq!(init_with(3, 2 * MANIFEST_BYTES_MAX + 1, pairs(1), false), "too-large");
    assert_eq!(init_with(3, 1, pairs(SUBSETS_MAX), false), "201");
    assert_eq!(init_with(3, 1, pairs(SUBSETS_MAX + 1), false), "bad-subset");
    assert_eq!(init_with(3, 1, pairs(2), true), "bad-subset");
    assert_eq!(init_with(3, 1, vec![vec![0]], false), "bad-subset");
    assert_eq!(init_with(3, 1, vec![vec![0, 0]], false), "bad-subset");
    assert_eq!(init_with(3, 1, vec![vec![0, 99]], false), "bad-subset");
    let mut members: Vec<Vec<usize>> = vec![(0..100).collect(); SUBSET_MEMBERS_SUM_MAX / 100 - 1];
    members.push((0..98).collect());
    members.push(vec![0, 1]);
    assert_eq!(init_with(100, 1, members.clone(), false), "201");
    members.pop();
    members.push(vec![0, 1, 2]);
    assert_eq!(init_with(100, 1, members, false), "bad-subset");
}

#[test]
fn registrations_are_bounded_and_checked() {
    type Change = fn(&mut RegisterRequest);
    let changes: [(Change, &str); 8] = [
        (|request| request.record.0.resize(4 * RECORD_BYTES_MAX, 0), "201"),
        (|request| request.record.0.resize(4 * RECORD_BYTES_MAX + 1, 0), "too-large"),
        (|request| request.envelope.0.resize(2 * ENVELOPE_BYTES_MAX, 0), "201"),
        (|request| request.envelope.0.resize(2 * ENVELOPE_BYTES_MAX + 1, 0), "too-large"),
        (|request| request.auth_key = XOnlyKey([0; 32]), "not-on-curve"),
        (|request| request.enclave_key.0 = [0; 33], "point-at-infinity"),
        (|request| request.enclave_key.0[1..].fill(0xff), "not-on-curve"),
        (
            |request| {
                request.enclave_key = gateway_support::enclave::ecies_key(gateway_support::enclave_id(7), 1)
            },
            "wrong-enclave-key",
        ),
    ];
    for (change, expected) in changes {
        let mut world = World::new(3);
        let party = Party::new(1, 3);
        party.begin(&mut world);
        let Call::Register { caller, keygen_id, mut request } = party.register(&mut world, 1) else {
            unreachable!("as made")
        };
        change(&mut request);
        assert_eq!(outcome_of(&mut world, Call::Register { caller, keygen_id, request }), expected);
    }
}

#[test]
fn registrations_that_enclaves_are_checking_are_bounded() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.begin(&mut world);
    let slots = party.slots(&mut world);
    let mut requests: Vec<RequestId> = Vec::new();
    for _ in 0..=2 * PARTICIPANTS_MAX {
        let caller = world.caller(party.users[1].slot.public());
        let request = party.register_request(1, &slots);
        requests.push(world.ask(Call::Register { caller, keygen_id: party.keygen_id, request }));
    }
    let last = requests.pop().expect("many");
    assert_eq!(outcome(&world.answer(last).expect("refused at once")), "too-many");
    world.run();
    let outcomes: Vec<String> =
        requests.iter().map(|request| outcome(&world.answer(*request).expect("answered"))).collect();
    assert_eq!(outcomes[0], "201");
    assert!(outcomes[1..].iter().all(|outcome| outcome == "200"), "{outcomes:?}");
}

#[test]
fn challenges_in_flight_to_one_enclave_are_bounded_and_others_go_on() {
    let mut world = World::new(2);
    let challenge = |number| Call::Attestation {
        enclave_id: gateway_support::enclave_id(number),
        nonce: Hash([5; 32]),
        epoch: None,
    };
    let waiting: Vec<RequestId> = (0..ATTESTATIONS_IN_FLIGHT_MAX).map(|_| world.ask(challenge(1))).collect();
    let refused = world.ask(challenge(1));
    assert_eq!(outcome(&world.answer(refused).expect("refused at once")), "too-many");
    let other = world.ask(challenge(2));
    // Half are answered, the other half fail with the link.
    for _ in 0..ATTESTATIONS_IN_FLIGHT_MAX / 2 {
        let command = world.outbox.pop_front().expect("a challenge");
        world.carry_out(command);
    }
    world.lose(gateway_support::enclave_id(1));
    world.find(gateway_support::enclave_id(1));
    world.run();
    assert_eq!(outcome(&world.answer(other).expect("answered")), "200");
    assert!(waiting.iter().all(|request| world.answer(*request).is_some()));
    let again: Vec<RequestId> = (0..ATTESTATIONS_IN_FLIGHT_MAX).map(|_| world.ask(challenge(1))).collect();
    world.run();
    for request in again {
        assert_eq!(outcome(&world.answer(request).expect("answered")), "200");
    }
}

fn sign_with(party: &Party, world: &mut World, change: impl Fn(&mut SignRequest)) -> String {
    let mut request = party.sign_request(1);
    change(&mut request);
    let call = party.sign_with(world, request);
    outcome_of(world, call)
}

fn items(count: usize) -> Vec<ItemHint> {
    (0..count).map(|number| ItemHint { item_id: ItemId(id(number)), subset: None }).collect()
}

#[test]
fn items_and_times_of_an_intent_are_bounded() {
    let latest = |world: &World| world.now.unix_ms + SKEW_MS + INTENT_LIFETIME_MAX_MS;
    type Change = fn(&mut SignRequest, u64);
    let changes: [(Change, &str); 11] = [
        (|request, _| request.intent = Blob(vec![0; SEALED_INTENT_BYTES_MAX]), "201"),
        (|request, _| request.intent = Blob(vec![0; SEALED_INTENT_BYTES_MAX + 1]), "too-large"),
        (|request, _| request.items = items(0), "bad-items"),
        (|request, _| request.items = items(ITEMS_MAX), "201"),
        (|request, _| request.items = items(ITEMS_MAX + 1), "bad-items"),
        (|request, _| request.items = [items(1), items(1)].concat(), "bad-items"),
        (|request, _| request.items[0].subset = Some(SubsetId([1; 16])), "unknown-subset"),
        (|request, latest| request.expires_at = latest, "201"),
        (|request, latest| request.expires_at = latest + 1, "intent-lifetime"),
        (|request, _| request.expires_at = START_UNIX_MS, "intent-expired"),
        (|request, _| request.expires_at = START_UNIX_MS + 1, "201"),
    ];
    for (change, expected) in changes {
        let mut world = World::new(3);
        let party = Party::new(1, 3);
        party.complete(&mut world);
        let latest = latest(&world);
        assert_eq!(sign_with(&party, &mut world, |request| change(request, latest)), expected);
    }
}

#[test]
fn the_sum_of_items_and_signers_is_bounded() {
    let mut world = World::new(3);
    let party = Party::new(1, u8::try_from(PARTICIPANTS_MAX).expect("small"));
    party.complete(&mut world);
    let most = SHARES_MAX / PARTICIPANTS_MAX;
    assert_eq!(sign_with(&party, &mut world, |request| request.items = items(most + 1)), "bad-items");
    assert_eq!(sign_with(&party, &mut world, |request| request.items = items(most)), "201");
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}

#[test]
fn requests_that_wait_for_one_session_are_bounded_and_others_go_on() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let reserve = party.reserve(&mut world);
    world.call(reserve);
    let init = party.init(&mut world);
    let init = world.ask(init);
    world.run_until_writes();
    let waiting: Vec<RequestId> = (0..QUEUE_MAX).map(|_| poll(&mut world, &party, no_wait())).collect();
    let refused = poll(&mut world, &party, no_wait());
    assert_eq!(outcome(&world.answer(refused).expect("refused")), "too-many");
    let other = Party::new(2, 3).reserve(&mut world);
    let other = world.ask(other);
    world.run();
    assert_eq!(outcome(&world.answer(other).expect("answered")), "201");
    assert_eq!(outcome(&world.answer(init).expect("answered")), "201");
    for request in waiting {
        assert_eq!(outcome(&world.answer(request).expect("answered")), "200");
    }
}

// A participant may do so at any time. Were the enclaves' answers turned away with the requests, the session would wait
// until it expires.
#[test]
fn a_flood_of_requests_does_not_cost_a_session_its_enclaves_answers() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    let sign = party.sign(&mut world, 1);
    world.ask(sign);
    while world.sent_count(|request| matches!(request, Request::MakeNonces(_))) == 0 {
        let command = world.outbox.pop_front().expect("the load, the write, the rounds");
        world.carry_out(command);
    }
    let approve = party.approve(&mut world, 1, 1);
    world.ask(approve);
    let write = world.open_write();
    assert!(write.is_some());
    for _ in 0..QUEUE_MAX {
        let caller = world.caller(party.session.public());
        world.ask(Call::SigningStatus { caller, signing_id: signing_id(1), wait: no_wait() });
    }
    world.run_until_writes();
    world.run();
    world.pass(10_000);
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}

/// A keygen of its own with the keys of party 1.
fn numbered(number: usize) -> Party {
    let mut party = Party::new(1, 2);
    party.keygen_id = KeygenId(id(number));
    party.timeout_ms = Some(600_000);
    party
}

#[test]
fn sessions_that_wait_for_requests_make_room_and_lose_nothing() {
    let mut world = World::unstarted(3);
    world.config.sessions_max = 8;
    world.crash();
    for number in 1..=3 {
        world.find(gateway_support::enclave_id(number));
    }
    world.run();
    let parties: Vec<Party> = (0..30).map(numbered).collect();
    for party in &parties {
        party.begin(&mut world);
        assert!(world.gateway.sessions() <= 8);
    }
    // The least recently used ones went.
    let recent = poll(&mut world, &parties[29], no_wait());
    assert!(world.answer(recent).is_some(), "without a load");
    for party in &parties[..15] {
        party_completes(&mut world, party);
        assert!(world.gateway.sessions() <= 8);
    }
    for _ in 0..3 {
        for party in &parties[15..] {
            assert_eq!(party.status(&mut world).state, KeygenState::CollectingParticipants);
        }
    }
    // They come back for their end a memory full at a time.
    world.pass(600_000 + 4 * RETRY_MS_MAX);
    for party in &parties[15..] {
        assert_eq!(party.status(&mut world).failure.expect("failed").code, "expired");
    }
    assert!(world.disk.open.is_empty());
    assert_eq!((world.gateway.sessions(), world.gateway.next_deadline()), (0, None));
}

#[test]
fn a_poll_since_a_revision_notices_a_change_although_the_session_left_memory_in_between() {
    let mut world = World::unstarted(3);
    world.config.sessions_max = 3;
    world.crash();
    world.find(gateway_support::enclave_id(1));
    world.run();
    let push_out = |world: &mut World, numbers: std::ops::Range<usize>| {
        for number in numbers {
            numbered(number).begin(world);
        }
    };
    let party = numbered(0);
    let reserve = party.reserve(&mut world);
    world.call(reserve);
    let init = party.init(&mut world);
    world.call(init);
    let seen = party.status(&mut world).revision;
    push_out(&mut world, 1..5);
    let register = party.register(&mut world, 0);
    assert_eq!(outcome_of(&mut world, register), "201");
    let wait = Wait { wait_ms: 30_000, since: Some(seen), until_ended: false };
    let request = poll(&mut world, &party, wait);
    assert!(world.answer(request).is_some(), "there was a change since");
}

fn party_completes(world: &mut World, party: &Party) {
    for index in 0..party.users.len() {
        let register = party.register(world, index);
        assert_eq!(outcome_of(world, register), "201");
    }
    assert_eq!(party.status(world).state, KeygenState::Completed);
}

/// However many strangers' sessions sleep, those that do are woken by whoever has to do with them.
#[test]
fn where_no_further_session_may_sleep_those_that_do_can_still_be_woken() {
    let mut world = World::unstarted(3);
    (world.config.sessions_max, world.config.asleep_max) = (2, 3);
    world.crash();
    for number in 1..=3 {
        world.find(gateway_support::enclave_id(number));
    }
    world.run();
    let parties: Vec<Party> = (0..6).map(numbered).collect();
    for party in &parties[..5] {
        party.begin(&mut world);
    }
    let sixth = parties[5].reserve(&mut world);
    assert_eq!(outcome_of(&mut world, sixth), "too-many");
    for party in &parties[..5] {
        assert_eq!(party.status(&mut world).state, KeygenState::CollectingParticipants);
    }
    party_completes(&mut world, &parties[0]);
    let sixth = parties[5].reserve(&mut world);
    assert_eq!(outcome_of(&mut world, sixth), "201");
}

#[test]
fn where_no_session_can_make_room_a_further_one_is_refused_for_now() {
    let mut world = World::unstarted(3);
    world.config.sessions_max = 2;
    world.crash();
    world.find(gateway_support::enclave_id(1));
    world.run();
    // Two that wait for the disk.
    let reserve = [0, 1].map(|number| numbered(number).reserve(&mut world));
    let waiting = reserve.map(|call| world.ask(call));
    let third = numbered(2).reserve(&mut world);
    let refused = world.ask(third);
    assert_eq!(outcome(&world.answer(refused).expect("refused")), "too-many");
    world.run();
    for request in waiting {
        assert_eq!(outcome(&world.answer(request).expect("answered")), "201");
    }
    let third = numbered(2).reserve(&mut world);
    assert_eq!(outcome_of(&mut world, third), "201");
}

/// Carries a call out on a full disk.
fn not_written(world: &mut World, call: Call) {
    let request = world.ask(call);
    world.run_until_writes();
    let token = world.open_write().expect("it is being written");
    world.outbox.clear();
    world.handle(Event::PersistFailed { token, error: PersistError::DiskFull });
    assert_eq!(outcome(&world.answer(request).expect("refused")), "disk-full");
}

/// Whoever requests signatures by the thousand takes up nobody else's places.
#[test]
fn whoever_has_as_many_signings_open_as_one_may_opens_another_once_one_has_ended() {
    let mut world = World::new(3);
    world.config.open_per_requester_max = 2;
    let mut party = Party::new(1, 3);
    party.users[1].approves = true;
    party.complete(&mut world);
    // With the bound as it was set.
    world.crash();
    world.run();
    let sign = |world: &mut World, number| {
        let call = party.sign(world, number);
        outcome_of(world, call)
    };
    assert_eq!([1, 2, 3].map(|number| sign(&mut world, number)), ["201", "201", "too-many"]);
    // To ask again for one that is open asks for nothing more.
    assert_eq!(sign(&mut world, 2), "200");
    let mut of_another = party.sign_request(4);
    of_another.requester = party.users[2].user_id;
    let caller = world.caller(party.users[2].auth.public());
    assert_eq!(outcome_of(&mut world, Call::Sign { caller, request: of_another }), "201");
    // A restart counts those that are open.
    world.crash();
    world.run();
    assert_eq!(sign(&mut world, 3), "too-many");
    // An end that is not written is none.
    let decline = party.withdraw(&mut world, WithdrawalKind::Decline, 1, 1);
    not_written(&mut world, decline);
    assert_eq!(sign(&mut world, 3), "too-many");
    let decline = party.withdraw(&mut world, WithdrawalKind::Decline, 1, 1);
    assert_eq!(outcome_of(&mut world, decline), "200");
    // Nor has one begun that is not written.
    let third = party.sign(&mut world, 3);
    not_written(&mut world, third);
    assert_eq!(sign(&mut world, 3), "201");
    assert_eq!(sign(&mut world, 5), "too-many");
    world.pass(3_600_000 + RETRY_MS_MAX);
    assert_eq!(party.signing_status(&mut world, 2).failure.expect("failed").code, "expired");
    assert_eq!(world.gateway.sessions(), 0);
}

#[test]
fn the_requests_that_one_has_open_weigh_a_sixteenth_of_all_bytes_at_most() {
    let mut world = World::new(3);
    world.config.sessions_bytes_max = 16 * 100_000;
    let mut party = Party::new(1, 3);
    party.users[1].approves = true;
    party.complete(&mut world);
    world.crash();
    world.run();
    let sign = |world: &mut World, number, intent_bytes| {
        let mut request = party.sign_request(number);
        request.intent = Blob(vec![0; intent_bytes]);
        let call = party.sign_with(world, request);
        outcome_of(world, call)
    };
    // One alone may weigh more.
    assert_eq!(sign(&mut world, 1, 200_000), "201");
    assert_eq!(sign(&mut world, 2, 0), "too-many");
    let cancel = party.withdraw(&mut world, WithdrawalKind::Cancel, 0, 1);
    assert_eq!(outcome_of(&mut world, cancel), "200");
    assert_eq!(sign(&mut world, 3, 60_000), "201");
    assert_eq!(sign(&mut world, 4, 60_000), "too-many");
    assert_eq!(sign(&mut world, 5, 30_000), "201");
}

// The most that one event can set free: a keygen is loaded, for which as many signings wait as may, for each of
// which as many requests wait as may, and each of which starts a run.
#[test]
fn the_heaviest_event_stays_far_below_the_bound_on_commands() {
    let mut world = World::new(3);
    let mut party = Party::new(1, 3);
    party.users[1].approves = true;
    party.complete(&mut world);
    for number in 0..=255 {
        let sign = party.sign(&mut world, number);
        assert_eq!(outcome_of(&mut world, sign), "201");
        world.sleep(300);
    }
    world.gateway = keymeld_core::gateway::Gateway::new(world.config.clone());
    let mut loads = BTreeMap::new();
    for number in 0..=255 {
        for _ in 0..QUEUE_MAX {
            let call = party.signing_status_call(&mut world, number, no_wait());
            world.ask(call);
        }
        loads.insert(number, world.outbox.pop_front().expect("its load"));
        assert!(world.outbox.is_empty());
    }
    for load in loads.into_values() {
        world.carry_out(load);
    }
    let Some(Command::Load(query)) = world.outbox.pop_front() else { panic!("the keygen's load") };
    assert!(world.outbox.is_empty());
    let rows = Ok(world.disk.read(query));
    let before = world.answers.len();
    world.handle(Event::Loaded { query, rows });
    let commands = world.answers.len() - before + world.outbox.len();
    assert!(commands >= 256 * (QUEUE_MAX - 1), "{commands}");
    assert!(commands < COMMANDS_MAX / 2, "{commands}");
    world.run();
    assert!(world.asked.is_empty());
}

#[test]
fn reading_a_body_back_gives_what_was_asked() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let reserve = party.reserve(&mut world);
    let slots: keymeld_core::api::rest::SlotsResponse = body(&world.call(reserve));
    assert_eq!((slots.keygen_id, slots.deadline), (party.keygen_id, START_UNIX_MS + 24 * 3_600_000));
}
