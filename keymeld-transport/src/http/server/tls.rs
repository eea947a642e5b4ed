//! What the listener proves who it is with: a certificate chain and its key, from two PEM files.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use zeroize::{Zeroize, Zeroizing};

/// The most bytes of either file.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Why files cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Its name.
        path: String,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// The certificate file holds no certificate, or something that is none.
    #[error("{0}: no certificates in PEM")]
    Certificate(String),
    /// The key file holds no private key that TLS can use: RSA, ECDSA with P-256 or P-384, or Ed25519.
    #[error("{0}: no usable private key in PEM")]
    Key(String),
    /// The key is not that of the first certificate.
    #[error("{0}: not the key of the certificate")]
    Mismatch(String),
}

/// The listener's certificate and key. New connections get what was read last; those that exist keep theirs.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads a chain, the listener's own certificate first, and its key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let current = RwLock::new(Arc::new(read(certificate, key)?));
        Ok(Tls { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    /// Reads both files again. Sessions of the certificate before are not resumed.
    ///
    /// # Errors
    /// [`TlsError`]; what was read before stays in use then.
    pub fn reload(&self) -> Result<(), TlsError> {
        let next = Arc::new(read(&self.certificate, &self.key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tls { certificate, key, current: _ } = self;
        f.debug_struct("Tls").field("certificate", certificate).field("key", key).finish_non_exhaustive()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let chain = read_chain(certificate)?;
    let name = || key.display().to_string();
    let bytes = read_file(key)?;
    let mut der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| TlsError::Key(name()))?;
    let signer = ring::sign::any_supported_type(&der);
    der.zeroize();
    let certified = CertifiedKey::new(chain, signer.map_err(|_| TlsError::Key(name()))?);
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch(name()),
        // What does not parse; the enum is not ours.
        _ => TlsError::Certificate(certificate.display().to_string()),
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = || TlsError::Certificate(path.display().to_string());
    let bytes = read_file(path)?;
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(refused)
}

/// A whole file in one allocation, which is wiped.
fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > PEM_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).expect("at most PEM_BYTES_MAX")]);
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| TlsError::File { path: path.display().to_string(), error })
}
