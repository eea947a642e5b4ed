//! The document itself: COSE_Sign1 around the NSM's payload.
//!
//! Genuine documents occur tagged and untagged, with definite and with indefinite maps, so they are not
//! compared with a re-encoding; every field, length and count is checked instead.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use minicbor::Encoder;
use minicbor::data::{Tag, Type};
use minicbor::decode::Decoder;

use super::{AttestationError, PCR_BYTES};

/// The most bytes that a document may have. The NSM's own responses end at 12,288.
pub const DOCUMENT_BYTES_MAX: usize = 16 * 1024;
/// The most certificates in a cabundle; genuine ones have four.
pub const CABUNDLE_COUNT_MAX: usize = 8;

const MODULE_ID_BYTES_MAX: usize = 128;
const CERTIFICATE_BYTES_MAX: usize = 1024;
const OPTIONAL_FIELD_BYTES_MAX: usize = 1024;
const PCR_INDEX_MAX: u8 = 31;

/// COSE, RFC 9052, section 4.2: the tag of a COSE_Sign1.
const SIGN1_TAG: u64 = 18;
/// `{1: -35}`: the algorithm is ES384. Every genuine document has exactly these bytes.
const PROTECTED_ES384: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];
/// r and s of P-384, 48 bytes each.
const SIGNATURE_BYTES: usize = 96;

/// The fields of an attestation document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Names the module that signed: `i-<instance>-enc<enclave>` for an enclave.
    pub module_id: String,
    /// When it was made by the hypervisor's clock, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// The platform configuration registers by index (0 to 31), [`PCR_BYTES`] each.
    pub pcrs: BTreeMap<u8, Vec<u8>>,
    /// The certificate that signed, DER, 1 to 1,024 bytes.
    pub certificate: Vec<u8>,
    /// The certificates above it, the root first, DER, 1 to [`CABUNDLE_COUNT_MAX`].
    pub cabundle: Vec<Vec<u8>>,
    /// What the enclave gave as its public key, at most 1,024 bytes.
    pub public_key: Option<Vec<u8>>,
    /// What the enclave gave as user data, at most 1,024 bytes.
    pub user_data: Option<Vec<u8>>,
    /// What the enclave gave as nonce, at most 1,024 bytes.
    pub nonce: Option<Vec<u8>>,
}

impl Document {
    /// Reads a document without checking any signature.
    ///
    /// For an enclave that reads the time from a document which its own NSM just made. Whoever got the bytes
    /// from anybody else takes [`verify`](super::verify).
    ///
    /// # Errors
    /// [`AttestationError`] where the bytes are not a document.
    pub fn parse_unverified(bytes: &[u8]) -> Result<Document, AttestationError> {
        Sign1::parse(bytes)?.document()
    }

    /// One PCR.
    ///
    /// # Errors
    /// [`AttestationError::PcrMissing`] where the document does not have it.
    pub fn pcr(&self, index: u8) -> Result<[u8; PCR_BYTES], AttestationError> {
        let pcr = self.pcrs.get(&index).ok_or(AttestationError::PcrMissing)?;
        pcr.as_slice().try_into().map_err(|_| AttestationError::PcrLength)
    }

    /// Whether `module_id` is an enclave's: `i-`, hexadecimal digits, `-enc`, hexadecimal digits, all
    /// lower-case. A NitroTPM's has another middle, and a parent instance none.
    pub fn is_from_enclave(&self) -> bool {
        let is_hex = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        self.module_id
            .strip_prefix("i-")
            .and_then(|rest| rest.split_once("-enc"))
            .is_some_and(|(instance, enclave)| is_hex(instance) && is_hex(enclave))
    }
}

/// The outer structure: what is signed, and the signature.
pub(super) struct Sign1<'a> {
    payload: &'a [u8],
    signature: [u8; SIGNATURE_BYTES],
}

