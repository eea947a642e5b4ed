//! The signing rounds: messages swapped, repeated, altered, taken from elsewhere, on their way between honest
//! enclaves (S2, DESIGN 4.4).

mod hostile;

use keymeld_core::bytes::{Blob, Hash, PartialSignature, PublicKey, PublicNonce};
use keymeld_core::crypto::auth;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::{Context, Round, SealKey};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::id::{AttemptId, SigningId};
use keymeld_core::link::message::{Addressed, Aggregate, MakePartials, Reply, Request, RunKey};
use keymeld_core::refusal::{Code, Refusal};

use hostile::oracle::Oracle;
use hostile::party::{Group, Person, careful, copy, delegated, fresh_entropy};
use hostile::round::{Case, Run};
use hostile::{World, keys, refused};

/// Three participants at three enclaves; the first aggregates.
fn case() -> Case {
    Case::new(Group::of(vec![
        Person::at(0, careful()),
        Person::at(1, careful()),
        Person::at(2, delegated()).invited(),
    ]))
}

fn key(at: usize) -> PublicKey {
    keys(at).enclave_key
}

/// Tampers with nonce bundles between the rounds.
#[track_caller]
fn with_nonces(code: Code, tamper: impl FnOnce(&mut Run, &mut Group, &mut World) + 'static) {
    refused(code, case, Case::signatures, |case| case.between(tamper));
}

/// Tampers with partial bundles before they are aggregated.
#[track_caller]
fn with_partials(code: Code, tamper: impl FnOnce(&mut Run, &mut Group, &mut World) + 'static) {
    refused(code, case, Case::signatures, |case| case.after(tamper));
}

/// A run after round 1 everywhere.
fn after_round_1() -> (World, Group, Run) {
    let mut case = case();
    case.world.open_all(&case.group).expect("opens");
    let mut run = case.run();
    let Case { mut world, group, .. } = case;
    run.all_nonces(&mut world).expect("authorised");
    (world, group, run)
}

/// A run after round 2 everywhere.
fn after_round_2() -> (World, Group, Run) {
    let (mut world, group, mut run) = after_round_1();
    run.all_partials(&mut world).expect("honest nonces");
    (world, group, run)
}

fn refusal_of<T>(result: Result<T, Refusal>) -> Code {
    match result {
        Ok(_) => panic!("not refused"),
        Err(refusal) => {
            assert_eq!(refusal.culprits, [], "nobody is to blame");
            refusal.code
        }
    }
}

#[test]
fn nonce_bundles_given_out_under_each_others_names_are_refused() {
    with_nonces(Code::BundleUnreadable, |run, _, _| {
        let [first, second] = [(key(0), key(1)), (key(2), key(1))];
        let swapped = [run.nonces[&second].clone(), run.nonces[&first].clone()];
        run.nonces.extend([first, second].into_iter().zip(swapped));
    });
}

#[test]
fn a_nonce_bundle_for_another_recipient_is_refused() {
    with_nonces(Code::BundleUnreadable, |run, _, _| {
        run.nonces.insert((key(0), key(1)), run.nonces[&(key(0), key(2))].clone());
    });
}

#[test]
fn a_nonce_bundle_sent_back_to_its_sender_is_refused() {
    with_nonces(Code::BundleUnreadable, |run, _, _| {
        run.nonces.insert((key(0), key(1)), run.nonces[&(key(1), key(0))].clone());
    });
}

#[test]
fn an_altered_nonce_bundle_is_refused() {
    for change in [
        |blob: &mut Blob| blob.0[30] ^= 1,
        |blob: &mut Blob| blob.0[0] ^= 1,
        |blob: &mut Blob| blob.0.truncate(100),
        |blob: &mut Blob| blob.0.clear(),
        |blob: &mut Blob| blob.0.push(0),
    ] {
        with_nonces(Code::BundleUnreadable, move |run, _, _| {
            change(run.nonces.get_mut(&(key(0), key(1))).expect("sent"));
        });
    }
}

#[test]
fn a_nonce_bundle_of_another_attempt_is_refused() {
    with_nonces(Code::BundleUnreadable, |run, _, world| {
        let mut other = run.again();
        other.round_1(world, 0).expect("authorised");
        run.nonces.insert((key(0), key(1)), other.nonces[&(key(0), key(1))].clone());
    });
}

