//! Participants of the tests: blocking clients against a gateway that may be dead for a while.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keymeld::children::Children;
pub(crate) use keymeld::children::os_entropy;
use keymeld::kept::{MEMBERSHIP_FILE, keeper};
use keymeld_core::api::http::{Method, Request, Response};
use keymeld_core::api::problem::Problem;
use keymeld_core::api::rest::EnclavesResponse;
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::VerifiedSignature;
use keymeld_core::attestation::policy::Policy;
use keymeld_core::bytes::XOnlyKey;
use keymeld_core::client::{Client, Command, Config, Done, Event, Fault, Invitee, Job, JobId, Plan, Review};
use keymeld_core::id::SigningId;
use keymeld_core::limits::ANSWER_BYTES_MAX;
use keymeld_core::secret::Secret;
use keymeld_core::strict;
use keymeld_core::time::Time;
use keymeld_transport::client::BlockingClient;
use keymeld_transport::http::client::{Client as Http, ClientError, Outgoing};

/// How long a job may take, kills included.
const PATIENCE_MS: u64 = 120_000;
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

/// What a client has to know of a gateway and its enclaves.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) url: String,
    policy: Policy,
}

impl Access {
    pub(crate) fn to(children: &Children) -> Access {
        Access { url: children.url(), policy: children.policy.clone() }
    }

    fn http(&self) -> Http {
        Http::new(&self.url).expect("a URL")
    }

    fn config(&self, http: &Http) -> Config {
        Config {
            authority: http.authority().to_owned(),
            policy: self.policy.clone(),
            api_token: None,
            newest_births: BTreeMap::new(),
        }
    }

