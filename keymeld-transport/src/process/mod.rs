//! What a long-running program needs around its machines: settings, arguments, a log, an end.
//!
//! Both programs start alike: read settings ([`settings`]), start the log ([`log`]), bind, say where on
//! standard output ([`announce`]), and wait for a reason to stop ([`stop`]).

pub mod arguments;
pub mod log;
pub mod settings;
pub mod stop;

use std::io::{self, Write};

use serde::Serialize;

/// How a process ends after one of its own invariants broke (`EX_SOFTWARE`).
pub const BROKEN_EXIT_CODE: i32 = 70;

#[derive(Serialize)]
struct Announcement<'a> {
    listening: &'a str,
}

/// Says on standard output where a program listens: one line, `{"listening":"ADDRESS"}`.
///
/// # Errors
/// What the operating system says.
pub fn announce(listening: &str) -> io::Result<()> {
    let mut line = serde_json::to_string(&Announcement { listening }).expect("a struct of one text");
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// Held by a thread that the whole process must not outlive: where it panics, the process ends at once with
/// [`BROKEN_EXIT_CODE`].
///
/// It exits instead of aborting, so that no secret gets into a core file.
#[derive(Debug)]
#[must_use = "it works while it is held"]
pub struct EndsWithThread;

impl Drop for EndsWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("an invariant broke; the process ends");
            std::process::exit(BROKEN_EXIT_CODE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::{BROKEN_EXIT_CODE, EndsWithThread};

    const CHILD: &str = "KEYMELD_TEST_PANICKING_CHILD";

    #[test]
    fn a_panic_of_a_guarded_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let guarded = thread::spawn(|| {
                let _guard = EndsWithThread;
                panic!("as the test wants");
            });
            // Never seen by the parent: the process ends first.
            let _ = guarded.join();
            std::process::exit(0);
        }
        let this_test = "process::tests::a_panic_of_a_guarded_thread_ends_the_process";
        let program = std::env::current_exe().expect("a program");
        let child = Command::new(program).args(["--exact", this_test]).env(CHILD, "1").output();
        assert_eq!(child.expect("runs").status.code(), Some(BROKEN_EXIT_CODE));
        thread::spawn(|| drop(EndsWithThread))
            .join()
            .expect("a guard that is dropped without a panic does nothing");
    }
}
