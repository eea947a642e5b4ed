//! The clocks that no machine reads itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keymeld_core::time::Time;

/// A monotonic clock that starts with it, and the system's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts the monotonic clock at 0.
    #[expect(clippy::new_without_default, reason = "two clocks of one process differ: none is the default")]
    pub fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    /// What both say.
    ///
    /// # Panics
    /// In half a billion years.
    pub fn now(&self) -> Time {
        // A clock before 1970 makes every proof stale, which is a refusal like any other.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = |millis: u128| u64::try_from(millis).expect("half a billion years");
        Time { unix_ms: millis(unix.as_millis()), mono_ms: millis(self.start.elapsed().as_millis()) }
    }
}
