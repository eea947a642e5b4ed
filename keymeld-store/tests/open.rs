//! Opening: which files are taken, what is asserted, who may.

mod fixture;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use fixture::{commit, load, open, open_head, place, raw, record};
use keymeld_core::record::Family;
use keymeld_store::{OpenError, Options, Store, limits};

fn refusal(path: &Path) -> OpenError {
    Store::open(path, &Options::default()).expect_err("refused")
}

#[test]
fn a_new_database_runs_with_the_settings_that_durability_rests_on() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let settings = store.settings().unwrap();
    assert_eq!(settings.journal_mode, "wal");
    assert_eq!(settings.synchronous, 2);
    assert_eq!(settings.checkpoint_pages, limits::CHECKPOINT_PAGES);
    assert_eq!(settings.log_bytes_kept, limits::LOG_BYTES_KEPT);
    assert_eq!(settings.page_bytes, limits::PAGE_BYTES);
    assert!(settings.page_count > 0 && settings.page_count < 20, "{settings:?}");

    // The journal mode is in the file, for whoever opens it.
    let mode: String = raw(&path).pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");

    // Again on a file that exists.
    store.close().unwrap();
    let again = open(&path).settings().unwrap();
    assert_eq!((again.journal_mode.as_str(), again.synchronous), ("wal", 2));
}

#[test]
fn the_files_of_a_new_database_are_its_owners_alone() {
    let (folder, path) = place();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut store = open(&path);
    assert_eq!(commit(&mut store, vec![open_head(record(Family::Keygen, 1), 0)]), Ok(()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["keymeld.db", "keymeld.db-shm", "keymeld.db-wal", "keymeld.db.lock"]);
    assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let (folder, path) = place();
    let link = folder.path().join("link.db");
    symlink(&path, &link).unwrap();
    let mut first = open(&path);
    for same in [path.clone(), folder.path().join(".").join("keymeld.db"), link] {
        assert!(matches!(refusal(&same), OpenError::InUse), "{}", same.display());
    }
    assert_eq!(commit(&mut first, vec![open_head(record(Family::Keygen, 1), 0)]), Ok(()));
    drop(first);
    let second = open(&path);
    assert!(matches!(refusal(&path), OpenError::InUse));
    second.close().unwrap();
    assert_eq!(load(&mut open(&path), record(Family::Keygen, 1)).len(), 1);
}

#[test]
fn a_refused_open_frees_the_lock() {
    let (_folder, path) = place();
    fs::write(&path, b"garbage").unwrap();
    for _ in 0..2 {
        assert!(matches!(refusal(&path), OpenError::NotKeyMeld));
    }
    fs::remove_file(&path).unwrap();
    open(&path).close().unwrap();
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (_folder, path) = place();
    open(&path).close().unwrap();
    raw(&path).pragma_update(None, "user_version", 41).unwrap();
    for read_only in [false, true] {
        let refusal = Store::open(&path, &Options { read_only, ..Options::default() }).unwrap_err();
        assert!(matches!(refusal, OpenError::NewerSchema { found: 41, known: 1 }), "{refusal:?}");
    }
    let version: i32 = raw(&path).pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 41);
}

#[test]
fn a_version_that_no_release_wrote_is_corrupt() {
    for version in [0, -1, i32::MIN] {
        let (_folder, path) = place();
        open(&path).close().unwrap();
        raw(&path).pragma_update(None, "user_version", version).unwrap();
        assert!(matches!(refusal(&path), OpenError::Corrupt));
    }
}

#[test]
fn the_database_of_another_program_is_refused_and_left_alone() {
    for sql in [
        "CREATE TABLE rows (x)",
        "CREATE VIEW v AS SELECT 1",
        "PRAGMA application_id = 77",
        "PRAGMA user_version = 1",
    ] {
        let (_folder, path) = place();
        raw(&path).execute_batch(&format!("PRAGMA page_size = 512; {sql}; VACUUM")).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(refusal(&path), OpenError::NotKeyMeld), "{sql}");
        assert_eq!(fs::read(&path).unwrap(), before, "{sql}");
    }
}

