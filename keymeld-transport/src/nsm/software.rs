//! A security module in software, for development and tests.
//!
//! It signs real documents, which the real verifier checks, under a root that only a policy which names it
//! accepts. They prove nothing to anybody else.

mod certificate;
mod root_files;

use std::fmt;
use std::sync::Arc;

use keymeld_core::entropy::{Entropy, EntropyFailed};
use minicbor::Encoder;
use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha384};
use zeroize::Zeroizing;

use self::certificate::{Authority, Validity};
pub use self::root_files::{CERTIFICATE_FILE, KEY_FILE, RootFileError};
use super::{INPUT_BYTES_MAX, Nsm, NsmError};

/// How long a leaf is valid, in seconds; as long as the real ones.
pub const LEAF_VALIDITY_S: u64 = 3 * 60 * 60;
/// A leaf that expires within so many seconds is replaced.
const LEAF_RENEWAL_S: u64 = 5 * 60;
/// Real leaves begin a moment before the documents that they sign.
const LEAF_BACKDATE_S: u64 = 3;

const PCR_COUNT: u8 = 16;

/// Registers of a software module: 0 to 15, all but the named ones zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcrs {
    /// The whole image; all zeros is debug mode, which every verifier refuses.
    pub pcr0: [u8; 48],
    /// Kernel and boot file system.
    pub pcr1: [u8; 48],
    /// The application.
    pub pcr2: [u8; 48],
    /// The certificate that signed the image; all zeros where none did.
    pub pcr8: [u8; 48],
}

impl Pcrs {
    /// The registers of a made-up image: PCR0 to PCR2 are SHA-384 of `label` and the index, PCR8 is zeros.
    pub fn of_label(label: &str) -> Pcrs {
        let measure = |index: u8| {
            let hash = Sha384::new()
                .chain_update("keymeld development image")
                .chain_update([index])
                .chain_update(label)
                .finalize();
            hash.into()
        };
        Pcrs { pcr0: measure(0), pcr1: measure(1), pcr2: measure(2), pcr8: [0; 48] }
    }

    fn register(&self, index: u8) -> [u8; 48] {
        match index {
            0 => self.pcr0,
            1 => self.pcr1,
            2 => self.pcr2,
            8 => self.pcr8,
            _ => [0; 48],
        }
    }
}

impl Default for Pcrs {
    /// The registers of the image "development".
    fn default() -> Self {
        Pcrs::of_label("development")
    }
}

/// A test root: a P-384 key and its self-signed certificate, valid from 1970 to 2049.
#[derive(Clone)]
pub struct SoftwareRoot {
    // Shared, not copied, with the modules under it.
    authority: Arc<Authority>,
}

impl SoftwareRoot {
    /// Makes a root in memory; the same entropy gives the same root.
    ///
    /// # Errors
    /// [`EntropyFailed`].
    pub fn generate(entropy: &mut Entropy) -> Result<SoftwareRoot, EntropyFailed> {
        Ok(SoftwareRoot::from_key(signing_key(entropy)?))
    }

    /// The certificate, DER: what a development policy names.
    pub fn certificate(&self) -> &[u8] {
        self.authority.certificate()
    }

    /// Makes a security module under this root.
    ///
    /// `module` becomes the end of the module id, in hex; `clock` gives milliseconds since 1970, before 2049;
    /// `entropy` makes the keys and answers [`Nsm::random`], so it must not repeat itself across restarts
    /// where real keys depend on it.
    ///
    /// # Errors
    /// [`NsmError::Entropy`].
    pub fn nsm(
        &self,
        module: u64,
        pcrs: Pcrs,
        mut clock: impl FnMut() -> u64 + Send + 'static,
        mut entropy: Entropy,
    ) -> Result<SoftwareNsm, NsmError> {
        let module_id = format!("i-0123456789abcdef0-enc{module:016x}");
        let signer = LeafSigner::issue(self, &module_id, clock() / 1_000, &mut entropy)?;
        Ok(SoftwareNsm { root: self.clone(), module_id, pcrs, clock: Box::new(clock), entropy, signer })
    }

    fn from_key(key: SigningKey) -> SoftwareRoot {
        SoftwareRoot { authority: Arc::new(Authority::self_signed(key)) }
    }
}

impl fmt::Debug for SoftwareRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SoftwareRoot")
    }
}

/// A security module in software.
pub struct SoftwareNsm {
    root: SoftwareRoot,
    module_id: String,
    pcrs: Pcrs,
    clock: Box<dyn FnMut() -> u64 + Send>,
    entropy: Entropy,
    signer: LeafSigner,
}

impl SoftwareNsm {
    /// What documents state as their module.
    pub fn module_id(&self) -> &str {
        &self.module_id
    }

