//! One run: processes in a folder of their own, a keygen and a signing, and a process that dies at one point of it.

use std::fmt;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use keymeld::children::{Children, Service, Setup};
use keymeld_core::artifact::intent::Origin;
use keymeld_core::artifact::registration::Rules;
use keymeld_core::artifact::result::VerifiedSignature;
use keymeld_core::bytes::{Message, XOnlyKey};
use keymeld_core::client::{Done, Invitee, Job, Plan};
use keymeld_core::id::SigningId;
use rusqlite::Connection;

use super::relay::{Boundary, Relay, Strike};
use super::setup;
use super::trace::{self, Call, Purpose, Thread, Tracing};
use crate::matrix::{Victim, check_rows, restart_all, signal, start};
use crate::party::{Access, Participant, careful, invited_with, planning, unix_ms};

pub(super) const ENCLAVES: usize = 2;
const PARTICIPANTS: usize = 3;
/// The one invited participant whose rules want an approval; the others delegate theirs.
const APPROVER: usize = 1;
const TEXTS: [&str; 2] = ["first of two", "second of two"];

/// A frame that follows the last answer to a participant comes within this time.
const TRAILING: Duration = Duration::from_millis(1_500);

/// Where a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    /// At a call of it that changes a file, before it is made.
    Write { victim: Victim, thread: Thread, call: Call },
    /// At a boundary of a frame on the link with that enclave.
    Frame { enclave: usize, boundary: Boundary, victim: Victim },
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |victim: &Victim| match victim {
            Victim::Gateway => "gateway".to_owned(),
            Victim::Enclave(at) => format!("enclave {}", at + 1),
        };
        match self {
            Point::Write { victim, thread, call: Call { name: call, number } } => {
                write!(f, "{} at {call} {number} of its {thread:?} thread", name(victim))
            }
            Point::Frame { enclave, boundary: Boundary { direction, number, side }, victim } => {
                let link = enclave + 1;
                write!(f, "{} {side:?} frame {number} {direction:?} on link {link}", name(victim))
            }
        }
    }
}

/// What a run without a fault counts.
#[derive(Debug)]
pub(super) struct Counts {
    /// Calls that change files, where strace is there: of the gateway's first thread and its core thread, and of
    /// each enclave's first thread.
    pub(super) writes: Vec<(Victim, Thread, Vec<Call>)>,
    /// Frames on each link, to the enclave and to the gateway.
    pub(super) frames: Vec<[usize; 2]>,
}

/// The name of the settings of a process.
fn config(victim: Victim) -> String {
    match victim {
        Victim::Gateway => "gateway.toml".into(),
        Victim::Enclave(at) => format!("enclave-{}.toml", at + 1),
    }
}

fn everybody() -> impl Iterator<Item = Victim> {
    std::iter::once(Victim::Gateway).chain((0..ENCLAVES).map(Victim::Enclave))
}

/// The processes, and what is between them.
struct Stage {
    // Before the relays: their connections end with the processes.
    children: Children,
    relays: Vec<Relay>,
}

impl Stage {
    /// Starts the processes; the gateway does not reach any enclave yet.
    fn start(mut setup: Setup, home: &Path, traced: &[(String, Purpose)]) -> Stage {
        if !traced.is_empty() {
            let tracing = Tracing::write(home, traced);
            tracing.wrap(&mut setup.gateway);
            tracing.wrap(&mut setup.enclave);
            // Killed while it starts, it is started at once again.
            setup.starts_max = 2;
        }
        let bind = |at| Relay::bind(&home.join(format!("link-{}", at + 1)));
        let relays: Vec<Relay> = (0..ENCLAVES).map(bind).collect();
        let reach = |at: usize, address: &str| relays[at].lead_to(address);
        let children = Children::start_through(&setup, home, reach).expect("starts");
        Stage { children, relays }
    }

    fn open(&mut self) {
        self.relays.iter_mut().for_each(Relay::open);
    }

    fn frames(&self) -> Vec<[usize; 2]> {
        self.relays.iter().map(Relay::counts).collect()
    }
}

