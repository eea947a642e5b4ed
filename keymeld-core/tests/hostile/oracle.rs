//! Sees through every seal between the fixture's enclaves, and fails the test where a nonce signs twice.
//!
//! Two partial signatures with one nonce under different challenges give the private key away. So every
//! public nonce is to be made once, and to have one partial signature at most: over all tests of a binary.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use keymeld_core::bytes::{Hash, PublicKey, PublicNonce};
use keymeld_core::crypto::auth;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::{Context, Round, SealKey};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::id::{AttemptId, KeygenId};
use keymeld_core::link::message::{Addressed, Reply, Request, RunKey};

use super::host::born;

/// The nonces of one run at one enclave, and what was signed with them.
struct Issued {
    roster_hash: Hash,
    nonces: Vec<PublicNonce>,
    answer: Option<Reply>,
}

/// What one gateway saw.
#[derive(Default)]
pub(crate) struct Oracle {
    rosters: BTreeMap<(KeygenId, PublicKey), Hash>,
    issued: BTreeMap<(KeygenId, PublicKey, AttemptId), Issued>,
}

/// Every public nonce of this process.
static MADE: Mutex<BTreeSet<[u8; 66]>> = Mutex::new(BTreeSet::new());
/// Every partial signature of this process, by its nonce.
static SIGNED: Mutex<BTreeMap<[u8; 66], [u8; 32]>> = Mutex::new(BTreeMap::new());

impl Oracle {
    /// Takes an enclave's answer in.
    pub(crate) fn saw(&mut self, at: usize, request: &Request, reply: &Reply) {
        match (request, reply) {
            (Request::OpenKeygen(open), Reply::KeygenOpened(opened)) => {
                self.rosters.insert((open.keygen_id, open.enclave_key), opened.roster_hash);
            }
            (Request::MakeNonces(make), Reply::NoncesMade(bundles)) => self.nonces(at, &make.run, bundles),
            (Request::MakePartials(make), Reply::PartialsMade(blob)) => {
                let issued = self.answered(&make.run, reply);
                let round = round(&make.run, issued.roster_hash, make.run.aggregator);
                let opened = pair_key(at, &make.run.aggregator, make.run.attempt)
                    .open(&Context::Partials(round), blob);
                let bytes = opened.expect("sealed for the aggregator");
                let bundle = PartialBundle::decode(&bytes, issued.nonces.len()).expect("one for each nonce");
                let mut signed = SIGNED.lock().unwrap_or_else(PoisonError::into_inner);
                for (nonce, partial) in issued.nonces.iter().zip(&bundle.partials) {
                    let earlier = signed.insert(nonce.0, partial.0);
                    assert!(earlier.is_none_or(|earlier| earlier == partial.0), "a nonce signed twice");
                }
            }
            (Request::Aggregate(aggregate), Reply::Aggregated(_)) => {
                self.answered(&aggregate.run, reply);
            }
            _ => {}
        }
    }

    fn nonces(&mut self, at: usize, run: &RunKey, bundles: &[Addressed]) {
        let key = (run.keygen_id, run.enclave_key, run.attempt);
        let roster_hash = match self.issued.get(&key) {
            Some(issued) => issued.roster_hash,
            None => self.rosters[&(run.keygen_id, run.enclave_key)],
        };
        let mut opened = bundles.iter().map(|Addressed { peer, blob }| {
            let context = Context::Nonces(round(run, roster_hash, *peer));
            pair_key(at, peer, run.attempt).open(&context, blob).expect("sealed for the peer").to_vec()
        });
        let bytes = opened.next().expect("there is a peer");
        assert!(opened.all(|other| other == bytes), "an enclave tells its peers different nonces");
        let count = bytes.windows(2).filter(|window| *window == [0x58, 66]).count();
        let bundle = (0..=count).find_map(|count| NonceBundle::decode(&bytes, count).ok());
        let nonces = bundle.expect("well-formed").nonces;
        if self.issued.get(&key).is_some_and(|issued| issued.nonces == nonces) {
            return;
        }
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        for nonce in &nonces {
            assert!(made.insert(nonce.0), "a nonce was made twice");
        }
        self.issued.insert(key, Issued { roster_hash, nonces, answer: None });
    }

    /// The aggregator's own partials are in no message, but for one set of nonces there is only one answer.
    fn answered(&mut self, run: &RunKey, reply: &Reply) -> &Issued {
        let issued = self.issued.get_mut(&(run.keygen_id, run.enclave_key, run.attempt));
        let issued = issued.expect("nonces come first");
        let earlier = issued.answer.get_or_insert_with(|| reply.clone());
        assert_eq!(earlier, reply, "two answers with the same nonces");
        issued
    }
}

fn round(run: &RunKey, roster_hash: Hash, recipient: PublicKey) -> Round {
    Round {
        keygen_id: run.keygen_id,
        roster_hash,
        digest: run.digest,
        attempt: run.attempt,
        aggregator: run.aggregator,
        sender: run.enclave_key,
        recipient,
    }
}

fn pair_key(at: usize, peer: &PublicKey, attempt: AttemptId) -> SealKey {
    SealKey::derived(&auth::shared_secret(&born(at).ecies, peer).expect("a point"), Purpose::Pair(attempt))
}
