//! Participants of one keygen, honest or not: what they make and ask.

use keymeld_core::api::rest::{
    InitRequest, ItemHint, KeygenState, KeygenStatus, RegisterRequest, ReserveRequest, SignRequest,
    SigningStatus, SlotRequest, SlotsResponse, SubsetHint,
};
use keymeld_core::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use keymeld_core::artifact::intent::{Intent, IntentSignatures, Item, Origin, SealedIntent};
use keymeld_core::artifact::manifest::{Coordinator, Manifest, Participant, Pin};
use keymeld_core::artifact::registration::{
    ApprovalRule, ENVELOPE_PURPOSE, Record, RecordSignatures, Registrant, Rules, open_record, user_auth_key,
};
use keymeld_core::artifact::roster::{EnclaveKeys, Roster};
use keymeld_core::artifact::{Signed, VERSION};
use keymeld_core::bytes::{Blob, Hash, Salt};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::id::{KeygenId, SigningId, UserId};
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use serde::Serialize;

use crate::rig::{Ask, Rig, unix_ms};

const DAY_MS: u64 = 24 * 3_600_000;

/// Approval required, valid for long.
pub(crate) fn careful() -> Rules {
    Rules::careful(unix_ms() + 100 * DAY_MS)
}

/// The same with the approval delegated to the coordinator.
pub(crate) fn delegated() -> Rules {
    Rules::delegated(unix_ms() + 100 * DAY_MS)
}

/// One participant.
pub(crate) struct Person {
    pub(crate) user_id: UserId,
    pub(crate) private_key: Secret<32>,
    /// Pinned by its signing key where there is none.
    pub(crate) invite_key: Option<Secret<32>>,
    pub(crate) slot: AuthKey,
    pub(crate) rules: Rules,
}

/// A keygen as its participants know it. The first is the coordinator.
pub(crate) struct Group {
    pub(crate) people: Vec<Person>,
    pub(crate) session: AuthKey,
    pub(crate) session_secret: Secret<32>,
    pub(crate) manifest: Manifest,
    /// What the gateway is told of the manifest.
    pub(crate) init: InitRequest,
}

fn secret(rig: &mut Rig) -> Secret<32> {
    Secret::random(&mut rig.entropy).expect("randomness")
}

impl Group {
    /// A group of which nobody knows yet, with a manifest that says more.
    pub(crate) fn shaped(rig: &mut Rig, rules: &[Rules], shape: impl FnOnce(&mut Group)) -> Group {
        let keygen_id = KeygenId::random(&mut rig.entropy).expect("randomness");
        let mut person = |rules: &Rules| Person {
            user_id: UserId::random(&mut rig.entropy).expect("randomness"),
            private_key: secret(rig),
            invite_key: None,
            slot: AuthKey::new(&secret(rig)).expect("a key"),
            rules: *rules,
        };
        let people: Vec<Person> = rules.iter().map(&mut person).collect();
        let session_secret = secret(rig);
        let session = AuthKey::derived(&session_secret, Purpose::SessionAuth(keygen_id)).expect("a key");
        let pinned = |person: &Person| auth::public_key(&person.private_key).expect("a key");
        let coordinator = Coordinator {
            user_id: people[0].user_id,
            signing_key: pinned(&people[0]),
            auth_key: user_auth_key(&people[0].private_key, keygen_id).expect("a key").public(),
        };
        let participant = |person: &Person| Participant {
            user_id: person.user_id,
            name: None,
            pin: Pin::SigningKey(pinned(person)),
        };
        let participants = people.iter().map(participant).collect();
        let salt = Salt(rig.entropy.bytes().expect("randomness"));
        let manifest = Manifest::new(keygen_id, salt, coordinator, participants, unix_ms());
        let init =
            InitRequest { manifest_hash: Hash([0; 32]), manifest: Blob(Vec::new()), subsets: Vec::new() };
        let mut group = Group { people, session, session_secret, manifest, init };
        shape(&mut group);
        group.seal_manifest(rig);
        group
    }

    pub(crate) fn new(rig: &mut Rig, rules: &[Rules]) -> Group {
        Group::shaped(rig, rules, |_| ())
    }

    /// Known by the key of its invite, from now on.
    pub(crate) fn invite(&mut self, rig: &mut Rig, at: usize) {
        let key = secret(rig);
        self.manifest.participants[at].pin = Pin::InviteKey(AuthKey::new(&key).expect("a key").public());
        self.people[at].invite_key = Some(key);
        self.seal_manifest(rig);
    }