/// What participants were told.
pub(super) struct Told {
    participants: Vec<Participant>,
    key: XOnlyKey,
    signings: Vec<Signing>,
}

struct Signing {
    signing_id: SigningId,
    requested: Vec<Message>,
    signed: Vec<VerifiedSignature>,
}

/// Steps of the work that the gateway has acknowledged.
#[derive(Default)]
pub(super) struct Acknowledged(AtomicUsize);

/// What the database holds from the moment on at which the step with that number is acknowledged.
const KEPT: [&str; 9] = [
    "SELECT count(*) = 1 FROM rows WHERE family = 1 AND part = 0",
    "SELECT count(*) = 1 FROM rows WHERE family = 1 AND part = 0 AND version > 1",
    "SELECT count(*) >= 1 FROM rows WHERE family = 1 AND part >= 100",
    "SELECT count(*) >= 2 FROM rows WHERE family = 1 AND part >= 100",
    "SELECT count(*) >= 3 FROM rows WHERE family = 1 AND part >= 100",
    "SELECT count(*) = 1 FROM rows WHERE family = 1 AND part = 0 AND NOT open",
    "SELECT count(*) = 1 FROM rows WHERE family = 2 AND part = 0",
    "SELECT count(*) >= 1 FROM rows WHERE family = 2 AND part > 1",
    "SELECT count(*) = 1 FROM rows WHERE family = 2 AND part = 1",
];

/// An answer that is on its way is read within this time.
const ANSWERED: Duration = Duration::from_millis(50);

impl Acknowledged {
    fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What a dead gateway has left, to be looked at when it is back.
    fn left(&self, home: &Path) -> Left {
        thread::sleep(ANSWERED);
        let (acknowledged, folder) = (self.0.load(Ordering::Relaxed), home.join("left"));
        fs::create_dir(&folder).expect("a folder");
        for name in ["keymeld.db", "keymeld.db-wal"] {
            fs::copy(home.join(name), folder.join(name)).expect("copies");
        }
        Left { acknowledged, folder }
    }
}

struct Left {
    acknowledged: usize,
    folder: PathBuf,
}

impl Left {
    /// The clients heal many a loss by asking again: what was acknowledged has to be there by itself.
    fn check(&self) {
        let rows = Connection::open(self.folder.join("keymeld.db")).expect("opens");
        for (at, kept) in KEPT.iter().enumerate().take(self.acknowledged) {
            let is_kept: bool = rows.query_row(kept, [], |row| row.get(0)).expect("rows");
            assert!(is_kept, "step {} was acknowledged and is lost", at + 1);
        }
    }
}

/// A keygen and a signing, one step after the other. Each step has to succeed.
pub(super) fn work(access: &Access, home: &Path, acknowledged: &Acknowledged) -> Told {
    let delegated = Rules::delegated(unix_ms() + 3_600_000);
    let plan = Plan::new(access.url.clone(), vec![Invitee::default(); PARTICIPANTS - 1], delegated);
    let people = home.join("people");
    let mut first = planning(access, &people, plan);
    // Slots are dealt out to enclaves that are ready.
    access.await_enclaves();
    first.run(Job::Reserve);
    acknowledged.one_more();
    first.run(Job::Init);
    acknowledged.one_more();
    let rules = |at| if at + 1 == APPROVER { careful() } else { delegated };
    let mut participants = invited_with(&first, &people, rules);
    participants.insert(0, first);
    for one in &mut participants {
        one.run(Job::Join);
        acknowledged.one_more();
    }
    for one in &mut participants {
        assert!(matches!(one.run(Job::AwaitKey), Done::Key(_)));
    }
    let key = participants[0].output_key();
    acknowledged.one_more();
    let mut told = Told { participants, key, signings: Vec::new() };
    told.sign_telling(&TEXTS, acknowledged);
    told.confirm();
    told
}

impl Told {
    /// Has something else signed.
    pub(super) fn sign(&mut self, texts: &[&str]) {
        self.sign_telling(texts, &Acknowledged::default());
    }

