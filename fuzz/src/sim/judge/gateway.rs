//! What the gateway answers: everything that it acknowledges is durable, and what has ended stays so.

use keymeld_core::api::http::Response;
use keymeld_core::api::rest::{KeygenState, KeygenStatus, SigningState, SigningStatus, SlotsResponse};
use keymeld_core::api::router::Call;
use keymeld_core::bytes::Blob;
use keymeld_core::id::{KeygenId, SigningId, UserId};
use keymeld_core::record::{Family, RecordKey};

use super::super::god::EndFacts;
use super::super::world::World;

/// The parts of records, as the gateway numbers them: a golden test of its rows has them too.
const PART_HEAD: u32 = 0;
const PART_REQUEST: u32 = 1;
const PART_END: u32 = 2;
const PART_SLOTS: u32 = 100;

fn keygen(id: KeygenId) -> RecordKey {
    RecordKey { family: Family::Keygen, id: id.0 }
}

fn signing(id: SigningId) -> RecordKey {
    RecordKey { family: Family::Signing, id: id.0 }
}

impl World {
    /// S6: a reply that reports a change leaves only after the change is durable.
    pub(crate) fn judge_response(&mut self, call: &Call, response: &Response) {
        if !(200..300).contains(&response.status) {
            return;
        }
        match call {
            Call::Reserve { request, .. } => {
                self.promise(keygen(request.keygen_id), PART_HEAD, "a reservation")
            }
            Call::Init { keygen_id, .. } => self.promise(keygen(*keygen_id), PART_REQUEST, "a manifest"),
            Call::Register { keygen_id, request, .. } => {
                let shown: SlotsResponse = read(response);
                let slot = shown.slots.iter().find(|slot| slot.user_id == request.user_id);
                let slot = slot.expect("a registration is for a slot").signer_index;
                self.promise(keygen(*keygen_id), PART_SLOTS + slot, "a registration");
            }
            Call::Sign { request, .. } => {
                self.promise(signing(request.signing_id), PART_HEAD, "a request");
                self.promise(signing(request.signing_id), PART_REQUEST, "a request");
            }
            Call::Approve { signing_id, approval, .. } => {
                let shown: SigningStatus = read(response);
                if let Some(slot) = self.slot_of(shown.keygen_id, approval.user_id) {
                    self.promise(signing(*signing_id), PART_SLOTS + slot, "an approval");
                }
            }
            Call::Withdraw { signing_id, .. } => self.promise(signing(*signing_id), PART_END, "a no"),
            Call::KeygenStatus { keygen_id, .. } => {
                let shown: KeygenStatus = read(response);
                self.keygen_shown(*keygen_id, &shown);
            }
            Call::SigningStatus { signing_id, .. } => {
                let shown: SigningStatus = read(response);
                self.signing_shown(*signing_id, &shown);
            }
            Call::Slots { .. }
            | Call::Intent { .. }
            | Call::Enclaves
            | Call::Attestation { .. }
            | Call::Version
            | Call::Health => {}
        }
    }

    fn promise(&mut self, record: RecordKey, part: u32, what: &str) {
        self.god.ledger.promise(&mut self.gateway.disk, record, part, what);
    }

    /// Slots stand in the order of the reservation, with the coordinator first.
    fn slot_of(&self, keygen_id: KeygenId, user_id: UserId) -> Option<u32> {
        let circle = self.god.circle_of(keygen_id)?;
        let slot = self.god.circles[circle].users.iter().position(|user| *user == user_id)?;
        u32::try_from(slot).ok()
    }

    fn keygen_shown(&mut self, id: KeygenId, shown: &KeygenStatus) {
        self.log.reached(match shown.state {
            KeygenState::Reserved => "shown keygen Reserved",
            KeygenState::CollectingParticipants => "shown keygen CollectingParticipants",
            KeygenState::KeyGeneration => "shown keygen KeyGeneration",
            KeygenState::Completed => "shown keygen Completed",
            KeygenState::Failed => "shown keygen Failed",
        });
        let ended = match (&shown.completed, &shown.failure) {
            (Some(completed), _) => {
                EndFacts::Key(completed.records.iter().map(|view| view.record.clone()).collect())
            }
            (None, Some(failure)) => EndFacts::Failed(failure.code.clone()),
            (None, None) => return,
        };
        self.promise(keygen(id), PART_END, "the end of a keygen");
        self.ends(id.0, ended);
    }

    fn signing_shown(&mut self, id: SigningId, shown: &SigningStatus) {
        self.log.reached(match shown.state {
            SigningState::CollectingParticipants => "shown signing CollectingParticipants",
            SigningState::GeneratingNonces => "shown signing GeneratingNonces",
            SigningState::CollectingNonces => "shown signing CollectingNonces",
            SigningState::AggregatingNonces => "shown signing AggregatingNonces",
            SigningState::GeneratingPartialSignatures => "shown signing GeneratingPartialSignatures",
            SigningState::CollectingPartialSignatures => "shown signing CollectingPartialSignatures",
            SigningState::FinalizingSignature => "shown signing FinalizingSignature",
            SigningState::Completed => "shown signing Completed",
            SigningState::Failed => "shown signing Failed",
        });
        let ended = match (&shown.result, &shown.failure) {
            (Some(Blob(result)), _) => EndFacts::Signed(Blob(result.clone())),
            (None, Some(failure)) => EndFacts::Failed(failure.code.clone()),
            (None, None) => {
                // Once it has ended, it never again has not.
                let ended = self.god.ends.contains_key(&id.0) && !self.rolled_back();
                assert!(!ended, "S6: a session that has ended goes on");
                return;
            }
        };
        self.promise(signing(id), PART_END, "the end of a session");
        self.ends(id.0, ended);
    }

    fn rolled_back(&self) -> bool {
        self.god.ledger.is_forgiven()
    }

    fn ends(&mut self, id: [u8; 16], ended: EndFacts) {
        let rolled_back = self.rolled_back();
        let earlier = self.god.ends.entry(id).or_insert_with(|| ended.clone());
        let same = *earlier == ended;
        assert!(same || rolled_back, "S6: a session ended as {earlier:?} and now as {ended:?}");
    }
}

fn read<T: for<'de> serde::Deserialize<'de>>(response: &Response) -> T {
    serde_json::from_slice(&response.body).expect("the gateway speaks its own language")
}
