//! What an enclave trusts: its security module, its key service, and the root that both stand under.

use keymeld_core::attestation::Root;
use keymeld_core::enclave;
use keymeld_core::entropy::{Entropy, Origin};
use keymeld_transport::nsm::{Nsm, NsmError};

use crate::Config;
use crate::service::KeyService;

/// Why there is no platform.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// A build for Nitro, whose adapters do not exist yet.
    #[error(
        "this build has no security module: the adapters of Nitro and KMS do not exist yet, and the software \
         ones are in builds with the feature `dev` only"
    )]
    NoSecurityModule,
    /// The security module does not answer.
    #[error("security module: {0}")]
    Nsm(#[from] NsmError),
    /// A file of the development platform cannot be used.
    #[error("development platform: {0}")]
    Development(String),
}

/// The platform, opened.
pub(crate) struct Platform {
    pub(crate) nsm: Box<dyn Nsm>,
    pub(crate) keys: Box<dyn KeyService>,
    /// What birth documents chain to.
    pub(crate) root: Root,
    pub(crate) key_arn: String,
    /// The one origin of randomness that the machines accept.
    pub(crate) entropy_origin: Origin,
    /// Makes a generator, seeded apart from all others.
    pub(crate) entropy: fn() -> Result<Entropy, PlatformError>,
}

impl Platform {
    #[cfg(feature = "dev")]
    pub(crate) fn open(config: &Config) -> Result<Platform, PlatformError> {
        crate::development::open(config)
    }

    #[cfg(not(feature = "dev"))]
    pub(crate) fn open(_: &Config) -> Result<Platform, PlatformError> {
        Err(PlatformError::NoSecurityModule)
    }

    /// What the machines are made from.
    pub(crate) fn machine(&mut self, config: &Config) -> Result<enclave::Config, PlatformError> {
        Ok(enclave::Config {
            enclave_id: config.enclave_id,
            root: self.root.clone(),
            running_pcr0: self.nsm.pcr0()?,
            predecessors: config.predecessors.iter().map(|predecessor| predecessor.0).collect(),
            config_hash: config.hash(),
            key_arn: self.key_arn.clone(),
            entropy_origin: self.entropy_origin,
        })
    }

    /// A worker's generator.
    pub(crate) fn entropy(&self) -> Result<Entropy, PlatformError> {
        (self.entropy)()
    }
}
