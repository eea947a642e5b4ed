//! What colluding participants make for the host: with the session secret, and with their own keys only.

use std::sync::Arc;

use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::{Intent, IntentSignatures, Item, Origin};
use keymeld_core::artifact::registration::user_auth_key;
use keymeld_core::artifact::roster::Roster;
use keymeld_core::artifact::{Signed, VERSION};
use keymeld_core::bytes::{Blob, Hash, Message, PublicKey, Salt, Signature};
use keymeld_core::crypto::auth::AuthKey;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::id::{AttemptId, SigningId};
use keymeld_core::link::message::{MakeNonces, RunKey};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use super::super::god::{IntentFacts, ItemFacts};
use super::super::plan::Decision;
use super::super::world::{Happening, World};
use super::runs::Twist;

/// A circle that somebody in it betrays.
pub(super) struct Betrayed {
    pub(super) circle: usize,
    pub(super) colluder: usize,
    pub(super) honest: usize,
}

impl World {
    pub(super) fn betrayed(&mut self) -> Option<Betrayed> {
        let ready = |circle: &usize| {
            let facts = &self.god.circles[*circle];
            let members = &self.plan.circles[*circle].members;
            facts.session_secret.is_some() && members.iter().any(|member| member.colludes)
        };
        let circles: Vec<usize> = (0..self.god.circles.len()).filter(ready).collect();
        if circles.is_empty() {
            return None;
        }
        let circle = circles[self.chance.place("betrayed circle", circles.len())];
        let members = &self.plan.circles[circle].members;
        let places = |colludes: bool| -> Vec<usize> {
            (0..members.len()).filter(|index| members[*index].colludes == colludes).collect()
        };
        let (colluders, honest) = (places(true), places(false));
        Some(Betrayed {
            circle,
            colluder: colluders[self.chance.place("colluder", colluders.len())],
            honest: honest[self.chance.place("victim", honest.len())],
        })
    }

    pub(super) fn roster_of(&self, circle: usize) -> Option<Arc<Roster>> {
        let keygen_id = self.god.circles[circle].keygen_id?;
        let known = self.god.rosters.iter().find(|((_, of, _), _)| *of == keygen_id);
        known.map(|(_, roster)| Arc::clone(roster))
    }

    fn rosters_of(&self, circle: usize) -> Vec<Arc<Roster>> {
        let mut rosters: Vec<Arc<Roster>> = Vec::new();
        for ((_, keygen_id, _), roster) in &self.god.rosters {
            let known = rosters.iter().any(|known| known.roster_hash() == roster.roster_hash());
            if self.god.circles[circle].keygen_id == Some(*keygen_id) && !known {
                rosters.push(Arc::clone(roster));
            }
        }
        rosters
    }

    pub(super) fn session_seal(&self, circle: usize) -> Option<SealKey> {
        let facts = &self.god.circles[circle];
        let (secret, keygen_id) = (facts.session_secret.as_ref()?, facts.keygen_id?);
        Some(SealKey::derived(secret, Purpose::SessionSeal(keygen_id)))
    }

    pub(super) fn seal_of_signing(&self, circle: usize, signing_id: SigningId) -> Option<SealKey> {
        let secret = self.god.circles[circle].session_secret.as_ref()?;
        Some(SealKey::derived(secret, Purpose::SigningSeal(signing_id)))
    }

    fn auth_of(&self, circle: usize, member: usize) -> Option<AuthKey> {
        let key = Secret::copied_from(&self.plan.circles[circle].members[member].key);
        user_auth_key(&key, self.god.circles[circle].keygen_id?).ok()
    }

    /// An intent that a colluder signs: in its own name or in another's, valid already, no longer or not yet.
    pub(super) fn forges_intent(&mut self) {
        let Some(Betrayed { circle, colluder, honest }) = self.betrayed() else { return self.runs_again() };
        if self.chance.one_in("alters an intent", 3) {
            return self.alters_intent(circle);
        }
        let rosters: Vec<Arc<Roster>> = self.rosters_of(circle);
        if rosters.is_empty() {
            return;
        }
        let roster = Arc::clone(&rosters[self.chance.place("which roster", rosters.len())]);
        let in_own_name = !self.chance.one_in("in another's name", 3);
        self.asks_under(circle, &roster, colluder, if in_own_name { colluder } else { honest });
    }

