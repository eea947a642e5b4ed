//! One enclave with the security module and the key service that it would find outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keymeld_core::attestation::Root;
use keymeld_core::attestation::policy::{ImagePcrs, Policy};
use keymeld_core::bytes::Hash;
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::enclave::identity::{DataKey, Identity};
use keymeld_core::enclave::{Command, Config, DataKeyContext, Enclave, Event, Failed};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::EnclaveId;
use keymeld_core::link::message::IdentityRow;
use keymeld_core::secret::Secret;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{Pcrs, SoftwareNsm, SoftwareRoot};

/// What every enclave's configuration hashes to.
pub const CONFIG_HASH: [u8; 32] = [7; 32];

/// An enclave and what is around it.
pub struct Host {
    /// Its measured configuration.
    pub config: Config,
    /// The enclave.
    pub machine: Enclave,
    /// What it draws from.
    pub entropy: Entropy,
    nsm: SoftwareNsm,
    /// What the key service encrypted, by the ciphertext.
    keyring: BTreeMap<Vec<u8>, (DataKeyContext, Secret<32>)>,
    /// The identities that it opened.
    pub shared: Vec<Arc<Identity>>,
}

impl Host {
    /// An enclave that was only just started, by its place.
    ///
    /// # Panics
    /// Where the test generator fails, which it does not.
    pub fn new(at: usize, root: &SoftwareRoot, clock: &Arc<AtomicU64>, seed: u64) -> Host {
        let number = at as u64 + 1;
        let read = Arc::clone(clock);
        let entropy = test_entropy(seed * 1_000 + 500 + number);
        let module_entropy = test_entropy(seed * 1_000 + number);
        let nsm = root.nsm(number, Pcrs::default(), move || read.load(Ordering::SeqCst), module_entropy);
        let config = Config {
            enclave_id: EnclaveId([0xe0 + u8::try_from(at).expect("few enclaves"); 16]),
            root: Root::development(root.certificate()).expect("a certificate"),
            running_pcr0: Pcrs::default().pcr0,
            predecessors: Vec::new(),
            config_hash: Hash(CONFIG_HASH),
            key_arn: "arn:test".into(),
            entropy_origin: entropy.origin(),
        };
        Host {
            machine: Enclave::new(config.clone()),
            config,
            entropy,
            nsm: nsm.expect("test entropy"),
            keyring: BTreeMap::new(),
            shared: Vec::new(),
        }
    }

    /// Which enclave it is.
    pub fn enclave_id(&self) -> EnclaveId {
        self.config.enclave_id
    }

    /// The process dies and comes back; its entropy goes on.
    pub fn restart(&mut self) {
        self.machine = Enclave::new(self.config.clone());
    }

    /// A document of the security module.
    ///
    /// # Panics
    /// Where inputs are too long for one.
    pub fn attest(
        &mut self,
        public_key: Option<&[u8]>,
        nonce: Option<&[u8]>,
        user_data: Option<&[u8]>,
    ) -> Vec<u8> {
        self.nsm.attest(public_key, nonce, user_data).expect("short inputs")
    }

    /// The certificate that signs documents and the bundle above it, the root first.
    pub fn certificates(&self) -> (&[u8], [&[u8]; 2]) {
        self.nsm.certificates()
    }

    /// A document with any payload whatever.
    pub fn sign_payload(&self, payload: &[u8]) -> Vec<u8> {
        self.nsm.sign_payload(payload)
    }

    /// The private key that never leaves a real enclave, out of a row that this one made.
    ///
    /// # Panics
    /// Where the row is another's.
    pub fn ecies(&self, row: &IdentityRow) -> Secret<32> {
        let (_, key) = &self.keyring[&row.encrypted_data_key.0];
        let context = Context::Seed {
            enclave_id: row.enclave_id,
            epoch: row.epoch,
            key_arn: self.config.key_arn.clone().into_bytes(),
            ecies_key: row.ecies_key,
            identity_key: row.identity_key,
            birth_pcr0: row.birth_pcr0.0.clone(),
        };
        let seed = SealKey::new(Secret::copied_from(key.expose())).open(&context, &row.encrypted_seed);
        let seed =
            Secret::copied_from(seed.expect("sealed under this key")[..].try_into().expect("32 bytes"));
        derive(&seed, Purpose::EnclaveEcies(row.enclave_id, row.epoch))
    }

    /// Does what the enclave wants of its surroundings; the answer is what to tell it. Replies go elsewhere.
    pub fn carry_out(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Reply { .. } => None,
            Command::Attest { token, public_key, nonce, user_data } => {
                let document = self.nsm.attest(public_key.as_deref(), nonce.as_deref(), user_data.as_deref());
                Some(Event::Attested { token, document: document.map_err(|_| Failed) })
            }
            Command::GenerateDataKey { token, context } => {
                Some(Event::DataKeyGenerated { token, key: self.generate_data_key(context) })
            }
            Command::DecryptDataKey { token, context, encrypted } => {
                let found = self.keyring.get(&encrypted).filter(|(of, _)| *of == context);
                let key = found.map(|(_, key)| Secret::copied_from(key.expose())).ok_or(Failed);
                Some(Event::DataKeyDecrypted { token, key })
            }
            Command::ShareIdentity(identity) => {
                self.shared.push(identity);
                None
            }
        }
    }

    fn generate_data_key(&mut self, context: DataKeyContext) -> Result<DataKey, Failed> {
        let key = Secret::random(&mut self.entropy).map_err(|_| Failed)?;
        let encrypted = self.entropy.bytes::<48>().map_err(|_| Failed)?.to_vec();
        self.keyring.insert(encrypted.clone(), (context, Secret::copied_from(key.expose())));
        Ok(DataKey { key, encrypted })
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// A client's policy that trusts exactly the enclaves under this root.
///
/// # Panics
/// Never: the root is a certificate.
pub fn policy(root: &SoftwareRoot) -> Policy {
    let Pcrs { pcr0, pcr1, pcr2, .. } = Pcrs::default();
    Policy {
        roots: vec![Root::development(root.certificate()).expect("a certificate")],
        images: vec![ImagePcrs { pcr0, pcr1, pcr2, pcr8: None }],
        birth_pcr0: vec![pcr0],
        config_hashes: vec![CONFIG_HASH],
        freshness_ms: 300_000,
    }
}
