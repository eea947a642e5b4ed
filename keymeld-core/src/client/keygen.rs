//! A client's part in a keygen: slots, attestation, registration, the verified key.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;

use super::exchange::{Exchange, Question, Signer, decode, unverified};
use super::key::{DraftKey, VerifiedKey};
use super::membership::Registered;
use super::{Client, Done, Fault, Goal, KeygenProgress, SlotProgress, Turn};
use crate::api::rest::{
    AttestationResponse, Failure, KeygenState, KeygenStatus, RegisterRequest, SlotView, SlotsResponse,
};
use crate::artifact::manifest::Manifest;
use crate::artifact::registration::{ApprovalRule, Registrant};
use crate::attestation::AttestationError;
use crate::bytes::{Hash, PublicKey, XOnlyKey};
use crate::entropy::Entropy;
use crate::id::EnclaveId;
use crate::refusal::Code;
use crate::time::Time;

/// The slot's enclave, asked for its attestation before a key is sealed to it.
#[derive(Debug)]
pub(super) struct OwnEnclave {
    enclave_id: EnclaveId,
    nonce: Hash,
    manifest: Manifest,
}

/// An enclave of the roster, asked for its attestation before the key is believed.
#[derive(Debug)]
pub(super) struct Enclave {
    enclave_id: EnclaveId,
    nonce: Hash,
    draft: DraftKey,
}

/// What an enclave's attestation led to.
pub(super) enum Attested {
    Next(Turn),
    All(Arc<VerifiedKey>),
}

impl Client {
    pub(super) fn reserve(&self) -> Result<Turn, Fault> {
        let coordination = self.membership.coordination.as_ref().ok_or(Code::KeyNotAllowed)?;
        let path = "keygen/reserve";
        Ok(Turn::ask(Exchange::post(Question::Reserve, path, Signer::Session, &coordination.reserve)))
    }

    pub(super) fn init(&self) -> Result<Turn, Fault> {
        let coordination = self.membership.coordination.as_ref().ok_or(Code::KeyNotAllowed)?;
        let path = format!("keygen/{}/init", self.membership.keygen_id);
        Ok(Turn::ask(Exchange::post(Question::Init, &path, Signer::Session, &coordination.init)))
    }

    /// Registers; what was registered before is sent again as it was.
    pub(super) fn join_slot(&self) -> Result<Turn, Fault> {
        let path = format!("keygen/{}/slots", self.membership.keygen_id);
        Ok(match &self.membership.registration {
            Some(registered) => Turn::ask(self.registration(registered)),
            None => Turn::ask(Exchange::get(Question::Slots, &path, Signer::Slot)),
        })
    }

    fn registration(&self, registered: &Registered) -> Exchange {
        let path = format!("keygen/{}/participants", self.membership.keygen_id);
        Exchange::post(Question::Register, &path, Signer::Slot, &registered.request)
    }

    /// The keygen's status; a job that needs the key does not wait for it.
    pub(super) fn ask_for_key(&self, goal: &Goal) -> Result<Turn, Fault> {
        if self.membership.registration.is_none() {
            return Err(Code::WrongState.into());
        }
        let path = format!("keygen/{}/status", self.membership.keygen_id);
        let exchange = Exchange::get(Question::KeygenStatus, &path, Signer::User);
        Ok(Turn::ask(if matches!(goal, Goal::Key) { exchange.until_ended() } else { exchange }))
    }

    pub(super) fn reserved(&self, body: &[u8]) -> Result<Turn, Fault> {
        let shown: SlotsResponse = decode(body)?;
        if shown.keygen_id == self.membership.keygen_id {
            Ok(Turn::Done(Done::Reserved))
        } else {
            Err(unverified(Code::IdConflict))
        }
    }

    pub(super) fn initialised(&mut self, body: &[u8]) -> Result<Turn, Fault> {
        let shown: SlotsResponse = decode(body)?;
        let coordination = self.membership.coordination.as_mut();
        let published = coordination.filter(|own| shown.manifest.as_ref() == Some(&own.init.manifest));
        let own = published.ok_or(unverified(Code::ManifestHashMismatch))?;
        if core::mem::replace(&mut own.published, true) {
            return Ok(Turn::Done(Done::Initialised));
        }
        self.revision += 1;
        Ok(Turn::Keep(Done::Initialised))
    }

