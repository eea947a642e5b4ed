//! What the gateway and an enclave say to each other: frames and, inside them, messages.

pub mod frame;
pub mod message;
