//! The exact bytes of every artifact of the sample session, and that each still opens.
//!
//! How to write the files anew says `golden/mod.rs`.

mod golden;
mod sample;

use golden::{check_hex, check_json, check_text};
use keymeld_core::api::http::Method;
use keymeld_core::api::proof::Subject;
use keymeld_core::artifact::approval::{Withdrawal, WithdrawalKind};
use keymeld_core::artifact::certificate::Certificate;
use keymeld_core::artifact::intent::VerifiedIntent;
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::manifest::Manifest;
use keymeld_core::artifact::registration::{open_envelope, open_record};
use keymeld_core::artifact::result::{ItemResult, Outcome, SigningResult};
use keymeld_core::bytes::{Blob, Signature};
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::seal::Context;
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::{AttemptId, SubsetId};
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Contribution, Session, aggregate_nonces, finish};
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use sample::{
    CREATED_AT, KEYGEN_ID, SIGNING_ID, SUBSET_ID, Sample, enclave_ecies, enclave_identity, enclave_seed,
};

#[test]
fn golden_test_keys() {
    let sample = Sample::new();
    let hexes = |secrets: &[&Secret<32>]| {
        let hexes: Vec<_> =
            secrets.iter().map(|secret| format!("\"{}\"", secret.to_hex().as_str())).collect();
        hexes.join(",")
    };
    let private_keys: Vec<_> = sample.users.iter().map(|user| &user.private_key).collect();
    let json = format!(
        "{{\"private_keys\":[{}],\"enclave_seeds\":[{}],\"session_secret\":{}}}",
        hexes(&private_keys),
        hexes(&[&enclave_seed(0), &enclave_seed(1)]),
        hexes(&[&sample.session_secret]),
    );
    check_json("test_keys", json.as_bytes());
}

#[test]
fn golden_manifest() {
    let sample = Sample::new();
    let bytes = sample.manifest.encode();
    check_json("manifest", &bytes);
    check_hex("manifest_hash", &sample.manifest_hash.0);
    check_hex("manifest_sealed", &sample.sealed_manifest().0);
    assert_eq!(Manifest::decode(&bytes), Ok(sample.manifest));
}

#[test]
fn golden_invites() {
    let sample = Sample::new();
    for (index, name) in [(1, "invite_pinned"), (2, "invite")] {
        let user = &sample.users[index];
        let copy = |secret: &Secret<32>| Secret::copied_from(secret.expose());
        let invite = Invite {
            version: 1,
            gateway_url: "https://gateway.example:8443/\"path\"".into(),
            keygen_id: KEYGEN_ID,
            user_id: user.user_id,
            manifest_hash: sample.manifest_hash,
            session_secret: copy(&sample.session_secret),
            slot_key: copy(&user.slot_key),
            invite_key: user.invite_key.as_ref().map(copy),
        };
        let bytes = invite.encode().expect("small");
        check_json(name, &bytes);
        assert_eq!(Invite::decode(&bytes), Ok(invite));
    }
}

#[test]
fn golden_registrations() {
    let sample = Sample::new();
    for (index, registration) in sample.registrations.iter().enumerate() {
        let user = &sample.users[index];
        let enclave = u8::try_from(user.enclave).expect("one of two");
        let enclave_key = sample.enclaves[user.enclave].enclave_key;
        check_hex(&format!("registration_{index}_envelope"), &registration.envelope.0);
        let plaintext = envelope::decrypt(&enclave_ecies(enclave), &registration.envelope);
        check_json(&format!("registration_{index}_plaintext"), &plaintext.expect("made for this enclave"));
        let opened = open_envelope(
            &enclave_ecies(enclave),
            &enclave_key,
            KEYGEN_ID,
            sample.manifest_hash,
            user.user_id,
            &registration.envelope,
        );
        let opened = opened.expect("made for this enclave");

        check_hex(&format!("registration_{index}_record"), &registration.record.0);
        let context = Context::Record {
            keygen_id: KEYGEN_ID,
            manifest_hash: sample.manifest_hash,
            user_id: user.user_id,
        };
        let signed = sample.session_seal().open(&context, &registration.record);
        check_json(&format!("registration_{index}_record_signed"), &signed.expect("of this session"));
        let verified = open_record(
            &sample.session_seal(),
            &sample.manifest,
            sample.manifest_hash,
            user.user_id,
            &registration.record,
        )
        .expect("of this session");
        check_json(&format!("registration_{index}_record_body"), &verified.body);
        assert_eq!(opened.check_record(&verified.record), Ok(()));
    }
}