    fn sign_telling(&mut self, texts: &[&str], acknowledged: &Acknowledged) {
        let message = |text: &&str| Origin::Text((*text).into()).message().expect("a text");
        let requested = texts.iter().map(message).collect();
        let signing_id = self.participants[0].request(texts);
        acknowledged.one_more();
        self.participants[APPROVER].approve(signing_id);
        acknowledged.one_more();
        let signed = self.participants[0].signatures(signing_id);
        acknowledged.one_more();
        self.signings.push(Signing { signing_id, requested, signed });
    }

    /// Everybody is told the same, and what was requested is signed and nothing else.
    pub(super) fn confirm(&mut self) {
        for one in &mut self.participants {
            assert_eq!(one.output_key(), self.key);
            for Signing { signing_id, requested, signed } in &self.signings {
                assert_eq!(one.signatures(*signing_id), *signed);
                let messages: Vec<_> = signed.iter().map(|one| one.message).collect();
                assert_eq!(messages, *requested);
            }
        }
    }

    /// Asks again, each participant as a new process would.
    pub(super) fn ask_again(mut self) {
        self.participants = self.participants.into_iter().map(Participant::again).collect();
        for one in &mut self.participants {
            assert!(matches!(one.run(Job::AwaitKey), Done::Key(_)));
        }
        self.confirm();
    }
}

/// Everything is killed and started again, and has to tell the same as before.
pub(super) fn check(mut children: Children, told: Told, home: &Path) {
    restart_all(&mut children);
    told.ask_again();
    drop(children);
    check_rows(&home.join("keymeld.db"), home);
}

/// A run in which nothing dies until it is over.
pub(super) fn count() -> Counts {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let traced: Vec<_> = match trace::is_there() {
        true => everybody().map(|victim| (config(victim), Purpose::Count)).collect(),
        false => Vec::new(),
    };
    let mut stage = Stage::start(setup(), home, &traced);
    stage.open();
    let told = work(&Access::to(&stage.children), home, &Acknowledged::default());
    assert_eq!(told.participants[0].enclaves(), ENCLAVES, "an enclave has nobody");
    let frames = settled(&stage);
    let mut writes = Vec::new();
    for victim in everybody().take(traced.len()) {
        let first = victim.among(&mut stage.children).process_id();
        let mut threads = trace::changes(home, &config(victim), first).into_iter();
        writes.push((victim, Thread::First, threads.next().expect("a first thread")));
        let core = threads.next();
        assert_eq!(core.is_some(), victim == Victim::Gateway, "who writes?");
        writes.extend(core.map(|changes| (victim, Thread::Core, changes)));
        assert_eq!(threads.next(), None, "who else writes?");
    }
    check(stage.children, told, home);
    Counts { writes, frames }
}

/// The frames when none came for a while.
fn settled(stage: &Stage) -> Vec<[usize; 2]> {
    let mut frames = stage.frames();
    loop {
        thread::sleep(TRAILING / 3);
        let now = stage.frames();
        if now == frames {
            return frames;
        }
        frames = now;
    }
}

