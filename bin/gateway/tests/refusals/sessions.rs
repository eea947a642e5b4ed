//! Sessions: ids, states, ends, and how many may wait.

use std::net::TcpStream;

use keymeld_core::api::http::Method;
use keymeld_core::api::rest::{KeygenStatus, SigningStatus, SlotsResponse};
use keymeld_core::artifact::approval::WithdrawalKind;
use keymeld_core::bytes::Hash;
use keymeld_core::gateway::WAITERS_PER_SESSION_MAX;
use keymeld_core::id::{EnclaveId, SigningId, UserId};
use keymeld_core::refusal::Code;

use crate::group::{Group, Signers, careful, delegated};
use crate::rig::{Ask, Rig, enclave_id, read_answer, show};

pub(crate) const UNKNOWN: [Code; 3] = [Code::UnknownId, Code::UserNotInRoster, Code::WrongEpoch];

#[test]
fn what_is_not_there_is_not_found() {
    show(&UNKNOWN, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        for ask in [
            group.initialise(rig),
            rig.get(&group.session, &group.path("slots")),
            rig.get(&group.session, &group.path("status")),
            rig.get(&group.session, &group.path("status?wait_ms=30000")),
        ] {
            rig.refused(Code::UnknownId, &ask);
        }
        let signers = Signers::new(rig, &[careful(), careful()]);
        let intent = signers.intent(rig);
        let mut request = signers.request(rig, 0, &intent);
        let approval = signers.approval(rig, 1, &request, false);
        let path = |end: &str| format!("signing/{}/{end}", request.signing_id);
        let (intent_path, status_path) = (path("intent"), path("status?wait_ms=30000"));
        for ask in [
            signers.approve(rig, 1, &approval),
            signers.withdraw(rig, WithdrawalKind::Decline, 1, &request),
            signers.withdraw(rig, WithdrawalKind::Cancel, 0, &request),
            rig.get(&signers.group.session, &intent_path),
            rig.get(&signers.group.session, &status_path),
        ] {
            rig.refused(Code::UnknownId, &ask);
        }
        request.keygen_id = group.keygen_id();
        let ask = signers.ask(rig, 0, &request);
        rig.refused(Code::UnknownId, &ask);

        let nonce = Hash([1; 32]);
        for (code, id, epoch) in [
            (Code::UnknownId, EnclaveId([0xee; 16]), ""),
            (Code::WrongEpoch, enclave_id(0), "&epoch=0"),
            (Code::WrongEpoch, enclave_id(0), "&epoch=2"),
        ] {
            let path = format!("enclaves/{id}/attestation?nonce={nonce}{epoch}");
            rig.refused(code, &Ask::plain(Method::Get, &path, &[]));
        }

        // Users of another session.
        group.begin(rig);
        let mut other = group.registration(rig, 1);
        other.user_id = signers.group.people[1].user_id;
        let ask = group.register(rig, 1, &other);
        rig.refused(Code::UserNotInRoster, &ask);
        request.keygen_id = signers.group.keygen_id();
        let ask = signers.ask(rig, 0, &request);
        rig.does::<SigningStatus>(&ask);
        let mut approval = approval;
        approval.user_id = UserId([9; 16]);
        let ask = signers.approve(rig, 1, &approval);
        rig.refused(Code::UserNotInRoster, &ask);
    });
}

pub(crate) const CONFLICTS: [Code; 2] = [Code::IdConflict, Code::SlotTaken];

