//! An enclave machine that is led through births, a keygen and a signing session shows none of its secrets.

mod sample;
mod shown;

use std::sync::{Arc, Mutex};

use keymeld_core::artifact::result::SigningResult;
use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::attestation::Root;
use keymeld_core::bytes::{Hash, PublicKey};
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{Command, Config, Enclave, Event};
use keymeld_core::entropy::{Entropy, Origin, test_entropy};
use keymeld_core::id::AttemptId;
use keymeld_core::link::message::{
    Addressed, Aggregate, CreateIdentity, IdentityRow, MakeNonces, MakePartials, OpenKeygen, Reply, Request,
    RunKey, UserBlob,
};
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{Pcrs, SoftwareNsm, SoftwareRoot};
use sample::{CREATED_AT, EPOCH, KEYGEN_ID, SIGNING_ID, Sample, enclave_id};
use shown::assert_shows_nothing;

const NOW: Time = Time { unix_ms: 0, mono_ms: 1_000 };

/// One machine with its security module and key service.
struct Driven {
    enclave: Enclave,
    nsm: SoftwareNsm,
    data_key: Secret<32>,
    entropy: Entropy,
    /// Everything that the machine drew, and that was given to it in confidence.
    secrets: Arc<Mutex<Vec<Vec<u8>>>>,
    next_call: u64,
}

impl Driven {
    fn new(index: u8, root: &SoftwareRoot) -> Driven {
        let seed = u64::from(index);
        let pcrs = Pcrs::default();
        let config = Config {
            enclave_id: enclave_id(index),
            root: Root::development(root.certificate()).expect("a certificate"),
            running_pcr0: pcrs.pcr0,
            predecessors: Vec::new(),
            config_hash: Hash([1; 32]),
            key_arn: String::new(),
            entropy_origin: Origin::Test,
        };
        let data_key = Secret::random(&mut test_entropy(100 + seed)).expect("never fails");
        let secrets = Arc::new(Mutex::new(vec![data_key.expose().to_vec()]));
        let (drawn, mut source) = (Arc::clone(&secrets), test_entropy(200 + seed));
        let entropy = Entropy::new(Origin::Test, move |out| {
            source.fill(out)?;
            // A block of 32 bytes whose first 12 may be a seal's nonce, which is public.
            drawn.lock().expect("not poisoned").push(out[16..].to_vec());
            Ok(())
        });
        let nsm = root.nsm(seed, pcrs, || CREATED_AT, test_entropy(300 + seed)).expect("a module");
        let enclave = Enclave::new(config);
        let mut driven = Driven { enclave, nsm, data_key, entropy, secrets, next_call: 1 };
        driven.step(Event::Started);
        driven
    }

    fn confide(&self, secret: &Secret<32>) {
        self.secrets.lock().expect("not poisoned").push(secret.expose().to_vec());
    }

    fn assert_discreet(&self) {
        let secrets = self.secrets.lock().expect("not poisoned");
        let secrets: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).collect();
        assert_shows_nothing(&self.enclave, &secrets);
        // Nor what it has encrypted: that is for the gateway's database, not for anybody's log.
        let shown = format!("{:?}", self.enclave);
        for name in ["encrypted_data_key", "encrypted_seed"] {
            assert_eq!(shown.matches(name).count(), shown.matches(&format!("{name}: Blob(")).count());
        }
    }

    /// Hands an event in and answers all that the machine asks; gives back its reply to the gateway.
    fn step(&mut self, event: Event) -> Option<Reply> {
        self.assert_discreet();
        self.enclave.handle(NOW, event, &mut self.entropy);
        let mut reply = None;
        let mut answers = Vec::new();
        while let Some(command) = self.enclave.poll_command() {
            match command {
                Command::Reply { body, .. } => reply = Some(Reply::decode(&body).expect("well formed")),
                Command::Attest { token, public_key, nonce, user_data } => {
                    let document =
                        self.nsm.attest(public_key.as_deref(), nonce.as_deref(), user_data.as_deref());
                    answers.push(Event::Attested { token, document: Ok(document.expect("attests")) });
                }
                Command::GenerateDataKey { token, .. } => {
                    let key = DataKey {
                        key: Secret::copied_from(self.data_key.expose()),
                        encrypted: b"encrypted by the key service".to_vec(),
                    };
                    answers.push(Event::DataKeyGenerated { token, key: Ok(key) });
                }
                Command::DecryptDataKey { token, .. } => {
                    let key = Ok(Secret::copied_from(self.data_key.expose()));
                    answers.push(Event::DataKeyDecrypted { token, key });
                }
                Command::ShareIdentity(identity) => {
                    let secrets = self.secrets.lock().expect("not poisoned");
                    let secrets: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).collect();
                    assert_shows_nothing(&identity, &secrets);
                }
            }
        }
        self.assert_discreet();
        answers.into_iter().fold(reply, |reply, answer| self.step(answer).or(reply))
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.next_call += 1;
        let routing_id = request.routing_id();
        self.step(Event::Requested { call: self.next_call, routing_id, body: request.encode() })
            .expect("every question was answered")
    }

    fn give_birth(&mut self) -> EnclaveKeys {
        let Reply::IdentityCreated(row) = self.ask(Request::CreateIdentity(CreateIdentity { epoch: EPOCH }))
        else {
            panic!("no identity");
        };
        let IdentityRow { ecies_key, identity_key, .. } = row;
        assert_eq!(self.ask(Request::OpenIdentity(row)), Reply::IdentityOpened);
        EnclaveKeys { enclave_key: ecies_key, identity_key }
    }
}

