//! Durable records: the only way that a gateway's state reaches a disk.
//!
//! A store keeps rows of bytes under a [`RowKey`] and a version that it asserts on every write. It knows
//! nothing of what the bytes mean.

use alloc::vec::Vec;

/// The kind of thing that a row belongs to. The numbers are stored; they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// A keygen session: its head is part 0, its registrations follow.
    Keygen = 1,
    /// A signing session: its head is part 0, its request part 1, its end part 2, its approvals follow.
    Signing = 2,
    /// An enclave identity: one row per epoch, only ever added (S7).
    Enclave = 3,
}

impl Family {
    /// The family with a stored number.
    pub fn from_number(number: u8) -> Option<Family> {
        [Family::Keygen, Family::Signing, Family::Enclave].into_iter().find(|family| *family as u8 == number)
    }
}

/// What a load asks for as a whole: all rows of one session or of one enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// What it is.
    pub family: Family,
    /// The keygen, signing or enclave id.
    pub id: [u8; 16],
}

/// Names one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The record that the row is a part of.
    pub record: RecordKey,
    /// Which part; for an enclave its epoch.
    pub part: u32,
}

/// One stored row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub key: RowKey,
    /// How often it was written, from 1.
    pub version: u64,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// One row to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its name.
    pub key: RowKey,
    /// The version that the row has now; 0 where it must not exist. It becomes `replaces + 1`.
    pub replaces: u64,
    /// Whether the record still has work to do and is listed by [`Query::Open`]. Read from part 0 alone.
    pub open: bool,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// Names a [`Persist`] in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Writes that become durable together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Names the answer.
    pub token: Token,
    /// The rows, at least one.
    pub writes: Vec<Write>,
}

/// Why writes were not made durable. None of them took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersistError {
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
    /// The database cannot be written to.
    #[error("the database is read-only")]
    ReadOnly,
    /// A row had another version than the write expected: two writers, or a changed file.
    #[error("a row has another version than expected")]
    VersionMismatch,
    /// Anything else that the disk or SQLite said.
    #[error("the database failed")]
    Failed,
}

/// A read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// All rows of one record, by part.
    Record(RecordKey),
    /// The heads (part 0) of open records, by key, after `after`, at most `count_max`.
    Open {
        /// Where the page before ended.
        after: Option<RecordKey>,
        /// The page's size.
        count_max: u32,
    },
}

/// The read failed; the record may or may not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database cannot be read")]
pub struct LoadError;
