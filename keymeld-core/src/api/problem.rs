//! Refusals as RFC 9457 problem+json.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::http::Response;
use crate::id::UserId;
use crate::refusal::{Code, Refusal};
use crate::strict;

/// The content type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The content type of everything else.
pub const JSON: &str = "application/json";
/// What Retry-After says with every 429 and 503.
const RETRY_AFTER_S: u32 = 1;

/// The body of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// `urn:keymeld:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened and what to do.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// The stable name of the code.
    pub code: String,
    /// Users to blame, where that is certain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub culprits: Vec<UserId>,
    /// The gateway's time, with a stale proof: milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<u64>,
}

impl Problem {
    fn of(refusal: &Refusal, now: Option<u64>) -> Problem {
        let code = refusal.code;
        Problem {
            kind: alloc::format!("urn:keymeld:problem:{code}"),
            title: code.advice().into(),
            status: code.status(),
            code: code.name().into(),
            culprits: refusal.culprits.clone(),
            now,
        }
    }
}

fn response(problem: &Problem) -> Response {
    Response {
        status: problem.status,
        content_type: PROBLEM_JSON,
        retry_after_s: matches!(problem.status, 429 | 503).then_some(RETRY_AFTER_S),
        body: strict::to_json(problem),
    }
}

/// A refusal as a response.
pub fn refused(refusal: &Refusal) -> Response {
    response(&Problem::of(refusal, None))
}

/// The refusal of a stale proof, with the time to try again with.
pub fn stale(now_unix_ms: u64) -> Response {
    response(&Problem::of(&Code::ProofStale.into(), Some(now_unix_ms)))
}

/// A body as a response.
pub fn ok<T: Serialize>(status: u16, body: &T) -> Response {
    Response { status, content_type: JSON, retry_after_s: None, body: strict::to_json(body) }
}

#[cfg(test)]
mod tests {
    use super::{RETRY_AFTER_S, refused};
    use crate::refusal::Code;

    #[test]
    fn whatever_may_succeed_later_says_when_to_try_again() {
        for code in Code::ALL {
            let expected = matches!(code.status(), 429 | 503).then_some(RETRY_AFTER_S);
            assert_eq!(refused(&(*code).into()).retry_after_s, expected, "{code}");
        }
        assert_eq!(refused(&Code::TooMany.into()).retry_after_s, Some(RETRY_AFTER_S));
        assert_eq!(refused(&Code::EnclaveAway.into()).retry_after_s, Some(RETRY_AFTER_S));
    }
}
