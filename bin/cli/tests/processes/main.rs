//! The command as real processes: the demo, what people who sign do by hand, and what kill -9 does to keygens and signings (S6).

mod clock;
mod demo;
mod hand;
mod kills;
mod matrix;
mod party;
mod sweep;

use keymeld_core::bytes::{Message, Signature, XOnlyKey};
use secp256k1::{XOnlyPublicKey, schnorr};

/// BIP-340 by the library itself, without any of KeyMeld's code.
fn assert_bip340(key: &XOnlyKey, message: &Message, signature: &Signature) {
    let key = XOnlyPublicKey::from_byte_array(key.0).expect("a key");
    let signature = schnorr::Signature::from_byte_array(signature.0);
    schnorr::verify(&signature, &message.0, &key).expect("verifies");
}