#[test]
fn a_nonce_bundle_of_another_intent_or_aggregator_is_refused() {
    with_nonces(Code::BundleUnreadable, |run, group, world| {
        let mut intent = group.intent();
        intent.signing_id = SigningId([7; 16]);
        let seal_key = group.signing_seal(intent.signing_id);
        let auth = group.people[0].auth(group.keygen_id());
        let sealed = intent.seal(&auth, &seal_key, &mut group.entropy).expect("small");
        let approval = group.approve(1, &intent, sealed.digest, false);
        let mut other = Run::new(group, &intent, &sealed, vec![approval]);
        other.key.attempt = run.key.attempt;
        // The run that this enclave holds already is not replaced by another of the same name.
        assert_eq!(refusal_of(other.round_1(world, 0)), Code::AttemptConsumed);
        other.key.attempt = AttemptId([8; 16]);
        other.round_1(world, 0).expect("authorised");
        run.nonces.insert((key(0), key(1)), other.nonces[&(key(0), key(1))].clone());
    });
    with_nonces(Code::BundleUnreadable, |run, _, world| {
        let mut other = run.again();
        other.key.aggregator = key(2);
        other.round_1(world, 0).expect("authorised");
        run.nonces.insert((key(0), key(1)), other.nonces[&(key(0), key(1))].clone());
    });
}

#[test]
fn nonce_bundles_that_are_not_exactly_one_from_each_peer_are_refused() {
    let (mut world, _, run) = after_round_1();
    let honest = run.bundles_for(1);
    let stranger = Addressed { peer: key(3), blob: honest[0].blob.clone() };
    let own = Addressed { peer: key(1), blob: run.nonces[&(key(1), key(0))].clone() };
    let [first, second] = [honest[0].clone(), honest[1].clone()];
    for nonces in [
        vec![],
        vec![first.clone()],
        vec![first.clone(), first.clone()],
        vec![first.clone(), second.clone(), first.clone()],
        vec![first.clone(), stranger],
        vec![first, second, own],
    ] {
        let request = Request::MakePartials(MakePartials { run: run.key_at(1), nonces });
        assert_eq!(refusal_of(world.ask(1, request)), Code::BundleMismatch);
    }
    // None of that used the nonces up.
    let request = Request::MakePartials(MakePartials { run: run.key_at(1), nonces: honest });
    assert!(world.ask(1, request).is_ok());
}

/// Knows the session secret and its own private key, and is no enclave.
fn forged_keys(run: &Run, group: &Group, victim: PublicKey) -> Vec<SealKey> {
    let colluder = &group.people[2];
    let shared = auth::shared_secret(&colluder.private_key, &victim).expect("a point");
    vec![
        SealKey::derived(&group.session_secret, Purpose::Pair(run.key.attempt)),
        SealKey::new(copy(&group.session_secret)),
        group.seal_key(),
        SealKey::derived(&shared, Purpose::Pair(run.key.attempt)),
        SealKey::new(shared),
    ]
}

fn round_of(run: &Run, group: &Group, sender: PublicKey, recipient: PublicKey) -> Round {
    Round {
        keygen_id: run.key.keygen_id,
        roster_hash: group.roster().expect("made honestly").roster_hash(),
        digest: run.key.digest,
        attempt: run.key.attempt,
        aggregator: run.key.aggregator,
        sender,
        recipient,
    }
}

#[test]
fn a_participant_who_knows_the_session_secret_forges_no_nonces_and_no_partials() {
    for index in 0..5 {
        with_nonces(Code::BundleUnreadable, move |run, group, _| {
            let context = Context::Nonces(round_of(run, group, key(0), key(1)));
            let bundle = NonceBundle::new(vec![PublicNonce([2; 66])]).encode();
            let forged = forged_keys(run, group, key(1))[index].seal(&context, &bundle, &mut fresh_entropy());
            run.nonces.insert((key(0), key(1)), forged.expect("small"));
        });
        with_partials(Code::BundleUnreadable, move |run, group, _| {
            let context = Context::Partials(round_of(run, group, key(1), key(0)));
            let bundle = PartialBundle::new(Hash([1; 32]), vec![PartialSignature([1; 32])]).encode();
            let forged = forged_keys(run, group, key(0))[index].seal(&context, &bundle, &mut fresh_entropy());
            run.partials.insert(key(1), forged.expect("small"));
        });
    }
}

#[test]
fn partial_bundles_swapped_altered_or_of_another_kind_are_refused() {
    with_partials(Code::BundleUnreadable, |run, _, _| {
        let swapped = [(key(1), run.partials[&key(2)].clone()), (key(2), run.partials[&key(1)].clone())];
        run.partials.extend(swapped);
    });
    with_partials(Code::BundleUnreadable, |run, _, _| {
        run.partials.get_mut(&key(1)).expect("sent").0[30] ^= 1
    });
    with_partials(Code::BundleUnreadable, |run, _, _| {
        run.partials.insert(key(1), run.nonces[&(key(1), key(0))].clone());
    });
    with_nonces(Code::BundleUnreadable, |run, _, world| {
        run.clone().all_partials(world).expect("honest nonces");
        let mut other = run.again();
        other.all_nonces(world).expect("authorised");
        let Ok(()) = other.round_2(world, 1) else { panic!("honest nonces") };
        run.nonces.insert((key(1), key(0)), other.partials[&key(1)].clone());
    });
}

