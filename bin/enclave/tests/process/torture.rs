//! An enclave's process while hostile peers flood it: what it takes is bounded, and an honest gateway is served.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use keymeld_core::bytes::{Blob, Hash, PublicKey, XOnlyKey};
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, Kind};
use keymeld_core::link::message::{CheckRegistration, HelloReply, Reply, Request};
use tempfile::TempDir;

use super::{Enclave, PATIENCE, command, settings};

const MIB: usize = 1024 * 1024;
const CONNECTIONS_MAX: usize = 12;
const REQUESTS_BYTES_MAX: usize = 16 * MIB;
const QUEUED_BYTES_MAX: usize = MIB;
/// What `ServeLimits` states.
const BOUND: usize = REQUESTS_BYTES_MAX + CONNECTIONS_MAX * (QUEUED_BYTES_MAX + 3 * FRAME_BYTES_MAX);
/// What allocator and machine may take beside it, for what they do with one request at a time.
const SLACK: usize = 4 * FRAME_BYTES_MAX;
/// Floods at a time.
const FLOODS: u8 = 4;
/// Frames of every other flood on one connection, which is given up then.
const FRAMES: usize = 5;
/// What floods have to send together: more than the bound allows to be held.
const SENT: usize = 1024 * MIB;

fn limits() -> String {
    format!(
        "[link]\nconnections_max = {CONNECTIONS_MAX}\nrequests_bytes_max = {REQUESTS_BYTES_MAX}\n\
         queued_bytes_max = {QUEUED_BYTES_MAX}\nframe_ms = 2000\n"
    )
}

/// A line of /proc/PID/status, in its own unit.
fn status(process: u32, key: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("such a line");
    line.trim_start_matches(':')
        .split_whitespace()
        .next()
        .and_then(|text| text.parse().ok())
        .expect("a number")
}

/// A request that takes as much to read as one can.
fn heavy(number: u8) -> Vec<u8> {
    let request = Request::CheckRegistration(CheckRegistration {
        enclave_key: PublicKey([2; 33]),
        keygen_id: KeygenId([number; 16]),
        manifest_hash: Hash([0; 32]),
        manifest: Blob(vec![number; FRAME_BYTES_MAX - 1024]),
        user_id: UserId([1; 16]),
        envelope: Blob(vec![0; 8]),
        record: Blob(vec![0; 8]),
        auth_key: XOnlyKey([2; 32]),
        approval_required: true,
    });
    let (routing_id, body) = (request.routing_id(), request.encode());
    Frame { kind: Kind::Request, request_id: 1, routing_id, body }.encode().expect("fits")
}

/// Sends until everybody has sent enough, without ever reading, over connections that are given up.
fn flood(address: &str, number: u8, sent: &AtomicUsize) {
    let frame = heavy(number);
    let frames = if number.is_multiple_of(2) { FRAMES } else { usize::MAX };
    let mut round = 0;
    while sent.load(Ordering::Relaxed) < SENT {
        let mut stream = TcpStream::connect(address).expect("it accepts");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        for _ in 0..frames {
            // It may be closed, for it never reads the refusals.
            if sent.load(Ordering::Relaxed) >= SENT || stream.write_all(&frame).is_err() {
                break;
            }
            sent.fetch_add(frame.len(), Ordering::Relaxed);
        }
        // Some are cut in the middle of a frame.
        round += 1;
        if round % 2 == 0 {
            let _ = stream.write_all(&frame[..frame.len() / 2]);
        }
    }
}

#[test]
fn floods_over_connections_that_come_and_go_take_bounded_memory_and_starve_nobody() {
    let folder = TempDir::new().expect("a folder");
    // The development table comes last in the settings.
    let text = settings("state").replace("[development]", &format!("{}[development]", limits()));
    let mut enclave = Enclave::start(command(folder.path(), &text));
    let process = enclave.child.id();
    let address = enclave.address.strip_prefix("tcp:").expect("TCP").to_owned();
    let enclave_id = super::ID.parse().expect("an id");
    let greeting = Reply::Hello(HelloReply { enclave_id, epochs: vec![] });
    assert_eq!(enclave.ask(Request::Hello), greeting);
    let idle = (status(process, "VmHWM") * 1024, status(process, "Threads"));
    let (sent, mut threads, mut asked) = (AtomicUsize::new(0), 0, 0);
    thread::scope(|scope| {
        for number in 1..=FLOODS {
            let (address, sent) = (&address, &sent);
            scope.spawn(move || flood(address, number, sent));
        }
        while sent.load(Ordering::Relaxed) < SENT {
            assert_eq!(enclave.ask(Request::Hello), greeting, "within {PATIENCE:?}");
            threads = threads.max(status(process, "Threads"));
            asked += 1;
        }
    });
    assert_eq!(enclave.ask(Request::Hello), greeting);
    let peak = status(process, "VmHWM") * 1024;
    eprintln!(
        "enclave under floods: {} MiB at most, {} MiB before; stated bound {} MiB; {threads} threads; {asked} others served",
        peak / MIB,
        idle.0 / MIB,
        BOUND / MIB
    );
    assert!(peak <= idle.0 + BOUND + SLACK, "{peak}");
    assert!(threads <= idle.1 + 4 * CONNECTIONS_MAX, "{threads}");
    enclave.kill();
}
