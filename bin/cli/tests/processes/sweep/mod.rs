//! The crash sweep: the gateway or an enclave dies at every call that changes a file and at every boundary of a frame,
//! each in a run of its own, and comes back at once. The run has to complete, and what was acknowledged has to hold (S6).
//!
//! A run without a fault counts the points. The short form, with the other tests, takes a few of them by a seed that it
//! prints; `ci/crash-sweep` takes all.

mod disk;
mod relay;
mod run;
mod trace;

use std::collections::{BTreeSet, VecDeque};
use std::env;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use keymeld::children::Setup;

use self::relay::{Boundary, Direction, Side};
use self::run::{Counts, ENCLAVES, Point};
use crate::matrix::{Random, Victim};
use crate::party::os_entropy;

/// How often a run that does not come to its point is tried again: how many commits and frames there are varies a
/// little, for what comes at the same time may be written at once.
const TRIES_MAX: usize = 5;

/// How much is done.
struct Sizes {
    seed: u64,
    /// Runs that count the points.
    counts: usize,
    points_max: usize,
    at_a_time: usize,
    /// How often each process is stopped, and for how long.
    stops: usize,
    pause: Duration,
    /// Commits while somebody reads.
    commits: usize,
    /// Whether everything is to be there that this needs of its system.
    complete: bool,
}

impl Sizes {
    fn read() -> Sizes {
        let drawn = u64::from_be_bytes(os_entropy().bytes().expect("random")) >> 32;
        let (seed, at_a_time) = (variable("SEED", drawn), variable("CONCURRENCY", 2));
        let long = variable("LONG", 0) != 0;
        let (counts, points_max, stops) = if long { (3, usize::MAX, 3) } else { (1, 6, 1) };
        let (pause_ms, commits) = if long { (30_000, 4_000) } else { (1_500, 150) };
        let pause = Duration::from_millis(pause_ms);
        Sizes { seed, counts, points_max, at_a_time, stops, pause, commits, complete: long }
    }
}

fn variable<T: FromStr>(name: &str, default: T) -> T {
    let name = format!("KEYMELD_SWEEP_{name}");
    match env::var(&name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")),
        Err(_) => default,
    }
}

fn setup() -> Setup {
    Setup::of(Path::new(env!("CARGO_BIN_EXE_keymeld")), ENCLAVES)
}

impl Counts {
    fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for (victim, thread, calls) in &self.writes {
            let point = |call| Point::Write { victim: *victim, thread: *thread, call };
            points.extend(calls.iter().copied().map(point));
        }
        for (enclave, counts) in self.frames.iter().enumerate() {
            for (direction, count) in [Direction::ToEnclave, Direction::ToGateway].into_iter().zip(counts) {
                for number in 1..=*count {
                    for side in [Side::Before, Side::After] {
                        let boundary = Boundary { direction, number, side };
                        let point = |victim| Point::Frame { enclave, boundary, victim };
                        points.extend([Victim::Gateway, Victim::Enclave(enclave)].map(point));
                    }
                }
            }
        }
        points
    }
}

/// What became of the points.
#[derive(Default)]
struct Outcome {
    covered: usize,
    /// Runs never came to them.
    missed: Vec<String>,
    /// A run that came to them, or did not, went wrong.
    failed: Vec<String>,
    slowest: (Duration, String),
}

fn sweep(points: Vec<Point>, at_a_time: usize) -> Outcome {
    let total = points.len();
    let queue = Mutex::new(VecDeque::from(points));
    let outcome = Mutex::new(Outcome::default());
    let began = Instant::now();
    let sweeper = || {
        loop {
            let next = queue.lock().expect("nobody panics with it").pop_front();
            let Some(point) = next else { return };
            // Its panic, with the name, is on standard error.
            let name = format!("{point}");
            let started = Instant::now();
            let came = (0..TRIES_MAX).find_map(|_| {
                let run = thread::Builder::new().name(name.clone()).spawn(move || run::run(point));
                run.expect("a thread").join().map_or(Some(false), |came| came.then_some(true))
            });
            let mut outcome = outcome.lock().expect("nobody panics with it");
            if outcome.slowest.0 < started.elapsed() {
                outcome.slowest = (started.elapsed(), name.clone());
            }
            match came {
                Some(true) => outcome.covered += 1,
                Some(false) => outcome.failed.push(name),
                None => outcome.missed.push(name),
            }
            let done = outcome.covered + outcome.missed.len() + outcome.failed.len();
            if done % 50 == 0 {
                eprintln!("crash sweep: {done} of {total} points, {} s", began.elapsed().as_secs());
            }
        }
    };
    thread::scope(|scope| (0..at_a_time).for_each(|_| drop(scope.spawn(sweeper))));
    outcome.into_inner().expect("nobody panics with it")
}

#[test]
fn a_keygen_and_a_signing_complete_wherever_a_process_dies_and_keep_what_was_acknowledged() {
    let Sizes { seed, counts, points_max, at_a_time, complete, .. } = Sizes::read();
    assert!(!complete || trace::is_there(), "strace is not there");
    let began = Instant::now();
    let mut points = BTreeSet::new();
    // What comes at the same time may be written at once, or not.
    for _ in 0..counts {
        points.extend(run::count().points());
    }
    let mut points: Vec<Point> = points.into_iter().collect();
    let is_write = |point: &&Point| matches!(point, Point::Write { .. });
    let (all, writes) = (points.len(), points.iter().filter(is_write).count());
    let boundaries = all - writes;
    assert!(boundaries > 0 && (writes > 0) == trace::is_there(), "{writes} {boundaries}");
    // The words of one that failed.
    let words: String = variable("POINT", String::new());
    points.retain(|point| point.to_string().contains(&words));
    Random::new(seed, 0).shuffle(&mut points);
    points.truncate(points_max);
    let drawn = points.len();
    eprintln!("crash sweep: {drawn} of {all} points, {writes} of them writes; KEYMELD_SWEEP_SEED={seed}");
    let Outcome { covered, missed, failed, slowest } = sweep(points, at_a_time);
    println!(
        "{{\"points\":{drawn},\"covered\":{covered},\"durable_writes\":{writes},\"frame_boundaries\":{boundaries},\
         \"missed\":{missed:?},\"failed\":{failed:?},\"slowest\":{:?},\"slowest_ms\":{},\"seconds\":{}}}",
        slowest.1,
        slowest.0.as_millis(),
        began.elapsed().as_secs()
    );
    assert_eq!((covered, missed, failed), (drawn, Vec::new(), Vec::new()));
}

#[test]
fn a_keygen_and_a_signing_complete_though_a_process_stands_still_after_a_frame() {
    let Sizes { seed, stops, pause, .. } = Sizes::read();
    eprintln!("crash sweep: processes stopped for {} ms, KEYMELD_SWEEP_SEED={seed}", pause.as_millis());
    let mut random = Random::new(seed, 1);
    for _ in 0..stops {
        thread::scope(|scope| {
            for victim in [Victim::Gateway, Victim::Enclave(0), Victim::Enclave(1)] {
                let enclave = match victim {
                    Victim::Gateway => random.below(ENCLAVES),
                    Victim::Enclave(at) => at,
                };
                let direction = [Direction::ToEnclave, Direction::ToGateway][random.below(2)];
                // Every run comes to the first twelve frames of each direction.
                let boundary = Boundary { direction, number: 1 + random.below(12), side: Side::After };
                scope.spawn(move || assert!(run::stop(enclave, boundary, victim, pause), "{boundary:?}"));
            }
        });
    }
}
