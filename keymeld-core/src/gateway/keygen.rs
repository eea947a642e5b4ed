//! A keygen session at the gateway.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::record::{
    FailureRow, KeygenEnd, KeygenHead, KeygenInit, KeygenRows, PART_END, PART_REQUEST, Slot, head_row,
    keygen_key, new_row,
};
use super::registration::registration_checked;
use super::session::{Purpose, Session, SessionKey, Step, Work};
use super::{Gateway, Member, Report, RequestId};
use crate::api::problem;
use crate::api::rest::{
    CertificateView, Failure, InitRequest, KeygenCompleted, KeygenState, KeygenStatus, RecordView,
    RegisterRequest, ReserveRequest, SlotRequest, SlotView, SlotsResponse,
};
use crate::api::router::Call;
use crate::bytes::{Blob, Hash, PublicKey, XOnlyKey};
use crate::crypto::auth;
use crate::id::{EnclaveId, KeygenId, SubsetId, UserId};
use crate::limits::{
    MANIFEST_BYTES_MAX, PARTICIPANTS_MAX, PARTICIPANTS_MIN, SUBSET_MEMBERS_SUM_MAX, SUBSETS_MAX,
};
use crate::link::message::{KeygenOpened, OpenKeygen, Reply, Request, UserBlob};
use crate::record::Row;
use crate::refusal::{Code, Refusal};
use crate::strict::CborError;
use crate::time::Time;

/// Every legal change of state; a keygen that would make another one stops the gateway.
const TRANSITIONS: [(KeygenState, KeygenState); 6] = [
    (KeygenState::Reserved, KeygenState::CollectingParticipants),
    (KeygenState::Reserved, KeygenState::Failed),
    (KeygenState::CollectingParticipants, KeygenState::KeyGeneration),
    (KeygenState::CollectingParticipants, KeygenState::Failed),
    (KeygenState::KeyGeneration, KeygenState::Completed),
    (KeygenState::KeyGeneration, KeygenState::Failed),
];

/// A keygen session in memory.
#[derive(Clone, Debug)]
pub(super) struct Keygen {
    pub(super) rows: KeygenRows,
    /// Registrations that their enclave is checking.
    pub(super) checking: BTreeMap<RequestId, RegisterRequest>,
    /// Certificates so far, while enclaves open the session.
    opening: Option<BTreeMap<PublicKey, KeygenOpened>>,
}

/// Whether the same request may succeed a little later.
pub(super) fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::EnclaveAway
            | Code::IdentityMissing
            | Code::TimeUnknown
            | Code::NotAttested
            | Code::EntropyFailed
            | Code::TooMany
            | Code::WrongEnclaveKey
            | Code::UnknownSession
            | Code::KeyServiceFailed
    )
}

impl Keygen {
    pub(super) fn read(rows: &[Row]) -> Result<Keygen, CborError> {
        Ok(Keygen { rows: KeygenRows::read(rows)?, checking: BTreeMap::new(), opening: None })
    }

    pub(super) fn state(&self) -> KeygenState {
        self.rows.head.state
    }

