//! A gateway and its enclaves, asked over real sockets, and the checks that every refusal has to pass.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use keymeld_core::api::http::{Method, PROOF_HEADER};
use keymeld_core::api::problem::{PROBLEM_JSON, Problem};
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{AttestationResponse, EnclavesResponse, Failure, HealthResponse};
use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::bytes::{Hash, PublicKey, XOnlyKey};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};
use keymeld_core::id::EnclaveId;
use keymeld_core::refusal::{Code, Retry};
use keymeld_core::strict;
use keymeld_gateway::Running;
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// The largest answer that a test reads.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

thread_local! {
    /// The codes that this test has shown.
    static SEEN: RefCell<BTreeSet<Code>> = const { RefCell::new(BTreeSet::new()) };
}

/// Tells a story, which has to show exactly these codes.
pub(crate) fn show(codes: &[Code], mut rig: Rig, story: impl FnOnce(&mut Rig)) {
    SEEN.with_borrow_mut(BTreeSet::clear);
    story(&mut rig);
    assert_eq!(SEEN.take(), codes.iter().copied().collect(), "what is said to be shown is shown");
}

/// One request.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) target: String,
    /// The proof and the authorization where there are any, and whatever else a test wants.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Ask {
    /// Without a proof.
    pub(crate) fn plain(method: Method, path: &str, body: &[u8]) -> Ask {
        Ask {
            method: method.as_str(),
            target: format!("/api/v1/{path}"),
            headers: Vec::new(),
            body: body.to_vec(),
        }
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body of an answer that is no refusal.
    pub(crate) fn read<T: for<'de> Deserialize<'de> + Serialize>(&self) -> T {
        assert!(self.status < 300, "{} {}", self.status, String::from_utf8_lossy(&self.body));
        strict::from_json(&self.body, ANSWER_BYTES_MAX).expect("a body of this kind")
    }

    /// The problem, after everything was checked that all refusals have in common.
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.header("Content-Type"), Some(PROBLEM_JSON), "{self:?}");
        let problem: Problem = strict::from_json(&self.body, 2_000).expect("a problem and nothing else");
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.kind, format!("urn:keymeld:problem:{}", problem.code));
        assert_eq!(self.header("Content-Length"), Some(self.body.len().to_string().as_str()));
        problem
    }

    fn is_refusal(&self, code: Code) -> Problem {
        let problem = self.problem();
        assert_eq!(problem.code, code.name(), "{problem:?}");
        assert_eq!((problem.status, problem.title.as_str()), (code.status(), code.advice()));
        assert_eq!(self.header("Retry-After").is_some(), code.retry() == Retry::Later, "{code}");
        assert_eq!(problem.now.is_some(), code == Code::ProofStale);
        problem
    }
}

/// Notes that a code was seen.
fn saw(code: Code) {
    SEEN.with_borrow_mut(|seen| seen.insert(code));
}

/// Family, id, part, version, whether open, body.
pub(crate) type StoredRow = (u32, Vec<u8>, u32, u64, bool, Vec<u8>);

/// A gateway and its enclaves.
pub(crate) struct Rig {
    folder: TempDir,
    settings: String,
    enclaves: Vec<Option<keymeld_enclave::Running>>,
    gateway: Option<Running>,
    address: SocketAddr,
    pub(crate) entropy: Entropy,
}

pub(crate) fn enclave_id(at: usize) -> EnclaveId {
    EnclaveId([u8::try_from(at).expect("few") + 1; 16])
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("soon enough")
}

impl Rig {
    /// `enclaves` enclaves, all up, and a gateway with more settings.
    pub(crate) fn start(enclaves: usize, settings: &str) -> Rig {
        let mut rig = Rig::without_enclaves(enclaves, settings);
        for at in 0..enclaves {
            rig.start_enclave(at);
        }
        rig.await_ready();
        rig
    }

