//! Requests for signatures: refused at once by the gateway, or, for what only enclaves can read, failed by them.

use keymeld_core::api::rest::{SigningState, SigningStatus};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::artifact::intent::{Adaptor, Intent, Item, Origin};
use keymeld_core::artifact::manifest::Subset;
use keymeld_core::bytes::{Blob, Hash, Message};
use keymeld_core::id::{SigningId, SubsetId};
use keymeld_core::limits::{ITEMS_MAX, SKEW_MS};
use keymeld_core::refusal::Code;

use crate::group::{Group, Signers, careful, delegated};
use crate::rig::{Rig, show, unix_ms};

const DAY_MS: u64 = 24 * 3_600_000;

pub(crate) const REQUESTS: [Code; 6] = [
    Code::BadItems,
    Code::IntentExpired,
    Code::IntentLifetime,
    Code::UnknownSubset,
    Code::ApprovalInvalid,
    Code::KeyNotAllowed,
];

#[test]
fn a_request_or_an_approval_that_the_gateway_can_tell_is_wrong_is_refused_at_once() {
    let rig = Rig::start(1, "");
    show(&REQUESTS, rig, |rig| {
        let group = Group::shaped(rig, &[delegated(), careful(), careful()], |group| {
            let members = group.people[..2].iter().map(|person| person.user_id).collect();
            group.manifest.subsets.push(Subset { subset_id: SubsetId([7; 16]), members });
        });
        let signers = Signers { roster: group.complete(rig), group };
        let mut intent = signers.intent(rig);
        intent.items[0].subset = Some(SubsetId([7; 16]));
        let good = signers.request(rig, 0, &intent);
        let now = unix_ms();
        type Change<'a> = Box<dyn Fn(&mut keymeld_core::api::rest::SignRequest) + 'a>;
        let cases: Vec<(Code, Change<'_>)> = vec![
            (Code::BadItems, Box::new(|request| request.items.clear())),
            (Code::BadItems, Box::new(|request| request.items = vec![request.items[0]; 2])),
            (Code::BadItems, Box::new(|request| request.items = vec![request.items[0]; ITEMS_MAX + 1])),
            (Code::IntentExpired, Box::new(|request| request.expires_at = now)),
            (Code::IntentExpired, Box::new(|request| request.expires_at = 0)),
            (Code::IntentLifetime, Box::new(|request| request.expires_at = now + 8 * DAY_MS)),
            (Code::UnknownSubset, Box::new(|request| request.items[0].subset = Some(SubsetId([8; 16])))),
        ];
        for (code, change) in cases {
            let mut request = good.clone();
            change(&mut request);
            let ask = signers.ask(rig, 0, &request);
            rig.refused(code, &ask);
        }
        let ask = signers.ask(rig, 0, &good);
        rig.does::<SigningStatus>(&ask);

        let approval = signers.approval(rig, 1, &good, false);
        let mut other_digest = good.clone();
        other_digest.intent_digest = Hash([1; 32]);
        let mut blinded = approval;
        blinded.blind = true;
        let mut newer = approval;
        newer.version = 2;
        for wrong in [signers.approval(rig, 1, &other_digest, false), blinded, newer] {
            let ask = signers.approve(rig, 1, &wrong);
            rig.refused(Code::ApprovalInvalid, &ask);
        }
        let elsewhere = Intent { signing_id: SigningId([3; 16]), ..intent };
        let other_session = signers.request(rig, 0, &elsewhere);
        let elsewhere = signers.approval(rig, 1, &other_session, false);
        let ask =
            rig.post(&signers.group.auth(1), &format!("signing/{}/approve", good.signing_id), &elsewhere);
        rig.refused(Code::ApprovalInvalid, &ask);
        let ask = signers.withdraw(rig, WithdrawalKind::Decline, 1, &other_digest);
        rig.refused(Code::ApprovalInvalid, &ask);
        // A participant who signs no item has nothing to approve and nothing to decline.
        let unasked = signers.approval(rig, 2, &good, false);
        let ask = signers.approve(rig, 2, &unasked);
        rig.refused(Code::KeyNotAllowed, &ask);
        let ask = signers.withdraw(rig, WithdrawalKind::Decline, 2, &good);
        rig.refused(Code::KeyNotAllowed, &ask);

        let ask = signers.approve(rig, 1, &approval);
        rig.does::<SigningStatus>(&ask);
        assert_eq!(signers.ended(rig, good.signing_id).state, SigningState::Completed);
    });
}

