//! Public byte strings: lower-case hex in JSON, byte strings in CBOR.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Not lower-case hex, or of another length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// Another alphabet, or an odd number of digits.
    #[error("not lower-case hex")]
    BadHex,
    /// Another number of bytes.
    #[error("wrong length")]
    WrongLength,
}

fn decode_hex(hex: &str) -> Result<Vec<u8>, HexError> {
    base16ct::lower::decode_vec(hex).map_err(|_| HexError::BadHex)
}

// The words that `strict` reads back out of a serde error.
pub(crate) fn serde_error<E: serde::de::Error>(error: HexError) -> E {
    match error {
        HexError::BadHex => E::custom("bad-hex"),
        HexError::WrongLength => E::custom("wrong-length"),
    }
}

macro_rules! byte_strings {
    ($($(#[$doc:meta])* $name:ident[$length:literal];)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl $name {
            /// Decodes lower-case hex.
            ///
            /// # Errors
            /// [`HexError`] for another alphabet or length.
            pub fn from_hex(hex: &str) -> Result<Self, HexError> {
                let bytes = decode_hex(hex)?;
                bytes.try_into().map($name).map_err(|_| HexError::WrongLength)
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base16ct::lower::encode_string(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let hex = alloc::borrow::Cow::<str>::deserialize(deserializer)?;
                $name::from_hex(&hex).map_err(serde_error)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let bytes = d.bytes()?;
                bytes.try_into().map($name).map_err(|_| minicbor::decode::Error::message("wrong length"))
            }
        }
    )*};
}

byte_strings! {
    /// A compressed secp256k1 point, BIP-327's plain public key.
    PublicKey[33];
    /// A BIP-340 public key.
    XOnlyKey[32];
    /// A tagged hash or a SHA-256.
    Hash[32];
    /// 32 random bytes that keep a hash from being guessed at.
    Salt[32];
    /// A BIP-340 signature.
    Signature[64];
    /// A BIP-327 public nonce, two compressed points.
    PublicNonce[66];
    /// A BIP-327 partial signature.
    PartialSignature[32];
    /// A message as BIP-340 verifies it.
    Message[32];
}

/// Public bytes of any length: ciphertexts, documents, bodies of signed artifacts.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl serde::Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let hex: String = base16ct::lower::encode_string(&self.0);
        serializer.serialize_str(&hex)
    }
}

impl<'de> serde::Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = alloc::borrow::Cow::<str>::deserialize(deserializer)?;
        decode_hex(&hex).map(Blob).map_err(serde_error)
    }
}

impl<C> minicbor::Encode<C> for Blob {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Blob {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Ok(Blob(d.bytes()?.to_vec()))
    }
}
