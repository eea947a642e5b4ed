//! Deadlines on the monotonic clock: ends of sessions, retries, long polls.

use super::session::{Session, SessionKey, Work};
use super::{EXPIRIES_MAX, Gateway, RETRY_MS_MAX, RETRY_MS_MIN};
use crate::id::EnclaveId;
use crate::limits::SKEW_MS;
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
        let Some(deadline_unix_ms) = entry.session.deadline_unix_ms() else { return };
        if !entry.timers.contains_key(&TimerKind::Expire) {
            let due = now.mono_ms.saturating_add(deadline_unix_ms.saturating_sub(now.unix_ms));
            self.set_timer(key, TimerKind::Expire, Some(due));
        }
    }

    /// Whether a session whose time has come has time left after all: the clock was ahead when its timer was set. It
    /// is looked at again then, or soon: the clock may be behind now.
    pub(super) fn expires_later(&mut self, now: Time, key: SessionKey, session: &Session) -> bool {
        let left_ms = session.deadline_unix_ms().map_or(0, |deadline| deadline.saturating_sub(now.unix_ms));
        if left_ms > 0 {
            self.set_timer(key, TimerKind::Expire, Some(now.mono_ms + left_ms.min(SKEW_MS)));
        }
        left_ms > 0
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
