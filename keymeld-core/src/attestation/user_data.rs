//! What a KeyMeld enclave puts into `user_data`.
//!
//! ```text
//! [version (1), purpose (1 service, 2 birth), [fields in the order of the struct]]
//! ```
//!
//! CBOR, arrays of definite length, shortest integers: there is exactly one encoding.

use alloc::vec::Vec;

use minicbor::decode::Decoder;
use minicbor::{Decode, Encode, Encoder};

use super::{AttestationError, PCR_BYTES};

const VERSION: u8 = 1;

/// What a document is for. The numbers are part of what the NSM signs; they never change.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Purpose {
    /// Shown to clients.
    Service = 1,
    /// Stored beside the encrypted seed.
    Birth = 2,
}

/// The user data of the document that clients verify. The ECIES key is the document's `public_key`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ServiceUserData {
    /// The enclave's id, a UUID.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub enclave_id: [u8; 16],
    /// Counts the seeds of this enclave.
    #[n(1)]
    pub epoch: u32,
    /// The enclave's BIP-340 public key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub identity_key: [u8; 32],
    /// PCR0 of the image that made the epoch's seed.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub birth_pcr0: [u8; PCR_BYTES],
    /// When the epoch's seed was made, by the NSM's clock, in milliseconds since 1970.
    #[n(4)]
    pub birth_time_ms: u64,
    /// The hash of the image's measured configuration.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub config_hash: [u8; 32],
}

impl ServiceUserData {
    /// The bytes to hand to the NSM.
    pub fn encode(&self) -> Vec<u8> {
        encode(Purpose::Service, self)
    }

    /// Reads exactly what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    /// [`AttestationError::UserDataMalformed`], [`AttestationError::UserDataVersion`] or
    /// [`AttestationError::Purpose`].
    pub fn decode(bytes: &[u8]) -> Result<Self, AttestationError> {
        decode(Purpose::Service, bytes)
    }
}

/// The user data of the document that vouches for a stored seed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BirthUserData {
    /// The enclave's id, a UUID.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub enclave_id: [u8; 16],
    /// Counts the seeds of this enclave.
    #[n(1)]
    pub epoch: u32,
    /// The enclave's ECIES public key, compressed.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ecies_key: [u8; 33],
    /// The enclave's BIP-340 public key.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub identity_key: [u8; 32],
    /// The SHA-256 of the encrypted data-encryption key that the seed is sealed under.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub encrypted_dek_hash: [u8; 32],
}

impl BirthUserData {
    /// The bytes to hand to the NSM.
    pub fn encode(&self) -> Vec<u8> {
        encode(Purpose::Birth, self)
    }

    /// Reads exactly what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    /// [`AttestationError::UserDataMalformed`], [`AttestationError::UserDataVersion`] or
    /// [`AttestationError::Purpose`].
    pub fn decode(bytes: &[u8]) -> Result<Self, AttestationError> {
        decode(Purpose::Birth, bytes)
    }
}

fn encode<T: Encode<()>>(purpose: Purpose, body: &T) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    encoder
        .array(3)
        .and_then(|encoder| encoder.u8(VERSION))
        .and_then(|encoder| encoder.u8(purpose as u8))
        .and_then(|encoder| encoder.encode(body))
        .expect("writing to a Vec cannot fail");
    encoder.into_writer()
}

/// Version and purpose go first, so that data of another kind is refused for what it is.
fn decode<T: Encode<()> + for<'b> Decode<'b, ()>>(
    purpose: Purpose,
    bytes: &[u8],
) -> Result<T, AttestationError> {
    let malformed = |_| AttestationError::UserDataMalformed;
    let mut decoder = Decoder::new(bytes);
    if decoder.array().map_err(malformed)? != Some(3) {
        return Err(AttestationError::UserDataMalformed);
    }
    if decoder.u8().map_err(malformed)? != VERSION {
        return Err(AttestationError::UserDataVersion);
    }
    if decoder.u8().map_err(malformed)? != purpose as u8 {
        return Err(AttestationError::Purpose);
    }
    let body = decoder.decode::<T>().map_err(malformed)?;
    // Trailing bytes, extra elements and long integers all show up here.
    if encode(purpose, &body) != bytes {
        return Err(AttestationError::UserDataMalformed);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{AttestationError, BirthUserData, ServiceUserData};

    fn service() -> ServiceUserData {
        ServiceUserData {
            enclave_id: [1; 16],
            epoch: 2,
            identity_key: [3; 32],
            birth_pcr0: [4; 48],
            birth_time_ms: 1_700_000_000_123,
            config_hash: [5; 32],
        }
    }

    fn birth() -> BirthUserData {
        BirthUserData {
            enclave_id: [1; 16],
            epoch: 0x0001_0000,
            ecies_key: [2; 33],
            identity_key: [3; 32],
            encrypted_dek_hash: [4; 32],
        }
    }

    #[test]
    fn service_user_data_has_these_bytes() {
        let golden = [
            &[0x83, 1, 1, 0x86, 0x50][..],
            &[1; 16],
            &[2, 0x58, 32],
            &[3; 32],
            &[0x58, 48],
            &[4; 48],
            &[0x1b, 0x00, 0x00, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0x7b, 0x58, 32],
            &[5; 32],
        ]
        .concat();
        assert_eq!(service().encode(), golden);
        assert_eq!(ServiceUserData::decode(&golden), Ok(service()));
    }

    #[test]
    fn birth_user_data_has_these_bytes() {
        let golden = [
            &[0x83, 1, 2, 0x85, 0x50][..],
            &[1; 16],
            &[0x1a, 0x00, 0x01, 0x00, 0x00, 0x58, 33],
            &[2; 33],
            &[0x58, 32],
            &[3; 32],
            &[0x58, 32],
            &[4; 32],
        ]
        .concat();
        assert_eq!(birth().encode(), golden);
        assert_eq!(BirthUserData::decode(&golden), Ok(birth()));
    }

    #[test]
    fn only_the_one_encoding_is_read() {
        let golden = service().encode();
        for length in 0..golden.len() {
            assert!(ServiceUserData::decode(&golden[..length]).is_err(), "{length}");
        }
        for bit in 0..golden.len() * 8 {
            let mut flipped = golden.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // A flip inside a field is another value; whatever is read is written as it was read.
            if let Ok(read) = ServiceUserData::decode(&flipped) {
                assert_eq!(read.encode(), flipped, "{bit}");
            }
        }
        let malformed = Err(AttestationError::UserDataMalformed);
        assert_eq!(ServiceUserData::decode(&[&golden[..], &[0]].concat()), malformed);
        // The epoch as a two-byte integer, and the array of fields with a seventh element.
        let long: Vec<u8> = [&golden[..21], &[0x18, 2], &golden[22..]].concat();
        assert_eq!(ServiceUserData::decode(&long), malformed);
        let mut extra = [&golden[..], &[0]].concat();
        extra[3] = 0x87;
        assert_eq!(ServiceUserData::decode(&extra), malformed);
    }

    #[test]
    fn another_version_or_purpose_is_refused_for_what_it_is() {
        let mut bytes = service().encode();
        assert_eq!(BirthUserData::decode(&bytes), Err(AttestationError::Purpose));
        assert_eq!(ServiceUserData::decode(&birth().encode()), Err(AttestationError::Purpose));
        bytes[1] = 2;
        assert_eq!(ServiceUserData::decode(&bytes), Err(AttestationError::UserDataVersion));
    }
}
