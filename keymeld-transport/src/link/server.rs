//! The enclave's side of the link.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keymeld_core::link::frame::{Frame, Kind};

use super::address::Address;
use super::gate::Gate;
use super::stream::{Acceptor, Stream, Waker};
use super::wire::{FrameReader, ReadError, take_batch, write_within};

/// The stack of a connection's threads, in bytes.
const STACK_BYTES: usize = 512 * 1024;
/// How long the accepting thread waits for a descriptor to come free before it tries again.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);
/// What a request takes besides its body.
const REQUEST_BYTES: usize = 1024;
const HELD: &str = "no thread panics while holding it";

/// The bounds of a [`LinkServer`].
///
/// Whatever peers do, its memory stays below [`requests_bytes_max`](Self::requests_bytes_max), and for each
/// connection [`queued_bytes_max`](Self::queued_bytes_max) and three times
/// [`FRAME_BYTES_MAX`](keymeld_core::link::frame::FRAME_BYTES_MAX): one frame that arrives, and what
/// an allocator keeps back of earlier ones (glibc's twice the largest). It has at most four threads for each
/// connection, two of them about to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Connections. At the cap one is closed for a new one, which takes its whole pool down: not fewer than all
    /// gateways' pools have together. Those that never sent a frame go first, then the one that was silent
    /// longest.
    pub connections_max: usize,
    /// Requests and pings of one connection that are not answered yet. At the cap nothing more is read
    /// from it.
    pub in_flight_max: usize,
    /// Bytes of requests, of all connections together, that are not answered yet; each counts for 1 KiB more than
    /// it has. At the cap connections are read in turn, a frame of each. Requests of connections that are closed
    /// count until whoever serves has dropped them.
    pub requests_bytes_max: usize,
    /// Bytes of replies that wait for one connection. A peer that lets them grow beyond is closed.
    pub queued_bytes_max: usize,
    /// Milliseconds of silence after which a connection is closed. Peers ping more often.
    pub idle_ms: u64,
    /// Milliseconds from a frame's first byte to its last.
    pub frame_ms: u64,
    /// Milliseconds for a peer to accept what is written at once.
    pub write_ms: u64,
}

impl ServeLimits {
    /// Default of [`connections_max`](Self::connections_max).
    pub const CONNECTIONS_MAX: usize = 16;
    /// Default of [`in_flight_max`](Self::in_flight_max).
    pub const IN_FLIGHT_MAX: usize = 1024;
    /// Default of [`requests_bytes_max`](Self::requests_bytes_max).
    pub const REQUESTS_BYTES_MAX: usize = 128 * 1024 * 1024;
    /// Default of [`queued_bytes_max`](Self::queued_bytes_max): two of the largest replies more than one that is
    /// being written.
    pub const QUEUED_BYTES_MAX: usize = 24 * 1024 * 1024;
    /// Default of [`idle_ms`](Self::idle_ms).
    pub const IDLE_MS: u64 = 60_000;
    /// Default of [`frame_ms`](Self::frame_ms).
    pub const FRAME_MS: u64 = 10_000;
    /// Default of [`write_ms`](Self::write_ms).
    pub const WRITE_MS: u64 = 10_000;
}

impl Default for ServeLimits {
    fn default() -> Self {
        ServeLimits {
            connections_max: Self::CONNECTIONS_MAX,
            in_flight_max: Self::IN_FLIGHT_MAX,
            requests_bytes_max: Self::REQUESTS_BYTES_MAX,
            queued_bytes_max: Self::QUEUED_BYTES_MAX,
            idle_ms: Self::IDLE_MS,
            frame_ms: Self::FRAME_MS,
            write_ms: Self::WRITE_MS,
        }
    }
}

/// What answers requests: frames of [`Kind::Request`] only. Runs on the connection's reading thread; it
/// enqueues and returns.
pub type Service = Arc<dyn Fn(Frame, ReplyHandle) + Send + Sync>;

/// A bound address that nobody serves yet.
#[derive(Debug)]
pub struct Listener {
    acceptor: Acceptor,
    address: Address,
}

