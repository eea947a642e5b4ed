//! KeyMeld's command line as a library: what the command does, for the command and for its tests.
//!
//! Modules: `commands` (what people who sign do), `given` (their keys, tokens and policies), `home` (a user's state
//! directory), `kept` (a participant's files), `shown` (what people see), `children` (a gateway and enclaves as
//! child processes), `demo` (a keygen and signatures through them).

#[cfg(feature = "dev")]
pub mod children;
pub mod commands;
#[cfg(feature = "dev")]
pub mod demo;
pub mod given;
pub mod home;
pub mod kept;
pub mod shown;

use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};

/// The operating system's generator.
pub fn os_entropy() -> Entropy {
    Entropy::new(Origin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed))
}
