//! A peer's socket, in the clear or under TLS: every wait ends at a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};

/// The most bytes that a peer may send until its TLS handshake is done. A client's hello and end have two
/// or three thousand.
pub(super) const HANDSHAKE_BYTES_MAX: usize = 16 * 1024;

/// The first byte of a TLS connection: the content type of a handshake record (RFC 8446, 5.1).
pub(super) const TLS_HANDSHAKE: u8 = 0x16;

/// A socket and, from its handshake on, the TLS connection over it. Dropping it says goodbye where that
/// does not take waiting.
pub(super) struct Stream {
    pub(super) socket: Arc<TcpStream>,
    tls: Option<Box<ServerConnection>>,
}

impl Stream {
    /// In the clear.
    pub(super) fn new(socket: Arc<TcpStream>) -> Self {
        Stream { socket, tls: None }
    }

    /// Waits for the first byte and leaves it where it is.
    pub(super) fn first_byte(&self, deadline: Instant) -> io::Result<u8> {
        let mut byte = [0];
        loop {
            self.socket.set_read_timeout(Some(left_until(deadline)?))?;
            match self.socket.peek(&mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Shakes hands. Where that fails, the alert that says why is sent by [`finish`](Self::finish).
    ///
    /// # Errors
    /// What the socket or TLS says; that the time ran out, or that it took more than
    /// [`HANDSHAKE_BYTES_MAX`].
    pub(super) fn handshake(&mut self, config: Arc<ServerConfig>, deadline: Instant) -> io::Result<()> {
        let tls = ServerConnection::new(config).map_err(io::Error::other)?;
        let tls = self.tls.insert(Box::new(tls));
        let mut socket = Timed { socket: &self.socket, deadline };
        let mut taken = 0;
        while tls.is_handshaking() {
            flush(tls, &mut socket)?;
            taken += take_in(tls, &mut socket)?;
            if taken > HANDSHAKE_BYTES_MAX && tls.is_handshaking() {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        flush(tls, &mut socket)
    }

    /// Reads what there is, at least a byte; 0 where the peer closed.
    pub(super) fn read(&mut self, piece: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let mut socket = Timed { socket: &self.socket, deadline };
        let Some(tls) = &mut self.tls else {
            return socket.read(piece);
        };
        loop {
            match tls.reader().read(piece) {
                // Nothing deciphered is left.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            flush(tls, &mut socket)?;
            take_in(tls, &mut socket)?;
        }
    }

    /// Writes all of it.
    pub(super) fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut socket = Timed { socket: &self.socket, deadline };
        let Some(tls) = &mut self.tls else {
            return socket.write_all(bytes);
        };
        while !bytes.is_empty() {
            // As much as its buffer takes, which is bounded.
            let count = tls.writer().write(bytes)?;
            bytes = &bytes[count..];
            flush(tls, &mut socket)?;
        }
        Ok(())
    }

    /// Writes as much as goes out without waiting, and ends.
    pub(super) fn write_at_once(&mut self, bytes: &[u8]) {
        if self.socket.set_nonblocking(true).is_err() {
            return;
        }
        // What does not go out is lost with the connection.
        let _ = match &mut self.tls {
            None => (&*self.socket).write(bytes),
            Some(tls) => tls.writer().write(bytes).and_then(|_| {
                say_goodbye(tls);
                while tls.wants_write() {
                    tls.write_tls(&mut &*self.socket)?;
                }
                Ok(0)
            }),
        };
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Says that nothing more will be written.
    pub(super) fn finish(&mut self, deadline: Instant) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            say_goodbye(tls);
            flush(tls, &mut Timed { socket: &self.socket, deadline })?;
        }
        self.socket.shutdown(Shutdown::Write)
    }

    /// Whether the peer has closed, at least its own direction. Never waits.
    pub(super) fn is_gone(&mut self) -> bool {
        if self.socket.set_nonblocking(true).is_err() {
            return true;
        }
        let gone = match &mut self.tls {
            None => match self.socket.peek(&mut [0]) {
                Ok(count) => count == 0,
                Err(error) => !is_pause(&error),
            },
            Some(tls) => has_left(tls, &self.socket),
        };
        gone || self.socket.set_nonblocking(false).is_err()
    }

    /// Reads and throws away what the peer still sends, ciphertext or not.
    pub(super) fn discard(&mut self, piece: &mut [u8], deadline: Instant) -> io::Result<usize> {
        Timed { socket: &self.socket, deadline }.read(piece)
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Looks at what has arrived: a peer that leaves says so under TLS before it closes.
fn has_left(tls: &mut ServerConnection, mut socket: &TcpStream) -> bool {
    // What is deciphered stays within the bound of its buffer; whoever sends more has not left.
    while tls.wants_read() {
        match tls.read_tls(&mut socket) {
            Ok(0) => return true,
            Ok(_) => match tls.process_new_packets() {
                Ok(state) if state.peer_has_closed() => return true,
                Ok(state) if state.plaintext_bytes_to_read() > 0 => return false,
                Ok(_) => {}
                Err(_) => return true,
            },
            Err(error) => return !is_pause(&error),
        }
    }
    false
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            say_goodbye(tls);
            if tls.wants_write() && self.socket.set_nonblocking(true).is_ok() {
                // As much as goes out at once; the peer may be gone.
                let _ = tls.write_tls(&mut &*self.socket);
            }
        }
    }
}

fn say_goodbye(tls: &mut ServerConnection) {
    // Before, there may be an alert to send, but nothing to be cut short.
    if !tls.is_handshaking() {
        tls.send_close_notify();
    }
}

/// Reads once, at least a byte, and deciphers.
fn take_in(tls: &mut ServerConnection, socket: &mut Timed<'_>) -> io::Result<usize> {
    let count = tls.read_tls(socket)?;
    if count == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    Ok(count)
}

fn flush(tls: &mut ServerConnection, socket: &mut Timed<'_>) -> io::Result<()> {
    while tls.wants_write() {
        if tls.write_tls(socket)? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// A blocking socket, none of whose calls outlasts a deadline.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(left_until(self.deadline)?))?;
            match self.socket.read(piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.socket.set_write_timeout(Some(left_until(self.deadline)?))?;
            match self.socket.write(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn left_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A socket takes a time-out of zero for none at all.
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
