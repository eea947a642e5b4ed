//! S6 at the level of files: what was acknowledged is in them, and a torn log holds a prefix of it.
//!
//! The files are copied while the store is open, as a crash of the process would leave them. (The kill of a
//! real process is tested with the gateway.) Reading the files drops this process's POSIX locks on them;
//! nobody else opens these.

mod fixture;

use std::fs;
use std::path::{Path, PathBuf};

use fixture::{load, open, persist, place, record, write};
use keymeld_core::record::{Family, Persist, RecordKey};
use keymeld_store::Store;

fn log_of(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

fn only() -> RecordKey {
    record(Family::Signing, 1)
}

/// Commit `number` (from 1) replaces the counter and adds a part: two tokens, one of them of two rows.
fn batch(number: u64) -> Vec<Persist> {
    let body = vec![number as u8; 100 * number as usize];
    let part = u32::try_from(number).expect("few commits");
    vec![
        persist(1, vec![write(only(), 0, number - 1, &number.to_be_bytes()), write(only(), part, 0, &body)]),
        persist(2, vec![write(record(Family::Keygen, number), 0, 0, &body)]),
    ]
}

/// The number of the last commit in the store; panics where it is not a whole prefix.
fn last_commit(store: &mut Store) -> u64 {
    let rows = load(store, only());
    let Some(head) = rows.first() else {
        assert!(load(store, record(Family::Keygen, 1)).is_empty());
        return 0;
    };
    let last = head.version;
    assert_eq!(head.body, last.to_be_bytes());
    assert_eq!(rows.len() as u64, last + 1);
    for number in 1..=last {
        let expected = vec![number as u8; 100 * number as usize];
        assert_eq!(rows[number as usize].body, expected);
        assert_eq!(load(store, record(Family::Keygen, number))[0].body, expected);
    }
    assert!(load(store, record(Family::Keygen, last + 1)).is_empty());
    last
}

/// A database that was not closed, after `commits` commits: the file and its log.
fn left_by_a_crash(commits: u64) -> (Vec<u8>, Vec<u8>) {
    let (_folder, path) = place();
    let mut store = open(&path);
    for number in 1..=commits {
        assert!(store.commit(&batch(number)).iter().all(|(_, answer)| answer.is_ok()));
    }
    read_files(&path)
}

fn read_files(path: &Path) -> (Vec<u8>, Vec<u8>) {
    (fs::read(path).expect("a file"), fs::read(log_of(path)).expect("a log"))
}

/// The number of the last commit that an open of these files finds. `goes_on` commits the one after it.
fn reopened(database: &[u8], log: &[u8], goes_on: bool) -> u64 {
    let (_folder, path) = place();
    fs::write(&path, database).expect("writes");
    fs::write(log_of(&path), log).expect("writes");
    let mut store = open(&path);
    let last = last_commit(&mut store);
    if goes_on {
        assert!(store.commit(&batch(last + 1)).iter().all(|(_, answer)| answer.is_ok()));
        assert_eq!(last_commit(&mut store), last + 1);
    }
    last
}

#[test]
fn every_acknowledged_commit_is_in_the_files_at_once() {
    let (_folder, path) = place();
    let mut store = open(&path);
    for number in 1..=20 {
        assert!(store.commit(&batch(number)).iter().all(|(_, answer)| answer.is_ok()));
        let (database, log) = read_files(&path);
        assert_eq!(reopened(&database, &log, true), number);
    }
    drop(store);
    assert_eq!(last_commit(&mut open(&path)), 20);
}

#[test]
fn a_log_cut_anywhere_holds_a_prefix_of_the_commits() {
    let (database, log) = left_by_a_crash(16);
    let mut last = 0;
    let mut seen = 0;
    for length in (0..log.len()).step_by(512).chain([log.len() - 1, log.len()]) {
        let now = reopened(&database, &log[..length], length % 4_096 == 0);
        assert!(now >= last, "a longer log holds no less");
        seen += u64::from(now > last);
        last = now;
    }
    assert_eq!((last, seen), (16, 16), "every commit was the last one of some log");
}

#[test]
fn a_log_damaged_anywhere_holds_a_prefix_of_the_commits() {
    let (database, mut log) = left_by_a_crash(12);
    for offset in (0..log.len()).step_by(509) {
        log[offset] ^= 0x10;
        assert!(reopened(&database, &log, false) < 12, "the flip at {offset} is noticed");
        log[offset] ^= 0x10;
    }
    assert_eq!(reopened(&database, &log, true), 12);
}
