//! What enclaves answer: S1, authority; S2, one nonce, one challenge; S3, only genuine identities and rosters.

use std::collections::BTreeMap;
use std::sync::Arc;

use keymeld_core::artifact::Signed;
use keymeld_core::artifact::certificate::IdentitySignature;
use keymeld_core::artifact::manifest::{Manifest, Pin};
use keymeld_core::artifact::registration::{
    ApprovalRule, Record, RecordSignatures, open_record, user_auth_key,
};
use keymeld_core::artifact::result::{Outcome, SigningResult};
use keymeld_core::artifact::roster::Roster;
use keymeld_core::attestation::document::Document;
use keymeld_core::bytes::{Blob, Hash, PublicKey, PublicNonce, Signature};
use keymeld_core::crypto::auth;
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::hash::Tag;
use keymeld_core::crypto::seal::{Context, Round, SealKey};
use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::limits::{RESULT_BYTES_MAX, SEALED_BYTES_MAX};
use keymeld_core::link::message::{
    Addressed, CheckRegistration, IdentityRow, OpenKeygen, Reply, Request, RunKey, UserBlob,
};
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use musig2::secp::{MaybeScalar, Point};
use musig2::{AggNonce, KeyAggContext, PubNonce};

use super::super::god::{IdentityFacts, IntentFacts, ItemFacts, RunFacts};
use super::super::world::World;
use super::envelope::Taken;
use super::seal;
use super::solver::{Equation, challenge, solve};

impl World {
    /// Looks at an enclave's answer. `worked` says whether its generators did.
    pub(crate) fn judge_reply(
        &mut self,
        (at, life): (usize, u64),
        worked: bool,
        request: &Request,
        reply: &Reply,
    ) {
        match (request, reply) {
            (_, Reply::Refused(refused)) => {
                let code = refused.refusal().code;
                self.log.note(format_args!("enclave {at} refuses: {code}"));
            }
            (Request::CreateIdentity(_), Reply::IdentityCreated(row)) => self.judge_birth(at, row),
            (Request::OpenIdentity(row), Reply::IdentityOpened) => self.judge_opening(at, row),
            (Request::OpenKeygen(open), Reply::KeygenOpened(opened)) => {
                self.judge_roster(life, open, opened.roster_hash);
            }
            (Request::MakeNonces(make), Reply::NoncesMade(bundles)) => {
                self.judge_nonces((at, life), worked, &make.run, bundles);
            }
            (Request::MakePartials(make), Reply::PartialsMade(blob)) => {
                self.judge_partials((at, life), &make.run, &make.nonces, blob);
            }
            (Request::MakeNonces(make), Reply::Aggregated(blob)) => {
                self.judge_result((at, life), &make.run, None, blob);
            }
            (Request::Aggregate(aggregate), Reply::Aggregated(blob)) => {
                self.judge_result((at, life), &aggregate.run, Some(&aggregate.nonces), blob);
            }
            (Request::CheckRegistration(check), Reply::RegistrationChecked) => {
                self.judge_registered(check);
                self.judge_envelope(&Taken {
                    enclave_key: check.enclave_key,
                    keygen_id: check.keygen_id,
                    manifest_hash: check.manifest_hash,
                    user_id: check.user_id,
                    envelope: &check.envelope,
                    record: &check.record,
                });
            }
            (Request::Hello, Reply::Hello(_)) | (Request::Attest(_), Reply::Attested(_)) => {}
            (request, reply) => panic!("S8: {request:?} is answered with {reply:?}"),
        }
    }