impl Listener {
    /// Binds. A Unix socket's file that a killed process left behind is replaced.
    ///
    /// # Errors
    /// What the operating system says; [`Unsupported`](ErrorKind::Unsupported) for vsock without its
    /// feature.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        let (acceptor, address) = Acceptor::bind(address)?;
        Ok(Listener { acceptor, address })
    }

    /// Where it listens, with the TCP port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// Serves a listener until [`LinkServer::shutdown`].
///
/// # Errors
/// What the operating system says to a second descriptor or a first thread.
pub fn serve(listener: Listener, limits: ServeLimits, service: Service) -> io::Result<LinkServer> {
    let Listener { acceptor, address } = listener;
    let waker = acceptor.waker()?;
    let shared = Arc::new(Shared {
        gate: Arc::new(Gate::new(limits.requests_bytes_max)),
        limits,
        service,
        peers: Mutex::new(Peers::default()),
        ended: Condvar::new(),
    });
    let accepting = Arc::clone(&shared);
    let accept = spawn("link-accept", move || accept(&accepting, &acceptor))?;
    Ok(LinkServer { shared, address, waker, accept: Some(accept) })
}

/// A listener with its threads. Dropping it shuts it down.
pub struct LinkServer {
    shared: Arc<Shared>,
    address: Address,
    waker: Option<Waker>,
    accept: Option<JoinHandle<()>>,
}

impl LinkServer {
    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes no new connection and waits until every request that came has its reply written, at most for
    /// `timeout`, and says whether that was so. [`shutdown`](Self::shutdown) is to follow.
    pub fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut peers = self.shared.lock();
        peers.draining = true;
        let open: Vec<Arc<Peer>> = peers.by_id.values().cloned().collect();
        drop(peers);
        open.iter().all(|peer| peer.wait_answered(deadline))
    }

    /// Closes the listener and every connection, and joins the threads. A vsock listener's thread stays
    /// in its accept, refuses the next peer and ends then.
    pub fn shutdown(mut self) {
        self.close();
    }

    fn close(&mut self) {
        let Some(accept) = self.accept.take() else {
            return;
        };
        let mut peers = self.shared.lock();
        peers.closing = true;
        for peer in peers.by_id.values() {
            peer.close();
        }
        drop(peers);
        self.shared.ended.notify_all();
        if let Some(waker) = &self.waker {
            waker.wake();
            if accept.join().is_err() {
                tracing::error!("the accepting thread had panicked");
            }
        }
        drop(self.shared.ended.wait_while(self.shared.lock(), |peers| peers.threads > 0).expect(HELD));
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for LinkServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkServer").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Shared {
    gate: Arc<Gate>,
    limits: ServeLimits,
    service: Service,
    peers: Mutex<Peers>,
    ended: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().expect(HELD)
    }
}

#[derive(Default)]
struct Peers {
    /// New connections are turned away.
    draining: bool,
    closing: bool,
    next_id: u64,
    threads: usize,
    by_id: BTreeMap<u64, Arc<Peer>>,
}

impl Peers {
    /// Closes the connection that was silent longest, of those that never said anything if there are any.
    fn evict(&mut self) {
        let silence = |peer: &Peer| {
            let state = peer.lock();
            (state.spoke, state.heard)
        };
        let silent = self.by_id.iter().min_by_key(|(_, peer)| silence(peer)).map(|(id, _)| *id);
        if let Some(peer) = silent.and_then(|id| self.by_id.remove(&id)) {
            peer.close();
        }
    }
}

/// One connection. Its lock is taken after that of all peers and that of the gate, never before.
struct Peer {
    id: u64,
    gate: Arc<Gate>,
    stream: Arc<Stream>,
    queued_bytes_max: usize,
    state: Mutex<PeerState>,
    /// Wakes the reader at the cap of requests in flight, and whoever waits for the last of them.
    room: Condvar,
    /// Wakes the writer.
    writable: Condvar,
}

