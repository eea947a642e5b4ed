//! Every JSON document has one meaning or none: what is cut, altered or spelled in another way is refused,
//! or says what it then says in full.

mod golden;
mod ordered_json;
mod sample;

use keymeld_core::api::rest::{
    AttestationResponse, EnclavesResponse, HealthResponse, InitRequest, IntentResponse, KeygenStatus,
    RegisterRequest, ReserveRequest, SignRequest, SigningStatus, SlotsResponse, VersionResponse,
};
use keymeld_core::artifact::Signed;
use keymeld_core::artifact::approval::{Approval, Withdrawal};
use keymeld_core::artifact::certificate::{Certificate, IdentitySignature};
use keymeld_core::artifact::intent::{Intent, IntentSignatures};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::manifest::Manifest;
use keymeld_core::artifact::registration::{Record, RecordSignatures, open_envelope};
use keymeld_core::artifact::result::SigningResult;
use keymeld_core::crypto::envelope;
use keymeld_core::entropy::test_entropy;
use keymeld_core::refusal::Code;
use keymeld_core::strict::{JsonError, from_json, to_json};
use ordered_json::Json;
use sample::{KEYGEN_ID, Sample, enclave_ecies};
use serde::Serialize;
use serde_json::Value;

const BYTES_MAX: usize = 100_000;

/// Decodes and encodes again.
type Recode = fn(&[u8]) -> Result<Vec<u8>, JsonError>;

fn recode<T: for<'de> serde::Deserialize<'de> + Serialize>(bytes: &[u8]) -> Result<Vec<u8>, JsonError> {
    from_json::<T>(bytes, BYTES_MAX).map(|decoded| to_json(&decoded))
}

/// Every golden document that is read with `from_json`, with its reader and what may be left out of it.
const DOCUMENTS: [(&str, Recode, &[&str]); 23] = [
    ("manifest", recode::<Manifest>, &["subsets", "default_tweak", "expires_at", "name", "merkle_root"]),
    ("registration_0_record_body", recode::<Record>, &[]),
    ("registration_2_record_signed", recode::<Signed<RecordSignatures>>, &[]),
    ("certificate_0_body", recode::<Certificate>, &[]),
    ("certificate_0_signed", recode::<Signed<IdentitySignature>>, &[]),
    ("intent_body", recode::<Intent>, INTENT_OPTIONS),
    ("intent_signed", recode::<Signed<IntentSignatures>>, &[]),
    ("approval", recode::<Approval>, &[]),
    ("decline", recode::<Withdrawal>, &["reason"]),
    ("cancel", recode::<Withdrawal>, &["reason"]),
    ("result_body", recode::<SigningResult>, &[]),
    ("rest_reserve", recode::<ReserveRequest>, &["timeout_ms"]),
    ("rest_init", recode::<InitRequest>, &[]),
    ("rest_register", recode::<RegisterRequest>, &[]),
    ("rest_sign", recode::<SignRequest>, &["subset"]),
    ("rest_slots", recode::<SlotsResponse>, &["manifest_hash", "manifest"]),
    ("rest_keygen_status", recode::<KeygenStatus>, STATUS_OPTIONS),
    ("rest_signing_status", recode::<SigningStatus>, STATUS_OPTIONS),
    ("rest_intent", recode::<IntentResponse>, &[]),
    ("rest_enclaves", recode::<EnclavesResponse>, &[]),
    ("rest_attestation", recode::<AttestationResponse>, &[]),
    ("rest_version", recode::<VersionResponse>, &[]),
    ("rest_health", recode::<HealthResponse>, &[]),
];

const INTENT_OPTIONS: &[&str] =
    &["psbts", "origin", "subset", "tweak", "adaptor", "merkle_root", "leaf_hash"];
const STATUS_OPTIONS: &[&str] = &["failure", "completed", "result", "culprits", "withdrawal", "reason"];

fn documents() -> impl Iterator<Item = (&'static str, Vec<u8>, Recode, &'static [&'static str])> {
    DOCUMENTS.into_iter().map(|(name, recode, options)| (name, golden::json(name), recode, options))
}

fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("what was accepted is JSON")
}

