//! The gateway's connections to one enclave.

mod body;
mod lane;
mod state;

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keymeld_core::link::frame::{Frame, Kind};

use super::address::Address;
pub use body::Body;
use state::State;

/// The stack of a link's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

const HELD: &str = "no thread panics while holding it";

/// The bounds of a [`Pool`].
///
/// Whatever the enclave does, its memory stays below [`queued_bytes_max`](Self::queued_bytes_max),
/// [`replies_bytes_max`](Self::replies_bytes_max), and for each connection four times
/// [`FRAME_BYTES_MAX`](keymeld_core::link::frame::FRAME_BYTES_MAX): one frame that is written, one that arrives, and
/// what an allocator keeps back of earlier ones (glibc's twice the largest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Connections that the pool holds open.
    pub connections: usize,
    /// Requests in flight on one connection. Not over half of the enclave's
    /// [`in_flight_max`](super::server::ServeLimits::in_flight_max), so that the enclave never stops
    /// reading and pings are always answered.
    pub in_flight_per_connection_max: usize,
    /// Bytes of all frames that wait to be written.
    pub queued_bytes_max: usize,
    /// Bytes of replies that were told and not taken yet ([`Body`]). At the cap nothing is read.
    pub replies_bytes_max: usize,
    /// Milliseconds until a request without a reply has failed.
    pub request_ms: u64,
    /// Milliseconds to connect, a multiplexer's handshake included.
    pub connect_ms: u64,
    /// Milliseconds of silence after which a connection is pinged.
    pub ping_interval_ms: u64,
    /// Milliseconds of silence after a ping until the connection counts as dead.
    pub ping_timeout_ms: u64,
    /// Milliseconds before the second attempt to connect; doubled with every further one.
    pub backoff_min_ms: u64,
    /// The most milliseconds between two attempts.
    pub backoff_max_ms: u64,
}

impl PoolOptions {
    /// Default of [`connections`](Self::connections).
    pub const CONNECTIONS: usize = 2;
    /// Default of [`in_flight_per_connection_max`](Self::in_flight_per_connection_max).
    pub const IN_FLIGHT_PER_CONNECTION_MAX: usize = 512;
    /// Default of [`queued_bytes_max`](Self::queued_bytes_max).
    pub const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
    /// Default of [`replies_bytes_max`](Self::replies_bytes_max).
    pub const REPLIES_BYTES_MAX: usize = 64 * 1024 * 1024;
    /// Default of [`request_ms`](Self::request_ms).
    pub const REQUEST_MS: u64 = 30_000;
    /// Default of [`connect_ms`](Self::connect_ms).
    pub const CONNECT_MS: u64 = 2_000;
    /// Default of [`ping_interval_ms`](Self::ping_interval_ms).
    pub const PING_INTERVAL_MS: u64 = 2_000;
    /// Default of [`ping_timeout_ms`](Self::ping_timeout_ms).
    pub const PING_TIMEOUT_MS: u64 = 5_000;
    /// Default of [`backoff_min_ms`](Self::backoff_min_ms).
    pub const BACKOFF_MIN_MS: u64 = 50;
    /// Default of [`backoff_max_ms`](Self::backoff_max_ms).
    pub const BACKOFF_MAX_MS: u64 = 1_000;
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            connections: Self::CONNECTIONS,
            in_flight_per_connection_max: Self::IN_FLIGHT_PER_CONNECTION_MAX,
            queued_bytes_max: Self::QUEUED_BYTES_MAX,
            replies_bytes_max: Self::REPLIES_BYTES_MAX,
            request_ms: Self::REQUEST_MS,
            connect_ms: Self::CONNECT_MS,
            ping_interval_ms: Self::PING_INTERVAL_MS,
            ping_timeout_ms: Self::PING_TIMEOUT_MS,
            backoff_min_ms: Self::BACKOFF_MIN_MS,
            backoff_max_ms: Self::BACKOFF_MAX_MS,
        }
    }
}

/// What happened on the link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The first connection came up.
    Up,
    /// A connection went down, and all others were closed with it: between this and the one before, the
    /// link was to one and the same process. All that was in flight has failed before.
    Down,
    /// The enclave replied.
    Replied {
        /// Which request.
        request_id: u64,
        /// The reply's message.
        body: Body,
    },
    /// There will be no reply. The enclave may have received the request in every case but
    /// [`NotConnected`](FailReason::NotConnected), [`Full`](FailReason::Full) and
    /// [`TooLarge`](FailReason::TooLarge).
    Failed {
        /// Which request.
        request_id: u64,
        /// Why.
        reason: FailReason,
    },
}

/// Why a request has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailReason {
    /// No connection is up.
    NotConnected,
    /// Too many requests in flight, or bytes waiting.
    Full,
    /// The body does not fit in a frame.
    TooLarge,
    /// The connection was closed or broke.
    ConnectionLost,
    /// The connection was silent for too long and was closed.
    PeerSilent,
    /// The enclave's side broke the format, or replied to what was not asked; the connection was closed.
    PeerMisbehaved,
    /// No reply in time; the connection goes on.
    TimedOut,
    /// The pool was shut down.
    ShutDown,
}

/// Takes events: in their order, one at a time, on the pool's threads or, for what an immediate failure
/// leaves to tell, on the thread that called [`Pool::send`]. It must neither block nor panic; it may call
/// [`Pool::send`].
pub type Events = Arc<dyn Fn(LinkEvent) + Send + Sync>;

