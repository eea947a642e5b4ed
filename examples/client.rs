//! A service that lets three colleagues make a key and signs with it, over HTTP, and goes on after a restart.
//!
//! ```text
//! cargo run -p keymeld-examples --example client                                starts what it needs
//! cargo run -p keymeld-examples --example client -- http://HOST:PORT policy.json [FOLDER]
//! ```
//!
//! The colleagues are three threads of this program here; in earnest each is somewhere else, and the invites travel to
//! them as files.

use std::error::Error;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, thread};

use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::attestation::policy::Policy;
use keymeld_core::client::{Client, Config, Done, Invitee, Job, Keep, Plan, VerifiedKey};
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin as EntropyOrigin};
use keymeld_core::limits::VALID_DEFAULT_MS;
use keymeld_core::musig::round;
use keymeld_core::secret::Secret;
use keymeld_gateway::EnclaveAddress;
use keymeld_transport::client::BlockingClient;
use keymeld_transport::clock::Clock;
use keymeld_transport::http::client::Client as Http;

const NAMES: [&str; 3] = ["treasury", "legal", "audit"];
/// How long any job may take, the gateway's absences included.
const JOB_MS: u64 = 60_000;

type Failed = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failed> {
    let temporary = tempfile::tempdir()?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    let services = match arguments.as_slice() {
        [] => Some(Services::start(&temporary.path().join("services"))?),
        _ => None,
    };
    let (url, policy) = match (&services, arguments.as_slice()) {
        (Some(services), _) => (services.url(), services.policy.clone()),
        (None, [url, policy, ..]) => (url.clone(), Policy::from_json(&fs::read(policy)?)?),
        (None, _) => return Err("usage: client [URL POLICY [FOLDER]]".into()),
    };
    let folder = arguments.get(2).map_or_else(|| temporary.path().join("state"), PathBuf::from);
    let service = Service { url, policy, folder };

    let key = service.make_key()?;
    println!("key    {}\nroster {}", key.output_key(), key.short_code());

    // A service is restarted now and then: it has its signing key, and what it kept.
    let signatures = service.sign(&["invoice 1", "invoice 2"])?;
    for (text, signature) in signatures {
        // The client has verified it; this is for those who do not believe the client.
        let message = Origin::Text(text.clone()).message()?;
        if !round::verify(&key.output_key().0, &message.0, &signature) {
            return Err(format!("the signature of {text:?} does not verify").into());
        }
        println!("signed {text:?}");
    }
    if let Some(services) = services {
        services.stop();
    }
    Ok(())
}

/// What a service knows when it starts.
struct Service {
    url: String,
    policy: Policy,
    folder: PathBuf,
}

impl Service {
    /// A whole keygen, with a thread for each colleague.
    fn make_key(&self) -> Result<Arc<VerifiedKey>, Failed> {
        // Delegated: the coordinator's requests need nobody's approval. `Rules::careful` asks each time.
        let rules = Rules::delegated(Clock::new().now().unix_ms + VALID_DEFAULT_MS);
        let invitee = |name: &&str| Invitee { name: Some((*name).into()), signing_key: None };
        let invitees = NAMES[1..].iter().map(invitee).collect();
        let plan = Plan { name: Some(NAMES[0].into()), ..Plan::new(self.url.clone(), invitees, rules) };

        let http = Http::new(&self.url)?;
        let (key, now) = (self.new_key(NAMES[0])?, Clock::new().now());
        let machine = Client::coordinate(self.config(&http), key, plan, now, &mut os_entropy())?;
        let mut coordinator = self.seat(NAMES[0], http, machine);
        coordinator.run(Job::Reserve, JOB_MS)?;
        coordinator.run(Job::Init, JOB_MS)?;
        let invites = coordinator.machine().invites().iter().map(Invite::encode);
        let invites = invites.collect::<Result<Vec<_>, _>>()?;

        thread::scope(|scope| {
            let colleagues = NAMES[1..].iter().zip(&invites);
            let joining: Vec<_> =
                colleagues.map(|(name, invite)| scope.spawn(|| self.join(name, invite, rules))).collect();
            coordinator.run(Job::Join, JOB_MS)?;
            for colleague in joining {
                colleague.join().expect("a colleague's thread ends")?;
            }
            // Attestations, roster, certificates: all of it is verified before there is a key to show.
            match coordinator.run(Job::AwaitKey, JOB_MS)? {
                Done::Key(key) => Ok(key),
                other => Err(format!("no key but {other:?}").into()),
            }
        })
    }

