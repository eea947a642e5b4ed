//! Enclaves that refuse an identity, lose all of them unnoticed, or fail at something for a while.

mod gateway_support;

use std::collections::BTreeSet;

use gateway_support::enclave::{ecies_key, refused};
use gateway_support::party::{Party, outcome_of};
use gateway_support::{World, body, enclave_id};
use keymeld_core::api::rest::{AttestationResponse, SigningState};
use keymeld_core::api::router::Call;
use keymeld_core::bytes::Hash;
use keymeld_core::gateway::{Event, GREET_AGAIN_MS, GREET_AGAIN_MS_MAX, Report};
use keymeld_core::id::EnclaveId;
use keymeld_core::link::message::Request;
use keymeld_core::refusal::Code;
use keymeld_core::time::DeadlineReason;

fn first() -> EnclaveId {
    enclave_id(1)
}

/// One enclave with a completed keygen at its first epoch, and a second epoch.
fn two_epochs() -> (World, Party) {
    let mut world = World::new(1);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    world.handle(Event::RotationAsked { enclave_id: first() });
    world.run();
    assert_eq!(world.enclaves[&first()].epochs, BTreeSet::from([1, 2]));
    (world, party)
}

/// Refuses to open these epochs.
fn refuses(world: &mut World, epochs: &'static [u32], code: Code) {
    let enclave = world.enclaves.get_mut(&first()).expect("configured");
    enclave.script = Some(Box::new(move |request| match request {
        Request::OpenIdentity(row) if epochs.contains(&row.epoch) => Some(refused(code)),
        _ => None,
    }));
}

fn attestation(epoch: Option<u32>) -> Call {
    Call::Attestation { enclave_id: first(), nonce: Hash([5; 32]), epoch }
}

fn greetings(world: &World) -> usize {
    world.sent_count(|request| matches!(request, Request::Hello))
}

fn refusals(world: &World) -> usize {
    world.reports.iter().filter(|report| matches!(report, Report::EnclaveRefused(..))).count()
}

fn ready_reports(world: &World) -> usize {
    world.reports.iter().filter(|report| matches!(report, Report::EnclaveReady(_))).count()
}

#[test]
fn a_row_that_is_refused_for_good_is_skipped_and_the_other_epochs_serve() {
    for code in [Code::IdentityRefused, Code::UnsupportedVersion, Code::IdentityExists] {
        let (mut world, party) = two_epochs();
        world.lose(first());
        refuses(&mut world, &[1], code);
        world.reports.clear();
        world.find(first());
        world.run();
        assert_eq!(world.reports, [Report::EnclaveRefused(first(), code), Report::EnclaveReady(first())]);
        let before = greetings(&world);
        let attested: AttestationResponse = body(&world.call(attestation(None)));
        assert_eq!(attested.epoch, 2);
        assert_eq!(outcome_of(&mut world, attestation(Some(1))), "enclave-away");
        assert_eq!(outcome_of(&mut world, attestation(Some(3))), "wrong-epoch");
        // What needs the closed epoch waits as for an enclave that is away, the rest goes on.
        let sign = party.sign(&mut world, 1);
        assert_eq!(outcome_of(&mut world, sign), "201");
        let sent = world.sent.len();
        world.pass(60_000);
        assert_eq!(party.signing_status(&mut world, 1).state, SigningState::CollectingParticipants);
        assert_eq!((world.sent.len(), greetings(&world), refusals(&world)), (sent, before, 1));
        let other = Party::new(2, 3);
        other.begin(&mut world);
        let Call::Register { caller, keygen_id, mut request } = other.register(&mut world, 1) else {
            unreachable!("as made")
        };
        request.enclave_key = ecies_key(first(), 1);
        assert_eq!(outcome_of(&mut world, Call::Register { caller, keygen_id, request }), "enclave-away");
        // Another image, another answer.
        world.lose(first());
        world.find(first());
        world.run();
        world.pass(5_000);
        assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
    }
}

#[test]
fn where_no_row_opens_nothing_is_tried_again_until_the_operator_asks_for_an_epoch() {
    let (mut world, _) = two_epochs();
    world.lose(first());
    refuses(&mut world, &[1, 2], Code::IdentityRefused);
    world.find(first());
    world.run();
    let sent = world.sent.len();
    world.pass(600_000);
    assert_eq!((world.sent.len(), refusals(&world)), (sent, 2));
    assert_eq!(outcome_of(&mut world, attestation(None)), "enclave-away");
    let reserve = Party::new(2, 3).reserve(&mut world);
    assert_eq!(outcome_of(&mut world, reserve), "enclave-away");
    world.handle(Event::RotationAsked { enclave_id: first() });
    world.run();
    assert_eq!(refusals(&world), 2, "each row was tried once");
    let attested: AttestationResponse = body(&world.call(attestation(None)));
    assert_eq!(attested.epoch, 3);
    let reserve = Party::new(3, 3).reserve(&mut world);
    assert_eq!(outcome_of(&mut world, reserve), "201");
}

