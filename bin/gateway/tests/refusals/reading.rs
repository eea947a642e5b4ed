//! What cannot be read: JSON, ids, queries, targets.

use keymeld_core::api::http::Method;
use keymeld_core::api::rest::SlotsResponse;
use keymeld_core::refusal::Code;
use keymeld_core::strict;

use crate::group::{Group, careful};
use crate::rig::{Ask, Rig, enclave_id, show};

pub(crate) const BODIES: [Code; 12] = [
    Code::Malformed,
    Code::UnknownField,
    Code::MissingField,
    Code::DuplicateName,
    Code::NullField,
    Code::Float,
    Code::IntegerRange,
    Code::BadHex,
    Code::WrongLength,
    Code::BadId,
    Code::WrongType,
    Code::TooLarge,
];

#[test]
fn a_body_that_is_not_strictly_what_it_should_be_is_refused() {
    show(&BODIES, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        let good = String::from_utf8(strict::to_json(&group.reservation())).expect("JSON");
        let (id, key) = (group.keygen_id().to_string(), group.session.public().to_string());
        let more = |field: &str| good.replacen('{', &format!("{{{field},"), 1);
        let id_field = format!("\"keygen_id\":\"{id}\"");
        let cases: Vec<(Code, String)> = vec![
            (Code::Malformed, String::new()),
            (Code::Malformed, "{".into()),
            (Code::Malformed, format!("{good} x")),
            (Code::Malformed, good[..good.len() - 1].into()),
            (Code::Malformed, "\u{feff}".to_owned() + &good),
            (Code::Malformed, "[".repeat(100_000)),
            (Code::UnknownField, more("\"colour\":1")),
            (Code::UnknownField, good.replacen("\"slot_key\"", "\"colour\":1,\"slot_key\"", 1)),
            (Code::MissingField, good.replacen(&format!("{id_field},"), "", 1)),
            (Code::DuplicateName, more(&id_field)),
            (Code::NullField, more("\"timeout_ms\":null")),
            (Code::Float, more("\"timeout_ms\":1.5")),
            (Code::Float, more("\"timeout_ms\":1e3")),
            (Code::IntegerRange, more("\"timeout_ms\":-1")),
            (Code::IntegerRange, more("\"timeout_ms\":9007199254740992")),
            (Code::BadHex, good.replacen(&key, &key.to_uppercase().replace('0', "A"), 1)),
            (Code::BadHex, good.replacen(&key, &key.replacen(|_| true, "g", 1), 1)),
            (Code::WrongLength, good.replacen(&key, &key[2..], 1)),
            (Code::WrongLength, good.replacen(&key, &format!("{key}00"), 1)),
            (Code::BadId, good.replacen(&id, &id.replace('-', ""), 1)),
            (Code::BadId, good.replacen(&id, &format!("{{{id}}}"), 1)),
            (Code::WrongType, more("\"timeout_ms\":\"5\"")),
            (Code::WrongType, good.split_once("[{").expect("slots").0.to_owned() + "{}}"),
            (Code::WrongType, "[]".into()),
        ];
        for (code, body) in cases {
            assert_ne!(body, good);
            let ask = rig.proven(&group.session, Method::Post, "keygen/reserve", body.as_bytes());
            let text = body.chars().take(300).collect::<String>();
            assert_eq!(rig.send(&ask).problem().code, code.name(), "{text}");
            rig.refused(code, &ask);
        }
        let ask =
            rig.proven(&group.session, Method::Post, "keygen/reserve", &vec![b' '; 4 * 1024 * 1024 + 1]);
        rig.refused(Code::TooLarge, &ask);

        // Unaltered it is good, and its manifest is refused only where it is too large.
        let ask = rig.proven(&group.session, Method::Post, "keygen/reserve", good.as_bytes());
        rig.does::<SlotsResponse>(&ask);
        let mut init = group.init.clone();
        init.manifest.0.resize(512 * 1024 + 1, 0);
        let ask = rig.post(&group.session, &group.path("init"), &init);
        rig.refused(Code::TooLarge, &ask);
        let ask = rig.get(&group.session, &format!("keygen/{}/slots", id.to_uppercase().replace('-', "")));
        rig.refused(Code::BadId, &ask);
        let ask = rig.proven(&group.session, Method::Post, "signing/1/approve", b"{}");
        rig.refused(Code::BadId, &ask);
        let ask = group.initialise(rig);
        rig.does::<SlotsResponse>(&ask);
    });
}

pub(crate) const QUERIES: [Code; 1] = [Code::BadQuery];

#[test]
fn a_query_that_is_not_known_or_out_of_range_is_refused() {
    show(&QUERIES, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        group.begin(rig);
        for query in [
            "wait_ms=30001",
            "wait_ms=-1",
            "wait_ms=+1",
            "wait_ms=",
            "wait_ms=1.0",
            "wait_ms=18446744073709551616",
            "wait_ms=1&wait_ms=1",
            "wait_ms",
            "since=9007199254740992",
            "until=now",
            "colour=1",
            "",
            "&",
            "nonce=1",
        ] {
            let ask = rig.get(&group.session, &group.path(&format!("status?{query}")));
            rig.refused(Code::BadQuery, &ask);
            let ask = rig.get(&group.session, &group.path(&format!("slots?{query}")));
            rig.refused(Code::BadQuery, &ask);
        }
        let (id, nonce) = (enclave_id(0), "0".repeat(64));
        for query in [
            String::new(),
            "?epoch=1".into(),
            format!("?nonce={}", &nonce[2..]),
            format!("?nonce={}", nonce.replace('0', "A")),
            format!("?nonce={nonce}&epoch=4294967296"),
            format!("?nonce={nonce}&wait_ms=1"),
        ] {
            let path = format!("enclaves/{id}/attestation{query}");
            rig.refused(Code::BadQuery, &Ask::plain(Method::Get, &path, &[]));
        }
    });
}

pub(crate) const ENDPOINTS: [Code; 2] = [Code::UnknownEndpoint, Code::MethodNotAllowed];

#[test]
fn endpoints_that_do_not_exist_and_methods_that_they_do_not_have_are_refused() {
    show(&ENDPOINTS, Rig::without_enclaves(1, ""), |rig| {
        for target in
            ["/", "/api/v1", "/api/v1/", "/api/v2/health", "/api/v1/health/", "/api/v1/keygen", "/x?a=b"]
        {
            let ask = Ask { target: target.into(), ..Ask::plain(Method::Get, "", &[]) };
            rig.refused(Code::UnknownEndpoint, &ask);
        }
        for (method, path) in [
            (Method::Get, "keygen/reserve"),
            (Method::Delete, "keygen/reserve"),
            (Method::Post, "health"),
            (Method::Get, "signing"),
            (Method::Get, "signing/00000000-0000-0000-0000-000000000001"),
        ] {
            rig.refused(Code::MethodNotAllowed, &Ask::plain(method, path, &[]));
        }
        for method in ["PUT", "PATCH", "OPTIONS", "HEAD2", "get"] {
            rig.refused(Code::MethodNotAllowed, &Ask { method, ..Ask::plain(Method::Get, "health", &[]) });
        }
    });
}
