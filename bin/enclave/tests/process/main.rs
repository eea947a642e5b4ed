//! The enclave as a process: a link to it, identities across restarts, signals and exit codes.

mod torture;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::id::EnclaveId;
use keymeld_core::link::message::{
    Attest, CheckRegistration, CreateIdentity, HelloReply, IdentityRow, Reply, Request,
};
use keymeld_core::refusal::Code;
use keymeld_enclave::{Config, development};
use keymeld_transport::link::pool::{LinkEvent, Pool, PoolOptions};
use tempfile::TempDir;

const ID: &str = "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47";
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(state: &str) -> String {
    format!(
        "enclave_id = \"{ID}\"\nlisten = \"tcp:127.0.0.1:0\"\nworkers = 3\n[development]\nstate_dir = \"{state}\"\n"
    )
}

fn command(folder: &Path, text: &str) -> Command {
    let file = folder.join("enclave.toml");
    std::fs::write(&file, text).expect("writes");
    let mut command = Command::new(env!("CARGO_BIN_EXE_keymeld-enclave"));
    command.arg("--config").arg(file).current_dir(folder);
    command
}

struct Enclave {
    child: Child,
    address: String,
    pool: Pool,
    events: Receiver<LinkEvent>,
    last_request: u64,
}

impl Enclave {
    fn start(mut command: Command) -> Enclave {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("{\"listening\":\"").and_then(|rest| rest.strip_suffix("\"}"));
        let address = address.unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let (sender, events) = mpsc::channel();
        let forward = Arc::new(move |event| drop(sender.send(event)));
        let pool = Pool::start(address.parse().expect("an address"), PoolOptions::default(), forward)
            .expect("starts");
        assert_eq!(events.recv_timeout(PATIENCE), Ok(LinkEvent::Up));
        Enclave { child, address, pool, events, last_request: 0 }
    }

    fn send(&mut self, request: Request) -> u64 {
        self.last_request += 1;
        self.pool.send(self.last_request, request.routing_id(), request.encode());
        self.last_request
    }

    fn ask(&mut self, request: Request) -> Reply {
        let asked = self.send(request);
        match self.events.recv_timeout(PATIENCE).expect("an event") {
            LinkEvent::Replied { request_id, body } if request_id == asked => {
                Reply::decode(body.as_ref()).expect("a reply")
            }
            other => panic!("{other:?}"),
        }
    }

    fn kill(mut self) {
        self.child.kill().expect("kills");
        self.end();
    }

    fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
        (self.child.wait().expect("ends"), log)
    }
}

fn refused(reply: Reply) -> Code {
    match reply {
        Reply::Refused(refused) => refused.refusal().code,
        other => panic!("{other:?}"),
    }
}