struct PeerState {
    closed: bool,
    /// Whether it ever sent a frame.
    spoke: bool,
    heard: Instant,
    in_flight: usize,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().expect(HELD)
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        // Whoever still holds a request holds the connection: not what it will never be sent.
        state.queue.clear();
        drop(state);
        self.stream.shutdown();
        self.room.notify_all();
        self.writable.notify_all();
        self.gate.look_again();
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for room for one more request; false where the connection was closed.
    fn enter(&self, max: usize) -> bool {
        let mut state =
            self.room.wait_while(self.lock(), |state| !state.closed && state.in_flight >= max).expect(HELD);
        state.in_flight += 1;
        state.spoke = true;
        state.heard = Instant::now();
        !state.closed
    }

    fn leave(&self, count: usize) {
        self.lock().in_flight -= count;
        self.room.notify_all();
    }

    /// Waits until nothing is in flight; false where the time ran out.
    fn wait_answered(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let busy = |state: &mut PeerState| !state.closed && state.in_flight > 0;
        !self.room.wait_timeout_while(self.lock(), left, busy).expect(HELD).1.timed_out()
    }

    /// Puts an answer on the queue, whose place in flight is given up when it is written.
    fn answer(&self, frame: &Frame) -> Result<(), ReplyError> {
        let bytes = frame.encode().map_err(|_| ReplyError::TooLarge)?;
        let mut state = self.lock();
        if state.closed {
            return Err(ReplyError::Closed);
        }
        state.queued_bytes += bytes.len();
        if state.queued_bytes > self.queued_bytes_max {
            drop(state);
            tracing::warn!(connection = self.id, "closed: it does not read its replies");
            self.close();
            return Err(ReplyError::Closed);
        }
        state.queue.push_back(bytes);
        drop(state);
        self.writable.notify_one();
        Ok(())
    }
}

/// Why a reply was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The body does not fit in a frame. The gateway will see its request time out.
    #[error("the reply does not fit in a frame")]
    TooLarge,
    /// The connection is gone; the gateway knows that its request has failed.
    #[error("the connection is closed")]
    Closed,
}

/// The one way to reply to a request, from any thread and in any order. Dropped unused, the gateway will
/// see its request time out.
#[must_use = "a request without a reply times out"]
pub struct ReplyHandle {
    peer: Arc<Peer>,
    request_id: u64,
    routing_id: [u8; 16],
    /// What the request takes of the gate.
    weight: usize,
    queued: bool,
}

impl ReplyHandle {
    /// Whether nobody is there any more to reply to, so that the request need not be looked at.
    pub fn is_closed(&self) -> bool {
        self.peer.is_closed()
    }

    /// Replies. Never blocks.
    ///
    /// # Errors
    /// [`ReplyError`]; nothing was sent then.
    pub fn send(mut self, body: Vec<u8>) -> Result<(), ReplyError> {
        let (request_id, routing_id) = (self.request_id, self.routing_id);
        self.peer.answer(&Frame { kind: Kind::Reply, request_id, routing_id, body })?;
        self.queued = true;
        Ok(())
    }
}

impl Drop for ReplyHandle {
    fn drop(&mut self) {
        if !self.queued {
            self.peer.leave(1);
        }
        self.peer.gate.leave(self.weight);
    }
}

impl fmt::Debug for ReplyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyHandle")
            .field("connection", &self.peer.id)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

