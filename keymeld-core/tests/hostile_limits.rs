//! Every bound at its limit and one past it (S8), and what is forgotten when there is too much.

mod hostile;

use keymeld_core::artifact::intent::{Intent, Item};
use keymeld_core::artifact::manifest::{Manifest, Subset};
use keymeld_core::artifact::registration::{RecordSignatures, Rules};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::Tag;
use keymeld_core::crypto::seal::{Context, SealError, SealKey};
use keymeld_core::enclave::{BYTES_PER_SHARE, PARTICIPANTS_OPEN_MAX, SHARES_HELD_MAX};
use keymeld_core::id::{ItemId, KeygenId, SubsetId};
use keymeld_core::limits::{
    ENVELOPE_BYTES_MAX, INTENT_BYTES_MAX, ITEMS_MAX, MANIFEST_BYTES_MAX, NAME_BYTES_MAX, NONCES_SENT_MAX,
    PARTICIPANTS_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, SHARES_MAX, SUBSET_MEMBERS_SUM_MAX, SUBSETS_MAX,
    TWEAKS_MAX,
};
use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, FrameError, HEADER_BYTES, Kind};
use keymeld_core::link::message::{OpenKeygen, Request};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use hostile::party::{Group, Person, careful, copy, delegated, fresh_entropy};
use hostile::round::{Case, Puppet, Run};
use hostile::{World, keys, refused};

fn crowd(count: usize, rules: Rules) -> Vec<Person> {
    (0..count).map(|_| Person::at(0, rules)).collect()
}

fn two() -> Vec<Person> {
    vec![Person::at(0, careful()), Person::at(0, delegated())]
}

fn open(group: Group) -> Result<(), Refusal> {
    World::new(1).open_all(&group).map(|_| ())
}

/// The intent's only item so many times, under fresh ids.
fn repeat(intent: &mut Intent, count: usize) {
    let mut entropy = fresh_entropy();
    let item = intent.items.remove(0);
    for _ in 0..count {
        let item_id = ItemId::random(&mut entropy).expect("test entropy");
        intent.items.push(Item { item_id, ..item.clone() });
    }
}

#[test]
fn items_are_bounded_by_the_manifest_and_by_the_protocol() {
    let of = |items: usize, items_max: usize| {
        let group = Group::shaped(two(), |manifest| manifest.limits.items_max = items_max as u64);
        let mut case = Case::new(group);
        repeat(&mut case.intent, items);
        case
    };
    refused(Code::BadItems, || of(3, 3), Case::signatures, |case| *case = of(4, 3));
    refused(
        Code::BadItems,
        || of(ITEMS_MAX, ITEMS_MAX),
        Case::signatures,
        |case| {
            *case = of(ITEMS_MAX + 1, ITEMS_MAX);
        },
    );
    let bounded = |items_max: u64| Group::shaped(two(), |manifest| manifest.limits.items_max = items_max);
    for items_max in [0, ITEMS_MAX as u64 + 1] {
        refused(Code::BadItems, || bounded(1), open, |group| *group = bounded(items_max));
    }
}

#[test]
fn participants_are_bounded() {
    let of = |count| Group::of(crowd(count, delegated()));
    refused(
        Code::TooManyParticipants,
        || of(PARTICIPANTS_MAX),
        open,
        |group| *group = of(PARTICIPANTS_MAX + 1),
    );
    refused(Code::TooFewParticipants, || of(2), open, |group| *group = of(1));
    // Longer lists are refused before anything in them is read.
    let opens = |open: OpenKeygen| World::new(1).ask(0, Request::OpenKeygen(open));
    let group = of(2);
    let lists: [fn(&mut OpenKeygen); 2] = [
        |open| open.records = vec![open.records[0].clone(); PARTICIPANTS_MAX + 1],
        |open| open.envelopes = vec![open.envelopes[0].clone(); PARTICIPANTS_MAX + 1],
    ];
    for lengthen in lists {
        refused(Code::TooManyParticipants, || group.open_message(0), opens, lengthen);
    }
}