    /// What the key service and the enclave know of a new identity.
    fn judge_birth(&mut self, at: usize, row: &IdentityRow) {
        let key = self.hosts[at].data_key(&row.encrypted_data_key.0).expect("the key service made it");
        let context = Context::Seed {
            enclave_id: row.enclave_id,
            epoch: row.epoch,
            key_arn: Vec::new(),
            ecies_key: row.ecies_key,
            identity_key: row.identity_key,
            birth_pcr0: row.birth_pcr0.0.clone(),
        };
        self.god.leaks.add(key.expose(), "a data key");
        let seed = seal::open(&key, &context, &row.encrypted_seed);
        let seed = seed.expect("S3: a row's seed is sealed for exactly this row");
        let seed = Secret::copied_from(seed[..].try_into().expect("32 bytes"));
        let ecies = derive(&seed, Purpose::EnclaveEcies(row.enclave_id, row.epoch));
        let document = Document::parse_unverified(&row.birth_document.0).expect("a document");
        assert_eq!(auth::public_key(&ecies), Ok(row.ecies_key), "a row's keys are its seed's");
        let facts = IdentityFacts {
            at,
            enclave_id: row.enclave_id,
            epoch: row.epoch,
            identity_key: row.identity_key,
            ecies,
            birth_ms: document.timestamp_ms,
        };
        self.god.learn_identity(facts, &seed, row.ecies_key);
        self.log.reached("an identity is made");
    }

    /// S7: a row that a host made up is refused.
    fn judge_opening(&mut self, at: usize, row: &IdentityRow) {
        let facts = self.god.identities.get(&row.ecies_key);
        let facts = facts.filter(|facts| {
            let made = (facts.at, facts.enclave_id, facts.epoch, facts.identity_key);
            made == (at, row.enclave_id, row.epoch, row.identity_key)
        });
        assert!(facts.is_some(), "S7: an enclave opens an identity that it never made");
        self.log.reached("an identity is opened");
    }

    /// A registration is its user's, as the manifest says.
    fn judge_registered(&self, check: &CheckRegistration) {
        let CheckRegistration { keygen_id, manifest_hash, user_id, .. } = *check;
        let circle = self.god.circle_of(keygen_id).expect("S3: a registration in a keygen that nobody made");
        let secret = self.god.circles[circle].session_secret.as_ref();
        let secret = secret.expect("kept before anything is sent");
        let context = Context::Manifest { keygen_id, manifest_hash };
        let bytes = seal::open(&derive(secret, Purpose::SessionSeal(keygen_id)), &context, &check.manifest);
        let bytes = bytes.expect("S3: an enclave takes a manifest of another session");
        let manifest = Manifest::decode(&bytes).expect("S4: an enclave takes a wrong manifest");
        let sealed = UserBlob { user_id, blob: check.record.clone() };
        judge_signatures_of_record(secret, &manifest, manifest_hash, &sealed);
    }

    /// The roster that an enclave certified holds of every honest member what that member registered.
    fn judge_roster(&mut self, life: u64, open: &OpenKeygen, roster_hash: Hash) {
        let OpenKeygen { enclave_key, keygen_id, manifest_hash, .. } = *open;
        let circle = self.god.circle_of(keygen_id).expect("S3: an enclave opens a keygen that nobody made");
        let secret = self.god.circles[circle].session_secret.as_ref();
        let secret = secret.expect("kept before anything is sent");
        let known = self.god.rosters.values().find(|roster| roster.roster_hash() == roster_hash);
        let roster = match known {
            Some(roster) => Arc::clone(roster),
            None => {
                let context = Context::Manifest { keygen_id, manifest_hash };
                let bytes =
                    seal::open(&derive(secret, Purpose::SessionSeal(keygen_id)), &context, &open.manifest);
                let bytes = bytes.expect("S3: an enclave opens a manifest of another session");
                let manifest = Manifest::decode(&bytes).expect("S4: an enclave takes a wrong manifest");
                for sealed in &open.records {
                    judge_signatures_of_record(secret, &manifest, manifest_hash, sealed);
                }
                let seal_key = SealKey::derived(secret, Purpose::SessionSeal(keygen_id));
                let records = open.records.iter().map(|sealed| {
                    open_record(&seal_key, &manifest, manifest_hash, sealed.user_id, &sealed.blob)
                });
                let records = records.collect::<Result<Vec<_>, _>>();
                let records = records.expect("S3: an enclave takes a record that does not verify");
                Arc::new(Roster::assemble(manifest, manifest_hash, records).expect("an enclave assembled it"))
            }
        };
        assert_eq!(roster.roster_hash(), roster_hash, "S4: an enclave certifies another roster");
        for member in 0..self.plan.circles[circle].members.len() {
            self.judge_record(circle, member, &roster);
        }
        for sealed in &open.envelopes {
            let record = open.records.iter().find(|record| record.user_id == sealed.user_id);
            self.judge_envelope(&Taken {
                enclave_key,
                keygen_id,
                manifest_hash,
                user_id: sealed.user_id,
                envelope: &sealed.blob,
                record: &record.expect("S3: an enclave takes an envelope without a record").blob,
            });
        }
        let hashes = &mut self.god.circles[circle].roster_hashes;
        hashes.insert(roster_hash);
        let colluders = self.plan.circles[circle].members.iter().any(|member| member.colludes);
        assert!(colluders || hashes.len() == 1, "S4: two rosters of one keygen");
        self.god.rosters.insert((life, keygen_id, enclave_key), roster);
        self.log.reached("a session is opened");
    }