#[test]
fn golden_roster_and_certificates() {
    let sample = Sample::new();
    let roster = sample.roster();
    check_hex("roster_hash", &roster.roster_hash().0);
    for index in [0, 1] {
        let enclave = sample.enclaves[usize::from(index)];
        let certificate = Certificate::of(&roster, enclave);
        check_json(&format!("certificate_{index}_body"), &strict::to_json(&certificate));
        let seed = 10 + u64::from(index);
        let sealed = certificate
            .seal(&enclave_identity(index), &sample.session_seal(), &mut test_entropy(seed))
            .expect("small");
        check_hex(&format!("certificate_{index}"), &sealed.0);
        let context = Context::Certificate {
            keygen_id: KEYGEN_ID,
            roster_hash: roster.roster_hash(),
            enclave_key: enclave.enclave_key,
        };
        let signed = sample.session_seal().open(&context, &sealed).expect("of this session");
        check_json(&format!("certificate_{index}_signed"), &signed);
        assert_eq!(Certificate::open(&roster, enclave, &sample.session_seal(), &sealed), Ok(certificate));
        let other = sample.enclaves[usize::from(1 - index)];
        assert_eq!(
            Certificate::open(&roster, other, &sample.session_seal(), &sealed),
            Err(Code::SealUnreadable)
        );
    }
}

#[test]
fn golden_intent() {
    let sample = Sample::new();
    check_json("intent_body", &strict::to_json(&sample.intent()));
    let sealed = sample.sealed_intent();
    check_hex("intent_digest", &sealed.digest.0);
    check_hex("intent", &sealed.sealed.0);
    let context = Context::Intent { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, digest: sealed.digest };
    let signed = sample.signing_seal().open(&context, &sealed.sealed).expect("of this session");
    check_json("intent_signed", &signed);
    assert_eq!(sample.verified_intent().intent(), &sample.intent());
    let elsewhere =
        VerifiedIntent::open(&sample.roster(), SIGNING_ID, &sample.session_seal(), &sample.sealed_intent());
    assert_eq!(elsewhere, Err(Code::SealUnreadable));
}

#[test]
fn golden_approvals_and_withdrawals() {
    let sample = Sample::new();
    let digest = sample.sealed_intent().digest;
    let approvals = sample.approvals();
    let json = strict::to_json(&approvals[0]);
    check_json("approval", &json);
    check_hex("approval_cbor", &strict::to_cbor(&approvals[0]));
    assert_eq!(strict::from_json(&json, 1_000), Ok(approvals[0]));
    assert_eq!(approvals[0].verify(&sample.users[1].auth_key().public()), Ok(()));

    for (kind, index, name) in
        [(WithdrawalKind::Decline, 1, "decline"), (WithdrawalKind::Cancel, 0, "cancel")]
    {
        let user = &sample.users[index];
        let mut entropy = test_entropy(20);
        let context = Context::Reason { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, user_id: user.user_id };
        let reason = sample.signing_seal().seal(&context, b"I never agreed to this.", &mut entropy);
        let reason = (kind == WithdrawalKind::Decline).then(|| reason.expect("small"));
        let key = user.auth_key();
        let withdrawal = Withdrawal::sign(kind, SIGNING_ID, user.user_id, digest, reason, &key, &mut entropy)
            .expect("never fails");
        let json = strict::to_json(&withdrawal);
        check_json(name, &json);
        assert_eq!(strict::from_json::<Withdrawal>(&json, 10_000), Ok(withdrawal.clone()));
        assert_eq!(withdrawal.verify(kind, &key.public()), Ok(()));
        let other = match kind {
            WithdrawalKind::Decline => WithdrawalKind::Cancel,
            WithdrawalKind::Cancel => WithdrawalKind::Decline,
        };
        assert_eq!(withdrawal.verify(other, &key.public()), Err(Code::ApprovalInvalid));
    }
}

