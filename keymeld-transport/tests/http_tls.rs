//! The listener and the client over TLS, with certificates made here.
#![allow(clippy::unwrap_used, reason = "clippy knows test functions only, not what they share")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use keymeld_core::api::http::{Method, Request, Response};
use keymeld_transport::http::client::{Client, ClientError, Outgoing, Roots, RootsError};
use keymeld_transport::http::server::{Responder, Server, ServerLimits, Tls, TlsError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, in PEM.
    fn certify(&self, host: &str, until_year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(until_year, 1, 1);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn roots(&self) -> Roots {
        Roots::from_pem(self.pem.as_bytes()).unwrap()
    }
}

/// A certificate's two files.
struct Files(TempDir);

impl Files {
    fn new((certificate, key): &(String, String)) -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write(certificate, key);
        files
    }

    fn write(&self, certificate: &str, key: &str) {
        fs::write(self.0.path().join("certificate.pem"), certificate).unwrap();
        fs::write(self.0.path().join("key.pem"), key).unwrap();
    }

    fn load(&self) -> Result<Tls, TlsError> {
        Tls::load(&self.0.path().join("certificate.pem"), &self.0.path().join("key.pem"))
    }
}

type Waiting = Receiver<Responder>;

/// A listener for `127.0.0.1` that answers with the body, and parks `/park` for the test.
fn start(limits: ServerLimits) -> (Server, Authority, Waiting) {
    let authority = Authority::new();
    let tls = Files::new(&authority.certify("127.0.0.1", 2100)).load().unwrap();
    let (server, waiting) = serve(limits, tls.into());
    (server, authority, waiting)
}

fn serve(limits: ServerLimits, tls: Arc<Tls>) -> (Server, Waiting) {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let service = move |request: Request, responder: Responder| {
        if request.target == "/park" {
            sender.lock().unwrap().send(responder.park(|| {}).unwrap()).unwrap();
        } else {
            let mut body = request.authority.into_bytes();
            body.extend_from_slice(&request.body);
            responder.send(json(body));
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (Server::start(listener, limits, Some(tls), Arc::new(service)).unwrap(), receiver)
}

fn json(body: impl Into<Vec<u8>>) -> Response {
    Response { status: 200, content_type: "application/json", retry_after_s: None, body: body.into() }
}

fn get(target: &str) -> Outgoing<'_> {
    Outgoing { method: Method::Get, target, proof: None, authorization: None, body: b"", timeout_ms: 10_000 }
}

/// A TLS client under the test's control.
type Peer = StreamOwned<ClientConnection, TcpStream>;

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // A goodbye is not to wait for what came before it to be acknowledged.
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn offer(authority: &Authority, protocols: &[&str]) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap()
}

fn peer(server: &Server, authority: &Authority) -> Peer {
    let mut peer = StreamOwned::new(offer(authority, &[]), tcp(server.address()));
    peer.conn.complete_io(&mut peer.sock).unwrap();
    peer
}

