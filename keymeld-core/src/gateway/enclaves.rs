//! The enclaves that a gateway knows: links, identity rows, readiness.
//!
//! After every connection an enclave is greeted; it says which epochs it holds; the rows of the others are
//! handed over. Only then do sessions and clients reach it.

use alloc::vec::Vec;

use super::record::{self, enclave_key};
use super::timers::{Timer, TimerKind};
use super::{CallOwner, Command, Gateway, Report, RequestId, TokenOwner};
use crate::api::problem;
use crate::api::rest::{AttestationResponse, EnclaveView, EnclavesResponse};
use crate::bytes::{Hash, PublicKey};
use crate::id::EnclaveId;
use crate::link::message::{Attest, CreateIdentity, IdentityRow, Reply, Request};
use crate::record::{LoadError, Persist, Row, RowKey, Token, Write};
use crate::refusal::Code;
use crate::time::Time;

/// The pause before an enclave that refused something is greeted again.
const GREET_AGAIN_MS: u64 = 1_000;

/// What a gateway knows of an enclave.
#[derive(Debug)]
pub(super) struct Member {
    linked: bool,
    /// Rows are read once; `None` until then.
    rows: Option<Vec<IdentityRow>>,
    stage: Stage,
    /// An epoch to make as soon as the enclave is ready.
    rotate: bool,
}

#[derive(Debug)]
enum Stage {
    /// Not linked, rows not read, or waiting to greet again.
    Away,
    Greeting,
    Creating {
        epoch: u32,
    },
    Storing(IdentityRow),
    Opening {
        epochs_left: Vec<u32>,
    },
    Ready,
}

impl Member {
    pub(super) fn new() -> Member {
        Member { linked: false, rows: None, stage: Stage::Away, rotate: false }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.linked && matches!(self.stage, Stage::Ready)
    }

    fn rows(&self) -> &[IdentityRow] {
        self.rows.as_deref().unwrap_or_default()
    }

    fn newest_epoch(&self) -> Option<u32> {
        self.rows().iter().map(|row| row.epoch).max()
    }
}

impl Gateway {
    /// The enclave and epoch that an ECIES key belongs to.
    pub(super) fn enclave_of(&self, key: &PublicKey) -> Option<(EnclaveId, u32)> {
        self.members.iter().find_map(|(enclave_id, member)| {
            let row = member.rows().iter().find(|row| row.ecies_key == *key)?;
            Some((*enclave_id, row.epoch))
        })
    }

    /// The same, where the enclave can be asked something.
    pub(super) fn ready_enclave_of(&self, key: &PublicKey) -> Option<(EnclaveId, u32)> {
        let found = self.enclave_of(key)?;
        self.members.get(&found.0).is_some_and(Member::is_ready).then_some(found)
    }

