//! Plays the hostile gateway and colluding participants against real enclave machines.
//!
//! [`host`] is one enclave with its security module and key service, [`party`] makes what participants make,
//! honestly or not, [`round`] drives the signing rounds, and [`oracle`] reads, with keys that only a test can
//! have, everything that leaves an enclave, and fails the test where a nonce would have signed twice.

// Every test binary that includes this module uses another part of it.
#![allow(dead_code)]

pub(crate) mod host;
pub(crate) mod oracle;
pub(crate) mod party;
pub(crate) mod round;

use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::bytes::Hash;
use keymeld_core::link::message::{KeygenOpened, Reply, Request};
use keymeld_core::refusal::{Code, Refusal};

use host::{Host, born};
use oracle::Oracle;
use party::Group;

/// The time that security modules state: November 2026.
pub(crate) const NOW: u64 = 1_795_000_000_000;
/// A day.
pub(crate) const DAY_MS: u64 = 24 * 3_600_000;

/// Several enclaves under one hostile gateway.
pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    pub(crate) oracle: Oracle,
}

impl World {
    /// `count` enclaves that hold their identities and know the time.
    pub(crate) fn new(count: usize) -> World {
        World { hosts: (0..count).map(Host::ready).collect(), oracle: Oracle::default() }
    }

    /// Asks an enclave and shows its answer to the oracle.
    pub(crate) fn ask(&mut self, at: usize, request: Request) -> Result<Reply, Refusal> {
        let reply = self.hosts[at].ask(request.clone());
        if let Ok(reply) = &reply {
            self.oracle.saw(at, &request, reply);
        }
        reply
    }

    /// Lets time pass everywhere.
    pub(crate) fn pass_ms(&mut self, ms: u64) {
        for host in &mut self.hosts {
            host.mono_ms += ms;
        }
    }

    /// Opens a keygen session at one enclave.
    pub(crate) fn open(&mut self, group: &Group, at: usize) -> Result<KeygenOpened, Refusal> {
        match self.ask(at, group.open_request(at))? {
            Reply::KeygenOpened(opened) => Ok(opened),
            other => panic!("not an answer to OpenKeygen: {other:?}"),
        }
    }

    /// Opens a keygen session at every enclave of its roster, which must agree.
    pub(crate) fn open_all(&mut self, group: &Group) -> Result<Hash, Refusal> {
        let mut hashes = Vec::new();
        for at in group.enclaves() {
            hashes.push(self.open(group, at)?.roster_hash);
        }
        hashes.dedup();
        assert_eq!(hashes.len(), 1, "enclaves disagree about one roster");
        Ok(hashes[0])
    }
}

/// The keys of the fixture's enclave.
pub(crate) fn keys(at: usize) -> EnclaveKeys {
    born(at).identity.keys()
}

/// Runs one flow unaltered, which has to succeed, then tampered with, which has to be refused with `code`.
#[track_caller]
pub(crate) fn refused<S, T>(
    code: Code,
    setting: impl Fn() -> S,
    flow: impl Fn(S) -> Result<T, Refusal>,
    tamper: impl FnOnce(&mut S),
) -> Refusal {
    if let Err(refusal) = flow(setting()) {
        panic!("unaltered, and refused: {refusal}");
    }
    let mut tampered = setting();
    tamper(&mut tampered);
    match flow(tampered) {
        Ok(_) => panic!("tampered with, and not refused; expected {code}"),
        Err(refusal) => {
            assert_eq!(refusal.code, code);
            refusal
        }
    }
}
