//! The machines in one thread on a SQLite file: the gateway is killed at each commit in turn, before it or
//! after, and everything still completes (S6).

use crate::story::{VALID_UNTIL, approve, keygen, request, signatures, world};
use keymeld_core::artifact::registration::Rules;
use keymeld_examples::world::Kill;

/// A keygen, and a signing that waits for two approvals; the answer is how many commits it took.
fn play(kill: Option<Kill>) -> u64 {
    let mut world = world(2, 1);
    world.kill = kill;
    let places = keygen(&mut world, 3, Rules::careful(VALID_UNTIL));
    let signing_id = request(&mut world, places[0], &["one", "two"]);
    for place in &places[1..] {
        approve(&mut world, *place, signing_id).expect("approves");
    }
    let seen = signatures(&mut world, places[2], signing_id);
    assert_eq!(seen.len(), 2);
    // What was seen as Completed is still there after everything was killed.
    world.kill_gateway();
    for at in 0..2 {
        world.kill_enclave(at);
    }
    assert_eq!(signatures(&mut world, places[1], signing_id), seen);
    world.commits()
}

#[test]
fn a_gateway_killed_at_any_commit_comes_back_and_everything_completes() {
    let commits = play(None);
    // Two identities; reserve, init, three registrations, their opening, the end; accepted, two approvals, completed.
    assert!((10..=16).contains(&commits), "{commits} commits");
    for at_commit in 1..=commits {
        for committed in [false, true] {
            play(Some(Kill { at_commit, committed }));
        }
    }
}
