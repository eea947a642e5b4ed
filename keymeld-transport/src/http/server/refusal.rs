//! What the listener itself refuses, before or instead of the service.

use keymeld_core::api::http::Response;

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
    /// The service did not answer in time.
    AnswerTimedOut,
    /// Not HTTP/1.0 or HTTP/1.1.
    VersionNotSupported,
}

impl Refusal {
    /// Every refusal, in the order of their declaration.
    pub const ALL: [Refusal; 19] = [
        Refusal::MalformedRequest,
        Refusal::AmbiguousFraming,
        Refusal::BadHost,
        Refusal::BadHeader,
        Refusal::BadTarget,
        Refusal::UnexpectedBody,
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
        Refusal::AnswerTimedOut,
        Refusal::VersionNotSupported,
    ];

    /// The status, the stable code and the title.
    fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Refusal::MalformedRequest => (400, "malformed_request", "The request cannot be read"),
            Refusal::AmbiguousFraming => (400, "ambiguous_framing", "The request's end is ambiguous"),
            Refusal::BadHost => (400, "bad_host", "Exactly one Host header is needed"),
            Refusal::BadHeader => (400, "bad_header", "A header is repeated or unreadable"),
            Refusal::BadTarget => (400, "bad_target", "The target must be an absolute path"),
            Refusal::UnexpectedBody => (400, "unexpected_body", "A GET has no body"),
            Refusal::MethodNotAllowed => (405, "method_not_allowed", "The method is not known"),
            Refusal::RequestTimedOut => (408, "request_timed_out", "The request did not arrive in time"),
            Refusal::LengthRequired => (411, "length_required", "A POST needs a Content-Length"),
            Refusal::BodyTooLarge => (413, "body_too_large", "The body is too large"),
            Refusal::ExpectationFailed => (417, "expectation_failed", "The expectation is not known"),
            Refusal::TooManyParked => (429, "too_many_waiting", "Too many requests are waiting"),
            Refusal::HeadTooLarge => (431, "head_too_large", "The request line and headers are too large"),
            Refusal::TooManyHeaders => (431, "too_many_headers", "There are too many headers"),
            Refusal::Unanswered => (500, "unanswered", "The request was not answered"),
            Refusal::TransferEncoding => {
                (501, "transfer_encoding_not_supported", "Transfer-Encoding is not supported")
            }
            Refusal::TooManyConnections => (503, "too_many_connections", "Every connection is busy"),
            Refusal::AnswerTimedOut => (503, "answer_timed_out", "The request was not answered in time"),
            Refusal::VersionNotSupported => (505, "version_not_supported", "Only HTTP/1.1 and HTTP/1.0"),
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

    /// The RFC 9457 problem: `type`, `title`, `status` and `code`.
    pub fn response(self) -> Response {
        let (status, code, title) = self.row();
        let again =
            matches!(self, Refusal::TooManyParked | Refusal::TooManyConnections | Refusal::AnswerTimedOut);
        Response {
            status,
            content_type: "application/problem+json",
            retry_after_s: again.then_some(1),
            // No title holds a character that JSON would escape.
            body: format!(
                "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{status},\"code\":\"{code}\"}}"
            )
            .into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Refusal;

    #[test]
    fn codes_are_unique_and_need_no_escaping() {
        let codes: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.code()).collect();
        assert_eq!(codes.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            let body = String::from_utf8(refusal.response().body).unwrap();
            assert_eq!(body.matches('"').count(), 14, "{body}");
            assert!(!body.contains('\\'), "{body}");
        }
    }
}
