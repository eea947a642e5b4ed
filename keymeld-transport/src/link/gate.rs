//! Bytes that many connections share: whoever wants some waits in line, so that none is starved.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

const HELD: &str = "no thread panics while holding it";

/// A number of bytes, taken in turn.
#[derive(Debug)]
pub(super) struct Gate {
    bytes_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    last_ticket: u64,
    /// In the order in which they came.
    waiting: VecDeque<u64>,
}

impl Gate {
    pub(super) fn new(bytes_max: usize) -> Gate {
        Gate { bytes_max, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(HELD)
    }

    /// Waits for its turn and for so many bytes, and takes them; more than there are altogether where nobody else
    /// has any. False, with nothing taken, where it was given up meanwhile.
    pub(super) fn enter(&self, bytes: usize, given_up: impl Fn() -> bool) -> bool {
        let mut state = self.lock();
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        state.waiting.push_back(ticket);
        let full = |state: &State| state.bytes > 0 && state.bytes + bytes > self.bytes_max;
        let waits =
            |state: &mut State| !given_up() && (state.waiting.front() != Some(&ticket) || full(state));
        let mut state = self.changed.wait_while(state, waits).expect(HELD);
        state.waiting.retain(|other| *other != ticket);
        let taken = !given_up();
        if taken {
            state.bytes += bytes;
        }
        drop(state);
        // The next in line may find room too.
        self.changed.notify_all();
        taken
    }

    /// Gives bytes back.
    pub(super) fn leave(&self, bytes: usize) {
        self.lock().bytes -= bytes;
        self.changed.notify_all();
    }

    /// Has everybody who waits look whether that was given up.
    pub(super) fn look_again(&self) {
        // Under the lock, so that it does not fall between somebody's look and wait.
        drop(self.lock());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::Gate;

    fn wait_for_line(gate: &Gate, length: usize) {
        while gate.lock().waiting.len() < length {
            thread::yield_now();
        }
    }

    #[test]
    fn bytes_are_taken_in_turn_and_one_that_is_too_large_passes_alone() {
        let gate = Gate::new(10);
        assert!(gate.enter(6, || false));
        thread::scope(|scope| {
            let large = scope.spawn(|| gate.enter(11, || false));
            wait_for_line(&gate, 1);
            // It would fit, but it came later.
            let small = scope.spawn(|| gate.enter(1, || false));
            wait_for_line(&gate, 2);
            gate.leave(6);
            assert!(large.join().expect("no panic"));
            wait_for_line(&gate, 1);
            gate.leave(11);
            assert!(small.join().expect("no panic"));
        });
        assert_eq!(gate.lock().bytes, 1);
    }

    #[test]
    fn whoever_gives_up_lets_the_next_one_in() {
        let gate = Gate::new(10);
        let gone = AtomicBool::new(false);
        assert!(gate.enter(10, || false));
        thread::scope(|scope| {
            let first = scope.spawn(|| gate.enter(10, || gone.load(Ordering::Relaxed)));
            wait_for_line(&gate, 1);
            let second = scope.spawn(|| gate.enter(5, || false));
            wait_for_line(&gate, 2);
            gone.store(true, Ordering::Relaxed);
            gate.look_again();
            assert!(!first.join().expect("no panic"));
            gate.leave(10);
            assert!(second.join().expect("no panic"));
        });
    }
}
