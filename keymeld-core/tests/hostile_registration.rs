//! Envelopes and records: no ciphertext works for another purpose, session, user or enclave (S3), and nobody
//! registers for somebody else.

mod hostile;

use keymeld_core::artifact::VERSION;
use keymeld_core::artifact::registration::{
    ApprovalRule, ENVELOPE_PURPOSE, Record, RecordSignatures, Registration, Rules,
};
use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::bytes::{Hash, PublicKey, Signature, XOnlyKey};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::Tag;
use keymeld_core::crypto::seal::Context;
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::link::message::{CheckRegistration, OpenKeygen, Reply, Request, UserBlob};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use hostile::party::{EnvelopeText, Group, Person, careful, copy, delegated, fresh_entropy};
use hostile::round::Puppet;
use hostile::{NOW, World, keys, refused};

/// The victim is the second, at an enclave with the third; the fourth is known by its invite alone.
fn group() -> Group {
    Group::of(vec![
        Person::at(0, careful()),
        Person::at(1, careful()),
        Person::at(1, delegated()),
        Person::at(0, careful()).invited(),
    ])
}

/// The gateway has the second participant's registration checked before it acknowledges it.
fn check(group: Group) -> Result<(), Refusal> {
    check_of(1)(group)
}

fn check_of(index: usize) -> impl Fn(Group) -> Result<(), Refusal> {
    move |group| {
        let at = group.people[index].at.expect("at an enclave of the fixture");
        let reply = World::new(2).ask(at, Request::CheckRegistration(group.check_message(index)))?;
        assert_eq!(reply, Reply::RegistrationChecked);
        Ok(())
    }
}

/// All slots are filled.
fn open(group: Group) -> Result<(), Refusal> {
    World::new(2).open_all(&group).map(|_| ())
}

/// The second participant's enclave alone, which is asked where another would refuse first.
fn open_at_victim(group: Group) -> Result<(), Refusal> {
    World::new(2).open(&group, 1).map(|_| ())
}

/// Refused both when the registration is made and when the session is opened.
#[track_caller]
fn both(code: Code, tamper: impl Fn(&mut Group)) {
    refused(code, group, check, &tamper);
    refused(code, group, open_at_victim, &tamper);
}

/// The second participant's envelope says something else, and is encrypted to its enclave.
#[track_caller]
fn in_envelope(code: Code, change: impl Fn(&mut EnvelopeText)) {
    both(code, |group| {
        let mut text = group.envelope(1);
        change(&mut text);
        group.registrations[1].envelope = text.encrypt(&keys(1).enclave_key);
    });
}

/// The second participant's record says something else, with all signatures that it can make itself.
fn changed_record(change: impl Fn(&mut Record)) -> impl Fn(&mut Group) {
    move |group| {
        let mut record = group.record(1);
        change(&mut record);
        group.registrations[1].record = group.forge_record(group.people[1].user_id, &record, 1);
    }
}

#[test]
fn an_envelope_made_by_hand_as_the_client_makes_it_is_accepted() {
    let mut group = group();
    group.registrations[1].envelope = group.envelope(1).encrypt(&keys(1).enclave_key);
    changed_record(|_| ())(&mut group);
    check(group).expect("as the client makes it");
}

#[test]
fn an_envelope_of_another_keygen_is_refused() {
    both(Code::EnvelopeMismatch, |group| {
        let same_person = Person { at: None, ..Person::at(1, careful()) };
        let same_person = Person {
            user_id: group.people[1].user_id,
            private_key: copy(&group.people[1].private_key),
            ..same_person
        };
        let other = Group::of(vec![Person::at(0, careful()), same_person]);
        group.registrations[1].envelope = other.registrations[1].envelope.clone();
    });
    in_envelope(Code::EnvelopeMismatch, |text| text.keygen_id = KeygenId([1; 16]));
    in_envelope(Code::EnvelopeMismatch, |text| text.manifest_hash = Hash([1; 32]));
}

#[test]
fn an_envelope_of_another_user_is_refused() {
    both(Code::EnvelopeMismatch, |group| {
        group.registrations[1].envelope = group.registrations[2].envelope.clone();
    });
    in_envelope(Code::EnvelopeMismatch, |text| text.user_id = UserId([1; 16]));
}

#[test]
fn an_envelope_for_another_purpose_is_refused() {
    assert_eq!(ENVELOPE_PURPOSE, "keymeld-registration-v1");
    for purpose in ["keymeld-single-key-v1", "keymeld-registration-v2", "keymeld-registration-v1 ", ""] {
        in_envelope(Code::EnvelopeMismatch, |text| text.purpose = purpose.into());
    }
}

