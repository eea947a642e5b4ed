//! The simulator: the whole of KeyMeld in one thread under a seed.
//!
//! The code under test is the production code: the three machines, artifacts and frames, the router, and the
//! store on real SQLite files. Around it are virtual time, one seeded source of chance, and whatever goes
//! wrong: networks, disks, processes, clocks, generators, a hostile host with people who help it. After every
//! step the oracles look whether S1 to S8 hold.
//!
//! [`run`] runs one seed. The same seed is the same run, to the last byte of its trace.
//!
//! `plan` is what a seed means; `world` is time and who is told; `gateway_node`, `host`, `seat` are the
//! processes; `wire` is what is between them and `hostile` who owns it; `god` knows everything, `judge` compares.

mod chance;
pub mod coverage;
mod disk;
mod gateway_node;
mod god;
mod host;
mod hostile;
mod judge;
mod leaks;
mod ledger;
mod log;
mod module;
mod plan;
mod seat;
pub mod shrink;
mod watcher;
mod wire;
mod world;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use log::Log;
use world::World;

/// How to run a seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// So many faults happen at most; the others are left out.
    pub faults_max: u64,
    /// Whether the trace is kept, not only its hash.
    pub traced: bool,
    /// Whether the wire is hostile; `None` for what the seed says.
    pub hostile: Option<bool>,
}

impl Default for Options {
    fn default() -> Options {
        Options { faults_max: u64::MAX, traced: false, hostile: None }
    }
}

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What an oracle or a machine said before it stopped, with the place in the code.
    pub failure: Option<String>,
    /// Steps taken.
    pub steps: u64,
    /// Virtual time passed.
    pub virtual_ms: u64,
    /// Of everything that happened.
    pub trace_hash: u64,
    /// The trace, where it was asked for.
    pub trace: Vec<String>,
    /// Faults that happened.
    pub faults: u64,
    /// What was reached: see [`coverage`].
    pub reached: BTreeSet<&'static str>,
}

thread_local! {
    /// What the panic of this thread's run said; `None` where no run is under way.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic in a run is an answer, not a message to the terminal.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let said = SAID.with_borrow_mut(|said| match said {
                Some(said) => {
                    *said = info.to_string().replace('\n', " ");
                    true
                }
                None => false,
            });
            if !said {
                before(info);
            }
        }));
    });
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    listen();
    let log = Log::new(options.traced, options.faults_max);
    SAID.set(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        World::new(seed, options.hostile, log.clone()).run();
    }));
    let said = SAID.take().unwrap_or_default();
    log.read(|held| Outcome {
        seed,
        failure: result.is_err().then_some(said),
        steps: held.steps,
        virtual_ms: held.now_ms,
        trace_hash: held.hash,
        trace: held.lines.take().unwrap_or_default(),
        faults: held.faults,
        reached: std::mem::take(&mut held.reached),
    })
}
