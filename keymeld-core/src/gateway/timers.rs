//! Deadlines on the monotonic clock: ends of sessions, retries, long polls.

use super::session::{Session, SessionKey, Work};
use super::{EXPIRIES_MAX, Gateway, RETRY_MS_MAX, RETRY_MS_MIN};
use crate::id::EnclaveId;
use crate::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerKind {
    Expire,
    Retry,
    Poll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Session(TimerKind, SessionKey),
    Enclave(EnclaveId),
    ResumePage,
}

impl Gateway {
    pub(super) fn set_deadline(&mut self, now: Time, key: SessionKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        let deadline_unix_ms = match &entry.session {
            Session::Loading | Session::Absent => return,
            Session::Keygen(keygen) => keygen.deadline_unix_ms(),
            Session::Signing(signing) => signing.deadline_unix_ms(),
        };
        if !entry.timers.contains_key(&TimerKind::Expire) {
            let due = now.mono_ms.saturating_add(deadline_unix_ms.saturating_sub(now.unix_ms));
            self.set_timer(key, TimerKind::Expire, Some(due));
        }
    }

    pub(super) fn set_timer(&mut self, key: SessionKey, kind: TimerKind, due: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let timer = Timer::Session(kind, key);
        let before = match due {
            Some(due) => entry.timers.insert(kind, due),
            None => entry.timers.remove(&kind),
        };
        if let Some(before) = before {
            self.timers.remove(&(before, timer));
        }
        if let Some(due) = due {
            self.timers.insert((due, timer));
        }
    }

    pub(super) fn clear_timers(&mut self, key: SessionKey) {
        for kind in [TimerKind::Expire, TimerKind::Retry, TimerKind::Poll] {
            self.set_timer(key, kind, None);
        }
    }

    /// Tries again when an enclave comes back, or after a pause that grows.
    pub(super) fn retry_later(&mut self, now: Time, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let pause = (RETRY_MS_MIN << entry.retries.min(6)).min(RETRY_MS_MAX);
        entry.retries += 1;
        self.waiting.insert(key);
        self.set_timer(key, TimerKind::Retry, Some(now.mono_ms + pause));
    }

    pub(super) fn ticked(&mut self, now: Time) {
        for _ in 0..EXPIRIES_MAX {
            let Some((due, timer)) = self.timers.first().copied() else { return };
            if due > now.mono_ms {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Enclave(enclave_id) => self.greet(now, enclave_id),
                Timer::ResumePage => self.load_page(),
                Timer::Session(kind, key) => {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        entry.timers.remove(&kind);
                    }
                    let work = match kind {
                        TimerKind::Expire => Work::Expire,
                        TimerKind::Retry => Work::Resume,
                        TimerKind::Poll => Work::AnswerPolls,
                    };
                    self.todo.push_back((key, work));
                }
            }
        }
    }
}
