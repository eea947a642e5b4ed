//! Cryptography apart from MuSig2: tagged hashes, key derivation, seals, envelopes, auth signatures.

pub mod auth;
pub mod derive;
pub mod envelope;
pub mod hash;
pub mod seal;
