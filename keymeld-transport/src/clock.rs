//! The clocks that no machine reads itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keymeld_core::time::Time;

/// A monotonic clock that starts with it, and the system's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    off_by_ms: i64,
}

impl Clock {
    /// Starts the monotonic clock at 0.
    #[expect(clippy::new_without_default, reason = "two clocks of one process differ: none is the default")]
    pub fn new() -> Clock {
        Clock::off_by(0)
    }

    /// The same, with so many milliseconds more than the system's, for a host whose clock is wrong.
    pub fn off_by(off_by_ms: i64) -> Clock {
        Clock { start: Instant::now(), off_by_ms }
    }

    /// What both say.
    ///
    /// # Panics
    /// In half a billion years.
    pub fn now(&self) -> Time {
        // A clock before 1970 makes every proof stale, which is a refusal like any other.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = |millis: u128| u64::try_from(millis).expect("half a billion years");
        let unix_ms = millis(unix.as_millis()).saturating_add_signed(self.off_by_ms);
        Time { unix_ms, mono_ms: millis(self.start.elapsed().as_millis()) }
    }
}
