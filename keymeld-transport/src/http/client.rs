//! The blocking HTTP client: plain HTTP/1.1 with a pool of kept connections.
//!
//! It speaks no TLS: it is for a gateway on this host, or behind a tunnel or proxy that ends TLS here.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use keymeld_core::api::http::{Method, PROOF_HEADER, Response};
use keymeld_core::limits::ANSWER_BYTES_MAX;
use ureq::http::{Request, header};
use ureq::{Agent, Body};

/// The most bytes that a reply's status line and headers may have.
pub const REPLY_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Connections kept open between requests.
pub const IDLE_CONNECTIONS_MAX: usize = 16;
/// How long one is kept: well below the listener's own limit, so that it is rarely closed in use.
pub const IDLE_MS: u64 = 10_000;

/// The content type of a reply that states none, or one that the API does not use.
pub const OTHER_CONTENT_TYPE: &str = "application/octet-stream";

/// Why there is no reply. The request may have been carried out in every case: a retry must be idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No connection, or it broke before the reply was whole.
    #[error("the gateway cannot be reached")]
    Unreachable,
    /// No whole reply in time.
    #[error("the gateway did not reply in time")]
    TimedOut,
    /// The reply is over [`ANSWER_BYTES_MAX`] or [`REPLY_HEAD_BYTES_MAX`].
    #[error("the reply is too large")]
    TooLarge,
    /// The reply is not HTTP/1.1, or the request could not be written as such.
    #[error("the reply cannot be read")]
    Malformed,
}

/// Why a text is not a base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// Not `http://`.
    #[error("the URL must start with http://")]
    Scheme,
    /// No host, a bad port, user information, or characters that no authority has.
    #[error("the URL has no usable host and port")]
    Authority,
    /// A path, query or fragment.
    #[error("the URL must end after host and port")]
    Path,
}

/// A request to be sent. Its Debug shows neither the proof nor the Authorization header nor the body.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: Method,
    /// Path and query, sent as given: the same bytes that the proof covers.
    pub target: &'a str,
    /// The proof header.
    pub proof: Option<&'a str>,
    /// The Authorization header.
    pub authorization: Option<&'a str>,
    /// The body, JSON; empty for none.
    pub body: &'a [u8],
    /// Milliseconds from now until the whole reply must be here; a long poll's wait is part of it.
    pub timeout_ms: u64,
}

impl fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outgoing { method, target, proof, authorization, body, timeout_ms } = self;
        f.debug_struct("Outgoing")
            .field("method", method)
            .field("target", target)
            .field("proven", &proof.is_some())
            .field("authorized", &authorization.is_some())
            .field("body_bytes", &body.len())
            .field("timeout_ms", timeout_ms)
            .finish()
    }
}

/// A client of one gateway. Threads share it by reference; each request uses one connection.
pub struct Client {
    agent: Agent,
    authority: String,
}

impl Client {
    /// For a gateway at `http://HOST`, `http://HOST:PORT` or either with a `/` at the end.
    ///
    /// # Errors
    /// [`BaseUrlError`]; nothing is resolved or connected yet.
    pub fn new(base_url: &str) -> Result<Client, BaseUrlError> {
        let rest = base_url.strip_prefix("http://").ok_or(BaseUrlError::Scheme)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(BaseUrlError::Path);
        }
        let parsed: ureq::http::uri::Authority = authority.parse().map_err(|_| BaseUrlError::Authority)?;
        let host_ends_in_port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        if parsed.host().is_empty()
            || authority.contains('@')
            || host_ends_in_port.is_some_and(|_| parsed.port_u16().is_none())
        {
            return Err(BaseUrlError::Authority);
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The environment of a process does not decide where proofs are sent.
            .proxy(None)
            .allow_non_standard_methods(true)
            .max_response_header_size(REPLY_HEAD_BYTES_MAX)
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .max_idle_age(Duration::from_millis(IDLE_MS))
            .build()
            .into();
        Ok(Client { agent, authority: authority.to_owned() })
    }

    /// Host and port exactly as the Host header carries them: what a proof covers.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request and reads the whole reply. Every status is a reply, redirects included, which are
    /// not followed.
    ///
    /// The reply's content type is `application/json`, `application/problem+json` or
    /// [`OTHER_CONTENT_TYPE`]; a Retry-After that is a date is left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send(&self, outgoing: &Outgoing<'_>) -> Result<Response, ClientError> {
        if !outgoing.target.starts_with('/') {
            return Err(ClientError::Malformed);
        }
        let mut request = Request::builder()
            .method(outgoing.method.as_str())
            .uri(format!("http://{}{}", self.authority, outgoing.target))
            .header(header::HOST, &self.authority);
        if let Some(proof) = outgoing.proof {
            request = request.header(PROOF_HEADER, proof);
        }
        if let Some(authorization) = outgoing.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let timeout = Some(Duration::from_millis(outgoing.timeout_ms));
        // A POST without a body still states its length.
        let reply = if outgoing.body.is_empty() && outgoing.method != Method::Post {
            let request = request.body(()).map_err(|_| ClientError::Malformed)?;
            self.agent.run(self.agent.configure_request(request).timeout_global(timeout).build())
        } else {
            let request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(outgoing.body)
                .map_err(|_| ClientError::Malformed)?;
            self.agent.run(self.agent.configure_request(request).timeout_global(timeout).build())
        };
        read(reply.map_err(|error| classify(&error))?)
    }
}

