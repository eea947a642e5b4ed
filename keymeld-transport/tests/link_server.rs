//! The enclave's side of the link against scripted gateways.
#![allow(clippy::unwrap_used, reason = "clippy knows test functions only, not what they share")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, Kind};
use keymeld_transport::link::address::Address;
use keymeld_transport::link::server::{LinkServer, Listener, ReplyError, ReplyHandle, ServeLimits, serve};

const PATIENCE: Duration = Duration::from_secs(10);

/// Hands every request to the test.
fn start(limits: ServeLimits) -> (LinkServer, Receiver<(Frame, ReplyHandle)>) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let service = move |frame, reply| drop(sender.lock().unwrap().send((frame, reply)));
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    (serve(listener, limits, Arc::new(service)).unwrap(), receiver)
}

fn connect(server: &LinkServer) -> TcpStream {
    let Address::Tcp { host, port } = server.address() else {
        panic!("{:?}", server.address());
    };
    assert_ne!(*port, 0);
    let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn request(request_id: u64) -> Frame {
    Frame { kind: Kind::Request, request_id, routing_id: [3; 16], body: vec![1, 2] }
}

fn send(mut stream: &TcpStream, frame: &Frame) {
    stream.write_all(&frame.encode().unwrap()).unwrap();
}

fn read_frame(mut stream: &TcpStream) -> Frame {
    let mut field = [0; 4];
    stream.read_exact(&mut field).unwrap();
    let mut bytes = vec![0; Frame::length(field).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    Frame::decode(bytes).unwrap()
}

fn is_closed(mut stream: &TcpStream) -> bool {
    !matches!(stream.read(&mut [0]), Ok(1..))
}

#[test]
fn replies_go_out_in_any_order_and_pings_are_answered_without_the_service() {
    let (server, requests) = start(ServeLimits::default());
    let stream = connect(&server);
    let ping = Frame { kind: Kind::Ping, body: Vec::new(), ..request(77) };
    let together: Vec<u8> = [request(1), request(2), ping.clone(), request(3)]
        .iter()
        .flat_map(|frame| frame.encode().unwrap())
        .collect();
    (&stream).write_all(&together).unwrap();
    assert_eq!(read_frame(&stream), Frame { kind: Kind::Pong, ..ping });
    let waiting: Vec<_> = (0..3).map(|_| requests.recv_timeout(PATIENCE).unwrap()).collect();
    for (frame, reply) in waiting.into_iter().rev() {
        let body = vec![u8::try_from(frame.request_id).unwrap()];
        reply.send(body.clone()).unwrap();
        assert_eq!(read_frame(&stream), Frame { kind: Kind::Reply, body, ..frame });
    }
    server.shutdown();
    assert!(is_closed(&stream));
}

#[test]
fn a_bad_frame_closes_its_connection_only() {
    let (server, requests) = start(ServeLimits::default());
    let good = connect(&server);
    let mut version = request(1).encode().unwrap();
    version[4] = 9;
    for bytes in [
        vec![0xff; 30],
        vec![0, 0, 0, 3, 1, 1, 1],
        version,
        Frame { kind: Kind::Reply, ..request(1) }.encode().unwrap(),
        Frame { kind: Kind::Pong, body: Vec::new(), ..request(1) }.encode().unwrap(),
        request(1).encode().unwrap()[..20].to_vec(),
    ] {
        let bad = connect(&server);
        (&bad).write_all(&bytes).unwrap();
        if bytes.len() == 20 {
            bad.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(is_closed(&bad), "{bytes:?}");
        send(&good, &request(5));
        requests.recv_timeout(PATIENCE).unwrap().1.send(Vec::new()).unwrap();
        assert_eq!(read_frame(&good).request_id, 5);
    }
}

#[test]
fn nothing_more_is_read_from_a_connection_with_too_much_in_flight() {
    let (server, requests) = start(ServeLimits { in_flight_max: 2, ..ServeLimits::default() });
    let stream = connect(&server);
    for request_id in 0..4 {
        send(&stream, &request(request_id));
    }
    let (_, first) = requests.recv_timeout(PATIENCE).unwrap();
    let (_, second) = requests.recv_timeout(PATIENCE).unwrap();
    // Another connection is not held up, and its request is the next to arrive.
    let other = connect(&server);
    send(&other, &request(100));
    let (frame, reply) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(frame.request_id, 100);
    reply.send(Vec::new()).unwrap();
    assert!(requests.try_recv().is_err());
    first.send(Vec::new()).unwrap();
    let (frame, _third) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(frame.request_id, 2);
    // A request that is dropped without a reply makes room too.
    drop(second);
    assert_eq!(requests.recv_timeout(PATIENCE).unwrap().0.request_id, 3);
}

#[test]
fn a_silent_and_a_dripping_connection_are_closed() {
    let (server, _requests) = start(ServeLimits { idle_ms: 60, frame_ms: 60, ..ServeLimits::default() });
    assert!(is_closed(&connect(&server)));
    let begun = Instant::now();
    let dripping = connect(&server);
    dripping.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let bytes = Frame { body: vec![0; 5000], ..request(1) }.encode().unwrap();
    for byte in bytes.chunks(1) {
        // Each read waits a little; the end comes although bytes keep coming.
        if (&dripping).write_all(byte).is_err() || matches!((&dripping).read(&mut [0]), Ok(0)) {
            break;
        }
    }
    assert!(begun.elapsed() >= Duration::from_millis(60) && begun.elapsed() < PATIENCE);
}

#[test]
fn at_the_cap_the_longest_silent_connection_is_closed() {
    let (server, requests) = start(ServeLimits { connections_max: 2, ..ServeLimits::default() });
    let streams = [connect(&server), connect(&server)];
    for stream in [&streams[1], &streams[0]] {
        send(stream, &request(1));
        requests.recv_timeout(PATIENCE).unwrap().1.send(Vec::new()).unwrap();
        read_frame(stream);
    }
    let third = connect(&server);
    assert!(is_closed(&streams[1]));
    for stream in [&streams[0], &third] {
        send(stream, &request(2));
        requests.recv_timeout(PATIENCE).unwrap().1.send(Vec::new()).unwrap();
        assert_eq!(read_frame(stream).request_id, 2);
    }
}

#[test]
fn a_peer_that_does_not_read_its_replies_is_closed() {
    let limits = ServeLimits { queued_bytes_max: 12 << 20, ..ServeLimits::default() };
    let (server, requests) = start(limits);
    let stream = connect(&server);
    for request_id in 0..64 {
        send(&stream, &request(request_id));
    }
    let refused = (0..64).find_map(|_| {
        let (_, reply) = requests.recv_timeout(PATIENCE).unwrap();
        reply.send(vec![0; 4 << 20]).err()
    });
    assert_eq!(refused, Some(ReplyError::Closed));
    let alive = connect(&server);
    send(&alive, &request(100));
    let reply = loop {
        let (frame, reply) = requests.recv_timeout(PATIENCE).unwrap();
        if frame.request_id == 100 {
            break reply;
        }
    };
    reply.send(Vec::new()).unwrap();
    assert_eq!(read_frame(&alive).request_id, 100);
}

#[test]
fn a_reply_that_does_not_fit_is_refused() {
    let (server, requests) = start(ServeLimits::default());
    let stream = connect(&server);
    send(&stream, &request(1));
    let (_, reply) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(reply.send(vec![0; FRAME_BYTES_MAX]), Err(ReplyError::TooLarge));
    send(&stream, &request(2));
    let (_, reply) = requests.recv_timeout(PATIENCE).unwrap();
    drop(stream);
    server.shutdown();
    assert_eq!(reply.send(Vec::new()), Err(ReplyError::Closed));
}

#[cfg(not(feature = "vsock"))]
#[test]
fn vsock_needs_its_feature() {
    let bound = Listener::bind(&Address::Vsock { cid: 3, port: 7000 });
    assert_eq!(bound.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
}
