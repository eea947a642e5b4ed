//! The key that came of a keygen, recomputed and verified by a client.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::membership::Membership;
use crate::api::rest::{CertificateView, KeygenCompleted};
use crate::artifact::certificate::Certificate;
use crate::artifact::manifest::Pin;
use crate::artifact::registration::open_record;
use crate::artifact::roster::{EnclaveKeys, Roster};
use crate::attestation::policy::ClientAttestation;
use crate::bytes::{Hash, PublicKey, XOnlyKey};
use crate::crypto::derive::Purpose;
use crate::crypto::seal::SealKey;
use crate::id::{SubsetId, UserId};
use crate::limits::PARTICIPANTS_MAX;
use crate::refusal::{Code, Refusal};

/// A roster that this client assembled and verified, certified by enclaves that it verified too.
#[derive(Debug)]
pub struct VerifiedKey {
    roster: Roster,
}

impl VerifiedKey {
    /// All records, and the keys that follow from them.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The BIP-340 key that items verify under which name neither subset nor tweak: the aggregate of all
    /// keys with the manifest's default tweak.
    ///
    /// # Panics
    /// Never: a roster whose default tweak fails is not assembled.
    pub fn output_key(&self) -> XOnlyKey {
        self.subset_key(None).expect("a roster is assembled only where this key exists")
    }

    /// The same for a subset.
    ///
    /// # Errors
    /// [`Code::UnknownSubset`], [`Code::BadTweak`].
    pub fn subset_key(&self, subset: Option<SubsetId>) -> Result<XOnlyKey, Code> {
        Ok(XOnlyKey(self.roster.key_agg(subset, self.roster.tweak(None))?.output_key()))
    }

    /// Users whose signing keys the manifest pins. Everybody else is whoever got the invite.
    pub fn pinned(&self) -> Vec<UserId> {
        let participants = self.roster.manifest().participants.iter();
        participants.filter(|one| matches!(one.pin, Pin::SigningKey(_))).map(|one| one.user_id).collect()
    }

    /// 26 characters (128 bits and 2) to compare out of band, in groups; equal codes are equal rosters.
    pub fn short_code(&self) -> String {
        short_code(&self.roster.roster_hash())
    }
}

/// RFC 4648 base32, lower case, of the first 130 bits, in groups.
fn short_code(hash: &Hash) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut code = String::new();
    for place in 0..26_usize {
        if matches!(place, 5 | 10 | 15 | 20) {
            code.push('-');
        }
        let bits = (0..5).map(|bit| place * 5 + bit);
        let index = bits.fold(0, |index, bit| index << 1 | (hash.0[bit / 8] >> (7 - bit % 8) & 1));
        code.push(char::from(ALPHABET[usize::from(index)]));
    }
    code
}

/// A roster that still waits for its enclaves' attestations and certificates to be verified.
#[derive(Debug)]
pub(super) struct DraftKey {
    roster: Roster,
    seal_key: SealKey,
    /// Certificates still to be verified, with the enclave that each has to be of.
    left: Vec<(CertificateView, EnclaveKeys)>,
}

impl DraftKey {
    /// Recomputes everything that a completed keygen claims, the enclaves' part apart.
    pub(super) fn assemble(
        membership: &Membership,
        completed: &KeygenCompleted,
    ) -> Result<DraftKey, Refusal> {
        let manifest = membership.open_manifest(&completed.manifest)?;
        let manifest_hash = membership.manifest_hash;
        let seal_key = membership.seal_key(Purpose::SessionSeal(membership.keygen_id));
        if completed.records.len() > PARTICIPANTS_MAX || completed.certificates.len() > PARTICIPANTS_MAX {
            return Err(Code::TooManyParticipants.into());
        }
        let mut records = Vec::with_capacity(completed.records.len());
        for view in &completed.records {
            records.push(open_record(&seal_key, &manifest, manifest_hash, view.user_id, &view.record)?);
        }
        let roster = Roster::assemble(manifest, manifest_hash, records)?;
        // Only what this client registered counts as its registration: weaker rules could be in another.
        let own = completed.records.iter().find(|view| view.user_id == membership.user_id);
        let kept = membership.registration.as_ref().map(|registered| &registered.request.record);
        if kept.is_none() || own.map(|view| &view.record) != kept {
            return Err(Code::RecordMismatch.into());
        }
        let left = pair(&roster, &completed.certificates)?;
        Ok(DraftKey { roster, seal_key, left })
    }

    /// The certificate whose enclave is to be attested next.
    pub(super) fn next(&self) -> Option<&CertificateView> {
        self.left.last().map(|(view, _)| view)
    }

    /// Takes the attestation of the enclave that [`next`](Self::next) named.
    pub(super) fn attested(&mut self, attestation: &ClientAttestation) -> Result<(), Code> {
        let (view, enclave) = self.left.pop().ok_or(Code::CertificateInvalid)?;
        let attested = EnclaveKeys {
            enclave_key: PublicKey(attestation.ecies_key),
            identity_key: XOnlyKey(attestation.identity_key),
        };
        if attested != enclave {
            return Err(Code::EnclaveKeysMismatch);
        }
        Certificate::open(&self.roster, enclave, &self.seal_key, &view.certificate).map(|_| ())
    }

    pub(super) fn verified(self) -> VerifiedKey {
        assert!(self.left.is_empty(), "a key is verified only when every enclave is");
        VerifiedKey { roster: self.roster }
    }
}

/// One certificate of each enclave of the roster, no more and no less.
fn pair(
    roster: &Roster,
    certificates: &[CertificateView],
) -> Result<Vec<(CertificateView, EnclaveKeys)>, Code> {
    let mut by_key: BTreeMap<PublicKey, &CertificateView> = BTreeMap::new();
    for view in certificates {
        if by_key.insert(view.enclave_key, view).is_some() {
            return Err(Code::CertificateInvalid);
        }
    }
    let enclaves = roster.enclaves();
    if by_key.len() != enclaves.len() {
        return Err(Code::CertificateInvalid);
    }
    let paired = enclaves.into_iter().map(|enclave| {
        let view = by_key.get(&enclave.enclave_key).ok_or(Code::CertificateInvalid)?;
        Ok(((*view).clone(), enclave))
    });
    paired.collect()
}

#[cfg(test)]
mod tests {
    use super::short_code;
    use crate::bytes::Hash;

    #[test]
    fn short_codes_are_base32_of_the_first_130_bits() {
        let mut hash = [0; 32];
        hash[..17].copy_from_slice(b"KeyMeld's roster!");
        assert_eq!(short_code(&Hash(hash)), "jnsxs-tlfnr-sco4z-aojxx-g5dfoi");
        // The 130th bit is the last that counts.
        hash[16] = b'!' ^ 0x40;
        assert_ne!(short_code(&Hash(hash)), "jnsxs-tlfnr-sco4z-aojxx-g5dfoi");
        hash[16] = b'!' ^ 0x20;
        assert_eq!(short_code(&Hash(hash)), "jnsxs-tlfnr-sco4z-aojxx-g5dfoi");
    }
}