#[test]
fn the_same_id_with_other_bytes_is_a_conflict_and_with_the_same_bytes_the_same_answer() {
    show(&CONFLICTS, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        group.begin(rig);
        let shown = group.slots(rig);
        let ask = group.reserve(rig);
        assert_eq!(rig.does::<SlotsResponse>(&ask), shown);
        let mut other = group.reservation();
        other.timeout_ms = Some(60_000);
        let ask = rig.post(&group.session, "keygen/reserve", &other);
        rig.refused(Code::IdConflict, &ask);
        let mut other = group.init.clone();
        other.manifest_hash = Hash([1; 32]);
        let ask = rig.post(&group.session, &group.path("init"), &other);
        rig.refused(Code::IdConflict, &ask);
        let ask = group.initialise(rig);
        assert_eq!(rig.does::<SlotsResponse>(&ask), shown);

        let first = group.registration(rig, 1);
        let second = group.registration(rig, 1);
        let ask = group.register(rig, 1, &first);
        rig.does::<SlotsResponse>(&ask);
        let ask = group.register(rig, 1, &second);
        rig.refused(Code::SlotTaken, &ask);
        let ask = group.register(rig, 1, &first);
        rig.does::<SlotsResponse>(&ask);

        let signers = Signers::new(rig, &[careful(), careful()]);
        let intent = signers.intent(rig);
        let request = signers.request(rig, 0, &intent);
        let ask = signers.ask(rig, 0, &request);
        rig.does::<SigningStatus>(&ask);
        let mut other = signers.intent(rig);
        other.signing_id = intent.signing_id;
        let other = signers.request(rig, 0, &other);
        let ask = signers.ask(rig, 0, &other);
        rig.refused(Code::IdConflict, &ask);
        // The other participant's session of the same id, in another keygen.
        let elsewhere = Signers::new(rig, &[careful(), careful()]);
        let mut stolen = elsewhere.intent(rig);
        stolen.signing_id = intent.signing_id;
        let stolen = elsewhere.request(rig, 0, &stolen);
        let ask = elsewhere.ask(rig, 0, &stolen);
        assert_eq!(rig.send(&ask).problem().code, "key-not-allowed");

        let approval = signers.approval(rig, 1, &request, true);
        let ask = signers.approve(rig, 1, &approval);
        rig.does::<SigningStatus>(&ask);
        let other = signers.approval(rig, 1, &request, false);
        signers.ended(rig, request.signing_id);
        let ask = signers.approve(rig, 1, &other);
        rig.refused(Code::IdConflict, &ask);
        let again = signers.approval(rig, 1, &request, true);
        let ask = signers.approve(rig, 1, &again);
        rig.does::<SigningStatus>(&ask);
    });
}

pub(crate) const STATES: [Code; 2] = [Code::WrongState, Code::Declined];

#[test]
fn what_a_session_is_not_ready_for_or_past_is_refused() {
    show(&STATES, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        let ask = group.reserve(rig);
        rig.does::<SlotsResponse>(&ask);
        // Before the manifest.
        let request = group.registration(rig, 1);
        let ask = group.register(rig, 1, &request);
        rig.refused(Code::WrongState, &ask);

        let signers = Signers::new(rig, &[careful(), careful()]);
        let intent = signers.intent(rig);
        let mut early = signers.request(rig, 0, &intent);
        early.keygen_id = group.keygen_id();
        let ask = signers.ask(rig, 0, &early);
        rig.refused(Code::WrongState, &ask);

        let declined = signers.request(rig, 0, &intent);
        let ask = signers.ask(rig, 0, &declined);
        rig.does::<SigningStatus>(&ask);
        let ask = signers.withdraw(rig, WithdrawalKind::Decline, 1, &declined);
        let status: SigningStatus = rig.does(&ask);
        rig.failed(Code::Declined, status.failure);
        let approval = signers.approval(rig, 1, &declined, false);
        let ask = signers.approve(rig, 1, &approval);
        rig.refused(Code::WrongState, &ask);
        let ask = signers.withdraw(rig, WithdrawalKind::Cancel, 0, &declined);
        rig.refused(Code::WrongState, &ask);
        // To say no twice is to say it once.
        let ask = signers.withdraw(rig, WithdrawalKind::Decline, 1, &declined);
        rig.does::<SigningStatus>(&ask);
    });
}

pub(crate) const EXPIRED: [Code; 1] = [Code::Expired];