#[test]
fn an_envelope_for_another_enclave_is_refused() {
    // Encrypted to the other.
    both(Code::EnvelopeUnreadable, |group| {
        let text = EnvelopeText { enclave_key: keys(0).enclave_key, ..group.envelope(1) };
        group.registrations[1].envelope = text.encrypt(&keys(0).enclave_key);
    });
    // Encrypted to this one, as nobody's client does.
    in_envelope(Code::EnvelopeMismatch, |text| text.enclave_key = keys(0).enclave_key);
    // Decrypted by nobody and taken to the other.
    let elsewhere = |message: CheckRegistration| World::new(2).ask(0, Request::CheckRegistration(message));
    refused(
        Code::EnvelopeUnreadable,
        || group().check_message(3),
        elsewhere,
        |message| {
            message.envelope = group().registrations[1].envelope.clone();
        },
    );
    refused(
        Code::WrongEnclaveKey,
        || group().check_message(3),
        elsewhere,
        |message| {
            message.enclave_key = keys(1).enclave_key;
        },
    );
}

#[test]
fn an_envelope_in_another_form_than_its_own_is_refused() {
    let tampered = |change: fn(&mut Vec<u8>)| {
        move |group: &mut Group| {
            let mut plaintext = strict::to_json(&group.envelope(1));
            change(&mut plaintext);
            let sealed = envelope::encrypt(&keys(1).enclave_key, &plaintext, &mut fresh_entropy());
            group.registrations[1].envelope = sealed.expect("small");
        }
    };
    both(Code::EnvelopeMismatch, tampered(|plaintext| plaintext.push(b' ')));
    both(Code::EnvelopeMismatch, tampered(|plaintext| plaintext.insert(1, b' ')));
    both(Code::EnvelopeMismatch, tampered(|plaintext| plaintext.truncate(100)));
    both(Code::EnvelopeMismatch, tampered(|plaintext| plaintext.clear()));
}

#[test]
fn an_envelope_altered_anywhere_is_refused() {
    let length = group().registrations[1].envelope.0.len();
    for index in (0..length).step_by(7).chain([0, 1, length - 1]) {
        for bit in [0, 1, 2, 7] {
            let flip = |group: &mut Group| group.registrations[1].envelope.0[index] ^= 1 << bit;
            let mut flipped = group();
            flip(&mut flipped);
            let code = check(flipped).expect_err("altered").code;
            assert_eq!(code, Code::EnvelopeUnreadable, "byte {index}, bit {bit}");
        }
    }
    // A point has one encoding here, although others can be read.
    for _ in 0..8 {
        let mut hybrid = group();
        let ephemeral = &mut hybrid.registrations[1].envelope.0;
        ephemeral[0] = 6 + (ephemeral[64] & 1);
        assert_eq!(check(hybrid).expect_err("altered").code, Code::EnvelopeUnreadable);
    }
    both(Code::EnvelopeUnreadable, |group| group.registrations[1].envelope.0.truncate(length - 1));
    both(Code::EnvelopeUnreadable, |group| group.registrations[1].envelope.0.push(0));
    both(Code::EnvelopeUnreadable, |group| group.registrations[1].envelope.0.clear());
}

#[test]
fn two_envelopes_with_different_session_secrets_are_refused() {
    let other_secret = |group: &mut Group| {
        let mut text = group.envelope(2);
        text.session_secret = Secret::copied_from(&[7; 32]).to_hex().to_string();
        group.registrations[2].envelope = text.encrypt(&keys(1).enclave_key);
    };
    refused(Code::SessionSecretsDiffer, group, open, other_secret);
    // By itself the registration does not open its own record.
    refused(Code::SealUnreadable, group, check_of(2), other_secret);
}

#[test]
fn an_envelope_and_a_record_that_disagree_in_any_shared_field_are_refused() {
    let mismatch = Code::EnvelopeRecordMismatch;
    in_envelope(mismatch, |text| text.private_key = Secret::copied_from(&[7; 32]).to_hex().to_string());
    in_envelope(mismatch, |text| text.rules.approval = ApprovalRule::Delegated);
    in_envelope(mismatch, |text| text.rules.allow_any_requester = true);
    in_envelope(mismatch, |text| text.rules.allow_blind = true);
    in_envelope(mismatch, |text| text.rules.allow_adaptors = true);
    in_envelope(mismatch, |text| text.rules.bind_nonces = true);
    in_envelope(mismatch, |text| text.rules.valid_until += 1);
    both(
        mismatch,
        changed_record(|record| {
            record.auth_key = XOnlyKey(record.public_key.0[1..].try_into().expect("32 bytes"))
        }),
    );
    both(mismatch, changed_record(|record| record.rules.approval = ApprovalRule::Delegated));
    both(mismatch, changed_record(|record| record.rules.valid_until += 1));
    // What the record says of the session, the user and the manifest is checked against these.
    both(Code::RecordMismatch, changed_record(|record| record.keygen_id = KeygenId([1; 16])));
    both(Code::RecordMismatch, changed_record(|record| record.user_id = UserId([1; 16])));
    both(Code::ManifestHashMismatch, changed_record(|record| record.manifest_hash = Hash([1; 32])));
    both(Code::UnsupportedVersion, changed_record(|record| record.version = VERSION + 1));
    in_envelope(Code::InvalidPrivateKey, |text| text.private_key = "00".repeat(32));
    in_envelope(Code::InvalidPrivateKey, |text| text.private_key = "ff".repeat(32));
}

