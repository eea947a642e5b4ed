//! Sessions come from their records: at the start those that are open, later by the first event for each.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::keygen::Keygen;
use super::session::{Entry, Session, SessionKey, Work};
use super::signing::Signing;
use super::timers::Timer;
use super::{Command, Gateway, RESUME_PAGE, RETRY_MS_MAX, record};
use crate::id::{EnclaveId, SigningId};
use crate::record::{Family, LoadError, Query, Row};
use crate::refusal::Code;
use crate::time::Time;

impl Gateway {
    pub(super) fn started(&mut self) {
        for enclave_id in self.config.enclaves.clone() {
            self.commands.push_back(Command::Load(Query::Record(record::enclave_key(enclave_id))));
        }
        self.load_page();
    }

    pub(super) fn load_page(&mut self) {
        let query = Query::Open { after: self.resume_after, count_max: RESUME_PAGE };
        self.commands.push_back(Command::Load(query));
    }

    pub(super) fn loaded(&mut self, now: Time, query: Query, rows: Result<Vec<Row>, LoadError>) {
        match query {
            Query::Open { .. } => match rows {
                Ok(heads) => self.resume_page(&heads),
                Err(LoadError) => {
                    self.timers.insert((now.mono_ms + RETRY_MS_MAX, Timer::ResumePage));
                }
            },
            Query::Record(record) if record.family == Family::Enclave => {
                self.rows_loaded(now, EnclaveId(record.id), rows);
            }
            Query::Record(record) => {
                let Some(key) = SessionKey::of(record) else { return };
                let is_awaited =
                    |entry: &Entry| matches!(entry.session, Session::Loading) && entry.rows.is_none();
                if !self.entries.get(&key).is_some_and(is_awaited) {
                    return;
                }
                match rows {
                    Ok(rows) => self.session_loaded(now, key, &rows),
                    Err(LoadError) => self.forget(now, key, Code::StorageFailed),
                }
            }
        }
    }

    pub(super) fn resume_page(&mut self, heads: &[Row]) {
        for key in heads.iter().filter_map(|row| SessionKey::of(row.key.record)) {
            self.todo.push_back((key, Work::Resume));
        }
        if heads.len() == RESUME_PAGE as usize {
            self.resume_after = heads.last().map(|row| row.key.record);
            self.load_page();
        }
    }

    pub(super) fn session_loaded(&mut self, now: Time, key: SessionKey, rows: &[Row]) {
        let session = match key {
            _ if rows.is_empty() => Ok(Session::Absent),
            SessionKey::Keygen(_) => Keygen::read(rows).map(|keygen| Session::Keygen(Arc::new(keygen))),
            SessionKey::Signing(signing_id) => match record::SigningRows::read(rows) {
                Ok(rows) => {
                    self.want_keygen(now, signing_id, rows);
                    return;
                }
                Err(error) => Err(error),
            },
        };
        match session {
            Ok(session) => self.install(now, key, session),
            Err(_) => {
                // Who asked is told; it is read again where it is still due.
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.open = false;
                }
                self.report_corrupt(key.record());
                self.forget(now, key, Code::Internal);
            }
        }
    }

    /// A signing session is nothing without its keygen.
    pub(super) fn want_keygen(&mut self, now: Time, signing_id: SigningId, rows: record::SigningRows) {
        let keygen_id = rows.head.keygen_id;
        if let Some(entry) = self.entries.get_mut(&SessionKey::Signing(signing_id)) {
            entry.open = rows.end.is_none();
            entry.rows = Some(rows);
        }
        match self.completed.get_mut(&keygen_id).cloned() {
            Some(keygen) => self.supply(now, signing_id, Some(keygen)),
            None => self.todo.push_back((SessionKey::Keygen(keygen_id), Work::Supply(signing_id))),
        }
    }

    pub(super) fn supply(&mut self, now: Time, signing_id: SigningId, keygen: Option<Arc<Keygen>>) {
        let key = SessionKey::Signing(signing_id);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let Some(rows) = entry.rows.take() else { return };
        match keygen {
            Some(keygen) => {
                entry.session = Session::Signing(Box::new(Signing::read(rows, keygen)));
                entry.queue.push_front(Work::Resume);
                self.weigh(key);
                self.drain(key);
            }
            None => self.forget(now, key, Code::StorageFailed),
        }
    }

    pub(super) fn install(&mut self, now: Time, key: SessionKey, session: Session) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.open = matches!(&session, Session::Keygen(keygen) if !keygen.is_ended());
        entry.session = session;
        if let Session::Keygen(_) = entry.session {
            entry.queue.push_front(Work::Resume);
        }
        self.corrupt.remove(&key.record());
        self.weigh(key);
        self.drain(key);
        self.settle(now, key);
    }
}
