//! Every limit of an artifact, met and passed by one.

mod sample;

use keymeld_core::api::http::{Method, Request};
use keymeld_core::api::proof::Subject;
use keymeld_core::api::router::{Call, route};
use keymeld_core::artifact::certificate::{Certificate, IdentitySignature};
use keymeld_core::artifact::intent::{Intent, IntentSignatures, Item, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::manifest::{Manifest, Participant, Pin, Subset};
use keymeld_core::artifact::registration::{Record, RecordSignatures, open_record, user_auth_key};
use keymeld_core::artifact::result::{ItemResult, Outcome, SigningResult};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::artifact::{Signed, tweak};
use keymeld_core::bytes::{Blob, Hash, Message};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealError, SealKey};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::{AttemptId, ItemId, SubsetId, UserId};
use keymeld_core::limits::{
    ANSWER_BYTES_MAX, BODY_BYTES_MAX, CERTIFICATE_BYTES_MAX, INTENT_BYTES_MAX, INTENT_LIFETIME_MAX_MS,
    INVITE_BYTES_MAX, ITEMS_MAX, JSON_INTEGER_MAX, MANIFEST_BYTES_MAX, NAME_BYTES_MAX, PARTICIPANTS_MAX,
    PARTICIPANTS_MIN, RECORD_BYTES_MAX, RESULT_BYTES_MAX, SEALED_BYTES_MAX, SHARES_MAX, SKEW_MS,
    SUBSET_MEMBERS_SUM_MAX, SUBSETS_MAX, TWEAKS_MAX,
};
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::strict::{JsonError, from_json, to_json};
use sample::{CREATED_AT, KEYGEN_ID, SIGNING_ID, SUBSET_ID, Sample, VALID_UNTIL, enclave_identity};
use serde_json::Value;

/// Fills a document up with white space, which is the only thing that may be added to one.
fn padded(mut document: Vec<u8>, length: usize) -> Vec<u8> {
    assert!(document.len() <= length);
    document.resize(length, b' ');
    document
}

/// A participant with a key of its own.
fn participant(index: usize) -> Participant {
    let secret = Secret::random(&mut test_entropy(5_000 + index as u64)).expect("never fails");
    let pin = Pin::InviteKey(AuthKey::new(&secret).expect("in range").public());
    Participant { user_id: user_id(index), name: None, pin }
}

fn user_id(index: usize) -> UserId {
    let mut id = [0xaa; 16];
    id[..8].copy_from_slice(&(index as u64).to_be_bytes());
    UserId(id)
}

fn subset_id(index: usize) -> SubsetId {
    SubsetId(user_id(index).0)
}

/// The sample's manifest with so many participants.
fn manifest_of(count: usize) -> Manifest {
    let mut manifest = Sample::new().manifest;
    manifest.subsets.clear();
    manifest.participants.truncate(1);
    manifest.participants.extend((1..count).map(participant));
    manifest
}

#[test]
fn a_session_has_2_to_100_participants() {
    assert_eq!((PARTICIPANTS_MIN, PARTICIPANTS_MAX), (2, 100));
    assert_eq!(manifest_of(PARTICIPANTS_MIN).check(), Ok(()));
    assert_eq!(manifest_of(PARTICIPANTS_MIN - 1).check(), Err(Code::TooFewParticipants));
    assert_eq!(manifest_of(PARTICIPANTS_MAX).check(), Ok(()));
    assert_eq!(manifest_of(PARTICIPANTS_MAX + 1).check(), Err(Code::TooManyParticipants));
    let nobody = Manifest { participants: vec![], ..manifest_of(2) };
    assert_eq!(nobody.check(), Err(Code::TooFewParticipants));
}

#[test]
fn a_manifest_has_a_bounded_number_of_subsets() {
    let mut manifest = manifest_of(PARTICIPANTS_MIN);
    let members: Vec<UserId> = manifest.participants.iter().map(|participant| participant.user_id).collect();
    let subset = |index| Subset { subset_id: subset_id(index), members: members.clone() };
    manifest.subsets = (0..SUBSETS_MAX).map(subset).collect();
    assert_eq!(manifest.check(), Ok(()));
    manifest.subsets.push(subset(SUBSETS_MAX));
    assert_eq!(manifest.check(), Err(Code::BadSubset));
}

