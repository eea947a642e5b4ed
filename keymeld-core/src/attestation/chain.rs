//! Signatures and the certificate path from a document to its pinned root.

use alloc::vec::Vec;
use core::time::Duration;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime, alg_id,
};
use webpki::aws_lc_rs::ECDSA_P384_SHA384;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use super::AttestationError;
use super::document::Sign1;

/// The SHA-256 of the AWS Nitro Enclaves root certificate G1 (DER), as AWS publishes it.
pub const AWS_NITRO_ROOT_G1_SHA256: [u8; 32] = [
    0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31, 0x7e,
    0xd7, 0xcd, 0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
];

/// The certificate itself, DER in lower-case hex.
///
/// To obtain it: download `AWS_NitroEnclaves_Root-G1.zip`, which the AWS Nitro Enclaves user guide links
/// under "Verifying the root of trust", check the certificate's SHA-256 fingerprint against the guide, and
/// convert it with `openssl x509 -outform der`. It is valid from 2019-10-28 to 2049-10-28.
const AWS_NITRO_ROOT_G1_HEX: &str = "\
    3082021130820196a003020102021100f93175681b90afe11d46ccb4e4e7f856300a06082a8648ce3d04030330\
    49310b3009060355040613025553310f300d060355040a0c06416d617a6f6e310c300a060355040b0c03415753\
    311b301906035504030c126177732e6e6974726f2d656e636c61766573301e170d313931303238313332383035\
    5a170d3439313032383134323830355a3049310b3009060355040613025553310f300d060355040a0c06416d61\
    7a6f6e310c300a060355040b0c03415753311b301906035504030c126177732e6e6974726f2d656e636c617665\
    733076301006072a8648ce3d020106052b8104002203620004fc0254eba608c1f36870e29ada90be4638329273\
    6e894bfff672d989444b5051e534a4b1f6dbe3c0bc581a32b7b176070ede12d69a3fea211b66e752cf7dd1dd09\
    5f6f1370f4170843d9dc100121e4cf63012809664487c9796284304dc53ff4a3423040300f0603551d130101ff\
    040530030101ff301d0603551d0e041604149025b50dd90547e796c396fa729dcf99a9df4b96300e0603551d0f\
    0101ff040403020186300a06082a8648ce3d0403030369003066023100a37f2f91a1c9bd5ee7b8627c1698d255\
    038e1f0343f95b63a9628c3d39809545a11ebcbf2e3b55d8aeee71b4c3d6adf3023100a2f39b1605b27028a5dd\
    4ba069b5016e65b4fbde8fe0061d6a53197f9cdaf5d943bc61fc2beb03cb6fee8d2302f3dff6";

/// Whose root it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootKind {
    /// AWS's: documents are made by Nitro hardware.
    AwsNitroG1,
    /// A development root: documents are made by a software NSM and prove nothing to anybody else.
    Development,
}

/// A pinned trust anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    kind: RootKind,
    der: Vec<u8>,
    not_before_s: u64,
    not_after_s: u64,
}

impl Root {
    /// The AWS Nitro Enclaves root G1.
    pub fn aws_nitro_g1() -> Root {
        let der = base16ct::lower::decode_vec(AWS_NITRO_ROOT_G1_HEX).expect("the constant is hex");
        Root::new(RootKind::AwsNitroG1, &der).expect("the constant is a certificate")
    }

    /// A development root, DER.
    ///
    /// # Errors
    /// [`AttestationError::RootMalformed`] where `der` is not a version 3 certificate.
    pub fn development(der: &[u8]) -> Result<Root, AttestationError> {
        Root::new(RootKind::Development, der)
    }

    /// Whose root it is.
    pub fn kind(&self) -> RootKind {
        self.kind
    }

    /// The certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    fn new(kind: RootKind, der: &[u8]) -> Result<Root, AttestationError> {
        let certificate = CertificateDer::from(der);
        webpki::anchor_from_trusted_cert(&certificate).map_err(|_| AttestationError::RootMalformed)?;
        let (not_before, not_after) = validity(der).map_err(|_| AttestationError::RootMalformed)?;
        Ok(Root {
            kind,
            der: der.to_vec(),
            not_before_s: not_before.as_secs(),
            not_after_s: not_after.as_secs(),
        })
    }

    /// A path validator takes an anchor as given, so its window is checked here.
    fn check_window(&self, unix_time_s: u64) -> Result<(), AttestationError> {
        if unix_time_s < self.not_before_s {
            return Err(AttestationError::CertificateNotYetValid);
        }
        if unix_time_s > self.not_after_s {
            return Err(AttestationError::CertificateExpired);
        }
        Ok(())
    }
}

