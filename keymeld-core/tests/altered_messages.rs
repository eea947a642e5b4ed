//! Messages, bundles, rows, user data and frames, altered: refused, or another message in its one encoding.

mod messages;
mod sample;

use keymeld_core::artifact::approval::Approval;
use keymeld_core::attestation::{BirthUserData, ServiceUserData};
use keymeld_core::bytes::{Hash, PartialSignature, PublicNonce};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::id::UserId;
use keymeld_core::limits::PARTICIPANTS_MAX;
use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, FrameError, HEADER_BYTES, Kind};
use keymeld_core::link::message::{Refused, Reply, Request};
use keymeld_core::refusal::Code;
use keymeld_core::strict::{from_cbor, to_cbor};
use messages::{replies, requests};
use sample::Sample;

/// Decodes and encodes again; `None` where the bytes are refused.
type Recode = fn(&[u8]) -> Option<Vec<u8>>;

fn recoded_messages() -> Vec<(String, Vec<u8>, Recode)> {
    let mut messages: Vec<(String, Vec<u8>, Recode)> = Vec::new();
    for (name, request) in requests() {
        messages.push((format!("request {name}"), request.encode(), |bytes| {
            Request::decode(bytes).ok().map(Request::encode)
        }));
    }
    for (name, reply) in replies() {
        messages.push((format!("reply {name}"), reply.encode(), |bytes| {
            Reply::decode(bytes).ok().map(Reply::encode)
        }));
    }
    let nonces = NonceBundle::new(vec![PublicNonce([2; 66]); 3]);
    messages.push(("nonces".into(), nonces.encode(), |bytes| {
        NonceBundle::decode(bytes, 3).ok().map(|bundle| bundle.encode())
    }));
    let partials = PartialBundle::new(Hash([3; 32]), vec![PartialSignature([4; 32]); 3]);
    messages.push(("partials".into(), partials.encode(), |bytes| {
        PartialBundle::decode(bytes, 3).ok().map(|bundle| bundle.encode())
    }));
    let approval = Sample::new().approvals()[0];
    messages.push(("approval".into(), to_cbor(&approval), |bytes| {
        from_cbor::<Approval>(bytes).ok().map(|approval| to_cbor(&approval))
    }));
    let service = ServiceUserData {
        enclave_id: [1; 16],
        epoch: 300,
        identity_key: [2; 32],
        birth_pcr0: [3; 48],
        birth_time_ms: 1_800_000_000_000,
        config_hash: [4; 32],
    };
    messages.push(("service data".into(), service.encode(), |bytes| {
        ServiceUserData::decode(bytes).ok().map(|data| data.encode())
    }));
    let birth = BirthUserData {
        enclave_id: [1; 16],
        epoch: 300,
        ecies_key: [2; 33],
        identity_key: [3; 32],
        encrypted_dek_hash: [4; 32],
    };
    messages.push(("birth data".into(), birth.encode(), |bytes| {
        BirthUserData::decode(bytes).ok().map(|data| data.encode())
    }));
    messages
}

#[test]
fn an_altered_message_is_refused_or_has_the_one_encoding_of_another() {
    let messages = recoded_messages();
    assert_eq!(messages.len(), 9 + 10 + 5);
    let (mut refused, mut read) = (0, 0);
    for (name, bytes, recode) in messages {
        assert_eq!(recode(&bytes).as_ref(), Some(&bytes), "{name}");
        for end in 0..bytes.len() {
            assert_eq!(recode(&bytes[..end]), None, "{name} cut at {end}");
        }
        for byte in 0..=u8::MAX {
            assert_eq!(recode(&[&bytes[..], &[byte]].concat()), None, "{name} followed by {byte}");
        }
        for position in 0..bytes.len() {
            // Every value of every byte: other lengths, other types, longer and indefinite forms.
            for value in 0..=u8::MAX {
                let mut altered = bytes.clone();
                altered[position] = value;
                match recode(&altered) {
                    Some(again) => {
                        assert_eq!(again, altered, "{name} byte {position} as {value}");
                        read += 1;
                    }
                    None => refused += 1,
                }
            }
            let mut without = bytes.clone();
            without.remove(position);
            assert!(recode(&without).is_none_or(|again| again == without), "{name} without {position}");
            let mut twice = bytes.clone();
            twice.insert(position, bytes[position]);
            assert!(recode(&twice).is_none_or(|again| again == twice), "{name} with {position} twice");
        }
    }
    assert!(refused > 50_000 && read > 500_000, "{refused} {read}");
}

#[test]
fn every_message_names_its_version_first() {
    for (name, bytes, recode) in recoded_messages() {
        assert_eq!(bytes[1], 1, "{name}");
        if name == "approval" {
            // Checked where it is verified.
            continue;
        }
        for other in [0, 2, 3, 23] {
            let mut altered = bytes.clone();
            altered[1] = other;
            assert_eq!(recode(&altered), None, "{name} of version {other}");
        }
    }
    let mut request = requests().swap_remove(0).1.encode();
    request[1] = 2;
    assert_eq!(Request::decode(&request), Err(Code::UnsupportedVersion));
    let mut reply = replies().swap_remove(1).1.encode();
    reply[1] = 2;
    assert_eq!(Reply::decode(&reply), Err(Code::UnsupportedVersion));
}