    pub(super) fn rows_loaded(
        &mut self,
        now: Time,
        enclave_id: EnclaveId,
        rows: Result<Vec<Row>, LoadError>,
    ) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        // Two loads may be under way; the later one must not undo what was stored since the first.
        if member.rows.is_some() {
            return;
        }
        let read = |row: &Row| record::decode::<IdentityRow>(&row.body).ok();
        let rows = rows.ok().and_then(|rows| rows.iter().map(read).collect::<Option<Vec<_>>>());
        match rows {
            Some(rows) => {
                member.rows = Some(rows);
                self.greet(enclave_id);
            }
            // A row that cannot be read must not be taken for none: that would make a new identity.
            None => {
                self.commands.push_back(Command::Report(Report::RecordCorrupt(enclave_key(enclave_id))));
                self.greet_later(now, enclave_id);
            }
        }
    }

    pub(super) fn enclave_found(&mut self, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.linked = true;
            self.greet(enclave_id);
        }
    }

    pub(super) fn enclave_lost(&mut self, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.linked = false;
            // A row on its way to the disk is kept in sight: forgetting it would make another identity.
            if !matches!(member.stage, Stage::Storing(_)) {
                member.stage = Stage::Away;
            }
        }
        // What the old process said must not be taken for what the next one says.
        self.calls.retain(|_, owner| !matches!(owner, CallOwner::Fleet(other) if *other == enclave_id));
    }

    pub(super) fn rotation_asked(&mut self, now: Time, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.rotate = true;
            // Otherwise its turn comes when all identities are opened.
            if member.is_ready() {
                self.next_identity(now, enclave_id, Vec::new());
            }
        }
    }

    /// Greets an enclave that is linked and not in the middle of something.
    pub(super) fn greet(&mut self, enclave_id: EnclaveId) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        if member.linked && matches!(member.stage, Stage::Away) {
            if member.rows.is_none() {
                let query = crate::record::Query::Record(enclave_key(enclave_id));
                self.commands.push_back(Command::Load(query));
                return;
            }
            member.stage = Stage::Greeting;
            self.call(enclave_id, CallOwner::Fleet(enclave_id), Request::Hello);
        }
    }

    fn greet_later(&mut self, now: Time, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.stage = Stage::Away;
            self.timers.insert((now.mono_ms + GREET_AGAIN_MS, Timer::Enclave(enclave_id)));
        }
    }

    pub(super) fn member_replied(&mut self, now: Time, enclave_id: EnclaveId, reply: Result<Reply, Code>) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        match (&mut member.stage, reply) {
            (Stage::Greeting, Ok(Reply::Hello(hello))) if hello.enclave_id == enclave_id => {
                let rows = member.rows();
                let missing = rows.iter().map(|row| row.epoch).filter(|epoch| !hello.epochs.contains(epoch));
                let missing = missing.collect();
                self.next_identity(now, enclave_id, missing);
            }
            (Stage::Creating { epoch }, Ok(Reply::IdentityCreated(row)))
                if row.enclave_id == enclave_id && row.epoch == *epoch =>
            {
                self.store_identity(enclave_id, row);
            }
            (Stage::Opening { epochs_left }, Ok(Reply::IdentityOpened)) => {
                let left = core::mem::take(epochs_left);
                self.next_identity(now, enclave_id, left);
            }
            // The link was lost in between and has greeted anew.
            (Stage::Away | Stage::Storing(_) | Stage::Ready, _) => {}
            (_, Ok(Reply::Refused(refused))) => {
                let code = refused.refusal().code;
                self.commands.push_back(Command::Report(Report::EnclaveRefused(enclave_id, code)));
                self.greet_later(now, enclave_id);
            }
            (_, Ok(_)) => {
                let report = Report::EnclaveRefused(enclave_id, Code::WrongEnclaveKey);
                self.commands.push_back(Command::Report(report));
                self.greet_later(now, enclave_id);
            }
            (_, Err(_)) => self.greet_later(now, enclave_id),
        }
    }

    /// Opens the next identity, makes one where there is none, or declares the enclave ready.
    fn next_identity(&mut self, now: Time, enclave_id: EnclaveId, mut epochs_left: Vec<u32>) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        let busy = matches!(member.stage, Stage::Away | Stage::Creating { .. } | Stage::Storing(_));
        if busy || !member.linked {
            return;
        }
        let newest = member.newest_epoch();
        if let Some(epoch) = epochs_left.pop() {
            let row = member.rows().iter().find(|row| row.epoch == epoch).cloned();
            member.stage = Stage::Opening { epochs_left };
            if let Some(row) = row {
                self.call(enclave_id, CallOwner::Fleet(enclave_id), Request::OpenIdentity(row));
            }
        } else if newest.is_none() || member.rotate {
            member.rotate = false;
            let epoch = newest.unwrap_or(0) + 1;
            member.stage = Stage::Creating { epoch };
            let create = Request::CreateIdentity(CreateIdentity { epoch });
            self.call(enclave_id, CallOwner::Fleet(enclave_id), create);
        } else {
            member.stage = Stage::Ready;
            self.commands.push_back(Command::Report(Report::EnclaveReady(enclave_id)));
            // Timers, since a tick serves a bounded number of them.
            for key in core::mem::take(&mut self.waiting) {
                self.set_timer(key, TimerKind::Retry, Some(now.mono_ms));
            }
        }
    }

    fn store_identity(&mut self, enclave_id: EnclaveId, row: IdentityRow) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        let key = RowKey { record: enclave_key(enclave_id), part: row.epoch };
        let body = record::encode(row.clone());
        member.stage = Stage::Storing(row);
        self.last_token += 1;
        let token = Token(self.last_token);
        self.tokens.insert(token, TokenOwner::Identity(enclave_id));
        let writes = [Write { key, replaces: 0, open: false, body }].into();
        self.commands.push_back(Command::Persist(Persist { token, writes }));
    }

    /// The new row is on the disk, or is not: then the identity is lost, and was never used.
    pub(super) fn identity_stored(&mut self, now: Time, enclave_id: EnclaveId, stored: bool) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        let Stage::Storing(row) = core::mem::replace(&mut member.stage, Stage::Away) else { return };
        if !stored {
            return self.greet_later(now, enclave_id);
        }
        member.rows.get_or_insert_default().push(row.clone());
        if member.linked {
            member.stage = Stage::Opening { epochs_left: Vec::new() };
            self.call(enclave_id, CallOwner::Fleet(enclave_id), Request::OpenIdentity(row));
        }
    }

    pub(super) fn respond_enclaves(&mut self, request: RequestId) {
        let enclaves = self.members.iter().map(|(enclave_id, member)| {
            let mut epochs: Vec<u32> = member.rows().iter().map(|row| row.epoch).collect();
            epochs.sort_unstable();
            EnclaveView { enclave_id: *enclave_id, ready: member.is_ready(), epochs }
        });
        let body = EnclavesResponse { enclaves: enclaves.collect() };
        self.respond(request, problem::ok(200, &body));
    }

    /// Passes a client's challenge on.
    pub(super) fn attest(
        &mut self,
        request: RequestId,
        enclave_id: EnclaveId,
        nonce: Hash,
        epoch: Option<u32>,
    ) {
        let Some(member) = self.members.get(&enclave_id) else {
            return self.refuse(request, Code::UnknownId);
        };
        let Some(newest) = member.newest_epoch().filter(|_| member.is_ready()) else {
            return self.refuse(request, Code::EnclaveAway);
        };
        let epoch = epoch.unwrap_or(newest);
        if !member.rows().iter().any(|row| row.epoch == epoch) {
            return self.refuse(request, Code::WrongEpoch);
        }
        let owner = CallOwner::Attestation(request, enclave_id, epoch);
        self.call(enclave_id, owner, Request::Attest(Attest { epoch, nonce }));
    }

    pub(super) fn attested(
        &mut self,
        request: RequestId,
        enclave_id: EnclaveId,
        epoch: u32,
        reply: Result<Reply, Code>,
    ) {
        match reply {
            Ok(Reply::Attested(document)) => {
                let body = AttestationResponse { enclave_id, epoch, document };
                self.respond(request, problem::ok(200, &body));
            }
            Ok(Reply::Refused(refused)) => self.refuse(request, refused.refusal().code),
            Ok(_) => self.refuse(request, Code::EnclaveAway),
            Err(code) => self.refuse(request, code),
        }
    }
}
