//! MuSig2 (BIP-327) on libsecp256k1's own module, behind a guard.
//!
//! The library trusts its caller: a nonce used with another keypair than its own aborts the process, and so
//! does a used one; it signs for a key that is no member, under another key aggregation or message than the
//! nonce was made for, and calls a non-member's partial signature valid; it panics on empty lists and on
//! zero randomness; and `{:?}` of its secret nonce prints the secret. Here one value owns what belongs
//! together, and everything is checked before the library is called, so that whatever a peer sends ends in
//! a [`MusigError`].
//!
//! A session runs through the algorithms of BIP-327 in this order:
//!
//! | BIP-327 | here |
//! |---|---|
//! | KeySort, KeyAgg, ApplyTweak | [`aggregate::KeyAgg::new`] |
//! | NonceGen | [`nonce::SigningNonce::generate`] |
//! | NonceAgg | [`round::aggregate_nonces`] |
//! | GetSessionValues | [`round::Session::new`] |
//! | Sign | [`nonce::SigningNonce::sign`] |
//! | PartialSigVerify | [`round::Session::verify_partial`] |
//! | PartialSigAgg | [`round::Session::aggregate_partials`], or [`round::finish`], which also verifies and blames |
//!
//! Keys are 33 bytes (compressed points), public and aggregate nonces 66 (two compressed points), messages
//! 32, partial signatures 32 (a scalar, big-endian) and signatures 64 (BIP-340).
//!
//! **Invariant:** no other module names a type of the library's MuSig2 module
//! (`only_this_module_names_the_musig_library`).

pub mod aggregate;
pub mod nonce;
pub mod round;
pub mod tweak;

use crate::entropy::EntropyFailed;

/// Why a step of MuSig2 was refused. An `index` counts from 0 in the list that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MusigError {
    /// KeyAgg: there is no key to aggregate.
    #[error("no keys to aggregate")]
    NoKeys,
    /// KeyAgg: more than [`aggregate::KEYS_MAX`] keys.
    #[error("too many keys")]
    TooManyKeys,
    /// KeyAgg: a key is not a compressed point of the curve.
    #[error("key {index} is not a point")]
    InvalidKey {
        /// Which key.
        index: usize,
    },
    /// ApplyTweak: more than [`aggregate::TWEAKS_MAX`] tweaks.
    #[error("too many tweaks")]
    TooManyTweaks,
    /// ApplyTweak: a tweak is not below the group order.
    #[error("tweak {index} is out of range")]
    TweakOutOfRange {
        /// Which tweak.
        index: usize,
    },
    /// ApplyTweak: the tweaked key is the point at infinity.
    #[error("tweak {index} gives the point at infinity")]
    TweakedToInfinity {
        /// Which tweak.
        index: usize,
    },
    /// NonceGen: the secret key is zero or not below the group order.
    #[error("the secret key is out of range")]
    SecretKeyOutOfRange,
    /// The key is not one of those that were aggregated.
    #[error("the key is not a member")]
    NotAMember,
    /// NonceGen: the random generator failed.
    #[error(transparent)]
    Entropy(#[from] EntropyFailed),
    /// NonceAgg: there is no nonce to aggregate.
    #[error("no nonces to aggregate")]
    NoNonces,
    /// NonceAgg: more than [`aggregate::KEYS_MAX`] nonces.
    #[error("too many nonces")]
    TooManyNonces,
    /// A public nonce is not two compressed points of the curve.
    #[error("public nonce {index} is not two points")]
    InvalidPublicNonce {
        /// Which nonce; 0 where only one was given.
        index: usize,
    },
    /// An aggregate nonce is not two compressed points, where 33 zero bytes are the point at infinity.
    #[error("the aggregate nonce is not two points")]
    InvalidAggregateNonce,
    /// Sign: the session has another key aggregation than the nonce was made for.
    #[error("the nonce was made for another key aggregation")]
    OtherKeyAgg,
    /// Sign: the session has another message than the nonce was made for.
    #[error("the nonce was made for another message")]
    OtherMessage,
    /// PartialSigAgg: not as many partial signatures as keys.
    #[error("not as many partial signatures as keys")]
    PartialCount,
    /// A partial signature is not below the group order.
    #[error("partial signature {index} is out of range")]
    PartialOutOfRange {
        /// Which partial signature; 0 where only one was given.
        index: usize,
    },
    /// PartialSigVerify: the partial signature does not satisfy the equation.
    #[error("the partial signature is wrong")]
    WrongPartial,
}
