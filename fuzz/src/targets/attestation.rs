//! Attestation: COSE and CBOR, certificates, user data, policies.

use std::sync::{LazyLock, PoisonError};

use keymeld_core::attestation::document::{CABUNDLE_COUNT_MAX, Document};
use keymeld_core::attestation::policy::Policy;
use keymeld_core::attestation::{
    BirthExpectation, BirthUserData, PCR_BYTES, Root, ServiceUserData, verify, verify_birth,
};
use keymeld_transport::nsm::software::Pcrs;
use minicbor::Encoder;

use super::program::Program;
use crate::stage::START;
use crate::stage::host::policy;
use crate::stage::story::STORY;

static POLICY: LazyLock<Policy> = LazyLock::new(|| policy(&STORY.root));

/// A document from anywhere.
///
/// # Panics
/// Where a bound is not kept, or where what the root's modules never made passes.
pub fn documents(bytes: &[u8]) {
    let read = Document::parse_unverified(bytes);
    if let Ok(document) = &read {
        assert!(!document.cabundle.is_empty() && document.cabundle.len() <= CABUNDLE_COUNT_MAX);
        assert!(document.pcrs.iter().all(|(index, pcr)| *index < 32 && !pcr.is_empty()));
        let _ = (document.is_from_enclave(), document.pcr(0));
    }
    let verified = verify(bytes, &POLICY.roots[0]);
    if let Ok(document) = verified {
        // ECDSA is malleable, and the tag may be left out: what is said has to be genuine, not each byte.
        let genuine = STORY.journal.documents.iter().map(|bytes| Document::parse_unverified(bytes));
        assert!(genuine.into_iter().any(|other| other.as_ref() == Ok(&document)), "a forged document");
        assert_eq!(read.as_ref(), Ok(&document));
        assert_ne!(document.pcr(0), Ok([0; PCR_BYTES]));
    }
    let _ = POLICY.check(START, bytes, &[0; 32]);
    let expected = BirthExpectation {
        enclave_id: [0xe0; 16],
        epoch: 0,
        ecies_key: [2; 33],
        identity_key: [2; 32],
        encrypted_dek_hash: [0; 32],
    };
    assert!(verify_birth(bytes, &POLICY.roots[0], &expected, &Pcrs::default().pcr0, &[]).is_err());
}

/// A certificate, as a root and as whoever signs a document.
///
/// # Panics
/// Where a stranger's certificate can vouch for a document.
pub fn certificates(bytes: &[u8]) {
    if let Ok(root) = Root::development(bytes) {
        assert_eq!(root.der(), bytes);
        assert_eq!(Root::development(root.der()).as_ref(), Ok(&root));
    }
    let unsigned = sign1(&payload(bytes, &[POLICY.roots[0].der()]), &[1; 96]);
    assert!(verify(&unsigned, &POLICY.roots[0]).is_err());
}

/// Genuinely signed documents whose certificate bundle is the input's: the path is looked for in earnest.
///
/// # Panics
/// Where one passes without the genuine intermediate certificate.
pub fn paths(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let hosts = STORY.hosts.lock().unwrap_or_else(PoisonError::into_inner);
    let host = &hosts[0];
    let (leaf, [root, intermediate]) = host.certificates();
    let pool = [intermediate, leaf, root];
    let mut bundle = vec![root.to_vec()];
    for _ in 0..=program.below(3) {
        let base = *program.pick(&pool).expect("three");
        bundle.push(program.altered(base));
    }
    let parts: Vec<&[u8]> = bundle.iter().map(Vec::as_slice).collect();
    let document = host.sign_payload(&payload(leaf, &parts));
    if verify(&document, &POLICY.roots[0]).is_ok() {
        // A certificate's ECDSA signature is malleable: its last 110 bytes may differ.
        let body = intermediate.len().saturating_sub(110);
        let genuine = |part: &&[u8]| part.get(4..body) == intermediate.get(4..body);
        assert!(parts[1..].iter().any(genuine), "a path without the intermediate certificate");
    }
}

/// A payload that says what an enclave's does, under this certificate and bundle.
pub fn payload(certificate: &[u8], cabundle: &[&[u8]]) -> Vec<u8> {
    let mut payload = Vec::new();
    encode(&mut Encoder::new(&mut payload), certificate, cabundle)
        .expect("writing to a vector does not fail");
    payload
}

fn encode(
    encoder: &mut Encoder<&mut Vec<u8>>,
    certificate: &[u8],
    cabundle: &[&[u8]],
) -> Result<(), minicbor::encode::Error<core::convert::Infallible>> {
    encoder.map(6)?.str("module_id")?.str("i-0123456789abcdef0-enc0000000000000001")?;
    encoder.str("digest")?.str("SHA384")?.str("timestamp")?.u64(START)?;
    encoder.str("pcrs")?.map(1)?.u8(0)?.bytes(&Pcrs::default().pcr0)?;
    encoder.str("certificate")?.bytes(certificate)?;
    encoder.str("cabundle")?.array(cabundle.len() as u64)?;
    for part in cabundle {
        encoder.bytes(part)?;
    }
    Ok(())
}

/// The outer structure around a payload.
pub fn sign1(payload: &[u8], signature: &[u8; 96]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    let parts = encoder.array(4).and_then(|encoder| encoder.bytes(&[0xa1, 0x01, 0x38, 0x22]));
    let parts = parts.and_then(|encoder| encoder.map(0)).and_then(|encoder| encoder.bytes(payload));
    parts.and_then(|encoder| encoder.bytes(signature)).expect("writing to a vector does not fail");
    bytes
}

/// User data of both kinds.
///
/// # Panics
/// Where its bytes are not the only ones for what was read, or one kind passes for the other.
pub fn user_data(bytes: &[u8]) {
    let service = ServiceUserData::decode(bytes);
    let birth = BirthUserData::decode(bytes);
    assert!(service.is_err() || birth.is_err(), "both purposes at once");
    if let Ok(service) = service {
        assert_eq!(service.encode(), bytes);
    }
    if let Ok(birth) = birth {
        assert_eq!(birth.encode(), bytes);
    }
}

/// A client's policy.
///
/// # Panics
/// Where it is read as something else when it is written again.
pub fn policies(bytes: &[u8]) {
    if let Ok(policy) = Policy::from_json(bytes) {
        assert_eq!(Policy::from_json(policy.to_json().as_bytes()).as_ref(), Ok(&policy));
    }
}