#[test]
fn a_changed_table_is_refused() {
    for sql in [
        "ALTER TABLE rows ADD COLUMN note TEXT",
        "DROP INDEX open_heads",
        "CREATE TABLE another (x)",
        "CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM rows WHERE family = 1; END",
    ] {
        let (_folder, path) = place();
        open(&path).close().unwrap();
        raw(&path).execute_batch(sql).unwrap();
        assert!(matches!(refusal(&path), OpenError::SchemaChanged), "{sql}");
    }
}

#[test]
fn garbage_is_refused_at_every_length() {
    let lengths = [1, 15, 16, 99, 100, 511, 512, 1_000, 4_095, 4_096, 4_097, 100_000];
    for (length, byte) in lengths.into_iter().flat_map(|length| [(length, 0), (length, 0x5a), (length, 0xff)])
    {
        let (_folder, path) = place();
        fs::write(&path, vec![byte; length]).unwrap();
        let refusal = refusal(&path);
        assert!(
            matches!(refusal, OpenError::NotKeyMeld | OpenError::Corrupt),
            "{length} of {byte}: {refusal:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), vec![byte; length]);
    }
}

#[test]
fn an_empty_file_becomes_a_database() {
    let (_folder, path) = place();
    fs::write(&path, b"").unwrap();
    assert_eq!(commit(&mut open(&path), vec![open_head(record(Family::Keygen, 1), 0)]), Ok(()));
}

/// A closed database with rows of one and of several pages.
fn filled(path: &Path) -> Vec<u8> {
    let mut store = open(path);
    for number in 0..30 {
        let head = open_head(record(Family::Signing, number), 0);
        let tail = fixture::write(record(Family::Signing, number), 1, 0, &vec![number as u8; 6_000]);
        assert_eq!(commit(&mut store, vec![head, tail]), Ok(()));
    }
    store.close().expect("closes");
    fs::read(path).expect("a file")
}

#[test]
fn a_database_cut_short_is_refused() {
    let (_folder, path) = place();
    let whole = filled(&path);
    for length in (1..whole.len()).step_by(512).chain([whole.len() - 1]) {
        let (_folder, path) = place();
        fs::write(&path, &whole[..length]).unwrap();
        let refusal = refusal(&path);
        assert!(matches!(refusal, OpenError::NotKeyMeld | OpenError::Corrupt), "{length}: {refusal:?}");
    }
}

#[test]
fn a_page_of_noise_is_refused_or_holds_only_bodies() {
    let (_folder, path) = place();
    let whole = filled(&path);
    let mut refused = 0;
    for page in 0..whole.len() / 4_096 {
        let (_folder, path) = place();
        let mut damaged = whole.clone();
        for (offset, byte) in damaged[page * 4_096..][..4_096].iter_mut().enumerate() {
            *byte = (offset * 31 + page) as u8 | 0x80;
        }
        fs::write(&path, &damaged).unwrap();
        match Store::open(&path, &Options::default()) {
            Ok(mut store) => assert_eq!(load(&mut store, record(Family::Signing, 3)).len(), 2),
            Err(OpenError::NotKeyMeld | OpenError::Corrupt | OpenError::SchemaChanged) => refused += 1,
            Err(other) => panic!("page {page}: {other:?}"),
        }
    }
    assert!(refused >= 4, "header, table, index, leaves: {refused}");
}

#[test]
fn a_path_that_holds_no_file_is_an_error() {
    let (folder, path) = place();
    let nowhere = folder.path().join("no").join("such.db");
    assert!(matches!(refusal(&nowhere), OpenError::File(_)));
    assert!(matches!(refusal(Path::new("")), OpenError::File(_)));
    assert!(matches!(refusal(folder.path()), OpenError::Sqlite(_) | OpenError::File(_)));

    let read_only = Options { read_only: true, ..Options::default() };
    assert!(matches!(Store::open(&path, &read_only).unwrap_err(), OpenError::File(_)));
    assert!(!path.exists(), "reading creates nothing");
    fs::write(&path, b"").unwrap();
    let refusal = Store::open(&path, &read_only).unwrap_err();
    assert!(matches!(refusal, OpenError::OlderSchema { found: 0, known: 1 }), "{refusal:?}");
}
