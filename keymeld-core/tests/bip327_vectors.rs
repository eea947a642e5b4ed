//! BIP-327's own vectors, through both engines: libsecp256k1 behind KeyMeld's guard, and the musig2 crate,
//! which is the oracle of other tests.
//!
//! Every case runs or is on the engine's list with its reason, and both are counted.
//!
//! The guard imports no secret nonce, by design. So where a vector gives one, the native engine asks the
//! guard whether it would sign (members, keys, tweaks, aggregate nonce) and then signs with the library
//! itself. Neither engine has DeterministicSign, and KeyMeld never uses it; its nonces are derived here.

mod vectors;

use std::collections::BTreeSet;

use keymeld_core::entropy::test_entropy;
use keymeld_core::musig::MusigError;
use keymeld_core::musig::aggregate::KeyAgg;
use keymeld_core::musig::nonce::SigningNonce;
use keymeld_core::musig::round::{self, Session};
use keymeld_core::musig::tweak::Tweak;
use keymeld_core::secret::Secret;
use musig2::secp::{MaybeScalar, Point, Scalar};
use secp256k1::{Keypair, PublicKey, SecretKey, musig};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vectors::{array, hexes, number, text, unhex, unhex_array};

/// A case that an engine cannot run: file, group, index in the group, reason.
type Listed = (&'static str, &'static str, usize, &'static str);

const MESSAGE_LENGTH: &str = "libsecp256k1's MuSig2 signs messages of exactly 32 bytes";
const AGGPK_INPUT: &str = "libsecp256k1's NonceGen takes a key aggregation, not an x-only key";
const SECNONCE_IMPORT: &str = "the guard imports no secret nonce, and the library aborts on a zero one";

const NATIVE_LISTED: &[Listed] = &[
    ("nonce_gen", "test_cases", 0, AGGPK_INPUT),
    ("nonce_gen", "test_cases", 1, AGGPK_INPUT),
    ("nonce_gen", "test_cases", 2, AGGPK_INPUT),
    ("sign_verify", "valid_test_cases", 4, MESSAGE_LENGTH),
    ("sign_verify", "valid_test_cases", 5, MESSAGE_LENGTH),
    ("sign_verify", "sign_error_test_cases", 5, SECNONCE_IMPORT),
    ("det_sign", "valid_test_cases", 2, MESSAGE_LENGTH),
];
const ORACLE_LISTED: &[Listed] = &[];

/// File, cases that ran, cases on the list.
type Count = (&'static str, usize, usize);

const NATIVE_COUNTS: [Count; 8] = [
    ("key_sort", 1, 0),
    ("key_agg", 9, 0),
    ("nonce_gen", 1, 3),
    ("nonce_agg", 5, 0),
    ("sign_verify", 14, 3),
    ("sig_agg", 5, 0),
    ("tweak", 6, 0),
    ("det_sign", 8, 1),
];
const ORACLE_COUNTS: [Count; 8] = [
    ("key_sort", 1, 0),
    ("key_agg", 9, 0),
    ("nonce_gen", 4, 0),
    ("nonce_agg", 5, 0),
    ("sign_verify", 17, 0),
    ("sig_agg", 5, 0),
    ("tweak", 6, 0),
    ("det_sign", 9, 0),
];

#[test]
fn the_native_engine_agrees_with_bip_327() {
    run::<Native>(NATIVE_LISTED, NATIVE_COUNTS);
}

#[test]
fn the_oracle_agrees_with_bip_327() {
    run::<Oracle>(ORACLE_LISTED, ORACLE_COUNTS);
}

fn run<E: Engine>(listed: &[Listed], counts: [Count; 8]) {
    let mut unused: BTreeSet<&Listed> = listed.iter().collect();
    for (name, ran_expected, listed_expected) in counts {
        let Some(bytes) = vectors::read(&format!("bip-0327/{name}_vectors.json")) else { return };
        let file: Value = serde_json::from_slice(&bytes).expect("the vectors are JSON");
        let (mut ran, mut skipped) = (0, 0);
        let all = cases(&file);
        for (group, index, case) in &all {
            match listed.iter().find(|(file, other, at, _)| file == &name && other == group && at == index) {
                Some(entry) => {
                    assert!(unused.remove(entry), "listed twice");
                    skipped += 1;
                }
                None => {
                    println!("{name} {group} {index}");
                    check::<E>(name, &file, group, case);
                    ran += 1;
                }
            }
        }
        assert_eq!((ran, skipped), (ran_expected, listed_expected), "{name}");
        assert_eq!(ran + skipped, all.len(), "{name}");
    }
    assert!(unused.is_empty(), "listed, but not in the files: {unused:?}");
}

/// Every case of a file, with its group and its index in the group. KeySort's file is one case.
fn cases(file: &Value) -> Vec<(&str, usize, &Value)> {
    let mut all = Vec::new();
    for (group, cases) in file.as_object().expect("an object") {
        if group.ends_with("test_cases") {
            all.extend(array(cases).iter().enumerate().map(|(index, case)| (group.as_str(), index, case)));
        }
    }
    if all.is_empty() { vec![("file", 0, file)] } else { all }
}

fn check<E: Engine>(name: &str, file: &Value, group: &str, case: &Value) {
    match name {
        "key_sort" => {
            let keys: Vec<[u8; 33]> = hexes(&case["pubkeys"]).map(unhex_array).collect();
            let sorted: Vec<[u8; 33]> = hexes(&case["sorted_pubkeys"]).map(unhex_array).collect();
            assert_eq!(E::key_sort(&keys), sorted);
        }
        "key_agg" => expect(case, E::key_agg(&Signers::of(file, case)).map(Vec::from)),
        "nonce_gen" => {
            let (secret, public) = E::nonce_gen(case);
            assert_eq!(secret[..], unhex(text(&case["expected_secnonce"]))[..64]);
            assert_eq!(public[..], unhex(text(&case["expected_pubnonce"])));
        }
        "nonce_agg" => {
            let nonces: Vec<[u8; 66]> = picked(file, case, "pnonces", "pnonce_indices");
            expect(case, E::nonce_agg(&nonces).map(Vec::from));
        }
        "sign_verify" => check_sign_verify::<E>(file, group, case),
        "sig_agg" => check_sig_agg::<E>(file, case),
        "tweak" => {
            let signers = Signers::of(file, case);
            let message = unhex(text(&file["msg"]));
            let aggnonce = unhex_array(text(&file["aggnonce"]));
            let secnonce = unhex_array(text(&file["secnonce"]));
            let secret_key = unhex_array(text(&file["sk"]));
            let inputs = SignInputs { secret_key, secnonce, aggnonce, message: &message };
            let partial = E::sign(&signers, &inputs);
            if let Ok(partial) = &partial {
                let nonces: Vec<[u8; 66]> = picked(file, case, "pnonces", "nonce_indices");
                assert_eq!(E::nonce_agg(&nonces), Ok(aggnonce));
                let signer = number(&case["signer_index"]);
                assert_eq!(E::verify(&signers, &nonces, signer, &message, partial), Ok(true));
            }
            expect(case, partial.map(Vec::from));
        }
        "det_sign" => {
            let answer = deterministic_sign::<E>(file, case).map(|(nonce, partial)| {
                let expected: Vec<Vec<u8>> = hexes(&case["expected"]).map(unhex).collect();
                assert_eq!(expected[0], nonce);
                assert_eq!(expected[1], partial);
            });
            match answer {
                Ok(()) => assert!(case.get("error").is_none()),
                Err(refusal) => assert_eq!(refusal, Refusal::of(case)),
            }
        }
        other => panic!("no such file: {other}"),
    }
}

fn check_sign_verify<E: Engine>(file: &Value, group: &str, case: &Value) {
    let signers = Signers::of(file, case);
    let message = unhex(text(&file["msgs"][number(&case["msg_index"])]));
    match group {
        "valid_test_cases" | "sign_error_test_cases" => {
            let aggnonce = unhex_array(text(&file["aggnonces"][number(&case["aggnonce_index"])]));
            let secnonce = case.get("secnonce_index").map_or(0, number);
            let secnonce = unhex_array(text(&file["secnonces"][secnonce]));
            let secret_key = unhex_array(text(&file["sk"]));
            let inputs = SignInputs { secret_key, secnonce, aggnonce, message: &message };
            let partial = E::sign(&signers, &inputs);
            if group == "valid_test_cases" {
                let nonces: Vec<[u8; 66]> = picked(file, case, "pnonces", "nonce_indices");
                assert_eq!(E::nonce_agg(&nonces), Ok(aggnonce));
                let signer = number(&case["signer_index"]);
                let partial = partial.as_ref().expect("a valid case");
                assert_eq!(E::verify(&signers, &nonces, signer, &message, partial), Ok(true));
            }
            expect(case, partial.map(Vec::from));
        }
        "verify_fail_test_cases" | "verify_error_test_cases" => {
            let nonces: Vec<[u8; 66]> = picked(file, case, "pnonces", "nonce_indices");
            let partial = unhex_array(text(&case["sig"]));
            let verdict = E::verify(&signers, &nonces, number(&case["signer_index"]), &message, &partial);
            match case.get("error") {
                None => assert_eq!(verdict, Ok(false)),
                Some(_) => assert_eq!(verdict, Err(Refusal::of(case))),
            }
        }
        other => panic!("no such group: {other}"),
    }
}

fn check_sig_agg<E: Engine>(file: &Value, case: &Value) {
    let signers = Signers::of(file, case);
    let message: [u8; 32] = unhex_array(text(&file["msg"]));
    let aggnonce = unhex_array(text(&case["aggnonce"]));
    let nonces: Vec<[u8; 66]> = picked(file, case, "pnonces", "nonce_indices");
    assert_eq!(E::nonce_agg(&nonces), Ok(aggnonce));
    let partials: Vec<[u8; 32]> = picked(file, case, "psigs", "psig_indices");
    let signature = E::sig_agg(&signers, &aggnonce, &partials, &message);
    if let Ok(signature) = &signature {
        let key = E::key_agg(&signers).expect("a valid case");
        assert!(round::verify(&key, &message, signature));
    }
    expect(case, signature.map(Vec::from));
}

/// BIP-327, *DeterministicSign*, on an engine's KeyAgg, NonceAgg and Sign.
fn deterministic_sign<E: Engine>(file: &Value, case: &Value) -> Answer<(Vec<u8>, Vec<u8>)> {
    let signers = Signers::of(file, case);
    let secret_key: [u8; 32] = unhex_array(text(&file["sk"]));
    let message = unhex(text(&file["msgs"][number(&case["msg_index"])]));
    let others: [u8; 66] = unhex_array(text(&case["aggothernonce"]));
    let aggregate_key = E::key_agg(&signers)?;
    let mut mixed = secret_key;
    if let Some(random) = case["rand"].as_str() {
        let mask = tagged_hash("MuSig/aux", &[&unhex(random)]);
        mixed.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    let length = u64::try_from(message.len()).expect("short").to_be_bytes();
    let mut secnonce = Vec::new();
    let mut public_nonce = Vec::new();
    for half in [0_u8, 1] {
        let input: [&[u8]; 6] = [&mixed, &others, &aggregate_key, &length, &message, &[half]];
        let k = SecretKey::from_secret_bytes(tagged_hash("MuSig/deterministic/nonce", &input));
        let k = k.expect("hashes above the group order do not occur");
        secnonce.extend(k.as_secret_bytes());
        public_nonce.extend(PublicKey::from_secret_key(&k).serialize());
    }
    let own = SecretKey::from_secret_bytes(secret_key).expect("in range");
    secnonce.extend(PublicKey::from_secret_key(&own).serialize());
    let both = [public_nonce.clone().try_into().expect("two points"), others];
    let aggnonce = E::nonce_agg(&both)
        .map_err(|_| Refusal::Contribution { signer: None, contribution: "aggothernonce".into() })?;
    let secnonce = secnonce.try_into().expect("two scalars and a key");
    let partial = E::sign(&signers, &SignInputs { secret_key, secnonce, aggnonce, message: &message })?;
    Ok((public_nonce, partial.into()))
}

/// What BIP-327 says an algorithm refuses.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Contribution { signer: Option<usize>, contribution: String },
    Value(String),
}

type Answer<T> = Result<T, Refusal>;

const TWEAK_RANGE: &str = "The tweak must be less than n.";
const TWEAK_INFINITY: &str = "The result of tweaking cannot be infinity.";
const NOT_A_MEMBER: &str = "The signer's pubkey must be included in the list of pubkeys.";
const SECNONCE_RANGE: &str = "first secnonce value is out of range.";

impl Refusal {
    fn of(case: &Value) -> Refusal {
        let error = &case["error"];
        match text(&error["type"]) {
            "invalid_contribution" => Refusal::Contribution {
                signer: error["signer"].as_u64().map(|signer| usize::try_from(signer).expect("small")),
                contribution: text(&error["contrib"]).into(),
            },
            "value" => Refusal::Value(text(&error["message"]).into()),
            other => panic!("no such error: {other}"),
        }
    }

    fn contribution(signer: impl Into<Option<usize>>, contribution: &str) -> Refusal {
        Refusal::Contribution { signer: signer.into(), contribution: contribution.into() }
    }
}

impl From<MusigError> for Refusal {
    fn from(error: MusigError) -> Refusal {
        match error {
            MusigError::InvalidKey { index } => Refusal::contribution(index, "pubkey"),
            MusigError::InvalidPublicNonce { index } => Refusal::contribution(index, "pubnonce"),
            MusigError::InvalidAggregateNonce => Refusal::contribution(None, "aggnonce"),
            MusigError::PartialOutOfRange { index } => Refusal::contribution(index, "psig"),
            MusigError::TweakOutOfRange { .. } => Refusal::Value(TWEAK_RANGE.into()),
            MusigError::TweakedToInfinity { .. } => Refusal::Value(TWEAK_INFINITY.into()),
            MusigError::NotAMember => Refusal::Value(NOT_A_MEMBER.into()),
            other => panic!("no vector asks for this: {other}"),
        }
    }
}

/// The keys of a case in its order, and its tweaks.
struct Signers {
    keys: Vec<[u8; 33]>,
    tweaks: Vec<([u8; 32], bool)>,
}

impl Signers {
    fn of(file: &Value, case: &Value) -> Signers {
        // DeterministicSign's cases hold their tweaks, the others' hold indexes.
        let tweaks: Vec<[u8; 32]> = match (case.get("tweaks"), case.get("tweak_indices")) {
            (Some(tweaks), _) => hexes(tweaks).map(unhex_array).collect(),
            (None, Some(_)) => picked(file, case, "tweaks", "tweak_indices"),
            (None, None) => Vec::new(),
        };
        let modes: Vec<bool> = match case.get("is_xonly") {
            Some(modes) => array(modes).iter().map(|mode| mode.as_bool().expect("a boolean")).collect(),
            None => Vec::new(),
        };
        assert_eq!(tweaks.len(), modes.len());
        Signers {
            keys: picked(file, case, "pubkeys", "key_indices"),
            tweaks: tweaks.into_iter().zip(modes).collect(),
        }
    }
}

/// What Sign takes besides the signers.
struct SignInputs<'a> {
    secret_key: [u8; 32],
    secnonce: [u8; 97],
    aggnonce: [u8; 66],
    message: &'a [u8],
}

trait Engine {
    fn key_sort(keys: &[[u8; 33]]) -> Vec<[u8; 33]>;
    fn key_agg(signers: &Signers) -> Answer<[u8; 32]>;
    /// The two secret scalars and the public nonce.
    fn nonce_gen(case: &Value) -> ([u8; 64], [u8; 66]);
    fn nonce_agg(nonces: &[[u8; 66]]) -> Answer<[u8; 66]>;
    fn sign(signers: &Signers, inputs: &SignInputs<'_>) -> Answer<[u8; 32]>;
    fn verify(
        signers: &Signers,
        nonces: &[[u8; 66]],
        signer: usize,
        message: &[u8],
        partial: &[u8; 32],
    ) -> Answer<bool>;
    fn sig_agg(
        signers: &Signers,
        aggnonce: &[u8; 66],
        partials: &[[u8; 32]],
        message: &[u8; 32],
    ) -> Answer<[u8; 64]>;
}

/// libsecp256k1 behind KeyMeld's guard.
struct Native;

impl Native {
    fn guarded(signers: &Signers) -> Answer<KeyAgg> {
        let tweaks: Vec<Tweak> = signers
            .tweaks
            .iter()
            .map(|(tweak, is_xonly)| if *is_xonly { Tweak::XOnly(*tweak) } else { Tweak::Plain(*tweak) })
            .collect();
        Ok(KeyAgg::unsorted(&signers.keys, &tweaks)?)
    }

    fn unguarded(signers: &Signers) -> musig::KeyAggCache {
        let parse = |key: &[u8; 33]| PublicKey::from_byte_array_compressed(*key).expect("the guard took it");
        let keys: Vec<PublicKey> = signers.keys.iter().map(parse).collect();
        let mut cache = musig::KeyAggCache::new(&keys.iter().collect::<Vec<_>>());
        for (tweak, is_xonly) in &signers.tweaks {
            let tweak = secp256k1::Scalar::from_be_bytes(*tweak).expect("the guard took it");
            match is_xonly {
                true => cache.pubkey_xonly_tweak_add(&tweak),
                false => cache.pubkey_ec_tweak_add(&tweak),
            }
            .expect("the guard took it");
        }
        cache
    }

    /// A secret nonce of the vectors in the library's form, whose frame comes from a throw-away nonce.
    fn import(secnonce: &[u8; 97], key: PublicKey) -> musig::SecretNonce {
        let random = musig::SessionSecretRand::assume_uniformly_random([1; 32]);
        let frame = musig::new_nonce_pair(random, None, None, key, None, None).0;
        let mut bytes = frame.dangerous_into_bytes();
        bytes[SCALARS].copy_from_slice(&secnonce[..64]);
        musig::SecretNonce::dangerous_from_bytes(bytes)
    }
}

/// Where the two scalars are in the library's secret nonce: after a mark, before the public key.
const SCALARS: std::ops::Range<usize> = 4..68;

impl Engine for Native {
    fn key_sort(keys: &[[u8; 33]]) -> Vec<[u8; 33]> {
        KeyAgg::new(keys, &[]).expect("valid keys").keys().into()
    }

    fn key_agg(signers: &Signers) -> Answer<[u8; 32]> {
        Ok(Native::guarded(signers)?.output_key())
    }

    fn nonce_gen(case: &Value) -> ([u8; 64], [u8; 66]) {
        assert!(["sk", "aggpk", "msg", "extra_in"].iter().all(|input| case[input].is_null()));
        let random = musig::SessionSecretRand::assume_uniformly_random(unhex_array(text(&case["rand_"])));
        let key = PublicKey::from_byte_array_compressed(unhex_array(text(&case["pk"]))).expect("a point");
        let (secret, public) = musig::new_nonce_pair(random, None, None, key, None, None);
        let scalars = secret.dangerous_into_bytes()[SCALARS].try_into().expect("64 bytes");
        (scalars, public.serialize())
    }

    fn nonce_agg(nonces: &[[u8; 66]]) -> Answer<[u8; 66]> {
        Ok(round::aggregate_nonces(nonces)?)
    }

    fn sign(signers: &Signers, inputs: &SignInputs<'_>) -> Answer<[u8; 32]> {
        let SignInputs { secret_key, secnonce, aggnonce, message } = inputs;
        let message: [u8; 32] = (*message).try_into().expect("listed, if not 32 bytes");
        let key_agg = Native::guarded(signers)?;
        let session = Session::new(&key_agg, *aggnonce, message)?;
        let secret = Secret::copied_from(secret_key);
        let nonce = SigningNonce::generate(&secret, &key_agg, message, &mut test_entropy(1))?;
        nonce.sign(&session).expect("what has a nonce can sign");

        let keypair = Keypair::from_secret_bytes(*secret_key).expect("the guard took it");
        let cache = Native::unguarded(signers);
        let aggnonce = musig::AggregatedNonce::from_byte_array(aggnonce).expect("the guard took it");
        let nonce = Native::import(secnonce, keypair.public_key());
        let session = musig::Session::new(&cache, aggnonce, &message);
        Ok(session.partial_sign(nonce, &keypair, &cache).serialize())
    }

    fn verify(
        signers: &Signers,
        nonces: &[[u8; 66]],
        signer: usize,
        message: &[u8],
        partial: &[u8; 32],
    ) -> Answer<bool> {
        let message = message.try_into().expect("listed, if not 32 bytes");
        let aggnonce = round::aggregate_nonces(nonces)?;
        let session = Session::new(&Native::guarded(signers)?, aggnonce, message)?;
        match session.verify_partial(&signers.keys[signer], &nonces[signer], partial) {
            Ok(()) => Ok(true),
            Err(MusigError::WrongPartial | MusigError::PartialOutOfRange { .. }) => Ok(false),
            Err(refused) => Err(refused.into()),
        }
    }

    fn sig_agg(
        signers: &Signers,
        aggnonce: &[u8; 66],
        partials: &[[u8; 32]],
        message: &[u8; 32],
    ) -> Answer<[u8; 64]> {
        let session = Session::new(&Native::guarded(signers)?, *aggnonce, *message)?;
        Ok(session.aggregate_partials(partials)?)
    }
}

/// The musig2 crate.
struct Oracle;

impl Oracle {
    fn context(signers: &Signers) -> Answer<musig2::KeyAggContext> {
        let parse = |(index, key): (usize, &[u8; 33])| {
            Point::from_slice(key).map_err(|_| Refusal::contribution(index, "pubkey"))
        };
        let keys: Vec<Point> = signers.keys.iter().enumerate().map(parse).collect::<Answer<_>>()?;
        let mut context = musig2::KeyAggContext::new(keys).expect("the sum is a point");
        for (tweak, is_xonly) in &signers.tweaks {
            let tweak = MaybeScalar::from_slice(tweak).map_err(|_| Refusal::Value(TWEAK_RANGE.into()))?;
            context =
                context.with_tweak(tweak, *is_xonly).map_err(|_| Refusal::Value(TWEAK_INFINITY.into()))?;
        }
        Ok(context)
    }

    fn public_nonces(nonces: &[[u8; 66]]) -> Answer<Vec<musig2::PubNonce>> {
        let parse = |(index, nonce): (usize, &[u8; 66])| {
            musig2::PubNonce::from_bytes(nonce).map_err(|_| Refusal::contribution(index, "pubnonce"))
        };
        nonces.iter().enumerate().map(parse).collect()
    }

    fn aggregate_nonce(nonce: &[u8; 66]) -> Answer<musig2::AggNonce> {
        musig2::AggNonce::from_bytes(nonce).map_err(|_| Refusal::contribution(None, "aggnonce"))
    }
}

impl Engine for Oracle {
    fn key_sort(keys: &[[u8; 33]]) -> Vec<[u8; 33]> {
        let mut points: Vec<Point> =
            keys.iter().map(|key| Point::from_slice(key).expect("a point")).collect();
        points.sort();
        points.iter().map(Point::serialize).collect()
    }

    fn key_agg(signers: &Signers) -> Answer<[u8; 32]> {
        Ok(Oracle::context(signers)?.aggregated_pubkey::<Point>().serialize_xonly())
    }

    fn nonce_gen(case: &Value) -> ([u8; 64], [u8; 66]) {
        let random: [u8; 32] = unhex_array(text(&case["rand_"]));
        let key = Point::from_slice(&unhex(text(&case["pk"]))).expect("a point");
        let message = case["msg"].as_str().map(unhex);
        let extra = case["extra_in"].as_str().map(unhex);
        let mut builder = match case["sk"].as_str() {
            Some(secret_key) => {
                let secret_key = Scalar::from_slice(&unhex(secret_key)).expect("in range");
                assert_eq!(secret_key.base_point_mul(), key);
                musig2::SecNonce::build_with_seckey(random, secret_key)
            }
            None => musig2::SecNonce::build_with_pubkey(random, key),
        };
        if let Some(aggregate_key) = case["aggpk"].as_str() {
            // Only its x-coordinate goes into the hash.
            let lifted = Point::lift_x(unhex_array(aggregate_key)).expect("a point");
            builder = builder.with_aggregated_pubkey(lifted);
        }
        if let Some(message) = &message {
            builder = builder.with_message(message);
        }
        if let Some(extra) = &extra {
            builder = builder.with_extra_input(extra);
        }
        let secret = builder.build();
        let public = secret.public_nonce().serialize();
        (secret.serialize()[..64].try_into().expect("64 bytes"), public)
    }

    fn nonce_agg(nonces: &[[u8; 66]]) -> Answer<[u8; 66]> {
        Ok(musig2::AggNonce::sum(Oracle::public_nonces(nonces)?).serialize())
    }

    fn sign(signers: &Signers, inputs: &SignInputs<'_>) -> Answer<[u8; 32]> {
        let SignInputs { secret_key, secnonce, aggnonce, message } = inputs;
        let context = Oracle::context(signers)?;
        let aggnonce = Oracle::aggregate_nonce(aggnonce)?;
        let secnonce =
            musig2::SecNonce::from_bytes(secnonce).map_err(|_| Refusal::Value(SECNONCE_RANGE.into()))?;
        let secret_key = Scalar::from_slice(secret_key).expect("in range");
        match musig2::sign_partial::<MaybeScalar>(&context, secret_key, secnonce, &aggnonce, message) {
            Ok(partial) => Ok(partial.serialize()),
            Err(musig2::errors::SigningError::UnknownKey) => Err(Refusal::Value(NOT_A_MEMBER.into())),
            Err(other) => panic!("no vector asks for this: {other}"),
        }
    }

    fn verify(
        signers: &Signers,
        nonces: &[[u8; 66]],
        signer: usize,
        message: &[u8],
        partial: &[u8; 32],
    ) -> Answer<bool> {
        let nonces = Oracle::public_nonces(nonces)?;
        let context = Oracle::context(signers)?;
        let aggnonce = musig2::AggNonce::sum(&nonces);
        let key = Point::from_slice(&signers.keys[signer]).expect("the context took it");
        let Ok(partial) = MaybeScalar::from_slice(partial) else { return Ok(false) };
        let verdict = musig2::verify_partial(&context, partial, &aggnonce, key, &nonces[signer], message);
        Ok(verdict.is_ok())
    }

    fn sig_agg(
        signers: &Signers,
        aggnonce: &[u8; 66],
        partials: &[[u8; 32]],
        message: &[u8; 32],
    ) -> Answer<[u8; 64]> {
        let parse = |(index, partial): (usize, &[u8; 32])| {
            MaybeScalar::from_slice(partial).map_err(|_| Refusal::contribution(index, "psig"))
        };
        let partials: Vec<MaybeScalar> = partials.iter().enumerate().map(parse).collect::<Answer<_>>()?;
        let context = Oracle::context(signers)?;
        let aggnonce = Oracle::aggregate_nonce(aggnonce)?;
        let signature: musig2::CompactSignature =
            musig2::aggregate_partial_signatures(&context, &aggnonce, partials, message)
                .expect("the vectors' partial signatures are valid");
        Ok(signature.serialize())
    }
}

fn expect(case: &Value, answer: Answer<Vec<u8>>) {
    let expected = match case.get("error") {
        None => Ok(unhex(text(&case["expected"]))),
        Some(_) => Err(Refusal::of(case)),
    };
    assert_eq!(answer, expected);
}

fn tagged_hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let tag = Sha256::digest(tag);
    let start = Sha256::new().chain_update(tag).chain_update(tag);
    parts.iter().fold(start, |hash, part| hash.chain_update(part)).finalize().into()
}

fn picked<const N: usize>(file: &Value, case: &Value, list: &str, indexes: &str) -> Vec<[u8; N]> {
    array(&case[indexes]).iter().map(|index| unhex_array(text(&file[list][number(index)]))).collect()
}
