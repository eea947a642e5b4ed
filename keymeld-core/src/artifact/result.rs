//! The result of a signing session: sealed for the participants, signed by the aggregator.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::certificate::IdentitySignature;
use super::intent::VerifiedIntent;
use super::roster::{EnclaveKeys, Roster};
use super::{Signed, VERSION, check_version, decode_signed};
use crate::bytes::{Blob, Hash, PublicKey, Signature};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::hash::Tag;
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::{AttemptId, ItemId, KeygenId, SigningId, UserId};
use crate::limits::RESULT_BYTES_MAX;
use crate::musig::round;
use crate::refusal::{Code, Refusal};
use crate::strict;

/// What came of an intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningResult {
    /// [`VERSION`].
    pub version: u64,
    /// The keygen session.
    pub keygen_id: KeygenId,
    /// Its roster.
    pub roster_hash: Hash,
    /// The signing session.
    pub signing_id: SigningId,
    /// The intent.
    pub intent_digest: Hash,
    /// The run of the rounds that this came of.
    pub attempt: AttemptId,
    /// The aggregator's ECIES key.
    pub aggregator: PublicKey,
    /// One for each item, in the intent's order.
    pub items: Vec<ItemResult>,
}

/// What came of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemResult {
    /// The item.
    pub item_id: ItemId,
    /// Its signature or why there is none.
    pub outcome: Outcome,
}

/// A signature or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// A BIP-340 signature.
    Signature(Signature),
    /// A failure.
    Error {
        /// The code's name.
        code: String,
        /// Who is to blame, where that is certain.
        culprits: Vec<UserId>,
    },
}

/// A final signature that was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedSignature {
    /// The item.
    pub item_id: ItemId,
    /// The key that it verifies under, tweaks included.
    pub output_key: crate::bytes::XOnlyKey,
    /// What was signed.
    pub message: crate::bytes::Message,
    /// The signature.
    pub signature: Signature,
}

/// An item's verified signature, or the refusal that the aggregator reported.
pub type VerifiedOutcome = Result<VerifiedSignature, Refusal>;

impl SigningResult {
    /// A result without items yet.
    pub fn new(roster: &Roster, intent: &VerifiedIntent, attempt: AttemptId, aggregator: PublicKey) -> Self {
        SigningResult {
            version: VERSION,
            keygen_id: roster.manifest().keygen_id,
            roster_hash: roster.roster_hash(),
            signing_id: intent.intent().signing_id,
            intent_digest: intent.digest(),
            attempt,
            aggregator,
            items: Vec::with_capacity(intent.intent().items.len()),
        }
    }

    fn context(keygen_id: KeygenId, signing_id: SigningId, digest: Hash) -> Context {
        Context::Result { keygen_id, signing_id, digest }
    }

    /// Signs and seals the result.
    ///
    /// # Errors
    /// [`Code::EntropyFailed`], [`Code::TooLarge`].
    pub fn seal(&self, identity: &AuthKey, seal_key: &SealKey, entropy: &mut Entropy) -> Result<Blob, Code> {
        let body = strict::to_json(self);
        if body.len() > RESULT_BYTES_MAX {
            return Err(Code::TooLarge);
        }
        let signature = identity.sign(Tag::Result, &[&body], entropy)?;
        let signed = Signed { body: Blob(body), signatures: IdentitySignature { identity: signature } };
        let context = SigningResult::context(self.keygen_id, self.signing_id, self.intent_digest);
        Ok(seal_key.seal(&context, &strict::to_json(&signed), entropy)?)
    }

    /// Opens a result and verifies all of it: the aggregator's signature, that it answers this intent item
    /// by item, and every final signature against the key computed again.
    ///
    /// # Errors
    /// [`Code::SealUnreadable`], [`Code::ResultInvalid`].
    pub fn open(
        roster: &Roster,
        intent: &VerifiedIntent,
        seal_key: &SealKey,
        sealed: &Blob,
    ) -> Result<Vec<VerifiedOutcome>, Code> {
        let Intent { keygen_id, signing_id, digest } = Intent::of(intent);
        let plaintext = seal_key.open(&SigningResult::context(keygen_id, signing_id, digest), sealed)?;
        let signed: Signed<IdentitySignature> = decode_signed(&plaintext, RESULT_BYTES_MAX)?;
        let result: SigningResult = strict::from_json(&signed.body.0, RESULT_BYTES_MAX)?;
        check_version(result.version)?;
        let EnclaveKeys { identity_key, .. } = roster
            .enclaves()
            .into_iter()
            .find(|enclave| enclave.enclave_key == result.aggregator)
            .ok_or(Code::ResultInvalid)?;
        let expected = SigningResult::new(roster, intent, result.attempt, result.aggregator);
        let bound = SigningResult { items: Vec::new(), ..result.clone() } == expected
            && result.items.len() == intent.intent().items.len()
            && auth::verify(&identity_key, Tag::Result, &[&signed.body.0], &signed.signatures.identity);
        if !bound {
            return Err(Code::ResultInvalid);
        }
        result.verify_items(roster, intent)
    }

    fn verify_items(&self, roster: &Roster, intent: &VerifiedIntent) -> Result<Vec<VerifiedOutcome>, Code> {
        let mut keys = alloc::collections::BTreeMap::new();
        let mut outcomes = Vec::with_capacity(self.items.len());
        for (asked, answered) in intent.intent().items.iter().zip(&self.items) {
            if asked.item_id != answered.item_id {
                return Err(Code::ResultInvalid);
            }
            outcomes.push(match &answered.outcome {
                Outcome::Error { code, culprits } => {
                    let code = Code::from_name(code).ok_or(Code::ResultInvalid)?;
                    Err(Refusal::blaming(code, culprits.clone()))
                }
                Outcome::Signature(signature) => {
                    let tweak = roster.tweak(asked.tweak.as_ref());
                    let output_key = match keys.get(&(asked.subset, tweak)) {
                        Some(key) => *key,
                        None => {
                            let key = roster.key_agg(asked.subset, tweak)?.output_key();
                            keys.insert((asked.subset, tweak), key);
                            key
                        }
                    };
                    if !round::verify(&output_key, &asked.message.0, &signature.0) {
                        return Err(Code::ResultInvalid);
                    }
                    Ok(VerifiedSignature {
                        item_id: asked.item_id,
                        output_key: crate::bytes::XOnlyKey(output_key),
                        message: asked.message,
                        signature: *signature,
                    })
                }
            });
        }
        Ok(outcomes)
    }
}

/// What binds a result to its intent.
struct Intent {
    keygen_id: KeygenId,
    signing_id: SigningId,
    digest: Hash,
}

impl Intent {
    fn of(intent: &VerifiedIntent) -> Intent {
        let asked = intent.intent();
        Intent { keygen_id: asked.keygen_id, signing_id: asked.signing_id, digest: intent.digest() }
    }
}
