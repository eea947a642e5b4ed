//! The exact bodies of the REST API's requests and responses.
//!
//! How to write the files anew says `golden/mod.rs`.

mod golden;
mod sample;

use golden::check_json;
use keymeld_core::api::problem;
use keymeld_core::api::rest::{
    AttestationResponse, CertificateView, EnclaveView, EnclavesResponse, Failure, HealthResponse,
    InitRequest, IntentResponse, ItemHint, KeygenCompleted, KeygenState, KeygenStatus, RecordView,
    RegisterRequest, ReserveRequest, SignRequest, SigningState, SigningStatus, SlotRequest, SlotView,
    SlotsResponse, SubsetHint, VersionResponse,
};
use keymeld_core::bytes::Blob;
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::id::{ItemId, UserId};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::strict::{from_json, to_json};
use sample::{CREATED_AT, EPOCH, KEYGEN_ID, SIGNING_ID, SUBSET_ID, Sample, enclave_id};

fn check<T>(name: &str, body: &T)
where
    T: serde::Serialize + for<'de> serde::Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    let bytes = to_json(body);
    check_json(&format!("rest_{name}"), &bytes);
    assert_eq!(from_json::<T>(&bytes, 10_000).as_ref(), Ok(body));
}

fn users(sample: &Sample) -> Vec<UserId> {
    sample.users.iter().map(|user| user.user_id).collect()
}

#[test]
fn golden_requests_of_a_keygen() {
    let sample = Sample::new();
    let session_key = AuthKey::derived(&sample.session_secret, Purpose::SessionAuth(KEYGEN_ID));
    let slots = sample.users.iter().map(|user| SlotRequest {
        user_id: user.user_id,
        slot_key: AuthKey::new(&user.slot_key).expect("in range").public(),
    });
    let reserve = ReserveRequest {
        keygen_id: KEYGEN_ID,
        session_key: session_key.expect("in range").public(),
        coordinator: sample.users[0].user_id,
        slots: slots.collect(),
        timeout_ms: Some(600_000),
    };
    check("reserve", &reserve);
    check("reserve_bare", &ReserveRequest { timeout_ms: None, ..reserve });
    let subset = &sample.manifest.subsets[0];
    let hint = SubsetHint { subset_id: subset.subset_id, members: subset.members.clone() };
    let manifest = sample.sealed_manifest();
    check("init", &InitRequest { manifest_hash: sample.manifest_hash, manifest, subsets: vec![hint] });
    let registration = &sample.registrations[1];
    let register = RegisterRequest {
        user_id: sample.users[1].user_id,
        auth_key: registration.auth_key,
        approval_required: true,
        enclave_key: sample.enclaves[1].enclave_key,
        envelope: registration.envelope.clone(),
        record: registration.record.clone(),
    };
    check("register", &register);
}

#[test]
fn golden_responses_of_a_keygen() {
    let sample = Sample::new();
    let view = |(index, user_id)| SlotView {
        user_id,
        signer_index: index,
        enclave_id: enclave_id(0),
        registered: index == 0,
    };
    let slots = SlotsResponse {
        keygen_id: KEYGEN_ID,
        state: KeygenState::CollectingParticipants,
        deadline: CREATED_AT + 600_000,
        slots: (0..).zip(users(&sample)).map(view).collect(),
        manifest_hash: Some(sample.manifest_hash),
        manifest: Some(Blob(vec![1; 24])),
    };
    check("slots", &slots);
    check(
        "slots_bare",
        &SlotsResponse { manifest_hash: None, manifest: None, state: KeygenState::Reserved, ..slots },
    );
    let certificate = CertificateView {
        enclave_id: enclave_id(0),
        epoch: EPOCH,
        enclave_key: sample.enclaves[0].enclave_key,
        certificate: Blob(vec![2; 24]),
    };
    let record = RecordView { user_id: sample.users[0].user_id, record: Blob(vec![3; 24]) };
    let completed = KeygenCompleted {
        manifest: Blob(vec![1; 24]),
        records: vec![record],
        certificates: vec![certificate],
    };
    let status = KeygenStatus {
        keygen_id: KEYGEN_ID,
        state: KeygenState::Completed,
        revision: 7,
        registered: 3,
        expected: 3,
        failure: None,
        completed: Some(completed),
    };
    check("keygen_status", &status);
    let failure = Failure { code: Code::EqualX.name().into(), culprits: users(&sample), withdrawal: None };
    let failed =
        KeygenStatus { state: KeygenState::Failed, failure: Some(failure), completed: None, ..status };
    check("keygen_status_failed", &failed);
}

#[test]
fn golden_requests_and_responses_of_a_signing_session() {
    let sample = Sample::new();
    let intent = sample.sealed_intent();
    let users = users(&sample);
    let sign = SignRequest {
        signing_id: SIGNING_ID,
        keygen_id: KEYGEN_ID,
        requester: users[0],
        intent: intent.sealed.clone(),
        intent_digest: intent.digest,
        expires_at: CREATED_AT + 3_600_000,
        items: vec![
            ItemHint { item_id: ItemId([1; 16]), subset: None },
            ItemHint { item_id: ItemId([2; 16]), subset: Some(SUBSET_ID) },
        ],
    };
    check("sign", &sign);
    let response = IntentResponse {
        signing_id: SIGNING_ID,
        keygen_id: KEYGEN_ID,
        intent: Blob(vec![4; 24]),
        intent_digest: intent.digest,
        approvals: sample.approvals(),
    };
    check("intent", &response);
    let failure = Failure {
        code: Code::Declined.name().into(),
        culprits: vec![users[1]],
        withdrawal: Some(from_json(&golden::json("decline"), 10_000).expect("golden")),
    };
    let failed = SigningStatus {
        signing_id: SIGNING_ID,
        keygen_id: KEYGEN_ID,
        state: SigningState::Failed,
        revision: 3,
        approved: vec![users[2]],
        awaited: vec![users[1]],
        failure: Some(failure),
        result: None,
    };
    check("signing_status", &failed);
    let completed = SigningStatus {
        state: SigningState::Completed,
        failure: None,
        result: Some(Blob(vec![6; 24])),
        ..failed
    };
    check("signing_status_completed", &completed);
}

#[test]
fn golden_responses_about_the_gateway_and_its_enclaves() {
    let view = EnclaveView { enclave_id: enclave_id(0), ready: true, epochs: vec![1, EPOCH] };
    check("enclaves", &EnclavesResponse { enclaves: vec![view] });
    let document = Blob(vec![7; 24]);
    check("attestation", &AttestationResponse { enclave_id: enclave_id(0), epoch: EPOCH, document });
    check("version", &VersionResponse { version: "0.1.0".into(), api: "v1".into() });
    check("health", &HealthResponse { enclaves_ready: 1, enclaves: 2 });
}

#[test]
fn golden_problems() {
    let sample = Sample::new();
    let refusal = Refusal::blaming(Code::PartialInvalid, vec![sample.users[1].user_id]);
    check_json("problem_culprits", &problem::refused(&refusal).body);
    check_json("problem_plain", &problem::refused(&Code::UnknownId.into()).body);
    check_json("problem_stale", &problem::stale(CREATED_AT).body);
}

#[test]
fn golden_table_of_codes() {
    let line = |code: &Code| format!("{} {} {}\n", code.number(), code.name(), code.status());
    let table: String = Code::ALL.iter().map(line).collect();
    golden::check_text("codes", table.trim_end());
}