#[test]
fn the_members_of_all_subsets_are_bounded_in_sum() {
    let mut manifest = manifest_of(PARTICIPANTS_MAX);
    let members: Vec<UserId> = manifest.participants.iter().map(|participant| participant.user_id).collect();
    let subset = |index, count| Subset { subset_id: subset_id(index), members: members[..count].to_vec() };
    let whole = SUBSET_MEMBERS_SUM_MAX / PARTICIPANTS_MAX;
    manifest.subsets = (0..whole - 1).map(|index| subset(index, PARTICIPANTS_MAX)).collect();
    manifest.subsets.push(subset(whole, PARTICIPANTS_MAX - 2));
    manifest.subsets.push(subset(whole + 1, 2));
    assert_eq!(manifest.check(), Ok(()));
    manifest.subsets.pop();
    manifest.subsets.push(subset(whole + 1, 3));
    assert_eq!(manifest.check(), Err(Code::BadSubset));
}

#[test]
fn a_subset_has_two_members_or_more() {
    let mut manifest = Sample::new().manifest;
    assert_eq!(manifest.check(), Ok(()));
    for members in [vec![], vec![manifest.participants[0].user_id]] {
        manifest.subsets[0].members = members;
        assert_eq!(manifest.check(), Err(Code::BadSubset));
    }
}

#[test]
fn names_are_bounded_in_bytes() {
    let mut manifest = Sample::new().manifest;
    for (name, verdict) in [
        ("n".repeat(NAME_BYTES_MAX), Ok(())),
        ("n".repeat(NAME_BYTES_MAX + 1), Err(Code::BadName)),
        ("\u{eb}".repeat(NAME_BYTES_MAX / 2), Ok(())),
        ("\u{eb}".repeat(NAME_BYTES_MAX / 2 + 1), Err(Code::BadName)),
        (String::new(), Ok(())),
    ] {
        manifest.participants[1].name = Some(name);
        assert_eq!(manifest.check(), verdict);
    }
}

#[test]
fn lists_of_tweaks_are_bounded_wherever_they_stand() {
    let steps = |count| vec![TweakStep::Taproot { merkle_root: None }; count];
    assert_eq!(tweak::steps(&steps(TWEAKS_MAX)).expect("at the limit").len(), TWEAKS_MAX);
    assert_eq!(tweak::steps(&steps(TWEAKS_MAX + 1)), Err(Code::BadTweak));
    let mut manifest = Sample::new().manifest;
    manifest.default_tweak = steps(TWEAKS_MAX);
    assert_eq!(manifest.check(), Ok(()));
    manifest.default_tweak = steps(TWEAKS_MAX + 1);
    assert_eq!(manifest.check(), Err(Code::BadTweak));
    assert_eq!(open_intent(|intent| intent.items[1].tweak = Some(steps(TWEAKS_MAX))), Ok(()));
    assert_eq!(
        open_intent(|intent| intent.items[1].tweak = Some(steps(TWEAKS_MAX + 1))),
        Err(Code::BadTweak)
    );
}

#[test]
fn a_manifest_sets_its_limit_on_items_within_the_protocols() {
    let mut manifest = Sample::new().manifest;
    for (items_max, verdict) in [
        (0, Err(Code::BadItems)),
        (1, Ok(())),
        (ITEMS_MAX as u64, Ok(())),
        (ITEMS_MAX as u64 + 1, Err(Code::BadItems)),
    ] {
        manifest.limits.items_max = items_max;
        assert_eq!(manifest.check(), verdict, "{items_max}");
    }
}

#[test]
fn a_manifest_ends_after_it_begins() {
    let mut manifest = Sample::new().manifest;
    for (expires_at, verdict) in [
        (None, Ok(())),
        (Some(CREATED_AT + 1), Ok(())),
        (Some(CREATED_AT), Err(Code::BadTimes)),
        (Some(JSON_INTEGER_MAX), Ok(())),
    ] {
        manifest.expires_at = expires_at;
        assert_eq!(manifest.check(), verdict);
    }
    let read = |expires_at: u64| {
        let mut value: Value = serde_json::from_slice(&manifest.encode()).expect("JSON");
        value["expires_at"] = expires_at.into();
        Manifest::decode(value.to_string().as_bytes()).map(|_| ())
    };
    assert_eq!(read(JSON_INTEGER_MAX), Ok(()));
    assert_eq!(read(JSON_INTEGER_MAX + 1), Err(Code::IntegerRange));
}

