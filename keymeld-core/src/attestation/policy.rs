//! What a client demands of an enclave, and the checks.
//!
//! A policy is kept as JSON:
//!
//! ```json
//! {
//!   "version": 1,
//!   "roots": ["aws_nitro_g1", {"development": "<certificate, DER in hex>"}],
//!   "images": [{"pcr0": "<hex>", "pcr1": "<hex>", "pcr2": "<hex>", "pcr8": "<hex, signed images only>"}],
//!   "birth_pcr0": ["<hex>"],
//!   "config_hashes": ["<hex>"],
//!   "freshness_ms": 300000
//! }
//! ```
//!
//! Whoever talks to enclaves without a [`Client`](crate::client::Client) checks them like this:
//!
//! ```
//! use keymeld_core::attestation::AttestationError;
//! use keymeld_core::attestation::policy::{ClientAttestation, Policy};
//!
//! fn trusted(
//!     policy_file: &[u8],
//!     document: &[u8],
//!     own_nonce: &[u8; 32],
//!     now_unix_ms: u64,
//! ) -> Result<ClientAttestation, Box<dyn std::error::Error>> {
//!     Ok(Policy::from_json(policy_file)?.check(now_unix_ms, document, own_nonce)?)
//! }
//!
//! let hex = |byte: &str, count| byte.repeat(count);
//! let file = format!(
//!     r#"{{"version":1,"roots":["aws_nitro_g1"],"images":[{{"pcr0":"{0}","pcr1":"{0}","pcr2":"{0}"}}],
//!        "birth_pcr0":["{0}"],"config_hashes":["{1}"],"freshness_ms":300000}}"#,
//!     hex("ab", 48), hex("cd", 32),
//! );
//! let error = trusted(file.as_bytes(), b"no document", &[7; 32], 1_800_000_000_000).expect_err("none");
//! assert!(error.is::<AttestationError>());
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use secp256k1::{PublicKey, XOnlyPublicKey};
use serde::{Deserialize, Serialize};

use super::document::Document;
use super::hex::{Hex, HexVec};
use super::{AttestationError, PCR_BYTES, Root, RootKind, ServiceUserData, verify};

/// How far a document's time may be ahead of the client's clock, in milliseconds.
pub const SKEW_MS: u64 = 60_000;
/// The longest freshness window, in milliseconds: one day.
pub const FRESHNESS_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
/// The most bytes that a policy's JSON may have.
pub const POLICY_BYTES_MAX: usize = 256 * 1024;
/// The most entries in each of a policy's lists.
pub const POLICY_LIST_COUNT_MAX: usize = 256;

const VERSION: u32 = 1;

/// The registers of one allowed image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePcrs {
    /// The whole image.
    pub pcr0: [u8; PCR_BYTES],
    /// Kernel and boot file system.
    pub pcr1: [u8; PCR_BYTES],
    /// The application.
    pub pcr2: [u8; PCR_BYTES],
    /// The certificate that signed the image. `None` means that the image is not signed, and then the
    /// document's PCR8 must be absent or all zeros.
    pub pcr8: Option<[u8; PCR_BYTES]>,
}

/// What a client demands of an enclave. A document has to satisfy every list.
///
/// [`from_json`](Policy::from_json) is stricter than serde alone, which lets null pass for an absent field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PolicyFile", into = "PolicyFile")]
pub struct Policy {
    /// The trust anchors, usually one. AWS's stands alone.
    pub roots: Vec<Root>,
    /// The images that may run.
    pub images: Vec<ImagePcrs>,
    /// PCR0 of the images that may have made the enclave's keys.
    pub birth_pcr0: Vec<[u8; PCR_BYTES]>,
    /// The hashes of configurations that may run.
    pub config_hashes: Vec<[u8; 32]>,
    /// How old a document may be, in milliseconds, 1 to [`FRESHNESS_MS_MAX`].
    pub freshness_ms: u64,
}