    pub(super) fn is_completed(&self) -> bool {
        self.state() == KeygenState::Completed
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state(), KeygenState::Completed | KeygenState::Failed)
    }

    /// Why it does not take what it is in no state to take.
    pub(super) fn wrong_state(&self) -> Code {
        match &self.rows.end {
            Some(KeygenEnd::Failed(row)) => row.closes_with(),
            Some(KeygenEnd::Completed { .. }) | None => Code::WrongState,
        }
    }

    pub(super) fn waits_for_requests(&self) -> bool {
        let collecting = matches!(self.state(), KeygenState::Reserved | KeygenState::CollectingParticipants);
        collecting && self.checking.is_empty()
    }

    /// Whether it costs nobody but its coordinator anything where it ends now.
    pub(super) fn is_unregistered(&self) -> bool {
        self.waits_for_requests() && self.registrations().next().is_none()
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let head = self.rows.head.slots.len() * 256;
        let subsets = self.rows.init.iter().flat_map(|init| &init.subsets);
        let subsets: usize = subsets.map(|hint| 64 + 16 * hint.members.len()).sum();
        let checking = self.checking.values();
        let checking: usize = checking.map(|own| 512 + own.record.0.len() + own.envelope.0.len()).sum();
        let manifest = self.rows.init.as_ref().map_or(0, |init| init.manifest.0.len());
        let registration =
            |(_, own): (usize, &RegisterRequest)| 512 + own.record.0.len() + own.envelope.0.len();
        let registrations: usize = self.registrations().map(registration).sum();
        let certificates: usize = match &self.rows.end {
            Some(KeygenEnd::Completed { certificates, .. }) => {
                certificates.iter().map(|view| 128 + view.certificate.0.len()).sum()
            }
            Some(KeygenEnd::Failed(_)) | None => 0,
        };
        1_024 + head + subsets + manifest + registrations + checking + certificates
    }

    pub(super) fn deadline_unix_ms(&self) -> u64 {
        self.rows.head.deadline_unix_ms
    }

    /// The session key, the slot keys and the user auth keys may read.
    pub(super) fn may_read(&self, key: &XOnlyKey) -> bool {
        self.rows.head.session_key == *key
            || self.rows.head.slots.iter().any(|slot| slot.slot_key == *key)
            || self.registrations().any(|(_, registration)| registration.auth_key == *key)
    }

    /// The session key and the user auth keys may read signing sessions.
    pub(super) fn may_read_signing(&self, key: &XOnlyKey) -> bool {
        self.rows.head.session_key == *key
            || self.registrations().any(|(_, registration)| registration.auth_key == *key)
    }

    pub(super) fn coordinator(&self) -> UserId {
        self.rows.head.coordinator
    }

    pub(super) fn registrations(&self) -> impl Iterator<Item = (usize, &RegisterRequest)> {
        let slots = self.rows.registrations.iter().enumerate();
        slots.filter_map(|(index, registration)| registration.as_ref().map(|filled| (index, filled)))
    }

    pub(super) fn registration(&self, user_id: UserId) -> Option<(usize, &RegisterRequest)> {
        self.registrations().find(|(_, registration)| registration.user_id == user_id)
    }

    /// The members of a subset as the coordinator hinted, or everybody.
    pub(super) fn signers(&self, subset: Option<SubsetId>) -> Option<Vec<UserId>> {
        match subset {
            None => Some(self.rows.head.slots.iter().map(|slot| slot.user_id).collect()),
            Some(id) => {
                let hints = &self.rows.init.as_ref()?.subsets;
                hints.iter().find(|hint| hint.subset_id == id).map(|hint| hint.members.clone())
            }
        }
    }

    pub(super) fn roster_hash(&self) -> Option<Hash> {
        match &self.rows.end {
            Some(KeygenEnd::Completed { roster_hash, .. }) => Some(*roster_hash),
            Some(KeygenEnd::Failed(_)) | None => None,
        }
    }

    /// What an enclave needs to open this session.
    pub(super) fn open_request(&self, keygen_id: KeygenId, enclave_key: PublicKey) -> Option<Request> {
        let init = self.rows.init.as_ref()?;
        let blob = |user_id: UserId, blob: &Blob| UserBlob { user_id, blob: blob.clone() };
        let records = self.registrations().map(|(_, own)| blob(own.user_id, &own.record)).collect();
        let own = self.registrations().filter(|(_, own)| own.enclave_key == enclave_key);
        let envelopes = own.map(|(_, own)| blob(own.user_id, &own.envelope)).collect();
        Some(Request::OpenKeygen(OpenKeygen {
            enclave_key,
            keygen_id,
            manifest_hash: init.manifest_hash,
            manifest: init.manifest.clone(),
            records,
            envelopes,
        }))
    }

    pub(super) fn slots_response(&self, keygen_id: KeygenId) -> SlotsResponse {
        let slots = self.rows.head.slots.iter().zip(&self.rows.registrations).enumerate();
        SlotsResponse {
            keygen_id,
            state: self.state(),
            deadline: self.rows.head.deadline_unix_ms,
            slots: slots
                .map(|(index, (slot, registration))| SlotView {
                    user_id: slot.user_id,
                    signer_index: u32::try_from(index).expect("bounded by PARTICIPANTS_MAX"),
                    enclave_id: slot.enclave_id,
                    registered: registration.is_some(),
                })
                .collect(),
            manifest_hash: self.rows.init.as_ref().map(|init| init.manifest_hash),
            manifest: self.rows.init.as_ref().map(|init| init.manifest.clone()),
        }
    }

    pub(super) fn status(&self, keygen_id: KeygenId, revision: u64) -> KeygenStatus {
        let (failure, completed) = match &self.rows.end {
            None => (None, None),
            Some(KeygenEnd::Failed(row)) => (Some(failure(row)), None),
            Some(KeygenEnd::Completed { certificates, .. }) => {
                let manifest = self.rows.init.as_ref().map(|init| init.manifest.clone());
                let records = self
                    .registrations()
                    .map(|(_, own)| RecordView { user_id: own.user_id, record: own.record.clone() });
                let completed = KeygenCompleted {
                    manifest: manifest.unwrap_or_default(),
                    records: records.collect(),
                    certificates: certificates.clone(),
                };
                (None, Some(completed))
            }
        };
        KeygenStatus {
            keygen_id,
            state: self.state(),
            revision,
            registered: self.registrations().count() as u64,
            expected: self.rows.head.slots.len() as u64,
            failure,
            completed,
        }
    }

    fn move_to(&mut self, state: KeygenState) {
        let legal = TRANSITIONS.contains(&(self.state(), state));
        assert!(legal, "a keygen never goes from {:?} to {state:?}", self.state());
        self.rows.head.state = state;
    }

    /// The head's row after a change of state.
    pub(super) fn write_head(&mut self, id: KeygenId, state: KeygenState, step: &mut Step) {
        self.move_to(state);
        let open = !self.is_ended();
        let head = self.rows.head.clone();
        step.writes.push(head_row(keygen_key(id), self.rows.head_version, open, head));
        self.rows.head_version += 1;
        step.changed = true;
    }

    fn end(&mut self, id: KeygenId, end: KeygenEnd, step: &mut Step) {
        let (state, code) = match &end {
            KeygenEnd::Completed { .. } => (KeygenState::Completed, None),
            KeygenEnd::Failed(row) => (KeygenState::Failed, Code::from_number(row.code)),
        };
        self.opening = None;
        step.writes.push(new_row(keygen_key(id), PART_END, end.clone()));
        self.rows.end = Some(end);
        self.write_head(id, state, step);
        step.report(Report::KeygenEnded(id, code));
    }

    fn fail(&mut self, id: KeygenId, refusal: Refusal, step: &mut Step) {
        let row = FailureRow { code: refusal.code.number(), culprits: refusal.culprits, withdrawal: None };
        self.end(id, KeygenEnd::Failed(row), step);
    }

    fn enclave_keys(&self) -> BTreeSet<PublicKey> {
        self.registrations().map(|(_, registration)| registration.enclave_key).collect()
    }
}