    /// A gateway whose enclaves are away.
    pub(crate) fn without_enclaves(enclaves: usize, settings: &str) -> Rig {
        let mut rig = Rig {
            folder: tempfile::tempdir().expect("a folder"),
            settings: settings.to_owned(),
            enclaves: (0..enclaves).map(|_| None).collect(),
            gateway: None,
            address: "127.0.0.1:0".parse().expect("an address"),
            entropy: Entropy::new(Origin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed)),
        };
        rig.start_gateway();
        rig
    }

    fn start_gateway(&mut self) {
        let folder = self.folder.path().display();
        let mut text = format!("listen = \"127.0.0.1:0\"\ndatabase = \"{folder}/gateway.db\"\n");
        // Keys of the top level have to come before all tables.
        let (top, tables) = self.settings.split_at(self.settings.find('[').unwrap_or(self.settings.len()));
        text.push_str(top);
        for at in 0..self.enclaves.len() {
            let id = enclave_id(at);
            text.push_str(&format!(
                "[[enclaves]]\nid = \"{id}\"\naddress = \"unix:{folder}/enclave-{at}.sock\"\n"
            ));
        }
        text.push_str(tables);
        if !tables.contains("[link]") {
            text.push_str("[link]\nbackoff_max_ms = 50\n");
        }
        let config = keymeld_gateway::Config::from_toml(&text, []).expect("good settings");
        let gateway = keymeld_gateway::start(&config).expect("starts");
        self.address = gateway.address();
        self.gateway = Some(gateway);
    }

    fn enclave_config(&self, at: usize) -> keymeld_enclave::Config {
        let (id, folder) = (enclave_id(at), self.folder.path().display());
        let text = format!(
            "enclave_id = \"{id}\"\nlisten = \"unix:{folder}/enclave-{at}.sock\"\nworkers = 1\n\
             [development]\nstate_dir = \"{folder}/state\"\n"
        );
        keymeld_enclave::Config::from_toml(&text, []).expect("good settings")
    }

    pub(crate) fn start_enclave(&mut self, at: usize) {
        let config = self.enclave_config(at);
        self.enclaves[at] = Some(keymeld_enclave::start(&config).expect("starts"));
    }

    /// Ends an enclave and waits until the gateway has noticed.
    pub(crate) fn stop_enclave(&mut self, at: usize) {
        if let Some(enclave) = self.enclaves[at].take() {
            enclave.stop();
        }
        while self.shown_enclaves().enclaves[at].ready {
            thread::yield_now();
        }
    }

    fn shown_enclaves(&self) -> EnclavesResponse {
        self.send(&Ask::plain(Method::Get, "enclaves", &[])).read()
    }

    /// Greeting and identities take a moment, and nobody is told: asks on.
    pub(crate) fn await_ready(&self) {
        loop {
            let health: HealthResponse = self.send(&Ask::plain(Method::Get, "health", &[])).read();
            if health.enclaves_ready == health.enclaves {
                return;
            }
            thread::yield_now();
        }
    }

    pub(crate) fn stop_gateway(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop();
        }
    }

    /// Stops the gateway and starts one on the same database, with other settings.
    pub(crate) fn restart_gateway(&mut self, settings: &str) {
        self.stop_gateway();
        self.settings = settings.to_owned();
        self.start_gateway();
    }

    /// Long polls that wait now.
    pub(crate) fn parked(&self) -> usize {
        self.gateway.as_ref().map_or(0, Running::parked)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The database's file, for tests that do to it what only its owner can.
    pub(crate) fn database(&self) -> Connection {
        Connection::open(self.folder.path().join("gateway.db")).expect("opens")
    }

    /// Every row there is.
    pub(crate) fn rows(&self) -> Vec<StoredRow> {
        let path = self.folder.path().join("gateway.db");
        let database =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opens to read");
        let sql = "SELECT family, id, part, version, open, body FROM rows ORDER BY family, id, part";
        let mut statement = database.prepare(sql).expect("a table");
        let row = |row: &rusqlite::Row<'_>| {
            let version: i64 = row.get(3)?;
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                u64::try_from(version).expect("positive"),
                row.get(4)?,
                row.get(5)?,
            ))
        };
        let rows = statement.query_map([], row).expect("rows");
        rows.collect::<Result<_, _>>().expect("rows of this shape")
    }

    /// A request with a fresh proof by `key`.
    pub(crate) fn proven(&mut self, key: &AuthKey, method: Method, path: &str, body: &[u8]) -> Ask {
        self.proven_at(key, method, path, body, unix_ms())
    }

    /// The same with a proof of another time.
    pub(crate) fn proven_at(
        &mut self,
        key: &AuthKey,
        method: Method,
        path: &str,
        body: &[u8],
        unix_ms: u64,
    ) -> Ask {
        let mut ask = Ask::plain(method, path, body);
        let authority = self.address.to_string();
        let subject = Subject { method, authority: &authority, target: &ask.target, body };
        let proof = subject.prove(key, unix_ms, &mut self.entropy).expect("randomness");
        ask.headers.push((PROOF_HEADER, proof));
        ask
    }

    pub(crate) fn post<T: Serialize>(&mut self, key: &AuthKey, path: &str, body: &T) -> Ask {
        self.proven(key, Method::Post, path, &strict::to_json(body))
    }

    pub(crate) fn get(&mut self, key: &AuthKey, path: &str) -> Ask {
        self.proven(key, Method::Get, path, &[])
    }

    /// Sends a request on a connection of its own and reads the whole answer.
    pub(crate) fn send(&self, ask: &Ask) -> Answer {
        let mut stream = self.begin(ask);
        read_answer(&mut stream)
    }

    /// Sends a request and leaves the answer to be read.
    pub(crate) fn begin(&self, ask: &Ask) -> TcpStream {
        let Ask { method, target, headers, body } = ask;
        let mut text =
            format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if *method == "POST" || !body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        self.begin_raw(&[text.as_bytes(), body].concat())
    }

    /// Sends any bytes.
    pub(crate) fn begin_raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        // A listener that has read enough answers and closes; what it says is read all the same.
        let _ = stream.write_all(bytes);
        stream
    }

    /// Sends a request that has to succeed.
    pub(crate) fn does<T: for<'de> Deserialize<'de> + Serialize>(&self, ask: &Ask) -> T {
        self.send(ask).read()
    }

    /// Sends a request that has to be refused, with this code, and to change nothing.
    #[track_caller]
    pub(crate) fn refused(&self, code: Code, ask: &Ask) -> Problem {
        let before = self.rows();
        let problem = self.send(ask).is_refusal(code);
        assert!(self.rows() == before, "{code}: something changed");
        saw(code);
        problem
    }

    /// An answer that was waited for is this refusal.
    pub(crate) fn is_refused(&self, code: Code, answer: &Answer) {
        answer.is_refusal(code);
        saw(code);
    }

    /// A session's failure is this one.
    #[track_caller]
    pub(crate) fn failed(&self, code: Code, failure: Option<Failure>) -> Failure {
        let failure = failure.expect("the session failed");
        assert_eq!(failure.code, code.name());
        saw(code);
        failure
    }

    /// An enclave's keys, from an attestation that was verified.
    pub(crate) fn enclave_keys(&mut self, id: EnclaveId) -> EnclaveKeys {
        let policy = keymeld_enclave::development::policy(&self.enclave_config(0)).expect("a root");
        let nonce = Hash(self.entropy.bytes().expect("randomness"));
        let path = format!("enclaves/{id}/attestation?nonce={nonce}");
        let answer: AttestationResponse = self.does(&Ask::plain(Method::Get, &path, &[]));
        let attested = policy.check(unix_ms(), &answer.document.0, &nonce.0).expect("a good document");
        EnclaveKeys {
            enclave_key: PublicKey(attested.ecies_key),
            identity_key: XOnlyKey(attested.identity_key),
        }
    }
}

/// Reads the answer to the one request of a connection.
pub(crate) fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A reset after the whole answer came is no harm.
    let _ = stream.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut bytes);
    let split = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let split = split.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)));
    let head = std::str::from_utf8(&bytes[..split]).expect("ASCII");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").expect("a header");
        (name.to_owned(), value.to_owned())
    };
    Answer {
        status: status.parse().expect("a number"),
        headers: lines.map(header).collect(),
        body: bytes[split + 4..].to_vec(),
    }
}
