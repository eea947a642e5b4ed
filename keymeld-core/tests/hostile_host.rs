//! The hostile host: identity rows that it made up or altered, and identities
//! that it would like to choose between (S7).

mod hostile;

use std::sync::Arc;

use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::attestation::{BirthUserData, Root};
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::hash::sha256;
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::enclave::{Command, Config, Event, IDENTITIES_MAX};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::EnclaveId;
use keymeld_core::link::message::{Attest, CreateIdentity, HelloReply, IdentityRow, Reply, Request};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{Pcrs, SoftwareRoot};

use hostile::host::{Host, Module, ROOT, born, config};
use hostile::party::{Group, Person, careful, fresh_entropy};
use hostile::{keys, refused};

/// A restarted enclave and the row that it is handed.
struct Opening {
    host: Host,
    row: IdentityRow,
}

impl Opening {
    fn honest() -> Opening {
        Opening { host: Host::restarted(0), row: born(0).row.clone() }
    }

    fn open(mut self) -> Result<(), Refusal> {
        assert_eq!(self.host.ask(Request::OpenIdentity(self.row))?, Reply::IdentityOpened);
        let attest = Request::Attest(Attest { epoch: 0, nonce: Hash([1; 32]) });
        assert!(matches!(self.host.ask(attest)?, Reply::Attested(_)));
        Ok(())
    }
}

#[track_caller]
fn row_refused(code: Code, tamper: impl FnOnce(&mut IdentityRow)) {
    refused(code, Opening::honest, Opening::open, |opening| tamper(&mut opening.row));
}

#[test]
fn a_row_altered_in_any_field_is_refused() {
    row_refused(Code::UnsupportedVersion, |row| row.version = 2);
    row_refused(Code::IdentityRefused, |row| row.enclave_id = EnclaveId([1; 16]));
    row_refused(Code::IdentityRefused, |row| row.epoch = 1);
    row_refused(Code::IdentityRefused, |row| row.ecies_key = keys(1).enclave_key);
    row_refused(Code::IdentityRefused, |row| row.identity_key = keys(1).identity_key);
    row_refused(Code::IdentityRefused, |row| row.birth_pcr0.0[0] ^= 1);
    row_refused(Code::IdentityRefused, |row| row.birth_pcr0.0.clear());
    row_refused(Code::IdentityRefused, |row| row.encrypted_data_key.0[0] ^= 1);
    row_refused(Code::IdentityRefused, |row| row.encrypted_data_key.0.resize(1 << 20, 0));
    row_refused(Code::IdentityRefused, |row| row.encrypted_seed.0[20] ^= 1);
    row_refused(Code::IdentityRefused, |row| row.encrypted_seed.0.clear());
    row_refused(Code::IdentityRefused, |row| row.birth_document.0[500] ^= 1);
    row_refused(Code::IdentityRefused, |row| row.birth_document.0.truncate(500));
    row_refused(Code::IdentityRefused, |row| row.birth_document.0.clear());
}

#[test]
fn a_row_put_together_from_two_genuine_ones_is_refused() {
    let other = &born(1).row;
    row_refused(Code::IdentityRefused, |row| *row = other.clone());
    row_refused(Code::IdentityRefused, |row| {
        *row = IdentityRow { enclave_id: row.enclave_id, ..other.clone() }
    });
    row_refused(Code::IdentityRefused, |row| row.birth_document = other.birth_document.clone());
    row_refused(Code::IdentityRefused, |row| row.encrypted_seed = other.encrypted_seed.clone());
    row_refused(Code::IdentityRefused, |row| row.encrypted_data_key = other.encrypted_data_key.clone());
}

fn seed_context(row: &IdentityRow) -> Context {
    Context::Seed {
        enclave_id: row.enclave_id,
        epoch: row.epoch,
        key_arn: b"arn:test".to_vec(),
        ecies_key: row.ecies_key,
        identity_key: row.identity_key,
        birth_pcr0: row.birth_pcr0.0.clone(),
    }
}

