//! One genuine story: a keygen of three participants at two enclaves, and three signings.
//!
//! The second participant approves every intent itself, the others delegate. The first signing is completed,
//! the second is declined, the third waits for the approval.

use std::sync::{Arc, LazyLock, Mutex};

use keymeld_core::api::rest::{InitRequest, RegisterRequest, SignRequest};
use keymeld_core::api::router::Call;
use keymeld_core::artifact::intent::{Item, Origin, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::manifest::Manifest;
use keymeld_core::artifact::registration::{Rules, open_record};
use keymeld_core::artifact::roster::Roster;
use keymeld_core::artifact::tweak::TweakStep;
use keymeld_core::bytes::{Blob, Hash};
use keymeld_core::client::{Client, Config, Done, Invitee, Job, Keep, Plan, Review, VerifiedKey};
use keymeld_core::crypto::auth::public_key;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::{Context, SealKey};
use keymeld_core::enclave::identity::Identity;
use keymeld_core::id::SigningId;
use keymeld_core::secret::Secret;
use keymeld_transport::nsm::software::SoftwareRoot;

use super::host::{Host, policy};
use super::journal::Journal;
use super::{AUTHORITY, START, Stage};

/// Participants.
pub const PARTICIPANTS: usize = 3;
/// Enclaves.
pub const ENCLAVES: usize = 2;
/// Until when registrations hold.
pub const VALID_UNTIL: u64 = START + 30 * 24 * 3_600_000;

/// A story that was played through, and what only its participants know of it.
#[derive(Debug)]
pub struct Story {
    /// What was said.
    pub journal: Journal,
    /// What made the enclaves' security modules.
    pub root: SoftwareRoot,
    /// The enclaves as they were at the end.
    pub hosts: Mutex<Vec<Host>>,
    /// Their identities, by place.
    pub identities: Vec<Arc<Identity>>,
    /// The invites of the second and third participant.
    pub invites: Vec<Invite>,
    /// The session secret of all participants.
    pub session_secret: Secret<32>,
    /// The manifest as it was published.
    pub init: InitRequest,
    /// The registrations, by place.
    pub registrations: Vec<RegisterRequest>,
    /// The requests for signatures.
    pub requests: Vec<SignRequest>,
    /// The intents as the second participant reviewed them, by request.
    pub reviews: Vec<Review>,
    /// The completed key.
    pub key: Arc<VerifiedKey>,
    /// How many messages to enclaves came before the first signing.
    pub asked_before_signing: usize,
}

/// The story with seed 1, played once for each process.
pub static STORY: LazyLock<Story> = LazyLock::new(|| Story::play(1));

/// A participant's signing key, by place. A test key.
pub fn signing_key(place: usize) -> Secret<32> {
    Secret::copied_from(&[u8::try_from(place + 1).expect("few participants"); 32])
}

/// The rules of a participant, by place.
pub fn rules(place: usize) -> Rules {
    if place == 1 { Rules::careful(VALID_UNTIL) } else { Rules::delegated(VALID_UNTIL) }
}

/// The configuration of every client.
pub fn client_config(root: &SoftwareRoot) -> Config {
    Config {
        authority: AUTHORITY.into(),
        policy: policy(root),
        api_token: None,
        newest_births: std::collections::BTreeMap::new(),
    }
}

/// The coordinator's plan: the second participant is pinned by its key, the third by its invite.
pub fn plan() -> Plan {
    let pinned = public_key(&signing_key(1)).expect("a key");
    let invitees = vec![
        Invitee { name: Some("second".into()), signing_key: Some(pinned) },
        Invitee { name: None, signing_key: None },
    ];
    let mut plan = Plan::new("http://gateway.example".into(), invitees, rules(0));
    plan.subsets = vec![vec![0, 2]];
    plan.default_tweak = vec![TweakStep::Taproot { merkle_root: None }];
    plan
}

impl Story {
    /// Plays the story. The same seed gives the same bytes everywhere.
    ///
    /// # Panics
    /// Where anything in it goes wrong, which is a bug.
    pub fn play(seed: u64) -> Story {
        let mut stage = Stage::new(ENCLAVES, seed);
        let invites = keygen(&mut stage);
        let asked_before_signing = stage.journal.asked.len();
        let mut reviews = Vec::new();
        completed(&mut stage, &mut reviews);
        declined(&mut stage, &mut reviews);
        waiting(&mut stage, &mut reviews);
        Story {
            session_secret: Secret::copied_from(invites[0].session_secret.expose()),
            invites,
            init: find(&stage, |call| match call {
                Call::Init { request, .. } => Some(request.clone()),
                _ => None,
            })
            .remove(0),
            registrations: find(&stage, |call| match call {
                Call::Register { request, .. } => Some(request.clone()),
                _ => None,
            }),
            requests: find(&stage, |call| match call {
                Call::Sign { request, .. } => Some(request.clone()),
                _ => None,
            }),
            reviews,
            key: Arc::clone(stage.seats[0].machine.key().expect("verified")),
            asked_before_signing,
            identities: stage.hosts.iter().map(|host| Arc::clone(&host.shared[0])).collect(),
            hosts: Mutex::new(stage.hosts),
            journal: stage.journal,
            root: stage.root,
        }
    }

    /// What seals manifest, records and certificates.
    pub fn session_seal(&self) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SessionSeal(self.invites[0].keygen_id))
    }

    /// What seals the intents, reasons and results of a signing.
    pub fn signing_seal(&self, signing_id: SigningId) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SigningSeal(signing_id))
    }

    /// The manifest.
    ///
    /// # Panics
    /// Never: it was published.
    pub fn manifest(&self) -> (Manifest, Hash) {
        let keygen_id = self.invites[0].keygen_id;
        let context = Context::Manifest { keygen_id, manifest_hash: self.init.manifest_hash };
        let plain = self.session_seal().open(&context, &self.init.manifest).expect("genuine");
        (Manifest::decode(&plain).expect("genuine"), self.init.manifest_hash)
    }

    /// The roster.
    ///
    /// # Panics
    /// Never: the keygen was completed.
    pub fn roster(&self) -> Roster {
        let (manifest, hash) = self.manifest();
        let seal = self.session_seal();
        let open = |request: &RegisterRequest| {
            open_record(&seal, &manifest, hash, request.user_id, &request.record).expect("genuine")
        };
        let records = self.registrations.iter().map(open).collect();
        Roster::assemble(manifest.clone(), hash, records).expect("genuine")
    }

    /// An intent, opened again.
    ///
    /// # Panics
    /// Never: it was accepted.
    pub fn intent(&self, roster: &Roster, number: usize) -> VerifiedIntent {
        let SignRequest { signing_id, intent, intent_digest, .. } = &self.requests[number];
        let sealed = SealedIntent { sealed: intent.clone(), digest: *intent_digest };
        VerifiedIntent::open(roster, *signing_id, &self.signing_seal(*signing_id), &sealed).expect("genuine")
    }

    /// The memberships that clients kept, by place, oldest first.
    pub fn memberships(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.journal.kept.iter().filter_map(|(place, keep)| match keep {
            Keep::Membership(bytes) => Some((*place, bytes.as_slice())),
            Keep::Request(_) => None,
        })
    }
}

