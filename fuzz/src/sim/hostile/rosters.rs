//! Keygens opened with registrations that are not those that were made: by colluders, or in honest names.

use std::sync::Arc;

use keymeld_core::api::http::Response;
use keymeld_core::api::problem;
use keymeld_core::api::rest::{CertificateView, KeygenStatus, RecordView};
use keymeld_core::artifact::Signed;
use keymeld_core::artifact::certificate::Certificate;
use keymeld_core::artifact::manifest::Pin;
use keymeld_core::artifact::registration::{
    ApprovalRule, ENVELOPE_PURPOSE, Record, RecordSignatures, Rules, user_auth_key,
};
use keymeld_core::artifact::roster::{EnclaveKeys, Roster};
use keymeld_core::bytes::{Blob, Hash, PublicKey, Salt};
use keymeld_core::crypto::auth::{self, AuthKey};
use keymeld_core::crypto::envelope;
use keymeld_core::crypto::hash::Tag;
use keymeld_core::crypto::seal::Context;
use keymeld_core::id::{KeygenId, UserId};
use keymeld_core::link::message::{CheckRegistration, KeygenOpened, OpenKeygen, Request, UserBlob};
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use serde::Serialize;

use super::super::module::START;
use super::super::world::{Happening, World};
use super::people::Betrayed;
use super::puppet::Puppet;

/// How long a clone gets to open its identity before it is asked for more.
const CLONE_OPENS_MS: u64 = 3_000;

/// How often somebody's place is taken.
const USURPED_MAX: usize = 3;
/// Fields of an envelope.
const WRONG_FIELDS: u32 = 8;

/// What is wrong with a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgery {
    /// Nothing: a colluder's own, with other rules or at another enclave.
    Anew,
    /// Its record alone: it does not agree with the envelope that is there.
    RecordAlone,
    /// The proof of possession: the key is somebody else's.
    Possession,
    /// The enclave is the host's own.
    Puppet,
    /// It is in an honest name, with weaker rules and signatures of the host.
    InHonestName,
    /// It takes the place of somebody whom a colluding coordinator invited.
    Usurped,
}

/// How often each is tried; `None` is a colluder's own registration with envelopes that are wrong.
const FORGERIES: [Option<Forgery>; 15] = [
    Some(Forgery::Anew),
    Some(Forgery::RecordAlone),
    None,
    None,
    None,
    Some(Forgery::Possession),
    Some(Forgery::Possession),
    Some(Forgery::Possession),
    Some(Forgery::Puppet),
    Some(Forgery::Puppet),
    Some(Forgery::Puppet),
    Some(Forgery::InHonestName),
    Some(Forgery::InHonestName),
    Some(Forgery::InHonestName),
    Some(Forgery::Usurped),
];

/// The plaintext of an envelope, in the order in which enclaves read it.
#[derive(Serialize)]
struct EnvelopeBody {
    purpose: &'static str,
    enclave_key: PublicKey,
    keygen_id: KeygenId,
    user_id: UserId,
    manifest_hash: Hash,
    private_key: String,
    session_secret: String,
    rules: Rules,
}

/// A registration that the host brings.
struct Brought {
    member: usize,
    record: Record,
    sealed: Blob,
    /// At which enclave; `None` where what is there stays.
    envelope: Option<(PublicKey, Blob)>,
}

/// A keygen that was opened, or not, with such a registration.
pub(super) struct Forged {
    circle: usize,
    /// Whose place was taken: nobody else may be shown this.
    victim: Option<usize>,
    records: Vec<UserBlob>,
    pub(super) roster: Option<Arc<Roster>>,
    certificates: Vec<(PublicKey, Blob)>,
}

impl World {
    /// A keygen with a registration that is not the one that was made.
    pub(super) fn forges_roster(&mut self) {
        let Some(Betrayed { circle, colluder, honest }) = self.betrayed() else {
            return self.opens_altered();
        };
        match FORGERIES[self.chance.place("forgery", FORGERIES.len())] {
            Some(forgery) => self.forges(circle, colluder, honest, forgery),
            None => _ = self.brings_envelopes(circle, colluder),
        }
    }

