//! A hostile client: known ids, stolen bytes, every order of events that the protocol does not mean.

use keymeld_core::api::http::{Method, PROOF_HEADER};
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{KeygenStatus, SigningState, SigningStatus, SlotsResponse, SubsetHint};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::artifact::manifest::Subset;
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::id::{SubsetId, UserId};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use crate::group::{Group, Signers, careful, delegated};
use crate::rig::{Ask, Rig, unix_ms};

fn code(rig: &Rig, ask: &Ask) -> String {
    let before = rig.rows();
    let code = rig.send(ask).problem().code;
    assert!(rig.rows() == before, "{code}: something changed");
    code
}

#[test]
fn whoever_knows_a_sessions_id_cannot_take_it() {
    let rig = &mut Rig::start(1, "");
    let (victim, thief) =
        (Group::new(rig, &[careful(), careful()]), Group::new(rig, &[careful(), careful()]));
    victim.begin(rig);
    // The same id with the thief's own keys, proven by them.
    let mut stolen = thief.reservation();
    stolen.keygen_id = victim.keygen_id();
    let ask = rig.post(&thief.session, "keygen/reserve", &stolen);
    assert_eq!(code(rig, &ask), "id-conflict");
    // Word for word what the victim sent, by another key; and with the victim's key named, by the thief.
    let ask = rig.post(&thief.session, "keygen/reserve", &victim.reservation());
    assert_eq!(code(rig, &ask), "key-not-allowed");
    let ask = rig.post(&thief.session, &victim.path("init"), &thief.init);
    assert_eq!(code(rig, &ask), "key-not-allowed");
    // A registration of the thief's own session in the victim's slot.
    thief.begin(rig);
    let own = thief.registration(rig, 1);
    let ask = rig.post(&thief.people[1].slot, &victim.path("participants"), &own);
    assert_eq!(code(rig, &ask), "user-not-in-roster");
    let mut renamed = own.clone();
    renamed.user_id = victim.people[1].user_id;
    let ask = rig.post(&thief.people[1].slot, &victim.path("participants"), &renamed);
    assert_eq!(code(rig, &ask), "key-not-allowed");
    // Even with the slot's key the envelope is for another session.
    let ask = victim.register(rig, 1, &renamed);
    assert_eq!(code(rig, &ask), "envelope-mismatch");
    // The victim notices nothing.
    victim.register_from(rig, 0);
    assert!(victim.ended(rig).completed.is_some());
}

#[test]
fn a_proof_for_one_authority_target_or_method_is_none_for_another() {
    let rig = &mut Rig::start(1, "");
    let group = Group::new(rig, &[careful(), careful()]);
    group.begin(rig);
    let address = rig.address().to_string();
    let subject = |authority: &str, target: &str, rig: &mut Rig| {
        let subject = Subject { method: Method::Get, authority, target, body: &[] };
        subject.prove(&group.session, unix_ms(), &mut rig.entropy).expect("randomness")
    };
    let target = format!("/api/v1/{}", group.path("slots"));
    for (authority, signed) in [
        ("gateway.example", target.clone()),
        (address.replace("127.0.0.1", "localhost").as_str(), target.clone()),
        (address.as_str(), target.replace("slots", "status")),
        (address.as_str(), format!("{target}?")),
        (address.as_str(), target.replace("/slots", "/%73lots")),
    ] {
        let proof = subject(authority, &signed, rig);
        let mut ask = Ask::plain(Method::Get, &group.path("slots"), &[]);
        ask.headers.push((PROOF_HEADER, proof));
        assert_eq!(code(rig, &ask), "proof-wrong", "{authority} {signed}");
    }
    // A long poll's proof is used up by the poll, not only by its answer.
    let ask = rig.get(&group.session, &group.path("status?wait_ms=30000&since=0"));
    rig.does::<KeygenStatus>(&ask);
    assert_eq!(code(rig, &ask), "proof-replayed");
}

