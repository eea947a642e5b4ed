//! Freshness and replay of HTTP proofs.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::api::proof::Caller;
use crate::crypto::hash::sha256;
use crate::limits::SKEW_MS;
use crate::refusal::Code;

/// Proofs remembered at a time, of keys that were allowed what they asked: some 50 bytes each.
pub const PROOFS_MAX: usize = 1_000_000;
/// Proofs remembered of one key: a requester may make 4,000 requests a second.
pub const PROOFS_PER_KEY_MAX: usize = 500_000;

/// Stands for a key and a nonce.
type ProofId = [u8; 16];
/// Stands for a key, where its proofs are counted.
type KeyTag = [u8; 8];

/// How long a used proof is remembered, by a clock that nobody sets: a fresh one is at most [`SKEW_MS`] ahead,
/// and stale that long after its own time. Where the time of day is set back by more, what is older counts anew.
const REMEMBERED_MS: u64 = 2 * SKEW_MS;

/// Proofs that were used and are not stale yet.
#[derive(Debug, Default)]
pub(super) struct ProofCache {
    used: BTreeSet<ProofId>,
    /// By the second of the monotonic clock after which they are forgotten.
    by_expiry: BTreeMap<u64, Vec<(ProofId, KeyTag)>>,
    per_key: BTreeMap<KeyTag, usize>,
}

impl ProofCache {
    /// Whether the proof's time is within [`SKEW_MS`] of the gateway's.
    pub(super) fn is_fresh(now_unix_ms: u64, caller: &Caller) -> bool {
        now_unix_ms.abs_diff(caller.unix_ms) <= SKEW_MS
    }

    /// Uses a fresh proof up. Only proofs of allowed keys get here: strangers fill
    /// the cache only with sessions that they reserve, which an API token forbids.
    pub(super) fn spend(&mut self, now_mono_ms: u64, caller: &Caller) -> Result<(), Code> {
        self.forget_stale(now_mono_ms);
        let hash = sha256(&[caller.key.0.as_slice(), &caller.nonce].concat());
        let id: ProofId = *hash.0.first_chunk().expect("32 bytes");
        let tag: KeyTag = *caller.key.0.first_chunk().expect("32 bytes");
        if self.used.contains(&id) {
            return Err(Code::ProofReplayed);
        }
        let of_key = self.per_key.get(&tag).copied().unwrap_or(0);
        if self.used.len() >= PROOFS_MAX || of_key >= PROOFS_PER_KEY_MAX {
            return Err(Code::TooMany);
        }
        self.used.insert(id);
        self.by_expiry.entry((now_mono_ms + REMEMBERED_MS) / 1_000).or_default().push((id, tag));
        self.per_key.insert(tag, of_key + 1);
        Ok(())
    }

    fn forget_stale(&mut self, now_mono_ms: u64) {
        while let Some(expired) =
            self.by_expiry.first_entry().filter(|entry| *entry.key() < now_mono_ms / 1_000)
        {
            for (id, tag) in expired.remove() {
                self.used.remove(&id);
                if let Some(count) = self.per_key.get_mut(&tag) {
                    *count -= 1;
                    if *count == 0 {
                        self.per_key.remove(&tag);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PROOFS_PER_KEY_MAX, ProofCache};
    use crate::api::proof::Caller;
    use crate::bytes::XOnlyKey;
    use crate::refusal::Code;

    fn caller(unix_ms: u64, nonce: u32) -> Caller {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&nonce.to_be_bytes());
        Caller { key: XOnlyKey([1; 32]), unix_ms, nonce: bytes }
    }

    #[test]
    fn a_proof_is_used_once_while_it_is_fresh() {
        let mut cache = ProofCache::default();
        assert!(ProofCache::is_fresh(100_000, &caller(40_000, 1)));
        assert!(!ProofCache::is_fresh(100_001, &caller(40_000, 1)));
        assert!(ProofCache::is_fresh(40_000, &caller(100_000, 1)));
        assert!(!ProofCache::is_fresh(39_999, &caller(100_000, 1)));
        assert_eq!(cache.spend(100_000, &caller(100_000, 1)), Ok(()));
        // Whatever the time of day is by then, and was in between.
        assert_eq!(cache.spend(220_000, &caller(100_000, 1)), Err(Code::ProofReplayed));
        assert_eq!(cache.spend(160_000, &caller(100_000, 2)), Ok(()));
    }

    #[test]
    fn the_cache_is_bounded_and_empties_itself() {
        let mut cache = ProofCache::default();
        for nonce in 0..u32::try_from(PROOFS_PER_KEY_MAX).expect("small") {
            assert_eq!(cache.spend(1_000_000, &caller(1_000_000, nonce)), Ok(()));
        }
        assert_eq!(cache.spend(1_000_000, &caller(1_000_000, u32::MAX)), Err(Code::TooMany));
        assert_eq!(cache.spend(1_121_000, &caller(1_121_000, u32::MAX)), Ok(()));
        assert_eq!((cache.used.len(), cache.by_expiry.len(), cache.per_key.len()), (1, 1, 1));
    }
}