/// A run in which the victim dies at the point, if the run comes to it, and comes back at once. Whether it did.
pub(super) fn run(point: Point) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let traced = match point {
        Point::Write { victim, thread: Thread::First, call } => {
            vec![(config(victim), Purpose::Kill(call))]
        }
        Point::Write { thread: Thread::Core, .. } | Point::Frame { .. } => Vec::new(),
    };
    let mut stage = Stage::start(setup(), home, &traced);
    let access = Access::to(&stage.children);
    let acknowledged = Acknowledged::default();
    let (told, died) = match point {
        Point::Write { victim, thread: Thread::First, call } => {
            let died = trace::has_killed_at(call, &trace::log(home, &config(victim)));
            stage.open();
            (work(&access, home, &acknowledged), died)
        }
        Point::Write { victim, thread: Thread::Core, call } => {
            let log = home.join("core.trace");
            let mut strace = trace::attach(&stage.children.gateway, &trace::kill_slowly_at(call), &log);
            stage.open();
            let victim = victim.among(&mut stage.children);
            let process_id = victim.process_id();
            let dies = |victim: &mut Service, came: &AtomicBool| {
                victim.wait().expect("waits");
                came.store(true, Ordering::Relaxed);
                let left = acknowledged.left(home);
                start(victim, &[]);
                left.check();
            };
            let (told, died) = while_struck(
                victim,
                dies,
                || work(&access, home, &acknowledged),
                || signal(process_id, "KILL"),
            );
            strace.wait().expect("it ends with the gateway");
            (told, died && trace::has_killed_at(call, &log))
        }
        Point::Frame { enclave, boundary, victim } => {
            let dies = |service: &mut Service, dead: Sender<()>| {
                service.kill().expect("kills");
                dead.send(()).expect("the relay waits for it");
                let left = (victim == Victim::Gateway).then(|| acknowledged.left(home));
                start(service, &[]);
                left.iter().for_each(Left::check);
            };
            at_frame(&mut stage, enclave, boundary, victim, dies, || work(&access, home, &acknowledged))
        }
    };
    check(stage.children, told, home);
    died
}

/// A run in which the victim stands still for a while after a frame. Whether it came to that.
pub(super) fn stop(enclave: usize, boundary: Boundary, victim: Victim, pause: Duration) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let mut setup = setup();
    // A process that stands still is found silent well before it goes on.
    if pause < Duration::from_secs(10) {
        setup.gateway_tables = "[link]\nping_interval_ms = 200\nping_timeout_ms = 400\n".into();
    }
    let mut stage = Stage::start(setup, home, &[]);
    let access = Access::to(&stage.children);
    let acknowledged = Acknowledged::default();
    let stops = |victim: &mut Service, stopped: Sender<()>| {
        signal(victim.process_id(), "STOP");
        stopped.send(()).expect("the relay waits for it");
        thread::sleep(pause);
        signal(victim.process_id(), "CONT");
    };
    let (told, came) =
        at_frame(&mut stage, enclave, boundary, victim, stops, || work(&access, home, &acknowledged));
    check(stage.children, told, home);
    came
}

/// Lets the gateway reach the enclaves and works while something is done to the victim at a frame; the frame waits until
/// the sender is answered. Whether it came to that.
fn at_frame<T>(
    stage: &mut Stage,
    enclave: usize,
    boundary: Boundary,
    victim: Victim,
    strike: impl FnOnce(&mut Service, Sender<()>) + Send,
    work: impl FnOnce() -> T,
) -> (T, bool) {
    let (strikes, struck) = mpsc::channel::<Strike>();
    stage.relays[enclave].arm(boundary, strikes);
    stage.open();
    let blow = move |victim: &mut Service, came: &AtomicBool| {
        // Nobody asks any more where the work is done.
        if let Ok(answer) = struck.recv() {
            came.store(true, Ordering::Relaxed);
            strike(victim, answer);
        }
    };
    let Stage { children, relays } = stage;
    while_struck(victim.among(children), blow, work, || relays[enclave].disarm())
}

/// Works while the victim is struck, or until `give_up` has told that it need not be any more. Whether it was before.
fn while_struck<T>(
    victim: &mut Service,
    blow: impl FnOnce(&mut Service, &AtomicBool) + Send,
    work: impl FnOnce() -> T,
    give_up: impl FnOnce(),
) -> (T, bool) {
    let came = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || blow(victim, came));
        // Whoever waits for a frame or a death is told in any case.
        let done = panic::catch_unwind(AssertUnwindSafe(work));
        let began = Instant::now();
        while done.is_ok() && !came.load(Ordering::Relaxed) && began.elapsed() < TRAILING {
            thread::sleep(TRAILING / 30);
        }
        let came = came.load(Ordering::Relaxed);
        if !came {
            give_up();
        }
        (done.unwrap_or_else(|panic| panic::resume_unwind(panic)), came)
    })
}
