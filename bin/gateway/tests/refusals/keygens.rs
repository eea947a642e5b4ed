//! Keygens: reservations, manifests, registrations, rosters.

use keymeld_core::api::rest::{RegisterRequest, ReserveRequest, SlotRequest, SlotsResponse, SubsetHint};
use keymeld_core::artifact::manifest::{Manifest, Participant, Pin};
use keymeld_core::artifact::registration::{Record, Rules};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash, PublicKey, XOnlyKey};
use keymeld_core::crypto::auth;
use keymeld_core::id::{SubsetId, UserId};
use keymeld_core::limits::PARTICIPANTS_MAX;
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;

use crate::group::{EnvelopeText, Group, careful, delegated};
use crate::rig::{Rig, enclave_id, show, unix_ms};

/// No point of the curve has this x coordinate.
const NO_X: [u8; 32] = [0xff; 32];

pub(crate) const RESERVATIONS: [Code; 8] = [
    Code::TooFewParticipants,
    Code::TooManyParticipants,
    Code::DuplicateUser,
    Code::DuplicateKey,
    Code::CoordinatorNotParticipant,
    Code::NotOnCurve,
    Code::BadTimes,
    Code::BadSubset,
];

#[test]
fn a_reservation_that_contradicts_itself_or_the_limits_is_refused() {
    show(&RESERVATIONS, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful(), careful()]);
        let slots = |request: &mut ReserveRequest, rig: &mut Rig, count: usize| {
            let key = |rig: &mut Rig| {
                let secret = Secret::random(&mut rig.entropy).expect("randomness");
                auth::x_only(&auth::public_key(&secret).expect("a key"))
            };
            while request.slots.len() < count {
                let user_id = UserId::random(&mut rig.entropy).expect("randomness");
                request.slots.push(SlotRequest { user_id, slot_key: key(rig) });
            }
            request.slots.truncate(count);
        };
        type Change<'a> = Box<dyn Fn(&mut ReserveRequest, &mut Rig) + 'a>;
        let cases: Vec<(Code, Change<'_>)> = vec![
            (Code::TooFewParticipants, Box::new(|request, _| request.slots.truncate(1))),
            (Code::TooFewParticipants, Box::new(|request, _| request.slots.clear())),
            (Code::TooManyParticipants, Box::new(|request, rig| slots(request, rig, PARTICIPANTS_MAX + 1))),
            (Code::DuplicateUser, Box::new(|one, _| one.slots[1].user_id = one.slots[0].user_id)),
            (Code::DuplicateKey, Box::new(|one, _| one.slots[1].slot_key = one.slots[0].slot_key)),
            (Code::DuplicateKey, Box::new(|one, _| one.slots[1].slot_key = one.session_key)),
            (Code::CoordinatorNotParticipant, Box::new(|one, _| one.coordinator = UserId([1; 16]))),
            (Code::NotOnCurve, Box::new(|one, _| one.slots[1].slot_key = XOnlyKey(NO_X))),
            (Code::NotOnCurve, Box::new(|one, _| one.slots[1].slot_key = XOnlyKey([0; 32]))),
            (Code::BadTimes, Box::new(|one, _| one.timeout_ms = Some(0))),
            (Code::BadTimes, Box::new(|one, _| one.timeout_ms = Some(31 * 24 * 3_600_000))),
        ];
        for (code, change) in cases {
            let mut request = group.reservation();
            change(&mut request, rig);
            let ask = rig.post(&group.session, "keygen/reserve", &request);
            rig.refused(code, &ask);
        }
        // As many as the limit are taken.
        let full = Group::new(rig, &[careful(), careful()]);
        let mut request = full.reservation();
        slots(&mut request, rig, PARTICIPANTS_MAX);
        let ask = rig.post(&full.session, "keygen/reserve", &request);
        assert_eq!(rig.does::<SlotsResponse>(&ask).slots.len(), PARTICIPANTS_MAX);

        let ask = group.reserve(rig);
        rig.does::<SlotsResponse>(&ask);
        let user = |at: usize| group.people[at].user_id;
        let subset =
            |members: &[UserId]| SubsetHint { subset_id: SubsetId([1; 16]), members: members.into() };
        for subsets in [
            vec![subset(&[user(0)])],
            vec![subset(&[user(0), user(0)])],
            vec![subset(&[user(0), UserId([1; 16])])],
            vec![subset(&[user(0), user(1)]), subset(&[user(0), user(1)])],
        ] {
            let mut init = group.init.clone();
            init.subsets = subsets;
            let ask = rig.post(&group.session, &group.path("init"), &init);
            rig.refused(Code::BadSubset, &ask);
        }
        let ask = group.initialise(rig);
        rig.does::<SlotsResponse>(&ask);
    });
}

