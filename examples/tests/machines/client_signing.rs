//! A client and a gateway, or a colluding participant, that lies about signatures, intents and refusals.

use keymeld_core::api::http::{Method, Request};
use keymeld_core::api::problem;
use keymeld_core::api::rest::{Failure, IntentResponse, SigningState, SigningStatus};
use keymeld_core::artifact::intent::Item;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::{ItemResult, Outcome, SigningResult};
use keymeld_core::bytes::{Message, PublicKey, Signature};
use keymeld_core::client::{Done, Fault, Job, Keep, Review};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::SealKey;
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::{AttemptId, SigningId};
use keymeld_core::refusal::{Code, Refusal};
use keymeld_examples::disk::MemoryDisk;
use keymeld_examples::world::{Deed, Fate, World};

use crate::lies::{alter, fault, refused, session_secret, unverified, world};
use crate::story::{VALID_UNTIL, approve, items, keygen, request, signatures, signing_key};

fn delegated(seed: u64) -> (World<MemoryDisk>, Vec<usize>) {
    let mut world = world(2, seed);
    let places = keygen(&mut world, 3, Rules::delegated(VALID_UNTIL));
    (world, places)
}

fn careful(seed: u64) -> (World<MemoryDisk>, Vec<usize>) {
    let mut world = world(2, seed);
    let places = keygen(&mut world, 3, Rules::careful(VALID_UNTIL));
    (world, places)
}

fn review(world: &mut World<MemoryDisk>, place: usize, signing_id: SigningId) -> Box<Review> {
    match world.run(place, Job::Review(signing_id)) {
        Ok(Done::Reviewed(review)) => review,
        other => panic!("{other:?}"),
    }
}

/// A result is refused as this; unaltered it gives the signatures.
fn lied_to(code: Code, change: impl FnMut(&mut SigningStatus) + 'static) {
    let (mut world, places) = delegated(11);
    let signing_id = request(&mut world, places[0], &["one", "two"]);
    assert_eq!(signatures(&mut world, places[1], signing_id).len(), 2);
    world.tamper = alter("/status", change);
    assert_eq!(fault(world.run(places[1], Job::AwaitSignatures(signing_id))), unverified(code));
    world.tamper = None;
    assert_eq!(signatures(&mut world, places[1], signing_id).len(), 2);
}

#[test]
fn results_are_believed_only_whole_and_of_their_session() {
    lied_to(Code::SealUnreadable, |status| status.result.as_mut().expect("completed").0[20] ^= 1);
    lied_to(Code::WrongState, |status| status.result = None);
    lied_to(Code::WrongState, |status| status.state = SigningState::FinalizingSignature);
    lied_to(Code::WrongState, |status| status.state = SigningState::Failed);
    let (mut world, places) = delegated(12);
    let first = request(&mut world, places[0], &["one"]);
    let second = request(&mut world, places[0], &["two"]);
    let mut result = None;
    signatures(&mut world, places[0], first);
    // The other session's result, whole.
    world.tamper = alter("/status", move |status: &mut SigningStatus| {
        if status.signing_id == first {
            result = status.result.clone();
        } else if result.is_some() {
            status.result = result.clone();
        }
    });
    signatures(&mut world, places[0], first);
    let outcome = world.run(places[0], Job::AwaitSignatures(second));
    assert_eq!(fault(outcome), unverified(Code::SealUnreadable));
}

/// Every participant can seal a result; only an enclave of the roster can sign one.
#[test]
fn a_result_that_a_participant_made_up_is_not_believed() {
    let (mut world, places) = careful(13);
    let signing_id = request(&mut world, places[0], &["one"]);
    let review = review(&mut world, places[1], signing_id);
    let (keygen_id, secret) = session_secret(&world, places[0]);
    let key = world.client(places[1]).key().expect("verified").clone();
    let roster = key.roster();
    let seal_key = SealKey::derived(&secret, Purpose::SigningSeal(signing_id));
    let own = AuthKey::new(&signing_key(3)).expect("a key");
    let genuine = roster.enclaves().into_iter().next().expect("has enclaves").enclave_key;
    let item_id = review.intent.intent().items[0].item_id;
    let signature = Outcome::Signature(Signature([5; 64]));
    let error =
        Outcome::Error { code: "partial-invalid".into(), culprits: vec![roster.records()[0].user_id] };
    let made_up = keymeld_core::crypto::auth::public_key(&signing_key(7)).expect("a key");
    for aggregator in [genuine, made_up, PublicKey([2; 33])] {
        for outcome in [signature.clone(), error.clone()] {
            let mut result = SigningResult::new(roster, &review.intent, AttemptId([1; 16]), aggregator);
            result.items.push(ItemResult { item_id, outcome });
            let sealed = result.seal(&own, &seal_key, &mut test_entropy(5)).expect("small");
            world.tamper = alter("/status", move |status: &mut SigningStatus| {
                assert_eq!(status.keygen_id, keygen_id);
                status.state = SigningState::Completed;
                status.result = Some(sealed.clone());
            });
            let outcome = world.run(places[1], Job::AwaitSignatures(signing_id));
            assert_eq!(fault(outcome), unverified(Code::ResultInvalid));
        }
    }
}

