//! A registration: an envelope that gives an enclave the key, and a sealed, signed record for everybody.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, Pin};
use super::{Signed, VERSION, check_public_key, check_version, decode_signed};
use crate::bytes::{Blob, Hash, PublicKey, Salt, Signature, XOnlyKey};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::derive::Purpose;
use crate::crypto::envelope;
use crate::crypto::hash::Tag;
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::{KeygenId, UserId};
use crate::limits::{ENVELOPE_BYTES_MAX, RECORD_BYTES_MAX};
use crate::refusal::Code;
use crate::secret::{self, Secret};
use crate::strict;

/// What an envelope with a registration says it is.
pub const ENVELOPE_PURPOSE: &str = "keymeld-registration-v1";

/// What a participant allows to be done with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Whether every intent needs this user's approval.
    pub approval: ApprovalRule,
    /// Whether others than the coordinator may request without this user's approval.
    pub allow_any_requester: bool,
    /// Whether a delegated key signs messages that do not say what they are.
    pub allow_blind: bool,
    /// Whether a delegated key makes adaptor signatures.
    pub allow_adaptors: bool,
    /// Whether partials wait for a second approval of the aggregate nonces. Defined; not supported yet.
    pub bind_nonces: bool,
    /// When the key stops signing, milliseconds since 1970.
    pub valid_until: u64,
}

/// Whether a key signs by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalRule {
    /// Only with an approval of the intent.
    Required,
    /// For whatever the coordinator requests.
    Delegated,
}

impl Rules {
    /// The careful defaults: approval required, nothing else allowed.
    pub fn careful(valid_until: u64) -> Rules {
        Rules {
            approval: ApprovalRule::Required,
            allow_any_requester: false,
            allow_blind: false,
            allow_adaptors: false,
            bind_nonces: false,
            valid_until,
        }
    }

    /// The same with the approval delegated to the coordinator.
    pub fn delegated(valid_until: u64) -> Rules {
        Rules { approval: ApprovalRule::Delegated, ..Rules::careful(valid_until) }
    }
}

/// What everybody in the session learns of one participant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u64,
    /// Keeps the roster hash from being guessed at.
    pub salt: Salt,
    /// The session.
    pub keygen_id: KeygenId,
    /// The manifest that was agreed to.
    pub manifest_hash: Hash,
    /// Who.
    pub user_id: UserId,
    /// The signing key, compressed.
    pub public_key: PublicKey,
    /// The auth key of this keygen.
    pub auth_key: XOnlyKey,
    /// The ECIES key of the enclave that holds the private key.
    pub enclave_key: PublicKey,
    /// The identity key of the same enclave.
    pub identity_key: XOnlyKey,
    /// What the key may be used for.
    pub rules: Rules,
}

/// The signatures on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSignatures {
    /// By the signing key: the proof of possession.
    pub possession: Signature,
    /// By the pinned signing key (under a tag of its own) or by the invite key.
    pub cosignature: Signature,
}

/// A record whose signatures and pin were verified, with its exact bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRecord {
    /// The exact bytes of the body.
    pub body: Vec<u8>,
    /// What they say.
    pub record: Record,
}

/// The plaintext of a registration's envelope.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeBody {
    purpose: alloc::string::String,
    enclave_key: PublicKey,
    keygen_id: KeygenId,
    user_id: UserId,
    manifest_hash: Hash,
    #[serde(with = "secret::hex")]
    private_key: Secret<32>,
    #[serde(with = "secret::hex")]
    session_secret: Secret<32>,
    rules: Rules,
}

/// What came out of an envelope that was meant for this enclave, session and user.
#[derive(Debug)]
pub struct OpenedEnvelope {
    /// Whose.
    pub user_id: UserId,
    /// The signing key's private half.
    pub private_key: Secret<32>,
    /// The session secret as this participant knows it.
    pub session_secret: Secret<32>,
    /// What the key may be used for.
    pub rules: Rules,
}

/// What a participant sends for its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// To the slot's enclave.
    pub envelope: Blob,
    /// Sealed, for everybody in the session.
    pub record: Blob,
    /// The auth key that the record names.
    pub auth_key: XOnlyKey,
}

