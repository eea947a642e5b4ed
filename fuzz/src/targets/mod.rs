//! The fuzz targets: each is one function of bytes, which panics where it finds a fault.
//!
//! libFuzzer calls them (`fuzz/targets/`, see `ci/fuzz`), and so do ordinary tests on stable, with the committed
//! corpus and with inputs that proptest makes. What reads genuine things takes them from [`crate::stage::story`].

pub mod artifacts;
pub mod attestation;
pub mod client;
pub mod enclave;
pub mod gateway;
pub mod http;
pub mod link;
pub mod musig;
pub mod program;
pub mod sealed;
pub mod settings;

/// A target by its name.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As in `fuzz/targets/` and `fuzz/corpus/`.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// The longest input that is worth trying, in bytes.
    pub bytes_max: usize,
}

const fn target(name: &'static str, bytes_max: usize, run: fn(&[u8])) -> Target {
    Target { name, run, bytes_max }
}

/// Every target.
pub const ALL: &[Target] = &[
    target("frames", 4_096, link::frames),
    target("link_requests", 8_192, link::requests),
    target("link_replies", 8_192, link::replies),
    target("bundles", 4_096, link::bundles),
    target("artifacts", 8_192, artifacts::artifacts),
    target("invites", 2_048, artifacts::invites),
    target("memberships", 12_288, artifacts::memberships),
    target("rest", 24_576, http::rest),
    target("http", 8_192, http::requests),
    target("proofs", 1_024, http::proofs),
    target("attestations", 8_192, attestation::documents),
    target("certificates", 2_048, attestation::certificates),
    target("paths", 4_096, attestation::paths),
    target("user_data", 1_024, attestation::user_data),
    target("policies", 4_096, attestation::policies),
    target("settings", 2_048, settings::settings),
    target("envelopes", 2_048, sealed::envelopes),
    target("seals", 8_192, sealed::seals),
    target("signed", 4_096, sealed::signed),
    target("musig", 1_024, musig::rounds),
    target("gateway_events", 512, gateway::events),
    target("gateway_rows", 2_048, gateway::rows),
    target("enclave_events", 512, enclave::events),
    target("client_events", 512, client::events),
];