#[test]
fn only_an_intent_that_verifies_is_shown_to_whoever_decides() {
    let lied_to = |code: Code, change: fn(&mut IntentResponse)| {
        let (mut world, places) = careful(14);
        let signing_id = request(&mut world, places[0], &["one"]);
        world.tamper = alter("/intent", change);
        assert_eq!(fault(world.run(places[1], Job::Review(signing_id))), unverified(code));
        world.tamper = None;
        approve(&mut world, places[1], signing_id).expect("the honest one");
    };
    lied_to(Code::SealUnreadable, |shown| shown.intent.0[20] ^= 1);
    lied_to(Code::SealUnreadable, |shown| shown.intent_digest.0[0] ^= 1);
}

#[test]
fn approvals_that_do_not_verify_are_not_shown_as_given() {
    let (mut world, places) = careful(15);
    let signing_id = request(&mut world, places[0], &["one"]);
    approve(&mut world, places[1], signing_id).expect("approves");
    let user = world.client(places[1]).user_id();
    assert_eq!(review(&mut world, places[2], signing_id).approved, [user]);
    world.tamper = alter("/intent", |shown: &mut IntentResponse| shown.approvals[0].signature.0[9] ^= 1);
    assert_eq!(review(&mut world, places[2], signing_id).approved, []);
}

#[test]
fn a_blind_item_is_approved_only_by_saying_so() {
    let (mut world, places) = careful(16);
    let items = vec![Item::blind(Message([6; 32]), world.entropy()).expect("an item")];
    let Ok(Done::Requested(signing_id)) = world.run(places[0], Job::Request { items, expires_at: None })
    else {
        panic!("not requested")
    };
    for place in &places[1..] {
        let seen = review(&mut world, *place, signing_id);
        let before = world.sent(*place).count();
        let outcome = world.run(*place, Job::Approve { review: seen.clone(), blind: false });
        assert_eq!(fault(outcome), refused(Code::BlindNotAllowed));
        assert_eq!(world.sent(*place).count(), before, "nothing was sent");
        assert!(matches!(world.run(*place, Job::Approve { review: seen, blind: true }), Ok(Done::Approved)));
    }
    assert_eq!(signatures(&mut world, places[0], signing_id)[0].message, Message([6; 32]));
}

#[test]
fn a_no_reaches_the_requester_with_its_reason_and_nobody_can_make_one_up() {
    let (mut world, places) = careful(17);
    let signing_id = request(&mut world, places[0], &["one"]);
    let decliner = world.client(places[1]).user_id();
    // Made up by the gateway: without a signature, with another one, in another's name.
    let forge = |change: fn(&mut Failure)| {
        alter("/status", move |status: &mut SigningStatus| {
            let mut failure = status.failure.clone().unwrap_or_else(|| Failure {
                code: "declined".into(),
                culprits: vec![],
                withdrawal: None,
            });
            change(&mut failure);
            status.state = SigningState::Failed;
            status.failure = Some(failure);
        })
    };
    world.tamper = forge(|_| ());
    let outcome = world.run(places[0], Job::AwaitSignatures(signing_id));
    assert_eq!(fault(outcome), unverified(Code::ApprovalInvalid));
    world.tamper = None;

    let seen = review(&mut world, places[1], signing_id);
    let no = Job::Withdraw { review: seen, reason: Some("Who is the florist?".into()) };
    assert!(matches!(world.run(places[1], no), Ok(Done::Withdrawn)));
    for change in [
        (|failure| failure.withdrawal.as_mut().expect("signed").signature.0[3] ^= 1) as fn(&mut Failure),
        |failure| failure.withdrawal.as_mut().expect("signed").intent_digest.0[3] ^= 1,
        |failure| failure.code = "cancelled".into(),
        |failure| failure.code = "expired".into(),
    ] {
        world.tamper = forge(change);
        let outcome = world.run(places[0], Job::AwaitSignatures(signing_id));
        assert_eq!(fault(outcome), unverified(Code::ApprovalInvalid));
    }
    world.tamper = None;
    let declined = Refusal::blaming(Code::Declined, vec![decliner]);
    let expected = Fault::Ended(declined, Some("Who is the florist?".into()));
    assert_eq!(fault(world.run(places[0], Job::AwaitSignatures(signing_id))), expected);
    assert_eq!(fault(approve(&mut world, places[2], signing_id)), refused(Code::WrongState));
}