/// A row whose seed the host chose, with all rights at the key service, and a document by this module.
fn made_up(opening: &mut Opening, module: &Module, birth: impl FnOnce(&mut BirthUserData)) -> Vec<u8> {
    let seed = Secret::copied_from(&[5; 32]);
    let row = &mut opening.row;
    let ecies = derive(&seed, Purpose::EnclaveEcies(row.enclave_id, row.epoch));
    let identity = AuthKey::derived(&seed, Purpose::EnclaveIdentity(row.enclave_id, row.epoch));
    row.ecies_key = auth::public_key(&ecies).expect("a key");
    row.identity_key = identity.expect("a key").public();
    row.encrypted_data_key = Blob(vec![6; 48]);
    let context =
        [row.enclave_id.as_bytes().as_slice(), &row.epoch.to_be_bytes(), &row.birth_pcr0.0].concat();
    opening.host.key_service.issued.insert(vec![6; 48], ([7; 32], context));
    let seal = seed_context(row);
    let key = SealKey::new(Secret::copied_from(&[7; 32]));
    row.encrypted_seed = key.seal(&seal, seed.expose(), &mut fresh_entropy()).expect("small");
    let mut user_data = BirthUserData {
        enclave_id: row.enclave_id.0,
        epoch: row.epoch,
        ecies_key: row.ecies_key.0,
        identity_key: row.identity_key.0,
        encrypted_dek_hash: sha256(&row.encrypted_data_key.0).0,
    };
    birth(&mut user_data);
    let mut nsm = module.nsm.lock().expect("unpoisoned");
    nsm.attest(Some(&row.ecies_key.0), None, Some(&user_data.encode())).expect("attests")
}

#[test]
fn a_row_that_the_host_made_up_is_refused_for_want_of_a_birth_document() {
    // With a document of this image the rest of the made-up row is in order: so it is that which is missing.
    let mut in_order = Opening::honest();
    let document = made_up(&mut in_order, &born(0).module, |_| ());
    in_order.row.birth_document = Blob(document);
    in_order.open().expect("as an enclave of this image would have made it");

    let keeps_the_document = |opening: &mut Opening| drop(made_up(opening, &born(0).module, |_| ()));
    refused(Code::IdentityRefused, Opening::honest, Opening::open, keeps_the_document);
    // With a document of this image, about keys that the sealed seed does not give.
    refused(Code::IdentityRefused, Opening::honest, Opening::open, |opening| {
        let document = made_up(opening, &born(0).module, |_| ());
        let row = &mut opening.row;
        row.birth_document = Blob(document);
        let seal = seed_context(row);
        let key = SealKey::new(Secret::copied_from(&[7; 32]));
        row.encrypted_seed = key.seal(&seal, &[8; 32], &mut fresh_entropy()).expect("small");
    });
    // By a root that the image was not built for, by another image, by a module in debug mode.
    let foreign = SoftwareRoot::generate(&mut test_entropy(77)).expect("test entropy");
    for module in [Module::new(&foreign, 1, "image"), Module::new(&ROOT, 1, "another image")] {
        refused(Code::IdentityRefused, Opening::honest, Opening::open, |opening| {
            opening.row.birth_document = Blob(made_up(opening, &module, |_| ()));
        });
    }
    // About another enclave, epoch, key or data key.
    let changes: [fn(&mut BirthUserData); 5] = [
        |birth| birth.enclave_id[0] ^= 1,
        |birth| birth.epoch += 1,
        |birth| birth.ecies_key = keys(1).enclave_key.0,
        |birth| birth.identity_key = keys(1).identity_key.0,
        |birth| birth.encrypted_dek_hash[0] ^= 1,
    ];
    for change in changes {
        refused(Code::IdentityRefused, Opening::honest, Opening::open, |opening| {
            opening.row.birth_document = Blob(made_up(opening, &born(0).module, change));
        });
    }
}

#[test]
fn a_document_that_a_client_asked_for_is_no_birth_document() {
    let mut host = Host::ready(0);
    let attest = Request::Attest(Attest { epoch: 0, nonce: Hash([1; 32]) });
    let Ok(Reply::Attested(document)) = host.ask(attest) else { panic!("attests") };
    row_refused(Code::IdentityRefused, |row| row.birth_document = document);
}

fn with_config(change: impl Fn(&mut Config)) -> Opening {
    let mut config = config(0);
    change(&mut config);
    let mut host = Host::new(config, Arc::clone(&born(0).module), fresh_entropy());
    host.key_service = born(0).key_service.clone();
    Opening { host, row: born(0).row.clone() }
}

#[test]
fn a_row_of_another_image_is_opened_by_its_named_successors_alone() {
    let image = Pcrs::of_label("image").pcr0;
    let successor = |config: &mut Config| {
        config.running_pcr0 = Pcrs::of_label("next image").pcr0;
        config.predecessors = vec![[1; 48], image];
    };
    refused(
        Code::IdentityRefused,
        || with_config(successor),
        Opening::open,
        |opening| {
            *opening = with_config(|config| {
                successor(config);
                config.predecessors = vec![[1; 48]];
            });
        },
    );
}

#[test]
fn a_row_is_refused_under_another_root_enclave_id_or_key() {
    let foreign = SoftwareRoot::generate(&mut test_entropy(77)).expect("test entropy");
    let foreign = Root::development(foreign.certificate()).expect("a certificate");
    let honest = || with_config(|_| ());
    let tamper = |change: &dyn Fn(&mut Config)| {
        refused(Code::IdentityRefused, honest, Opening::open, |opening| *opening = with_config(change));
    };
    tamper(&|config| config.root = Root::aws_nitro_g1());
    tamper(&|config| config.root = foreign.clone());
    tamper(&|config| config.enclave_id = EnclaveId([1; 16]));
    tamper(&|config| config.key_arn = "arn:other".into());
}

