//! A gateway process beside an enclave: proofs, durable answers, long polls, and kills.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use keymeld_core::api::http::{Method, Response};
use keymeld_core::api::problem::Problem;
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{HealthResponse, InitRequest, ReserveRequest, SlotRequest};
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::record::{Family, Persist, Query, RecordKey, Token, Write};
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use keymeld_gateway::Config;
use keymeld_store::{Options, Store};
use keymeld_transport::http::client::{Client, ClientError, Outgoing};
use keymeld_transport::process::BROKEN_EXIT_CODE;
use tempfile::TempDir;

const ENCLAVE: &str = "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47";
const KEYGEN: KeygenId = KeygenId([7; 16]);
const TIMEOUT_MS: u64 = 60_000;

fn enclave(folder: &Path) -> keymeld_enclave::Running {
    let text = format!(
        "enclave_id = \"{ENCLAVE}\"\nlisten = \"unix:{0}/enclave.sock\"\n[development]\nstate_dir = \"{0}/state\"\n",
        folder.display()
    );
    let config = keymeld_enclave::Config::from_toml(&text, []).expect("good settings");
    keymeld_enclave::start(&config).expect("starts")
}

fn settings(folder: &Path) -> String {
    format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"{0}/gateway.db\"\napi_token = \"sesame\"\n\
         [[enclaves]]\nid = \"{ENCLAVE}\"\naddress = \"unix:{0}/enclave.sock\"\n",
        folder.display()
    )
}

/// A process, so that it can be killed.
fn gateway(folder: &Path) -> (Child, String) {
    let file = folder.join("gateway.toml");
    std::fs::write(&file, settings(folder)).expect("writes");
    let mut child = Command::new(env!("CARGO_BIN_EXE_keymeld-gateway"))
        .arg("--config")
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("{\"listening\":\"").and_then(|rest| rest.strip_suffix("\"}"));
    let address = address.unwrap_or_else(|| panic!("{line:?}")).to_owned();
    (child, address)
}

fn kill(mut child: Child) {
    child.kill().expect("kills");
    child.wait().expect("ends");
}

/// Somebody who asks the gateway.
struct Caller {
    client: Client,
    entropy: Entropy,
}

impl Caller {
    fn of(address: &str, seed: u64) -> Caller {
        let client = Client::new(&format!("http://{address}")).expect("a URL");
        Caller { client, entropy: test_entropy(seed) }
    }

    fn send(&mut self, method: Method, target: &str, body: &[u8], token: bool) -> Response {
        self.try_send(method, target, body, token).expect("a reply")
    }

    fn try_send(
        &mut self,
        method: Method,
        target: &str,
        body: &[u8],
        token: bool,
    ) -> Result<Response, ClientError> {
        let subject = Subject { method, authority: self.client.authority(), target, body };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let unix_ms = u64::try_from(since.as_millis()).expect("soon enough");
        let proof = subject.prove(&key(9), unix_ms, &mut self.entropy).expect("entropy");
        let authorization = token.then_some("Bearer sesame");
        let proof = Some(proof.as_str());
        let outgoing = Outgoing { method, target, proof, authorization, body, timeout_ms: TIMEOUT_MS };
        self.client.send(&outgoing)
    }

    /// The enclave is greeted, makes an identity and opens it, and nobody is told: ask on.
    fn await_enclave(&mut self) {
        loop {
            let reply = self.send(Method::Get, "/api/v1/health", &[], false);
            let health: HealthResponse = strict::from_json(&reply.body, 1_000).expect("health");
            if health.enclaves_ready == health.enclaves {
                return;
            }
            thread::yield_now();
        }
    }

    fn reserve(&mut self, token: bool) -> Response {
        self.send(Method::Post, "/api/v1/keygen/reserve", &reservation(), token)
    }

    fn status(&mut self, query: &str) -> Response {
        self.send(Method::Get, &format!("/api/v1/keygen/{KEYGEN}/status{query}"), &[], false)
    }
}

