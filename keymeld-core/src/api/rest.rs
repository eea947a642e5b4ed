//! The bodies of requests and responses. All strict JSON.

use alloc::string::String;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::artifact::approval::{Approval, Withdrawal};
use crate::bytes::{Blob, Hash, PublicKey, XOnlyKey};
use crate::id::{EnclaveId, ItemId, KeygenId, SigningId, SubsetId, UserId};

/// `POST keygen/reserve`, proven by the session auth key that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveRequest {
    /// The new session.
    pub keygen_id: KeygenId,
    /// Proves the coordinator's requests.
    pub session_key: XOnlyKey,
    /// Which slot is the coordinator's.
    pub coordinator: UserId,
    /// One slot for each participant.
    pub slots: Vec<SlotRequest>,
    /// How long the keygen may take; absent for the gateway's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// One slot to reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotRequest {
    /// Whose.
    pub user_id: UserId,
    /// Proves that user's registration.
    pub slot_key: XOnlyKey,
}

/// Where participants register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsResponse {
    /// The session.
    pub keygen_id: KeygenId,
    /// Its state.
    pub state: KeygenState,
    /// When it fails if it has not completed, milliseconds since 1970.
    pub deadline: u64,
    /// By signer index; the coordinator's is 0.
    pub slots: Vec<SlotView>,
    /// The hash of the manifest, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_hash: Option<Hash>,
    /// The sealed manifest, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Blob>,
}

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotView {
    /// Whose.
    pub user_id: UserId,
    /// Its place, from 0.
    pub signer_index: u32,
    /// The enclave to register at.
    pub enclave_id: EnclaveId,
    /// Whether it is filled.
    pub registered: bool,
}

/// `POST keygen/{id}/init`, proven by the session auth key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// The hash of the manifest.
    pub manifest_hash: Hash,
    /// The sealed manifest.
    pub manifest: Blob,
    /// Its subsets, as routing hints.
    pub subsets: Vec<SubsetHint>,
}

/// A subset as the gateway knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct SubsetHint {
    /// The subset.
    #[n(0)]
    pub subset_id: SubsetId,
    /// Its members.
    #[n(1)]
    pub members: Vec<UserId>,
}

/// `POST keygen/{id}/participants`, proven by the slot key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Whose slot.
    #[n(0)]
    pub user_id: UserId,
    /// The user auth key: proves the user's later requests.
    #[n(1)]
    pub auth_key: XOnlyKey,
    /// Whether the rules require an approval of every intent.
    #[n(2)]
    pub approval_required: bool,
    /// The ECIES key that the envelope is for.
    #[n(3)]
    pub enclave_key: PublicKey,
    /// The envelope.
    #[n(4)]
    pub envelope: Blob,
    /// The sealed record.
    #[n(5)]
    pub record: Blob,
}

/// Where a keygen is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
pub enum KeygenState {
    /// Slots are assigned; no manifest yet.
    #[n(0)]
    Reserved,
    /// Slots are being filled.
    #[n(1)]
    CollectingParticipants,
    /// Enclaves are opening the session.
    #[n(2)]
    KeyGeneration,
    /// Every enclave certified the same roster.
    #[n(3)]
    Completed,
    /// It ended without a key.
    #[n(4)]
    Failed,
}

/// `GET keygen/{id}/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeygenStatus {
    /// The session.
    pub keygen_id: KeygenId,
    /// Its state.
    pub state: KeygenState,
    /// Grows with every change; starts anew with the gateway.
    pub revision: u64,
    /// Slots filled.
    pub registered: u64,
    /// Slots in all.
    pub expected: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What came of it, once Completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<KeygenCompleted>,
}

/// Why a session failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// A code's name.
    pub code: String,
    /// Who is to blame, as the gateway says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub culprits: Vec<UserId>,
    /// Where somebody declined or cancelled: the signed no, so that nobody has to take the gateway's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawal: Option<Withdrawal>,
}

/// What a client needs to verify a completed keygen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeygenCompleted {
    /// The sealed manifest.
    pub manifest: Blob,
    /// All sealed records.
    pub records: Vec<RecordView>,
    /// One certificate of each enclave key.
    pub certificates: Vec<CertificateView>,
}