/// What a client knows of an enclave whose document passed its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAttestation {
    /// The enclave's id, a UUID.
    pub enclave_id: [u8; 16],
    /// Counts the seeds of this enclave.
    pub epoch: u32,
    /// The key that envelopes are encrypted to, a compressed point.
    pub ecies_key: [u8; 33],
    /// The enclave's BIP-340 public key.
    pub identity_key: [u8; 32],
    /// PCR0 of the image that made the keys.
    pub birth_pcr0: [u8; PCR_BYTES],
    /// When the keys were made, in milliseconds since 1970.
    pub birth_time_ms: u64,
    /// The hash of the configuration that runs.
    pub config_hash: [u8; 32],
    /// PCR0 of the image that runs.
    pub pcr0: [u8; PCR_BYTES],
    /// When the document was made, in milliseconds since 1970.
    pub timestamp_ms: u64,
}

impl Policy {
    /// Checks everything that a client demands before it reads or verifies what an enclave made.
    ///
    /// `now_unix_ms` is the client's own clock, in milliseconds since 1970; `nonce` is what it sent.
    ///
    /// # Errors
    /// [`AttestationError`], one variant per reason.
    pub fn check(
        &self,
        now_unix_ms: u64,
        bytes: &[u8],
        nonce: &[u8; 32],
    ) -> Result<ClientAttestation, AttestationError> {
        let document = self.verify_under_a_root(bytes)?;
        self.check_freshness(now_unix_ms, document.timestamp_ms)?;
        if document.nonce.as_deref() != Some(nonce) {
            return Err(AttestationError::Nonce);
        }
        self.check_image(&document)?;
        let ecies_key = ecies_key(&document)?;
        let user_data = document.user_data.as_deref().ok_or(AttestationError::UserDataMissing)?;
        let stated = ServiceUserData::decode(user_data)?;
        XOnlyPublicKey::from_byte_array(stated.identity_key).map_err(|_| AttestationError::IdentityKey)?;
        if !self.birth_pcr0.contains(&stated.birth_pcr0) {
            return Err(AttestationError::BirthImageNotAllowed);
        }
        if !self.config_hashes.contains(&stated.config_hash) {
            return Err(AttestationError::ConfigNotAllowed);
        }
        Ok(ClientAttestation {
            enclave_id: stated.enclave_id,
            epoch: stated.epoch,
            ecies_key,
            identity_key: stated.identity_key,
            birth_pcr0: stated.birth_pcr0,
            birth_time_ms: stated.birth_time_ms,
            config_hash: stated.config_hash,
            pcr0: document.pcr(0)?,
            timestamp_ms: document.timestamp_ms,
        })
    }

    /// Checks, on top of [`check`](Self::check), what a client demands before it seals a key to an enclave.
    ///
    /// The keys must have been made by the image that runs, and not before `newest_birth_seen`: the birth time,
    /// in milliseconds since 1970, of the newest epoch that the client has seen of this enclave id. An enclave
    /// cannot tell a registration from a reopening, so this is the client's to check.
    ///
    /// # Errors
    /// [`AttestationError`], one variant per reason.
    pub fn check_for_registration(
        &self,
        now_unix_ms: u64,
        bytes: &[u8],
        nonce: &[u8; 32],
        newest_birth_seen: Option<u64>,
    ) -> Result<ClientAttestation, AttestationError> {
        let attestation = self.check(now_unix_ms, bytes, nonce)?;
        if attestation.birth_pcr0 != attestation.pcr0 {
            return Err(AttestationError::BornUnderAnotherImage);
        }
        if newest_birth_seen.is_some_and(|newest| attestation.birth_time_ms < newest) {
            return Err(AttestationError::BornBeforeNewest);
        }
        Ok(attestation)
    }

