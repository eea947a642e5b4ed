//! Participants, honest or not: manifests, registrations, intents, approvals, and forgeries of each.

use std::sync::atomic::{AtomicU64, Ordering};

use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::{Intent, IntentSignatures, Item, Origin, SealedIntent};
use keymeld_core::artifact::manifest::{Coordinator, Manifest, Participant, Pin};
use keymeld_core::artifact::registration::{
    ApprovalRule, ENVELOPE_PURPOSE, Record, RecordSignatures, Registrant, Registration, Rules, open_record,
    user_auth_key,
};
use keymeld_core::artifact::roster::{EnclaveKeys, Roster};
use keymeld_core::artifact::{Signed, VERSION};
use keymeld_core::bytes::{Blob, Hash, PublicKey, Salt, Signature};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::{KeygenId, SigningId, UserId};
use keymeld_core::link::message::{CheckRegistration, OpenKeygen, Request, UserBlob};
use keymeld_core::refusal::Refusal;
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use serde::Serialize;

use super::{DAY_MS, NOW, keys};

/// Randomness that no other test draws.
pub(crate) fn fresh_entropy() -> Entropy {
    static DRAWN: AtomicU64 = AtomicU64::new(1 << 32);
    test_entropy(DRAWN.fetch_add(1, Ordering::Relaxed))
}

/// A copy for places that want to own a secret.
pub(crate) fn copy(secret: &Secret<32>) -> Secret<32> {
    Secret::copied_from(secret.expose())
}

/// Approval required, valid for long.
pub(crate) fn careful() -> Rules {
    Rules::careful(NOW + 100 * DAY_MS)
}

/// The same with the approval delegated to the coordinator.
pub(crate) fn delegated() -> Rules {
    Rules::delegated(NOW + 100 * DAY_MS)
}

/// A participant.
pub(crate) struct Person {
    pub(crate) user_id: UserId,
    pub(crate) private_key: Secret<32>,
    /// Pinned by its signing key where there is none.
    pub(crate) invite_key: Option<Secret<32>>,
    pub(crate) enclave: EnclaveKeys,
    /// Which of the fixture's enclaves that is, if one.
    pub(crate) at: Option<usize>,
    pub(crate) rules: Rules,
}

impl Person {
    /// A participant at one of the fixture's enclaves.
    pub(crate) fn at(at: usize, rules: Rules) -> Person {
        Person { at: Some(at), ..Person::at_keys(keys(at), rules) }
    }

    /// A participant at an enclave that the fixture does not have.
    pub(crate) fn at_keys(enclave: EnclaveKeys, rules: Rules) -> Person {
        let mut entropy = fresh_entropy();
        Person {
            user_id: UserId::random(&mut entropy).expect("test entropy"),
            private_key: Secret::random(&mut entropy).expect("test entropy"),
            invite_key: None,
            enclave,
            at: None,
            rules,
        }
    }

    /// The same participant, known by the key of its invite alone.
    pub(crate) fn invited(self) -> Person {
        Person { invite_key: Some(Secret::random(&mut fresh_entropy()).expect("test entropy")), ..self }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        auth::public_key(&self.private_key).expect("a key")
    }

    pub(crate) fn auth(&self, keygen_id: KeygenId) -> AuthKey {
        user_auth_key(&self.private_key, keygen_id).expect("a key")
    }

    fn pin(&self) -> Pin {
        match &self.invite_key {
            Some(key) => Pin::InviteKey(AuthKey::new(key).expect("a key").public()),
            None => Pin::SigningKey(self.public_key()),
        }
    }
}

/// A keygen session as its participants know it. The first participant is the coordinator.
pub(crate) struct Group {
    pub(crate) people: Vec<Person>,
    pub(crate) manifest: Manifest,
    pub(crate) manifest_hash: Hash,
    pub(crate) sealed_manifest: Blob,
    pub(crate) session_secret: Secret<32>,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) entropy: Entropy,
}

impl Group {
    /// Everybody registers as it should.
    pub(crate) fn of(people: Vec<Person>) -> Group {
        Group::shaped(people, |_| ())
    }

