//! Requests that are none, are too large, or end in more than one way.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::{LIMITS, PATIENCE, Rig, Wire, scale};

const GET: &str = "GET /api/v1/health HTTP/1.1\r\nHost: a\r\n";
const POST: &str = "POST /api/v1/keygen/reserve HTTP/1.1\r\nHost: a\r\n";

/// Each is answered once, with this status, and its connection closed, whatever stands behind it.
fn refused() -> Vec<(u16, String)> {
    let smuggled = format!("{GET}\r\n{GET}\r\n");
    let chunked = format!("0\r\n\r\n{smuggled}");
    let with = |headers: &str, rest: &str| format!("{POST}{headers}\r\n\r\n{rest}");
    vec![
        (413, with("Content-Length: 1000000000000000", &smuggled)),
        (413, with("Content-Length: 99999999999999999999999999", &smuggled)),
        (413, with("Content-Length: 4194305", "")),
        (400, with("Content-Length: 2\r\nContent-Length: 2", &smuggled)),
        (400, with("Content-Length: 0\r\nContent-Length: 44", &smuggled)),
        (400, with("Content-Length: 2, 2", &smuggled)),
        (400, with("Content-Length: -1", &smuggled)),
        (400, with("Content-Length: 0x10", &smuggled)),
        (400, with("Content-Length:\t\r\n 5", &smuggled)),
        (400, with("Content-Length : 5", &smuggled)),
        (400, with("Content\0-Length: 5", &smuggled)),
        (501, with("Transfer-Encoding: chunked", &chunked)),
        (501, with("Transfer-Encoding: chunked\r\nContent-Length: 5", &chunked)),
        (501, with("Content-Length: 5\r\nTransfer-Encoding: chunked", &chunked)),
        (501, with("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", &chunked)),
        (501, with("TRANSFER-ENCODING:\tchunked", &chunked)),
        (501, with("Transfer-Encoding: xchunked", &chunked)),
        (400, with("Transfer-Encoding : chunked", &chunked)),
        (400, with("Transfer-Encoding\r\n : chunked", &chunked)),
        (400, with("X: 1\nTransfer-Encoding: chunked", &chunked)),
        (400, with("X: 1\rTransfer-Encoding: chunked", &chunked)),
        (400, format!("GET /api/v1/health HTTP/1.1\nHost: a\n\n{smuggled}")),
        (400, format!("{GET}\n{smuggled}")),
        (400, format!("\r\n\r\n{smuggled}")),
        (400, format!("{GET}Content-Length: 5\r\n\r\n{smuggled}")),
        (400, format!("{GET}Host: b\r\n\r\n{smuggled}")),
        (400, format!("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n{smuggled}")),
        (417, with("Expect: 200-ok\r\nContent-Length: 5", &smuggled)),
        (431, format!("{GET}{}\r\n", "A: b\r\n".repeat(1_000))),
        (431, format!("{GET}{}\r\n", "A: b\r\n".repeat(10_000))),
        (431, format!("{GET}X: {}", "a".repeat(20_000))),
        (405, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        (405, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        // HTTP/0.9, which has neither version nor headers.
        (400, "GET /api/v1/health\r\n\r\n".to_owned()),
        (408, "GET /api/v1/health\r\n".to_owned()),
        // HTTP/2, whose preface is made to be refused like this.
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned()),
        (505, "GET / HTTP/3\r\nHost: a\r\n\r\n".to_owned()),
        (400, "\u{5}\u{1}\0".to_owned()),
        (400, "\0".repeat(1_000)),
        (400, "\u{7f}\u{80}\u{ff}".repeat(10_000)),
    ]
}

#[test]
fn what_can_be_read_in_more_than_one_way_is_answered_once_and_closed() {
    Rig::both("requests that are none", LIMITS, |rig| {
        for (status, text) in refused() {
            let answers = rig.send(text.as_bytes()).read_all();
            assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{text:.120}: {answers}");
            assert_eq!(answers.matches("\r\nCache-Control: ").count(), 1, "{text:.120}: {answers}");
            assert!(answers.contains("Connection: close\r\n") && answers.ends_with('}'), "{answers}");
        }
    });
}

#[test]
fn a_header_line_of_100_mib_is_cut_off_at_the_limit() {
    Rig::both("a header line of 100 MiB", LIMITS, |rig| {
        let mut wire = rig.send(format!("{GET}X: ").as_bytes());
        let (begun, piece) = (Instant::now(), vec![b'a'; 1024 * 1024]);
        let taken = (0..100).take_while(|_| wire.write_all(&piece).is_ok()).count();
        // What it read, what it threw away, and what the sockets hold.
        assert!(taken < 30, "{taken} MiB were taken");
        assert!(begun.elapsed() < PATIENCE);
    });
}

#[test]
fn deep_json_is_refused_and_the_connection_goes_on() {
    Rig::both("10^5 nested JSON", LIMITS, |rig| {
        let mut wire = rig.open();
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let (open, close) = (open.repeat(100_000), close.repeat(100_000));
            for body in [format!("{open}1{close}"), open] {
                write!(wire, "{POST}Content-Length: {}\r\n\r\n{body}", body.len()).expect("writes");
                let answer = wire.read_one();
                assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("\"code\":\""), "{answer}");
                assert!(answer.contains("Connection: keep-alive"), "{answer}");
            }
        }
        wire.write_all(format!("{GET}\r\n").as_bytes()).expect("writes");
        assert!(wire.read_one().starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn pipelined_requests_are_answered_one_after_the_other() {
    let count = scale(1_000, 50_000);
    Rig::both("pipelining", LIMITS, |rig| {
        let mut wire = rig.open();
        for _ in 0..count / 100 {
            wire.write_all(format!("{GET}\r\n").repeat(100).as_bytes()).expect("writes");
            for _ in 0..100 {
                assert!(wire.read_one().starts_with("HTTP/1.1 200 "));
            }
        }
    });
}

#[test]
fn whoever_asks_on_and_reads_nothing_is_closed() {
    Rig::both("asking without reading", LIMITS, |rig| {
        let many = format!("{GET}\r\n").repeat(1_000);
        let mut deaf: Vec<Wire> = (0..scale(4, 50)).map(|_| rig.open()).collect();
        for wire in &mut deaf {
            let begun = Instant::now();
            // Until the sockets are full and the gateway does not wait any longer.
            while wire.write_all(many.as_bytes()).is_ok() {
                assert!(begun.elapsed() < PATIENCE);
            }
        }
    });
}

#[test]
fn half_closed_connections_are_answered_as_far_as_they_asked() {
    Rig::both("half-closed sockets", LIMITS, |rig| {
        let close = |wire: &Wire| wire.socket().shutdown(Shutdown::Write).expect("a socket");
        let mut whole = rig.send(format!("{GET}\r\n").as_bytes());
        close(&whole);
        assert!(whole.read_all().starts_with("HTTP/1.1 200 "));
        for part in
            [String::new(), "GET /".into(), GET.into(), format!("{POST}Content-Length: 9\r\n\r\n{{}}")]
        {
            let mut wire = rig.send(part.as_bytes());
            close(&wire);
            assert_eq!(wire.read_all(), "", "{part}");
        }
        let silent: Vec<Wire> = (0..scale(100, 400)).map(|_| rig.send(b"GET /api")).collect();
        silent.iter().for_each(close);
        let begun = Instant::now();
        while !silent.iter().all(Wire::is_closed) {
            assert!(begun.elapsed() < PATIENCE);
            thread::yield_now();
        }
    });
}

#[test]
fn another_protocol_is_turned_away_at_once() {
    let rig = Rig::start("a TLS hello to the plain port", false, LIMITS, None);
    // A record of 512 bytes, of which 11 have come: nothing to wait for.
    for hello in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\x16"] {
        let begun = Instant::now();
        assert!(rig.send(hello).read_all().starts_with("HTTP/1.1 400 "));
        assert!(begun.elapsed() < Duration::from_millis(2_500));
    }
    rig.end();
    let rig = Rig::start("plain HTTP to the TLS port", true, LIMITS, None);
    for text in [format!("{GET}\r\n"), "G".into(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "\n".into()] {
        let begun = Instant::now();
        let mut wire = Wire::Plain(rig.tcp().expect("connects"));
        wire.write_all(text.as_bytes()).expect("writes");
        let answer = wire.read_all();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("tls-required"), "{answer}");
        assert!(begun.elapsed() < Duration::from_millis(2_500));
    }
    rig.end();
}
