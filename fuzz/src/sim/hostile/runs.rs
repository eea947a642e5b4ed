//! The signing rounds as the host runs them by itself.

use std::collections::BTreeMap;

use keymeld_core::artifact::approval::Approval;
use keymeld_core::bytes::{Blob, PublicKey};
use keymeld_core::id::AttemptId;
use keymeld_core::link::message::{Addressed, Aggregate, MakeNonces, MakePartials, Reply, Request, RunKey};
use keymeld_core::refusal::Code;

use super::super::world::World;
use super::RUNS_MAX;

/// What is wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twist {
    /// Nothing: one more attempt.
    None,
    /// Approvals are missing.
    FewerApprovals,
    NoApprovals,
    /// One of something else is among them.
    OtherApproval,
    /// Round 2 names another aggregator than round 1.
    OtherAggregator,
    /// Round 2 is asked for twice, with bundles of another run in between.
    Twice,
    /// Bundles of another run.
    OtherBundles,
    /// Bundles of the clone that was asked the same.
    Clone,
    /// The senders of bundles are swapped.
    SwappedSenders,
    /// Another session's id.
    OtherSession,
    /// The attempt of a run before.
    OldAttempt,
}

const TWISTS: [Twist; 11] = [
    Twist::None,
    Twist::FewerApprovals,
    Twist::NoApprovals,
    Twist::OtherApproval,
    Twist::OtherAggregator,
    Twist::Twice,
    Twist::OtherBundles,
    Twist::Clone,
    Twist::SwappedSenders,
    Twist::OtherSession,
    Twist::OldAttempt,
];

/// A run and how far it is.
pub(crate) struct HostileRun {
    run: RunKey,
    intent: Blob,
    approvals: Vec<Approval>,
    /// Enclave keys that take part, and where.
    members: Vec<(PublicKey, usize)>,
    twist: Twist,
    /// By sender and recipient.
    nonces: BTreeMap<(PublicKey, PublicKey), Blob>,
    partials: BTreeMap<PublicKey, Blob>,
    opened: Vec<PublicKey>,
    round: u8,
}

impl HostileRun {
    fn bundles_for(&self, recipient: PublicKey) -> Vec<Addressed> {
        let for_it = self.nonces.iter().filter(|((_, to), _)| *to == recipient);
        for_it.map(|((from, _), blob)| Addressed { peer: *from, blob: blob.clone() }).collect()
    }

    fn key_at(&self, enclave_key: PublicKey) -> RunKey {
        RunKey { enclave_key, ..self.run }
    }
}

impl World {
    /// Runs the rounds for something that a gateway had run before.
    pub(super) fn runs_again(&mut self) {
        if self.hostile.beginnings.is_empty() {
            return;
        }
        let which = self.chance.place("which beginning", self.hostile.beginnings.len());
        let make = self.hostile.beginnings[which].clone();
        let twist = TWISTS[self.chance.place("twist", TWISTS.len())];
        self.begins_run(make.run, make.intent, make.approvals, twist);
    }

    /// Begins a run of an intent.
    pub(super) fn begins_run(&mut self, run: RunKey, intent: Blob, approvals: Vec<Approval>, twist: Twist) {
        if self.hostile.runs.len() >= RUNS_MAX {
            return;
        }
        let Ok(attempt) = AttemptId::random(&mut self.hostile.entropy) else { return };
        let old = self.hostile.frames.iter().find_map(|(_, request)| match request {
            Request::MakeNonces(make) if make.run.digest == run.digest => Some(make.run.attempt),
            _ => None,
        });
        let attempt = match (twist, old) {
            (Twist::OldAttempt, Some(old)) => old,
            _ => attempt,
        };
        let members = self.members_of(&run);
        if members.is_empty() {
            return;
        }
        let aggregator = members[self.chance.place("hostile aggregator", members.len())].0;
        let mut run = RunKey { attempt, aggregator, ..run };
        let mut approvals = approvals;
        match twist {
            Twist::FewerApprovals if !approvals.is_empty() => {
                approvals.remove(self.chance.place("approval lost", approvals.len()));
            }
            Twist::NoApprovals => approvals.clear(),
            Twist::OtherApproval => {
                let known = self.hostile.pools.approvals();
                if !known.is_empty() {
                    let which = self.chance.place("other approval", known.len());
                    approvals = vec![self.hostile.pools.approvals()[which]];
                }
            }
            Twist::OtherSession => {
                let others = &self.hostile.beginnings;
                run.signing_id = others[self.chance.place("other session", others.len())].run.signing_id;
            }
            _ => {}
        }
        self.log.note(format_args!("hostile: a run of {} with {twist:?}", run.signing_id));
        self.log.reached("hostile: a run of its own");
        let started = HostileRun {
            run,
            intent,
            approvals,
            members: members.clone(),
            twist,
            nonces: BTreeMap::new(),
            partials: BTreeMap::new(),
            opened: Vec::new(),
            round: 1,
        };
        self.hostile.runs.push(started);
        let index = self.hostile.runs.len() - 1;
        for (key, at) in members {
            self.asks_for_nonces(index, key, at);
        }
    }