fn reply(peer: &mut Peer) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"}") {
        let mut byte = [0];
        peer.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Waits for so many parked requests and connections with a thread.
fn wait_for_counts(server: &Server, counts: (usize, usize)) {
    let begun = Instant::now();
    while server.counts() != counts {
        assert!(begun.elapsed() < PATIENCE, "{:?}", server.counts());
        thread::yield_now();
    }
}

/// The listener's closing, said under TLS.
fn says_goodbye(peer: &mut Peer) -> bool {
    matches!(peer.read(&mut [0; 64]), Ok(0))
}

#[test]
fn a_client_with_its_own_authority_is_served_over_one_connection() {
    let (server, authority, _) = start(ServerLimits::default());
    let client = Client::with_roots(&format!("https://{}", server.address()), &authority.roots()).unwrap();
    let large = vec![b'a'; ServerLimits::BODY_BYTES_MAX];
    for body in [&b"hi"[..], &large, b""] {
        let outgoing = Outgoing { method: Method::Post, body, ..get("/") };
        let reply = client.send(&outgoing).unwrap();
        assert_eq!(reply.body.len(), client.authority().len() + body.len());
        assert!(reply.body.starts_with(client.authority().as_bytes()) && reply.body.ends_with(body));
    }
    assert_eq!(server.counts(), (0, 1));
    server.shutdown(PATIENCE);
}

#[test]
fn a_certificate_of_somebody_else_for_another_host_or_expired_is_not_trusted() {
    let (one, other) = (Authority::new(), Authority::new());
    for (certificate, roots, trusted) in [
        (one.certify("127.0.0.1", 2100), one.roots(), true),
        (one.certify("127.0.0.1", 2100), other.roots(), false),
        (one.certify("127.0.0.1", 2100), Roots::mozilla(), false),
        (one.certify("gateway.example", 2100), one.roots(), false),
        (one.certify("127.0.0.2", 2100), one.roots(), false),
        (one.certify("127.0.0.1", 2002), one.roots(), false),
    ] {
        let tls = Files::new(&certificate).load().unwrap();
        let (server, _) = serve(ServerLimits::default(), tls.into());
        let client = Client::with_roots(&format!("https://{}", server.address()), &roots).unwrap();
        let outcome = client.send(&get("/")).map(|reply| reply.status);
        assert_eq!(outcome, if trusted { Ok(200) } else { Err(ClientError::Untrusted) });
    }
    assert_eq!(Roots::from_pem(b"").err(), Some(RootsError));
    assert_eq!(Roots::from_pem(one.certify("a", 2100).1.as_bytes()).err(), Some(RootsError));
    let broken = one.pem.replace("MI", "AA");
    assert_eq!(Roots::from_pem(broken.as_bytes()).err(), Some(RootsError));
}

#[test]
fn http_and_https_do_not_mix() {
    let (server, authority, _) = start(ServerLimits::default());
    let plain = Client::new(&format!("http://{}", server.address())).unwrap();
    let reply = plain.send(&get("/")).unwrap();
    assert_eq!(reply.status, 400);
    assert!(String::from_utf8(reply.body).unwrap().contains("\"code\":\"tls-required\""));

    let service = |_: Request, responder: Responder| responder.send(json("{}"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let clear = Server::start(listener, ServerLimits::default(), None, Arc::new(service)).unwrap();
    let client = Client::with_roots(&format!("https://{}", clear.address()), &authority.roots()).unwrap();
    let begun = Instant::now();
    assert_eq!(client.send(&get("/")), Err(ClientError::Malformed));
    assert!(begun.elapsed() < Duration::from_millis(ServerLimits::REQUEST_TIME_MS) / 2);
}

#[test]
fn new_connections_get_what_was_reloaded_and_bad_files_change_nothing() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new(&old.certify("127.0.0.1", 2100));
    let tls = Arc::new(files.load().unwrap());
    let (server, _) = serve(ServerLimits::default(), Arc::clone(&tls));
    let url = format!("https://{}", server.address());
    let ask = |roots| Client::with_roots(&url, &roots).unwrap().send(&get("/")).map(|reply| reply.status);
    let kept = Client::with_roots(&url, &old.roots()).unwrap();
    assert_eq!(kept.send(&get("/")).map(|reply| reply.status), Ok(200));

    let (certificate, key) = new.certify("127.0.0.1", 2100);
    let (_, stranger) = new.certify("127.0.0.1", 2100);
    for (certificate, key) in [
        (certificate.as_str(), stranger.as_str()),
        (&certificate, ""),
        (&certificate, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("", &key),
        (&key, &key),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key),
        (&"x".repeat(2_000_000), &key),
    ] {
        files.write(certificate, key);
        let error = tls.reload().unwrap_err().to_string();
        assert!(!error.contains('\n') && error.contains(".pem: "), "{error}");
        assert_eq!(ask(old.roots()), Ok(200));
    }
    files.write(&certificate, &key);
    tls.reload().unwrap();
    assert_eq!(ask(new.roots()), Ok(200));
    assert_eq!(ask(old.roots()), Err(ClientError::Untrusted));
    // A connection is not asked twice.
    assert_eq!(kept.send(&get("/")).map(|reply| reply.status), Ok(200));
    assert!(!format!("{tls:?}").contains("PRIVATE"));
}

#[test]
fn a_long_poll_is_parked_and_resumed() {
    let (server, authority, waiting) = start(ServerLimits::default());
    let mut peer = peer(&server, &authority);
    for round in 0..2 {
        // The second request comes with the first.
        peer.write_all(b"GET /park HTTP/1.1\r\nHost: h\r\n\r\nPOST / HTTP/1.1\r\nHost: h\r\n").unwrap();
        let responder = waiting.recv_timeout(PATIENCE).unwrap();
        wait_for_counts(&server, (1, 0));
        responder.send(json(format!("{{\"{round}\":1}}")));
        assert!(reply(&mut peer).ends_with(&format!("{{\"{round}\":1}}")));
        peer.write_all(b"Content-Length: 2\r\n\r\n{}").unwrap();
        assert!(reply(&mut peer).ends_with("h{}"));
    }
}

#[test]
fn a_peer_that_leaves_while_parked_makes_way() {
    let (server, authority, waiting) = start(ServerLimits { parked_max: 2, ..ServerLimits::default() });
    let ask = b"GET /park HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut leaving = peer(&server, &authority);
    let mut cut_off = peer(&server, &authority);
    let mut responders = Vec::new();
    for peer in [&mut leaving, &mut cut_off] {
        peer.write_all(ask).unwrap();
        responders.push(waiting.recv_timeout(PATIENCE).unwrap());
    }
    wait_for_counts(&server, (2, 0));
    leaving.conn.send_close_notify();
    leaving.conn.complete_io(&mut leaving.sock).unwrap();
    drop(cut_off);
    let mut stays = peer(&server, &authority);
    stays.write_all(ask).unwrap();
    let responder = waiting.recv_timeout(PATIENCE).unwrap();
    let late: Vec<bool> = responders.iter().map(Responder::is_too_late).collect();
    assert_eq!((late, responder.is_too_late()), (vec![true, true], false));
    responder.send(json("{}"));
    assert!(reply(&mut stays).ends_with("{}"));
}

#[test]
fn whoever_is_closed_is_told() {
    let limits = ServerLimits { idle_ms: 500, ..ServerLimits::default() };
    let (server, authority, waiting) = start(limits);
    let mut idle = peer(&server, &authority);
    idle.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}").unwrap();
    assert!(reply(&mut idle).ends_with("h{}") && says_goodbye(&mut idle));

    let mut refused = peer(&server, &authority);
    refused.write_all(b"GET / HTTP/3\r\n\r\n").unwrap();
    assert!(reply(&mut refused).contains("version-not-supported") && says_goodbye(&mut refused));

    let mut parked = peer(&server, &authority);
    parked.write_all(b"GET /park HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let responder = waiting.recv_timeout(PATIENCE).unwrap();
    wait_for_counts(&server, (1, 0));
    let begun = Instant::now();
    server.shutdown(Duration::from_millis(20));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(says_goodbye(&mut parked));
    drop(responder);
}

#[test]
fn an_end_tells_those_who_are_idle() {
    let (server, authority, _) = start(ServerLimits::default());
    let mut idle = peer(&server, &authority);
    idle.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}").unwrap();
    assert!(reply(&mut idle).ends_with("h{}"));
    let begun = Instant::now();
    server.shutdown(PATIENCE);
    assert!(begun.elapsed() < PATIENCE / 2);
    assert!(says_goodbye(&mut idle));
}

#[test]
fn a_handshake_takes_its_time_from_the_first_request() {
    let (server, authority, _) = start(ServerLimits { request_time_ms: 2_000, ..ServerLimits::default() });
    // Silent after the hello's first bytes, dripping bytes that announce a large record, or silent
    // after the handshake.
    let begun = Instant::now();
    let mut silent = tcp(server.address());
    silent.write_all(&[0x16, 3, 1]).unwrap();
    let mut dripping = tcp(server.address());
    dripping.write_all(&[0x16, 3, 1, 0x40, 0]).unwrap();
    dripping.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let mut secured = peer(&server, &authority);
    assert!(says_goodbye(&mut secured));
    let is_open = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    while begun.elapsed() < PATIENCE && dripping.read(&mut [0]).is_err_and(|error| is_open(&error)) {
        let _ = dripping.write_all(&[1]);
    }
    assert!(!matches!(silent.read(&mut [0]), Err(error) if is_open(&error)));
    assert!(begun.elapsed() >= Duration::from_secs(2) && begun.elapsed() < PATIENCE / 2);
    assert_eq!(server.counts().0, 0);
}

#[test]
fn a_handshake_without_end_is_cut_off() {
    let (server, authority, _) = start(ServerLimits::default());
    let begun = Instant::now();
    let mut stream = tcp(server.address());
    // A hello of 60,000 bytes in records of 4,096, whose end never comes.
    let mut sent = 0;
    let mut record = vec![0x16, 3, 1, 0x10, 0, 1, 0, 0xea, 0x60];
    record.resize(5 + 4096, 0);
    while sent < 60_000 && stream.write_all(&record).is_ok() {
        sent += 4096;
        record[5..9].fill(0);
    }
    let mut rest = Vec::new();
    // An alert, an end or a reset.
    let _ = stream.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_millis(ServerLimits::REQUEST_TIME_MS) / 2);
    assert!(peer(&server, &authority).conn.peer_certificates().is_some());
}

