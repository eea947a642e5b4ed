//! An enclave of the host's own, at which a colluder has registered: genuine enclaves take it for a peer.

use std::collections::BTreeMap;
use std::sync::Arc;

use keymeld_core::artifact::intent::Intent;
use keymeld_core::artifact::roster::{EnclaveKeys, Roster};
use keymeld_core::bytes::{Blob, PartialSignature, PublicKey, PublicNonce};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::link::message::RunKey;
use keymeld_core::secret::Secret;

use super::super::judge::round;
use super::super::world::World;

/// Its keys.
pub(super) struct Puppet {
    ecies: Secret<32>,
    identity: Secret<32>,
    keys: EnclaveKeys,
}

impl Puppet {
    pub(super) fn keys(&self) -> EnclaveKeys {
        self.keys
    }

    pub(super) fn identity(&self) -> Option<AuthKey> {
        AuthKey::new(&self.identity).ok()
    }

    fn pair_key(&self, run: &RunKey, peer: &PublicKey) -> Option<SealKey> {
        let shared = auth::shared_secret(&self.ecies, peer).ok()?;
        Some(SealKey::derived(&shared, Purpose::Pair(run.attempt)))
    }
}

/// Its part in a run.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) roster: Arc<Roster>,
    pub(super) key: PublicKey,
    /// Whose nonces stand where, over all items in KeySort order.
    shares: Vec<PublicKey>,
}

impl Part {
    /// What a puppet of this roster has to say about an intent; `None` where it has nothing to.
    pub(super) fn of(roster: &Arc<Roster>, key: PublicKey, intent: &Intent) -> Option<Part> {
        let mut shares = Vec::new();
        for item in &intent.items {
            shares.extend(roster.signers(item.subset).ok()?.into_iter().map(|record| record.enclave_key));
        }
        shares.contains(&key).then(|| Part { roster: Arc::clone(roster), key, shares })
    }

    fn count(&self) -> usize {
        self.shares.iter().filter(|key| **key == self.key).count()
    }
}

impl World {
    /// The puppet of a circle.
    pub(super) fn puppet(&mut self, circle: usize) -> Option<EnclaveKeys> {
        if !self.hostile.puppets.contains_key(&circle) {
            let ecies = Secret::copied_from(&self.chance.bytes("puppet's key"));
            let identity = Secret::copied_from(&self.chance.bytes("puppet's key"));
            let keys = EnclaveKeys {
                enclave_key: auth::public_key(&ecies).ok()?,
                identity_key: AuthKey::new(&identity).ok()?.public(),
            };
            self.hostile.puppets.insert(circle, Puppet { ecies, identity, keys });
        }
        self.hostile.puppets.get(&circle).map(Puppet::keys)
    }

    /// The nonces that a peer has sent the puppet, as it can read them.
    fn told_puppet(
        &self,
        circle: usize,
        run: &RunKey,
        part: &Part,
        peer: PublicKey,
        blob: &Blob,
    ) -> Vec<PublicNonce> {
        let context = Context::Nonces(round(run, part.roster.roster_hash(), peer, part.key));
        let pair_key = self.hostile.puppets.get(&circle).and_then(|puppet| puppet.pair_key(run, &peer));
        let opened = pair_key.and_then(|pair_key| pair_key.open(&context, blob).ok());
        let bundle = opened.and_then(|bytes| minicbor::decode::<NonceBundle>(&bytes).ok());
        bundle.map(|bundle| bundle.nonces).unwrap_or_default()
    }

    /// Nonces for a peer, made after the puppet has seen that peer's.
    pub(super) fn puppet_nonces(
        &mut self,
        circle: usize,
        run: &RunKey,
        part: &Part,
        peer: PublicKey,
        theirs: Option<&Blob>,
    ) -> Option<(Vec<PublicNonce>, Blob)> {
        let count = part.count();
        let theirs = theirs.map(|blob| self.told_puppet(circle, run, part, peer, blob)).unwrap_or_default();
        let mut nonces: Vec<PublicNonce> = (0..count).map(|_| self.puppet_nonce()).collect();
        match self.chance.below("puppet nonces", 9) {
            0 => nonces.clear(),
            1 => nonces.push(self.puppet_nonce()),
            2 => nonces.truncate(count - 1),
            // The peer's own, and their negatives: with these the sum is what the puppet wants.
            3 => nonces.iter_mut().zip(theirs.iter().cycle()).for_each(|(nonce, theirs)| *nonce = *theirs),
            4 => nonces.iter_mut().zip(theirs.iter().cycle()).for_each(|(nonce, theirs)| {
                *nonce = *theirs;
                nonce.0[0] ^= 1;
                nonce.0[33] ^= 1;
            }),
            5 => nonces[0].0[1..33].fill(0xff),
            _ => {}
        }
        let context = Context::Nonces(round(run, part.roster.roster_hash(), part.key, peer));
        let pair_key = self.hostile.puppets.get(&circle)?.pair_key(run, &peer)?;
        let bundle = NonceBundle::new(nonces.clone()).encode();
        Some((nonces, pair_key.seal(&context, &bundle, &mut self.hostile.entropy).ok()?))
    }

    fn puppet_nonce(&mut self) -> PublicNonce {
        let mut nonce = [0; 66];
        for half in nonce.chunks_mut(33) {
            half.copy_from_slice(&self.god.public_key(&self.chance.bytes("puppet nonce")).0);
        }
        PublicNonce(nonce)
    }

    /// Partial signatures for the aggregator that are none, under the nonces that everybody was told.
    pub(super) fn puppet_partials(
        &mut self,
        circle: usize,
        run: &RunKey,
        part: &Part,
        own: &[PublicNonce],
        bundles: &BTreeMap<PublicKey, Blob>,
    ) -> Option<Blob> {
        let mut streams = BTreeMap::new();
        streams.insert(part.key, Vec::from(own).into_iter());
        for (peer, blob) in bundles {
            streams.insert(*peer, self.told_puppet(circle, run, part, *peer, blob).into_iter());
        }
        let nonces = part.shares.iter().map(|key| streams.get_mut(key)?.next());
        let nonces: Vec<PublicNonce> = nonces.collect::<Option<_>>()?;
        let parts: Vec<&[u8]> = nonces.iter().map(|nonce| nonce.0.as_slice()).collect();
        let partials = (0..part.count()).map(|_| PartialSignature(self.chance.bytes("puppet partial")));
        let bundle = PartialBundle::new(tagged_hash(Tag::NonceView, &parts), partials.collect()).encode();
        let context = Context::Partials(round(run, part.roster.roster_hash(), part.key, run.aggregator));
        let pair_key = self.hostile.puppets.get(&circle)?.pair_key(run, &run.aggregator)?;
        pair_key.seal(&context, &bundle, &mut self.hostile.entropy).ok()
    }
}