#[test]
fn the_sum_of_signers_over_all_items_is_bounded() {
    let signers = SHARES_MAX / ITEMS_MAX;
    let subset_id = SubsetId([4; 16]);
    let of = |for_everybody: usize| {
        let puppet = Puppet::new();
        let mut people = vec![Person::at(0, delegated())];
        people.extend((0..signers).map(|_| Person::at_keys(puppet.keys, delegated())));
        let members = people[..signers].iter().map(|person| person.user_id).collect();
        let mut case = Case::new(Group::shaped(people, |manifest| {
            manifest.subsets = vec![Subset { subset_id, members }];
        }));
        repeat(&mut case.intent, ITEMS_MAX);
        for item in case.intent.items.iter_mut().skip(for_everybody) {
            item.subset = Some(subset_id);
        }
        case
    };
    // A thousand items for twenty signers, one of them here, and then one of the items for a signer more.
    let round_1 = |mut case: Case| -> Result<(), Refusal> {
        case.world.open_all(&case.group)?;
        case.run().round_1(&mut case.world, 0).map(|_| ())
    };
    refused(Code::BadItems, || of(0), round_1, |case| *case = of(1));
}

#[test]
fn approvals_are_bounded_by_the_largest_roster() {
    let approved = || {
        let mut people = crowd(PARTICIPANTS_MAX, careful());
        people[0].rules = delegated();
        let mut case = Case::new(Group::of(people));
        // One of each, but for the requester; one is there twice.
        case.approvers.push((50, false));
        case
    };
    refused(Code::TooManyParticipants, approved, Case::signatures, |case| case.approvers.push((50, false)));
}

#[test]
fn tweaks_subsets_and_names_are_bounded() {
    let tweaked = |count| {
        let mut case = Case::new(Group::of(two()));
        case.intent.items[0].tweak = Some(vec![TweakStep::Plain(Hash([1; 32])); count]);
        case
    };
    refused(Code::BadTweak, || tweaked(TWEAKS_MAX), Case::signatures, |case| *case = tweaked(TWEAKS_MAX + 1));

    let shaped =
        |people: usize, shape: &dyn Fn(&mut Manifest)| Group::shaped(crowd(people, delegated()), shape);
    let default = |count: usize| {
        shaped(2, &|manifest| manifest.default_tweak = vec![TweakStep::Plain(Hash([1; 32])); count])
    };
    refused(Code::BadTweak, || default(TWEAKS_MAX), open, |group| *group = default(TWEAKS_MAX + 1));

    let subset = |index: usize, manifest: &Manifest, count: usize| Subset {
        subset_id: SubsetId([index as u8; 16]),
        members: manifest.participants[..count].iter().map(|participant| participant.user_id).collect(),
    };
    let many = |count: usize| {
        shaped(2, &|manifest| {
            manifest.subsets = (0..count).map(|index| subset(index, manifest, 2)).collect();
        })
    };
    refused(Code::BadSubset, || many(SUBSETS_MAX), open, |group| *group = many(SUBSETS_MAX + 1));
    let large = |last: usize| {
        shaped(60, &|manifest| {
            let mut subsets: Vec<Subset> =
                (0..SUBSET_MEMBERS_SUM_MAX / 50 - 1).map(|index| subset(index, manifest, 50)).collect();
            subsets.push(subset(99, manifest, last));
            manifest.subsets = subsets;
        })
    };
    refused(Code::BadSubset, || large(50), open, |group| *group = large(51));

    let named =
        |length: usize| shaped(2, &|manifest| manifest.participants[1].name = Some("n".repeat(length)));
    refused(Code::BadName, || named(NAME_BYTES_MAX), open, |group| *group = named(NAME_BYTES_MAX + 1));
}

/// White space that JSON allows, up to a length.
fn spaced(mut json: Vec<u8>, length: usize) -> Vec<u8> {
    json.resize(length, b' ');
    json
}

#[test]
fn an_intent_has_so_many_bytes_and_no_more() {
    let of = |length: usize| {
        let mut case = Case::new(Group::of(two()));
        let body = spaced(strict::to_json(&case.intent), length);
        let signing_id = case.intent.signing_id;
        case.before(move |run, group, _| {
            let key = group.people[0].auth(group.keygen_id());
            let signature = key.sign(Tag::Intent, &[&body], &mut group.entropy).expect("test entropy");
            let sealed = group.seal_intent_bytes(signing_id, body, signature);
            (run.intent, run.key.digest) = (sealed.sealed, sealed.digest);
        });
        case
    };
    refused(
        Code::TooLarge,
        || of(INTENT_BYTES_MAX),
        Case::signatures,
        |case| *case = of(INTENT_BYTES_MAX + 1),
    );
}

