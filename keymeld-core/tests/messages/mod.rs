//! One message of each kind, about the sample session.

// Every test binary that includes this module uses another part of it.
#![allow(dead_code)]

use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::id::AttemptId;
use keymeld_core::link::message::{
    Addressed, Aggregate, Attest, CheckRegistration, CreateIdentity, HelloReply, IdentityRow, KeygenOpened,
    MESSAGE_VERSION, MakeNonces, MakePartials, OpenKeygen, Refused, Reply, Request, RunKey, UserBlob,
};
use keymeld_core::refusal::{Code, Refusal};

use crate::sample::{EPOCH, KEYGEN_ID, SIGNING_ID, Sample, enclave_id};

pub(crate) fn identity_row() -> IdentityRow {
    let keys = Sample::new().enclaves[0];
    IdentityRow {
        version: MESSAGE_VERSION,
        enclave_id: enclave_id(0),
        epoch: EPOCH,
        ecies_key: keys.enclave_key,
        identity_key: keys.identity_key,
        birth_pcr0: Blob(vec![0xb0; 48]),
        encrypted_data_key: Blob(vec![0xd1; 40]),
        encrypted_seed: Blob(vec![0xd2; 60]),
        birth_document: Blob(vec![0xd3; 80]),
    }
}

fn addressed(sample: &Sample, byte: u8) -> Vec<Addressed> {
    vec![Addressed { peer: sample.enclaves[1].enclave_key, blob: Blob(vec![byte; 20]) }]
}

/// One of each kind, with the name of its golden file.
pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let sample = Sample::new();
    let enclave_key = sample.enclaves[0].enclave_key;
    let manifest = Blob(vec![0x3a; 24]);
    let user_blob =
        |index: usize, byte| UserBlob { user_id: sample.users[index].user_id, blob: Blob(vec![byte; 30]) };
    let run = RunKey {
        enclave_key,
        keygen_id: KEYGEN_ID,
        signing_id: SIGNING_ID,
        digest: Hash([0xd1; 32]),
        attempt: AttemptId([0xa7; 16]),
        aggregator: enclave_key,
    };
    let check = CheckRegistration {
        enclave_key,
        keygen_id: KEYGEN_ID,
        manifest_hash: sample.manifest_hash,
        manifest: manifest.clone(),
        user_id: sample.users[1].user_id,
        envelope: Blob(vec![0xe1; 24]),
        record: Blob(vec![0xe2; 25]),
        auth_key: sample.users[1].auth_key().public(),
        approval_required: true,
    };
    let open = OpenKeygen {
        enclave_key,
        keygen_id: KEYGEN_ID,
        manifest_hash: sample.manifest_hash,
        manifest,
        records: vec![user_blob(0, 1), user_blob(1, 2), user_blob(2, 3)],
        envelopes: vec![user_blob(0, 4), user_blob(2, 5)],
    };
    let make_nonces = MakeNonces { run, intent: Blob(vec![0x17; 300]), approvals: sample.approvals() };
    let make_partials = MakePartials { run, nonces: addressed(&sample, 6) };
    let aggregate = Aggregate { run, nonces: addressed(&sample, 6), partials: addressed(&sample, 7) };
    vec![
        ("hello", Request::Hello),
        ("create_identity", Request::CreateIdentity(CreateIdentity { epoch: EPOCH })),
        ("open_identity", Request::OpenIdentity(identity_row())),
        ("attest", Request::Attest(Attest { epoch: EPOCH, nonce: Hash([0x4e; 32]) })),
        ("check_registration", Request::CheckRegistration(check)),
        ("open_keygen", Request::OpenKeygen(open)),
        ("make_nonces", Request::MakeNonces(make_nonces)),
        ("make_partials", Request::MakePartials(make_partials)),
        ("aggregate", Request::Aggregate(aggregate)),
    ]
}

/// One of each kind, with the name of its golden file.
pub(crate) fn replies() -> Vec<(&'static str, Reply)> {
    let sample = Sample::new();
    let refusal = Refusal::blaming(Code::PartialInvalid, vec![sample.users[1].user_id]);
    let opened = KeygenOpened { roster_hash: Hash([0x40; 32]), certificate: Blob(vec![0xce; 30]) };
    vec![
        ("refused", Reply::Refused(Refused::from(refusal))),
        ("hello", Reply::Hello(HelloReply { enclave_id: enclave_id(0), epochs: vec![1, EPOCH, 1_000] })),
        ("identity_created", Reply::IdentityCreated(identity_row())),
        ("identity_opened", Reply::IdentityOpened),
        ("attested", Reply::Attested(Blob(vec![0xa7; 300]))),
        ("registration_checked", Reply::RegistrationChecked),
        ("keygen_opened", Reply::KeygenOpened(opened)),
        ("nonces_made", Reply::NoncesMade(addressed(&sample, 6))),
        ("partials_made", Reply::PartialsMade(Blob(vec![7; 20]))),
        ("aggregated", Reply::Aggregated(Blob(vec![8; 20]))),
    ]
}
