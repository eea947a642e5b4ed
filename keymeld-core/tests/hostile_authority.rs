//! Intents and approvals: an enclave signs for nobody who did not say so (S1).

mod hostile;

use keymeld_core::artifact::approval::Withdrawal;
use keymeld_core::artifact::approval::{Approval, WithdrawalKind};
use keymeld_core::artifact::intent::{Adaptor, Intent, Item, Origin};
use keymeld_core::artifact::manifest::{Requesters, Subset};
use keymeld_core::artifact::registration::{Rules, user_auth_key};
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash, Message, Signature};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::Context;
use keymeld_core::id::{ItemId, KeygenId, SigningId, SubsetId};
use keymeld_core::limits::{INTENT_LIFETIME_MAX_MS, SKEW_MS};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use hostile::party::{Group, Person, careful, copy, delegated, fresh_entropy};
use hostile::round::{Case, Run};
use hostile::{DAY_MS, NOW, World, refused};

/// A coordinator, one participant who approves and one who delegated, each at its own enclave.
fn people() -> Vec<Person> {
    vec![Person::at(0, careful()), Person::at(1, careful()), Person::at(2, delegated()).invited()]
}

fn case() -> Case {
    Case::new(Group::of(people()))
}

fn stranger() -> AuthKey {
    AuthKey::new(&Secret::random(&mut fresh_entropy()).expect("test entropy")).expect("a key")
}

/// Changes what is asked for before it is signed.
#[track_caller]
fn asking_for(code: Code, change: impl FnOnce(&mut Intent)) {
    refused(code, case, Case::signatures, |case| change(&mut case.intent));
}

/// Changes the only approval on its way.
#[track_caller]
fn approving(code: Code, change: impl FnOnce(&mut Approval, &Run, &mut Group) + 'static) -> Refusal {
    refused(code, case, Case::signatures, |case| {
        case.before(|run, group, _| {
            let mut approval = run.approvals[0];
            change(&mut approval, run, group);
            run.approvals[0] = approval;
        });
    })
}

/// Seals an intent's bytes in a context of the sender's choice.
fn seal_as(group: &mut Group, signing_id: SigningId, digest: Hash, signed: &[u8]) -> Blob {
    let context = Context::Intent { keygen_id: group.keygen_id(), signing_id, digest };
    group.signing_seal(signing_id).seal(&context, signed, &mut group.entropy).expect("small")
}

#[test]
fn an_intent_that_nobody_signed_is_refused() {
    refused(Code::IntentUnsigned, case, Case::signatures, |case| {
        let intent = case.intent.clone();
        case.before(move |run, group, _| {
            let sealed =
                group.seal_intent_bytes(intent.signing_id, strict::to_json(&intent), Signature([0; 64]));
            assert_eq!(sealed.digest, run.key.digest);
            run.intent = sealed.sealed;
        });
    });
}

#[test]
fn an_intent_signed_by_somebody_who_is_no_participant_is_refused() {
    refused(Code::IntentUnsigned, case, Case::signatures, |case| case.signed_by = Some(stranger()));
}

#[test]
fn an_intent_that_names_a_stranger_as_requester_is_refused() {
    refused(Code::UserNotInRoster, case, Case::signatures, |case| {
        case.intent.requester = Person::at(0, careful()).user_id;
        case.signed_by = Some(stranger());
    });
}

#[test]
fn an_intent_of_the_coordinator_signed_by_another_participant_is_refused() {
    refused(Code::IntentUnsigned, case, Case::signatures, |case| {
        case.signed_by = Some(case.group.people[1].auth(case.group.keygen_id()));
    });
}

#[test]
fn an_intent_signed_with_the_auth_key_of_another_keygen_is_refused() {
    refused(Code::IntentUnsigned, case, Case::signatures, |case| {
        let other = user_auth_key(&case.group.people[0].private_key, KeygenId([9; 16]));
        case.signed_by = Some(other.expect("a key"));
    });
}

