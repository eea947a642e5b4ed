//! The enclaves that a gateway knows: links, identity rows, readiness.
//!
//! After every connection an enclave is greeted; it says which epochs it holds; the rows of the others are
//! handed over. Only then do sessions and clients reach it, and only at epochs that are open. A row that it
//! refuses for good is left alone until the next connection; the others go on without it.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::keygen::is_passing;
use super::record::{self, enclave_key};
use super::timers::{Timer, TimerKind};
use super::{ATTESTATIONS_IN_FLIGHT_MAX, CallOwner, Command, Gateway, Report, RequestId, TokenOwner};
use crate::api::problem;
use crate::api::rest::{AttestationResponse, EnclaveView, EnclavesResponse};
use crate::bytes::{Hash, PublicKey};
use crate::id::EnclaveId;
use crate::link::message::{Attest, CreateIdentity, IdentityRow, Reply, Request};
use crate::record::{LoadError, Persist, Row, RowKey, Token, Write};
use crate::refusal::Code;
use crate::time::Time;

/// The first pause before an enclave that failed at something is greeted again, and the shortest time
/// between two greetings that its answers to others give cause for.
pub const GREET_AGAIN_MS: u64 = 1_000;
/// The longest such pause.
pub const GREET_AGAIN_MS_MAX: u64 = 32_000;

/// What a gateway knows of an enclave.
#[derive(Debug, Default)]
pub(super) struct Member {
    linked: bool,
    /// Rows are read once; `None` until then.
    rows: Option<Vec<IdentityRow>>,
    stage: Stage,
    /// Epochs that it holds, as far as it has said since the connection.
    open: BTreeSet<u32>,
    /// Epochs whose rows it refused for good since the connection, or since it lost its identities.
    refused: BTreeSet<u32>,
    /// Whether sessions and clients reach it.
    serves: bool,
    /// An epoch to make as soon as all others were tried.
    rotate: bool,
    /// Rounds of identities in a row in which something failed that may pass.
    failures: u32,
    /// When it was greeted last.
    greeted_mono_ms: Option<u64>,
    /// Challenges of clients that it has not answered yet.
    challenges: usize,
}

#[derive(Debug, Default)]
enum Stage {
    /// Nothing is under way: not linked, rows not read, or every identity was tried.
    #[default]
    Resting,
    Greeting,
    Creating {
        epoch: u32,
    },
    Storing(IdentityRow),
    Opening {
        epoch: u32,
        round: OpeningRound,
    },
}

/// One round of all identities that are to be opened.
#[derive(Debug, Default)]
struct OpeningRound {
    epochs_left: Vec<u32>,
    /// Something was opened.
    opened: bool,
    /// Something failed that may pass.
    failed: bool,
}

impl Member {
    pub(super) fn new() -> Member {
        Member::default()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.linked && self.serves
    }

    fn rows(&self) -> &[IdentityRow] {
        self.rows.as_deref().unwrap_or_default()
    }

    fn newest_epoch(&self) -> Option<u32> {
        self.rows().iter().map(|row| row.epoch).max()
    }