    fn judge_record(&self, circle: usize, member: usize, roster: &Roster) {
        let of = &self.plan.circles[circle].members[member];
        if of.colludes {
            return;
        }
        let facts = &self.god.circles[circle];
        let record: Option<&Record> = roster.record(facts.users[member]);
        let record = record.expect("S4: an enclave takes a roster without somebody");
        if self.is_usurped(circle, member, roster) {
            return;
        }
        let key = Secret::copied_from(&of.key);
        let auth_key = user_auth_key(&key, record.keygen_id).expect("a key").public();
        let approves = record.rules.approval == ApprovalRule::Required;
        let genuine = record.public_key == self.god.public_key(&of.key)
            && record.auth_key == auth_key
            && Some(record.enclave_key) == facts.registered[member]
            && approves == of.approves
            && record.rules.allow_any_requester == of.any_requester
            && record.rules.allow_blind == of.blind;
        assert!(genuine, "S1: an enclave takes a record that member {member} never made");
    }

    /// Whether a coordinator that colludes has registered in the place of somebody whom it invited. Enclaves
    /// cannot know; the one whose place it is notices, and the others where they compare the short code.
    fn is_usurped(&self, circle: usize, member: usize, roster: &Roster) -> bool {
        let plan = &self.plan.circles[circle];
        let user_id = self.god.circles[circle].users[member];
        let invited =
            roster.manifest().participant(user_id).is_some_and(|one| matches!(one.pin, Pin::InviteKey(_)));
        let own_key = self.god.public_key(&plan.members[member].key);
        let others_key = roster.record(user_id).is_some_and(|record| record.public_key != own_key);
        plan.members[0].colludes && invited && others_key
    }

    fn intent(&self, run: &RunKey) -> IntentFacts {
        let facts = self.god.intents.get(&run.digest);
        let facts = facts.expect("S1: an enclave signs an intent that nobody made");
        let keygen_id = self.god.circles[facts.circle].keygen_id;
        assert!(
            facts.signing_id == run.signing_id && keygen_id == Some(run.keygen_id),
            "S3: an enclave signs an intent of another session"
        );
        facts.clone()
    }

