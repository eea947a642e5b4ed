//! What only the simulator knows: every secret, who did what, and what therefore may happen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keymeld_core::api::rest::SignRequest;
use keymeld_core::artifact::Signed;
use keymeld_core::artifact::intent::{Intent, IntentSignatures, Origin};
use keymeld_core::artifact::manifest::Requesters;
use keymeld_core::artifact::roster::Roster;
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash, PublicKey, PublicNonce, XOnlyKey};
use keymeld_core::crypto::auth;
use keymeld_core::crypto::derive::{Purpose, derive};
use keymeld_core::crypto::seal::Context;
use keymeld_core::id::{AttemptId, EnclaveId, ItemId, KeygenId, SigningId, SubsetId, UserId};
use keymeld_core::limits::SKEW_MS;
use keymeld_core::record::{Family, Persist, Query, RecordKey};
use keymeld_core::secret::Secret;
use musig2::KeyAggContext;
use musig2::secp::{MaybeScalar, Point};

use super::disk::Disk;
use super::judge::seal;
use super::leaks::Leaks;
use super::ledger::Ledger;
use super::log::Log;
use super::module::START;
use super::plan::{CirclePlan, ItemKind, Plan};
use super::seat::Seat;

/// An item as it was wanted.
#[derive(Clone, Debug)]
pub(crate) struct ItemFacts {
    pub(crate) item_id: ItemId,
    pub(crate) message: [u8; 32],
    /// Who signs, by place.
    pub(crate) signers: Vec<usize>,
    pub(crate) tweak: Vec<TweakStep>,
    pub(crate) blind: bool,
}

/// An intent that somebody really signed.
#[derive(Clone, Debug)]
pub(crate) struct IntentFacts {
    pub(crate) circle: usize,
    pub(crate) want: Option<usize>,
    pub(crate) requester: usize,
    pub(crate) signing_id: SigningId,
    /// The roster that it names.
    pub(crate) roster_hash: Hash,
    pub(crate) created_at: u64,
    pub(crate) expires_at: u64,
    pub(crate) items: Vec<ItemFacts>,
}

/// A keygen as it really is.
#[derive(Default)]
pub(crate) struct CircleFacts {
    pub(crate) keygen_id: Option<KeygenId>,
    pub(crate) session_secret: Option<Secret<32>>,
    /// By place.
    pub(crate) users: Vec<UserId>,
    pub(crate) subsets: Vec<SubsetId>,
    /// What those without a pin co-sign with, by place.
    invite_keys: Vec<Option<Secret<32>>>,
    /// Where each member registered.
    pub(crate) registered: Vec<Option<PublicKey>>,
    /// Every roster hash that an enclave certified.
    pub(crate) roster_hashes: BTreeSet<Hash>,
    contexts: BTreeMap<(Vec<PublicKey>, Vec<TweakStep>), KeyAggContext>,
}

/// An enclave's identity.
pub(crate) struct IdentityFacts {
    pub(crate) at: usize,
    pub(crate) enclave_id: EnclaveId,
    pub(crate) epoch: u32,
    pub(crate) identity_key: XOnlyKey,
    pub(crate) ecies: Secret<32>,
    pub(crate) birth_ms: u64,
}

/// Nonces that an enclave made.
pub(crate) struct RunFacts {
    pub(crate) roster: Arc<Roster>,
    pub(crate) nonces: Vec<PublicNonce>,
    pub(crate) reply: Vec<u8>,
}

/// What a nonce answered: the aggregate nonce, the message and the x of the key.
pub(crate) type Answer = ([u8; 66], [u8; 32], [u8; 32]);
/// A signature: its message, the x of its key, and s.
pub(crate) type Made = ([u8; 32], [u8; 32], [u8; 32]);

/// How a session ended, as somebody was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndFacts {
    Key(Vec<Blob>),
    Signed(Blob),
    Failed(String),
}

