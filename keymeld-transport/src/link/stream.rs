//! The sockets that a link runs over, behind one type.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::address::Address;

/// The longest answer of a multiplexer: `OK ` and a 32-bit number.
const MULTIPLEXER_LINE_BYTES_MAX: usize = 32;

/// A connected socket. Reading, writing and shutting down need only a shared reference.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    #[cfg(feature = "vsock")]
    Vsock(vsock::VsockStream),
}

impl Stream {
    /// Connects. For TCP and multiplexers within `timeout`; a Unix socket's backlog and vsock's own
    /// time-out (2 s) bound the others. Resolving a name is up to the resolver.
    pub(super) fn connect(address: &Address, timeout: Duration) -> io::Result<Stream> {
        match address {
            Address::Tcp { host, port } => connect_tcp(host, *port, timeout).map(Stream::Tcp),
            Address::Unix { path } => UnixStream::connect(path).map(Stream::Unix),
            #[cfg(feature = "vsock")]
            Address::Vsock { cid, port } => {
                vsock::VsockStream::connect_with_cid_port(*cid, *port).map(Stream::Vsock)
            }
            #[cfg(not(feature = "vsock"))]
            Address::Vsock { .. } => Err(ErrorKind::Unsupported.into()),
            Address::Multiplexed { path, port } => {
                connect_multiplexed(path, *port, timeout).map(Stream::Unix)
            }
        }
    }

    /// Ends both directions; whoever is blocked on the socket returns.
    pub(super) fn shutdown(&self) {
        // It may be closed already.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            #[cfg(feature = "vsock")]
            Stream::Vsock(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
            #[cfg(feature = "vsock")]
            Stream::Vsock(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(timeout),
            Stream::Unix(stream) => stream.set_write_timeout(timeout),
            #[cfg(feature = "vsock")]
            Stream::Vsock(stream) => stream.set_write_timeout(timeout),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
            #[cfg(feature = "vsock")]
            Stream::Vsock(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
            #[cfg(feature = "vsock")]
            Stream::Vsock(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // None of these sockets buffers in this process.
        Ok(())
    }
}

fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in (bare, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left_until(deadline)?) {
            // A connection to a free port of this host may meet itself, and then nobody can listen there.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => {
                // Frames are coalesced before they are written.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_multiplexed(path: &Path, port: u32, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(left_until(deadline)?))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    stream.set_write_timeout(None)?;
    // Byte by byte: what follows the line belongs to the link.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() == MULTIPLEXER_LINE_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        stream.set_read_timeout(Some(left_until(deadline)?))?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    if !line.starts_with(b"OK ") {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// # Errors
/// `TimedOut`, because a socket takes a time-out of zero for none at all.
pub(super) fn left_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A listening socket. A Unix socket's file goes with it.
#[derive(Debug)]
pub(super) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
    #[cfg(feature = "vsock")]
    Vsock(vsock::VsockListener),
}

impl Acceptor {
    /// Binds, and says where: with the port that was chosen.
    pub(super) fn bind(address: &Address) -> io::Result<(Acceptor, Address)> {
        match address {
            Address::Tcp { host, port } => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                let listener = TcpListener::bind((bare, *port))?;
                let port = listener.local_addr()?.port();
                Ok((Acceptor::Tcp(listener), Address::Tcp { host: host.clone(), port }))
            }
            Address::Unix { path } => Ok((bind_unix(path.clone())?, address.clone())),
            #[cfg(feature = "vsock")]
            Address::Vsock { cid, port } => {
                let listener = vsock::VsockListener::bind_with_cid_port(*cid, *port)?;
                Ok((Acceptor::Vsock(listener), address.clone()))
            }
            #[cfg(not(feature = "vsock"))]
            Address::Vsock { .. } => Err(ErrorKind::Unsupported.into()),
            Address::Multiplexed { path, port } => {
                let mut name = path.clone().into_os_string();
                name.push(format!("_{port}"));
                Ok((bind_unix(name.into())?, address.clone()))
            }
        }
    }

    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // A peer that has reset it already is no failure of the listener.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream))
            }
            Acceptor::Unix(listener, _) => Ok(Stream::Unix(listener.accept()?.0)),
            #[cfg(feature = "vsock")]
            Acceptor::Vsock(listener) => Ok(Stream::Vsock(listener.accept()?.0)),
        }
    }

    /// What ends a blocked accept; `None` for vsock, whose listening sockets cannot be shut down.
    pub(super) fn waker(&self) -> io::Result<Option<Waker>> {
        let socket: OwnedFd = match self {
            Acceptor::Tcp(listener) => listener.try_clone()?.into(),
            Acceptor::Unix(listener, _) => listener.try_clone()?.into(),
            #[cfg(feature = "vsock")]
            Acceptor::Vsock(_) => return Ok(None),
        };
        Ok(Some(Waker(TcpStream::from(socket))))
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        match self {
            Acceptor::Tcp(_) => {}
            Acceptor::Unix(_, path) => {
                // It may have been removed, or replaced by who runs next.
                let _ = std::fs::remove_file(path);
            }
            #[cfg(feature = "vsock")]
            Acceptor::Vsock(_) => {}
        }
    }
}

/// A second descriptor of a listening socket. std offers shutdown(2) on streams only, and the call itself
/// asks for no more than a socket.
#[derive(Debug)]
pub(super) struct Waker(TcpStream);

impl Waker {
    pub(super) fn wake(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn bind_unix(path: PathBuf) -> io::Result<Acceptor> {
    let listener = match UnixListener::bind(&path) {
        // A file that a killed process left behind: nobody listens there.
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_abandoned(&path) => {
            std::fs::remove_file(&path)?;
            UnixListener::bind(&path)?
        }
        bound => bound?,
    };
    Ok(Acceptor::Unix(listener, path))
}

fn is_abandoned(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}
