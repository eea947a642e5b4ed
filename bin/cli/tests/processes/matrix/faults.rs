//! Faults brought upon real processes while participants work.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use keymeld::children::{Children, Service};

use super::plan::{Fault, Schedule, Strike, Victim};
use crate::party::Access;

/// Attempts to start again where a passing connection has the port.
const STARTS_MAX: usize = 50;
/// Reservations until a database with a limit is full.
const RESERVATIONS_MAX: usize = 20_000;
/// How often a gateway that has just begun is asked until its enclaves are there, and how long after each answer.
const AWAY_MAX: usize = 200;
const AWAY_PAUSE: Duration = Duration::from_millis(100);
/// How long participants have to go on while the clock is back.
const GO_ON_MAX: Duration = Duration::from_secs(10);
/// SQLite's pages.
const PAGE_BYTES: u64 = 4_096;
/// How far a clock is set back.
pub(super) const HOUR_MS: i64 = 3_600_000;

pub(super) struct Chaos {
    pub(super) children: Children,
    pub(super) access: Access,
    pub(super) database: PathBuf,
    pub(super) pause: Duration,
    /// libfaketime, where it is there.
    pub(super) faketime: Option<PathBuf>,
    pub(super) short_ms: u64,
    /// How often each fault struck.
    pub(super) struck: BTreeMap<&'static str, usize>,
}

impl Chaos {
    /// Strikes until nobody works any more; then everything runs as it should.
    pub(super) fn run(&mut self, mut schedule: Schedule, steps: &Receiver<()>) {
        loop {
            let Strike { steps: count, after, fault } = schedule.draw();
            for _ in 0..count {
                if steps.recv().is_err() {
                    return;
                }
            }
            // Not to wait for anything: it makes the moment a random one.
            thread::sleep(after);
            self.strike(fault, steps);
        }
    }

    fn strike(&mut self, fault: Fault, steps: &Receiver<()>) {
        let name = match fault {
            Fault::Kill(Victim::Gateway) => "gateway killed",
            Fault::Kill(Victim::Enclave(_)) => "enclave killed",
            Fault::KillAll => "all killed",
            Fault::Pause(Victim::Gateway) => "gateway stopped",
            Fault::Pause(Victim::Enclave(_)) => "enclave stopped",
            Fault::DiskFull => "disk full",
            Fault::ClockBack => "clock set back",
        };
        *self.struck.entry(name).or_default() += 1;
        match fault {
            Fault::Kill(victim) => {
                let service = victim.among(&mut self.children);
                service.kill().expect("kills");
                start(service, &[]);
            }
            Fault::KillAll => restart_all(&mut self.children),
            Fault::Pause(victim) => {
                let (pause, process_id) = (self.pause, victim.among(&mut self.children).process_id());
                signal(process_id, "STOP");
                thread::sleep(pause);
                signal(process_id, "CONT");
            }
            Fault::DiskFull => self.fill_disk(),
            Fault::ClockBack => self.set_clock_back(steps),
        }
    }

    fn restart_gateway(&mut self, environment: &[(&str, &str)]) {
        self.children.gateway.kill().expect("kills");
        start(&mut self.children.gateway, environment);
    }

    /// Restarts the gateway with no room for another page, until it says that it has none.
    fn fill_disk(&mut self) {
        let pages = fs::metadata(&self.database).expect("a database").len() / PAGE_BYTES;
        let limit = pages.max(1).to_string();
        self.restart_gateway(&[("KEYMELD_GATEWAY_DATABASE_PAGES_MAX", &limit)]);
        let full = (0..RESERVATIONS_MAX)
            .any(|_| self.access.reserve(0, self.short_ms).is_some_and(|code| code == "disk-full"));
        assert!(full, "the database's limit is never reached");
        self.restart_gateway(&[]);
    }

    /// Reserves by the gateway's clock, once it has found its enclaves again.
    fn reserve_an_hour_ago(&self) -> Option<String> {
        for _ in 0..AWAY_MAX {
            let code = self.access.reserve(-HOUR_MS, self.short_ms);
            if code.as_deref() != Some("enclave-away") {
                return code;
            }
            thread::sleep(AWAY_PAUSE);
        }
        panic!("its enclaves do not come back");
    }

    /// Restarts the gateway an hour earlier, until participants have found out and gone on.
    fn set_clock_back(&mut self, steps: &Receiver<()>) {
        let library = self.faketime.clone().expect("only where the clock can be set");
        let library = library.to_str().expect("UTF-8");
        self.restart_gateway(&[
            ("LD_PRELOAD", library),
            ("FAKETIME", "-3600"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]);
        assert_eq!(self.access.reserve(0, self.short_ms).as_deref(), Some("proof-stale"));
        assert_eq!(self.reserve_an_hour_ago(), None);
        // Whoever waits for a session's end waits for the clock: in the end that can be all of them.
        let until = Instant::now() + GO_ON_MAX;
        for _ in 0..20 {
            if steps.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
                break;
            }
        }
        self.restart_gateway(&[]);
    }
}

/// kill -9 of everything, and a start of everything.
pub(crate) fn restart_all(children: &mut Children) {
    children.gateway.kill().expect("kills");
    for enclave in &mut children.enclaves {
        enclave.kill().expect("kills");
    }
    for enclave in &mut children.enclaves {
        start(enclave, &[]);
    }
    start(&mut children.gateway, &[]);
}

/// Starts a process that was killed. While it is dead a client's connection may hold its port for a moment.
pub(crate) fn start(service: &mut Service, environment: &[(&str, &str)]) {
    let started = (0..STARTS_MAX).any(|_| service.restart_in(environment).is_ok());
    assert!(started, "it does not start again");
}

pub(crate) fn signal(process_id: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process_id.to_string()).status();
    assert!(status.expect("kill runs").success());
}
