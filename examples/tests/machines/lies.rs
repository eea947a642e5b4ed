//! How the gateway lies to a client in these tests: answers altered, proofs called stale, forged attestations.

use std::cell::Cell;
use std::rc::Rc;

use keymeld_core::api::http::{Request, Response};
use keymeld_core::artifact::registration::Rules;
use keymeld_core::attestation::policy::Policy;
use keymeld_core::attestation::{Root, ServiceUserData, verify};
use keymeld_core::bytes::Hash;
use keymeld_core::client::{Done, Fault, Job};
use keymeld_core::entropy::test_entropy;
use keymeld_core::id::KeygenId;
use keymeld_core::refusal::Refusal;
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use keymeld_examples::disk::{Disk, MemoryDisk};
use keymeld_examples::world::{Tamper, World};
use keymeld_transport::nsm::Nsm;
use keymeld_transport::nsm::software::{Pcrs, SoftwareRoot};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::story::{START, plan, seat_coordinator, seat_invited};

/// A world in memory.
pub(crate) fn world(enclaves: usize, seed: u64) -> World<MemoryDisk> {
    World::new(enclaves, MemoryDisk::default(), START, move |number| test_entropy(seed * 10_000 + number))
}

/// A coordinator that has reserved slots and published the manifest.
pub(crate) fn published<D: Disk>(world: &mut World<D>, count: u8, rules: Rules) -> usize {
    let coordinator = seat_coordinator(world, plan(count, rules));
    assert!(matches!(world.run(coordinator, Job::Reserve), Ok(Done::Reserved)));
    assert!(matches!(world.run(coordinator, Job::Init), Ok(Done::Initialised)));
    coordinator
}

/// A keygen that is completed at the gateway, while no client has seen it yet.
pub(crate) fn registered<D: Disk>(world: &mut World<D>, count: u8, rules: Rules) -> Vec<usize> {
    let coordinator = published(world, count, rules);
    let mut places = vec![coordinator];
    places.extend((0..usize::from(count) - 1).map(|at| seat_invited(world, coordinator, at, rules)));
    for place in &places {
        assert!(matches!(world.run(*place, Job::Join), Ok(Done::Joined)));
    }
    places
}

/// What every participant knows, and so every colluder.
pub(crate) fn session_secret<D: Disk>(world: &World<D>, coordinator: usize) -> (KeygenId, Secret<32>) {
    let invite = &world.client(coordinator).invites()[0];
    (invite.keygen_id, Secret::copied_from(invite.session_secret.expose()))
}

/// Alters every good answer to a request whose target contains `path`.
pub(crate) fn alter<T: Serialize + DeserializeOwned>(
    path: &'static str,
    mut change: impl FnMut(&mut T) + 'static,
) -> Option<Tamper> {
    Some(Box::new(move |request, mut response| {
        if request.target.contains(path) && response.status < 300 {
            let mut body: T = strict::from_json(&response.body, usize::MAX).expect("an honest answer");
            change(&mut body);
            response.body = strict::to_json(&body);
        }
        response
    }))
}

/// Replaces the `number`th answer, from 1, and no other.
pub(crate) fn replace_once(
    number: usize,
    mut replace: impl FnMut(&Request, Response) -> Response + 'static,
) -> Option<Tamper> {
    let seen = Rc::new(Cell::new(0));
    Some(Box::new(move |request, response| {
        seen.set(seen.get() + 1);
        if seen.get() == number { replace(request, response) } else { response }
    }))
}

/// How a job ended that must not have succeeded.
pub(crate) fn fault(outcome: Result<Done, Fault>) -> Fault {
    outcome.expect_err("the client was lied to")
}

/// What a client says that does not believe what it was told.
pub(crate) fn unverified(refusal: impl Into<Refusal>) -> Fault {
    Fault::Unverified(refusal.into())
}

/// What a client says that was refused, by the gateway or by itself.
pub(crate) fn refused(refusal: impl Into<Refusal>) -> Fault {
    Fault::Refused(refusal.into())
}

/// What stands in an attestation document, for a forger to change.
pub(crate) struct Statement {
    pub(crate) public_key: Vec<u8>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) user_data: ServiceUserData,
    pub(crate) pcrs: Pcrs,
    pub(crate) time_ms: u64,
}

/// Signs another statement than an honest document makes, with a security module under a root.
pub(crate) fn forge(
    honest_root: &SoftwareRoot,
    root: &SoftwareRoot,
    document: &[u8],
    change: impl FnOnce(&mut Statement),
) -> Vec<u8> {
    let trusted = Root::development(honest_root.certificate()).expect("a certificate");
    let honest = verify(document, &trusted).expect("an honest document");
    let user_data = honest.user_data.as_deref().expect("has user data");
    let mut statement = Statement {
        public_key: honest.public_key.expect("has a key"),
        nonce: honest.nonce,
        user_data: ServiceUserData::decode(user_data).expect("well formed"),
        pcrs: Pcrs::default(),
        time_ms: honest.timestamp_ms,
    };
    change(&mut statement);
    let Statement { public_key, nonce, user_data, pcrs, time_ms } = statement;
    let mut nsm = root.nsm(9, pcrs, move || time_ms, test_entropy(99)).expect("a module");
    nsm.attest(Some(&public_key), nonce.as_deref(), Some(&user_data.encode())).expect("attests")
}

/// A policy that allows everything which the worlds' own does, and one more image.
pub(crate) fn with_image(mut policy: Policy, label: &str) -> Policy {
    let Pcrs { pcr0, pcr1, pcr2, .. } = Pcrs::of_label(label);
    let mut image = policy.images[0].clone();
    (image.pcr0, image.pcr1, image.pcr2) = (pcr0, pcr1, pcr2);
    policy.images.push(image);
    policy.birth_pcr0.push(pcr0);
    policy
}

/// A hash that is none.
pub(crate) const NO_HASH: Hash = Hash([0x55; 32]);
