//! A participant at work: its state directory, its key, its policy, and the client that they make.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use keymeld_core::client::{Client, Config, Done, Fault, Job, VerifiedKey};
use keymeld_core::id::{EnclaveId, KeygenId, UserId};
use keymeld_core::refusal::Code;
use keymeld_core::secret::{ApiToken, Secret};
use keymeld_transport::client::BlockingClient;
use keymeld_transport::clock::Clock;
use keymeld_transport::http::client::{Client as Http, ClientError, Roots};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::given::{self, KeySource};
use crate::home::{Home, HomeError, KeygenFolder};
use crate::kept;
use crate::os_entropy;

/// Who is at work, and how long.
#[derive(Args, Clone, Debug)]
pub struct Member {
    /// The state directory, of mode 0700.
    #[arg(long, value_name = "DIR", env = "KEYMELD_HOME")]
    pub home: PathBuf,
    /// Which enclaves are trusted, JSON.
    #[arg(long, value_name = "FILE", env = "KEYMELD_POLICY")]
    pub policy: PathBuf,
    /// Which key signs.
    #[command(flatten)]
    pub key: KeySource,
    /// Which keygen, where the directory holds several.
    #[arg(long, value_name = "ID")]
    pub keygen: Option<KeygenId>,
    /// Who vouches for the gateway.
    #[command(flatten)]
    pub vouchers: Vouchers,
    /// How long to try.
    #[command(flatten)]
    pub timeout: Timeout,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Who vouches for a gateway at an https address.
#[derive(Args, Clone, Debug)]
pub struct Vouchers {
    /// Certificates (PEM) that vouch for an https gateway, instead of Mozilla's.
    #[arg(long, value_name = "FILE", env = "KEYMELD_CA")]
    ca: Option<PathBuf>,
}

impl Vouchers {
    /// The client of a gateway.
    pub(super) fn client(&self, url: &str) -> Result<Http, Failure> {
        let roots = match &self.ca {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| Failure::File(path.clone(), error))?;
                Roots::from_pem(&pem).map_err(|error| Failure::Roots(path.clone(), error))?
            }
            None => Roots::mozilla(),
        };
        Ok(Http::with_roots(url, &roots)?)
    }
}

/// How long a command tries.
#[derive(Args, Clone, Copy, Debug)]
pub struct Timeout {
    /// How long to try and, where asked to, to wait.
    #[arg(long = "timeout", value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

impl Timeout {
    /// In milliseconds.
    pub fn ms(self) -> u64 {
        u64::from(self.seconds) * 1_000
    }
}

/// What somebody asked for when a keygen was begun in this directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Asked {
    Reserve(super::keygen::ReserveAsked),
    Join(super::keygen::RulesAsked),
}

/// A participant at work.
pub(super) struct Seat {
    // The client first: nothing of it outlives the lock.
    client: BlockingClient,
    folder: KeygenFolder,
    home: Home,
    kept_births: BTreeMap<EnclaveId, u64>,
    timeout_ms: u64,
}

impl Member {
    pub(super) fn config(
        &self,
        home: &Home,
        http: &Http,
        token: Option<ApiToken>,
    ) -> Result<Config, Failure> {
        Ok(Config {
            authority: http.authority().to_owned(),
            policy: given::policy(&self.policy)?,
            api_token: token,
            newest_births: home.births()?,
        })
    }

    /// Goes on with the keygen that is named, or with the only one.
    pub(super) fn resume(&self, token: Option<ApiToken>) -> Result<Seat, Failure> {
        let home = Home::open(&self.home)?;
        let folder = home.keygen(self.keygen)?;
        let key = self.key.read()?;
        self.resume_in(home, folder, key, token)
    }

    pub(super) fn resume_in(
        &self,
        home: Home,
        folder: KeygenFolder,
        key: Secret<32>,
        token: Option<ApiToken>,
    ) -> Result<Seat, Failure> {
        let (url, _): (String, Asked) = folder.session()?;
        let http = self.vouchers.client(&url)?;
        let config = self.config(&home, &http, token)?;
        let (path, bytes) = folder.membership()?;
        let client = Client::resume(config, key, &bytes);
        let client = client.map_err(|error| HomeError::Membership(path, error))?;
        self.seat(home, folder, http, client)
    }

    pub(super) fn seat(
        &self,
        home: Home,
        folder: KeygenFolder,
        http: Http,
        client: Client,
    ) -> Result<Seat, Failure> {
        let kept_births = client.births().clone();
        let keeper = kept::keeper(folder.path().to_owned())?;
        let client = BlockingClient::new(client, http, os_entropy(), keeper);
        Ok(Seat { client, folder, home, kept_births, timeout_ms: self.timeout.ms() })
    }
}

impl Seat {
    pub(super) fn machine(&self) -> &Client {
        self.client.machine()
    }

    pub(super) fn folder(&self) -> &KeygenFolder {
        &self.folder
    }

    /// Ends the work, but keeps other commands out of the directory.
    pub(super) fn into_home(self) -> Home {
        self.home
    }

    /// Does a job, and keeps what was seen of enclaves by it.
    pub(super) fn run(&mut self, job: Job) -> Result<Done, Failure> {
        let outcome = self.client.run(job, self.timeout_ms);
        let births = self.client.machine().births();
        if *births != self.kept_births {
            self.home.keep_births(births.iter().map(|(id, birth)| (*id, *birth)))?;
            self.kept_births = births.clone();
        }
        match (outcome, self.client.last_failure()) {
            // A long poll that took all the time says nothing about the gateway.
            (Err(Fault::TimedOut), Some(error)) if error != ClientError::TimedOut => {
                Err(Failure::Http(error))
            }
            (outcome, _) => Ok(outcome?),
        }
    }

    /// Waits for the keygen to complete, and verifies all of it.
    pub(super) fn key(&mut self) -> Result<Arc<VerifiedKey>, Failure> {
        match self.run(Job::AwaitKey)? {
            Done::Key(key) => Ok(key),
            _ => Err(Failure::Refused(Code::Internal)),
        }
    }
}

/// The system's clock.
pub(super) fn now_unix_ms() -> u64 {
    Clock::new().now().unix_ms
}

/// A participant's name in a manifest, for programs.
pub(super) fn name_of(key: &VerifiedKey, user_id: UserId) -> Option<String> {
    key.roster().manifest().participant(user_id).and_then(|participant| participant.name.clone())
}

/// The same for people: its name where it has one, or its id.
pub(super) fn called(key: &VerifiedKey, user_id: UserId) -> String {
    name_of(key, user_id).map_or_else(|| user_id.to_string(), |name| crate::shown::text(&name))
}
