//! The gateway's rows: CBOR, each with a version, decoded strictly.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::api::rest::{
    CertificateView, InitRequest, KeygenState, RegisterRequest, ReserveRequest, SignRequest, SigningState,
    SubsetHint,
};
use crate::artifact::approval::{Approval, Withdrawal};
use crate::bytes::{Blob, Hash, XOnlyKey};
use crate::id::{EnclaveId, KeygenId, SigningId, UserId};
use crate::record::{Family, RecordKey, Row, RowKey, Write};
use crate::refusal::Code;
use crate::strict::{self, CborError};

const VERSION: u32 = 1;

/// The small mutable row of either family: its state.
pub(super) const PART_HEAD: u32 = 0;
/// What was asked for, written once.
pub(super) const PART_REQUEST: u32 = 1;
/// How it ended, written once.
pub(super) const PART_END: u32 = 2;
/// The first of the rows that come one for each slot: registrations or approvals.
pub(super) const PART_SLOTS: u32 = 100;

/// A row's content with its format version.
#[derive(Encode, Decode)]
struct Versioned<T> {
    #[n(0)]
    version: u32,
    #[n(1)]
    content: T,
}

pub(super) fn encode<T: Encode<()>>(content: T) -> Vec<u8> {
    strict::to_cbor(&Versioned { version: VERSION, content })
}

pub(super) fn decode<T: for<'b> Decode<'b, ()> + Encode<()>>(bytes: &[u8]) -> Result<T, CborError> {
    let versioned: Versioned<T> = strict::from_cbor(bytes)?;
    if versioned.version == VERSION { Ok(versioned.content) } else { Err(CborError) }
}

/// A keygen's head.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct KeygenHead {
    #[n(0)]
    pub(super) session_key: XOnlyKey,
    #[n(1)]
    pub(super) coordinator: UserId,
    #[n(2)]
    pub(super) slots: Vec<Slot>,
    #[n(3)]
    pub(super) timeout_ms: Option<u64>,
    /// On the wall clock: it has to mean something after a restart.
    #[n(4)]
    pub(super) deadline_unix_ms: u64,
    #[n(5)]
    pub(super) state: KeygenState,
}

/// One reserved slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Slot {
    #[n(0)]
    pub(super) user_id: UserId,
    #[n(1)]
    pub(super) slot_key: XOnlyKey,
    #[n(2)]
    pub(super) enclave_id: EnclaveId,
}

/// A keygen's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct KeygenInit {
    #[n(0)]
    pub(super) manifest_hash: Hash,
    #[n(1)]
    pub(super) manifest: Blob,
    #[n(2)]
    pub(super) subsets: Vec<SubsetHint>,
}

impl From<InitRequest> for KeygenInit {
    fn from(request: InitRequest) -> KeygenInit {
        let InitRequest { manifest_hash, manifest, subsets } = request;
        KeygenInit { manifest_hash, manifest, subsets }
    }
}

/// Why a session failed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct FailureRow {
    /// A code's number.
    #[n(0)]
    pub(super) code: u16,
    #[n(1)]
    pub(super) culprits: Vec<UserId>,
    /// The signed no that it failed of.
    #[n(2)]
    pub(super) withdrawal: Option<Withdrawal>,
}

impl FailureRow {
    /// What a session that failed of it answers to whoever still wants something of it.
    pub(super) fn closes_with(&self) -> Code {
        let expired = [Code::Expired, Code::IntentExpired].map(Code::number).contains(&self.code);
        if expired { Code::Expired } else { Code::WrongState }
    }
}

/// How a keygen ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum KeygenEnd {
    #[n(0)]
    Completed {
        #[n(0)]
        roster_hash: Hash,
        #[n(1)]
        certificates: Vec<CertificateView>,
    },
    #[n(1)]
    Failed(#[n(0)] FailureRow),
}

/// A signing session's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct SigningHead {
    #[n(0)]
    pub(super) keygen_id: KeygenId,
    /// CollectingParticipants for one that has not ended: where its rounds are is not durable.
    #[n(1)]
    pub(super) state: SigningState,
}