/// What a registration is made from.
#[derive(Debug)]
pub struct Registrant<'a> {
    /// The checked manifest.
    pub manifest: &'a Manifest,
    /// The hash of its exact bytes.
    pub manifest_hash: Hash,
    /// Who registers.
    pub user_id: UserId,
    /// The signing key's private half.
    pub private_key: &'a Secret<32>,
    /// The session secret.
    pub session_secret: &'a Secret<32>,
    /// The invite key, where the manifest pins that.
    pub invite_key: Option<&'a Secret<32>>,
    /// The attested enclave's ECIES key.
    pub enclave_key: PublicKey,
    /// The attested enclave's identity key.
    pub identity_key: XOnlyKey,
    /// What the key may be used for.
    pub rules: Rules,
}

/// The auth key of a user in a keygen.
///
/// # Errors
/// [`Code::InvalidPrivateKey`].
pub fn user_auth_key(private_key: &Secret<32>, keygen_id: KeygenId) -> Result<AuthKey, Code> {
    Ok(AuthKey::derived(private_key, Purpose::UserAuth(keygen_id))?)
}

impl Registrant<'_> {
    /// Makes the registration. Its bytes are to be stored before they are sent, and only ever resent.
    ///
    /// # Errors
    /// [`Code`]: the user is not in the manifest, its pin needs another key, or no entropy.
    pub fn register(&self, entropy: &mut Entropy) -> Result<Registration, Code> {
        if self.rules.bind_nonces {
            return Err(Code::Unsupported);
        }
        let keygen_id = self.manifest.keygen_id;
        let participant = self.manifest.participant(self.user_id).ok_or(Code::UserNotInRoster)?;
        let signing_key = AuthKey::new(self.private_key)?;
        let auth_key = user_auth_key(self.private_key, keygen_id)?.public();
        let record = Record {
            version: VERSION,
            salt: Salt(entropy.bytes()?),
            keygen_id,
            manifest_hash: self.manifest_hash,
            user_id: self.user_id,
            public_key: auth::public_key(self.private_key)?,
            auth_key,
            enclave_key: self.enclave_key,
            identity_key: self.identity_key,
            rules: self.rules,
        };
        let body = strict::to_json(&record);
        let possession = signing_key.sign(Tag::Possession, &[&body], entropy)?;
        let cosignature = match (&participant.pin, self.invite_key) {
            (Pin::SigningKey(pinned), _) if *pinned == record.public_key => {
                signing_key.sign(Tag::PinnedKey, &[&body], entropy)?
            }
            (Pin::InviteKey(_), Some(invite_key)) => {
                AuthKey::new(invite_key)?.sign(Tag::InviteKey, &[&body], entropy)?
            }
            (Pin::SigningKey(_) | Pin::InviteKey(_), _) => return Err(Code::PinMismatch),
        };
        let signed = Signed { body: Blob(body), signatures: RecordSignatures { possession, cosignature } };
        Ok(Registration { envelope: self.envelope(entropy)?, record: self.seal(&signed, entropy)?, auth_key })
    }

    fn envelope(&self, entropy: &mut Entropy) -> Result<Blob, Code> {
        let body = EnvelopeBody {
            purpose: ENVELOPE_PURPOSE.into(),
            enclave_key: self.enclave_key,
            keygen_id: self.manifest.keygen_id,
            user_id: self.user_id,
            manifest_hash: self.manifest_hash,
            private_key: Secret::copied_from(self.private_key.expose()),
            session_secret: Secret::copied_from(self.session_secret.expose()),
            rules: self.rules,
        };
        let plaintext = strict::to_secret_json(&body, ENVELOPE_BYTES_MAX)?;
        envelope::encrypt(&self.enclave_key, &plaintext, entropy).map_err(|error| match error {
            envelope::EncryptError::Entropy(_) => Code::EntropyFailed,
            envelope::EncryptError::InvalidKey => Code::NotOnCurve,
            envelope::EncryptError::TooLarge => Code::TooLarge,
        })
    }

    fn seal(&self, signed: &Signed<RecordSignatures>, entropy: &mut Entropy) -> Result<Blob, Code> {
        let keygen_id = self.manifest.keygen_id;
        let key = SealKey::derived(self.session_secret, Purpose::SessionSeal(keygen_id));
        let context = record_context(keygen_id, self.manifest_hash, self.user_id);
        Ok(key.seal(&context, &strict::to_json(signed), entropy)?)
    }
}

fn record_context(keygen_id: KeygenId, manifest_hash: Hash, user_id: UserId) -> Context {
    Context::Record { keygen_id, manifest_hash, user_id }
}

