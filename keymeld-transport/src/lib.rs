//! HTTP, link and NSM adapters of KeyMeld.