#[test]
fn a_partial_bundle_of_another_attempt_is_refused() {
    with_partials(Code::BundleUnreadable, |run, _, world| {
        let mut other = run.again();
        other.all_nonces(world).expect("authorised");
        other.all_partials(world).expect("honest nonces");
        run.partials.insert(key(1), other.partials[&key(1)].clone());
    });
}

#[test]
fn partial_bundles_that_are_not_exactly_one_from_each_peer_are_refused() {
    let (mut world, group, mut run) = after_round_2();
    let Request::Aggregate(honest) = run.aggregate_request() else { panic!("an Aggregate") };
    let [first, second] = [honest.partials[0].clone(), honest.partials[1].clone()];
    let stranger = Addressed { peer: key(3), ..first.clone() };
    for partials in [
        vec![],
        vec![first.clone()],
        vec![first.clone(), first.clone()],
        vec![first.clone(), second.clone(), first.clone()],
        vec![first, second, stranger],
    ] {
        let request = Request::Aggregate(Aggregate { partials, ..honest.clone() });
        assert_eq!(refusal_of(world.ask(0, request)), Code::BundleMismatch);
    }
    let result = run.aggregate(&mut world).expect("honest partials");
    assert!(run.read(&group, &result).expect("verifies")[0].is_ok());
}

#[test]
fn round_2_of_an_unknown_attempt_is_refused_and_makes_nothing() {
    let (mut world, _, mut run) = after_round_1();
    for at in [1, 2] {
        let mut other = run.clone();
        other.key.attempt = AttemptId([9; 16]);
        assert_eq!(refusal_of(other.round_2(&mut world, at)), Code::UnknownAttempt);
        assert_eq!(world.hosts[at].enclave.attempts_held(), 1);
    }
    assert!(run.all_partials(&mut world).is_ok());
    assert!(run.aggregate(&mut world).is_ok());
}

#[test]
fn round_2_under_other_particulars_than_round_1_is_refused() {
    let (mut world, _, run) = after_round_1();
    let changes: [fn(&mut RunKey); 3] = [
        |key| key.signing_id = SigningId([9; 16]),
        |key| key.digest = Hash([9; 32]),
        |run| run.aggregator = key(2),
    ];
    for change in changes {
        let mut other = run.clone();
        change(&mut other.key);
        assert_eq!(refusal_of(other.round_2(&mut world, 1)), Code::UnknownAttempt);
    }
    assert!(run.clone().round_2(&mut world, 1).is_ok());
}

#[test]
fn the_same_round_2_again_gets_the_same_answer_and_any_other_none() {
    let (mut world, _, mut run) = after_round_1();
    let request = run.partials_request(1);
    let first = world.ask(1, request.clone()).expect("honest nonces");
    assert_eq!(world.ask(1, request), Ok(first));
    // The same bundles in another order are another request; so are bundles of a later attempt.
    let mut nonces = run.bundles_for(1);
    nonces.reverse();
    let reordered = Request::MakePartials(MakePartials { run: run.key_at(1), nonces });
    assert_eq!(refusal_of(world.ask(1, reordered)), Code::AttemptConsumed);
    let mut other = run.again();
    other.all_nonces(&mut world).expect("authorised");
    run.nonces = other.nonces;
    assert_eq!(refusal_of(run.round_2(&mut world, 1)), Code::AttemptConsumed);
}

#[test]
fn the_same_round_1_again_gets_the_same_nonces_until_they_are_used() {
    let (mut world, group, run) = after_round_1();
    let mut again = run.clone();
    again.all_nonces(&mut world).expect("the same request");
    assert_eq!(again.nonces, run.nonces);
    // With other approvals it is another request.
    let mut other = run.clone();
    other.approvals.clear();
    assert_eq!(refusal_of(other.round_1(&mut world, 0)), Code::AttemptConsumed);
    again.all_partials(&mut world).expect("honest nonces");
    assert_eq!(refusal_of(run.clone().round_1(&mut world, 1)), Code::AttemptConsumed);
    let result = again.aggregate(&mut world).expect("honest partials");
    assert!(again.read(&group, &result).expect("verifies")[0].is_ok());
    assert_eq!(refusal_of(run.clone().round_1(&mut world, 0)), Code::AttemptConsumed);
}

#[test]
fn the_result_asked_for_twice_is_the_same_and_for_another_request_there_is_none() {
    let (mut world, _, mut run) = after_round_2();
    let first = run.aggregate(&mut world).expect("honest partials");
    assert_eq!(run.aggregate(&mut world), Ok(first));
    let Request::Aggregate(mut other) = run.aggregate_request() else { panic!("an Aggregate") };
    other.partials.reverse();
    assert_eq!(refusal_of(world.ask(0, Request::Aggregate(other))), Code::AttemptConsumed);
}

