//! HTTP, link, NSM and process adapters of KeyMeld: blocking threads and sockets around the pure machines.
//!
//! Each module is behind a feature of its own, so that a binary contains only what it uses.

#[cfg(feature = "http-client")]
pub mod client;
pub mod clock;
#[cfg(any(feature = "http-server", feature = "http-client"))]
pub mod http;
#[cfg(feature = "link")]
pub mod link;
#[cfg(feature = "nsm")]
pub mod nsm;
#[cfg(feature = "process")]
pub mod process;
