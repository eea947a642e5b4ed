//! A connection's bytes: requests in, responses out, each within its time.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keymeld_core::api::http::{Request, Response};

use super::head;
use super::limits::ServerLimits;
use super::refusal::Refusal;
use super::stream::{Stream, TLS_HANDSHAKE};
use super::table::Seat;
use super::tls::Tls;

const READ_BYTES: usize = 8 * 1024;
/// So much of each request and of each answer does not count towards [`ServerLimits::held_bytes_max`].
pub(super) const SMALL_BYTES: usize = 64 * 1024;
/// How much of what a refused peer goes on to send is read and thrown away.
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Why there is no request.
#[derive(Debug)]
pub(super) enum Stop {
    /// The peer is to be told, then the connection ends.
    Refused(Refusal),
    /// The peer closed, was silent for too long between requests, or was closed.
    Gone,
}

/// A stream and what was read of it beyond the request before.
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) peer: IpAddr,
    buffer: Vec<u8>,
    /// Until when the first request has to be here, where a handshake came before it.
    first_by: Option<Instant>,
    /// Whether the connection ends after the next response.
    pub(super) close: bool,
}

impl Connection {
    /// # Errors
    /// What the socket says; the peer may be gone already.
    pub(super) fn new(stream: Arc<TcpStream>, peer: IpAddr) -> io::Result<Self> {
        // An answer is one write; waiting for more of it would only delay it.
        stream.set_nodelay(true)?;
        let stream = Stream::new(stream);
        Ok(Connection { stream, peer, buffer: Vec::new(), first_by: None, close: false })
    }

    /// Waits for the first byte of a handshake.
    ///
    /// [`Stop::Refused`] is to be said in the clear: the peer does not speak TLS.
    pub(super) fn await_handshake(&mut self, limits: &ServerLimits) -> Result<(), Stop> {
        match self.stream.first_byte(after_ms(limits.idle_ms)) {
            Ok(TLS_HANDSHAKE) => Ok(()),
            Ok(_) => Err(Stop::Refused(Refusal::TlsRequired)),
            Err(_) => Err(Stop::Gone),
        }
    }

    /// Shakes hands. It takes its time from that of the first request.
    pub(super) fn shake_hands(&mut self, tls: &Tls, limits: &ServerLimits) -> Result<(), Stop> {
        let deadline = after_ms(limits.request_time_ms);
        if self.stream.handshake(tls.current(), deadline).is_err() {
            // So that the peer learns why: an alert waits to be sent.
            self.linger(limits);
            return Err(Stop::Gone);
        }
        self.first_by = Some(deadline);
        Ok(())
    }

    /// Waits for the first byte of a request.
    pub(super) fn await_request(&mut self, limits: &ServerLimits) -> Result<(), Stop> {
        if !self.buffer.is_empty() {
            return Ok(());
        }
        // Between two requests a connection owns no buffer.
        self.buffer = Vec::new();
        match self.fill(self.first_by.unwrap_or_else(|| after_ms(limits.idle_ms))) {
            Ok(0) | Err(_) => Err(Stop::Gone),
            Ok(_) => Ok(()),
        }
    }

    /// Reads one request, all of it by a deadline that starts now or has started with the handshake.
    pub(super) fn read_request(&mut self, seat: &Seat, limits: &ServerLimits) -> Result<Request, Stop> {
        let deadline = self.first_by.take().unwrap_or_else(|| after_ms(limits.request_time_ms));
        let mut seen = 0;
        let end = loop {
            if let Some(end) = head::end(&self.buffer, seen, limits).map_err(Stop::Refused)? {
                break end;
            }
            seen = self.buffer.len();
            self.fill_some(deadline)?;
        };
        let head = head::parse(&self.buffer[..end], limits).map_err(Stop::Refused)?;
        self.close = head.close;
        let whole = end + head.content_length;
        if head.expects_continue && self.buffer.len() < whole {
            self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n", deadline).map_err(|_| Stop::Gone)?;
        }
        // The buffer grows with what arrives, never with what was announced.
        while self.buffer.len() < whole {
            let more = (whole - self.buffer.len()).min(self.buffer.len());
            self.buffer.reserve_exact(more);
            self.fill_some(deadline)?;
            let held = self.buffer.len().saturating_sub(SMALL_BYTES);
            if held > 0 && !seat.hold(held, limits.held_bytes_max) {
                return Err(Stop::Refused(Refusal::TooManyBytes));
            }
        }
        let rest = self.buffer.split_off(whole);
        let mut body = std::mem::replace(&mut self.buffer, rest);
        body.drain(..end);
        Ok(Request {
            method: head.method,
            authority: head.authority,
            target: head.target,
            proof: head.proof,
            authorization: head.authorization,
            body,
        })
    }

