//! Registrations: each is checked by its slot's enclave before it fills the slot.

use super::keygen::Keygen;
use super::record::{keygen_key, new_row, slot_part};
use super::session::{Purpose, Step};
use super::{Gateway, RequestId};
use crate::api::problem;
use crate::api::rest::{KeygenState, RegisterRequest};
use crate::crypto::auth;
use crate::id::KeygenId;
use crate::limits::{ENVELOPE_BYTES_MAX, PARTICIPANTS_MAX, RECORD_BYTES_MAX};
use crate::link::message::{CheckRegistration, Request};
use crate::refusal::{Code, Refusal};

/// Registrations of one session that may be with an enclave to be checked.
const CHECKING_MAX: usize = 2 * PARTICIPANTS_MAX;

impl Gateway {
    pub(super) fn register(
        &mut self,
        id: KeygenId,
        keygen: &mut Keygen,
        slot: usize,
        request: RequestId,
        body: RegisterRequest,
        step: &mut Step,
    ) {
        if let Some(held) = &keygen.rows.registrations[slot] {
            return if *held == body {
                step.respond(request, problem::ok(200, &keygen.slots_response(id)));
            } else {
                step.refuse(request, Code::SlotTaken);
            };
        }
        let Some(init) = keygen.rows.init.as_ref() else {
            return step.refuse(request, keygen.wrong_state());
        };
        if let Err(code) = self.check_registration(keygen, slot, &body) {
            return step.refuse(request, code);
        }
        let check = CheckRegistration {
            enclave_key: body.enclave_key,
            keygen_id: id,
            manifest_hash: init.manifest_hash,
            manifest: init.manifest.clone(),
            user_id: body.user_id,
            envelope: body.envelope.clone(),
            record: body.record.clone(),
            auth_key: body.auth_key,
            approval_required: body.approval_required,
        };
        let enclave_id = keygen.rows.head.slots[slot].enclave_id;
        keygen.checking.insert(request, body);
        let purpose = Purpose::CheckRegistration { slot, request };
        step.send(enclave_id, purpose, Request::CheckRegistration(check));
    }

    fn check_registration(&self, keygen: &Keygen, slot: usize, body: &RegisterRequest) -> Result<(), Code> {
        if keygen.state() != KeygenState::CollectingParticipants {
            return Err(keygen.wrong_state());
        }
        if keygen.checking.len() >= CHECKING_MAX {
            return Err(Code::TooMany);
        }
        crate::artifact::check_public_key(&body.enclave_key)?;
        let is_open = self.ready_enclave_of(&body.enclave_key).is_some();
        match self.enclave_of(&body.enclave_key) {
            Some((enclave_id, _)) if enclave_id == keygen.rows.head.slots[slot].enclave_id => {}
            Some(_) | None => return Err(Code::WrongEnclaveKey),
        }
        if !auth::is_x_only_key(&body.auth_key) {
            return Err(Code::NotOnCurve);
        }
        let used = |(_, other): (usize, &RegisterRequest)| other.auth_key == body.auth_key;
        if keygen.registrations().any(used) {
            return Err(Code::DuplicateKey);
        }
        let too_large =
            body.record.0.len() > 4 * RECORD_BYTES_MAX || body.envelope.0.len() > 2 * ENVELOPE_BYTES_MAX;
        match (too_large, is_open) {
            (true, _) => Err(Code::TooLarge),
            (false, true) => Ok(()),
            (false, false) => Err(Code::EnclaveAway),
        }
    }
}

pub(super) fn registration_checked(
    id: KeygenId,
    keygen: &mut Keygen,
    slot: usize,
    request: RequestId,
    outcome: Result<(), Refusal>,
    step: &mut Step,
) {
    // The session was forgotten and read again while the enclave was checking.
    let Some(body) = keygen.checking.remove(&request) else {
        return step.refuse(request, Code::StorageFailed);
    };
    if let Err(refusal) = outcome {
        return step.refuse(request, refusal);
    }
    // While it was being checked another registration may have come first, or the time may have run out.
    match &keygen.rows.registrations[slot] {
        Some(held) if *held == body => {
            return step.respond(request, problem::ok(200, &keygen.slots_response(id)));
        }
        Some(_) => return step.refuse(request, Code::SlotTaken),
        None => {}
    }
    if keygen.state() != KeygenState::CollectingParticipants {
        return step.refuse(request, keygen.wrong_state());
    }
    if keygen.registrations().any(|(_, other)| other.auth_key == body.auth_key) {
        return step.refuse(request, Code::DuplicateKey);
    }
    step.writes.push(new_row(keygen_key(id), slot_part(slot), body.clone()));
    keygen.rows.registrations[slot] = Some(body);
    step.changed = true;
    if keygen.rows.registrations.iter().all(Option::is_some) {
        keygen.write_head(id, KeygenState::KeyGeneration, step);
        step.again = true;
    }
    step.respond(request, problem::ok(201, &keygen.slots_response(id)));
}