pub(super) fn failure(row: &FailureRow) -> Failure {
    let code = Code::from_number(row.code).unwrap_or(Code::Internal);
    Failure { code: code.name().into(), culprits: row.culprits.clone(), withdrawal: row.withdrawal.clone() }
}

impl Gateway {
    pub(super) fn step_keygen(
        &mut self,
        now: Time,
        id: KeygenId,
        session: Session,
        work: Work,
        step: &mut Step,
    ) -> Session {
        let mut keygen = match session {
            Session::Keygen(keygen) => keygen,
            Session::Absent | Session::Loading | Session::Signing(_) => {
                return self.step_absent_keygen(now, id, work, step);
            }
        };
        match work {
            Work::Call(request, call) => self.keygen_call(now, id, &mut keygen, request, call, step),
            Work::Supply(signing_id) => {
                let completed = keygen.is_completed().then(|| Arc::clone(&keygen));
                self.supply(now, signing_id, completed);
            }
            Work::Resume if keygen.state() == KeygenState::KeyGeneration => {
                self.open_at_enclaves(id, Arc::make_mut(&mut keygen), step);
            }
            Work::Expire if !keygen.is_ended() => {
                Arc::make_mut(&mut keygen).fail(id, Code::Expired.into(), step);
            }
            Work::GiveWay if keygen.is_unregistered() => {
                Arc::make_mut(&mut keygen).fail(id, Code::TooMany.into(), step);
            }
            Work::Answered(purpose, reply) => {
                self.keygen_answered(id, Arc::make_mut(&mut keygen), purpose, reply, step);
            }
            Work::Expire | Work::GiveWay | Work::Resume | Work::AnswerPolls | Work::Accept(..) => {}
        }
        Session::Keygen(keygen)
    }

