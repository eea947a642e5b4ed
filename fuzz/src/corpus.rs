//! The seed corpus: genuine inputs of every target, made out of the story.
//!
//! `cargo run -p keymeld-fuzz --bin corpus` writes `fuzz/corpus/`. The same code makes the same bytes, so a test
//! checks that what is committed is what would be written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keymeld_core::api::http::Request as HttpRequest;
use keymeld_core::artifact::Signed;
use keymeld_core::artifact::certificate::Certificate;
use keymeld_core::artifact::intent::IntentSignatures;
use keymeld_core::artifact::registration::{RecordSignatures, Rules};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Hash, PartialSignature, PublicNonce};
use keymeld_core::crypto::auth::public_key;
use keymeld_core::crypto::seal::Context;
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::UserId;
use keymeld_core::link::frame::{Frame, Kind};
use keymeld_core::link::message::{Refused, Reply, Request};
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Session, aggregate_nonces};
use keymeld_core::musig::tweak::Tweak;
use keymeld_core::refusal::Code;
use keymeld_core::strict;

use crate::stage::host::policy;
use crate::stage::story::{STORY, rules, signing_key};
use crate::targets::{client, gateway, http};

/// Inputs by target, each with a name.
pub type Seeds = BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>;

/// Where the corpus is committed.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The whole corpus.
pub fn seeds() -> Seeds {
    let mut seeds = Seeds::new();
    link(&mut seeds);
    artifacts(&mut seeds);
    over_http(&mut seeds);
    attestation(&mut seeds);
    programs(&mut seeds);
    seeds
}

fn put(seeds: &mut Seeds, target: &'static str, name: impl Into<String>, bytes: Vec<u8>) {
    let before = seeds.entry(target).or_default().insert(name.into(), bytes);
    assert!(before.is_none(), "two seeds of one name");
}

/// The same with the first byte that says what kind it is.
fn put_kind(seeds: &mut Seeds, target: &'static str, name: impl Into<String>, kind: u8, bytes: &[u8]) {
    put(seeds, target, name, [&[kind], bytes].concat());
}

/// A variant's name, as Debug begins with it.
fn variant(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let name: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
    name.to_ascii_lowercase()
}

fn link(seeds: &mut Seeds) {
    let mut requests = BTreeMap::new();
    for asked in &STORY.journal.asked {
        let request = Request::decode(&asked.body).expect("genuine");
        requests.entry(variant(&request)).or_insert_with(|| asked.clone());
    }
    let mut stream = Vec::new();
    for (number, (name, asked)) in requests.into_iter().enumerate() {
        let frame = Frame {
            kind: Kind::Request,
            request_id: number as u64,
            routing_id: asked.routing_id,
            body: asked.body[..asked.body.len().min(40)].to_vec(),
        };
        stream.extend(frame.encode().expect("small"));
        put(seeds, "link_requests", name, asked.body);
    }
    let alive = [Kind::Ping, Kind::Pong];
    let alive = alive.map(|kind| Frame { kind, request_id: 1, routing_id: [0; 16], body: Vec::new() });
    stream.extend(alive.iter().flat_map(|frame| frame.encode().expect("small")));
    put(seeds, "frames", "stream", stream);
    let mut replies = BTreeMap::new();
    let refused = Refused { code: Code::UnknownAttempt.number(), culprits: vec![UserId([7; 16])] };
    for body in STORY.journal.replies.iter().cloned().chain([Reply::Refused(refused).encode()]) {
        let reply = Reply::decode(&body).expect("genuine");
        replies.entry(variant(&reply)).or_insert(body);
    }
    for (name, body) in replies {
        put(seeds, "link_replies", name, body);
    }
    put_kind(seeds, "bundles", "nonces", 2, &NonceBundle::new(vec![PublicNonce([2; 66]); 2]).encode());
    let partials = PartialBundle::new(Hash([3; 32]), vec![PartialSignature([4; 32])]);
    put_kind(seeds, "bundles", "partials", 1, &partials.encode());
}

