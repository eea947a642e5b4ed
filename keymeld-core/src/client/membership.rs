//! What a participant keeps of one keygen: its file. It is a secret; the signing key is not in it.

use alloc::string::String;
use alloc::vec::Vec;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::api::rest::{InitRequest, RegisterRequest, ReserveRequest, SlotRequest, SubsetHint};
use crate::artifact::VERSION;
use crate::artifact::invite::Invite;
use crate::artifact::manifest::{
    Coordinator, Manifest, ManifestLimits, Participant, Pin, Requesters, Subset,
};
use crate::artifact::registration::{Rules, user_auth_key};
use crate::artifact::tweak::TweakStep;
use crate::bytes::{Blob, Hash, PublicKey, Salt, XOnlyKey};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::derive::{Purpose, derive};
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::{EnclaveId, KeygenId, SubsetId, UserId};
use crate::limits::{INVITE_BYTES_MAX, MANIFEST_BYTES_MAX, PARTICIPANTS_MAX};
use crate::refusal::Code;
use crate::secret::{self, Secret};
use crate::strict;

/// The most bytes that a membership's file has.
pub const MEMBERSHIP_BYTES_MAX: usize = 4 * MANIFEST_BYTES_MAX + 2 * PARTICIPANTS_MAX * INVITE_BYTES_MAX;

/// What a coordinator decides about a new keygen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where invited participants find the gateway.
    pub gateway_url: String,
    /// The coordinator's own name, for people.
    pub name: Option<String>,
    /// Everybody else.
    pub invitees: Vec<Invitee>,
    /// Groups that can sign without the others, by place: 0 is the coordinator, 1 the first invitee.
    pub subsets: Vec<Vec<usize>>,
    /// For items that do not say their own; empty for none.
    pub default_tweak: Vec<TweakStep>,
    /// Who may request signatures.
    pub requesters: Requesters,
    /// Bounds on intents.
    pub limits: ManifestLimits,
    /// When signing ends for good, milliseconds since 1970.
    pub expires_at: Option<u64>,
    /// How long the keygen may take; `None` for the gateway's default.
    pub timeout_ms: Option<u64>,
    /// What the coordinator's own key may be used for.
    pub rules: Rules,
}

/// Another participant, as the coordinator knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invitee {
    /// For people.
    pub name: Option<String>,
    /// Its signing key, checked out of band; `None` to trust whoever gets the invite.
    pub signing_key: Option<PublicKey>,
}

impl Plan {
    /// A plan with nothing but participants.
    pub fn new(gateway_url: String, invitees: Vec<Invitee>, rules: Rules) -> Plan {
        Plan {
            gateway_url,
            name: None,
            invitees,
            subsets: Vec::new(),
            default_tweak: Vec::new(),
            requesters: Requesters::Coordinator,
            limits: ManifestLimits::default(),
            expires_at: None,
            timeout_ms: None,
            rules,
        }
    }
}

/// What a participant keeps of one keygen.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Membership {
    version: u64,
    pub(super) keygen_id: KeygenId,
    pub(super) user_id: UserId,
    pub(super) manifest_hash: Hash,
    pub(super) public_key: PublicKey,
    #[serde(with = "secret::hex")]
    session_secret: Secret<32>,
    #[serde(with = "secret::hex")]
    slot_key: Secret<32>,
    #[serde(default, with = "secret::hex::option", skip_serializing_if = "Option::is_none")]
    pub(super) invite_key: Option<Secret<32>>,
    pub(super) rules: Rules,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) coordination: Option<Coordination>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) registration: Option<Registered>,
}

/// What a coordinator sends, made once: only the same bytes are the same request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Coordination {
    pub(super) reserve: ReserveRequest,
    pub(super) init: InitRequest,
    pub(super) invites: Vec<Invite>,
    /// Whether the gateway has said that it has the manifest.
    pub(super) published: bool,
}

/// The registration, kept before it is sent, and only ever sent again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registered {
    pub(super) enclave_id: EnclaveId,
    pub(super) birth_time_ms: u64,
    pub(super) request: RegisterRequest,
}

