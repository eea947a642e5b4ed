//! The gateway's side of the link against scripted peers, and against the enclave's side.
#![allow(clippy::unwrap_used, reason = "clippy knows test functions only, not what they share")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, HEADER_BYTES, Kind};
use keymeld_transport::link::address::Address;
use keymeld_transport::link::pool::{FailReason, LinkEvent, Pool, PoolOptions};
use keymeld_transport::link::server::{Listener, ReplyHandle, ServeLimits, serve};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUTE: [u8; 16] = [7; 16];

fn start(address: Address, options: PoolOptions) -> (Pool, Receiver<LinkEvent>) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    // The test may have ended before the pool does.
    let events = Arc::new(move |event| drop(sender.lock().unwrap().send(event)));
    (Pool::start(address, options, events).unwrap(), receiver)
}

fn next(events: &Receiver<LinkEvent>) -> LinkEvent {
    events.recv_timeout(PATIENCE).unwrap()
}

fn one_connection() -> PoolOptions {
    PoolOptions { connections: 1, backoff_min_ms: 5, backoff_max_ms: 20, ..PoolOptions::default() }
}

fn failed(request_id: u64, reason: FailReason) -> LinkEvent {
    LinkEvent::Failed { request_id, reason }
}

/// A listener that the test plays the enclave on, frame by frame.
struct Peer(TcpListener);

impl Peer {
    fn new() -> (Peer, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
        (Peer(listener), address)
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read_frame(&stream).kind, Kind::Ping, "the greeting");
        stream
    }
}