    fn step_absent_keygen(&mut self, now: Time, id: KeygenId, work: Work, step: &mut Step) -> Session {
        match work {
            Work::Call(request, Call::Reserve { request: body, .. }) => match self.reserve(now, &body) {
                Ok(mut keygen) => {
                    let head = keygen.rows.head.clone();
                    step.writes.push(head_row(keygen_key(id), 0, true, head));
                    keygen.rows.head_version = 1;
                    step.respond(request, problem::ok(201, &keygen.slots_response(id)));
                    return Session::Keygen(Arc::new(keygen));
                }
                Err(code) => step.refuse(request, code),
            },
            Work::Call(request, _) | Work::Accept(request, _, _) => step.refuse(request, Code::UnknownId),
            Work::Supply(signing_id) => self.supply(now, signing_id, None),
            Work::Answered(Purpose::CheckRegistration { request, .. }, _) => {
                step.refuse(request, Code::UnknownId);
            }
            Work::Answered(..) | Work::Resume | Work::Expire | Work::GiveWay | Work::AnswerPolls => {}
        }
        Session::Absent
    }

    /// Checks a reservation and deals out enclaves, round robin over those that are ready.
    fn reserve(&mut self, now: Time, body: &ReserveRequest) -> Result<Keygen, Code> {
        if body.slots.len() < PARTICIPANTS_MIN {
            return Err(Code::TooFewParticipants);
        }
        if body.slots.len() > PARTICIPANTS_MAX {
            return Err(Code::TooManyParticipants);
        }
        let users: BTreeSet<UserId> = body.slots.iter().map(|slot| slot.user_id).collect();
        let keys: BTreeSet<XOnlyKey> = body.slots.iter().map(|slot| slot.slot_key).collect();
        if users.len() != body.slots.len() {
            return Err(Code::DuplicateUser);
        }
        if keys.len() != body.slots.len() || keys.contains(&body.session_key) {
            return Err(Code::DuplicateKey);
        }
        if !users.contains(&body.coordinator) {
            return Err(Code::CoordinatorNotParticipant);
        }
        if !keys.iter().chain([&body.session_key]).all(auth::is_x_only_key) {
            return Err(Code::NotOnCurve);
        }
        let timeout_ms = body.timeout_ms.unwrap_or(self.config.keygen_timeout_default_ms);
        if timeout_ms == 0 || timeout_ms > self.config.keygen_timeout_max_ms {
            return Err(Code::BadTimes);
        }
        let is_first = |slot: &&SlotRequest| slot.user_id == body.coordinator;
        let first = body.slots.iter().filter(is_first);
        let others = body.slots.iter().filter(|slot| !is_first(slot));
        let mut slots = Vec::with_capacity(body.slots.len());
        for slot in first.chain(others) {
            let enclave_id = self.next_ready_enclave().ok_or(Code::EnclaveAway)?;
            slots.push(Slot { user_id: slot.user_id, slot_key: slot.slot_key, enclave_id });
        }
        let registrations = slots.iter().map(|_| None).collect();
        let head = KeygenHead {
            session_key: body.session_key,
            coordinator: body.coordinator,
            slots,
            timeout_ms: body.timeout_ms,
            deadline_unix_ms: now.unix_ms.saturating_add(timeout_ms),
            state: KeygenState::Reserved,
        };
        let rows = KeygenRows { head, head_version: 0, init: None, end: None, registrations };
        Ok(Keygen { rows, checking: BTreeMap::new(), opening: None })
    }

