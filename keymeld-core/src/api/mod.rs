//! The REST API as data: bodies, proofs, problems and the router. No server, no client.

pub mod http;
pub mod problem;
pub mod proof;
pub mod rest;
pub mod router;
