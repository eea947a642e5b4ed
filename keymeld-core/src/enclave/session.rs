//! A keygen session as an enclave holds it: opened from ciphertext, certified, forgotten at any time.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::Enclave;
use super::identity::Identity;
use crate::artifact::certificate::Certificate;
use crate::artifact::manifest::Manifest;
use crate::artifact::registration::{
    ApprovalRule, OpenedEnvelope, VerifiedRecord, open_envelope, open_record,
};
use crate::artifact::roster::Roster;
use crate::bytes::{Blob, Hash, PublicKey};
use crate::crypto::derive::Purpose;
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::{KeygenId, SigningId, UserId};
use crate::limits::PARTICIPANTS_MAX;
use crate::link::message::{CheckRegistration, KeygenOpened, OpenKeygen, Reply};
use crate::refusal::{Code, Refusal};
use crate::secret::Secret;
use crate::time::Time;

/// A keygen session with the private keys that this enclave holds of it.
pub(super) struct OpenSession {
    pub(super) roster: Arc<Roster>,
    session_secret: Secret<32>,
    keys: BTreeMap<UserId, Secret<32>>,
}

impl fmt::Debug for OpenSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenSession({} keys)", self.keys.len())
    }
}

impl OpenSession {
    /// The private key of one of this enclave's users.
    pub(super) fn key(&self, user_id: UserId) -> Option<&Secret<32>> {
        self.keys.get(&user_id)
    }

    /// The key that a signing session's intent and result are sealed under.
    pub(super) fn signing_seal(&self, signing_id: SigningId) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SigningSeal(signing_id))
    }
}

fn open_manifest(
    seal_key: &SealKey,
    keygen_id: KeygenId,
    manifest_hash: Hash,
    sealed: &Blob,
) -> Result<Manifest, Code> {
    let bytes = seal_key.open(&Context::Manifest { keygen_id, manifest_hash }, sealed)?;
    if Manifest::hash(&bytes) != manifest_hash {
        return Err(Code::ManifestHashMismatch);
    }
    let manifest = Manifest::decode(&bytes)?;
    if manifest.keygen_id == keygen_id { Ok(manifest) } else { Err(Code::ManifestHashMismatch) }
}

/// Checks that a record names this enclave by both its keys, or by neither.
fn names_enclave(identity: &Identity, verified: &VerifiedRecord) -> Result<bool, Code> {
    let own = identity.keys();
    let by_enclave_key = verified.record.enclave_key == own.enclave_key;
    let by_identity_key = verified.record.identity_key == own.identity_key;
    if by_enclave_key == by_identity_key { Ok(by_enclave_key) } else { Err(Code::EnclaveKeysMismatch) }
}

impl Enclave {
    /// Checks one registration by itself, so that its faults come back to whoever made it.
    pub(super) fn check_registration(&self, now: Time, check: &CheckRegistration) -> Result<Reply, Refusal> {
        let CheckRegistration { enclave_key, keygen_id, manifest_hash, user_id, .. } = check;
        let identity = self.identity(enclave_key)?;
        let opened = open_envelope(
            identity.ecies(),
            enclave_key,
            *keygen_id,
            *manifest_hash,
            *user_id,
            &check.envelope,
        )?;
        let seal_key = SealKey::derived(&opened.session_secret, Purpose::SessionSeal(*keygen_id));
        let manifest = open_manifest(&seal_key, *keygen_id, *manifest_hash, &check.manifest)?;
        let verified = open_record(&seal_key, &manifest, *manifest_hash, *user_id, &check.record)?;
        if !names_enclave(&identity, &verified)? {
            return Err(Code::WrongEnclaveKey.into());
        }
        opened.check_record(&verified.record)?;
        let approval_required = opened.rules.approval == ApprovalRule::Required;
        if check.auth_key != verified.record.auth_key || check.approval_required != approval_required {
            return Err(Code::RecordMismatch.into());
        }
        if opened.rules.valid_until <= self.unix_ms(now)? {
            return Err(Code::RegistrationExpired.into());
        }
        Ok(Reply::RegistrationChecked)
    }