fn key(byte: u8) -> AuthKey {
    AuthKey::new(&Secret::copied_from(&[byte; 32])).expect("a key")
}

fn reservation() -> Vec<u8> {
    let slot = |user: u8| SlotRequest { user_id: UserId([user; 16]), slot_key: key(user).public() };
    strict::to_json(&ReserveRequest {
        keygen_id: KEYGEN,
        session_key: key(9).public(),
        coordinator: UserId([1; 16]),
        slots: vec![slot(1), slot(2)],
        timeout_ms: None,
    })
}

fn code(response: &Response) -> String {
    strict::from_json::<Problem>(&response.body, 1_000).expect("a problem").code
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_of_either() {
    let folder = TempDir::new().expect("a folder");
    let running = enclave(folder.path());
    let (child, address) = gateway(folder.path());
    let mut caller = Caller::of(&address, 1);
    caller.await_enclave();
    assert_eq!(code(&caller.reserve(false)), "token-required");
    let reserved = caller.reserve(true);
    assert!(matches!(reserved.status, 200 | 201), "{}", String::from_utf8_lossy(&reserved.body));
    kill(child);

    // The enclave forgets its identity when it ends; the gateway has its row.
    running.stop();
    let running = enclave(folder.path());
    let (child, address) = gateway(folder.path());
    let mut caller = Caller::of(&address, 2);
    let found = caller.status("");
    assert_eq!(found.status, 200, "{}", String::from_utf8_lossy(&found.body));
    assert!(String::from_utf8_lossy(&found.body).contains("\"Reserved\""));
    caller.await_enclave();
    assert_eq!(caller.reserve(true).body, reserved.body);
    kill(child);
    running.stop();
}

#[test]
fn a_database_that_somebody_else_writes_ends_the_process_loudly() {
    let folder = TempDir::new().expect("a folder");
    let running = enclave(folder.path());
    let (mut child, address) = gateway(folder.path());
    let mut caller = Caller::of(&address, 1);
    caller.await_enclave();
    assert!(matches!(caller.reserve(true).status, 200 | 201));

    // Another writer, who got past the lock.
    std::fs::remove_file(folder.path().join("gateway.db.lock")).expect("there is a lock");
    let mut store = Store::open(&folder.path().join("gateway.db"), &Options::default()).expect("opens");
    let record = RecordKey { family: Family::Keygen, id: KEYGEN.0 };
    let head = store.load(&Query::Record(record)).expect("loads").remove(0);
    let write = Write { key: head.key, replaces: head.version, open: true, body: head.body };
    let answers = store.commit(&[Persist { token: Token(1), writes: vec![write] }]);
    assert_eq!(answers, [(Token(1), Ok(()))]);

    let init = InitRequest { manifest_hash: Hash([1; 32]), manifest: Blob(vec![1]), subsets: vec![] };
    let target = format!("/api/v1/keygen/{KEYGEN}/init");
    assert!(caller.try_send(Method::Post, &target, &strict::to_json(&init), false).is_err());
    assert_eq!(child.wait().expect("ends").code(), Some(BROKEN_EXIT_CODE));
    running.stop();
}

#[test]
fn a_long_poll_is_told_that_the_gateway_stops() {
    let folder = TempDir::new().expect("a folder");
    let running = enclave(folder.path());
    let config = Config::from_toml(&settings(folder.path()), []).expect("good settings");
    let gateway = keymeld_gateway::start(&config).expect("starts");
    let mut caller = Caller::of(&gateway.address().to_string(), 1);
    caller.await_enclave();
    assert!(matches!(caller.reserve(true).status, 200 | 201));
    // One that is over soon shows that the machine's timers run.
    assert_eq!(caller.status("?wait_ms=20").status, 200);

    let poll = thread::spawn(move || caller.status("?wait_ms=30000"));
    while gateway.parked() == 0 {
        thread::yield_now();
    }
    gateway.stop();
    assert_eq!(code(&poll.join().expect("no panic")), "shutting-down");
    running.stop();
}
