//! What enclaves send each other in a signing session, inside pairwise seals.
//!
//! Entries are in one order that everybody computes: items as in the intent, within an item the sender's
//! users in KeySort order. So a bundle speaks for exactly the users whose records name its sender.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::bytes::{Hash, PartialSignature, PublicNonce};
use crate::refusal::Code;
use crate::strict;

const VERSION: u32 = 1;

/// Round 1: public nonces.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NonceBundle {
    #[n(0)]
    version: u32,
    /// One for each of the sender's signatures.
    #[n(1)]
    pub nonces: Vec<PublicNonce>,
}

/// Round 2: partial signatures.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PartialBundle {
    #[n(0)]
    version: u32,
    /// The hash of all public nonces that they were made under.
    #[n(1)]
    pub view: Hash,
    /// One for each of the sender's signatures.
    #[n(2)]
    pub partials: Vec<PartialSignature>,
}

impl NonceBundle {
    /// A bundle of these nonces.
    pub fn new(nonces: Vec<PublicNonce>) -> NonceBundle {
        NonceBundle { version: VERSION, nonces }
    }

    /// The bytes to seal.
    pub fn encode(&self) -> Vec<u8> {
        strict::to_cbor(self)
    }

    /// Reads a bundle that must have `count` entries.
    ///
    /// # Errors
    /// [`Code::BundleMismatch`].
    pub fn decode(bytes: &[u8], count: usize) -> Result<NonceBundle, Code> {
        let bundle: NonceBundle = strict::from_cbor(bytes).map_err(|_| Code::BundleMismatch)?;
        let fits = bundle.version == VERSION && bundle.nonces.len() == count;
        if fits { Ok(bundle) } else { Err(Code::BundleMismatch) }
    }
}

impl PartialBundle {
    /// A bundle of these partial signatures.
    pub fn new(view: Hash, partials: Vec<PartialSignature>) -> PartialBundle {
        PartialBundle { version: VERSION, view, partials }
    }

    /// The bytes to seal.
    pub fn encode(&self) -> Vec<u8> {
        strict::to_cbor(self)
    }

    /// Reads a bundle that must have `count` entries.
    ///
    /// # Errors
    /// [`Code::BundleMismatch`].
    pub fn decode(bytes: &[u8], count: usize) -> Result<PartialBundle, Code> {
        let bundle: PartialBundle = strict::from_cbor(bytes).map_err(|_| Code::BundleMismatch)?;
        let fits = bundle.version == VERSION && bundle.partials.len() == count;
        if fits { Ok(bundle) } else { Err(Code::BundleMismatch) }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::{NonceBundle, PartialBundle};
    use crate::bytes::{Hash, PartialSignature, PublicNonce};
    use crate::refusal::Code;

    #[test]
    fn golden_bundles() {
        let nonces = NonceBundle::new(vec![PublicNonce([2; 66])]).encode();
        let expected = [&[0x82, 0x01, 0x81, 0x58, 66][..], &[2; 66]].concat();
        assert_eq!(nonces, expected);
        assert_eq!(NonceBundle::decode(&nonces, 1), Ok(NonceBundle::new(vec![PublicNonce([2; 66])])));
        assert_eq!(NonceBundle::decode(&nonces, 2), Err(Code::BundleMismatch));

        let partials = PartialBundle::new(Hash([3; 32]), vec![PartialSignature([4; 32])]);
        let expected = [&[0x83, 0x01, 0x58, 32][..], &[3; 32], &[0x81, 0x58, 32], &[4; 32]].concat();
        assert_eq!(partials.encode(), expected);
        assert_eq!(PartialBundle::decode(&expected, 1), Ok(partials));
        assert_eq!(PartialBundle::decode(&nonces, 1), Err(Code::BundleMismatch));
    }
}