/// The signature of all signers of an item, made here in one place.
fn signature(sample: &Sample, index: usize, subset: Option<SubsetId>) -> Signature {
    let roster = sample.roster();
    let item = &sample.intent().items[index];
    let key_agg = roster.key_agg(subset, roster.tweak(item.tweak.as_ref())).expect("valid tweaks");
    let mut entropy = test_entropy(30 + index as u64);
    let signers = roster.signers(subset).expect("a subset of the manifest");
    let nonces: Vec<SigningNonce> = signers
        .iter()
        .map(|record| {
            let user = sample.users.iter().find(|user| user.user_id == record.user_id).expect("a user");
            SigningNonce::generate(&user.private_key, &key_agg, item.message.0, &mut entropy)
                .expect("a member")
        })
        .collect();
    let public: Vec<_> = nonces.iter().map(SigningNonce::public).collect();
    let aggregate = aggregate_nonces(&public).expect("nonces");
    let session = Session::new(&key_agg, aggregate, item.message.0).expect("points");
    let contributions: Vec<Contribution> = nonces
        .into_iter()
        .zip(signers)
        .map(|(nonce, record)| Contribution {
            key: record.public_key.0,
            public_nonce: nonce.public(),
            partial: nonce.sign(&session).expect("its own session"),
        })
        .collect();
    Signature(finish(&session, &contributions).expect("everybody is honest"))
}

#[test]
fn golden_result() {
    let sample = Sample::new();
    let (roster, intent) = (sample.roster(), sample.verified_intent());
    let aggregator = sample.enclaves[0].enclave_key;
    let mut result = SigningResult::new(&roster, &intent, AttemptId([0xa7; 16]), aggregator);
    let items = &intent.intent().items;
    let error = Outcome::Error {
        code: Code::PartialInvalid.name().into(),
        culprits: vec![sample.users[1].user_id, sample.users[2].user_id],
    };
    let outcomes = [
        Outcome::Signature(signature(&sample, 0, None)),
        Outcome::Signature(signature(&sample, 1, Some(SUBSET_ID))),
        error,
    ];
    for (item, outcome) in items.iter().zip(outcomes) {
        result.items.push(ItemResult { item_id: item.item_id, outcome });
    }
    check_json("result_body", &strict::to_json(&result));
    let sealed =
        result.seal(&enclave_identity(0), &sample.signing_seal(), &mut test_entropy(40)).expect("small");
    check_hex("result", &sealed.0);
    let context = Context::Result { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, digest: intent.digest() };
    check_json("result_signed", &sample.signing_seal().open(&context, &sealed).expect("of this session"));
    let outcomes = SigningResult::open(&roster, &intent, &sample.signing_seal(), &sealed).expect("valid");
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
    let refusal = outcomes[2].as_ref().expect_err("an error");
    assert_eq!((refusal.code, refusal.culprits.len()), (Code::PartialInvalid, 2));

    // Signed by another enclave of the roster, or about the items in another order.
    let by_another = result.seal(&enclave_identity(1), &sample.signing_seal(), &mut test_entropy(40));
    result.items.swap(0, 1);
    let swapped = result.seal(&enclave_identity(0), &sample.signing_seal(), &mut test_entropy(40));
    for sealed in [by_another, swapped] {
        let opened = SigningResult::open(&roster, &intent, &sample.signing_seal(), &sealed.expect("small"));
        assert_eq!(opened, Err(Code::ResultInvalid));
    }
}

#[test]
fn golden_proof() {
    let sample = Sample::new();
    let key = sample.users[0].auth_key();
    let subject = Subject {
        method: Method::Get,
        authority: "gateway.example:8443",
        target: "/api/v1/keygen/4b4b4b4b-4b4b-4b4b-4b4b-4b4b4b4b4b4b/status?wait_ms=30000",
        body: b"",
    };
    let header = subject.prove(&key, CREATED_AT, &mut test_entropy(50)).expect("never fails");
    check_text("http_proof", &header);
    let caller = subject.verify(&header).expect("just made");
    assert_eq!((caller.key, caller.unix_ms), (key.public(), CREATED_AT));
}

#[test]
fn golden_envelope_and_seal() {
    let sample = Sample::new();
    let to = sample.enclaves[0].enclave_key;
    let envelope = envelope::encrypt(&to, b"plaintext", &mut test_entropy(60)).expect("small");
    check_hex("envelope", &envelope.0);
    let context = Context::Manifest { keygen_id: KEYGEN_ID, manifest_hash: sample.manifest_hash };
    let sealed = sample.session_seal().seal(&context, b"plaintext", &mut test_entropy(61)).expect("small");
    check_hex("seal", &sealed.0);
    let none: Blob = sample.session_seal().seal(&context, b"", &mut test_entropy(62)).expect("small");
    check_hex("seal_of_nothing", &none.0);
}
