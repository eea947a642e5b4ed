//! A connection's bytes: requests in, responses out, each within its time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keymeld_core::api::http::{Request, Response};

use super::head;
use super::limits::ServerLimits;
use super::refusal::Refusal;

const READ_BYTES: usize = 8 * 1024;
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
    pub(super) stream: Arc<TcpStream>,
    pub(super) peer: IpAddr,
    buffer: Vec<u8>,
    /// Whether the connection ends after the next response.
    pub(super) close: bool,
}

impl Connection {
    /// # Errors
    /// What the socket says; the peer may be gone already.
    pub(super) fn new(stream: Arc<TcpStream>) -> io::Result<Self> {
        // An answer is one write; waiting for more of it would only delay it.
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?.ip();
        Ok(Connection { stream, peer, buffer: Vec::new(), close: false })
    }

    /// Waits for the first byte of a request.
    pub(super) fn await_request(&mut self, limits: &ServerLimits) -> Result<(), Stop> {
        if !self.buffer.is_empty() {
            return Ok(());
        }
        // Between two requests a connection owns no buffer.
        self.buffer = Vec::new();
        match self.fill(Instant::now() + Duration::from_millis(limits.idle_ms)) {
            Ok(0) | Err(_) => Err(Stop::Gone),
            Ok(_) => Ok(()),
        }
    }

    /// Reads one request, all of it by a deadline that starts now.
    pub(super) fn read_request(&mut self, limits: &ServerLimits) -> Result<Request, Stop> {
        let deadline = Instant::now() + Duration::from_millis(limits.request_time_ms);
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
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n", deadline).map_err(|_| Stop::Gone)?;
        }
        // The buffer grows with what arrives, never with what was announced.
        while self.buffer.len() < whole {
            self.fill_some(deadline)?;
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
        let bytes = response_bytes(response, close);
        self.write(&bytes, Instant::now() + Duration::from_millis(limits.write_time_ms))
    }

    /// Ends the connection so that its last response arrives: closing with unread bytes would reset it.
    pub(super) fn linger(&mut self, limits: &ServerLimits) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + Duration::from_millis(limits.linger_ms);
        let mut thrown = 0;
        while thrown < LINGER_BYTES_MAX {
            self.buffer.clear();
            match self.fill(deadline) {
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
        loop {
            self.stream.set_read_timeout(Some(left_until(deadline)?))?;
            match (&*self.stream).read(&mut piece) {
                Ok(count) => {
                    self.buffer.extend_from_slice(&piece[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(left_until(deadline)?))?;
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn left_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A socket takes a time-out of zero for none at all.
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The response as sent, with framing that every client reads alike.
pub(super) fn response_bytes(response: &Response, close: bool) -> Vec<u8> {
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
    let mut bytes = head.into_bytes();
    if status != 204 {
        bytes.extend_from_slice(&response.body);
    }
    bytes
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