#[test]
fn integers_and_lengths_have_their_shortest_form() {
    // [1, [0, []]]: Hello, and the same with a longer 1, an indefinite array, a tag, a float.
    assert_eq!(Request::decode(&[0x82, 1, 0x82, 0, 0x80]), Ok(Request::Hello));
    for other in [
        &[0x82, 0x18, 1, 0x82, 0, 0x80][..],
        &[0x98, 2, 1, 0x82, 0, 0x80],
        &[0x9f, 1, 0x82, 0, 0x80, 0xff],
        &[0x82, 1, 0x82, 0, 0x9f, 0xff],
        &[0x82, 1, 0x82, 0, 0x81, 0xf6],
        &[0x83, 1, 0x82, 0, 0x80, 0xf6],
        &[0xd8, 0x18, 0x82, 1, 0x82, 0, 0x80],
        &[0x82, 0xf9, 0x3c, 0, 0x82, 0, 0x80],
        &[0xa2, 0, 1, 1, 0x82, 0, 0x80],
        &[0xf6],
        &[0x80],
    ] {
        assert_eq!(Request::decode(other), Err(Code::Malformed), "{other:02x?}");
    }
}

#[test]
fn a_length_that_promises_more_than_there_is_costs_nothing() {
    // Byte strings and arrays of up to 2^64-1 elements, at the place of every field of every message.
    for (name, bytes, recode) in recoded_messages() {
        for position in 0..bytes.len() {
            for head in [0x5b, 0x9b, 0xbb, 0x7b] {
                let promise = [&bytes[..position], &[head], &[0xff; 8], &bytes[position..]].concat();
                assert_eq!(recode(&promise), None, "{name} at {position}");
            }
        }
    }
    let deep = [&[0x82, 1][..], &[0x81; 100_000]].concat();
    assert_eq!(Request::decode(&deep), Err(Code::Malformed));
    assert_eq!(Reply::decode(&deep), Err(Code::Malformed));
}

#[test]
fn a_refusal_of_a_newer_enclave_names_a_bounded_number_of_culprits() {
    let unknown = Refused { code: 65_535, culprits: vec![UserId([1; 16]); PARTICIPANTS_MAX] };
    let refusal = unknown.refusal();
    assert_eq!((refusal.code, refusal.culprits.len()), (Code::Internal, PARTICIPANTS_MAX));
    let many =
        Refused { code: Code::Declined.number(), culprits: vec![UserId([1; 16]); PARTICIPANTS_MAX + 1] };
    assert_eq!(many.refusal().culprits.len(), PARTICIPANTS_MAX);
}

#[test]
fn a_frame_holds_as_much_as_the_limit_and_no_more() {
    let most = FRAME_BYTES_MAX - (HEADER_BYTES - 4);
    let mut frame = Frame { kind: Kind::Reply, request_id: 1, routing_id: [0; 16], body: vec![7; most] };
    let bytes = frame.encode().expect("at the limit");
    let length = bytes[..4].try_into().expect("four bytes");
    assert_eq!(Frame::length(length), Ok(FRAME_BYTES_MAX));
    assert_eq!(Frame::decode(bytes[4..].to_vec()).as_ref(), Ok(&frame));
    assert_eq!(Frame::decode([&bytes[4..], &[0]].concat()), Err(FrameError::TooLarge));
    frame.body.push(7);
    assert_eq!(frame.encode(), Err(FrameError::TooLarge));
}

#[test]
fn frames_of_another_version_or_kind_and_pings_with_a_body_are_refused() {
    let ping = Frame { kind: Kind::Ping, request_id: 1, routing_id: [0; 16], body: vec![] };
    let bytes = ping.encode().expect("small");
    for version in (0..=u8::MAX).filter(|version| *version != 1) {
        let mut other = bytes[4..].to_vec();
        other[0] = version;
        assert_eq!(Frame::decode(other), Err(FrameError::UnknownVersion), "{version}");
    }
    for kind in 0..=u8::MAX {
        let mut other = bytes[4..].to_vec();
        other[1] = kind;
        let read = Frame::decode(other.clone()).map(|frame| frame.kind as u8);
        let expected = if (1..=4).contains(&kind) { Ok(kind) } else { Err(FrameError::UnknownKind) };
        assert_eq!(read, expected, "{kind}");
        other.push(0);
        let expected = match kind {
            1 | 2 => Ok(kind),
            3 | 4 => Err(FrameError::UnexpectedBody),
            _ => Err(FrameError::UnknownKind),
        };
        assert_eq!(Frame::decode(other).map(|frame| frame.kind as u8), expected, "{kind}");
    }
}
