//! The signing rounds as the host runs them by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::Intent;
use keymeld_core::artifact::roster::Roster;
use keymeld_core::bytes::{Blob, PublicKey, PublicNonce};
use keymeld_core::id::{AttemptId, UserId};
use keymeld_core::link::message::{Addressed, Aggregate, MakeNonces, MakePartials, Reply, Request, RunKey};
use keymeld_core::refusal::Code;

use super::super::module::START;
use super::super::world::{Happening, World};
use super::RUNS_MAX;
use super::puppet::Part;

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
    /// Round 2 once the intent has expired.
    Late,
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

/// An enclave that takes part.
#[derive(Clone, Copy)]
struct Member {
    key: PublicKey,
    at: usize,
    /// Which of its processes; the one that the gateway reaches where none is named.
    life: Option<u64>,
}

/// A run and how far it is.
pub(crate) struct HostileRun {
    circle: usize,
    run: RunKey,
    intent: Blob,
    approvals: Vec<Approval>,
    members: Vec<Member>,
    /// The puppet's part and the nonces that it told the aggregator.
    puppet: Option<(Part, Vec<PublicNonce>)>,
    twist: Twist,
    /// When round 2 begins at the earliest.
    waits_until_ms: u64,
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

    /// Begins a run of an intent at the enclaves that the host knows to be concerned.
    pub(super) fn begins_run(&mut self, run: RunKey, intent: Blob, approvals: Vec<Approval>, twist: Twist) {
        let members = self.members_of(&run);
        let Some(circle) = self.god.circle_of(run.keygen_id) else { return };
        self.begins(circle, (run, intent), approvals, twist, members, None, 0);
    }

    /// Begins a run under a roster, at the processes that have opened it.
    pub(super) fn begins_run_under(
        &mut self,
        circle: usize,
        roster: &Arc<Roster>,
        intent: &Intent,
        (run, sealed): (RunKey, Blob),
        approvals: Vec<Approval>,
        twist: Twist,
    ) {
        let mut members: Vec<Member> = Vec::new();
        for ((life, _, key), opened) in self.god.rosters.iter().rev() {
            let at = self.god.identities.get(key).map(|facts| facts.at);
            let known = members.iter().any(|member| member.key == *key);
            let is_there = at.is_some_and(|at| self.hosts[at].processes.iter().any(|one| one.life == *life));
            if let (Some(at), false, true) =
                (at, known, is_there && opened.roster_hash() == roster.roster_hash())
            {
                members.push(Member { key: *key, at, life: Some(*life) });
            }
        }
        let puppet = self.puppet_of(circle, roster).and_then(|key| Part::of(roster, key, intent));
        let late = twist == Twist::Late;
        let waits_until_ms = if late { (intent.expires_at + 1).saturating_sub(START) } else { 0 };
        self.begins(circle, (run, sealed), approvals, twist, members, puppet, waits_until_ms);
    }

