//! One enclave with the security module and the key service of its host.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use keymeld_core::attestation::Root;
use keymeld_core::bytes::Hash;
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::enclave::identity::{DataKey, Identity};
use keymeld_core::enclave::{COMMANDS_MAX, Command, Config, DataKeyContext, Enclave, Event, Failed};
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin, test_entropy};
use keymeld_core::id::EnclaveId;
use keymeld_core::link::message::{CreateIdentity, IdentityRow, Reply, Request};
use keymeld_core::refusal::Refusal;
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{Pcrs, SoftwareNsm, SoftwareRoot};

use super::NOW;
use super::party::fresh_entropy;

/// How many enclaves the fixture has.
pub(crate) const ENCLAVES: usize = 4;
/// What every enclave's configuration hashes to.
pub(crate) const CONFIG_HASH: [u8; 32] = [0xcf; 32];

/// A security module whose clock the test sets.
pub(crate) struct Module {
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) nsm: Mutex<SoftwareNsm>,
}

impl Module {
    pub(crate) fn new(root: &SoftwareRoot, number: u64, image: &str) -> Module {
        let clock = Arc::new(AtomicU64::new(NOW));
        let read = Arc::clone(&clock);
        let nsm = root
            .nsm(number, Pcrs::of_label(image), move || read.load(Ordering::Relaxed), test_entropy(number))
            .expect("a module");
        Module { clock, nsm: Mutex::new(nsm) }
    }
}

/// A key service: what it encrypted it decrypts for the same context.
#[derive(Clone, Default)]
pub(crate) struct KeyService {
    pub(crate) issued: BTreeMap<Vec<u8>, ([u8; 32], Vec<u8>)>,
}

fn context_bytes(context: &DataKeyContext) -> Vec<u8> {
    let DataKeyContext { enclave_id, epoch, birth_pcr0 } = context;
    [enclave_id.as_bytes().as_slice(), &epoch.to_be_bytes(), birth_pcr0].concat()
}

impl KeyService {
    fn generate(&mut self, context: &DataKeyContext) -> DataKey {
        let mut entropy = fresh_entropy();
        let key = entropy.bytes::<32>().expect("test entropy");
        let encrypted = entropy.bytes::<48>().expect("test entropy").to_vec();
        self.issued.insert(encrypted.clone(), (key, context_bytes(context)));
        DataKey { key: Secret::copied_from(&key), encrypted }
    }

    fn decrypt(&self, context: &DataKeyContext, encrypted: &[u8]) -> Result<Secret<32>, Failed> {
        match self.issued.get(encrypted) {
            Some((key, issued_for)) if *issued_for == context_bytes(context) => Ok(Secret::copied_from(key)),
            Some(_) | None => Err(Failed),
        }
    }
}

/// An enclave of the fixture: born once for each test binary, because P-384 is slow in tests.
pub(crate) struct Born {
    pub(crate) config: Config,
    pub(crate) module: Arc<Module>,
    pub(crate) row: IdentityRow,
    pub(crate) key_service: KeyService,
    pub(crate) identity: Arc<Identity>,
    /// The private key that never leaves a real enclave.
    pub(crate) ecies: Secret<32>,
    /// A document that states [`NOW`].
    time_document: Vec<u8>,
}

/// The root of all modules.
pub(crate) static ROOT: LazyLock<SoftwareRoot> =
    LazyLock::new(|| SoftwareRoot::generate(&mut test_entropy(1)).expect("test entropy"));

/// The fixture's enclave.
pub(crate) fn born(at: usize) -> &'static Born {
    static FIXTURE: [OnceLock<Born>; ENCLAVES] = [const { OnceLock::new() }; ENCLAVES];
    FIXTURE[at].get_or_init(|| {
        let module = Arc::new(Module::new(&ROOT, at as u64, "image"));
        let time_document = module.nsm.lock().expect("unpoisoned").attest(None, None, None).expect("attests");
        let mut host = Host::new(config(at), module, test_entropy(100 + at as u64));
        let row = host.create(0);
        assert_eq!(host.ask(Request::OpenIdentity(row.clone())), Ok(Reply::IdentityOpened));
        let identity = host.shared.pop().expect("an opened identity is shared");
        let ecies = derive(&host.seed_of(&row), Purpose::EnclaveEcies(row.enclave_id, row.epoch));
        let Host { key_service, module, .. } = host;
        Born { config: config(at), module, row, key_service, identity, ecies, time_document }
    })
}

/// The measured configuration of the fixture's enclave.
pub(crate) fn config(at: usize) -> Config {
    Config {
        enclave_id: EnclaveId([0xe0 + at as u8; 16]),
        root: Root::development(ROOT.certificate()).expect("a certificate"),
        running_pcr0: Pcrs::of_label("image").pcr0,
        predecessors: Vec::new(),
        config_hash: Hash(CONFIG_HASH),
        key_arn: "arn:test".into(),
        entropy_origin: Origin::Test,
    }
}

/// A generator that always fails.
pub(crate) fn failing_entropy() -> Entropy {
    Entropy::new(Origin::Test, |_| Err(EntropyFailed))
}

/// A generator that gives the same block for ever.
pub(crate) fn stuck_entropy() -> Entropy {
    Entropy::new(Origin::Test, |out| {
        out.fill(0x5a);
        Ok(())
    })
}