    /// The requests that opened a keygen at each enclave.
    fn openings(&self, circle: usize) -> Vec<OpenKeygen> {
        let Some(keygen_id) = self.god.circles[circle].keygen_id else { return Vec::new() };
        let openings = self.hostile.openings.iter().filter(|((of, _), _)| *of == keygen_id);
        openings.map(|(_, open)| open.clone()).collect()
    }

    fn forges(&mut self, circle: usize, colluder: usize, honest: usize, forgery: Forgery) {
        let openings = self.openings(circle);
        if openings.is_empty() {
            return;
        }
        let Some(brought) = self.brought(circle, colluder, honest, forgery) else { return };
        let member = brought.member;
        self.log.note(format_args!("hostile: a registration of member {member}: {forgery:?}"));
        self.log.reached("hostile: a forged registration");
        let user_id = self.god.circles[circle].users[member];
        if let Some((key, envelope)) = &brought.envelope {
            self.brings_registration(&openings[0], &brought.record, &brought.sealed, (*key, envelope));
        }
        // A process that has opened the keygen already knows better.
        let fresh = forgery == Forgery::Usurped || !self.chance.one_in("at a process of before", 3);
        let mut records = Vec::new();
        let index = self.hostile.forged.len();
        for mut open in openings {
            let at = self.god.identities[&open.enclave_key].at;
            for known in open.records.iter_mut().filter(|known| known.user_id == user_id) {
                known.blob = brought.sealed.clone();
            }
            if let Some((key, envelope)) = &brought.envelope {
                open.envelopes.retain(|known| known.user_id != user_id);
                if *key == open.enclave_key {
                    open.envelopes.push(UserBlob { user_id, blob: envelope.clone() });
                }
            }
            records.clone_from(&open.records);
            let number = self.hostile.number();
            self.hostile.openings_sent.insert(number, (index, open.enclave_key));
            match fresh.then(|| self.fresh_clone(open.enclave_key)).flatten() {
                Some(life) => {
                    let request = Box::new(Request::OpenKeygen(open));
                    let strike = Happening::StrikesWith { number, at, life, request };
                    self.later(CLONE_OPENS_MS, strike);
                }
                None => self.strikes_as(number, at, None, Request::OpenKeygen(open)),
            }
        }
        let victim = (forgery == Forgery::Usurped).then_some(member);
        self.hostile.forged.push(Forged { circle, victim, records, roster: None, certificates: Vec::new() });
    }

    /// The registration alone, as a gateway asks before it takes one.
    fn brings_registration(
        &mut self,
        open: &OpenKeygen,
        record: &Record,
        sealed: &Blob,
        (enclave_key, envelope): (PublicKey, &Blob),
    ) {
        let Some(at) = self.god.identities.get(&enclave_key).map(|facts| facts.at) else { return };
        let check = CheckRegistration {
            enclave_key,
            keygen_id: open.keygen_id,
            manifest_hash: open.manifest_hash,
            manifest: open.manifest.clone(),
            user_id: record.user_id,
            envelope: envelope.clone(),
            record: sealed.clone(),
            auth_key: record.auth_key,
            approval_required: record.rules.approval == ApprovalRule::Required,
        };
        self.strikes_with_request(at, None, Request::CheckRegistration(check));
    }

    /// A colluder's envelope anew, once for each field that can be wrong in it, as a gateway asks before it takes a
    /// registration and as it opens a keygen.
    fn brings_envelopes(&mut self, circle: usize, colluder: usize) -> Option<()> {
        let openings = self.openings(circle);
        let user_id = self.god.circles[circle].users[colluder];
        let key = Secret::copied_from(&self.plan.circles[circle].members[colluder].key);
        let holds = |open: &&OpenKeygen| open.envelopes.iter().any(|envelope| envelope.user_id == user_id);
        let open = openings.iter().find(holds)?;
        let OpenKeygen { enclave_key, keygen_id, manifest_hash, .. } = *open;
        let sealed = open.records.iter().find(|record| record.user_id == user_id)?.blob.clone();
        let context = Context::Record { keygen_id, manifest_hash, user_id };
        let plaintext = self.session_seal(circle)?.open(&context, &sealed).ok()?;
        let signed: Signed<RecordSignatures> = serde_json::from_slice(&plaintext).ok()?;
        let record: Record = serde_json::from_slice(&signed.body.0).ok()?;
        let at = self.god.identities.get(&enclave_key)?.at;
        self.log.note(format_args!("hostile: envelopes of member {colluder}"));
        for wrong in 0..WRONG_FIELDS {
            let envelope = self.envelope(circle, &record, &key, Some(wrong))?;
            self.brings_registration(open, &record, &sealed, (enclave_key, &envelope));
            let mut open = open.clone();
            open.envelopes.retain(|known| known.user_id != user_id);
            open.envelopes.push(UserBlob { user_id, blob: envelope });
            self.strikes_with_request(at, None, Request::OpenKeygen(open));
        }
        self.log.reached("hostile: an envelope that is wrong in one field");
        Some(())
    }