#[test]
fn a_record_and_a_manifest_have_so_many_bytes_and_no_more() {
    let of = |length: usize| {
        let mut group = Group::of(two());
        let body = spaced(strict::to_json(&group.record(1)), length);
        let key = AuthKey::new(&group.people[1].private_key).expect("a key");
        let [possession, cosignature] = [Tag::Possession, Tag::PinnedKey]
            .map(|tag| key.sign(tag, &[&body], &mut group.entropy).expect("test entropy"));
        let signatures = RecordSignatures { possession, cosignature };
        group.registrations[1].record = group.seal_record(group.people[1].user_id, body, signatures);
        group
    };
    refused(Code::TooLarge, || of(RECORD_BYTES_MAX), open, |group| *group = of(RECORD_BYTES_MAX + 1));

    let of = |length: usize| {
        let mut group = Group::of(two());
        let bytes = spaced(group.manifest.encode(), length);
        group.manifest_hash = Manifest::hash(&bytes);
        let context = Context::Manifest { keygen_id: group.keygen_id(), manifest_hash: group.manifest_hash };
        group.sealed_manifest = group.seal_key().seal(&context, &bytes, &mut group.entropy).expect("fits");
        group.registrations = [0, 1].map(|index| group.register(index)).to_vec();
        group
    };
    refused(Code::TooLarge, || of(MANIFEST_BYTES_MAX), open, |group| *group = of(MANIFEST_BYTES_MAX + 1));
}

#[test]
fn an_envelope_and_a_sealed_blob_have_so_many_bytes_and_no_more() {
    let to = keys(0).enclave_key;
    assert!(envelope::encrypt(&to, &vec![1; ENVELOPE_BYTES_MAX], &mut fresh_entropy()).is_ok());
    let refused = envelope::encrypt(&to, &vec![1; ENVELOPE_BYTES_MAX + 1], &mut fresh_entropy());
    assert_eq!(refused, Err(envelope::EncryptError::TooLarge));
    for (blob, code) in [
        (
            envelope::encrypt(&to, &vec![b' '; ENVELOPE_BYTES_MAX], &mut fresh_entropy()),
            Code::EnvelopeMismatch,
        ),
        (Ok(Blob(vec![4; FRAME_BYTES_MAX / 2])), Code::EnvelopeUnreadable),
    ] {
        let mut group = Group::of(two());
        group.registrations[0].envelope = blob.expect("fits");
        assert_eq!(open(group).expect_err("no registration").code, code);
    }

    let key = SealKey::new(Secret::copied_from(&[1; 32]));
    let context = Context::Manifest { keygen_id: KeygenId([1; 16]), manifest_hash: Hash([1; 32]) };
    let seal = |length: usize| key.seal(&context, &vec![1; length], &mut fresh_entropy());
    let (mut fits, mut too_large) = (0, SEALED_BYTES_MAX);
    while too_large - fits > 1 {
        let middle = (fits + too_large) / 2;
        match seal(middle) {
            Ok(_) => fits = middle,
            Err(error) => {
                assert_eq!(error, SealError::TooLarge);
                too_large = middle;
            }
        }
    }
    let blob = seal(fits).expect("fits");
    assert!(blob.0.len() <= SEALED_BYTES_MAX && fits > SEALED_BYTES_MAX * 7 / 8);
    assert_eq!(key.open(&context, &blob).expect("its own").len(), fits);
    assert!(key.open(&context, &Blob(vec![1; SEALED_BYTES_MAX + 1])).is_err());
}

#[test]
fn a_frame_has_so_many_bytes_and_no_more() {
    let frame = |length: usize| Frame {
        kind: Kind::Request,
        request_id: 1,
        routing_id: [0; 16],
        body: vec![0; length],
    };
    let body_bytes_max = FRAME_BYTES_MAX + 4 - HEADER_BYTES;
    let bytes = frame(body_bytes_max).encode().expect("fits");
    let field = bytes[..4].try_into().expect("four bytes");
    assert_eq!(Frame::length(field), Ok(FRAME_BYTES_MAX));
    assert_eq!(Frame::decode(bytes[4..].to_vec()).expect("its own"), frame(body_bytes_max));
    assert_eq!(frame(body_bytes_max + 1).encode(), Err(FrameError::TooLarge));
    let past = u32::try_from(FRAME_BYTES_MAX + 1).expect("small").to_be_bytes();
    assert_eq!(Frame::length(past), Err(FrameError::TooLarge));
}

