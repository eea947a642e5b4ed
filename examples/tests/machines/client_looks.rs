//! What a client tells of sessions that have not ended, and what it keeps of them.

use keymeld_core::api::rest::{KeygenState, SigningState};
use keymeld_core::artifact::manifest::Pin;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::client::{Client, Done, Job, Keep, KeygenProgress, MembershipError, Review, birth_in};
use keymeld_core::id::{SigningId, UserId};
use keymeld_core::refusal::Code;
use keymeld_examples::disk::MemoryDisk;
use keymeld_examples::world::World;

use crate::lies::{fault, refused, unverified, world};
use crate::story::{
    VALID_UNTIL, approve, items, keygen, plan, request, seat_coordinator, seat_invited, signatures,
    signing_key,
};

fn look(world: &mut World<MemoryDisk>, place: usize) -> KeygenProgress {
    match world.run(place, Job::LookAtKeygen) {
        Ok(Done::Keygen(progress)) => *progress,
        other => panic!("{other:?}"),
    }
}

fn review(world: &mut World<MemoryDisk>, place: usize, signing_id: SigningId) -> Review {
    match world.run(place, Job::Review(signing_id)) {
        Ok(Done::Reviewed(review)) => *review,
        other => panic!("{other:?}"),
    }
}

fn user(world: &World<MemoryDisk>, place: usize) -> UserId {
    world.client(place).user_id()
}

/// What this client kept last of its membership.
fn kept(world: &World<MemoryDisk>, place: usize) -> Vec<u8> {
    let mut memberships = world.kept(place).iter().filter_map(|keep| match keep {
        Keep::Membership(bytes) => Some(bytes.to_vec()),
        Keep::Request(_) => None,
    });
    memberships.next_back().expect("was kept")
}

#[test]
fn a_keygen_can_be_looked_at_from_its_reservation_to_its_end() {
    let mut world = world(2, 60);
    let rules = Rules::careful(VALID_UNTIL);
    let coordinator = seat_coordinator(&mut world, plan(3, rules));
    assert_eq!(fault(world.run(coordinator, Job::LookAtKeygen)), refused(Code::UnknownId));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    let reserved = look(&mut world, coordinator);
    assert_eq!((reserved.state, reserved.slots.len()), (KeygenState::Reserved, 3));
    assert!(reserved.slots.iter().all(|slot| slot.participant.is_none() && !slot.registered));

    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    let other = seat_invited(&mut world, coordinator, 0, rules);
    assert!(matches!(world.run(other, Job::Join), Ok(Done::Joined)));
    // Whoever has an invite can look, joined or not.
    let last = seat_invited(&mut world, coordinator, 1, rules);
    let progress = look(&mut world, last);
    assert_eq!((progress.state, progress.is_ended()), (KeygenState::CollectingParticipants, false));
    assert_eq!(progress.slots.iter().map(|slot| slot.registered).collect::<Vec<_>>(), [false, true, false]);
    let (name, pin) = progress.slots[1].participant.clone().expect("a manifest");
    assert_eq!(name.as_deref(), Some("Participant 2"));
    assert!(matches!(pin, Pin::SigningKey(_)));
    assert!(matches!(progress.slots[2].participant, Some((_, Pin::InviteKey(_)))));

    for place in [coordinator, last] {
        assert!(matches!(world.run(place, Job::Join), Ok(Done::Joined)));
    }
    assert!(matches!(world.run(last, Job::AwaitKey), Ok(Done::Key(_))));
    assert_eq!(look(&mut world, other).state, KeygenState::Completed);
}

#[test]
fn a_signing_session_can_be_looked_at_without_waiting_for_it() {
    let mut world = world(2, 61);
    let places = keygen(&mut world, 3, Rules::careful(VALID_UNTIL));
    let signing_id = request(&mut world, places[0], &["one"]);
    let shown = review(&mut world, places[1], signing_id);
    let mut missing = shown.missing.clone();
    missing.sort();
    let mut others = [user(&world, places[1]), user(&world, places[2])];
    others.sort();
    assert_eq!((shown.approved.len(), missing.as_slice()), (0, &others[..]));
    assert!(matches!(approve(&mut world, places[1], signing_id), Ok(Done::Approved)));
    let shown = review(&mut world, places[2], signing_id);
    assert_eq!(
        (shown.approved, shown.missing),
        (vec![user(&world, places[1])], vec![user(&world, places[2])])
    );
    let Ok(Done::Signing(progress)) = world.run(places[0], Job::LookAtSigning(signing_id)) else {
        panic!("no progress")
    };
    assert_eq!(progress.state, SigningState::CollectingParticipants);
    assert_eq!(
        (progress.approved, progress.awaited),
        (vec![user(&world, places[1])], vec![user(&world, places[2])])
    );
    assert!(matches!(approve(&mut world, places[2], signing_id), Ok(Done::Approved)));
    let signed = signatures(&mut world, places[0], signing_id);
    match world.run(places[1], Job::LookAtSigning(signing_id)) {
        Ok(Done::Signed(_, outcomes)) => {
            assert_eq!(outcomes.into_iter().map(|one| one.expect("signed")).collect::<Vec<_>>(), signed);
        }
        other => panic!("{other:?}"),
    }
}

