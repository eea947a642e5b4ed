//! Benchmarks of KeyMeld.