#[test]
fn a_key_service_that_refuses_opens_nothing() {
    refused(Code::KeyServiceFailed, Opening::honest, Opening::open, |opening| {
        opening.host.key_service_works = false;
    });
}

#[test]
fn a_second_identity_of_an_epoch_is_refused_whichever_comes_first() {
    let mut host = Host::new(config(0), Arc::clone(&born(0).module), fresh_entropy());
    let [first, second] = [host.create(3), host.create(3)];
    assert_ne!(first.ecies_key, second.ecies_key);
    assert_eq!(host.ask(Request::OpenIdentity(first.clone())), Ok(Reply::IdentityOpened));
    let refusal = host.ask(Request::OpenIdentity(second.clone())).expect_err("the epoch is taken");
    assert_eq!(refusal.code, Code::IdentityExists);
    let refusal = host.ask(Request::CreateIdentity(CreateIdentity { epoch: 3 })).expect_err("taken");
    assert_eq!(refusal.code, Code::IdentityExists);
    // The same row again is no second identity.
    assert_eq!(host.ask(Request::OpenIdentity(first.clone())), Ok(Reply::IdentityOpened));
    // Nor does a worker take a second one over from another worker.
    let mut worker = Host::new(config(0), Arc::clone(&born(0).module), fresh_entropy());
    worker.key_service = host.key_service.clone();
    assert_eq!(worker.ask(Request::OpenIdentity(second.clone())), Ok(Reply::IdentityOpened));
    worker.deliver(Event::IdentityShared(Arc::clone(&host.shared[0])));
    let Ok(Reply::Hello(HelloReply { epochs, .. })) = worker.ask(Request::Hello) else { panic!("hello") };
    assert_eq!(epochs, [3]);
    let group = |row: &IdentityRow| {
        let enclave = EnclaveKeys { enclave_key: row.ecies_key, identity_key: row.identity_key };
        Group::of(vec![Person::at_keys(enclave, careful()), Person::at_keys(enclave, careful())])
    };
    for (row, expected) in [(&second, Code::TimeUnknown), (&first, Code::WrongEnclaveKey)] {
        let check = Request::CheckRegistration(group(row).check_message(0));
        assert_eq!(worker.ask(check).expect_err("no time").code, expected);
    }
}

/// A row that is opened twice at once is opened.
#[test]
fn the_same_row_handed_over_twice_at_once_is_opened_twice() {
    let mut host = Host::restarted(0);
    let now = Time { unix_ms: 0, mono_ms: 0 };
    let mut questions = Vec::new();
    for call in [1, 2] {
        let body = Request::OpenIdentity(born(0).row.clone()).encode();
        let event = Event::Requested { call, routing_id: [0; 16], body };
        host.enclave.handle(now, event, &mut host.entropy);
        questions.extend(host.enclave.poll_command());
    }
    let (data_key, _) = born(0).key_service.issued[&born(0).row.encrypted_data_key.0];
    let mut answers = Vec::new();
    for question in questions {
        let Command::DecryptDataKey { token, .. } = question else { panic!("a question") };
        let key = Ok(Secret::copied_from(&data_key));
        host.enclave.handle(now, Event::DataKeyDecrypted { token, key }, &mut host.entropy);
        while let Some(command) = host.enclave.poll_command() {
            if let Command::Reply { body, .. } = command {
                answers.push(Reply::decode(&body));
            }
        }
    }
    assert_eq!(answers, [Ok(Reply::IdentityOpened), Ok(Reply::IdentityOpened)]);
}

#[test]
fn an_enclave_holds_so_many_epochs_and_no_more() {
    let mut host = Host::new(config(0), Arc::clone(&born(0).module), fresh_entropy());
    let epochs_max = u32::try_from(IDENTITIES_MAX).expect("few");
    let rows: Vec<IdentityRow> = (0..=epochs_max).map(|epoch| host.create(epoch)).collect();
    let (last, rows) = rows.split_last().expect("more than none");
    for row in rows {
        assert_eq!(host.ask(Request::OpenIdentity(row.clone())), Ok(Reply::IdentityOpened));
    }
    let create = Request::CreateIdentity(CreateIdentity { epoch: epochs_max });
    for request in [Request::OpenIdentity(last.clone()), create] {
        assert_eq!(host.ask(request).expect_err("one too many").code, Code::TooMany);
    }
    assert_eq!(host.shared.len(), IDENTITIES_MAX);
}