    /// The certificate that signs now and the bundle above it, the root first; DER.
    pub fn certificates(&self) -> (&[u8], [&[u8]; 2]) {
        (&self.signer.certificate, [self.root.certificate(), &self.signer.intermediate])
    }

    /// Signs any payload whatever, so that tests can make documents that no module would.
    pub fn sign_payload(&self, payload: &[u8]) -> Vec<u8> {
        sign1(&self.signer.key, payload)
    }

    fn renew_leaf(&mut self, unix_time_s: u64) -> Result<(), NsmError> {
        let window = self.signer.validity;
        let renewal_s = window.not_after_s - LEAF_RENEWAL_S;
        if unix_time_s < window.not_before_s || unix_time_s >= renewal_s {
            self.signer = LeafSigner::issue(&self.root, &self.module_id, unix_time_s, &mut self.entropy)?;
        }
        Ok(())
    }
}

impl Nsm for SoftwareNsm {
    fn attest(
        &mut self,
        public_key: Option<&[u8]>,
        nonce: Option<&[u8]>,
        user_data: Option<&[u8]>,
    ) -> Result<Vec<u8>, NsmError> {
        if [public_key, nonce, user_data].iter().flatten().any(|input| input.len() > INPUT_BYTES_MAX) {
            return Err(NsmError::InputTooLong);
        }
        let timestamp_ms = (self.clock)();
        self.renew_leaf(timestamp_ms / 1_000)?;
        let (certificate, cabundle) = self.certificates();
        let payload = Payload {
            module_id: &self.module_id,
            timestamp_ms,
            pcrs: &self.pcrs,
            certificate,
            cabundle,
            public_key,
            user_data,
            nonce,
        };
        Ok(self.sign_payload(&payload.encode()))
    }

    fn random(&mut self, out: &mut [u8]) -> Result<(), NsmError> {
        self.entropy.fill(out).map_err(|EntropyFailed| NsmError::Entropy)
    }

    fn pcr0(&mut self) -> Result<[u8; 48], NsmError> {
        Ok(self.pcrs.pcr0)
    }
}

impl fmt::Debug for SoftwareNsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoftwareNsm({})", self.module_id)
    }
}

/// A leaf with its key and the intermediate above it, all made together: an intermediate's key signs once
/// and is dropped.
struct LeafSigner {
    key: SigningKey,
    certificate: Vec<u8>,
    intermediate: Vec<u8>,
    validity: Validity,
}

impl LeafSigner {
    fn issue(
        root: &SoftwareRoot,
        module_id: &str,
        unix_time_s: u64,
        entropy: &mut Entropy,
    ) -> Result<LeafSigner, NsmError> {
        let mut fresh_key = || signing_key(entropy).map_err(|EntropyFailed| NsmError::Entropy);
        let (intermediate_key, key) = (fresh_key()?, fresh_key()?);
        let not_before_s = unix_time_s.saturating_sub(LEAF_BACKDATE_S);
        let validity = Validity { not_before_s, not_after_s: not_before_s + LEAF_VALIDITY_S };
        let intermediate =
            root.authority.issue_authority("keymeld development zone", intermediate_key, validity)?;
        let certificate = intermediate.issue_leaf(module_id, &key, validity)?;
        Ok(LeafSigner { key, certificate, intermediate: intermediate.certificate().to_vec(), validity })
    }
}

/// The fields in the order of genuine documents, in a map of indefinite length like theirs since 2025.
struct Payload<'a> {
    module_id: &'a str,
    timestamp_ms: u64,
    pcrs: &'a Pcrs,
    certificate: &'a [u8],
    cabundle: [&'a [u8]; 2],
    public_key: Option<&'a [u8]>,
    user_data: Option<&'a [u8]>,
    nonce: Option<&'a [u8]>,
}

type Encoded = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

impl Payload<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::with_capacity(4096));
        self.encode_fields(&mut encoder).expect("writing to a Vec cannot fail");
        encoder.into_writer()
    }

    fn encode_fields(&self, encoder: &mut Encoder<Vec<u8>>) -> Encoded {
        encoder.begin_map()?;
        encoder.str("module_id")?.str(self.module_id)?;
        encoder.str("digest")?.str("SHA384")?;
        encoder.str("timestamp")?.u64(self.timestamp_ms)?;
        encoder.str("pcrs")?.map(u64::from(PCR_COUNT))?;
        for index in 0..PCR_COUNT {
            encoder.u8(index)?.bytes(&self.pcrs.register(index))?;
        }
        encoder.str("certificate")?.bytes(self.certificate)?;
        encoder.str("cabundle")?.array(self.cabundle.len() as u64)?;
        for certificate in self.cabundle {
            encoder.bytes(certificate)?;
        }
        let optional =
            [("public_key", self.public_key), ("user_data", self.user_data), ("nonce", self.nonce)];
        for (name, value) in optional {
            encoder.str(name)?;
            match value {
                Some(bytes) => encoder.bytes(bytes)?,
                None => encoder.null()?,
            };
        }
        encoder.end()?;
        Ok(())
    }
}

