//! S7: enclave identity rows are only added, whoever writes.

mod fixture;

use fixture::{commit, load, open, place, raw, record, row, write};
use keymeld_core::record::{Family, PersistError};
use keymeld_store::{OpenError, Options, Store};
use rusqlite::ErrorCode;

#[test]
fn an_epoch_is_added_beside_the_others_and_never_replaced() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Enclave, 1);
    for epoch in [1, 0, 2] {
        assert_eq!(commit(&mut store, vec![write(key, epoch, 0, &[epoch as u8])]), Ok(()));
    }
    for replaces in [0, 1, 2, u64::MAX] {
        let answer = commit(&mut store, vec![write(key, 1, replaces, b"other")]);
        assert_eq!(answer, Err(PersistError::VersionMismatch));
    }
    let expected = [row(key, 0, 1, &[0]), row(key, 1, 1, &[1]), row(key, 2, 1, &[2])];
    assert_eq!(load(&mut store, key), expected);
}

#[test]
fn no_statement_of_another_connection_changes_or_removes_one() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let enclave = record(Family::Enclave, 1);
    let keygen = record(Family::Keygen, 1);
    assert_eq!(commit(&mut store, vec![write(enclave, 0, 0, b"identity")]), Ok(()));
    assert_eq!(commit(&mut store, vec![write(keygen, 0, 0, b"session")]), Ok(()));
    store.close().unwrap();

    let connection = raw(&path);
    let forged = "(SELECT family, id, part, 9, 0, x'66' FROM rows WHERE family = 3)";
    for statement in [
        "UPDATE rows SET body = x'66'",
        "UPDATE rows SET body = x'66' WHERE family = 3",
        "UPDATE rows SET version = version + 1 WHERE family = 3",
        "UPDATE rows SET family = 2 WHERE family = 3",
        "UPDATE OR REPLACE rows SET family = 3 WHERE family = 1",
        "UPDATE OR IGNORE rows SET body = x'66' WHERE family = 3",
        "UPDATE OR REPLACE rows SET rowid = (SELECT rowid FROM rows WHERE family = 3) WHERE family = 1",
        "UPDATE rows SET rowid = 99 WHERE family = 3",
        "DELETE FROM rows",
        "REPLACE INTO rows (rowid, family, id, part, version, open, body)
            SELECT rowid, 1, zeroblob(16), 5, 1, 0, x'66' FROM rows WHERE family = 3",
        "DELETE FROM rows WHERE family = 3",
        &format!("INSERT INTO rows SELECT * FROM {forged}"),
        &format!("REPLACE INTO rows SELECT * FROM {forged}"),
        &format!("INSERT OR REPLACE INTO rows SELECT * FROM {forged}"),
        &format!(
            "INSERT INTO rows SELECT * FROM {forged} WHERE true \
             ON CONFLICT DO UPDATE SET body = excluded.body"
        ),
    ] {
        let error = connection.execute_batch(statement).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation), "{statement}: {error}");
    }
    connection.execute("UPDATE rows SET version = version + 1 WHERE family = 1", []).unwrap();
    drop(connection);

    let mut store = open(&path);
    assert_eq!(load(&mut store, enclave), [row(enclave, 0, 1, b"identity")]);
    assert_eq!(load(&mut store, keygen), [row(keygen, 0, 2, b"session")]);
}

#[test]
fn a_database_without_its_triggers_is_not_opened() {
    for trigger in
        ["enclave_row_is_never_overwritten", "enclave_row_is_never_updated", "enclave_row_is_never_deleted"]
    {
        let (_folder, path) = place();
        open(&path).close().unwrap();
        raw(&path).execute_batch(&format!("DROP TRIGGER {trigger}")).unwrap();
        let refusal = Store::open(&path, &Options::default()).unwrap_err();
        assert!(matches!(refusal, OpenError::SchemaChanged), "{refusal:?}");
    }
}