    /// The keygen's status; anybody who knows the session secret may see it.
    pub(super) fn ask_for_progress(&self) -> Turn {
        let path = format!("keygen/{}/status", self.membership.keygen_id);
        Turn::ask(Exchange::get(Question::KeygenProgress, &path, Signer::Session))
    }

    pub(super) fn progress_shown(&self, body: &[u8]) -> Result<Turn, Fault> {
        let status: KeygenStatus = decode(body)?;
        let path = format!("keygen/{}/slots", self.membership.keygen_id);
        let question = Question::ProgressSlots(Box::new(status));
        Ok(Turn::ask(Exchange::get(question, &path, Signer::Session)))
    }

    pub(super) fn progress_slots_shown(&self, status: KeygenStatus, body: &[u8]) -> Result<Turn, Fault> {
        let shown: SlotsResponse = decode(body)?;
        let manifest = shown.manifest.as_ref().map(|sealed| self.membership.open_manifest(sealed));
        let manifest = manifest.transpose().map_err(unverified)?;
        let slot = |slot: &SlotView| SlotProgress {
            user_id: slot.user_id,
            participant: manifest
                .as_ref()
                .and_then(|manifest| manifest.participant(slot.user_id))
                .map(|participant| (participant.name.clone(), participant.pin.clone())),
            enclave_id: slot.enclave_id,
            registered: slot.registered,
        };
        Ok(Turn::Done(Done::Keygen(Box::new(KeygenProgress {
            state: status.state,
            deadline: shown.deadline,
            slots: shown.slots.iter().map(slot).collect(),
            failure: status.failure.as_ref().map(code_of),
        }))))
    }

    /// Reads the manifest and asks the slot's enclave who it is.
    pub(super) fn slots_shown(&self, body: &[u8], entropy: &mut Entropy) -> Result<Turn, Fault> {
        let shown: SlotsResponse = decode(body)?;
        let sealed = shown.manifest.as_ref().ok_or(Code::WrongState)?;
        let manifest = self.membership.open_manifest(sealed).map_err(unverified)?;
        let own = shown.slots.iter().find(|slot| slot.user_id == self.membership.user_id);
        let enclave_id = own.ok_or(unverified(Code::UserNotInRoster))?.enclave_id;
        let nonce = Hash(entropy.bytes().map_err(Code::from)?);
        let path = format!("enclaves/{enclave_id}/attestation?nonce={nonce}");
        let question = Question::OwnEnclave(Box::new(OwnEnclave { enclave_id, nonce, manifest }));
        Ok(Turn::ask(Exchange::get(question, &path, Signer::Nobody)))
    }

    /// Makes the registration for an enclave that passed, keeps it, and only then sends it.
    pub(super) fn own_enclave_attested(
        &mut self,
        now: Time,
        own: OwnEnclave,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        // Another job of the same kind was faster: there is one registration, ever.
        if self.membership.registration.is_some() {
            return self.join_slot();
        }
        let OwnEnclave { enclave_id, nonce, manifest } = own;
        let shown: AttestationResponse = decode(body)?;
        let newest = self.births.get(&enclave_id).copied();
        let attestation = self
            .config
            .policy
            .check_for_registration(now.unix_ms, &shown.document.0, &nonce.0, newest)
            .map_err(|error| Fault::Unattested(enclave_id, error))?;
        if attestation.enclave_id != enclave_id.0 {
            return Err(Fault::Unattested(enclave_id, AttestationError::EnclaveIdDiffers));
        }
        self.saw_birth(enclave_id, attestation.birth_time_ms);
        let membership = &mut self.membership;
        let enclave_key = PublicKey(attestation.ecies_key);
        let registrant = Registrant {
            manifest: &manifest,
            manifest_hash: membership.manifest_hash,
            user_id: membership.user_id,
            private_key: &self.private_key,
            session_secret: membership.session_secret(),
            invite_key: membership.invite_key.as_ref(),
            enclave_key,
            identity_key: XOnlyKey(attestation.identity_key),
            rules: membership.rules,
        };
        let registration = registrant.register(entropy)?;
        let request = RegisterRequest {
            user_id: membership.user_id,
            auth_key: registration.auth_key,
            approval_required: membership.rules.approval == ApprovalRule::Required,
            enclave_key,
            envelope: registration.envelope,
            record: registration.record,
        };
        let registered = Registered { enclave_id, birth_time_ms: attestation.birth_time_ms, request };
        membership.registration = Some(registered.clone());
        self.revision += 1;
        Ok(Turn::ask(self.registration(&registered)))
    }