fn read_frame(mut stream: impl Read) -> Frame {
    let mut field = [0; 4];
    stream.read_exact(&mut field).unwrap();
    let mut bytes = vec![0; Frame::length(field).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    Frame::decode(bytes).unwrap()
}

fn reply_to(request: &Frame) -> Vec<u8> {
    Frame { kind: Kind::Reply, ..request.clone() }.encode().unwrap()
}

/// An enclave that replies with the same body.
fn echo(address: &Address) -> keymeld_transport::link::server::LinkServer {
    let service = |frame: Frame, reply: ReplyHandle| reply.send(frame.body).unwrap();
    serve(Listener::bind(address).unwrap(), ServeLimits::default(), Arc::new(service)).unwrap()
}

#[test]
fn many_requests_are_in_flight_and_replies_come_in_any_order() {
    let (peer, address) = Peer::new();
    let (pool, events) = start(address, one_connection());
    let mut stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    for request_id in 0..100 {
        pool.send(request_id, ROUTE, request_id.to_be_bytes().to_vec());
    }
    let requests: Vec<Frame> = (0..100).map(|_| read_frame(&stream)).collect();
    assert!(requests.iter().zip(0..).all(|(frame, id)| frame.request_id == id && frame.routing_id == ROUTE));
    let replies: Vec<u8> = requests.iter().rev().flat_map(reply_to).collect();
    stream.write_all(&replies).unwrap();
    for request_id in (0..100_u64).rev() {
        let body = request_id.to_be_bytes().to_vec().into();
        assert_eq!(next(&events), LinkEvent::Replied { request_id, body });
    }
}

#[test]
fn connections_share_the_load_with_a_real_enclave() {
    let server = echo(&"tcp:127.0.0.1:0".parse().unwrap());
    let (pool, events) = start(server.address().clone(), PoolOptions::default());
    assert_eq!(next(&events), LinkEvent::Up);
    let mut expected = BTreeSet::new();
    for request_id in 0..400 {
        pool.send(request_id, ROUTE, vec![7; 1000]);
        expected.insert(request_id);
    }
    // And one as large as a frame can be.
    pool.send(400, ROUTE, vec![8; FRAME_BYTES_MAX + 4 - HEADER_BYTES]);
    expected.insert(400);
    while !expected.is_empty() {
        match next(&events) {
            LinkEvent::Replied { request_id, body } => {
                assert!(expected.remove(&request_id));
                assert_eq!(body.as_ref().len() > 1000, request_id == 400);
            }
            event => panic!("{event:?}"),
        }
    }
    pool.shutdown();
    assert_eq!(next(&events), LinkEvent::Down);
    assert!(events.try_recv().is_err());
    server.shutdown();
}

#[test]
fn what_is_pending_fails_at_once_when_the_peer_closes() {
    let (peer, address) = Peer::new();
    let (pool, events) = start(address, one_connection());
    let stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    pool.send(1, ROUTE, vec![1]);
    pool.send(2, ROUTE, vec![2]);
    read_frame(&stream);
    drop((stream, peer));
    assert_eq!(next(&events), failed(1, FailReason::ConnectionLost));
    assert_eq!(next(&events), failed(2, FailReason::ConnectionLost));
    assert_eq!(next(&events), LinkEvent::Down);
    pool.send(3, ROUTE, vec![3]);
    assert_eq!(next(&events), failed(3, FailReason::NotConnected));
}

#[test]
fn with_one_connection_all_go_down_so_that_a_new_process_is_always_announced() {
    let (peer, address) = Peer::new();
    let (pool, events) = start(address, PoolOptions { connections: 2, ..PoolOptions::default() });
    let (first, second) = (peer.accept(), peer.accept());
    assert_eq!(next(&events), LinkEvent::Up);
    // Where the second connection is up later than this, both requests go over the first.
    pool.send(1, ROUTE, vec![1]);
    pool.send(2, ROUTE, vec![2]);
    first.shutdown(Shutdown::Both).unwrap();
    assert_eq!(next(&events), failed(1, FailReason::ConnectionLost));
    assert_eq!(next(&events), failed(2, FailReason::ConnectionLost));
    assert_eq!(next(&events), LinkEvent::Down);
    drop(second);
    peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
}

#[test]
fn a_peer_that_never_answers_is_found_dead_by_its_silence() {
    let (peer, address) = Peer::new();
    let options = PoolOptions { ping_interval_ms: 30, ping_timeout_ms: 2_000, ..one_connection() };
    let begun = Instant::now();
    let (pool, events) = start(address, options);
    let stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    pool.send(1, ROUTE, vec![1]);
    assert_eq!(next(&events), failed(1, FailReason::PeerSilent));
    assert_eq!(next(&events), LinkEvent::Down);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let kinds = [read_frame(&stream).kind, read_frame(&stream).kind];
    assert!(kinds.contains(&Kind::Request) && kinds.contains(&Kind::Ping));
    // Its next connection is pinged too, and lives as long as it answers.
    let mut stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    for _ in 0..4 {
        let ping = read_frame(&stream);
        assert_eq!(ping.kind, Kind::Ping);
        stream.write_all(&Frame { kind: Kind::Pong, ..ping }.encode().unwrap()).unwrap();
    }
    assert!(events.try_recv().is_err());
}

#[test]
fn a_request_without_a_reply_times_out_and_its_late_reply_is_no_misbehaviour() {
    let (peer, address) = Peer::new();
    let options = PoolOptions { request_ms: 30, ..one_connection() };
    let (pool, events) = start(address, options);
    let mut stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    pool.send(1, ROUTE, vec![1]);
    let request = read_frame(&stream);
    assert_eq!(next(&events), failed(1, FailReason::TimedOut));
    pool.send(2, ROUTE, vec![2]);
    let second = read_frame(&stream);
    stream.write_all(&[reply_to(&request), reply_to(&second)].concat()).unwrap();
    assert!(matches!(
        next(&events),
        LinkEvent::Replied { request_id: 2, .. }
            | LinkEvent::Failed { request_id: 2, reason: FailReason::TimedOut }
    ));
    // A second late reply is one too many.
    stream.write_all(&reply_to(&request)).unwrap();
    assert_eq!(next(&events), LinkEvent::Down);
}

#[test]
fn a_peer_that_breaks_the_format_loses_its_connection_and_what_was_in_flight() {
    let request = Frame { kind: Kind::Request, request_id: 1, routing_id: ROUTE, body: vec![1] };
    let encode = |frame: Frame| frame.encode().unwrap();
    for (name, bytes) in [
        ("unknown id", encode(Frame { kind: Kind::Reply, request_id: 9, ..request.clone() })),
        ("other route", encode(Frame { kind: Kind::Reply, routing_id: [8; 16], ..request.clone() })),
        ("a request", encode(request.clone())),
        ("a ping", encode(Frame { kind: Kind::Ping, body: Vec::new(), ..request.clone() })),
        ("oversize", vec![0xff; 40]),
        ("too short", vec![0, 0, 0, 1, 1]),
        (
            "other version",
            vec![0, 0, 0, 26, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ] {
        let (peer, address) = Peer::new();
        let (pool, events) = start(address, one_connection());
        let mut stream = peer.accept();
        assert_eq!(next(&events), LinkEvent::Up);
        pool.send(1, ROUTE, vec![1]);
        assert_eq!(read_frame(&stream), request);
        stream.write_all(&bytes).unwrap();
        assert_eq!(next(&events), failed(1, FailReason::PeerMisbehaved), "{name}");
        assert_eq!(next(&events), LinkEvent::Down, "{name}");
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "{name}");
        // And it is given another chance.
        peer.accept();
        assert_eq!(next(&events), LinkEvent::Up, "{name}");
    }
}

#[test]
fn the_pool_comes_back_when_the_listener_does() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix { path: folder.path().join("enclave.sock") };
    // So late that it does not meet a listener that is about to go.
    let options = PoolOptions { backoff_min_ms: 200, backoff_max_ms: 200, ..one_connection() };
    let (pool, events) = start(address.clone(), options);
    pool.send(1, ROUTE, vec![1]);
    assert_eq!(next(&events), failed(1, FailReason::NotConnected));
    for round in 0..3 {
        let server = echo(&address);
        assert_eq!(next(&events), LinkEvent::Up);
        let request_id = 10 + round;
        pool.send(request_id, ROUTE, vec![9]);
        assert_eq!(next(&events), LinkEvent::Replied { request_id, body: vec![9].into() });
        server.shutdown();
        assert_eq!(next(&events), LinkEvent::Down);
    }
    // A killed enclave leaves its socket's file behind.
    drop(UnixListener::bind(folder.path().join("enclave.sock")).unwrap());
    let _server = echo(&address);
    assert_eq!(next(&events), LinkEvent::Up);
}

#[test]
fn a_multiplexer_is_asked_for_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let multiplexer = UnixListener::bind(&path).unwrap();
    let guest = echo(&Address::Multiplexed { path: path.clone(), port: 52 });
    let (pool, events) = start(Address::Multiplexed { path: path.clone(), port: 7000 }, one_connection());
    // It refuses once, as it does where nobody listens in the guest.
    drop(connected(&multiplexer));
    let mut host = connected(&multiplexer);
    let mut enclave = UnixStream::connect(folder.path().join("vm.sock_52")).unwrap();
    host.write_all(b"OK 1073741824\n").unwrap();
    let pump = {
        let (mut from, mut to) = (host.try_clone().unwrap(), enclave.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut from, &mut to))
    };
    assert_eq!(next(&events), LinkEvent::Up);
    pool.send(1, ROUTE, vec![3]);
    // The greeting's pong, then the reply.
    let mut reply = vec![0; 2 * HEADER_BYTES + 1];
    enclave.read_exact(&mut reply).unwrap();
    host.write_all(&reply).unwrap();
    assert_eq!(next(&events), LinkEvent::Replied { request_id: 1, body: vec![3].into() });
    pool.shutdown();
    pump.join().unwrap().unwrap();
    guest.shutdown();
}

