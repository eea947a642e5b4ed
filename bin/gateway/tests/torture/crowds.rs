//! Many at once: slow, idle, large, waiting, and more than there are descriptors for.

use std::io::Write;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keymeld_core::api::http::Method;
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{ReserveRequest, SlotRequest};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use crate::rig::{ENCLAVE, LIMITS, PATIENCE, Rig, Wire, scale};

const GET: &str = "GET /api/v1/health HTTP/1.1\r\nHost: a\r\n";

/// Waits until the gateway has closed all of them.
fn await_closed(wires: &[Wire]) {
    let begun = Instant::now();
    while !wires.iter().all(Wire::is_closed) {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
}

#[test]
fn slow_requests_are_closed_when_their_time_is_over() {
    // Fewer than the gateway grants to all: time closes them, not others that come.
    let count = scale(100, 500);
    Rig::both("slow requests", LIMITS, |rig| {
        let mut slow: Vec<Wire> = (0..count).map(|_| rig.send(b"POST / HTTP/1.1\r\n")).collect();
        let begun = Instant::now();
        let mut open = count;
        while open > 0 {
            // Each byte would prolong a limit on single reads.
            open = slow
                .iter_mut()
                .map(|wire| !wire.is_closed() && wire.write_all(b"a").is_ok())
                .filter(|open| *open)
                .count();
            assert!(rig.health());
            assert!(begun.elapsed() < PATIENCE);
        }
    });
}

#[test]
fn slow_handshakes_are_closed_when_their_time_is_over() {
    let rig = Rig::start("slow handshakes", true, LIMITS, None);
    // As few as slow requests.
    let slow: Vec<Wire> = (0..scale(200, 500))
        .map(|_| {
            let mut stream = rig.tcp().expect("connects");
            stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc").expect("writes");
            Wire::Plain(stream)
        })
        .collect();
    await_closed(&slow);
    rig.end();
}

#[test]
fn idle_connections_keep_nobody_out_and_are_closed() {
    // More than the gateway grants to all: the longest idle make way.
    let count = scale(600, 2_000);
    Rig::both("idle connections", LIMITS, |rig| {
        let mut idle: Vec<Wire> = Vec::new();
        for number in 0..count {
            // Before a handshake and after it.
            let plain = rig.is_tls() && number % 4 > 0;
            idle.push(if plain { Wire::Plain(rig.tcp().expect("connects")) } else { rig.open() });
        }
        let mut fresh = rig.send(format!("{GET}\r\n").as_bytes());
        assert!(fresh.read_one().starts_with("HTTP/1.1 200 "));
        await_closed(&idle);
    });
}

#[test]
fn large_bodies_together_stay_within_their_bound() {
    // Together more than twice what the gateway holds at a time.
    let count = scale(36, 200);
    Rig::both("large bodies", LIMITS, |rig| {
        let piece = vec![b'a'; 4_000_000];
        let held: Vec<Wire> = (0..count)
            .map(|_| {
                let mut wire = rig.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4194304\r\n\r\n");
                let _ = wire.write_all(&piece);
                wire
            })
            .collect();
        assert!(rig.health());
        await_closed(&held);
    });
}

#[test]
fn descriptors_that_run_out_come_back() {
    for tls in [false, true] {
        let rig = Rig::start("descriptors", tls, LIMITS, Some(64)).lenient();
        for _ in 0..scale(2, 20) {
            let begun = Instant::now();
            let mut crowd = Vec::new();
            while rig.descriptors() < 63 {
                crowd.extend((0..100).map_while(|_| rig.tcp().ok()));
                // Whoever it has closed makes room for those who come.
                crowd.truncate(400);
                assert!(begun.elapsed() < PATIENCE);
            }
            drop(crowd);
            while !rig.health() {
                assert!(begun.elapsed() < PATIENCE, "it does not come back");
            }
        }
        rig.end();
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let count = scale(900, 50_000);
    Rig::both("come and go", LIMITS, |rig| {
        for number in 0..count {
            let mut stream = rig.tcp().expect("connects");
            let _ = match number % 3 {
                0 => Ok(()),
                1 => stream.write_all(b"\x16\x03\x01\x02\x00"),
                _ => stream.write_all(GET.as_bytes()),
            };
        }
    });
}

/// A participant of two keygens, who waits for them.
struct Waiting<'a> {
    rig: &'a Rig,
    entropy: Entropy,
    keygens: u8,
}

impl Waiting<'_> {
    fn request(&mut self, method: Method, target: &str, body: &[u8]) -> Vec<u8> {
        let authority = self.rig.address.as_str();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let unix_ms = u64::try_from(since.as_millis()).expect("soon enough");
        let subject = Subject { method, authority, target, body };
        let proof = subject.prove(&key(9), unix_ms, &mut self.entropy).expect("entropy");
        let (method, length) = (method.as_str(), body.len());
        let head = format!("{method} {target} HTTP/1.1\r\nHost: {authority}\r\nKeyMeld-Proof: {proof}\r\n");
        let length = if length > 0 { format!("Content-Length: {length}\r\n") } else { String::new() };
        [format!("{head}{length}\r\n").as_bytes(), body].concat()
    }

    /// Reserves, once the enclave is there.
    fn reserve(&mut self) {
        let slot = |user: u8| SlotRequest { user_id: UserId([user; 16]), slot_key: key(user).public() };
        for number in 0..self.keygens {
            let body = strict::to_json(&ReserveRequest {
                keygen_id: KeygenId([number; 16]),
                session_key: key(9).public(),
                coordinator: UserId([1; 16]),
                slots: vec![slot(1), slot(2)],
                timeout_ms: None,
            });
            let begun = Instant::now();
            loop {
                let request = self.request(Method::Post, "/api/v1/keygen/reserve", &body);
                let answer = self.rig.send(&request).read_one();
                if answer.starts_with("HTTP/1.1 20") {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE && answer.starts_with("HTTP/1.1 503 "), "{answer}");
            }
        }
    }

    fn poll(&mut self, number: usize, wait_ms: u32) -> Wire {
        let keygen = KeygenId([u8::try_from(number % usize::from(self.keygens)).expect("few"); 16]);
        let target = format!("/api/v1/keygen/{keygen}/status?wait_ms={wait_ms}");
        let request = self.request(Method::Get, &target, b"");
        self.rig.send(&request)
    }

    /// Asks shortly until the answer has this status.
    fn await_status(&mut self, status: u16) {
        let begun = Instant::now();
        while !self.poll(0, 1).read_one().starts_with(&format!("HTTP/1.1 {status} ")) {
            assert!(begun.elapsed() < PATIENCE, "never {status}");
        }
    }
}