/// How a signing session ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum SigningEnd {
    #[n(0)]
    Completed(#[n(0)] Blob),
    #[n(1)]
    Failed(#[n(0)] FailureRow),
}

/// A keygen as its rows tell it.
#[derive(Clone, Debug)]
pub(super) struct KeygenRows {
    pub(super) head: KeygenHead,
    pub(super) head_version: u64,
    pub(super) init: Option<KeygenInit>,
    pub(super) end: Option<KeygenEnd>,
    /// By slot.
    pub(super) registrations: Vec<Option<RegisterRequest>>,
}

/// A signing session as its rows tell it.
#[derive(Clone, Debug)]
pub(super) struct SigningRows {
    pub(super) head: SigningHead,
    pub(super) head_version: u64,
    pub(super) request: SignRequest,
    pub(super) end: Option<SigningEnd>,
    pub(super) approvals: Vec<Approval>,
}

pub(super) fn keygen_key(id: KeygenId) -> RecordKey {
    RecordKey { family: Family::Keygen, id: id.0 }
}

pub(super) fn signing_key(id: SigningId) -> RecordKey {
    RecordKey { family: Family::Signing, id: id.0 }
}

pub(super) fn enclave_key(id: EnclaveId) -> RecordKey {
    RecordKey { family: Family::Enclave, id: id.0 }
}

/// A row that is written once.
pub(super) fn new_row<T: Encode<()>>(record: RecordKey, part: u32, content: T) -> Write {
    Write { key: RowKey { record, part }, replaces: 0, open: true, body: encode(content) }
}

/// A head that replaces the one of `version`.
pub(super) fn head_row<T: Encode<()>>(record: RecordKey, version: u64, open: bool, content: T) -> Write {
    Write { key: RowKey { record, part: PART_HEAD }, replaces: version, open, body: encode(content) }
}

/// The part number of a slot's registration or approval.
pub(super) fn slot_part(index: usize) -> u32 {
    PART_SLOTS + u32::try_from(index).expect("slots are bounded by PARTICIPANTS_MAX")
}

fn find(rows: &[Row], part: u32) -> Option<&Row> {
    rows.iter().find(|row| row.key.part == part)
}

fn read<T: for<'b> Decode<'b, ()> + Encode<()>>(rows: &[Row], part: u32) -> Result<Option<T>, CborError> {
    find(rows, part).map(|row| decode(&row.body)).transpose()
}

impl KeygenRows {
    /// Reads a keygen back.
    pub(super) fn read(rows: &[Row]) -> Result<KeygenRows, CborError> {
        let head_row = find(rows, PART_HEAD).ok_or(CborError)?;
        let head: KeygenHead = decode(&head_row.body)?;
        let registrations =
            (0..head.slots.len()).map(|index| read(rows, slot_part(index))).collect::<Result<_, _>>()?;
        let keygen = KeygenRows {
            head_version: head_row.version,
            init: read(rows, PART_REQUEST)?,
            end: read(rows, PART_END)?,
            registrations,
            head,
        };
        if keygen.is_consistent() { Ok(keygen) } else { Err(CborError) }
    }

    /// Whether the rows are such as are written together.
    fn is_consistent(&self) -> bool {
        let begun = self.init.is_some();
        let full = begun && self.registrations.iter().all(Option::is_some);
        match (self.head.state, &self.end) {
            (KeygenState::Reserved, None) => !begun,
            (KeygenState::CollectingParticipants, None) => begun && !full,
            (KeygenState::KeyGeneration, None) => full,
            (KeygenState::Completed, Some(KeygenEnd::Completed { .. })) => full,
            (KeygenState::Failed, Some(KeygenEnd::Failed(_))) => true,
            (_, None | Some(KeygenEnd::Completed { .. } | KeygenEnd::Failed(_))) => false,
        }
    }

    /// Whether a reservation asks for what this keygen is.
    pub(super) fn is_reserved_by(&self, request: &ReserveRequest) -> bool {
        let slots = self.head.slots.iter().map(|slot| (slot.user_id, slot.slot_key));
        let mut asked: Vec<_> = request.slots.iter().map(|slot| (slot.user_id, slot.slot_key)).collect();
        let mut held: Vec<_> = slots.collect();
        asked.sort_unstable();
        held.sort_unstable();
        self.head.session_key == request.session_key
            && self.head.coordinator == request.coordinator
            && self.head.timeout_ms == request.timeout_ms
            && asked == held
    }
}

impl SigningRows {
    /// Reads a signing session back.
    pub(super) fn read(rows: &[Row]) -> Result<SigningRows, CborError> {
        let head_row = find(rows, PART_HEAD).ok_or(CborError)?;
        let approvals = rows
            .iter()
            .filter(|row| row.key.part >= PART_SLOTS)
            .map(|row| decode(&row.body))
            .collect::<Result<_, _>>()?;
        let signing = SigningRows {
            head: decode(&head_row.body)?,
            head_version: head_row.version,
            request: read(rows, PART_REQUEST)?.ok_or(CborError)?,
            end: read(rows, PART_END)?,
            approvals,
        };
        if signing.is_consistent() { Ok(signing) } else { Err(CborError) }
    }

    /// Whether the rows are such as are written together.
    fn is_consistent(&self) -> bool {
        let state_fits = match (self.head.state, &self.end) {
            (SigningState::CollectingParticipants, None) => true,
            (SigningState::Completed, Some(SigningEnd::Completed(_))) => true,
            (SigningState::Failed, Some(SigningEnd::Failed(_))) => true,
            (_, None | Some(SigningEnd::Completed(_) | SigningEnd::Failed(_))) => false,
        };
        state_fits && self.request.keygen_id == self.head.keygen_id
    }
}

#[cfg(test)]
mod tests;
