//! HTTP requests from their bytes to a call of the gateway, REST bodies, proofs.

use keymeld_core::api::http::{Method, PROOF_HEADER, Request};
use keymeld_core::api::problem::Problem;
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{
    AttestationResponse, EnclavesResponse, HealthResponse, InitRequest, IntentResponse, KeygenStatus,
    RegisterRequest, ReserveRequest, SignRequest, SigningStatus, SlotsResponse, VersionResponse,
};
use keymeld_core::api::router::{WAIT_MS_MAX, route};
use keymeld_transport::http::server::{ServerLimits, head};

use super::artifacts::json;
use super::program::Program;
use crate::stage::story::STORY;

/// How many kinds of body there are.
pub const KINDS: u8 = 13;

/// A REST body; the first byte says of which kind.
///
/// # Panics
/// As [`json`].
pub fn rest(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % KINDS {
        0 => drop(json::<ReserveRequest>(bytes)),
        1 => drop(json::<SlotsResponse>(bytes)),
        2 => drop(json::<InitRequest>(bytes)),
        3 => drop(json::<RegisterRequest>(bytes)),
        4 => drop(json::<KeygenStatus>(bytes)),
        5 => drop(json::<SignRequest>(bytes)),
        6 => drop(json::<SigningStatus>(bytes)),
        7 => drop(json::<IntentResponse>(bytes)),
        8 => drop(json::<EnclavesResponse>(bytes)),
        9 => drop(json::<AttestationResponse>(bytes)),
        10 => drop(json::<VersionResponse>(bytes)),
        11 => drop(json::<HealthResponse>(bytes)),
        _ => drop(json::<Problem>(bytes)),
    }
}

/// A request as a client sends it.
pub fn print(request: &Request) -> Vec<u8> {
    let Request { method, authority, target, proof, authorization, body } = request;
    let mut head = format!("{} {target} HTTP/1.1\r\nHost: {authority}\r\n", method.as_str());
    if let Some(proof) = proof {
        head += &format!("{PROOF_HEADER}: {proof}\r\n");
    }
    if let Some(authorization) = authorization {
        head += &format!("Authorization: {authorization}\r\n");
    }
    if *method == Method::Post {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// A connection's bytes: request after request, until one is refused or not complete. The first byte says in
/// what pieces they arrive.
///
/// # Panics
/// Where a head ends elsewhere when it arrives in pieces, where a bound is not kept, or where what was read is
/// read as something else when it is written again.
pub fn requests(bytes: &[u8]) {
    let Some((piece, mut bytes)) = bytes.split_first() else { return };
    let limits = ServerLimits::default();
    loop {
        let end = head::end(bytes, 0, &limits);
        assert_eq!(in_pieces(bytes, usize::from(*piece) + 1, &limits), end);
        let Ok(Some(end)) = end else { return };
        assert!(end <= bytes.len() && end <= limits.header_bytes_max);
        let Ok(head) = head::parse(&bytes[..end], &limits) else { return };
        assert!(head.content_length <= limits.body_bytes_max);
        let Some((body, rest)) = bytes[end..].split_at_checked(head.content_length) else { return };
        let request = Request {
            method: head.method,
            authority: head.authority,
            target: head.target,
            proof: head.proof,
            authorization: head.authorization,
            body: body.to_vec(),
        };
        read_again(&request, &limits);
        if let Ok(call) = route(&request) {
            assert!(!call.is_long_poll() || request.target.contains("wait_ms"));
            assert_eq!(route(&request).as_ref(), Ok(&call), "routing is a function");
        }
        if head.close {
            return;
        }
        bytes = rest;
    }
}

/// The longest long poll that a query may ask for.
const _: () = assert!(WAIT_MS_MAX <= 30_000);

fn in_pieces(
    bytes: &[u8],
    piece: usize,
    limits: &ServerLimits,
) -> Result<Option<usize>, keymeld_transport::http::server::Refusal> {
    let mut seen = 0;
    while seen < bytes.len() {
        let arrived = (seen + piece).min(bytes.len());
        match head::end(&bytes[..arrived], seen, limits) {
            Ok(None) => seen = arrived,
            ended => return ended,
        }
    }
    Ok(None)
}

/// Spaces around a header's value are not part of it, and a body that a DELETE has needs its length said.
fn read_again(request: &Request, limits: &ServerLimits) {
    if request.method == Method::Delete && !request.body.is_empty() {
        return;
    }
    let printed = print(request);
    let end = head::end(&printed, 0, limits).expect("framed without doubt").expect("whole");
    let again = head::parse(&printed[..end], limits).expect("the same headers, and no others");
    assert_eq!(&printed[end..], request.body.as_slice());
    assert_eq!(again.content_length, request.body.len());
    assert_eq!((&again.method, &again.authority), (&request.method, &request.authority));
    assert_eq!((&again.target, &again.proof), (&request.target, &request.proof));
    assert_eq!(&again.authorization, &request.authorization);
}

/// A genuine request with one part changed, its proof left as it is.
///
/// # Panics
/// Where the proof then still holds.
pub fn proofs(bytes: &[u8]) {
    let mut program = Program::new(bytes);
    let exchanges = &STORY.journal.exchanges;
    let proven: Vec<&Request> =
        exchanges.iter().map(|(_, request, _)| request).filter(|request| request.proof.is_some()).collect();
    let genuine = *program.pick(&proven).expect("there are some");
    let mut changed = genuine.clone();
    match program.below(5) {
        0 => changed.method = *program.pick(&[Method::Get, Method::Post, Method::Delete]).expect("three"),
        1 => changed.authority = altered(&mut program, &genuine.authority),
        2 => changed.target = altered(&mut program, &genuine.target),
        3 => changed.body = program.altered(&genuine.body),
        _ => {
            let proof = genuine.proof.as_deref().unwrap_or_default();
            changed.proof = Some(altered(&mut program, proof));
        }
    }
    let subject = Subject {
        method: changed.method,
        authority: &changed.authority,
        target: &changed.target,
        body: &changed.body,
    };
    let verdict = subject.verify(changed.proof.as_deref().unwrap_or_default());
    assert_eq!(verdict.is_ok(), changed == *genuine, "{verdict:?}");
    let text = String::from_utf8_lossy(program.rest());
    assert!(subject.verify(&text).is_err() || Some(text.as_ref()) == genuine.proof.as_deref());
}

fn altered(program: &mut Program<'_>, text: &str) -> String {
    String::from_utf8_lossy(&program.altered(text.as_bytes())).into_owned()
}