#[test]
fn a_record_and_an_envelope_for_different_enclaves_are_refused() {
    let elsewhere = changed_record(|record| {
        record.enclave_key = keys(0).enclave_key;
        record.identity_key = keys(0).identity_key;
    });
    refused(Code::WrongEnclaveKey, group, check, &elsewhere);
    refused(Code::EnvelopeMissing, group, open, &elsewhere);
    refused(Code::EnvelopeMissing, group, open_at_victim, &elsewhere);
}

#[test]
fn a_record_whose_keys_are_no_points_is_refused() {
    let no_point = [&[2][..], &[0xff; 32]].concat().try_into().map(PublicKey).expect("33 bytes");
    both(Code::NotOnCurve, changed_record(move |record| record.public_key = no_point));
    both(Code::NotOnCurve, changed_record(move |record| record.enclave_key = no_point));
    both(Code::PointAtInfinity, changed_record(|record| record.public_key = PublicKey([0; 33])));
    both(Code::PointAtInfinity, changed_record(|record| record.enclave_key = PublicKey([0; 33])));
    both(Code::NotOnCurve, changed_record(|record| record.auth_key = XOnlyKey([0xff; 32])));
    both(Code::NotOnCurve, changed_record(|record| record.identity_key = XOnlyKey([0xff; 32])));
}

#[test]
fn a_swapped_record_is_refused_whether_it_is_sealed_again_or_not() {
    both(Code::SealUnreadable, |group| {
        group.registrations[1].record = group.registrations[2].record.clone();
    });
    both(Code::RecordMismatch, |group| {
        let record = group.record(2);
        group.registrations[1].record = group.forge_record(group.people[1].user_id, &record, 2);
    });
}

/// The fourth participant writes a record for another, knowing the session secret and its own keys.
fn forged(victim: usize, change: impl Fn(&mut Record, &Group)) -> impl Fn(&mut Group) {
    move |group| {
        let mut record = Record { user_id: group.people[victim].user_id, ..group.record(3) };
        change(&mut record, group);
        group.registrations[victim].record = group.forge_record(group.people[victim].user_id, &record, 3);
    }
}

#[test]
fn nobody_forges_a_record_for_the_coordinator_or_for_another_user() {
    for victim in [0, 1] {
        let own_key = forged(victim, |_, _| ());
        refused(Code::PinMismatch, group, open, &own_key);
        refused(Code::PinMismatch, group, check_of(victim), &own_key);
        let pinned_key = forged(victim, move |record, group| {
            record.public_key = group.people[victim].public_key();
        });
        refused(Code::BadPossession, group, open, &pinned_key);
        refused(Code::BadPossession, group, check_of(victim), &pinned_key);
    }
}

#[test]
fn nobody_forges_a_record_for_a_user_who_is_known_by_an_invite_alone() {
    // The second participant, who is pinned, signs for the fourth without its invite key.
    refused(Code::BadCosignature, group, open, |group| {
        let record = Record { user_id: group.people[3].user_id, ..group.record(1) };
        group.registrations[3].record = group.forge_record(group.people[3].user_id, &record, 1);
    });
}

