//! The public listener: a small blocking HTTP/1.1 server over std and httparse.
//!
//! One small-stack thread per connection reads requests and hands each to the service with a
//! [`Responder`], which any thread may use to answer. A long poll is parked with [`Responder::park`]: its
//! thread ends and its stream waits in a bounded table; the answer starts a thread that writes it and goes
//! on reading. TLS is its own work ([`Tls`], with rustls) or that of a proxy in front.
//!
//! **Invariant:** no peer can make it allocate more than it has sent, hold answers or a thread beyond a limit of
//! [`ServerLimits`], or end the accepting thread.

mod connection;
mod exchange;
pub mod head;
mod limits;
mod refusal;
mod stream;
mod table;
mod tls;

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keymeld_core::api::http::Request;

use connection::{Connection, SMALL_BYTES, Stop};
use exchange::{Answer, Exchange, Outcome};
use table::{ParkedPlace, Phase, Seat, Table};

pub use exchange::Responder;
pub use limits::ServerLimits;
pub use refusal::Refusal;
pub use tls::{PEM_BYTES_MAX, Tls, TlsError};

/// What answers requests. Runs on the connection's thread, whose stack is [`STACK_BYTES`]: it parses,
/// enqueues and returns.
pub type Service = Arc<dyn Fn(Request, Responder) + Send + Sync>;

/// The stack of a connection's thread, in bytes. Only touched pages take memory.
pub const STACK_BYTES: usize = 256 * 1024;

/// How long the accepting thread waits for a descriptor to come free before it tries again.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);

/// A listener with its threads. Dropping it is [`shutdown`](Server::shutdown) with no time to drain.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// The listening socket once more, to wake the accepting thread.
    waker: TcpStream,
    threads: Option<[JoinHandle<()>; 2]>,
}

pub(crate) struct Shared {
    limits: ServerLimits,
    /// Where it speaks TLS, and nothing else.
    tls: Option<Arc<Tls>>,
    service: Service,
    table: Arc<Table>,
    resumed: Sender<Resumed>,
}

/// A message to the thread that brings parked connections back.
enum Resumed {
    Connection(Box<Connection>, Answer, Option<ParkedPlace>),
    Stop,
}

