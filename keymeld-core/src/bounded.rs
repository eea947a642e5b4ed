//! A map that forgets its least recently used entry when it is full.

use alloc::collections::BTreeMap;

/// A map of at most `weight_max` in total weight; entries over it push the least recently used ones out.
#[derive(Debug)]
pub(crate) struct BoundedMap<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    weight: usize,
    weight_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    used: u64,
    weight: usize,
    value: V,
}

impl<K: Ord + Copy, V> BoundedMap<K, V> {
    /// An empty map.
    pub(crate) fn new(weight_max: usize) -> Self {
        BoundedMap { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, weight: 0, weight_max }
    }

    /// Puts an entry in, in place of any with the same key, and forgets others until all fits. An entry that
    /// is heavier than the whole map is kept alone.
    pub(crate) fn insert(&mut self, key: K, weight: usize, value: V) {
        self.remove(&key);
        while self.weight + weight > self.weight_max {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(&oldest);
        }
        self.uses += 1;
        self.weight += weight;
        self.by_use.insert(self.uses, key);
        self.entries.insert(key, Entry { used: self.uses, weight, value });
    }

    /// Looks an entry up and marks it as used.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.by_use.insert(self.uses, *key);
        Some(&mut entry.value)
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.by_use.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    /// Forgets every entry that `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let (by_use, weight) = (&mut self.by_use, &mut self.weight);
        self.entries.retain(|key, entry| {
            let kept = keep(key, &entry.value);
            if !kept {
                by_use.remove(&entry.used);
                *weight -= entry.weight;
            }
            kept
        });
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::BoundedMap;

    #[test]
    fn the_least_recently_used_entry_goes_first() {
        let mut map = BoundedMap::new(3);
        for key in 0..3 {
            map.insert(key, 1, key);
        }
        assert_eq!(map.get_mut(&0), Some(&mut 0));
        map.insert(3, 1, 3);
        assert_eq!(map.get_mut(&1), None);
        assert_eq!(map.count(), 3);
        map.insert(4, 2, 4);
        assert_eq!(map.count(), 2);
        assert_eq!(map.get_mut(&3), Some(&mut 3));
        assert_eq!(map.get_mut(&4), Some(&mut 4));
        map.insert(5, 9, 5);
        assert_eq!(map.count(), 1);
        assert_eq!(map.remove(&5), Some(5));
        map.insert(6, 3, 6);
        map.insert(7, 1, 7);
        map.retain(|key, _| *key != 7);
        assert_eq!(map.count(), 0);
        map.insert(8, 3, 8);
        assert_eq!(map.count(), 1);
    }
}
