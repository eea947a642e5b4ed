//! A client and a gateway that lies about a completed keygen.

use keymeld_core::api::rest::{Failure, KeygenCompleted, KeygenState, KeygenStatus};
use keymeld_core::artifact::registration::Rules;
use keymeld_core::client::{Client, Done, Fault, Job, Keep};
use keymeld_core::id::{EnclaveId, UserId};
use keymeld_core::refusal::Code;
use keymeld_examples::disk::MemoryDisk;
use keymeld_examples::world::{Deed, Fate, World};

use crate::lies::{alter, fault, published, registered, unverified, world};
use crate::story::{VALID_UNTIL, seat_invited, signing_key};

/// A completed keygen of three at two enclaves, which the last has not seen yet.
fn completed(seed: u64) -> (World<MemoryDisk>, usize) {
    let mut world = world(2, seed);
    let places = registered(&mut world, 3, Rules::careful(VALID_UNTIL));
    (world, places[2])
}

/// The client does not believe it and shows no key; told the truth, it does.
fn lied_to(expected: &[Code], change: impl FnMut(&mut KeygenStatus) + 'static) {
    let (mut world, place) = completed(1);
    world.tamper = alter("/status", change);
    match fault(world.run(place, Job::AwaitKey)) {
        Fault::Unverified(refusal) => {
            assert!(expected.contains(&refusal.code), "{refusal:?}, not {expected:?}");
            assert_eq!(refusal.culprits, [], "nobody is named for the gateway's lies");
        }
        other => panic!("{other:?}"),
    }
    assert!(world.client(place).key().is_none());
    world.tamper = None;
    assert!(matches!(world.run(place, Job::AwaitKey), Ok(Done::Key(_))));
}

fn lied_in(expected: &[Code], mut change: impl FnMut(&mut KeygenCompleted) + 'static) {
    lied_to(expected, move |status| change(status.completed.as_mut().expect("completed")));
}

#[test]
fn other_records_than_were_registered_are_not_believed() {
    lied_in(&[Code::SealUnreadable], |completed| {
        let (first, rest) = completed.records.split_at_mut(1);
        std::mem::swap(&mut first[0].record, &mut rest[0].record);
    });
    lied_in(&[Code::SealUnreadable], |completed| completed.records[0].record.0[20] ^= 1);
    lied_in(&[Code::RosterIncomplete], |completed| drop(completed.records.remove(0)));
    lied_in(&[Code::RosterIncomplete], |completed| completed.records.push(completed.records[0].clone()));
    lied_in(&[Code::UserNotInRoster], |completed| completed.records[0].user_id = UserId([9; 16]));
    lied_in(&[Code::TooManyParticipants], |completed| {
        completed.records = vec![completed.records[0].clone(); 101];
    });
    lied_in(&[Code::SealUnreadable], |completed| completed.manifest.0[20] ^= 1);
}

#[test]
fn certificates_are_one_of_each_enclave_and_its_own() {
    lied_in(&[Code::CertificateInvalid], |completed| drop(completed.certificates.remove(0)));
    lied_in(&[Code::CertificateInvalid], |completed| completed.certificates.clear());
    lied_in(&[Code::CertificateInvalid], |completed| {
        completed.certificates.push(completed.certificates[0].clone());
    });
    lied_in(&[Code::CertificateInvalid], |completed| completed.certificates[0].enclave_key.0[7] ^= 1);
    lied_in(&[Code::SealUnreadable], |completed| completed.certificates[0].certificate.0[20] ^= 1);
    lied_in(&[Code::SealUnreadable], |completed| {
        let (first, rest) = completed.certificates.split_at_mut(1);
        std::mem::swap(&mut first[0].certificate, &mut rest[0].certificate);
    });
    // Another enclave's attestation has other keys than the roster names.
    lied_in(&[Code::EnclaveKeysMismatch], |completed| {
        let other = completed.certificates[1].enclave_id;
        completed.certificates[0].enclave_id = other;
    });
}

#[test]
fn an_enclave_that_nobody_can_attest_keeps_the_key_from_being_shown() {
    let (mut world, place) = completed(2);
    world.tamper = alter("/status", |status: &mut KeygenStatus| {
        status.completed.as_mut().expect("completed").certificates[0].enclave_id = EnclaveId([1; 16]);
    });
    assert_eq!(fault(world.run(place, Job::AwaitKey)), Fault::Refused(Code::UnknownId.into()));
    world.tamper = alter("/status", |status: &mut KeygenStatus| {
        status.completed.as_mut().expect("completed").certificates[0].epoch = 7;
    });
    assert_eq!(fault(world.run(place, Job::AwaitKey)), Fault::Refused(Code::WrongEpoch.into()));
    assert!(world.client(place).key().is_none());
}

