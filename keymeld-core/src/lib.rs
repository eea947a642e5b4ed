//! KeyMeld's pure core.
//!
//! Cryptography, signed artifacts, attestation and the three machines (client, gateway, enclave) of
//! distributed MuSig2 signing. Nothing in here reads a clock, a file, a socket or a random generator:
//! time and entropy are parameters, and what has to happen outside leaves as commands.
//!
//! # Driving a machine
//! Each machine has `handle(now, event, entropy)`, `poll_command()` and `next_deadline()`. A driver hands in
//! one event, drains all commands, carries them out, and hands in what came of them as further events. It
//! ticks at the deadline; ticking too early or too often is harmless.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
pub mod artifact;
pub mod attestation;
mod bounded;
pub mod bytes;
pub mod client;
pub mod crypto;
pub mod enclave;
pub mod entropy;
pub mod gateway;
pub mod id;
pub mod limits;
pub mod link;
pub mod musig;
pub mod record;
pub mod refusal;
pub mod secret;
pub mod strict;
pub mod time;
