//! Enclaves that are away, disks that are full or fail, a gateway that stops: whoever asks is told when to try
//! again, and sessions go on by themselves.

use keymeld_core::api::http::Method;
use keymeld_core::api::rest::{KeygenState, KeygenStatus, SigningState, SigningStatus, SlotsResponse};
use keymeld_core::bytes::Hash;
use keymeld_core::refusal::Code;

use crate::group::{Group, Signers, careful, delegated};
use crate::rig::{Ask, Rig, enclave_id, read_answer, show};

pub(crate) const ENCLAVES: [Code; 1] = [Code::EnclaveAway];

#[test]
fn while_an_enclave_is_away_nothing_is_lost_and_sessions_go_on_when_it_is_back() {
    show(&ENCLAVES, Rig::without_enclaves(2, ""), |rig| {
        let group = Group::new(rig, &[delegated(), delegated()]);
        let ask = group.reserve(rig);
        rig.refused(Code::EnclaveAway, &ask);
        let attestation = Ask::plain(
            Method::Get,
            &format!("enclaves/{}/attestation?nonce={}", enclave_id(0), Hash([1; 32])),
            &[],
        );
        rig.refused(Code::EnclaveAway, &attestation);
        rig.start_enclave(0);
        rig.start_enclave(1);
        rig.await_ready();
        group.begin(rig);
        let (first, second) = (group.registration(rig, 0), group.registration(rig, 1));

        // A registration cannot be checked; the same bytes are taken later.
        rig.stop_enclave(0);
        let ask = group.register(rig, 0, &first);
        rig.refused(Code::EnclaveAway, &ask);
        rig.start_enclave(0);
        rig.await_ready();
        let ask = group.register(rig, 0, &first);
        rig.does::<SlotsResponse>(&ask);

        // The other enclave is away when the last registers: the keygen waits and then completes.
        rig.stop_enclave(0);
        let ask = group.register(rig, 1, &second);
        rig.does::<SlotsResponse>(&ask);
        let ask = rig.get(&group.session, &group.path("status"));
        assert_eq!(rig.does::<KeygenStatus>(&ask).state, KeygenState::KeyGeneration);
        rig.start_enclave(0);
        assert_eq!(group.ended(rig).state, KeygenState::Completed);

        // So do signatures that were asked for meanwhile.
        rig.await_ready();
        let signers = Signers::new(rig, &[delegated(), delegated()]);
        rig.stop_enclave(1);
        let intent = signers.intent(rig);
        let request = signers.request(rig, 0, &intent);
        let ask = signers.ask(rig, 0, &request);
        let status: SigningStatus = rig.does(&ask);
        assert_eq!(status.state, SigningState::CollectingParticipants);
        rig.start_enclave(1);
        assert_eq!(signers.ended(rig, request.signing_id).state, SigningState::Completed);
    });
}

pub(crate) const DISKS: [Code; 3] = [Code::DiskFull, Code::StorageFailed, Code::Internal];

#[test]
fn what_cannot_be_written_did_not_happen_and_is_taken_when_it_can() {
    show(&[Code::DiskFull], Rig::start(1, "database_pages_max = 40\n"), |rig| {
        let full = loop {
            let group = Group::new(rig, &[careful(), careful()]);
            let ask = group.reserve(rig);
            if rig.send(&ask).status >= 300 {
                break group;
            }
        };
        let ask = full.reserve(rig);
        rig.refused(Code::DiskFull, &ask);
        // It is refused, not half there; and others can read.
        let ask = rig.get(&full.session, &full.path("slots"));
        assert_eq!(rig.send(&ask).problem().code, "unknown-id");
        rig.await_ready();
        // The operator makes room.
        rig.restart_gateway("");
        rig.await_ready();
        let ask = full.reserve(rig);
        rig.does::<SlotsResponse>(&ask);
    });
    show(&[Code::StorageFailed], Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        let database = rig.database();
        database.execute_batch("BEGIN IMMEDIATE").expect("locks");
        let ask = group.reserve(rig);
        rig.refused(Code::StorageFailed, &ask);
        database.execute_batch("ROLLBACK").expect("unlocks");
        let ask = group.reserve(rig);
        rig.does::<SlotsResponse>(&ask);
        // Nor does a registration count that its enclave has checked and the disk has not taken.
        let ask = group.initialise(rig);
        rig.does::<SlotsResponse>(&ask);
        let request = group.registration(rig, 1);
        database.execute_batch("BEGIN IMMEDIATE").expect("locks");
        let ask = group.register(rig, 1, &request);
        rig.refused(Code::StorageFailed, &ask);
        database.execute_batch("ROLLBACK").expect("unlocks");
        assert!(group.slots(rig).slots.iter().all(|slot| !slot.registered));
        let ask = group.register(rig, 1, &request);
        rig.does::<SlotsResponse>(&ask);
    });
}

#[test]
fn a_record_that_somebody_damaged_is_said_to_be_and_left_alone() {
    show(&[Code::Internal], Rig::start(1, ""), |rig| {
        let (damaged, other) =
            (Group::new(rig, &[careful(), careful()]), Group::new(rig, &[careful(), careful()]));
        for group in [&damaged, &other] {
            group.begin(rig);
        }
        rig.stop_gateway();
        let sql = "UPDATE rows SET body = x'00' WHERE family = 1 AND part = 0 AND id = ?1";
        rig.database().execute(sql, [damaged.keygen_id().0]).expect("one row");
        rig.restart_gateway("");
        rig.await_ready();
        for _ in 0..2 {
            let ask = rig.get(&damaged.session, &damaged.path("status"));
            rig.refused(Code::Internal, &ask);
        }
        let ask = damaged.reserve(rig);
        rig.refused(Code::Internal, &ask);
        other.slots(rig);
    });
}

pub(crate) const ENDS: [Code; 1] = [Code::ShuttingDown];

#[test]
fn whoever_waits_is_told_that_the_gateway_stops() {
    show(&ENDS, Rig::start(1, ""), |rig| {
        let group = Group::new(rig, &[careful(), careful()]);
        group.begin(rig);
        let before = rig.rows();
        let ask = rig.get(&group.session, &group.path("status?wait_ms=30000"));
        let mut poll = rig.begin(&ask);
        while rig.parked() == 0 {
            std::thread::yield_now();
        }
        rig.stop_gateway();
        let answer = read_answer(&mut poll);
        rig.is_refused(Code::ShuttingDown, &answer);
        assert!(rig.rows() == before);
    });
}