    /// What it said holds for one process only.
    fn forget(&mut self) {
        self.open.clear();
        self.refused.clear();
        self.serves = false;
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

    /// The same, where the enclave can be asked something at that epoch.
    pub(super) fn ready_enclave_of(&self, key: &PublicKey) -> Option<(EnclaveId, u32)> {
        let (enclave_id, epoch) = self.enclave_of(key)?;
        let member = self.members.get(&enclave_id)?;
        (member.is_ready() && member.open.contains(&epoch)).then_some((enclave_id, epoch))
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
                self.corrupt.remove(&enclave_key(enclave_id));
                self.greet(now, enclave_id);
            }
            // A row that cannot be read must not be taken for none: that would make a new identity.
            None => {
                self.report_corrupt(enclave_key(enclave_id));
                self.greet_later(now, enclave_id);
            }
        }
    }

    pub(super) fn enclave_found(&mut self, now: Time, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.linked = true;
            member.failures = 0;
            self.greet(now, enclave_id);
        }
    }

    pub(super) fn enclave_lost(&mut self, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.linked = false;
            member.forget();
            // A row on its way to the disk is kept in sight: forgetting it would make another identity.
            if !matches!(member.stage, Stage::Storing(_)) {
                member.stage = Stage::Resting;
            }
        }
        // What the old process said must not be taken for what the next one says.
        self.calls.retain(|_, (other, owner)| *other != enclave_id || !matches!(owner, CallOwner::Fleet));
    }

    pub(super) fn rotation_asked(&mut self, now: Time, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.rotate = true;
            // Otherwise its turn comes when all identities were tried.
            self.greet(now, enclave_id);
        }
    }

    /// Greets an enclave that is linked and not in the middle of something.
    pub(super) fn greet(&mut self, now: Time, enclave_id: EnclaveId) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        if member.linked && matches!(member.stage, Stage::Resting) {
            if member.rows.is_none() {
                let query = crate::record::Query::Record(enclave_key(enclave_id));
                self.commands.push_back(Command::Load(query));
                return;
            }
            member.stage = Stage::Greeting;
            member.greeted_mono_ms = Some(now.mono_ms);
            self.call(enclave_id, CallOwner::Fleet, Request::Hello);
        }
    }

    /// Greets it after a pause that grows while it fails.
    fn greet_later(&mut self, now: Time, enclave_id: EnclaveId) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.stage = Stage::Resting;
            let pause = (GREET_AGAIN_MS << member.failures.min(5)).min(GREET_AGAIN_MS_MAX);
            member.failures += 1;
            self.timers.insert((now.mono_ms + pause, Timer::Enclave(enclave_id)));
        }
    }

    /// Asks an enclave again which identities it holds where an answer says that one is missing: it may have
    /// been restarted unnoticed. Nothing else follows from such an answer, since whoever registers can bring
    /// one about.
    pub(super) fn doubt(&mut self, now: Time, enclave_id: EnclaveId, reply: &Result<Reply, Code>) {
        let Ok(Reply::Refused(refused)) = reply else { return };
        let missing = [Code::IdentityMissing, Code::WrongEnclaveKey, Code::WrongEpoch];
        let Some(member) = self.members.get(&enclave_id).filter(|member| member.is_ready()) else { return };
        if !missing.contains(&refused.refusal().code) {
            return;
        }
        match member.greeted_mono_ms.map(|greeted| greeted + GREET_AGAIN_MS) {
            Some(due) if due > now.mono_ms => {
                self.timers.insert((due, Timer::Enclave(enclave_id)));
            }
            Some(_) | None => self.greet(now, enclave_id),
        }
    }

    pub(super) fn member_replied(&mut self, now: Time, enclave_id: EnclaveId, reply: Result<Reply, Code>) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        let stage = core::mem::take(&mut member.stage);
        match (stage, reply) {
            (Stage::Greeting, Ok(Reply::Hello(hello))) if hello.enclave_id == enclave_id => {
                let held: BTreeSet<u32> = hello.epochs.into_iter().collect();
                // It was restarted in between: what it refused then it may open now.
                if !member.open.is_subset(&held) {
                    member.forget();
                }
                let epochs = member.rows().iter().map(|row| row.epoch);
                let (open, missing): (Vec<u32>, Vec<u32>) = epochs.partition(|epoch| held.contains(epoch));
                member.open = open.into_iter().collect();
                let epochs_left = missing.into_iter().filter(|epoch| !member.refused.contains(epoch));
                let round = OpeningRound { epochs_left: epochs_left.collect(), ..OpeningRound::default() };
                self.next_identity(now, enclave_id, round);
            }
            (Stage::Creating { epoch }, Ok(Reply::IdentityCreated(row)))
                if row.enclave_id == enclave_id && row.epoch == epoch =>
            {
                self.store_identity(enclave_id, row);
            }
            (Stage::Opening { epoch, round }, Ok(Reply::IdentityOpened)) => {
                member.open.insert(epoch);
                self.next_identity(now, enclave_id, OpeningRound { opened: true, ..round });
            }
            (Stage::Opening { epoch, round }, Ok(Reply::Refused(refused))) => {
                let code = refused.refusal().code;
                self.commands.push_back(Command::Report(Report::EnclaveRefused(enclave_id, code)));
                let passes = is_passing(code);
                if !passes {
                    member.refused.insert(epoch);
                }
                let failed = round.failed || passes;
                self.next_identity(now, enclave_id, OpeningRound { failed, ..round });
            }
            (Stage::Opening { epoch: _, round }, Err(_)) => {
                self.next_identity(now, enclave_id, OpeningRound { failed: true, ..round });
            }
            // The link was lost in between and has greeted anew.
            (stage @ (Stage::Resting | Stage::Storing(_)), _) => member.stage = stage,
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

    /// Opens the next identity, makes one where there is none, or comes to rest.
    fn next_identity(&mut self, now: Time, enclave_id: EnclaveId, mut round: OpeningRound) {
        let Some(member) = self.members.get_mut(&enclave_id) else { return };
        if let Some(epoch) = round.epochs_left.pop() {
            let row = member.rows().iter().find(|row| row.epoch == epoch).cloned();
            member.stage = Stage::Opening { epoch, round };
            if let Some(row) = row {
                self.call(enclave_id, CallOwner::Fleet, Request::OpenIdentity(row));
            }
            return;
        }
        let newest = member.newest_epoch();
        if newest.is_none() || member.rotate {
            member.rotate = false;
            let epoch = newest.unwrap_or(0) + 1;
            member.stage = Stage::Creating { epoch };
            let create = Request::CreateIdentity(CreateIdentity { epoch });
            self.call(enclave_id, CallOwner::Fleet, create);
            return;
        }
        let begins = !member.serves && !member.open.is_empty();
        member.serves = !member.open.is_empty();
        if !round.failed {
            member.failures = 0;
        }
        if begins || round.opened {
            self.commands.push_back(Command::Report(Report::EnclaveReady(enclave_id)));
            // Timers, since a tick serves a bounded number of them.
            for key in core::mem::take(&mut self.waiting) {
                self.set_timer(key, TimerKind::Retry, Some(now.mono_ms));
            }
        }
        if round.failed {
            self.greet_later(now, enclave_id);
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
        let Stage::Storing(row) = core::mem::replace(&mut member.stage, Stage::Resting) else { return };
        if !stored {
            return self.greet_later(now, enclave_id);
        }
        member.rows.get_or_insert_default().push(row);
        // It may be another connection by now: which identities are open is asked again.
        self.greet(now, enclave_id);
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
        let Some(member) = self.members.get_mut(&enclave_id) else {
            return self.refuse(request, Code::UnknownId);
        };
        let Some(newest) = member.open.last().copied().filter(|_| member.is_ready()) else {
            return self.refuse(request, Code::EnclaveAway);
        };
        let epoch = epoch.unwrap_or(newest);
        if !member.rows().iter().any(|row| row.epoch == epoch) {
            return self.refuse(request, Code::WrongEpoch);
        }
        if !member.open.contains(&epoch) {
            return self.refuse(request, Code::EnclaveAway);
        }
        if member.challenges >= ATTESTATIONS_IN_FLIGHT_MAX {
            return self.refuse(request, Code::TooMany);
        }
        member.challenges += 1;
        let owner = CallOwner::Attestation(request, epoch);
        self.call(enclave_id, owner, Request::Attest(Attest { epoch, nonce }));
    }

    pub(super) fn attested(
        &mut self,
        request: RequestId,
        enclave_id: EnclaveId,
        epoch: u32,
        reply: Result<Reply, Code>,
    ) {
        if let Some(member) = self.members.get_mut(&enclave_id) {
            member.challenges -= 1;
        }
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
