//! An enclave's identity: made once per epoch, stored as a row by a gateway that cannot use it, opened again
//! after every restart (DESIGN 4.2).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::{
    ATTESTATIONS_PENDING_MAX, Command, CommandToken, Config, DataKeyContext, Enclave, Failed, IDENTITIES_MAX,
    Pending,
};
use crate::artifact::roster::EnclaveKeys;
use crate::attestation::{BirthExpectation, BirthUserData, ServiceUserData, verify_birth};
use crate::bytes::{Blob, PublicKey, XOnlyKey};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::derive::{Purpose, derive};
use crate::crypto::hash::sha256;
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::EnclaveId;
use crate::link::message::{Attest, HelloReply, IdentityRow, MESSAGE_VERSION, Reply};
use crate::refusal::{Code, Refusal};
use crate::secret::Secret;

/// The most that the key service's encrypted data key may take.
const ENCRYPTED_DATA_KEY_BYTES_MAX: usize = 4_096;

/// A data key, both ways. Its Debug shows neither.
pub struct DataKey {
    /// The key.
    pub key: Secret<32>,
    /// The same, encrypted by the key service.
    pub encrypted: Vec<u8>,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

/// The keys of one epoch.
pub struct Identity {
    epoch: u32,
    ecies: Secret<32>,
    keys: EnclaveKeys,
    identity: AuthKey,
    birth_pcr0: [u8; 48],
    birth_time_ms: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(epoch {})", self.epoch)
    }
}

impl Identity {
    /// The public keys.
    pub fn keys(&self) -> EnclaveKeys {
        self.keys
    }

    /// The epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(super) fn ecies(&self) -> &Secret<32> {
        &self.ecies
    }

    pub(super) fn signer(&self) -> &AuthKey {
        &self.identity
    }
}

/// An identity that was made and never used: its seed waits to be sealed.
#[derive(Debug)]
pub(super) struct Draft {
    epoch: u32,
    seed: Secret<32>,
    keys: EnclaveKeys,
}

struct Derived {
    ecies: Secret<32>,
    identity: AuthKey,
    keys: EnclaveKeys,
}

fn derived_keys(seed: &Secret<32>, enclave_id: EnclaveId, epoch: u32) -> Result<Derived, Code> {
    let ecies = derive(seed, Purpose::EnclaveEcies(enclave_id, epoch));
    let identity = AuthKey::derived(seed, Purpose::EnclaveIdentity(enclave_id, epoch))?;
    let keys = EnclaveKeys { enclave_key: auth::public_key(&ecies)?, identity_key: identity.public() };
    Ok(Derived { ecies, identity, keys })
}

fn seed_context(
    config: &Config,
    epoch: u32,
    ecies_key: PublicKey,
    identity_key: XOnlyKey,
    birth_pcr0: &[u8],
) -> Context {
    Context::Seed {
        enclave_id: config.enclave_id,
        epoch,
        key_arn: config.key_arn.clone().into_bytes(),
        ecies_key,
        identity_key,
        birth_pcr0: birth_pcr0.to_vec(),
    }
}

impl Draft {
    pub(super) fn row(
        self,
        config: &Config,
        encrypted_data_key: Blob,
        encrypted_seed: Blob,
        birth_document: Vec<u8>,
    ) -> IdentityRow {
        IdentityRow {
            version: MESSAGE_VERSION,
            enclave_id: config.enclave_id,
            epoch: self.epoch,
            ecies_key: self.keys.enclave_key,
            identity_key: self.keys.identity_key,
            birth_pcr0: Blob(config.running_pcr0.to_vec()),
            encrypted_data_key,
            encrypted_seed,
            birth_document: Blob(birth_document),
        }
    }
}

impl Enclave {
    pub(super) fn hello(&self) -> Reply {
        let mut epochs: Vec<u32> = self.identities.values().map(|identity| identity.epoch).collect();
        epochs.sort_unstable();
        Reply::Hello(HelloReply { enclave_id: self.config.enclave_id, epochs })
    }

    /// Takes an identity in. Two of one epoch would let a host choose between them, whichever worker opened
    /// them: the first stays.
    pub(super) fn adopt(&mut self, identity: Arc<Identity>) -> Result<(), Code> {
        match self.identities.values().find(|held| held.epoch == identity.epoch) {
            Some(held) if held.keys == identity.keys => Ok(()),
            Some(_) => Err(Code::IdentityExists),
            None if self.identities.len() >= IDENTITIES_MAX => Err(Code::TooMany),
            None => {
                self.identities.insert(identity.keys.enclave_key, identity);
                Ok(())
            }
        }
    }