#[test]
fn a_manifest_is_bounded_in_bytes_and_the_largest_one_fits() {
    let bytes = Sample::new().manifest.encode();
    assert!(Manifest::decode(&padded(bytes.clone(), MANIFEST_BYTES_MAX)).is_ok());
    assert_eq!(Manifest::decode(&padded(bytes, MANIFEST_BYTES_MAX + 1)), Err(Code::TooLarge));

    let mut largest = manifest_of(PARTICIPANTS_MAX);
    let members: Vec<UserId> = largest.participants.iter().map(|participant| participant.user_id).collect();
    for participant in &mut largest.participants {
        // Six bytes for each in JSON.
        participant.name = Some("\u{1}".repeat(NAME_BYTES_MAX));
    }
    let each = SUBSET_MEMBERS_SUM_MAX / SUBSETS_MAX;
    let subset = |index| Subset { subset_id: subset_id(index), members: members[..each].to_vec() };
    largest.subsets = (0..SUBSETS_MAX).map(subset).collect();
    largest.default_tweak = vec![TweakStep::Taproot { merkle_root: Some(Hash([1; 32])) }; TWEAKS_MAX];
    let bytes = largest.encode();
    assert!(Manifest::decode(&bytes).is_ok(), "{} bytes", bytes.len());
}

#[test]
fn an_invite_is_bounded_in_bytes() {
    let sample = Sample::new();
    let copy = |secret: &Secret<32>| Secret::copied_from(secret.expose());
    let mut invite = Invite {
        version: 1,
        gateway_url: String::new(),
        keygen_id: KEYGEN_ID,
        user_id: sample.users[1].user_id,
        manifest_hash: sample.manifest_hash,
        session_secret: copy(&sample.session_secret),
        slot_key: copy(&sample.users[1].slot_key),
        invite_key: None,
    };
    let rest = invite.encode().expect("small").len();
    invite.gateway_url = "u".repeat(INVITE_BYTES_MAX - rest);
    let bytes = invite.encode().expect("at the limit");
    assert_eq!(bytes.len(), INVITE_BYTES_MAX);
    assert_eq!(Invite::decode(&bytes).as_ref(), Ok(&invite));
    invite.gateway_url.push('u');
    assert_eq!(invite.encode().expect_err("one more"), Code::TooLarge);
    let more = String::from_utf8(bytes.to_vec()).expect("JSON").replace("\"u", "\"uu");
    assert_eq!(Invite::decode(more.as_bytes()), Err(Code::TooLarge));
}

/// A signed artifact whose body is so long, as it is sealed.
fn signed<S: serde::Serialize>(body: &[u8], length: usize, sign: impl FnOnce(&[u8]) -> S) -> Vec<u8> {
    let body = padded(body.to_vec(), length);
    let signatures = sign(&body);
    to_json(&Signed { body: Blob(body), signatures })
}

#[test]
fn a_records_body_is_bounded_in_bytes() {
    let sample = Sample::new();
    let user = &sample.users[1];
    let record = sample.roster().record(user.user_id).expect("a user").clone();
    let key = AuthKey::new(&user.private_key).expect("in range");
    let context =
        Context::Record { keygen_id: KEYGEN_ID, manifest_hash: sample.manifest_hash, user_id: user.user_id };
    let open = |length| {
        let mut entropy = test_entropy(1);
        let plaintext = signed(&to_json::<Record>(&record), length, |body| RecordSignatures {
            possession: key.sign(Tag::Possession, &[body], &mut entropy).expect("never fails"),
            cosignature: key.sign(Tag::PinnedKey, &[body], &mut entropy).expect("never fails"),
        });
        let sealed = sample.session_seal().seal(&context, &plaintext, &mut entropy).expect("fits");
        open_record(&sample.session_seal(), &sample.manifest, sample.manifest_hash, user.user_id, &sealed)
            .map(|_| ())
    };
    assert_eq!(open(RECORD_BYTES_MAX), Ok(()));
    assert_eq!(open(RECORD_BYTES_MAX + 1), Err(Code::TooLarge));
}