/// A gateway cannot pass a manifest of its own off as the session's.
#[test]
fn a_manifest_that_does_not_open_is_not_looked_at() {
    let mut world = world(1, 62);
    let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    world.tamper = crate::lies::alter("/slots", |slots: &mut keymeld_core::api::rest::SlotsResponse| {
        slots.manifest.as_mut().expect("published").0[30] ^= 1;
    });
    assert_eq!(fault(world.run(coordinator, Job::LookAtKeygen)), unverified(Code::SealUnreadable));
    world.tamper = None;
    look(&mut world, coordinator);
}

#[test]
fn invites_are_there_once_the_manifest_is_and_stay_there() {
    let mut world = world(1, 63);
    let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    assert!(world.client(coordinator).invites().is_empty());
    let config = world.client_config();
    let resume = |bytes: &[u8]| Client::resume(config.clone(), signing_key(1), bytes).expect("as kept");
    assert!(resume(&kept(&world, coordinator)).invites().is_empty());
    // A gateway that says nothing of the manifest has not published it.
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    assert_eq!(world.client(coordinator).invites().len(), 1);
    assert_eq!(resume(&kept(&world, coordinator)).invites().len(), 1);
    let count = world.kept(coordinator).len();
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    assert_eq!(world.kept(coordinator).len(), count, "nothing new is kept");
}

#[test]
fn a_membership_that_somebody_else_wrote_is_refused_whatever_was_changed() {
    let mut world = world(1, 64);
    let places = keygen(&mut world, 2, Rules::careful(VALID_UNTIL));
    let bytes = kept(&world, places[1]);
    let config = world.client_config();
    let resume = |key: u8, bytes: &[u8]| Client::resume(config.clone(), signing_key(key), bytes).map(drop);
    assert_eq!(resume(2, &bytes), Ok(()));
    assert_eq!(birth_in(&bytes), Ok(world.client(places[1]).birth()));
    assert_eq!(resume(1, &bytes), Err(MembershipError::AnotherKey));
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        assert!(resume(2, &altered).is_err(), "byte {at}");
    }
    let text = String::from_utf8(bytes).expect("UTF-8");
    let weaker = text.replacen("\"approval\":\"required\"", "\"approval\":\"delegated\"", 1);
    assert_ne!(weaker, text);
    assert_eq!(resume(2, weaker.as_bytes()), Err(MembershipError::Altered));
}

#[test]
fn a_kept_request_can_be_read_and_sent_again_without_waiting() {
    let mut world = world(2, 65);
    let places = keygen(&mut world, 2, Rules::careful(VALID_UNTIL));
    let wanted = items(&mut world, &["one"]);
    let job = Job::Request { items: wanted.clone(), expires_at: None };
    let Ok(Done::Requested(signing_id)) = world.run(places[0], job) else { panic!("not requested") };
    let Some(Keep::Request(request)) = world.kept(places[0]).last() else { panic!("not kept") };
    let request = (**request).clone();
    let read = world.client(places[0]).read_request(&request).expect("its own");
    assert_eq!((read.intent().signing_id, &read.intent().items), (signing_id, &wanted));
    let mut altered = request.clone();
    altered.intent.0[40] ^= 1;
    assert_eq!(world.client(places[0]).read_request(&altered).err(), Some(Code::SealUnreadable));
    match world.run(places[0], Job::Resend(request)) {
        Ok(Done::Requested(again)) => assert_eq!(again, signing_id),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_enclave_that_was_attested_is_remembered() {
    let mut world = world(3, 66);
    let places = keygen(&mut world, 3, Rules::careful(VALID_UNTIL));
    let births = world.client(places[0]).births().clone();
    assert_eq!(births.len(), 3);
    let (own, birth) = world.client(places[0]).birth().expect("registered");
    assert_eq!(births[&own], birth);
    for place in places {
        assert_eq!(*world.client(place).births(), births);
    }
}