#[test]
fn an_approval_signature_of_the_coordinator_is_no_signature_on_an_intent() {
    refused(Code::IntentUnsigned, case, Case::signatures, |case| {
        let intent = case.intent.clone();
        case.before(move |run, group, _| {
            let approval = group.approve(0, &intent, run.key.digest, false);
            let bytes = strict::to_json(&intent);
            run.intent = group.seal_intent_bytes(intent.signing_id, bytes, approval.signature).sealed;
        });
    });
}

#[test]
fn an_intent_altered_after_signing_is_refused_whether_its_digest_follows_or_not() {
    fn altered(follow: bool) -> impl FnOnce(&mut Case) {
        move |case| {
            let mut intent = case.intent.clone();
            case.before(move |run, group, _| {
                let body = strict::to_json(&intent);
                let key = group.people[0].auth(group.keygen_id());
                let signature = key.sign(Tag::Intent, &[&body], &mut group.entropy).expect("entropy");
                intent.items[0].item_id = ItemId([7; 16]);
                let altered = strict::to_json(&intent);
                let sealed = group.seal_intent_bytes(intent.signing_id, altered.clone(), signature);
                if follow {
                    run.key.digest = sealed.digest;
                    run.intent = sealed.sealed;
                    run.approvals = vec![group.approve(1, &intent, sealed.digest, false)];
                } else {
                    let inside = group.signing_seal(intent.signing_id).open(
                        &Context::Intent {
                            keygen_id: group.keygen_id(),
                            signing_id: intent.signing_id,
                            digest: sealed.digest,
                        },
                        &sealed.sealed,
                    );
                    let inside = inside.expect("sealed just now");
                    run.intent = seal_as(group, intent.signing_id, run.key.digest, &inside);
                }
            });
        }
    }
    refused(Code::IntentUnsigned, case, Case::signatures, altered(true));
    refused(Code::IntentMismatch, case, Case::signatures, altered(false));
}

#[test]
fn an_intent_of_another_keygen_or_signing_session_is_refused() {
    asking_for(Code::ManifestHashMismatch, |intent| intent.manifest_hash = Hash([1; 32]));
    asking_for(Code::RosterHashMismatch, |intent| intent.roster_hash = Hash([1; 32]));
    // Sealed where the enclave looks for it, by a participant who can; the body says something else.
    fn elsewhere(change: fn(&mut Intent)) -> impl FnOnce(&mut Case) {
        move |case| {
            let mut intent = case.intent.clone();
            case.before(move |run, group, _| {
                let signing_id = intent.signing_id;
                change(&mut intent);
                let body = strict::to_json(&intent);
                let key = group.people[0].auth(group.keygen_id());
                let signature = key.sign(Tag::Intent, &[&body], &mut group.entropy).expect("entropy");
                let sealed = group.seal_intent_bytes(signing_id, body, signature);
                run.key.digest = sealed.digest;
                run.intent = sealed.sealed;
            });
        }
    }
    let keygen: fn(&mut Intent) = |intent| intent.keygen_id = KeygenId([3; 16]);
    let signing: fn(&mut Intent) = |intent| intent.signing_id = SigningId([3; 16]);
    refused(Code::IntentMismatch, case, Case::signatures, elsewhere(keygen));
    refused(Code::IntentMismatch, case, Case::signatures, elsewhere(signing));
}

#[test]
fn an_intent_under_another_digest_or_signing_id_does_not_open() {
    refused(Code::SealUnreadable, case, Case::signatures, |case| {
        case.before(|run, _, _| run.key.digest = Hash([4; 32]));
    });
    refused(Code::SealUnreadable, case, Case::signatures, |case| {
        case.before(|run, _, _| run.key.signing_id = SigningId([4; 16]));
    });
}

#[test]
fn an_intent_is_refused_outside_its_times() {
    asking_for(Code::IntentExpired, |intent| {
        intent.created_at = NOW - DAY_MS;
        intent.expires_at = NOW;
    });
    asking_for(Code::IntentNotYetValid, |intent| intent.created_at = NOW + SKEW_MS + 1);
    asking_for(Code::BadTimes, |intent| intent.expires_at = intent.created_at);
    asking_for(Code::IntentLifetime, |intent| {
        intent.expires_at = intent.created_at + INTENT_LIFETIME_MAX_MS + 1;
    });
    // At each limit it passes.
    for (created_at, expires_at) in
        [(NOW - DAY_MS, NOW + 1), (NOW + SKEW_MS, NOW + DAY_MS), (NOW, NOW + INTENT_LIFETIME_MAX_MS)]
    {
        let mut case = case();
        (case.intent.created_at, case.intent.expires_at) = (created_at, expires_at);
        assert!(case.signatures().is_ok());
    }
}

