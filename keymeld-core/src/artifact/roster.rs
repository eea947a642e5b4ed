//! The roster: all verified records of a session, in KeySort order, and the keys that follow from them.
//!
//! Enclaves and clients assemble it with the same code from the same sealed records, so that agreeing on
//! its hash is agreeing on everything.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::manifest::{Manifest, Subset};
use super::registration::{Record, VerifiedRecord};
use super::tweak::{TweakStep, steps};
use crate::bytes::{Hash, PublicKey, XOnlyKey};
use crate::crypto::hash::{Tag, tagged_hash};
use crate::id::{SubsetId, UserId};
use crate::musig::aggregate::{KeyAgg, has_equal_x};
use crate::refusal::{Code, Refusal};

/// All verified records of a session, in KeySort order.
#[derive(Debug)]
pub struct Roster {
    manifest: Manifest,
    manifest_hash: Hash,
    records: Vec<Record>,
    by_user: BTreeMap<UserId, usize>,
    roster_hash: Hash,
    aggregate_key: PublicKey,
    subset_keys: BTreeMap<SubsetId, PublicKey>,
}

/// An enclave as the records name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnclaveKeys {
    /// Its ECIES key.
    pub enclave_key: PublicKey,
    /// Its identity key.
    pub identity_key: XOnlyKey,
}

impl Roster {
    /// Puts the verified records of a session together.
    ///
    /// # Errors
    /// [`Refusal`], naming culprits where keys collide.
    pub fn assemble(
        manifest: Manifest,
        manifest_hash: Hash,
        mut records: Vec<VerifiedRecord>,
    ) -> Result<Roster, Refusal> {
        check_participants(&manifest, &records)?;
        check_keys(&records)?;
        records.sort_by_key(|verified| verified.record.public_key);
        let roster_hash = roster_hash(manifest_hash, &records);
        let records: Vec<Record> = records.into_iter().map(|verified| verified.record).collect();
        let by_user = records.iter().enumerate().map(|(index, record)| (record.user_id, index)).collect();
        let mut roster = Roster {
            aggregate_key: PublicKey(key_agg(records.iter(), &[])?.untweaked_key()),
            manifest,
            manifest_hash,
            records,
            by_user,
            roster_hash,
            subset_keys: BTreeMap::new(),
        };
        for subset in &roster.manifest.subsets {
            let key = key_agg(roster.members(subset).into_iter(), &[])?.untweaked_key();
            roster.subset_keys.insert(subset.subset_id, PublicKey(key));
        }
        // A default tweak that leads to infinity would make every item fail; refuse it here.
        key_agg(roster.records.iter(), &roster.manifest.default_tweak)?;
        Ok(roster)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The hash of the manifest's exact bytes.
    pub fn manifest_hash(&self) -> Hash {
        self.manifest_hash
    }

    /// The hash of this roster.
    pub fn roster_hash(&self) -> Hash {
        self.roster_hash
    }

    /// BIP-327's aggregate of all keys, before any tweak.
    pub fn aggregate_key(&self) -> PublicKey {
        self.aggregate_key
    }

    /// The same for each subset.
    pub fn subset_keys(&self) -> &BTreeMap<SubsetId, PublicKey> {
        &self.subset_keys
    }

    /// All records, in KeySort order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// One user's record.
    pub fn record(&self, user_id: UserId) -> Option<&Record> {
        self.by_user.get(&user_id).map(|index| &self.records[*index])
    }

    fn members(&self, subset: &Subset) -> Vec<&Record> {
        self.records.iter().filter(|record| subset.members.contains(&record.user_id)).collect()
    }

    /// Who signs for the whole group or for a subset, in KeySort order.
    ///
    /// # Errors
    /// [`Code::UnknownSubset`].
    pub fn signers(&self, subset: Option<SubsetId>) -> Result<Vec<&Record>, Code> {
        match subset {
            None => Ok(self.records.iter().collect()),
            Some(id) => {
                let subset = self.manifest.subset(id).ok_or(Code::UnknownSubset)?;
                Ok(self.members(subset))
            }
        }
    }

    /// The steps that apply to an item: its own, or the manifest's.
    pub fn tweak<'a>(&'a self, of_item: Option<&'a Vec<TweakStep>>) -> &'a [TweakStep] {
        of_item.unwrap_or(&self.manifest.default_tweak)
    }

    /// BIP-327 key aggregation for the group or a subset, tweaked.
    ///
    /// # Errors
    /// [`Code::UnknownSubset`], [`Code::BadTweak`].
    pub fn key_agg(&self, subset: Option<SubsetId>, tweak: &[TweakStep]) -> Result<KeyAgg, Code> {
        key_agg(self.signers(subset)?.into_iter(), tweak)
    }

    /// Every enclave that holds a key of this roster.
    pub fn enclaves(&self) -> BTreeSet<EnclaveKeys> {
        self.records
            .iter()
            .map(|record| EnclaveKeys { enclave_key: record.enclave_key, identity_key: record.identity_key })
            .collect()
    }
}

fn key_agg<'a>(records: impl Iterator<Item = &'a Record>, tweak: &[TweakStep]) -> Result<KeyAgg, Code> {
    let keys: Vec<[u8; 33]> = records.map(|record| record.public_key.0).collect();
    KeyAgg::new(&keys, &steps(tweak)?).map_err(|_| Code::BadTweak)
}

