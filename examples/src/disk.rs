//! What a gateway in one thread stores its records on.

use std::collections::BTreeMap;

use keymeld_core::record::{LoadError, Persist, PersistError, Query, Row, RowKey, Token, Write};

/// A store of records.
pub trait Disk {
    /// Reads.
    ///
    /// # Errors
    /// [`LoadError`].
    fn load(&mut self, query: &Query) -> Result<Vec<Row>, LoadError>;

    /// Makes each token's writes durable, or none of them.
    fn commit(&mut self, batch: &[Persist]) -> Vec<(Token, Result<(), PersistError>)>;

    /// What a killed gateway's successor finds.
    fn reopen(&mut self);
}

/// Records in memory: for examples, which have nothing to lose.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    rows: BTreeMap<RowKey, (Row, bool)>,
}

impl MemoryDisk {
    fn write(&mut self, writes: &[Write]) -> Result<(), PersistError> {
        let version = |key: &RowKey| self.rows.get(key).map_or(0, |(row, _)| row.version);
        if writes.iter().any(|write| version(&write.key) != write.replaces) {
            return Err(PersistError::VersionMismatch);
        }
        for Write { key, replaces, open, body } in writes {
            let row = Row { key: *key, version: replaces + 1, body: body.clone() };
            self.rows.insert(*key, (row, *open));
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn load(&mut self, query: &Query) -> Result<Vec<Row>, LoadError> {
        let rows = self.rows.values();
        Ok(match query {
            Query::Record(record) => {
                rows.filter(|(row, _)| row.key.record == *record).map(|(row, _)| row.clone()).collect()
            }
            Query::Open { after, count_max } => rows
                .filter(|(row, open)| *open && row.key.part == 0 && Some(row.key.record) > *after)
                .map(|(row, _)| row.clone())
                .take(*count_max as usize)
                .collect(),
        })
    }

    fn commit(&mut self, batch: &[Persist]) -> Vec<(Token, Result<(), PersistError>)> {
        batch.iter().map(|persist| (persist.token, self.write(&persist.writes))).collect()
    }

    fn reopen(&mut self) {}
}