fn accept(shared: &Arc<Shared>, acceptor: &Acceptor) {
    loop {
        let accepted = acceptor.accept();
        if shared.lock().closing {
            return;
        }
        match accepted {
            Ok(stream) => admit(shared, Arc::new(stream)),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                // Most likely descriptors ran out. One comes back when a connection's threads have ended.
                let mut peers = shared.lock();
                let threads = peers.threads;
                if threads > 0 {
                    peers.evict();
                }
                let unchanged = |peers: &mut Peers| !peers.closing && peers.threads >= threads;
                drop(shared.ended.wait_timeout_while(peers, EXHAUSTED_WAIT, unchanged).expect(HELD));
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, stream: Arc<Stream>) {
    let mut peers = shared.lock();
    // Whoever closes everything has been through the list already.
    if peers.draining || peers.closing {
        return;
    }
    let connections_max = shared.limits.connections_max.max(1);
    while peers.by_id.len() >= connections_max {
        peers.evict();
    }
    // Connections that are made faster than the threads of closed ones end have to wait for them.
    let crowded = |peers: &mut Peers| !peers.closing && peers.threads > 4 * connections_max - 2;
    peers = shared.ended.wait_while(peers, crowded).expect(HELD);
    if peers.draining || peers.closing {
        return;
    }
    peers.next_id += 1;
    let peer = Arc::new(Peer {
        id: peers.next_id,
        gate: Arc::clone(&shared.gate),
        stream,
        queued_bytes_max: shared.limits.queued_bytes_max,
        state: Mutex::new(PeerState {
            closed: false,
            spoke: false,
            heard: Instant::now(),
            in_flight: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
        }),
        room: Condvar::new(),
        writable: Condvar::new(),
    });
    peers.by_id.insert(peer.id, Arc::clone(&peer));
    peers.threads += 2;
    drop(peers);
    let reading = Seat { shared: Arc::clone(shared), peer: Arc::clone(&peer) };
    let writing = Seat { shared: Arc::clone(shared), peer };
    // A thread that cannot be started drops its seat, which closes the connection.
    let started =
        spawn("link-read", move || read(&reading)).and_then(|_| spawn("link-write", move || write(&writing)));
    if let Err(error) = started {
        tracing::warn!(%error, "cannot start a thread for a connection");
    }
}

/// The entry of one of a connection's two threads; the connection ends with the first that ends.
struct Seat {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.peer.close();
        let mut peers = self.shared.lock();
        peers.by_id.remove(&self.peer.id);
        peers.threads -= 1;
        self.shared.ended.notify_all();
    }
}

fn read(seat: &Seat) {
    let (limits, peer) = (&seat.shared.limits, &seat.peer);
    let (idle, whole) = (Duration::from_millis(limits.idle_ms), Duration::from_millis(limits.frame_ms));
    let mut reader = FrameReader::timed(Arc::clone(&peer.stream), idle, whole);
    loop {
        let frame = match reader.read() {
            Ok(frame) => frame,
            Err(ReadError::Malformed(error)) => {
                tracing::warn!(connection = peer.id, %error, "malformed frame");
                return;
            }
            Err(ReadError::Io(error)) => {
                tracing::info!(connection = peer.id, %error, "cannot read");
                return;
            }
            Err(ReadError::Closed) => return,
        };
        match frame.kind {
            Kind::Request => {
                if !peer.enter(limits.in_flight_max) {
                    return;
                }
                let weight = frame.body.len() + REQUEST_BYTES;
                if !peer.gate.enter(weight, || peer.is_closed()) {
                    return;
                }
                let reply = ReplyHandle {
                    peer: Arc::clone(peer),
                    request_id: frame.request_id,
                    routing_id: frame.routing_id,
                    weight,
                    queued: false,
                };
                (seat.shared.service)(frame, reply);
            }
            Kind::Ping => {
                let pong = Frame { kind: Kind::Pong, ..frame };
                if !peer.enter(limits.in_flight_max) || peer.answer(&pong).is_err() {
                    return;
                }
            }
            Kind::Reply | Kind::Pong => {
                tracing::warn!(connection = peer.id, "unexpected kind of frame");
                return;
            }
        }
    }
}

fn write(seat: &Seat) {
    let peer = &seat.peer;
    let timeout = Duration::from_millis(seat.shared.limits.write_ms);
    let mut state = peer.lock();
    loop {
        if state.closed {
            return;
        }
        let (batch, frames) = take_batch(&mut state.queue);
        if frames == 0 {
            state = peer.writable.wait(state).expect(HELD);
            continue;
        }
        drop(state);
        if let Err(error) = write_within(&peer.stream, &batch, timeout) {
            tracing::info!(connection = peer.id, %error, "cannot write");
            return;
        }
        state = peer.lock();
        state.queued_bytes -= batch.len();
        state.in_flight -= frames;
        peer.room.notify_all();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}