pub(crate) const REGISTRATIONS: [Code; 18] = [
    Code::UnsupportedVersion,
    Code::WrongEnclaveKey,
    Code::ManifestHashMismatch,
    Code::BadPossession,
    Code::BadCosignature,
    Code::PointAtInfinity,
    Code::NotOnCurve,
    Code::InvalidPrivateKey,
    Code::PinMismatch,
    Code::EnvelopeUnreadable,
    Code::EnvelopeMismatch,
    Code::SealUnreadable,
    Code::RecordMismatch,
    Code::EnvelopeRecordMismatch,
    Code::EnclaveKeysMismatch,
    Code::RegistrationExpired,
    Code::Unsupported,
    Code::DuplicateKey,
];

/// Two enclaves, and a group of four of which the last registers; it was invited.
struct Setting<'a> {
    rig: &'a mut Rig,
    group: &'a Group,
    good: RegisterRequest,
}

const LAST: usize = 3;

impl Setting<'_> {
    /// Refused with this code for its record.
    fn record(&mut self, code: Code, change: impl FnOnce(&mut Record)) {
        let mut record = self.group.record(self.rig, LAST);
        change(&mut record);
        let sealed = self.group.seal_record(self.rig, LAST, &record);
        self.request(code, |request| request.record = sealed);
    }

    /// Refused with this code for its envelope.
    fn envelope(&mut self, code: Code, change: impl FnOnce(&mut EnvelopeText)) {
        let enclave = self.group.enclave(self.rig, LAST);
        let mut text = self.group.envelope(enclave, LAST);
        change(&mut text);
        let sealed = text.encrypt(self.rig);
        self.request(code, |request| request.envelope = sealed);
    }

    fn request(&mut self, code: Code, change: impl FnOnce(&mut RegisterRequest)) {
        let mut request = self.good.clone();
        change(&mut request);
        assert_ne!(request, self.good);
        let ask = self.group.register(self.rig, LAST, &request);
        self.rig.refused(code, &ask);
    }

    /// Refused with this code for its rules, in record and envelope alike.
    fn rules(&mut self, code: Code, change: impl FnOnce(&mut Rules)) {
        let mut record = self.group.record(self.rig, LAST);
        change(&mut record.rules);
        let enclave = self.group.enclave(self.rig, LAST);
        let text = EnvelopeText { rules: record.rules, ..self.group.envelope(enclave, LAST) };
        let (record, envelope) = (self.group.seal_record(self.rig, LAST, &record), text.encrypt(self.rig));
        self.request(code, |request| (request.record, request.envelope) = (record, envelope));
    }
}

