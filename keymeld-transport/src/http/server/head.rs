//! Request line and headers, read strictly: whatever two readers could frame differently is refused.

use std::fmt;

use httparse::{EMPTY_HEADER, Header, Status};
use keymeld_core::api::http::{Method, PROOF_HEADER};

use super::limits::ServerLimits;
use super::refusal::Refusal;

/// The longest Host header that is looked at.
const AUTHORITY_BYTES_MAX: usize = 300;

/// A request without its body. Its Debug shows neither the proof nor the Authorization header.
#[derive(Clone, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The Host header.
    pub authority: String,
    /// Path and query, visible ASCII that starts with `/`.
    pub target: String,
    /// The proof header.
    pub proof: Option<String>,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// Bytes of the body, at most [`ServerLimits::body_bytes_max`].
    pub content_length: usize,
    /// Whether the connection ends with this request.
    pub close: bool,
    /// Whether the peer waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Head { method, authority, target, proof, authorization, content_length, close, expects_continue } =
            self;
        f.debug_struct("Head")
            .field("method", method)
            .field("authority", authority)
            .field("target", target)
            .field("proven", &proof.is_some())
            .field("authorized", &authorization.is_some())
            .field("content_length", content_length)
            .field("close", close)
            .field("expects_continue", expects_continue)
            .finish()
    }
}

/// Where the head ends, just after its empty line; `None` where more bytes are needed.
///
/// `from` says how many bytes an earlier call has already seen.
///
/// # Errors
/// [`Refusal::AmbiguousFraming`] at the first LF without a CR or CR without an LF, and
/// [`Refusal::MalformedRequest`] at a first byte that begins no method, as that of TLS, both without waiting
/// for the end; [`Refusal::HeadTooLarge`].
pub fn end(buffer: &[u8], from: usize, limits: &ServerLimits) -> Result<Option<usize>, Refusal> {
    // One byte back: a CR that was the last byte then has its successor now.
    for at in from.saturating_sub(1)..buffer.len() {
        if at >= limits.header_bytes_max {
            return Err(Refusal::HeadTooLarge);
        }
        match buffer[at] {
            b'\r' if buffer.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return Err(Refusal::AmbiguousFraming);
            }
            b'\n' if at == 0 || buffer[at - 1] != b'\r' => return Err(Refusal::AmbiguousFraming),
            byte if at == 0 && byte != b'\r' && !byte.is_ascii_graphic() => {
                return Err(Refusal::MalformedRequest);
            }
            b'\n' if at >= 3 && buffer[at - 2] == b'\n' => return Ok(Some(at + 1)),
            _ => {}
        }
    }
    Ok(None)
}

/// Reads a whole head, its empty line included.
///
/// # Errors
/// The [`Refusal`] of the first rule that is broken.
pub fn parse(bytes: &[u8], limits: &ServerLimits) -> Result<Head, Refusal> {
    // httparse skips empty lines before a request line and would read a fold as a bad name.
    if bytes.first() == Some(&b'\r') {
        return Err(Refusal::MalformedRequest);
    }
    if bytes.windows(2).any(|pair| pair[0] == b'\n' && matches!(pair[1], b' ' | b'\t')) {
        return Err(Refusal::AmbiguousFraming);
    }
    let mut headers = vec![EMPTY_HEADER; limits.headers_max];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Complete(end)) if end == bytes.len() => {}
        Ok(Status::Complete(_) | Status::Partial) => return Err(Refusal::MalformedRequest),
        Err(httparse::Error::Version) => return Err(Refusal::VersionNotSupported),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooManyHeaders),
        Err(
            httparse::Error::HeaderName
            | httparse::Error::HeaderValue
            | httparse::Error::NewLine
            | httparse::Error::Status
            | httparse::Error::Token,
        ) => return Err(Refusal::MalformedRequest),
    }
    let version = request.version.ok_or(Refusal::MalformedRequest)?;
    let name = request.method.ok_or(Refusal::MalformedRequest)?;
    let target = request.path.ok_or(Refusal::MalformedRequest)?;
    let headers = &*request.headers;

    if count(headers, "Transfer-Encoding") > 0 {
        return Err(Refusal::TransferEncoding);
    }
    let content_length = content_length(headers, limits)?;
    let method = Method::parse(name).ok_or(Refusal::MethodNotAllowed)?;
    if !target.starts_with('/') || !visible(target.as_bytes()) || target.contains('#') {
        return Err(Refusal::BadTarget);
    }
    let authority = only(headers, "Host").map_err(|_| Refusal::BadHost)?.ok_or(Refusal::BadHost)?;
    if !is_authority(authority) {
        return Err(Refusal::BadHost);
    }
    let content_length = match (method, content_length) {
        (Method::Get, Some(1..)) => return Err(Refusal::UnexpectedBody),
        (Method::Post, None) => return Err(Refusal::LengthRequired),
        (Method::Get | Method::Post | Method::Delete, length) => length.unwrap_or(0),
    };
    let expects_continue = match only(headers, "Expect").map_err(|_| Refusal::ExpectationFailed)? {
        // HTTP/1.0 has no interim responses: RFC 9110, 10.1.1.
        Some(value) if value.eq_ignore_ascii_case("100-continue") => version == 1,
        Some(_) => return Err(Refusal::ExpectationFailed),
        None => false,
    };
    Ok(Head {
        method,
        authority: authority.to_owned(),
        target: target.to_owned(),
        proof: only(headers, PROOF_HEADER)?.map(str::to_owned),
        authorization: only(headers, "Authorization")?.map(str::to_owned),
        content_length,
        close: version == 0 || asks_to_close(headers),
        expects_continue,
    })
}