/// Checks the document's signature under the key in `certificate`, which nothing vouches for yet.
pub(super) fn verify_signature(sign1: &Sign1<'_>, certificate: &[u8]) -> Result<(), AttestationError> {
    let certificate = CertificateDer::from(certificate);
    let certificate =
        EndEntityCert::try_from(&certificate).map_err(|_| AttestationError::CertificateMalformed)?;
    certificate.verify_signature(&CoseEs384, &sign1.signed_bytes(), sign1.signature()).map_err(|error| {
        match error {
            webpki::Error::InvalidSignatureForPublicKey => AttestationError::SignatureInvalid,
            _ => AttestationError::CertificateMalformed,
        }
    })
}

/// Checks the path from `certificate` through `cabundle`, whose first element is the root, at a time.
pub(super) fn verify_path(
    certificate: &[u8],
    cabundle: &[Vec<u8>],
    root: &Root,
    unix_time_s: u64,
) -> Result<(), AttestationError> {
    root.check_window(unix_time_s)?;
    let root_der = CertificateDer::from(root.der());
    let anchor = webpki::anchor_from_trusted_cert(&root_der).map_err(|_| AttestationError::RootMalformed)?;
    let intermediates: Vec<_> =
        cabundle.iter().skip(1).map(|der| CertificateDer::from(der.as_slice())).collect();
    let certificate = CertificateDer::from(certificate);
    let certificate =
        EndEntityCert::try_from(&certificate).map_err(|_| AttestationError::CertificateMalformed)?;
    certificate
        .verify_for_usage(
            &[ECDSA_P384_SHA384],
            &[anchor],
            &intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(unix_time_s)),
            AnyUsage,
            None,
            None,
        )
        .map_err(path_error)?;
    Ok(())
}

fn path_error(error: webpki::Error) -> AttestationError {
    match error {
        webpki::Error::CertNotValidYet { .. } => AttestationError::CertificateNotYetValid,
        webpki::Error::CertExpired { .. } => AttestationError::CertificateExpired,
        _ => AttestationError::PathInvalid,
    }
}

/// The window in which a certificate is valid, both ends inclusive (RFC 5280, section 4.1.2.5).
fn validity(der: &[u8]) -> der::Result<(Duration, Duration)> {
    let mut reader = SliceReader::new(der)?;
    let window = reader.sequence(|certificate| {
        let window = certificate.sequence(|tbs| {
            let _version = AnyRef::decode(tbs)?;
            let _serial = AnyRef::decode(tbs)?;
            let _signature = AnyRef::decode(tbs)?;
            let _issuer = AnyRef::decode(tbs)?;
            let window = tbs.sequence(|window| Ok::<_, der::Error>((time(window)?, time(window)?)))?;
            while !tbs.is_finished() {
                AnyRef::decode(tbs)?;
            }
            Ok::<_, der::Error>(window)
        })?;
        let _algorithm = AnyRef::decode(certificate)?;
        let _signature = AnyRef::decode(certificate)?;
        Ok::<_, der::Error>(window)
    })?;
    reader.finish()?;
    Ok(window)
}

fn time<'a>(reader: &mut impl Reader<'a>) -> der::Result<Duration> {
    match Tag::peek(reader)? {
        Tag::UtcTime => Ok(UtcTime::decode(reader)?.to_unix_duration()),
        _ => Ok(GeneralizedTime::decode(reader)?.to_unix_duration()),
    }
}

/// ES384 as COSE carries it: r and s side by side, 96 bytes, where certificates carry them in DER.
#[derive(Debug)]
struct CoseEs384;

impl SignatureVerificationAlgorithm for CoseEs384 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, public_key);
        key.verify(message, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P384
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA384
    }
}

/// Nitro certificates name no extended key usage; what they may be used for follows from the root alone.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        for usage in usages {
            usage?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::{AWS_NITRO_ROOT_G1_SHA256, AttestationError, Root};

    #[test]
    fn the_embedded_root_has_the_published_hash_and_window() {
        let root = Root::aws_nitro_g1();
        assert_eq!(root.der().len(), 533);
        assert_eq!(Sha256::digest(root.der())[..], AWS_NITRO_ROOT_G1_SHA256);
        // 2019-10-28T13:28:05Z and 2049-10-28T14:28:05Z.
        assert_eq!((root.not_before_s, root.not_after_s), (1_572_269_285, 2_519_044_085));
    }

    #[test]
    fn the_root_is_bound_to_its_own_window() {
        let root = Root::aws_nitro_g1();
        assert_eq!(root.check_window(1_572_269_284), Err(AttestationError::CertificateNotYetValid));
        assert_eq!(root.check_window(1_572_269_285), Ok(()));
        assert_eq!(root.check_window(2_519_044_085), Ok(()));
        assert_eq!(root.check_window(2_519_044_086), Err(AttestationError::CertificateExpired));
    }

    #[test]
    fn a_root_that_is_no_certificate_is_refused_at_every_length() {
        let root = Root::aws_nitro_g1();
        for length in 0..root.der().len() {
            assert_eq!(Root::development(&root.der()[..length]), Err(AttestationError::RootMalformed));
        }
        let longer = [root.der(), &[0]].concat();
        assert_eq!(Root::development(&longer), Err(AttestationError::RootMalformed));
    }
}