impl Server {
    /// Serves a bound listener until [`shutdown`](Self::shutdown), over TLS where there is a certificate.
    ///
    /// # Errors
    /// What the operating system says to a second descriptor or a first thread.
    pub fn start(
        listener: TcpListener,
        limits: ServerLimits,
        tls: Option<Arc<Tls>>,
        service: Service,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        // The inherited flag would make accepting a busy loop.
        listener.set_nonblocking(false)?;
        let waker = TcpStream::from(OwnedFd::from(listener.try_clone()?));
        let (resumed, parked) = mpsc::channel();
        let shared = Arc::new(Shared { limits, tls, service, table: Arc::default(), resumed });
        let resume = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("http-resume".into()).spawn(move || resume(&shared, &parked))?
        };
        let accept = {
            let shared = Arc::clone(&shared);
            let accepting = move || accept(&shared, &listener);
            thread::Builder::new().name("http-accept".into()).spawn(accepting)
        };
        let accept = accept.inspect_err(|_| shared.stop_resuming())?;
        Ok(Server { shared, address, waker, threads: Some([accept, resume]) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Parked requests and connections that have a thread, for metrics.
    pub fn counts(&self) -> (usize, usize) {
        self.shared.table.counts()
    }

    /// Stops accepting, closes idle connections, lets requests under way and parked ones be answered within
    /// `drain`, then closes what is left and joins the threads.
    pub fn shutdown(mut self, drain: Duration) {
        self.close(drain);
    }

    fn close(&mut self, drain: Duration) {
        let Some([accept, resume]) = self.threads.take() else {
            return;
        };
        let table = &self.shared.table;
        table.begin_closing();
        // Linux and the BSDs end a blocked accept when its listening socket is shut down.
        let _ = self.waker.shutdown(Shutdown::Both);
        let accepted = accept.join();
        if !table.wait_drained(drain) {
            tracing::info!("closing connections that did not drain");
        }
        table.cut();
        self.shared.stop_resuming();
        let resumed = resume.join();
        // A connection that was being brought back just now.
        table.cut();
        table.wait_threads();
        if accepted.is_err() || resumed.is_err() {
            tracing::error!("a thread of the listener had panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Shared {
    /// Brings a parked connection back to write its answer. Never blocks.
    fn resume(&self, connection: Box<Connection>, answer: Answer, place: Option<ParkedPlace>) {
        // After the listener's end the connection is dropped, which closes it.
        let _ = self.resumed.send(Resumed::Connection(connection, answer, place));
    }

    fn stop_resuming(&self) {
        let _ = self.resumed.send(Resumed::Stop);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    // Given up where descriptors stay exhausted, so that the next peer can be accepted and closed instead
    // of being left in the backlog.
    let mut reserve = listener.try_clone().ok();
    let mut failed_before = false;
    while !shared.table.is_closing() {
        match listener.accept() {
            Ok((stream, _)) => {
                failed_before = false;
                admit(shared, Arc::new(stream));
            }
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(_) if shared.table.is_closing() => return,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                shared.table.free_a_descriptor(EXHAUSTED_WAIT);
                if failed_before && reserve.take().is_some() {
                    refuse_one(listener);
                }
                if reserve.is_none() {
                    reserve = listener.try_clone().ok();
                }
                failed_before = true;
            }
        }
    }
}

/// Accepts a peer and closes it at once, if there is one.
fn refuse_one(listener: &TcpListener) {
    if listener.set_nonblocking(true).is_ok() {
        drop(listener.accept());
    }
    // Were this to fail, the loop would still wait after each refused accept.
    let _ = listener.set_nonblocking(false);
}

fn admit(shared: &Arc<Shared>, stream: Arc<TcpStream>) {
    let Ok(peer) = stream.peer_addr() else {
        // Gone already.
        return;
    };
    let Some(seat) = shared.table.admit(&stream, peer.ip(), shared.limits.connections_max) else {
        if shared.tls.is_some() {
            return;
        }
        // As much as goes out at once: the accepting thread waits for nobody.
        let busy = connection::response_bytes(&Refusal::TooManyConnections.response(), true);
        if stream.set_nonblocking(true).is_ok() {
            let _ = (&*stream).write(&busy);
        }
        return;
    };
    if let Ok(connection) = Connection::new(stream, peer.ip()) {
        spawn(shared, seat, Box::new(connection), None);
    }
}

fn resume(shared: &Arc<Shared>, parked: &Receiver<Resumed>) {
    while let Ok(resumed) = parked.recv() {
        match resumed {
            Resumed::Connection(mut connection, answer, place) => {
                let max = shared.limits.connections_max;
                let (socket, peer) = (&connection.stream.socket, connection.peer);
                let Some(seat) = shared.table.admit_answered(socket, peer, max) else {
                    // The listener's end waits for this thread too.
                    drop(place);
                    connection.write_at_once(&answer.response);
                    continue;
                };
                // Not before it has a seat, because the listener's end waits for both; not after the answer,
                // because its peer may park again at once.
                drop(place);
                spawn(shared, seat, connection, Some(answer));
            }
            Resumed::Stop => return,
        }
    }
}

fn spawn(shared: &Arc<Shared>, seat: Seat, connection: Box<Connection>, answer: Option<Answer>) {
    let shared = Arc::clone(shared);
    let run = move || converse(&shared, &seat, connection, answer);
    if let Err(error) = thread::Builder::new().name("http".into()).stack_size(STACK_BYTES).spawn(run) {
        // The closure is dropped, and with it the connection.
        tracing::warn!(%error, "cannot start a thread for a connection");
    }
}

/// A connection's thread: requests in their order until one side closes or a request is parked.
fn converse(shared: &Arc<Shared>, seat: &Seat, mut connection: Box<Connection>, answer: Option<Answer>) {
    let mut answer = answer;
    if let (Some(tls), None) = (&shared.tls, &answer) {
        match begin_tls(shared, seat, &mut connection, tls) {
            Ok(()) => {}
            Err(Stop::Gone) => return,
            Err(Stop::Refused(refusal)) => answer = Some(refusal.into()),
        }
    }
    loop {
        if let Some(mut answer) = answer {
            if !seat.enter(Phase::Writing) {
                return;
            }
            let held = answer.response.body.len().saturating_sub(SMALL_BYTES);
            if held > 0 && !seat.hold(held, shared.limits.held_bytes_max) {
                answer = Refusal::TooManyBytes.into();
            }
            let close = answer.close || connection.close || shared.table.is_closing();
            if connection.write_response(&answer.response, close, &shared.limits).is_err() {
                return;
            }
            if close {
                // Its peer has all it will get, so this one can make way. While draining it cannot.
                seat.enter(Phase::Idle);
                connection.linger(&shared.limits);
                return;
            }
        }
        if !seat.enter(Phase::Idle) || connection.await_request(&shared.limits).is_err() {
            return;
        }
        if !seat.enter(Phase::Reading) {
            return;
        }
        let request = match connection.read_request(seat, &shared.limits) {
            Ok(request) => request,
            Err(Stop::Gone) => return,
            Err(Stop::Refused(refusal)) => {
                tracing::debug!(connection = seat.id(), code = refusal.code(), "refused");
                answer = Some(refusal.into());
                continue;
            }
        };
        let exchange = Arc::new(Exchange::new());
        if !seat.enter_exchange(&exchange) {
            return;
        }
        (shared.service)(request, Responder::new(Arc::clone(shared), Arc::clone(&exchange), connection.peer));
        match exchange.wait(connection, Duration::from_millis(shared.limits.answer_ms)) {
            Outcome::Answered(same, taken) => {
                connection = same;
                answer = Some(taken);
            }
            Outcome::Parked | Outcome::Abandoned => return,
        }
    }
}

/// Secures a new connection.
fn begin_tls(shared: &Shared, seat: &Seat, connection: &mut Connection, tls: &Tls) -> Result<(), Stop> {
    connection.await_handshake(&shared.limits)?;
    if !seat.enter(Phase::Reading) {
        return Err(Stop::Gone);
    }
    connection.shake_hands(tls, &shared.limits)
}
