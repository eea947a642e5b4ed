//! Shrinking: as few faults as it takes.

use super::{Options, Outcome, run};

/// The run of a failing seed with the fewest first faults that still fails.
///
/// Faults do not change each other's chance, so that leaving the last ones out keeps the meaning of those
/// before them. It bisects, and goes by what it has seen: the answer always fails.
pub fn shortest(seed: u64, options: &Options) -> Outcome {
    let mut worst = run(seed, options);
    if worst.failure.is_none() {
        return worst;
    }
    let (mut passes_below, mut fails_at) = (0, worst.faults.min(options.faults_max));
    while passes_below < fails_at {
        let faults_max = passes_below + (fails_at - passes_below) / 2;
        let outcome = run(seed, &Options { faults_max, ..*options });
        if outcome.failure.is_some() {
            fails_at = outcome.faults.min(faults_max);
            worst = outcome;
        } else {
            passes_below = faults_max + 1;
        }
    }
    worst
}
