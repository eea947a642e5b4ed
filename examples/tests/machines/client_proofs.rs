//! A client's clock and the gateway's: what may be corrected, and what never is.

use keymeld_core::api::problem;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::attestation::AttestationError;
use keymeld_core::client::{Done, Fault, Job};
use keymeld_core::refusal::Code;
use keymeld_examples::world::Fate;

use crate::lies::{fault, published, refused, world};
use crate::story::{START, VALID_UNTIL, keygen, plan, request, seat_coordinator, seat_invited};

const HOUR_MS: i64 = 3_600_000;

#[test]
fn a_clock_an_hour_off_costs_one_more_request_once() {
    for skew in [HOUR_MS, -HOUR_MS] {
        let mut world = world(1, 1);
        let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
        world.skews.insert(coordinator, skew);
        assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
        assert_eq!(world.sent(coordinator).count(), 2);
        assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
        assert_eq!(world.sent(coordinator).count(), 3);
    }
    let mut world = world(1, 1);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    assert_eq!(world.sent(coordinator).count(), 2);
}

#[test]
fn a_proof_called_stale_twice_is_not_sent_a_third_time() {
    for (stale_count, outcome) in [(1, None), (2, Some(refused(Code::ProofStale)))] {
        let mut world = world(1, 2);
        let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
        let mut count = 0;
        world.wire = Some(Box::new(move |_, _| {
            count += 1;
            if count <= stale_count { Fate::Intercepted(problem::stale(START)) } else { Fate::Answered }
        }));
        assert_eq!(world.run(coordinator, Job::Reserve).err(), outcome);
        assert_eq!(world.sent(coordinator).count(), 2);
    }
}

#[test]
fn a_stale_proof_without_a_time_is_refused_at_once() {
    let mut world = world(1, 2);
    let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
    world.wire = Some(Box::new(|_, _| Fate::Intercepted(problem::refused(&Code::ProofStale.into()))));
    assert_eq!(fault(world.run(coordinator, Job::Reserve)), refused(Code::ProofStale));
    assert_eq!(world.sent(coordinator).count(), 1);
}

#[test]
fn an_absurd_time_of_the_gateway_does_no_harm() {
    for now in [0, 1, (1 << 53) - 1] {
        let mut world = world(1, 2);
        let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
        let mut count = 0;
        world.wire = Some(Box::new(move |_, _| {
            count += 1;
            if count == 1 { Fate::Intercepted(problem::stale(now)) } else { Fate::Answered }
        }));
        assert_eq!(fault(world.run(coordinator, Job::Reserve)), refused(Code::ProofStale));
        // The next job takes the time from the gateway again.
        assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    }
}

#[test]
fn each_poll_of_a_long_wait_may_correct_the_clock_anew() {
    let mut world = world(1, 3);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    let mut count = 0;
    world.wire = Some(Box::new(move |at, request| {
        count += usize::from(at == coordinator && request.target.contains("/status"));
        if matches!(count, 1 | 3) && at == coordinator && request.target.contains("/status") {
            Fate::Intercepted(problem::stale(START))
        } else {
            Fate::Answered
        }
    }));
    let waits = world.ask(coordinator, Job::AwaitKey);
    while world.sent(coordinator).filter(|sent| sent.target.contains("/status")).count() < 4 {
        world.step();
    }
    let participant = seat_invited(&mut world, coordinator, 0, Rules::careful(VALID_UNTIL));
    assert!(matches!(world.run(participant, Job::Join), Ok(Done::Joined)));
    assert!(matches!(world.finish(coordinator, waits), Ok(Done::Key(_))));
}

#[test]
fn a_clock_that_is_set_again_while_nobody_answers_is_corrected_anew() {
    let away = || Fate::Intercepted(problem::refused(&Code::EnclaveAway.into()));
    for gap in [|| Fate::Lost, away] {
        let mut world = world(1, 2);
        let coordinator = seat_coordinator(&mut world, plan(2, Rules::careful(VALID_UNTIL)));
        let mut count = 0;
        world.wire = Some(Box::new(move |_, _| {
            count += 1;
            match count {
                1 | 3 => Fate::Intercepted(problem::stale(START)),
                2 => gap(),
                _ => Fate::Answered,
            }
        }));
        assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
        assert_eq!(world.sent(coordinator).count(), 4);
    }
}

#[test]
fn the_gateways_time_is_never_taken_for_an_attestation() {
    for (skew, error) in [
        (0, None),
        (300_000, None),
        (300_001, Some(AttestationError::Stale)),
        (HOUR_MS, Some(AttestationError::Stale)),
        (-60_000, None),
        (-60_001, Some(AttestationError::FromTheFuture)),
        (-HOUR_MS, Some(AttestationError::FromTheFuture)),
    ] {
        let mut world = world(1, 4);
        let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
        world.skews.insert(coordinator, skew);
        let outcome = world.run(coordinator, Job::Join);
        match (outcome, error) {
            (Ok(Done::Joined), None) => {}
            (Err(Fault::Unattested(_, found)), Some(expected)) => assert_eq!(found, expected),
            (outcome, _) => panic!("{skew}: {outcome:?}"),
        }
    }
}

#[test]
fn the_gateways_time_is_never_taken_for_an_intent() {
    let mut world = world(1, 5);
    let places = keygen(&mut world, 2, Rules::careful(VALID_UNTIL));
    let signing_id = request(&mut world, places[0], &["one"]);
    for (skew, code) in [(2 * HOUR_MS, Code::IntentExpired), (-2 * HOUR_MS, Code::IntentNotYetValid)] {
        world.skews.insert(places[1], skew);
        assert_eq!(fault(world.run(places[1], Job::Review(signing_id))), refused(code));
    }
    world.skews.clear();
    let Ok(Done::Reviewed(review)) = world.run(places[1], Job::Review(signing_id)) else {
        panic!("no review")
    };
    world.skews.insert(places[1], 2 * HOUR_MS);
    let approve = Job::Approve { review: review.clone(), blind: false };
    assert_eq!(fault(world.run(places[1], approve)), refused(Code::IntentExpired));
    world.skews.clear();
    assert!(matches!(world.run(places[1], Job::Approve { review, blind: false }), Ok(Done::Approved)));

    // A requester whose clock is ahead says so in the intent, whatever time its proofs carry.
    world.skews.insert(places[0], HOUR_MS);
    let signing_id = request(&mut world, places[0], &["two"]);
    assert_eq!(fault(world.run(places[1], Job::Review(signing_id))), refused(Code::IntentNotYetValid));
}
