//! `{:?}` of a secret, and of whatever holds one, shows nothing of it: logs and panics are no leaks.

mod sample;
mod shown;

use keymeld_core::api::http::{Method, Request};
use keymeld_core::api::proof::Subject;
use keymeld_core::api::router::{Call, route};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::{Registrant, open_envelope};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::SealKey;
use keymeld_core::enclave::Failed;
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::entropy::test_entropy;
use keymeld_core::gateway::{Config, Event, Gateway, RequestId};
use keymeld_core::id::EnclaveId;
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{Session, aggregate_nonces};
use keymeld_core::secret::{ApiToken, Secret};
use keymeld_core::time::Time;
use keymeld_core::{enclave, strict};
use sample::{KEYGEN_ID, Sample, enclave_ecies};
use shown::{assert_shows_nothing, base64, is_shown};

const TOKEN: &str = "Zq8-operator-token_5kX";

fn secret(seed: u64) -> Secret<32> {
    Secret::random(&mut test_entropy(seed)).expect("never fails")
}

#[test]
fn every_spelling_of_a_secret_is_noticed() {
    let bytes = *secret(1).expose();
    #[derive(Debug)]
    struct Tuple(#[expect(dead_code, reason = "printed")] [u8; 32]);
    for text in [
        format!("{bytes:?}"),
        format!("{:#?}", Tuple(bytes)),
        format!("{bytes:02x?}"),
        format!("{bytes:#04X?}"),
        format!("{:?}", secret(1).to_hex().as_str().to_uppercase()),
        format!("key {}=", base64(&bytes)),
        format!("key {}", base64(&bytes[1..]).replace('+', "-").replace('/', "_")),
        secret(1).to_hex()[20..40].to_string(),
    ] {
        assert!(is_shown(&text, &bytes), "{text}");
    }
    assert!(is_shown(&format!("{:?}", String::from("Bearer ") + TOKEN), TOKEN.as_bytes()));
    assert!(!is_shown(&format!("{:?}", secret(2).to_hex()), &bytes));
}

#[test]
fn keys_show_nothing() {
    let key = secret(1);
    let bytes = *key.expose();
    assert_shows_nothing(&key, &[&bytes]);
    assert_shows_nothing(&AuthKey::new(&key).expect("in range"), &[&bytes]);
    assert_shows_nothing(&SealKey::new(secret(1)), &[&bytes]);
    let derived = keymeld_core::crypto::derive::derive(&key, Purpose::SessionSeal(KEYGEN_ID));
    let seal_key = SealKey::derived(&key, Purpose::SessionSeal(KEYGEN_ID));
    assert_shows_nothing(&seal_key, &[&bytes, derived.expose()]);
    assert_shows_nothing(&Some(Ok::<_, ()>(secret(1))), &[&bytes]);
    assert_shows_nothing(&DataKey { key: secret(1), encrypted: vec![1] }, &[&bytes]);
    // A generator holds its last block, which a secret was made from.
    let mut entropy = test_entropy(1);
    let drawn = entropy.bytes::<32>().expect("never fails");
    assert_shows_nothing(&entropy, &[&drawn]);
}

#[test]
fn nonces_and_signing_sessions_show_nothing() {
    let keys = [secret(1), secret(2)];
    let public: Vec<_> =
        keys.iter().map(|key| keymeld_core::crypto::auth::public_key(key).expect("in range").0).collect();
    let key_agg = KeyAgg::new(&public, &[]).expect("points");
    let message = [7; 32];
    let nonces: Vec<_> = keys
        .iter()
        .map(|key| SigningNonce::generate(key, &key_agg, message, &mut test_entropy(3)).expect("a member"))
        .collect();
    let drawn: [u8; 32] = test_entropy(3).bytes().expect("never fails");
    let secrets: [&[u8]; 3] = [keys[0].expose(), keys[1].expose(), &drawn];
    assert_shows_nothing(&nonces, &secrets);
    let aggregate = aggregate_nonces(&[nonces[0].public(), nonces[1].public()]).expect("two nonces");
    assert_shows_nothing(&Session::new(&key_agg, aggregate, message).expect("valid"), &secrets);
}

#[test]
fn invites_and_registrations_show_nothing() {
    let sample = Sample::new();
    let user = &sample.users[2];
    let copy = |secret: &Secret<32>| Secret::copied_from(secret.expose());
    let invite_key = user.invite_key.as_ref().expect("an invited user");
    let invite = Invite {
        version: 1,
        gateway_url: "https://gateway.example".into(),
        keygen_id: KEYGEN_ID,
        user_id: user.user_id,
        manifest_hash: sample.manifest_hash,
        session_secret: copy(&sample.session_secret),
        slot_key: copy(&user.slot_key),
        invite_key: Some(copy(invite_key)),
    };
    let secrets: [&[u8]; 4] = [
        sample.session_secret.expose(),
        user.slot_key.expose(),
        invite_key.expose(),
        user.private_key.expose(),
    ];
    assert_shows_nothing(&invite, &secrets);
    let registrant = Registrant {
        manifest: &sample.manifest,
        manifest_hash: sample.manifest_hash,
        user_id: user.user_id,
        private_key: &user.private_key,
        session_secret: &sample.session_secret,
        invite_key: user.invite_key.as_ref(),
        enclave_key: sample.enclaves[0].enclave_key,
        identity_key: sample.enclaves[0].identity_key,
        rules: user.rules,
    };
    assert_shows_nothing(&registrant, &secrets);
    assert_shows_nothing(&sample.registrations, &secrets);
    let opened = open_envelope(
        &enclave_ecies(0),
        &sample.enclaves[0].enclave_key,
        KEYGEN_ID,
        sample.manifest_hash,
        user.user_id,
        &sample.registrations[2].envelope,
    );
    assert_shows_nothing(&opened.expect("made for this enclave"), &secrets);
}

#[test]
fn errors_about_secret_documents_do_not_quote_them() {
    let sample = Sample::new();
    let hex = sample.session_secret.to_hex();
    let secrets: [&[u8]; 1] = [sample.session_secret.expose()];
    for document in [
        format!("{{\"session_secret\":\"{}\"}}", hex.as_str()),
        format!("{{\"version\":\"{}\"}}", hex.as_str()),
        format!("{{\"{}\":1}}", hex.as_str()),
        format!("\"{}\"", hex.as_str()),
    ] {
        let error = Invite::decode(document.as_bytes()).expect_err("no invite");
        assert_shows_nothing(&error, &secrets);
        let error =
            strict::from_json::<keymeld_core::artifact::manifest::Manifest>(document.as_bytes(), 1_000);
        let error = error.expect_err("no manifest");
        assert_shows_nothing(&error, &secrets);
        assert!(!is_shown(&error.to_string(), secrets[0]));
    }
}

fn reserve_request() -> Request {
    let body = br#"{"keygen_id":"4b4b4b4b-4b4b-4b4b-4b4b-4b4b4b4b4b4b","session_key":"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798","coordinator":"10101010-1010-1010-1010-101010101010","slots":[]}"#;
    let subject =
        Subject { method: Method::Post, authority: "gateway", target: "/api/v1/keygen/reserve", body };
    let key = AuthKey::new(&secret(1)).expect("in range");
    let proof = subject.prove(&key, 1_800_000_000_000, &mut test_entropy(1)).expect("never fails");
    Request {
        method: Method::Post,
        authority: "gateway".into(),
        target: "/api/v1/keygen/reserve".into(),
        proof: Some(proof),
        authorization: Some(format!("Bearer {TOKEN}")),
        body: body.to_vec(),
    }
}

#[test]
fn the_operators_token_is_shown_nowhere() {
    let token: [&[u8]; 1] = [TOKEN.as_bytes()];
    let request = reserve_request();
    assert_shows_nothing(&request, &token);
    let call = route(&request).expect("well formed");
    assert!(matches!(&call, Call::Reserve { token: Some(_), .. }));
    assert_shows_nothing(&call, &token);
    let event = Event::Requested { request: RequestId(1), call };
    assert_shows_nothing(&event, &token);

    let mut config = Config::new(vec![EnclaveId([1; 16])]);
    config.api_token = Some(ApiToken::new(TOKEN.into()));
    assert_shows_nothing(&config, &token);
    let mut gateway = Gateway::new(config);
    let now = Time { unix_ms: 1_800_000_000_000, mono_ms: 0 };
    let mut entropy = test_entropy(2);
    assert_shows_nothing(&gateway, &token);
    gateway.handle(now, Event::Started, &mut entropy);
    while let Some(command) = gateway.poll_command() {
        assert_shows_nothing(&command, &token);
    }
    gateway.handle(now, event, &mut entropy);
    assert_shows_nothing(&gateway, &token);
    while let Some(command) = gateway.poll_command() {
        assert_shows_nothing(&command, &token);
    }
}

#[test]
fn events_of_an_enclave_show_no_data_key() {
    let bytes = *secret(1).expose();
    let events = [
        enclave::Event::DataKeyGenerated {
            token: 1,
            key: Ok(DataKey { key: secret(1), encrypted: vec![1] }),
        },
        enclave::Event::DataKeyDecrypted { token: 1, key: Ok(secret(1)) },
        enclave::Event::DataKeyDecrypted { token: 1, key: Err(Failed) },
    ];
    for event in &events {
        assert_shows_nothing(event, &[&bytes]);
    }
}