#[test]
fn an_intent_that_outlives_a_signer_or_the_manifest_is_refused() {
    let until = |valid_until, expires_at| {
        let rules = Rules { valid_until, ..careful() };
        let people = vec![Person::at(0, careful()), Person::at(1, rules)];
        Case::new(Group::shaped(people, |manifest| manifest.expires_at = expires_at))
    };
    let long = || until(NOW + DAY_MS, Some(NOW + DAY_MS));
    refused(Code::IntentLifetime, long, Case::signatures, |case| *case = until(NOW + DAY_MS - 1, None));
    refused(Code::IntentLifetime, long, Case::signatures, |case| {
        *case = until(NOW + DAY_MS, Some(NOW + DAY_MS - 1));
    });
}

#[test]
fn an_intent_that_expires_between_the_rounds_is_refused_in_round_2_and_in_round_3() {
    refused(Code::IntentExpired, case, Case::signatures, |case| {
        case.between(|_, _, world| world.pass_ms(DAY_MS));
    });
    refused(Code::IntentExpired, case, Case::signatures, |case| {
        case.after(|_, _, world| world.pass_ms(DAY_MS));
    });
    let mut late = case();
    late.between(|_, _, world| world.pass_ms(DAY_MS - 1));
    assert!(late.signatures().is_ok());
}

#[test]
fn without_the_approval_that_a_user_requires_nothing_is_made_for_it() {
    let refusal = refused(Code::ApprovalMissing, case, Case::signatures, |case| case.approvers.clear());
    assert_eq!(refusal.culprits.len(), 1);
    let mut case = case();
    case.world.open_all(&case.group).expect("opens");
    let mut run = case.run();
    run.approvals.clear();
    let Case { mut world, group, .. } = case;
    // The enclaves of the coordinator and of the user who delegated have all that they need.
    for (at, expected) in [(0, None), (1, Some(group.people[1].user_id)), (2, None)] {
        let refusal = run.round_1(&mut world, at).err();
        assert_eq!(refusal.map(|refusal| refusal.culprits), expected.map(|user_id| vec![user_id]));
    }
}

#[test]
fn an_approval_of_another_intent_is_refused() {
    approving(Code::ApprovalMissing, |approval, _, group| {
        let other = group.intent();
        *approval = group.approve(1, &other, Hash([1; 32]), false);
    });
    // The same under this intent's ids: the signature is still over the other.
    approving(Code::ApprovalMissing, |approval, run, group| {
        let other = group.intent();
        let made = group.approve(1, &other, Hash([1; 32]), false);
        *approval = Approval { signing_id: run.key.signing_id, intent_digest: run.key.digest, ..made };
    });
}

#[test]
fn an_approval_of_another_user_is_refused() {
    approving(Code::ApprovalMissing, |approval, run, group| {
        let intent = Intent { signing_id: run.key.signing_id, ..group.intent() };
        let made = group.approve(2, &intent, run.key.digest, false);
        *approval = Approval { user_id: group.people[1].user_id, ..made };
    });
    approving(Code::ApprovalMissing, |approval, run, group| {
        let intent = Intent { signing_id: run.key.signing_id, ..group.intent() };
        *approval = group.approve(2, &intent, run.key.digest, false);
    });
    approving(Code::ApprovalMissing, |approval, _, _| {
        approval.user_id = Person::at(0, careful()).user_id;
    });
}

#[test]
fn an_approval_made_with_the_auth_key_of_another_keygen_is_refused() {
    approving(Code::ApprovalMissing, |approval, run, group| {
        let person = &group.people[1];
        let key = user_auth_key(&person.private_key, KeygenId([9; 16])).expect("a key");
        let (signing_id, digest) = (run.key.signing_id, run.key.digest);
        *approval = Approval::sign(signing_id, person.user_id, digest, false, &key, &mut group.entropy)
            .expect("test entropy");
    });
}