/// Everything that is known.
pub(crate) struct God {
    /// Oracles ask for the same few over and over.
    public_keys: RefCell<BTreeMap<[u8; 32], PublicKey>>,
    pub(crate) leaks: Leaks,
    pub(crate) ledger: Ledger,
    pub(crate) circles: Vec<CircleFacts>,
    pub(crate) wanted: BTreeMap<ItemId, (usize, usize)>,
    pub(crate) identities: BTreeMap<PublicKey, IdentityFacts>,
    pub(crate) intents: BTreeMap<Hash, IntentFacts>,
    /// Who sent an approval of what, and whether blindly.
    pub(crate) approvals: BTreeMap<(Hash, usize), BTreeSet<bool>>,
    /// Who said no to what.
    pub(crate) withdrawn: BTreeSet<(Hash, usize)>,
    /// Wants, by circle, that the gateway refused the request for.
    pub(crate) turned_away: BTreeSet<(usize, usize)>,
    pub(crate) rosters: BTreeMap<(u64, KeygenId, PublicKey), Arc<Roster>>,
    pub(crate) runs: BTreeMap<(u64, PublicKey, AttemptId), RunFacts>,
    pub(crate) nonces_made: BTreeSet<[u8; 66]>,
    /// What each nonce answered.
    pub(crate) answered: BTreeMap<[u8; 66], Answer>,
    /// Final signatures by their nonce's x.
    pub(crate) signatures: BTreeMap<[u8; 32], Made>,
    pub(crate) ends: BTreeMap<[u8; 16], EndFacts>,
    /// Envelopes that were looked at, with their records.
    pub(crate) envelopes: BTreeSet<(u64, UserId, PublicKey)>,
    /// Keygens that somebody has begun to reserve.
    pub(crate) reserved: BTreeSet<KeygenId>,
    /// Items that an enclave could not sign.
    pub(crate) failed_items: BTreeSet<ItemId>,
    heads: BTreeMap<RecordKey, u8>,
    /// The circles' coordinators.
    coordinators: Vec<PublicKey>,
    /// What the host may be asked about births, by seat.
    births: BTreeMap<usize, BTreeMap<EnclaveId, u64>>,
    /// The last time at which a session ends by itself, on virtual time.
    pub(crate) last_deadline_ms: u64,
    pub(crate) signed: u64,
    /// Proofs with which something was done, by the gateway's life, and when.
    pub(crate) proofs: BTreeMap<(u64, String), u64>,
}

/// The states of keygens as heads of records number them.
const KEYGEN_STATES: [&str; 5] =
    ["Reserved", "CollectingParticipants", "KeyGeneration", "Completed", "Failed"];

impl God {
    pub(crate) fn new(plan: &Plan, seats: &[Seat]) -> God {
        let mut god = God {
            public_keys: RefCell::default(),
            leaks: Leaks::new(),
            ledger: Ledger::default(),
            circles: Vec::new(),
            wanted: BTreeMap::new(),
            identities: BTreeMap::new(),
            intents: BTreeMap::new(),
            approvals: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            turned_away: BTreeSet::new(),
            rosters: BTreeMap::new(),
            runs: BTreeMap::new(),
            nonces_made: BTreeSet::new(),
            answered: BTreeMap::new(),
            signatures: BTreeMap::new(),
            ends: BTreeMap::new(),
            envelopes: BTreeSet::new(),
            reserved: BTreeSet::new(),
            failed_items: BTreeSet::new(),
            heads: BTreeMap::new(),
            coordinators: Vec::new(),
            births: (0..seats.len()).map(|seat| (seat, BTreeMap::new())).collect(),
            last_deadline_ms: 0,
            signed: 0,
            proofs: BTreeMap::new(),
        };
        for circle in &plan.circles {
            god.learn_circle(circle);
        }
        god
    }

    fn learn_circle(&mut self, plan: &CirclePlan) {
        let registered = plan.members.iter().map(|_| None).collect();
        self.coordinators.push(self.public_key(&plan.members[0].key));
        self.circles.push(CircleFacts { registered, ..CircleFacts::default() });
        for member in &plan.members {
            self.leaks.add(&member.key, "a private key");
            self.leaks.add(&self.public_key(&member.key).0[1..], "a public key");
        }
        self.learn_tweak(&plan.default_tweak);
        for item in plan.wants.iter().flat_map(|want| &want.items) {
            self.leaks.add(&message(&item.kind), "a message");
            match &item.kind {
                ItemKind::Text(text) => self.leaks.add(text.as_bytes(), "a text"),
                ItemKind::Bytes(bytes) => self.leaks.add(bytes, "a text"),
                ItemKind::Blind(_) => {}
            }
            self.learn_tweak(item.tweak.as_deref().unwrap_or_default());
        }
        let everybody: Vec<usize> = (0..plan.members.len()).collect();
        let circle = self.circles.len() - 1;
        for signers in [&everybody].into_iter().chain(&plan.subsets) {
            for tweak in [&[][..], &plan.default_tweak] {
                if let Some(context) = self.context(plan, circle, signers, tweak) {
                    let key = context.aggregated_pubkey::<Point>().serialize_xonly();
                    self.leaks.add(&key, "an aggregate key");
                }
            }
        }
    }

