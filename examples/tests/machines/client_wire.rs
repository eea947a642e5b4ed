//! A client and a gateway that is away, in a hurry, or not a gateway at all.

use keymeld_core::api::problem;
use keymeld_core::api::rest::{KeygenState, KeygenStatus};
use keymeld_core::artifact::registration::Rules;
use keymeld_core::client::{Done, Fault, Job, RETRY_MS_MIN};
use keymeld_core::id::SigningId;
use keymeld_core::refusal::Code;
use keymeld_examples::disk::Disk;
use keymeld_examples::world::{Fate, World};

use crate::lies::{fault, published, refused, world};
use crate::story::VALID_UNTIL;

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
