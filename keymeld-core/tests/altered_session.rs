//! Sealed artifacts whose plaintext a participant altered and sealed again: it knows the session secret, so
//! only signatures stand between it and the others.

mod golden;
mod sample;

use keymeld_core::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use keymeld_core::artifact::authority::VerifiedApprovals;
use keymeld_core::artifact::certificate::Certificate;
use keymeld_core::artifact::intent::{SealedIntent, VerifiedIntent};
use keymeld_core::artifact::registration::{Record, open_record};
use keymeld_core::artifact::result::SigningResult;
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::UserId;
use keymeld_core::refusal::Code;
use keymeld_core::strict::from_json;
use sample::{KEYGEN_ID, SIGNING_ID, Sample};

/// Seals every alteration of a plaintext: one bit of each byte, and every cut.
fn altered(key: &SealKey, context: &Context, plaintext: &[u8]) -> Vec<Blob> {
    let mut entropy = test_entropy(70);
    let mut altered = Vec::new();
    for position in 0..plaintext.len() {
        let mut flipped = plaintext.to_vec();
        flipped[position] ^= 1;
        altered.push(flipped);
        altered.push(plaintext[..position].to_vec());
    }
    altered.iter().map(|plaintext| key.seal(context, plaintext, &mut entropy).expect("small")).collect()
}

#[test]
fn no_byte_of_a_record_can_be_altered() {
    let sample = Sample::new();
    let user_id = sample.users[2].user_id;
    let context = Context::Record { keygen_id: KEYGEN_ID, manifest_hash: sample.manifest_hash, user_id };
    let signed = golden::json("registration_2_record_signed");
    let open = |sealed: &Blob| {
        open_record(&sample.session_seal(), &sample.manifest, sample.manifest_hash, user_id, sealed)
    };
    let unaltered = sample.session_seal().seal(&context, &signed, &mut test_entropy(1)).expect("small");
    assert!(open(&unaltered).is_ok());
    let (mut by_possession, mut by_cosignature) = (0, 0);
    for sealed in altered(&sample.session_seal(), &context, &signed) {
        match open(&sealed).expect_err("altered") {
            Code::BadPossession => by_possession += 1,
            Code::BadCosignature => by_cosignature += 1,
            _ => {}
        }
    }
    assert!(by_possession > 200 && by_cosignature > 50, "{by_possession} {by_cosignature}");
}

#[test]
fn no_byte_of_a_certificate_can_be_altered() {
    let sample = Sample::new();
    let (roster, enclave) = (sample.roster(), sample.enclaves[0]);
    let context = Context::Certificate {
        keygen_id: KEYGEN_ID,
        roster_hash: roster.roster_hash(),
        enclave_key: enclave.enclave_key,
    };
    let signed = golden::json("certificate_0_signed");
    for sealed in altered(&sample.session_seal(), &context, &signed) {
        assert!(Certificate::open(&roster, enclave, &sample.session_seal(), &sealed).is_err());
    }
}

#[test]
fn no_byte_of_an_intent_can_be_altered_under_any_digest() {
    let sample = Sample::new();
    let roster = sample.roster();
    let body = golden::json("intent_body");
    let signed = String::from_utf8(golden::json("intent_signed")).expect("JSON");
    let hex = base16ct::lower::encode_string(&body);
    assert!(signed.contains(&hex));
    let mut entropy = test_entropy(71);
    let mut open = |body: &[u8], digest: Hash| {
        let signed = signed.replace(&hex, &base16ct::lower::encode_string(body));
        let context = Context::Intent { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, digest };
        let sealed = sample.signing_seal().seal(&context, signed.as_bytes(), &mut entropy).expect("small");
        VerifiedIntent::open(&roster, SIGNING_ID, &sample.signing_seal(), &SealedIntent { sealed, digest })
    };
    let digest = sample.sealed_intent().digest;
    assert_eq!(open(&body, digest).expect("unaltered"), sample.verified_intent());
    let mut unsigned = 0;
    for bit in 0..body.len() * 8 {
        let mut flipped = body.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&flipped, digest).is_err(), "bit {bit} under the old digest");
        // Whoever alters an intent can compute its digest, and not the requester's signature.
        let refusal = open(&flipped, tagged_hash(Tag::Intent, &[&flipped])).expect_err("altered");
        unsigned += usize::from(refusal == Code::IntentUnsigned);
    }
    assert!(unsigned > 1_000, "{unsigned}");
}

