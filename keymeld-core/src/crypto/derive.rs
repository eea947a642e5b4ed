//! The one table of derived keys: HKDF-SHA256 with a salt and a label of its own for each.

use alloc::vec::Vec;

use hkdf::Hkdf;
use sha2::Sha256;

use crate::id::{AttemptId, EnclaveId, KeygenId, SigningId};
use crate::secret::Secret;

/// What a key is derived for.
///
/// | derived key | from | salt | info |
/// |---|---|---|---|
/// | [`SessionSeal`](Purpose::SessionSeal) | session secret | `keymeld-session-v1` | `seal:` keygen id |
/// | [`SessionAuth`](Purpose::SessionAuth) | session secret | `keymeld-session-v1` | `http-auth:` keygen id |
/// | [`SigningSeal`](Purpose::SigningSeal) | session secret | `keymeld-session-v1` | `signing-seal:` signing id |
/// | [`UserAuth`](Purpose::UserAuth) | private key | `keymeld-session-auth-v1:` keygen id | `user-auth` |
/// | [`MembershipTag`](Purpose::MembershipTag) | private key | `keymeld-membership-v1:` keygen id | `tag` |
/// | [`EnclaveEcies`](Purpose::EnclaveEcies) | enclave seed | `keymeld-enclave-v1` | `ecies:` enclave id, epoch |
/// | [`EnclaveIdentity`](Purpose::EnclaveIdentity) | enclave seed | `keymeld-enclave-v1` | `identity:` enclave id, epoch |
/// | [`Pair`](Purpose::Pair) | ECDH of two enclaves' ECIES keys | `keymeld-pair-v1` | `seal:` attempt |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Seals the manifest, records and certificates of a keygen.
    SessionSeal(KeygenId),
    /// Signs the coordinator's HTTP requests before there is a user auth key.
    SessionAuth(KeygenId),
    /// Seals the intent and the result of one signing session.
    SigningSeal(SigningId),
    /// A user's auth key of one keygen: signs intents, approvals and HTTP requests.
    UserAuth(KeygenId),
    /// Tags the file that a user keeps of one keygen.
    MembershipTag(KeygenId),
    /// An enclave's key that envelopes are encrypted to.
    EnclaveEcies(EnclaveId, u32),
    /// An enclave's key that signs certificates and results.
    EnclaveIdentity(EnclaveId, u32),
    /// Seals what one enclave sends another in one attempt, both directions. The host names attempts and may name
    /// two alike: what tells their messages apart is the context.
    Pair(AttemptId),
}

impl Purpose {
    fn salt(self) -> Vec<u8> {
        match self {
            Purpose::SessionSeal(_) | Purpose::SessionAuth(_) | Purpose::SigningSeal(_) => {
                b"keymeld-session-v1".to_vec()
            }
            Purpose::UserAuth(keygen_id) => {
                [b"keymeld-session-auth-v1:", keygen_id.as_bytes().as_slice()].concat()
            }
            Purpose::MembershipTag(keygen_id) => {
                [b"keymeld-membership-v1:", keygen_id.as_bytes().as_slice()].concat()
            }
            Purpose::EnclaveEcies(..) | Purpose::EnclaveIdentity(..) => b"keymeld-enclave-v1".to_vec(),
            Purpose::Pair(_) => b"keymeld-pair-v1".to_vec(),
        }
    }

    fn info(self) -> Vec<u8> {
        match self {
            Purpose::SessionSeal(id) => [b"seal:", id.as_bytes().as_slice()].concat(),
            Purpose::SessionAuth(id) => [b"http-auth:", id.as_bytes().as_slice()].concat(),
            Purpose::SigningSeal(id) => [b"signing-seal:", id.as_bytes().as_slice()].concat(),
            Purpose::UserAuth(_) => b"user-auth".to_vec(),
            Purpose::MembershipTag(_) => b"tag".to_vec(),
            Purpose::EnclaveEcies(id, epoch) => {
                [b"ecies:", id.as_bytes().as_slice(), epoch.to_be_bytes().as_slice()].concat()
            }
            Purpose::EnclaveIdentity(id, epoch) => {
                [b"identity:", id.as_bytes().as_slice(), epoch.to_be_bytes().as_slice()].concat()
            }
            Purpose::Pair(attempt) => [b"seal:", attempt.as_bytes().as_slice()].concat(),
        }
    }
}

/// Derives the 32-byte key for a purpose.
///
/// # Panics
/// Never: 32 bytes are within HKDF-SHA256's range.
pub fn derive(from: &Secret<32>, purpose: Purpose) -> Secret<32> {
    let extracted = Hkdf::<Sha256>::new(Some(&purpose.salt()), from.expose());
    Secret::filled(|out| extracted.expand(&purpose.info(), out).expect("32 bytes are in range"))
}

#[cfg(test)]
mod tests {
    use super::{Purpose, derive};
    use crate::id::{AttemptId, EnclaveId, KeygenId, SigningId};
    use crate::secret::Secret;

    #[test]
    fn golden_keys_that_never_change() {
        let from = Secret::copied_from(&[7; 32]);
        let table = [
            (
                Purpose::SessionSeal(KeygenId([1; 16])),
                "9b4206a1c91c833ba0840878af1300e211d4456ee366275cdeb66749db42f2ee",
            ),
            (
                Purpose::SessionAuth(KeygenId([1; 16])),
                "a552830fab5a2241fe5cb33e5e15094cc91cdfa2467121b29e53686a75abb3bb",
            ),
            (
                Purpose::SigningSeal(SigningId([1; 16])),
                "43d3caa30e7b00cfe18e3ae20ca6170fbe20f30744dc272061d297fc99bdd5d4",
            ),
            (
                Purpose::UserAuth(KeygenId([1; 16])),
                "27df692ed8c968294f60c6badfa4b96507c5f7bff12bc78d961db308dc9f128e",
            ),
            (
                Purpose::MembershipTag(KeygenId([1; 16])),
                "96f612ea9cc8efc20479ea6de4df7e08159d05e589542ac6cf158feed7c3e831",
            ),
            (
                Purpose::EnclaveEcies(EnclaveId([1; 16]), 1),
                "2d069563afb4db04431392e47476b4c1be6884f1eaa6fa880d3a14486a7a09b6",
            ),
            (
                Purpose::EnclaveIdentity(EnclaveId([1; 16]), 1),
                "b2df418e51cc6b4aac121b2c086510173c9ff8580b2225d72decfe9fe538efc0",
            ),
            (
                Purpose::Pair(AttemptId([1; 16])),
                "89a408d6f58bbe677c90966631501f3fde5d6b27f84b60dde57971a9d033649c",
            ),
        ];
        for (purpose, golden) in table {
            assert_eq!(derive(&from, purpose).to_hex().as_str(), golden, "{purpose:?}");
        }
    }
}