fn created(reply: Reply) -> IdentityRow {
    match reply {
        Reply::IdentityCreated(row) => row,
        other => panic!("{other:?}"),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("soon enough")
}

#[test]
fn an_identity_survives_a_kill_and_opens_nowhere_else() {
    let folder = TempDir::new().expect("a folder");
    let mut enclave = Enclave::start(command(folder.path(), &settings("state")));
    let enclave_id: EnclaveId = ID.parse().expect("an id");
    let greeting = |epochs| Reply::Hello(HelloReply { enclave_id, epochs });
    assert_eq!(enclave.ask(Request::Hello), greeting(vec![]));

    let nonce = Hash([9; 32]);
    let attest = || Request::Attest(Attest { epoch: 1, nonce });
    assert_eq!(refused(enclave.ask(attest())), Code::IdentityMissing);
    let row = created(enclave.ask(Request::CreateIdentity(CreateIdentity { epoch: 1 })));
    let open = || Request::OpenIdentity(row.clone());
    assert_eq!(enclave.ask(open()), Reply::IdentityOpened);
    assert_eq!(enclave.ask(Request::Hello), greeting(vec![1]));

    let Reply::Attested(document) = enclave.ask(attest()) else { panic!("not attested") };
    let state = folder.path().join("state");
    let text = settings(state.to_str().expect("UTF-8"));
    let config = Config::from_toml(&text, []).expect("good settings");
    let policy = development::policy(&config).expect("a root");
    let attested = policy.check_for_registration(unix_ms(), &document.0, &nonce.0, None).expect("verifies");
    assert_eq!(attested.ecies_key, row.ecies_key.0);
    assert_eq!(attested.enclave_id, enclave_id.0);
    enclave.kill();

    let mut again = Enclave::start(command(folder.path(), &settings("state")));
    assert_eq!(again.ask(Request::Hello), greeting(vec![]));
    assert_eq!(again.ask(open()), Reply::IdentityOpened);
    assert!(matches!(again.ask(attest()), Reply::Attested(_)));
    again.kill();

    let mut stranger = Enclave::start(command(folder.path(), &settings("elsewhere")));
    assert_eq!(refused(stranger.ask(open())), Code::IdentityRefused);
    stranger.kill();

    let image = format!("{}image = \"another\"\n", settings("state"));
    let mut other_image = Enclave::start(command(folder.path(), &image));
    assert_eq!(refused(other_image.ask(open())), Code::IdentityRefused);
    other_image.kill();
}

#[test]
fn every_worker_knows_an_identity_that_one_opened_and_all_drain() {
    let folder = TempDir::new().expect("a folder");
    let mut enclave = Enclave::start(command(folder.path(), &settings("state")));
    let row = created(enclave.ask(Request::CreateIdentity(CreateIdentity { epoch: 1 })));
    assert_eq!(enclave.ask(Request::OpenIdentity(row.clone())), Reply::IdentityOpened);
    // Each worker reads this with the identity's key, and refuses it for what is in it.
    for number in 0..9 {
        let check = Request::CheckRegistration(CheckRegistration {
            enclave_key: row.ecies_key,
            keygen_id: keymeld_core::id::KeygenId([number; 16]),
            manifest_hash: Hash([0; 32]),
            manifest: Blob(vec![0; 8]),
            user_id: keymeld_core::id::UserId([1; 16]),
            envelope: Blob(vec![0; 8]),
            record: Blob(vec![0; 8]),
            auth_key: row.identity_key,
            approval_required: true,
        });
        assert_eq!(refused(enclave.ask(check)), Code::EnvelopeUnreadable);
    }
    let killed = Command::new("kill").arg(enclave.child.id().to_string()).status().expect("kill runs");
    assert!(killed.success());
    let (status, log) = enclave.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("DEVELOPMENT ENCLAVE"), "{log}");
}

#[test]
fn it_ends_with_its_standard_input() {
    let folder = TempDir::new().expect("a folder");
    let mut command = command(folder.path(), &settings("state"));
    let mut enclave = Enclave::start({
        command.env("KEYMELD_ENCLAVE_EXIT_WITH_STDIN", "true");
        command
    });
    drop(enclave.child.stdin.take());
    assert_eq!(enclave.end().0.code(), Some(0));
}

#[test]
fn bad_settings_are_refused_with_a_reason() {
    let folder = TempDir::new().expect("a folder");
    let check = |text: &str| command(folder.path(), text).arg("--check-config").output().expect("runs");
    let refusal = |output: &Output| {
        let reason = String::from_utf8(output.stderr.clone()).expect("text");
        assert_eq!((output.status.code(), reason.lines().count()), (Some(2), 1), "{reason}");
        reason
    };
    let good = check(&settings("state"));
    assert_eq!((good.status.code(), good.stdout.as_slice()), (Some(0), b"ok\n".as_slice()));
    assert!(refusal(&check(&format!("lisen = 1\n{}", settings("state")))).contains("lisen"));
    assert!(refusal(&check("")).contains("enclave_id"));
    assert!(!folder.path().join("state").exists(), "a check makes nothing");
}