#[test]
fn a_session_whose_time_is_over_fails_and_takes_nothing_more() {
    show(&EXPIRED, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        let mut reservation = group.reservation();
        reservation.timeout_ms = Some(1);
        let ask = rig.post(&group.session, "keygen/reserve", &reservation);
        rig.does::<SlotsResponse>(&ask);
        let status = group.ended(rig);
        rig.failed(Code::Expired, status.failure);
        let ask = group.initialise(rig);
        rig.refused(Code::Expired, &ask);
        let enclave = rig.enclave_keys(enclave_id(0));
        let request = keymeld_core::api::rest::RegisterRequest {
            user_id: group.people[1].user_id,
            auth_key: group.auth(1).public(),
            approval_required: true,
            enclave_key: enclave.enclave_key,
            envelope: Default::default(),
            record: Default::default(),
        };
        let ask = group.register(rig, 1, &request);
        rig.refused(Code::Expired, &ask);

        let signers = Signers::new(rig, &[delegated(), careful()]);
        let mut intent = signers.intent(rig);
        intent.expires_at = intent.created_at + 4_000;
        let request = signers.request(rig, 0, &intent);
        let ask = signers.ask(rig, 0, &request);
        rig.does::<SigningStatus>(&ask);
        let status = signers.ended(rig, request.signing_id);
        rig.failed(Code::Expired, status.failure);
        let approval = signers.approval(rig, 1, &request, false);
        let ask = signers.approve(rig, 1, &approval);
        rig.refused(Code::Expired, &ask);
        let ask = signers.withdraw(rig, WithdrawalKind::Cancel, 0, &request);
        rig.refused(Code::Expired, &ask);
    });
}

pub(crate) const TOO_MANY: [Code; 2] = [Code::TooMany, Code::ShuttingDown];

#[test]
fn long_polls_beyond_the_bounds_are_told_to_come_back() {
    // The listener's bound.
    show(&[Code::TooMany], Rig::start(1, "[http]\nparked_max = 1\n"), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        group.begin(rig);
        let ask = rig.get(&group.session, &group.path("status?wait_ms=30000"));
        let _waits = rig.begin(&ask);
        while rig.parked() == 0 {
            std::thread::yield_now();
        }
        let ask = rig.get(&group.session, &group.path("status?wait_ms=30000"));
        rig.refused(Code::TooMany, &ask);
        // Others are served.
        let ask = rig.get(&group.session, &group.path("status"));
        rig.does::<KeygenStatus>(&ask);
    });
    // The session's own: of one more than may wait, one does not.
    show(&TOO_MANY, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        group.begin(rig);
        let poll = |rig: &mut Rig| {
            let ask = rig.get(&group.session, &group.path("status?wait_ms=30000"));
            rig.begin(&ask)
        };
        let mut polls: Vec<_> = (0..=WAITERS_PER_SESSION_MAX).map(|_| poll(rig)).collect();
        // Whichever comes last is answered, long before its time.
        let answered = loop {
            match polls.iter().position(has_answer) {
                Some(answered) => break answered,
                None => std::thread::yield_now(),
            }
        };
        let answer = read_answer(&mut polls.remove(answered));
        rig.is_refused(Code::TooMany, &answer);
        while rig.parked() < WAITERS_PER_SESSION_MAX {
            std::thread::yield_now();
        }
        rig.stop_gateway();
        for stream in &mut polls {
            let answer = read_answer(stream);
            rig.is_refused(Code::ShuttingDown, &answer);
        }
    });
}

fn has_answer(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let found = stream.peek(&mut [0]).is_ok_and(|count| count > 0);
    stream.set_nonblocking(false).expect("a socket");
    found
}

#[test]
fn ids_are_looked_at_before_states() {
    show(&[Code::UnknownId], Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        let path = format!("signing/{}/status", SigningId(group.keygen_id().0));
        group.begin(rig);
        // A keygen is no signing session of the same id.
        let ask = rig.get(&group.session, &path);
        rig.refused(Code::UnknownId, &ask);
    });
}
