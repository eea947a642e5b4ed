//! KeyMeld's pure core.
//!
//! Cryptography, signed artifacts, attestation and the three machines (client, gateway, enclave) of
//! distributed MuSig2 signing. Nothing in here reads a clock, a file, a socket or a random generator:
//! time and entropy are parameters, and what has to happen outside leaves as commands.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
pub mod artifact;
pub mod attestation;
pub mod bytes;
pub mod crypto;
pub mod entropy;
pub mod id;
pub mod limits;
pub mod link;
pub mod musig;
pub mod record;
pub mod refusal;
pub mod secret;
pub mod strict;
pub mod time;