#[test]
fn a_record_without_one_of_its_signatures_or_with_one_in_the_others_place_is_refused() {
    fn signed_as(tags: [Option<Tag>; 2]) -> impl Fn(&mut Group) {
        move |group| {
            let body = strict::to_json(&group.record(1));
            let key = AuthKey::new(&group.people[1].private_key).expect("a key");
            let [possession, cosignature] = tags.map(|tag| match tag {
                Some(tag) => key.sign(tag, &[&body], &mut group.entropy).expect("test entropy"),
                None => Signature([0; 64]),
            });
            let signatures = RecordSignatures { possession, cosignature };
            group.registrations[1].record = group.seal_record(group.people[1].user_id, body, signatures);
        }
    }
    let [possession, pinned] = [Some(Tag::Possession), Some(Tag::PinnedKey)];
    let mut honest = group();
    signed_as([possession, pinned])(&mut honest);
    open(honest).expect("as the client signs it");
    both(Code::BadPossession, signed_as([None, pinned]));
    both(Code::BadPossession, signed_as([pinned, pinned]));
    both(Code::BadCosignature, signed_as([possession, None]));
    both(Code::BadCosignature, signed_as([possession, possession]));
    both(Code::BadCosignature, signed_as([possession, Some(Tag::InviteKey)]));
}

#[test]
fn the_coordinator_is_pinned_by_its_auth_key_too() {
    refused(Code::PinMismatch, group, open, |group| {
        let auth_key = group.people[0].auth(KeygenId([1; 16])).public();
        let record = Record { auth_key, ..group.record(0) };
        group.registrations[0].record = group.forge_record(group.people[0].user_id, &record, 0);
    });
}

#[test]
fn a_slot_does_not_take_another_participants_registration() {
    both(Code::EnvelopeMismatch, |group| group.registrations[1] = group.registrations[2].clone());
    // Under its own name it would be in the roster twice, and the slot's owner not at all.
    let opens = |open: OpenKeygen| World::new(2).ask(0, Request::OpenKeygen(open));
    refused(
        Code::RosterIncomplete,
        || group().open_message(0),
        opens,
        |open| {
            open.records[1] = open.records[2].clone();
        },
    );
}

#[test]
fn a_record_sealed_by_somebody_outside_the_session_is_refused() {
    both(Code::SealUnreadable, |group| {
        let own = copy(&group.session_secret);
        group.session_secret = Secret::copied_from(&[9; 32]);
        let Registration { record, .. } = group.register(1);
        group.session_secret = own;
        group.registrations[1].record = record;
    });
}

#[test]
fn two_users_with_one_key_or_with_opposite_keys_are_refused() {
    let twins = |opposite: Option<bool>| {
        let mut people =
            vec![Person::at(0, careful()), Person::at(0, careful()), Person::at(0, careful()).invited()];
        if let Some(opposite) = opposite {
            let bytes = *people[1].private_key.expose();
            let key = secp256k1::SecretKey::from_secret_bytes(bytes).expect("a key");
            let key = if opposite { key.negate() } else { key };
            people[2].private_key = Secret::copied_from(key.as_secret_bytes());
        }
        Group::of(people)
    };
    let refusal = refused(Code::DuplicateKey, || twins(None), open, |group| *group = twins(Some(false)));
    assert_eq!(refusal.culprits.len(), 2);
    refused(Code::EqualX, || twins(None), open, |group| *group = twins(Some(true)));
}

#[test]
fn a_registration_that_has_expired_is_refused() {
    let until = |valid_until| {
        let rules = Rules { valid_until, ..careful() };
        Group::of(vec![Person::at(0, careful()), Person::at(1, rules)])
    };
    refused(Code::RegistrationExpired, || until(NOW + 1), check, |group| *group = until(NOW));
}

#[test]
fn an_altered_or_exchanged_manifest_is_refused() {
    // Of the same session and sealed by a participant under the hash that everybody agreed to.
    let resealed = |shape: fn(&mut Group)| {
        move |group: &mut Group| {
            let (manifest, manifest_hash) = (group.manifest.clone(), group.manifest_hash);
            shape(group);
            let context = Context::Manifest { keygen_id: manifest.keygen_id, manifest_hash };
            let bytes = group.manifest.encode();
            group.manifest = manifest;
            group.sealed_manifest =
                group.seal_key().seal(&context, &bytes, &mut group.entropy).expect("small");
        }
    };
    both(Code::ManifestHashMismatch, resealed(|group| group.manifest.created_at += 1));
    both(Code::ManifestHashMismatch, resealed(|group| group.manifest.keygen_id = KeygenId([1; 16])));
    // Under its own hash, which no envelope names.
    both(Code::EnvelopeMismatch, |group| {
        group.manifest.created_at += 1;
        group.seal_manifest();
    });
    both(Code::SealUnreadable, |group| group.sealed_manifest.0[20] ^= 1);
    both(Code::SealUnreadable, |group| group.sealed_manifest = group.registrations[1].record.clone());
}