    /// An enclave has opened a keygen that the host brought.
    pub(super) fn forgery_opened(&mut self, (index, key): (usize, PublicKey), opened: &KeygenOpened) {
        let roster = self.god.rosters.values().find(|roster| roster.roster_hash() == opened.roster_hash);
        let forged = &mut self.hostile.forged[index];
        forged.roster = roster.cloned();
        forged.certificates.push((key, opened.certificate.clone()));
        self.log.reached("hostile: a roster of its own");
        let puppet = self.hostile.puppets.get(&self.hostile.forged[index].circle).map(Puppet::keys);
        let takes_part = |roster: &Arc<Roster>| puppet.is_some_and(|keys| roster.enclaves().contains(&keys));
        if self.hostile.forged[index].roster.as_ref().is_some_and(takes_part) {
            self.log.reached("hostile: a puppet takes part");
            let after_ms = self.chance.below("puppet acts", 5_000);
            self.later(after_ms, Happening::PuppetActs { forged: index });
        }
    }

    /// A completed keygen as such a roster would have it, whether or not enclaves have certified that.
    pub(super) fn forged_completion(&mut self, seat: usize, shown: KeygenStatus) -> Option<KeygenStatus> {
        let (circle, member) = (self.seats[seat].circle, self.seats[seat].member);
        shown.completed.as_ref()?;
        let fits =
            |forged: &&Forged| forged.circle == circle && forged.victim.is_none_or(|victim| victim == member);
        let forged: Vec<usize> =
            (0..self.hostile.forged.len()).filter(|index| fits(&&self.hostile.forged[*index])).collect();
        if forged.is_empty() || self.chance.one_in("on the spot", 3) {
            return self.other_record(circle, shown);
        }
        let which = forged[self.chance.place("which forged roster", forged.len())];
        self.completion_of(which, shown)
    }

    fn completion_of(&mut self, which: usize, mut shown: KeygenStatus) -> Option<KeygenStatus> {
        let forged = &self.hostile.forged[which];
        let (circle, roster) = (forged.circle, forged.roster.clone());
        let completed = shown.completed.as_mut()?;
        let view = |blob: &UserBlob| RecordView { user_id: blob.user_id, record: blob.blob.clone() };
        completed.records = forged.records.iter().map(view).collect();
        for (key, certificate) in &forged.certificates {
            let known = completed.certificates.iter_mut().filter(|view| view.enclave_key == *key);
            known.for_each(|view| view.certificate = certificate.clone());
        }
        let takes_part = |puppet: &&Puppet| {
            roster.as_ref().is_some_and(|roster| roster.enclaves().contains(&puppet.keys()))
        };
        let puppet = self.hostile.puppets.get(&circle).filter(takes_part);
        if let (Some(puppet), Some(roster)) = (puppet, &roster) {
            let seal_key = self.session_seal(circle)?;
            let (identity, enclave) = (puppet.identity()?, puppet.keys());
            let entropy = &mut self.hostile.entropy;
            let certificate = Certificate::of(roster, enclave).seal(&identity, &seal_key, entropy).ok()?;
            completed.certificates.push(CertificateView {
                enclave_id: self.hosts[0].id,
                epoch: 1,
                enclave_key: enclave.enclave_key,
                certificate,
            });
        }
        self.log.reached("hostile: another roster shown");
        Some(shown)
    }