#[test]
fn a_document_is_read_and_written_again_byte_for_byte() {
    for (name, bytes, recode, _) in documents() {
        assert_eq!(recode(&bytes), Ok(bytes.clone()), "{name}");
        // White space and the order of fields are the writer's choice; signatures cover the exact bytes.
        let spaced = serde_json::to_vec_pretty(&value(&bytes)).expect("JSON");
        assert_eq!(recode(&spaced), Ok(bytes), "{name}");
    }
}

#[test]
fn a_document_that_is_cut_or_followed_by_something_is_refused() {
    for (name, bytes, recode, _) in documents() {
        for end in 0..bytes.len() {
            assert_eq!(recode(&bytes[..end]), Err(JsonError::Malformed), "{name} cut at {end}");
        }
        for more in ["x", "{}", ",", "}", "\0", "1", "null", "\u{feff}", "//", "\u{a0}"] {
            let longer = [&bytes[..], more.as_bytes()].concat();
            assert_eq!(recode(&longer), Err(JsonError::Malformed), "{name} with {more:?}");
        }
        let marked = [b"\xef\xbb\xbf", &bytes[..]].concat();
        assert_eq!(recode(&marked), Err(JsonError::Malformed), "{name} with a byte order mark");
        for other in ["", " ", "[]", "{}", "1", "true", "\"\"", "null", "[[]]", "[{}]"] {
            assert!(recode(other.as_bytes()).is_err(), "{name} as {other:?}");
        }
    }
}

