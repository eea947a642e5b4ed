//! The gateway as a process: sockets, signals, exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

const ENCLAVE: &str = "5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47";

fn command(folder: &Path, text: &str) -> Command {
    let file = folder.join("gateway.toml");
    std::fs::write(&file, text).expect("writes");
    let mut command = Command::new(env!("CARGO_BIN_EXE_keymeld-gateway"));
    command.arg("--config").arg(file).current_dir(folder);
    command
}

fn settings() -> String {
    // Nobody listens there: the gateway serves without its enclaves.
    format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"gateway.db\"\n\
         [[enclaves]]\nid = \"{ENCLAVE}\"\naddress = \"unix:nobody.sock\"\n"
    )
}

struct Gateway {
    child: Child,
    address: String,
}

impl Gateway {
    fn start(mut command: Command) -> Gateway {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("{\"listening\":\"").and_then(|rest| rest.strip_suffix("\"}"));
        let address = address.unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Gateway { child, address }
    }

    fn get(&self, target: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("connects");
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("writes");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("reads");
        response
    }

    fn terminate(&self) {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(killed.success());
    }

    fn end(self) -> Output {
        self.child.wait_with_output().expect("ends")
    }
}

fn refusal(output: &Output, code: i32) -> String {
    let reason = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(output.status.code(), Some(code), "{reason}");
    assert_eq!(reason.lines().count(), 1, "{reason}");
    reason
}

#[test]
fn it_serves_and_drains_when_terminated() {
    let folder = TempDir::new().expect("a folder");
    let gateway = Gateway::start(command(folder.path(), &settings()));
    let health = gateway.get("/api/v1/health");
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n"), "{health}");
    assert!(health.ends_with("{\"enclaves_ready\":0,\"enclaves\":1}"), "{health}");
    let version = gateway.get("/api/v1/version");
    assert!(version.contains("\"api\":\"1\""), "{version}");
    let unknown = gateway.get("/api/v1/nothing");
    assert!(unknown.contains("urn:keymeld:problem:unknown-endpoint"), "{unknown}");

    let second = command(folder.path(), &settings()).output().expect("runs");
    assert!(refusal(&second, 1).contains("another gateway has the database open"));

    // An idle connection does not hold it up.
    let _idle = TcpStream::connect(&gateway.address).expect("connects");
    gateway.terminate();
    assert_eq!(gateway.end().status.code(), Some(0));
}

#[test]
fn it_comes_back_after_a_kill_and_ends_with_its_standard_input() {
    let folder = TempDir::new().expect("a folder");
    let mut gateway = Gateway::start(command(folder.path(), &settings()));
    gateway.child.kill().expect("kills");
    gateway.end();

    let mut again = command(folder.path(), &settings());
    again.env("KEYMELD_GATEWAY_EXIT_WITH_STDIN", "true").env("KEYMELD_GATEWAY_LOG__FORMAT", "json");
    let mut gateway = Gateway::start(again);
    assert!(gateway.get("/api/v1/health").starts_with("HTTP/1.1 200 OK\r\n"));
    drop(gateway.child.stdin.take());
    let output = gateway.end();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).expect("text");
    assert!(log.lines().count() > 0 && log.lines().all(|line| line.starts_with('{')), "{log}");
}

#[test]
fn bad_settings_are_refused_with_a_reason() {
    let folder = TempDir::new().expect("a folder");
    let check = |text: &str| command(folder.path(), text).arg("--check-config").output().expect("runs");
    let good = check(&settings());
    assert_eq!((good.status.code(), good.stdout.as_slice()), (Some(0), b"ok\n".as_slice()));

    let settings = settings();
    for (text, expected) in [
        (format!("lisen = 1\n{settings}"), "lisen"),
        (settings.replace("unix:nobody.sock", "nobody"), "tcp:HOST:PORT"),
        (settings.replace(ENCLAVE, "1"), "bad-id in `enclaves.id`"),
        (format!("{settings}[keygen]\ntimeout_default_ms = 0"), "timeout_default_ms"),
        (format!("api_token = \"\"\n{settings}"), "api_token"),
        (format!("{settings}[log]\nlevel = \"loud\""), "loud"),
        (format!("{settings}[http]\nheaders_max = 0"), "no limit is 0"),
        (format!("{settings}[http]\nidle_ms = 9223372036854775807"), "longer than a day"),
        (format!("{settings}[tls]\nkey = \"k\""), "certificate"),
        (format!("enclaves = []\n{}", settings.split("[[").next().expect("a part")), "enclaves"),
    ] {
        let reason = refusal(&check(&text), 2);
        assert!(reason.contains(expected), "{reason}");
    }
    let unknown = command(folder.path(), &settings).arg("--verbose").output().expect("runs");
    assert!(refusal(&unknown, 2).contains("--verbose"));
    assert!(!folder.path().join("gateway.db").exists(), "a check makes nothing");
}