    fn seal_manifest(&mut self, rig: &mut Rig) {
        let bytes = self.manifest.encode();
        self.seal_as_manifest(rig, Manifest::hash(&bytes), &bytes);
        let subsets = self.manifest.subsets.iter();
        let hint = |one: &keymeld_core::artifact::manifest::Subset| SubsetHint {
            subset_id: one.subset_id,
            members: one.members.clone(),
        };
        self.init.subsets = subsets.map(hint).collect();
    }

    /// Seals any bytes in the manifest's place.
    pub(crate) fn seal_as_manifest(&mut self, rig: &mut Rig, manifest_hash: Hash, bytes: &[u8]) {
        let context = Context::Manifest { keygen_id: self.keygen_id(), manifest_hash };
        let manifest = self.seal_key().seal(&context, bytes, &mut rig.entropy).expect("small");
        self.init = InitRequest { manifest_hash, manifest, subsets: self.init.subsets.clone() };
    }

    pub(crate) fn keygen_id(&self) -> KeygenId {
        self.manifest.keygen_id
    }

    pub(crate) fn seal_key(&self) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SessionSeal(self.keygen_id()))
    }

    pub(crate) fn auth(&self, at: usize) -> AuthKey {
        user_auth_key(&self.people[at].private_key, self.keygen_id()).expect("a key")
    }

    pub(crate) fn path(&self, end: &str) -> String {
        format!("keygen/{}/{end}", self.keygen_id())
    }

    pub(crate) fn reservation(&self) -> ReserveRequest {
        let slot = |person: &Person| SlotRequest { user_id: person.user_id, slot_key: person.slot.public() };
        ReserveRequest {
            keygen_id: self.keygen_id(),
            session_key: self.session.public(),
            coordinator: self.people[0].user_id,
            slots: self.people.iter().map(slot).collect(),
            timeout_ms: None,
        }
    }

    pub(crate) fn reserve(&self, rig: &mut Rig) -> Ask {
        rig.post(&self.session, "keygen/reserve", &self.reservation())
    }

    pub(crate) fn initialise(&self, rig: &mut Rig) -> Ask {
        rig.post(&self.session, &self.path("init"), &self.init)
    }

    /// Reserves and sends the manifest.
    pub(crate) fn begin(&self, rig: &mut Rig) {
        let ask = self.reserve(rig);
        rig.does::<SlotsResponse>(&ask);
        let ask = self.initialise(rig);
        rig.does::<SlotsResponse>(&ask);
    }

    pub(crate) fn slots(&self, rig: &mut Rig) -> SlotsResponse {
        let ask = rig.get(&self.session, &self.path("slots"));
        rig.does(&ask)
    }

    /// The keys of the enclave at which somebody has its slot.
    pub(crate) fn enclave(&self, rig: &mut Rig, at: usize) -> EnclaveKeys {
        let slots = self.slots(rig).slots;
        let own = slots.iter().find(|slot| slot.user_id == self.people[at].user_id).expect("a slot");
        rig.enclave_keys(own.enclave_id)
    }

    /// The registration that an honest client makes.
    pub(crate) fn registration(&self, rig: &mut Rig, at: usize) -> RegisterRequest {
        let enclave = self.enclave(rig, at);
        let person = &self.people[at];
        let registrant = Registrant {
            manifest: &self.manifest,
            manifest_hash: self.init.manifest_hash,
            user_id: person.user_id,
            private_key: &person.private_key,
            session_secret: &self.session_secret,
            invite_key: person.invite_key.as_ref(),
            enclave_key: enclave.enclave_key,
            identity_key: enclave.identity_key,
            rules: person.rules,
        };
        let made = registrant.register(&mut rig.entropy).expect("in the manifest");
        RegisterRequest {
            user_id: person.user_id,
            auth_key: made.auth_key,
            approval_required: person.rules.approval == ApprovalRule::Required,
            enclave_key: enclave.enclave_key,
            envelope: made.envelope,
            record: made.record,
        }
    }

    /// Asks for somebody's slot with its key.
    pub(crate) fn register(&self, rig: &mut Rig, at: usize, request: &RegisterRequest) -> Ask {
        rig.post(&self.people[at].slot, &self.path("participants"), request)
    }

    /// Everybody who is not yet registers as it should.
    pub(crate) fn register_from(&self, rig: &mut Rig, first: usize) {
        for at in first..self.people.len() {
            let request = self.registration(rig, at);
            let ask = self.register(rig, at, &request);
            rig.does::<SlotsResponse>(&ask);
        }
    }

    /// Waits for the keygen's end.
    pub(crate) fn ended(&self, rig: &mut Rig) -> KeygenStatus {
        loop {
            let ask = rig.get(&self.session, &self.path("status?wait_ms=30000&until=ended"));
            let status: KeygenStatus = rig.does(&ask);
            if matches!(status.state, KeygenState::Completed | KeygenState::Failed) {
                return status;
            }
        }
    }

    /// Goes through the whole keygen; gives the roster.
    pub(crate) fn complete(&self, rig: &mut Rig) -> Roster {
        self.begin(rig);
        self.register_from(rig, 0);
        let completed = self.ended(rig).completed.expect("completes");
        let open = |view: &keymeld_core::api::rest::RecordView| {
            let hash = self.init.manifest_hash;
            open_record(&self.seal_key(), &self.manifest, hash, view.user_id, &view.record).expect("honest")
        };
        let records = completed.records.iter().map(open).collect();
        Roster::assemble(self.manifest.clone(), self.init.manifest_hash, records).expect("honest")
    }

    /// What an honest record says.
    pub(crate) fn record(&self, rig: &mut Rig, at: usize) -> Record {
        let request = self.registration(rig, at);
        let (hash, user_id) = (self.init.manifest_hash, request.user_id);
        let opened = open_record(&self.seal_key(), &self.manifest, hash, user_id, &request.record);
        opened.expect("made honestly").record
    }

    /// Signs and seals any record.
    pub(crate) fn seal_record(&self, rig: &mut Rig, at: usize, record: &Record) -> Blob {
        self.seal_record_with(rig, at, record, |_| ())
    }

    /// The same with signatures that were changed.
    pub(crate) fn seal_record_with(
        &self,
        rig: &mut Rig,
        at: usize,
        record: &Record,
        change: impl FnOnce(&mut RecordSignatures),
    ) -> Blob {
        let person = &self.people[at];
        let body = strict::to_json(record);
        let own = AuthKey::new(&person.private_key).expect("a key");
        let (cosigner, tag) = match &person.invite_key {
            Some(key) => (AuthKey::new(key).expect("a key"), Tag::InviteKey),
            None => (AuthKey::new(&person.private_key).expect("a key"), Tag::PinnedKey),
        };
        let mut signatures = RecordSignatures {
            possession: own.sign(Tag::Possession, &[&body], &mut rig.entropy).expect("randomness"),
            cosignature: cosigner.sign(tag, &[&body], &mut rig.entropy).expect("randomness"),
        };
        change(&mut signatures);
        let context = Context::Record {
            keygen_id: self.keygen_id(),
            manifest_hash: self.init.manifest_hash,
            user_id: person.user_id,
        };
        let signed = strict::to_json(&Signed { body: Blob(body), signatures });
        self.seal_key().seal(&context, &signed, &mut rig.entropy).expect("small")
    }

    /// The plaintext of an honest envelope.
    pub(crate) fn envelope(&self, enclave: EnclaveKeys, at: usize) -> EnvelopeText {
        let person = &self.people[at];
        EnvelopeText {
            purpose: ENVELOPE_PURPOSE.into(),
            enclave_key: enclave.enclave_key,
            keygen_id: self.keygen_id(),
            user_id: person.user_id,
            manifest_hash: self.init.manifest_hash,
            private_key: person.private_key.to_hex().to_string(),
            session_secret: self.session_secret.to_hex().to_string(),
            rules: person.rules,
        }
    }
}

