//! The intent: what a requester wants signed. Sealed; its digest is what everybody signs and approves.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::manifest::Requesters;
use super::roster::Roster;
use super::tweak::{TweakStep, steps};
use super::{Signed, check_version, decode_signed};
use crate::bytes::{Blob, Hash, Message, PublicKey, Salt, Signature};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::hash::{Tag, sha256, tagged_hash};
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::{ItemId, KeygenId, SigningId, SubsetId, UserId};
use crate::limits::{INTENT_BYTES_MAX, INTENT_LIFETIME_MAX_MS, NONCES_SENT_MAX, SHARES_MAX, SKEW_MS};
use crate::refusal::Code;
use crate::strict;

/// What a requester wants signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// [`super::VERSION`].
    pub version: u64,
    /// Keeps the digest from being guessed at.
    pub salt: Salt,
    /// The keygen session.
    pub keygen_id: KeygenId,
    /// Its manifest.
    pub manifest_hash: Hash,
    /// Its roster.
    pub roster_hash: Hash,
    /// The signing session.
    pub signing_id: SigningId,
    /// Who asks.
    pub requester: UserId,
    /// Milliseconds since 1970.
    pub created_at: u64,
    /// Milliseconds since 1970; from then on nothing is signed.
    pub expires_at: u64,
    /// What to sign.
    pub items: Vec<Item>,
    /// PSBTs that origins refer to, each once. Defined; not supported yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub psbts: Vec<Blob>,
}

/// One message to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Fresh for this intent.
    pub item_id: ItemId,
    /// The 32 bytes that BIP-340 verifies.
    pub message: Message,
    /// What these bytes are; absent for blind signing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Who signs; absent for everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<SubsetId>,
    /// Absent for the manifest's default; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tweak: Option<Vec<TweakStep>>,
    /// Adaptor points. Defined; not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptor: Option<Adaptor>,
}

/// What a message is, so that people can read it and enclaves can compute it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// The tagged hash `KeyMeld/text/v1` of a text.
    Text(String),
    /// The SHA-256 of bytes.
    Bytes(Blob),
    /// An input of one of the intent's PSBTs. Defined; not supported yet.
    Psbt {
        /// Which PSBT.
        index: u64,
        /// Which input of it.
        input: u64,
        /// The leaf, for a script path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leaf_hash: Option<Hash>,
    },
}

/// Adaptor points of an item. Defined; not supported yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Adaptor {
    /// All secrets complete the signature together.
    And(Vec<PublicKey>),
    /// Any one secret completes a signature.
    Or(Vec<PublicKey>),
}

/// The requester's signature on an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentSignatures {
    /// By the requester's auth key.
    pub requester: Signature,
}

impl Origin {
    /// The message that this origin gives.
    ///
    /// # Errors
    /// [`Code::OriginForbidden`] for bytes that are another protocol's tagged hash, [`Code::Unsupported`].
    pub fn message(&self) -> Result<Message, Code> {
        match self {
            Origin::Text(text) => Ok(Message(tagged_hash(Tag::Text, &[text.as_bytes()]).0)),
            // SHA256(tag hash || tag hash || ...) is a BIP-340 tagged hash, a BIP-341 sighash for one.
            Origin::Bytes(bytes) if bytes.0.len() >= 64 && bytes.0[..32] == bytes.0[32..64] => {
                Err(Code::OriginForbidden)
            }
            Origin::Bytes(bytes) => Ok(Message(sha256(&bytes.0).0)),
            Origin::Psbt { .. } => Err(Code::Unsupported),
        }
    }
}

impl Item {
    /// An item whose message follows from what it is.
    ///
    /// # Errors
    /// As [`Origin::message`], and [`Code::EntropyFailed`].
    pub fn of(origin: Origin, entropy: &mut Entropy) -> Result<Item, Code> {
        let message = origin.message()?;
        Ok(Item { origin: Some(origin), ..Item::blind(message, entropy)? })
    }

    /// An item that does not say what its message is.
    ///
    /// # Errors
    /// [`Code::EntropyFailed`].
    pub fn blind(message: Message, entropy: &mut Entropy) -> Result<Item, Code> {
        let item_id = ItemId::random(entropy)?;
        Ok(Item { item_id, message, origin: None, subset: None, tweak: None, adaptor: None })
    }

    fn check(&self) -> Result<(), Code> {
        if self.adaptor.is_some() {
            return Err(Code::Unsupported);
        }
        if let Some(list) = &self.tweak {
            steps(list)?;
        }
        match &self.origin {
            Some(origin) if origin.message()? != self.message => Err(Code::OriginMismatch),
            Some(_) | None => Ok(()),
        }
    }
}

/// An intent as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedIntent {
    /// The blob.
    pub sealed: Blob,
    /// The digest, in the clear: it is salted.
    pub digest: Hash,
}

/// An intent that was opened and verified against a roster, apart from the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedIntent {
    intent: Intent,
    digest: Hash,
}