    /// The puppet has peers that take it for one of them.
    pub(crate) fn puppet_acts(&mut self, forged: usize) {
        let Some(roster) = self.hostile.forged[forged].roster.clone() else { return };
        let keygen_id = roster.manifest().keygen_id;
        let Some(circle) = self.god.circle_of(keygen_id) else { return };
        let members = &self.plan.circles[circle].members;
        // Whoever colludes and may ask most.
        let Some(colluder) = members.iter().position(|member| member.colludes) else { return };
        self.asks_under(circle, &roster, colluder, colluder);
        if self.now_ms < self.plan.quiet_ms {
            let after_ms = self.chance.between("puppet acts again", 1_000, 15_000);
            self.later(after_ms, Happening::PuppetActs { forged });
        }
    }

    /// A colluder signs an intent under a roster, and the host runs it.
    fn asks_under(&mut self, circle: usize, roster: &Arc<Roster>, colluder: usize, requester: usize) {
        let Some(auth) = self.auth_of(circle, colluder) else { return };
        let Some(intent) = self.evil_intent(circle, roster, requester) else { return };
        let signing_id = intent.signing_id;
        let Some(seal_key) = self.seal_of_signing(circle, signing_id) else { return };
        let Ok(mut sealed) = intent.seal(&auth, &seal_key, &mut self.hostile.entropy) else { return };
        // What says that it is something else is nobody's to sign.
        let truthful = intent
            .items
            .iter()
            .all(|item| item.origin.as_ref().is_none_or(|origin| origin.message() == Ok(item.message)));
        if requester == colluder && truthful {
            self.learns_forged(circle, colluder, &intent, sealed.digest);
        }
        if self.chance.one_in("sealed as another", 3)
            && let Some(other) = self.sealed_as(&intent, sealed.digest, &auth, &seal_key)
        {
            sealed.sealed = other;
        }
        let approvals = self.forged_approvals(circle, colluder, signing_id, sealed.digest);
        self.log.note(format_args!(
            "hostile: an intent of member {colluder} in the name of {requester}, {signing_id}"
        ));
        self.log.reached("hostile: a forged intent");
        let run = run_key(&intent, sealed.digest);
        let late = intent.expires_at < self.unix_ms() + 60_000;
        let twist = match self.chance.below("twist of a forged intent", 6) {
            0 => Twist::Twice,
            _ if late => Twist::Late,
            _ => Twist::None,
        };
        self.begins_run_under(circle, roster, &intent, (run, sealed.sealed), approvals, twist);
    }

    fn evil_intent(&mut self, circle: usize, roster: &Roster, requester: usize) -> Option<Intent> {
        let message = self.chance.bytes("evil message");
        let origin = Origin::Bytes(Blob(message.to_vec()));
        let entropy = &mut self.hostile.entropy;
        let (signing_id, salt) = (SigningId::random(entropy).ok()?, entropy.bytes().ok()?);
        let mut item = match self.chance.below("evil item", 5) {
            0 => Item::blind(Message(message), entropy).ok()?,
            // It says what it is, which is not true.
            1 => Item { origin: Some(origin), ..Item::blind(Message(message), entropy).ok()? },
            _ => Item::of(origin, entropy).ok()?,
        };
        let subsets = &self.god.circles[circle].subsets;
        if !subsets.is_empty() && self.chance.one_in("evil subset", 2) {
            item.subset = Some(subsets[self.chance.place("which evil subset", subsets.len())]);
        }
        let now = self.unix_ms();
        let (created_at, expires_at) = match self.chance.below("evil times", 8) {
            0 => (now + 10 * 60_000, now + 20 * 60_000),
            1 => (now.saturating_sub(600_000), now.saturating_sub(1)),
            2..=4 => (now, now + self.chance.between("evil life", 2_000, 20_000)),
            _ => (now, now + 600_000),
        };
        Some(Intent {
            version: VERSION,
            salt: Salt(salt),
            keygen_id: roster.manifest().keygen_id,
            manifest_hash: roster.manifest_hash(),
            roster_hash: roster.roster_hash(),
            signing_id,
            requester: self.god.circles[circle].users[requester],
            created_at,
            expires_at,
            items: vec![item],
            psbts: Vec::new(),
        })
    }

