//! The manifest: what the coordinator wants a keygen to be. Sealed; its hash is bound everywhere.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::tweak::{TweakStep, steps};
use super::{VERSION, check_public_key, check_version};
use crate::bytes::{Hash, PublicKey, Salt, XOnlyKey};
use crate::crypto::auth;
use crate::crypto::hash::{Tag, tagged_hash};
use crate::id::{KeygenId, SubsetId, UserId};
use crate::limits::{
    ITEMS_MAX, MANIFEST_BYTES_MAX, NAME_BYTES_MAX, PARTICIPANTS_MAX, PARTICIPANTS_MIN,
    SUBSET_MEMBERS_SUM_MAX, SUBSETS_MAX,
};
use crate::refusal::Code;
use crate::strict;

/// What the coordinator wants a keygen to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u64,
    /// Keeps the hash from being guessed at.
    pub salt: Salt,
    /// The session.
    pub keygen_id: KeygenId,
    /// Who made this, pinned.
    pub coordinator: Coordinator,
    /// Everybody, the coordinator included.
    pub participants: Vec<Participant>,
    /// Groups that can sign without the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// For items that do not say their own; empty for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_tweak: Vec<TweakStep>,
    /// Who may request signatures.
    pub requesters: Requesters,
    /// Bounds on intents.
    pub limits: ManifestLimits,
    /// Milliseconds since 1970.
    pub created_at: u64,
    /// When signing ends for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
}

/// The pinned coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordinator {
    /// Its place among the participants.
    pub user_id: UserId,
    /// Its signing key.
    pub signing_key: PublicKey,
    /// Its auth key in this keygen.
    pub auth_key: XOnlyKey,
}

/// One participant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// Fresh for this keygen.
    pub user_id: UserId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the participant's record has to be co-signed by.
    pub pin: Pin,
}

/// How a participant is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pin {
    /// By its signing key, checked out of band: the strong way.
    SigningKey(PublicKey),
    /// By a key that came with its invite: whoever got the invite.
    InviteKey(XOnlyKey),
}

/// A group that can sign without the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subset {
    /// Its name.
    pub subset_id: SubsetId,
    /// At least two participants.
    pub members: Vec<UserId>,
}

/// Who may request signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requesters {
    /// The coordinator alone.
    Coordinator,
    /// Any participant, for items that it signs itself, with the consent of every signer.
    AnyParticipant,
}

/// Bounds that a manifest sets on intents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestLimits {
    /// Items of one intent, at most [`ITEMS_MAX`].
    pub items_max: u64,
}

impl Default for ManifestLimits {
    fn default() -> Self {
        ManifestLimits { items_max: ITEMS_MAX as u64 }
    }
}

impl Manifest {
    /// The exact bytes, to be hashed and sealed.
    pub fn encode(&self) -> Vec<u8> {
        strict::to_json(self)
    }

    /// The hash of a manifest's exact bytes.
    pub fn hash(bytes: &[u8]) -> Hash {
        tagged_hash(Tag::Manifest, &[bytes])
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`Code`], one for each reason.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, Code> {
        let manifest: Manifest = strict::from_json(bytes, MANIFEST_BYTES_MAX)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks everything that a manifest says against itself.
    ///
    /// # Errors
    /// [`Code`], one for each reason.
    pub fn check(&self) -> Result<(), Code> {
        check_version(self.version)?;
        let users = self.check_participants()?;
        self.check_subsets(&users)?;
        steps(&self.default_tweak)?;
        if self.limits.items_max == 0 || self.limits.items_max > ITEMS_MAX as u64 {
            return Err(Code::BadItems);
        }
        if self.expires_at.is_some_and(|expires_at| expires_at <= self.created_at) {
            return Err(Code::BadTimes);
        }
        Ok(())
    }

    fn check_participants(&self) -> Result<BTreeSet<UserId>, Code> {
        if self.participants.len() < PARTICIPANTS_MIN {
            return Err(Code::TooFewParticipants);
        }
        if self.participants.len() > PARTICIPANTS_MAX {
            return Err(Code::TooManyParticipants);
        }
        let mut users = BTreeSet::new();
        let mut pins = BTreeSet::new();
        for participant in &self.participants {
            if !users.insert(participant.user_id) {
                return Err(Code::DuplicateUser);
            }
            let pinned_x = match &participant.pin {
                Pin::SigningKey(key) => {
                    check_public_key(key)?;
                    auth::x_only(key)
                }
                Pin::InviteKey(key) if auth::is_x_only_key(key) => *key,
                Pin::InviteKey(_) => return Err(Code::NotOnCurve),
            };
            if !pins.insert(pinned_x) {
                return Err(Code::DuplicateKey);
            }
            if participant.name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
                return Err(Code::BadName);
            }
        }
        let coordinator =
            self.participant(self.coordinator.user_id).ok_or(Code::CoordinatorNotParticipant)?;
        if coordinator.pin != Pin::SigningKey(self.coordinator.signing_key) {
            return Err(Code::PinMismatch);
        }
        if !auth::is_x_only_key(&self.coordinator.auth_key) {
            return Err(Code::NotOnCurve);
        }
        Ok(users)
    }

    fn check_subsets(&self, users: &BTreeSet<UserId>) -> Result<(), Code> {
        let mut ids = BTreeSet::new();
        let mut members_sum = 0;
        for subset in &self.subsets {
            let members: BTreeSet<_> = subset.members.iter().collect();
            let well_formed = members.len() == subset.members.len()
                && members.len() >= PARTICIPANTS_MIN
                && members.iter().all(|member| users.contains(member));
            if !well_formed || !ids.insert(subset.subset_id) {
                return Err(Code::BadSubset);
            }
            members_sum += members.len();
        }
        if self.subsets.len() > SUBSETS_MAX || members_sum > SUBSET_MEMBERS_SUM_MAX {
            return Err(Code::BadSubset);
        }
        Ok(())
    }

    /// The participant with this id.
    pub fn participant(&self, user_id: UserId) -> Option<&Participant> {
        self.participants.iter().find(|participant| participant.user_id == user_id)
    }

    /// The subset with this id.
    pub fn subset(&self, subset_id: SubsetId) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.subset_id == subset_id)
    }

    /// A manifest without subsets, tweak or expiry, to be filled in further.
    pub fn new(
        keygen_id: KeygenId,
        salt: Salt,
        coordinator: Coordinator,
        participants: Vec<Participant>,
        created_at: u64,
    ) -> Manifest {
        Manifest {
            version: VERSION,
            salt,
            keygen_id,
            coordinator,
            participants,
            subsets: Vec::new(),
            default_tweak: Vec::new(),
            requesters: Requesters::Coordinator,
            limits: ManifestLimits::default(),
            created_at,
            expires_at: None,
        }
    }
}