    fn learn_tweak(&mut self, tweak: &[TweakStep]) {
        for step in tweak {
            match step {
                TweakStep::Plain(bytes) | TweakStep::XOnly(bytes) => self.leaks.add(&bytes.0, "a tweak"),
                TweakStep::Taproot { merkle_root } => {
                    if let Some(root) = merkle_root {
                        self.leaks.add(&root.0, "a tweak");
                    }
                }
            }
        }
    }

    /// The public half of a key.
    pub(crate) fn public_key(&self, key: &[u8; 32]) -> PublicKey {
        let made = || auth::public_key(&Secret::copied_from(key)).expect("chance gives valid keys");
        *self.public_keys.borrow_mut().entry(*key).or_insert_with(made)
    }

    /// A client keeps its membership: its secrets are known from then on.
    pub(crate) fn kept(&mut self, bytes: &[u8]) {
        let file: serde_json::Value = serde_json::from_slice(bytes).expect("a membership is JSON");
        let membership = &file["membership"];
        let invites = membership["coordination"]["invites"].as_array().into_iter().flatten();
        for holder in [membership].into_iter().chain(invites) {
            for name in ["session_secret", "slot_key", "invite_key"] {
                if let Some(hex) = holder[name].as_str() {
                    let secret = Secret::<32>::from_hex(hex.as_bytes()).expect("secrets are hex");
                    self.leaks.add(secret.expose(), name);
                }
            }
        }
        let keygen_id: KeygenId =
            membership["keygen_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let secret = membership["session_secret"].as_str().expect("checked above");
        let secret = Secret::from_hex(secret.as_bytes()).expect("checked above");
        if let Some(circle) = self.circles.iter_mut().find(|circle| circle.keygen_id == Some(keygen_id)) {
            circle.session_secret = Some(secret);
        } else if let Some(coordination) = membership.get("coordination") {
            let coordinator = membership["public_key"].as_str().expect("a key");
            self.first_kept(keygen_id, secret, coordinator, coordination);
        }
    }

    /// A coordinator keeps its membership for the first time.
    fn first_kept(
        &mut self,
        keygen_id: KeygenId,
        secret: Secret<32>,
        coordinator: &str,
        coordination: &serde_json::Value,
    ) {
        let invite_key = |invite: &serde_json::Value| {
            invite["invite_key"].as_str().and_then(|hex| Secret::from_hex(hex.as_bytes()))
        };
        let invites = coordination["invites"].as_array().expect("a list");
        let invite_keys = [None].into_iter().chain(invites.iter().map(invite_key)).collect();
        let slots = coordination["reserve"]["slots"].as_array().expect("a list");
        let id = |slot: &serde_json::Value| slot["user_id"].as_str().and_then(|id| id.parse().ok());
        let users = slots.iter().map(|slot| id(slot).expect("an id")).collect();
        let circle = self.coordinators.iter().position(|key| key.to_string() == coordinator);
        let facts = &mut self.circles[circle.expect("one of the coordinators")];
        facts.keygen_id = Some(keygen_id);
        facts.session_secret = Some(secret);
        facts.users = users;
        facts.invite_keys = invite_keys;
    }

    /// What a member without a pin co-signs with.
    pub(crate) fn invite_key(&self, circle: usize, member: usize) -> Option<Secret<32>> {
        let key = self.circles[circle].invite_keys.get(member)?.as_ref()?;
        Some(Secret::copied_from(key.expose()))
    }

    /// A client keeps a request, which it is about to send.
    pub(crate) fn requested(&mut self, plan: &CirclePlan, circle: usize, want: usize, request: &SignRequest) {
        let of = &plan.wants[want];
        let items = of.items.iter().zip(&request.items).map(|(item, hint)| ItemFacts {
            item_id: hint.item_id,
            message: message(&item.kind),
            signers: match item.subset {
                Some(subset) => plan.subsets[subset].clone(),
                None => (0..plan.members.len()).collect(),
            },
            tweak: item.tweak.clone().unwrap_or_else(|| plan.default_tweak.clone()),
            blind: matches!(item.kind, ItemKind::Blind(_)),
        });
        let facts = IntentFacts {
            circle,
            want: Some(want),
            requester: of.requester,
            signing_id: request.signing_id,
            roster_hash: self.roster_named(circle, request),
            // The client's clock may be off; its enclaves look.
            created_at: 0,
            expires_at: request.expires_at,
            items: items.collect(),
        };
        if of.lifetime_ms.is_some() {
            self.last_deadline_ms = self.last_deadline_ms.max(request.expires_at.saturating_sub(START));
        }
        self.intents.insert(request.intent_digest, facts);
    }

    /// The roster that a sealed intent names.
    fn roster_named(&self, circle: usize, request: &SignRequest) -> Hash {
        let &SignRequest { keygen_id, signing_id, intent_digest: digest, .. } = request;
        let secret = self.circles[circle].session_secret.as_ref().expect("kept before anything is sent");
        let key = derive(secret, Purpose::SigningSeal(signing_id));
        let context = Context::Intent { keygen_id, signing_id, digest };
        let plaintext = seal::open(&key, &context, &request.intent).expect("S3: an intent is sealed as such");
        let signed: Signed<IntentSignatures> = serde_json::from_slice(&plaintext).expect("an intent");
        let intent: Intent = serde_json::from_slice(&signed.body.0).expect("an intent");
        intent.roster_hash
    }

    /// The circle with this keygen.
    pub(crate) fn circle_of(&self, keygen_id: KeygenId) -> Option<usize> {
        self.circles.iter().position(|circle| circle.keygen_id == Some(keygen_id))
    }

    /// The newest births that somebody has seen before, as far as it looks at them.
    pub(crate) fn births_known(&self, seat: usize) -> BTreeMap<EnclaveId, u64> {
        self.births.get(&seat).cloned().unwrap_or_default()
    }

    /// An identity is in use: half of the people hear of it.
    pub(crate) fn identity_used(&mut self, enclave_key: PublicKey) {
        let facts = &self.identities[&enclave_key];
        for (seat, births) in &mut self.births {
            if seat % 2 == 0 {
                let newest = births.entry(facts.enclave_id).or_default();
                *newest = facts.birth_ms.max(*newest);
            }
        }
    }

    /// The oracle's own aggregation of these members' keys; `None` where there is none.
    pub(crate) fn context(
        &mut self,
        plan: &CirclePlan,
        circle: usize,
        signers: &[usize],
        tweak: &[TweakStep],
    ) -> Option<KeyAggContext> {
        let key = |signer: &usize| self.public_key(&plan.members[*signer].key);
        let keys = signers.iter().map(key).collect();
        self.aggregation(circle, keys, tweak)
    }

    /// The same of any keys.
    pub(crate) fn aggregation(
        &mut self,
        circle: usize,
        mut keys: Vec<PublicKey>,
        tweak: &[TweakStep],
    ) -> Option<KeyAggContext> {
        keys.sort_by_key(|key| key.0);
        let known = (keys, tweak.to_vec());
        if let Some(context) = self.circles[circle].contexts.get(&known) {
            return Some(context.clone());
        }
        let points = known.0.iter().map(|key| Point::from_slice(&key.0).ok());
        let mut points = points.collect::<Option<Vec<Point>>>()?;
        points.sort();
        let mut context = KeyAggContext::new(points).ok()?;
        for step in tweak {
            context = match step {
                TweakStep::Plain(bytes) => context.with_plain_tweak(MaybeScalar::from_slice(&bytes.0).ok()?),
                TweakStep::XOnly(bytes) => context.with_xonly_tweak(MaybeScalar::from_slice(&bytes.0).ok()?),
                TweakStep::Taproot { merkle_root: None } => context.with_unspendable_taproot_tweak(),
                TweakStep::Taproot { merkle_root: Some(root) } => context.with_taproot_tweak(&root.0),
            }
            .ok()?;
        }
        self.circles[circle].contexts.insert(known, context.clone());
        Some(context)
    }

    /// S1: why a member's key may not sign this now; `None` where it may.
    pub(crate) fn forbids(
        &self,
        plan: &CirclePlan,
        digest: Hash,
        facts: &IntentFacts,
        member: usize,
        unix_ms: u64,
    ) -> Option<&'static str> {
        if unix_ms >= facts.expires_at {
            return Some("it has expired");
        }
        if facts.created_at > unix_ms + SKEW_MS {
            return Some("it lies in the future");
        }
        let of = &plan.members[member];
        let coordinator_asks = facts.requester == 0;
        let approved = self.approvals.get(&(digest, member));
        for item in facts.items.iter().filter(|item| item.signers.contains(&member)) {
            let may_request =
                plan.requesters == Requesters::AnyParticipant && item.signers.contains(&facts.requester);
            if !coordinator_asks && !may_request {
                return Some("its requester may not ask");
            }
            match approved {
                _ if member == facts.requester => {}
                Some(blind) if !item.blind || blind.contains(&true) => {}
                Some(_) if of.approves => return Some("it was not approved blindly"),
                None if of.approves => return Some("it was not approved"),
                // An approval that is too little takes nothing back: the host need not show it.
                Some(_) | None if !coordinator_asks && !of.any_requester => {
                    return Some("another than the coordinator asks");
                }
                Some(_) | None if item.blind && !of.blind => return Some("it is blind"),
                Some(_) | None => {}
            }
        }
        None
    }

