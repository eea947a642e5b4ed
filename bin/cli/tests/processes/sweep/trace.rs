//! strace: it numbers the calls by which a thread changes files, and kills a process at one of them.
//!
//! strace counts the calls of one name and one thread. All files are changed by two kinds of threads, whose calls have an
//! order: a process's first one, which starts with the program and is traced from its first instruction on, and the
//! gateway's core thread, to which strace attaches before any enclave can be reached, so before it has anything to write.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use keymeld::children::{Program, Service};

/// What changes files.
const CALLS: [&str; 15] = [
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
];

/// A call, by its number among those of the same name that its thread makes, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) number: usize,
}

/// Which thread of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thread {
    First,
    Core,
}

/// What strace does with what it sees.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Logs the calls of all threads.
    Count,
    /// Kills the process when the first thread comes to that call.
    Kill(Call),
}

pub(super) fn is_there() -> bool {
    let version =
        Command::new("strace").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// The log of the process with that file of settings.
pub(super) fn log(home: &Path, config: &str) -> PathBuf {
    home.join(format!("{config}.trace"))
}

/// Makes programs of setups run under strace: each process of `traced`, named by its file of settings, when it is started
/// for the first time.
pub(super) struct Tracing {
    script: PathBuf,
}

impl Tracing {
    pub(super) fn write(home: &Path, traced: &[(String, Purpose)]) -> Tracing {
        let mut text = String::from("case \"$*\" in\n");
        for (config, purpose) in traced {
            let how = match purpose {
                // A processor's kernel need not have all of them.
                Purpose::Count => format!("-f -y -s 0 -e trace=?{}", CALLS.join(",?")),
                Purpose::Kill(call) => kill_at(*call),
            };
            let (log, mark) = (log(home, config), home.join(format!("{config}.traced")));
            // -D leaves the process the child that it would be without.
            text.push_str(&format!(
                "*/{config}) mkdir {mark:?} 2>/dev/null && exec strace -D -qq -o {log:?} {how} \"$@\";;\n"
            ));
        }
        text.push_str("esac\nexec \"$@\"\n");
        let script = home.join("start.sh");
        fs::write(&script, text).expect("writes");
        Tracing { script }
    }

    pub(super) fn wrap(&self, program: &mut Program) {
        let mut arguments: Vec<OsString> = vec![self.script.clone().into(), program.path.clone().into()];
        arguments.append(&mut program.arguments);
        *program = Program { path: "/bin/sh".into(), arguments };
    }
}

/// What has a process killed at that call, as arguments of strace.
pub(super) fn kill_at(Call { name, number }: Call) -> String {
    format!("-e trace={name} -e inject={name}:signal=SIGKILL:when={number}")
}

/// The same of the gateway's core thread alone, which is held up for 10 ms wherever SQLite takes a lock. Whatever it let out
/// before its writes is then out when it is killed at them.
pub(super) fn kill_slowly_at(Call { name, number }: Call) -> String {
    format!(
        "-e trace={name},fcntl -e inject=fcntl:delay_enter=10000 -e inject={name}:signal=SIGKILL:when={number}"
    )
}

/// Traces the gateway's core thread from now on, as the arguments say.
pub(super) fn attach(gateway: &Service, how: &str, log: &Path) -> Child {
    let thread = core_thread(gateway).to_string();
    let mut strace = Command::new("strace")
        .args(["-p", &thread, "-o"])
        .arg(log)
        .args(how.split(' '))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace runs");
    let mut said = String::new();
    let mut words = BufReader::new(strace.stderr.take().expect("it is piped"));
    while !said.contains("attached") {
        let count = words.read_line(&mut said).expect("reads");
        assert!(count > 0, "strace does not attach: {said}");
    }
    strace
}

fn core_thread(gateway: &Service) -> u32 {
    let is_core = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "core")
    };
    // A thread gives itself its name, soon after it is started.
    let core = loop {
        let mut threads =
            fs::read_dir(format!("/proc/{}/task", gateway.process_id())).expect("it runs").flatten();
        match threads.find(is_core) {
            Some(core) => break core,
            None => thread::yield_now(),
        }
    };
    core.file_name().to_string_lossy().parse().expect("a number")
}

/// Whether the traced process was killed at that call and not elsewhere.
pub(super) fn has_killed_at(Call { name, number }: Call, log: &Path) -> bool {
    let text = fs::read_to_string(log).expect("a log");
    let calls = text.lines().filter(|line| line.split_once('(').is_some_and(|(called, _)| called == name));
    text.contains("+++ killed by SIGKILL +++") && calls.count() == number
}

/// The calls that change files below `home`, of each thread that makes any, the first thread first.
///
/// Sockets and standard output are written to as well; those calls have numbers too.
pub(super) fn changes(home: &Path, config: &str, first: u32) -> Vec<Vec<Call>> {
    let text = fs::read_to_string(log(home, config)).expect("a log");
    let home = home.to_str().expect("UTF-8");
    let mut threads: Vec<(u32, Vec<Call>)> = vec![(first, Vec::new())];
    let mut counts: BTreeMap<(u32, &str), usize> = BTreeMap::new();
    for line in text.lines() {
        let (thread, what) = line.split_once(' ').expect("a thread and a call");
        let thread: u32 = thread.parse().expect("a number");
        // Other lines are ends of calls and of threads.
        let Some((name, arguments)) = what.trim_start().split_once('(') else { continue };
        let Some(name) = CALLS.into_iter().find(|call| *call == name) else { continue };
        let number = counts.entry((thread, name)).or_default();
        *number += 1;
        if !arguments.contains(home) {
            continue;
        }
        let at = threads.iter().position(|(known, _)| *known == thread).unwrap_or_else(|| {
            threads.push((thread, Vec::new()));
            threads.len() - 1
        });
        threads[at].1.push(Call { name, number: *number });
    }
    threads.into_iter().map(|(_, calls)| calls).collect()
}