    /// Another intent of the same session, truly signed, under the digest of the first.
    fn sealed_as(
        &mut self,
        intent: &Intent,
        digest: Hash,
        auth: &AuthKey,
        seal_key: &SealKey,
    ) -> Option<Blob> {
        let message = self.chance.bytes("evil message");
        let entropy = &mut self.hostile.entropy;
        let item = Item::of(Origin::Bytes(Blob(message.to_vec())), entropy).ok()?;
        let items = vec![Item { subset: intent.items[0].subset, ..item }];
        let body = strict::to_json(&Intent { items, ..intent.clone() });
        let requester = auth.sign(Tag::Intent, &[&body], entropy).ok()?;
        let signed = Signed { body: Blob(body), signatures: IntentSignatures { requester } };
        let &Intent { keygen_id, signing_id, .. } = intent;
        let context = Context::Intent { keygen_id, signing_id, digest };
        self.log.reached("hostile: an intent sealed as another");
        seal_key.seal(&context, &strict::to_json(&signed), entropy).ok()
    }

    /// An intent that a colluder signs itself is one that somebody signed: the others' authority decides.
    fn learns_forged(&mut self, circle: usize, requester: usize, intent: &Intent, digest: Hash) {
        let plan = &self.plan.circles[circle];
        let subsets = &self.god.circles[circle].subsets;
        let item = |item: &Item| {
            let subset = item.subset.and_then(|subset| subsets.iter().position(|id| *id == subset));
            ItemFacts {
                item_id: item.item_id,
                message: item.message.0,
                signers: subset.map_or((0..plan.members.len()).collect(), |at| plan.subsets[at].clone()),
                tweak: plan.default_tweak.clone(),
                blind: item.origin.is_none(),
            }
        };
        let facts = IntentFacts {
            circle,
            want: None,
            requester,
            signing_id: intent.signing_id,
            roster_hash: intent.roster_hash,
            created_at: intent.created_at,
            expires_at: intent.expires_at,
            items: intent.items.iter().map(item).collect(),
        };
        self.god.intents.insert(digest, facts);
    }

    /// Approvals of everybody, by a colluder's key.
    fn forged_approvals(
        &mut self,
        circle: usize,
        colluder: usize,
        signing_id: SigningId,
        digest: Hash,
    ) -> Vec<Approval> {
        let Some(auth) = self.auth_of(circle, colluder) else { return Vec::new() };
        let mut approvals = Vec::new();
        for user_id in self.god.circles[circle].users.clone() {
            let entropy = &mut self.hostile.entropy;
            if let Ok(approval) = Approval::sign(signing_id, user_id, digest, true, &auth, entropy) {
                approvals.push(approval);
            }
        }
        approvals
    }

    /// A genuine intent with something changed, under its old digest and signature.
    fn alters_intent(&mut self, circle: usize) {
        let of_circle = self.god.circles[circle].keygen_id;
        let known = self.hostile.beginnings.iter().filter(|make| Some(make.run.keygen_id) == of_circle);
        let known: Vec<_> = known.cloned().collect();
        if known.is_empty() {
            return;
        }
        let make = known[self.chance.place("which intent", known.len())].clone();
        let Some(seal_key) = self.seal_of_signing(circle, make.run.signing_id) else { return };
        let context = Context::Intent {
            keygen_id: make.run.keygen_id,
            signing_id: make.run.signing_id,
            digest: make.run.digest,
        };
        let Ok(plaintext) = seal_key.open(&context, &make.intent) else { return };
        let mut signed: serde_json::Value = serde_json::from_slice(&plaintext).expect("an intent");
        let body = signed["body"].as_str().expect("hex");
        let body = super::lies::unhex(body).expect("hex");
        let mut intent: Intent = serde_json::from_slice(&body).expect("an intent");
        let now = self.unix_ms();
        match self.chance.below("altered intent", 3) {
            0 => {
                intent.items[0].message = Message(self.chance.bytes("evil message"));
                intent.items[0].origin = None;
            }
            1 => intent.expires_at = now + 3_600_000,
            _ => intent.items.truncate(1),
        }
        let altered = strict::to_json(&intent);
        let hex = super::super::leaks::hex(&altered);
        signed["body"] = String::from_utf8(hex).expect("hex").into();
        let bytes = serde_json::to_vec(&signed).expect("JSON");
        // Under the old digest, or under its own.
        let digest = match self.chance.one_in("own digest", 2) {
            true => tagged_hash(Tag::Intent, &[&altered]),
            false => make.run.digest,
        };
        let context =
            Context::Intent { keygen_id: make.run.keygen_id, signing_id: make.run.signing_id, digest };
        let Ok(sealed) = seal_key.seal(&context, &bytes, &mut self.hostile.entropy) else { return };
        self.log.note(format_args!("hostile: an altered intent of {}", make.run.signing_id));
        self.log.reached("hostile: an altered intent");
        self.begins_run(RunKey { digest, ..make.run }, sealed, make.approvals, Twist::None);
    }