#[test]
fn a_revision_that_never_was_answers_at_once_and_the_present_one_waits_for_its_time() {
    let rig = &mut Rig::start(1, "");
    let group = Group::new(rig, &[careful(), careful()]);
    group.begin(rig);
    let mut poll = |query: &str| -> KeygenStatus {
        let ask = rig.get(&group.session, &group.path(&format!("status?{query}")));
        rig.does(&ask)
    };
    let now = poll("wait_ms=0").revision;
    for since in [0, now + 1, (1 << 53) - 1] {
        assert_eq!(poll(&format!("wait_ms=30000&since={since}")).revision, now);
    }
    // `until` alone does not answer for a change that is none.
    assert_eq!(poll(&format!("wait_ms=50&since={now}")).revision, now);
    assert_eq!(poll("wait_ms=50&since=0&until=ended").revision, now);
    assert_eq!(poll("wait_ms=0&until=ended").revision, now);
}

#[test]
fn hints_that_contradict_the_sealed_manifest_cost_the_liar_its_own_session() {
    let rig = &mut Rig::start(1, "");
    // The manifest defines a subset of which the gateway is told other members.
    let mut group = Group::shaped(rig, &[delegated(); 3], |group| {
        let members = group.people[..2].iter().map(|person| person.user_id).collect();
        group.manifest.subsets.push(Subset { subset_id: SubsetId([1; 16]), members });
    });
    let user = |at: usize| group.people[at].user_id;
    group.init.subsets = vec![SubsetHint { subset_id: SubsetId([1; 16]), members: vec![user(1), user(2)] }];
    let signers = Signers { roster: group.complete(rig), group };
    let mut intent = signers.intent(rig);
    intent.items[0].subset = Some(SubsetId([1; 16]));
    let request = signers.request(rig, 0, &intent);
    // All share an enclave here, so the hint was not even needed: the enclave goes by the manifest.
    let status = signers.run(rig, 0, &request);
    assert_eq!(status.state, SigningState::Completed);
    // Others' sessions are as before.
    let honest = Signers::new(rig, &[delegated(); 2]);
    let intent = honest.intent(rig);
    let request = honest.request(rig, 0, &intent);
    assert!(honest.run(rig, 0, &request).result.is_some());
}

#[test]
fn an_answer_to_an_intent_is_final_whichever_comes_first() {
    let rig = &mut Rig::start(1, "");
    let signers = Signers::new(rig, &[careful(), careful(), careful()]);
    let intent = signers.intent(rig);
    let request = signers.request(rig, 0, &intent);
    let ask = signers.ask(rig, 0, &request);
    rig.does::<SigningStatus>(&ask);
    let first = signers.approval(rig, 1, &request, false);
    let ask = signers.approve(rig, 1, &first);
    rig.does::<SigningStatus>(&ask);
    // Who has approved may still decline: the session has not ended.
    let ask = signers.withdraw(rig, WithdrawalKind::Decline, 1, &request);
    assert_eq!(rig.does::<SigningStatus>(&ask).state, SigningState::Failed);
    // From then on nobody's approval counts, not even one that was there.
    let second = signers.approval(rig, 2, &request, false);
    let ask = signers.approve(rig, 2, &second);
    assert_eq!(code(rig, &ask), "wrong-state");
    let ask = signers.approve(rig, 1, &first);
    let status: SigningStatus = rig.does(&ask);
    assert_eq!((status.state, status.result), (SigningState::Failed, None));
    // The same request does not bring it back to life.
    let ask = signers.ask(rig, 0, &request);
    assert_eq!(rig.does::<SigningStatus>(&ask).state, SigningState::Failed);
}