    /// Opens a session and certifies its roster. Nothing leaves before everything is checked.
    pub(super) fn open_keygen(&mut self, open: &OpenKeygen, entropy: &mut Entropy) -> Result<Reply, Refusal> {
        let OpenKeygen { enclave_key, keygen_id, manifest_hash, .. } = *open;
        if open.records.len() > PARTICIPANTS_MAX || open.envelopes.len() > PARTICIPANTS_MAX {
            return Err(Code::TooManyParticipants.into());
        }
        let identity = self.identity(&enclave_key)?;
        let envelopes = open_envelopes(&identity, open)?;
        let session_secret = one_secret(&envelopes)?;
        let seal_key = SealKey::derived(&session_secret, Purpose::SessionSeal(keygen_id));
        let manifest = open_manifest(&seal_key, keygen_id, manifest_hash, &open.manifest)?;
        let mut records = Vec::with_capacity(open.records.len());
        for sealed in &open.records {
            // Nobody is blamed: whoever knows the session secret could have sealed something for this user.
            records.push(open_record(&seal_key, &manifest, manifest_hash, sealed.user_id, &sealed.blob)?);
        }
        check_own(&identity, &envelopes, &records)?;
        let roster = Arc::new(Roster::assemble(manifest, manifest_hash, records)?);
        let certificate =
            Certificate::of(&roster, identity.keys()).seal(identity.signer(), &seal_key, entropy)?;
        let keys = envelopes.into_iter().map(|envelope| (envelope.user_id, envelope.private_key)).collect();
        let roster_hash = roster.roster_hash();
        let weight = roster.records().len();
        let session = OpenSession { roster, session_secret, keys };
        self.sessions.insert((keygen_id, enclave_key), weight, session);
        Ok(Reply::KeygenOpened(KeygenOpened { roster_hash, certificate }))
    }

    pub(super) fn session(
        &mut self,
        keygen_id: KeygenId,
        enclave_key: PublicKey,
    ) -> Result<&mut OpenSession, Code> {
        self.sessions.get_mut(&(keygen_id, enclave_key)).ok_or(Code::UnknownSession)
    }
}

fn open_envelopes(identity: &Identity, open: &OpenKeygen) -> Result<Vec<OpenedEnvelope>, Refusal> {
    let mut users = BTreeSet::new();
    let mut envelopes = Vec::with_capacity(open.envelopes.len());
    for sealed in &open.envelopes {
        let user_id = sealed.user_id;
        if !users.insert(user_id) {
            return Err(Code::DuplicateUser.into());
        }
        // Nobody is blamed here or below: anybody can encrypt to an enclave in any user's name.
        envelopes.push(open_envelope(
            identity.ecies(),
            &open.enclave_key,
            open.keygen_id,
            open.manifest_hash,
            user_id,
            &sealed.blob,
        )?);
    }
    Ok(envelopes)
}

/// All envelopes of a session at one enclave hold the same secret, or none is used.
fn one_secret(envelopes: &[OpenedEnvelope]) -> Result<Secret<32>, Refusal> {
    let first = &envelopes.first().ok_or(Code::EnvelopeMissing)?.session_secret;
    if envelopes.iter().all(|envelope| envelope.session_secret == *first) {
        Ok(Secret::copied_from(first.expose()))
    } else {
        Err(Code::SessionSecretsDiffer.into())
    }
}

/// Every record that names this enclave has its envelope here and agrees with it, and the reverse.
fn check_own(
    identity: &Identity,
    envelopes: &[OpenedEnvelope],
    records: &[VerifiedRecord],
) -> Result<(), Refusal> {
    let mut matched = 0;
    for verified in records {
        let user_id = verified.record.user_id;
        // The record itself is signed by its user.
        let blame = |code| Refusal::blaming(code, [user_id].into());
        if names_enclave(identity, verified).map_err(blame)? {
            let envelope = envelopes.iter().find(|envelope| envelope.user_id == user_id);
            envelope.ok_or(Code::EnvelopeMissing)?.check_record(&verified.record)?;
            matched += 1;
        }
    }
    if matched == envelopes.len() { Ok(()) } else { Err(Code::EnvelopeMissing.into()) }
}
