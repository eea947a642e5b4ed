//! What the listener itself refuses, before or instead of the service.

use keymeld_core::api::http::Response;
use keymeld_core::api::problem::{PROBLEM_JSON, Problem};
use keymeld_core::refusal::Code;
use keymeld_core::strict;

/// Why the listener refused. Each has a stable code and closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a request line and headers as RFC 9112 writes them.
    MalformedRequest,
    /// The request's end could be read in more than one way: a repeated or unreadable Content-Length, a
    /// bare LF or CR, a folded header.
    AmbiguousFraming,
    /// No Host header, more than one, or one that is no authority.
    BadHost,
    /// A header that carries authority is repeated or is not visible ASCII.
    BadHeader,
    /// The target is not an absolute path in visible ASCII.
    BadTarget,
    /// A GET with a body.
    UnexpectedBody,
    /// Not TLS, where the listener speaks nothing else. Said in the clear.
    TlsRequired,
    /// A method that the API does not know.
    MethodNotAllowed,
    /// The request did not arrive in time.
    RequestTimedOut,
    /// A POST without a Content-Length.
    LengthRequired,
    /// The body is over its limit.
    BodyTooLarge,
    /// An Expect header other than `100-continue`.
    ExpectationFailed,
    /// Too many parked requests, together or from this address.
    TooManyParked,
    /// Request line and headers are over their limit.
    HeadTooLarge,
    /// Too many headers.
    TooManyHeaders,
    /// The service let the request go unanswered.
    Unanswered,
    /// Transfer-Encoding, whatever its value.
    TransferEncoding,
    /// Every connection is busy.
    TooManyConnections,
    /// The large requests and answers under way are as many bytes as may be.
    TooManyBytes,
    /// The service did not answer in time.
    AnswerTimedOut,
    /// Not HTTP/1.0 or HTTP/1.1.
    VersionNotSupported,
}

impl Refusal {
    /// Every refusal, in the order of their declaration.
    pub const ALL: [Refusal; 21] = [
        Refusal::MalformedRequest,
        Refusal::AmbiguousFraming,
        Refusal::BadHost,
        Refusal::BadHeader,
        Refusal::BadTarget,
        Refusal::UnexpectedBody,
        Refusal::TlsRequired,
        Refusal::MethodNotAllowed,
        Refusal::RequestTimedOut,
        Refusal::LengthRequired,
        Refusal::BodyTooLarge,
        Refusal::ExpectationFailed,
        Refusal::TooManyParked,
        Refusal::HeadTooLarge,
        Refusal::TooManyHeaders,
        Refusal::Unanswered,
        Refusal::TransferEncoding,
        Refusal::TooManyConnections,
        Refusal::TooManyBytes,
        Refusal::AnswerTimedOut,
        Refusal::VersionNotSupported,
    ];

    /// The status, the stable code and the title: the API's own where it has a code for it.
    fn row(self) -> (u16, &'static str, &'static str) {
        let of = |code: Code| (code.status(), code.name(), code.advice());
        match self {
            Refusal::MalformedRequest => of(Code::Malformed),
            Refusal::AmbiguousFraming => (
                400,
                "ambiguous-framing",
                "The request's end can be read in more than one way. Send one Content-Length and CRLF line ends.",
            ),
            Refusal::BadHost => (400, "bad-host", "Not exactly one Host header with an authority. Send one."),
            Refusal::BadHeader => (
                400,
                "bad-header",
                "A header that carries authority is repeated or unreadable. Send it once, in visible ASCII.",
            ),
            Refusal::BadTarget => (
                400,
                "bad-target",
                "The target is not an absolute path in visible ASCII. Escape what is not.",
            ),
            Refusal::UnexpectedBody => (400, "unexpected-body", "A GET with a body. Send none."),
            Refusal::TlsRequired => {
                (400, "tls-required", "This is plain HTTP to a port with TLS. Use https.")
            }
            Refusal::MethodNotAllowed => of(Code::MethodNotAllowed),
            Refusal::RequestTimedOut => {
                (408, "request-timed-out", "The request did not arrive in time. Send it again, faster.")
            }
            Refusal::LengthRequired => (411, "length-required", "A POST without a Content-Length. Add it."),
            Refusal::BodyTooLarge => of(Code::TooLarge),
            Refusal::ExpectationFailed => {
                (417, "expectation-failed", "An expectation other than 100-continue. Send none.")
            }
            Refusal::TooManyParked => of(Code::TooMany),
            Refusal::HeadTooLarge => {
                (431, "head-too-large", "Request line and headers are too large. Send less.")
            }
            Refusal::TooManyHeaders => (431, "too-many-headers", "More headers than allowed. Send fewer."),
            Refusal::Unanswered => {
                (500, "unanswered", "The request was not answered; it may have been done. Send it again.")
            }
            Refusal::TransferEncoding => {
                (501, "transfer-encoding", "Transfer-Encoding is not supported. Send a Content-Length.")
            }
            Refusal::TooManyConnections => {
                (503, "too-many-connections", "Every connection is busy. Try again.")
            }
            Refusal::TooManyBytes => (
                503,
                "too-many-bytes",
                "The large requests and answers under way are all that there is room for. Try again.",
            ),
            Refusal::AnswerTimedOut => (
                503,
                "answer-timed-out",
                "The request was not answered in time. Try again; it may have been done.",
            ),
            Refusal::VersionNotSupported => {
                (505, "version-not-supported", "Neither HTTP/1.1 nor HTTP/1.0. Speak one of them.")
            }
        }
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// The stable code, as the problem's `code` carries it.
    pub fn code(self) -> &'static str {
        self.row().1
    }

    /// What happened and what to do about it.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// The problem, in the API's one shape.
    pub fn response(self) -> Response {
        let (status, code, title) = self.row();
        let again = matches!(
            self,
            Refusal::TooManyParked
                | Refusal::TooManyConnections
                | Refusal::TooManyBytes
                | Refusal::AnswerTimedOut
        );
        let problem = Problem {
            kind: format!("urn:keymeld:problem:{code}"),
            title: title.to_owned(),
            status,
            code: code.to_owned(),
            culprits: Vec::new(),
            now: None,
        };
        Response {
            status,
            content_type: PROBLEM_JSON,
            retry_after_s: again.then_some(1),
            body: strict::to_json(&problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use keymeld_core::api::problem::{self, Problem};
    use keymeld_core::refusal::Code;
    use keymeld_core::strict;

    use super::Refusal;

    #[test]
    fn every_refusal_is_a_problem_with_a_code_of_its_own() {
        let mut codes = BTreeSet::new();
        for refusal in Refusal::ALL {
            let problem: Problem = strict::from_json(&refusal.response().body, 1_000).expect("a problem");
            assert_eq!(problem.kind, format!("urn:keymeld:problem:{}", refusal.code()));
            assert_eq!((problem.status, problem.code.as_str()), (refusal.status(), refusal.code()));
            assert!(codes.insert(problem.code), "{refusal:?}");
        }
    }

    #[test]
    fn codes_of_the_api_mean_the_same_here() {
        for refusal in Refusal::ALL {
            if let Some(code) = Code::from_name(refusal.code()) {
                assert_eq!(refusal.response().body, problem::refused(&code.into()).body);
            }
        }
    }
}