    /// The same with a manifest that says more.
    pub(crate) fn shaped(people: Vec<Person>, shape: impl FnOnce(&mut Manifest)) -> Group {
        let mut entropy = fresh_entropy();
        let keygen_id = KeygenId::random(&mut entropy).expect("test entropy");
        let coordinator = Coordinator {
            user_id: people[0].user_id,
            signing_key: people[0].public_key(),
            auth_key: people[0].auth(keygen_id).public(),
        };
        let participant =
            |person: &Person| Participant { user_id: person.user_id, name: None, pin: person.pin() };
        let participants = people.iter().map(participant).collect();
        let salt = Salt(entropy.bytes().expect("test entropy"));
        let mut manifest = Manifest::new(keygen_id, salt, coordinator, participants, NOW);
        shape(&mut manifest);
        let session_secret = Secret::random(&mut entropy).expect("test entropy");
        let mut group = Group {
            people,
            manifest_hash: Hash([0; 32]),
            sealed_manifest: Blob(Vec::new()),
            manifest,
            session_secret,
            registrations: Vec::new(),
            entropy,
        };
        group.seal_manifest();
        group.registrations = (0..group.people.len()).map(|index| group.register(index)).collect();
        group
    }

    /// Seals the manifest as it is now.
    pub(crate) fn seal_manifest(&mut self) {
        let bytes = self.manifest.encode();
        self.manifest_hash = Manifest::hash(&bytes);
        let context =
            Context::Manifest { keygen_id: self.manifest.keygen_id, manifest_hash: self.manifest_hash };
        self.sealed_manifest = self.seal_key().seal(&context, &bytes, &mut self.entropy).expect("small");
    }

    /// The registration that this person's honest client makes.
    pub(crate) fn register(&mut self, index: usize) -> Registration {
        let person = &self.people[index];
        let registrant = Registrant {
            manifest: &self.manifest,
            manifest_hash: self.manifest_hash,
            user_id: person.user_id,
            private_key: &person.private_key,
            session_secret: &self.session_secret,
            invite_key: person.invite_key.as_ref(),
            enclave_key: person.enclave.enclave_key,
            identity_key: person.enclave.identity_key,
            rules: person.rules,
        };
        registrant.register(&mut self.entropy).expect("in the manifest")
    }

    pub(crate) fn keygen_id(&self) -> KeygenId {
        self.manifest.keygen_id
    }

