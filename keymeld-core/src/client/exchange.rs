//! One request to the gateway and its answer: proofs, repetition, problems.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::Client;
use super::keygen::{Enclave, OwnEnclave};
use crate::api::http::{Method, Request, Response};
use crate::api::problem::Problem;
use crate::api::proof::Subject;
use crate::api::rest::KeygenStatus;
use crate::api::router::{PREFIX, WAIT_MS_MAX};
use crate::artifact::intent::VerifiedIntent;
use crate::crypto::auth::AuthKey;
use crate::entropy::Entropy;
use crate::id::SigningId;
use crate::limits::ANSWER_BYTES_MAX;
use crate::refusal::{Code, Refusal};
use crate::strict;
use crate::time::Time;

/// How long an answer may take, beyond a long poll's wait.
const ANSWER_MS_MAX: u64 = 30_000;

/// What a request asks, and what is needed to judge the answer.
#[derive(Debug)]
pub(super) enum Question {
    Reserve,
    Init,
    Slots,
    OwnEnclave(Box<OwnEnclave>),
    Register,
    KeygenProgress,
    ProgressSlots(Box<KeygenStatus>),
    KeygenStatus,
    Enclave(Box<Enclave>),
    Intent(SigningId),
    Submit(Box<VerifiedIntent>),
    SigningStatus(Box<VerifiedIntent>),
    Approve(SigningId),
    Withdraw(SigningId),
}

/// Whose key proves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signer {
    /// Nobody's: the endpoint is open.
    Nobody,
    Session,
    Slot,
    User,
}

/// A request, to be proven afresh each time that it is sent.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path and query, without a long poll's wait.
    pub(super) target: String,
    pub(super) body: Vec<u8>,
    pub(super) signer: Signer,
    /// Whether it is a long poll for the end of a session.
    pub(super) until_ended: bool,
    /// How long the last poll was to wait.
    pub(super) wait_ms: u64,
    pub(super) asked_mono_ms: u64,
    /// Whether the clock's offset was taken from the gateway already.
    pub(super) restaled: bool,
    pub(super) failures: u32,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) question: Question,
    pub(super) ask: Ask,
}

impl Exchange {
    fn new(question: Question, method: Method, path: &str, signer: Signer) -> Exchange {
        let ask = Ask {
            method,
            target: alloc::format!("{PREFIX}{path}"),
            body: Vec::new(),
            signer,
            until_ended: false,
            wait_ms: 0,
            asked_mono_ms: 0,
            restaled: false,
            failures: 0,
        };
        Exchange { question, ask }
    }

    pub(super) fn get(question: Question, path: &str, signer: Signer) -> Exchange {
        Exchange::new(question, Method::Get, path, signer)
    }

    pub(super) fn post<T: serde::Serialize>(
        question: Question,
        path: &str,
        signer: Signer,
        body: &T,
    ) -> Exchange {
        Exchange::new(question, Method::Post, path, signer).with_body(body)
    }

    pub(super) fn delete<T: serde::Serialize>(
        question: Question,
        path: &str,
        signer: Signer,
        body: &T,
    ) -> Exchange {
        Exchange::new(question, Method::Delete, path, signer).with_body(body)
    }

    fn with_body<T: serde::Serialize>(mut self, body: &T) -> Exchange {
        self.ask.body = strict::to_json(body);
        self
    }

    pub(super) fn until_ended(mut self) -> Exchange {
        self.ask.until_ended = true;
        self
    }
}

impl Client {
    /// The request as it goes out now, and how long its answer may take.
    pub(super) fn request(
        &self,
        now: Time,
        ask: &mut Ask,
        left_ms: u64,
        entropy: &mut Entropy,
    ) -> Result<(Request, u64), Code> {
        let mut target = ask.target.clone();
        if ask.until_ended {
            ask.wait_ms = left_ms.min(WAIT_MS_MAX);
            target.push_str(&alloc::format!("?wait_ms={}&until=ended", ask.wait_ms));
        }
        ask.asked_mono_ms = now.mono_ms;
        let authority = self.config.authority.clone();
        let subject = Subject { method: ask.method, authority: &authority, target: &target, body: &ask.body };
        let unix_ms = now.unix_ms.saturating_add_signed(self.proof_offset_ms);
        let mut prove = |key: &AuthKey| subject.prove(key, unix_ms, entropy).map(Some);
        let proof = match ask.signer {
            Signer::Nobody => None,
            Signer::Session => prove(&self.membership.session_auth()?)?,
            Signer::Slot => prove(&self.membership.slot_auth()?)?,
            Signer::User => prove(&self.user_auth)?,
        };
        let bearer = self.config.api_token.as_ref().filter(|_| ask.signer == Signer::Session);
        let request = Request {
            method: ask.method,
            proof,
            authorization: bearer.map(|token| alloc::format!("Bearer {}", token.expose())),
            body: ask.body.clone(),
            authority,
            target,
        };
        Ok((request, left_ms.min(ask.wait_ms + ANSWER_MS_MAX)))
    }
}

/// An answer, as far as every endpoint's is alike.
pub(super) enum Answer<'a> {
    /// To be read.
    Body(&'a [u8]),
    /// The proof's time was off; this is the gateway's.
    Stale(u64),
    /// May succeed a little later.
    Away,
    /// For good.
    Refused(Refusal),
}

/// Tells success, passing failure and refusal apart. An answer that is none of the API's comes from something
/// in between and is taken for a gateway that is away.
pub(super) fn read(response: &Response) -> Answer<'_> {
    match response.status {
        200..=299 => return Answer::Body(&response.body),
        429 | 500.. => return Answer::Away,
        _ => {}
    }
    let Ok(problem) = strict::from_json::<Problem>(&response.body, ANSWER_BYTES_MAX) else {
        return Answer::Away;
    };
    match (Code::from_name(&problem.code), problem.now) {
        (Some(Code::ProofStale), Some(now)) => Answer::Stale(now),
        // Whom it blames is its word alone.
        (Some(code), _) => Answer::Refused(code.into()),
        (None, _) => Answer::Refused(Code::Internal.into()),
    }
}

/// Reads a body of the API. Whatever else comes was not made by an honest gateway.
pub(super) fn decode<T>(body: &[u8]) -> Result<T, super::Fault>
where
    T: for<'de> serde::Deserialize<'de> + serde::Serialize,
{
    strict::from_json(body, ANSWER_BYTES_MAX).map_err(|error| unverified(Code::from(error)))
}

/// What came back is not what it has to be.
pub(super) fn unverified(refusal: impl Into<Refusal>) -> super::Fault {
    super::Fault::Unverified(refusal.into())
}
