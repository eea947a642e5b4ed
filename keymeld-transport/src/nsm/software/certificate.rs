//! The three shapes of certificate that a software module needs.

use std::str::FromStr;
use std::time::Duration;

use p384::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use sha2::{Digest, Sha384};
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::GeneralizedTime;
use x509_cert::der::{self, Encode};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity as X509Validity};

use crate::nsm::NsmError;

/// The root outlives every clock that a test may have: 1970-01-01T00:00:00Z to 2049-12-31T23:59:59Z.
const ROOT_VALIDITY: Validity = Validity { not_before_s: 0, not_after_s: 2_524_607_999 };
const ROOT_NAME: &str = "keymeld development root";

/// A window, both ends inclusive, in seconds since 1970.
#[derive(Clone, Copy)]
pub(super) struct Validity {
    pub(super) not_before_s: u64,
    pub(super) not_after_s: u64,
}

/// A key that certifies others, and its certificate.
pub(super) struct Authority {
    name: Name,
    key: SigningKey,
    certificate: Vec<u8>,
}

impl Authority {
    /// A root; the same key gives the same bytes.
    pub(super) fn self_signed(key: SigningKey) -> Authority {
        let name = common_name(ROOT_NAME).expect("the constant is a name");
        let shape = Shape { issuer: name.clone(), subject: name.clone(), is_authority: true };
        let certificate = certificate(shape, &key, key.verifying_key(), ROOT_VALIDITY)
            .expect("constants and a valid key make a certificate");
        Authority { name, key, certificate }
    }

    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// An authority under this one. Fails where the window ends after the year 9999.
    pub(super) fn issue_authority(
        &self,
        subject: &str,
        key: SigningKey,
        validity: Validity,
    ) -> Result<Authority, NsmError> {
        let name = common_name(subject).map_err(|_| NsmError::Device)?;
        let shape = Shape { issuer: self.name.clone(), subject: name.clone(), is_authority: true };
        let certificate =
            certificate(shape, &self.key, key.verifying_key(), validity).map_err(|_| NsmError::Device)?;
        Ok(Authority { name, key, certificate })
    }

    /// A certificate that signs documents. Fails where the window ends after the year 9999.
    pub(super) fn issue_leaf(
        &self,
        subject: &str,
        key: &SigningKey,
        validity: Validity,
    ) -> Result<Vec<u8>, NsmError> {
        let subject = common_name(subject).map_err(|_| NsmError::Device)?;
        let shape = Shape { issuer: self.name.clone(), subject, is_authority: false };
        certificate(shape, &self.key, key.verifying_key(), validity).map_err(|_| NsmError::Device)
    }
}

/// The extensions that genuine Nitro certificates have, too.
struct Shape {
    issuer: Name,
    subject: Name,
    is_authority: bool,
}

impl BuilderProfile for Shape {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        _key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let constraints = BasicConstraints { ca: self.is_authority, path_len_constraint: None };
        let usage = if self.is_authority {
            KeyUsages::KeyCertSign | KeyUsages::CRLSign
        } else {
            KeyUsages::DigitalSignature.into()
        };
        let subject = tbs.subject();
        Ok(vec![constraints.to_extension(subject, &[])?, KeyUsage(usage).to_extension(subject, &[])?])
    }
}

fn certificate(
    shape: Shape,
    issuer_key: &SigningKey,
    subject_key: &VerifyingKey,
    validity: Validity,
) -> builder::Result<Vec<u8>> {
    // Unique because the key is; a leading zero bit keeps it positive.
    let mut serial: [u8; 48] = Sha384::digest(subject_key.to_sec1_point(false)).into();
    serial[0] = serial[0] & 0x7f | 0x40;
    let time = |unix_time_s| -> der::Result<Time> {
        Ok(Time::GeneralTime(GeneralizedTime::from_unix_duration(Duration::from_secs(unix_time_s))?))
    };
    let builder = CertificateBuilder::new(
        shape,
        SerialNumber::new(&serial[..16])?,
        X509Validity::new(time(validity.not_before_s)?, time(validity.not_after_s)?),
        SubjectPublicKeyInfo::from_key(subject_key)?,
    )?;
    Ok(builder.build::<_, DerSignature>(issuer_key)?.to_der()?)
}

fn common_name(name: &str) -> der::Result<Name> {
    Name::from_str(&format!("CN={name}"))
}
