//! A sample session, always the same: three users at two enclaves, one subset, one intent.
//!
//! All keys are test keys: whoever reads this file knows them.

// Every test binary that includes this module uses another part of it.
#![allow(dead_code)]

use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::{Intent, Item, Origin, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::manifest::{Coordinator, Manifest, Participant, Pin, Requesters, Subset};
use keymeld_core::artifact::registration::{
    ApprovalRule, Registrant, Registration, Rules, open_record, user_auth_key,
};
use keymeld_core::artifact::roster::{EnclaveKeys, Roster};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash, Message, Salt};
use keymeld_core::crypto::auth::{AuthKey, public_key};
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::id::{EnclaveId, ItemId, KeygenId, SigningId, SubsetId, UserId};
use keymeld_core::secret::Secret;

pub(crate) const CREATED_AT: u64 = 1_800_000_000_000;
pub(crate) const VALID_UNTIL: u64 = 1_831_536_000_000;
pub(crate) const KEYGEN_ID: KeygenId = KeygenId([0x4b; 16]);
pub(crate) const SIGNING_ID: SigningId = SigningId([0x51; 16]);
pub(crate) const SUBSET_ID: SubsetId = SubsetId([0x55; 16]);
pub(crate) const EPOCH: u32 = 3;

/// One user with its secrets.
pub(crate) struct User {
    pub(crate) user_id: UserId,
    pub(crate) private_key: Secret<32>,
    pub(crate) invite_key: Option<Secret<32>>,
    pub(crate) slot_key: Secret<32>,
    pub(crate) rules: Rules,
    /// Which of the enclaves.
    pub(crate) enclave: usize,
}

impl User {
    pub(crate) fn auth_key(&self) -> AuthKey {
        user_auth_key(&self.private_key, KEYGEN_ID).expect("in range")
    }
}

/// The session with everything that was made for it. The coordinator is user 0.
pub(crate) struct Sample {
    pub(crate) users: Vec<User>,
    pub(crate) enclaves: Vec<EnclaveKeys>,
    pub(crate) session_secret: Secret<32>,
    pub(crate) manifest: Manifest,
    pub(crate) manifest_hash: Hash,
    pub(crate) registrations: Vec<Registration>,
}

/// The test seed of an enclave.
pub(crate) fn enclave_seed(index: u8) -> Secret<32> {
    Secret::random(&mut test_entropy(9_000 + u64::from(index))).expect("never fails")
}

pub(crate) fn enclave_id(index: u8) -> EnclaveId {
    EnclaveId([0xe0 + index; 16])
}

pub(crate) fn enclave_ecies(index: u8) -> Secret<32> {
    derive(&enclave_seed(index), Purpose::EnclaveEcies(enclave_id(index), EPOCH))
}

pub(crate) fn enclave_identity(index: u8) -> AuthKey {
    let purpose = Purpose::EnclaveIdentity(enclave_id(index), EPOCH);
    AuthKey::derived(&enclave_seed(index), purpose).expect("in range")
}

fn enclave_keys(index: u8) -> EnclaveKeys {
    EnclaveKeys {
        enclave_key: public_key(&enclave_ecies(index)).expect("in range"),
        identity_key: enclave_identity(index).public(),
    }
}

fn secret(entropy: &mut Entropy) -> Secret<32> {
    Secret::random(entropy).expect("never fails")
}

fn users(entropy: &mut Entropy) -> Vec<User> {
    let careful = Rules::careful(VALID_UNTIL);
    let rules = [
        Rules::delegated(VALID_UNTIL),
        Rules { bind_nonces: false, ..careful },
        Rules { approval: ApprovalRule::Required, allow_blind: true, ..careful },
    ];
    let users = rules.into_iter().zip([0x10, 0x20, 0x30]).enumerate();
    users
        .map(|(index, (rules, id))| User {
            user_id: UserId([id; 16]),
            private_key: secret(entropy),
            invite_key: (index == 2).then(|| secret(entropy)),
            slot_key: secret(entropy),
            rules,
            enclave: index % 2,
        })
        .collect()
}

fn manifest(users: &[User], entropy: &mut Entropy) -> Manifest {
    let coordinator = Coordinator {
        user_id: users[0].user_id,
        signing_key: public_key(&users[0].private_key).expect("in range"),
        auth_key: users[0].auth_key().public(),
    };
    let participants = users.iter().zip([None, Some("Zoë \"Z\""), Some("Bob")]).map(|(user, name)| {
        let pin = match &user.invite_key {
            Some(key) => Pin::InviteKey(AuthKey::new(key).expect("in range").public()),
            None => Pin::SigningKey(public_key(&user.private_key).expect("in range")),
        };
        Participant { user_id: user.user_id, name: name.map(String::from), pin }
    });
    let salt = Salt(entropy.bytes().expect("never fails"));
    let mut manifest = Manifest::new(KEYGEN_ID, salt, coordinator, participants.collect(), CREATED_AT);
    manifest.subsets =
        vec![Subset { subset_id: SUBSET_ID, members: vec![users[2].user_id, users[0].user_id] }];
    manifest.default_tweak = vec![TweakStep::Taproot { merkle_root: None }];
    manifest.requesters = Requesters::AnyParticipant;
    manifest.limits.items_max = 100;
    manifest.expires_at = Some(VALID_UNTIL);
    manifest
}

