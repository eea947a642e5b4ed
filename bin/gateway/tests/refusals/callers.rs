//! Who asks: proofs, keys, tokens.

use keymeld_core::api::http::{Method, PROOF_HEADER};
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{SigningStatus, SlotsResponse};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use crate::group::{Group, Signers, careful, delegated};
use crate::rig::{Ask, Rig, show, unix_ms};

pub(crate) const PROOFS: [Code; 4] =
    [Code::ProofMissing, Code::ProofWrong, Code::ProofStale, Code::ProofReplayed];

#[test]
fn a_proof_that_is_missing_wrong_stale_or_used_is_refused() {
    show(&PROOFS, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        let body = strict::to_json(&group.reservation());
        let (key, path) = (&group.session, "keygen/reserve");
        rig.refused(Code::ProofMissing, &Ask::plain(Method::Post, path, &body));

        let good = rig.proven(key, Method::Post, path, &body);
        let wrong = |change: fn(&mut Ask)| {
            let mut ask = good.clone();
            change(&mut ask);
            ask
        };
        let proof = good.headers[0].1.clone();
        for ask in [
            wrong(|ask| ask.headers[0].1.push('0')),
            wrong(|ask| ask.headers[0].1.replace_range(..2, "2.")),
            wrong(|ask| ask.headers[0].1 = "1.2.3.4.5".into()),
            wrong(|ask| ask.headers[0].1 = "nonsense".into()),
            // Another body, still a good one.
            wrong(|ask| ask.body.push(b' ')),
        ] {
            rig.refused(Code::ProofWrong, &ask);
        }
        // A proof of another target, method or authority.
        let mut moved = Ask::plain(Method::Get, &group.path("status"), &[]);
        moved.headers.push((PROOF_HEADER, proof));
        rig.refused(Code::ProofWrong, &moved);
        let subject =
            Subject { method: Method::Post, authority: "elsewhere:1", target: &good.target, body: &body };
        let elsewhere = subject.prove(key, unix_ms(), &mut rig.entropy).expect("randomness");
        let mut replayed_elsewhere = good.clone();
        replayed_elsewhere.headers[0].1 = elsewhere;
        rig.refused(Code::ProofWrong, &replayed_elsewhere);

        for off in [-3_600_000_i64, -61_000, 62_000, 3_600_000] {
            let time = unix_ms().checked_add_signed(off).expect("in range");
            let ask = rig.proven_at(key, Method::Post, path, &body, time);
            let problem = rig.refused(Code::ProofStale, &ask);
            let now = problem.now.expect("the gateway's time");
            assert!(now.abs_diff(unix_ms()) < 30_000, "{now}");
        }
        // Whose clock is wrong asks once more, with the gateway's time.
        let stale = rig.proven_at(key, Method::Post, path, &body, 1);
        let now = rig.refused(Code::ProofStale, &stale).now.expect("the gateway's time");
        let again = rig.proven_at(key, Method::Post, path, &body, now);
        let reserved: SlotsResponse = rig.does(&again);
        assert_eq!(reserved.slots.len(), 2);
        // The same bytes on another connection.
        rig.refused(Code::ProofReplayed, &again);
        rig.does::<SlotsResponse>(&good);
        rig.refused(Code::ProofReplayed, &good);
    });
}

pub(crate) const KEYS: [Code; 1] = [Code::KeyNotAllowed];

#[test]
fn a_key_that_may_not_do_it_is_refused_everywhere() {
    show(&KEYS, Rig::start(1, ""), |rig| {
        let stranger = AuthKey::new(&Secret::copied_from(&[3; 32])).expect("a key");
        let group = Group::new(rig, &[delegated(), careful(), careful()]);
        let ask = rig.post(&stranger, "keygen/reserve", &group.reservation());
        rig.refused(Code::KeyNotAllowed, &ask);
        group.begin(rig);
        let request = group.registration(rig, 1);
        for ask in [
            rig.post(&stranger, &group.path("init"), &group.init),
            rig.post(&group.people[0].slot, &group.path("init"), &group.init),
            rig.get(&stranger, &group.path("slots")),
            rig.get(&stranger, &group.path("status")),
            rig.get(&stranger, &group.path("status?wait_ms=30000")),
            rig.post(&stranger, &group.path("participants"), &request),
            // For another's slot.
            rig.post(&group.people[0].slot, &group.path("participants"), &request),
            rig.post(&group.session, &group.path("participants"), &request),
        ] {
            rig.refused(Code::KeyNotAllowed, &ask);
        }

        let signers = Signers::new(rig, &[careful(), careful()]);
        let intent = signers.intent(rig);
        let request = signers.request(rig, 0, &intent);
        for ask in [
            rig.post(&stranger, "signing", &request),
            rig.post(&signers.group.session, "signing", &request),
            signers.ask(rig, 1, &request),
        ] {
            rig.refused(Code::KeyNotAllowed, &ask);
        }
        let ask = signers.ask(rig, 0, &request);
        rig.does::<SigningStatus>(&ask);
        let approval = signers.approval(rig, 1, &request, false);
        let path = |end: &str| format!("signing/{}{end}", request.signing_id);
        let refusals = [
            rig.get(&stranger, &path("/intent")),
            rig.get(&signers.group.people[0].slot, &path("/intent")),
            rig.get(&stranger, &path("/status")),
            rig.get(&signers.group.people[1].slot, &path("/status?wait_ms=1000")),
            rig.post(&stranger, &path("/approve"), &approval),
            // Another's approval: the proof's key counts, not the body's.
            signers.approve(rig, 0, &approval),
            // The requester cannot decline, nor an approver cancel.
            signers.withdraw(rig, WithdrawalKind::Decline, 0, &request),
            signers.withdraw(rig, WithdrawalKind::Cancel, 1, &request),
        ];
        for ask in &refusals {
            rig.refused(Code::KeyNotAllowed, ask);
        }
        let ask = signers.approve(rig, 1, &approval);
        rig.does::<SigningStatus>(&ask);
        assert!(signers.ended(rig, request.signing_id).result.is_some());
    });
}

pub(crate) const TOKENS: [Code; 1] = [Code::TokenRequired];

#[test]
fn where_the_operator_wants_a_token_reserving_needs_it() {
    show(&TOKENS, Rig::start(1, "api_token = \"sesame\"\n"), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        for token in
            [None, Some("Bearer open"), Some("sesame"), Some("bearer sesame"), Some("Bearer sesame ,")]
        {
            let mut ask = group.reserve(rig);
            ask.headers.extend(token.map(|token| ("Authorization", token.to_owned())));
            rig.refused(Code::TokenRequired, &ask);
        }
        let mut ask = group.reserve(rig);
        ask.headers.push(("Authorization", "Bearer sesame".into()));
        rig.does::<SlotsResponse>(&ask);
    });
}