#[test]
fn nothing_but_http_1_1_is_agreed_on() {
    let (server, authority, _) = start(ServerLimits::default());
    let mut peer = StreamOwned::new(offer(&authority, &["h2", "http/1.1"]), tcp(server.address()));
    peer.conn.complete_io(&mut peer.sock).unwrap();
    assert_eq!(peer.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut peer = StreamOwned::new(offer(&authority, &["h2"]), tcp(server.address()));
    assert!(peer.conn.complete_io(&mut peer.sock).unwrap_err().to_string().contains("NoApplicationProtocol"));
}

#[test]
fn altered_and_foreign_records_end_their_connection_alone() {
    let (server, authority, _) = start(ServerLimits::default());
    for junk in [
        &b"\x17\x03\x03\x00\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"[..],
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x16\x03\x03\xff\xff",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    ] {
        let mut secured = peer(&server, &authority);
        secured.sock.write_all(junk).unwrap();
        let begun = Instant::now();
        assert!(secured.read(&mut [0; 64]).is_err());
        assert!(begun.elapsed() < PATIENCE / 2);
        let mut fresh = tcp(server.address());
        fresh.write_all(b"\x16\x03\x01\x00\x05").unwrap();
        fresh.write_all(junk).unwrap();
        let _ = fresh.read_to_end(&mut Vec::new());
    }
    let client = Client::with_roots(&format!("https://{}", server.address()), &authority.roots()).unwrap();
    assert_eq!(client.send(&get("/")).map(|reply| reply.status), Ok(200));
}