    pub(super) fn registered(&self, body: &[u8]) -> Result<Turn, Fault> {
        let shown: SlotsResponse = decode(body)?;
        let own = shown.slots.iter().find(|slot| slot.user_id == self.membership.user_id);
        if own.is_some_and(|slot| slot.registered) {
            Ok(Turn::Done(Done::Joined))
        } else {
            Err(unverified(Code::WrongState))
        }
    }

    pub(super) fn keygen_shown(
        &self,
        goal: &Goal,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Turn, Fault> {
        let shown: KeygenStatus = decode(body)?;
        match (shown.state, shown.completed, shown.failure) {
            (KeygenState::Completed, Some(completed), None) => {
                let draft = DraftKey::assemble(&self.membership, &completed).map_err(unverified)?;
                next_enclave(draft, entropy)
            }
            (KeygenState::Failed, None, Some(failure)) => Err(ended(&failure)),
            (
                KeygenState::Reserved | KeygenState::CollectingParticipants | KeygenState::KeyGeneration,
                None,
                None,
            ) if matches!(goal, Goal::Key) => Ok(Turn::Again(Question::KeygenStatus)),
            (
                KeygenState::Reserved | KeygenState::CollectingParticipants | KeygenState::KeyGeneration,
                None,
                None,
            ) => Err(Code::WrongState.into()),
            (_, _, _) => Err(unverified(Code::WrongState)),
        }
    }

    pub(super) fn enclave_attested(
        &mut self,
        now: Time,
        asked: Enclave,
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Attested, Fault> {
        let Enclave { enclave_id, nonce, mut draft } = asked;
        let shown: AttestationResponse = decode(body)?;
        let attestation = self
            .config
            .policy
            .check(now.unix_ms, &shown.document.0, &nonce.0)
            .map_err(|error| Fault::Unattested(enclave_id, error))?;
        if attestation.enclave_id != enclave_id.0 {
            return Err(Fault::Unattested(enclave_id, AttestationError::EnclaveIdDiffers));
        }
        draft.attested(&attestation).map_err(unverified)?;
        self.saw_birth(enclave_id, attestation.birth_time_ms);
        if draft.next().is_some() {
            next_enclave(draft, entropy).map(Attested::Next)
        } else {
            Ok(Attested::All(Arc::new(draft.verified())))
        }
    }
}

fn next_enclave(draft: DraftKey, entropy: &mut Entropy) -> Result<Turn, Fault> {
    let view = draft.next().ok_or(unverified(Code::CertificateInvalid))?;
    let enclave_id = view.enclave_id;
    let nonce = Hash(entropy.bytes().map_err(Code::from)?);
    let path = format!("enclaves/{enclave_id}/attestation?nonce={nonce}&epoch={}", view.epoch);
    let question = Question::Enclave(Box::new(Enclave { enclave_id, nonce, draft }));
    Ok(Turn::ask(Exchange::get(question, &path, Signer::Nobody)))
}

/// Why a keygen failed. Nobody is named on the gateway's word.
fn ended(failure: &Failure) -> Fault {
    Fault::Ended(code_of(failure).into(), None)
}

fn code_of(failure: &Failure) -> Code {
    Code::from_name(&failure.code).unwrap_or(Code::Internal)
}
