//! What SQLite's result codes mean to a caller.

use core::fmt;

use keymeld_core::record::PersistError;
use rusqlite::{Error, ErrorCode, ffi};

/// What the store was doing when SQLite failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Store::commit`](crate::Store::commit).
    Commit,
    /// [`Store::load`](crate::Store::load).
    Load,
    /// [`Store::settings`](crate::Store::settings).
    Settings,
}

/// What SQLite said. It names tables and result codes, never contents of rows.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed: {source} (SQLite code {code})")]
pub struct Failure {
    /// What was being done.
    pub operation: Operation,
    /// SQLite's extended result code; 0 where the fault is not SQLite's but a row's.
    pub code: i32,
    /// SQLite's words.
    #[source]
    pub source: Error,
}

impl Failure {
    pub(crate) fn new(operation: Operation, source: Error) -> Failure {
        let code = source.sqlite_error().map_or(0, |error| error.extended_code);
        Failure { operation, code, source }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Operation::Commit => "commit",
            Operation::Load => "load",
            Operation::Settings => "reading the settings",
        })
    }
}

/// Why a transaction did not become durable.
pub(crate) fn persist_error(error: &Error) -> PersistError {
    let Some(sqlite) = error.sqlite_error() else { return PersistError::Failed };
    match (sqlite.code, sqlite.extended_code) {
        (ErrorCode::DiskFull, _) => PersistError::DiskFull,
        // The log's index is a file too; SQLite has no other code for "no room to grow it".
        (_, ffi::SQLITE_IOERR_SHMSIZE) => PersistError::DiskFull,
        (ErrorCode::ReadOnly, _) => PersistError::ReadOnly,
        (ErrorCode::ConstraintViolation, extended) if is_existing_row(extended) => {
            PersistError::VersionMismatch
        }
        _ => PersistError::Failed,
    }
}

/// Whether an error concerns one write only, so that the transaction around it can go on. After all others
/// (disk, memory, locks) SQLite may have rolled everything back.
pub(crate) fn is_confined(error: &Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig))
}

fn is_existing_row(extended_code: i32) -> bool {
    // The trigger is the one that keeps enclave rows.
    [
        ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
        ffi::SQLITE_CONSTRAINT_UNIQUE,
        ffi::SQLITE_CONSTRAINT_ROWID,
        ffi::SQLITE_CONSTRAINT_TRIGGER,
    ]
    .contains(&extended_code)
}

#[cfg(test)]
mod tests {
    use keymeld_core::record::PersistError;
    use rusqlite::{Error, ffi};

    use super::{is_confined, persist_error};

    #[test]
    fn result_codes_become_the_reasons_that_a_machine_tells_apart() {
        let expected = [
            (ffi::SQLITE_FULL, PersistError::DiskFull, false),
            (ffi::SQLITE_IOERR_SHMSIZE, PersistError::DiskFull, false),
            (ffi::SQLITE_READONLY, PersistError::ReadOnly, false),
            (ffi::SQLITE_READONLY_DBMOVED, PersistError::ReadOnly, false),
            (ffi::SQLITE_READONLY_DIRECTORY, PersistError::ReadOnly, false),
            (ffi::SQLITE_CONSTRAINT_PRIMARYKEY, PersistError::VersionMismatch, true),
            (ffi::SQLITE_CONSTRAINT_TRIGGER, PersistError::VersionMismatch, true),
            (ffi::SQLITE_CONSTRAINT_CHECK, PersistError::Failed, true),
            (ffi::SQLITE_TOOBIG, PersistError::Failed, true),
            (ffi::SQLITE_IOERR_FSYNC, PersistError::Failed, false),
            (ffi::SQLITE_IOERR_WRITE, PersistError::Failed, false),
            (ffi::SQLITE_BUSY, PersistError::Failed, false),
            (ffi::SQLITE_CORRUPT, PersistError::Failed, false),
            (ffi::SQLITE_NOMEM, PersistError::Failed, false),
        ];
        for (code, reason, confined) in expected {
            let error = Error::SqliteFailure(ffi::Error::new(code), None);
            assert_eq!(persist_error(&error), reason, "code {code}");
            assert_eq!(is_confined(&error), confined, "code {code}");
        }
        assert_eq!(persist_error(&Error::QueryReturnedNoRows), PersistError::Failed);
    }
}