    /// What every participant can open and seal.
    pub(crate) fn seal_key(&self) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SessionSeal(self.manifest.keygen_id))
    }

    pub(crate) fn signing_seal(&self, signing_id: SigningId) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SigningSeal(signing_id))
    }

    /// The fixture's enclaves that hold a key of this session.
    pub(crate) fn enclaves(&self) -> Vec<usize> {
        let mut enclaves: Vec<usize> = self.people.iter().filter_map(|person| person.at).collect();
        enclaves.sort_unstable();
        enclaves.dedup();
        enclaves
    }

    /// What an honest gateway sends to open the session.
    pub(crate) fn open_message(&self, at: usize) -> OpenKeygen {
        let blobs = |of: fn(&Registration) -> &Blob, here: Option<usize>| {
            let everybody = self.people.iter().zip(&self.registrations);
            let chosen = everybody.filter(move |(person, _)| here.is_none() || person.at == here);
            chosen
                .map(|(person, made)| UserBlob { user_id: person.user_id, blob: of(made).clone() })
                .collect()
        };
        OpenKeygen {
            enclave_key: keys(at).enclave_key,
            keygen_id: self.keygen_id(),
            manifest_hash: self.manifest_hash,
            manifest: self.sealed_manifest.clone(),
            records: blobs(|made| &made.record, None),
            envelopes: blobs(|made| &made.envelope, Some(at)),
        }
    }

    pub(crate) fn open_request(&self, at: usize) -> Request {
        Request::OpenKeygen(self.open_message(at))
    }

    /// What an honest gateway sends to have one registration checked.
    pub(crate) fn check_message(&self, index: usize) -> CheckRegistration {
        let person = &self.people[index];
        CheckRegistration {
            enclave_key: person.enclave.enclave_key,
            keygen_id: self.keygen_id(),
            manifest_hash: self.manifest_hash,
            manifest: self.sealed_manifest.clone(),
            user_id: person.user_id,
            envelope: self.registrations[index].envelope.clone(),
            record: self.registrations[index].record.clone(),
            auth_key: self.registrations[index].auth_key,
            approval_required: person.rules.approval == ApprovalRule::Required,
        }
    }

    /// The roster as a client assembles it.
    pub(crate) fn roster(&self) -> Result<Roster, Refusal> {
        let mut records = Vec::new();
        for (person, made) in self.people.iter().zip(&self.registrations) {
            let seal_key = self.seal_key();
            let record =
                open_record(&seal_key, &self.manifest, self.manifest_hash, person.user_id, &made.record);
            records.push(record?);
        }
        Roster::assemble(self.manifest.clone(), self.manifest_hash, records)
    }

    /// What a person's record says.
    pub(crate) fn record(&self, index: usize) -> Record {
        let person = &self.people[index];
        let sealed = &self.registrations[index].record;
        open_record(&self.seal_key(), &self.manifest, self.manifest_hash, person.user_id, sealed)
            .expect("made honestly")
            .record
    }

    /// A record of any content for any slot, with all signatures that this person can make for it.
    pub(crate) fn forge_record(&mut self, slot: UserId, record: &Record, by: usize) -> Blob {
        let person = &self.people[by];
        let signing_key = AuthKey::new(&person.private_key).expect("a key");
        let body = strict::to_json(record);
        let possession = signing_key.sign(Tag::Possession, &[&body], &mut self.entropy).expect("entropy");
        let cosignature = match &person.invite_key {
            Some(key) => AuthKey::new(key).expect("a key").sign(Tag::InviteKey, &[&body], &mut self.entropy),
            None => signing_key.sign(Tag::PinnedKey, &[&body], &mut self.entropy),
        };
        let signatures = RecordSignatures { possession, cosignature: cosignature.expect("entropy") };
        self.seal_record(slot, body, signatures)
    }

    /// Seals a record body with these signatures, as everybody who knows the session secret can.
    pub(crate) fn seal_record(&mut self, slot: UserId, body: Vec<u8>, signatures: RecordSignatures) -> Blob {
        let context = Context::Record {
            keygen_id: self.manifest.keygen_id,
            manifest_hash: self.manifest_hash,
            user_id: slot,
        };
        let signed = strict::to_json(&Signed { body: Blob(body), signatures });
        self.seal_key().seal(&context, &signed, &mut self.entropy).expect("small")
    }

    /// The plaintext of a person's envelope.
    pub(crate) fn envelope(&self, index: usize) -> EnvelopeText {
        let person = &self.people[index];
        EnvelopeText {
            purpose: ENVELOPE_PURPOSE.into(),
            enclave_key: person.enclave.enclave_key,
            keygen_id: self.keygen_id(),
            user_id: person.user_id,
            manifest_hash: self.manifest_hash,
            private_key: person.private_key.to_hex().to_string(),
            session_secret: self.session_secret.to_hex().to_string(),
            rules: person.rules,
        }
    }

    /// An intent of the coordinator, of one readable item for everybody.
    pub(crate) fn intent(&mut self) -> Intent {
        let item = Item::of(Origin::Text("pay the baker".into()), &mut self.entropy).expect("a text");
        Intent {
            version: VERSION,
            salt: Salt(self.entropy.bytes().expect("test entropy")),
            keygen_id: self.keygen_id(),
            manifest_hash: self.manifest_hash,
            roster_hash: self.roster().expect("made honestly").roster_hash(),
            signing_id: SigningId::random(&mut self.entropy).expect("test entropy"),
            requester: self.people[0].user_id,
            created_at: NOW,
            expires_at: NOW + DAY_MS,
            items: vec![item],
            psbts: Vec::new(),
        }
    }

    /// A person's approval of a digest.
    pub(crate) fn approve(&mut self, index: usize, intent: &Intent, digest: Hash, blind: bool) -> Approval {
        let person = &self.people[index];
        let key = person.auth(self.manifest.keygen_id);
        Approval::sign(intent.signing_id, person.user_id, digest, blind, &key, &mut self.entropy)
            .expect("test entropy")
    }

    /// Seals any bytes as an intent, with any signature.
    pub(crate) fn seal_intent_bytes(
        &mut self,
        signing_id: SigningId,
        body: Vec<u8>,
        requester: Signature,
    ) -> SealedIntent {
        let digest = tagged_hash(Tag::Intent, &[&body]);
        let signed =
            strict::to_json(&Signed { body: Blob(body), signatures: IntentSignatures { requester } });
        let context = Context::Intent { keygen_id: self.manifest.keygen_id, signing_id, digest };
        let sealed = self.signing_seal(signing_id).seal(&context, &signed, &mut self.entropy);
        SealedIntent { sealed: sealed.expect("small"), digest }
    }
}

/// The plaintext of an envelope, to be put together at will.
#[derive(Serialize)]
pub(crate) struct EnvelopeText {
    pub(crate) purpose: String,
    pub(crate) enclave_key: PublicKey,
    pub(crate) keygen_id: KeygenId,
    pub(crate) user_id: UserId,
    pub(crate) manifest_hash: Hash,
    pub(crate) private_key: String,
    pub(crate) session_secret: String,
    pub(crate) rules: Rules,
}

impl EnvelopeText {
    /// Encrypts it to an enclave.
    pub(crate) fn encrypt(&self, to: &PublicKey) -> Blob {
        envelope::encrypt(to, &strict::to_json(self), &mut fresh_entropy()).expect("small")
    }
}
