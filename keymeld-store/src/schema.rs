//! The tables, as a list of migrations that only ever grows.

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// Marks the file as KeyMeld's in SQLite's header: "KMld".
pub(crate) const APPLICATION_ID: i32 = 0x4b4d_6c64;

/// Migration i leads from schema version i to i + 1. Text that was released is never edited: what is in a
/// file is compared with it at open.
pub(crate) const MIGRATIONS: &[&str] = &[VERSION_1];

// Ids are random. A table in the order of its rowids takes new bodies at its end and only the small index
// entries go to random pages; WITHOUT ROWID inserted half as many rows a second.
//
// The three triggers keep enclave rows (S7) from everybody who writes to the file. REPLACE deletes rows
// without firing delete triggers, so an insert is looked at too, and so is an update into an enclave row:
// either could land on its key or on its rowid. (NEW.rowid is -1 where an insert names none.)
const VERSION_1: &str = "
CREATE TABLE rows (
    family INTEGER NOT NULL CHECK (family BETWEEN 1 AND 255),
    id BLOB NOT NULL CHECK (length(id) = 16),
    part INTEGER NOT NULL CHECK (part BETWEEN 0 AND 4294967295),
    version INTEGER NOT NULL CHECK (version >= 1),
    open INTEGER NOT NULL CHECK (open = 0 OR (open = 1 AND part = 0)),
    body BLOB NOT NULL,
    PRIMARY KEY (family, id, part)
) STRICT;

CREATE INDEX open_heads ON rows (family, id) WHERE open = 1;

CREATE TRIGGER enclave_row_is_never_overwritten BEFORE INSERT ON rows
WHEN EXISTS (SELECT 1 FROM rows WHERE rowid = NEW.rowid AND family = 3)
    OR (NEW.family = 3
        AND EXISTS (SELECT 1 FROM rows WHERE family = 3 AND id = NEW.id AND part = NEW.part))
BEGIN
    SELECT RAISE(ABORT, 'enclave rows are only added');
END;

CREATE TRIGGER enclave_row_is_never_updated BEFORE UPDATE ON rows
WHEN OLD.family = 3 OR NEW.family = 3 OR OLD.rowid <> NEW.rowid
BEGIN
    SELECT RAISE(ABORT, 'enclave rows are only added');
END;

CREATE TRIGGER enclave_row_is_never_deleted BEFORE DELETE ON rows
WHEN OLD.family = 3
BEGIN
    SELECT RAISE(ABORT, 'enclave rows are only added');
END;
";

/// The schema version that a database is at; 0 where it is new.
pub(crate) fn version(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Brings the database to the last of `migrations`, each in a transaction of its own.
pub(crate) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    for (step, sql) in (1..).zip(migrations) {
        if version(connection)? < step {
            let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", step)?;
            transaction.commit()?;
        }
    }
    Ok(())
}

/// Whether the tables, indices and triggers are those, to the letter, that `migrations` make. A trigger
/// that somebody dropped is a difference.
pub(crate) fn matches(connection: &Connection, migrations: &[&str]) -> rusqlite::Result<bool> {
    let mut reference = Connection::open_in_memory()?;
    migrate(&mut reference, migrations)?;
    Ok(objects(connection)? == objects(&reference)?)
}

type Object = (String, String, String, Option<String>);

fn objects(connection: &Connection) -> rusqlite::Result<Vec<Object>> {
    // SQLite's own objects (statistics of ANALYZE) change nothing.
    let sql = "SELECT type, name, tbl_name, sql FROM sqlite_schema
        WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type, name";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::{MIGRATIONS, matches, migrate, version};

    #[test]
    fn migrations_run_once_and_in_order() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = ["CREATE TABLE a (x);", "ALTER TABLE a ADD COLUMN y;"];
        migrate(&mut connection, &steps[..1]).unwrap();
        assert_eq!(version(&connection).unwrap(), 1);
        migrate(&mut connection, &steps).unwrap();
        migrate(&mut connection, &steps).unwrap();
        assert_eq!(version(&connection).unwrap(), 2);
        assert!(matches(&connection, &steps).unwrap());
        assert!(!matches(&connection, &steps[..1]).unwrap());
    }

    #[test]
    fn a_migration_that_fails_leaves_nothing_behind() {
        let mut connection = Connection::open_in_memory().unwrap();
        let broken = [MIGRATIONS[0], "CREATE TABLE half (x); CREATE TABLE half (x);"];
        migrate(&mut connection, &broken).unwrap_err();
        assert_eq!(version(&connection).unwrap(), 1);
        assert!(matches(&connection, &broken[..1]).unwrap());
        assert!(connection.is_autocommit());
    }

    #[test]
    fn a_dropped_trigger_is_a_difference_and_statistics_are_not() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        connection
            .execute_batch("INSERT INTO rows VALUES (1, zeroblob(16), 0, 1, 0, x'00'); ANALYZE")
            .unwrap();
        assert!(matches(&connection, MIGRATIONS).unwrap());
        connection.execute_batch("DROP TRIGGER enclave_row_is_never_deleted").unwrap();
        assert!(!matches(&connection, MIGRATIONS).unwrap());
    }
}