fn addressed(reply: Reply, from: PublicKey) -> Vec<Addressed> {
    match reply {
        Reply::NoncesMade(bundles) => {
            bundles.into_iter().map(|it| Addressed { peer: from, blob: it.blob }).collect()
        }
        Reply::PartialsMade(blob) => vec![Addressed { peer: from, blob }],
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_enclave_shows_none_of_its_secrets_at_any_step() {
    let root = SoftwareRoot::generate(&mut test_entropy(1)).expect("entropy");
    let mut driven = [Driven::new(0, &root), Driven::new(1, &root)];
    let keys: Vec<EnclaveKeys> = driven.iter_mut().map(Driven::give_birth).collect();
    let sample = Sample::at(keys.clone());
    for one in &driven {
        one.confide(&sample.session_secret);
        sample.users.iter().for_each(|user| one.confide(&user.private_key));
    }

    let blobs = |of: &dyn Fn(usize) -> keymeld_core::bytes::Blob, at: Option<usize>| -> Vec<UserBlob> {
        let here = sample.users.iter().enumerate().filter(|(_, user)| at.is_none_or(|at| user.enclave == at));
        here.map(|(index, user)| UserBlob { user_id: user.user_id, blob: of(index) }).collect()
    };
    for (index, one) in driven.iter_mut().enumerate() {
        let opened = one.ask(Request::OpenKeygen(OpenKeygen {
            enclave_key: keys[index].enclave_key,
            keygen_id: KEYGEN_ID,
            manifest_hash: sample.manifest_hash,
            manifest: sample.sealed_manifest(),
            records: blobs(&|user| sample.registrations[user].record.clone(), None),
            envelopes: blobs(&|user| sample.registrations[user].envelope.clone(), Some(index)),
        }));
        let Reply::KeygenOpened(opened) = opened else { panic!("{opened:?}") };
        assert_eq!(opened.roster_hash, sample.roster().roster_hash());
    }

    let intent = sample.sealed_intent();
    let run = |at: usize| RunKey {
        enclave_key: keys[at].enclave_key,
        keygen_id: KEYGEN_ID,
        signing_id: SIGNING_ID,
        digest: intent.digest,
        attempt: AttemptId([0xa7; 16]),
        aggregator: keys[0].enclave_key,
    };
    let make = |at| MakeNonces { run: run(at), intent: intent.sealed.clone(), approvals: sample.approvals() };
    let from_first = addressed(driven[0].ask(Request::MakeNonces(make(0))), keys[0].enclave_key);
    let from_second = addressed(driven[1].ask(Request::MakeNonces(make(1))), keys[1].enclave_key);
    assert_eq!((driven[0].enclave.attempts_held(), driven[1].enclave.attempts_held()), (1, 1));
    let partials = driven[1].ask(Request::MakePartials(MakePartials { run: run(1), nonces: from_first }));
    let partials = addressed(partials, keys[1].enclave_key);
    let aggregate = Aggregate { run: run(0), nonces: from_second, partials };
    let Reply::Aggregated(result) = driven[0].ask(Request::Aggregate(aggregate)) else { panic!("no result") };
    let outcomes =
        SigningResult::open(&sample.roster(), &sample.verified_intent(), &sample.signing_seal(), &result);
    assert!(outcomes.expect("valid").iter().all(Result::is_ok));

    let seen: Vec<usize> = driven.iter().map(|one| one.secrets.lock().expect("not poisoned").len()).collect();
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}
