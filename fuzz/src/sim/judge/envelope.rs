//! S3: an enclave takes only envelopes that say, in every field, what they are taken for.

use keymeld_core::artifact::Signed;
use keymeld_core::artifact::registration::{Record, RecordSignatures};
use keymeld_core::bytes::{Blob, Hash, PublicKey};
use keymeld_core::crypto::auth;
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::seal::Context;
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::secret::Secret;
use serde_json::Value;

use super::super::chance::{HASH_BEGIN, hash};
use super::super::world::World;
use super::seal;

/// What an enclave took an envelope for.
pub(super) struct Taken<'a> {
    pub(super) enclave_key: PublicKey,
    pub(super) keygen_id: KeygenId,
    pub(super) manifest_hash: Hash,
    pub(super) user_id: UserId,
    pub(super) envelope: &'a Blob,
    pub(super) record: &'a Blob,
}

impl World {
    /// Opens both as only the enclave and the session can, and compares them with each other.
    pub(super) fn judge_envelope(&mut self, taken: &Taken<'_>) {
        let seen = hash(hash(HASH_BEGIN, &taken.envelope.0), &taken.record.0);
        if !self.god.envelopes.insert((seen, taken.user_id, taken.enclave_key)) {
            return;
        }
        let identity = self.god.identities.get(&taken.enclave_key);
        let ecies = &identity.expect("S3: an enclave uses a key that it never made").ecies;
        let plaintext = envelope::decrypt(ecies, taken.envelope);
        let plaintext = plaintext.expect("S3: an enclave takes an envelope that is not for it");
        let envelope: Value = serde_json::from_slice(&plaintext).expect("S3: an envelope is JSON");
        let text = |name: &str| envelope[name].as_str().unwrap_or_default().to_string();
        assert_eq!(
            text("purpose"),
            "keymeld-registration-v1",
            "S3: an envelope for another purpose is taken"
        );
        let context = (text("enclave_key"), text("keygen_id"), text("user_id"), text("manifest_hash"));
        let expected = (
            taken.enclave_key.to_string(),
            taken.keygen_id.to_string(),
            taken.user_id.to_string(),
            taken.manifest_hash.to_string(),
        );
        assert_eq!(context, expected, "S3: an envelope for another context is taken");
        let secret = |name: &str| Secret::<32>::from_hex(text(name).as_bytes()).expect("S3: secrets are hex");
        let session_secret = secret("session_secret");
        let circle = self.god.circle_of(taken.keygen_id).map(|circle| &self.god.circles[circle]);
        let known = circle.and_then(|circle| circle.session_secret.as_ref());
        assert!(known == Some(&session_secret), "S3: an envelope of another session is taken");
        let record = self.record(&session_secret, taken);
        let agree = auth::public_key(&secret("private_key")) == Ok(record.public_key)
            && record.user_id == taken.user_id
            && record.enclave_key == taken.enclave_key
            && serde_json::to_value(record.rules).expect("rules are JSON") == envelope["rules"];
        assert!(agree, "S3: an enclave takes an envelope and a record that do not agree");
    }

    fn record(&self, session_secret: &Secret<32>, taken: &Taken<'_>) -> Record {
        let Taken { keygen_id, manifest_hash, user_id, .. } = *taken;
        let seal_key = derive(session_secret, Purpose::SessionSeal(keygen_id));
        let context = Context::Record { keygen_id, manifest_hash, user_id };
        let plaintext = seal::open(&seal_key, &context, taken.record);
        let plaintext = plaintext.expect("S3: an enclave takes a record that is not sealed for its session");
        let signed: Signed<RecordSignatures> = serde_json::from_slice(&plaintext).expect("S3: a record");
        serde_json::from_slice(&signed.body.0).expect("S3: a record")
    }
}
