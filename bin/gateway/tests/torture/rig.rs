//! A gateway process under torture, somebody else who goes on asking it, and what it costs meanwhile.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keymeld_core::api::http::Method;
use keymeld_transport::http::client::{Client, Outgoing, Roots};
use keymeld_transport::link::pool::PoolOptions;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

/// Nothing that a gateway does at once takes longer, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What somebody else waits for an answer at most, while the gateway is tortured.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// How often somebody else asks.
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// Bytes of the process's memory at its highest, in every case: 64 MiB of it may be large bodies under way.
const RESIDENT_KIB_MAX: u64 = 192 * 1024;

pub(crate) const ENCLAVE: &str = "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47";

/// Times that a test can wait out.
pub(crate) const LIMITS: &str =
    "request_time_ms = 3000\nidle_ms = 2000\nwrite_time_ms = 500\nlinger_ms = 100\n";

/// The first where everything is to be short, the second for `ci/torture`.
pub(crate) fn scale(short: usize, long: usize) -> usize {
    if std::env::var("KEYMELD_TORTURE").as_deref() == Ok("long") { long } else { short }
}

/// A connection to the gateway, in the clear or under TLS.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => &stream.sock,
        }
    }

    /// Whatever comes until the gateway closes, which it has to.
    pub(crate) fn read_all(&mut self) -> String {
        let (begun, mut all, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
        loop {
            match self.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => all.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("neither answered nor closed"),
                // A reset, or an end that TLS was not told of.
                Err(_) => break,
            }
            assert!(begun.elapsed() < PATIENCE);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Reads one response.
    pub(crate) fn read_one(&mut self) -> String {
        let (mut all, mut byte) = (Vec::new(), [0]);
        let text = |all: &[u8]| String::from_utf8_lossy(all).into_owned();
        while !all.ends_with(b"\r\n\r\n") {
            self.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {}", text(&all)));
            all.push(byte[0]);
        }
        let head = text(&all);
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
        let mut body = vec![0; length.parse().expect("a length")];
        self.read_exact(&mut body).expect("a whole body");
        head + &text(&body)
    }

    /// Whether the gateway has closed it, found out without waiting.
    pub(crate) fn is_closed(&self) -> bool {
        let socket = self.socket();
        socket.set_nonblocking(true).expect("a socket");
        let mut piece = [0; 4096];
        let closed = loop {
            match (&*socket).read(&mut piece) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        socket.set_nonblocking(false).expect("a socket");
        closed
    }
}

impl Read for Wire {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(piece),
            Wire::Tls(stream) => stream.read(piece),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// What a process has of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    resident_kib: u64,
    highest_kib: u64,
    threads: u64,
    descriptors: u64,
}

/// One certificate and key for all gateways here, which vouches for itself.
fn certificate() -> &'static (String, String) {
    static MADE: OnceLock<(String, String)> = OnceLock::new();
    MADE.get_or_init(|| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        (params.self_signed(&key).expect("signs").pem(), key.serialize_pem())
    })
}

/// A gateway and somebody who asks for its health all the while.
pub(crate) struct Rig {
    name: String,
    pub(crate) folder: TempDir,
    child: Child,
    pub(crate) address: String,
    tls: Option<Arc<ClientConfig>>,
    base: Cost,
    prober: Option<(Sender<()>, JoinHandle<Probes>)>,
    /// Whether a probe may be turned away.
    lenient: bool,
}

#[derive(Default)]
struct Probes {
    answered: u64,
    turned_away: u64,
    slowest: Duration,
}

impl Rig {
    /// In the clear, then under TLS.
    pub(crate) fn both(name: &str, limits: &str, torture: impl Fn(&Rig)) {
        for tls in [false, true] {
            let rig = Rig::start(name, tls, limits, None);
            torture(&rig);
            rig.end();
        }
    }

