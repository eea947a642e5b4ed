//! Slots, manifests and attestations that are not what they have to be: no key is sealed, nothing registered.

use keymeld_core::api::rest::{AttestationResponse, SlotsResponse};
use keymeld_core::artifact::registration::Rules;
use keymeld_core::attestation::{AttestationError, ServiceUserData};
use keymeld_core::bytes::Blob;
use keymeld_core::client::{Client, Done, Fault, Job};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::KeygenId;
use keymeld_core::refusal::Code;
use keymeld_examples::disk::MemoryDisk;
use keymeld_examples::world::{Tamper, World};
use keymeld_transport::nsm::software::{Pcrs, SoftwareRoot};

use crate::lies::{
    NO_HASH, Statement, alter, fault, forge, published, refused, session_secret, unverified, with_image,
    world,
};
use crate::story::{START, VALID_UNTIL, plan, seat_coordinator, seat_invited, signing_key};

fn careful() -> Rules {
    Rules::careful(VALID_UNTIL)
}

/// Under the lie the job ends in the fault and nothing is registered; without it the same job succeeds.
fn join_refused(world: &mut World<MemoryDisk>, place: usize, lie: Option<Tamper>, expected: &Fault) {
    world.tamper = lie;
    assert_eq!(fault(world.run(place, Job::Join)), *expected);
    assert!(world.sent(place).all(|request| !request.target.ends_with("/participants")));
    assert_eq!(world.client(place).birth(), None);
    world.tamper = None;
    assert!(matches!(world.run(place, Job::Join), Ok(Done::Joined)));
}

#[test]
fn a_reservation_answered_for_another_keygen_is_not_believed() {
    let mut world = world(1, 1);
    let coordinator = seat_coordinator(&mut world, plan(2, careful()));
    world.tamper = alter("reserve", |shown: &mut SlotsResponse| shown.keygen_id = KeygenId([9; 16]));
    assert_eq!(fault(world.run(coordinator, Job::Reserve)), unverified(Code::IdConflict));
    world.tamper = None;
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
}

#[test]
fn another_manifest_than_was_sent_is_not_taken_for_published() {
    let mut world = world(1, 2);
    let coordinator = seat_coordinator(&mut world, plan(2, careful()));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    let changes: [fn(&mut SlotsResponse); 2] =
        [|shown| shown.manifest = None, |shown| shown.manifest = Some(Blob(vec![1; 99]))];
    for change in changes {
        world.tamper = alter("init", change);
        assert_eq!(fault(world.run(coordinator, Job::Init)), unverified(Code::ManifestHashMismatch));
    }
    world.tamper = None;
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
}

#[test]
fn without_a_manifest_nobody_joins() {
    let mut world = world(1, 3);
    let coordinator = seat_coordinator(&mut world, plan(2, careful()));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    assert_eq!(fault(world.run(coordinator, Job::Join)), refused(Code::WrongState));
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    join_refused(
        &mut world,
        coordinator,
        alter("slots", |shown: &mut SlotsResponse| shown.manifest = None),
        &refused(Code::WrongState),
    );
}

#[test]
fn only_the_manifest_that_the_invite_names_is_read() {
    let mut world = world(1, 4);
    let other = published(&mut world, 2, careful());
    assert!(matches!(world.run(other, Job::Join), Ok(Done::Joined)));
    let coordinator = published(&mut world, 2, careful());
    let (keygen_id, secret) = session_secret(&world, coordinator);
    let manifest_hash = world.client(coordinator).invites()[0].manifest_hash;
    let seal_key = SealKey::derived(&secret, Purpose::SessionSeal(keygen_id));
    let context = Context::Manifest { keygen_id, manifest_hash };
    // Sealed by somebody who knows the session secret, under the right hash and under its own.
    let forged = seal_key.seal(&context, b"another manifest", world.entropy()).expect("seals");
    let own_context = Context::Manifest { keygen_id, manifest_hash: NO_HASH };
    let honest_elsewhere = seal_key.seal(&own_context, b"another", world.entropy()).expect("seals");
    let (other_id, other_secret) = session_secret(&world, other);
    let other_key = SealKey::derived(&other_secret, Purpose::SessionSeal(other_id));
    let of_other_keygen = other_key.seal(&context, b"a manifest", world.entropy()).expect("seals");
    for (blob, code) in [
        (forged, Code::ManifestHashMismatch),
        (honest_elsewhere, Code::SealUnreadable),
        (of_other_keygen, Code::SealUnreadable),
        (Blob(Vec::new()), Code::SealUnreadable),
    ] {
        let place = seat_invited(&mut world, coordinator, 0, careful());
        let lie = alter("slots", move |shown: &mut SlotsResponse| shown.manifest = Some(blob.clone()));
        world.tamper = lie;
        assert_eq!(fault(world.run(place, Job::Join)), unverified(code));
        assert_eq!(world.client(place).birth(), None);
    }
    world.tamper = None;
    let place = seat_invited(&mut world, coordinator, 0, careful());
    assert!(matches!(world.run(place, Job::Join), Ok(Done::Joined)));
}

