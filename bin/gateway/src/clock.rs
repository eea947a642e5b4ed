//! The clocks that the machine never reads itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keymeld_core::time::Time;

/// A monotonic clock that starts with the process, and the system's.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Time {
        // A clock before 1970 makes every proof stale, which is a refusal like any other.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = |millis: u128| u64::try_from(millis).expect("half a billion years");
        Time { unix_ms: millis(unix.as_millis()), mono_ms: millis(self.start.elapsed().as_millis()) }
    }
}