    /// Birth, step 1: a seed and a data key to seal it with.
    pub(super) fn create_identity(
        &mut self,
        call: u64,
        epoch: u32,
        entropy: &mut Entropy,
    ) -> Result<(), Refusal> {
        if self.identities.values().any(|identity| identity.epoch == epoch) {
            return Err(Code::IdentityExists.into());
        }
        if self.identities.len() >= IDENTITIES_MAX {
            return Err(Code::TooMany.into());
        }
        let seed = Secret::random(entropy).map_err(Code::from)?;
        let keys = derived_keys(&seed, self.config.enclave_id, epoch)?.keys;
        let context = DataKeyContext {
            enclave_id: self.config.enclave_id,
            epoch,
            birth_pcr0: self.config.running_pcr0.to_vec(),
        };
        let draft = Draft { epoch, seed, keys };
        self.ask(Pending::BirthKey { call, draft }, |token| Command::GenerateDataKey { token, context })
    }

    /// Birth, step 2: the seed is sealed, the birth document is asked for.
    pub(super) fn data_key_generated(
        &mut self,
        token: CommandToken,
        key: Result<DataKey, Failed>,
        entropy: &mut Entropy,
    ) {
        let (call, draft) = match self.pending.remove(&token) {
            Some(Pending::BirthKey { call, draft }) => (call, draft),
            Some(
                other @ (Pending::Time
                | Pending::ClientAttestation { .. }
                | Pending::BirthDocument { .. }
                | Pending::OpenRow { .. }),
            ) => {
                self.pending.insert(token, other);
                return;
            }
            None => return,
        };
        if let Err(refusal) = self.seal_seed(call, draft, key, entropy) {
            self.conclude(call, Err(refusal));
        }
    }

    fn seal_seed(
        &mut self,
        call: u64,
        draft: Draft,
        key: Result<DataKey, Failed>,
        entropy: &mut Entropy,
    ) -> Result<(), Refusal> {
        let DataKey { key, encrypted } = key.map_err(|Failed| Code::KeyServiceFailed)?;
        if encrypted.len() > ENCRYPTED_DATA_KEY_BYTES_MAX {
            return Err(Code::KeyServiceFailed.into());
        }
        let EnclaveKeys { enclave_key, identity_key } = draft.keys;
        let pcr0 = self.config.running_pcr0;
        let context = seed_context(&self.config, draft.epoch, enclave_key, identity_key, &pcr0);
        let encrypted_seed =
            SealKey::new(key).seal(&context, draft.seed.expose(), entropy).map_err(Code::from)?;
        let user_data = BirthUserData {
            enclave_id: self.config.enclave_id.0,
            epoch: draft.epoch,
            ecies_key: enclave_key.0,
            identity_key: identity_key.0,
            encrypted_dek_hash: sha256(&encrypted).0,
        };
        let encrypted_data_key = Blob(encrypted);
        let pending = Pending::BirthDocument { call, draft, encrypted_data_key, encrypted_seed };
        self.ask(pending, |token| Command::Attest {
            token,
            public_key: Some(enclave_key.0.to_vec()),
            nonce: None,
            user_data: Some(user_data.encode()),
        })
    }

    /// Opening, step 1: the row's birth document has to be this image's, or a predecessor's.
    pub(super) fn open_identity(&mut self, call: u64, row: IdentityRow) -> Result<Option<Reply>, Refusal> {
        if row.version != MESSAGE_VERSION {
            return Err(Code::UnsupportedVersion.into());
        }
        if row.enclave_id != self.config.enclave_id {
            return Err(Code::IdentityRefused.into());
        }
        if let Some(identity) = self.identities.get(&row.ecies_key)
            && identity.keys.identity_key == row.identity_key
            && identity.epoch == row.epoch
        {
            return Ok(Some(Reply::IdentityOpened));
        }
        // Two identities of one epoch would let a host choose between them.
        if self.identities.values().any(|identity| identity.epoch == row.epoch) {
            return Err(Code::IdentityExists.into());
        }
        if row.encrypted_data_key.0.len() > ENCRYPTED_DATA_KEY_BYTES_MAX {
            return Err(Code::IdentityRefused.into());
        }
        let expected = BirthExpectation {
            enclave_id: row.enclave_id.0,
            epoch: row.epoch,
            ecies_key: row.ecies_key.0,
            identity_key: row.identity_key.0,
            encrypted_dek_hash: sha256(&row.encrypted_data_key.0).0,
        };
        let Config { root, running_pcr0, predecessors, .. } = &self.config;
        let birth = verify_birth(&row.birth_document.0, root, &expected, running_pcr0, predecessors)
            .map_err(|_| Code::IdentityRefused)?;
        if birth.pcr0.as_slice() != row.birth_pcr0.0 {
            return Err(Code::IdentityRefused.into());
        }
        let context = DataKeyContext {
            enclave_id: row.enclave_id,
            epoch: row.epoch,
            birth_pcr0: row.birth_pcr0.0.clone(),
        };
        let encrypted = row.encrypted_data_key.0.clone();
        let pending = Pending::OpenRow { call, row, birth_time_ms: birth.time_ms };
        self.ask(pending, |token| Command::DecryptDataKey { token, context, encrypted })?;
        Ok(None)
    }