/// The plaintext of an envelope, to be put together at will.
#[derive(Serialize)]
pub(crate) struct EnvelopeText {
    pub(crate) purpose: String,
    pub(crate) enclave_key: keymeld_core::bytes::PublicKey,
    pub(crate) keygen_id: KeygenId,
    pub(crate) user_id: UserId,
    pub(crate) manifest_hash: Hash,
    pub(crate) private_key: String,
    pub(crate) session_secret: String,
    pub(crate) rules: Rules,
}

impl EnvelopeText {
    pub(crate) fn encrypt(&self, rig: &mut Rig) -> Blob {
        envelope::encrypt(&self.enclave_key, &strict::to_json(self), &mut rig.entropy).expect("small")
    }
}

/// A keygen that is completed, and requests for its signatures.
pub(crate) struct Signers {
    pub(crate) group: Group,
    pub(crate) roster: Roster,
}

impl Signers {
    pub(crate) fn new(rig: &mut Rig, rules: &[Rules]) -> Signers {
        let group = Group::new(rig, rules);
        Signers { roster: group.complete(rig), group }
    }

    /// An intent of the coordinator, of one readable item for everybody.
    pub(crate) fn intent(&self, rig: &mut Rig) -> Intent {
        let item = Item::of(Origin::Text("pay the baker".into()), &mut rig.entropy).expect("a text");
        Intent {
            version: VERSION,
            salt: Salt(rig.entropy.bytes().expect("randomness")),
            keygen_id: self.group.keygen_id(),
            manifest_hash: self.group.init.manifest_hash,
            roster_hash: self.roster.roster_hash(),
            signing_id: SigningId::random(&mut rig.entropy).expect("randomness"),
            requester: self.group.people[0].user_id,
            created_at: unix_ms(),
            expires_at: unix_ms() + DAY_MS,
            items: vec![item],
            psbts: Vec::new(),
        }
    }