impl<'a> Sign1<'a> {
    /// Reads the outer structure (RFC 9052, section 4.2).
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, AttestationError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(AttestationError::DocumentTooLong);
        }
        let mut decoder = Decoder::new(bytes);
        if decoder.datatype().map_err(malformed)? == Type::Tag
            && decoder.tag().map_err(malformed)? != Tag::new(SIGN1_TAG)
        {
            return Err(AttestationError::NotSign1);
        }
        if decoder.array().map_err(malformed)? != Some(4) {
            return Err(AttestationError::NotSign1);
        }
        if decoder.bytes().map_err(malformed)? != PROTECTED_ES384 {
            return Err(AttestationError::ProtectedHeader);
        }
        if decoder.map().map_err(malformed)? != Some(0) {
            return Err(AttestationError::UnprotectedHeader);
        }
        let payload = decoder.bytes().map_err(malformed)?;
        let signature = decoder.bytes().map_err(malformed)?;
        let signature = signature.try_into().map_err(|_| AttestationError::SignatureLength)?;
        finished(&decoder)?;
        Ok(Sign1 { payload, signature })
    }

    /// Reads the payload.
    pub(super) fn document(&self) -> Result<Document, AttestationError> {
        let mut decoder = Decoder::new(self.payload);
        let mut fields = Fields::default();
        let mut entries = Entries::new(decoder.map().map_err(malformed)?);
        while entries.advance(&mut decoder)? {
            fields.read(&mut decoder)?;
        }
        finished(&decoder)?;
        fields.into_document()
    }

    /// The bytes that are signed: RFC 9052, section 4.4, *Sig_structure*, with no external data.
    pub(super) fn signed_bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::with_capacity(self.payload.len() + 32));
        encoder
            .array(4)
            .and_then(|encoder| encoder.str("Signature1"))
            .and_then(|encoder| encoder.bytes(&PROTECTED_ES384))
            .and_then(|encoder| encoder.bytes(&[]))
            .and_then(|encoder| encoder.bytes(self.payload))
            .expect("writing to a Vec cannot fail");
        encoder.into_writer()
    }

    /// r and s, 48 bytes each, big endian.
    pub(super) fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.signature
    }
}

/// The payload's fields as far as they were met.
#[derive(Default)]
struct Fields {
    module_id: Option<String>,
    digest: Option<()>,
    timestamp_ms: Option<u64>,
    pcrs: Option<BTreeMap<u8, Vec<u8>>>,
    certificate: Option<Vec<u8>>,
    cabundle: Option<Vec<Vec<u8>>>,
    // The outer option says whether the field was met, the inner one whether it was null.
    public_key: Option<Option<Vec<u8>>>,
    user_data: Option<Option<Vec<u8>>>,
    nonce: Option<Option<Vec<u8>>>,
}

impl Fields {
    fn read(&mut self, decoder: &mut Decoder<'_>) -> Result<(), AttestationError> {
        match decoder.str().map_err(malformed)? {
            "module_id" => put(&mut self.module_id, module_id(decoder)?),
            "digest" => put(&mut self.digest, digest(decoder)?),
            "timestamp" => put(&mut self.timestamp_ms, decoder.u64().map_err(malformed)?),
            "pcrs" => put(&mut self.pcrs, pcrs(decoder)?),
            "certificate" => put(&mut self.certificate, certificate(decoder)?),
            "cabundle" => put(&mut self.cabundle, cabundle(decoder)?),
            "public_key" => put(&mut self.public_key, optional_bytes(decoder)?),
            "user_data" => put(&mut self.user_data, optional_bytes(decoder)?),
            "nonce" => put(&mut self.nonce, optional_bytes(decoder)?),
            _ => Err(AttestationError::UnknownField),
        }
    }

    fn into_document(self) -> Result<Document, AttestationError> {
        let missing = AttestationError::MissingField;
        self.digest.ok_or(missing)?;
        Ok(Document {
            module_id: self.module_id.ok_or(missing)?,
            timestamp_ms: self.timestamp_ms.ok_or(missing)?,
            pcrs: self.pcrs.ok_or(missing)?,
            certificate: self.certificate.ok_or(missing)?,
            cabundle: self.cabundle.ok_or(missing)?,
            public_key: self.public_key.flatten(),
            user_data: self.user_data.flatten(),
            nonce: self.nonce.flatten(),
        })
    }
}

fn put<T>(field: &mut Option<T>, value: T) -> Result<(), AttestationError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(AttestationError::DuplicateField),
    }
}

