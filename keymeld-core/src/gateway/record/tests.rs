//! The exact bytes of every row, and what becomes of altered ones.

use alloc::vec;
use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use super::{
    FailureRow, KeygenEnd, KeygenHead, KeygenInit, KeygenRows, PART_END, PART_HEAD, PART_REQUEST, PART_SLOTS,
    SigningEnd, SigningHead, SigningRows, Slot, decode, enclave_key, encode, head_row, keygen_key, new_row,
    signing_key, slot_part,
};
use crate::api::rest::{
    CertificateView, ItemHint, KeygenState, RegisterRequest, ReserveRequest, SignRequest, SigningState,
    SlotRequest, SubsetHint,
};
use crate::artifact::approval::{Approval, Withdrawal};
use crate::bytes::{Blob, Hash, PublicKey, Signature, XOnlyKey};
use crate::id::{EnclaveId, ItemId, KeygenId, SigningId, SubsetId, UserId};
use crate::link::message::{IdentityRow, MESSAGE_VERSION};
use crate::record::{Family, Row, RowKey};
use crate::refusal::Code;
use crate::strict::CborError;

#[path = "../../../tests/golden/mod.rs"]
mod golden;

const KEYGEN_ID: KeygenId = KeygenId([0x4b; 16]);
const SIGNING_ID: SigningId = SigningId([0x51; 16]);
const ALICE: UserId = UserId([0x10; 16]);
const BOB: UserId = UserId([0x20; 16]);

fn keygen_head() -> KeygenHead {
    let slot = |user_id, byte| Slot {
        user_id,
        slot_key: XOnlyKey([byte; 32]),
        enclave_id: EnclaveId([0xe0 + byte; 16]),
    };
    KeygenHead {
        session_key: XOnlyKey([9; 32]),
        coordinator: ALICE,
        slots: vec![slot(ALICE, 1), slot(BOB, 2)],
        timeout_ms: Some(600_000),
        deadline_unix_ms: 1_800_000_600_000,
        state: KeygenState::CollectingParticipants,
    }
}

fn keygen_init() -> KeygenInit {
    let subsets = vec![SubsetHint { subset_id: SubsetId([0x55; 16]), members: vec![ALICE, BOB] }];
    KeygenInit { manifest_hash: Hash([3; 32]), manifest: Blob(vec![4; 24]), subsets }
}

fn registration() -> RegisterRequest {
    RegisterRequest {
        user_id: BOB,
        auth_key: XOnlyKey([5; 32]),
        approval_required: true,
        enclave_key: PublicKey([2; 33]),
        envelope: Blob(vec![6; 24]),
        record: Blob(vec![7; 24]),
    }
}

fn keygen_completed() -> KeygenEnd {
    let certificate = CertificateView {
        enclave_id: EnclaveId([0xe1; 16]),
        epoch: 3,
        enclave_key: PublicKey([2; 33]),
        certificate: Blob(vec![8; 24]),
    };
    KeygenEnd::Completed { roster_hash: Hash([9; 32]), certificates: vec![certificate] }
}

fn failure() -> FailureRow {
    let withdrawal = Withdrawal {
        version: 1,
        signing_id: SIGNING_ID,
        user_id: BOB,
        intent_digest: Hash([6; 32]),
        signature: Signature([7; 64]),
        reason: Some(Blob(vec![1; 24])),
    };
    FailureRow { code: Code::Declined.number(), culprits: vec![BOB], withdrawal: Some(withdrawal) }
}

fn signing_head() -> SigningHead {
    SigningHead { keygen_id: KEYGEN_ID, state: SigningState::CollectingParticipants }
}

fn sign_request() -> SignRequest {
    SignRequest {
        signing_id: SIGNING_ID,
        keygen_id: KEYGEN_ID,
        requester: ALICE,
        intent: Blob(vec![2; 24]),
        intent_digest: Hash([3; 32]),
        expires_at: 1_800_003_600_000,
        items: vec![
            ItemHint { item_id: ItemId([1; 16]), subset: None },
            ItemHint { item_id: ItemId([2; 16]), subset: Some(SubsetId([0x55; 16])) },
        ],
    }
}

fn approval() -> Approval {
    Approval {
        version: 1,
        signing_id: SIGNING_ID,
        user_id: BOB,
        intent_digest: Hash([3; 32]),
        blind: false,
        signature: Signature([4; 64]),
    }
}