impl Membership {
    /// A coordinator's, with everything that it will send before its own registration.
    pub(super) fn coordinator(
        key: &Secret<32>,
        plan: Plan,
        now_unix_ms: u64,
        entropy: &mut Entropy,
    ) -> Result<Membership, Code> {
        let keygen_id = KeygenId::random(entropy)?;
        let session_secret = Secret::random(entropy)?;
        let public_key = auth::public_key(key)?;
        let draft = Draft::new(keygen_id, key, &plan, now_unix_ms, entropy)?;
        let bytes = draft.manifest.encode();
        Manifest::decode(&bytes)?;
        let manifest_hash = Manifest::hash(&bytes);
        let context = Context::Manifest { keygen_id, manifest_hash };
        let seal_key = SealKey::derived(&session_secret, Purpose::SessionSeal(keygen_id));
        let subset_hint =
            |subset: &Subset| SubsetHint { subset_id: subset.subset_id, members: subset.members.clone() };
        let init = InitRequest {
            manifest_hash,
            manifest: seal_key.seal(&context, &bytes, entropy)?,
            subsets: draft.manifest.subsets.iter().map(subset_hint).collect(),
        };
        let own = draft.slots.first().ok_or(Code::TooFewParticipants)?;
        let mut slots = Vec::with_capacity(draft.slots.len());
        for slot in &draft.slots {
            let slot_key = AuthKey::new(&slot.slot_key)?.public();
            slots.push(SlotRequest { user_id: slot.user_id, slot_key });
        }
        let session_key = AuthKey::derived(&session_secret, Purpose::SessionAuth(keygen_id))?.public();
        let reserve = ReserveRequest {
            keygen_id,
            session_key,
            coordinator: own.user_id,
            slots,
            timeout_ms: plan.timeout_ms,
        };
        let (user_id, slot_key) = (own.user_id, Secret::copied_from(own.slot_key.expose()));
        let invite = |slot: SlotDraft| Invite {
            version: VERSION,
            gateway_url: plan.gateway_url.clone(),
            keygen_id,
            user_id: slot.user_id,
            manifest_hash,
            session_secret: Secret::copied_from(session_secret.expose()),
            slot_key: slot.slot_key,
            invite_key: slot.invite_key,
        };
        let invites: Vec<Invite> = draft.slots.into_iter().skip(1).map(invite).collect();
        if let Some(invite) = invites.first() {
            invite.encode()?;
        }
        let membership = Membership {
            version: VERSION,
            keygen_id,
            user_id,
            manifest_hash,
            public_key,
            session_secret,
            slot_key,
            invite_key: None,
            rules: plan.rules,
            coordination: Some(Coordination { reserve, init, invites, published: false }),
            registration: None,
        };
        Ok(membership)
    }

    /// An invited participant's.
    pub(super) fn invited(key: &Secret<32>, invite: Invite, rules: Rules) -> Result<Membership, Code> {
        let Invite { keygen_id, user_id, manifest_hash, session_secret, slot_key, invite_key, .. } = invite;
        Ok(Membership {
            version: VERSION,
            keygen_id,
            user_id,
            manifest_hash,
            public_key: auth::public_key(key)?,
            session_secret,
            slot_key,
            invite_key,
            rules,
            coordination: None,
            registration: None,
        })
    }

    /// Reads the file back; the key has to be the one that it was made with.
    pub(super) fn decode(key: &Secret<32>, bytes: &[u8]) -> Result<Membership, MembershipError> {
        let File { membership, tag } = File::<Membership>::read(bytes)?;
        if membership.public_key != auth::public_key(key).map_err(Code::from)? {
            return Err(MembershipError::AnotherKey);
        }
        let bytes = strict::to_secret_json(&membership, MEMBERSHIP_BYTES_MAX).map_err(Code::from)?;
        let keygen_id = membership.keygen_id;
        tag_of(key, keygen_id, &bytes).verify_slice(&tag.0).map_err(|_| MembershipError::Altered)?;
        Ok(membership)
    }

    /// The file: the membership and a tag under a key of its owner.
    pub(super) fn encode(&self, key: &Secret<32>) -> Result<Zeroizing<Vec<u8>>, Code> {
        let bytes = strict::to_secret_json(self, MEMBERSHIP_BYTES_MAX)?;
        let tag = Hash(tag_of(key, self.keygen_id, &bytes).finalize().into_bytes().into());
        Ok(strict::to_secret_json(&File { membership: self, tag }, MEMBERSHIP_BYTES_MAX)?)
    }

    pub(super) fn birth(&self) -> Option<(EnclaveId, u64)> {
        self.registration.as_ref().map(|own| (own.enclave_id, own.birth_time_ms))
    }

    pub(super) fn session_auth(&self) -> Result<AuthKey, Code> {
        Ok(AuthKey::derived(&self.session_secret, Purpose::SessionAuth(self.keygen_id))?)
    }

    pub(super) fn slot_auth(&self) -> Result<AuthKey, Code> {
        Ok(AuthKey::new(&self.slot_key)?)
    }

    pub(super) fn seal_key(&self, purpose: Purpose) -> SealKey {
        SealKey::derived(&self.session_secret, purpose)
    }

    pub(super) fn session_secret(&self) -> &Secret<32> {
        &self.session_secret
    }