    fn puppet_of(&self, circle: usize, roster: &Roster) -> Option<PublicKey> {
        let keys = self.hostile.puppets.get(&circle)?.keys();
        roster.enclaves().contains(&keys).then_some(keys.enclave_key)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one run")]
    fn begins(
        &mut self,
        circle: usize,
        (run, intent): (RunKey, Blob),
        mut approvals: Vec<Approval>,
        twist: Twist,
        members: Vec<Member>,
        puppet: Option<Part>,
        waits_until_ms: u64,
    ) {
        if self.hostile.runs.len() >= RUNS_MAX || members.is_empty() {
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
        let aggregator = match &puppet {
            Some(part) if self.chance.one_in("the puppet aggregates", 2) => part.key,
            _ => members[self.chance.place("hostile aggregator", members.len())].key,
        };
        let mut run = RunKey { attempt, aggregator, ..run };
        match twist {
            Twist::FewerApprovals if !approvals.is_empty() => {
                approvals.remove(self.chance.place("approval lost", approvals.len()));
            }
            Twist::NoApprovals => approvals.clear(),
            // What everybody approved elsewhere.
            Twist::OtherApproval => {
                let users = &self.god.circles[circle].users;
                let other = self.hostile.pools.approvals().iter().filter(|approval| {
                    approval.intent_digest != run.digest && users.contains(&approval.user_id)
                });
                let of_each: BTreeMap<UserId, Approval> =
                    other.map(|approval| (approval.user_id, *approval)).collect();
                approvals = of_each.into_values().collect();
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
            circle,
            run,
            intent,
            approvals,
            members: members.clone(),
            puppet: puppet.map(|part| (part, Vec::new())),
            twist,
            waits_until_ms,
            nonces: BTreeMap::new(),
            partials: BTreeMap::new(),
            opened: Vec::new(),
            round: 1,
        };
        self.hostile.runs.push(started);
        let index = self.hostile.runs.len() - 1;
        for member in members {
            self.asks_for_nonces(index, member);
        }
    }

    fn asks_for_nonces(&mut self, index: usize, Member { key, at, life }: Member) {
        let of = &self.hostile.runs[index];
        let make =
            MakeNonces { run: of.key_at(key), intent: of.intent.clone(), approvals: of.approvals.clone() };
        let clones = of.twist == Twist::Clone;
        let number = self.strikes_with_request(at, life, Request::MakeNonces(make.clone()));
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
    fn members_of(&self, run: &RunKey) -> Vec<Member> {
        let keys = self.hostile.openings.keys().filter(|(keygen_id, _)| *keygen_id == run.keygen_id);
        let member = |(_, key): &(_, PublicKey)| {
            Some(Member { key: *key, at: self.god.identities.get(key)?.at, life: None })
        };
        keys.filter_map(member).collect()
    }

    /// An enclave answered something of the host's own.
    pub(super) fn run_goes_on(&mut self, number: u64, reply: &Reply) {
        if let (Some(forged), Reply::KeygenOpened(opened)) =
            (self.hostile.openings_sent.remove(&number), reply)
        {
            return self.forgery_opened(forged, opened);
        }
        let Some((index, key)) = self.hostile.sent.remove(&number) else { return };
        match reply {
            Reply::NoncesMade(bundles) => {
                let run = &mut self.hostile.runs[index];
                for Addressed { peer, blob } in bundles {
                    run.nonces.insert((key, *peer), blob.clone());
                }
                let count = run.members.len() + usize::from(run.puppet.is_some());
                let told = |key: PublicKey| run.nonces.keys().filter(|(from, _)| *from == key).count();
                let all = run.members.iter().all(|member| told(member.key) + 1 >= count);
                if all && run.round == 1 {
                    run.round = 2;
                    self.asks_for_partials(index);
                }
            }
            Reply::PartialsMade(blob) => {
                let run = &mut self.hostile.runs[index];
                if run.puppet.is_some() {
                    self.log.reached("hostile: partials under a puppet's nonces");
                }
                run.partials.insert(key, blob.clone());
                let all = run
                    .members
                    .iter()
                    .all(|member| member.key == run.run.aggregator || run.partials.contains_key(&member.key));
                if all && run.round == 2 {
                    run.round = 3;
                    self.asks_for_result(index);
                }
            }
            Reply::Aggregated(_) if self.hostile.runs[index].puppet.is_some() => {
                self.log.reached("hostile: a result with a puppet");
            }
            Reply::Aggregated(_) => self.log.reached("hostile: a result of its own"),
            Reply::Refused(refused) => {
                let code = refused.refusal().code;
                let run = &mut self.hostile.runs[index];
                // Not concerned: the run is about fewer.
                if code == Code::NotConcerned || code == Code::WrongEnclaveKey {
                    run.members.retain(|member| member.key != key);
                    return;
                }
                if code != Code::UnknownSession || run.opened.contains(&key) {
                    return;
                }
                run.opened.push(key);
                let keygen_id = run.run.keygen_id;
                let member = run.members.iter().find(|member| member.key == key).copied();
                let open = self.hostile.openings.get(&(keygen_id, key)).cloned();
                if let (Some(member), Some(open)) = (member, open) {
                    self.strikes_with_request(member.at, member.life, Request::OpenKeygen(open));
                    self.asks_for_nonces(index, member);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn asks_for_partials(&mut self, index: usize) {
        let waits_until_ms = std::mem::take(&mut self.hostile.runs[index].waits_until_ms);
        if waits_until_ms > self.now_ms {
            self.log.reached("hostile: a round after expiry");
            return self.later(waits_until_ms - self.now_ms, Happening::RunGoesOn { index });
        }
        self.puppet_tells(index);
        let members = self.hostile.runs[index].members.clone();
        let aggregator = self.hostile.runs[index].run.aggregator;
        // With the puppet as the only other, nobody sends it partials before round 3.
        if members.iter().all(|member| member.key == aggregator) {
            return self.asks_for_result(index);
        }
        for Member { key, at, life } in members.iter().copied().filter(|member| member.key != aggregator) {
            let genuine = self.hostile.runs[index].bundles_for(key);
            let run = self.hostile.runs[index].key_at(key);
            let twisted = self.twisted(index, key, &genuine);
            let twice = self.hostile.runs[index].twist == Twist::Twice;
            let other = members[self.chance.place("other aggregator", members.len())].key;
            let aggregator = match self.hostile.runs[index].twist {
                Twist::OtherAggregator => other,
                _ => run.aggregator,
            };
            let make = MakePartials { run: RunKey { aggregator, ..run }, nonces: twisted };
            let number = self.strikes_with_request(at, life, Request::MakePartials(make.clone()));
            self.hostile.sent.insert(number, (index, key));
            if twice {
                self.puppet_tells(index);
                let nonces = self.hostile.runs[index].bundles_for(key);
                let nonces = if nonces == make.nonces { genuine } else { nonces };
                let number =
                    self.strikes_with_request(at, life, Request::MakePartials(MakePartials { run, nonces }));
                self.hostile.sent.insert(number, (index, key));
            }
        }
    }

    /// The puppet has seen everybody's nonces, and tells its own.
    fn puppet_tells(&mut self, index: usize) {
        let Some((part, _)) = self.hostile.runs[index].puppet.take() else { return };
        let (circle, run) = (self.hostile.runs[index].circle, self.hostile.runs[index].run);
        let mut own = Vec::new();
        for Member { key, .. } in self.hostile.runs[index].members.clone() {
            let theirs = self.hostile.runs[index].nonces.get(&(key, part.key)).cloned();
            let told = self.puppet_nonces(circle, &run, &part, key, theirs.as_ref());
            if let Some((nonces, blob)) = told {
                self.hostile.runs[index].nonces.insert((part.key, key), blob);
                if key == run.aggregator {
                    own = nonces;
                }
            }
        }
        self.log.reached("hostile: a puppet tells its nonces");
        self.hostile.runs[index].puppet = Some((part, own));
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
        let key = self.hostile.runs[index].run.aggregator;
        let member = self.hostile.runs[index].members.iter().find(|member| member.key == key).copied();
        // Whatever the puppet aggregates it has by now.
        let Some(Member { at, life, .. }) = member else { return };
        let of = &self.hostile.runs[index];
        let (circle, run, nonces) = (of.circle, of.run, of.bundles_for(key));
        let mut partials = of.partials.clone();
        if let Some((part, own)) = &of.puppet {
            let told = of.nonces.iter().filter(|((_, to), _)| *to == part.key);
            let told: BTreeMap<PublicKey, Blob> =
                told.map(|((from, _), blob)| (*from, blob.clone())).collect();
            let (part, own) = (part.clone(), own.clone());
            if let Some(blob) = self.puppet_partials(circle, &run, &part, &own, &told) {
                partials.insert(part.key, blob);
            }
        }
        let partials = partials.into_iter().map(|(peer, blob)| Addressed { peer, blob }).collect();
        let aggregate = Aggregate { run: RunKey { enclave_key: key, ..run }, nonces, partials };
        let number = self.strikes_with_request(at, life, Request::Aggregate(aggregate));
        self.hostile.sent.insert(number, (index, key));
    }
}