/// Compares with the golden file, reads back, alters every bit, cuts everywhere.
fn check<T>(name: &str, content: T)
where
    T: Encode<()> + for<'b> Decode<'b, ()> + Clone + PartialEq + core::fmt::Debug,
{
    let bytes = encode(content.clone());
    golden::check_hex(&alloc::format!("row_{name}"), &bytes);
    assert_eq!(decode::<T>(&bytes), Ok(content), "{name}");
    for end in 0..bytes.len() {
        assert_eq!(decode::<T>(&bytes[..end]), Err(CborError), "{name} cut at {end}");
    }
    assert_eq!(decode::<T>(&[&bytes[..], &[0]].concat()), Err(CborError), "{name}");
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = decode::<T>(&flipped) {
            assert_eq!(encode(other), flipped, "{name} bit {bit}");
        }
    }
    let mut newer = bytes;
    assert_eq!(newer[..2], [0x82, 1], "an array of version and content");
    newer[1] = 2;
    assert_eq!(decode::<T>(&newer), Err(CborError), "{name} of another version");
}

#[test]
fn golden_rows_of_a_keygen() {
    check("keygen_head", keygen_head());
    check("keygen_head_bare", KeygenHead { slots: vec![], timeout_ms: None, ..keygen_head() });
    check("keygen_init", keygen_init());
    check("keygen_registration", registration());
    check("keygen_completed", keygen_completed());
    check("keygen_failed", KeygenEnd::Failed(failure()));
    check(
        "keygen_failed_bare",
        KeygenEnd::Failed(FailureRow { culprits: vec![], withdrawal: None, ..failure() }),
    );
}

#[test]
fn golden_rows_of_a_signing_session() {
    check("signing_head", signing_head());
    check("signing_request", sign_request());
    check("signing_approval", approval());
    check("signing_completed", SigningEnd::Completed(Blob(vec![5; 24])));
    check("signing_failed", SigningEnd::Failed(failure()));
}

#[test]
fn golden_row_of_an_enclave() {
    let row = IdentityRow {
        version: MESSAGE_VERSION,
        enclave_id: EnclaveId([0xe1; 16]),
        epoch: 3,
        ecies_key: PublicKey([2; 33]),
        identity_key: XOnlyKey([5; 32]),
        birth_pcr0: Blob(vec![6; 48]),
        encrypted_data_key: Blob(vec![7; 24]),
        encrypted_seed: Blob(vec![8; 60]),
        birth_document: Blob(vec![9; 300]),
    };
    check("enclave", row);
}

#[test]
fn golden_states() {
    use KeygenState as K;
    use SigningState as S;
    let keygen = [K::Reserved, K::CollectingParticipants, K::KeyGeneration, K::Completed, K::Failed];
    let bytes: Vec<u8> = keygen.into_iter().flat_map(encode).collect();
    golden::check_hex("row_keygen_states", &bytes);
    let signing = [
        S::CollectingParticipants,
        S::GeneratingNonces,
        S::CollectingNonces,
        S::AggregatingNonces,
        S::GeneratingPartialSignatures,
        S::CollectingPartialSignatures,
        S::FinalizingSignature,
        S::Completed,
        S::Failed,
    ];
    let bytes: Vec<u8> = signing.into_iter().flat_map(encode).collect();
    golden::check_hex("row_signing_states", &bytes);
}

#[test]
fn the_numbers_of_parts_and_families_never_change() {
    assert_eq!((PART_HEAD, PART_REQUEST, PART_END, PART_SLOTS), (0, 1, 2, 100));
    assert_eq!((slot_part(0), slot_part(99)), (100, 199));
    let families = [Family::Keygen, Family::Signing, Family::Enclave];
    assert_eq!(families.map(|family| family as u8), [1, 2, 3]);
    assert_eq!(
        [
            keygen_key(KEYGEN_ID).family,
            signing_key(SIGNING_ID).family,
            enclave_key(EnclaveId([1; 16])).family
        ],
        families
    );
}

fn row(part: u32, version: u64, body: Vec<u8>) -> Row {
    Row { key: RowKey { record: keygen_key(KEYGEN_ID), part }, version, body }
}

