//! A client and a gateway that is away, in a hurry, or not a gateway at all.

use keymeld_core::api::http::Response;
use keymeld_core::api::problem;
use keymeld_core::api::rest::{KeygenState, KeygenStatus};
use keymeld_core::artifact::registration::Rules;
use keymeld_core::client::{Done, Fault, JOBS_MAX, Job, RETRY_MS_MIN};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::SigningId;
use keymeld_core::refusal::Code;
use keymeld_examples::disk::Disk;
use keymeld_examples::world::{Fate, World};

use crate::lies::{fault, published, refused, replace_once, world};
use crate::story::{VALID_UNTIL, approve, items, keygen, request, seat_invited, signatures};

#[test]
fn a_job_that_needs_the_key_does_not_wait_for_it() {
    let mut world = world(1, 1);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
    let before = world.sent(coordinator).count();
    let job = Job::Review(SigningId([7; 16]));
    assert_eq!(fault(world.run(coordinator, job)), refused(Code::WrongState));
    assert_eq!(world.sent(coordinator).count(), before + 1);
}

/// The answer that a keygen is still under way.
fn pending<D: Disk>(world: &World<D>, at: usize) -> Fate {
    let status = KeygenStatus {
        keygen_id: world.client(at).keygen_id(),
        state: KeygenState::CollectingParticipants,
        revision: 1,
        registered: 1,
        expected: 2,
        failure: None,
        completed: None,
    };
    Fate::Intercepted(problem::ok(200, &status))
}

#[test]
fn a_gateway_that_answers_long_polls_at_once_is_not_asked_in_a_tight_loop() {
    for timeout_ms in [1, 2, 60_000] {
        let mut world = world(1, 2);
        let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
        assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
        let pending = pending(&world, coordinator);
        let before = world.sent(coordinator).count();
        world.wire = Some(Box::new(move |_, _| pending.clone()));
        let job_id = world.ask_within(coordinator, Job::AwaitKey, timeout_ms);
        let outcome = world.finish(coordinator, job_id);
        assert_eq!(fault(outcome), Fault::TimedOut);
        let count = world.sent(coordinator).count() - before;
        assert!(count <= 20, "{count} requests in {timeout_ms} ms; the first pause is {RETRY_MS_MIN} ms");
    }
}

#[test]
fn whatever_gets_lost_on_the_way_everything_completes() {
    for seed in 0..30 {
        let mut world = world(2, 100 + seed);
        let mut chance = test_entropy(seed);
        world.wire = Some(Box::new(move |_, _| match chance.bytes::<1>().expect("random")[0] % 9 {
            0 => Fate::Lost,
            1 => Fate::Silence,
            2 => Fate::AnswerLost,
            3 => Fate::Intercepted(html(502)),
            _ => Fate::Answered,
        }));
        let places = keygen(&mut world, 3, Rules::careful(VALID_UNTIL));
        let signing_id = request(&mut world, places[0], &["one", "two"]);
        for place in &places[1..] {
            assert!(matches!(approve(&mut world, *place, signing_id), Ok(Done::Approved)));
        }
        for place in places {
            assert_eq!(signatures(&mut world, place, signing_id).len(), 2);
        }
    }
}

/// What a proxy in between says.
fn html(status: u16) -> Response {
    let body = b"<html>Bad gateway</html>".to_vec();
    Response { status, content_type: "application/octet-stream", retry_after_s: None, body }
}

#[test]
fn an_answer_that_is_none_of_the_apis_is_no_answer() {
    let mut world = world(1, 3);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    for status in [302, 404, 429, 500, 502, 503] {
        world.wire = Some(Box::new(move |_, _| Fate::Intercepted(html(status))));
        let job_id = world.ask_within(coordinator, Job::Join, 20_000);
        assert_eq!(fault(world.finish(coordinator, job_id)), Fault::TimedOut, "{status}");
    }
    // Success is believed in no other words than the API's.
    world.wire = Some(Box::new(|_, _| Fate::Intercepted(html(200))));
    assert_eq!(fault(world.run(coordinator, Job::Join)), Fault::Unverified(Code::Malformed.into()));
    world.wire = None;
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
}

/// Each answer of a whole story in turn has some of its bytes changed: every job still ends, with a fault or
/// with what it would have ended with.
#[test]
fn whatever_stands_in_an_answer_a_job_ends_in_a_fault_or_in_the_truth() {
    let mut faults = 0;
    for seed in 0..120 {
        let mut world = world(2, 200);
        let coordinator = published(&mut world, 2, Rules::delegated(VALID_UNTIL));
        let other = seat_invited(&mut world, coordinator, 0, Rules::delegated(VALID_UNTIL));
        let number = usize::try_from(seed % 24).expect("small") + 1;
        let mut chance = test_entropy(seed);
        world.tamper = replace_once(number, move |_, mut response| {
            let [first, second, by, how] = chance.bytes::<4>().expect("random");
            let at = usize::from(first) * 256 + usize::from(second);
            let length = response.body.len();
            match how % 3 {
                // Hex stays hex, so that it is looked at further in.
                0 => response.body[at % length] = b"0123456789abcdef"[usize::from(by % 16)],
                1 => response.body[at % length] ^= by | 1,
                _ => response.body.truncate(at % length),
            }
            response
        });
        let wanted = items(&mut world, &["one"]);
        let jobs = [
            (coordinator, Job::Join),
            (other, Job::Join),
            (coordinator, Job::AwaitKey),
            (other, Job::AwaitKey),
            (coordinator, Job::Sign { items: wanted, expires_at: None }),
        ];
        for (place, job) in jobs {
            let job_id = world.ask_within(place, job, 600_000);
            match world.finish(place, job_id) {
                Ok(Done::Signed(_, outcomes)) => assert!(outcomes.iter().all(Result::is_ok)),
                Ok(Done::Joined | Done::Key(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(_) => faults += 1,
            }
        }
        let keys = [coordinator, other].map(|place| world.client(place).key().map(|key| key.output_key()));
        assert!(keys[0].is_none() || keys[1].is_none() || keys[0] == keys[1]);
    }
    assert!(faults > 60, "{faults}: the lies were told");
}

#[test]
fn jobs_are_bounded_named_once_and_may_be_abandoned() {
    let mut world = world(1, 4);
    let coordinator = published(&mut world, 2, Rules::careful(VALID_UNTIL));
    world.wire = Some(Box::new(|_, _| Fate::Silence));
    let first = world.ask_within(coordinator, Job::Join, 1_000_000);
    for _ in 1..JOBS_MAX {
        world.ask_within(coordinator, Job::Join, 1_000_000);
    }
    let one_more = world.ask_within(coordinator, Job::Join, 1_000_000);
    assert_eq!(fault(world.finish(coordinator, one_more)), refused(Code::TooMany));
    world.abandon(coordinator, first);
    world.wire = None;
    assert!(matches!(world.run(coordinator, Job::Join), Ok(Done::Joined)));
}