/// An enclave and the driver around it.
pub(crate) struct Host {
    pub(crate) enclave: Enclave,
    pub(crate) mono_ms: u64,
    /// What the host's own clock says; an enclave must not care.
    pub(crate) unix_ms: u64,
    pub(crate) entropy: Entropy,
    pub(crate) module: Arc<Module>,
    pub(crate) module_works: bool,
    pub(crate) key_service: KeyService,
    pub(crate) key_service_works: bool,
    /// Identities that were given to the other workers.
    pub(crate) shared: Vec<Arc<Identity>>,
    calls: u64,
    replies: BTreeMap<u64, Vec<Vec<u8>>>,
}

impl Host {
    /// An enclave that was only just started.
    pub(crate) fn new(config: Config, module: Arc<Module>, entropy: Entropy) -> Host {
        Host {
            enclave: Enclave::new(config),
            mono_ms: 5_000,
            unix_ms: 0,
            entropy,
            module,
            module_works: true,
            key_service: KeyService::default(),
            key_service_works: true,
            shared: Vec::new(),
            calls: 0,
            replies: BTreeMap::new(),
        }
    }

    /// The fixture's enclave after a restart, before anything was handed over.
    pub(crate) fn restarted(at: usize) -> Host {
        let born = born(at);
        let mut host = Host::new(born.config.clone(), Arc::clone(&born.module), fresh_entropy());
        host.key_service = born.key_service.clone();
        host
    }

    /// The fixture's enclave with its identity and the time.
    pub(crate) fn ready(at: usize) -> Host {
        let born = born(at);
        let mut host = Host::restarted(at);
        host.deliver(Event::IdentityShared(Arc::clone(&born.identity)));
        // The document is made once, not for every test.
        host.enclave.handle(host.now(), Event::Started, &mut host.entropy);
        let Some(Command::Attest { token, .. }) = host.enclave.poll_command() else {
            panic!("a started enclave asks for the time");
        };
        host.deliver(Event::Attested { token, document: Ok(born.time_document.clone()) });
        host
    }

    fn now(&self) -> Time {
        Time { unix_ms: self.unix_ms, mono_ms: self.mono_ms }
    }

    /// Hands an event in and carries all commands out.
    pub(crate) fn deliver(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            self.enclave.handle(self.now(), event, &mut self.entropy);
            let mut commands = 0;
            while let Some(command) = self.enclave.poll_command() {
                commands += 1;
                events.extend(self.carry_out(command));
            }
            assert!(commands <= COMMANDS_MAX, "{commands} commands for one event");
        }
    }

    fn carry_out(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Reply { call, body } => {
                self.replies.entry(call).or_default().push(body);
                None
            }
            Command::Attest { token, public_key, nonce, user_data } => {
                let mut nsm = self.module.nsm.lock().expect("unpoisoned");
                let document = nsm.attest(public_key.as_deref(), nonce.as_deref(), user_data.as_deref());
                let document = document.map_err(|_| Failed).and_then(|document| match self.module_works {
                    true => Ok(document),
                    false => Err(Failed),
                });
                Some(Event::Attested { token, document })
            }
            Command::GenerateDataKey { token, context } => {
                let key = match self.key_service_works {
                    true => Ok(self.key_service.generate(&context)),
                    false => Err(Failed),
                };
                Some(Event::DataKeyGenerated { token, key })
            }
            Command::DecryptDataKey { token, context, encrypted } => {
                let key = match self.key_service_works {
                    true => self.key_service.decrypt(&context, &encrypted),
                    false => Err(Failed),
                };
                Some(Event::DataKeyDecrypted { token, key })
            }
            Command::ShareIdentity(identity) => {
                self.shared.push(identity);
                None
            }
        }
    }

    /// Sends a request; it has to be answered exactly once, and so has every request before it.
    pub(crate) fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        let routing_id = request.routing_id();
        self.ask_bytes(routing_id, request.encode())
    }

    /// The same for any bytes.
    pub(crate) fn ask_bytes(&mut self, routing_id: [u8; 16], body: Vec<u8>) -> Result<Reply, Refusal> {
        self.calls += 1;
        let call = self.calls;
        self.deliver(Event::Requested { call, routing_id, body });
        let answered = self.replies.remove(&call).unwrap_or_default();
        assert_eq!(answered.len(), 1, "a request is answered exactly once");
        assert!(self.replies.is_empty(), "an answer to no open request");
        match Reply::decode(&answered[0]).expect("replies are well-formed") {
            Reply::Refused(refused) => Err(refused.refusal()),
            reply => Ok(reply),
        }
    }

    /// Has an identity made.
    pub(crate) fn create(&mut self, epoch: u32) -> IdentityRow {
        match self.ask(Request::CreateIdentity(CreateIdentity { epoch })) {
            Ok(Reply::IdentityCreated(row)) => row,
            other => panic!("no identity: {other:?}"),
        }
    }

    /// The seed in a row, opened with the key service's help.
    fn seed_of(&self, row: &IdentityRow) -> Secret<32> {
        let (key, _) = self.key_service.issued[&row.encrypted_data_key.0];
        let context = Context::Seed {
            enclave_id: row.enclave_id,
            epoch: row.epoch,
            key_arn: b"arn:test".to_vec(),
            ecies_key: row.ecies_key,
            identity_key: row.identity_key,
            birth_pcr0: row.birth_pcr0.0.clone(),
        };
        let seed = SealKey::new(Secret::copied_from(&key)).open(&context, &row.encrypted_seed);
        Secret::copied_from(seed.expect("sealed under this key")[..].try_into().expect("32 bytes"))
    }
}