#[test]
fn a_row_that_fails_for_a_while_keeps_no_other_closed_and_is_tried_again_with_growing_pauses() {
    let (mut world, party) = two_epochs();
    world.lose(first());
    refuses(&mut world, &[1], Code::KeyServiceFailed);
    world.find(first());
    world.run();
    let attested: AttestationResponse = body(&world.call(attestation(None)));
    assert_eq!(attested.epoch, 2);
    let (mut pause, mut before) = (GREET_AGAIN_MS, greetings(&world));
    for _ in 0..8 {
        world.pass(pause - 1);
        assert_eq!(greetings(&world), before);
        world.pass(1);
        assert_eq!(greetings(&world), before + 1);
        (pause, before) = ((2 * pause).min(GREET_AGAIN_MS_MAX), before + 1);
        assert!(world.call(attestation(None)).status == 200, "it serves all the while");
    }
    world.enclaves.get_mut(&first()).expect("configured").script = None;
    world.pass(GREET_AGAIN_MS_MAX);
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
    let before = greetings(&world);
    world.pass(600_000);
    assert_eq!(greetings(&world), before);
}

#[test]
fn an_enclave_that_can_make_no_identity_is_asked_with_growing_pauses() {
    let mut world = World::unstarted(1);
    let enclave = world.enclaves.get_mut(&first()).expect("configured");
    enclave.script = Some(Box::new(|request| {
        matches!(request, Request::CreateIdentity(_)).then(|| refused(Code::KeyServiceFailed))
    }));
    world.start();
    world.find(first());
    world.run();
    world.pass(600_000);
    assert!(greetings(&world) <= 6 + 600_000 / GREET_AGAIN_MS_MAX as usize, "{}", greetings(&world));
    world.enclaves.get_mut(&first()).expect("configured").script = None;
    world.pass(GREET_AGAIN_MS_MAX);
    assert_eq!(world.call(attestation(None)).status, 200);
}

/// It lost all it held, and the link never noticed.
fn restart_unnoticed(world: &mut World) {
    let enclave = world.enclaves.get_mut(&first()).expect("configured");
    enclave.epochs.clear();
    enclave.opened.clear();
}

#[test]
fn an_enclave_that_was_restarted_unnoticed_is_greeted_at_once() {
    for by_signing in [true, false] {
        let (mut world, party) = two_epochs();
        world.pass(GREET_AGAIN_MS);
        restart_unnoticed(&mut world);
        let before = greetings(&world);
        if by_signing {
            let sign = party.sign(&mut world, 1);
            assert_eq!(outcome_of(&mut world, sign), "201");
            world.pass(0);
            assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
        } else {
            assert_eq!(outcome_of(&mut world, attestation(None)), "identity-missing");
            assert_eq!(world.call(attestation(None)).status, 200);
        }
        assert_eq!(world.enclaves[&first()].epochs, BTreeSet::from([1, 2]));
        assert_eq!(greetings(&world), before + 1);
    }
}

#[test]
fn a_row_refused_before_an_unnoticed_restart_is_tried_once_more_after_it() {
    let (mut world, _) = two_epochs();
    world.lose(first());
    refuses(&mut world, &[1], Code::IdentityRefused);
    world.find(first());
    world.run();
    world.pass(GREET_AGAIN_MS);
    restart_unnoticed(&mut world);
    world.enclaves.get_mut(&first()).expect("configured").script = None;
    assert_eq!(outcome_of(&mut world, attestation(None)), "identity-missing");
    assert_eq!(world.enclaves[&first()].epochs, BTreeSet::from([1, 2]));
}

// Whoever registers can bring such an answer about, with a record that names another enclave.
#[test]
fn answers_that_an_identity_is_missing_make_no_storm_and_take_no_enclave_away() {
    for code in [Code::WrongEnclaveKey, Code::IdentityMissing] {
        let (mut world, _) = two_epochs();
        world.pass(GREET_AGAIN_MS);
        let enclave = world.enclaves.get_mut(&first()).expect("configured");
        enclave.script = Some(Box::new(move |request| {
            matches!(request, Request::CheckRegistration(_)).then(|| refused(code))
        }));
        let party = Party::new(2, 3);
        party.begin(&mut world);
        let (before, ready) = (greetings(&world), ready_reports(&world));
        for _ in 0..40 {
            let register = party.register(&mut world, 1);
            assert_eq!(outcome_of(&mut world, register), code.name());
            assert_eq!(world.call(attestation(None)).status, 200, "it stays ready");
            world.pass(GREET_AGAIN_MS / 4);
        }
        assert!(greetings(&world) - before <= 11, "{}", greetings(&world) - before);
        assert_eq!(ready_reports(&world), ready);
        let before = greetings(&world);
        world.pass(60_000);
        assert!(greetings(&world) - before <= 1);
        assert_eq!(
            world.gateway.next_deadline().map(|deadline| deadline.reason),
            Some(DeadlineReason::SessionExpiry)
        );
    }
}

#[test]
fn an_identity_stored_after_the_link_came_back_leaves_the_others_no_less_open() {
    let (mut world, party) = two_epochs();
    world.handle(Event::RotationAsked { enclave_id: first() });
    world.run_until_writes();
    assert!(world.open_write().is_some());
    let write = world.outbox.pop_front().expect("the write");
    world.lose(first());
    world.find(first());
    world.run();
    world.carry_out(write);
    world.run();
    assert_eq!(world.enclaves[&first()].epochs, BTreeSet::from([1, 2, 3]));
    let sign = party.sign(&mut world, 1);
    world.call(sign);
    world.pass(5_000);
    assert_eq!(party.signing_status(&mut world, 1).state, SigningState::Completed);
}