    /// Opens the manifest, which has to be the one that was agreed to.
    pub(super) fn open_manifest(&self, sealed: &Blob) -> Result<Manifest, Code> {
        let Membership { keygen_id, manifest_hash, .. } = *self;
        let seal_key = self.seal_key(Purpose::SessionSeal(keygen_id));
        let plaintext = seal_key.open(&Context::Manifest { keygen_id, manifest_hash }, sealed)?;
        if Manifest::hash(&plaintext) != manifest_hash {
            return Err(Code::ManifestHashMismatch);
        }
        let manifest = Manifest::decode(&plaintext)?;
        if manifest.keygen_id == keygen_id { Ok(manifest) } else { Err(Code::ManifestHashMismatch) }
    }
}

/// The enclave that a kept membership's owner registered at, and when its keys were made, for
/// [`Config::newest_births`](super::Config::newest_births). Read without the owner's key, and so not proof
/// against alterations.
///
/// # Errors
/// [`MembershipError`].
pub fn birth_in(membership: &[u8]) -> Result<Option<(EnclaveId, u64)>, MembershipError> {
    Ok(File::<Membership>::read(membership)?.membership.birth())
}

/// Why bytes are not the membership of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// It was made with another signing key.
    #[error("the membership is of another signing key")]
    AnotherKey,
    /// Its owner did not write these bytes.
    #[error("the membership was altered")]
    Altered,
    /// Not a membership at all, or of another version.
    #[error("not a membership: {0}")]
    Unreadable(#[from] Code),
}

/// A membership as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<M> {
    membership: M,
    /// HMAC-SHA256 of the membership's canonical bytes.
    tag: Hash,
}

impl File<Membership> {
    fn read(bytes: &[u8]) -> Result<Self, Code> {
        let file: Self = strict::from_secret_json(bytes, MEMBERSHIP_BYTES_MAX)?;
        if file.membership.version == VERSION { Ok(file) } else { Err(Code::UnsupportedVersion) }
    }
}

fn tag_of(key: &Secret<32>, keygen_id: KeygenId, bytes: &[u8]) -> Hmac<Sha256> {
    let tag_key = derive(key, Purpose::MembershipTag(keygen_id));
    let mut tag = Hmac::<Sha256>::new_from_slice(tag_key.expose()).expect("HMAC takes keys of any length");
    tag.update(bytes);
    tag
}

/// A slot's secrets, before they are handed out.
struct SlotDraft {
    user_id: UserId,
    slot_key: Secret<32>,
    invite_key: Option<Secret<32>>,
}

struct Draft {
    manifest: Manifest,
    slots: Vec<SlotDraft>,
}

impl Draft {
    fn new(
        keygen_id: KeygenId,
        key: &Secret<32>,
        plan: &Plan,
        now_unix_ms: u64,
        entropy: &mut Entropy,
    ) -> Result<Draft, Code> {
        if plan.invitees.len() >= PARTICIPANTS_MAX {
            return Err(Code::TooManyParticipants);
        }
        let signing_key = auth::public_key(key)?;
        let own = Invitee { name: plan.name.clone(), signing_key: Some(signing_key) };
        let mut participants = Vec::new();
        let mut slots = Vec::new();
        for Invitee { name, signing_key } in core::iter::once(&own).chain(&plan.invitees) {
            let user_id = UserId::random(entropy)?;
            let (pin, invite_key) = pin(*signing_key, entropy)?;
            participants.push(Participant { user_id, name: name.clone(), pin });
            slots.push(SlotDraft { user_id, slot_key: Secret::random(entropy)?, invite_key });
        }
        let mut subsets = Vec::new();
        for places in &plan.subsets {
            let member = |place: &usize| participants.get(*place).map(|participant| participant.user_id);
            let members = places.iter().map(member).collect::<Option<Vec<_>>>().ok_or(Code::BadSubset)?;
            subsets.push(Subset { subset_id: SubsetId::random(entropy)?, members });
        }
        let auth_key: XOnlyKey = user_auth_key(key, keygen_id)?.public();
        let coordinator = Coordinator { user_id: slots[0].user_id, signing_key, auth_key };
        let salt = Salt(entropy.bytes()?);
        let manifest = Manifest {
            subsets,
            default_tweak: plan.default_tweak.clone(),
            requesters: plan.requesters,
            limits: plan.limits,
            expires_at: plan.expires_at,
            ..Manifest::new(keygen_id, salt, coordinator, participants, now_unix_ms)
        };
        Ok(Draft { manifest, slots })
    }
}

fn pin(signing_key: Option<PublicKey>, entropy: &mut Entropy) -> Result<(Pin, Option<Secret<32>>), Code> {
    match signing_key {
        Some(key) => Ok((Pin::SigningKey(key), None)),
        None => {
            let secret = Secret::random(entropy)?;
            Ok((Pin::InviteKey(AuthKey::new(&secret)?.public()), Some(secret)))
        }
    }
}