/// So many enclaves with so many users each could make a reply that no frame holds: everybody's nonces go to
/// every peer in a seal of its own.
#[test]
fn nonces_for_too_many_peers_are_refused_and_what_is_made_fits_in_a_frame() {
    let half = PARTICIPANTS_MAX / 2;
    let of = |items: usize| {
        let mut people = crowd(half, delegated());
        people.extend((0..half).map(|_| Person::at_keys(Puppet::new().keys, delegated())));
        let mut case = Case::new(Group::of(people));
        repeat(&mut case.intent, items);
        case
    };
    let reply_bytes = |mut case: Case| -> Result<usize, Refusal> {
        case.world.open_all(&case.group)?;
        let request = case.run().nonces_request(0);
        Ok(case.world.ask(0, request)?.encode().len())
    };
    let items_max = NONCES_SENT_MAX / half / half;
    let fits = reply_bytes(of(items_max)).expect("at the limit");
    assert!(fits + HEADER_BYTES <= FRAME_BYTES_MAX, "{fits} bytes");
    for items in [items_max + 1, SHARES_MAX / PARTICIPANTS_MAX] {
        assert_eq!(reply_bytes(of(items)).expect_err("past it").code, Code::BadItems);
    }
}

#[test]
fn an_evicted_session_is_opened_again_with_the_same_roster_hash() {
    let mut case = Case::new(Group::of(vec![Person::at(0, careful()), Person::at(1, careful())]));
    let before = case.world.open_all(&case.group).expect("opens");
    let mut run = case.run();
    let Case { mut world, group, .. } = case;
    run.all_nonces(&mut world).expect("authorised");
    world.hosts[1].enclave.evict_all();
    // The nonces went with it; the other enclave keeps its own.
    assert_eq!(run.clone().round_1(&mut world, 1).expect_err("evicted").code, Code::UnknownSession);
    assert_eq!(run.round_2(&mut world, 1).expect_err("evicted").code, Code::UnknownAttempt);
    assert_eq!(world.open(&group, 1).expect("opens again").roster_hash, before);
    assert_eq!(run.round_2(&mut world, 1).expect_err("gone for good").code, Code::UnknownAttempt);
    let mut again = run.again();
    let result = again.finish(&mut world).expect("a new attempt");
    assert!(again.read(&group, &result).expect("verifies")[0].is_ok());
}

#[test]
fn the_sessions_kept_are_bounded_by_their_participants_and_the_least_recently_used_goes_first() {
    const SESSIONS_OF_TWO_MAX: usize = PARTICIPANTS_OPEN_MAX / 2;
    let mut world = World::new(1);
    let group =
        || Group::of(vec![Person::at(0, delegated()), Person::at_keys(Puppet::new().keys, careful())]);
    let (first, second) = (group(), group());
    let hash = world.open(&first, 0).expect("opens").roster_hash;
    world.open(&second, 0).expect("opens");
    let nonces = |world: &mut World, group: &Group| {
        let mut case = Case::new(Group { people: same_people(group), ..copied(group) });
        case.run().round_1(world, 0).map(|_| ())
    };
    for _ in 2..SESSIONS_OF_TWO_MAX {
        world.open(&group(), 0).expect("opens");
    }
    assert_eq!(world.hosts[0].enclave.sessions_open(), SESSIONS_OF_TWO_MAX);
    // The first is used once more, so the second goes.
    nonces(&mut world, &first).expect("still open");
    world.open(&group(), 0).expect("opens");
    assert_eq!(world.hosts[0].enclave.sessions_open(), SESSIONS_OF_TWO_MAX);
    nonces(&mut world, &first).expect("still open");
    assert_eq!(nonces(&mut world, &second).expect_err("evicted").code, Code::UnknownSession);
    assert_eq!(world.open(&first, 0).expect("opens").roster_hash, hash);
    // A session of a hundred takes the places of fifty.
    let crowd = Group::of(crowd(PARTICIPANTS_MAX, delegated()));
    world.open(&crowd, 0).expect("opens");
    assert_eq!(world.hosts[0].enclave.sessions_open(), SESSIONS_OF_TWO_MAX - PARTICIPANTS_MAX / 2 + 1);
}