#[test]
fn every_kind_of_sealed_blob_is_refused_in_the_place_of_every_other() {
    let opens = |open: OpenKeygen| World::new(2).ask(1, Request::OpenKeygen(open));
    let group = group();
    let honest = || group.open_message(1);
    let mut world = World::new(2);
    let certificate = world.open(&group, 1).expect("opens").certificate;
    let (manifest, record) = (group.sealed_manifest.clone(), group.registrations[1].record.clone());
    for wrong in [record.clone(), certificate.clone()] {
        refused(Code::SealUnreadable, honest, opens, |open| open.manifest = wrong);
    }
    for wrong in [manifest, certificate] {
        refused(Code::SealUnreadable, honest, opens, |open| open.records[1].blob = wrong);
    }
    refused(Code::EnvelopeUnreadable, honest, opens, |open| open.envelopes[0].blob = record);
}

#[test]
fn a_shortened_or_lengthened_roster_is_refused() {
    let opens = |open: OpenKeygen| World::new(2).ask(1, Request::OpenKeygen(open));
    let group = group();
    let honest = || group.open_message(1);
    for index in [0, 3] {
        refused(Code::RosterIncomplete, honest, opens, |open| drop(open.records.remove(index)));
    }
    refused(Code::RosterIncomplete, honest, opens, |open| open.records.push(open.records[0].clone()));
    refused(Code::UserNotInRoster, honest, opens, |open| {
        let stranger = Person::at(0, careful());
        open.records.push(UserBlob { user_id: stranger.user_id, ..open.records[0].clone() });
    });
    // An enclave's own users go with their envelopes.
    refused(Code::EnvelopeMissing, honest, opens, |open| drop(open.records.remove(1)));
    refused(Code::EnvelopeMissing, honest, opens, |open| drop(open.envelopes.remove(0)));
    refused(Code::EnvelopeMissing, honest, opens, |open| open.envelopes.clear());
    refused(Code::RosterIncomplete, honest, opens, |open| {
        open.records.remove(1);
        open.envelopes.remove(0);
    });
    refused(Code::DuplicateUser, honest, opens, |open| open.envelopes.push(open.envelopes[0].clone()));
    refused(Code::EnvelopeMissing, honest, opens, |open| {
        let stranger = Person::at(1, careful());
        let text = EnvelopeText { user_id: stranger.user_id, ..group.envelope(1) };
        let blob = text.encrypt(&keys(1).enclave_key);
        open.envelopes.push(UserBlob { user_id: stranger.user_id, blob });
    });
}

/// The third participant colludes: its record names an enclave as it likes.
fn colluding(enclave: EnclaveKeys) -> Group {
    Group::of(vec![Person::at(0, careful()), Person::at(1, careful()), Person::at_keys(enclave, careful())])
}

#[test]
fn a_record_that_pairs_a_made_up_key_with_an_enclaves_own_is_refused_by_every_enclave() {
    let made_up = Puppet::new().keys;
    let honest = || colluding(made_up);
    let mixed = [
        EnclaveKeys { identity_key: keys(1).identity_key, ..made_up },
        EnclaveKeys { enclave_key: keys(1).enclave_key, ..made_up },
        EnclaveKeys { identity_key: keys(0).identity_key, ..keys(1) },
    ];
    for enclave in mixed {
        for at in [0, 1] {
            let flow = |group: Group| World::new(2).open(&group, at).map(|_| ());
            refused(Code::EnclaveKeysMismatch, honest, flow, |group| *group = colluding(enclave));
        }
    }
}

#[test]
fn a_record_that_names_an_enclave_without_giving_it_the_key_is_refused_there() {
    let made_up = Puppet::new().keys;
    let refusal = refused(
        Code::EnvelopeMissing,
        || colluding(made_up),
        open_at_victim,
        |group| {
            *group = colluding(keys(1));
        },
    );
    // The host could have left the envelope out just as well.
    assert_eq!(refusal.culprits, []);
}

/// The gateway checks approvals by the hint: another key in it would let approvals through that no enclave takes.
#[test]
fn hints_that_are_not_what_the_record_says_are_refused() {
    let ask = |message: CheckRegistration| World::new(2).ask(0, Request::CheckRegistration(message));
    let honest = || group().check_message(0);
    refused(Code::RecordMismatch, honest, ask, |message| {
        message.auth_key = group().check_message(1).auth_key
    });
    refused(Code::RecordMismatch, honest, ask, |message| message.approval_required ^= true);
}

/// Nobody may believe in a rule that no enclave keeps yet.
#[test]
fn a_rule_that_is_not_supported_yet_is_refused() {
    both(Code::Unsupported, |group| {
        let rules = Rules { bind_nonces: true, ..group.people[1].rules };
        let user_id = group.people[1].user_id;
        let record = Record { rules, ..group.record(1) };
        group.registrations[1].record = group.forge_record(user_id, &record, 1);
    });
}
