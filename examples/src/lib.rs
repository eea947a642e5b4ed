//! Examples of KeyMeld used as a library.
//!
//! [`world`] drives a gateway, enclaves and clients in one thread, without a socket: what the example
//! `one_thread` shows, and what the tests of this package drive further.

pub mod disk;
pub mod world;