/// COSE_Sign1 (RFC 9052, section 4.2), untagged like genuine documents.
fn sign1(key: &SigningKey, payload: &[u8]) -> Vec<u8> {
    /// `{1: -35}`: ES384.
    const PROTECTED: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];
    let signed = |encoder: &mut Encoder<Vec<u8>>| -> Encoded {
        encoder.array(4)?.str("Signature1")?.bytes(&PROTECTED)?.bytes(&[])?.bytes(payload)?;
        Ok(())
    };
    let mut encoder = Encoder::new(Vec::with_capacity(payload.len() + 32));
    signed(&mut encoder).expect("writing to a Vec cannot fail");
    let signature: Signature = key.sign(encoder.writer());

    let outer = |encoder: &mut Encoder<Vec<u8>>| -> Encoded {
        encoder.array(4)?.bytes(&PROTECTED)?.map(0)?.bytes(payload)?.bytes(&signature.to_bytes())?;
        Ok(())
    };
    let mut encoder = Encoder::new(Vec::with_capacity(payload.len() + 128));
    outer(&mut encoder).expect("writing to a Vec cannot fail");
    encoder.into_writer()
}

fn signing_key(entropy: &mut Entropy) -> Result<SigningKey, EntropyFailed> {
    let mut scalar = Zeroizing::new([0; 48]);
    entropy.fill(scalar.as_mut_slice())?;
    // One draw in 2^190 is not below the curve's order.
    SigningKey::from_slice(scalar.as_slice()).map_err(|_| EntropyFailed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use keymeld_core::attestation::{Root, verify};
    use keymeld_core::entropy::test_entropy;

    use super::{LEAF_RENEWAL_S, LEAF_VALIDITY_S, Nsm, NsmError, Pcrs, SoftwareRoot};

    #[test]
    fn the_same_entropy_makes_the_same_documents() {
        let documents = |seed| {
            let root = SoftwareRoot::generate(&mut test_entropy(seed)).expect("entropy");
            let mut nsm = root.nsm(5, Pcrs::default(), || 1_000, test_entropy(seed)).expect("a module");
            let document = nsm.attest(None, Some(&[1]), None).expect("attests");
            let mut random = [0; 32];
            nsm.random(&mut random).expect("entropy");
            (root.certificate().to_vec(), document, random)
        };
        assert_eq!(documents(1), documents(1));
        assert_ne!(documents(1), documents(2));
    }

    #[test]
    fn documents_stay_valid_as_time_goes_by_and_jumps_back() {
        let software = SoftwareRoot::generate(&mut test_entropy(1)).expect("entropy");
        let root = Root::development(software.certificate()).expect("a certificate");
        let time_ms = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&time_ms);
        let mut nsm = software
            .nsm(1, Pcrs::default(), move || clock.load(Ordering::Relaxed), test_entropy(2))
            .expect("a module");
        let last_s = LEAF_VALIDITY_S - LEAF_RENEWAL_S - 1;
        let mut leaves = Vec::new();
        for unix_time_s in [0, 1, last_s, last_s + 1, 1_800_000_000, 1_700_000_000] {
            time_ms.store(unix_time_s * 1_000, Ordering::Relaxed);
            let bytes = nsm.attest(None, None, None).expect("attests");
            let document = verify(&bytes, &root).expect("verifies");
            assert_eq!(document.timestamp_ms, unix_time_s * 1_000);
            assert_eq!(document.module_id, "i-0123456789abcdef0-enc0000000000000001");
            leaves.push(document.certificate);
        }
        leaves.dedup();
        assert_eq!(leaves.len(), 4);
    }

    #[test]
    fn inputs_are_bounded() {
        let root = SoftwareRoot::generate(&mut test_entropy(1)).expect("entropy");
        let mut nsm = root.nsm(1, Pcrs::default(), || 0, test_entropy(2)).expect("a module");
        let long = [0; 1025];
        assert_eq!(nsm.attest(Some(&long), None, None), Err(NsmError::InputTooLong));
        assert_eq!(nsm.attest(None, Some(&long), None), Err(NsmError::InputTooLong));
        assert_eq!(nsm.attest(None, None, Some(&long)), Err(NsmError::InputTooLong));
        assert_eq!(nsm.pcr0(), Ok(Pcrs::default().pcr0));
        assert_eq!(
            format!("{root:?} {nsm:?}"),
            "SoftwareRoot SoftwareNsm(i-0123456789abcdef0-enc0000000000000001)"
        );
    }
}