    fn next_ready_enclave(&mut self) -> Option<EnclaveId> {
        let ready: Vec<EnclaveId> = self
            .config
            .enclaves
            .iter()
            .filter(|id| self.members.get(id).is_some_and(Member::is_ready))
            .copied()
            .collect();
        if ready.is_empty() {
            return None;
        }
        let chosen = ready[self.next_member % ready.len()];
        self.next_member = self.next_member.wrapping_add(1);
        Some(chosen)
    }

    fn keygen_call(
        &mut self,
        now: Time,
        id: KeygenId,
        keygen: &mut Arc<Keygen>,
        request: RequestId,
        call: Call,
        step: &mut Step,
    ) {
        match call {
            Call::Reserve { request: body, .. } => {
                if keygen.rows.is_reserved_by(&body) {
                    step.respond(request, problem::ok(200, &keygen.slots_response(id)));
                } else {
                    step.refuse(request, Code::IdConflict);
                }
            }
            Call::Init { caller, request: body, .. } => {
                match self.admit(now, &caller, caller.key == keygen.rows.head.session_key) {
                    Ok(()) => init(id, Arc::make_mut(keygen), request, body, step),
                    Err(response) => step.respond(request, response),
                }
            }
            Call::Slots { caller, .. } => match self.admit(now, &caller, keygen.may_read(&caller.key)) {
                Ok(()) => step.respond(request, problem::ok(200, &keygen.slots_response(id))),
                Err(response) => step.respond(request, response),
            },
            Call::Register { caller, request: body, .. } => {
                let slots = &keygen.rows.head.slots;
                let Some(slot) = slots.iter().position(|slot| slot.user_id == body.user_id) else {
                    return step.refuse(request, Code::UserNotInRoster);
                };
                match self.admit(now, &caller, caller.key == slots[slot].slot_key) {
                    Ok(()) => self.register(id, Arc::make_mut(keygen), slot, request, body, step),
                    Err(response) => step.respond(request, response),
                }
            }
            Call::Sign { request: ref body, .. } => {
                if keygen.is_completed() {
                    let key = SessionKey::Signing(body.signing_id);
                    self.todo.push_back((key, Work::Accept(request, call, Arc::clone(keygen))));
                } else {
                    step.refuse(request, keygen.wrong_state());
                }
            }
            Call::KeygenStatus { .. }
            | Call::Intent { .. }
            | Call::Approve { .. }
            | Call::Withdraw { .. }
            | Call::SigningStatus { .. }
            | Call::Enclaves
            | Call::Attestation { .. }
            | Call::Version
            | Call::Health => step.refuse(request, Code::Internal),
        }
    }

    fn keygen_answered(
        &mut self,
        id: KeygenId,
        keygen: &mut Keygen,
        purpose: Purpose,
        reply: Result<Reply, Code>,
        step: &mut Step,
    ) {
        match purpose {
            Purpose::CheckRegistration { slot, request } => {
                let outcome = match reply {
                    Ok(Reply::RegistrationChecked) => Ok(()),
                    Ok(Reply::Refused(refused)) => Err(refused.refusal()),
                    Ok(_) => Err(Code::EnclaveAway.into()),
                    Err(code) => Err(code.into()),
                };
                registration_checked(id, keygen, slot, request, outcome, step);
            }
            Purpose::OpenForKeygen { enclave_key } => match reply {
                Ok(Reply::KeygenOpened(opened)) => self.keygen_opened(id, keygen, enclave_key, opened, step),
                Ok(Reply::Refused(refused)) if !is_passing(refused.refusal().code) => {
                    if keygen.state() == KeygenState::KeyGeneration {
                        keygen.fail(id, refused.refusal(), step);
                    }
                }
                Ok(_) | Err(_) => {
                    keygen.opening = None;
                    step.retry = true;
                }
            },
            Purpose::OpenForSigning { .. }
            | Purpose::Nonces { .. }
            | Purpose::Partials { .. }
            | Purpose::Aggregate { .. } => {}
        }
    }

