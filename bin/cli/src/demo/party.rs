//! The demo's participants, each with a client of its own.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use keymeld_core::artifact::intent::Item;
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::VerifiedOutcome;
use keymeld_core::client::{Client, Config, Done, Fault, Invitee, Job, Plan, VerifiedKey};
use keymeld_core::id::{KeygenId, SigningId};
use keymeld_core::limits::VALID_DEFAULT_MS;
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::client::BlockingClient;
use keymeld_transport::http::client::Client as Http;

use super::{DemoError, Options};
use crate::children::{Children, os_entropy};
use crate::kept;

/// How long a job may take.
const JOB_MS: u64 = 120_000;
/// Threads that do the participants' jobs at a time.
const AT_A_TIME: usize = 8;

struct Participant {
    name: String,
    client: BlockingClient,
}

impl Participant {
    fn run(&mut self, job: Job) -> Result<Done, DemoError> {
        self.client.run(job, JOB_MS).map_err(|fault| DemoError::Job(self.name.clone(), fault))
    }

    fn wrong(&self) -> DemoError {
        DemoError::Job(self.name.clone(), Fault::from(Code::Internal))
    }
}

/// All participants; the first is the coordinator.
pub(super) struct Party(Vec<Participant>);

fn name(at: usize) -> String {
    const NAMES: [&str; 10] =
        ["Alice", "Bob", "Carol", "Dave", "Erin", "Frank", "Grace", "Heidi", "Ivan", "Judy"];
    NAMES.get(at).map_or_else(|| format!("Participant {}", at + 1), |name| (*name).into())
}

impl Party {
    /// The coordinator reserves and publishes; everybody else gets an invite.
    pub(super) fn reserve(options: &Options, children: &Children, home: &Path) -> Result<Party, DemoError> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).expect("half a billion years");
        let valid_until = unix_ms + VALID_DEFAULT_MS;
        let rules = if options.require_approval {
            Rules::careful(valid_until)
        } else {
            Rules::delegated(valid_until)
        };
        let config = |http: &Http| Config {
            authority: http.authority().to_owned(),
            policy: children.policy.clone(),
            api_token: None,
            newest_births: std::collections::BTreeMap::new(),
        };
        let seat = |at: usize, machine: Client, http: Http| -> Result<Participant, DemoError> {
            let name = name(at);
            let keeper = kept::keeper(home.join("participants").join(&name))?;
            Ok(Participant { name, client: BlockingClient::new(machine, http, os_entropy(), keeper) })
        };
        let mut entropy = os_entropy();
        let invitee = |at| Invitee { name: Some(name(at)), signing_key: None };
        let others = (1..options.participants).map(invitee).collect();
        let plan = Plan { name: Some(name(0)), ..Plan::new(children.url(), others, rules) };
        let http = Http::new(&children.url())?;
        let key = Secret::random(&mut entropy).map_err(Code::from)?;
        let now = Time { unix_ms, mono_ms: 0 };
        let machine = Client::coordinate(config(&http), key, plan, now, &mut entropy)?;
        let mut coordinator = seat(0, machine, http)?;
        coordinator.run(Job::Reserve)?;
        coordinator.run(Job::Init)?;
        let mut invited = Vec::with_capacity(options.participants);
        for (at, invite) in (1..).zip(coordinator.client.machine().invites()) {
            // Out of band, as a file or a code to scan.
            let invite = Invite::decode(&invite.encode()?)?;
            let http = Http::new(&invite.gateway_url)?;
            let key = Secret::random(&mut entropy).map_err(Code::from)?;
            invited.push(seat(at, Client::join(config(&http), key, invite, rules)?, http)?);
        }
        invited.insert(0, coordinator);
        Ok(Party(invited))
    }

    /// Several at a time, as it would be: everybody is somewhere else.
    fn each(
        participants: &mut [Participant],
        act: impl Fn(&mut Participant) -> Result<(), DemoError> + Sync,
    ) -> Result<(), DemoError> {
        for group in participants.chunks_mut(AT_A_TIME) {
            thread::scope(|scope| {
                let act = &act;
                let threads: Vec<_> = group.iter_mut().map(|one| scope.spawn(move || act(one))).collect();
                threads.into_iter().try_for_each(|one| one.join().expect("a participant's thread"))
            })?;
        }
        Ok(())
    }

    pub(super) fn join(&mut self) -> Result<(), DemoError> {
        Party::each(&mut self.0, |one| one.run(Job::Join).map(drop))
    }

    pub(super) fn verify_key(&mut self) -> Result<Arc<VerifiedKey>, DemoError> {
        Party::each(&mut self.0, |one| one.run(Job::AwaitKey).map(drop))?;
        let keys = self.0.iter().map(|one| one.client.machine().key().cloned());
        let keys = keys.collect::<Option<Vec<_>>>().unwrap_or_default();
        let same = keys.windows(2).all(|pair| pair[0].output_key() == pair[1].output_key());
        match keys.into_iter().next() {
            Some(key) if same => Ok(key),
            Some(_) | None => Err(DemoError::Unverified),
        }
    }

    pub(super) fn keygen_id(&self) -> KeygenId {
        self.0[0].client.machine().keygen_id()
    }

    pub(super) fn sign(&mut self, items: Vec<Item>) -> Result<Vec<VerifiedOutcome>, DemoError> {
        let coordinator = &mut self.0[0];
        match coordinator.run(Job::Sign { items, expires_at: None })? {
            Done::Signed(_, outcomes) => Ok(outcomes),
            _ => Err(coordinator.wrong()),
        }
    }

    pub(super) fn request(&mut self, items: Vec<Item>) -> Result<SigningId, DemoError> {
        let coordinator = &mut self.0[0];
        match coordinator.run(Job::Request { items, expires_at: None })? {
            Done::Requested(signing_id) => Ok(signing_id),
            _ => Err(coordinator.wrong()),
        }
    }

    pub(super) fn approve(&mut self, signing_id: SigningId) -> Result<(), DemoError> {
        Party::each(&mut self.0[1..], |one| match one.run(Job::Review(signing_id))? {
            Done::Reviewed(review) => one.run(Job::Approve { review, blind: false }).map(drop),
            _ => Err(one.wrong()),
        })
    }

    pub(super) fn await_signatures(
        &mut self,
        signing_id: SigningId,
    ) -> Result<Vec<VerifiedOutcome>, DemoError> {
        let coordinator = &mut self.0[0];
        match coordinator.run(Job::AwaitSignatures(signing_id))? {
            Done::Signed(_, outcomes) => Ok(outcomes),
            _ => Err(coordinator.wrong()),
        }
    }
}
