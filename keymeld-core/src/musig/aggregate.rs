//! KeySort, KeyAgg and ApplyTweak: n keys and a list of tweaks become one key.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use secp256k1::musig::KeyAggCache;
use secp256k1::{PublicKey, Scalar};

use super::MusigError;
use super::tweak::Tweak;

/// The most keys that are aggregated into one, and so the most signers of a session.
pub const KEYS_MAX: usize = 128;

/// The most tweaks that are applied to one aggregate key.
pub const TWEAKS_MAX: usize = 32;

/// An aggregate key with its members and tweaks. Cloning it is cheap.
///
/// Two are equal where they have the same keys in the same order, the same tweaked key and the same sums of
/// tweaks, which is all that a signature depends on.
#[derive(Clone)]
pub struct KeyAgg(Arc<Aggregated>);

struct Aggregated {
    keys: Vec<[u8; 33]>,
    untweaked_key: [u8; 33],
    output_key: [u8; 32],
    cache: KeyAggCache,
}

impl KeyAgg {
    /// Sorts the keys, aggregates them and applies the tweaks in the stated order.
    ///
    /// BIP-327, *KeySort*, *KeyAgg* and, for each tweak, *ApplyTweak*. The order of `keys` makes no
    /// difference. A key may occur twice: whoever keeps a roster refuses that with [`has_equal_x`].
    ///
    /// # Errors
    /// [`MusigError::NoKeys`], [`TooManyKeys`](MusigError::TooManyKeys),
    /// [`InvalidKey`](MusigError::InvalidKey), [`TooManyTweaks`](MusigError::TooManyTweaks),
    /// [`TweakOutOfRange`](MusigError::TweakOutOfRange) and
    /// [`TweakedToInfinity`](MusigError::TweakedToInfinity); indexes count in the lists as given.
    pub fn new(keys: &[[u8; 33]], tweaks: &[Tweak]) -> Result<KeyAgg, MusigError> {
        let mut members = parse_keys(keys)?;
        // KeySort is the lexicographical order of the compressed encodings.
        members.sort_unstable_by_key(|(bytes, _)| *bytes);
        KeyAgg::in_order(members, tweaks)
    }

    /// The same without KeySort, for BIP-327's vectors, few of which are sorted. KeyMeld always sorts.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[doc(hidden)]
    pub fn unsorted(keys: &[[u8; 33]], tweaks: &[Tweak]) -> Result<KeyAgg, MusigError> {
        KeyAgg::in_order(parse_keys(keys)?, tweaks)
    }

    fn in_order(members: Vec<([u8; 33], PublicKey)>, tweaks: &[Tweak]) -> Result<KeyAgg, MusigError> {
        if tweaks.len() > TWEAKS_MAX {
            return Err(MusigError::TooManyTweaks);
        }
        let points: Vec<&PublicKey> = members.iter().map(|(_, point)| point).collect();
        let mut cache = KeyAggCache::new(&points);
        let untweaked_key = cache.agg_pk_full().serialize();
        for (index, tweak) in tweaks.iter().enumerate() {
            apply_tweak(&mut cache, tweak, index)?;
        }
        let keys = members.into_iter().map(|(bytes, _)| bytes).collect();
        let output_key = cache.agg_pk().to_byte_array();
        Ok(KeyAgg(Arc::new(Aggregated { keys, untweaked_key, output_key, cache })))
    }

    /// The aggregate of the keys alone, before any tweak, compressed: what BIP-328 derives from.
    pub fn untweaked_key(&self) -> [u8; 33] {
        self.0.untweaked_key
    }

    /// The key that signatures verify under: x-only, after all tweaks.
    pub fn output_key(&self) -> [u8; 32] {
        self.0.output_key
    }

    /// The keys in the order in which they were aggregated, which is sorted.
    pub fn keys(&self) -> &[[u8; 33]] {
        &self.0.keys
    }

    /// Whether `key` is one of those that were aggregated.
    pub fn contains(&self, key: &[u8; 33]) -> bool {
        self.0.keys.contains(key)
    }

    /// What the library needs to know of the aggregation.
    pub(super) fn cache(&self) -> &KeyAggCache {
        &self.0.cache
    }
}

impl PartialEq for KeyAgg {
    fn eq(&self, other: &Self) -> bool {
        // The cache holds a hash of the key list, the tweaked key and the accumulated tweak and parity.
        Arc::ptr_eq(&self.0, &other.0) || self.0.cache == other.0.cache
    }
}

impl Eq for KeyAgg {}

impl fmt::Debug for KeyAgg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyAgg({} keys)", self.0.keys.len())
    }
}

/// Whether two of the keys have the same x-coordinate: equal, or one the negation of the other.
pub fn has_equal_x(keys: &[[u8; 33]]) -> bool {
    let mut x_coordinates: Vec<&[u8]> = keys.iter().map(|key| &key[1..]).collect();
    x_coordinates.sort_unstable();
    x_coordinates.windows(2).any(|pair| pair[0] == pair[1])
}

fn parse_keys(keys: &[[u8; 33]]) -> Result<Vec<([u8; 33], PublicKey)>, MusigError> {
    if keys.is_empty() {
        return Err(MusigError::NoKeys);
    }
    if keys.len() > KEYS_MAX {
        return Err(MusigError::TooManyKeys);
    }
    let parse = |(index, bytes): (usize, &[u8; 33])| match PublicKey::from_byte_array_compressed(*bytes) {
        Ok(point) => Ok((*bytes, point)),
        Err(_) => Err(MusigError::InvalidKey { index }),
    };
    keys.iter().enumerate().map(parse).collect()
}

