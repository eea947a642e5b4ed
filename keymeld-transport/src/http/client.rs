//! The blocking HTTP client: HTTP/1.1, plain or over TLS, with a pool of kept connections.
//!
//! Over TLS it takes a gateway's certificate that one of Mozilla's roots vouches for, which are compiled in,
//! or else one of the [`Roots`] that it was given. Nothing of the host or its environment changes that.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;

use keymeld_core::api::http::{Method, PROOF_HEADER, Response};
use keymeld_core::limits::ANSWER_BYTES_MAX;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::http::{Request, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
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
    /// The gateway's certificate is not one to be trusted: made by somebody else, for another host, or expired.
    #[error("the gateway's certificate is not trusted")]
    Untrusted,
    /// The reply is not HTTP/1.1 or TLS, or the request could not be written as such.
    #[error("the reply cannot be read")]
    Malformed,
}

/// Why a text is not a base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// Neither `http://` nor `https://`.
    #[error("the URL must start with http:// or https://")]
    Scheme,
    /// No host, a bad port, user information, or characters that no authority has.
    #[error("the URL has no usable host and port")]
    Authority,
    /// A path, query or fragment.
    #[error("the URL must end after host and port")]
    Path,
}

/// Certificates of authorities that are not usable as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no usable certificates of authorities in PEM")]
pub struct RootsError;

/// Who vouches for a gateway's certificate.
#[derive(Clone)]
pub struct Roots(RootCerts);

impl Roots {
    /// Mozilla's, as they were when this was compiled.
    pub fn mozilla() -> Roots {
        Roots(RootCerts::WebPki)
    }

    /// These and nobody else, for a gateway with a private authority: one certificate or more, in PEM.
    ///
    /// # Errors
    /// [`RootsError`] where there is none, or one that cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Roots, RootsError> {
        let mut checked = RootCertStore::empty();
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| RootsError)?;
            certificates.push(Certificate::from_der(&certificate).to_owned());
            checked.add(certificate).map_err(|_| RootsError)?;
        }
        if certificates.is_empty() { Err(RootsError) } else { Ok(Roots(certificates.into())) }
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if matches!(self.0, RootCerts::WebPki) { "mozilla" } else { "from_pem" };
        f.debug_tuple("Roots").field(&name).finish()
    }
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
    scheme: &'static str,
    authority: String,
}

impl Client {
    /// For a gateway at `http://HOST`, `https://HOST:PORT` and so on, with or without a `/` at the end. Over
    /// TLS Mozilla's roots vouch for it.
    ///
    /// # Errors
    /// [`BaseUrlError`]; nothing is resolved or connected yet.
    pub fn new(base_url: &str) -> Result<Client, BaseUrlError> {
        Client::with_roots(base_url, &Roots::mozilla())
    }

    /// As [`new`](Self::new), with others to vouch for the gateway.
    ///
    /// # Errors
    /// [`BaseUrlError`].
    pub fn with_roots(base_url: &str, roots: &Roots) -> Result<Client, BaseUrlError> {
        let (scheme, rest) = base_url.split_once("://").ok_or(BaseUrlError::Scheme)?;
        let scheme = ["http", "https"].into_iter().find(|known| *known == scheme);
        let scheme = scheme.ok_or(BaseUrlError::Scheme)?;
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
        let tls = TlsConfig::builder()
            .root_certs(roots.0.clone())
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
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
        Ok(Client { agent, scheme, authority: authority.to_owned() })
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
            .uri(format!("{}://{}{}", self.scheme, self.authority, outgoing.target))
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
    bounded.read_to_end(&mut body).map_err(|error| classify_io(&error))?;
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
        ureq::Error::Io(error) => classify_io(error),
        ureq::Error::Rustls(error) => classify_tls(error),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => ClientError::Unreachable,
        ureq::Error::LargeResponseHeader(_, _) | ureq::Error::BodyExceedsLimit(_) => ClientError::TooLarge,
        // The rest is what the protocol or a feature that is off forbids; the enum is not ours.
        _ => ClientError::Malformed,
    }
}

/// An error of ureq or of TLS may be inside.
fn classify_io(error: &io::Error) -> ClientError {
    if let Some(inner) = error.get_ref() {
        if let Some(error) = inner.downcast_ref() {
            return classify(error);
        }
        if let Some(error) = inner.downcast_ref() {
            return classify_tls(error);
        }
    }
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => ClientError::TimedOut,
        ErrorKind::InvalidData | ErrorKind::InvalidInput => ClientError::Malformed,
        // Whatever else a socket says: the enum is not ours.
        _ => ClientError::Unreachable,
    }
}

fn classify_tls(error: &rustls::Error) -> ClientError {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            ClientError::Untrusted
        }
        // The enum is not ours.
        _ => ClientError::Malformed,
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Client { agent: _, scheme, authority } = self;
        f.debug_struct("Client").field("scheme", scheme).field("authority", authority).finish_non_exhaustive()
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
            ("https://gateway", "gateway"),
            ("https://gateway:443/", "gateway:443"),
        ] {
            assert_eq!(
                Client::new(url).map(|client| client.authority().to_owned()),
                Ok(authority.to_owned())
            );
        }
        for (url, error) in [
            ("ftp://gateway", BaseUrlError::Scheme),
            ("HTTPS://gateway", BaseUrlError::Scheme),
            ("https:gateway", BaseUrlError::Scheme),
            ("https://a@gateway", BaseUrlError::Authority),
            ("https://gateway/api", BaseUrlError::Path),
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