    fn asks_for_nonces(&mut self, index: usize, key: PublicKey, at: usize) {
        let of = &self.hostile.runs[index];
        let make =
            MakeNonces { run: of.key_at(key), intent: of.intent.clone(), approvals: of.approvals.clone() };
        let clones = of.twist == Twist::Clone;
        let number = self.strikes_with_request(at, None, Request::MakeNonces(make.clone()));
        self.hostile.sent.insert(number, (index, key));
        // The clone's bundles take the place of the others.
        if clones {
            for (of, life) in self.hostile.clones.clone() {
                if of == at {
                    let number = self.strikes_with_request(at, Some(life), Request::MakeNonces(make.clone()));
                    self.hostile.sent.insert(number, (index, key));
                }
            }
        }
    }

    /// The enclaves that a run is about, as far as the host can tell from who registered where.
    fn members_of(&self, run: &RunKey) -> Vec<(PublicKey, usize)> {
        let keys = self.hostile.openings.keys().filter(|(keygen_id, _)| *keygen_id == run.keygen_id);
        let place = |(_, key): &(_, PublicKey)| Some((*key, self.god.identities.get(key)?.at));
        keys.filter_map(place).collect()
    }

    /// An enclave answered something of the host's own.
    pub(super) fn run_goes_on(&mut self, number: u64, reply: &Reply) {
        let Some((index, key)) = self.hostile.sent.remove(&number) else { return };
        match reply {
            Reply::NoncesMade(bundles) => {
                let run = &mut self.hostile.runs[index];
                for Addressed { peer, blob } in bundles {
                    run.nonces.insert((key, *peer), blob.clone());
                }
                let count = run.members.len();
                let all = run
                    .members
                    .iter()
                    .all(|(key, _)| run.nonces.keys().filter(|(from, _)| from == key).count() + 1 >= count);
                if all && run.round == 1 {
                    run.round = 2;
                    self.asks_for_partials(index);
                }
            }
            Reply::PartialsMade(blob) => {
                let run = &mut self.hostile.runs[index];
                run.partials.insert(key, blob.clone());
                if run.partials.len() + 1 >= run.members.len() && run.round == 2 {
                    run.round = 3;
                    self.asks_for_result(index);
                }
            }
            Reply::Aggregated(_) => self.log.reached("hostile: a result of its own"),
            Reply::Refused(refused) => {
                let code = refused.refusal().code;
                let run = &mut self.hostile.runs[index];
                // Not concerned: the run is about fewer.
                if code == Code::NotConcerned || code == Code::WrongEnclaveKey {
                    run.members.retain(|(other, _)| *other != key);
                    return;
                }
                if code != Code::UnknownSession || run.opened.contains(&key) {
                    return;
                }
                run.opened.push(key);
                let keygen_id = run.run.keygen_id;
                let at = run.members.iter().find(|(other, _)| *other == key).map(|(_, at)| *at);
                let open = self.hostile.openings.get(&(keygen_id, key)).cloned();
                if let (Some(at), Some(open)) = (at, open) {
                    self.strikes_with_request(at, None, Request::OpenKeygen(open));
                    self.asks_for_nonces(index, key, at);
                }
            }
            _ => {}
        }
    }

    fn asks_for_partials(&mut self, index: usize) {
        let members = self.hostile.runs[index].members.clone();
        let aggregator = self.hostile.runs[index].run.aggregator;
        for (key, at) in members.iter().copied().filter(|(key, _)| *key != aggregator) {
            let genuine = self.hostile.runs[index].bundles_for(key);
            let run = self.hostile.runs[index].key_at(key);
            let twisted = self.twisted(index, key, &genuine);
            let twice = self.hostile.runs[index].twist == Twist::Twice;
            let other = members[self.chance.place("other aggregator", members.len())].0;
            let aggregator = match self.hostile.runs[index].twist {
                Twist::OtherAggregator => other,
                _ => run.aggregator,
            };
            let make = MakePartials { run: RunKey { aggregator, ..run }, nonces: twisted };
            let number = self.strikes_with_request(at, None, Request::MakePartials(make.clone()));
            self.hostile.sent.insert(number, (index, key));
            if twice {
                let make = MakePartials { run, nonces: genuine };
                let number = self.strikes_with_request(at, None, Request::MakePartials(make));
                self.hostile.sent.insert(number, (index, key));
            }
        }
    }

    /// The bundles for an enclave as the twist has them.
    fn twisted(&mut self, index: usize, key: PublicKey, genuine: &[Addressed]) -> Vec<Addressed> {
        let mut bundles = genuine.to_vec();
        let others: Vec<Vec<Addressed>> = self
            .hostile
            .runs
            .iter()
            .map(|other| other.bundles_for(key))
            .filter(|other| !other.is_empty())
            .collect();
        match self.hostile.runs[index].twist {
            Twist::OtherBundles | Twist::Twice if !others.is_empty() => {
                bundles = others[self.chance.place("other bundles", others.len())].clone();
            }
            Twist::SwappedSenders if bundles.len() > 1 => {
                let (first, second) = (bundles[0].peer, bundles[1].peer);
                bundles[0].peer = second;
                bundles[1].peer = first;
            }
            _ => {}
        }
        bundles
    }

    fn asks_for_result(&mut self, index: usize) {
        let of = &self.hostile.runs[index];
        let key = of.run.aggregator;
        let Some(at) = of.members.iter().find(|(other, _)| *other == key).map(|(_, at)| *at) else { return };
        let partials = of.partials.iter().map(|(peer, blob)| Addressed { peer: *peer, blob: blob.clone() });
        let aggregate =
            Aggregate { run: of.key_at(key), nonces: of.bundles_for(key), partials: partials.collect() };
        let number = self.strikes_with_request(at, None, Request::Aggregate(aggregate));
        self.hostile.sent.insert(number, (index, key));
    }
}