    /// Writes are durable: the states that heads show, and identities.
    pub(crate) fn committed(&mut self, log: &Log, persist: &Persist) {
        for write in &persist.writes {
            match write.key.record.family {
                Family::Enclave => self.ledger.identity(write.key, &write.body),
                Family::Keygen if write.key.part == 0 => {
                    let state = state_of(&write.body);
                    let before = self.heads.insert(write.key.record, state);
                    if let Some(transition) = keygen_transition(before.filter(|_| write.replaces > 0), state)
                    {
                        log.reached(transition);
                    }
                }
                Family::Keygen | Family::Signing => {}
            }
        }
    }

    /// The gateway has died: what its disk says now is where its keygens are. A commit that it died in may be
    /// there, and an older database may have taken its place.
    pub(crate) fn gateway_died(&mut self, disk: &mut Disk) {
        self.ledger.check(disk);
        self.heads.retain(|record, state| {
            let rows = disk.load(&Query::Record(*record)).expect("nothing is wrong with this disk");
            let head = rows.iter().find(|row| row.key.part == 0);
            head.inspect(|row| *state = state_of(&row.body)).is_some()
        });
    }

    /// An enclave's new identity, as only it and the key service know it.
    pub(crate) fn learn_identity(&mut self, facts: IdentityFacts, seed: &Secret<32>, enclave_key: PublicKey) {
        self.leaks.add(seed.expose(), "an enclave's seed");
        self.leaks.add(facts.ecies.expose(), "an enclave's key");
        let identity = derive(seed, Purpose::EnclaveIdentity(facts.enclave_id, facts.epoch));
        self.leaks.add(identity.expose(), "an enclave's key");
        self.identities.insert(enclave_key, facts);
    }

