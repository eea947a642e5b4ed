//! Participants of the tests: blocking clients against a gateway that may be dead for a while.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use keymeld::children::{Children, os_entropy};
use keymeld::kept::keeper;
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::VerifiedSignature;
use keymeld_core::client::{Client, Config, Done, Invitee, Job, Plan};
use keymeld_core::id::SigningId;
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::client::BlockingClient;
use keymeld_transport::http::client::Client as Http;

/// How long a job may take, kills included.
const PATIENCE_MS: u64 = 120_000;

pub(crate) struct Participant(BlockingClient);

fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(unix.as_millis()).expect("in range")
}

fn careful() -> Rules {
    Rules::careful(unix_ms() + 3_600_000)
}

fn config(children: &Children, http: &Http) -> Config {
    Config {
        authority: http.authority().to_owned(),
        policy: children.policy.clone(),
        api_token: None,
        newest_births: BTreeMap::new(),
    }
}

fn seat(machine: Client, http: Http, home: &Path, name: &str) -> Participant {
    let keep = keeper(home.join(name)).expect("a folder");
    Participant(BlockingClient::new(machine, http, os_entropy(), keep))
}

/// A coordinator with a plan for so many participants. Nothing is sent yet.
pub(crate) fn coordinator(children: &Children, home: &Path, count: usize) -> Participant {
    let http = Http::new(&children.url()).expect("a URL");
    let plan = Plan::new(children.url(), vec![Invitee::default(); count - 1], careful());
    let mut entropy = os_entropy();
    let key = Secret::random(&mut entropy).expect("random");
    let now = Time { unix_ms: unix_ms(), mono_ms: 0 };
    let machine = Client::coordinate(config(children, &http), key, plan, now, &mut entropy).expect("a plan");
    seat(machine, http, home, "coordinator")
}

/// Everybody who was invited.
pub(crate) fn invited(children: &Children, home: &Path, coordinator: &Participant) -> Vec<Participant> {
    let invites = coordinator.0.machine().invites().iter().enumerate();
    let join = |(at, invite): (usize, &Invite)| {
        let invite = Invite::decode(&invite.encode().expect("encodes")).expect("decodes");
        let http = Http::new(&invite.gateway_url).expect("a URL");
        let key = Secret::random(&mut os_entropy()).expect("random");
        let machine = Client::join(config(children, &http), key, invite, careful()).expect("a key");
        seat(machine, http, home, &format!("invited-{at}"))
    };
    invites.map(join).collect()
}

impl Participant {
    pub(crate) fn run(&mut self, job: Job) -> Done {
        let what = format!("{job:?}");
        self.0.run(job, PATIENCE_MS).unwrap_or_else(|fault| panic!("{what}: {fault}"))
    }

    pub(crate) fn request(&mut self, texts: &[&str]) -> SigningId {
        let mut entropy = os_entropy();
        let item = |text: &&str| Item::of(Origin::Text((*text).into()), &mut entropy).expect("an item");
        let items = texts.iter().map(item).collect();
        match self.run(Job::Request { items, expires_at: None }) {
            Done::Requested(signing_id) => signing_id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn approve(&mut self, signing_id: SigningId) {
        match self.run(Job::Review(signing_id)) {
            Done::Reviewed(review) => self.run(Job::Approve { review, blind: false }),
            other => panic!("{other:?}"),
        };
    }

    /// Signatures that the client has verified, and this test once more.
    pub(crate) fn signatures(&mut self, signing_id: SigningId) -> Vec<VerifiedSignature> {
        let Done::Signed(_, outcomes) = self.run(Job::AwaitSignatures(signing_id)) else {
            panic!("no signatures")
        };
        let key = self.0.machine().key().expect("verified").output_key();
        let signed: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect("signed")).collect();
        for one in &signed {
            crate::assert_bip340(&key, &one.message, &one.signature);
        }
        signed
    }
}
