//! An enclave that plays its part without any cryptography.

use std::collections::{BTreeMap, BTreeSet};

use keymeld_core::bytes::{Blob, Hash, PublicKey, XOnlyKey};
use keymeld_core::crypto::auth;
use keymeld_core::id::{EnclaveId, KeygenId};
use keymeld_core::link::message::{
    Addressed, HelloReply, IdentityRow, KeygenOpened, MESSAGE_VERSION, Refused, Reply, Request, RunKey,
};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::secret::Secret;

type Script = Box<dyn FnMut(&Request) -> Option<Reply>>;

/// A scripted enclave: answers as an honest one, but for what its script says.
pub(crate) struct Enclave {
    pub(crate) enclave_id: EnclaveId,
    pub(crate) linked: bool,
    pub(crate) epochs: BTreeSet<u32>,
    /// Enclave keys of the sessions that were opened, as in their records.
    pub(crate) opened: BTreeMap<(KeygenId, PublicKey), BTreeSet<PublicKey>>,
    pub(crate) script: Option<Script>,
}

/// The ECIES key of an enclave's epoch.
pub(crate) fn ecies_key(enclave_id: EnclaveId, epoch: u32) -> PublicKey {
    let mut secret = [1; 32];
    secret[..16].copy_from_slice(&enclave_id.0);
    secret[31] = u8::try_from(epoch).expect("few epochs");
    auth::public_key(&Secret::copied_from(&secret)).expect("a key")
}

pub(crate) fn identity_row(enclave_id: EnclaveId, epoch: u32) -> IdentityRow {
    IdentityRow {
        version: MESSAGE_VERSION,
        enclave_id,
        epoch,
        ecies_key: ecies_key(enclave_id, epoch),
        identity_key: XOnlyKey([1; 32]),
        birth_pcr0: Blob(vec![1; 48]),
        encrypted_data_key: Blob(vec![2]),
        encrypted_seed: Blob(vec![3]),
        birth_document: Blob(vec![4]),
    }
}

pub(crate) fn refused(code: Code) -> Reply {
    Reply::Refused(Refused::from(Refusal::from(code)))
}

/// What the aggregator returns.
pub(crate) fn result_of(run: &RunKey) -> Blob {
    Blob([b"result of ".as_slice(), &run.digest.0].concat())
}

impl Enclave {
    pub(crate) fn new(enclave_id: EnclaveId) -> Enclave {
        Enclave { enclave_id, linked: false, epochs: BTreeSet::new(), opened: BTreeMap::new(), script: None }
    }

    /// `None` where the link breaks instead.
    pub(crate) fn answer(&mut self, request: &Request) -> Option<Reply> {
        if let Some(reply) = self.script.as_mut().and_then(|script| script(request)) {
            return Some(reply);
        }
        let births =
            matches!(request, Request::Hello | Request::CreateIdentity(_) | Request::OpenIdentity(_));
        if self.epochs.is_empty() && !births {
            return Some(refused(Code::IdentityMissing));
        }
        Some(match request {
            Request::Hello => {
                let epochs = self.epochs.iter().copied().collect();
                Reply::Hello(HelloReply { enclave_id: self.enclave_id, epochs })
            }
            Request::CreateIdentity(create) => {
                Reply::IdentityCreated(identity_row(self.enclave_id, create.epoch))
            }
            Request::OpenIdentity(row) if !self.epochs.insert(row.epoch) => refused(Code::IdentityExists),
            Request::OpenIdentity(_) => Reply::IdentityOpened,
            Request::Attest(attest) => Reply::Attested(Blob(attest.nonce.0.to_vec())),
            Request::CheckRegistration(_) => Reply::RegistrationChecked,
            Request::OpenKeygen(open) => {
                let keys = open.records.iter().map(|record| record_key(&record.blob)).collect();
                self.opened.insert((open.keygen_id, open.enclave_key), keys);
                Reply::KeygenOpened(KeygenOpened {
                    roster_hash: Hash(open.manifest_hash.0.map(|byte| !byte)),
                    certificate: Blob(open.enclave_key.0.to_vec()),
                })
            }
            Request::MakeNonces(make) => {
                let key = (make.run.keygen_id, make.run.enclave_key);
                let Some(peers) = self.opened.get(&key) else { return Some(refused(Code::UnknownSession)) };
                // The test's intents name the keys concerned; an empty one concerns all.
                let named: BTreeSet<PublicKey> = make.intent.0.chunks_exact(33).map(key_of).collect();
                let peers = if named.is_empty() { peers } else { &named };
                if peers.len() == 1 {
                    return Some(Reply::Aggregated(result_of(&make.run)));
                }
                let others = peers.iter().filter(|peer| **peer != make.run.enclave_key);
                let addressed = |peer: &PublicKey| Addressed { peer: *peer, blob: Blob(vec![7; 8]) };
                Reply::NoncesMade(others.map(addressed).collect())
            }
            Request::MakePartials(make) => Reply::PartialsMade(Blob(make.run.enclave_key.0.to_vec())),
            Request::Aggregate(aggregate) => Reply::Aggregated(result_of(&aggregate.run)),
        })
    }
}

fn key_of(bytes: &[u8]) -> PublicKey {
    PublicKey(bytes.try_into().expect("33 bytes"))
}

/// The test's records hold nothing but the enclave key, and padding.
fn record_key(record: &Blob) -> PublicKey {
    key_of(&record.0[..33])
}
