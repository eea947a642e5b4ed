//! Certificates and results: clients believe attested enclaves alone (S4).

mod hostile;

use keymeld_core::artifact::Signed;
use keymeld_core::artifact::certificate::{Certificate, IdentitySignature, SubsetKey};
use keymeld_core::artifact::intent::{Item, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::result::{ItemResult, Outcome, SigningResult};
use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::attestation::policy::{ImagePcrs, Policy};
use keymeld_core::bytes::{Blob, Hash, PublicKey, Signature, XOnlyKey};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::hash::Tag;
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::id::{AttemptId, ItemId, KeygenId, SubsetId, UserId};
use keymeld_core::limits::{ITEMS_MAX, SHARES_MAX};
use keymeld_core::link::message::{Attest, Reply, Request};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::strict;
use keymeld_transport::nsm::software::Pcrs;

use hostile::host::{CONFIG_HASH, Host, config};
use hostile::party::{Group, Person, careful, delegated, fresh_entropy};
use hostile::round::{Case, Puppet, Run};
use hostile::{NOW, World, keys, refused};

fn group() -> Group {
    Group::of(vec![Person::at(0, careful()), Person::at(1, careful()), Person::at(2, delegated())])
}

/// The keys of an enclave as a client learns them, from a document that answers its own challenge.
fn attested(host: &mut Host) -> EnclaveKeys {
    let Pcrs { pcr0, pcr1, pcr2, .. } = Pcrs::of_label("image");
    let policy = Policy {
        roots: vec![config(0).root],
        images: vec![ImagePcrs { pcr0, pcr1, pcr2, pcr8: None }],
        birth_pcr0: vec![pcr0],
        config_hashes: vec![CONFIG_HASH],
        freshness_ms: 10_000,
    };
    let nonce = fresh_entropy().bytes().expect("test entropy");
    let reply = host.ask(Request::Attest(Attest { epoch: 0, nonce: Hash(nonce) })).expect("attests");
    let Reply::Attested(document) = reply else { panic!("not a document") };
    let known = policy.check_for_registration(NOW, &document.0, &nonce, None).expect("a genuine enclave");
    EnclaveKeys { enclave_key: PublicKey(known.ecies_key), identity_key: XOnlyKey(known.identity_key) }
}

/// What a client reads a certificate with.
struct Reading {
    group: Group,
    enclave: EnclaveKeys,
    sealed: Blob,
}

impl Reading {
    /// The second enclave's certificate.
    fn honest() -> Reading {
        let group = group();
        let sealed = World::new(2).open(&group, 1).expect("opens").certificate;
        Reading { enclave: keys(1), sealed, group }
    }

    fn read(self) -> Result<(), Refusal> {
        let roster = self.group.roster()?;
        let read = Certificate::open(&roster, self.enclave, &self.group.seal_key(), &self.sealed)?;
        assert_eq!(read, Certificate::of(&roster, self.enclave));
        Ok(())
    }

    /// A certificate of the second enclave with changes, signed by whoever knows the session secret.
    fn forge(&mut self, by: &AuthKey, change: impl FnOnce(&mut Certificate)) {
        let roster = self.group.roster().expect("made honestly");
        let mut certificate = Certificate::of(&roster, self.enclave);
        change(&mut certificate);
        let body = strict::to_json(&certificate);
        let identity = by.sign(Tag::Certificate, &[&body], &mut self.group.entropy).expect("entropy");
        let signed = Signed { body: Blob(body), signatures: IdentitySignature { identity } };
        let context = Context::Certificate {
            keygen_id: self.group.keygen_id(),
            roster_hash: roster.roster_hash(),
            enclave_key: self.enclave.enclave_key,
        };
        let sealed = self.group.seal_key().seal(&context, &strict::to_json(&signed), &mut self.group.entropy);
        self.sealed = sealed.expect("small");
    }
}

#[test]
fn certificates_verify_with_the_keys_that_attestation_gives_and_agree() {
    let group = group();
    let mut world = World::new(3);
    let roster = group.roster().expect("made honestly");
    for at in 0..3 {
        let opened = world.open(&group, at).expect("opens");
        let enclave = attested(&mut world.hosts[at]);
        assert_eq!(enclave, keys(at));
        assert!(roster.enclaves().contains(&enclave));
        let certificate = Certificate::open(&roster, enclave, &group.seal_key(), &opened.certificate);
        assert_eq!(certificate.expect("verifies").roster_hash, opened.roster_hash);
    }
}

#[test]
fn a_certificate_of_another_enclave_is_refused() {
    refused(Code::SealUnreadable, Reading::honest, Reading::read, |reading| {
        reading.sealed = World::new(1).open(&reading.group, 0).expect("opens").certificate;
    });
    refused(Code::SealUnreadable, Reading::honest, Reading::read, |reading| reading.enclave = keys(0));
}

#[test]
fn a_certificate_that_no_attested_identity_key_signed_is_refused() {
    refused(Code::CertificateInvalid, Reading::honest, Reading::read, |reading| {
        let puppet = Puppet::new();
        reading.forge(&puppet.identity, |_| ());
    });
    // The gateway names a key of its own; the client has another from the attestation.
    refused(Code::CertificateInvalid, Reading::honest, Reading::read, |reading| {
        let puppet = Puppet::new();
        reading.forge(&puppet.identity, |certificate| {
            certificate.identity_key = puppet.keys.identity_key;
        });
    });
    refused(Code::CertificateInvalid, Reading::honest, Reading::read, |reading| {
        let coordinator = reading.group.people[0].auth(reading.group.keygen_id());
        reading.forge(&coordinator, |_| ());
    });
}

#[test]
fn a_made_up_enclave_in_the_roster_has_no_attested_keys() {
    let puppet = Puppet::new();
    let people = vec![Person::at(0, careful()), Person::at_keys(puppet.keys, careful())];
    let group = Group::of(people);
    let mut world = World::new(1);
    world.open_all(&group).expect("no enclave can tell");
    let roster = group.roster().expect("nor can a client from the records alone");
    let known = [attested(&mut world.hosts[0])];
    let unknown: Vec<EnclaveKeys> =
        roster.enclaves().into_iter().filter(|enclave| !known.contains(enclave)).collect();
    assert_eq!(unknown, [puppet.keys]);
}

#[test]
fn a_certificate_that_contradicts_the_roster_is_refused_although_its_signature_verifies() {
    // Here the attested enclave itself lies, which no enclave does: the test holds its identity key.
    let changes: [fn(&mut Certificate); 8] = [
        |certificate| certificate.keygen_id = KeygenId([1; 16]),
        |certificate| certificate.manifest_hash = Hash([1; 32]),
        |certificate| certificate.roster_hash = Hash([1; 32]),
        |certificate| certificate.aggregate_key = PublicKey([2; 33]),
        |certificate| {
            certificate.subset_keys =
                vec![SubsetKey { subset_id: SubsetId([1; 16]), key: PublicKey([2; 33]) }];
        },
        |certificate| certificate.enclave_key = PublicKey([2; 33]),
        |certificate| certificate.identity_key = XOnlyKey([2; 32]),
        |certificate| certificate.version = 2,
    ];
    let lying = || {
        let puppet = Puppet::new();
        let group = Group::of(vec![Person::at(0, careful()), Person::at_keys(puppet.keys, careful())]);
        let mut reading = Reading { enclave: puppet.keys, sealed: Blob(vec![]), group };
        reading.forge(&puppet.identity, |_| ());
        (puppet, reading)
    };
    for (index, change) in changes.into_iter().enumerate() {
        let code = if index == 7 { Code::UnsupportedVersion } else { Code::CertificateInvalid };
        refused(
            code,
            lying,
            |(_, reading)| reading.read(),
            |(puppet, reading)| {
                reading.forge(&puppet.identity, change);
            },
        );
    }
}

#[test]
fn certificates_of_two_rosters_do_not_pass_for_one() {
    refused(Code::SealUnreadable, Reading::honest, Reading::read, |reading| {
        // The same people register a second time; everything about them is the same but the salts.
        let registrations = std::mem::take(&mut reading.group.registrations);
        reading.group.registrations = (0..3).map(|index| reading.group.register(index)).collect();
        reading.sealed = World::new(2).open(&reading.group, 1).expect("opens").certificate;
        reading.group.registrations = registrations;
    });
}

/// A finished signing session.
struct Finished {
    group: Group,
    run: Run,
    result: Blob,
}

impl Finished {
    fn honest() -> Finished {
        let mut case = Case::new(group());
        case.world.open_all(&case.group).expect("opens");
        let mut run = case.run();
        let result = run.finish(&mut case.world).expect("authorised");
        Finished { group: case.group, run, result }
    }

    fn read(self) -> Result<(), Refusal> {
        for outcome in self.run.read(&self.group, &self.result)? {
            outcome?;
        }
        Ok(())
    }

    fn seal_key(&self) -> SealKey {
        self.group.signing_seal(self.run.key.signing_id)
    }

    fn context(&self) -> Context {
        let key = self.run.key;
        Context::Result { keygen_id: key.keygen_id, signing_id: key.signing_id, digest: key.digest }
    }

    fn intent(&self) -> VerifiedIntent {
        let sealed = SealedIntent { sealed: self.run.intent.clone(), digest: self.run.key.digest };
        let roster = self.group.roster().expect("made honestly");
        VerifiedIntent::open(&roster, self.run.key.signing_id, &self.seal_key(), &sealed).expect("verifies")
    }

    /// What any participant can read and write again.
    fn open(&self) -> Signed<IdentitySignature> {
        let plaintext = self.seal_key().open(&self.context(), &self.result).expect("a participant can");
        strict::from_json(&plaintext, usize::MAX).expect("well-formed")
    }

    fn seal(&mut self, signed: &Signed<IdentitySignature>) {
        let bytes = strict::to_json(signed);
        self.result = self.seal_key().seal(&self.context(), &bytes, &mut self.group.entropy).expect("small");
    }

    /// The result with changes under the aggregator's old signature, or under one by another key.
    fn forge(&mut self, by: Option<&AuthKey>, change: impl FnOnce(&mut SigningResult)) {
        let mut signed = self.open();
        let mut result: SigningResult = strict::from_json(&signed.body.0, usize::MAX).expect("well-formed");
        change(&mut result);
        signed.body = Blob(strict::to_json(&result));
        if let Some(key) = by {
            let entropy = &mut self.group.entropy;
            signed.signatures.identity = key.sign(Tag::Result, &[&signed.body.0], entropy).expect("entropy");
        }
        self.seal(&signed);
    }
}

fn failed(code: Code, culprit: UserId) -> Outcome {
    Outcome::Error { code: code.name().into(), culprits: vec![culprit] }
}

#[test]
fn a_participant_forges_neither_a_result_nor_an_error() {
    refused(Code::ResultInvalid, Finished::honest, Finished::read, |finished| {
        let victim = finished.group.people[1].user_id;
        let own = finished.group.people[0].auth(finished.group.keygen_id());
        finished.forge(Some(&own), |result| result.items[0].outcome = failed(Code::PartialInvalid, victim));
    });
    refused(Code::ResultInvalid, Finished::honest, Finished::read, |finished| {
        let victim = finished.group.people[1].user_id;
        finished.forge(None, |result| result.items[0].outcome = failed(Code::PartialInvalid, victim));
    });
    refused(Code::ResultInvalid, Finished::honest, Finished::read, |finished| {
        finished.forge(None, |result| result.items[0].outcome = Outcome::Signature(Signature([1; 64])));
    });
    // A true signature under a signature that is not the aggregator's.
    refused(Code::ResultInvalid, Finished::honest, Finished::read, |finished| {
        let own = finished.group.people[0].auth(finished.group.keygen_id());
        finished.forge(Some(&own), |_| ());
    });
    // Written once more as it was.
    let mut again = Finished::honest();
    again.forge(None, |_| ());
    again.read().expect("the aggregator's own words");
}

#[test]
fn a_result_altered_in_any_field_is_refused() {
    let changes: [fn(&mut SigningResult); 9] = [
        |result| result.keygen_id = KeygenId([1; 16]),
        |result| result.roster_hash = Hash([1; 32]),
        |result| result.signing_id.0[0] ^= 1,
        |result| result.intent_digest = Hash([1; 32]),
        |result| result.attempt = AttemptId([1; 16]),
        |result| result.aggregator = keys(1).enclave_key,
        |result| result.aggregator = PublicKey([2; 33]),
        |result| result.items.clear(),
        |result| result.items.push(result.items[0].clone()),
    ];
    for change in changes {
        refused(Code::ResultInvalid, Finished::honest, Finished::read, |finished| {
            finished.forge(None, change);
        });
    }
    refused(Code::UnsupportedVersion, Finished::honest, Finished::read, |finished| {
        finished.forge(None, |result| result.version = 2);
    });
    refused(Code::SealUnreadable, Finished::honest, Finished::read, |finished| finished.result.0[40] ^= 1);
}

#[test]
fn a_result_of_another_intent_is_refused_whether_it_is_sealed_again_or_not() {
    let other = |finished: &mut Finished| {
        let group = std::mem::replace(&mut finished.group, group());
        let mut case = Case::new(group);
        case.world.open_all(&case.group).expect("opens");
        let mut run = case.run();
        let result = run.finish(&mut case.world).expect("authorised");
        finished.group = case.group;
        (run, result)
    };
    refused(Code::SealUnreadable, Finished::honest, Finished::read, |finished| {
        finished.result = other(finished).1;
    });
    refused(Code::ResultInvalid, Finished::honest, Finished::read, |finished| {
        let honest = finished.run.clone();
        (finished.run, finished.result) = other(finished);
        let signed = finished.open();
        finished.run = honest;
        finished.seal(&signed);
    });
}

/// A colluder's made-up enclave may be named as the aggregator; then it can say what it likes, and clients
/// verify the signatures themselves.
#[test]
fn a_made_up_aggregator_passes_no_wrong_signature_or_wrong_item_off() {
    let lying = |change: fn(&mut SigningResult)| {
        let puppet = Puppet::new();
        let group = Group::of(vec![Person::at(0, careful()), Person::at_keys(puppet.keys, delegated())]);
        let mut case = Case::new(group);
        let run = case.run();
        let mut finished = Finished { group: case.group, run, result: Blob(vec![]) };
        let intent = finished.intent();
        let roster = finished.group.roster().expect("made honestly");
        let mut result =
            SigningResult::new(&roster, &intent, finished.run.key.attempt, puppet.keys.enclave_key);
        let item_id = intent.intent().items[0].item_id;
        let outcome = failed(Code::PartialInvalid, finished.group.people[1].user_id);
        result.items = vec![ItemResult { item_id, outcome }];
        change(&mut result);
        let seal_key = finished.seal_key();
        finished.result =
            result.seal(&puppet.identity, &seal_key, &mut finished.group.entropy).expect("small");
        finished.run.read(&finished.group, &finished.result)
    };
    let error = lying(|_| ()).expect("an error is all that it can say");
    assert!(error[0].is_err());
    let wrong: [fn(&mut SigningResult); 3] = [
        |result| result.items[0].outcome = Outcome::Signature(Signature([1; 64])),
        |result| result.items[0].item_id = ItemId([1; 16]),
        |result| {
            result.items[0].outcome = Outcome::Error { code: "made up".into(), culprits: vec![] };
        },
    ];
    for change in wrong {
        assert_eq!(lying(change).expect_err("verified").code, Code::ResultInvalid);
    }
}

/// However many are to blame, everybody can read who: as many items and culprits as an intent may have.
#[test]
fn a_result_that_blames_as_many_as_there_can_be_is_still_read() {
    let puppet = Puppet::new();
    let mut people: Vec<Person> = (1..SHARES_MAX / ITEMS_MAX).map(|_| Person::at(0, delegated())).collect();
    people.push(Person::at_keys(puppet.keys, delegated()));
    let mut case = Case::new(Group::of(people));
    let mut entropy = fresh_entropy();
    let item = case.intent.items.remove(0);
    for _ in 0..ITEMS_MAX {
        let item_id = ItemId::random(&mut entropy).expect("test entropy");
        case.intent.items.push(Item { item_id, ..item.clone() });
    }
    let run = case.run();
    let mut finished = Finished { group: case.group, run, result: Blob(vec![]) };
    let (intent, roster) = (finished.intent(), finished.group.roster().expect("made honestly"));
    let mut result = SigningResult::new(&roster, &intent, finished.run.key.attempt, puppet.keys.enclave_key);
    let everybody: Vec<UserId> = finished.group.people.iter().map(|person| person.user_id).collect();
    for item in &intent.intent().items {
        let code = Code::PartialInvalid.name().into();
        let outcome = Outcome::Error { code, culprits: everybody.clone() };
        result.items.push(ItemResult { item_id: item.item_id, outcome });
    }
    let seal_key = finished.seal_key();
    finished.result = result.seal(&puppet.identity, &seal_key, &mut entropy).expect("fits in a seal");
    let outcomes = finished.run.read(&finished.group, &finished.result).expect("can be read");
    let blamed: usize =
        outcomes.iter().map(|outcome| outcome.as_ref().expect_err("blame").culprits.len()).sum();
    assert_eq!(blamed, SHARES_MAX);
}