fn read(mut reply: ureq::http::Response<Body>) -> Result<Response, ClientError> {
    let headers = reply.headers();
    let content_type = match headers.get(header::CONTENT_TYPE).map(essence) {
        Some(essence) if essence.eq_ignore_ascii_case(b"application/json") => "application/json",
        Some(essence) if essence.eq_ignore_ascii_case(b"application/problem+json") => {
            "application/problem+json"
        }
        Some(_) | None => OTHER_CONTENT_TYPE,
    };
    let retry_after_s = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok());
    let status = reply.status().as_u16();
    let mut body = Vec::new();
    // One byte over the limit tells a body of exactly the limit from a larger one.
    let mut bounded = reply.body_mut().as_reader().take(ANSWER_BYTES_MAX as u64 + 1);
    bounded.read_to_end(&mut body).map_err(|error| {
        let kind = error.kind();
        match error.downcast::<ureq::Error>() {
            Ok(inner) => classify(&inner),
            Err(_) => classify_kind(kind),
        }
    })?;
    if body.len() > ANSWER_BYTES_MAX {
        return Err(ClientError::TooLarge);
    }
    Ok(Response { status, content_type, retry_after_s, body })
}

/// A media type without its parameters.
fn essence(value: &header::HeaderValue) -> &[u8] {
    let bytes = value.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b';').unwrap_or(bytes.len());
    bytes[..end].trim_ascii()
}

fn classify(error: &ureq::Error) -> ClientError {
    match error {
        ureq::Error::Timeout(_) => ClientError::TimedOut,
        ureq::Error::Io(error) => classify_kind(error.kind()),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => ClientError::Unreachable,
        ureq::Error::LargeResponseHeader(_, _) | ureq::Error::BodyExceedsLimit(_) => ClientError::TooLarge,
        // The rest is what the protocol or a feature that is off forbids; the enum is not ours.
        _ => ClientError::Malformed,
    }
}

fn classify_kind(kind: ErrorKind) -> ClientError {
    match kind {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => ClientError::TimedOut,
        ErrorKind::InvalidData | ErrorKind::InvalidInput => ClientError::Malformed,
        // Whatever else a socket says: the enum is not ours.
        _ => ClientError::Unreachable,
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use keymeld_core::api::http::{Method, Response};

    use super::{BaseUrlError, Client, Outgoing};

    #[test]
    fn debug_shows_neither_proof_nor_token_nor_body() {
        let outgoing = Outgoing {
            method: Method::Post,
            target: "/x",
            proof: Some("s3cret-proof"),
            authorization: Some("Bearer s3cret-token"),
            body: b"\x07\x07\x07",
            timeout_ms: 1,
        };
        let response =
            Response { status: 200, content_type: "text/plain", retry_after_s: None, body: vec![7; 3] };
        for shown in [format!("{outgoing:?}"), format!("{response:?}")] {
            assert!(!shown.contains("s3cret") && !shown.contains("7, 7"), "{shown}");
            assert!(shown.contains("body_bytes: 3"), "{shown}");
        }
    }

    #[test]
    fn base_urls() {
        for (url, authority) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://gateway/", "gateway"),
            ("http://[::1]:80", "[::1]:80"),
            ("http://[::1]", "[::1]"),
        ] {
            assert_eq!(
                Client::new(url).map(|client| client.authority().to_owned()),
                Ok(authority.to_owned())
            );
        }
        for (url, error) in [
            ("https://gateway", BaseUrlError::Scheme),
            ("gateway:80", BaseUrlError::Scheme),
            ("http://", BaseUrlError::Authority),
            ("http://:80", BaseUrlError::Authority),
            ("http://a@gateway", BaseUrlError::Authority),
            ("http://gateway:port", BaseUrlError::Authority),
            ("http://gateway:99999", BaseUrlError::Authority),
            ("http://gateway:", BaseUrlError::Authority),
            ("http://gateway/api", BaseUrlError::Path),
            ("http://gateway?x", BaseUrlError::Path),
        ] {
            assert_eq!(Client::new(url).err(), Some(error), "{url}");
        }
    }
}
