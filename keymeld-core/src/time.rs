//! Time as a parameter.

/// What a driver's clocks say when it hands over an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Milliseconds since 1970. An enclave ignores it: its host could lie.
    pub unix_ms: u64,
    /// Milliseconds on a clock that never runs backwards, with an arbitrary start.
    pub mono_ms: u64,
}

/// When a machine wants to be ticked, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// On the monotonic clock.
    pub mono_ms: u64,
    /// Why.
    pub reason: DeadlineReason,
}

/// Why a machine wants to be ticked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadlineReason {
    /// More to do than one event may yield.
    MoreWork,
    /// A session has to end.
    SessionExpiry,
    /// A client's job has taken as long as it may.
    JobExpiry,
    /// A long poll has waited long enough.
    LongPoll,
    /// A call to an enclave is tried again.
    Retry,
    /// The enclave's own time is to be read from its NSM again.
    EnclaveTime,
}