pub(crate) const INTENTS: [Code; 18] = [
    Code::IntentUnsigned,
    Code::RequesterNotAllowed,
    Code::IntentMismatch,
    Code::ManifestHashMismatch,
    Code::RosterHashMismatch,
    Code::UserNotInRoster,
    Code::SealUnreadable,
    Code::UnsupportedVersion,
    Code::IntentNotYetValid,
    Code::IntentLifetime,
    Code::BlindNotAllowed,
    Code::OriginMismatch,
    Code::OriginForbidden,
    Code::Unsupported,
    Code::BadItems,
    Code::UnknownSubset,
    Code::AggregatorInvalid,
    Code::TooManyAttempts,
];

/// Four who delegate, at two enclaves in turn, and three subsets: both at the first enclave, both at the second,
/// one at each.
fn signers(rig: &mut Rig) -> Signers {
    let group = Group::shaped(rig, &[delegated(); 4], |group| {
        for (number, places) in [(1, [0, 2]), (2, [1, 3]), (3, [0, 1])] {
            let members = places.iter().map(|place| group.people[*place].user_id).collect();
            group.manifest.subsets.push(Subset { subset_id: SubsetId([number; 16]), members });
        }
    });
    Signers { roster: group.complete(rig), group }
}

#[test]
fn an_intent_that_enclaves_refuse_fails_its_session_and_gives_no_signature() {
    show(&INTENTS, Rig::start(2, ""), |rig| {
        let signers = signers(rig);
        let text = |text: &str| Some(Origin::Text(text.into()));
        type Change<'a> = Box<dyn Fn(&mut Intent) + 'a>;
        let cases: Vec<(Code, Change<'_>)> = vec![
            (Code::ManifestHashMismatch, Box::new(|intent| intent.manifest_hash = Hash([1; 32]))),
            (Code::RosterHashMismatch, Box::new(|intent| intent.roster_hash = Hash([1; 32]))),
            (Code::UnsupportedVersion, Box::new(|intent| intent.version = 2)),
            (Code::IntentNotYetValid, Box::new(|intent| intent.created_at += 2 * SKEW_MS)),
            (Code::IntentLifetime, Box::new(|intent| intent.created_at -= 7 * DAY_MS)),
            (Code::BlindNotAllowed, Box::new(|intent| intent.items[0].origin = None)),
            (Code::OriginMismatch, Box::new(|intent| intent.items[0].origin = text("pay the butcher"))),
            (Code::OriginMismatch, Box::new(|intent| intent.items[0].message = Message([1; 32]))),
            (
                Code::OriginForbidden,
                Box::new(|intent| {
                    intent.items[0].origin = Some(Origin::Bytes(Blob(vec![5; 64])));
                }),
            ),
            (Code::Unsupported, Box::new(|intent| intent.psbts = vec![Blob(vec![1])])),
            (
                Code::Unsupported,
                Box::new(|intent| {
                    intent.items[0].adaptor = Some(Adaptor::And(Vec::new()));
                }),
            ),
            (Code::BadItems, Box::new(|intent| intent.items.clear())),
            (Code::BadItems, Box::new(|intent| intent.items = vec![intent.items[0].clone(); 2])),
            (Code::UnknownSubset, Box::new(|intent| intent.items[0].subset = Some(SubsetId([9; 16])))),
            (Code::AggregatorInvalid, Box::new(|intent| intent.items[0].subset = Some(SubsetId([2; 16])))),
            (Code::TooManyAttempts, Box::new(|intent| intent.items[0].subset = Some(SubsetId([3; 16])))),
        ];
        let before: Vec<_> = rig.rows();
        for (code, change) in cases {
            let mut intent = signers.intent(rig);
            let honest = signers.request(rig, 0, &intent);
            change(&mut intent);
            // What the gateway is told is what an honest client would tell it of the unaltered intent; for the
            // two of false hints, that the first enclave alone is concerned.
            let mut request = signers.request(rig, 0, &intent);
            request.items = honest.items;
            if matches!(code, Code::AggregatorInvalid | Code::TooManyAttempts) {
                request.items[0].subset = Some(SubsetId([1; 16]));
            }
            assert_failed(rig, &signers, code, &request, 0);
        }

        let intent = signers.intent(rig);
        let mut request = signers.request(rig, 1, &intent);
        assert_failed(rig, &signers, Code::IntentUnsigned, &request, 0);
        request = signers.request(rig, 0, &Intent { signing_id: SigningId([1; 16]), ..intent.clone() });
        let by_other = Intent { requester: signers.group.people[1].user_id, ..signers.intent(rig) };
        let asked_by_other = signers.request(rig, 1, &by_other);
        assert_failed(rig, &signers, Code::RequesterNotAllowed, &asked_by_other, 1);
        let stranger = keymeld_core::id::UserId([1; 16]);
        let of_stranger = Intent { requester: stranger, ..signers.intent(rig) };
        let mut of_stranger = signers.request(rig, 0, &of_stranger);
        of_stranger.requester = signers.group.people[0].user_id;
        assert_failed(rig, &signers, Code::UserNotInRoster, &of_stranger, 0);
        // Another session's intent under a new id does not open; one sealed for this id that says another does.
        request.signing_id = SigningId([2; 16]);
        assert_failed(rig, &signers, Code::SealUnreadable, &request, 0);
        let intent = signers.intent(rig);
        let id = SigningId([4; 16]);
        let sealed = signers.seal_as(rig, id, 0, &intent);
        let mut request = signers.request(rig, 0, &intent);
        (request.signing_id, request.intent, request.intent_digest) = (id, sealed.sealed, sealed.digest);
        assert_failed(rig, &signers, Code::IntentMismatch, &request, 0);

        // Nothing of the keygen changed by it, and an honest intent still goes through.
        let after = rig.rows();
        assert!(before.iter().all(|row| after.contains(row)), "sessions only add rows of their own");
        let intent = signers.intent(rig);
        let request = signers.request(rig, 0, &intent);
        assert!(signers.run(rig, 0, &request).result.is_some());
    });
}

