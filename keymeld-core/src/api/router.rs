//! The router: a pure function from a parsed request to a call of the gateway machine.
//!
//! It decodes bodies strictly and verifies proofs, so that neither costs the machine's thread any time.
//! Whether the key may do it, and whether the proof is fresh, is the machine's to say.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::http::{Method, Request};
use super::proof::{Caller, Subject};
use super::rest::{InitRequest, RegisterRequest, ReserveRequest, SignRequest};
use crate::artifact::approval::{Approval, Withdrawal, WithdrawalKind};
use crate::bytes::Hash;
use crate::id::{EnclaveId, KeygenId, SigningId};
use crate::limits::BODY_BYTES_MAX;
use crate::refusal::Code;
use crate::secret::ApiToken;
use crate::strict;

/// What every path begins with.
pub const PREFIX: &str = "/api/v1/";
/// The longest that a long poll may wait.
pub const WAIT_MS_MAX: u64 = 30_000;

/// A well-formed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `POST keygen/reserve`
    Reserve {
        /// Who.
        caller: Caller,
        /// What.
        request: ReserveRequest,
        /// The operator's API token, where one came.
        token: Option<ApiToken>,
    },
    /// `POST keygen/{id}/init`
    Init {
        /// Who.
        caller: Caller,
        /// Which session.
        keygen_id: KeygenId,
        /// What.
        request: InitRequest,
    },
    /// `GET keygen/{id}/slots`
    Slots {
        /// Who.
        caller: Caller,
        /// Which session.
        keygen_id: KeygenId,
    },
    /// `POST keygen/{id}/participants`
    Register {
        /// Who.
        caller: Caller,
        /// Which session.
        keygen_id: KeygenId,
        /// What.
        request: RegisterRequest,
    },
    /// `GET keygen/{id}/status`
    KeygenStatus {
        /// Who.
        caller: Caller,
        /// Which session.
        keygen_id: KeygenId,
        /// How long to wait for a change.
        wait: Wait,
    },
    /// `POST signing`
    Sign {
        /// Who.
        caller: Caller,
        /// What.
        request: SignRequest,
    },
    /// `GET signing/{id}/intent`
    Intent {
        /// Who.
        caller: Caller,
        /// Which session.
        signing_id: SigningId,
    },
    /// `POST signing/{id}/approve`
    Approve {
        /// Who.
        caller: Caller,
        /// Which session.
        signing_id: SigningId,
        /// What.
        approval: Approval,
    },
    /// `POST signing/{id}/decline` and `DELETE signing/{id}`
    Withdraw {
        /// Who.
        caller: Caller,
        /// Which session.
        signing_id: SigningId,
        /// Which of the two.
        kind: WithdrawalKind,
        /// What.
        withdrawal: Withdrawal,
    },
    /// `GET signing/{id}/status`
    SigningStatus {
        /// Who.
        caller: Caller,
        /// Which session.
        signing_id: SigningId,
        /// How long to wait for a change.
        wait: Wait,
    },
    /// `GET enclaves`
    Enclaves,
    /// `GET enclaves/{id}/attestation`
    Attestation {
        /// Which enclave.
        enclave_id: EnclaveId,
        /// The client's challenge.
        nonce: Hash,
        /// Which epoch; absent for the newest.
        epoch: Option<u32>,
    },
    /// `GET version`
    Version,
    /// `GET health`
    Health,
}

/// A long poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wait {
    /// How long to wait at most; 0 for not at all.
    pub wait_ms: u64,
    /// Answer at once where the revision is another one already.
    pub since: Option<u64>,
    /// Whether only the end of the session counts as a change.
    pub until_ended: bool,
}

impl Call {
    /// Who proved that it asks, where that is of interest.
    pub fn caller(&self) -> Option<&Caller> {
        match self {
            Call::Reserve { caller, .. }
            | Call::Init { caller, .. }
            | Call::Slots { caller, .. }
            | Call::Register { caller, .. }
            | Call::KeygenStatus { caller, .. }
            | Call::Sign { caller, .. }
            | Call::Intent { caller, .. }
            | Call::Approve { caller, .. }
            | Call::Withdraw { caller, .. }
            | Call::SigningStatus { caller, .. } => Some(caller),
            Call::Enclaves | Call::Attestation { .. } | Call::Version | Call::Health => None,
        }
    }

    /// Whether the answer may take long.
    pub fn is_long_poll(&self) -> bool {
        match self {
            Call::KeygenStatus { wait, .. } | Call::SigningStatus { wait, .. } => wait.wait_ms > 0,
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
            | Call::Health => false,
        }
    }
}

struct Router<'a> {
    request: &'a Request,
    query: Vec<(&'a str, &'a str)>,
}

/// Reads a request.
///
/// # Errors
/// [`Code`], one for each reason; nothing has happened then.
pub fn route(request: &Request) -> Result<Call, Code> {
    let (path, query) = match request.target.split_once('?') {
        Some((path, query)) => (path, read_query(query)?),
        None => (request.target.as_str(), Vec::new()),
    };
    let rest = path.strip_prefix(PREFIX).ok_or(Code::UnknownEndpoint)?;
    let segments: Vec<&str> = rest.split('/').collect();
    Router { request, query }.call(&segments)
}