#[test]
fn a_document_with_a_flipped_bit_is_refused_or_says_all_of_what_it_says() {
    let (mut refused, mut read) = (0, 0);
    for (name, bytes, recode, _) in documents() {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match recode(&flipped) {
                Ok(again) => {
                    assert_eq!(value(&again), value(&flipped), "{name} bit {bit}");
                    assert_ne!(value(&again), value(&bytes), "{name} bit {bit}");
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    // Most flips that are read are of one hex digit to another.
    assert!(refused > read && read > 10_000, "{refused} {read}");
}

#[test]
fn nothing_is_null_anywhere() {
    let null = || Json::Raw("null".into());
    let mut tried = 0;
    for (name, bytes, recode, options) in documents() {
        let document = Json::read(&bytes);
        for (index, node) in document.nodes().into_iter().enumerate() {
            let refusal = recode(document.with(index, null()).write().as_bytes());
            assert_eq!(refusal, Err(JsonError::Null), "{name} node {index}");
            tried += 1;
            let Json::Object(fields) = node else { continue };
            for option in options.iter().filter(|option| fields.iter().all(|(name, _)| name != *option)) {
                let mut fields = fields.clone();
                fields.push((option.to_string(), null()));
                let refusal = recode(document.with(index, Json::Object(fields)).write().as_bytes());
                assert_eq!(refusal, Err(JsonError::Null), "{name} node {index} {option}");
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn every_object_has_exactly_its_fields() {
    for (name, bytes, recode, options) in documents() {
        let document = Json::read(&bytes);
        for (index, node) in document.nodes().into_iter().enumerate() {
            let Json::Object(fields) = node else { continue };
            let recoded = |fields| recode(document.with(index, Json::Object(fields)).write().as_bytes());
            for position in [0, fields.len()] {
                let mut more = fields.clone();
                more.insert(position, ("unknown".into(), Json::Number(1)));
                let refusal = recoded(more).expect_err(name);
                assert!(index > 0 || refusal == JsonError::UnknownField, "{name}: {refusal:?}");
            }
            for (field, (field_name, _)) in fields.iter().enumerate() {
                let mut twice = fields.clone();
                twice.push(fields[field].clone());
                assert_eq!(recoded(twice), Err(JsonError::DuplicateName), "{name} node {index} {field_name}");

                let mut less = fields.clone();
                less.remove(field);
                match recoded(less.clone()) {
                    Ok(again) => {
                        assert!(options.contains(&field_name.as_str()), "{name} without {field_name}");
                        let written = document.with(index, Json::Object(less)).write();
                        assert_eq!(value(&again), value(written.as_bytes()), "{name}");
                    }
                    Err(refusal) => assert!(
                        index > 0 || refusal == JsonError::MissingField,
                        "{name} without {field_name}: {refusal:?}"
                    ),
                }
                let mut renamed = fields.clone();
                renamed[field].0 = field_name.to_uppercase();
                assert!(recoded(renamed).is_err(), "{name} with {field_name} in upper case");
            }
            let mut reversed = fields.clone();
            reversed.reverse();
            assert_eq!(recoded(reversed), Ok(bytes.clone()), "{name} node {index} in another order");
        }
    }
}

#[test]
fn an_array_is_no_object_and_the_reverse() {
    for (name, bytes, recode, _) in documents() {
        let document = Json::read(&bytes);
        for (index, node) in document.nodes().into_iter().enumerate() {
            let other = match node {
                Json::Object(fields) => Json::Array(fields.iter().map(|(_, value)| value.clone()).collect()),
                Json::Array(items) => {
                    let numbered = items.iter().enumerate();
                    Json::Object(numbered.map(|(at, item)| (at.to_string(), item.clone())).collect())
                }
                Json::Text(_) | Json::Number(_) | Json::Bool(_) | Json::Raw(_) => {
                    Json::Array(vec![node.clone()])
                }
            };
            let refusal = recode(document.with(index, other).write().as_bytes());
            assert!(refusal.is_err(), "{name} node {index}: {refusal:?}");
        }
    }
}

#[test]
fn numbers_are_whole_and_below_2_to_the_53() {
    let mut numbers = 0;
    for (name, bytes, recode, _) in documents() {
        let document = Json::read(&bytes);
        for (index, node) in document.nodes().into_iter().enumerate() {
            if !matches!(node, Json::Number(_)) {
                continue;
            }
            numbers += 1;
            for (raw, reason) in [
                ("1.0", JsonError::Float),
                ("1e3", JsonError::Float),
                ("1E0", JsonError::Float),
                ("-0.0", JsonError::Float),
                ("-0", JsonError::Float),
                ("18446744073709551616", JsonError::Float),
                ("-1", JsonError::IntegerRange),
                ("9007199254740992", JsonError::IntegerRange),
                ("9007199254740993", JsonError::IntegerRange),
                ("18446744073709551615", JsonError::IntegerRange),
                ("01", JsonError::Malformed),
                ("+1", JsonError::Malformed),
                ("0x1", JsonError::Malformed),
                ("1_0", JsonError::Malformed),
                ("NaN", JsonError::Malformed),
                ("\"1\"", JsonError::WrongType),
                ("true", JsonError::WrongType),
            ] {
                let refusal = recode(document.with(index, Json::Raw(raw.into())).write().as_bytes());
                assert_eq!(refusal, Err(reason), "{name} node {index}: {raw}");
            }
        }
    }
    assert!(numbers > 20, "{numbers}");
}

#[test]
fn hex_and_ids_are_lower_case_and_names_are_exact() {
    let mut altered = 0;
    for (name, bytes, recode, _) in documents() {
        let document = Json::read(&bytes);
        for (index, node) in document.nodes().into_iter().enumerate() {
            let Json::Text(text) = node else { continue };
            let recoded = |text: String| recode(document.with(index, Json::Text(text)).write().as_bytes());
            let bytes_or_id = text.len() >= 20 && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
            if !bytes_or_id {
                continue;
            }
            if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
                assert!(recoded(text.to_uppercase()).is_err(), "{name} node {index}");
            }
            for other in [format!("0x{text}"), format!(" {text}"), format!("{text} "), text[1..].to_string()]
            {
                assert!(recoded(other.clone()).is_err(), "{name} node {index}: {other}");
            }
            assert!(recoded(format!("{}g", &text[1..])).is_err(), "{name} node {index}");
            assert!(recode(document.with(index, Json::Number(1)).write().as_bytes()).is_err(), "{name}");
            altered += 1;
        }
    }
    assert!(altered > 100, "{altered}");
}

#[test]
fn invites_have_one_spelling() {
    for name in ["invite", "invite_pinned"] {
        let bytes = golden::json(name);
        let again = |bytes: &[u8]| Invite::decode(bytes).and_then(|invite| invite.encode());
        assert_eq!(again(&bytes).expect("golden").as_slice(), bytes);
        assert_one_spelling(name, &bytes, |other| {
            again(other).map(|encoded| assert_eq!(encoded.as_slice(), other, "{name}")).is_ok()
        });
    }
}

#[test]
fn plaintexts_of_envelopes_have_one_spelling() {
    let sample = Sample::new();
    let bytes = golden::json("registration_0_plaintext");
    let (secret, public) = (enclave_ecies(0), sample.enclaves[0].enclave_key);
    let mut entropy = test_entropy(1);
    let mut opens = |plaintext: &[u8]| {
        let envelope = envelope::encrypt(&public, plaintext, &mut entropy).expect("small");
        let user = &sample.users[0];
        open_envelope(&secret, &public, KEYGEN_ID, sample.manifest_hash, user.user_id, &envelope)
    };
    assert!(opens(&bytes).is_ok());
    assert_one_spelling("registration_0_plaintext", &bytes, |other| match opens(other) {
        // A flipped hex digit of a key or a rule: another registration, which its record contradicts.
        Ok(_) => other.len() == bytes.len(),
        Err(code) => {
            assert_eq!(code, Code::EnvelopeMismatch);
            false
        }
    });
}

/// Tries every alteration; `accepts` says whether one is read, and looks at what it then says.
fn assert_one_spelling(name: &str, bytes: &[u8], mut accepts: impl FnMut(&[u8]) -> bool) {
    let document = Json::read(bytes);
    for end in 0..bytes.len() {
        assert!(!accepts(&bytes[..end]), "{name} cut at {end}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = accepts(&flipped);
    }
    let text = core::str::from_utf8(bytes).expect("JSON");
    for other in [format!("{text} "), format!(" {text}"), format!("{text}\n"), format!("{text}{text}")] {
        assert!(!accepts(other.as_bytes()), "{name}: {other}");
    }
    for (index, node) in document.nodes().into_iter().enumerate() {
        let mut others = vec![Json::Raw("null".into()), Json::Array(vec![node.clone()])];
        match node {
            Json::Object(fields) => {
                let values = fields.iter().map(|(_, value)| value.clone());
                others.push(Json::Array(values.collect()));
                let unknown = [&fields[..], &[("unknown".into(), Json::Number(1))]].concat();
                let nothing = [&fields[..], &[("invite_key".into(), Json::Raw("null".into()))]].concat();
                let swapped = [&fields[1..], &fields[..1]].concat();
                let twice = [&fields[..], &fields[..1]].concat();
                others.extend([unknown, nothing, swapped, twice].map(Json::Object));
            }
            Json::Number(number) => {
                let raws = ["1.0", "1e0", "-1", "9007199254740992", "01"].map(String::from);
                let spaced = [format!(" {number}"), format!("{number} ")];
                others.extend(raws.into_iter().chain(spaced).map(Json::Raw));
            }
            Json::Text(text) => {
                others.push(Json::Raw(format!("\"\\u{:04x}{}\"", text.as_bytes()[0], &text[1..])));
                let hex = text.len() >= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                if hex {
                    others.push(Json::Text(text.to_uppercase()));
                    others.push(Json::Text(format!("{}A", &text[1..])));
                    others.push(Json::Text(text[2..].into()));
                }
            }
            Json::Bool(_) => others.push(Json::Number(0)),
            Json::Array(_) | Json::Raw(_) => {}
        }
        for other in others {
            let written = document.with(index, other).write();
            assert!(!accepts(written.as_bytes()), "{name} node {index}: {written}");
        }
    }
}
