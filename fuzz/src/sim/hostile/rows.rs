//! Identity rows that no enclave made. The host can have keys wrapped for itself: what it cannot have is a birth document.

use keymeld_core::attestation::BirthUserData;
use keymeld_core::bytes::{Blob, XOnlyKey};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::enclave::DataKeyContext;
use keymeld_core::link::message::{IdentityRow, MESSAGE_VERSION, Request};
use keymeld_core::secret::Secret;
use keymeld_transport::nsm::software::Pcrs;
use sha2::{Digest as _, Sha256};

use super::super::module::{self, Make};
use super::super::world::World;

impl World {
    /// Brings an enclave a row of the host's own, as near to a genuine one as it comes.
    pub(super) fn makes_up_row(&mut self) {
        let at = self.chance.place("row at", self.hosts.len());
        let epoch = 1 + self.chance.below("row epoch", 3) as u32;
        let Some(row) = self.made_up_row(at, epoch) else { return };
        self.log.note(format_args!("hostile: a made-up row of epoch {epoch} to enclave {at}"));
        self.log.reached("hostile: a made-up row");
        let life = if self.chance.one_in("to a clone", 2) { self.some_clone() } else { None };
        let (at, life) = life.map_or((at, None), |(at, life)| (at, Some(life)));
        self.strikes_with_request(at, life, Request::OpenIdentity(row));
    }

    fn made_up_row(&mut self, at: usize, epoch: u32) -> Option<IdentityRow> {
        let enclave_id = self.hosts[at].id;
        let birth_pcr0 = Pcrs::default().pcr0;
        let context = DataKeyContext { enclave_id, epoch, birth_pcr0: birth_pcr0.to_vec() };
        let data_key = self.hosts[at].wrap_key(context)?;
        let seed = Secret::copied_from(&self.chance.bytes("host's seed"));
        let ecies_key = auth::public_key(&derive(&seed, Purpose::EnclaveEcies(enclave_id, epoch))).ok()?;
        let identity = derive(&seed, Purpose::EnclaveIdentity(enclave_id, epoch));
        let identity_key: XOnlyKey = AuthKey::new(&identity).ok()?.public();
        let sealed_for = Context::Seed {
            enclave_id,
            epoch,
            key_arn: Vec::new(),
            ecies_key,
            identity_key,
            birth_pcr0: birth_pcr0.to_vec(),
        };
        let entropy = &mut self.hostile.entropy;
        let encrypted_seed = SealKey::new(data_key.key).seal(&sealed_for, seed.expose(), entropy).ok()?;
        let user_data = BirthUserData {
            enclave_id: enclave_id.0,
            epoch,
            ecies_key: ecies_key.0,
            identity_key: identity_key.0,
            encrypted_dek_hash: Sha256::digest(&data_key.encrypted).into(),
        };
        let unix_ms = self.unix_ms();
        let document = |make| module::document((make, 91), unix_ms, None, None, Some(&user_data.encode()));
        let birth_document = match self.chance.below("made-up birth", 5) {
            0 => document(Make::OtherRoot),
            1 => document(Make::OtherImage),
            2 => document(Make::Debug),
            3 => {
                // What a genuine module would have signed, had it been asked.
                let mut document = document(Make::Genuine);
                let last = document.len() - 1;
                document[last] ^= 1;
                document
            }
            _ => {
                let rows = &self.hostile.rows;
                let other = self.chance.place("which row", rows.len().max(1));
                rows.get(other)?.birth_document.0.clone()
            }
        };
        Some(IdentityRow {
            version: MESSAGE_VERSION,
            enclave_id,
            epoch,
            ecies_key,
            identity_key,
            birth_pcr0: Blob(birth_pcr0.to_vec()),
            encrypted_data_key: Blob(data_key.encrypted),
            encrypted_seed,
            birth_document: Blob(birth_document),
        })
    }
}
