//! What colluding participants make for the host: with the session secret, and with their own keys only.

use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::{Intent, Item, Origin};
use keymeld_core::artifact::manifest::Pin;
use keymeld_core::artifact::registration::{
    ApprovalRule, Record, RecordSignatures, Registrant, Rules, user_auth_key,
};
use keymeld_core::artifact::roster::Roster;
use keymeld_core::artifact::{Signed, VERSION};
use keymeld_core::bytes::{Blob, Hash, Message, PublicKey, Salt, Signature};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::hash::{Tag, tagged_hash};
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::id::{AttemptId, SigningId};
use keymeld_core::link::message::{OpenKeygen, Request, RunKey, UserBlob};
use keymeld_core::secret::Secret;
use keymeld_core::strict;

use super::super::god::{IntentFacts, ItemFacts};
use super::super::module::START;
use super::super::world::World;
use super::runs::Twist;

/// A circle that somebody in it betrays.
struct Betrayed {
    circle: usize,
    colluder: usize,
    honest: usize,
}

impl World {
    fn betrayed(&mut self) -> Option<Betrayed> {
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

    fn roster_of(&self, circle: usize) -> Option<std::sync::Arc<Roster>> {
        let keygen_id = self.god.circles[circle].keygen_id?;
        let known = self.god.rosters.iter().find(|((_, of, _), _)| *of == keygen_id);
        known.map(|(_, roster)| std::sync::Arc::clone(roster))
    }

    fn session_seal(&self, circle: usize) -> Option<SealKey> {
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

    /// An intent that a colluder signs: in its own name or in another's, for now, the past or the future.
    pub(super) fn forges_intent(&mut self) {
        let Some(Betrayed { circle, colluder, honest }) = self.betrayed() else { return self.runs_again() };
        let (Some(roster), Some(auth)) = (self.roster_of(circle), self.auth_of(circle, colluder)) else {
            return;
        };
        if self.chance.one_in("alters an intent", 3) {
            return self.alters_intent(circle);
        }
        let in_own_name = !self.chance.one_in("in another's name", 3);
        let requester = if in_own_name { colluder } else { honest };
        let entropy = &mut self.hostile.entropy;
        let (Ok(signing_id), Ok(salt)) = (SigningId::random(entropy), entropy.bytes()) else { return };
        let message = self.chance.bytes("evil message");
        let item = match self.chance.below("evil item", 2) {
            0 => Item::blind(Message(message), entropy),
            _ => Item::of(Origin::Bytes(Blob(message.to_vec())), entropy),
        };
        let Ok(mut item) = item else { return };
        let subsets = &self.god.circles[circle].subsets;
        if !subsets.is_empty() && self.chance.one_in("evil subset", 2) {
            item.subset = Some(subsets[self.chance.place("which evil subset", subsets.len())]);
        }
        let now = self.unix_ms();
        let (created_at, expires_at) = match self.chance.below("evil times", 5) {
            0 => (now + 10 * 60_000, now + 20 * 60_000),
            1 => (now.saturating_sub(600_000), now.saturating_sub(1)),
            _ => (now, now + 600_000),
        };
        let intent = Intent {
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
        };
        let Some(seal_key) = self.seal_of_signing(circle, signing_id) else { return };
        let Ok(sealed) = intent.seal(&auth, &seal_key, &mut self.hostile.entropy) else { return };
        if in_own_name {
            self.learns_forged(circle, colluder, &intent, sealed.digest);
        }
        let approvals = self.forged_approvals(circle, colluder, signing_id, sealed.digest);
        self.log.note(format_args!(
            "hostile: an intent of member {colluder} in the name of {requester}, {signing_id}"
        ));
        self.log.reached("hostile: a forged intent");
        let run = run_key(&intent, sealed.digest);
        self.begins_run(run, sealed.sealed, approvals, Twist::None);
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
        let mut approvals = self.forged_approvals(circle, colluder, make.run.signing_id, make.run.digest);
        if self.chance.one_in("flipped blind", 3) {
            approvals = make.approvals.clone();
            for approval in &mut approvals {
                approval.blind = !approval.blind;
            }
        }
        self.log.note(format_args!("hostile: forged approvals of {}", make.run.signing_id));
        self.log.reached("hostile: forged approvals");
        self.begins_run(make.run, make.intent, approvals, Twist::None);
    }

    /// A keygen with a registration that is not the one that was made.
    pub(super) fn forges_roster(&mut self) {
        let Some(Betrayed { circle, colluder, honest }) = self.betrayed() else {
            return self.opens_altered();
        };
        let Some(keygen_id) = self.god.circles[circle].keygen_id else { return };
        let openings = self.hostile.openings.iter().filter(|((of, _), _)| *of == keygen_id);
        let openings: Vec<OpenKeygen> = openings.map(|(_, open)| open.clone()).collect();
        if openings.is_empty() {
            return;
        }
        let of_honest = self.chance.one_in("in an honest name", 2);
        let member = if of_honest { honest } else { colluder };
        let user_id = self.god.circles[circle].users[member];
        let forged = match of_honest {
            true => self.forged_record(circle, honest).map(|record| (record, None)),
            false => self.other_registration(circle, colluder),
        };
        let Some((record, envelope)) = forged else { return };
        self.log.note(format_args!("hostile: another registration of member {member}"));
        self.log.reached("hostile: a forged registration");
        for mut open in openings {
            let at = self.god.identities[&open.enclave_key].at;
            for known in open.records.iter_mut().filter(|known| known.user_id == user_id) {
                known.blob = record.clone();
            }
            if let Some((key, envelope)) = &envelope {
                open.envelopes.retain(|known| known.user_id != user_id);
                if *key == open.enclave_key {
                    open.envelopes.push(UserBlob { user_id, blob: envelope.clone() });
                }
            }
            self.strikes_with_request(at, None, Request::OpenKeygen(open));
        }
    }

    /// A registration that a colluder makes anew: with other rules, or at another enclave.
    pub(super) fn other_registration(
        &mut self,
        circle: usize,
        colluder: usize,
    ) -> Option<(Blob, Option<(PublicKey, Blob)>)> {
        let roster = self.roster_of(circle)?;
        let manifest = roster.manifest();
        let user_id = self.god.circles[circle].users[colluder];
        let enclaves: Vec<_> = roster.enclaves().into_iter().collect();
        let enclave = enclaves[self.chance.place("other enclave", enclaves.len())];
        let private_key = Secret::copied_from(&self.plan.circles[circle].members[colluder].key);
        let invite_key = self.god.invite_key(circle, colluder);
        let registrant = Registrant {
            manifest,
            manifest_hash: roster.manifest_hash(),
            user_id,
            private_key: &private_key,
            session_secret: self.god.circles[circle].session_secret.as_ref()?,
            invite_key: invite_key.as_ref(),
            enclave_key: enclave.enclave_key,
            identity_key: enclave.identity_key,
            rules: Rules::delegated(START + 1_000_000_000),
        };
        let made = registrant.register(&mut self.hostile.entropy).ok()?;
        // Or the record alone: it does not agree with the envelope that is there.
        let envelope =
            (!self.chance.one_in("record alone", 3)).then_some((enclave.enclave_key, made.envelope));
        Some((made.record, envelope))
    }

    /// A record in an honest name: with weaker rules and the old signatures, or with a key of the host's own.
    fn forged_record(&mut self, circle: usize, honest: usize) -> Option<Blob> {
        let roster = self.roster_of(circle)?;
        let user_id = self.god.circles[circle].users[honest];
        let mut record: Record = roster.record(user_id)?.clone();
        let pin = &roster.manifest().participant(user_id)?.pin;
        // A coordinator that helps could really register in the place of whoever it invited: that is no lie
        // that anybody could notice.
        if matches!(pin, Pin::InviteKey(_)) && self.plan.circles[circle].members[0].colludes {
            return None;
        }
        let own = Secret::copied_from(&self.chance.bytes("host's key"));
        let own_auth = AuthKey::new(&own).ok()?;
        if self.chance.one_in("own key", 2) {
            record.public_key = auth::public_key(&own).ok()?;
            record.auth_key = user_auth_key(&own, record.keygen_id).ok()?.public();
        }
        record.rules.approval = ApprovalRule::Delegated;
        record.rules.allow_blind = true;
        record.rules.allow_any_requester = true;
        let body = strict::to_json(&record);
        let entropy = &mut self.hostile.entropy;
        let possession = own_auth.sign(Tag::Possession, &[&body], entropy).ok()?;
        let tag = if matches!(pin, Pin::InviteKey(_)) { Tag::InviteKey } else { Tag::PinnedKey };
        let cosignature = own_auth.sign(tag, &[&body], entropy).ok()?;
        let signed = Signed { body: Blob(body), signatures: RecordSignatures { possession, cosignature } };
        let context =
            Context::Record { keygen_id: record.keygen_id, manifest_hash: record.manifest_hash, user_id };
        let seal_key = self.session_seal(circle)?;
        seal_key.seal(&context, &strict::to_json(&signed), &mut self.hostile.entropy).ok()
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
