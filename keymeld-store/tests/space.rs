//! Full disks and bounded logs.

mod fixture;

use std::fs;

use fixture::{commit, load, open, open_head, persist, place, raw, record, row, write};
use keymeld_core::record::{Family, PersistError, Token};
use keymeld_store::limits::{CHECKPOINT_PAGES, LOG_BYTES_KEPT, PAGE_BYTES};
use keymeld_store::{CloseError, Options, Store};

const SMALL: Options = Options { pages_max: Some(40), read_only: false };

/// Fills the database and answers how many records went in.
fn fill(store: &mut Store) -> u64 {
    for number in 0..1_000 {
        let key = record(Family::Keygen, number);
        match commit(store, vec![open_head(key, 0), write(key, 1, 0, &[1; 3_000])]) {
            Ok(()) => {}
            Err(reason) => {
                assert_eq!(reason, PersistError::DiskFull);
                assert!(load(store, key).is_empty());
                return number;
            }
        }
    }
    panic!("the limit of pages does not hold");
}

#[test]
fn a_full_database_fails_the_whole_batch_keeps_what_was_there_and_works_again_when_there_is_room() {
    let (_folder, path) = place();
    let mut store = Store::open(&path, &SMALL).unwrap();
    assert_eq!(store.settings().unwrap().pages_max, 40);
    let count = fill(&mut store);
    assert!(count > 10, "{count}");
    assert!(store.take_failure().unwrap().to_string().contains("full"));
    assert!(store.take_failure().is_none());

    // The small write before the large one is undone with it, the one after it is not tried.
    let first = record(Family::Keygen, 0);
    let large = write(record(Family::Signing, 1), 0, 0, &[2; 100_000]);
    let small = |number| write(record(Family::Signing, number), 0, 0, b"small");
    for _ in 0..3 {
        let batch = [
            persist(1, vec![write(first, 0, 1, b"change")]),
            persist(2, vec![large.clone()]),
            persist(3, vec![small(3)]),
        ];
        let full = Err(PersistError::DiskFull);
        assert_eq!(store.commit(&batch), [(Token(1), full), (Token(2), full), (Token(3), full)]);
        assert_eq!(load(&mut store, first)[0], row(first, 0, 1, b"head"));
        assert!(load(&mut store, record(Family::Signing, 3)).is_empty());
    }

    // What needs no page still goes in: sessions can end on a full disk.
    assert_eq!(commit(&mut store, vec![write(first, 0, 1, b"done")]), Ok(()));

    // An operator makes room, past the store, which stays open.
    raw(&path).execute("DELETE FROM rows WHERE family = 1 AND part = 1", []).unwrap();
    assert_eq!(commit(&mut store, vec![write(record(Family::Signing, 1), 0, 0, &[2; 20_000])]), Ok(()));
    assert_eq!(load(&mut store, first), [row(first, 0, 2, b"done")]);
    store.close().unwrap();

    // Or the operator raises the limit.
    let mut store = open(&path);
    assert_eq!(commit(&mut store, vec![write(record(Family::Signing, 2), 0, 0, &[2; 400_000])]), Ok(()));
}

#[test]
fn a_batch_that_fails_in_its_first_transaction_is_not_tried_further() {
    let (_folder, path) = place();
    let mut store = Store::open(&path, &SMALL).unwrap();
    let mut batch = vec![persist(0, vec![write(record(Family::Signing, 0), 0, 0, &[2; 400_000])])];
    batch.extend((1..1_500).map(|n| persist(n, vec![open_head(record(Family::Signing, n), 0)])));
    let answers = store.commit(&batch);
    let expected: Vec<_> = (0..1_500).map(|n| (Token(n), Err(PersistError::DiskFull))).collect();
    assert_eq!(answers, expected);
    assert!(load(&mut store, record(Family::Signing, 1_499)).is_empty());
}

#[test]
fn the_log_stays_small_while_nobody_reads() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let log = path.with_extension("db-wal");
    let mut most = 0;
    for number in 0..300 {
        let body = vec![number as u8; 100_000];
        assert_eq!(commit(&mut store, vec![write(record(Family::Signing, number), 0, 0, &body)]), Ok(()));
        most = most.max(fs::metadata(&log).unwrap().len());
    }
    let bound = u64::from(CHECKPOINT_PAGES + 50) * u64::from(PAGE_BYTES + 24);
    assert!(most < bound, "{most} bytes of log");
    assert!(most * 3 / 2 < 300 * 100_000, "more was written than the log may hold");
    store.close().unwrap();
    assert!(fs::metadata(&log).map_or(true, |file| file.len() == 0), "closing empties the log");
}

#[test]
fn a_long_reader_does_not_stop_commits_and_the_log_shrinks_after_it() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let log = path.with_extension("db-wal");
    let insert = |store: &mut Store, number: u64| {
        let body = vec![number as u8; 100_000];
        assert_eq!(commit(store, vec![write(record(Family::Signing, number), 0, 0, &body)]), Ok(()));
    };
    insert(&mut store, 0);

    let reader = raw(&path);
    let count = |reader: &rusqlite::Connection| -> u64 {
        reader.query_row("SELECT count(*) FROM rows", [], |row| row.get::<_, u32>(0)).unwrap().into()
    };
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&reader), 1);
    (1..400).for_each(|number| insert(&mut store, number));
    assert_eq!(count(&reader), 1, "the reader keeps its view");
    let grown = fs::metadata(&log).unwrap().len();
    assert!(grown > LOG_BYTES_KEPT as u64, "{grown}");

    reader.execute_batch("COMMIT").unwrap();
    (400..500).for_each(|number| insert(&mut store, number));
    assert_eq!(count(&reader), 500);
    let shrunk = fs::metadata(&log).unwrap().len();
    assert!(shrunk <= LOG_BYTES_KEPT as u64, "{shrunk}");
}

#[test]
fn closing_under_a_reader_says_so_and_loses_nothing() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Signing, 1);
    assert_eq!(commit(&mut store, vec![open_head(key, 0)]), Ok(()));
    let reader = raw(&path);
    reader.execute_batch("BEGIN; SELECT * FROM rows").unwrap();
    assert_eq!(commit(&mut store, vec![open_head(key, 1)]), Ok(()));
    assert!(matches!(store.close(), Err(CloseError::Busy)));
    drop(reader);
    assert_eq!(load(&mut open(&path), key), [row(key, 0, 2, b"head")]);
}

#[test]
fn another_writer_costs_a_failed_batch_and_no_more() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Signing, 1);
    let writer = raw(&path);
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(commit(&mut store, vec![open_head(key, 0)]), Err(PersistError::Failed));
    assert!(store.take_failure().unwrap().to_string().contains("locked"));
    writer.execute_batch("ROLLBACK").unwrap();
    assert_eq!(commit(&mut store, vec![open_head(key, 0)]), Ok(()));
}