fn connected(multiplexer: &UnixListener) -> UnixStream {
    let (stream, _) = multiplexer.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert_eq!(line, "CONNECT 7000\n");
    stream
}

#[test]
fn what_goes_over_a_bound_fails_at_once() {
    let (peer, address) = Peer::new();
    let options =
        PoolOptions { in_flight_per_connection_max: 2, queued_bytes_max: 20 << 20, ..one_connection() };
    let (pool, events) = start(address, options);
    let stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    pool.send(1, ROUTE, vec![0; FRAME_BYTES_MAX]);
    assert_eq!(next(&events), failed(1, FailReason::TooLarge));
    pool.send(2, ROUTE, vec![2]);
    pool.send(3, ROUTE, vec![3]);
    pool.send(4, ROUTE, vec![4]);
    assert_eq!(next(&events), failed(4, FailReason::Full));
    stream.shutdown(Shutdown::Both).unwrap();
    assert_eq!(next(&events), failed(2, FailReason::ConnectionLost));
}

#[test]
fn bytes_that_a_peer_does_not_read_are_bounded() {
    let (peer, address) = Peer::new();
    let (pool, events) = start(address, PoolOptions { queued_bytes_max: 16 << 20, ..one_connection() });
    let _stream = peer.accept();
    assert_eq!(next(&events), LinkEvent::Up);
    // The socket takes some, one batch is being written, the rest waits.
    for request_id in 0..64 {
        pool.send(request_id, ROUTE, vec![0; 1 << 20]);
    }
    assert!(matches!(next(&events), LinkEvent::Failed { reason: FailReason::Full, .. }));
    let begun = Instant::now();
    pool.shutdown();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn shutdown_interrupts_the_wait_before_a_further_attempt() {
    let address = Peer::new().1;
    let options = PoolOptions { backoff_min_ms: 600_000, backoff_max_ms: 600_000, ..PoolOptions::default() };
    let (pool, events) = start(address, options);
    let begun = Instant::now();
    drop(pool);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(events.try_recv().is_err());
}

#[test]
fn a_send_from_within_an_event_is_answered_too() {
    let server = echo(&"tcp:127.0.0.1:0".parse().unwrap());
    let (sender, receiver) = mpsc::channel();
    let pool: Arc<Mutex<Option<Arc<Pool>>>> = Arc::default();
    let events = {
        let (pool, sender) = (Arc::clone(&pool), Mutex::new(sender));
        Arc::new(move |event: LinkEvent| {
            if let LinkEvent::Failed { request_id: 1, .. } = event {
                let pool = pool.lock().unwrap().clone().unwrap();
                pool.send(2, ROUTE, vec![0; FRAME_BYTES_MAX]);
            }
            drop(sender.lock().unwrap().send(event));
        })
    };
    let started = Arc::new(Pool::start(server.address().clone(), one_connection(), events).unwrap());
    *pool.lock().unwrap() = Some(Arc::clone(&started));
    assert_eq!(next(&receiver), LinkEvent::Up);
    started.send(1, ROUTE, vec![0; FRAME_BYTES_MAX]);
    assert_eq!(next(&receiver), failed(1, FailReason::TooLarge));
    assert_eq!(next(&receiver), failed(2, FailReason::TooLarge));
    *pool.lock().unwrap() = None;
}
