//! What stands behind encryption: envelopes, seals, and signed artifacts inside them, with fixed test keys.

use std::sync::LazyLock;

use keymeld_core::artifact::Signed;
use keymeld_core::artifact::certificate::{Certificate, IdentitySignature};
use keymeld_core::artifact::intent::{IntentSignatures, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::manifest::Manifest;
use keymeld_core::artifact::registration::{RecordSignatures, open_envelope, open_record, user_auth_key};
use keymeld_core::artifact::result::SigningResult;
use keymeld_core::artifact::roster::Roster;
use keymeld_core::bytes::{Blob, Hash, PublicKey, Signature};
use keymeld_core::crypto::auth::{AuthKey, public_key};
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::link::message::{IdentityRow, Reply};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use super::program::Program;
use crate::stage::story::{STORY, signing_key};

/// What an enclave of the story knows, and the story's roster.
struct Known {
    rows: Vec<IdentityRow>,
    ecies: Vec<Secret<32>>,
    manifest: Manifest,
    roster: Roster,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let hosts = STORY.hosts.lock().expect("unpoisoned");
    let rows: Vec<IdentityRow> = identity_rows();
    let ecies = hosts.iter().zip(&rows).map(|(host, row)| host.ecies(row)).collect();
    Known { ecies, rows, manifest: STORY.manifest().0, roster: STORY.roster() }
});

/// The rows of the story's enclaves, by place.
pub fn identity_rows() -> Vec<IdentityRow> {
    let created = |reply: &Vec<u8>| match Reply::decode(reply) {
        Ok(Reply::IdentityCreated(row)) => Some(row),
        _ => None,
    };
    let mut rows: Vec<IdentityRow> = STORY.journal.replies.iter().filter_map(created).collect();
    rows.sort_by_key(|row| row.enclave_id);
    rows
}

/// A genuine envelope with one thing changed, or any plaintext in an envelope of one's own.
///
/// # Panics
/// Where an envelope opens that nobody made for this key and context.
pub fn envelopes(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let place = program.below(STORY.registrations.len());
    let registration = &STORY.registrations[place];
    let at = KNOWN.rows.iter().position(|row| row.ecies_key == registration.enclave_key).expect("a row");
    let (keygen_id, hash) = (KNOWN.manifest.keygen_id, STORY.init.manifest_hash);
    let user_id = registration.user_id;
    let open = |at: usize, user_id: UserId, hash: Hash, sealed: &Blob| {
        open_envelope(&KNOWN.ecies[at], &KNOWN.rows[at].ecies_key, keygen_id, hash, user_id, sealed)
    };
    match program.below(4) {
        0 => {
            let altered = Blob(program.altered(&registration.envelope.0));
            let opened = open(at, user_id, hash, &altered);
            assert_eq!(opened.is_ok(), altered == registration.envelope, "{opened:?}");
            if let Ok(opened) = opened {
                assert_eq!(opened.private_key, signing_key(place));
                assert_eq!(opened.session_secret, STORY.session_secret);
            }
        }
        1 => {
            let other = UserId(*registration.user_id.as_bytes());
            let wrong = program.below(3);
            let opened = match wrong {
                0 => open(1 - at, user_id, hash, &registration.envelope),
                1 => open(at, UserId(flipped(other.0, &mut program)), hash, &registration.envelope),
                _ => open(at, user_id, Hash(flipped(hash.0, &mut program)), &registration.envelope),
            };
            assert!(opened.is_err(), "an envelope opens elsewhere: {wrong}");
        }
        2 => {
            let genuine = envelope::decrypt(&KNOWN.ecies[at], &registration.envelope).expect("genuine");
            let plaintext = program.altered(&genuine);
            let changed = plaintext != *genuine;
            if let Some(opened) =
                sent(&KNOWN.rows[at].ecies_key, &plaintext, |sealed| open(at, user_id, hash, sealed).ok())
            {
                assert_eq!(opened.user_id, user_id);
                assert!(changed || opened.private_key == signing_key(place));
                let _ = opened.check_record(KNOWN.roster.record(user_id).expect("registered"));
            }
        }
        _ => {
            let raw = program.rest();
            assert!(open(at, user_id, hash, &Blob(raw.to_vec())).is_err(), "an envelope out of nothing");
            let opened = sent(&KNOWN.rows[at].ecies_key, raw, |sealed| open(at, user_id, hash, sealed).ok());
            assert!(opened.is_none_or(|opened| opened.user_id == user_id));
        }
    }
}

fn sent<T>(to: &PublicKey, plaintext: &[u8], open: impl Fn(&Blob) -> Option<T>) -> Option<T> {
    let sealed = envelope::encrypt(to, plaintext, &mut test_entropy(9)).ok()?;
    open(&sealed)
}