    /// Opening, step 2: the seed has to give the row's public keys.
    pub(super) fn data_key_decrypted(&mut self, token: CommandToken, key: Result<Secret<32>, Failed>) {
        let (call, row, birth_time_ms) = match self.pending.remove(&token) {
            Some(Pending::OpenRow { call, row, birth_time_ms }) => (call, row, birth_time_ms),
            Some(
                other @ (Pending::Time
                | Pending::ClientAttestation { .. }
                | Pending::BirthKey { .. }
                | Pending::BirthDocument { .. }),
            ) => {
                self.pending.insert(token, other);
                return;
            }
            None => return,
        };
        let outcome = key
            .map_err(|Failed| Code::KeyServiceFailed)
            .and_then(|key| self.unseal(&row, key, birth_time_ms))
            .map(Arc::new)
            .and_then(|identity| self.adopt(Arc::clone(&identity)).map(|()| identity))
            .map(|identity| {
                self.commands.push_back(Command::ShareIdentity(identity));
                Some(Reply::IdentityOpened)
            });
        self.conclude(call, outcome.map_err(Refusal::from));
    }

    fn unseal(&self, row: &IdentityRow, data_key: Secret<32>, birth_time_ms: u64) -> Result<Identity, Code> {
        let context =
            seed_context(&self.config, row.epoch, row.ecies_key, row.identity_key, &row.birth_pcr0.0);
        let plaintext =
            SealKey::new(data_key).open(&context, &row.encrypted_seed).map_err(|_| Code::IdentityRefused)?;
        let seed: &[u8; 32] = plaintext.as_slice().try_into().map_err(|_| Code::IdentityRefused)?;
        let seed = Secret::copied_from(seed);
        let Derived { ecies, identity, keys } = derived_keys(&seed, row.enclave_id, row.epoch)?;
        if keys != (EnclaveKeys { enclave_key: row.ecies_key, identity_key: row.identity_key }) {
            return Err(Code::IdentityRefused);
        }
        let birth_pcr0 = row.birth_pcr0.0.as_slice().try_into().map_err(|_| Code::IdentityRefused)?;
        Ok(Identity { epoch: row.epoch, ecies, keys, identity, birth_pcr0, birth_time_ms })
    }

    /// A client's challenge, answered for an identity whose row came back and was opened.
    pub(super) fn attest(&mut self, call: u64, attest: &Attest) -> Result<(), Refusal> {
        let identity = self
            .identities
            .values()
            .find(|identity| identity.epoch == attest.epoch)
            .ok_or(if self.identities.is_empty() { Code::IdentityMissing } else { Code::WrongEpoch })?;
        let challenges =
            self.pending.values().filter(|asked| matches!(asked, Pending::ClientAttestation { .. }));
        if challenges.count() >= ATTESTATIONS_PENDING_MAX {
            return Err(Code::TooMany.into());
        }
        let user_data = ServiceUserData {
            enclave_id: self.config.enclave_id.0,
            epoch: identity.epoch,
            identity_key: identity.keys.identity_key.0,
            birth_pcr0: identity.birth_pcr0,
            birth_time_ms: identity.birth_time_ms,
            config_hash: self.config.config_hash.0,
        };
        let public_key = identity.keys.enclave_key.0.to_vec();
        let nonce = attest.nonce.0.to_vec();
        self.ask(Pending::ClientAttestation { call }, |token| Command::Attest {
            token,
            public_key: Some(public_key),
            nonce: Some(nonce),
            user_data: Some(user_data.encode()),
        })
    }
}
