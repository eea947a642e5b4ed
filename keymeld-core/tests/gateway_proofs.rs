//! Proofs at the gateway: for each endpoint which keys may, and that stale and used proofs may not.

mod gateway_support;

use gateway_support::party::{Party, by, caller_of, no_wait, outcome_of, signing_id};
use gateway_support::{World, body, outcome};
use keymeld_core::api::http::{Method, Request};
use keymeld_core::api::problem::Problem;
use keymeld_core::api::proof::Subject;
use keymeld_core::api::router::{Call, WAIT_MS_MAX, route};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::bytes::XOnlyKey;
use keymeld_core::gateway::PROOFS_PER_KEY_MAX;
use keymeld_core::limits::SKEW_MS;
use keymeld_core::refusal::Code;
use keymeld_core::secret::ApiToken;

/// Every key there is, by name: the session's, the slots', the users', a stranger's.
fn keys(party: &Party) -> Vec<(String, XOnlyKey)> {
    let mut keys = vec![("session".into(), party.session.public())];
    for (index, user) in party.users.iter().enumerate() {
        keys.push((format!("slot {index}"), user.slot.public()));
        keys.push((format!("auth {index}"), user.auth.public()));
    }
    keys.push(("stranger".into(), Party::new(9, 2).session.public()));
    keys
}

/// Tries a call with every key, then with stale and used proofs.
fn check(world: &mut World, party: &Party, call: &Call, allowed: &[&str]) {
    let mut original = call.clone();
    let own = caller_of(&mut original).expect("a proof").key;
    for (name, key) in keys(party) {
        if allowed.contains(&name.as_str()) {
            continue;
        }
        let call = by(world, call, key);
        assert_eq!(outcome_of(world, call), "key-not-allowed", "{name}");
    }
    for offset in [SKEW_MS + 1, SKEW_MS] {
        for ahead in [true, false] {
            let mut other = by(world, call, own);
            let caller = caller_of(&mut other).expect("a proof");
            caller.unix_ms = if ahead { world.now.unix_ms + offset } else { world.now.unix_ms - offset };
            let response = world.call(other);
            if offset > SKEW_MS {
                let problem: Problem = body(&response);
                assert_eq!((problem.status, problem.code.as_str()), (401, "proof-stale"));
                assert_eq!(problem.now, Some(world.now.unix_ms), "with the time to try again with");
            } else {
                assert!(response.status < 300, "{}", outcome(&response));
            }
        }
    }
    let fresh = by(world, call, own);
    assert!(world.call(fresh.clone()).status < 300);
    assert_eq!(outcome_of(world, fresh.clone()), "proof-replayed");
    world.sleep(SKEW_MS);
    assert_eq!(outcome_of(world, fresh), "proof-replayed", "for as long as it is fresh");
    for name in allowed {
        let (_, key) = keys(party).into_iter().find(|(other, _)| other == name).expect("a key's name");
        let call = by(world, call, key);
        assert!(world.call(call).status < 300, "{name}");
    }
}

fn begun() -> (World, Party) {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.begin(&mut world);
    (world, party)
}

/// A completed keygen and a signing that waits for the approval of user 2.
fn signing() -> (World, Party) {
    let mut world = World::new(3);
    let mut party = Party::new(1, 3);
    party.users[2].approves = true;
    party.complete(&mut world);
    let sign = party.sign(&mut world, 1);
    assert_eq!(outcome_of(&mut world, sign), "201");
    (world, party)
}

const READERS: [&str; 4] = ["session", "auth 0", "auth 1", "auth 2"];

#[test]
fn reserving_takes_the_session_key_that_it_names() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    let call = party.reserve(&mut world);
    check(&mut world, &party, &call, &["session"]);
}

#[test]
fn the_manifest_takes_the_session_key() {
    let (mut world, party) = begun();
    let call = party.init(&mut world);
    check(&mut world, &party, &call, &["session"]);
}

#[test]
fn reading_slots_takes_the_session_key_or_that_of_a_slot() {
    let (mut world, party) = begun();
    let call = party.slots_call(&mut world);
    check(&mut world, &party, &call, &["session", "slot 0", "slot 1", "slot 2"]);
}

#[test]
fn registering_takes_the_key_of_that_slot() {
    let (mut world, party) = begun();
    let call = party.register(&mut world, 1);
    check(&mut world, &party, &call, &["slot 1"]);
}

#[test]
fn the_status_of_a_keygen_takes_any_key_of_a_participant() {
    let mut world = World::new(3);
    let party = Party::new(1, 3);
    party.complete(&mut world);
    let call = party.status_call(&mut world, no_wait());
    let slots = ["slot 0", "slot 1", "slot 2"];
    check(&mut world, &party, &call, &[READERS.as_slice(), &slots].concat());
}

