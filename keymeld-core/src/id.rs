//! Identifiers: UUIDs, 16 bytes in hashes, labels and CBOR, the hyphenated lower-case form in JSON.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use crate::entropy::{Entropy, EntropyFailed};

/// Not a lower-case, hyphenated UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lower-case UUID")]
pub struct IdError;

fn parse_uuid(text: &str) -> Result<[u8; 16], IdError> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 {
        return Err(IdError);
    }
    let mut hex = [0_u8; 32];
    let mut filled = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 8 | 13 | 18 | 23) {
            if *byte != b'-' {
                return Err(IdError);
            }
        } else {
            hex[filled] = *byte;
            filled += 1;
        }
    }
    let mut id = [0; 16];
    base16ct::lower::decode(hex, &mut id).map_err(|_| IdError)?;
    Ok(id)
}

fn uuid_text(id: &[u8; 16]) -> String {
    let hex = base16ct::lower::encode_string(id);
    let mut text = String::with_capacity(36);
    for (index, part) in [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().enumerate() {
        if index > 0 {
            text.push('-');
        }
        text.push_str(&hex[part]);
    }
    text
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A fresh random (version 4) id.
            ///
            /// # Errors
            /// [`EntropyFailed`] where the generator fails.
            pub fn random(entropy: &mut Entropy) -> Result<Self, EntropyFailed> {
                let mut id = entropy.bytes::<16>()?;
                id[6] = (id[6] & 0x0f) | 0x40;
                id[8] = (id[8] & 0x3f) | 0x80;
                Ok($name(id))
            }

            /// The 16 bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&uuid_text(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&uuid_text(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_uuid(text).map($name)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = alloc::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(|_| serde::de::Error::custom("bad-id"))
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
                let id = bytes.try_into().map_err(|_| minicbor::decode::Error::message("16 bytes"))?;
                Ok($name(id))
            }
        }
    )*};
}

ids! {
    /// A keygen session.
    KeygenId;
    /// A signing session; also the request id of a signing request.
    SigningId;
    /// A participant, fresh for every keygen: names live in the sealed manifest.
    UserId;
    /// One message to be signed within an intent.
    ItemId;
    /// A named subset of a roster.
    SubsetId;
    /// An enclave, across its epochs.
    EnclaveId;
    /// One run of the signing rounds.
    AttemptId;
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::{IdError, UserId};
    use crate::entropy::test_entropy;

    #[test]
    fn ids_are_lower_case_uuids() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id: UserId = text.parse().expect("a UUID");
        assert_eq!(id.0[15], 0xff);
        assert_eq!(id.to_string(), text);
        for bad in [
            "00112233-4455-6677-8899-AABBCCDDEEFF",
            "00112233445566778899aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeeff0",
            "00112233-44556-677-8899-aabbccddeeff",
            "",
        ] {
            assert_eq!(bad.parse::<UserId>(), Err(IdError), "{bad}");
        }
        let random = UserId::random(&mut test_entropy(1)).expect("never fails").to_string();
        assert_eq!(&random[14..15], "4");
    }
}
