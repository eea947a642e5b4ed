//! What the listener grants to its peers.

/// The bounds of a [`Server`](super::Server).
///
/// Descriptors in use are at most about `connections_max + parked_max`; threads at most twice `connections_max`,
/// half of them about to end. Bytes of requests and answers are at most `held_bytes_max` and, for each connection,
/// a head and 64 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Bytes of a request line and headers together, with their last empty line.
    pub header_bytes_max: usize,
    /// How many headers a request may have.
    pub headers_max: usize,
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// Bytes of large requests and answers, beyond the first 64 KiB of each, that all connections hold together
    /// until they are answered and written. Where there are more, the slowest make way.
    pub held_bytes_max: usize,
    /// Connections with a thread. At the cap one is closed for a new one: of the address that has most of
    /// them, the longest-idle one.
    pub connections_max: usize,
    /// Milliseconds from the first byte of a request to its last.
    pub request_time_ms: u64,
    /// Milliseconds that a connection may stay open between two requests.
    pub idle_ms: u64,
    /// Milliseconds that the service may take to answer or to park.
    pub answer_ms: u64,
    /// Milliseconds that a peer may take to accept a response.
    pub write_time_ms: u64,
    /// Milliseconds that a closing connection waits for its peer to close too, so that the response is
    /// not lost to a reset.
    pub linger_ms: u64,
    /// Parked requests together.
    pub parked_max: usize,
    /// Parked requests of one peer address, or one IPv6 network of 64 bits. Where a proxy stands in front, all peers have its address.
    pub parked_per_address_max: usize,
}

impl ServerLimits {
    /// Default of [`header_bytes_max`](Self::header_bytes_max).
    pub const HEADER_BYTES_MAX: usize = 16 * 1024;
    /// Default of [`headers_max`](Self::headers_max).
    pub const HEADERS_MAX: usize = 64;
    /// Default of [`body_bytes_max`](Self::body_bytes_max).
    pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
    /// Default of [`held_bytes_max`](Self::held_bytes_max).
    pub const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
    /// Default of [`connections_max`](Self::connections_max).
    pub const CONNECTIONS_MAX: usize = 512;
    /// Default of [`request_time_ms`](Self::request_time_ms).
    pub const REQUEST_TIME_MS: u64 = 10_000;
    /// Default of [`idle_ms`](Self::idle_ms).
    pub const IDLE_MS: u64 = 30_000;
    /// Default of [`answer_ms`](Self::answer_ms).
    pub const ANSWER_MS: u64 = 60_000;
    /// Default of [`write_time_ms`](Self::write_time_ms).
    pub const WRITE_TIME_MS: u64 = 10_000;
    /// Default of [`linger_ms`](Self::linger_ms).
    pub const LINGER_MS: u64 = 500;
    /// Default of [`parked_max`](Self::parked_max).
    pub const PARKED_MAX: usize = 4096;
    /// Default of [`parked_per_address_max`](Self::parked_per_address_max).
    pub const PARKED_PER_ADDRESS_MAX: usize = 1024;
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            header_bytes_max: Self::HEADER_BYTES_MAX,
            headers_max: Self::HEADERS_MAX,
            body_bytes_max: Self::BODY_BYTES_MAX,
            held_bytes_max: Self::HELD_BYTES_MAX,
            connections_max: Self::CONNECTIONS_MAX,
            request_time_ms: Self::REQUEST_TIME_MS,
            idle_ms: Self::IDLE_MS,
            answer_ms: Self::ANSWER_MS,
            write_time_ms: Self::WRITE_TIME_MS,
            linger_ms: Self::LINGER_MS,
            parked_max: Self::PARKED_MAX,
            parked_per_address_max: Self::PARKED_PER_ADDRESS_MAX,
        }
    }
}