fn flipped<const N: usize>(mut bytes: [u8; N], program: &mut Program<'_>) -> [u8; N] {
    bytes[program.below(N)] ^= 1 << (program.byte() % 8);
    bytes
}

/// Genuine seals: key, context and blob.
fn genuine() -> Vec<(SealKey, Context, Blob)> {
    let keygen_id = KNOWN.manifest.keygen_id;
    let manifest_hash = STORY.init.manifest_hash;
    let mut seals = vec![(
        STORY.session_seal(),
        Context::Manifest { keygen_id, manifest_hash },
        STORY.init.manifest.clone(),
    )];
    for registration in &STORY.registrations {
        let context = Context::Record { keygen_id, manifest_hash, user_id: registration.user_id };
        seals.push((STORY.session_seal(), context, registration.record.clone()));
    }
    for request in &STORY.requests {
        let context =
            Context::Intent { keygen_id, signing_id: request.signing_id, digest: request.intent_digest };
        seals.push((STORY.signing_seal(request.signing_id), context, request.intent.clone()));
    }
    seals
}

static GENUINE: LazyLock<Vec<(SealKey, Context, Blob)>> = LazyLock::new(genuine);

/// A genuine seal with one thing changed, or under another's context; or the input, sealed.
///
/// # Panics
/// Where a seal opens that nobody made for this context, or to another plaintext than was sealed.
pub fn seals(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let seal = program.below(GENUINE.len());
    let (key, context, blob) = &GENUINE[seal];
    match program.below(4) {
        0 => {
            let altered = Blob(program.altered(&blob.0));
            assert_eq!(key.open(context, &altered).is_ok(), altered == *blob);
        }
        1 => {
            let other = program.below(GENUINE.len());
            assert_eq!(key.open(&GENUINE[other].1, blob).is_ok(), other == seal);
        }
        2 => {
            let plaintext = program.rest();
            let sealed = key.seal(context, plaintext, &mut test_entropy(10)).expect("small");
            assert_eq!(key.open(context, &sealed).expect("its own").as_slice(), plaintext);
        }
        _ => assert!(key.open(context, &Blob(program.rest().to_vec())).is_err()),
    }
}

/// Any body, signed by whoever may sign such a thing and sealed where it belongs: what a hostile participant
/// can make others read. The first byte says which artifact.
///
/// # Panics
/// Where something passes that says another thing than its context.
pub fn signed(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    match program.below(5) {
        0 => manifest(&mut program),
        1 => record(&mut program),
        2 => intent(&mut program),
        3 => certificate(&mut program),
        _ => result(&mut program),
    }
}

/// The body that the rest of the input makes of a genuine one: altered at two places, or another.
fn body(program: &mut Program<'_>, genuine: &[u8]) -> Vec<u8> {
    if program.byte() % 4 == 3 {
        return program.rest().to_vec();
    }
    let once = program.altered(genuine);
    program.altered(&once)
}

/// The body inside a genuine seal.
fn genuine_body<S: serde::Serialize + for<'de> serde::Deserialize<'de>>(seal: usize) -> Vec<u8> {
    let (key, context, blob) = &GENUINE[seal];
    let plaintext = key.open(context, blob).expect("genuine");
    strict::from_json::<Signed<S>>(&plaintext, 1 << 20).expect("genuine").body.0
}

fn sealed(key: &SealKey, context: &Context, plaintext: &[u8]) -> Option<Blob> {
    key.seal(context, plaintext, &mut test_entropy(11)).ok()
}

fn auth_key(secret: &Secret<32>) -> AuthKey {
    AuthKey::new(secret).expect("a key")
}

fn sign(key: &AuthKey, tag: Tag, body: &[u8]) -> Signature {
    key.sign(tag, &[body], &mut test_entropy(12)).expect("test entropy")
}

fn manifest(program: &mut Program<'_>) {
    let (key, context, blob) = &GENUINE[0];
    let genuine = key.open(context, blob).expect("genuine");
    let bytes = body(program, &genuine);
    if let Ok(manifest) = Manifest::decode(&bytes) {
        assert_eq!(manifest.check(), Ok(()));
        let again = manifest.encode();
        assert_eq!(Manifest::decode(&again).as_ref(), Ok(&manifest));
    }
}