/// Seats three participants, and has them register and verify the key. The answer is the invites.
///
/// # Panics
/// Where anything goes wrong, which is a bug.
pub fn keygen(stage: &mut Stage) -> Vec<Invite> {
    let config = client_config(&stage.root);
    let (time, entropy) = (stage.time, &mut stage.entropy);
    let coordinator = Client::coordinate(config.clone(), signing_key(0), plan(), time, entropy);
    let coordinator = stage.seat(coordinator.expect("a sound plan"));
    done(stage, coordinator, Job::Reserve);
    done(stage, coordinator, Job::Init);
    let copy = |invite: &Invite| Invite::decode(&invite.encode().expect("small")).expect("decodes");
    let invites: Vec<Invite> = stage.seats[coordinator].machine.invites().iter().map(copy).collect();
    for (index, invite) in invites.iter().enumerate() {
        let place = index + 1;
        let client = Client::join(config.clone(), signing_key(place), copy(invite), rules(place));
        stage.seat(client.expect("a sound key"));
    }
    for place in 0..PARTICIPANTS {
        done(stage, place, Job::Join);
    }
    for place in 0..PARTICIPANTS {
        done(stage, place, Job::AwaitKey);
    }
    invites
}

fn find<T>(stage: &Stage, pick: impl Fn(&Call) -> Option<T>) -> Vec<T> {
    stage.journal.calls.iter().filter_map(pick).collect()
}

fn done(stage: &mut Stage, place: usize, job: Job) -> Done {
    stage.run(place, job).expect("nothing goes wrong in this story")
}

fn request(stage: &mut Stage, items: Vec<Item>) -> SigningId {
    match done(stage, 0, Job::Request { items, expires_at: None }) {
        Done::Requested(signing_id) => signing_id,
        other => panic!("not requested: {other:?}"),
    }
}

fn review(stage: &mut Stage, reviews: &mut Vec<Review>, signing_id: SigningId) -> Box<Review> {
    match done(stage, 1, Job::Review(signing_id)) {
        Done::Reviewed(review) => {
            reviews.push((*review).clone());
            review
        }
        other => panic!("not reviewed: {other:?}"),
    }
}

fn text(stage: &mut Stage, text: &str) -> Item {
    Item::of(Origin::Text(text.into()), &mut stage.entropy).expect("test entropy")
}

/// Everybody signs one text; the first and the third bytes, under a tweak of their own.
fn completed(stage: &mut Stage, reviews: &mut Vec<Review>) {
    let whole = text(stage, "of all");
    let bytes = Origin::Bytes(Blob(b"of two".to_vec()));
    let mut part = Item::of(bytes, &mut stage.entropy).expect("test entropy");
    let roster = stage.seats[0].machine.key().expect("verified");
    part.subset = roster.roster().manifest().subsets.first().map(|subset| subset.subset_id);
    part.tweak = Some(vec![TweakStep::Plain(Hash([3; 32])), TweakStep::XOnly(Hash([4; 32]))]);
    let signing_id = request(stage, vec![whole, part]);
    let review = review(stage, reviews, signing_id);
    done(stage, 1, Job::Approve { review, blind: false });
    for place in 0..PARTICIPANTS {
        let outcome = done(stage, place, Job::AwaitSignatures(signing_id));
        assert!(matches!(&outcome, Done::Signed(_, items) if items.iter().all(Result::is_ok)), "{outcome:?}");
    }
}

fn declined(stage: &mut Stage, reviews: &mut Vec<Review>) {
    let item = text(stage, "never");
    let signing_id = request(stage, vec![item]);
    let review = review(stage, reviews, signing_id);
    done(stage, 1, Job::Withdraw { review, reason: Some("no".into()) });
}

fn waiting(stage: &mut Stage, reviews: &mut Vec<Review>) {
    let item = text(stage, "later");
    let signing_id = request(stage, vec![item]);
    review(stage, reviews, signing_id);
}