#[test]
fn a_keygen_is_read_from_whatever_rows_it_has() {
    assert_eq!(KeygenRows::read(&[]).expect_err("no head"), CborError);
    let in_state = |state| KeygenHead { state, ..keygen_head() };
    let head = |state| row(PART_HEAD, 7, encode(in_state(state)));
    let read = KeygenRows::read(&[head(KeygenState::Reserved)]).expect("a reservation");
    assert_eq!((read.head, read.head_version, read.init), (in_state(KeygenState::Reserved), 7, None));
    assert_eq!((read.end, read.registrations), (None, vec![None, None]));

    let all = [
        head(KeygenState::Completed),
        row(PART_REQUEST, 1, encode(keygen_init())),
        row(PART_END, 1, encode(keygen_completed())),
        row(slot_part(0), 1, encode(registration())),
        row(slot_part(1), 1, encode(registration())),
    ];
    let read = KeygenRows::read(&all).expect("all rows");
    assert_eq!((read.init, read.end), (Some(keygen_init()), Some(keygen_completed())));
    assert_eq!(read.registrations, vec![Some(registration()), Some(registration())]);
    // Rows that no step writes together: without a registration, and in another state than the end says.
    assert_eq!(KeygenRows::read(&all[..4]).expect_err("a slot is empty"), CborError);
    let contradicting = [&[head(KeygenState::KeyGeneration)], &all[1..]].concat();
    assert_eq!(KeygenRows::read(&contradicting).expect_err("not ended"), CborError);

    for part in [PART_HEAD, PART_REQUEST, PART_END, slot_part(1)] {
        let mut damaged = all.clone();
        let row = damaged.iter_mut().find(|row| row.key.part == part).expect("listed above");
        row.body.pop();
        assert_eq!(KeygenRows::read(&damaged).expect_err("damaged"), CborError, "{part}");
    }
    // A row under another row's number is not taken for it.
    let swapped =
        [head(KeygenState::CollectingParticipants), row(PART_REQUEST, 1, encode(keygen_completed()))];
    assert_eq!(KeygenRows::read(&swapped).expect_err("another kind"), CborError);
}

#[test]
fn a_signing_session_needs_its_head_and_its_request() {
    let failed = SigningHead { state: SigningState::Failed, ..signing_head() };
    let head = row(PART_HEAD, 2, encode(failed));
    let request = row(PART_REQUEST, 1, encode(sign_request()));
    for rows in [vec![], vec![head.clone()], vec![request.clone()]] {
        assert_eq!(SigningRows::read(&rows).expect_err("incomplete"), CborError);
    }
    let approvals = row(slot_part(1), 1, encode(approval()));
    let end = row(PART_END, 1, encode(SigningEnd::Failed(failure())));
    let read = SigningRows::read(&[head, request, end, approvals]).expect("complete");
    assert_eq!((read.head, read.head_version, read.request), (failed, 2, sign_request()));
    assert_eq!((read.end, read.approvals), (Some(SigningEnd::Failed(failure())), vec![approval()]));
}

#[test]
fn writes_state_what_they_replace() {
    let new = new_row(keygen_key(KEYGEN_ID), PART_REQUEST, keygen_init());
    assert_eq!((new.key.part, new.replaces, new.body), (PART_REQUEST, 0, encode(keygen_init())));
    let head = head_row(keygen_key(KEYGEN_ID), 7, false, keygen_head());
    assert_eq!((head.key.part, head.replaces, head.open), (PART_HEAD, 7, false));
}

#[test]
fn a_reservation_is_recognised_whatever_the_order_of_its_slots() {
    let head = KeygenHead { state: KeygenState::Reserved, ..keygen_head() };
    let rows = KeygenRows::read(&[row(PART_HEAD, 1, encode(head))]).expect("a reservation");
    let slot = |user_id, byte| SlotRequest { user_id, slot_key: XOnlyKey([byte; 32]) };
    let same = ReserveRequest {
        keygen_id: KEYGEN_ID,
        session_key: XOnlyKey([9; 32]),
        coordinator: ALICE,
        slots: vec![slot(BOB, 2), slot(ALICE, 1)],
        timeout_ms: Some(600_000),
    };
    assert!(rows.is_reserved_by(&same));
    for other in [
        ReserveRequest { session_key: XOnlyKey([8; 32]), ..same.clone() },
        ReserveRequest { coordinator: BOB, ..same.clone() },
        ReserveRequest { timeout_ms: None, ..same.clone() },
        ReserveRequest { slots: vec![slot(BOB, 1), slot(ALICE, 2)], ..same.clone() },
        ReserveRequest { slots: vec![slot(ALICE, 1)], ..same.clone() },
        ReserveRequest { slots: vec![slot(ALICE, 1), slot(BOB, 2), slot(BOB, 2)], ..same.clone() },
    ] {
        assert!(!rows.is_reserved_by(&other), "{other:?}");
    }
}