fn artifacts(seeds: &mut Seeds) {
    let (manifest, manifest_hash) = STORY.manifest();
    let keygen_id = manifest.keygen_id;
    let roster = STORY.roster();
    put_kind(seeds, "artifacts", "manifest", 0, &manifest.encode());
    let registration = &STORY.registrations[2];
    let context = Context::Record { keygen_id, manifest_hash, user_id: registration.user_id };
    let plain = STORY.session_seal().open(&context, &registration.record).expect("genuine");
    let signed: Signed<RecordSignatures> = strict::from_json(&plain, 1 << 16).expect("genuine");
    put_kind(seeds, "artifacts", "record", 1, &signed.body.0);
    put_kind(seeds, "artifacts", "record-signed", 2, &plain);
    let request = &STORY.requests[0];
    let (signing_id, digest) = (request.signing_id, request.intent_digest);
    let seal = STORY.signing_seal(signing_id);
    let context = Context::Intent { keygen_id, signing_id, digest };
    let plain = seal.open(&context, &request.intent).expect("genuine");
    let signed: Signed<IntentSignatures> = strict::from_json(&plain, 1 << 20).expect("genuine");
    put_kind(seeds, "artifacts", "intent", 3, &signed.body.0);
    put_kind(seeds, "artifacts", "intent-signed", 4, &plain);
    let enclave = *roster.enclaves().first().expect("there are two");
    put_kind(seeds, "artifacts", "certificate", 5, &strict::to_json(&Certificate::of(&roster, enclave)));
    let sealed = STORY.journal.replies.iter().find_map(|body| match Reply::decode(body) {
        Ok(Reply::Aggregated(sealed)) => Some(sealed),
        _ => None,
    });
    let context = Context::Result { keygen_id, signing_id, digest };
    let plain = seal.open(&context, &sealed.expect("one was completed")).expect("genuine");
    let signed: Signed<keymeld_core::artifact::certificate::IdentitySignature> =
        strict::from_json(&plain, 1 << 20).expect("genuine");
    put_kind(seeds, "artifacts", "result-signed", 6, &plain);
    put_kind(seeds, "artifacts", "result", 7, &signed.body.0);
    put_kind(seeds, "artifacts", "rules", 10, &strict::to_json::<Rules>(&rules(1)));
    let tweaks = vec![
        TweakStep::Plain(Hash([1; 32])),
        TweakStep::XOnly(Hash([2; 32])),
        TweakStep::Taproot { merkle_root: Some(Hash([3; 32])) },
        TweakStep::Taproot { merkle_root: None },
    ];
    put_kind(seeds, "artifacts", "tweaks", 11, &strict::to_json(&tweaks));
    for (index, item) in STORY.reviews[0].intent.intent().items.iter().enumerate() {
        put_kind(seeds, "artifacts", format!("item-{index}"), 12, &strict::to_json(item));
    }
    for (index, invite) in STORY.invites.iter().enumerate() {
        put(seeds, "invites", format!("invite-{index}"), invite.encode().expect("small").to_vec());
    }
    let newest: BTreeMap<usize, &[u8]> = STORY.memberships().collect();
    for (place, bytes) in newest {
        let kind = u8::try_from(place).expect("few");
        put_kind(seeds, "memberships", format!("membership-{place}"), kind, bytes);
    }
}

/// The kind of an endpoint's bodies: as asked and as answered.
fn kinds(request: &HttpRequest) -> (Option<u8>, u8) {
    let path = request.target.split('?').next().unwrap_or_default();
    match path.rsplit('/').next().unwrap_or_default() {
        "reserve" => (Some(0), 1),
        "init" => (Some(2), 1),
        "slots" => (None, 1),
        "participants" => (Some(3), 4),
        "status" if path.contains("keygen") => (None, 4),
        "signing" => (Some(5), 6),
        "intent" => (None, 7),
        "attestation" => (None, 9),
        _ => (None, 6),
    }
}

