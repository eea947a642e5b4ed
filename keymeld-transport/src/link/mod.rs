//! The link between gateway and enclave: frames over vsock, TCP or Unix sockets.
//!
//! The gateway's side is a [`Pool`](pool::Pool) of connections to one enclave, the enclave's a
//! [`LinkServer`](server::LinkServer). Many requests are in flight on a connection; replies come in any
//! order. Bodies are opaque here: what a frame carries is sealed and checked by the machines, so the
//! connection itself needs no encryption.
//!
//! **Architecture invariant:** a malformed frame or a reply that nobody asked for ends its connection and
//! nothing else.

pub mod address;
mod gate;
pub mod pool;
pub mod server;
mod stream;
mod wire;