#[test]
fn an_approval_of_the_same_intent_for_another_roster_is_refused() {
    refused(Code::ApprovalMissing, case, Case::signatures, |case| {
        let other = Intent { roster_hash: Hash([8; 32]), ..case.intent.clone() };
        case.before(move |run, group, _| {
            let digest = tagged_hash(Tag::Intent, &[&strict::to_json(&other)]);
            run.approvals = vec![group.approve(1, &other, digest, false)];
        });
    });
}

#[test]
fn an_approval_altered_in_any_field_is_refused() {
    approving(Code::ApprovalMissing, |approval, _, _| approval.version = 2);
    approving(Code::ApprovalMissing, |approval, _, _| approval.signing_id = SigningId([1; 16]));
    approving(Code::ApprovalMissing, |approval, _, group| approval.user_id = group.people[0].user_id);
    approving(Code::ApprovalMissing, |approval, _, _| approval.intent_digest = Hash([1; 32]));
    approving(Code::ApprovalMissing, |approval, _, _| approval.blind = true);
    approving(Code::ApprovalMissing, |approval, _, _| approval.signature.0[63] ^= 1);
}

#[test]
fn a_decline_or_a_cancellation_is_no_approval() {
    for kind in [WithdrawalKind::Decline, WithdrawalKind::Cancel] {
        approving(Code::ApprovalMissing, move |approval, run, group| {
            let person = &group.people[1];
            let key = person.auth(group.manifest.keygen_id);
            let (signing_id, digest) = (run.key.signing_id, run.key.digest);
            let entropy = &mut group.entropy;
            let no = Withdrawal::sign(kind, signing_id, person.user_id, digest, None, &key, entropy);
            approval.signature = no.expect("test entropy").signature;
        });
    }
}

/// Whoever can put an approval there that does not verify must not be able to undo the others'.
#[test]
fn approvals_that_do_not_verify_take_nobodys_consent_away() {
    let mut case = case();
    case.before(|run, group, _| {
        let good = run.approvals[0];
        let mut forged = good;
        forged.signature.0[63] ^= 1;
        let stranger = Approval { user_id: Person::at(0, careful()).user_id, ..good };
        let other = group.intent();
        let unasked = group.approve(0, &other, Hash([1; 32]), true);
        run.approvals = vec![forged, stranger, unasked, good, good];
    });
    assert!(case.signatures().is_ok());
}

/// One item that does not say what it signs; everybody agrees to that in its own way.
fn blind(allow_blind: bool) -> Case {
    let people = vec![
        Person::at(0, careful()),
        Person::at(1, careful()),
        Person::at(2, Rules { allow_blind, ..delegated() }),
    ];
    let mut case = Case::new(Group::of(people));
    case.intent.items = vec![Item::blind(Message([6; 32]), &mut fresh_entropy()).expect("test entropy")];
    case.approvers = vec![(1, true)];
    case
}

#[test]
fn a_blind_item_is_refused_for_a_user_who_forbids_it() {
    let refusal =
        refused(Code::BlindNotAllowed, || blind(true), Case::signatures, |case| *case = blind(false));
    assert_eq!(refusal.culprits.len(), 1);
}

#[test]
fn a_blind_item_is_refused_where_the_approval_does_not_say_blind() {
    refused(
        Code::BlindNotAllowed,
        || blind(true),
        Case::signatures,
        |case| case.approvers = vec![(1, false)],
    );
}

#[test]
fn an_allowance_of_blind_items_does_not_stand_in_for_an_approval() {
    let allowing = |approvers: Vec<(usize, bool)>| {
        let rules = Rules { allow_blind: true, allow_any_requester: true, ..careful() };
        let mut case = Case::new(Group::of(vec![Person::at(0, careful()), Person::at(1, rules)]));
        case.intent.items = vec![Item::blind(Message([6; 32]), &mut fresh_entropy()).expect("entropy")];
        case.approvers = approvers;
        case
    };
    refused(
        Code::ApprovalMissing,
        || allowing(vec![(1, true)]),
        Case::signatures,
        |case| {
            *case = allowing(vec![]);
        },
    );
}

