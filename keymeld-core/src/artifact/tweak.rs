//! Tweaks as artifacts spell them.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::bytes::Hash;
use crate::limits::TWEAKS_MAX;
use crate::musig::tweak::Tweak;
use crate::refusal::Code;

/// One step from the aggregate key to the key that a signature verifies under. A list of steps is applied
/// in its order; the empty list is no tweak at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TweakStep {
    /// BIP-327 plain tweak: `Q + t G`.
    Plain(Hash),
    /// BIP-327 x-only tweak: `with_even_y(Q) + t G`.
    XOnly(Hash),
    /// BIP-341 key path, with the merkle root of the scripts where there are any.
    Taproot {
        /// The merkle root.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        merkle_root: Option<Hash>,
    },
}

/// The steps as the MuSig2 module takes them.
///
/// # Errors
/// [`Code::BadTweak`] where there are more than [`TWEAKS_MAX`].
pub fn steps(list: &[TweakStep]) -> Result<Vec<Tweak>, Code> {
    if list.len() > TWEAKS_MAX {
        return Err(Code::BadTweak);
    }
    Ok(list
        .iter()
        .map(|step| match step {
            TweakStep::Plain(tweak) => Tweak::Plain(tweak.0),
            TweakStep::XOnly(tweak) => Tweak::XOnly(tweak.0),
            TweakStep::Taproot { merkle_root } => {
                Tweak::Taproot { merkle_root: merkle_root.map(|root| root.0) }
            }
        })
        .collect())
}