#[test]
fn without_a_slot_of_its_own_a_client_does_not_join() {
    let mut world = world(2, 5);
    let coordinator = published(&mut world, 2, careful());
    let lie = alter("slots", |shown: &mut SlotsResponse| {
        shown.slots.remove(0);
    });
    join_refused(&mut world, coordinator, lie, &unverified(Code::UserNotInRoster));
    // Nor does it take silence about its slot for an acknowledgement.
    let place = seat_invited(&mut world, coordinator, 0, careful());
    world.tamper = alter("participants", |shown: &mut SlotsResponse| shown.slots[1].registered = false);
    assert_eq!(fault(world.run(place, Job::Join)), unverified(Code::WrongState));
    world.tamper = None;
    assert!(matches!(world.run(place, Job::Join), Ok(Done::Joined)));
}

/// Alters what the enclave's document states, under the root that clients trust or another one.
fn forging(
    world: &World<MemoryDisk>,
    root: &SoftwareRoot,
    change: impl Fn(&mut Statement) + 'static,
) -> Option<Tamper> {
    let (honest, root) = (world.root().clone(), root.clone());
    alter("attestation", move |shown: &mut AttestationResponse| {
        shown.document = Blob(forge(&honest, &root, &shown.document.0, &change));
    })
}

fn enclave_of_the_first_slot(world: &mut World<MemoryDisk>, place: usize) -> keymeld_core::id::EnclaveId {
    let own = world.sent(place).find(|request| request.target.contains("attestation")).expect("asked");
    let path = own.target.split("enclaves/").nth(1).expect("has an enclave");
    path.split('/').next().expect("has an id").parse().expect("an id")
}

#[test]
fn a_forged_or_foreign_attestation_is_refused_before_a_key_is_sealed() {
    type Case = (AttestationError, fn(&mut Statement));
    let cases: [Case; 9] = [
        (AttestationError::ImageNotAllowed, |stated| stated.pcrs = Pcrs::of_label("another")),
        (AttestationError::DebugMode, |stated| stated.pcrs.pcr0 = [0; 48]),
        (AttestationError::BirthImageNotAllowed, |stated| stated.user_data.birth_pcr0 = [3; 48]),
        (AttestationError::ConfigNotAllowed, |stated| stated.user_data.config_hash = [3; 32]),
        (AttestationError::EnclaveIdDiffers, |stated| stated.user_data.enclave_id = [3; 16]),
        (AttestationError::Nonce, |stated| stated.nonce = Some(vec![3; 32])),
        (AttestationError::Nonce, |stated| stated.nonce = None),
        (AttestationError::Stale, |stated| stated.time_ms = START - 300_001),
        (AttestationError::FromTheFuture, |stated| stated.time_ms += 61_000),
    ];
    for (error, change) in cases {
        let mut world = world(1, 6);
        let coordinator = published(&mut world, 2, careful());
        let root = world.root().clone();
        world.tamper = forging(&world, &root, change);
        let Fault::Unattested(enclave_id, found) = fault(world.run(coordinator, Job::Join)) else {
            panic!("believed");
        };
        assert_eq!(enclave_id, enclave_of_the_first_slot(&mut world, coordinator));
        assert_eq!(found, error);
        // The forger's own work is not what is refused: the same statement unaltered passes.
        world.tamper = forging(&world, &root, |_| {});
        assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    }
}