#[test]
fn asking_for_a_signature_takes_the_requesters_key() {
    let (mut world, party) = signing();
    let call = party.sign(&mut world, 1);
    check(&mut world, &party, &call, &["auth 0"]);
}

#[test]
fn the_intent_takes_the_session_key_or_that_of_a_user() {
    let (mut world, party) = signing();
    let caller = world.caller(party.session.public());
    check(&mut world, &party, &Call::Intent { caller, signing_id: signing_id(1) }, &READERS);
}

#[test]
fn approving_takes_the_approvers_key() {
    let (mut world, party) = signing();
    let call = party.approve(&mut world, 2, 1);
    check(&mut world, &party, &call, &["auth 2"]);
}

#[test]
fn declining_takes_the_decliners_key_and_is_not_the_requesters() {
    let (mut world, party) = signing();
    let call = party.withdraw(&mut world, WithdrawalKind::Decline, 0, 1);
    assert_eq!(outcome_of(&mut world, call), "key-not-allowed");
    let call = party.withdraw(&mut world, WithdrawalKind::Decline, 1, 1);
    check(&mut world, &party, &call, &["auth 1"]);
}

#[test]
fn cancelling_takes_the_requesters_key() {
    let (mut world, party) = signing();
    let call = party.withdraw(&mut world, WithdrawalKind::Cancel, 1, 1);
    assert_eq!(outcome_of(&mut world, call), "key-not-allowed");
    let call = party.withdraw(&mut world, WithdrawalKind::Cancel, 0, 1);
    check(&mut world, &party, &call, &["auth 0"]);
}

#[test]
fn the_status_of_a_signing_takes_the_session_key_or_that_of_a_user() {
    let (mut world, party) = signing();
    let call = party.signing_status_call(&mut world, 1, no_wait());
    check(&mut world, &party, &call, &READERS);
}

#[test]
fn reserving_may_need_the_operators_token() {
    let mut world = World::unstarted(2);
    world.config.api_token = Some(ApiToken::new("secret".into()));
    world.crash();
    world.find(gateway_support::enclave_id(1));
    world.run();
    let party = Party::new(1, 2);
    for (given, expected) in
        [(None, "token-required"), (Some("Secret"), "token-required"), (Some("secret"), "201")]
    {
        let Call::Reserve { caller, request, .. } = party.reserve(&mut world) else {
            unreachable!("as made")
        };
        let token = given.map(|text| ApiToken::new(text.into()));
        assert_eq!(outcome_of(&mut world, Call::Reserve { caller, request, token }), expected);
    }
}

#[test]
fn one_key_uses_up_no_more_than_its_share_of_remembered_proofs() {
    let (mut world, party) = begun();
    // Reserving and the manifest took two.
    for _ in 2..PROOFS_PER_KEY_MAX {
        let call = party.slots_call(&mut world);
        assert_eq!(outcome_of(&mut world, call), "200");
    }
    let call = party.slots_call(&mut world);
    assert_eq!(outcome_of(&mut world, call.clone()), "too-many");
    let other = by(&mut world, &call, party.users[1].slot.public());
    assert_eq!(outcome_of(&mut world, other), "200", "others are not concerned");
    // They are forgotten by the second.
    world.pass(2 * SKEW_MS + 1_000);
    let call = party.slots_call(&mut world);
    assert_eq!(outcome_of(&mut world, call), "200");
}

#[test]
fn a_used_proof_stays_used_though_the_time_of_day_steps_forward_and_back() {
    let (mut world, party) = begun();
    let used = party.slots_call(&mut world);
    assert_eq!(outcome_of(&mut world, used.clone()), "200");
    world.now.unix_ms += SKEW_MS + 1_000;
    let call = party.slots_call(&mut world);
    assert_eq!(outcome_of(&mut world, call), "200");
    world.now.unix_ms -= SKEW_MS + 1_000;
    assert_eq!(outcome_of(&mut world, used), "proof-replayed");
}

#[test]
fn the_router_takes_the_longest_wait_and_refuses_one_more() {
    let (mut world, party) = begun();
    for (wait_ms, fits) in [(WAIT_MS_MAX, true), (WAIT_MS_MAX + 1, false)] {
        let target = format!("/api/v1/keygen/{}/status?wait_ms={wait_ms}", party.keygen_id);
        let subject = Subject { method: Method::Get, authority: "gateway", target: &target, body: b"" };
        let proof = subject.prove(&party.session, world.now.unix_ms, &mut world.entropy);
        let routed = route(&Request {
            method: Method::Get,
            authority: "gateway".into(),
            target: target.clone(),
            proof: Some(proof.expect("entropy never fails here")),
            authorization: None,
            body: Vec::new(),
        });
        if fits {
            let request = world.ask(routed.expect("well-formed"));
            world.pass(WAIT_MS_MAX);
            assert_eq!(outcome(&world.answer(request).expect("answered")), "200");
        } else {
            assert_eq!(routed, Err(Code::BadQuery));
        }
    }
}
