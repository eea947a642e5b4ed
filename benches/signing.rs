//! What a signature costs and how long it takes, against what MuSig2 alone costs on this machine.
//!
//! ```text
//! cargo bench -p keymeld-benches
//! ```
//!
//! Three participants at three enclaves, delegated; real processes, SQLite with synchronous=FULL, loopback.
//! Machines differ and are shared: the ratios are what to compare.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use keymeld::children::os_entropy;
use keymeld_benches::fleet::{Fleet, sign};
use keymeld_benches::floor;

const ALONE: usize = 300;
const CLIENTS: usize = 8;
const EACH: usize = 100;
const BATCHES: usize = 10;
const BATCH: usize = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // This program is its own gateway and enclaves.
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "gateway", "--config", file] => keymeld_gateway::main(Some(Path::new(file)), false),
        [_, "enclave", "--config", file] => keymeld_enclave::main(Some(Path::new(file)), false),
        _ => {
            bench();
            ExitCode::SUCCESS
        }
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn bench() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = std::env::current_exe().expect("has a path");
    let fleet = Fleet::start(&program, folder.path());
    let floor_us = || micros(floor::per_signature(3, 500, &mut os_entropy()));
    let first_floor = floor_us();

    let mut client = fleet.client();
    (0..20).for_each(|_| sign(&mut client, 1));
    let before = fleet.processor_time();
    let mut latencies: Vec<Duration> = Vec::with_capacity(ALONE);
    for _ in 0..ALONE {
        let began = Instant::now();
        sign(&mut client, 1);
        latencies.push(began.elapsed());
    }
    let alone = micros(fleet.processor_time() - before) / ALONE as f64;
    latencies.sort_unstable();
    let at = |percent: usize| micros(latencies[(latencies.len() * percent / 100).min(ALONE - 1)]) / 1e3;

    let before = fleet.processor_time();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| fleet.client()).collect();
    let attested = fleet.processor_time() - before;
    let (before, began) = (fleet.processor_time(), Instant::now());
    thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || (0..EACH).for_each(|_| sign(client, 1)));
        }
    });
    let signatures = (CLIENTS * EACH) as f64;
    let rate = signatures / began.elapsed().as_secs_f64();
    let busy = micros(fleet.processor_time() - before) / signatures;

    let (before, began) = (fleet.processor_time(), Instant::now());
    (0..BATCHES).for_each(|_| sign(&mut client, BATCH));
    let items = (BATCHES * BATCH) as f64;
    let item_rate = items / began.elapsed().as_secs_f64();
    let item = micros(fleet.processor_time() - before) / items;

    // Before and after: what else runs on the machine may change.
    let floor = (first_floor + floor_us()) / 2.0;
    println!("MuSig2 alone, 3 signers         {floor:8.0} us of one core per signature");
    println!(
        "one client, one after the other {alone:8.0} us of gateway and enclaves, {:.2} x",
        alone / floor
    );
    println!(
        "                                {:8.2} ms p50, {:.2} ms p95, {:.2} ms p99",
        at(50),
        at(95),
        at(99)
    );
    println!(
        "{CLIENTS} clients at once               {busy:8.0} us of gateway and enclaves, {:.2} x",
        busy / floor
    );
    println!("                                {rate:8.0} signatures/s, clients on the same cores");
    println!(
        "sessions of {BATCH} messages        {item:8.0} us of gateway and enclaves, {:.2} x",
        item / floor
    );
    println!("                                {item_rate:8.0} signatures/s, one client");
    println!(
        "a client's check of 3 enclaves  {:8.0} us of gateway and enclaves",
        micros(attested) / CLIENTS as f64
    );
}
