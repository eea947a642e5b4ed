//! The public listener over loopback sockets.
#![allow(clippy::unwrap_used, reason = "clippy knows test functions only, not what they share")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use keymeld_core::api::http::{Request, Response};
use keymeld_transport::http::server::{Refusal, Responder, Server, ServerLimits};

const PATIENCE: Duration = Duration::from_secs(10);

fn json(body: impl Into<Vec<u8>>) -> Response {
    Response { status: 200, content_type: "application/json", retry_after_s: None, body: body.into() }
}

/// What the service below was handed and did not answer itself.
type Waiting = Receiver<(String, Responder)>;

/// Answers `/echo` with the body, drops `/drop`, and hands `/park...` (parked) and `/hold` to the test.
fn start(limits: ServerLimits) -> (Server, Waiting) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let service = move |request: Request, responder: Responder| match request.target.as_str() {
        "/drop" => drop(responder),
        "/hold" => sender.lock().unwrap().send((request.target, responder)).unwrap(),
        target if target.starts_with("/park") => {
            if let Some(responder) = responder.park(|| {}) {
                sender.lock().unwrap().send((request.target, responder)).unwrap();
            }
        }
        _ => {
            let method = request.method.as_str();
            let mut body = format!("{method} {} {} ", request.target, request.authority).into_bytes();
            body.extend_from_slice(&request.body);
            responder.send(json(body));
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (Server::start(listener, limits, None, Arc::new(service)).unwrap(), receiver)
}

struct Peer(BufReader<TcpStream>);

struct Reply {
    status: u16,
    headers: Vec<String>,
    body: String,
}

impl Reply {
    fn has(&self, header: &str) -> bool {
        self.headers.iter().any(|line| line.eq_ignore_ascii_case(header))
    }
}

impl Peer {
    fn to(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Peer(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) -> &mut Peer {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
        self
    }

    fn get(&mut self, target: &str) -> &mut Peer {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            self.0.read_line(&mut header).unwrap();
            match header.trim_end() {
                "" => break,
                header => headers.push(header.to_owned()),
            }
        }
        let length = headers.iter().find_map(|header| header.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).unwrap();
        Reply { status, headers, body: String::from_utf8(body).unwrap() }
    }

    /// The server's closing, by an end or by a reset.
    fn is_closed(&mut self) -> bool {
        !matches!(self.0.read(&mut [0]), Ok(1..))
    }
}

/// Waits for so many parked requests and connections with a thread.
fn wait_for_counts(server: &Server, counts: (usize, usize)) {
    let begun = Instant::now();
    while server.counts() != counts {
        assert!(begun.elapsed() < PATIENCE, "{:?}", server.counts());
        thread::yield_now();
    }
}

fn assert_alive(server: &Server) {
    assert_eq!(Peer::to(server.address()).get("/alive").reply().body, "GET /alive h ");
}

#[test]
fn a_connection_is_kept_for_further_requests() {
    let (server, _) = start(ServerLimits::default());
    let mut peer = Peer::to(server.address());
    for round in 0..3 {
        peer.send(&format!("POST /{round}?a=b HTTP/1.1\r\nHost: h:1\r\nContent-Length: 2\r\n\r\nhi"));
        let reply = peer.reply();
        assert_eq!((reply.status, reply.body), (200, format!("POST /{round}?a=b h:1 hi")));
    }
    let reply = peer.get("/").reply();
    for header in ["Content-Type: application/json", "Connection: keep-alive", "Cache-Control: no-store"] {
        assert!(reply.has(header), "{header}");
    }
    peer.send("DELETE /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let reply = peer.reply();
    assert!(reply.has("Connection: close") && reply.body == "DELETE /last h ");
    assert!(peer.is_closed());
    server.shutdown(Duration::ZERO);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (server, waiting) = start(ServerLimits::default());
    let mut peer = Peer::to(server.address());
    peer.get("/hold")
        .get("/second")
        .send("POST /third HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /f");
    let (_, responder) = waiting.recv_timeout(PATIENCE).unwrap();
    responder.send(json("first"));
    assert_eq!(peer.reply().body, "first");
    assert_eq!(peer.reply().body, "GET /second h ");
    assert_eq!(peer.reply().body, "POST /third h abc");
    assert_eq!(peer.send("ourth HTTP/1.1\r\nHost: h\r\n\r\n").reply().body, "GET /fourth h ");
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let (server, _) = start(ServerLimits::default());
    let mut peer = Peer::to(server.address());
    let reply = peer.send("GET /old HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n").reply();
    assert!(reply.status == 200 && reply.has("Connection: close"));
    assert!(peer.is_closed());
}

#[test]
fn a_body_that_waits_for_100_continue_is_asked_for() {
    let (server, _) = start(ServerLimits::default());
    let mut peer = Peer::to(server.address());
    peer.send("POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(peer.reply().status, 100);
    assert_eq!(peer.send("body").reply().body, "POST /c h body");
}

#[test]
fn every_malformed_request_gets_its_code_and_the_server_lives() {
    let (server, _) = start(ServerLimits::default());
    let head = "POST / HTTP/1.1\r\nHost: h\r\n";
    let many = format!("{head}{}\r\n", "A: b\r\n".repeat(64));
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(20_000));
    let cases = [
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Refusal::TransferEncoding),
        (format!("{head}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"), Refusal::AmbiguousFraming),
        (format!("{head}Content-Length: +1\r\n\r\na"), Refusal::AmbiguousFraming),
        (format!("{head}Content-Length: 1000000000000000\r\n\r\nabc"), Refusal::BodyTooLarge),
        (format!("{head}Content-Length: 4194305\r\n\r\n"), Refusal::BodyTooLarge),
        (format!("{head}Content-Length: {}\r\n\r\n", "9".repeat(40)), Refusal::BodyTooLarge),
        (format!("{head}A: b\r\n c\r\nContent-Length: 1\r\n\r\na"), Refusal::AmbiguousFraming),
        (format!("{head}\r\n"), Refusal::LengthRequired),
        (format!("{head}Expect: more\r\nContent-Length: 1\r\n\r\n"), Refusal::ExpectationFailed),
        ("GET / HTTP/1.1\n".into(), Refusal::AmbiguousFraming),
        ("GET / HTTP/1.1\r\n\r\n".into(), Refusal::BadHost),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".into(), Refusal::BadHost),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), Refusal::VersionNotSupported),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na".into(), Refusal::UnexpectedBody),
        ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Refusal::MethodNotAllowed),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n".into(), Refusal::BadTarget),
        ("\u{1}\u{2}\u{3}\r\n\r\n".into(), Refusal::MalformedRequest),
        // TLS, which has no line to wait for.
        ("\u{16}\u{3}\u{1}\u{2}".into(), Refusal::MalformedRequest),
        (many, Refusal::TooManyHeaders),
        (long, Refusal::HeadTooLarge),
    ];
    for (text, refusal) in cases {
        let mut peer = Peer::to(server.address());
        let reply = peer.send(&text).reply();
        assert_eq!(reply.status, refusal.status(), "{text:.80}");
        assert!(
            reply.body.contains(&format!("\"code\":\"{}\"", refusal.code())),
            "{text:.80}: {}",
            reply.body
        );
        assert!(reply.has("Content-Type: application/problem+json") && reply.has("Connection: close"));
        assert_eq!(reply.has("Allow: GET, POST, DELETE"), refusal == Refusal::MethodNotAllowed);
        assert!(peer.is_closed(), "{text:.80}");
        assert_alive(&server);
    }
}