    pub(crate) fn start(name: &str, tls: bool, limits: &str, descriptors_max: Option<u32>) -> Rig {
        let folder = TempDir::new().expect("a folder");
        let at = folder.path();
        let mut text = format!(
            "listen = \"127.0.0.1:0\"\ndatabase = \"gateway.db\"\n\
             [[enclaves]]\nid = \"{ENCLAVE}\"\naddress = \"unix:enclave.sock\"\n[http]\n{limits}"
        );
        let mut trusting = None;
        if tls {
            let (pem, key) = certificate();
            fs::write(at.join("certificate.pem"), pem).expect("writes");
            fs::write(at.join("key.pem"), key).expect("writes");
            text += "[tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n";
            trusting = Some(trust(pem));
        }
        fs::write(at.join("gateway.toml"), text).expect("writes");
        let limit = descriptors_max.map_or(String::new(), |max| format!("ulimit -n {max}; "));
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limit}exec \"$0\" --config gateway.toml")])
            .arg(env!("CARGO_BIN_EXE_keymeld-gateway"))
            .current_dir(at)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("{\"listening\":\"").and_then(|rest| rest.strip_suffix("\"}"));
        let address = address.unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let name = format!("{name}{}", if tls { ", TLS" } else { "" });
        let base = cost(child.id());
        let mut rig = Rig { name, folder, child, address, tls: trusting, base, prober: None, lenient: false };
        // What a first request sets up is no leak.
        assert!(rig.health(), "it runs");
        rig.base = rig.settled(|_| true);
        rig.prober = Some(rig.probe());
        rig
    }

    /// One whose descriptors run out may turn others away meanwhile.
    pub(crate) fn lenient(mut self) -> Rig {
        self.lenient = true;
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A connection without TLS, whatever the gateway expects.
    pub(crate) fn tcp(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    pub(crate) fn try_open(&self) -> io::Result<Wire> {
        let mut stream = self.tcp()?;
        Ok(match &self.tls {
            None => Wire::Plain(stream),
            Some(config) => {
                let name = "127.0.0.1".try_into().expect("an address");
                let mut conn = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                while conn.is_handshaking() {
                    conn.complete_io(&mut stream)?;
                }
                Wire::Tls(Box::new(StreamOwned::new(conn, stream)))
            }
        })
    }

    pub(crate) fn open(&self) -> Wire {
        self.try_open().expect("connects")
    }

    /// Sends bytes on a connection of their own; the gateway may close before it has all of them.
    pub(crate) fn send(&self, bytes: &[u8]) -> Wire {
        let mut wire = self.open();
        let _ = wire.write_all(bytes);
        wire
    }

    /// Whether somebody else is answered, on a new connection.
    pub(crate) fn health(&self) -> bool {
        ask_health(&client(&self.address, self.is_tls()))
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> u64 {
        cost(self.child.id()).descriptors
    }

    /// The least that it takes within half a second: nobody else's request is under way then.
    pub(crate) fn at_rest(&self) -> Cost {
        // Each connection of the link has a thread once it is up; the first is enough to serve requests.
        let connected = |name: &String| name == "link-write";
        let begun = Instant::now();
        while threads(self.child.id()).iter().filter(|name| connected(name)).count()
            < PoolOptions::CONNECTIONS
        {
            assert!(begun.elapsed() < PATIENCE, "the link does not come up");
            thread::yield_now();
        }
        let begun = Instant::now();
        let mut least = cost(self.child.id());
        while begun.elapsed() < Duration::from_millis(500) {
            let now = cost(self.child.id());
            if (now.threads, now.descriptors) < (least.threads, least.descriptors) {
                least = now;
            }
            thread::yield_now();
        }
        least
    }

    /// Waits until so many connections more are open, and none of them has a thread.
    pub(crate) fn await_parked(&self, rest: Cost, count: usize) {
        let descriptors = rest.descriptors + count as u64;
        self.settled(|now| now.threads <= rest.threads && now.descriptors >= descriptors);
    }

    pub(crate) fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &process]).status().expect("kill runs").success());
    }

    fn probe(&self) -> (Sender<()>, JoinHandle<Probes>) {
        let (stop, stopped) = mpsc::channel();
        let (address, tls) = (self.address.clone(), self.is_tls());
        let asking = move || {
            let mut probes = Probes::default();
            loop {
                let begun = Instant::now();
                if ask_health(&client(&address, tls)) {
                    probes.answered += 1;
                } else {
                    probes.turned_away += 1;
                }
                probes.slowest = probes.slowest.max(begun.elapsed());
                if stopped.recv_timeout(PROBE_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return probes;
                }
            }
        };
        (stop, thread::spawn(asking))
    }

    /// Reads costs until they are as wanted.
    fn settled(&self, wanted: impl Fn(&Cost) -> bool) -> Cost {
        let begun = Instant::now();
        loop {
            let now = cost(self.child.id());
            // The last request's connection may still be closing.
            if wanted(&now) && begun.elapsed() > Duration::from_millis(150) {
                return now;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{}: {now:?} after {:?}, with the threads {:?}",
                self.name,
                self.base,
                threads(self.child.id())
            );
            thread::yield_now();
        }
    }

    /// Checks that others were served, that what was taken was given back, and prints a line.
    fn check(&mut self) {
        let (stop, prober) = self.prober.take().expect("probing");
        drop(stop);
        let probes = prober.join().expect("no panic");
        let (name, base) = (self.name.clone(), self.base);
        assert!(probes.slowest < PROBE_MAX, "{name}: somebody else waited {:?}", probes.slowest);
        assert!(self.lenient || probes.turned_away == 0, "{name}: {} turned away", probes.turned_away);
        let begun = Instant::now();
        while !self.health() {
            assert!(self.lenient && begun.elapsed() < PATIENCE, "{name}: it does not answer any more");
        }
        let after = self.settled(|now| now.threads <= base.threads && now.descriptors <= base.descriptors);
        assert!(after.highest_kib < RESIDENT_KIB_MAX, "{name}: {after:?}");
        println!(
            "ok  {name}: {} probes, slowest {} ms, {} turned away; {} KiB before, {} after, {} at the most",
            probes.answered,
            probes.slowest.as_millis(),
            probes.turned_away,
            base.resident_kib,
            after.resident_kib,
            after.highest_kib,
        );
    }

    pub(crate) fn end(mut self) {
        self.check();
        self.signal("TERM");
        assert_eq!(self.child.wait().expect("ends").code(), Some(0), "{}", self.name);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Only a test that fails leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(address: &str, tls: bool) -> Client {
    let scheme = if tls { "https" } else { "http" };
    let roots = Roots::from_pem(certificate().0.as_bytes()).expect("a certificate");
    Client::with_roots(&format!("{scheme}://{address}"), &roots).expect("a URL")
}

fn ask_health(client: &Client) -> bool {
    let outgoing = Outgoing {
        method: Method::Get,
        target: "/api/v1/health",
        proof: None,
        authorization: None,
        body: b"",
        timeout_ms: 10_000,
    };
    client.send(&outgoing).is_ok_and(|reply| reply.status == 200)
}

fn trust(pem: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(config.expect("versions").with_root_certificates(roots).with_no_client_auth())
}

/// The names of a process's threads.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it lives");
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).map(|name| name.trim().to_owned()).collect()
}

fn cost(process: u32) -> Cost {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of Linux");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("it lives").count();
    Cost {
        resident_kib: field("VmRSS:"),
        highest_kib: field("VmHWM:"),
        threads: field("Threads:"),
        descriptors: descriptors as u64,
    }
}
