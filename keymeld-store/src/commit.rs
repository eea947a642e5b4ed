//! Group commit: one transaction for a batch, one savepoint for each token.

use keymeld_core::record::{Family, Persist, PersistError, Token, Write};
use rusqlite::{Connection, Error, Params, params};

use crate::failure::{is_confined, persist_error};
use crate::limits::{BODY_BYTES_MAX, GROUP_TOKENS_MAX};
use crate::{Failure, Operation, Store};

const INSERT: &str = "
INSERT INTO rows (family, id, part, version, open, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const UPDATE: &str = "
UPDATE rows SET version = ?4, open = ?5, body = ?6
WHERE family = ?1 AND id = ?2 AND part = ?3 AND version = ?4 - 1";

type Answer = Result<(), PersistError>;

/// Why a token's writes cannot be kept.
enum Fault {
    /// This token's alone; the others of its group go on.
    Token(PersistError),
    /// The whole group's.
    Group(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        if is_confined(&error) { Fault::Token(persist_error(&error)) } else { Fault::Group(error) }
    }
}

impl Store {
    /// Makes a batch durable and answers each token, in the batch's order. An `Ok` is given only after the
    /// disk has confirmed the write.
    ///
    /// The batch is one transaction, or one for every [`GROUP_TOKENS_MAX`] tokens. A token whose writes
    /// cannot be kept (another version, a body over [`BODY_BYTES_MAX`], no writes at all) fails alone. When
    /// the transaction fails, all its tokens fail with its reason, and so do the tokens after it, which are
    /// not tried. The store stays usable: the same writes may be tried again later.
    ///
    /// A token that failed took no effect that a [`load`](Store::load) of this store can see. One case is
    /// out of reach of any adapter: where the disk took a transaction's bytes, failed to confirm them, and
    /// the machine then stops before another commit, the next open may find that transaction whole.
    pub fn commit(&mut self, batch: &[Persist]) -> Vec<(Token, Answer)> {
        let mut answers = Vec::with_capacity(batch.len());
        for group in batch.chunks(GROUP_TOKENS_MAX) {
            match commit_group(&self.connection, group) {
                Ok(group_answers) => {
                    answers.extend(group.iter().map(|persist| persist.token).zip(group_answers));
                }
                Err(error) => {
                    let reason = persist_error(&error);
                    self.failure = Some(Failure::new(Operation::Commit, error));
                    // The rollback itself may fail on a broken disk; the next commit then starts with it.
                    let _ = ensure_no_transaction(&self.connection);
                    let rest = &batch[answers.len()..];
                    answers.extend(rest.iter().map(|persist| (persist.token, Err(reason))));
                    break;
                }
            }
        }
        answers
    }
}

fn commit_group(connection: &Connection, group: &[Persist]) -> Result<Vec<Answer>, Error> {
    ensure_no_transaction(connection)?;
    execute(connection, "BEGIN IMMEDIATE", [])?;
    let answers =
        group.iter().map(|persist| write_token(connection, persist)).collect::<Result<Vec<_>, _>>()?;
    execute(connection, "COMMIT", [])?;
    Ok(answers)
}

/// Rolls back what is left of a transaction that failed; SQLite has often done so itself.
fn ensure_no_transaction(connection: &Connection) -> Result<(), Error> {
    if !connection.is_autocommit() {
        execute(connection, "ROLLBACK", [])?;
    }
    Ok(())
}

fn write_token(connection: &Connection, persist: &Persist) -> Result<Answer, Error> {
    if persist.writes.is_empty() || persist.writes.iter().any(|write| write.body.len() > BODY_BYTES_MAX) {
        return Ok(Err(PersistError::Failed));
    }
    execute(connection, "SAVEPOINT token", [])?;
    let answer = match persist.writes.iter().try_for_each(|write| write_row(connection, write)) {
        Ok(()) => Ok(()),
        Err(Fault::Token(reason)) => {
            execute(connection, "ROLLBACK TO token", [])?;
            Err(reason)
        }
        Err(Fault::Group(error)) => return Err(error),
    };
    execute(connection, "RELEASE token", [])?;
    Ok(answer)
}

fn write_row(connection: &Connection, write: &Write) -> Result<(), Fault> {
    let record = write.key.record;
    let replaces_row = write.replaces != 0;
    if replaces_row && record.family == Family::Enclave {
        return Err(Fault::Token(PersistError::VersionMismatch));
    }
    // SQLite counts to i64::MAX; no row has a version beyond it.
    let version = i64::try_from(write.replaces).ok().and_then(|replaces| replaces.checked_add(1));
    let version = version.ok_or(Fault::Token(PersistError::VersionMismatch))?;
    let open = write.open && write.key.part == 0;

    let sql = if replaces_row { UPDATE } else { INSERT };
    let values = params![record.family as u8, record.id, write.key.part, version, open, write.body];
    match execute(connection, sql, values)? {
        1 => Ok(()),
        _ => Err(Fault::Token(PersistError::VersionMismatch)),
    }
}

/// Runs a statement that is prepared once for the life of the connection; answers the rows it changed.
fn execute(connection: &Connection, sql: &str, params: impl Params) -> Result<usize, Error> {
    connection.prepare_cached(sql)?.execute(params)
}

#[cfg(test)]
mod tests {
    use keymeld_core::record::{Family, Persist, PersistError, Query, RecordKey, RowKey, Token, Write};

    use crate::{Options, Store};

    fn persist(number: u8) -> Persist {
        let record = RecordKey { family: Family::Signing, id: [number; 16] };
        let write = Write { key: RowKey { record, part: 0 }, replaces: 0, open: true, body: vec![number] };
        Persist { token: Token(number.into()), writes: vec![write] }
    }

    fn stored(store: &mut Store) -> Vec<u8> {
        let all = Query::Open { after: None, count_max: 100 };
        store.load(&all).unwrap().into_iter().map(|row| row.body[0]).collect()
    }

    fn opened() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("keymeld.db"), &Options::default()).expect("opens");
        (folder, store)
    }

    #[test]
    fn when_the_commit_itself_fails_every_token_fails_and_the_next_batch_is_kept() {
        let (_folder, mut store) = opened();
        // A constraint that is only looked at in COMMIT.
        let reference = "
            CREATE TEMP TABLE parent (x INTEGER PRIMARY KEY);
            CREATE TEMP TABLE child (x INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
            CREATE TEMP TRIGGER refer AFTER INSERT ON main.rows BEGIN INSERT INTO child VALUES (1); END";
        store.connection.execute_batch(reference).unwrap();
        let failed = Err(PersistError::Failed);
        assert_eq!(store.commit(&[persist(1), persist(2)]), [(Token(1), failed), (Token(2), failed)]);
        assert!(stored(&mut store).is_empty());
        assert_eq!(store.take_failure().unwrap().code, rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY);

        store.connection.execute_batch("DROP TRIGGER refer").unwrap();
        assert_eq!(store.commit(&[persist(1), persist(3)]), [(Token(1), Ok(())), (Token(3), Ok(()))]);
        assert_eq!(stored(&mut store), [1, 3]);
    }

    #[test]
    fn what_is_left_of_a_transaction_is_rolled_back_before_the_next() {
        let (_folder, mut store) = opened();
        store.connection.execute_batch("BEGIN IMMEDIATE; SAVEPOINT token").unwrap();
        let leftover = "INSERT INTO rows VALUES (2, zeroblob(16), 0, 1, 1, x'09')";
        store.connection.execute_batch(leftover).unwrap();
        assert_eq!(store.commit(&[persist(1)]), [(Token(1), Ok(()))]);
        assert_eq!(stored(&mut store), [1]);
    }

    #[test]
    fn a_database_that_turns_read_only_fails_with_that_reason_until_it_is_writable_again() {
        let (_folder, mut store) = opened();
        assert_eq!(store.commit(&[persist(1)]), [(Token(1), Ok(()))]);
        store.connection.pragma_update(None, "query_only", true).unwrap();
        let refused = Err(PersistError::ReadOnly);
        assert_eq!(store.commit(&[persist(2), persist(3)]), [(Token(2), refused), (Token(3), refused)]);
        store.connection.pragma_update(None, "query_only", false).unwrap();
        assert_eq!(store.commit(&[persist(3)]), [(Token(3), Ok(()))]);
        assert_eq!(stored(&mut store), [1, 3]);
    }
}