    /// Approvals that nobody gave, for something that was really asked for.
    pub(super) fn forges_approval(&mut self) {
        let Some(Betrayed { circle, colluder, .. }) = self.betrayed() else { return self.runs_again() };
        let of_circle = self.god.circles[circle].keygen_id;
        let known = self.hostile.beginnings.iter().filter(|make| Some(make.run.keygen_id) == of_circle);
        let known: Vec<_> = known.cloned().collect();
        if known.is_empty() {
            return;
        }
        let make = known[self.chance.place("which intent", known.len())].clone();
        let mut approvals = make.approvals.clone();
        match self.chance.one_in("flipped blind", 3) {
            true => approvals.iter_mut().for_each(|approval| approval.blind = !approval.blind),
            false => {
                approvals = self.forged_approvals(circle, colluder, make.run.signing_id, make.run.digest)
            }
        }
        self.log.note(format_args!("hostile: forged approvals of {}", make.run.signing_id));
        self.log.reached("hostile: forged approvals");
        self.begins_run(make.run, make.intent, approvals, Twist::None);
    }

    /// The approval of somebody whose client is of another make: it does not ask for consent to what is blind.
    pub(super) fn approves_carelessly(&mut self) {
        for circle in 0..self.plan.circles.len() {
            let of_circle = self.god.circles[circle].keygen_id;
            let known = self.hostile.beginnings.iter().filter(|make| Some(make.run.keygen_id) == of_circle);
            let known: Vec<_> = known.cloned().collect();
            self.careless_approval(circle, &known);
        }
    }

    fn careless_approval(&mut self, circle: usize, known: &[MakeNonces]) {
        let careless = |make: &MakeNonces| -> Vec<usize> {
            let Some(facts) = self.god.intents.get(&make.run.digest) else { return Vec::new() };
            let Some(want) = facts.want else { return Vec::new() };
            let plan = &self.plan.circles[circle];
            let fits = |member: &usize| {
                let blind = facts.items.iter().any(|item| item.blind && item.signers.contains(member));
                let honest = !plan.members[*member].colludes && facts.requester != *member;
                blind && honest && plan.wants[want].decisions[*member] == Decision::Approve { blind: false }
            };
            (0..plan.members.len()).filter(fits).collect()
        };
        let Some(make) = known.iter().find(|make| !careless(make).is_empty()) else { return };
        let (run, members) = (make.run, careless(make));
        // Whoever else has to approve may have done so, or colludes.
        let known = self.hostile.pools.approvals().iter();
        let mut approvals: Vec<Approval> =
            known.filter(|approval| approval.intent_digest == run.digest).copied().collect();
        for member in 0..self.plan.circles[circle].members.len() {
            let colludes = self.plan.circles[circle].members[member].colludes;
            if !colludes && !members.contains(&member) {
                continue;
            }
            let (Some(auth), user_id) =
                (self.auth_of(circle, member), self.god.circles[circle].users[member])
            else {
                return;
            };
            let entropy = &mut self.hostile.entropy;
            let signed = Approval::sign(run.signing_id, user_id, run.digest, colludes, &auth, entropy);
            let Ok(approval) = signed else { return };
            approvals.retain(|other| other.user_id != user_id);
            approvals.push(approval);
            self.god.approvals.entry((run.digest, member)).or_default().insert(colludes);
        }
        self.log.note(format_args!("hostile: members {members:?} approve {} carelessly", run.signing_id));
        self.log.reached("hostile: a careless approval");
        self.begins_run(run, make.intent.clone(), approvals, Twist::None);
    }

    /// A signature of somebody who may not sign this.
    pub(super) fn any_signature(&mut self, body: &[u8]) -> Option<Signature> {
        let own = Secret::copied_from(&self.chance.bytes("host's key"));
        AuthKey::new(&own).ok()?.sign(Tag::Result, &[body], &mut self.hostile.entropy).ok()
    }
}

fn run_key(intent: &Intent, digest: Hash) -> RunKey {
    RunKey {
        enclave_key: PublicKey([2; 33]),
        keygen_id: intent.keygen_id,
        signing_id: intent.signing_id,
        digest,
        attempt: AttemptId([0; 16]),
        aggregator: PublicKey([2; 33]),
    }
}
