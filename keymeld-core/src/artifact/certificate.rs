//! The certificate: an enclave's signed word that it holds a session and what its keys are.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::roster::{EnclaveKeys, Roster};
use super::{Signed, VERSION, check_version, decode_signed};
use crate::bytes::{Blob, Hash, PublicKey, Signature, XOnlyKey};
use crate::crypto::auth::{self, AuthKey};
use crate::crypto::hash::Tag;
use crate::crypto::seal::{Context, SealKey};
use crate::entropy::Entropy;
use crate::id::{KeygenId, SubsetId};
use crate::limits::CERTIFICATE_BYTES_MAX;
use crate::refusal::Code;
use crate::strict;

/// What an enclave certifies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`VERSION`].
    pub version: u64,
    /// The session.
    pub keygen_id: KeygenId,
    /// Its manifest.
    pub manifest_hash: Hash,
    /// Its roster.
    pub roster_hash: Hash,
    /// The aggregate of all keys, before any tweak.
    pub aggregate_key: PublicKey,
    /// The aggregates of the subsets.
    pub subset_keys: Vec<SubsetKey>,
    /// The certifying enclave's ECIES key.
    pub enclave_key: PublicKey,
    /// Its identity key, which signs this.
    pub identity_key: XOnlyKey,
}

/// A subset's aggregate key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsetKey {
    /// The subset.
    pub subset_id: SubsetId,
    /// Its aggregate key, before any tweak.
    pub key: PublicKey,
}

/// The signature on a certificate or a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentitySignature {
    /// By the enclave's identity key.
    pub identity: Signature,
}

impl Certificate {
    /// What this enclave has to say of a roster.
    pub fn of(roster: &Roster, enclave: EnclaveKeys) -> Certificate {
        Certificate {
            version: VERSION,
            keygen_id: roster.manifest().keygen_id,
            manifest_hash: roster.manifest_hash(),
            roster_hash: roster.roster_hash(),
            aggregate_key: roster.aggregate_key(),
            subset_keys: roster
                .subset_keys()
                .iter()
                .map(|(subset_id, key)| SubsetKey { subset_id: *subset_id, key: *key })
                .collect(),
            enclave_key: enclave.enclave_key,
            identity_key: enclave.identity_key,
        }
    }

    fn context(&self) -> Context {
        Context::Certificate {
            keygen_id: self.keygen_id,
            roster_hash: self.roster_hash,
            enclave_key: self.enclave_key,
        }
    }

    /// Signs and seals the certificate.
    ///
    /// # Errors
    /// [`Code::EntropyFailed`].
    pub fn seal(&self, identity: &AuthKey, seal_key: &SealKey, entropy: &mut Entropy) -> Result<Blob, Code> {
        let body = strict::to_json(self);
        let signature = identity.sign(Tag::Certificate, &[&body], entropy)?;
        let signed = Signed { body: Blob(body), signatures: IdentitySignature { identity: signature } };
        Ok(seal_key.seal(&self.context(), &strict::to_json(&signed), entropy)?)
    }

    /// Opens a certificate that has to be this enclave's on this roster.
    ///
    /// # Errors
    /// [`Code::SealUnreadable`] and [`Code::CertificateInvalid`].
    pub fn open(
        roster: &Roster,
        enclave: EnclaveKeys,
        seal_key: &SealKey,
        sealed: &Blob,
    ) -> Result<Certificate, Code> {
        let expected = Certificate::of(roster, enclave);
        let plaintext = seal_key.open(&expected.context(), sealed)?;
        let signed: Signed<IdentitySignature> = decode_signed(&plaintext, CERTIFICATE_BYTES_MAX)?;
        let certificate: Certificate = strict::from_json(&signed.body.0, CERTIFICATE_BYTES_MAX)?;
        check_version(certificate.version)?;
        let signed_by_enclave = auth::verify(
            &enclave.identity_key,
            Tag::Certificate,
            &[&signed.body.0],
            &signed.signatures.identity,
        );
        if signed_by_enclave && certificate == expected {
            Ok(certificate)
        } else {
            Err(Code::CertificateInvalid)
        }
    }
}