/// A page of something in between, or the status of another session, does not say that anything arrived.
#[test]
fn only_the_gateways_own_answer_says_that_something_arrived() {
    let (mut world, places) = careful(21);
    let wanted = items(&mut world, &["page"]);
    world.tamper = Some(Box::new(|request: &Request, mut response| {
        if request.method == Method::Post {
            response.body = b"<html>".to_vec();
        }
        response
    }));
    let outcome = world.run(places[0], Job::Request { items: wanted, expires_at: None });
    assert_eq!(fault(outcome), unverified(Code::Malformed));
    world.tamper = None;
    let signing_id = request(&mut world, places[0], &["one"]);
    let other = request(&mut world, places[0], &["other"]);
    let seen = review(&mut world, places[1], signing_id);
    let approve = || Job::Approve { review: seen.clone(), blind: false };
    let decline = || Job::Withdraw { review: seen.clone(), reason: None };
    world.tamper = alter("/signing/", move |status: &mut SigningStatus| status.signing_id = other);
    assert_eq!(fault(world.run(places[1], approve())), unverified(Code::IdConflict));
    world.tamper = alter("/signing/", |status: &mut SigningStatus| status.approved.clear());
    assert_eq!(fault(world.run(places[1], approve())), unverified(Code::ApprovalMissing));
    world.tamper = alter("/signing/", |status: &mut SigningStatus| status.failure = None);
    assert_eq!(fault(world.run(places[1], decline())), unverified(Code::WrongState));
    world.tamper = None;
    assert!(matches!(world.run(places[1], decline()), Ok(Done::Withdrawn)));
}

/// A refusal names nobody: only a signed no does.
#[test]
fn whom_a_refusal_blames_is_not_repeated() {
    let (mut world, places) = careful(22);
    let signing_id = request(&mut world, places[0], &["one"]);
    let innocent = world.client(places[1]).user_id();
    world.tamper =
        Some(Box::new(move |_, _| problem::refused(&Refusal::blaming(Code::Declined, vec![innocent]))));
    let outcome = world.run(places[0], Job::AwaitSignatures(signing_id));
    assert_eq!(fault(outcome), refused(Code::Declined));
}

#[test]
fn the_requester_cancels() {
    let (mut world, places) = careful(18);
    let signing_id = request(&mut world, places[0], &["one"]);
    let seen = review(&mut world, places[0], signing_id);
    let no = Job::Withdraw { review: seen, reason: None };
    assert!(matches!(world.run(places[0], no), Ok(Done::Withdrawn)));
    let requester = world.client(places[0]).user_id();
    let cancelled = Refusal::blaming(Code::Cancelled, vec![requester]);
    let outcome = world.run(places[2], Job::AwaitSignatures(signing_id));
    assert_eq!(fault(outcome), Fault::Ended(cancelled, None));
}

#[test]
fn a_request_is_kept_before_it_is_sent_and_gives_the_same_signatures_again() {
    let (mut world, places) = delegated(19);
    let requester = places[0];
    // The gateway takes the request, and the client never hears of it.
    world.wire =
        Some(Box::new(
            |_, request| {
                if request.target == "/api/v1/signing" { Fate::AnswerLost } else { Fate::Answered }
            },
        ));
    let wanted = items(&mut world, &["once"]);
    let job_id = world.ask_within(requester, Job::Sign { items: wanted, expires_at: None }, 5_000);
    assert_eq!(fault(world.finish(requester, job_id)), Fault::TimedOut);
    let deeds = world.deeds(requester);
    let sends = |deed: &Deed| matches!(deed, Deed::Sent(request) if request.target == "/api/v1/signing");
    let first_sent = deeds.iter().position(sends).expect("was sent");
    assert!(matches!(deeds[first_sent - 1], Deed::Kept(_)), "kept just before");
    let Some(Keep::Request(kept)) = world.kept(requester).last() else { panic!("not kept") };
    let kept = kept.clone();

    world.wire = None;
    let outcomes = |done| match done {
        Ok(Done::Signed(_, outcomes)) => outcomes,
        other => panic!("{other:?}"),
    };
    let first = outcomes(world.run(requester, Job::Resume((*kept).clone())));
    let again = outcomes(world.run(requester, Job::Resume(*kept)));
    assert_eq!(first, again, "one session, one result");
}

#[test]
fn an_expired_intent_is_neither_asked_for_nor_approved() {
    let (mut world, places) = careful(20);
    let wanted = items(&mut world, &["late"]);
    let now = world.time().unix_ms;
    let outcome = world.run(places[0], Job::Request { items: wanted, expires_at: Some(now) });
    assert!(matches!(fault(outcome), Fault::Refused(_)));
    let signing_id = request(&mut world, places[0], &["in time"]);
    let seen = review(&mut world, places[1], signing_id);
    world.sleep(3_600_000);
    let outcome = world.run(places[1], Job::Approve { review: seen, blind: false });
    assert_eq!(fault(outcome), refused(Code::IntentExpired));
    let outcome = world.run(places[0], Job::AwaitSignatures(signing_id));
    assert!(matches!(fault(outcome), Fault::Ended(_, None)));
}
