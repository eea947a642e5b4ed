//! The kill matrix: many keygens and signings at once while processes are killed, stopped, filled and put
//! back in time. Everything that a participant was told is there afterwards, everything ends, and nothing is
//! signed that was not consented to.
//!
//! The short form runs with the other tests, the long one by `ci/kill`, which sets the variables `KEYMELD_KILL_*`.
//! All decisions are drawn from a seed, which is printed; what the operating system makes of them is its own.

mod faults;
mod plan;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use keymeld::children::{Children, Program, Setup};
use keymeld_core::client::{Done, Job};
use rusqlite::{Connection, OpenFlags};

use self::faults::Chaos;
use self::plan::{KeygenPlan, Schedule};
use self::work::{Entry, Work, reason};
use crate::party::{Access, Participant, os_entropy};

pub(crate) use self::faults::{restart_all, signal, start};
pub(crate) use self::plan::{Random, Victim};

const ENCLAVES: usize = 3;

/// How much is done.
struct Sizes {
    seed: u64,
    keygens: usize,
    signings: usize,
    at_a_time: usize,
    pause_ms: u64,
    short_ms: u64,
    steps_max: usize,
}

fn variable<T: FromStr>(name: &str, default: T) -> T {
    let name = format!("KEYMELD_KILL_{name}");
    match env::var(&name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")),
        Err(_) => default,
    }
}

impl Sizes {
    fn read() -> Sizes {
        let drawn = u64::from_be_bytes(os_entropy().bytes().expect("random")) >> 32;
        Sizes {
            seed: variable("SEED", drawn),
            keygens: variable("KEYGENS", 12),
            signings: variable("SIGNINGS", 30),
            at_a_time: variable("CONCURRENCY", 6),
            pause_ms: variable("PAUSE_MS", 1_500),
            short_ms: variable("SHORT_MS", 3_000),
            steps_max: variable("STEPS_MAX", 12),
        }
    }

    /// One keygen in eight is never to be complete; the others share the signings.
    fn plans(&self) -> Vec<KeygenPlan> {
        let complete = self.keygens - self.keygens / 8;
        let share = |number| (self.signings + complete - 1 - number) / complete;
        let signings = |number| if number < complete { share(number) } else { 0 };
        (0..self.keygens).map(|number| KeygenPlan::draw(self.seed, number, signings(number))).collect()
    }
}

/// This command, or the two programs that are named.
fn setup(pause_ms: u64) -> Setup {
    let mut setup = Setup::of(Path::new(env!("CARGO_BIN_EXE_keymeld")), ENCLAVES);
    for (name, program) in [("GATEWAY", &mut setup.gateway), ("ENCLAVE", &mut setup.enclave)] {
        if let Ok(path) = env::var(format!("KEYMELD_KILL_{name}")) {
            *program = Program { path: path.into(), arguments: Vec::new() };
        }
    }
    // A process that is stopped is found silent well before it goes on.
    let (interval, silence) = (pause_ms / 8, pause_ms / 4);
    setup.gateway_tables =
        format!("[link]\nping_interval_ms = {interval}\nping_timeout_ms = {silence}\nrequest_ms = 10000\n");
    setup
}

#[test]
fn what_was_acknowledged_holds_and_nothing_else_is_signed_whatever_is_killed() {
    let sizes = Sizes::read();
    eprintln!("kill matrix: KEYMELD_KILL_SEED={}", sizes.seed);
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let children = Children::start_as(&setup(sizes.pause_ms), home).expect("starts");
    let access = Access::to(&children);
    let mut chaos = Chaos {
        children,
        access: access.clone(),
        database: home.join("keymeld.db"),
        pause: Duration::from_millis(sizes.pause_ms),
        faketime: env::var_os("KEYMELD_KILL_FAKETIME").map(PathBuf::from),
        short_ms: sizes.short_ms,
        struck: BTreeMap::new(),
    };
    let began = Instant::now();
    let mut entries = work_through(&sizes, &access, home, &mut chaos);
    let elapsed = began.elapsed();
    for fault in ["all killed", "disk full", "gateway stopped", "enclave stopped"] {
        assert!(chaos.struck.contains_key(fault), "too little was done for: {fault}");
    }
    restart_all(&mut chaos.children);
    check(&mut entries);
    let told = |entry: &&Entry| entry.key.is_ok();
    let signed = entries.iter().flat_map(|entry| &entry.signings).filter(|one| one.told.is_ok()).count();
    let requested: usize = entries.iter().map(|entry| entry.signings.len()).sum();
    let keys = entries.iter().filter(told).count();
    drop(chaos.children);
    check_rows(&chaos.database, home);
    let struck: Vec<String> = chaos.struck.iter().map(|(name, count)| format!("{name} {count}")).collect();
    eprintln!(
        "kill matrix: seed {}, {} keygens ({keys} keys), {requested} signings ({signed} signed), {}, {} ms",
        sizes.seed,
        entries.len(),
        struck.join(", "),
        elapsed.as_millis()
    );
}

