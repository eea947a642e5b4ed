//! The types that secrets live in.
//!
//! **Invariant:** a [`Secret`] cannot be cloned, serialised or printed, is compared in constant time
//! and is wiped when it is dropped (`secrets_show_nothing`, and the assertions below).

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::entropy::{Entropy, EntropyFailed};

/// `N` secret bytes, wiped on drop.
///
/// A secret can be moved:
///
/// ```
/// # use keymeld_core::secret::Secret;
/// fn hand_over(secret: Secret<32>) -> (Secret<32>, usize) {
///     (secret, 1)
/// }
/// ```
///
/// but not cloned; whoever needs a second one says so with [`copied_from`](Secret::copied_from):
///
/// ```compile_fail
/// # use keymeld_core::secret::Secret;
/// fn hand_over(secret: Secret<32>) -> (Secret<32>, Secret<32>) {
///     (secret.clone(), secret)
/// }
/// ```
///
/// Its bytes can be looked at where a use names it:
///
/// ```
/// # use keymeld_core::secret::Secret;
/// fn first(secret: &Secret<32>) -> u8 {
///     secret.expose()[0]
/// }
/// ```
///
/// and not where it is taken for a byte string:
///
/// ```compile_fail
/// # use keymeld_core::secret::Secret;
/// fn first(secret: &Secret<32>) -> u8 {
///     secret[0]
/// }
/// ```
///
/// Structures that are encoded can hold anything that can be encoded:
///
/// ```
/// # use keymeld_core::{bytes::Hash, secret::Secret};
/// #[derive(serde::Serialize)]
/// struct Encoded {
///     field: Hash,
/// }
/// ```
///
/// and no secret:
///
/// ```compile_fail
/// # use keymeld_core::{bytes::Hash, secret::Secret};
/// #[derive(serde::Serialize)]
/// struct Encoded {
///     field: Secret<32>,
/// }
/// ```
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Secret<const N: usize>(alloc::boxed::Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Fills a secret in place: the bytes never stand on the caller's stack.
    pub fn filled(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Secret(alloc::boxed::Box::new([0; N]));
        fill(&mut secret.0);
        secret
    }

    /// Copies `bytes` into a secret; wiping the source stays with the caller.
    pub fn copied_from(bytes: &[u8; N]) -> Self {
        Secret::filled(|out| out.copy_from_slice(bytes))
    }

    /// Draws a fresh secret.
    ///
    /// # Errors
    /// [`EntropyFailed`] where the generator fails or repeats itself.
    pub fn random(entropy: &mut Entropy) -> Result<Self, EntropyFailed> {
        let mut secret = Secret::filled(|_| ());
        entropy.fill(secret.0.as_mut_slice())?;
        Ok(secret)
    }

    /// Decodes lower-case hex straight into a secret.
    ///
    /// Returns `None` for another length or another alphabet.
    pub fn from_hex(hex: &[u8]) -> Option<Self> {
        let mut secret = Secret::filled(|_| ());
        match base16ct::lower::decode(hex, secret.0.as_mut_slice()) {
            Ok(decoded) if decoded.len() == N => Some(secret),
            Ok(_) | Err(_) => None,
        }
    }

    /// The lower-case hex of the secret, wiped on drop.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(base16ct::lower::encode_string(self.0.as_slice()))
    }

    /// The bytes. Every use of a secret goes through here.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_ref()).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>")
    }
}

/// An operator's API token, compared in constant time. Wiped with its last clone: clones share the one copy.
#[derive(Clone)]
pub struct ApiToken(Arc<Zeroizing<String>>);

impl ApiToken {
    /// Takes a token over.
    pub fn new(token: String) -> ApiToken {
        ApiToken(Arc::new(Zeroizing::new(token)))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for ApiToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for ApiToken {}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken")
    }
}

/// `#[serde(with = "secret::hex")]`: the few canonical JSON artifacts that carry secrets.
///
/// A field has to ask for this by name; [`Secret`] itself implements no serde trait.
pub(crate) mod hex {
    use core::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    use super::Secret;

    pub(crate) fn serialize<const N: usize, S: Serializer>(
        secret: &Secret<N>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&secret.to_hex())
    }

    pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Secret<N>, D::Error> {
        struct HexVisitor<const N: usize>;
        impl<const N: usize> Visitor<'_> for HexVisitor<N> {
            type Value = Secret<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{N} bytes of lower-case hex")
            }

            // Escaped strings arrive here as copies; the canonical form has none, so they are refused.
            fn visit_borrowed_str<E: Error>(self, hex: &str) -> Result<Secret<N>, E> {
                Secret::from_hex(hex.as_bytes()).ok_or_else(|| E::custom("bad-hex"))
            }
        }
        deserializer.deserialize_str(HexVisitor)
    }

    /// The same for an optional field.
    pub(crate) mod option {
        use serde::{Deserializer, Serializer};

        use super::super::Secret;

        pub(crate) fn serialize<const N: usize, S: Serializer>(
            secret: &Option<Secret<N>>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match secret {
                Some(secret) => super::serialize(secret, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Secret<N>>, D::Error> {
            super::deserialize(deserializer).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::{ApiToken, Secret};

    static_assertions::assert_not_impl_any!(ApiToken: Copy, serde::Serialize, core::fmt::Display);
    static_assertions::assert_not_impl_any!(Secret<32>: Clone, Copy, serde::Serialize, core::fmt::Display, core::fmt::LowerHex);

    #[test]
    fn secrets_show_nothing() {
        let secret = Secret::copied_from(&[0xab; 32]);
        assert_eq!(format!("{secret:?} {secret:#?}"), "Secret<32> Secret<32>");
    }

    #[test]
    fn tokens_show_nothing_and_compare_by_content() {
        let token = ApiToken::new("a".into());
        assert_eq!(format!("{token:?} {token:#?}"), "ApiToken ApiToken");
        assert!(token == ApiToken::new("a".into()) && token != ApiToken::new("b".into()));
        assert!(token != ApiToken::new("ab".into()) && token != ApiToken::new("".into()));
        assert_eq!(token.clone().expose(), "a");
    }

    #[test]
    fn hex_is_lower_case_and_of_the_exact_length() {
        let secret = Secret::<2>::from_hex(b"0aff").expect("two bytes");
        assert_eq!(secret.expose(), &[0x0a, 0xff]);
        assert_eq!(secret.to_hex().as_str(), "0aff");
        for bad in ["0aFF", "0a", "0aff00", "0af", "0ag0", ""] {
            assert!(Secret::<2>::from_hex(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