/// Opens an envelope that must be a registration of this user in this session at this enclave.
///
/// # Errors
/// [`Code::EnvelopeUnreadable`] under another key, [`Code::EnvelopeMismatch`] for another purpose,
/// enclave, session, user or manifest.
pub fn open_envelope(
    enclave_secret: &Secret<32>,
    enclave_key: &PublicKey,
    keygen_id: KeygenId,
    manifest_hash: Hash,
    user_id: UserId,
    sealed: &Blob,
) -> Result<OpenedEnvelope, Code> {
    let plaintext = envelope::decrypt(enclave_secret, sealed).map_err(|_| Code::EnvelopeUnreadable)?;
    let body: EnvelopeBody =
        strict::from_secret_json(&plaintext, ENVELOPE_BYTES_MAX).map_err(|_| Code::EnvelopeMismatch)?;
    let meant = body.purpose == ENVELOPE_PURPOSE
        && body.enclave_key == *enclave_key
        && body.keygen_id == keygen_id
        && body.user_id == user_id
        && body.manifest_hash == manifest_hash;
    if !meant {
        return Err(Code::EnvelopeMismatch);
    }
    Ok(OpenedEnvelope {
        user_id,
        private_key: body.private_key,
        session_secret: body.session_secret,
        rules: body.rules,
    })
}

impl OpenedEnvelope {
    /// Checks that envelope and record agree in every field that they share.
    ///
    /// # Errors
    /// [`Code::EnvelopeRecordMismatch`], [`Code::InvalidPrivateKey`].
    pub fn check_record(&self, record: &Record) -> Result<(), Code> {
        let agree = auth::public_key(&self.private_key)? == record.public_key
            && user_auth_key(&self.private_key, record.keygen_id)?.public() == record.auth_key
            && self.rules == record.rules
            && self.user_id == record.user_id;
        if agree { Ok(()) } else { Err(Code::EnvelopeRecordMismatch) }
    }
}

/// Opens a sealed record and verifies it against the manifest: context, proof of possession, pin and
/// co-signature.
///
/// # Errors
/// [`Code`], one for each reason.
pub fn open_record(
    seal_key: &SealKey,
    manifest: &Manifest,
    manifest_hash: Hash,
    user_id: UserId,
    sealed: &Blob,
) -> Result<VerifiedRecord, Code> {
    let participant = manifest.participant(user_id).ok_or(Code::UserNotInRoster)?;
    let plaintext = seal_key.open(&record_context(manifest.keygen_id, manifest_hash, user_id), sealed)?;
    let signed: Signed<RecordSignatures> = decode_signed(&plaintext, RECORD_BYTES_MAX)?;
    let record: Record = strict::from_json(&signed.body.0, RECORD_BYTES_MAX)?;
    check_version(record.version)?;
    if record.manifest_hash != manifest_hash {
        return Err(Code::ManifestHashMismatch);
    }
    if record.keygen_id != manifest.keygen_id || record.user_id != user_id {
        return Err(Code::RecordMismatch);
    }
    // A rule that nobody keeps yet must not be believed in.
    if record.rules.bind_nonces {
        return Err(Code::Unsupported);
    }
    check_public_key(&record.public_key)?;
    check_public_key(&record.enclave_key)?;
    if !auth::is_x_only_key(&record.auth_key) || !auth::is_x_only_key(&record.identity_key) {
        return Err(Code::NotOnCurve);
    }
    let body = &signed.body.0;
    let own_key = auth::x_only(&record.public_key);
    if !auth::verify(&own_key, Tag::Possession, &[body], &signed.signatures.possession) {
        return Err(Code::BadPossession);
    }
    let cosigned = match &participant.pin {
        Pin::SigningKey(pinned) if *pinned != record.public_key => return Err(Code::PinMismatch),
        Pin::SigningKey(_) => auth::verify(&own_key, Tag::PinnedKey, &[body], &signed.signatures.cosignature),
        Pin::InviteKey(key) => auth::verify(key, Tag::InviteKey, &[body], &signed.signatures.cosignature),
    };
    if !cosigned {
        return Err(Code::BadCosignature);
    }
    let coordinator = &manifest.coordinator;
    if user_id == coordinator.user_id && record.auth_key != coordinator.auth_key {
        return Err(Code::PinMismatch);
    }
    Ok(VerifiedRecord { body: signed.body.0, record })
}
