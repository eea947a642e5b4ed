//! Measures durable commits, one token each and grouped by 100.
//!
//! `cargo run --release -p keymeld-store --example commits -- [FOLDER]`; the folder decides which disk.

use std::path::Path;
use std::time::{Duration, Instant};

use keymeld_core::record::{Family, Persist, Query, RecordKey, RowKey, Token, Write};
use keymeld_store::{Options, Store};

const BODY_BYTES: usize = 600;
const SINGLE: u64 = 3_000;
const GROUPS: u64 = 600;
const GROUP: u64 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let path = folder.path().join("keymeld.db");
    let mut store = Store::open(&path, &Options::default())?;

    measure(&mut store, "insert heads, alone", SINGLE, 1, |n| head(n, 0));
    measure(&mut store, "replace heads, alone", SINGLE, 1, |n| head(n, 1));
    measure(&mut store, "insert heads, by 100", GROUPS, GROUP, |n| head(SINGLE + n, 0));
    measure(&mut store, "replace heads, by 100", GROUPS, GROUP, |n| head(SINGLE + n, 1));

    let started = Instant::now();
    for n in 0..SINGLE {
        assert_eq!(store.load(&Query::Record(record(n)))?.len(), 1);
    }
    println!("load one record            {:>9.1} us", micros(started.elapsed()) / SINGLE as f64);

    store.close()?;
    reopen(&path)
}

fn measure(store: &mut Store, name: &str, commits: u64, tokens: u64, write: impl Fn(u64) -> Write) {
    let batches: Vec<Vec<Persist>> = (0..commits)
        .map(|commit| {
            let numbers = commit * tokens..(commit + 1) * tokens;
            numbers.map(|n| Persist { token: Token(n), writes: vec![write(n)] }).collect()
        })
        .collect();
    let mut times: Vec<Duration> = batches
        .iter()
        .map(|batch| {
            let started = Instant::now();
            let answers = store.commit(batch);
            let time = started.elapsed();
            assert!(answers.iter().all(|(_, answer)| answer.is_ok()));
            time
        })
        .collect();
    let total: Duration = times.iter().sum();
    times.sort();
    let at = |share: f64| micros(times[((times.len() - 1) as f64 * share) as usize]);
    println!(
        "{name:<24} {:>9.0} rows/s; commit p50 {:>7.0} us, p99 {:>7.0} us, max {:>7.0} us",
        (commits * tokens) as f64 / total.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn reopen(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let megabytes = std::fs::metadata(path)?.len() as f64 / 1e6;
    let started = Instant::now();
    let store = Store::open(path, &Options::default())?;
    println!("open, checked              {:>9.1} ms for {megabytes:.0} MB", micros(started.elapsed()) / 1e3);
    store.close()?;
    Ok(())
}

fn head(number: u64, replaces: u64) -> Write {
    let key = RowKey { record: record(number), part: 0 };
    Write { key, replaces, open: replaces == 0, body: vec![number as u8; BODY_BYTES] }
}

/// Ids that are spread as random ones are.
fn record(number: u64) -> RecordKey {
    let spread = u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    RecordKey { family: Family::Signing, id: spread.to_be_bytes() }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