#[test]
fn a_certificates_body_is_bounded_in_bytes() {
    let sample = Sample::new();
    let (roster, enclave) = (sample.roster(), sample.enclaves[0]);
    let certificate = Certificate::of(&roster, enclave);
    let context = Context::Certificate {
        keygen_id: KEYGEN_ID,
        roster_hash: roster.roster_hash(),
        enclave_key: enclave.enclave_key,
    };
    let open = |length| {
        let mut entropy = test_entropy(1);
        let plaintext = signed(&to_json(&certificate), length, |body| IdentitySignature {
            identity: enclave_identity(0).sign(Tag::Certificate, &[body], &mut entropy).expect("never fails"),
        });
        let sealed = sample.session_seal().seal(&context, &plaintext, &mut entropy).expect("fits");
        Certificate::open(&roster, enclave, &sample.session_seal(), &sealed).map(|_| ())
    };
    assert_eq!(open(CERTIFICATE_BYTES_MAX), Ok(()));
    assert_eq!(open(CERTIFICATE_BYTES_MAX + 1), Err(Code::TooLarge));
}

/// Opens the sample's intent, altered and signed by the coordinator.
fn open_intent(alter: impl FnOnce(&mut Intent)) -> Result<(), Code> {
    let sample = Sample::new();
    let mut intent = sample.intent();
    alter(&mut intent);
    let sealed = intent.seal(&sample.users[0].auth_key(), &sample.signing_seal(), &mut test_entropy(1))?;
    VerifiedIntent::open(&sample.roster(), SIGNING_ID, &sample.signing_seal(), &sealed).map(|_| ())
}

#[test]
fn an_intents_body_is_bounded_in_bytes() {
    let sample = Sample::new();
    let open = |length| {
        let mut entropy = test_entropy(1);
        let mut digest = Hash([0; 32]);
        let plaintext = signed(&to_json(&sample.intent()), length, |body| {
            digest = tagged_hash(Tag::Intent, &[body]);
            let key = user_auth_key(&sample.users[0].private_key, KEYGEN_ID).expect("in range");
            IntentSignatures { requester: key.sign(Tag::Intent, &[body], &mut entropy).expect("never fails") }
        });
        let context = Context::Intent { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, digest };
        let sealed = sample.signing_seal().seal(&context, &plaintext, &mut entropy).expect("fits");
        let sealed = SealedIntent { sealed, digest };
        VerifiedIntent::open(&sample.roster(), SIGNING_ID, &sample.signing_seal(), &sealed).map(|_| ())
    };
    assert_eq!(open(INTENT_BYTES_MAX), Ok(()));
    assert_eq!(open(INTENT_BYTES_MAX + 1), Err(Code::TooLarge));

    // A requester is told before it sends one.
    let text = |length| {
        let origin = keymeld_core::artifact::intent::Origin::Text("t".repeat(length));
        Item::of(origin, &mut test_entropy(1)).expect("supported")
    };
    let mut rest = 0;
    let sized = |length: usize, rest: &mut usize| {
        open_intent(|intent| {
            intent.items = vec![text(length)];
            *rest = to_json(intent).len() - length;
        })
    };
    assert_eq!(sized(1, &mut rest), Ok(()));
    assert_eq!(sized(INTENT_BYTES_MAX - rest, &mut rest), Ok(()));
    assert_eq!(sized(INTENT_BYTES_MAX - rest + 1, &mut rest), Err(Code::TooLarge));
}

fn blind_item(index: usize) -> Item {
    let id = ItemId(user_id(index).0);
    let blind = Item::blind(Message([7; 32]), &mut test_entropy(1)).expect("never fails");
    Item { item_id: id, ..blind }
}

#[test]
fn an_intent_has_items_within_the_manifests_limit() {
    let most = usize::try_from(Sample::new().manifest.limits.items_max).expect("small");
    let of = |count| open_intent(move |intent| intent.items = (0..count).map(blind_item).collect());
    assert_eq!(of(0), Err(Code::BadItems));
    assert_eq!(of(1), Ok(()));
    assert_eq!(of(most), Ok(()));
    assert_eq!(of(most + 1), Err(Code::BadItems));
    assert_eq!(open_intent(|intent| intent.items = vec![blind_item(1), blind_item(1)]), Err(Code::BadItems));
}

#[test]
fn an_intent_lives_a_bounded_time() {
    let until = |expires_at| open_intent(move |intent| intent.expires_at = expires_at);
    assert_eq!(until(CREATED_AT), Err(Code::BadTimes));
    assert_eq!(until(CREATED_AT + 1), Ok(()));
    assert_eq!(until(CREATED_AT + INTENT_LIFETIME_MAX_MS), Ok(()));
    assert_eq!(until(CREATED_AT + INTENT_LIFETIME_MAX_MS + 1), Err(Code::IntentLifetime));
    // The manifest and every registration of the sample end at one time.
    let late = |expires_at| {
        open_intent(move |intent| (intent.created_at, intent.expires_at) = (VALID_UNTIL - 1_000, expires_at))
    };
    assert_eq!(late(VALID_UNTIL), Ok(()));
    assert_eq!(late(VALID_UNTIL + 1), Err(Code::IntentLifetime));
}