#[test]
fn the_result_of_signers_who_share_an_enclave_is_the_same_when_asked_for_twice() {
    let mut case = Case::new(Group::of(vec![Person::at(0, careful()), Person::at(0, delegated())]));
    case.world.open_all(&case.group).expect("opens");
    let run = case.run();
    let first = run.clone().round_1(&mut case.world, 0).expect("authorised").expect("a result");
    assert_eq!(run.clone().round_1(&mut case.world, 0), Ok(Some(first)));
    let mut other = run.clone();
    other.approvals.push(case.group.approve(1, &case.intent, run.key.digest, false));
    assert_eq!(refusal_of(other.round_1(&mut case.world, 0)), Code::AttemptConsumed);
    // Nothing is left for round 2 or 3.
    let request = Request::MakePartials(MakePartials { run: run.key_at(0), nonces: vec![] });
    assert_eq!(refusal_of(case.world.ask(0, request)), Code::AttemptConsumed);
    assert_eq!(refusal_of(case.world.ask(0, run.aggregate_request())), Code::AttemptConsumed);
}

#[test]
fn only_the_aggregator_aggregates_and_it_gives_its_partials_to_nobody() {
    let (mut world, _, mut run) = after_round_1();
    assert_eq!(refusal_of(run.clone().round_2(&mut world, 0)), Code::AggregatorInvalid);
    run.all_partials(&mut world).expect("honest nonces");
    let (mut world, _, run) = after_round_1();
    let elsewhere = Aggregate { run: run.key_at(1), nonces: run.bundles_for(1), partials: vec![] };
    assert_eq!(refusal_of(world.ask(1, Request::Aggregate(elsewhere))), Code::AggregatorInvalid);
}

#[test]
fn a_new_attempt_goes_through_whatever_became_of_the_one_before() {
    let (mut world, group, mut run) = after_round_1();
    run.round_2(&mut world, 1).expect("honest nonces");
    let mut again = run.again();
    let result = again.finish(&mut world).expect("a new attempt");
    assert!(again.read(&group, &result).expect("verifies")[0].is_ok());
    // And the old one can still be finished: each has nonces of its own.
    run.round_2(&mut world, 2).expect("honest nonces");
    let result = run.aggregate(&mut world).expect("honest partials");
    assert!(run.read(&group, &result).expect("verifies")[0].is_ok());
}

#[test]
fn a_message_for_another_session_than_its_frame_says_is_refused() {
    let (mut world, _, run) = after_round_1();
    for request in [run.nonces_request(1), run.partials_request(1), run.aggregate_request()] {
        let refused = world.hosts[1].ask_bytes([1; 16], request.encode());
        assert_eq!(refusal_of(refused), Code::RoutingMismatch);
    }
    assert!(run.clone().round_2(&mut world, 1).is_ok());
}

#[test]
fn sealed_blobs_of_a_keygen_are_refused_in_the_place_of_an_intent_and_of_bundles() {
    refused(Code::SealUnreadable, case, Case::signatures, |case| {
        case.before(|run, group, _| run.intent = group.sealed_manifest.clone());
    });
    refused(Code::SealUnreadable, case, Case::signatures, |case| {
        case.before(|run, group, _| run.intent = group.registrations[0].record.clone());
    });
    with_nonces(Code::BundleUnreadable, |run, _, _| {
        run.nonces.insert((key(0), key(1)), run.intent.clone());
    });
    with_partials(Code::BundleUnreadable, |run, group, _| {
        run.partials.insert(key(1), group.registrations[0].record.clone());
    });
}

/// What the oracle of all these tests says to an enclave that answers twice.
#[test]
#[should_panic(expected = "two answers with the same nonces")]
fn the_oracle_notices_a_second_answer() {
    let (mut world, _, run) = after_round_1();
    let request = run.partials_request(1);
    world.ask(1, request.clone()).expect("honest nonces");
    world.oracle.saw(1, &request, &Reply::PartialsMade(Blob(vec![1; 400])));
}

/// And to one whose nonces come again, here because the oracle has forgotten the attempt.
#[test]
#[should_panic(expected = "a nonce was made twice")]
fn the_oracle_notices_nonces_that_come_again() {
    let (mut world, group, run) = after_round_1();
    let made = run.nonces.iter().filter(|((from, _), _)| *from == key(1));
    let made = made.map(|((_, to), blob)| Addressed { peer: *to, blob: blob.clone() }).collect();
    world.oracle = Oracle::default();
    world.open(&group, 1).expect("opens");
    world.oracle.saw(1, &run.nonces_request(1), &Reply::NoncesMade(made));
}