impl Sample {
    /// At enclaves with fixed test keys.
    pub(crate) fn new() -> Sample {
        Sample::at([enclave_keys(0), enclave_keys(1)].to_vec())
    }

    /// At these enclaves, to which the users are dealt out in turn.
    pub(crate) fn at(enclaves: Vec<EnclaveKeys>) -> Sample {
        let mut entropy = test_entropy(1);
        let mut users = users(&mut entropy);
        for user in &mut users {
            user.enclave %= enclaves.len();
        }
        let session_secret = secret(&mut entropy);
        let manifest = manifest(&users, &mut entropy);
        let manifest_hash = Manifest::hash(&manifest.encode());
        let registrations = users
            .iter()
            .map(|user| {
                let registrant = Registrant {
                    manifest: &manifest,
                    manifest_hash,
                    user_id: user.user_id,
                    private_key: &user.private_key,
                    session_secret: &session_secret,
                    invite_key: user.invite_key.as_ref(),
                    enclave_key: enclaves[user.enclave].enclave_key,
                    identity_key: enclaves[user.enclave].identity_key,
                    rules: user.rules,
                };
                registrant.register(&mut entropy).expect("well formed")
            })
            .collect();
        Sample { users, enclaves, session_secret, manifest, manifest_hash, registrations }
    }

    pub(crate) fn session_seal(&self) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SessionSeal(KEYGEN_ID))
    }

    pub(crate) fn signing_seal(&self) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SigningSeal(SIGNING_ID))
    }

    pub(crate) fn sealed_manifest(&self) -> Blob {
        let context = Context::Manifest { keygen_id: KEYGEN_ID, manifest_hash: self.manifest_hash };
        self.session_seal()
            .seal(&context, &self.manifest.encode(), &mut test_entropy(2))
            .expect("a manifest is small")
    }

    pub(crate) fn roster(&self) -> Roster {
        let seal_key = self.session_seal();
        let records = self.users.iter().zip(&self.registrations).map(|(user, registration)| {
            open_record(&seal_key, &self.manifest, self.manifest_hash, user.user_id, &registration.record)
                .expect("as registered")
        });
        Roster::assemble(self.manifest.clone(), self.manifest_hash, records.collect()).expect("complete")
    }

    /// A text for everybody, bytes for the subset under three tweaks, and 32 bytes that say nothing.
    pub(crate) fn intent(&self) -> Intent {
        let mut entropy = test_entropy(3);
        let mut item = |id: u8, origin: Origin| Item {
            item_id: ItemId([id; 16]),
            ..Item::of(origin, &mut entropy).expect("supported")
        };
        let text = item(1, Origin::Text("Pay 1 \u{20bf} to \"Zoë\"\n".into()));
        let mut bytes = item(2, Origin::Bytes(Blob(vec![0, 1, 2, 0xff])));
        bytes.subset = Some(SUBSET_ID);
        bytes.tweak = Some(vec![
            TweakStep::Plain(Hash([1; 32])),
            TweakStep::XOnly(Hash([2; 32])),
            TweakStep::Taproot { merkle_root: Some(Hash([3; 32])) },
        ]);
        let mut blind = Item { item_id: ItemId([3; 16]), ..text.clone() };
        (blind.origin, blind.message, blind.tweak) = (None, Message([0x6d; 32]), Some(Vec::new()));
        Intent {
            version: 1,
            salt: Salt(entropy.bytes().expect("never fails")),
            keygen_id: KEYGEN_ID,
            manifest_hash: self.manifest_hash,
            roster_hash: self.roster().roster_hash(),
            signing_id: SIGNING_ID,
            requester: self.users[0].user_id,
            created_at: CREATED_AT,
            expires_at: CREATED_AT + 3_600_000,
            items: vec![text, bytes, blind],
            psbts: Vec::new(),
        }
    }

    pub(crate) fn sealed_intent(&self) -> SealedIntent {
        let key = self.users[0].auth_key();
        self.intent().seal(&key, &self.signing_seal(), &mut test_entropy(4)).expect("small")
    }

    pub(crate) fn verified_intent(&self) -> VerifiedIntent {
        VerifiedIntent::open(&self.roster(), SIGNING_ID, &self.signing_seal(), &self.sealed_intent())
            .expect("well formed")
    }

    /// Of users 1 and 2; the coordinator asks.
    pub(crate) fn approvals(&self) -> Vec<Approval> {
        let digest = self.sealed_intent().digest;
        let mut entropy = test_entropy(5);
        self.users[1..]
            .iter()
            .map(|user| {
                Approval::sign(SIGNING_ID, user.user_id, digest, true, &user.auth_key(), &mut entropy)
                    .expect("never fails")
            })
            .collect()
    }
}
