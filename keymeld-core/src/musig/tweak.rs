//! What may be added to an aggregate key.

use secp256k1::XOnlyPublicKey;
use sha2::{Digest, Sha256};

/// One tweak of an aggregate key. A list of them is applied in order. Tweaks are no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tweak {
    /// A plain tweak: Q' = Q + t G, as in unhardened BIP-32 derivation. t is big-endian and below the group order.
    Plain([u8; 32]),
    /// An x-only tweak: Q' = t G + whichever of Q, -Q has an even y. t is big-endian and below the group order.
    XOnly([u8; 32]),
    /// The key path of BIP-341: the x-only tweak t = hash_TapTweak(x(Q) || merkle root).
    Taproot {
        /// The root of the script tree; `None` where there are no scripts, and then nothing follows x(Q).
        merkle_root: Option<[u8; 32]>,
    },
}

/// An addend with its BIP-327 mode.
pub(super) struct Addend {
    pub(super) t: [u8; 32],
    pub(super) is_xonly: bool,
}

impl Tweak {
    /// What the tweak adds to the key `current`, which the tweaks before it are already part of.
    pub(super) fn addend(&self, current: &XOnlyPublicKey) -> Addend {
        match self {
            Tweak::Plain(t) => Addend { t: *t, is_xonly: false },
            Tweak::XOnly(t) => Addend { t: *t, is_xonly: true },
            Tweak::Taproot { merkle_root } => {
                Addend { t: tap_tweak_hash(&current.to_byte_array(), merkle_root.as_ref()), is_xonly: true }
            }
        }
    }
}

/// BIP-341, *taproot_tweak_pubkey*: hash_TapTweak(internal key || merkle root).
fn tap_tweak_hash(internal_key: &[u8; 32], merkle_root: Option<&[u8; 32]>) -> [u8; 32] {
    let tag = Sha256::digest(b"TapTweak");
    let mut hash = Sha256::new().chain_update(tag).chain_update(tag).chain_update(internal_key);
    if let Some(root) = merkle_root {
        hash.update(root);
    }
    hash.finalize().into()
}
