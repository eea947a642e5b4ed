//! What the listener refuses by itself, before the API has seen it: problems of the same shape, and nothing changed.

use std::collections::BTreeSet;

use keymeld_core::refusal::Code;
use keymeld_transport::http::server::Refusal;

use crate::rig::{Rig, read_answer};

fn request(head: &str) -> Vec<u8> {
    format!("{head}\r\n\r\n").into_bytes()
}

/// Every refusal that bytes alone bring about.
fn cases() -> Vec<(Refusal, Vec<u8>)> {
    let get = "GET /api/v1/health HTTP/1.1\r\nHost: a";
    let post = "POST /api/v1/signing HTTP/1.1\r\nHost: a";
    vec![
        (Refusal::MalformedRequest, request("nonsense")),
        (Refusal::AmbiguousFraming, b"GET / HTTP/1.1\nHost: a\n\n".to_vec()),
        (Refusal::AmbiguousFraming, request(&format!("{post}\r\nContent-Length: 1\r\nContent-Length: 2"))),
        (Refusal::BadHost, request("GET /api/v1/health HTTP/1.1")),
        (Refusal::BadHost, request(&format!("{get}\r\nHost: b"))),
        (Refusal::BadHeader, request(&format!("{get}\r\nKeyMeld-Proof: 1\r\nKeyMeld-Proof: 1"))),
        (Refusal::BadTarget, request("GET http://a/api/v1/health HTTP/1.1\r\nHost: a")),
        (Refusal::UnexpectedBody, request(&format!("{get}\r\nContent-Length: 1"))),
        (Refusal::MethodNotAllowed, request("BREW /api/v1/health HTTP/1.1\r\nHost: a")),
        (Refusal::LengthRequired, request(post)),
        (Refusal::BodyTooLarge, request(&format!("{post}\r\nContent-Length: 1000000000000000"))),
        (Refusal::ExpectationFailed, request(&format!("{get}\r\nExpect: the-unexpected"))),
        (Refusal::HeadTooLarge, request(&format!("{get}\r\nX: {}", "x".repeat(17_000)))),
        (Refusal::TooManyHeaders, request(&format!("{get}{}", "\r\nX: 1".repeat(100)))),
        (Refusal::TransferEncoding, request(&format!("{post}\r\nTransfer-Encoding: chunked"))),
        (Refusal::VersionNotSupported, request("GET /api/v1/health HTTP/2.0\r\nHost: a")),
        // The first bytes of a request of which the rest never comes.
        (Refusal::RequestTimedOut, b"GET /api/v1/health HTT".to_vec()),
    ]
}

#[test]
fn what_the_listener_refuses_is_a_problem_with_a_code_and_changes_nothing() {
    let rig = Rig::without_enclaves(1, "[http]\nrequest_time_ms = 1000\n");
    let before = rig.rows();
    let mut shown = BTreeSet::new();
    for (refusal, bytes) in cases() {
        let mut stream = rig.begin_raw(&bytes);
        let problem = read_answer(&mut stream).problem();
        assert_eq!((problem.code.as_str(), problem.status), (refusal.code(), refusal.status()));
        assert_eq!(problem.title, refusal.title());
        shown.insert(refusal.code());
    }
    assert!(rig.rows() == before);
    rig_answers(&rig);

    // These take a service that does not answer, or more connections than this test opens: they are shown in
    // keymeld-transport/tests/http_server.rs, and the one of TLS in http_tls.rs. too-many is shown beside the
    // API's own.
    let elsewhere = [
        Refusal::Unanswered,
        Refusal::AnswerTimedOut,
        Refusal::TooManyConnections,
        Refusal::TooManyBytes,
        Refusal::TooManyParked,
        Refusal::TlsRequired,
    ];
    for refusal in Refusal::ALL {
        assert!(shown.contains(refusal.code()) != elsewhere.contains(&refusal), "{refusal:?}");
    }
    assert_eq!(Refusal::TooManyParked.code(), Code::TooMany.name());
}

/// Others are served all the while.
fn rig_answers(rig: &Rig) {
    let mut stream = rig.begin_raw(b"GET /api/v1/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(read_answer(&mut stream).status, 200);
}