#[test]
fn an_approval_is_for_its_user_and_its_session_alone() {
    let rig = &mut Rig::start(1, "");
    let signers = Signers::new(rig, &[careful(), careful(), careful()]);
    let asked = |rig: &mut Rig| {
        let intent = signers.intent(rig);
        let request = signers.request(rig, 0, &intent);
        let ask = signers.ask(rig, 0, &request);
        rig.does::<SigningStatus>(&ask);
        request
    };
    let (one, two) = (asked(rig), asked(rig));
    let approval = signers.approval(rig, 1, &one, false);
    // Sent to another session by its own maker, under its own name.
    let key = signers.group.auth(1);
    let ask = rig.post(&key, &format!("signing/{}/approve", two.signing_id), &approval);
    assert_eq!(code(rig, &ask), "approval-invalid");
    let mut moved = approval;
    (moved.signing_id, moved.intent_digest) = (two.signing_id, two.intent_digest);
    let ask = rig.post(&key, &format!("signing/{}/approve", two.signing_id), &moved);
    assert_eq!(code(rig, &ask), "approval-invalid");
    // Under another's name, by a participant who may approve for itself.
    let mut renamed = approval;
    renamed.user_id = signers.group.people[2].user_id;
    let ask = rig.post(&key, &format!("signing/{}/approve", one.signing_id), &renamed);
    assert_eq!(code(rig, &ask), "key-not-allowed");
    let ask = rig.post(&signers.group.auth(2), &format!("signing/{}/approve", one.signing_id), &renamed);
    assert_eq!(code(rig, &ask), "approval-invalid");
    for request in [&one, &two] {
        let path = format!("signing/{}/status", request.signing_id);
        let ask = rig.get(&signers.group.session, &path);
        let status: SigningStatus = rig.does(&ask);
        assert_eq!((status.approved.len(), status.awaited.len()), (0, 2));
    }
}

#[test]
fn the_manifest_is_set_once_and_slots_are_filled_once_whatever_comes_between() {
    let rig = &mut Rig::start(1, "");
    let group = Group::new(rig, &[careful(), careful()]);
    group.begin(rig);
    let good = group.registration(rig, 1);
    let mut other = Group::new(rig, &[careful(), careful()]);
    let bytes = other.manifest.encode();
    other.seal_as_manifest(rig, keymeld_core::artifact::manifest::Manifest::hash(&bytes), &bytes);
    let ask = rig.post(&group.session, &group.path("init"), &other.init);
    assert_eq!(code(rig, &ask), "id-conflict");
    let ask = group.register(rig, 1, &good);
    rig.does::<SlotsResponse>(&ask);
    let ask = rig.post(&group.session, &group.path("init"), &other.init);
    assert_eq!(code(rig, &ask), "id-conflict");
    let first = group.registration(rig, 0);
    let ask = group.register(rig, 0, &first);
    rig.does::<SlotsResponse>(&ask);
    assert!(group.ended(rig).completed.is_some());
    let ask = rig.post(&group.session, &group.path("init"), &other.init);
    assert_eq!(code(rig, &ask), "id-conflict");
    let ask = group.initialise(rig);
    rig.does::<SlotsResponse>(&ask);
}

#[test]
fn strangers_learn_nothing_but_that_an_id_exists() {
    let rig = &mut Rig::start(1, "");
    let group = Group::new(rig, &[careful(), careful()]);
    group.begin(rig);
    let stranger = AuthKey::new(&Secret::copied_from(&[3; 32])).expect("a key");
    let user = UserId([1; 16]);
    for path in ["slots", "status", "status?wait_ms=30000"] {
        let ask = rig.get(&stranger, &group.path(path));
        let answer = rig.send(&ask);
        let body = String::from_utf8(answer.body.clone()).expect("text");
        assert_eq!(answer.problem().code, "key-not-allowed");
        for word in
            [group.people[0].user_id.to_string(), group.init.manifest_hash.to_string(), user.to_string()]
        {
            assert!(!body.contains(&word));
        }
    }
    // Nor does a wrong body come before the question of who asks, where that shows anything of the session.
    let ask = rig.proven(&stranger, Method::Post, &group.path("init"), &strict::to_json(&group.init));
    assert_eq!(code(rig, &ask), "key-not-allowed");
}