fn work_through(sizes: &Sizes, access: &Access, home: &Path, chaos: &mut Chaos) -> Vec<Entry> {
    let plans = sizes.plans();
    let next = AtomicUsize::new(0);
    let entries = Mutex::new(Vec::new());
    let schedule = Schedule::new(sizes.seed, ENCLAVES, chaos.faketime.is_some(), sizes.steps_max);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..sizes.at_a_time {
            let (steps, plans, next, entries) = (tell.clone(), &plans, &next, &entries);
            scope.spawn(move || {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Beside the plan's own sequence.
                    let random = Random::new(!sizes.seed, plan.number as u64);
                    let steps = steps.clone();
                    let mut work = Work { access, home, steps, short_ms: sizes.short_ms, random };
                    let entry = work.keygen(plan);
                    entries.lock().expect("nobody panics with it").extend(entry);
                }
            });
        }
        drop(tell);
        chaos.run(schedule, &told);
    });
    entries.into_inner().expect("nobody panics with it")
}

/// Everything that anybody was told is so, for every participant, read anew from its folder.
fn check(entries: &mut [Entry]) {
    for entry in entries {
        entry.participants = entry.participants.drain(..).map(Participant::again).collect();
        for one in &mut entry.participants {
            match one.try_run(Job::AwaitKey) {
                Ok(Done::Key(key)) => assert_eq!(Ok(key.output_key()), entry.key),
                Ok(other) => panic!("{other:?}"),
                Err(fault) => assert_eq!(Err(reason(fault)), entry.key),
            }
            for signing in &entry.signings {
                let now = one.try_signatures(signing.signing_id).map_err(reason);
                assert_eq!(now, signing.told, "{}", signing.signing_id);
                let signed = now.unwrap_or_default();
                let messages: Vec<_> = signed.iter().map(|one| one.message).collect();
                // All of what was consented to, and nothing where anybody did not consent.
                assert_eq!(messages, signing.authorised, "{}", signing.signing_id);
            }
        }
    }
}

/// The gateway holds no session that nobody asked for, and none that has not ended but slots that the test
/// itself reserved.
pub(crate) fn check_rows(database: &Path, home: &Path) {
    let rows = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opens");
    let ids = |sql| -> BTreeSet<String> {
        let mut statement = rows.prepare(sql).expect("a statement");
        let ids = statement.query_map([], |row| row.get(0)).expect("rows");
        ids.map(|id| id.expect("a text")).collect()
    };
    let mut asked = BTreeSet::new();
    for keygen in fs::read_dir(home).expect("a folder").flatten() {
        let coordinator = keygen.path().join("coordinator");
        let files = fs::read_dir(coordinator).into_iter().flatten().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        let id = |name: String| Some(name.strip_prefix("request-")?.strip_suffix(".json")?.replace('-', ""));
        asked.extend(names.filter_map(id));
    }
    let there = ids("SELECT DISTINCT lower(hex(id)) FROM rows WHERE family = 2");
    assert!(there.is_subset(&asked), "{there:?} {asked:?}");
    let open = ids("SELECT lower(hex(id)) FROM rows WHERE open = 1 AND family = 2");
    assert!(open.is_empty(), "{open:?}");
}