    /// S1: everybody whose key is at this enclave allows this intent now.
    fn judge_authority(&self, run: &RunKey, facts: &IntentFacts, roster: &Roster) {
        assert_eq!(
            roster.roster_hash(),
            facts.roster_hash,
            "S3: an enclave signs under another roster than the intent names"
        );
        let plan = &self.plan.circles[facts.circle];
        let users = &self.god.circles[facts.circle].users;
        for (member, of) in plan.members.iter().enumerate() {
            if self.is_usurped(facts.circle, member, roster) {
                continue;
            }
            let record = roster.record(users[member]);
            let is_here = record.is_some_and(|record| record.enclave_key == run.enclave_key);
            let signs = facts.items.iter().any(|item| item.signers.contains(&member));
            if is_here && signs && !of.colludes {
                let forbidden = self.god.forbids(plan, run.digest, facts, member, self.unix_ms());
                assert!(
                    forbidden.is_none(),
                    "S1: an enclave signs for member {member} although {}",
                    forbidden.unwrap_or_default()
                );
            }
        }
    }

    /// Who signs each item, in KeySort order, and where.
    fn signers<'a>(&self, facts: &IntentFacts, roster: &'a Roster) -> Vec<Vec<&'a Record>> {
        let users = &self.god.circles[facts.circle].users;
        let of_item = |signers: &Vec<usize>| {
            let signs = |record: &&Record| signers.iter().any(|member| users[*member] == record.user_id);
            roster.records().iter().filter(signs).collect()
        };
        facts.items.iter().map(|item| of_item(&item.signers)).collect()
    }

    fn judge_nonces(&mut self, (at, life): (usize, u64), worked: bool, run: &RunKey, bundles: &[Addressed]) {
        let reply = Reply::NoncesMade(bundles.to_vec()).encode();
        let key = (life, run.enclave_key, run.attempt);
        if self.god.runs.get(&key).is_some_and(|known| known.reply == reply) {
            return;
        }
        assert!(worked, "S2: an enclave makes nonces although its generator does not work");
        let facts = self.intent(run);
        let roster = self.god.rosters.get(&(life, run.keygen_id, run.enclave_key));
        let roster = Arc::clone(roster.expect("S3: an enclave signs in a session that was never opened"));
        self.judge_authority(run, &facts, &roster);
        let signers = self.signers(&facts, &roster);
        let here = |record: &&&Record| record.enclave_key == run.enclave_key;
        let count = signers.iter().flatten().filter(here).count();
        let mut opened: Option<Vec<PublicNonce>> = None;
        for Addressed { peer, blob } in bundles {
            let round = round(run, roster.roster_hash(), run.enclave_key, *peer);
            let bytes = seal::open(&self.pair_key(run, peer), &Context::Nonces(round), blob);
            let bytes = bytes.expect("S3: nonces are not sealed for their peer and attempt");
            let nonces = NonceBundle::decode(&bytes, count).expect("S2: one nonce for each share").nonces;
            assert!(opened.is_none_or(|other| other == nonces), "S2: peers are told different nonces");
            opened = Some(nonces);
        }
        let nonces = opened.expect("an enclave with all signers does not send nonces");
        for nonce in &nonces {
            assert!(self.god.nonces_made.insert(nonce.0), "S2: a nonce is made twice");
            self.god.leaks.add(&nonce.0[1..], "a public nonce");
        }
        self.log.note(format_args!("enclave {at} makes {count} nonces for attempt {}", run.attempt));
        self.god.runs.insert(key, RunFacts { roster, nonces, reply });
    }

    /// The key of a pair of enclaves: whichever of them is genuine, its half is enough.
    fn pair_key(&self, run: &RunKey, peer: &PublicKey) -> Secret<32> {
        let own = &self.god.identities[&run.enclave_key].ecies;
        let shared = auth::shared_secret(own, peer).expect("a point");
        derive(&shared, Purpose::Pair(run.attempt))
    }

    /// All nonces of a run as an enclave was given them, by item, in KeySort order.
    fn view(
        &self,
        run: &RunKey,
        made: &RunFacts,
        signers: &[Vec<&Record>],
        bundles: &[Addressed],
    ) -> Vec<Vec<[u8; 66]>> {
        let mut streams: BTreeMap<PublicKey, Vec<PublicNonce>> = BTreeMap::new();
        for Addressed { peer, blob } in bundles {
            let round = round(run, made.roster.roster_hash(), *peer, run.enclave_key);
            let bytes = seal::open(&self.pair_key(run, peer), &Context::Nonces(round), blob);
            let bytes = bytes.expect("S3: an enclave takes nonces that are not sealed for it");
            let there = |record: &&&Record| record.enclave_key == *peer;
            let count = signers.iter().flatten().filter(there).count();
            let nonces =
                NonceBundle::decode(&bytes, count).expect("S2: an enclave takes a wrong bundle").nonces;
            streams.insert(*peer, nonces);
        }
        streams.insert(run.enclave_key, made.nonces.clone());
        let mut streams: BTreeMap<_, _> =
            streams.into_iter().map(|(peer, nonces)| (peer, nonces.into_iter())).collect();
        let mut next = |record: &&Record| streams.get_mut(&record.enclave_key).and_then(Iterator::next);
        let of_item = |item: &Vec<&Record>| {
            item.iter()
                .map(|record| next(record).expect("S2: an enclave signs without all nonces").0)
                .collect()
        };
        signers.iter().map(of_item).collect()
    }

    /// S2: each of an enclave's nonces answers one challenge, ever.
    fn answers(
        &mut self,
        run: &RunKey,
        facts: &IntentFacts,
        signers: &[Vec<&Record>],
        view: &[Vec<[u8; 66]>],
    ) {
        for ((item, signers), nonces) in facts.items.iter().zip(signers).zip(view) {
            let aggregate = aggregate(nonces);
            let Some(context) = self.context_of(facts, signers, &item.tweak) else { continue };
            let key = context.aggregated_pubkey::<Point>().serialize_xonly();
            let answer = (aggregate.serialize(), item.message, key);
            for (record, nonce) in signers.iter().zip(nonces) {
                if record.enclave_key == run.enclave_key {
                    let earlier = self.god.answered.insert(*nonce, answer);
                    assert!(
                        earlier.is_none_or(|earlier| earlier == answer),
                        "S2: a nonce answers two challenges"
                    );
                }
            }
        }
    }

    fn context_of(
        &mut self,
        facts: &IntentFacts,
        signers: &[&Record],
        tweak: &[keymeld_core::artifact::tweak::TweakStep],
    ) -> Option<KeyAggContext> {
        let keys = signers.iter().map(|record| record.public_key).collect();
        self.god.aggregation(facts.circle, keys, tweak)
    }

    fn judge_partials(&mut self, (at, life): (usize, u64), run: &RunKey, bundles: &[Addressed], blob: &Blob) {
        let facts = self.intent(run);
        let key = (life, run.enclave_key, run.attempt);
        let made = self.god.runs.get(&key).expect("S2: an enclave signs with nonces that it never made");
        let made =
            RunFacts { roster: Arc::clone(&made.roster), nonces: made.nonces.clone(), reply: Vec::new() };
        let signers = self.signers(&facts, &made.roster);
        let view = self.view(run, &made, &signers, bundles);
        let first = !self.god.answered.contains_key(&made.nonces[0].0);
        if first {
            self.judge_authority(run, &facts, &made.roster);
        }
        self.answers(run, &facts, &signers, &view);
        let round = round(run, made.roster.roster_hash(), run.enclave_key, run.aggregator);
        let bytes = seal::open(&self.pair_key(run, &run.aggregator), &Context::Partials(round), blob);
        let bytes = bytes.expect("S3: partials are not sealed for the aggregator and attempt");
        let bundle =
            PartialBundle::decode(&bytes, made.nonces.len()).expect("S2: one partial for each nonce");
        let mut partials = bundle.partials.iter();
        for ((item, signers), nonces) in facts.items.iter().zip(&signers).zip(&view) {
            let context = self.context_of(&facts, signers, &item.tweak);
            let context = context.expect("S2: an enclave signs under a key that there is not");
            for (record, nonce) in signers.iter().zip(nonces) {
                if record.enclave_key != run.enclave_key {
                    continue;
                }
                let partial = partials.next().expect("counted");
                self.god.leaks.add(&partial.0, "a partial signature");
                let valid = musig2::verify_partial(
                    &context,
                    MaybeScalar::from_slice(&partial.0).expect("S1: a partial is a scalar"),
                    &aggregate(nonces),
                    Point::from_slice(&record.public_key.0).expect("a point"),
                    &PubNonce::from_bytes(nonce).expect("two points"),
                    item.message,
                );
                assert!(valid.is_ok(), "S1: a partial signature is not over exactly this message and key");
            }
        }
        self.log.note(format_args!("enclave {at} signs in attempt {}", run.attempt));
    }

    fn judge_result(
        &mut self,
        (at, life): (usize, u64),
        run: &RunKey,
        bundles: Option<&[Addressed]>,
        blob: &Blob,
    ) {
        let facts = self.intent(run);
        let key = (life, run.enclave_key, run.attempt);
        let mut first = true;
        let roster = match bundles {
            None => {
                let roster = self.god.rosters.get(&(life, run.keygen_id, run.enclave_key));
                Arc::clone(roster.expect("S3: an enclave signs in a session that was never opened"))
            }
            Some(bundles) => {
                let made =
                    self.god.runs.get(&key).expect("S2: an enclave signs with nonces that it never made");
                let nonces = made.nonces.clone();
                let made = RunFacts { roster: Arc::clone(&made.roster), nonces, reply: Vec::new() };
                let signers = self.signers(&facts, &made.roster);
                let view = self.view(run, &made, &signers, bundles);
                first = !self.god.answered.contains_key(&made.nonces[0].0);
                self.answers(run, &facts, &signers, &view);
                made.roster
            }
        };
        let context =
            Context::Result { keygen_id: run.keygen_id, signing_id: run.signing_id, digest: run.digest };
        let plaintext = seal::open(&self.signing_seal(facts.circle, run.signing_id), &context, blob);
        let plaintext = plaintext.expect("S3: a result is not sealed for its session");
        let signed: Signed<IdentitySignature> =
            strict::from_json(&plaintext, SEALED_BYTES_MAX).expect("a result");
        let result: SigningResult = strict::from_json(&signed.body.0, RESULT_BYTES_MAX).expect("a result");
        let mut news = false;
        let signers = self.signers(&facts, &roster);
        for ((item, signers), outcome) in facts.items.iter().zip(&signers).zip(&result.items) {
            assert_eq!(outcome.item_id, item.item_id, "S4: a result's items are in another order");
            news |= self.judge_outcome(&facts, item, signers, &outcome.outcome);
        }
        // A cached answer says nothing new.
        if first && (news || bundles.is_some()) {
            self.judge_authority(run, &facts, &roster);
        }
        self.log.note(format_args!("enclave {at} has the result of attempt {}", run.attempt));
    }

    fn judge_outcome(
        &mut self,
        facts: &IntentFacts,
        item: &ItemFacts,
        signers: &[&Record],
        outcome: &Outcome,
    ) -> bool {
        let signature = match outcome {
            Outcome::Signature(signature) => signature,
            Outcome::Error { code, culprits } => {
                assert!(self.plan.hostile, "S4: honest enclaves end with {outcome:?}");
                let users = &self.god.circles[facts.circle].users;
                let members = &self.plan.circles[facts.circle].members;
                let colludes =
                    |user| users.iter().zip(members).any(|(of, member)| of == user && member.colludes);
                assert!(culprits.iter().all(colludes), "S4: an enclave blames the innocent for {code}");
                self.god.failed_items.insert(item.item_id);
                return true;
            }
        };
        let context = self.context_of(facts, signers, &item.tweak);
        let context = context.expect("S2: an enclave signs under a key that there is not");
        let key_x = context.aggregated_pubkey::<Point>().serialize_xonly();
        assert!(
            verifies(&key_x, &item.message, signature),
            "S1: a signature is not over exactly this message"
        );
        let (nonce, s) = signature.0.split_at(32);
        let (nonce_x, s): ([u8; 32], [u8; 32]) =
            (nonce.try_into().expect("half"), s.try_into().expect("half"));
        self.god.leaks.add(&nonce_x, "a signature");
        self.god.leaks.add(&s, "a signature");
        let earlier = self.god.signatures.insert(nonce_x, (item.message, key_x, s));
        self.god.signed += u64::from(earlier.is_none());
        if let Some((message, other_key, other_s)) = earlier {
            let equation = |message: &[u8; 32], s: [u8; 32]| {
                let challenge = challenge(&nonce_x, &key_x, message).expect("points");
                Equation { challenge, s }
            };
            let solved = solve(equation(&item.message, s), equation(&message, other_s), key_x);
            assert!(solved.is_none(), "S2: two signatures give the aggregate private key away");
            let same = message == item.message && other_key == key_x && other_s == s;
            assert!(same, "S2: one nonce is in two signatures");
        }
        earlier.is_none()
    }
}