impl Intent {
    /// Signs and seals the intent.
    ///
    /// # Errors
    /// [`Code`]: a part is not supported, it is too large, or no entropy.
    pub fn seal(
        &self,
        requester: &AuthKey,
        seal_key: &SealKey,
        entropy: &mut Entropy,
    ) -> Result<SealedIntent, Code> {
        let body = strict::to_json(self);
        if body.len() > INTENT_BYTES_MAX {
            return Err(Code::TooLarge);
        }
        let digest = tagged_hash(Tag::Intent, &[&body]);
        let signature = requester.sign(Tag::Intent, &[&body], entropy)?;
        let signed = Signed { body: Blob(body), signatures: IntentSignatures { requester: signature } };
        let context = Context::Intent { keygen_id: self.keygen_id, signing_id: self.signing_id, digest };
        Ok(SealedIntent { sealed: seal_key.seal(&context, &strict::to_json(&signed), entropy)?, digest })
    }
}

impl VerifiedIntent {
    /// Opens an intent and verifies all of it that does not depend on the time or on a single user:
    /// signature, session, roster, items, origins, life time.
    ///
    /// # Errors
    /// [`Code`], one for each reason.
    pub fn open(
        roster: &Roster,
        signing_id: SigningId,
        seal_key: &SealKey,
        sealed: &SealedIntent,
    ) -> Result<VerifiedIntent, Code> {
        let keygen_id = roster.manifest().keygen_id;
        let context = Context::Intent { keygen_id, signing_id, digest: sealed.digest };
        let plaintext = seal_key.open(&context, &sealed.sealed)?;
        let signed: Signed<IntentSignatures> = decode_signed(&plaintext, INTENT_BYTES_MAX)?;
        let digest = tagged_hash(Tag::Intent, &[&signed.body.0]);
        let intent: Intent = strict::from_json(&signed.body.0, INTENT_BYTES_MAX)?;
        check_version(intent.version)?;
        if digest != sealed.digest || intent.signing_id != signing_id || intent.keygen_id != keygen_id {
            return Err(Code::IntentMismatch);
        }
        if intent.manifest_hash != roster.manifest_hash() {
            return Err(Code::ManifestHashMismatch);
        }
        if intent.roster_hash != roster.roster_hash() {
            return Err(Code::RosterHashMismatch);
        }
        let requester = roster.record(intent.requester).ok_or(Code::UserNotInRoster)?;
        if !auth::verify(&requester.auth_key, Tag::Intent, &[&signed.body.0], &signed.signatures.requester) {
            return Err(Code::IntentUnsigned);
        }
        let verified = VerifiedIntent { intent, digest };
        verified.check_items(roster)?;
        verified.check_life(roster)?;
        Ok(verified)
    }

    fn check_items(&self, roster: &Roster) -> Result<(), Code> {
        let items = &self.intent.items;
        if items.is_empty() || items.len() as u64 > roster.manifest().limits.items_max {
            return Err(Code::BadItems);
        }
        if !self.intent.psbts.is_empty() {
            return Err(Code::Unsupported);
        }
        let mut ids = BTreeSet::new();
        let mut shares = 0;
        let mut shares_of: BTreeMap<PublicKey, usize> = BTreeMap::new();
        for item in items {
            if !ids.insert(item.item_id) {
                return Err(Code::BadItems);
            }
            item.check()?;
            let signers = roster.signers(item.subset)?;
            let requested_by_signer = signers.iter().any(|signer| signer.user_id == self.intent.requester);
            match roster.manifest().requesters {
                _ if self.intent.requester == roster.manifest().coordinator.user_id => {}
                Requesters::AnyParticipant if requested_by_signer => {}
                Requesters::AnyParticipant | Requesters::Coordinator => {
                    return Err(Code::RequesterNotAllowed);
                }
            }
            shares += signers.len();
            if shares > SHARES_MAX {
                return Err(Code::BadItems);
            }
            for signer in signers {
                *shares_of.entry(signer.enclave_key).or_default() += 1;
            }
        }
        // An enclave seals its nonces for each peer by itself.
        let peers = shares_of.len() - 1;
        let sent_max = shares_of.values().max().map_or(0, |shares| shares * peers);
        if sent_max > NONCES_SENT_MAX { Err(Code::BadItems) } else { Ok(()) }
    }

    fn check_life(&self, roster: &Roster) -> Result<(), Code> {
        let Intent { created_at, expires_at, .. } = self.intent;
        if expires_at <= created_at {
            return Err(Code::BadTimes);
        }
        let manifest_end = roster.manifest().expires_at.unwrap_or(u64::MAX);
        if expires_at - created_at > INTENT_LIFETIME_MAX_MS || expires_at > manifest_end {
            return Err(Code::IntentLifetime);
        }
        for item in &self.intent.items {
            for signer in roster.signers(item.subset)? {
                if expires_at > signer.rules.valid_until {
                    return Err(Code::IntentLifetime);
                }
            }
        }
        Ok(())
    }

    /// Checks the time; to be repeated before every step.
    ///
    /// # Errors
    /// [`Code::IntentNotYetValid`], [`Code::IntentExpired`].
    pub fn check_time(&self, now_unix_ms: u64) -> Result<(), Code> {
        if self.intent.created_at > now_unix_ms.saturating_add(SKEW_MS) {
            Err(Code::IntentNotYetValid)
        } else if now_unix_ms >= self.intent.expires_at {
            Err(Code::IntentExpired)
        } else {
            Ok(())
        }
    }

    /// What is asked for.
    pub fn intent(&self) -> &Intent {
        &self.intent
    }

    /// Its digest.
    pub fn digest(&self) -> Hash {
        self.digest
    }
}
