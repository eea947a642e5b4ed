//! S6 and S7: whatever was acknowledged is on the disk, whenever one looks, and identity rows only grow.

use std::collections::BTreeMap;

use keymeld_core::record::{Family, Query, RecordKey, RowKey};

use super::disk::Disk;

/// What is on the disk for good.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Rows that somebody was told of, with what they said. A head changes, so that only its being there counts.
    promised: BTreeMap<RowKey, Option<Vec<u8>>>,
    /// The host has put an older database in place: it owes nothing any more.
    forgiven: bool,
}

impl Ledger {
    /// An older database takes the place of the gateway's.
    pub(crate) fn rolled_back(&mut self) {
        self.forgiven = true;
        self.promised.clear();
    }

    /// Whether that has happened.
    pub(crate) fn is_forgiven(&self) -> bool {
        self.forgiven
    }

    /// Somebody is told that a row is there: it is, and stays as it is.
    pub(crate) fn promise(&mut self, disk: &mut Disk, record: RecordKey, part: u32, what: &str) {
        let key = RowKey { record, part };
        if self.forgiven || self.promised.contains_key(&key) {
            return;
        }
        let rows = disk.load(&Query::Record(record)).expect("nothing is wrong with this disk");
        let Some(row) = rows.into_iter().find(|row| row.key == key) else {
            panic!("S6: {what} is acknowledged and not durable");
        };
        let is_head = part == 0 && record.family != Family::Enclave;
        self.promised.insert(key, (!is_head).then_some(row.body));
    }

    /// A row of an identity is durable.
    pub(crate) fn identity(&mut self, key: RowKey, body: &[u8]) {
        if let Some(earlier) = self.promised.insert(key, Some(body.to_vec())) {
            assert_eq!(earlier.as_deref(), Some(body), "S7: an identity row is overwritten");
        }
    }

    /// Looks for everything.
    pub(crate) fn check(&self, disk: &mut Disk) {
        let mut loaded: Option<(RecordKey, Vec<keymeld_core::record::Row>)> = None;
        for (key, body) in &self.promised {
            let rows = match &loaded {
                Some((record, rows)) if *record == key.record => rows,
                Some(_) | None => {
                    let rows =
                        disk.load(&Query::Record(key.record)).expect("nothing is wrong with this disk");
                    &loaded.insert((key.record, rows)).1
                }
            };
            let row = rows.iter().find(|row| row.key == *key);
            let kept = row.is_some_and(|row| body.as_ref().is_none_or(|body| *body == row.body));
            assert!(kept, "S6, S7: {key:?} was acknowledged and is gone or changed");
        }
    }
}