    /// A completed keygen with a registration that a colluder makes anew on the spot.
    fn other_record(&mut self, circle: usize, mut shown: KeygenStatus) -> Option<KeygenStatus> {
        let colluder = self.plan.circles[circle].members.iter().position(|member| member.colludes)?;
        let user_id = self.god.circles[circle].users[colluder];
        let brought = self.brought(circle, colluder, colluder, Forgery::Anew)?;
        let records = &mut shown.completed.as_mut()?.records;
        records.iter_mut().find(|view| view.user_id == user_id)?.record = brought.sealed;
        self.log.reached("hostile: an uncertified roster shown");
        Some(shown)
    }

    /// Whoever a colluding coordinator invited is kept waiting for its key until its place is taken, and then told
    /// of a keygen without it.
    pub(super) fn usurps(&mut self, seat: usize, shown: &KeygenStatus) -> Option<Response> {
        let (circle, member) = (self.seats[seat].circle, self.seats[seat].member);
        let members = &self.plan.circles[circle].members;
        let usurpable = !members[member].pinned && !members[member].colludes && members[0].colludes;
        if !usurpable || shown.completed.is_none() {
            return None;
        }
        let taken = |forged: &Forged| forged.circle == circle && forged.victim == Some(member);
        let ready = |forged: &Forged| {
            let certified = |roster: &Arc<Roster>| roster.enclaves().len() <= forged.certificates.len();
            taken(forged) && forged.roster.as_ref().is_some_and(certified)
        };
        if let Some(which) = self.hostile.forged.iter().position(ready) {
            let told = self.fault("hostile: a usurped roster is shown", 2);
            let forged = self.completion_of(which, shown.clone()).filter(|_| told)?;
            return Some(problem::ok(200, &forged));
        }
        if !self.fault("hostile: a key is withheld", 1) {
            return None;
        }
        if self.hostile.forged.iter().filter(|forged| taken(forged)).count() < USURPED_MAX {
            self.forges(circle, 0, member, Forgery::Usurped);
        }
        Some(problem::refused(&Code::EnclaveAway.into()))
    }

    fn brought(
        &mut self,
        circle: usize,
        colluder: usize,
        honest: usize,
        forgery: Forgery,
    ) -> Option<Brought> {
        let roster = self.roster_of(circle)?;
        let enclaves: Vec<EnclaveKeys> = roster.enclaves().into_iter().collect();
        let there = enclaves[self.chance.place("other enclave", enclaves.len())];
        let of_colluder = Secret::copied_from(&self.plan.circles[circle].members[colluder].key);
        let own = Secret::copied_from(&self.chance.bytes("host's key"));
        let delegated = Rules::delegated(START + 1_000_000_000);
        let victim = roster.record(self.god.circles[circle].users[honest])?;
        // Where it is: another enclave would be left without anybody.
        let same = EnclaveKeys { enclave_key: victim.enclave_key, identity_key: victim.identity_key };
        let (member, enclave, key) = match forgery {
            Forgery::InHonestName => (honest, there, &own),
            Forgery::Usurped => (honest, same, &own),
            // Whoever holds an envelope sees that the key is another's: only the host's own enclave does not mind.
            Forgery::Puppet | Forgery::Possession => (colluder, self.puppet(circle)?, &of_colluder),
            Forgery::Anew | Forgery::RecordAlone => (colluder, there, &of_colluder),
        };
        let user_id = self.god.circles[circle].users[member];
        let known = roster.record(user_id)?.clone();
        let invited = matches!(roster.manifest().participant(user_id)?.pin, Pin::InviteKey(_));
        let by_coordinator = invited && self.plan.circles[circle].members[0].colludes;
        // A coordinator that colludes really can register in the place of whoever it invited.
        if by_coordinator != (forgery == Forgery::Usurped) && member == honest {
            return None;
        }
        let mut record = Record {
            salt: Salt(self.chance.bytes("evil salt")),
            public_key: auth::public_key(key).ok()?,
            auth_key: user_auth_key(key, known.keygen_id).ok()?.public(),
            enclave_key: enclave.enclave_key,
            identity_key: enclave.identity_key,
            rules: delegated,
            ..known.clone()
        };
        let known_key = known.public_key;
        let mut signer = AuthKey::new(key).ok()?;
        match forgery {
            Forgery::Possession => {
                // Where its key is pinned no other is taken, whoever has shown to have it.
                if !invited {
                    return None;
                }
                record.public_key = self.god.public_key(&self.chance.bytes("somebody's key"));
                signer = AuthKey::new(&own).ok()?;
            }
            Forgery::InHonestName if self.chance.one_in("their key", 2) => {
                let rules = Rules { allow_blind: true, allow_any_requester: true, ..delegated };
                record = Record { rules: Rules { approval: ApprovalRule::Delegated, ..rules }, ..known };
            }
            _ => {}
        }
        let cosigner =
            match self.god.invite_key(circle, member).filter(|_| member != honest || by_coordinator) {
                Some(invite_key) if invited => AuthKey::new(&invite_key).ok()?,
                _ => AuthKey::new(key).ok()?,
            };
        let sealed = self.sealed_record(circle, &record, invited, &signer, &cosigner)?;
        let envelope = match forgery {
            Forgery::RecordAlone => None,
            // Where it is their key, the envelope that is there still fits.
            Forgery::InHonestName if record.public_key == known_key => None,
            // No enclave but the host's own has to do with it.
            Forgery::Puppet | Forgery::Possession => Some((enclave.enclave_key, Blob(Vec::new()))),
            Forgery::Anew | Forgery::InHonestName | Forgery::Usurped => {
                Some((enclave.enclave_key, self.envelope(circle, &record, key, None)?))
            }
        };
        Some(Brought { member, record, sealed, envelope })
    }

