//! KeyMeld's command line as a library: what the command does, for the command and for its tests.
//!
//! Modules: `kept` (a participant's files), `children` (a gateway and enclaves as child processes), `demo` (a
//! keygen and signatures through them).

#[cfg(feature = "dev")]
pub mod children;
#[cfg(feature = "dev")]
pub mod demo;
pub mod kept;