#[test]
fn a_registration_is_refused_for_whatever_is_wrong_with_it_and_the_right_one_is_taken() {
    show(&REGISTRATIONS, Rig::start(2, ""), |rig| {
        let mut group = Group::new(rig, &[delegated(), careful(), careful(), careful()]);
        group.invite(rig, LAST);
        group.begin(rig);
        let good = group.registration(rig, LAST);
        let other_enclave = group.enclave(rig, 0);
        assert_ne!(other_enclave.enclave_key, good.enclave_key);
        let first = group.registration(rig, 0);
        let ask = group.register(rig, 0, &first);
        rig.does::<SlotsResponse>(&ask);
        let other_user = group.people[1].user_id;
        let mut case = Setting { rig, group: &group, good };

        // What the gateway sees itself.
        case.request(Code::WrongEnclaveKey, |request| request.enclave_key = other_enclave.enclave_key);
        case.request(Code::WrongEnclaveKey, |request| {
            request.enclave_key = auth::public_key(&Secret::copied_from(&[1; 32])).expect("a key");
        });
        case.request(Code::PointAtInfinity, |request| request.enclave_key = PublicKey([0; 33]));
        case.request(Code::NotOnCurve, |request| request.enclave_key.0[1..].copy_from_slice(&NO_X));
        case.request(Code::NotOnCurve, |request| request.auth_key = XOnlyKey(NO_X));
        case.request(Code::DuplicateKey, |request| request.auth_key = first.auth_key);
        // What its enclave sees.
        case.request(Code::RecordMismatch, |request| request.approval_required = false);
        case.request(Code::RecordMismatch, |request| request.auth_key.0 = auth_key_of(9).0);
        case.request(Code::EnvelopeUnreadable, |request| request.envelope = Blob(vec![7; 300]));
        case.request(Code::EnvelopeUnreadable, |request| request.envelope = first.envelope.clone());
        case.request(Code::SealUnreadable, |request| request.record = Blob(vec![7; 300]));
        case.request(Code::SealUnreadable, |request| request.record = first.record.clone());
        case.envelope(Code::EnvelopeMismatch, |text| text.purpose = "keymeld-single-key-v1".into());
        case.envelope(Code::EnvelopeMismatch, |text| text.user_id = other_user);
        case.envelope(Code::EnvelopeMismatch, |text| text.manifest_hash = Hash([1; 32]));
        case.envelope(Code::SealUnreadable, |text| text.session_secret = "11".repeat(32));
        case.envelope(Code::InvalidPrivateKey, |text| text.private_key = "00".repeat(32));
        case.envelope(Code::InvalidPrivateKey, |text| text.private_key = "ff".repeat(32));
        case.envelope(Code::EnvelopeRecordMismatch, |text| text.private_key = "11".repeat(32));
        case.envelope(Code::EnvelopeRecordMismatch, |text| text.rules.allow_blind = true);
        case.record(Code::UnsupportedVersion, |record| record.version = 2);
        case.record(Code::ManifestHashMismatch, |record| record.manifest_hash = Hash([1; 32]));
        case.record(Code::RecordMismatch, |record| record.user_id = other_user);
        case.record(Code::PointAtInfinity, |record| record.public_key = PublicKey([0; 33]));
        case.record(Code::NotOnCurve, |record| record.public_key.0[1..].copy_from_slice(&NO_X));
        case.record(Code::NotOnCurve, |record| record.auth_key = XOnlyKey(NO_X));
        // Another's key: nobody else can prove that it has it.
        let stolen = auth::public_key(&group.people[1].private_key).expect("a key");
        case.record(Code::BadPossession, |record| record.public_key = stolen);
        case.record(Code::WrongEnclaveKey, |record| {
            (record.enclave_key, record.identity_key) =
                (other_enclave.enclave_key, other_enclave.identity_key);
        });
        case.record(Code::EnclaveKeysMismatch, |record| record.identity_key = other_enclave.identity_key);
        case.rules(Code::RegistrationExpired, |rules| rules.valid_until = unix_ms() - 1);
        case.rules(Code::Unsupported, |rules| rules.bind_nonces = true);

        let record = group.record(case.rig, LAST);
        let swap = |signatures: &mut keymeld_core::artifact::registration::RecordSignatures| {
            signatures.possession = signatures.cosignature;
        };
        let sealed = group.seal_record_with(case.rig, LAST, &record, swap);
        case.request(Code::BadPossession, |request| request.record = sealed);
        let swap = |signatures: &mut keymeld_core::artifact::registration::RecordSignatures| {
            signatures.cosignature = signatures.possession;
        };
        let sealed = group.seal_record_with(case.rig, LAST, &record, swap);
        case.request(Code::BadCosignature, |request| request.record = sealed);

        // A pinned participant with another key than the pinned one.
        let mut record = group.record(case.rig, 1);
        record.public_key = auth::public_key(&group.people[LAST].private_key).expect("a key");
        let mut request = group.registration(case.rig, 1);
        request.record = seal_by_another(case.rig, &group, &record);
        let ask = group.register(case.rig, 1, &request);
        case.rig.refused(Code::PinMismatch, &ask);

        // After all that the right ones are taken, and the keygen completes.
        let (request, rig) = (case.good, case.rig);
        let ask = group.register(rig, LAST, &request);
        rig.does::<SlotsResponse>(&ask);
        for at in [1, 2] {
            let request = group.registration(rig, at);
            let ask = group.register(rig, at, &request);
            rig.does::<SlotsResponse>(&ask);
        }
        assert!(group.ended(rig).completed.is_some());
    });
}

