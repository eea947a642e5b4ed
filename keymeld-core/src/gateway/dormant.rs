//! Open sessions that are not in memory: those that had to make room, and those whose record could not be
//! read or written. Each is read again at its time, whether or not somebody asks for it.

use super::keygen::Keygen;
use super::session::{Entry, Session, SessionKey};
use super::signing::Signing;
use super::timers::{Timer, TimerKind};
use super::{EVICTION_TRIES_MAX, Gateway};

impl Gateway {
    /// Notes that an open session is to be read again.
    pub(super) fn sleep_until(&mut self, key: SessionKey, due: u64) {
        self.wake(key);
        self.dormant.insert(key, due);
        self.timers.insert((due, Timer::Session(TimerKind::Retry, key)));
    }

    /// When the session was to be read again, if it slept; it does not any more.
    pub(super) fn wake(&mut self, key: SessionKey) -> Option<u64> {
        let due = self.dormant.remove(&key)?;
        self.timers.remove(&(due, Timer::Session(TimerKind::Retry, key)));
        Some(due)
    }

    /// Marks a session as used.
    pub(super) fn touch(&mut self, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.by_use.remove(&(entry.used, key));
        self.uses += 1;
        entry.used = self.uses;
        self.by_use.insert((entry.used, key));
    }

    /// Takes a session out of memory, with its timers.
    pub(super) fn take_out(&mut self, key: SessionKey) -> Option<Entry> {
        self.clear_timers(key);
        self.waiting.remove(&key);
        let entry = self.entries.remove(&key)?;
        self.by_use.remove(&(entry.used, key));
        self.memory.remove(&entry.weight);
        Some(entry)
    }

    /// Sends a session to sleep that waits for nothing but requests, the least recently used of those that
    /// are looked at.
    pub(super) fn make_room(&mut self) -> bool {
        if self.dormant.len() >= self.config.asleep_max {
            return false;
        }
        for _ in 0..EVICTION_TRIES_MAX {
            let Some((_, key)) = self.by_use.first().copied() else { return false };
            let expiry = self.entries.get(&key).and_then(Entry::rests_until);
            if let Some(due) = expiry {
                self.take_out(key);
                self.sleep_until(key, due);
                return true;
            }
            self.touch(key);
        }
        false
    }
}

impl Entry {
    /// When the session expires, where until then all it waits for are requests.
    fn rests_until(&self) -> Option<u64> {
        let rests = match &self.session {
            Session::Loading | Session::Absent => false,
            Session::Keygen(keygen) => Keygen::waits_for_requests(keygen),
            Session::Signing(signing) => Signing::waits_for_requests(signing),
        };
        let idle = self.token.is_none() && self.queue.is_empty() && self.waiters.is_empty();
        self.timers.get(&TimerKind::Expire).filter(|_| rests && idle).copied()
    }
}
