//! The oracles: after every step, whether what happened may have happened.

mod client;
mod enclave;
mod envelope;
mod gateway;
pub(crate) mod seal;
mod solver;

pub(crate) use enclave::round;

use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::id::SigningId;
use keymeld_core::secret::Secret;

use super::world::World;

impl World {
    /// Looks at what is left when all is done.
    pub(crate) fn check_end(&mut self) {
        self.god.ledger.check(&mut self.gateway.disk);
        let leaks = self.god.leaks.bytes;
        let signed = self.god.signed;
        self.log.note(format_args!("the end: {signed} signatures, {} intents", self.god.intents.len()));
        assert!(leaks > 0, "nothing was ever looked at");
    }

    /// The key that a signing session's intent and result are sealed under.
    fn signing_seal(&self, circle: usize, signing_id: SigningId) -> Secret<32> {
        let secret = self.god.circles[circle].session_secret.as_ref();
        derive(secret.expect("there is no signing before the keygen"), Purpose::SigningSeal(signing_id))
    }
}