/// The second participant asks, the coordinator approves, the third delegated.
fn asked_by_another(allow_any_requester: bool, requesters: Requesters) -> Case {
    let people = vec![
        Person::at(0, careful()),
        Person::at(1, careful()),
        Person::at(2, Rules { allow_any_requester, ..delegated() }),
    ];
    let mut case = Case::new(Group::shaped(people, |manifest| manifest.requesters = requesters));
    case.intent.requester = case.group.people[1].user_id;
    case.approvers = vec![(0, false)];
    case
}

#[test]
fn a_key_delegated_to_the_coordinator_does_not_sign_for_another_requester() {
    let allowed = || asked_by_another(true, Requesters::AnyParticipant);
    let refusal = refused(Code::RequesterNotAllowed, allowed, Case::signatures, |case| {
        *case = asked_by_another(false, Requesters::AnyParticipant);
    });
    assert_eq!(refusal.culprits.len(), 1);
    // Unless its owner approves.
    let mut approved = asked_by_another(false, Requesters::AnyParticipant);
    approved.approvers.push((2, false));
    assert!(approved.signatures().is_ok());
}

#[test]
fn where_only_the_coordinator_may_ask_nobody_else_does() {
    let allowed = || asked_by_another(true, Requesters::AnyParticipant);
    refused(Code::RequesterNotAllowed, allowed, Case::signatures, |case| {
        *case = asked_by_another(true, Requesters::Coordinator);
    });
}

#[test]
fn the_coordinators_key_does_not_sign_for_another_requester_without_its_approval() {
    let allowed = || asked_by_another(true, Requesters::AnyParticipant);
    refused(Code::ApprovalMissing, allowed, Case::signatures, |case| case.approvers.clear());
}

/// Like [`asked_by_another`], for a subset with or without the requester.
fn for_a_subset(members: [usize; 2]) -> Case {
    let people = vec![
        Person::at(0, careful()),
        Person::at(0, careful()),
        Person::at(0, Rules { allow_any_requester: true, ..delegated() }),
    ];
    let subset_id = SubsetId([5; 16]);
    let members = members.map(|index: usize| people[index].user_id).to_vec();
    let mut case = Case::new(Group::shaped(people, |manifest| {
        manifest.requesters = Requesters::AnyParticipant;
        manifest.subsets = vec![Subset { subset_id, members }];
    }));
    case.intent.requester = case.group.people[1].user_id;
    case.intent.items[0].subset = Some(subset_id);
    case.approvers = vec![(0, false)];
    case
}

#[test]
fn nobody_but_the_coordinator_asks_for_what_it_does_not_sign_itself() {
    let with = || for_a_subset([1, 2]);
    refused(Code::RequesterNotAllowed, with, Case::signatures, |case| *case = for_a_subset([0, 2]));
    refused(Code::UnknownSubset, with, Case::signatures, |case| {
        case.intent.items[0].subset = Some(SubsetId([6; 16]));
    });
}

#[test]
fn an_item_that_is_not_what_it_says_or_cannot_be_signed_is_refused() {
    asking_for(Code::OriginMismatch, |intent| intent.items[0].message.0[0] ^= 1);
    asking_for(Code::OriginMismatch, |intent| {
        intent.items[0].origin = Some(Origin::Text("pay the thief".into()));
    });
    asking_for(Code::OriginForbidden, |intent| {
        intent.items[0].origin = Some(Origin::Bytes(Blob(vec![1; 64])))
    });
    asking_for(Code::Unsupported, |intent| {
        intent.items[0].origin = Some(Origin::Psbt { index: 0, input: 0, leaf_hash: None });
    });
    asking_for(Code::Unsupported, |intent| intent.psbts = vec![Blob(vec![1])]);
    asking_for(Code::Unsupported, |intent| intent.items[0].adaptor = Some(Adaptor::And(Vec::new())));
    asking_for(Code::BadTweak, |intent| {
        intent.items[0].tweak = Some(vec![TweakStep::Plain(Hash([0xff; 32]))])
    });
    asking_for(Code::BadItems, |intent| intent.items.clear());
    asking_for(Code::BadItems, |intent| intent.items.push(intent.items[0].clone()));
    asking_for(Code::UnsupportedVersion, |intent| intent.version = 2);
}