fn record(program: &mut Program<'_>) {
    let place = program.below(STORY.registrations.len());
    let user_id = STORY.registrations[place].user_id;
    let bytes = body(program, &genuine_body::<RecordSignatures>(1 + place));
    let own = auth_key(&signing_key(place));
    let cosigner = STORY.invites.iter().find(|invite| invite.user_id == user_id);
    let cosignature = match cosigner.and_then(|invite| invite.invite_key.as_ref()) {
        Some(key) => sign(&auth_key(key), Tag::InviteKey, &bytes),
        None => sign(&own, Tag::PinnedKey, &bytes),
    };
    let possession = sign(&own, Tag::Possession, &bytes);
    let signed = Signed { body: Blob(bytes), signatures: RecordSignatures { possession, cosignature } };
    let (key, context, _) = &GENUINE[1 + place];
    let Some(sealed) = sealed(key, context, &strict::to_json(&signed)) else { return };
    let hash = STORY.init.manifest_hash;
    if let Ok(verified) = open_record(key, &KNOWN.manifest, hash, user_id, &sealed) {
        assert_eq!(verified.record.user_id, user_id);
        assert_eq!(verified.record.public_key, public_key(&signing_key(place)).expect("a key"));
        assert_eq!(verified.body, signed.body.0);
        assert!(!verified.record.rules.bind_nonces);
    }
}

fn intent(program: &mut Program<'_>) {
    let number = program.below(STORY.requests.len());
    let place = program.below(STORY.registrations.len());
    let bytes = body(program, &genuine_body::<IntentSignatures>(4 + number));
    let signing_id = STORY.requests[number].signing_id;
    let keygen_id: KeygenId = KNOWN.manifest.keygen_id;
    let requester = user_auth_key(&signing_key(place), keygen_id).expect("a key");
    let digest = tagged_hash(Tag::Intent, &[&bytes]);
    let requester = sign(&requester, Tag::Intent, &bytes);
    let signed = Signed { body: Blob(bytes), signatures: IntentSignatures { requester } };
    let context = Context::Intent { keygen_id, signing_id, digest };
    let key = STORY.signing_seal(signing_id);
    let Some(sealed) = sealed(&key, &context, &strict::to_json(&signed)) else { return };
    let sealed = SealedIntent { sealed, digest };
    if let Ok(verified) = VerifiedIntent::open(&KNOWN.roster, signing_id, &key, &sealed) {
        let intent = verified.intent();
        assert_eq!((intent.signing_id, intent.keygen_id), (signing_id, keygen_id));
        assert_eq!(intent.requester, STORY.registrations[place].user_id, "signed by the requester");
        assert_eq!(intent.requester, KNOWN.manifest.coordinator.user_id, "only the coordinator may ask");
        for item in &intent.items {
            assert!(item.origin.as_ref().is_none_or(|origin| origin.message() == Ok(item.message)));
            assert!(KNOWN.roster.signers(item.subset).is_ok());
            let _ = KNOWN.roster.key_agg(item.subset, KNOWN.roster.tweak(item.tweak.as_ref()));
        }
    }
}

fn certificate(program: &mut Program<'_>) {
    let enclaves: Vec<_> = KNOWN.roster.enclaves().into_iter().collect();
    let enclave = *program.pick(&enclaves).expect("there are some");
    let bytes = body(program, &strict::to_json(&Certificate::of(&KNOWN.roster, enclave)));
    // Nobody but the enclave has its key: a participant can only try another.
    let identity = sign(&auth_key(&signing_key(0)), Tag::Certificate, &bytes);
    let signed = Signed { body: Blob(bytes), signatures: IdentitySignature { identity } };
    let context = Context::Certificate {
        keygen_id: KNOWN.manifest.keygen_id,
        roster_hash: KNOWN.roster.roster_hash(),
        enclave_key: enclave.enclave_key,
    };
    let key = STORY.session_seal();
    let Some(sealed) = sealed(&key, &context, &strict::to_json(&signed)) else { return };
    assert!(Certificate::open(&KNOWN.roster, enclave, &key, &sealed).is_err(), "a forged certificate");
}

fn result(program: &mut Program<'_>) {
    static INTENT: LazyLock<VerifiedIntent> = LazyLock::new(|| STORY.intent(&KNOWN.roster, 0));
    let aggregator = KNOWN.rows[0].ecies_key;
    let result = SigningResult::new(&KNOWN.roster, &INTENT, keymeld_core::id::AttemptId([1; 16]), aggregator);
    let bytes = body(program, &strict::to_json(&result));
    let identity = sign(&auth_key(&signing_key(0)), Tag::Result, &bytes);
    let signed = Signed { body: Blob(bytes), signatures: IdentitySignature { identity } };
    let signing_id = INTENT.intent().signing_id;
    let context =
        Context::Result { keygen_id: KNOWN.manifest.keygen_id, signing_id, digest: INTENT.digest() };
    let key = STORY.signing_seal(signing_id);
    let Some(sealed) = sealed(&key, &context, &strict::to_json(&signed)) else { return };
    assert!(SigningResult::open(&KNOWN.roster, &INTENT, &key, &sealed).is_err(), "a forged result");
}
