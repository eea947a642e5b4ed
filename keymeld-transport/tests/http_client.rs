//! The HTTP client against the listener and against peers that misbehave.
#![allow(clippy::unwrap_used, reason = "clippy knows test functions only, not what they share")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keymeld_core::api::http::{Method, Request, Response};
use keymeld_core::limits::ANSWER_BYTES_MAX;
use keymeld_transport::http::client::{Client, ClientError, OTHER_CONTENT_TYPE, Outgoing};
use keymeld_transport::http::server::{Responder, Server, ServerLimits};

fn get(target: &str) -> Outgoing<'_> {
    Outgoing { method: Method::Get, target, proof: None, authorization: None, body: b"", timeout_ms: 10_000 }
}

/// Answers every connection's first request with these bytes and then waits for its end.
fn answering(bytes: Vec<u8>) -> (Client, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        while matches!(stream.read(&mut request), Ok(1..)) {}
    });
    (client, thread)
}

#[test]
fn requests_arrive_as_given_and_every_status_is_a_reply() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = {
        let seen = Arc::clone(&seen);
        move |request: Request, responder: Responder| {
            let status = request.target[1..4].parse().unwrap();
            seen.lock().unwrap().push(request);
            responder.send(Response {
                status,
                content_type: "application/problem+json",
                retry_after_s: Some(7),
                body: b"{}".to_vec(),
            });
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(listener, ServerLimits::default(), None, Arc::new(service)).unwrap();
    let client = Client::new(&format!("http://{}/", server.address())).unwrap();
    for (method, status, body) in [
        (Method::Get, 200, &b""[..]),
        (Method::Get, 307, b""),
        (Method::Get, 404, b""),
        (Method::Post, 409, b"{\"a\":1}"),
        (Method::Post, 429, b""),
        (Method::Delete, 500, b""),
        (Method::Delete, 503, b"{}"),
    ] {
        let target = format!("/{status}?x=%20y&z");
        let outgoing = Outgoing {
            method,
            target: &target,
            proof: Some("proof"),
            authorization: Some("Bearer token"),
            body,
            timeout_ms: 10_000,
        };
        let reply = client.send(&outgoing).unwrap();
        assert_eq!((reply.status, reply.retry_after_s), (status, Some(7)));
        assert_eq!((reply.content_type, &reply.body[..]), ("application/problem+json", &b"{}"[..]));
        let request = seen.lock().unwrap().pop().unwrap();
        assert_eq!((request.method, request.target.as_str(), &request.body[..]), (method, &target[..], body));
        assert_eq!(request.authority, client.authority());
        assert_eq!(request.proof.as_deref(), Some("proof"));
        assert_eq!(request.authorization.as_deref(), Some("Bearer token"));
    }
    // One connection served them all.
    assert_eq!(server.counts(), (0, 1));
}

#[test]
fn a_refused_connection_is_unreachable() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(&format!("http://{address}")).unwrap();
    assert_eq!(client.send(&get("/")), Err(ClientError::Unreachable));
}

#[test]
fn a_silent_peer_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let begun = Instant::now();
    assert_eq!(client.send(&Outgoing { timeout_ms: 80, ..get("/") }), Err(ClientError::TimedOut));
    assert!(begun.elapsed() >= Duration::from_millis(80) && begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_body_that_never_ends_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let peer: JoinHandle<TcpStream> = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").unwrap();
        stream
    });
    assert_eq!(client.send(&Outgoing { timeout_ms: 80, ..get("/") }), Err(ClientError::TimedOut));
    drop(peer.join().unwrap());
}

#[test]
fn replies_that_are_too_large_cut_off_or_no_http_are_told_apart() {
    let mut large = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    large.resize(large.len() + ANSWER_BYTES_MAX + 1, b'a');
    for (bytes, error) in [
        (large, ClientError::TooLarge),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec(), ClientError::Unreachable),
        (b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), ClientError::Malformed),
        (Vec::new(), ClientError::Unreachable),
    ] {
        let (client, thread) = answering(bytes.clone());
        assert_eq!(
            client.send(&get("/")),
            Err(error),
            "{:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(60)])
        );
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn other_content_types_and_dates_are_not_passed_on() {
    let (client, thread) = answering(
        b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n\
          Content-Length: 2\r\nConnection: close\r\n\r\nno"
            .to_vec(),
    );
    let expected =
        Response { status: 502, content_type: OTHER_CONTENT_TYPE, retry_after_s: None, body: b"no".to_vec() };
    assert_eq!(client.send(&get("/")), Ok(expected));
    drop(client);
    thread.join().unwrap();
}

#[test]
fn what_cannot_be_written_is_malformed() {
    let client = Client::new("http://127.0.0.1:9").unwrap();
    assert_eq!(client.send(&get("no-slash")), Err(ClientError::Malformed));
    assert_eq!(client.send(&get("/ space")), Err(ClientError::Malformed));
    let outgoing = Outgoing { proof: Some("a\r\nb"), ..get("/") };
    assert_eq!(client.send(&outgoing), Err(ClientError::Malformed));
}