fn auth_key_of(byte: u8) -> XOnlyKey {
    auth::x_only(&auth::public_key(&Secret::copied_from(&[byte; 32])).expect("a key"))
}

/// Seals a record for the slot of participant 1, with the signatures of the last one.
fn seal_by_another(rig: &mut Rig, group: &Group, record: &Record) -> Blob {
    use keymeld_core::artifact::Signed;
    use keymeld_core::artifact::registration::RecordSignatures;
    use keymeld_core::crypto::auth::AuthKey;
    use keymeld_core::crypto::hash::Tag;
    use keymeld_core::crypto::seal::Context;
    use keymeld_core::strict;
    let key = AuthKey::new(&group.people[LAST].private_key).expect("a key");
    let body = strict::to_json(record);
    let signatures = RecordSignatures {
        possession: key.sign(Tag::Possession, &[&body], &mut rig.entropy).expect("randomness"),
        cosignature: key.sign(Tag::PinnedKey, &[&body], &mut rig.entropy).expect("randomness"),
    };
    let context = Context::Record {
        keygen_id: group.keygen_id(),
        manifest_hash: group.init.manifest_hash,
        user_id: record.user_id,
    };
    let signed = strict::to_json(&Signed { body: Blob(body), signatures });
    group.seal_key().seal(&context, &signed, &mut rig.entropy).expect("small")
}

pub(crate) const MANIFESTS: [Code; 9] = [
    Code::ManifestHashMismatch,
    Code::BadTweak,
    Code::BadName,
    Code::BadTimes,
    Code::BadItems,
    Code::PinMismatch,
    Code::DuplicateKey,
    Code::CoordinatorNotParticipant,
    Code::UserNotInRoster,
];