fn key(byte: u8) -> AuthKey {
    AuthKey::new(&Secret::copied_from(&[byte; 32])).expect("a key")
}

#[test]
fn parked_long_polls_keep_nobody_out_and_those_who_leave_make_way() {
    let count = scale(300, 500);
    let limits = format!("{LIMITS}parked_max = {count}\n");
    Rig::both("parked long polls", &limits, |rig| {
        let at = rig.folder().display();
        let text = format!(
            "enclave_id = \"{ENCLAVE}\"\nlisten = \"unix:{at}/enclave.sock\"\n\
             [development]\nstate_dir = \"{at}/state\"\n"
        );
        let settings = keymeld_enclave::Config::from_toml(&text, []).expect("good settings");
        let enclave = keymeld_enclave::start(&settings).expect("starts");
        let mut waiting = Waiting { rig, entropy: test_entropy(7), keygens: 3 };
        waiting.reserve();
        let rest = waiting.rig.at_rest();
        for _ in 0..scale(1, 5) {
            let mut parked: Vec<Wire> = (0..count).map(|number| waiting.poll(number, 30_000)).collect();
            // One more is too many, once all of them wait: before, it would take a place of theirs.
            waiting.rig.await_parked(rest, count);
            waiting.await_status(429);
            assert!(parked.iter().all(|wire| !wire.is_closed()));
            // They leave without a word. Whoever comes next gets a place, and they are forgotten.
            let stay = parked.split_off(count / 2);
            drop(parked);
            waiting.await_status(200);
            let next: Vec<Wire> = (0..count / 2).map(|number| waiting.poll(number, 30_000)).collect();
            waiting.rig.await_parked(rest, count);
            waiting.await_status(429);
            assert!(stay.iter().chain(&next).all(|wire| !wire.is_closed()));
            drop((stay, next));
            waiting.await_status(200);
        }
        enclave.stop();
    });
}
