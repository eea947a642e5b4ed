//! An HTTP request and response as the router sees them. Any server can carry them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The header that carries a caller's proof.
pub const PROOF_HEADER: &str = "KeyMeld-Proof";

/// The methods that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Changes; idempotent by the id in its body.
    Post,
    /// Cancels or deletes.
    Delete,
}

impl Method {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }

    /// The method of a request line; `None` for one that the API does not know.
    pub fn parse(name: &str) -> Option<Method> {
        [Method::Get, Method::Post, Method::Delete].into_iter().find(|method| method.as_str() == name)
    }
}

/// A parsed request. Its Debug shows neither the Authorization header nor the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The Host header as received.
    pub authority: String,
    /// Path and query as received.
    pub target: String,
    /// The [`PROOF_HEADER`] as received.
    pub proof: Option<String>,
    /// The Authorization header as received.
    pub authorization: Option<String>,
    /// The body; empty where there is none.
    pub body: Vec<u8>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { method, authority, target, proof, authorization, body } = self;
        f.debug_struct("Request")
            .field("method", method)
            .field("authority", authority)
            .field("target", target)
            .field("proven", &proof.is_some())
            .field("authorized", &authorization.is_some())
            .field("body_bytes", &body.len())
            .finish()
    }
}

/// A response. Its Debug does not show the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `application/json` or `application/problem+json`.
    pub content_type: &'static str,
    /// The Retry-After header, in seconds.
    pub retry_after_s: Option<u32>,
    /// The body.
    pub body: Vec<u8>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Response { status, content_type, retry_after_s, body } = self;
        f.debug_struct("Response")
            .field("status", status)
            .field("content_type", content_type)
            .field("retry_after_s", retry_after_s)
            .field("body_bytes", &body.len())
            .finish()
    }
}