fn read_query(query: &str) -> Result<Vec<(&str, &str)>, Code> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').ok_or(Code::BadQuery)?;
        if pairs.len() >= 8 || pairs.iter().any(|(other, _)| *other == name) {
            return Err(Code::BadQuery);
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

impl Router<'_> {
    fn call(&self, segments: &[&str]) -> Result<Call, Code> {
        match segments {
            ["keygen", "reserve"] => {
                self.only(Method::Post, &[])?;
                Ok(Call::Reserve { caller: self.caller()?, request: self.body()?, token: self.token() })
            }
            ["keygen", id, "init"] => {
                self.only(Method::Post, &[])?;
                Ok(Call::Init { caller: self.caller()?, keygen_id: read_id(id)?, request: self.body()? })
            }
            ["keygen", id, "slots"] => {
                self.only(Method::Get, &[])?;
                Ok(Call::Slots { caller: self.caller()?, keygen_id: read_id(id)? })
            }
            ["keygen", id, "participants"] => {
                self.only(Method::Post, &[])?;
                Ok(Call::Register { caller: self.caller()?, keygen_id: read_id(id)?, request: self.body()? })
            }
            ["keygen", id, "status"] => {
                self.only(Method::Get, &WAIT_QUERY)?;
                Ok(Call::KeygenStatus { caller: self.caller()?, keygen_id: read_id(id)?, wait: self.wait()? })
            }
            ["signing"] => {
                self.only(Method::Post, &[])?;
                Ok(Call::Sign { caller: self.caller()?, request: self.body()? })
            }
            ["signing", id] => {
                self.only(Method::Delete, &[])?;
                self.withdrawal(read_id(id)?, WithdrawalKind::Cancel)
            }
            ["signing", id, "decline"] => {
                self.only(Method::Post, &[])?;
                self.withdrawal(read_id(id)?, WithdrawalKind::Decline)
            }
            ["signing", id, "intent"] => {
                self.only(Method::Get, &[])?;
                Ok(Call::Intent { caller: self.caller()?, signing_id: read_id(id)? })
            }
            ["signing", id, "approve"] => {
                self.only(Method::Post, &[])?;
                Ok(Call::Approve { caller: self.caller()?, signing_id: read_id(id)?, approval: self.body()? })
            }
            ["signing", id, "status"] => {
                self.only(Method::Get, &WAIT_QUERY)?;
                Ok(Call::SigningStatus {
                    caller: self.caller()?,
                    signing_id: read_id(id)?,
                    wait: self.wait()?,
                })
            }
            ["enclaves"] => self.only(Method::Get, &[]).map(|()| Call::Enclaves),
            ["enclaves", id, "attestation"] => {
                self.only(Method::Get, &["nonce", "epoch"])?;
                let nonce = self.parameter("nonce").ok_or(Code::BadQuery)?;
                let nonce = Hash::from_hex(nonce).map_err(|_| Code::BadQuery)?;
                let epoch = self.number("epoch", u64::from(u32::MAX))?;
                let epoch = epoch.map(|epoch| u32::try_from(epoch).expect("bounded above"));
                Ok(Call::Attestation { enclave_id: read_id(id)?, nonce, epoch })
            }
            ["version"] => self.only(Method::Get, &[]).map(|()| Call::Version),
            ["health"] => self.only(Method::Get, &[]).map(|()| Call::Health),
            _ => Err(Code::UnknownEndpoint),
        }
    }

    fn withdrawal(&self, signing_id: SigningId, kind: WithdrawalKind) -> Result<Call, Code> {
        Ok(Call::Withdraw { caller: self.caller()?, signing_id, kind, withdrawal: self.body()? })
    }

    fn only(&self, method: Method, parameters: &[&str]) -> Result<(), Code> {
        if self.request.method != method {
            return Err(Code::MethodNotAllowed);
        }
        if self.query.iter().any(|(name, _)| !parameters.contains(name)) {
            return Err(Code::BadQuery);
        }
        if method == Method::Get && !self.request.body.is_empty() {
            return Err(Code::Malformed);
        }
        Ok(())
    }

    fn body<T: for<'de> Deserialize<'de> + Serialize>(&self) -> Result<T, Code> {
        Ok(strict::from_json(&self.request.body, BODY_BYTES_MAX)?)
    }

    fn caller(&self) -> Result<Caller, Code> {
        let Request { method, authority, target, proof, body, .. } = self.request;
        let header = proof.as_deref().ok_or(Code::ProofMissing)?;
        Subject { method: *method, authority, target, body }.verify(header)
    }

    fn token(&self) -> Option<ApiToken> {
        let header = self.request.authorization.as_deref()?;
        header.strip_prefix("Bearer ").map(|token| ApiToken::new(token.into()))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Code> {
        let Some(text) = self.parameter(name) else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = text.parse().map_err(|_| Code::BadQuery)?;
        if digits && number <= max { Ok(Some(number)) } else { Err(Code::BadQuery) }
    }

    fn wait(&self) -> Result<Wait, Code> {
        let until_ended = match self.parameter("until") {
            None => false,
            Some("ended") => true,
            Some(_) => return Err(Code::BadQuery),
        };
        Ok(Wait {
            wait_ms: self.number("wait_ms", WAIT_MS_MAX)?.unwrap_or(0),
            since: self.number("since", crate::limits::JSON_INTEGER_MAX)?,
            until_ended,
        })
    }
}

const WAIT_QUERY: [&str; 3] = ["wait_ms", "since", "until"];

fn read_id<T: core::str::FromStr>(text: &str) -> Result<T, Code> {
    text.parse().map_err(|_| Code::BadId)
}