#[test]
fn a_refused_peer_that_goes_on_sending_still_gets_its_answer() {
    let (server, _) = start(ServerLimits::default());
    for _ in 0..10 {
        let mut peer = Peer::to(server.address());
        peer.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n");
        for _ in 0..20 {
            peer.send(&"a".repeat(10_000));
        }
        assert_eq!(peer.reply().status, 413);
    }
}

#[test]
fn a_request_that_drips_in_is_refused_at_its_deadline() {
    let (server, _) = start(ServerLimits { request_time_ms: 150, ..ServerLimits::default() });
    let mut peer = Peer::to(server.address());
    let begun = Instant::now();
    peer.send("GET / HT");
    // Each byte would prolong a limit on single reads.
    peer.0.get_mut().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while peer.0.fill_buf().is_err() && begun.elapsed() < PATIENCE {
        let _ = peer.0.get_mut().write_all(b"T");
    }
    assert!(begun.elapsed() >= Duration::from_millis(150));
    let reply = peer.reply();
    assert!(reply.status == 408 && reply.body.contains("request-timed-out"));
    assert_alive(&server);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let (server, _) = start(ServerLimits { idle_ms: 500, ..ServerLimits::default() });
    let mut peer = Peer::to(server.address());
    assert_eq!(peer.get("/").reply().status, 200);
    assert!(peer.is_closed());
    assert!(Peer::to(server.address()).is_closed());
}