    /// What a colleague does with its invite. It may go off-line afterwards: its enclave signs for it.
    fn join(&self, name: &str, invite: &[u8], rules: Rules) -> Result<(), Failed> {
        let invite = Invite::decode(invite)?;
        let http = Http::new(&invite.gateway_url)?;
        let machine = Client::join(self.config(&http), self.new_key(name)?, invite, rules)?;
        self.seat(name, http, machine).run(Job::Join, JOB_MS)?;
        Ok(())
    }

    /// Signs texts as a new process would: with nothing but the coordinator's files.
    fn sign(&self, texts: &[&str]) -> Result<Vec<(String, [u8; 64])>, Failed> {
        let http = Http::new(&self.url)?;
        let membership = fs::read(self.folder.join(NAMES[0]).join("membership"))?;
        let key = Secret::from_hex(&fs::read(self.folder.join(NAMES[0]).join("key"))?).ok_or("not a key")?;
        let machine = Client::resume(self.config(&http), key, &membership)?;
        let mut coordinator = self.seat(NAMES[0], http, machine);
        let mut items = Vec::new();
        for text in texts {
            items.push(Item::of(Origin::Text((*text).into()), &mut os_entropy())?);
        }
        // The request is kept before it is sent. A service that finds one after a crash hands it to `Job::Resume`
        // and never makes another for the same payment.
        let Done::Signed(_, outcomes) = coordinator.run(Job::Sign { items, expires_at: None }, JOB_MS)?
        else {
            return Err("no signatures".into());
        };
        let mut signed = Vec::new();
        for (text, outcome) in texts.iter().zip(outcomes) {
            let one = outcome.map_err(|refusal| format!("{text:?} was refused: {refusal}"))?;
            signed.push(((*text).to_owned(), one.signature.0));
        }
        Ok(signed)
    }

    fn config(&self, http: &Http) -> Config {
        Config {
            authority: http.authority().to_owned(),
            policy: self.policy.clone(),
            api_token: None,
            // In earnest: what `Client::births` said in all of this user's keygens before.
            newest_births: Default::default(),
        }
    }

    fn seat(&self, name: &str, http: Http, machine: Client) -> BlockingClient {
        let folder = self.folder.join(name);
        BlockingClient::new(machine, http, os_entropy(), move |keep| match keep {
            Keep::Membership(bytes) => write(&folder, "membership", bytes),
            Keep::Request(request) => {
                let bytes = serde_json::to_vec(request).map_err(io::Error::other)?;
                write(&folder, &format!("request-{}", request.signing_id), &bytes)
            }
        })
    }

    fn new_key(&self, name: &str) -> Result<Secret<32>, Failed> {
        let key = Secret::random(&mut os_entropy())?;
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder.join(name))?;
        write(&self.folder.join(name), "key", key.to_hex().as_bytes())?;
        Ok(key)
    }
}

/// All or nothing, and durable: what a keeper promises. What it writes is secret; the folder is the owner's alone.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = folder.join(format!("{name}.unfinished"));
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(unfinished, folder.join(name))?;
    File::open(folder)?.sync_all()
}

fn os_entropy() -> Entropy {
    Entropy::new(EntropyOrigin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed))
}

/// A gateway and two development enclaves in this process, for whoever has none.
struct Services {
    gateway: keymeld_gateway::Running,
    enclaves: Vec<keymeld_enclave::Running>,
    policy: Policy,
}

impl Services {
    fn start(folder: &Path) -> Result<Services, Failed> {
        fs::create_dir_all(folder)?;
        let mut enclaves = Vec::new();
        let mut addresses = Vec::new();
        let mut policies = Vec::new();
        for digit in 1..=2 {
            let text = format!(
                "enclave_id = \"5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a4{digit}\"\nlisten = \"tcp:127.0.0.1:0\"\n\
                 workers = 1\n[development]\nstate_dir = {:?}\n",
                folder.join("development")
            );
            let config = keymeld_enclave::Config::from_toml(&text, [])?;
            policies.push(keymeld_enclave::development::policy(&config)?);
            let enclave = keymeld_enclave::start(&config)?;
            addresses.push(EnclaveAddress { id: config.enclave_id, address: enclave.address().clone() });
            enclaves.push(enclave);
        }
        let listen = "127.0.0.1:0".parse()?;
        let config = keymeld_gateway::Config::new(listen, folder.join("gateway.db"), addresses);
        let gateway = keymeld_gateway::start(&config)?;
        let policy = policies.pop().ok_or("no policy")?;
        Ok(Services { gateway, enclaves, policy })
    }

    fn url(&self) -> String {
        format!("http://{}", self.gateway.address())
    }

    fn stop(self) {
        self.gateway.stop();
        for enclave in self.enclaves {
            enclave.stop();
        }
    }
}