    /// Reads a policy from JSON, strictly: no unknown or duplicate names, no null, no arrays for objects,
    /// lower-case hex.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn from_json(json: &[u8]) -> Result<Policy, PolicyError> {
        if json.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLong);
        }
        let file: PolicyFile = serde_json::from_slice(json).map_err(|_| PolicyError::Malformed)?;
        // What serde lets through (null for an absent field, an array for an object) differs when re-encoded.
        let read: serde_json::Value = serde_json::from_slice(json).map_err(|_| PolicyError::Malformed)?;
        let again = serde_json::to_value(&file).map_err(|_| PolicyError::Malformed)?;
        if read != again {
            return Err(PolicyError::Malformed);
        }
        Policy::try_from(file)
    }

    /// The policy as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a policy has string keys and finite numbers only")
    }

    fn verify_under_a_root(&self, bytes: &[u8]) -> Result<Document, AttestationError> {
        // The bundle names its root; trying each in turn would check the signature once per root.
        let document = Document::parse_unverified(bytes)?;
        if are_mixed(&self.roots) {
            return Err(AttestationError::RootUntrusted);
        }
        let named = document.cabundle.first().ok_or(AttestationError::CabundleLength)?;
        let root = self.roots.iter().find(|root| root.der() == named.as_slice());
        verify(bytes, root.ok_or(AttestationError::RootUntrusted)?)
    }

    fn check_freshness(&self, now_unix_ms: u64, timestamp_ms: u64) -> Result<(), AttestationError> {
        if timestamp_ms > now_unix_ms.saturating_add(SKEW_MS) {
            return Err(AttestationError::FromTheFuture);
        }
        if now_unix_ms.saturating_sub(timestamp_ms) > self.freshness_ms {
            return Err(AttestationError::Stale);
        }
        Ok(())
    }

    fn check_image(&self, document: &Document) -> Result<(), AttestationError> {
        let (pcr0, pcr1, pcr2) = (document.pcr(0)?, document.pcr(1)?, document.pcr(2)?);
        let signer = document.pcr(8).ok().filter(|pcr8| *pcr8 != [0; PCR_BYTES]);
        let running = ImagePcrs { pcr0, pcr1, pcr2, pcr8: signer };
        if self.images.contains(&running) { Ok(()) } else { Err(AttestationError::ImageNotAllowed) }
    }
}

/// Every list of a policy holds for every root: images that AWS vouches for must not be anybody else's to claim.
fn are_mixed(roots: &[Root]) -> bool {
    roots.iter().any(|root| root.kind() != roots[0].kind())
}

fn ecies_key(document: &Document) -> Result<[u8; 33], AttestationError> {
    let key: [u8; 33] = document
        .public_key
        .as_deref()
        .and_then(|key| key.try_into().ok())
        .ok_or(AttestationError::EciesKey)?;
    PublicKey::from_byte_array_compressed(key).map_err(|_| AttestationError::EciesKey)?;
    Ok(key)
}

/// Why JSON is not a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Longer than [`POLICY_BYTES_MAX`].
    #[error("the policy is too long")]
    TooLong,
    /// Not JSON, or not of the policy's shape.
    #[error("the policy is malformed")]
    Malformed,
    /// A version that is not known here.
    #[error("unknown version of the policy")]
    Version,
    /// A list is empty or longer than [`POLICY_LIST_COUNT_MAX`].
    #[error("a list of the policy has the wrong length")]
    ListLength,
    /// A development root is not a certificate.
    #[error("a root of the policy is not a certificate")]
    Root,
    /// AWS's root beside a development root: whoever holds the latter's key could claim to run the former's images.
    #[error("the policy mixes AWS's root with a development root")]
    MixedRoots,
    /// An image has a PCR0 of zeros, or a PCR8 of zeros, which is no signer: it could never match.
    #[error("an image of the policy has a register of zeros")]
    ZeroPcr,
    /// The freshness window is 0 or over [`FRESHNESS_MS_MAX`].
    #[error("the freshness window is out of range")]
    Freshness,
}

/// The policy's JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    version: u32,
    roots: Vec<RootFile>,
    images: Vec<ImageFile>,
    birth_pcr0: Vec<Hex<PCR_BYTES>>,
    config_hashes: Vec<Hex<32>>,
    freshness_ms: u64,
}

