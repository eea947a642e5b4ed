//! What happened, as a hash, as readable lines, and as what was reached.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::rc::Rc;

use super::chance::{HASH_BEGIN, hash};

/// A run's log. It outlives the world, also where that panics.
#[derive(Clone, Debug)]
pub(crate) struct Log(Rc<RefCell<Held>>);

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) steps: u64,
    pub(crate) now_ms: u64,
    pub(crate) hash: u64,
    /// Faults that happened.
    pub(crate) faults: u64,
    faults_max: u64,
    pub(crate) lines: Option<Vec<String>>,
    pub(crate) reached: BTreeSet<&'static str>,
    line: String,
}

impl Log {
    pub(crate) fn new(traced: bool, faults_max: u64) -> Log {
        let held = Held {
            steps: 0,
            now_ms: 0,
            hash: HASH_BEGIN,
            faults: 0,
            faults_max,
            lines: traced.then(Vec::new),
            reached: BTreeSet::new(),
            line: String::new(),
        };
        Log(Rc::new(RefCell::new(held)))
    }

    /// Reads the log.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&mut Held) -> T) -> T {
        read(&mut self.0.borrow_mut())
    }

    /// The next step begins.
    pub(crate) fn step(&self, now_ms: u64) -> u64 {
        let mut held = self.0.borrow_mut();
        held.steps += 1;
        held.now_ms = now_ms;
        held.hash = hash(held.hash, &now_ms.to_be_bytes());
        held.steps
    }

    /// Something happened. What is noted decides the trace's hash.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let held = &mut *self.0.borrow_mut();
        held.line.clear();
        held.line.write_fmt(what).expect("a string takes everything");
        held.hash = hash(held.hash, held.line.as_bytes());
        if let Some(lines) = &mut held.lines {
            lines.push(format!("{:>9.3} {}", held.now_ms as f64 / 1_000.0, held.line));
        }
    }

    /// Something was reached.
    pub(crate) fn reached(&self, what: &'static str) {
        self.0.borrow_mut().reached.insert(what);
    }

    /// Whether one more fault may happen; it is counted then.
    pub(crate) fn fault(&self, what: &'static str) -> bool {
        let mut held = self.0.borrow_mut();
        if held.faults >= held.faults_max {
            return false;
        }
        held.faults += 1;
        held.reached.insert(what);
        drop(held);
        self.note(format_args!("fault: {what}"));
        true
    }
}
