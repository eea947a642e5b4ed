//! What the benchmarks of KeyMeld have in common: the floor that cryptography sets, and a fleet of real
//! processes.

pub mod fleet;
pub mod floor;
