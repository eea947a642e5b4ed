//! What sessions in memory weigh, which of them nobody has registered in, and who has opened how many.
//!
//! Anybody can reserve where the operator wants no token. What that leaves behind must cost neither the memory of
//! the others nor their places: memory is counted in bytes, and keygens in which nobody has registered are the
//! first to go. And whoever requests signatures has a share of the places and of the bytes.

use alloc::collections::BTreeMap;

use super::Gateway;
use super::keygen::Keygen;
use super::session::{Session, SessionKey, Work};
use crate::api::rest::SignRequest;
use crate::id::{KeygenId, SigningId, UserId};

/// A session without what belongs to its state: its queue, its timers, its place in the maps.
const ENTRY_BYTES: usize = 1_024;
/// What part of the bytes of all sessions the open signings of one requester may take.
const REQUESTER_PART: usize = 16;

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

/// Signing sessions that have not ended, in memory or asleep, by who requested them, with the bytes of each request.
#[derive(Debug, Default)]
pub(super) struct OpenSignings(BTreeMap<(KeygenId, UserId, SigningId), usize>);

impl OpenSignings {
    /// How many a requester has, and their bytes.
    fn of(&self, keygen_id: KeygenId, requester: UserId) -> (usize, usize) {
        let [first, last] = [0, u8::MAX].map(|byte| (keygen_id, requester, SigningId([byte; 16])));
        let own = self.0.range(first..=last);
        own.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes))
    }

    pub(super) fn set(&mut self, id: SigningId, request: &SignRequest, open: bool) {
        let key = (request.keygen_id, request.requester, id);
        if open {
            self.0.insert(key, request_bytes(request));
        } else {
            self.0.remove(&key);
        }
    }
}

/// About how much memory a request for signatures takes.
pub(super) fn request_bytes(request: &SignRequest) -> usize {
    1_024 + request.intent.0.len() + 64 * request.items.len()
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
            self.open_signings.set(id, &signing.rows.request, !signing.is_ended());
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

    /// Whether this is one open signing too many for who requests it. One alone never is.
    pub(super) fn has_its_share(&self, request: &SignRequest) -> bool {
        let (count, bytes) = self.open_signings.of(request.keygen_id, request.requester);
        let bytes_max = self.config.sessions_bytes_max / REQUESTER_PART;
        count >= self.config.open_per_requester_max || count > 0 && bytes + request_bytes(request) > bytes_max
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
