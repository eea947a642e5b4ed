//! What a run of many seeds has to reach.

use std::collections::BTreeSet;

/// Below so many seeds nothing is missed.
pub const ENFORCED_FROM: u64 = 1_000;

/// States and transitions of the machines' tables, and everything that can go wrong.
///
/// `AggregatingNonces` lasts for no longer than a step of the gateway and is never shown.
pub const WANTED: &[&str] = &[
    "keygen -> Reserved",
    "keygen Reserved -> CollectingParticipants",
    "keygen CollectingParticipants -> KeyGeneration",
    "keygen CollectingParticipants -> Failed",
    "keygen KeyGeneration -> Completed",
    "keygen KeyGeneration -> Failed",
    "shown keygen CollectingParticipants",
    "shown keygen KeyGeneration",
    "shown keygen Completed",
    "shown keygen Failed",
    "signing CollectingParticipants -> GeneratingNonces",
    "signing CollectingParticipants -> Failed",
    "signing GeneratingNonces -> CollectingNonces",
    "signing GeneratingNonces -> Completed",
    "signing GeneratingNonces -> CollectingParticipants",
    "signing GeneratingNonces -> Failed",
    "signing CollectingNonces -> GeneratingPartialSignatures",
    "signing CollectingNonces -> CollectingParticipants",
    "signing GeneratingPartialSignatures -> CollectingPartialSignatures",
    "signing GeneratingPartialSignatures -> FinalizingSignature",
    "signing GeneratingPartialSignatures -> CollectingParticipants",
    "signing CollectingPartialSignatures -> FinalizingSignature",
    "signing FinalizingSignature -> Completed",
    "signing FinalizingSignature -> CollectingParticipants",
    "shown signing CollectingParticipants",
    "shown signing GeneratingNonces",
    "shown signing CollectingNonces",
    "shown signing GeneratingPartialSignatures",
    "shown signing CollectingPartialSignatures",
    "shown signing FinalizingSignature",
    "shown signing Completed",
    "shown signing Failed",
    "an identity is made",
    "an identity is opened",
    "a session is opened",
    "a client has a key",
    "a client has signatures",
    "a client reviews",
    "fault an exchange",
    "fault a frame is late",
    "fault a link is cut",
    "fault the gateway dies before a batch",
    "fault the gateway dies before a commit",
    "fault the gateway dies after a commit",
    "fault the machine dies in a commit",
    "fault a commit fails",
    "fault a read fails",
    "fault an enclave dies",
    "fault an enclave forgets",
    "fault a client dies",
    "fault a client's disk fails",
    "fault the key service fails",
    "fault the key service is slow",
    "fault the security module fails",
    "fault an enclave's generator",
    "fault the gateway's generator",
    "fault a client's generator",
    "fault the gateway's clock",
    "fault a client's clock",
];

/// What was not reached.
pub fn unreached(reached: &BTreeSet<&'static str>) -> Vec<&'static str> {
    WANTED.iter().copied().filter(|wanted| !reached.contains(wanted)).collect()
}