/// S3: whoever registers a key has it, and is whom the manifest pins.
fn judge_signatures_of_record(
    session_secret: &Secret<32>,
    manifest: &Manifest,
    manifest_hash: Hash,
    sealed: &UserBlob,
) {
    let (keygen_id, user_id) = (manifest.keygen_id, sealed.user_id);
    let context = Context::Record { keygen_id, manifest_hash, user_id };
    let plaintext =
        seal::open(&derive(session_secret, Purpose::SessionSeal(keygen_id)), &context, &sealed.blob);
    let plaintext = plaintext.expect("S3: an enclave takes a record that is not sealed for its session");
    let signed: Signed<RecordSignatures> = serde_json::from_slice(&plaintext).expect("S3: a record");
    let record: Record = serde_json::from_slice(&signed.body.0).expect("S3: a record");
    let own_key = auth::x_only(&record.public_key);
    let by = |key, tag, signature| auth::verify(key, tag, &[&signed.body.0], signature);
    let RecordSignatures { possession, cosignature } = &signed.signatures;
    assert!(
        by(&own_key, Tag::Possession, possession),
        "S3: a key is registered that nobody has shown to have"
    );
    let pin = &manifest.participant(user_id).expect("S3: a record of a participant").pin;
    let cosigned = match pin {
        Pin::SigningKey(pinned) => *pinned == record.public_key && by(&own_key, Tag::PinnedKey, cosignature),
        Pin::InviteKey(key) => by(key, Tag::InviteKey, cosignature),
    };
    assert!(cosigned, "S3: somebody registers whom the manifest does not pin");
}

pub(crate) fn round(run: &RunKey, roster_hash: Hash, sender: PublicKey, recipient: PublicKey) -> Round {
    Round {
        keygen_id: run.keygen_id,
        roster_hash,
        digest: run.digest,
        attempt: run.attempt,
        aggregator: run.aggregator,
        sender,
        recipient,
    }
}

fn aggregate(nonces: &[[u8; 66]]) -> AggNonce {
    AggNonce::sum(nonces.iter().map(|nonce| PubNonce::from_bytes(nonce).expect("S2: a nonce is two points")))
}

/// BIP-340 by libsecp256k1, without anything of ours.
pub(crate) fn verifies(key_x: &[u8; 32], message: &[u8; 32], signature: &Signature) -> bool {
    let Ok(key) = secp256k1::XOnlyPublicKey::from_byte_array(*key_x) else { return false };
    let signature = secp256k1::schnorr::Signature::from_byte_array(signature.0);
    secp256k1::schnorr::verify(&signature, message, &key).is_ok()
}