    /// The private half of a member's auth key, which is a secret as well.
    pub(crate) fn learn_auth(&mut self, key: &[u8; 32], keygen_id: KeygenId) {
        let secret = derive(&Secret::copied_from(key), Purpose::UserAuth(keygen_id));
        self.leaks.add(secret.expose(), "a private auth key");
    }
}

/// The message that an item is about.
pub(crate) fn message(kind: &ItemKind) -> [u8; 32] {
    let origin = match kind {
        ItemKind::Blind(message) => return *message,
        ItemKind::Text(text) => Origin::Text(text.clone()),
        ItemKind::Bytes(bytes) => Origin::Bytes(Blob(bytes.clone())),
    };
    origin.message().expect("these say what they are").0
}

/// A head ends with its state, a variant without fields: `[number, []]`.
fn state_of(head: &[u8]) -> u8 {
    match head {
        [.., 0x82, number, 0x80] => *number,
        _ => panic!("a head does not end with its state"),
    }
}

fn keygen_transition(before: Option<u8>, after: u8) -> Option<&'static str> {
    let name = |state: u8| KEYGEN_STATES[usize::from(state)];
    let Some(before) = before.filter(|before| *before != after) else {
        return (after == 0).then_some("keygen -> Reserved");
    };
    Some(match (name(before), name(after)) {
        ("Reserved", "CollectingParticipants") => "keygen Reserved -> CollectingParticipants",
        ("Reserved", "Failed") => "keygen Reserved -> Failed",
        ("CollectingParticipants", "KeyGeneration") => "keygen CollectingParticipants -> KeyGeneration",
        ("CollectingParticipants", "Failed") => "keygen CollectingParticipants -> Failed",
        ("KeyGeneration", "Completed") => "keygen KeyGeneration -> Completed",
        ("KeyGeneration", "Failed") => "keygen KeyGeneration -> Failed",
        (before, after) => panic!("a keygen never goes from {before} to {after}"),
    })
}