fn named<'h, 'b>(headers: &'h [Header<'b>], name: &'h str) -> impl Iterator<Item = &'b [u8]> + 'h {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn count(headers: &[Header<'_>], name: &str) -> usize {
    named(headers, name).count()
}

/// The one value of a header that may not be repeated.
fn only<'b>(headers: &[Header<'b>], name: &str) -> Result<Option<&'b str>, Refusal> {
    if count(headers, name) > 1 {
        return Err(Refusal::BadHeader);
    }
    let value: Option<&'b [u8]> =
        headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value);
    let Some(value) = value else {
        return Ok(None);
    };
    let printable = value.iter().all(|byte| (b' '..=b'~').contains(byte));
    let text = std::str::from_utf8(value).map_err(|_| Refusal::BadHeader)?;
    if printable { Ok(Some(text)) } else { Err(Refusal::BadHeader) }
}

fn content_length(headers: &[Header<'_>], limits: &ServerLimits) -> Result<Option<usize>, Refusal> {
    if count(headers, "Content-Length") > 1 {
        return Err(Refusal::AmbiguousFraming);
    }
    let Some(value) = named(headers, "Content-Length").next() else {
        return Ok(None);
    };
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::AmbiguousFraming);
    }
    let mut length = 0_usize;
    for digit in value {
        // Only digits are left, so whatever overflows is over the limit too.
        length = length
            .checked_mul(10)
            .and_then(|length| length.checked_add(usize::from(digit - b'0')))
            .filter(|length| *length <= limits.body_bytes_max)
            .ok_or(Refusal::BodyTooLarge)?;
    }
    Ok(Some(length))
}