#[test]
fn at_the_cap_the_longest_idle_connection_is_closed() {
    let (server, waiting) = start(ServerLimits { connections_max: 3, ..ServerLimits::default() });
    let mut busy = Peer::to(server.address());
    busy.get("/hold");
    let (_, responder) = waiting.recv_timeout(PATIENCE).unwrap();
    let [mut first, mut second] = [(); 2].map(|()| Peer::to(server.address()));
    assert_eq!(Peer::to(server.address()).get("/new").reply().status, 200);
    assert!(first.is_closed());
    assert_eq!(second.get("/").reply().status, 200);
    responder.send(json("held"));
    assert_eq!(busy.reply().body, "held");
}

#[test]
fn where_every_connection_is_busy_a_new_one_is_refused() {
    let (server, waiting) = start(ServerLimits { connections_max: 1, ..ServerLimits::default() });
    let mut busy = Peer::to(server.address());
    busy.get("/hold");
    let (_, responder) = waiting.recv_timeout(PATIENCE).unwrap();
    let reply = Peer::to(server.address()).reply();
    assert!(reply.status == 503 && reply.has("Retry-After: 1"));
    responder.send(json("held"));
    assert_eq!(busy.reply().body, "held");
}

#[test]
fn a_parked_request_has_no_thread_and_its_connection_goes_on_after_the_answer() {
    let (server, waiting) = start(ServerLimits::default());
    let mut peer = Peer::to(server.address());
    peer.get("/park").get("/after");
    let (_, responder) = waiting.recv_timeout(PATIENCE).unwrap();
    wait_for_counts(&server, (1, 0));
    thread::spawn(move || responder.send(json("late"))).join().unwrap();
    assert_eq!(peer.reply().body, "late");
    assert_eq!(peer.reply().body, "GET /after h ");
    assert_eq!(peer.get("/again").reply().status, 200);
    assert_eq!(server.counts(), (0, 1));
}

#[test]
fn the_parked_table_is_bounded_in_all_and_per_address() {
    for limits in [
        ServerLimits { parked_max: 2, ..ServerLimits::default() },
        ServerLimits { parked_per_address_max: 2, ..ServerLimits::default() },
    ] {
        let (server, waiting) = start(limits);
        let [mut first, mut second, mut third] = [(); 3].map(|()| Peer::to(server.address()));
        first.get("/park/1");
        let (_, one) = waiting.recv_timeout(PATIENCE).unwrap();
        second.get("/park/2");
        let (_, _two) = waiting.recv_timeout(PATIENCE).unwrap();
        let reply = third.get("/park/3").reply();
        assert!(reply.status == 429 && reply.body.contains("too-many") && reply.has("Retry-After: 1"));
        one.send(json("1"));
        assert_eq!(first.reply().body, "1");
        let mut fourth = Peer::to(server.address());
        fourth.get("/park/4");
        let (_, four) = waiting.recv_timeout(PATIENCE).unwrap();
        four.send(json("4"));
        assert_eq!(fourth.reply().body, "4");
    }
}

#[test]
fn a_peer_that_leaves_while_parked_harms_nobody() {
    let (server, waiting) = start(ServerLimits::default());
    for _ in 0..4 {
        let mut peer = Peer::to(server.address());
        peer.get("/park");
        let (_, responder) = waiting.recv_timeout(PATIENCE).unwrap();
        drop(peer);
        responder.send(json("nobody reads this"));
    }
    assert_alive(&server);
    server.shutdown(PATIENCE);
}

