//! The monotonic clock. There is no other: an enclave takes the time from its security module's documents.

use std::time::Instant;

use keymeld_core::time::Time;

/// Starts with the worker.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Time {
        let mono_ms = u64::try_from(self.start.elapsed().as_millis()).expect("half a billion years");
        Time { unix_ms: 0, mono_ms }
    }
}