fn asks_to_close(headers: &[Header<'_>]) -> bool {
    named(headers, "Connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

fn visible(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_graphic)
}

fn is_authority(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= AUTHORITY_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%:[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use keymeld_core::api::http::Method;

    use super::super::limits::ServerLimits;
    use super::super::refusal::Refusal;
    use super::{end, parse};

    fn refused(text: &str) -> Refusal {
        let limits = ServerLimits::default();
        match end(text.as_bytes(), 0, &limits) {
            Ok(at) => assert_eq!(at, Some(text.len()), "{text:?}"),
            Err(refusal) => return refusal,
        }
        parse(text.as_bytes(), &limits).expect_err(text)
    }

    #[test]
    fn a_whole_head_is_read() {
        let text = "POST /api/v1/x?y=1 HTTP/1.1\r\nhost: h:1\r\ncontent-length: 007\r\nkeymeld-proof: p\r\n\
                    authorization: Bearer t\r\nconnection: a, Close\r\nexpect: 100-Continue\r\n\r\n";
        let head = parse(text.as_bytes(), &ServerLimits::default()).expect("well formed");
        assert_eq!((head.method, head.content_length), (Method::Post, 7));
        assert_eq!((head.authority.as_str(), head.target.as_str()), ("h:1", "/api/v1/x?y=1"));
        assert_eq!((head.proof.as_deref(), head.authorization.as_deref()), (Some("p"), Some("Bearer t")));
        assert!(head.close && head.expects_continue);
    }

    #[test]
    fn debug_shows_that_there_is_a_proof_and_a_token_but_neither() {
        let text = "GET /x HTTP/1.1\r\nHost: h\r\nKeyMeld-Proof: s3cret-proof\r\n\
                    Authorization: Bearer s3cret-token\r\n\r\n";
        let head = parse(text.as_bytes(), &ServerLimits::default()).expect("well formed");
        let shown = format!("{head:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("proven: true") && shown.contains("authorized: true"), "{shown}");
    }

    #[test]
    fn the_end_is_found_whatever_the_pieces() {
        let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /next";
        let limits = ServerLimits::default();
        for cut in 0..text.len() {
            let first = end(&text[..cut], 0, &limits).expect("no refusal");
            let second = end(text, cut, &limits).expect("no refusal");
            match first {
                Some(at) => assert_eq!(at, 27),
                None => assert_eq!(second, Some(27), "{cut}"),
            }
        }
    }

    #[test]
    fn what_two_readers_could_frame_differently_is_refused() {
        let line = "POST / HTTP/1.1\r\nHost: h\r\n";
        for (rest, refusal) in [
            ("Transfer-Encoding: chunked\r\n\r\n", Refusal::TransferEncoding),
            ("Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\n", Refusal::TransferEncoding),
            ("Content-Length: 1\r\nContent-Length: 1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: 1, 1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: +1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: -1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: 0x1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: 1 1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length:\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: 1000000000000000\r\n\r\n", Refusal::BodyTooLarge),
            ("Content-Length: 99999999999999999999999999999\r\n\r\n", Refusal::BodyTooLarge),
            ("Content-Length: 1\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length: 1\r\r\n\r\n", Refusal::AmbiguousFraming),
            ("X: 1\r\n Content-Length: 1\r\n\r\n", Refusal::AmbiguousFraming),
            ("Content-Length : 1\r\n\r\n", Refusal::MalformedRequest),
            ("X\0: 1\r\n\r\n", Refusal::MalformedRequest),
            ("\r\n", Refusal::LengthRequired),
            ("Host: h\r\nContent-Length: 1\r\n\r\n", Refusal::BadHost),
            ("KeyMeld-Proof: a\r\nkeymeld-proof: b\r\nContent-Length: 1\r\n\r\n", Refusal::BadHeader),
            ("Expect: tea\r\nContent-Length: 1\r\n\r\n", Refusal::ExpectationFailed),
        ] {
            assert_eq!(refused(&format!("{line}{rest}")), refusal, "{rest:?}");
        }
    }

    #[test]
    fn other_refusals() {
        for (text, refusal) in [
            ("GET / HTTP/1.1\r\n\r\n", Refusal::BadHost),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Refusal::BadHost),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refusal::BadHost),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Refusal::BadHost),
            ("GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", Refusal::BadTarget),
            ("GET /#a HTTP/1.1\r\nHost: h\r\n\r\n", Refusal::BadTarget),
            ("GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n", Refusal::BadTarget),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n", Refusal::UnexpectedBody),
            ("PUT / HTTP/1.1\r\nHost: h\r\n\r\n", Refusal::MethodNotAllowed),
            ("get / HTTP/1.1\r\nHost: h\r\n\r\n", Refusal::MethodNotAllowed),
            ("GET / HTTP/1.2\r\nHost: h\r\n\r\n", Refusal::VersionNotSupported),
            ("PRI * HTTP/2.0\r\n\r\n", Refusal::VersionNotSupported),
            ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Refusal::MalformedRequest),
            ("GET / \r\nHost: h\r\n\r\n", Refusal::VersionNotSupported),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Refusal::MalformedRequest),
            ("nonsense\r\n\r\n", Refusal::MalformedRequest),
        ] {
            assert_eq!(refused(text), refusal, "{text:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: 1\r\n".repeat(64));
        assert_eq!(refused(&many), Refusal::TooManyHeaders);
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(17 * 1024));
        assert_eq!(end(long.as_bytes(), 0, &ServerLimits::default()), Err(Refusal::HeadTooLarge));
    }
}
