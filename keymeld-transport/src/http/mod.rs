//! HTTP/1.1 over blocking sockets: the public listener and the client.

#[cfg(feature = "http-client")]
pub mod client;
#[cfg(feature = "http-server")]
pub mod server;
