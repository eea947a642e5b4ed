//! Requests come in: which session each is for, and whether its caller may ask.

use alloc::sync::Arc;

use super::proofs::ProofCache;
use super::session::{Session, SessionKey, Work};
use super::{Gateway, RequestId};
use crate::api::http::Response;
use crate::api::problem;
use crate::api::proof::Caller;
use crate::api::rest::{HealthResponse, VersionResponse};
use crate::api::router::{Call, Wait};
use crate::bytes::XOnlyKey;
use crate::refusal::Code;
use crate::secret::ApiToken;
use crate::time::Time;

impl Gateway {
    pub(super) fn requested(&mut self, now: Time, request: RequestId, call: Call) {
        let key = match &call {
            Call::Enclaves => return self.respond_enclaves(request),
            Call::Attestation { enclave_id, nonce, epoch } => {
                return self.attest(request, *enclave_id, *nonce, *epoch);
            }
            Call::Version => {
                let version = VersionResponse { version: env!("CARGO_PKG_VERSION").into(), api: "1".into() };
                return self.respond(request, problem::ok(200, &version));
            }
            Call::Health => {
                let ready = self.members.values().filter(|member| member.is_ready()).count();
                let health =
                    HealthResponse { enclaves_ready: ready as u64, enclaves: self.members.len() as u64 };
                return self.respond(request, problem::ok(200, &health));
            }
            Call::Reserve { request: body, caller, token } => {
                let token = token.as_ref();
                if let Err(response) = self.admit_reservation(now, caller, body.session_key, token) {
                    return self.respond(request, response);
                }
                SessionKey::Keygen(body.keygen_id)
            }
            Call::Init { keygen_id, .. }
            | Call::Slots { keygen_id, .. }
            | Call::Register { keygen_id, .. }
            | Call::KeygenStatus { keygen_id, .. } => SessionKey::Keygen(*keygen_id),
            Call::Sign { request: body, .. } => {
                if let Some(keygen) = self.completed.get_mut(&body.keygen_id) {
                    let keygen = Arc::clone(keygen);
                    let key = SessionKey::Signing(body.signing_id);
                    return self.todo.push_back((key, Work::Accept(request, call, keygen)));
                }
                SessionKey::Keygen(body.keygen_id)
            }
            Call::Intent { signing_id, .. }
            | Call::Approve { signing_id, .. }
            | Call::Withdraw { signing_id, .. }
            | Call::SigningStatus { signing_id, .. } => SessionKey::Signing(*signing_id),
        };
        self.todo.push_back((key, Work::Call(request, call)));
    }

    pub(super) fn admit_reservation(
        &mut self,
        now: Time,
        caller: &Caller,
        session_key: XOnlyKey,
        token: Option<&ApiToken>,
    ) -> Result<(), Response> {
        if self.config.api_token.is_some() && self.config.api_token.as_ref() != token {
            return Err(problem::refused(&Code::TokenRequired.into()));
        }
        self.admit(now, caller, caller.key == session_key)
    }

    /// Whether a caller may go on: its proof is fresh, its key allowed, the proof unused.
    pub(super) fn admit(&mut self, now: Time, caller: &Caller, allowed: bool) -> Result<(), Response> {
        if !ProofCache::is_fresh(now.unix_ms, caller) {
            return Err(problem::stale(now.unix_ms));
        }
        let spent = if allowed { self.proofs.spend(now.mono_ms, caller) } else { Err(Code::KeyNotAllowed) };
        spent.map_err(|code| problem::refused(&code.into()))
    }
}

/// The caller and the wait of a status call.
pub(super) fn status_wait(call: &Call) -> Option<(Caller, Wait)> {
    match call {
        Call::KeygenStatus { caller, wait, .. } | Call::SigningStatus { caller, wait, .. } => {
            Some((*caller, *wait))
        }
        Call::Reserve { .. }
        | Call::Init { .. }
        | Call::Slots { .. }
        | Call::Register { .. }
        | Call::Sign { .. }
        | Call::Intent { .. }
        | Call::Approve { .. }
        | Call::Withdraw { .. }
        | Call::Enclaves
        | Call::Attestation { .. }
        | Call::Version
        | Call::Health => None,
    }
}

pub(super) fn session_allows_reading(session: &Session, key: &XOnlyKey) -> bool {
    match session {
        Session::Loading | Session::Absent => false,
        Session::Keygen(keygen) => keygen.may_read(key),
        Session::Signing(signing) => signing.may_read(key),
    }
}