#[test]
fn an_intent_is_valid_from_a_skew_before_it_was_made_until_it_expires() {
    let intent = Sample::new().verified_intent();
    let expires_at = intent.intent().expires_at;
    for (now, verdict) in [
        (CREATED_AT - SKEW_MS - 1, Err(Code::IntentNotYetValid)),
        (CREATED_AT - SKEW_MS, Ok(())),
        (expires_at - 1, Ok(())),
        (expires_at, Err(Code::IntentExpired)),
        (u64::MAX, Err(Code::IntentExpired)),
        (0, Err(Code::IntentNotYetValid)),
    ] {
        assert_eq!(intent.check_time(now), verdict, "{now}");
    }
}

#[test]
fn a_results_body_is_bounded_in_bytes() {
    let sample = Sample::new();
    let (roster, intent) = (sample.roster(), sample.verified_intent());
    let mut result = SigningResult::new(&roster, &intent, AttemptId([1; 16]), sample.enclaves[0].enclave_key);
    result.items = intent
        .intent()
        .items
        .iter()
        .map(|item| ItemResult {
            item_id: item.item_id,
            outcome: Outcome::Error { code: Code::NonceInvalid.name().into(), culprits: vec![] },
        })
        .collect();
    let context = Context::Result { keygen_id: KEYGEN_ID, signing_id: SIGNING_ID, digest: intent.digest() };
    let open = |length| {
        let mut entropy = test_entropy(1);
        let plaintext = signed(&to_json(&result), length, |body| IdentitySignature {
            identity: enclave_identity(0).sign(Tag::Result, &[body], &mut entropy).expect("never fails"),
        });
        let sealed = sample.signing_seal().seal(&context, &plaintext, &mut entropy).expect("fits");
        SigningResult::open(&roster, &intent, &sample.signing_seal(), &sealed).map(|_| ())
    };
    assert_eq!(open(RESULT_BYTES_MAX), Ok(()));
    assert_eq!(open(RESULT_BYTES_MAX + 1), Err(Code::TooLarge));
}

#[test]
fn the_largest_result_that_an_intent_can_have_is_sealed_and_nothing_that_cannot_be_opened() {
    let sample = Sample::new();
    let (roster, intent) = (sample.roster(), sample.verified_intent());
    let longest = Code::ALL.iter().map(|code| code.name()).max_by_key(|name| name.len()).expect("some");
    let mut result = SigningResult::new(&roster, &intent, AttemptId([1; 16]), sample.enclaves[0].enclave_key);
    let outcome =
        Outcome::Error { code: longest.into(), culprits: (0..SHARES_MAX / ITEMS_MAX).map(user_id).collect() };
    let item = |index| ItemResult { item_id: ItemId(user_id(index).0), outcome: outcome.clone() };
    result.items = (0..ITEMS_MAX).map(item).collect();
    let bytes = to_json(&result).len();
    assert!(bytes <= RESULT_BYTES_MAX, "{bytes} bytes");
    let seal = |result: &SigningResult| {
        result.seal(&enclave_identity(0), &sample.signing_seal(), &mut test_entropy(1))
    };
    assert!(seal(&result).is_ok());

    result.items.push(item(ITEMS_MAX));
    if let Outcome::Error { code, .. } = &mut result.items[ITEMS_MAX].outcome {
        *code = "c".repeat(RESULT_BYTES_MAX - bytes);
    }
    assert_eq!(seal(&result), Err(Code::TooLarge));
}