    /// Seals an intent in the session that `id` names, whatever it says of itself, signed by somebody.
    pub(crate) fn seal_as(&self, rig: &mut Rig, id: SigningId, by: usize, intent: &Intent) -> SealedIntent {
        let body = strict::to_json(intent);
        let digest = tagged_hash(Tag::Intent, &[&body]);
        let requester =
            self.group.auth(by).sign(Tag::Intent, &[&body], &mut rig.entropy).expect("randomness");
        let signed = Signed { body: Blob(body), signatures: IntentSignatures { requester } };
        let context = Context::Intent { keygen_id: self.group.keygen_id(), signing_id: id, digest };
        let seal_key = SealKey::derived(&self.group.session_secret, Purpose::SigningSeal(id));
        let sealed = seal_key.seal(&context, &strict::to_json(&signed), &mut rig.entropy).expect("small");
        SealedIntent { sealed, digest }
    }

    /// The request that an honest client makes for an intent.
    pub(crate) fn request(&self, rig: &mut Rig, by: usize, intent: &Intent) -> SignRequest {
        let SealedIntent { sealed, digest } = self.seal_as(rig, intent.signing_id, by, intent);
        SignRequest {
            signing_id: intent.signing_id,
            keygen_id: intent.keygen_id,
            requester: intent.requester,
            intent: sealed,
            intent_digest: digest,
            expires_at: intent.expires_at,
            items: intent
                .items
                .iter()
                .map(|item| ItemHint { item_id: item.item_id, subset: item.subset })
                .collect(),
        }
    }

    /// Asks for signatures with somebody's key.
    pub(crate) fn ask(&self, rig: &mut Rig, by: usize, request: &SignRequest) -> Ask {
        rig.post(&self.group.auth(by), "signing", request)
    }

    /// Has a request accepted and waits for the session's end.
    pub(crate) fn run(&self, rig: &mut Rig, by: usize, request: &SignRequest) -> SigningStatus {
        let ask = self.ask(rig, by, request);
        rig.does::<SigningStatus>(&ask);
        self.ended(rig, request.signing_id)
    }

    pub(crate) fn ended(&self, rig: &mut Rig, id: SigningId) -> SigningStatus {
        loop {
            let path = format!("signing/{id}/status?wait_ms=30000&until=ended");
            let ask = rig.get(&self.group.session, &path);
            let status: SigningStatus = rig.does(&ask);
            if status.result.is_some() || status.failure.is_some() {
                return status;
            }
        }
    }

    pub(crate) fn approval(&self, rig: &mut Rig, by: usize, request: &SignRequest, blind: bool) -> Approval {
        let (id, user_id) = (request.signing_id, self.group.people[by].user_id);
        let key = self.group.auth(by);
        Approval::sign(id, user_id, request.intent_digest, blind, &key, &mut rig.entropy).expect("randomness")
    }

    pub(crate) fn approve(&self, rig: &mut Rig, by: usize, approval: &Approval) -> Ask {
        rig.post(&self.group.auth(by), &format!("signing/{}/approve", approval.signing_id), approval)
    }

    pub(crate) fn withdraw(
        &self,
        rig: &mut Rig,
        kind: WithdrawalKind,
        by: usize,
        request: &SignRequest,
    ) -> Ask {
        use keymeld_core::api::http::Method;
        let (id, user_id) = (request.signing_id, self.group.people[by].user_id);
        let (digest, key) = (request.intent_digest, self.group.auth(by));
        let made = Withdrawal::sign(kind, id, user_id, digest, None, &key, &mut rig.entropy);
        let body = strict::to_json(&made.expect("randomness"));
        match kind {
            WithdrawalKind::Decline => {
                rig.proven(&key, Method::Post, &format!("signing/{id}/decline"), &body)
            }
            WithdrawalKind::Cancel => rig.proven(&key, Method::Delete, &format!("signing/{id}"), &body),
        }
    }
}