#[test]
fn peers_that_have_left_make_way_where_places_are_short_and_their_service_is_told() {
    let limits = ServerLimits { parked_per_address_max: 3, ..ServerLimits::default() };
    let (left, leaving) = mpsc::channel();
    let (sender, waiting) = mpsc::channel();
    let shared = Mutex::new((left, sender));
    let service = move |request: Request, responder: Responder| {
        let shared = shared.lock().unwrap();
        let (left, target) = (shared.0.clone(), request.target.clone());
        if let Some(responder) = responder.park(move || left.send(target).unwrap()) {
            shared.1.send(responder).unwrap();
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(listener, limits, None, Arc::new(service)).unwrap();
    let park = |target: &str| {
        let mut peer = Peer::to(server.address());
        peer.get(target);
        (peer, waiting.recv_timeout(PATIENCE).unwrap())
    };
    let (mut stays, first) = park("/stays");
    let (leaves, second) = park("/leaves");
    let (half_closes, third) = park("/half-closes");
    wait_for_counts(&server, (3, 0));
    // What they asked for is not theirs any more before anybody comes for their places.
    drop(leaves);
    half_closes.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let (_next, fourth) = park("/next");
    let gone: BTreeSet<String> = (0..2).map(|_| leaving.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(gone, BTreeSet::from(["/leaves".to_owned(), "/half-closes".to_owned()]));
    assert!(second.is_too_late() && third.is_too_late() && !first.is_too_late() && !fourth.is_too_late());
    drop((second, third));
    assert_eq!(server.counts().0, 2);
    first.send(json("{}"));
    assert_eq!(stays.reply().body, "{}");
    assert!(leaving.try_recv().is_err());
    // Looking at everybody again and again is not to be had by asking for it.
    let (_a, _b) = (park("/a"), park("/b"));
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(Peer::to(server.address()).get("/c").reply().status == 429);
    }
    assert_eq!(refused, 20);
}

#[test]
fn whoever_takes_no_answers_makes_way() {
    let (server, _) = start(ServerLimits { connections_max: 2, ..ServerLimits::default() });
    let body = "a".repeat(3_000_000);
    let mut deaf = Vec::new();
    for _ in 0..2 {
        let mut peer = Peer::to(server.address());
        let stream = peer.0.get_ref().try_clone().unwrap();
        let asking = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // Until nothing goes out any more: the listener writes and does not read.
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        while peer.0.get_mut().write_all(asking.as_bytes()).is_ok() {}
        deaf.push(peer);
    }
    assert_alive(&server);
}

#[test]
fn large_requests_together_are_bounded_and_the_slow_make_way_for_others() {
    let limits = ServerLimits { held_bytes_max: 1_000_000, ..ServerLimits::default() };
    let (server, _) = start(limits);
    // There is room for two of them.
    let mut slow: Vec<Peer> = (0..4_usize)
        .map(|before| {
            let mut peer = Peer::to(server.address());
            wait_for_counts(&server, (0, before.min(2) + 1));
            peer.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 600000\r\n\r\n");
            peer.send(&"a".repeat(500_000));
            wait_for_counts(&server, (0, (before + 1).min(2)));
            peer
        })
        .collect();
    for _ in 0..4 {
        let mut peer = Peer::to(server.address());
        let body = "b".repeat(900_000);
        peer.send(&format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        assert!(peer.reply().body.ends_with(&body));
    }
    assert!(slow.iter_mut().all(Peer::is_closed));
    let mut peer = Peer::to(server.address());
    peer.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\n").send(&"c".repeat(1_200_000));
    let reply = peer.reply();
    assert!(reply.status == 503 && reply.has("Retry-After: 1") && reply.body.contains("too-many-bytes"));
}

#[test]
fn large_answers_together_are_bounded_and_who_takes_none_makes_way_for_others() {
    const BYTES: usize = 24_000_000;
    let limits = ServerLimits { held_bytes_max: 32_000_000, ..ServerLimits::default() };
    let (server, waiting) = start(limits);
    let answered = || {
        let mut peer = Peer::to(server.address());
        peer.get("/hold");
        let (_, responder) = waiting.recv_timeout(PATIENCE).unwrap();
        responder.send(json("a".repeat(BYTES)));
        // From its first byte on it is counted.
        peer.0.fill_buf().unwrap();
        peer
    };
    let deaf: Vec<Peer> = (0..3).map(|_| answered()).collect();
    assert_eq!(answered().reply().body.len(), BYTES);
    for mut peer in deaf {
        let mut taken = Vec::new();
        // A connection that is cut may also be reset.
        let _ = peer.0.read_to_end(&mut taken);
        assert!(taken.len() < BYTES);
    }
    let mut peer = Peer::to(server.address());
    peer.get("/hold");
    waiting.recv_timeout(PATIENCE).unwrap().1.send(json("a".repeat(BYTES + BYTES / 2)));
    let reply = peer.reply();
    assert!(reply.status == 503 && reply.has("Retry-After: 1") && reply.body.contains("too-many-bytes"));
}

#[test]
fn parked_requests_answered_at_once_take_no_more_threads_than_there_are_connections() {
    let limits = ServerLimits { connections_max: 4, linger_ms: 5_000, ..ServerLimits::default() };
    let (server, waiting) = start(limits);
    let mut peers: Vec<(Peer, Responder)> = Vec::new();
    for _ in 0..40 {
        let mut peer = Peer::to(server.address());
        peer.get("/park");
        peers.push((peer, waiting.recv_timeout(PATIENCE).unwrap().1));
    }
    wait_for_counts(&server, (40, 0));
    let mut busy: Vec<(Peer, Responder)> = Vec::new();
    for _ in 0..4 {
        let mut peer = Peer::to(server.address());
        peer.get("/hold");
        busy.push((peer, waiting.recv_timeout(PATIENCE).unwrap().1));
    }
    let (mut peers, responders): (Vec<Peer>, Vec<Responder>) = peers.into_iter().unzip();
    for responder in responders {
        responder.send(json("{}"));
    }
    for peer in &mut peers {
        let reply = peer.reply();
        assert!(reply.body == "{}" && reply.has("Connection: close") && peer.is_closed());
    }
    assert_eq!(server.counts(), (0, 4));
    drop(busy);
}

#[test]
fn an_unanswered_request_gets_500_parked_or_not() {
    let (server, waiting) = start(ServerLimits::default());
    assert!(Peer::to(server.address()).get("/drop").reply().body.contains("\"code\":\"unanswered\""));
    let mut peer = Peer::to(server.address());
    peer.get("/park");
    drop(waiting.recv_timeout(PATIENCE).unwrap());
    assert_eq!(peer.reply().status, 500);
}

#[test]
fn a_service_that_takes_too_long_is_not_waited_for() {
    let (server, waiting) = start(ServerLimits { answer_ms: 30, ..ServerLimits::default() });
    let mut peer = Peer::to(server.address());
    let reply = peer.get("/hold").reply();
    assert!(reply.status == 503 && reply.body.contains("answer-timed-out"));
    waiting.recv_timeout(PATIENCE).unwrap().1.send(json("too late"));
    assert!(peer.is_closed());
}

#[test]
fn shutdown_drains_what_is_under_way_and_closes_the_rest() {
    let (server, waiting) = start(ServerLimits::default());
    let address = server.address();
    let [mut idle, mut held, mut parked] = [(); 3].map(|()| Peer::to(address));
    assert_eq!(idle.get("/").reply().status, 200);
    held.get("/hold");
    let (_, hold) = waiting.recv_timeout(PATIENCE).unwrap();
    parked.get("/park");
    let (_, park) = waiting.recv_timeout(PATIENCE).unwrap();
    let stopping = thread::spawn(move || server.shutdown(PATIENCE));
    assert!(idle.is_closed());
    hold.send(json("held"));
    park.send(json("parked"));
    for (peer, body) in [(&mut held, "held"), (&mut parked, "parked")] {
        let reply = peer.reply();
        assert!(reply.body == body && reply.has("Connection: close"));
        assert!(peer.is_closed());
    }
    drop((held, parked));
    stopping.join().unwrap();
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn shutdown_cuts_what_does_not_drain() {
    let (server, waiting) = start(ServerLimits::default());
    let [mut held, mut parked, mut dripping] = [(); 3].map(|()| Peer::to(server.address()));
    held.get("/hold");
    let (_, hold) = waiting.recv_timeout(PATIENCE).unwrap();
    parked.get("/park");
    let (_, park) = waiting.recv_timeout(PATIENCE).unwrap();
    dripping.send("GET / HTTP/1.1\r\n");
    let begun = Instant::now();
    server.shutdown(Duration::from_millis(20));
    assert!(begun.elapsed() < Duration::from_secs(5));
    hold.send(json("too late"));
    drop(park);
    assert!(held.is_closed() && parked.is_closed() && dripping.is_closed());
}

#[test]
fn many_connections_at_once_are_all_answered() {
    let (server, _) = start(ServerLimits::default());
    let address = server.address();
    let threads: Vec<_> = (0..16)
        .map(|number| {
            thread::spawn(move || {
                let mut peer = Peer::to(address);
                for round in 0..50 {
                    let target = format!("/{number}/{round}");
                    assert_eq!(peer.get(&target).reply().body, format!("GET {target} h "));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Run by the test below in a process with few descriptors.
fn exhaust_descriptors() {
    let (server, _) = start(ServerLimits::default());
    for round in 0..3 {
        let mut peers = Vec::new();
        // Both ends are here, so both run out.
        while let Ok(stream) = TcpStream::connect(server.address()) {
            peers.push(stream);
        }
        // Later rounds may begin before the server's ends of the last one are closed.
        assert!(round > 0 || peers.len() > 5);
        drop(peers);
        // A peer that comes while descriptors are short may be closed; the server still comes back.
        let answered = (0..100).any(|_| {
            TcpStream::connect(server.address()).is_ok_and(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut reply = [0; 12];
                let sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
                let read = sent.and_then(|()| stream.read_exact(&mut reply));
                // Neither answered nor closed: nobody accepts any more.
                assert!(!read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
                &reply == b"HTTP/1.1 200"
            })
        });
        assert!(answered);
    }
}

#[test]
fn running_out_of_descriptors_does_not_end_the_listener() {
    const CHILD: &str = "KEYMELD_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(CHILD).is_some() {
        return exhaust_descriptors();
    }
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -n 48 && exec \"$0\" --exact running_out_of_descriptors_does_not_end_the_listener",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
