//! SQLite storage adapter of the KeyMeld gateway: records in, records out.
//!
//! A [`Store`] is the one writer of one database file. It speaks the vocabulary of
//! [`keymeld_core::record`] and knows nothing of what the bytes mean. It is a blocking adapter for the
//! gateway's core thread: loads and commits run on the one connection, so that a load sees every commit
//! before it and no second connection has to be kept in step.
//!
//! **Invariant:** what [`Store::commit`] answered `Ok` survives a crash of the process or of the machine
//! (S6; `tests/crash.rs`). The journal is SQLite's WAL with `synchronous=FULL`, both read back at open.
//!
//! **Invariant:** rows of [`Family::Enclave`](keymeld_core::record::Family::Enclave) are only ever added
//! (S7; `tests/enclave_rows.rs`). The adapter refuses to replace them and triggers in the file abort every
//! update, delete and overwriting insert, whoever asks.
//!
//! **Invariant:** one [`Store`] per file (`tests/open.rs`). A lock file beside the database is held for as
//! long as the store lives.
//!
//! Modules: `open` (settings, checks, lock), `schema` (migrations), `commit` (group commit), `load`
//! (queries), `failure` (what SQLite's result codes mean), `limits`.

mod commit;
mod failure;
pub mod limits;
mod load;
mod open;
mod schema;

use std::fs::File;

use keymeld_core::record::LoadError;
use rusqlite::Connection;

pub use failure::{Failure, Operation};
pub use open::{OpenError, Options};

/// An open database.
///
/// Dropping it without [`close`](Store::close) loses nothing that was acknowledged.
#[derive(Debug)]
pub struct Store {
    // Before `lock`: fields drop in this order, and the lock must outlive the connection.
    connection: Connection,
    failure: Option<Failure>,
    /// `None` where the store is read-only.
    lock: Option<File>,
}

/// Why [`Store::close`] did not leave all rows in the database file alone. Nothing is lost: what was
/// committed is in the `-wal` file beside it, which the next open reads.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// Another connection is reading, so the log could not be emptied.
    #[error("another connection is reading the database")]
    Busy,
    /// The checkpoint failed.
    #[error("the database could not be checkpointed")]
    Sqlite(#[source] rusqlite::Error),
}

/// What the connection runs with, read from SQLite and not from what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `PRAGMA journal_mode`; [`Store::open`] refuses all but `wal`.
    pub journal_mode: String,
    /// `PRAGMA synchronous`; [`Store::open`] refuses all but 2, `FULL`.
    pub synchronous: u32,
    /// `PRAGMA wal_autocheckpoint`: the pages in the log that start a checkpoint.
    pub checkpoint_pages: u32,
    /// `PRAGMA journal_size_limit`: what the log file is cut to when it starts anew.
    pub log_bytes_kept: i64,
    /// `PRAGMA page_size`.
    pub page_bytes: u32,
    /// `PRAGMA page_count`: the size of the database, free pages included.
    pub page_count: u32,
    /// `PRAGMA max_page_count`: the size that it may grow to.
    pub pages_max: u32,
}

impl Store {
    /// What the connection runs with now, for health reports.
    ///
    /// # Errors
    /// [`LoadError`] where SQLite fails; [`take_failure`](Store::take_failure) then tells why.
    pub fn settings(&mut self) -> Result<Settings, LoadError> {
        open::settings(&self.connection).map_err(|error| {
            self.failure = Some(Failure::new(Operation::Settings, error));
            LoadError
        })
    }

    /// What SQLite said when a commit or a load last failed, for the log. Taking it clears it.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Moves all rows from the log into the database file, empties the log and closes.
    ///
    /// # Errors
    /// [`CloseError`]; the store is closed all the same.
    pub fn close(self) -> Result<(), CloseError> {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        // A read-only store has no log of its own to empty.
        let busy = match self.lock {
            Some(_) => self.connection.query_row(sql, [], |row| row.get(0)).map_err(CloseError::Sqlite)?,
            None => false,
        };
        self.connection.close().map_err(|(_, error)| CloseError::Sqlite(error))?;
        if busy { Err(CloseError::Busy) } else { Ok(()) }
    }
}