#[test]
fn no_byte_of_a_result_can_be_altered() {
    let sample = Sample::new();
    let (roster, intent) = (sample.roster(), sample.verified_intent());
    let context = Context::Result { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, digest: intent.digest() };
    let signed = golden::json("result_signed");
    let open = |sealed: &Blob| SigningResult::open(&roster, &intent, &sample.signing_seal(), sealed);
    let unaltered = sample.signing_seal().seal(&context, &signed, &mut test_entropy(1)).expect("small");
    assert!(open(&unaltered).is_ok());
    for sealed in altered(&sample.signing_seal(), &context, &signed) {
        assert!(open(&sealed).is_err());
    }
}

#[test]
fn no_byte_of_an_approval_can_be_altered() {
    let sample = Sample::new();
    let (roster, intent) = (sample.roster(), sample.verified_intent());
    let bytes = golden::json("approval");
    let users = |approvals: &[Approval]| -> Vec<UserId> {
        VerifiedApprovals::verify(&roster, &intent, approvals, |_| true).expect("few").users().collect()
    };
    let good = from_json(&bytes, 1_000).expect("golden");
    assert_eq!(users(&[good]), [good.user_id]);
    let mut read = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(approval) = from_json(&flipped, 1_000) else { continue };
        assert_eq!(users(&[approval]), []);
        read += 1;
    }
    assert!(read > 550, "{read}");
}

#[test]
fn an_approval_speaks_for_its_user_and_its_consent_alone() {
    let sample = Sample::new();
    let (roster, intent) = (sample.roster(), sample.verified_intent());
    let approvals = sample.approvals();
    let users = |approvals: &[Approval]| -> Vec<UserId> {
        VerifiedApprovals::verify(&roster, &intent, approvals, |_| true).expect("few").users().collect()
    };
    let all: Vec<UserId> = approvals.iter().map(|approval| approval.user_id).collect();
    assert_eq!(users(&approvals), all);
    let mut other_user = approvals[0];
    other_user.user_id = approvals[1].user_id;
    let mut other_consent = approvals[0];
    other_consent.blind = false;
    let mut other_session = approvals[0];
    other_session.signing_id.0[0] ^= 1;
    for altered in [other_user, other_consent, other_session] {
        assert_eq!(users(&[altered]), []);
        assert_eq!(users(&[altered, approvals[0]]), [approvals[0].user_id]);
    }
    assert_eq!(users(&[approvals[0], approvals[0]]), [approvals[0].user_id]);
    let others = |record: &Record| record.user_id != approvals[0].user_id;
    let left = VerifiedApprovals::verify(&roster, &intent, &approvals, others).expect("few");
    assert_eq!(left.users().collect::<Vec<_>>(), all[1..]);
}

#[test]
fn a_withdrawal_is_about_one_intent_and_of_one_kind() {
    let sample = Sample::new();
    for (name, kind, user) in [("decline", WithdrawalKind::Decline, 1), ("cancel", WithdrawalKind::Cancel, 0)]
    {
        let withdrawal: Withdrawal = from_json(&golden::json(name), 10_000).expect("golden");
        for (index, other) in sample.users.iter().enumerate() {
            let verified = withdrawal.verify(kind, &other.auth_key().public());
            assert_eq!(verified.is_ok(), index == user, "{name} by {index}");
        }
        let mut altered = withdrawal.clone();
        altered.intent_digest.0[31] ^= 1;
        let key = sample.users[user].auth_key().public();
        assert_eq!(altered.verify(kind, &key), Err(Code::ApprovalInvalid));
        let newer = Withdrawal { version: 2, ..withdrawal };
        assert_eq!(newer.verify(kind, &key), Err(Code::UnsupportedVersion));
    }
}
