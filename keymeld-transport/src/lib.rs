//! HTTP, link and NSM adapters of KeyMeld.

#[cfg(feature = "nsm")]
pub mod nsm;