    /// Returns once the gateway says that all of its enclaves are ready.
    pub(crate) fn await_enclaves(&self) {
        let http = self.http();
        let began = Instant::now();
        let (method, target, timeout_ms) = (Method::Get, "/api/v1/enclaves", 30_000);
        let request = Outgoing { method, target, proof: None, authorization: None, body: &[], timeout_ms };
        let is_ready = |response: Response| {
            let shown: Option<EnclavesResponse> = strict::from_json(&response.body, ANSWER_BYTES_MAX).ok();
            shown.is_some_and(|shown| shown.enclaves.iter().all(|enclave| enclave.ready))
        };
        while !http.send(&request).is_ok_and(is_ready) {
            assert!(began.elapsed() < PATIENCE, "enclaves do not get ready");
            // There is no long poll for it.
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A coordinator's machine. Nothing is sent yet.
    pub(crate) fn coordinating(&self, key: &[u8; 32], plan: Plan) -> (Client, Http) {
        let http = self.http();
        let now = Time { unix_ms: unix_ms(), mono_ms: 0 };
        let key = Secret::copied_from(key);
        let machine = Client::coordinate(self.config(&http), key, plan, now, &mut os_entropy());
        (machine.expect("a plan"), http)
    }

    /// Reserves slots that nobody will ever use, by a clock that is off by so much, and says why not.
    pub(crate) fn reserve(&self, offset_ms: i64, keygen_ms: u64) -> Option<String> {
        let mut plan = Plan::new(self.url.clone(), vec![Invitee::default()], careful());
        plan.timeout_ms = Some(keygen_ms);
        let (mut machine, http) = self.coordinating(&random_key(), plan);
        let mut entropy = os_entropy();
        let now = Time { unix_ms: unix_ms().saturating_add_signed(offset_ms), mono_ms: 0 };
        let mut event = Event::Asked { job_id: JobId(1), job: Job::Reserve, timeout_ms: 60_000 };
        let request = loop {
            machine.handle(now, event, &mut entropy);
            event = match machine.poll_command().expect("something to do") {
                Command::Store { token, .. } => Event::Stored { token },
                Command::Send { request, .. } => break request,
                Command::Finish { outcome, .. } => panic!("{outcome:?}"),
            };
        };
        let began = Instant::now();
        let response = loop {
            match send(&http, &request) {
                Ok(response) => break response,
                // It has only just begun to listen, or its queue was full.
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
        };
        if (200..300).contains(&response.status) {
            return None;
        }
        let problem: Problem = strict::from_json(&response.body, ANSWER_BYTES_MAX).expect("a problem");
        Some(problem.code)
    }
}

fn send(http: &Http, request: &Request) -> Result<Response, ClientError> {
    http.send(&Outgoing {
        method: request.method,
        target: &request.target,
        proof: request.proof.as_deref(),
        authorization: request.authorization.as_deref(),
        body: &request.body,
        timeout_ms: 30_000,
    })
}

/// Somebody with a key and a folder.
pub(crate) struct Participant {
    client: BlockingClient,
    access: Access,
    key: [u8; 32],
    folder: PathBuf,
}

pub(crate) fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(unix.as_millis()).expect("in range")
}

pub(crate) fn careful() -> Rules {
    Rules::careful(unix_ms() + 3_600_000)
}

pub(crate) fn random_key() -> [u8; 32] {
    os_entropy().bytes().expect("random")
}

fn seat(machine: Client, http: Http, access: &Access, key: [u8; 32], folder: PathBuf) -> Participant {
    let keep = keeper(folder.clone()).expect("a folder");
    let client = BlockingClient::new(machine, http, os_entropy(), keep);
    Participant { client, access: access.clone(), key, folder }
}

/// A coordinator with a plan. Nothing is sent yet.
pub(crate) fn planning(access: &Access, home: &Path, plan: Plan) -> Participant {
    let key = random_key();
    let (machine, http) = access.coordinating(&key, plan);
    seat(machine, http, access, key, home.join("coordinator"))
}

/// A coordinator with a plan for so many participants.
pub(crate) fn coordinator(children: &Children, home: &Path, count: usize) -> Participant {
    let access = Access::to(children);
    let plan = Plan::new(access.url.clone(), vec![Invitee::default(); count - 1], careful());
    planning(&access, home, plan)
}

/// Items that say what they are.
pub(crate) fn items(texts: &[&str]) -> Vec<Item> {
    let mut entropy = os_entropy();
    let item = |text: &&str| Item::of(Origin::Text((*text).into()), &mut entropy).expect("an item");
    texts.iter().map(item).collect()
}

/// Everybody who was invited.
pub(crate) fn invited(coordinator: &Participant, home: &Path, rules: Rules) -> Vec<Participant> {
    invited_with(coordinator, home, |_| rules)
}

/// The same, each with rules of its own.
pub(crate) fn invited_with(
    coordinator: &Participant,
    home: &Path,
    rules: impl Fn(usize) -> Rules,
) -> Vec<Participant> {
    let access = &coordinator.access;
    let invites = coordinator.client.machine().invites().iter().enumerate();
    let join = |(at, invite): (usize, &Invite)| {
        let invite = Invite::decode(&invite.encode().expect("encodes")).expect("decodes");
        let http = Http::new(&invite.gateway_url).expect("a URL");
        let key = random_key();
        let secret = Secret::copied_from(&key);
        let machine = Client::join(access.config(&http), secret, invite, rules(at)).expect("a key");
        seat(machine, http, access, key, home.join(format!("invited-{at}")))
    };
    invites.map(join).collect()
}

impl Participant {
    /// What a new process makes of the folder.
    pub(crate) fn again(self) -> Participant {
        let Participant { client, access, key, folder } = self;
        drop(client);
        let bytes = std::fs::read(folder.join(MEMBERSHIP_FILE)).expect("was kept");
        let http = access.http();
        let machine = Client::resume(access.config(&http), Secret::copied_from(&key), &bytes);
        seat(machine.expect("its own file"), http, &access, key, folder)
    }

    pub(crate) fn try_run(&mut self, job: Job) -> Result<Done, Fault> {
        self.client.run(job, PATIENCE_MS)
    }

    pub(crate) fn run(&mut self, job: Job) -> Done {
        let what = format!("{job:?}");
        self.try_run(job).unwrap_or_else(|fault| panic!("{what}: {fault}"))
    }

    /// The key that signatures verify under.
    pub(crate) fn output_key(&self) -> XOnlyKey {
        self.client.machine().key().expect("verified").output_key()
    }

    /// How many enclaves hold shares of the key.
    pub(crate) fn enclaves(&self) -> usize {
        self.client.machine().key().expect("verified").roster().enclaves().len()
    }

    pub(crate) fn request(&mut self, texts: &[&str]) -> SigningId {
        match self.run(Job::Request { items: items(texts), expires_at: None }) {
            Done::Requested(signing_id) => signing_id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn review(&mut self, signing_id: SigningId) -> Result<Box<Review>, Fault> {
        match self.try_run(Job::Review(signing_id))? {
            Done::Reviewed(review) => Ok(review),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn approve(&mut self, signing_id: SigningId) {
        let review = self.review(signing_id).expect("an intent");
        self.run(Job::Approve { review, blind: false });
    }

    /// Signatures that the client has verified, and this test once more.
    pub(crate) fn signatures(&mut self, signing_id: SigningId) -> Vec<VerifiedSignature> {
        self.try_signatures(signing_id).expect("signatures")
    }

    /// The same, or why there are none.
    pub(crate) fn try_signatures(&mut self, signing_id: SigningId) -> Result<Vec<VerifiedSignature>, Fault> {
        let Done::Signed(_, outcomes) = self.try_run(Job::AwaitSignatures(signing_id))? else {
            panic!("no signatures")
        };
        let key = self.output_key();
        let signed: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect("signed")).collect();
        for one in &signed {
            crate::assert_bip340(&key, &one.message, &one.signature);
        }
        Ok(signed)
    }
}