#[derive(Clone, Serialize, Deserialize)]
enum RootFile {
    #[serde(rename = "aws_nitro_g1")]
    AwsNitroG1,
    #[serde(rename = "development")]
    Development(HexVec),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageFile {
    pcr0: Hex<PCR_BYTES>,
    pcr1: Hex<PCR_BYTES>,
    pcr2: Hex<PCR_BYTES>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pcr8: Option<Hex<PCR_BYTES>>,
}

impl TryFrom<PolicyFile> for Policy {
    type Error = PolicyError;

    fn try_from(file: PolicyFile) -> Result<Policy, PolicyError> {
        if file.version != VERSION {
            return Err(PolicyError::Version);
        }
        let counts = [file.roots.len(), file.images.len(), file.birth_pcr0.len(), file.config_hashes.len()];
        if counts.iter().any(|count| *count == 0 || *count > POLICY_LIST_COUNT_MAX) {
            return Err(PolicyError::ListLength);
        }
        if file.freshness_ms == 0 || file.freshness_ms > FRESHNESS_MS_MAX {
            return Err(PolicyError::Freshness);
        }
        let roots: Vec<Root> = file.roots.into_iter().map(Root::try_from).collect::<Result<_, _>>()?;
        if are_mixed(&roots) {
            return Err(PolicyError::MixedRoots);
        }
        Ok(Policy {
            roots,
            images: file.images.into_iter().map(ImagePcrs::try_from).collect::<Result<_, _>>()?,
            birth_pcr0: file.birth_pcr0.into_iter().map(|pcr0| pcr0.0).collect(),
            config_hashes: file.config_hashes.into_iter().map(|hash| hash.0).collect(),
            freshness_ms: file.freshness_ms,
        })
    }
}

impl TryFrom<RootFile> for Root {
    type Error = PolicyError;

    fn try_from(file: RootFile) -> Result<Root, PolicyError> {
        match file {
            RootFile::AwsNitroG1 => Ok(Root::aws_nitro_g1()),
            RootFile::Development(der) => Root::development(&der.0).map_err(|_| PolicyError::Root),
        }
    }
}

impl TryFrom<ImageFile> for ImagePcrs {
    type Error = PolicyError;

