//! The exact bytes of every message between gateway and enclave, of the bundles inside and of user data.
//!
//! How to write the files anew says `golden/mod.rs`.

mod golden;
mod messages;
mod sample;

use golden::check_hex;
use keymeld_core::attestation::{BirthUserData, ServiceUserData};
use keymeld_core::bytes::{Hash, PartialSignature, PublicNonce};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::link::frame::{Frame, Kind};
use keymeld_core::link::message::{Reply, Request};
use keymeld_core::refusal::Code;
use messages::{identity_row, replies, requests};
use sample::{EPOCH, enclave_id};

#[test]
fn golden_requests() {
    let requests = requests();
    assert_eq!(requests.len(), 9, "one of each kind");
    for (name, request) in requests {
        let bytes = request.clone().encode();
        check_hex(&format!("request_{name}"), &bytes);
        assert_eq!(Request::decode(&bytes), Ok(request));
    }
}

#[test]
fn golden_replies() {
    let replies = replies();
    assert_eq!(replies.len(), 10, "one of each kind");
    for (name, reply) in replies {
        let bytes = reply.clone().encode();
        check_hex(&format!("reply_{name}"), &bytes);
        assert_eq!(Reply::decode(&bytes), Ok(reply));
    }
}

#[test]
fn golden_frames() {
    for (name, kind, body) in [
        ("request", Kind::Request, vec![1, 2, 3]),
        ("reply", Kind::Reply, vec![4; 300]),
        ("ping", Kind::Ping, vec![]),
        ("pong", Kind::Pong, vec![]),
    ] {
        let frame = Frame { kind, request_id: 0x0102_0304_0506_0708, routing_id: [0x4b; 16], body };
        let bytes = frame.encode().expect("small");
        check_hex(&format!("frame_{name}"), &bytes);
        assert_eq!(Frame::decode(bytes[4..].to_vec()), Ok(frame));
    }
}

#[test]
fn golden_bundles() {
    let nonces = NonceBundle::new(vec![PublicNonce([2; 66]), PublicNonce([3; 66])]);
    check_hex("bundle_nonces", &nonces.encode());
    assert_eq!(NonceBundle::decode(&nonces.encode(), 2), Ok(nonces.clone()));
    assert_eq!(NonceBundle::decode(&nonces.encode(), 1), Err(Code::BundleMismatch));
    let partials = PartialBundle::new(Hash([4; 32]), vec![PartialSignature([5; 32]); 2]);
    check_hex("bundle_partials", &partials.encode());
    assert_eq!(PartialBundle::decode(&partials.encode(), 2), Ok(partials.clone()));
    assert_eq!(PartialBundle::decode(&partials.encode(), 3), Err(Code::BundleMismatch));
}

#[test]
fn golden_user_data() {
    let row = identity_row();
    let service = ServiceUserData {
        enclave_id: enclave_id(0).0,
        epoch: EPOCH,
        identity_key: row.identity_key.0,
        birth_pcr0: [0xb0; 48],
        birth_time_ms: 1_800_000_000_000,
        config_hash: [0xcf; 32],
    };
    check_hex("user_data_service", &service.encode());
    assert_eq!(ServiceUserData::decode(&service.encode()), Ok(service));
    let birth = BirthUserData {
        enclave_id: enclave_id(0).0,
        epoch: EPOCH,
        ecies_key: row.ecies_key.0,
        identity_key: row.identity_key.0,
        encrypted_dek_hash: [0xde; 32],
    };
    check_hex("user_data_birth", &birth.encode());
    assert_eq!(BirthUserData::decode(&birth.encode()), Ok(birth));
}
