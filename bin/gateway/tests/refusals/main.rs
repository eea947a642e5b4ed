//! Every refusal, over a real socket: a gateway with its database on a disk, real enclaves, and whoever asks for
//! what it may not have. Each is a problem as RFC 9457 wants it, with its stable code, and changes nothing.
//!
//! Each test says which codes it shows and is held to that; [`every_code_is_shown_or_has_its_reason`] adds up.

mod away;
mod callers;
mod failures;
mod group;
mod hostile;
mod keygens;
mod listener;
mod reading;
mod rig;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use keymeld_core::refusal::Code;

/// What the tests of this folder show, each in the answer to a request or as the failure of a session.
const SHOWN: [&[Code]; 21] = [
    &reading::BODIES,
    &reading::QUERIES,
    &reading::ENDPOINTS,
    &callers::PROOFS,
    &callers::KEYS,
    &callers::TOKENS,
    &sessions::UNKNOWN,
    &sessions::CONFLICTS,
    &sessions::STATES,
    &sessions::EXPIRED,
    &sessions::TOO_MANY,
    &keygens::RESERVATIONS,
    &keygens::REGISTRATIONS,
    &keygens::MANIFESTS,
    &keygens::ROSTERS,
    &failures::REQUESTS,
    &failures::INTENTS,
    &failures::WITHDRAWALS,
    &away::ENCLAVES,
    &away::DISKS,
    &away::ENDS,
];

/// The others: why no request to a gateway with sound enclaves brings them about, and where they are tested.
const ELSEWHERE: [(Code, &str, &str); 25] = [
    (Code::EntropyFailed, "keymeld-core/tests/hostile_clocks.rs", "the system's generator does not fail"),
    (
        Code::SessionSecretsDiffer,
        "keymeld-core/tests/hostile_registration.rs",
        "each has to open the manifest",
    ),
    (Code::EnvelopeMissing, "keymeld-core/tests/hostile_registration.rs", "the gateway would have to lie"),
    (Code::UnknownSession, "keymeld-core/tests/gateway_attempts.rs", "between enclave and gateway"),
    (Code::UnknownAttempt, "keymeld-core/tests/hostile_rounds.rs", "between enclave and gateway"),
    (Code::RoutingMismatch, "keymeld-core/tests/hostile_rounds.rs", "between enclave and gateway"),
    (Code::IdentityMissing, "keymeld-core/tests/gateway_enclaves.rs", "between enclave and gateway"),
    (Code::IdentityRefused, "keymeld-core/tests/hostile_host.rs", "between enclave and gateway"),
    (Code::IdentityExists, "keymeld-core/tests/hostile_host.rs", "between enclave and gateway"),
    (Code::NotAttested, "keymeld-core/tests/hostile_clocks.rs", "the security module would have to fail"),
    (Code::TimeUnknown, "keymeld-core/tests/hostile_clocks.rs", "the security module would have to fail"),
    (Code::KeyServiceFailed, "keymeld-core/tests/hostile_clocks.rs", "between enclave and key service"),
    (Code::ProductionOnly, "keymeld-core/tests/hostile_clocks.rs", "no production enclave runs here"),
    (Code::CertificatesDiffer, "keymeld-core/tests/gateway_attempts.rs", "an enclave would have to lie"),
    (Code::CertificateInvalid, "examples/tests/machines/client_key.rs", "a client's own check"),
    (Code::ApprovalMissing, "keymeld-core/tests/hostile_authority.rs", "the gateway waits for the approval"),
    (Code::BundleUnreadable, "keymeld-core/tests/hostile_rounds.rs", "between enclaves"),
    (Code::BundleMismatch, "keymeld-core/tests/hostile_rounds.rs", "between enclaves"),
    (Code::NonceInvalid, "keymeld-core/tests/hostile_colluders.rs", "an enclave would have to lie"),
    (Code::NonceViewsDiffer, "keymeld-core/tests/hostile_colluders.rs", "an enclave would have to lie"),
    (Code::PartialInvalid, "keymeld-core/tests/hostile_colluders.rs", "an enclave would have to lie"),
    (Code::AttemptConsumed, "keymeld-core/tests/hostile_rounds.rs", "between enclave and gateway"),
    (
        Code::NotConcerned,
        "keymeld-core/tests/hostile_authority.rs",
        "false hints fail of something else first",
    ),
    (Code::ResultInvalid, "examples/tests/machines/client_signing.rs", "a client's own check"),
    // A fault of the arithmetic itself, which no input brings about: nothing but the code's own text is tested.
    (Code::SignatureInvalid, "keymeld-core/tests/golden/codes.txt", "partials that verify add up"),
];

#[test]
fn every_code_is_shown_or_has_its_reason() {
    let shown: BTreeSet<Code> = SHOWN.iter().copied().flatten().copied().collect();
    let elsewhere: BTreeMap<Code, &str> = ELSEWHERE.iter().map(|(code, file, _)| (*code, *file)).collect();
    assert_eq!(elsewhere.len(), ELSEWHERE.len(), "each once");
    for code in Code::ALL {
        let is_elsewhere = elsewhere.contains_key(code);
        assert!(shown.contains(code) != is_elsewhere, "{code}: shown here, or tested elsewhere, not both");
    }
    for (code, file) in elsewhere {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        let text = std::fs::read_to_string(&path).expect("a file of this project");
        assert!(text.contains(&format!("{code:?}")) || text.contains(code.name()), "{code}: not in {file}");
    }
}