    fn try_from(file: ImageFile) -> Result<ImagePcrs, PolicyError> {
        let zero = Hex([0; PCR_BYTES]);
        if file.pcr0 == zero || file.pcr8 == Some(zero) {
            return Err(PolicyError::ZeroPcr);
        }
        Ok(ImagePcrs {
            pcr0: file.pcr0.0,
            pcr1: file.pcr1.0,
            pcr2: file.pcr2.0,
            pcr8: file.pcr8.map(|pcr8| pcr8.0),
        })
    }
}

impl From<Policy> for PolicyFile {
    fn from(policy: Policy) -> PolicyFile {
        PolicyFile {
            version: VERSION,
            roots: policy.roots.iter().map(RootFile::from).collect(),
            images: policy.images.iter().map(ImageFile::from).collect(),
            birth_pcr0: policy.birth_pcr0.into_iter().map(Hex).collect(),
            config_hashes: policy.config_hashes.into_iter().map(Hex).collect(),
            freshness_ms: policy.freshness_ms,
        }
    }
}

impl From<&Root> for RootFile {
    fn from(root: &Root) -> RootFile {
        match root.kind() {
            RootKind::AwsNitroG1 => RootFile::AwsNitroG1,
            RootKind::Development => RootFile::Development(HexVec(root.der().to_vec())),
        }
    }
}

impl From<&ImagePcrs> for ImageFile {
    fn from(image: &ImagePcrs) -> ImageFile {
        ImageFile {
            pcr0: Hex(image.pcr0),
            pcr1: Hex(image.pcr1),
            pcr2: Hex(image.pcr2),
            pcr8: image.pcr8.map(Hex),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec;

    use super::{FRESHNESS_MS_MAX, ImagePcrs, Policy, PolicyError, Root};

    fn policy() -> Policy {
        let image = ImagePcrs { pcr0: [1; 48], pcr1: [2; 48], pcr2: [3; 48], pcr8: None };
        Policy {
            roots: vec![Root::aws_nitro_g1()],
            images: vec![image.clone(), ImagePcrs { pcr8: Some([8; 48]), ..image }],
            birth_pcr0: vec![[1; 48]],
            config_hashes: vec![[4; 32], [5; 32]],
            freshness_ms: 300_000,
        }
    }

    fn read(json: &str) -> Result<Policy, PolicyError> {
        Policy::from_json(json.as_bytes())
    }

    #[test]
    fn a_policy_survives_its_file() {
        let mut policy = policy();
        assert_eq!(read(&policy.to_json()), Ok(policy.clone()));
        let compact = serde_json::to_string(&policy).expect("encodes");
        assert!(compact.starts_with(r#"{"version":1,"roots":["aws_nitro_g1"],"#));
        let root = Root::development(Root::aws_nitro_g1().der()).expect("a certificate");
        policy.roots = vec![root.clone(), root];
        assert_eq!(read(&policy.to_json()), Ok(policy.clone()));
        let compact = serde_json::to_string(&policy).expect("encodes");
        assert!(compact.starts_with(r#"{"version":1,"roots":[{"development":"3082021130"#));
        assert_eq!(serde_json::from_str::<Policy>(&compact).expect("decodes"), policy);
    }

    #[test]
    fn the_root_of_aws_stands_beside_no_other() {
        let mut policy = policy();
        let root = Root::development(Root::aws_nitro_g1().der()).expect("a certificate");
        policy.roots.push(root.clone());
        assert_eq!(read(&policy.to_json()), Err(PolicyError::MixedRoots));
        policy.roots.insert(0, root);
        assert_eq!(read(&policy.to_json()), Err(PolicyError::MixedRoots));
    }

    #[test]
    fn only_strict_json_is_read() {
        let good = serde_json::to_string(&policy()).expect("encodes");
        let replaced = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            good.replacen(from, to, 1)
        };
        let pcr8 = String::from(r#","pcr8":""#) + &"08".repeat(48) + "\"";
        let malformed = [
            replaced(r#""version":1"#, r#""version":1,"more":1"#),
            replaced(r#""version":1"#, r#""version":1,"version":1"#),
            replaced(r#""version":1"#, r#""version":1.0"#),
            replaced(r#""version":1,"#, ""),
            replaced("aws_nitro_g1", "aws"),
            replaced(r#""aws_nitro_g1""#, r#"{"aws_nitro_g1":null}"#),
            replaced(&pcr8, r#","pcr8":null"#),
            replaced(&"01".repeat(48), &"0A".repeat(48)),
            replaced(&"01".repeat(48), &"01".repeat(47)),
            replaced("300000", "-1"),
            good.clone() + "{}",
            good[..good.len() - 1].to_string(),
            String::from(r#"[1,["aws_nitro_g1"],[],[],[],300000]"#),
        ];
        for json in malformed {
            assert_eq!(read(&json), Err(PolicyError::Malformed), "{json}");
        }
        assert_eq!(read(&replaced(r#""version":1"#, r#""version":2"#)), Err(PolicyError::Version));
        assert_eq!(read(&replaced(r#"["aws_nitro_g1"]"#, "[]")), Err(PolicyError::ListLength));
        assert_eq!(read(&replaced(r#""aws_nitro_g1""#, r#"{"development":"30"}"#)), Err(PolicyError::Root));
        assert_eq!(read(&replaced(&"01".repeat(48), &"00".repeat(48))), Err(PolicyError::ZeroPcr));
        assert_eq!(read(&replaced(&"08".repeat(48), &"00".repeat(48))), Err(PolicyError::ZeroPcr));
        for freshness_ms in [0, FRESHNESS_MS_MAX + 1] {
            let json = replaced("300000", &freshness_ms.to_string());
            assert_eq!(read(&json), Err(PolicyError::Freshness));
        }
        assert_eq!(read(&" ".repeat(256 * 1024 + 1)), Err(PolicyError::TooLong));
    }
}
