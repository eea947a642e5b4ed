//! Freshness and replay of HTTP proofs.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::api::proof::Caller;
use crate::bytes::XOnlyKey;
use crate::limits::SKEW_MS;
use crate::refusal::Code;

/// Proofs remembered at a time, of keys that were allowed what they asked.
pub const PROOFS_MAX: usize = 200_000;
/// Proofs remembered of one key.
pub const PROOFS_PER_KEY_MAX: usize = 2_000;

/// Proofs that were used and are not stale yet.
#[derive(Debug, Default)]
pub(super) struct ProofCache {
    used: BTreeSet<(XOnlyKey, [u8; 16])>,
    by_expiry: BTreeSet<(u64, XOnlyKey, [u8; 16])>,
    per_key: BTreeMap<XOnlyKey, usize>,
}

impl ProofCache {
    /// Whether the proof's time is within [`SKEW_MS`] of the gateway's.
    pub(super) fn is_fresh(now_unix_ms: u64, caller: &Caller) -> bool {
        now_unix_ms.abs_diff(caller.unix_ms) <= SKEW_MS
    }

    /// Uses a fresh proof up. Only proofs of allowed keys get here, so that strangers cannot fill the cache.
    pub(super) fn spend(&mut self, now_unix_ms: u64, caller: &Caller) -> Result<(), Code> {
        self.forget_stale(now_unix_ms);
        if self.used.contains(&(caller.key, caller.nonce)) {
            return Err(Code::ProofReplayed);
        }
        let of_key = self.per_key.get(&caller.key).copied().unwrap_or(0);
        if self.used.len() >= PROOFS_MAX || of_key >= PROOFS_PER_KEY_MAX {
            return Err(Code::TooMany);
        }
        self.used.insert((caller.key, caller.nonce));
        self.by_expiry.insert((caller.unix_ms + SKEW_MS, caller.key, caller.nonce));
        self.per_key.insert(caller.key, of_key + 1);
        Ok(())
    }

    fn forget_stale(&mut self, now_unix_ms: u64) {
        while let Some((expiry, key, nonce)) = self.by_expiry.first().copied() {
            if expiry >= now_unix_ms {
                break;
            }
            self.by_expiry.pop_first();
            self.used.remove(&(key, nonce));
            if let Some(count) = self.per_key.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.per_key.remove(&key);
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
        assert_eq!(cache.spend(160_000, &caller(100_000, 1)), Err(Code::ProofReplayed));
        assert_eq!(cache.spend(160_000, &caller(100_000, 2)), Ok(()));
    }

    #[test]
    fn the_cache_is_bounded_and_empties_itself() {
        let mut cache = ProofCache::default();
        for nonce in 0..u32::try_from(PROOFS_PER_KEY_MAX).expect("small") {
            assert_eq!(cache.spend(1_000_000, &caller(1_000_000, nonce)), Ok(()));
        }
        assert_eq!(cache.spend(1_000_000, &caller(1_000_000, u32::MAX)), Err(Code::TooMany));
        assert_eq!(cache.spend(1_060_001, &caller(1_060_001, u32::MAX)), Ok(()));
        assert_eq!((cache.used.len(), cache.by_expiry.len(), cache.per_key.len()), (1, 1, 1));
    }
}