/// BIP-327, *ApplyTweak*.
fn apply_tweak(cache: &mut KeyAggCache, tweak: &Tweak, index: usize) -> Result<(), MusigError> {
    let addend = tweak.addend(&cache.agg_pk());
    // The library has one error for both reasons; the range is checked here to tell them apart.
    let t = Scalar::from_be_bytes(addend.t).map_err(|_| MusigError::TweakOutOfRange { index })?;
    let tweaked = match addend.is_xonly {
        true => cache.pubkey_xonly_tweak_add(&t),
        false => cache.pubkey_ec_tweak_add(&t),
    };
    match tweaked {
        Ok(_) => Ok(()),
        Err(_) => Err(MusigError::TweakedToInfinity { index }),
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use super::{KEYS_MAX, KeyAgg, TWEAKS_MAX, has_equal_x};
    use crate::musig::MusigError;
    use crate::musig::tweak::Tweak;

    /// The compressed generator, the key of the secret key 1.
    const G: [u8; 33] = [
        0x02, 0x79, 0xbe, 0x66, 0x7e, 0xf9, 0xdc, 0xbb, 0xac, 0x55, 0xa0, 0x62, 0x95, 0xce, 0x87, 0x0b, 0x07,
        0x02, 0x9b, 0xfc, 0xdb, 0x2d, 0xce, 0x28, 0xd9, 0x59, 0xf2, 0x81, 0x5b, 0x16, 0xf8, 0x17, 0x98,
    ];

    fn minus_g() -> [u8; 33] {
        let mut key = G;
        key[0] = 0x03;
        key
    }

    #[test]
    fn lists_that_are_empty_or_too_long_are_refused() {
        assert_eq!(KeyAgg::new(&[], &[]), Err(MusigError::NoKeys));
        assert_eq!(KeyAgg::unsorted(&[], &[]), Err(MusigError::NoKeys));
        assert!(KeyAgg::new(&vec![G; KEYS_MAX], &[]).is_ok());
        assert_eq!(KeyAgg::new(&vec![G; KEYS_MAX + 1], &[]), Err(MusigError::TooManyKeys));
        let tweak = Tweak::Plain([1; 32]);
        assert!(KeyAgg::new(&[G], &vec![tweak.clone(); TWEAKS_MAX]).is_ok());
        assert_eq!(KeyAgg::new(&[G], &vec![tweak; TWEAKS_MAX + 1]), Err(MusigError::TooManyTweaks));
    }

    #[test]
    fn an_invalid_key_is_named_by_its_place_before_sorting() {
        let mut hybrid = G;
        hybrid[0] = 0x06;
        let mut off_curve = [0; 33];
        (off_curve[0], off_curve[32]) = (0x02, 0x05);
        for bad in [[0; 33], [0xff; 33], hybrid, off_curve] {
            assert_eq!(KeyAgg::new(&[minus_g(), bad, G], &[]), Err(MusigError::InvalidKey { index: 1 }));
        }
    }

    #[test]
    fn the_order_of_keys_makes_no_difference_and_that_of_tweaks_does() {
        let one = KeyAgg::new(&[minus_g(), G], &[]).expect("two points");
        let other = KeyAgg::new(&[G, minus_g()], &[]).expect("two points");
        assert_eq!(one, other);
        assert_eq!(one.keys(), [G, minus_g()]);
        assert_eq!(one.output_key(), one.untweaked_key()[1..]);
        assert!(one.contains(&G) && !one.contains(&[2; 33]));
        assert_eq!(format!("{one:?}"), "KeyAgg(2 keys)");

        let tweaks = [Tweak::Plain([1; 32]), Tweak::Taproot { merkle_root: None }];
        let swapped = [tweaks[1].clone(), tweaks[0].clone()];
        let tweaked = KeyAgg::new(&[G, minus_g()], &tweaks).expect("valid");
        let tweaked_otherwise = KeyAgg::new(&[G, minus_g()], &swapped).expect("valid");
        assert_ne!(tweaked, tweaked_otherwise);
        assert_ne!(tweaked.output_key(), tweaked_otherwise.output_key());
        assert_ne!(tweaked, one);
        assert_eq!(tweaked.untweaked_key(), one.untweaked_key());
    }

    #[test]
    fn a_tweak_out_of_range_is_named() {
        let tweaks = [Tweak::XOnly([0; 32]), Tweak::XOnly([0xff; 32])];
        assert_eq!(KeyAgg::new(&[G], &tweaks), Err(MusigError::TweakOutOfRange { index: 1 }));
        assert_eq!(KeyAgg::new(&[G], &tweaks[1..]), Err(MusigError::TweakOutOfRange { index: 0 }));
    }

    #[test]
    fn equal_x_coordinates_are_found_whatever_the_sign() {
        let mut other = G;
        other[32] ^= 1;
        assert!(!has_equal_x(&[]));
        assert!(!has_equal_x(&[G, other]));
        assert!(has_equal_x(&[G, other, G]));
        assert!(has_equal_x(&[G, other, minus_g()]));
    }
}
