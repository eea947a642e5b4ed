//! One run of the signing rounds, every message of which can be tampered with on its way.

use std::collections::BTreeMap;

use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::{Intent, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::registration::ApprovalRule;
use keymeld_core::artifact::result::{SigningResult, VerifiedOutcome, VerifiedSignature};
use keymeld_core::artifact::roster::EnclaveKeys;
use keymeld_core::bytes::{Blob, PublicKey};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::{Context, Round, SealKey};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::id::AttemptId;
use keymeld_core::link::message::{Addressed, Aggregate, MakeNonces, MakePartials, Reply, Request, RunKey};
use keymeld_core::refusal::Refusal;
use keymeld_core::secret::Secret;

use super::party::{Group, fresh_entropy};
use super::{World, keys};

/// A run as the gateway drives it.
#[derive(Clone)]
pub(crate) struct Run {
    /// The run, with the aggregator's key in place of the addressed enclave's.
    pub(crate) key: RunKey,
    pub(crate) intent: Blob,
    pub(crate) approvals: Vec<Approval>,
    /// The enclaves that take part; the aggregator first.
    pub(crate) enclaves: Vec<usize>,
    /// Nonce bundles by sender and recipient.
    pub(crate) nonces: BTreeMap<(PublicKey, PublicKey), Blob>,
    /// Partial bundles by sender.
    pub(crate) partials: BTreeMap<PublicKey, Blob>,
}

impl Run {
    /// A run of this intent; the first enclave aggregates.
    pub(crate) fn new(
        group: &Group,
        intent: &Intent,
        sealed: &SealedIntent,
        approvals: Vec<Approval>,
    ) -> Run {
        let enclaves = group.enclaves();
        let aggregator = keys(enclaves[0]).enclave_key;
        let key = RunKey {
            enclave_key: aggregator,
            keygen_id: intent.keygen_id,
            signing_id: intent.signing_id,
            digest: sealed.digest,
            attempt: AttemptId::random(&mut fresh_entropy()).expect("test entropy"),
            aggregator,
        };
        let (nonces, partials) = (BTreeMap::new(), BTreeMap::new());
        Run { key, intent: sealed.sealed.clone(), approvals, enclaves, nonces, partials }
    }

    /// The same once more, as a new attempt.
    pub(crate) fn again(&self) -> Run {
        let attempt = AttemptId::random(&mut fresh_entropy()).expect("test entropy");
        let key = RunKey { attempt, ..self.key };
        Run { key, nonces: BTreeMap::new(), partials: BTreeMap::new(), ..self.clone() }
    }

    pub(crate) fn key_at(&self, at: usize) -> RunKey {
        RunKey { enclave_key: keys(at).enclave_key, ..self.key }
    }

    pub(crate) fn nonces_request(&self, at: usize) -> Request {
        Request::MakeNonces(MakeNonces {
            run: self.key_at(at),
            intent: self.intent.clone(),
            approvals: self.approvals.clone(),
        })
    }

    /// The nonce bundles that are for this enclave.
    pub(crate) fn bundles_for(&self, at: usize) -> Vec<Addressed> {
        let own = keys(at).enclave_key;
        let to_own = self.nonces.iter().filter(|((_, to), _)| *to == own);
        to_own.map(|((from, _), blob)| Addressed { peer: *from, blob: blob.clone() }).collect()
    }

    pub(crate) fn partials_request(&self, at: usize) -> Request {
        Request::MakePartials(MakePartials { run: self.key_at(at), nonces: self.bundles_for(at) })
    }

    pub(crate) fn aggregate_request(&self) -> Request {
        let at = self.enclaves[0];
        let partials = self.partials.iter();
        Request::Aggregate(Aggregate {
            run: self.key_at(at),
            nonces: self.bundles_for(at),
            partials: partials.map(|(from, blob)| Addressed { peer: *from, blob: blob.clone() }).collect(),
        })
    }

    /// Round 1 at one enclave; gives the result where all signers are there.
    pub(crate) fn round_1(&mut self, world: &mut World, at: usize) -> Result<Option<Blob>, Refusal> {
        match world.ask(at, self.nonces_request(at))? {
            Reply::NoncesMade(bundles) => {
                for Addressed { peer, blob } in bundles {
                    self.nonces.insert((keys(at).enclave_key, peer), blob);
                }
                Ok(None)
            }
            Reply::Aggregated(result) => Ok(Some(result)),
            other => panic!("not an answer to MakeNonces: {other:?}"),
        }
    }

    /// Round 1 everywhere.
    pub(crate) fn all_nonces(&mut self, world: &mut World) -> Result<(), Refusal> {
        for at in self.enclaves.clone() {
            self.round_1(world, at)?;
        }
        Ok(())
    }

    /// Round 2 at one enclave.
    pub(crate) fn round_2(&mut self, world: &mut World, at: usize) -> Result<(), Refusal> {
        match world.ask(at, self.partials_request(at))? {
            Reply::PartialsMade(blob) => {
                self.partials.insert(keys(at).enclave_key, blob);
                Ok(())
            }
            other => panic!("not an answer to MakePartials: {other:?}"),
        }
    }

    /// Round 2 everywhere but at the aggregator.
    pub(crate) fn all_partials(&mut self, world: &mut World) -> Result<(), Refusal> {
        for at in self.enclaves.clone().into_iter().skip(1) {
            self.round_2(world, at)?;
        }
        Ok(())
    }

    /// Round 3.
    pub(crate) fn aggregate(&mut self, world: &mut World) -> Result<Blob, Refusal> {
        match world.ask(self.enclaves[0], self.aggregate_request())? {
            Reply::Aggregated(result) => Ok(result),
            other => panic!("not an answer to Aggregate: {other:?}"),
        }
    }

    /// All rounds.
    pub(crate) fn finish(&mut self, world: &mut World) -> Result<Blob, Refusal> {
        for at in self.enclaves.clone() {
            if let Some(result) = self.round_1(world, at)? {
                return Ok(result);
            }
        }
        self.all_partials(world)?;
        self.aggregate(world)
    }

    /// Reads a result as a client does, which verifies every signature.
    pub(crate) fn read(&self, group: &Group, result: &Blob) -> Result<Vec<VerifiedOutcome>, Refusal> {
        let roster = group.roster()?;
        let seal_key = group.signing_seal(self.key.signing_id);
        let sealed = SealedIntent { sealed: self.intent.clone(), digest: self.key.digest };
        let intent = VerifiedIntent::open(&roster, self.key.signing_id, &seal_key, &sealed)?;
        Ok(SigningResult::open(&roster, &intent, &seal_key, result)?)
    }
}

/// What is to be signed and how the gateway goes about it; the setting of most tests.
pub(crate) struct Case {
    pub(crate) world: World,
    pub(crate) group: Group,
    pub(crate) intent: Intent,
    /// Who signs the intent, if not the requester.
    pub(crate) signed_by: Option<AuthKey>,
    /// Who approves, and whether blindly.
    pub(crate) approvers: Vec<(usize, bool)>,
    /// Is done to the run before round 1.
    pub(crate) before: Vec<Step>,
    /// Is done between round 1 and round 2.
    pub(crate) between: Vec<Step>,
    /// Is done between round 2 and round 3.
    pub(crate) after: Vec<Step>,
}

/// Something that the gateway does to a run.
pub(crate) type Step = Box<dyn FnOnce(&mut Run, &mut Group, &mut World)>;

impl Case {
    /// The coordinator asks; everybody who has to approves.
    pub(crate) fn new(mut group: Group) -> Case {
        let count = group.enclaves().last().map_or(0, |last| last + 1);
        let intent = group.intent();
        let careful = |index: &usize| group.people[*index].rules.approval == ApprovalRule::Required;
        let approvers = (1..group.people.len()).filter(careful).map(|index| (index, false)).collect();
        Case {
            world: World::new(count),
            group,
            intent,
            signed_by: None,
            approvers,
            before: Vec::new(),
            between: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Adds a step before round 1.
    pub(crate) fn before(&mut self, step: impl FnOnce(&mut Run, &mut Group, &mut World) + 'static) {
        self.before.push(Box::new(step));
    }

    /// Adds a step between round 1 and round 2.
    pub(crate) fn between(&mut self, step: impl FnOnce(&mut Run, &mut Group, &mut World) + 'static) {
        self.between.push(Box::new(step));
    }

    /// Adds a step between round 2 and round 3.
    pub(crate) fn after(&mut self, step: impl FnOnce(&mut Run, &mut Group, &mut World) + 'static) {
        self.after.push(Box::new(step));
    }

    /// Seals and approves the intent.
    pub(crate) fn run(&mut self) -> Run {
        let Case { group, intent, signed_by, approvers, .. } = self;
        let seal_key = group.signing_seal(intent.signing_id);
        let sealed = match signed_by {
            Some(key) => intent.seal(key, &seal_key, &mut group.entropy),
            None => {
                let requester = group.people.iter().find(|person| person.user_id == intent.requester);
                let key = requester.unwrap_or(&group.people[0]).auth(group.manifest.keygen_id);
                intent.seal(&key, &seal_key, &mut group.entropy)
            }
        };
        let sealed = sealed.expect("small");
        let approve = |(index, blind): &(usize, bool)| group.approve(*index, intent, sealed.digest, *blind);
        let approvals = approvers.iter().map(approve).collect();
        Run::new(&self.group, &self.intent, &sealed, approvals)
    }

    /// Opens the session, runs all rounds and reads the result.
    pub(crate) fn outcomes(mut self) -> Result<Vec<VerifiedOutcome>, Refusal> {
        self.world.open_all(&self.group)?;
        let mut run = self.run();
        let Case { mut world, mut group, before, between, after, .. } = self;
        for step in before {
            step(&mut run, &mut group, &mut world);
        }
        let mut result = None;
        for at in run.enclaves.clone() {
            result = run.round_1(&mut world, at)?;
        }
        let result = match result {
            Some(result) => result,
            None => {
                for step in between {
                    step(&mut run, &mut group, &mut world);
                }
                run.all_partials(&mut world)?;
                for step in after {
                    step(&mut run, &mut group, &mut world);
                }
                run.aggregate(&mut world)?
            }
        };
        run.read(&group, &result)
    }

    /// The same where every item has to end signed.
    pub(crate) fn signatures(self) -> Result<Vec<VerifiedSignature>, Refusal> {
        self.outcomes()?.into_iter().collect()
    }
}

/// An enclave key pair that a colluder made up: it can do what an enclave does, for the colluder's own key.
pub(crate) struct Puppet {
    pub(crate) ecies: Secret<32>,
    pub(crate) identity: AuthKey,
    pub(crate) keys: EnclaveKeys,
}

impl Puppet {
    pub(crate) fn new() -> Puppet {
        let mut entropy = fresh_entropy();
        let ecies = Secret::random(&mut entropy).expect("test entropy");
        let identity = AuthKey::new(&Secret::random(&mut entropy).expect("test entropy")).expect("a key");
        let enclave_key = auth::public_key(&ecies).expect("a key");
        let keys = EnclaveKeys { enclave_key, identity_key: identity.public() };
        Puppet { ecies, identity, keys }
    }

    fn context(&self, run: &Run, group: &Group, recipient: PublicKey) -> Round {
        Round {
            keygen_id: run.key.keygen_id,
            roster_hash: group.roster().expect("made honestly").roster_hash(),
            digest: run.key.digest,
            attempt: run.key.attempt,
            aggregator: run.key.aggregator,
            sender: self.keys.enclave_key,
            recipient,
        }
    }

    fn pair_key(&self, peer: &PublicKey, attempt: AttemptId) -> SealKey {
        SealKey::derived(&auth::shared_secret(&self.ecies, peer).expect("a point"), Purpose::Pair(attempt))
    }

    /// Opens the bundle that an enclave sealed for this one.
    pub(crate) fn open_nonces(&self, run: &Run, group: &Group, from: PublicKey, count: usize) -> NonceBundle {
        let round =
            Round { sender: from, recipient: self.keys.enclave_key, ..self.context(run, group, from) };
        let blob = &run.nonces[&(from, self.keys.enclave_key)];
        let bytes = self
            .pair_key(&from, run.key.attempt)
            .open(&Context::Nonces(round), blob)
            .expect("for this enclave");
        NonceBundle::decode(&bytes, count).expect("well-formed")
    }

    /// Sends nonces to an enclave.
    pub(crate) fn send_nonces(&self, run: &mut Run, group: &Group, to: PublicKey, bundle: &NonceBundle) {
        let context = Context::Nonces(self.context(run, group, to));
        let blob = self
            .pair_key(&to, run.key.attempt)
            .seal(&context, &bundle.encode(), &mut fresh_entropy())
            .expect("small");
        run.nonces.insert((self.keys.enclave_key, to), blob);
    }

    /// Sends partial signatures to the aggregator.
    pub(crate) fn send_partials(&self, run: &mut Run, group: &Group, bundle: &PartialBundle) {
        let to = run.key.aggregator;
        let context = Context::Partials(self.context(run, group, to));
        let blob = self
            .pair_key(&to, run.key.attempt)
            .seal(&context, &bundle.encode(), &mut fresh_entropy())
            .expect("small");
        run.partials.insert(self.keys.enclave_key, blob);
    }
}