#[track_caller]
fn assert_failed(
    rig: &mut Rig,
    signers: &Signers,
    code: Code,
    request: &keymeld_core::api::rest::SignRequest,
    by: usize,
) {
    let status = signers.run(rig, by, request);
    assert_eq!((status.state, &status.result), (SigningState::Failed, &None), "{code}");
    rig.failed(code, status.failure);
}

pub(crate) const WITHDRAWALS: [Code; 3] = [Code::Declined, Code::Cancelled, Code::BlindNotAllowed];

#[test]
fn a_decline_and_a_cancellation_end_the_session_and_an_approval_that_is_not_blind_signs_nothing_blind() {
    show(&WITHDRAWALS, Rig::start(1, ""), |rig| {
        let signers = Signers::new(rig, &[careful(), careful()]);
        let cases =
            [(WithdrawalKind::Decline, 1, Code::Declined), (WithdrawalKind::Cancel, 0, Code::Cancelled)];
        for (kind, by, code) in cases {
            let intent = signers.intent(rig);
            let request = signers.request(rig, 0, &intent);
            let ask = signers.ask(rig, 0, &request);
            rig.does::<SigningStatus>(&ask);
            let ask = signers.withdraw(rig, kind, by, &request);
            rig.does::<SigningStatus>(&ask);
            let status = signers.ended(rig, request.signing_id);
            let failure = rig.failed(code, status.failure);
            assert_eq!(failure.culprits, [signers.group.people[by].user_id]);
            let said = failure.withdrawal.expect("the signed no");
            assert!(said.verify(kind, &signers.group.auth(by).public()).is_ok());
        }
        let mut intent = signers.intent(rig);
        intent.items = vec![Item::blind(Message([9; 32]), &mut rig.entropy).expect("randomness")];
        let request = signers.request(rig, 0, &intent);
        let ask = signers.ask(rig, 0, &request);
        rig.does::<SigningStatus>(&ask);
        let approval = signers.approval(rig, 1, &request, false);
        let ask = signers.approve(rig, 1, &approval);
        rig.does::<SigningStatus>(&ask);
        let status = signers.ended(rig, request.signing_id);
        assert!(status.result.is_none());
        rig.failed(Code::BlindNotAllowed, status.failure);
    });
}