#[test]
fn a_document_under_another_root_is_refused() {
    let mut world = world(1, 7);
    let coordinator = published(&mut world, 2, careful());
    let root = SoftwareRoot::generate(&mut test_entropy(77)).expect("the generator works");
    world.tamper = forging(&world, &root, |_| {});
    let found = fault(world.run(coordinator, Job::Join));
    assert!(matches!(found, Fault::Unattested(_, AttestationError::RootUntrusted)), "{found:?}");
    world.tamper = None;
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
}

#[test]
fn an_older_answer_with_another_nonce_is_refused() {
    let mut world = world(1, 8);
    let coordinator = published(&mut world, 2, careful());
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    let mut older: Option<AttestationResponse> = None;
    world.tamper = alter("attestation", move |shown: &mut AttestationResponse| {
        *shown = older.get_or_insert_with(|| shown.clone()).clone();
    });
    let (first, second) = (
        seat_invited(&mut world, coordinator, 0, careful()),
        seat_invited(&mut world, coordinator, 0, careful()),
    );
    assert!(matches!(world.run(first, Job::Join), Ok(Done::Joined)));
    let found = fault(world.run(second, Job::Join));
    assert!(matches!(found, Fault::Unattested(_, AttestationError::Nonce)), "{found:?}");
}

#[test]
fn an_enclave_does_not_stand_in_for_another() {
    let mut world = world(2, 9);
    let coordinator = published(&mut world, 2, careful());
    let place = seat_invited(&mut world, coordinator, 0, careful());
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    let other = enclave_of_the_first_slot(&mut world, coordinator);
    let root = world.root().clone();
    let lie = forging(&world, &root, move |stated| stated.user_data.enclave_id = *other.as_bytes());
    world.tamper = lie;
    let found = fault(world.run(place, Job::Join));
    assert!(matches!(found, Fault::Unattested(_, AttestationError::EnclaveIdDiffers)), "{found:?}");
    world.tamper = None;
    assert!(matches!(world.run(place, Job::Join), Ok(Done::Joined)));
}

#[test]
fn keys_that_another_image_made_or_older_than_the_newest_seen_are_not_registered_at() {
    let mut world = world(1, 10);
    let coordinator = published(&mut world, 2, careful());
    let root = world.root().clone();
    let mut config = world.client_config();
    config.policy = with_image(config.policy, "older");
    let rejoin = |world: &mut World<MemoryDisk>, config| {
        let invite = world.client(coordinator).invites()[0].encode().expect("encodes");
        let invite = keymeld_core::artifact::invite::Invite::decode(&invite).expect("decodes");
        let place = world.seat(Client::join(config, signing_key(2), invite, careful()).expect("a sound key"));
        world.run(place, Job::Join)
    };
    world.tamper =
        forging(&world, &root, |stated| stated.user_data.birth_pcr0 = Pcrs::of_label("older").pcr0);
    let found = fault(rejoin(&mut world, config.clone()));
    assert!(matches!(found, Fault::Unattested(_, AttestationError::BornUnderAnotherImage)), "{found:?}");
    world.tamper = None;

    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    let (enclave_id, birth_time_ms) = world.client(coordinator).birth().expect("registered");
    config.newest_births.insert(enclave_id, birth_time_ms + 1);
    let found = fault(rejoin(&mut world, config.clone()));
    let expected = Fault::Unattested(enclave_id, AttestationError::BornBeforeNewest);
    assert_eq!(found, expected);
    config.newest_births.insert(enclave_id, birth_time_ms);
    assert!(matches!(rejoin(&mut world, config), Ok(Done::Joined)));
}

/// User data that a forger may change has to be what honest enclaves state.
#[test]
fn what_is_forged_here_is_what_enclaves_state() {
    let mut world = world(1, 11);
    let coordinator = published(&mut world, 2, careful());
    let root = world.root().clone();
    world.tamper = forging(&world, &root, |stated| {
        let again = ServiceUserData::decode(&stated.user_data.encode()).expect("decodes");
        assert_eq!(again, stated.user_data);
    });
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
}
