//! Where an enclave listens, as configuration files and command lines write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The context id that binds a vsock listener to every local one: `VMADDR_CID_ANY`.
pub const VSOCK_CID_ANY: u32 = u32::MAX;

/// The address of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "process", derive(serde::Deserialize), serde(try_from = "String"))]
pub enum Address {
    /// `tcp:HOST:PORT`, for development. An IPv6 address stands in brackets.
    Tcp {
        /// A name or an address.
        host: String,
        /// The port; 0 lets a listener choose.
        port: u16,
    },
    /// `unix:PATH`.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
    /// `vsock:CID:PORT`. Needs the feature `vsock`; without it, connecting and binding are
    /// [`Unsupported`](std::io::ErrorKind::Unsupported).
    Vsock {
        /// The context id: the enclave's, or for a listener its own or [`VSOCK_CID_ANY`].
        cid: u32,
        /// The port.
        port: u32,
    },
    /// `uds:PATH:PORT`: vsock as Firecracker and vhost-device-vsock show it on the host. Connecting goes to
    /// `PATH` with a `CONNECT PORT` line; a listener is at `PATH_PORT`.
    Multiplexed {
        /// The multiplexer's socket.
        path: PathBuf,
        /// The vsock port in the guest, or that the guest connects to.
        port: u32,
    },
}

/// Why a text is not an [`Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not one of the known forms.
    #[error("an address is tcp:HOST:PORT, unix:PATH, vsock:CID:PORT or uds:PATH:PORT")]
    UnknownForm,
    /// No host, or an IPv6 address without brackets.
    #[error("bad host")]
    BadHost,
    /// No path.
    #[error("empty path")]
    EmptyPath,
    /// Not a decimal context id of 32 bits.
    #[error("bad context id")]
    BadCid,
    /// Not a decimal port: 16 bits of TCP, 32 of vsock.
    #[error("bad port")]
    BadPort,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (form, rest) = text.split_once(':').ok_or(AddressError::UnknownForm)?;
        match form {
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or(AddressError::BadPort)?;
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                if host.is_empty()
                    || bare.unwrap_or(host).is_empty()
                    || (bare.is_none() && host.contains(':'))
                {
                    return Err(AddressError::BadHost);
                }
                Ok(Address::Tcp { host: host.to_owned(), port: decimal(port).ok_or(AddressError::BadPort)? })
            }
            "unix" if rest.is_empty() => Err(AddressError::EmptyPath),
            "unix" => Ok(Address::Unix { path: rest.into() }),
            "vsock" => {
                let (cid, port) = rest.split_once(':').ok_or(AddressError::BadPort)?;
                let cid = decimal(cid).ok_or(AddressError::BadCid)?;
                Ok(Address::Vsock { cid, port: decimal(port).ok_or(AddressError::BadPort)? })
            }
            "uds" => {
                let (path, port) = rest.rsplit_once(':').ok_or(AddressError::BadPort)?;
                if path.is_empty() {
                    return Err(AddressError::EmptyPath);
                }
                let port = decimal(port).ok_or(AddressError::BadPort)?;
                Ok(Address::Multiplexed { path: path.into(), port })
            }
            _ => Err(AddressError::UnknownForm),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

/// Digits only: `parse` alone takes a plus sign too.
fn decimal<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Address::Unix { path } => write!(f, "unix:{}", path.display()),
            Address::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Address::Multiplexed { path, port } => write!(f, "uds:{}:{port}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, AddressError};

    #[test]
    fn every_form_round_trips() {
        for text in [
            "tcp:127.0.0.1:7000",
            "tcp:localhost:0",
            "tcp:[::1]:7000",
            "unix:/run/keymeld/e1.sock",
            "vsock:16:7000",
            "vsock:4294967295:7000",
            "uds:/run/vm:1/v.sock:7000",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, error) in [
            ("", AddressError::UnknownForm),
            ("127.0.0.1:7000", AddressError::UnknownForm),
            ("udp:h:1", AddressError::UnknownForm),
            ("tcp:h", AddressError::BadPort),
            ("tcp:h:", AddressError::BadPort),
            ("tcp:h:+1", AddressError::BadPort),
            ("tcp:h:65536", AddressError::BadPort),
            ("tcp::1", AddressError::BadHost),
            ("tcp:[]:1", AddressError::BadHost),
            ("tcp:::1:1", AddressError::BadHost),
            ("unix:", AddressError::EmptyPath),
            ("vsock:16", AddressError::BadPort),
            ("vsock:x:1", AddressError::BadCid),
            ("vsock:4294967296:1", AddressError::BadCid),
            ("vsock:1:4294967296", AddressError::BadPort),
            ("uds::1", AddressError::EmptyPath),
            ("uds:/p", AddressError::BadPort),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
    }
}