    fn sealed_record(
        &mut self,
        circle: usize,
        record: &Record,
        invited: bool,
        signer: &AuthKey,
        cosigner: &AuthKey,
    ) -> Option<Blob> {
        let body = strict::to_json(record);
        let seal_key = self.session_seal(circle)?;
        let entropy = &mut self.hostile.entropy;
        let possession = signer.sign(Tag::Possession, &[&body], entropy).ok()?;
        let tag = if invited { Tag::InviteKey } else { Tag::PinnedKey };
        let cosignature = cosigner.sign(tag, &[&body], entropy).ok()?;
        let signed = Signed { body: Blob(body), signatures: RecordSignatures { possession, cosignature } };
        let &Record { keygen_id, manifest_hash, user_id, .. } = record;
        let context = Context::Record { keygen_id, manifest_hash, user_id };
        seal_key.seal(&context, &strict::to_json(&signed), entropy).ok()
    }

    /// An envelope for a record's enclave, with one wrong field where one is named.
    fn envelope(
        &mut self,
        circle: usize,
        record: &Record,
        key: &Secret<32>,
        wrong: Option<u32>,
    ) -> Option<Blob> {
        let hex = |bytes: &[u8]| String::from_utf8(super::super::leaks::hex(bytes)).expect("hex");
        let session_secret = self.god.circles[circle].session_secret.as_ref()?;
        let mut body = EnvelopeBody {
            purpose: ENVELOPE_PURPOSE,
            enclave_key: record.enclave_key,
            keygen_id: record.keygen_id,
            user_id: record.user_id,
            manifest_hash: record.manifest_hash,
            private_key: hex(key.expose()),
            session_secret: hex(session_secret.expose()),
            rules: record.rules,
        };
        if let Some(wrong) = wrong {
            let other = self.chance.bytes("evil field");
            match wrong {
                0 => body.purpose = "keymeld-registration-v2",
                1 => body.enclave_key = self.god.public_key(&other),
                2 => body.keygen_id = KeygenId(other[..16].try_into().ok()?),
                3 => {
                    let users = &self.god.circles[circle].users;
                    body.user_id = *users.iter().find(|user| **user != record.user_id)?;
                }
                4 => body.manifest_hash = Hash(other),
                5 => body.private_key = hex(&other),
                6 => body.session_secret = hex(&other),
                _ => body.rules.allow_blind = !body.rules.allow_blind,
            }
        }
        let plaintext = strict::to_json(&body);
        envelope::encrypt(&record.enclave_key, &plaintext, &mut self.hostile.entropy).ok()
    }
}