/// The connections to one enclave. Dropping it shuts it down.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    address: Address,
    options: PoolOptions,
    events: Events,
    state: Mutex<State>,
    /// Wakes the thread of deadlines and pings.
    clock: Condvar,
    /// Wakes the thread that writes to each lane.
    writable: Vec<Condvar>,
    /// Wakes whoever waits before connecting again.
    closing: Condvar,
    /// Wakes the readers when replies were taken.
    taken: Condvar,
}

impl Pool {
    /// Starts to connect, and to connect again whenever a connection ends.
    ///
    /// # Errors
    /// What the operating system says to the pool's threads: one, and one per connection; each connection
    /// that is up has another.
    pub fn start(address: Address, options: PoolOptions, events: Events) -> io::Result<Pool> {
        let lanes = options.connections.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(lanes)),
            clock: Condvar::new(),
            writable: (0..lanes).map(|_| Condvar::new()).collect(),
            closing: Condvar::new(),
            taken: Condvar::new(),
            address,
            options,
            events,
        });
        let mut pool = Pool { shared: Arc::clone(&shared), threads: Vec::new() };
        for lane in 0..lanes {
            let shared = Arc::clone(&shared);
            pool.threads.push(spawn("link-lane", move || lane::run(&shared, lane))?);
        }
        pool.threads.push(spawn("link-clock", move || shared.keep_time())?);
        Ok(pool)
    }

    /// Sends a request on the least busy connection. Never blocks. Exactly one
    /// [`Replied`](LinkEvent::Replied) or [`Failed`](LinkEvent::Failed) follows, possibly before it
    /// returns.
    ///
    /// # Panics
    /// Where the request id is in flight already: ids are the caller's and are not used twice.
    pub fn send(&self, request_id: u64, routing_id: [u8; 16], body: Vec<u8>) {
        let frame = Frame { kind: Kind::Request, request_id, routing_id, body }.encode();
        let mut state = self.shared.lock();
        if state.knows(request_id) {
            // The others' lock is not to be poisoned by it.
            drop(state);
            panic!("request id {request_id} is in flight already");
        }
        match frame {
            Ok(bytes) => match state.queue(request_id, routing_id, bytes, &self.shared.options) {
                Ok(queued) => {
                    drop(state);
                    self.shared.writable[queued.lane].notify_one();
                    if queued.earlier_deadline {
                        self.shared.clock.notify_one();
                    }
                    return;
                }
                Err(reason) => state.fail(request_id, reason),
            },
            Err(_) => state.fail(request_id, FailReason::TooLarge),
        }
        drop(state);
        self.shared.deliver();
    }

    /// Closes the connections, fails what is in flight and joins the threads, which takes no longer than
    /// an attempt to connect. Not to be called from an event.
    pub fn shutdown(mut self) {
        self.close();
    }

    fn close(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        for lane in 0..self.shared.writable.len() {
            state.sever(lane, FailReason::ShutDown);
        }
        drop(state);
        self.shared.wake_all();
        self.shared.deliver();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the link had panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(HELD)
    }

    fn wake_all(&self) {
        self.clock.notify_all();
        self.closing.notify_all();
        self.taken.notify_all();
        for writable in &self.writable {
            writable.notify_all();
        }
    }

    /// Hands on what has happened. Events are put in order under the lock; one thread at a time hands them
    /// on, so that no two can overtake each other.
    fn deliver(&self) {
        let mut state = self.lock();
        if state.delivering {
            return;
        }
        state.delivering = true;
        while !state.outbox.is_empty() {
            let events = std::mem::take(&mut state.outbox);
            drop(state);
            for event in events {
                (self.events)(event);
            }
            state = self.lock();
        }
        state.delivering = false;
    }

    /// Ends all connections because of one, whoever noticed first.
    fn sever(&self, lane: usize, reason: FailReason) {
        let severed = self.lock().sever(lane, reason);
        if severed {
            tracing::info!(enclave = %self.address, lane, ?reason, "connection ended");
            for writable in &self.writable {
                writable.notify_all();
            }
            self.taken.notify_all();
            self.deliver();
        }
    }

    /// Takes a frame from the enclave, after replies that were told before it were taken.
    fn receive(self: &Arc<Self>, lane: usize, frame: Frame) -> Result<(), FailReason> {
        let mut state = self.lock();
        let bytes_max = self.options.replies_bytes_max;
        while state.is_full_for(lane, &frame, bytes_max) {
            state.pause(lane);
            state = self.taken.wait(state).expect(HELD);
        }
        state.receive(lane, frame, Arc::downgrade(self))
    }

    /// A reply is no longer held.
    fn took(&self, bytes: usize) {
        self.lock().replies_bytes -= bytes;
        self.taken.notify_all();
    }

    /// The thread of deadlines and pings: it sleeps until the earliest of them.
    fn keep_time(&self) {
        loop {
            let mut state = self.lock();
            if state.closing {
                return;
            }
            let tick = state.advance(Instant::now(), &self.options);
            if tick.lanes.is_empty() && !tick.failed {
                state.clock_wakes = tick.wake;
                drop(match tick.wake {
                    None => self.clock.wait(state).expect(HELD),
                    Some(wake) => {
                        let left = wake.saturating_duration_since(Instant::now());
                        self.clock.wait_timeout(state, left).expect(HELD).0
                    }
                });
                continue;
            }
            drop(state);
            for lane in tick.lanes {
                self.writable[lane].notify_all();
            }
            self.taken.notify_all();
            self.deliver();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