fn over_http(seeds: &mut Seeds) {
    let mut seen = BTreeMap::new();
    for (_, request, response) in &STORY.journal.exchanges {
        let path = request.target.split('?').next().unwrap_or_default();
        let parts = path.split('/').filter(|part| !part.is_empty() && part.len() < 36);
        let name = format!("{}-{}", request.method.as_str(), parts.skip(2).collect::<Vec<_>>().join("-"));
        seen.entry(name.to_ascii_lowercase()).or_insert((request, response));
    }
    for (name, (request, response)) in seen {
        put_kind(seeds, "http", name.clone(), 63, &http::print(request));
        let (asked, answered) = kinds(request);
        if let Some(kind) = asked {
            put_kind(seeds, "rest", format!("{name}-request"), kind, &request.body);
        }
        put_kind(seeds, "rest", format!("{name}-response"), answered, &response.body);
        if name.ends_with("approve") {
            put_kind(seeds, "artifacts", "approval", 8, &request.body);
        }
        if name.ends_with("decline") {
            put_kind(seeds, "artifacts", "withdrawal", 9, &request.body);
        }
    }
    let problem = keymeld_core::api::problem::stale(1_800_000_000_000);
    put_kind(seeds, "rest", "problem", 12, &problem.body);
    let version = br#"{"version":"0.1.0","api":"v1"}"#;
    put_kind(seeds, "rest", "version", 10, version);
    put_kind(seeds, "rest", "health", 11, br#"{"enclaves_ready":1,"enclaves":2}"#);
}

fn attestation(seeds: &mut Seeds) {
    let documents = &STORY.journal.documents;
    let mut kinds = BTreeMap::new();
    for document in documents {
        let read =
            keymeld_core::attestation::document::Document::parse_unverified(document).expect("genuine");
        let name = match (&read.user_data, &read.nonce) {
            (None, _) => "time",
            (Some(_), None) => "birth",
            (Some(_), Some(_)) => "service",
        };
        kinds.entry(name).or_insert((document, read));
    }
    for (name, (document, read)) in kinds {
        put(seeds, "attestations", name, document.clone());
        if let Some(user_data) = read.user_data {
            put(seeds, "user_data", name, user_data);
        }
    }
    let hosts = STORY.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (leaf, [root, intermediate]) = hosts[0].certificates();
    for (name, certificate) in [("leaf", leaf), ("root", root), ("intermediate", intermediate)] {
        put(seeds, "certificates", name, certificate.to_vec());
    }
    put(seeds, "paths", "genuine", vec![0, 0]);
    put(seeds, "paths", "flipped", vec![1, 0, 1, 40, 1, 3, 1, 0, 60, 2, 9]);
    put(seeds, "policies", "development", policy(&STORY.root).to_json().into_bytes());
    let policy = keymeld_core::attestation::policy::Policy {
        roots: vec![keymeld_core::attestation::Root::aws_nitro_g1()],
        ..policy(&STORY.root)
    };
    put(seeds, "policies", "aws", policy.to_json().into_bytes());
}

const GATEWAY_TOML: &str = r#"
listen = "127.0.0.1:8080"
database = "keymeld.db"
api_token = "sesame"
drain_ms = 1000
[[enclaves]]
id = "e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e0e0"
address = "vsock:16:5000"
[[enclaves]]
id = "e1e1e1e1-e1e1-e1e1-e1e1-e1e1e1e1e1e1"
address = "tcp:127.0.0.1:5000"
[keygen]
[http]
[link]
[log]
"#;

const ENCLAVE_TOML: &str = r#"
id = "e0e0e0e0-e0e0-e0e0-e0e0-e0e0e0e0e0e0"
listen = "vsock:5000"
workers = 2
predecessors = []
[link]
[log]
"#;

fn programs(seeds: &mut Seeds) {
    put_kind(seeds, "settings", "gateway", 0, GATEWAY_TOML.as_bytes());
    put_kind(seeds, "settings", "enclave", 1, ENCLAVE_TOML.as_bytes());
    for part in 0..5 {
        put(seeds, "proofs", format!("part-{part}"), vec![part, part, 9, 1, 2, 3]);
    }
    for mode in 0..4 {
        put(seeds, "envelopes", format!("mode-{mode}"), vec![mode % 3, mode, 0, 90, 1, 3, 5]);
        put(seeds, "seals", format!("mode-{mode}"), vec![mode, mode, 0, 90, 1, 3, 5]);
    }
    for artifact in 0..5 {
        put(seeds, "signed", format!("artifact-{artifact}"), vec![artifact, 1, 0, 0, 120, 2, b'7', 1, 20, 0]);
    }
    put(seeds, "musig", "session", musig_session());
    put(seeds, "musig", "infinity", vec![2, 0, 8, 0, 2, 12, 12, 0, 8]);
    for (index, program) in gateway::honest().into_iter().enumerate() {
        put(seeds, "gateway_events", format!("honest-{index}"), program);
    }
    for call in [0_u8, 2, 5, 9, 14] {
        put(seeds, "gateway_rows", format!("call-{call}"), vec![0, 60, 7, 7, 7, 7, 7, 7, 7, call, 0, 0]);
    }
    put(seeds, "enclave_events", "genuine", vec![0; 7]);
    put(
        seeds,
        "enclave_events",
        "repeated",
        [&[0; 6][..], &[9, 0, 4, 0], &[9, 0, 5, 0], &[11, 1, 0]].concat(),
    );
    put(seeds, "enclave_events", "born", vec![12, 0, 0, 1, 13, 1, 13, 1, 14, 0, 1, 0]);
    for (index, program) in client::honest().into_iter().enumerate() {
        put(seeds, "client_events", format!("honest-{index}"), program);
    }
}

/// A genuine session of two signers, as [`crate::targets::musig::rounds`] reads it.
fn musig_session() -> Vec<u8> {
    let mut entropy = test_entropy(3);
    let secrets = [signing_key(0), signing_key(1)];
    let keys: Vec<[u8; 33]> = secrets.iter().map(|secret| public_key(secret).expect("a key").0).collect();
    let key_agg = KeyAgg::new(&keys, &[Tweak::Taproot { merkle_root: None }]).expect("two keys");
    let message = [5; 32];
    let nonces: Vec<SigningNonce> = secrets
        .iter()
        .map(|secret| SigningNonce::generate(secret, &key_agg, message, &mut entropy).expect("test entropy"))
        .collect();
    let public: Vec<[u8; 66]> = nonces.iter().map(SigningNonce::public).collect();
    let session = Session::new(&key_agg, aggregate_nonces(&public).expect("two"), message).expect("sound");
    let partials: Vec<[u8; 32]> =
        nonces.into_iter().map(|nonce| nonce.sign(&session).expect("a member")).collect();
    let mut bytes = vec![2, 0, 1, 1, 3, 2];
    for nonce in &public {
        bytes.push(15);
        bytes.extend_from_slice(&nonce[..33]);
        bytes.push(15);
        bytes.extend_from_slice(&nonce[33..]);
    }
    bytes.extend_from_slice(&message);
    bytes.push(0);
    for (place, partial) in partials.iter().enumerate() {
        bytes.push(u8::try_from(place).expect("two"));
        bytes.extend_from_slice(partial);
    }
    bytes
}