/// A participant's sealed record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordView {
    /// Whose.
    pub user_id: UserId,
    /// The record.
    pub record: Blob,
}

/// An enclave's sealed certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct CertificateView {
    /// The enclave.
    #[n(0)]
    pub enclave_id: EnclaveId,
    /// Its epoch.
    #[n(1)]
    pub epoch: u32,
    /// Its ECIES key.
    #[n(2)]
    pub enclave_key: PublicKey,
    /// The certificate.
    #[n(3)]
    pub certificate: Blob,
}

/// `POST signing`, proven by the requester's user auth key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// The new session.
    #[n(0)]
    pub signing_id: SigningId,
    /// Whose keys.
    #[n(1)]
    pub keygen_id: KeygenId,
    /// Who asks.
    #[n(2)]
    pub requester: UserId,
    /// The sealed intent.
    #[n(3)]
    pub intent: Blob,
    /// Its digest.
    #[n(4)]
    pub intent_digest: Hash,
    /// Its end, as a hint.
    #[n(5)]
    pub expires_at: u64,
    /// Its items, as routing hints.
    #[n(6)]
    pub items: Vec<ItemHint>,
}

/// An item as the gateway knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
pub struct ItemHint {
    /// The item.
    #[n(0)]
    pub item_id: ItemId,
    /// Who signs; absent for everybody.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<SubsetId>,
}

/// Where a signing session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
pub enum SigningState {
    /// Waits for approvals.
    #[n(0)]
    CollectingParticipants,
    /// Enclaves were asked for nonces.
    #[n(1)]
    GeneratingNonces,
    /// Some nonces came.
    #[n(2)]
    CollectingNonces,
    /// All nonces came.
    #[n(3)]
    AggregatingNonces,
    /// Enclaves were asked for partial signatures.
    #[n(4)]
    GeneratingPartialSignatures,
    /// Some partial signatures came.
    #[n(5)]
    CollectingPartialSignatures,
    /// The aggregator is at work.
    #[n(6)]
    FinalizingSignature,
    /// There is a result.
    #[n(7)]
    Completed,
    /// It ended without a result.
    #[n(8)]
    Failed,
}

/// `GET signing/{id}/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningStatus {
    /// The session.
    pub signing_id: SigningId,
    /// Its keygen.
    pub keygen_id: KeygenId,
    /// Its state.
    pub state: SigningState,
    /// Grows with every change; starts anew with the gateway.
    pub revision: u64,
    /// Who approved.
    pub approved: Vec<UserId>,
    /// Whose approval is awaited.
    pub awaited: Vec<UserId>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The sealed result, once Completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Blob>,
}

/// `GET signing/{id}/intent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentResponse {
    /// The session.
    pub signing_id: SigningId,
    /// Its keygen.
    pub keygen_id: KeygenId,
    /// The sealed intent.
    pub intent: Blob,
    /// Its digest.
    pub intent_digest: Hash,
    /// Approvals so far.
    pub approvals: Vec<Approval>,
}

/// `GET enclaves`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnclavesResponse {
    /// All that are configured.
    pub enclaves: Vec<EnclaveView>,
}

/// One enclave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnclaveView {
    /// Which.
    pub enclave_id: EnclaveId,
    /// Whether it can be reached and holds an identity.
    pub ready: bool,
    /// Its epochs, ascending.
    pub epochs: Vec<u32>,
}

/// `GET enclaves/{id}/attestation?nonce=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationResponse {
    /// Which enclave.
    pub enclave_id: EnclaveId,
    /// Which epoch.
    pub epoch: u32,
    /// The COSE_Sign1 document.
    pub document: Blob,
}

/// `GET version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionResponse {
    /// The gateway's version.
    pub version: String,
    /// The version of the API.
    pub api: String,
}

/// `GET health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthResponse {
    /// Enclaves that are ready.
    pub enclaves_ready: u64,
    /// Enclaves that are configured.
    pub enclaves: u64,
}