fn check_participants(manifest: &Manifest, records: &[VerifiedRecord]) -> Result<(), Code> {
    let expected: BTreeSet<UserId> =
        manifest.participants.iter().map(|participant| participant.user_id).collect();
    let found: BTreeSet<UserId> = records.iter().map(|verified| verified.record.user_id).collect();
    if found.len() == records.len() && found == expected { Ok(()) } else { Err(Code::RosterIncomplete) }
}

fn check_keys(records: &[VerifiedRecord]) -> Result<(), Refusal> {
    let keys: Vec<[u8; 33]> = records.iter().map(|verified| verified.record.public_key.0).collect();
    let mut by_key: BTreeMap<PublicKey, UserId> = BTreeMap::new();
    let mut by_auth: BTreeMap<XOnlyKey, UserId> = BTreeMap::new();
    let mut identity_of: BTreeMap<PublicKey, XOnlyKey> = BTreeMap::new();
    let mut enclave_of: BTreeMap<XOnlyKey, PublicKey> = BTreeMap::new();
    for Record { user_id, public_key, auth_key, enclave_key, identity_key, .. } in
        records.iter().map(|verified| &verified.record)
    {
        if let Some(other) = by_key.insert(*public_key, *user_id) {
            return Err(Refusal::blaming(Code::DuplicateKey, [other, *user_id].into()));
        }
        // Nobody proves that an auth key is its own: the other may have been copied.
        if by_auth.insert(*auth_key, *user_id).is_some() {
            return Err(Code::DuplicateKey.into());
        }
        let one_pair = *identity_of.entry(*enclave_key).or_insert(*identity_key) == *identity_key
            && *enclave_of.entry(*identity_key).or_insert(*enclave_key) == *enclave_key;
        if !one_pair {
            return Err(Code::EnclaveKeysMismatch.into());
        }
    }
    if has_equal_x(&keys) { Err(Code::EqualX.into()) } else { Ok(()) }
}

/// `hash(manifest_hash, count, each record's body with its length, in KeySort order)`.
fn roster_hash(manifest_hash: Hash, sorted: &[VerifiedRecord]) -> Hash {
    let number = |count: usize| u32::try_from(count).expect("bounded by limits").to_be_bytes();
    let count = number(sorted.len());
    let lengths: Vec<[u8; 4]> = sorted.iter().map(|verified| number(verified.body.len())).collect();
    let mut parts: Vec<&[u8]> = Vec::with_capacity(2 + 2 * sorted.len());
    parts.push(&manifest_hash.0);
    parts.push(&count);
    for (length, verified) in lengths.iter().zip(sorted) {
        parts.push(length);
        parts.push(&verified.body);
    }
    tagged_hash(Tag::Roster, &parts)
}
