//! What sessions in memory weigh, which of them nobody has registered in, and who has opened how many.
//!
//! Anybody can reserve where the operator wants no token. What that leaves behind must cost neither the memory of
//! the others nor their places: memory is counted in bytes, and keygens in which nobody has registered are the
//! first to go. And whoever may request signatures has a share of the places that there are.

use alloc::collections::{BTreeMap, BTreeSet};

use super::Gateway;
use super::keygen::Keygen;
use super::session::{Session, SessionKey, Work};
use super::signing::Signing;
use crate::id::{KeygenId, SigningId, UserId};

/// A session without what belongs to its state: its queue, its timers, its place in the maps.
const ENTRY_BYTES: usize = 1_024;

/// What a session in memory was last seen to weigh.
#[derive(Debug, Default)]
pub(super) struct Weight {
    bytes: usize,
    /// The completed keygen that it holds together with others.
    holds: Option<KeygenId>,
}

/// The sum of all weights. A keygen that many signing sessions hold counts once.
#[derive(Debug, Default)]
pub(super) struct Memory {
    bytes: usize,
    /// By how many sessions each keygen is held, and its bytes.
    held: BTreeMap<KeygenId, (usize, usize)>,
}

impl Memory {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn add(&mut self, bytes: usize, holds: Option<(KeygenId, &Keygen)>) -> Weight {
        self.bytes += bytes;
        if let Some((id, keygen)) = holds {
            let (count, bytes) = self.held.entry(id).or_insert_with(|| (0, keygen.bytes()));
            *count += 1;
            if *count == 1 {
                self.bytes += *bytes;
            }
        }
        Weight { bytes, holds: holds.map(|(id, _)| id) }
    }

    /// Takes a session's weight out.
    pub(super) fn remove(&mut self, weight: &Weight) {
        self.bytes -= weight.bytes;
        let Some(id) = weight.holds else { return };
        let Some((count, bytes)) = self.held.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            self.bytes -= *bytes;
            self.held.remove(&id);
        }
    }
}

/// Keygens in which nobody has registered, by when they were first seen.
#[derive(Debug, Default)]
pub(super) struct Unregistered {
    by_id: BTreeMap<KeygenId, u64>,
    by_age: BTreeMap<u64, KeygenId>,
    seen: u64,
}

impl Unregistered {
    fn insert(&mut self, id: KeygenId) {
        if !self.by_id.contains_key(&id) {
            self.seen += 1;
            self.by_id.insert(id, self.seen);
            self.by_age.insert(self.seen, id);
        }
    }

    fn remove(&mut self, id: KeygenId) {
        if let Some(age) = self.by_id.remove(&id) {
            self.by_age.remove(&age);
        }
    }

    /// Who is to give way where there may be so many: the oldest, or the next where others are about to.
    fn surplus(&self, count_max: usize) -> Option<KeygenId> {
        let before = self.by_id.len().checked_sub(count_max + 1)?;
        self.by_age.values().nth(before).copied()
    }
}

/// Signing sessions that have not ended, by who requested them, in memory or asleep.
#[derive(Debug, Default)]
pub(super) struct OpenSignings(BTreeMap<(KeygenId, UserId), BTreeSet<SigningId>>);

impl OpenSignings {
    pub(super) fn count(&self, keygen_id: KeygenId, requester: UserId) -> usize {
        self.0.get(&(keygen_id, requester)).map_or(0, BTreeSet::len)
    }

    fn insert(&mut self, id: SigningId, signing: &Signing) {
        let requester = (signing.rows.head.keygen_id, signing.rows.request.requester);
        self.0.entry(requester).or_default().insert(id);
    }

    pub(super) fn remove(&mut self, id: SigningId, signing: &Signing) {
        let requester = (signing.rows.head.keygen_id, signing.rows.request.requester);
        let Some(open) = self.0.get_mut(&requester) else { return };
        open.remove(&id);
        if open.is_empty() {
            self.0.remove(&requester);
        }
    }
}

impl Gateway {
    /// Bytes that sessions in memory weigh, for tests and gauges.
    pub fn sessions_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Looks at a session that may have changed.
    pub(super) fn weigh(&mut self, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.memory.remove(&entry.weight);
        let (bytes, holds) = match &entry.session {
            Session::Loading | Session::Absent => (0, None),
            Session::Keygen(keygen) => (keygen.bytes(), None),
            Session::Signing(signing) => {
                (signing.bytes(), Some((signing.rows.head.keygen_id, signing.keygen.as_ref())))
            }
        };
        entry.weight = self.memory.add(ENTRY_BYTES + bytes, holds);
        if let (SessionKey::Signing(id), Session::Signing(signing)) = (key, &entry.session) {
            if signing.is_ended() {
                self.open_signings.remove(id, signing);
            } else {
                self.open_signings.insert(id, signing);
            }
        }
        let unregistered = matches!(&entry.session, Session::Keygen(keygen) if keygen.is_unregistered());
        let SessionKey::Keygen(id) = key else { return };
        if !unregistered {
            return self.unregistered.remove(id);
        }
        self.unregistered.insert(id);
        // It stays on the list until it has ended: one that cannot be loaded now is chosen again.
        if let Some(surplus) = self.unregistered.surplus(self.config.unregistered_max) {
            self.todo.push_back((SessionKey::Keygen(surplus), Work::GiveWay));
        }
    }

    /// Whether another session is to be kept waiting for room.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.config.sessions_max || self.is_overweight()
    }

    fn is_overweight(&self) -> bool {
        self.memory.bytes() > self.config.sessions_bytes_max
    }

    /// Sends sessions to sleep until what is left in memory weighs no more than it may, as far as that can be.
    pub(super) fn shed(&mut self) {
        while self.is_overweight() && self.make_room() {}
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, Unregistered};
    use crate::id::KeygenId;

    #[test]
    fn whoever_came_first_gives_way_first_and_counts_once() {
        let mut unregistered = Unregistered::default();
        let id = |number: u8| KeygenId([number; 16]);
        for number in [3, 1, 2, 3, 1] {
            unregistered.insert(id(number));
        }
        assert_eq!(unregistered.surplus(3), None);
        assert_eq!(unregistered.surplus(2), Some(id(3)));
        assert_eq!(unregistered.surplus(1), Some(id(1)));
        unregistered.remove(id(3));
        unregistered.remove(id(3));
        assert_eq!(unregistered.surplus(1), Some(id(1)));
        unregistered.insert(id(3));
        assert_eq!(unregistered.surplus(2), Some(id(1)));
        assert_eq!(unregistered.surplus(0), Some(id(3)));
    }

    #[test]
    fn what_was_added_is_taken_out_again() {
        let mut memory = Memory::default();
        let (one, two) = (memory.add(10, None), memory.add(5, None));
        assert_eq!(memory.bytes(), 15);
        memory.remove(&one);
        memory.remove(&two);
        assert_eq!(memory.bytes(), 0);
    }
}