#[test]
fn a_state_and_what_comes_with_it_have_to_agree() {
    lied_to(&[Code::WrongState], |status| status.completed = None);
    lied_to(&[Code::WrongState], |status| status.state = KeygenState::KeyGeneration);
    lied_to(&[Code::WrongState], |status| status.state = KeygenState::Failed);
    lied_to(&[Code::WrongState], |status| {
        status.failure = Some(Failure { code: "expired".into(), culprits: vec![], withdrawal: None });
    });
}

#[test]
fn a_failure_is_the_gateways_word_and_names_nobody() {
    let (mut world, place) = completed(3);
    world.tamper = alter("/status", |status: &mut KeygenStatus| {
        status.state = KeygenState::Failed;
        status.completed = None;
        let culprits = vec![UserId([3; 16])];
        status.failure = Some(Failure { code: "equal-x".into(), culprits, withdrawal: None });
    });
    assert_eq!(fault(world.run(place, Job::AwaitKey)), Fault::Ended(Code::EqualX.into(), None));
}

#[test]
fn a_registration_is_kept_before_it_is_sent_and_sent_again_as_it_was() {
    let mut world = world(2, 4);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    let place = seat_invited(&mut world, coordinator, 0, Rules::careful(VALID_UNTIL));
    // Every answer to a registration gets lost.
    world.wire = Some(Box::new(move |at, request| {
        if at == place && request.target.ends_with("/participants") {
            Fate::AnswerLost
        } else {
            Fate::Answered
        }
    }));
    let job_id = world.ask_within(place, Job::Join, 10_000);
    assert_eq!(fault(world.finish(place, job_id)), Fault::TimedOut);
    let deeds = world.deeds(place);
    let sends =
        |deed: &Deed| matches!(deed, Deed::Sent(request) if request.target.ends_with("/participants"));
    let first_sent = deeds.iter().position(sends).expect("was sent");
    let kept = deeds[..first_sent].iter().rev().find_map(|deed| match deed {
        Deed::Kept(at) => Some(*at),
        Deed::Sent(_) => None,
    });
    let Keep::Membership(membership) = &world.kept(place)[kept.expect("kept before")] else { panic!("kept") };
    let membership = membership.clone();

    // A new process sends the same bytes; another key opens nothing.
    let config = world.client_config();
    assert!(Client::resume(config.clone(), signing_key(9), &membership).is_err());
    for cut in (0..membership.len()).step_by(97) {
        assert!(Client::resume(config.clone(), signing_key(2), &membership[..cut]).is_err());
    }
    let resumed = Client::resume(config, signing_key(2), &membership).expect("as kept");
    let resumed = world.seat(resumed);
    world.wire = None;
    assert!(matches!(world.run(resumed, Job::Join), Ok(Done::Joined)));
    let bodies = |place: usize| -> Vec<Vec<u8>> {
        let registrations = world.sent(place).filter(|request| request.target.ends_with("/participants"));
        registrations.map(|request| request.body.clone()).collect()
    };
    let (before, after) = (bodies(place), bodies(resumed));
    assert!(before.len() > 1 && after.len() == 1);
    assert!(before.iter().chain(&after).all(|body| *body == before[0]));
}

#[test]
fn what_cannot_be_kept_is_not_sent() {
    let mut world = world(1, 5);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    let place = seat_invited(&mut world, coordinator, 0, Rules::careful(VALID_UNTIL));
    world.keeper = Some(Box::new(|_, _| false));
    assert_eq!(fault(world.run(place, Job::Join)), Fault::NotStored);
    assert_eq!(world.sent(place).count(), 0);
    // The first file is kept, the one with the registration is not.
    let mut left = 1;
    world.keeper = Some(Box::new(move |_, _| {
        left -= 1;
        left >= 0
    }));
    assert_eq!(fault(world.run(place, Job::Join)), Fault::NotStored);
    assert!(world.sent(place).all(|request| !request.target.ends_with("/participants")));
    world.keeper = None;
    assert!(matches!(world.run(place, Job::Join), Ok(Done::Joined)));
}

#[test]
fn a_second_registration_with_weaker_rules_is_not_taken_for_the_first() {
    let mut world = world(2, 6);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    let careful = seat_invited(&mut world, coordinator, 0, Rules::careful(VALID_UNTIL));
    let weaker = seat_invited(&mut world, coordinator, 0, Rules::delegated(VALID_UNTIL));
    // The gateway drops what the user wants and takes what it once made.
    world.wire = Some(Box::new(move |at, request| {
        if at == careful && request.target.ends_with("/participants") { Fate::Lost } else { Fate::Answered }
    }));
    let job_id = world.ask_within(careful, Job::Join, 10_000);
    assert_eq!(fault(world.finish(careful, job_id)), Fault::TimedOut);
    assert!(matches!(world.run(weaker, Job::Join), Ok(Done::Joined)));
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    assert!(matches!(world.run(weaker, Job::AwaitKey), Ok(Done::Key(_))), "it is its own");
    assert_eq!(fault(world.run(careful, Job::AwaitKey)), unverified(Code::RecordMismatch));
}