#[test]
fn a_sealed_blob_is_bounded_in_bytes() {
    let sample = Sample::new();
    let context = Context::Manifest { keygen_id: KEYGEN_ID, manifest_hash: sample.manifest_hash };
    let key = sample.session_seal();
    let seal = |length: usize| key.seal(&context, &vec![7; length], &mut test_entropy(1));
    // The last bucket ends at the limit's power of two, 29 bytes of header and tag too late.
    let (mut fits, mut not) = (0, SEALED_BYTES_MAX);
    while not - fits > 1 {
        let middle = fits.midpoint(not);
        *(if seal(middle).is_ok() { &mut fits } else { &mut not }) = middle;
    }
    let blob = seal(fits).expect("at the limit");
    assert!(blob.0.len() <= SEALED_BYTES_MAX && fits > SEALED_BYTES_MAX * 8 / 9, "{fits}");
    assert_eq!(key.open(&context, &blob).expect("own context").len(), fits);
    assert_eq!(seal(not), Err(SealError::TooLarge));
    assert!(key.open(&context, &Blob(vec![1; SEALED_BYTES_MAX + 1])).is_err());
}

#[test]
fn a_request_body_is_bounded_in_bytes() {
    let key = AuthKey::new(&Sample::new().users[0].slot_key).expect("in range");
    let read = |length| {
        let body = br#"{"manifest_hash":"0101010101010101010101010101010101010101010101010101010101010101","manifest":"00","subsets":[]}"#;
        let body = padded(body.to_vec(), length);
        let target = format!("/api/v1/keygen/{KEYGEN_ID}/init");
        let subject = Subject { method: Method::Post, authority: "g", target: &target, body: &body };
        let proof = subject.prove(&key, CREATED_AT, &mut test_entropy(1)).expect("never fails");
        route(&Request {
            method: Method::Post,
            authority: "g".into(),
            target,
            proof: Some(proof),
            authorization: None,
            body,
        })
    };
    assert!(matches!(read(BODY_BYTES_MAX), Ok(Call::Init { .. })));
    assert_eq!(read(BODY_BYTES_MAX + 1), Err(Code::TooLarge));
}

#[test]
fn the_bound_on_bytes_comes_before_everything_else() {
    let nonsense = vec![b'['; 11];
    assert_eq!(from_json::<Vec<u64>>(&nonsense, 10), Err(JsonError::TooLarge));
    assert_eq!(from_json::<Vec<u64>>(&nonsense, 11), Err(JsonError::Malformed));
    assert_eq!(from_json::<Vec<u64>>(b"[9007199254740991]", 18), Ok(vec![JSON_INTEGER_MAX]));
    assert_eq!(from_json::<Vec<u64>>(b"[9007199254740992]", 18), Err(JsonError::IntegerRange));
    let deep = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    for depth in [10, 127, 128, 1_000, 100_000] {
        assert!(from_json::<Vec<u64>>(&deep(depth), 1_000_000).is_err(), "{depth}");
    }
}

#[test]
fn subsets_outside_the_manifest_are_unknown() {
    assert_eq!(open_intent(|intent| intent.items[0].subset = Some(SUBSET_ID)), Ok(()));
    assert_eq!(open_intent(|intent| intent.items[0].subset = Some(subset_id(1))), Err(Code::UnknownSubset));
}

/// Whatever participants pad with white space, an honest gateway's answers can be read.
#[test]
fn the_largest_answers_fit() {
    let mut entropy = test_entropy(9);
    let seal_key = SealKey::new(Secret::copied_from(&[7; 32]));
    let context = Context::Manifest { keygen_id: KEYGEN_ID, manifest_hash: Hash([2; 32]) };
    let mut hex_of = |plaintext: usize| {
        let sealed = seal_key.seal(&context, &vec![b' '; plaintext], &mut entropy).expect("fits");
        2 * sealed.0.len()
    };
    let signed = |body: usize| 2 * body + 512;
    let record = hex_of(signed(RECORD_BYTES_MAX));
    assert!(record / 2 <= 4 * RECORD_BYTES_MAX, "the gateway takes it");
    // A certificate is an enclave's own work: no white space, and what each subset adds.
    let certificate = hex_of(signed(1_024 + SUBSETS_MAX * 160));
    let keygen = hex_of(MANIFEST_BYTES_MAX) + PARTICIPANTS_MAX * (record + certificate + 512);
    assert!(keygen + 4_096 < ANSWER_BYTES_MAX, "{keygen}");
    let result = hex_of(signed(RESULT_BYTES_MAX)) + 2 * PARTICIPANTS_MAX * 40;
    assert!(result + 4_096 < ANSWER_BYTES_MAX, "{result}");
    let intent = hex_of(signed(INTENT_BYTES_MAX)) + PARTICIPANTS_MAX * 512;
    assert!(intent + 4_096 < BODY_BYTES_MAX, "{intent}");
}
