//! A gateway's process behind an enclave that turns hostile: what it takes is bounded, and the other enclave serves.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keymeld_core::api::http::Method;
use keymeld_core::api::rest::HealthResponse;
use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, HEADER_BYTES, Kind};
use keymeld_core::strict;
use keymeld_transport::http::client::{Client, Outgoing};
use tempfile::TempDir;

const ENCLAVES: [&str; 2] = ["5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47", "0b64c1de-29a1-4d57-8a0d-0d6c1f2b3a48"];
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1024 * 1024;
const QUEUED_BYTES_MAX: usize = 9 * MIB;
const REPLIES_BYTES_MAX: usize = 16 * MIB;
const CONNECTIONS: usize = 2;
/// What `PoolOptions` states, for both enclaves.
const BOUND: usize = 2 * (QUEUED_BYTES_MAX + REPLIES_BYTES_MAX + CONNECTIONS * 4 * FRAME_BYTES_MAX);
/// One reply that the machine looks at, and the stacks and buffers of connections.
const SLACK: usize = 4 * FRAME_BYTES_MAX;
/// Who asks at a time.
const CALLERS: usize = 16;
const QUESTIONS: usize = 12;

fn enclave(folder: &Path, at: usize) -> keymeld_enclave::Running {
    let text = format!(
        "enclave_id = \"{}\"\nlisten = \"tcp:127.0.0.1:0\"\nworkers = 1\n[development]\nstate_dir = \"{}/state\"\n",
        ENCLAVES[at],
        folder.display()
    );
    let config = keymeld_enclave::Config::from_toml(&text, []).expect("good settings");
    keymeld_enclave::start(&config).expect("starts")
}

fn gateway(folder: &Path, addresses: [String; 2]) -> (Child, Client) {
    let mut text = format!("listen = \"127.0.0.1:0\"\ndatabase = \"{}/gateway.db\"\n", folder.display());
    for (id, address) in ENCLAVES.iter().zip(addresses) {
        text += &format!("[[enclaves]]\nid = \"{id}\"\naddress = \"{address}\"\n");
    }
    text += &format!(
        "[link]\nconnections = {CONNECTIONS}\nqueued_bytes_max = {QUEUED_BYTES_MAX}\n\
         replies_bytes_max = {REPLIES_BYTES_MAX}\nrequest_ms = 5000\n"
    );
    let file = folder.join("gateway.toml");
    fs::write(&file, text).expect("writes");
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
    let client = Client::new(&format!("http://{}", address.unwrap_or_else(|| panic!("{line:?}"))));
    (child, client.expect("a URL"))
}

fn get(client: &Client, target: &str) -> (u16, Vec<u8>) {
    let outgoing = Outgoing {
        method: Method::Get,
        target,
        proof: None,
        authorization: None,
        body: &[],
        timeout_ms: 60_000,
    };
    let response = client.send(&outgoing).expect("a reply");
    (response.status, response.body)
}

fn attestation(client: &Client, at: usize, number: usize) -> u16 {
    get(client, &format!("/api/v1/enclaves/{}/attestation?nonce={number:064x}", ENCLAVES[at])).0
}

fn read_frame(mut stream: &TcpStream) -> Option<Frame> {
    let mut field = [0; 4];
    stream.read_exact(&mut field).ok()?;
    let mut bytes = vec![0; Frame::length(field).ok()?];
    stream.read_exact(&mut bytes).ok()?;
    Frame::decode(bytes).ok()
}

/// Between the gateway and an enclave. Once it is hostile, every request is replied to at once, as it should be but
/// for the body, which is as large as can be.
fn relay(listener: TcpListener, to: String, hostile: Arc<AtomicBool>) {
    let connection = move |front: TcpStream| {
        // It does not listen any more where the test has ended.
        let Ok(back) = TcpStream::connect(&to) else { return };
        let (mut down, mut up) = (front.try_clone().expect("a socket"), back.try_clone().expect("a socket"));
        thread::spawn(move || {
            // Ends with either side.
            let _ = std::io::copy(&mut up, &mut down);
            let _ = down.shutdown(Shutdown::Both);
        });
        let body = vec![0xff; FRAME_BYTES_MAX + 4 - HEADER_BYTES];
        while let Some(frame) = read_frame(&front) {
            let written = if hostile.load(Ordering::Relaxed) && frame.kind == Kind::Request {
                let reply = Frame { kind: Kind::Reply, body: body.clone(), ..frame };
                (&front).write_all(&reply.encode().expect("fits"))
            } else {
                (&back).write_all(&frame.encode().expect("fits"))
            };
            if written.is_err() {
                break;
            }
        }
        let _ = back.shutdown(Shutdown::Both);
    };
    let connection = Arc::new(connection);
    thread::spawn(move || {
        for front in listener.incoming().flatten() {
            let connection = Arc::clone(&connection);
            thread::spawn(move || connection(front));
        }
    });
}

fn memory(child: &Child) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("such a line");
    let kib: usize = line.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    kib * 1024
}

#[test]
fn an_enclave_that_floods_it_with_replies_takes_bounded_memory_and_holds_up_nobody_else() {
    let folder = TempDir::new().expect("a folder");
    let running = [enclave(folder.path(), 0), enclave(folder.path(), 1)];
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let relayed = format!("tcp:{}", listener.local_addr().expect("an address"));
    let behind = running[0].address().to_string();
    let hostile = Arc::new(AtomicBool::new(false));
    relay(listener, behind.strip_prefix("tcp:").expect("TCP").to_owned(), Arc::clone(&hostile));
    let (mut child, client) = gateway(folder.path(), [relayed, running[1].address().to_string()]);
    loop {
        let health: HealthResponse =
            strict::from_json(&get(&client, "/api/v1/health").1, 1_000).expect("health");
        if health.enclaves_ready == 2 {
            break;
        }
        thread::yield_now();
    }
    assert_eq!(attestation(&client, 0, 1), 200);
    let idle = memory(&child);
    hostile.store(true, Ordering::Relaxed);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let client = &client;
            scope.spawn(move || {
                for number in 0..QUESTIONS {
                    let status = attestation(client, 0, 1 + caller * QUESTIONS + number);
                    assert!(status >= 500, "{status}");
                }
            });
        }
        for number in 0..QUESTIONS {
            assert_eq!(attestation(&client, 1, number), 200);
        }
    });
    let peak = memory(&child);
    eprintln!(
        "gateway under a flood of replies: {} MiB at most, {} MiB before; stated bound {} MiB",
        peak / MIB,
        idle / MIB,
        BOUND / MIB
    );
    assert!(peak <= idle + BOUND + SLACK, "{peak}");
    // It behaves again, and is served like any other.
    hostile.store(false, Ordering::Relaxed);
    let reformed = Instant::now();
    while attestation(&client, 0, 0) != 200 {
        assert!(reformed.elapsed() < PATIENCE);
        // It is greeted again after a pause.
        thread::yield_now();
    }
    child.kill().expect("kills");
    child.wait().expect("ends");
    for enclave in running {
        enclave.stop();
    }
}