#[test]
fn all_rules_hold_where_all_signers_share_one_enclave() {
    let together = || {
        let people = vec![Person::at(0, careful()), Person::at(0, careful()), Person::at(0, delegated())];
        Case::new(Group::of(people))
    };
    refused(Code::ApprovalMissing, together, Case::signatures, |case| case.approvers.clear());
    refused(Code::IntentUnsigned, together, Case::signatures, |case| case.signed_by = Some(stranger()));
    refused(Code::BlindNotAllowed, together, Case::signatures, |case| case.intent.items[0].origin = None);
    refused(Code::IntentExpired, together, Case::signatures, |case| {
        case.before(|_, _, world| world.pass_ms(DAY_MS));
    });
    refused(Code::RosterHashMismatch, together, Case::signatures, |case| {
        case.intent.roster_hash = Hash([1; 32]);
    });
    refused(Code::ApprovalMissing, together, Case::signatures, |case| {
        case.before(|run, _, _| run.approvals[0].blind = true);
    });
}

/// The host re-registers a user with other rules that this user once signed: intents name the roster.
#[test]
fn a_second_registration_with_weaker_rules_does_not_serve_the_first_rosters_intents() {
    fn flow(setting: (Case, bool)) -> Result<(), Refusal> {
        let (mut case, weaken) = setting;
        case.world.open_all(&case.group)?;
        case.approvers.clear();
        let weak = Rules { allow_blind: true, ..delegated() };
        let mut second = Group {
            people: people_with_rules_of(&case.group, 1, weak),
            entropy: fresh_entropy(),
            manifest: case.group.manifest.clone(),
            session_secret: copy(&case.group.session_secret),
            registrations: case.group.registrations.clone(),
            sealed_manifest: case.group.sealed_manifest.clone(),
            ..case.group
        };
        second.registrations[1] = second.register(1);
        // Everybody's enclaves accept the second roster: its owner signed it. It has another hash.
        let hash = case.world.open_all(&second)?;
        assert_ne!(hash, case.intent.roster_hash);
        if !weaken {
            case.intent.roster_hash = hash;
        }
        case.group = second;
        let mut run = case.run();
        run.finish(&mut case.world).map(|_| ())
    }
    refused(Code::RosterHashMismatch, || (case(), false), flow, |(_, weaken)| *weaken = true);
}

fn people_with_rules_of(group: &Group, index: usize, rules: Rules) -> Vec<Person> {
    let copies = group.people.iter().enumerate().map(|(other, person)| Person {
        private_key: copy(&person.private_key),
        invite_key: person.invite_key.as_ref().map(copy),
        rules: if other == index { rules } else { person.rules },
        ..*person
    });
    copies.collect()
}

#[test]
fn an_enclave_without_a_signer_of_the_intent_is_not_concerned_and_does_not_aggregate() {
    let subset_id = SubsetId([5; 16]);
    let people = people();
    let members = vec![people[0].user_id, people[1].user_id];
    let mut group = Group::shaped(people, |manifest| manifest.subsets = vec![Subset { subset_id, members }]);
    let mut intent = group.intent();
    intent.items[0].subset = Some(subset_id);
    let mut world = World::new(3);
    world.open_all(&group).expect("opens");
    let mut case = Case { intent, ..Case::new(group) };
    let run = case.run();
    let mut elsewhere = run.again();
    elsewhere.key.aggregator = hostile::keys(2).enclave_key;
    for at in [0, 1] {
        assert!(run.clone().round_1(&mut world, at).is_ok());
        let refusal = elsewhere.round_1(&mut world, at).expect_err("another aggregator");
        assert_eq!(refusal.code, Code::AggregatorInvalid);
    }
    assert_eq!(run.clone().round_1(&mut world, 2).expect_err("no signer").code, Code::NotConcerned);
}
