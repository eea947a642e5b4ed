//! A gateway and three enclaves as child processes of the benchmark, and clients of one keygen.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keymeld::children::{Children, os_entropy};
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::client::{Client, Config, Done, Invitee, Job, Keep, Plan};
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_transport::client::BlockingClient;
use keymeld_transport::http::client::Client as Http;

const JOB_MS: u64 = 60_000;
/// Linux counts a process's time in these.
const TICK: Duration = Duration::from_millis(10);

/// A fleet with a delegated three-party keygen.
pub struct Fleet {
    children: Children,
    membership: Vec<u8>,
}

fn config(children: &Children, http: &Http) -> Config {
    Config {
        authority: http.authority().to_owned(),
        policy: children.policy.clone(),
        api_token: None,
        newest_births: BTreeMap::new(),
    }
}

fn key(number: u8) -> Secret<32> {
    Secret::copied_from(&[number; 32])
}

fn run(client: &mut BlockingClient, job: Job) -> Done {
    client.run(job, JOB_MS).expect("a job of the benchmark")
}

impl Fleet {
    /// Starts everything; `program` answers to `gateway` and `enclave` as the command does.
    ///
    /// # Panics
    /// Where anything fails.
    pub fn start(program: &Path, folder: &Path) -> Fleet {
        let children = Children::start(program, folder, 3).expect("children");
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let unix_ms = u64::try_from(unix.as_millis()).expect("in range");
        let rules = Rules::delegated(unix_ms + 86_400_000);
        let plan = Plan::new(children.url(), vec![Invitee::default(); 2], rules);
        let http = Http::new(&children.url()).expect("a URL");
        let now = Time { unix_ms, mono_ms: 0 };
        let machine = Client::coordinate(config(&children, &http), key(1), plan, now, &mut os_entropy());
        let (kept, keeps) = mpsc::channel();
        let keep = move |keep: &Keep| {
            if let Keep::Membership(bytes) = keep {
                kept.send(bytes.to_vec()).expect("somebody listens");
            }
            Ok(())
        };
        let mut coordinator = BlockingClient::new(machine.expect("a plan"), http, os_entropy(), keep);
        run(&mut coordinator, Job::Reserve);
        run(&mut coordinator, Job::Init);
        for (number, invite) in (2..).zip(coordinator.machine().invites()) {
            let invite = Invite::decode(&invite.encode().expect("encodes")).expect("decodes");
            let http = Http::new(&invite.gateway_url).expect("a URL");
            let machine = Client::join(config(&children, &http), key(number), invite, rules);
            let machine = machine.expect("an invite");
            run(&mut BlockingClient::new(machine, http, os_entropy(), |_| Ok(())), Job::Join);
        }
        run(&mut coordinator, Job::Join);
        run(&mut coordinator, Job::AwaitKey);
        let membership = keeps.try_iter().last().expect("was kept");
        Fleet { children, membership }
    }

    /// A client of the coordinator's, ready to sign.
    ///
    /// # Panics
    /// Where anything fails.
    pub fn client(&self) -> BlockingClient {
        let http = Http::new(&self.children.url()).expect("a URL");
        let machine = Client::resume(config(&self.children, &http), key(1), &self.membership);
        let mut client = BlockingClient::new(machine.expect("kept"), http, os_entropy(), |_| Ok(()));
        run(&mut client, Job::AwaitKey);
        client
    }

    /// Processor time of the gateway and of all enclaves so far, in steps of 10 ms each.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    pub fn processor_time(&self) -> Duration {
        let of = |process_id: u32| {
            let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).expect("Linux");
            // The name, in brackets, may hold anything.
            let fields = stat.rsplit(')').next().expect("has fields");
            let ticks = fields
                .split_whitespace()
                .skip(11)
                .take(2)
                .map(|field| field.parse::<u32>().expect("a number"));
            TICK * ticks.sum::<u32>()
        };
        let enclaves = self.children.enclaves.iter().map(|enclave| of(enclave.process_id()));
        of(self.children.gateway.process_id()) + enclaves.sum::<Duration>()
    }
}

/// Signs a session of so many messages and verifies it.
///
/// # Panics
/// Where that fails.
pub fn sign(client: &mut BlockingClient, messages: usize) {
    let mut entropy = os_entropy();
    let item = |number: usize| Item::of(Origin::Text(format!("message {number}")), &mut entropy);
    let items = (0..messages).map(item).collect::<Result<Vec<Item>, _>>().expect("items");
    match run(client, Job::Sign { items, expires_at: None }) {
        Done::Signed(_, outcomes) => assert!(outcomes.iter().all(Result::is_ok)),
        other => panic!("{other:?}"),
    }
}