fn same_people(group: &Group) -> Vec<Person> {
    let people = group.people.iter();
    people
        .map(|person| Person { private_key: copy(&person.private_key), invite_key: None, ..*person })
        .collect()
}

fn copied(group: &Group) -> Group {
    Group {
        people: Vec::new(),
        manifest: group.manifest.clone(),
        manifest_hash: group.manifest_hash,
        sealed_manifest: group.sealed_manifest.clone(),
        session_secret: copy(&group.session_secret),
        registrations: group.registrations.clone(),
        entropy: fresh_entropy(),
    }
}

#[test]
fn the_nonces_kept_are_bounded_and_the_oldest_attempt_goes_first() {
    // The other nineteen signers are at another enclave and cost this one nothing but their weight.
    let signers = SHARES_MAX / ITEMS_MAX;
    let mut people = vec![Person::at(0, delegated())];
    people.extend((1..signers).map(|_| Person::at(1, delegated())));
    let mut case = Case::new(Group::of(people));
    repeat(&mut case.intent, ITEMS_MAX);
    case.world.open_all(&case.group).expect("opens");
    let run = case.run();
    let Case { mut world, .. } = case;
    let kept = SHARES_HELD_MAX / (SHARES_MAX + 1);
    let mut runs: Vec<Run> = (0..=kept).map(|_| run.again()).collect();
    for run in &mut runs {
        run.round_1(&mut world, 0).expect("authorised");
        assert!(world.hosts[0].enclave.attempts_held() <= kept);
    }
    let codes = runs.iter_mut().map(|run| {
        // Without a bundle of the other enclave none is finished; what counts is whether it is known.
        let request = run.aggregate_request();
        world.ask(0, request).expect_err("no bundles").code
    });
    let mut expected = vec![Code::BundleMismatch; kept + 1];
    expected[0] = Code::UnknownAttempt;
    assert_eq!(codes.collect::<Vec<Code>>(), expected);
}

/// An attempt keeps its roster, which may be a hundred participants'.
#[test]
fn attempts_of_large_rosters_push_others_out_before_they_fill_the_memory() {
    let mut people = vec![Person::at(0, delegated())];
    people.extend((1..PARTICIPANTS_MAX).map(|_| Person::at(1, delegated())));
    let mut case = Case::new(Group::of(people));
    case.world.open_all(&case.group).expect("opens");
    let run = case.run();
    let Case { mut world, .. } = case;
    let kept = SHARES_HELD_MAX / (3 * PARTICIPANTS_MAX);
    for _ in 0..kept + 20 {
        run.again().round_1(&mut world, 0).expect("authorised");
    }
    let held = world.hosts[0].enclave.attempts_held();
    assert!(held <= kept && held > kept / 2, "{held} attempts are held");
}

/// A request for two signatures may be half a megabyte long, and an attempt keeps it.
#[test]
fn long_intents_push_others_out_before_they_fill_the_memory() {
    let mut case = Case::new(Group::of(vec![Person::at(0, careful()), Person::at(1, delegated())]));
    case.world.open(&case.group, 0).expect("opens");
    let mut run = case.run();
    let Case { mut world, mut group, intent, .. } = case;
    let body = spaced(strict::to_json(&intent), INTENT_BYTES_MAX);
    let key = group.people[0].auth(group.keygen_id());
    let signature = key.sign(Tag::Intent, &[&body], &mut group.entropy).expect("test entropy");
    let sealed = group.seal_intent_bytes(intent.signing_id, body, signature);
    (run.intent, run.key.digest) = (sealed.sealed, sealed.digest);
    let each = run.intent.0.len();
    let kept = SHARES_HELD_MAX * BYTES_PER_SHARE / each;
    for _ in 0..kept + 20 {
        run.again().round_1(&mut world, 0).expect("authorised");
    }
    let held = world.hosts[0].enclave.attempts_held();
    assert!(held <= kept && held > kept / 2, "{held} attempts of {each} bytes are held");
}