    /// Asks every enclave of a full session to open and certify it.
    fn open_at_enclaves(&mut self, id: KeygenId, keygen: &mut Keygen, step: &mut Step) {
        if keygen.opening.is_some() {
            return;
        }
        let keys = keygen.enclave_keys();
        let members = keys.iter().map(|key| Some((*key, self.ready_enclave_of(key)?.0)));
        let Some(members) = members.collect::<Option<Vec<_>>>() else {
            step.retry = true;
            return;
        };
        keygen.opening = Some(BTreeMap::new());
        for (enclave_key, enclave_id) in members {
            if let Some(request) = keygen.open_request(id, enclave_key) {
                step.send(enclave_id, Purpose::OpenForKeygen { enclave_key }, request);
            }
        }
    }

    fn keygen_opened(
        &mut self,
        id: KeygenId,
        keygen: &mut Keygen,
        enclave_key: PublicKey,
        opened: KeygenOpened,
        step: &mut Step,
    ) {
        let expected = keygen.enclave_keys();
        let Some(opening) = &mut keygen.opening else { return };
        opening.insert(enclave_key, opened);
        if opening.len() < expected.len() {
            return;
        }
        let hashes: BTreeSet<Hash> = opening.values().map(|opened| opened.roster_hash).collect();
        let certificates: Option<Vec<CertificateView>> = opening
            .iter()
            .map(|(enclave_key, opened)| {
                let (enclave_id, epoch) = self.enclave_of(enclave_key)?;
                let certificate = opened.certificate.clone();
                Some(CertificateView { enclave_id, epoch, enclave_key: *enclave_key, certificate })
            })
            .collect();
        match (hashes.first().copied(), certificates) {
            (Some(roster_hash), Some(certificates)) if hashes.len() == 1 => {
                keygen.end(id, KeygenEnd::Completed { roster_hash, certificates }, step);
            }
            (Some(_) | None, Some(_) | None) => keygen.fail(id, Code::CertificatesDiffer.into(), step),
        }
    }
}

fn init(id: KeygenId, keygen: &mut Keygen, request: RequestId, body: InitRequest, step: &mut Step) {
    let asked = KeygenInit::from(body);
    if let Some(held) = &keygen.rows.init {
        return if *held == asked {
            step.respond(request, problem::ok(200, &keygen.slots_response(id)));
        } else {
            step.refuse(request, Code::IdConflict);
        };
    }
    if keygen.state() != KeygenState::Reserved {
        return step.refuse(request, keygen.wrong_state());
    }
    if let Err(code) = check_init(keygen, &asked) {
        return step.refuse(request, code);
    }
    step.writes.push(new_row(keygen_key(id), PART_REQUEST, asked.clone()));
    keygen.rows.init = Some(asked);
    keygen.write_head(id, KeygenState::CollectingParticipants, step);
    step.respond(request, problem::ok(201, &keygen.slots_response(id)));
}

fn check_init(keygen: &Keygen, init: &KeygenInit) -> Result<(), Code> {
    if init.manifest.0.len() > 2 * MANIFEST_BYTES_MAX {
        return Err(Code::TooLarge);
    }
    let users: BTreeSet<UserId> = keygen.rows.head.slots.iter().map(|slot| slot.user_id).collect();
    let mut ids = BTreeSet::new();
    let mut members_sum = 0;
    for hint in &init.subsets {
        let members: BTreeSet<UserId> = hint.members.iter().copied().collect();
        let well_formed = members.len() == hint.members.len()
            && members.len() >= PARTICIPANTS_MIN
            && members.is_subset(&users)
            && ids.insert(hint.subset_id);
        if !well_formed {
            return Err(Code::BadSubset);
        }
        members_sum += members.len();
    }
    let many = init.subsets.len() > SUBSETS_MAX || members_sum > SUBSET_MEMBERS_SUM_MAX;
    if many { Err(Code::BadSubset) } else { Ok(()) }
}
