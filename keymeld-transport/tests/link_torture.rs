//! The link against peers that do whatever they can: random, cut, flipped and oversized frames, other ids, floods,
//! readers that do not read, connections that are half open. Both sides stay alive and serve honest peers meanwhile
//! and afterwards.
//!
//! `KEYMELD_TORTURE_SEED` repeats a run, `KEYMELD_TORTURE_ROUNDS` makes it as long as wanted.
#![allow(clippy::unwrap_used, reason = "clippy knows test functions only, not what they share")]

mod hostile;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hostile::{Conduct, Random, rounds, seed};
use keymeld_core::link::frame::{Frame, Kind};
use keymeld_transport::link::address::Address;
use keymeld_transport::link::pool::{FailReason, LinkEvent, Pool, PoolOptions};
use keymeld_transport::link::server::{LinkServer, Listener, ReplyHandle, ServeLimits, serve};

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: usize = 1024 * 1024;

fn bind() -> Listener {
    Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap()
}

/// An enclave that replies with the same body.
fn echo(limits: ServeLimits) -> LinkServer {
    let service = |frame: Frame, reply: ReplyHandle| {
        // A peer that is gone gets no reply.
        let _ = reply.send(frame.body);
    };
    serve(bind(), limits, Arc::new(service)).unwrap()
}

/// Hands every request to the test.
fn handing(limits: ServeLimits) -> (LinkServer, Receiver<(Frame, ReplyHandle)>) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let service = move |frame, reply| drop(sender.lock().unwrap().send((frame, reply)));
    (serve(bind(), limits, Arc::new(service)).unwrap(), receiver)
}

fn connect(address: &Address) -> TcpStream {
    let Address::Tcp { host, port } = address else { panic!("{address:?}") };
    let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn request(request_id: u64, body: Vec<u8>) -> Frame {
    Frame { kind: Kind::Request, request_id, routing_id: [3; 16], body }
}

fn send(mut stream: &TcpStream, frame: &Frame) {
    stream.write_all(&frame.encode().unwrap()).unwrap();
}

fn try_read(mut stream: &TcpStream) -> std::io::Result<Frame> {
    let mut field = [0; 4];
    stream.read_exact(&mut field)?;
    let mut bytes = vec![0; Frame::length(field).unwrap()];
    stream.read_exact(&mut bytes)?;
    Ok(Frame::decode(bytes).unwrap())
}

/// Asks and gets the reply.
fn is_served(stream: &TcpStream, request_id: u64) {
    let asked = request(request_id, vec![5; 100]);
    send(stream, &asked);
    assert_eq!(try_read(stream).unwrap(), Frame { kind: Kind::Reply, ..asked });
}

#[test]
fn hostile_peers_are_dropped_and_an_honest_one_is_served_meanwhile() {
    let mut random = Random::new(seed("link server"));
    let limits = ServeLimits { idle_ms: 2_000, frame_ms: 300, write_ms: 300, ..ServeLimits::default() };
    let server = echo(limits);
    let honest = connect(server.address());
    let mut open: Vec<TcpStream> = Vec::new();
    for round in 0..rounds(300) {
        is_served(&honest, round);
        let stream = connect(server.address());
        stream.set_nonblocking(true).unwrap();
        for bytes in hostile::to_an_enclave(&mut random) {
            // What it does not take is not waited for: the peer does not read, or has closed.
            if (&stream).write_all(&bytes).is_err() {
                break;
            }
        }
        match random.below(4) {
            0 => drop(stream),
            1 => drop(stream.shutdown(Shutdown::Write).map(|()| open.push(stream))),
            _ => open.push(stream),
        }
        // More than the server keeps.
        if open.len() > 40 {
            open.remove(random.below(40));
        }
    }
    is_served(&honest, 0);
    drop(open);
    is_served(&connect(server.address()), 1);
    server.shutdown();
}

#[test]
fn connections_that_say_nothing_push_out_none_that_did() {
    let server = echo(ServeLimits { connections_max: 3, ..ServeLimits::default() });
    let (first, second) = (connect(server.address()), connect(server.address()));
    is_served(&first, 1);
    is_served(&second, 2);
    let silent: Vec<TcpStream> = (0..50).map(|_| connect(server.address())).collect();
    is_served(&first, 3);
    is_served(&second, 4);
    // The last one speaks, and is as good as the others.
    is_served(silent.last().unwrap(), 5);
    is_served(&first, 6);
}

#[test]
fn requests_are_bounded_in_bytes_over_all_connections_those_that_are_closed_among_them() {
    let (server, requests) = handing(ServeLimits { requests_bytes_max: 4 * MIB, ..ServeLimits::default() });
    let mut held = Vec::new();
    // Each gives its connection up after a request of 1 MiB, which is not looked at meanwhile.
    for request_id in 0..3 {
        let stream = connect(server.address());
        send(&stream, &request(request_id, vec![0; MIB]));
        held.push(requests.recv_timeout(PATIENCE).unwrap());
    }
    let (_, first) = &held[0];
    let mut closed = first.is_closed();
    while !closed {
        thread::yield_now();
        closed = first.is_closed();
    }
    let honest = connect(server.address());
    send(&honest, &request(7, vec![0; MIB]));
    assert_eq!(requests.recv_timeout(Duration::from_millis(100)).unwrap_err(), RecvTimeoutError::Timeout);
    held.pop();
    assert_eq!(requests.recv_timeout(PATIENCE).unwrap().0.request_id, 7);
}

#[test]
fn a_flood_on_one_connection_does_not_starve_another() {
    let (server, requests) = handing(ServeLimits { requests_bytes_max: 2 * MIB, ..ServeLimits::default() });
    let flood = connect(server.address());
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let bytes = request(1, vec![0; MIB / 2]).encode().unwrap();
            while !stop.load(Ordering::Relaxed) && (&flood).write_all(&bytes).is_ok() {}
        })
    };
    let honest = connect(server.address());
    for request_id in 100..110 {
        send(&honest, &request(request_id, Vec::new()));
        // It is in line behind a frame of the flood, not behind all that it ever sends.
        let served = (0..10_000).any(|_| {
            let (frame, reply) = requests.recv_timeout(PATIENCE).unwrap();
            reply.send(Vec::new()).is_ok() && frame.request_id == request_id
        });
        assert!(served);
        assert_eq!(try_read(&honest).unwrap().request_id, request_id);
    }
    stop.store(true, Ordering::Relaxed);
    server.shutdown();
    writing.join().unwrap();
}

