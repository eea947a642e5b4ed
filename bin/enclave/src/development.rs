//! The development platform: a software security module and a keyring, both kept as files in one directory
//! that enclaves may share. It protects nothing.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use keymeld_core::attestation::Root;
use keymeld_core::attestation::policy::{ImagePcrs, Policy};
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};
use keymeld_transport::nsm::software::{CERTIFICATE_FILE, Pcrs, SoftwareRoot};

use crate::Config;
use crate::dev_keyring::DevKeyring;
use crate::platform::{Platform, PlatformError};

/// How old a document may be that [`policy`] accepts.
const FRESHNESS_MS: u64 = 5 * 60_000;

/// The policy of clients that accept this configuration: the development root, its image, its hash. Makes
/// the root where there is none yet.
///
/// # Errors
/// [`PlatformError::Development`].
pub fn policy(config: &Config) -> Result<Policy, PlatformError> {
    let root = root(&config.development.state_dir)?;
    let Pcrs { pcr0, pcr1, pcr2, .. } = Pcrs::of_label(&config.development.image);
    Ok(Policy {
        roots: vec![trusted(&root)],
        images: vec![ImagePcrs { pcr0, pcr1, pcr2, pcr8: None }],
        birth_pcr0: vec![pcr0],
        config_hashes: vec![config.hash().0],
        freshness_ms: FRESHNESS_MS,
    })
}

pub(crate) fn open(config: &Config) -> Result<Platform, PlatformError> {
    let directory = &config.development.state_dir;
    tracing::warn!(
        root = %directory.join(CERTIFICATE_FILE).display(),
        "DEVELOPMENT ENCLAVE: software security module and keyring file; whoever reads them has every key"
    );
    let root = root(directory)?;
    let keys = DevKeyring::load_or_create(directory, os_entropy())
        .map_err(|error| PlatformError::Development(error.to_string()))?;
    let module = u64::from_be_bytes(*config.enclave_id.0.first_chunk().expect("sixteen bytes"));
    let pcrs = Pcrs::of_label(&config.development.image);
    let nsm = root.nsm(module, pcrs, unix_ms, os_entropy())?;
    Ok(Platform {
        nsm: Box::new(nsm),
        keys: Box::new(keys),
        root: trusted(&root),
        key_arn: String::new(),
        entropy_origin: Origin::Os,
        entropy: || Ok(os_entropy()),
    })
}

fn root(directory: &Path) -> Result<SoftwareRoot, PlatformError> {
    SoftwareRoot::load_or_create(directory, &mut os_entropy())
        .map_err(|error| PlatformError::Development(format!("{}: {error}", directory.display())))
}

fn trusted(root: &SoftwareRoot) -> Root {
    Root::development(root.certificate()).expect("a software root has a certificate")
}

fn os_entropy() -> Entropy {
    Entropy::new(Origin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed))
}

/// The clock of a security module, which is the only one that an enclave believes.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).expect("half a billion years")
}