#[test]
fn a_manifest_that_the_gateway_cannot_read_is_refused_by_the_first_enclave_that_can() {
    show(&MANIFESTS, Rig::start(1, ""), |rig| {
        type Change = fn(&mut Manifest);
        let cases: [(Code, Change); 8] = [
            (Code::BadTweak, |manifest| {
                manifest.default_tweak = vec![TweakStep::Taproot { merkle_root: None }; 9];
            }),
            (Code::BadName, |manifest| manifest.participants[1].name = Some("x".repeat(129))),
            (Code::BadTimes, |manifest| manifest.expires_at = Some(manifest.created_at)),
            (Code::BadItems, |manifest| manifest.limits.items_max = 0),
            (Code::PinMismatch, |manifest| {
                manifest.coordinator.signing_key = auth::public_key(&Secret::copied_from(&[1; 32])).unwrap();
            }),
            (Code::DuplicateKey, |manifest| {
                manifest.participants[1].pin = manifest.participants[0].pin.clone();
            }),
            (Code::CoordinatorNotParticipant, |manifest| manifest.coordinator.user_id = UserId([1; 16])),
            (Code::UserNotInRoster, |manifest| manifest.participants[1].user_id = UserId([1; 16])),
        ];
        for (code, change) in cases {
            let mut group = Group::new(rig, &[careful(), careful()]);
            // Its honest client refuses to register under such a manifest: it is made under a good one.
            let mut bad = group.manifest.clone();
            change(&mut bad);
            let bytes = bad.encode();
            group.seal_as_manifest(rig, Manifest::hash(&bytes), &bytes);
            group.begin(rig);
            let request = group.registration(rig, 1);
            let ask = group.register(rig, 1, &request);
            rig.refused(code, &ask);
        }
        // The stated hash is not the manifest's.
        let mut group = Group::new(rig, &[careful(), careful()]);
        let bytes = group.manifest.encode();
        group.seal_as_manifest(rig, Hash([1; 32]), &bytes);
        group.begin(rig);
        let request = group.registration(rig, 1);
        let ask = group.register(rig, 1, &request);
        rig.refused(Code::ManifestHashMismatch, &ask);
    });
}

pub(crate) const ROSTERS: [Code; 3] = [Code::EqualX, Code::DuplicateKey, Code::RosterIncomplete];

/// The private key whose public key has the same x coordinate: the group order less the key.
fn negative(key: [u8; 32]) -> [u8; 32] {
    const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let order = Hash::from_hex(ORDER).expect("32 bytes").0;
    let mut difference = [0; 32];
    let mut borrow = 0;
    for at in (0..32).rev() {
        let digit = i32::from(order[at]) - i32::from(key[at]) - borrow;
        borrow = i32::from(digit < 0);
        difference[at] = u8::try_from(digit.rem_euclid(256)).expect("a byte");
    }
    difference
}

/// What only the whole roster shows comes when the last has registered: the keygen fails of it.
#[test]
fn keys_that_collide_and_slots_that_the_manifest_does_not_have_fail_the_keygen() {
    show(&ROSTERS, Rig::start(2, ""), |rig| {
        // The same key for two who were invited: their auth keys are the same, which the gateway sees itself.
        let twins = |rig: &mut Rig, negated: bool| {
            let mut group = Group::new(rig, &[careful(), careful(), careful()]);
            group.invite(rig, 1);
            group.invite(rig, 2);
            let key = *group.people[1].private_key.expose();
            let other = if negated { negative(key) } else { key };
            group.people[2].private_key = Secret::copied_from(&other);
            group
        };
        let group = twins(rig, false);
        group.begin(rig);
        for at in [0, 1] {
            let request = group.registration(rig, at);
            let ask = group.register(rig, at, &request);
            rig.does::<SlotsResponse>(&ask);
        }
        let request = group.registration(rig, 2);
        let ask = group.register(rig, 2, &request);
        rig.refused(Code::DuplicateKey, &ask);

        let group = twins(rig, true);
        group.begin(rig);
        group.register_from(rig, 0);
        let status = group.ended(rig);
        assert!(status.completed.is_none());
        rig.failed(Code::EqualX, status.failure);

        // The manifest has one participant more than there are slots.
        let group = Group::shaped(rig, &[careful(), careful()], |group| {
            let stranger = Pin::InviteKey(auth_key_of(5));
            let stranger = Participant { user_id: UserId([1; 16]), name: None, pin: stranger };
            group.manifest.participants.push(stranger);
        });
        group.begin(rig);
        group.register_from(rig, 0);
        let status = group.ended(rig);
        assert!(status.completed.is_none());
        rig.failed(Code::RosterIncomplete, status.failure);
        assert!(rig.enclave_keys(enclave_id(0)).enclave_key != rig.enclave_keys(enclave_id(1)).enclave_key);
    });
}
