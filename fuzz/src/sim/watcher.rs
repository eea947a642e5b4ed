//! Somebody who follows every session's status from state to state, for what is reached.

use std::collections::{BTreeMap, BTreeSet};

use keymeld_core::api::http::{Method, Request, Response};
use keymeld_core::api::proof::Subject;
use keymeld_core::api::rest::{KeygenState, KeygenStatus, SigningState, SigningStatus};
use keymeld_core::api::router::PREFIX;
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::derive::Purpose;

use super::chance::generator;
use super::seat::AUTHORITY;
use super::wire::Asker;
use super::world::{Happening, World};

/// How long each poll waits.
const WAIT_MS: u64 = 30_000;

/// What it knows.
#[derive(Default)]
pub(crate) struct Watcher {
    /// What it follows, by path, with the revision and the state that were shown last.
    follows: BTreeMap<String, (u64, Option<SigningState>)>,
    ended: BTreeSet<String>,
    /// Circles that it looks at again after a while.
    looks_again: BTreeSet<usize>,
    asked: u64,
}

impl World {
    /// Follows what is not followed yet.
    pub(crate) fn watches(&mut self, circle: usize) {
        self.watcher.looks_again.remove(&circle);
        let mut paths = Vec::new();
        if let Some(keygen_id) = self.god.circles[circle].keygen_id {
            paths.push(format!("{PREFIX}keygen/{keygen_id}/status"));
        }
        // What the host asks for by itself no gateway knows.
        let of_circle =
            self.god.intents.values().filter(|facts| facts.circle == circle && facts.want.is_some());
        paths.extend(of_circle.map(|facts| format!("{PREFIX}signing/{}/status", facts.signing_id)));
        for path in paths {
            if !self.watcher.follows.contains_key(&path) && !self.watcher.ended.contains(&path) {
                self.watcher.follows.insert(path.clone(), (0, None));
                self.polls(circle, &path);
            }
        }
    }

    fn polls(&mut self, circle: usize, path: &str) {
        let Some((revision, _)) = self.watcher.follows.get(path) else { return };
        let target = format!("{path}?wait_ms={WAIT_MS}&since={revision}");
        let facts = &self.god.circles[circle];
        let (Some(secret), Some(keygen_id)) = (&facts.session_secret, facts.keygen_id) else { return };
        let key = AuthKey::derived(secret, Purpose::SessionAuth(keygen_id)).expect("derived keys are keys");
        let subject = Subject { method: Method::Get, authority: AUTHORITY, target: &target, body: &[] };
        self.watcher.asked += 1;
        let (mut entropy, _) = generator(self.seed, 5_000_000 + self.watcher.asked);
        let unix_ms = self.unix_ms().saturating_add_signed(self.gateway.skew_ms);
        let proof = subject.prove(&key, unix_ms, &mut entropy).expect("it works");
        let request = Request {
            method: Method::Get,
            authority: AUTHORITY.into(),
            target,
            proof: Some(proof),
            authorization: None,
            body: Vec::new(),
        };
        self.sends_request(Asker::Watcher { circle }, request, WAIT_MS + 5_000);
    }

    /// An answer came, or will not come.
    pub(crate) fn watcher_hears(&mut self, circle: usize, target: &str, response: Option<&Response>) {
        let path = target.split('?').next().unwrap_or_default().to_string();
        let Some((_, state)) = self.watcher.follows.get(&path).copied() else { return };
        let body = response.filter(|response| response.status == 200).map(|response| &response.body);
        let shown = body.and_then(|body| serde_json::from_slice::<SigningStatus>(body).ok());
        let keygen = body.and_then(|body| serde_json::from_slice::<KeygenStatus>(body).ok());
        let (next, ended) = match (shown, keygen) {
            (Some(shown), _) => {
                if let Some(transition) = state.and_then(|state| signing_transition(state, shown.state)) {
                    self.log.reached(transition);
                }
                let ended = matches!(shown.state, SigningState::Completed | SigningState::Failed);
                ((shown.revision, Some(shown.state)), ended)
            }
            (None, Some(shown)) => {
                let ended = matches!(shown.state, KeygenState::Completed | KeygenState::Failed);
                ((shown.revision, None), ended)
            }
            (None, None) => {
                self.watcher.follows.remove(&path);
                if self.watcher.looks_again.insert(circle) {
                    self.later(3_000, Happening::Watches { circle });
                }
                return;
            }
        };
        if ended {
            self.watcher.follows.remove(&path);
            self.watcher.ended.insert(path);
            return;
        }
        self.watcher.follows.insert(path.clone(), next);
        self.polls(circle, &path);
    }
}

/// The legal changes that status can show. `AggregatingNonces` lasts for no longer than a step.
fn signing_transition(before: SigningState, after: SigningState) -> Option<&'static str> {
    use SigningState::{
        CollectingNonces, CollectingPartialSignatures, CollectingParticipants, Completed, Failed,
        FinalizingSignature, GeneratingNonces, GeneratingPartialSignatures,
    };
    Some(match (before, after) {
        (CollectingParticipants, GeneratingNonces) => "signing CollectingParticipants -> GeneratingNonces",
        (CollectingParticipants, Failed) => "signing CollectingParticipants -> Failed",
        (GeneratingNonces, CollectingNonces) => "signing GeneratingNonces -> CollectingNonces",
        (GeneratingNonces, Completed) => "signing GeneratingNonces -> Completed",
        (GeneratingNonces, CollectingParticipants) => "signing GeneratingNonces -> CollectingParticipants",
        (GeneratingNonces, Failed) => "signing GeneratingNonces -> Failed",
        (CollectingNonces, GeneratingPartialSignatures) => {
            "signing CollectingNonces -> GeneratingPartialSignatures"
        }
        (CollectingNonces, CollectingParticipants) => "signing CollectingNonces -> CollectingParticipants",
        (GeneratingPartialSignatures, CollectingPartialSignatures) => {
            "signing GeneratingPartialSignatures -> CollectingPartialSignatures"
        }
        (GeneratingPartialSignatures, FinalizingSignature) => {
            "signing GeneratingPartialSignatures -> FinalizingSignature"
        }
        (GeneratingPartialSignatures, CollectingParticipants) => {
            "signing GeneratingPartialSignatures -> CollectingParticipants"
        }
        (CollectingPartialSignatures, FinalizingSignature) => {
            "signing CollectingPartialSignatures -> FinalizingSignature"
        }
        (FinalizingSignature, Completed) => "signing FinalizingSignature -> Completed",
        (FinalizingSignature, CollectingParticipants) => {
            "signing FinalizingSignature -> CollectingParticipants"
        }
        (_, _) => return None,
    })
}