    /// Writes a response, all of it within its time.
    ///
    /// # Errors
    /// What the socket says, or that the time ran out.
    pub(super) fn write_response(
        &mut self,
        response: &Response,
        close: bool,
        limits: &ServerLimits,
    ) -> io::Result<()> {
        let deadline = after_ms(limits.write_time_ms);
        if response.body.len() <= SMALL_BYTES {
            return self.stream.write(&response_bytes(response, close), deadline);
        }
        // No second copy of a large body.
        self.stream.write(&head_bytes(response, close), deadline)?;
        self.stream.write(&response.body, deadline)
    }

    /// Writes as much of a last response as goes out without waiting.
    pub(super) fn write_at_once(&mut self, response: &Response) {
        self.stream.write_at_once(&response_bytes(response, true));
    }

    /// Ends the connection so that its last response arrives: closing with unread bytes would reset it.
    pub(super) fn linger(&mut self, limits: &ServerLimits) {
        let deadline = after_ms(limits.linger_ms);
        if self.stream.finish(deadline).is_err() {
            return;
        }
        let mut piece = [0; READ_BYTES];
        let mut thrown = 0;
        while thrown < LINGER_BYTES_MAX {
            match self.stream.discard(&mut piece, deadline) {
                Ok(0) | Err(_) => return,
                Ok(count) => thrown += count,
            }
        }
    }

    fn fill_some(&mut self, deadline: Instant) -> Result<(), Stop> {
        match self.fill(deadline) {
            Ok(0) => Err(Stop::Gone),
            Ok(_) => Ok(()),
            Err(error) if is_timeout(&error) => Err(Stop::Refused(Refusal::RequestTimedOut)),
            Err(_) => Err(Stop::Gone),
        }
    }

    /// Appends what the socket has, at least a byte unless the peer closed.
    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let mut piece = [0; READ_BYTES];
        let count = self.stream.read(&mut piece, deadline)?;
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count)
    }
}

fn after_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The response as sent, with framing that every client reads alike.
pub(super) fn response_bytes(response: &Response, close: bool) -> Vec<u8> {
    let mut bytes = head_bytes(response, close);
    if response.status != 204 {
        bytes.extend_from_slice(&response.body);
    }
    bytes
}

fn head_bytes(response: &Response, close: bool) -> Vec<u8> {
    let status = response.status;
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    // RFC 9110, 8.6: none with 204. The API sends no 1xx or 304.
    if status != 204 {
        head += &format!(
            "Content-Type: {}\r\nContent-Length: {}\r\n",
            response.content_type,
            response.body.len()
        );
    }
    if status == 405 {
        head += "Allow: GET, POST, DELETE\r\n";
    }
    if let Some(seconds) = response.retry_after_s {
        head += &format!("Retry-After: {seconds}\r\n");
    }
    head += if close { "Connection: close\r\n" } else { "Connection: keep-alive\r\n" };
    head += "Cache-Control: no-store\r\n\r\n";
    head.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        // RFC 9112, 4: a client ignores the phrase.
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use keymeld_core::api::http::Response;

    use super::response_bytes;

    #[test]
    fn golden_response() {
        let response = Response {
            status: 429,
            content_type: "application/problem+json",
            retry_after_s: Some(3),
            body: b"{}".to_vec(),
        };
        assert_eq!(
            String::from_utf8(response_bytes(&response, true)).unwrap(),
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\n\
             Content-Length: 2\r\nRetry-After: 3\r\nConnection: close\r\nCache-Control: no-store\r\n\r\n{}"
        );
        let empty = Response { status: 204, body: Vec::new(), retry_after_s: None, ..response };
        assert_eq!(
            String::from_utf8(response_bytes(&empty, false)).unwrap(),
            "HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\nCache-Control: no-store\r\n\r\n"
        );
    }
}
