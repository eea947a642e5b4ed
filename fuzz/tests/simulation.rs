//! Two hundred seeds of the simulator, and that a seed is one run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use keymeld_fuzz::sim::{Options, run};

const SEEDS: u64 = 200;

#[test]
fn two_hundred_seeds_hold() {
    let next = AtomicU64::new(1);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS {
                        return;
                    }
                    if let Some(said) = run(seed, &Options::default()).failure {
                        failed.lock().expect("nobody panics").push((seed, said));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nobody panics");
    assert!(
        failed.is_empty(),
        "replay with `cargo run -p keymeld-fuzz --bin sim -- --replay SEED --trace`: {failed:#?}"
    );
}

/// Of the 100,000 in docs/TESTING.md: requests that the gateway never took, a session that a clock ended early, an
/// intent of the future.
#[test]
fn seeds_that_have_failed_hold() {
    for seed in [23_256, 27_649, 38_471, 75_961, 92_822] {
        assert_eq!(run(seed, &Options::default()).failure, None, "seed {seed}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let traced = Options { traced: true, ..Options::default() };
    for seed in [3, 7, 11] {
        let (first, again) = (run(seed, &traced), run(seed, &traced));
        assert_eq!(first.trace, again.trace);
        assert_eq!((first.trace_hash, first.steps), (again.trace_hash, again.steps));
        assert_eq!(run(seed, &Options::default()).trace_hash, first.trace_hash);
    }
}

#[test]
fn faults_that_are_left_out_leave_the_others_as_they_are() {
    let of = |faults_max| run(13, &Options { faults_max, traced: true, hostile: None });
    let all = of(u64::MAX);
    let until = all.faults / 2;
    let some = of(until);
    assert_eq!(some.faults, until);
    let faults = |trace: &[String]| -> Vec<String> {
        trace.iter().filter(|line| line.contains("fault: ")).cloned().collect()
    };
    assert_eq!(faults(&some.trace)[..], faults(&all.trace)[..until as usize]);
    assert_eq!(of(0).faults, 0);
}