fn module_id(decoder: &mut Decoder<'_>) -> Result<String, AttestationError> {
    let id = decoder.str().map_err(malformed)?;
    if id.is_empty() || id.len() > MODULE_ID_BYTES_MAX {
        return Err(AttestationError::ModuleIdLength);
    }
    Ok(id.to_owned())
}

fn digest(decoder: &mut Decoder<'_>) -> Result<(), AttestationError> {
    match decoder.str().map_err(malformed)? {
        "SHA384" => Ok(()),
        _ => Err(AttestationError::Digest),
    }
}

/// AWS's format has room for PCRs of 32 and 64 bytes, with other digests; SHA384 gives 48.
fn pcrs(decoder: &mut Decoder<'_>) -> Result<BTreeMap<u8, Vec<u8>>, AttestationError> {
    let mut pcrs = BTreeMap::new();
    let mut entries = Entries::new(decoder.map().map_err(malformed)?);
    while entries.advance(decoder)? {
        let index = decoder.u64().map_err(malformed)?;
        let index = u8::try_from(index).map_err(|_| AttestationError::PcrIndex)?;
        if index > PCR_INDEX_MAX {
            return Err(AttestationError::PcrIndex);
        }
        let pcr = decoder.bytes().map_err(malformed)?;
        if pcr.len() != PCR_BYTES {
            return Err(AttestationError::PcrLength);
        }
        if pcrs.insert(index, pcr.to_vec()).is_some() {
            return Err(AttestationError::DuplicatePcr);
        }
    }
    Ok(pcrs)
}

fn certificate(decoder: &mut Decoder<'_>) -> Result<Vec<u8>, AttestationError> {
    let der = decoder.bytes().map_err(malformed)?;
    if der.is_empty() || der.len() > CERTIFICATE_BYTES_MAX {
        return Err(AttestationError::CertificateLength);
    }
    Ok(der.to_vec())
}

fn cabundle(decoder: &mut Decoder<'_>) -> Result<Vec<Vec<u8>>, AttestationError> {
    let mut certificates = Vec::new();
    let mut entries = Entries::new(decoder.array().map_err(malformed)?);
    while entries.advance(decoder)? {
        if certificates.len() == CABUNDLE_COUNT_MAX {
            return Err(AttestationError::CabundleLength);
        }
        certificates.push(certificate(decoder)?);
    }
    if certificates.is_empty() {
        return Err(AttestationError::CabundleLength);
    }
    Ok(certificates)
}

fn optional_bytes(decoder: &mut Decoder<'_>) -> Result<Option<Vec<u8>>, AttestationError> {
    if decoder.datatype().map_err(malformed)? == Type::Null {
        decoder.null().map_err(malformed)?;
        return Ok(None);
    }
    let bytes = decoder.bytes().map_err(malformed)?;
    if bytes.len() > OPTIONAL_FIELD_BYTES_MAX {
        return Err(AttestationError::OptionalFieldLength);
    }
    Ok(Some(bytes.to_vec()))
}

/// Walks a map or an array of definite or indefinite length.
struct Entries {
    left: Option<u64>,
}

impl Entries {
    fn new(length: Option<u64>) -> Self {
        Entries { left: length }
    }

    /// Whether another entry follows; takes the break that ends an indefinite one.
    fn advance(&mut self, decoder: &mut Decoder<'_>) -> Result<bool, AttestationError> {
        if let Some(left) = &mut self.left {
            let another = *left > 0;
            *left = left.saturating_sub(1);
            return Ok(another);
        }
        if decoder.datatype().map_err(malformed)? == Type::Break {
            decoder.set_position(decoder.position() + 1);
            return Ok(false);
        }
        Ok(true)
    }
}

fn finished(decoder: &Decoder<'_>) -> Result<(), AttestationError> {
    if decoder.position() == decoder.input().len() { Ok(()) } else { Err(AttestationError::TrailingBytes) }
}

/// The library's reasons name positions; ours say only that it is not CBOR of the expected type.
fn malformed(_: minicbor::decode::Error) -> AttestationError {
    AttestationError::Malformed
}