fn pool(address: Address, options: PoolOptions) -> (Pool, Receiver<LinkEvent>) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let events = Arc::new(move |event| drop(sender.lock().unwrap().send(event)));
    (Pool::start(address, options, events).unwrap(), receiver)
}

fn brisk() -> PoolOptions {
    PoolOptions {
        backoff_min_ms: 1,
        backoff_max_ms: 4,
        request_ms: 500,
        ping_interval_ms: 100,
        ping_timeout_ms: 300,
        ..PoolOptions::default()
    }
}

/// Exactly one outcome for each request, up to the given one; which were replied to.
fn outcomes(events: &Receiver<LinkEvent>, mut expected: BTreeSet<u64>) -> BTreeSet<u64> {
    let mut replied = BTreeSet::new();
    while !expected.is_empty() {
        match events.recv_timeout(PATIENCE).unwrap() {
            LinkEvent::Replied { request_id, .. } => {
                assert!(expected.remove(&request_id), "{request_id}");
                replied.insert(request_id);
            }
            LinkEvent::Failed { request_id, .. } => assert!(expected.remove(&request_id), "{request_id}"),
            LinkEvent::Up | LinkEvent::Down => {}
        }
    }
    replied
}

#[test]
fn a_hostile_enclave_gets_each_request_one_outcome_and_holds_nobody_else_up() {
    let seed = seed("link pool");
    let mut random = Random::new(seed);
    let honest = echo(ServeLimits::default());
    let (good, good_events) =
        pool(honest.address().clone(), PoolOptions { request_ms: 5_000, ..PoolOptions::default() });
    assert_eq!(good_events.recv_timeout(PATIENCE).unwrap(), LinkEvent::Up);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
    let (bad, bad_events) = pool(address.clone(), brisk());
    let conduct = Arc::new(Conduct::default());
    let playing = {
        let conduct = Arc::clone(&conduct);
        thread::spawn(move || hostile::enclave(&listener, seed, &conduct))
    };
    let mut last = 0;
    for _ in 0..rounds(60) {
        let ids = last + 1..last + 1 + 1 + random.below(20) as u64;
        last = ids.end;
        for request_id in ids.clone() {
            let length = random.below(3_000);
            bad.send(request_id, random.bytes(), vec![1; length]);
        }
        good.send(last, [1; 16], vec![2; 500]);
        assert_eq!(outcomes(&good_events, [last].into()).len(), 1);
        outcomes(&bad_events, ids.collect());
    }
    // It behaves from now on, and is served like any other.
    conduct.reformed.store(true, Ordering::Relaxed);
    let reformed = Instant::now();
    loop {
        last += 1;
        bad.send(last, [2; 16], vec![3; 10]);
        if !outcomes(&bad_events, [last].into()).is_empty() {
            break;
        }
        assert!(reformed.elapsed() < PATIENCE);
        // The next connection may take a moment.
        thread::yield_now();
    }
    bad.shutdown();
    conduct.over.store(true, Ordering::Relaxed);
    playing.join().unwrap();
    good.shutdown();
    honest.shutdown();
}

#[test]
fn replies_that_nobody_takes_are_bounded_and_the_connection_lives_on() {
    let honest = echo(ServeLimits::default());
    let options = PoolOptions {
        connections: 1,
        replies_bytes_max: 3 * MIB,
        ping_interval_ms: 100,
        ping_timeout_ms: 1_000,
        ..PoolOptions::default()
    };
    let (pool, events) = pool(honest.address().clone(), options);
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), LinkEvent::Up);
    for request_id in 0..8 {
        pool.send(request_id, [0; 16], vec![9; MIB]);
    }
    let mut held = Vec::new();
    let stopped = loop {
        match events.recv_timeout(Duration::from_secs(2)) {
            Ok(event) => held.push(event),
            Err(error) => break error,
        }
    };
    assert_eq!((stopped, held.len()), (RecvTimeoutError::Timeout, 3));
    for _ in 3..8 {
        held.remove(0);
        held.push(events.recv_timeout(PATIENCE).unwrap());
    }
    assert!(held.iter().all(|event| matches!(event, LinkEvent::Replied { .. })), "{held:?}");
}

#[test]
fn a_pong_that_nobody_asked_for_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
    let (pool, events) = pool(address, PoolOptions { connections: 1, ..PoolOptions::default() });
    let (stream, _) = listener.accept().unwrap();
    let greeting = try_read(&stream).unwrap();
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), LinkEvent::Up);
    pool.send(1, [0; 16], Vec::new());
    let pong = Frame { kind: Kind::Pong, ..greeting };
    send(&stream, &pong);
    send(&stream, &pong);
    let reason = FailReason::PeerMisbehaved;
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), LinkEvent::Failed { request_id: 1, reason });
}
