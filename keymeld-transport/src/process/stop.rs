//! Signals and the like: reasons to stop, among them a parent that is gone, and to read files again.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Why a program is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SIGTERM or SIGINT.
    Signal,
    /// Standard input was closed: whoever started the program has ended.
    InputClosed,
}

/// Waits for reasons to stop.
#[derive(Debug)]
pub struct Stops {
    reasons: Receiver<StopReason>,
    /// Keeps the channel open where no thread holds its other end any more.
    _sender: Sender<StopReason>,
}

impl Stops {
    /// Takes SIGTERM and SIGINT over, and watches standard input if asked to.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn watch(standard_input: bool) -> io::Result<Stops> {
        let (sender, reasons) = mpsc::channel();
        let (mut signalled, raised) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, raised.try_clone()?)?;
        }
        spawn("stop-signal", sender.clone(), StopReason::Signal, move || {
            // A byte for each signal.
            let _ = signalled.read_exact(&mut [0]);
        })?;
        if standard_input {
            spawn("stop-input", sender.clone(), StopReason::InputClosed, || {
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            })?;
        }
        Ok(Stops { reasons, _sender: sender })
    }

    /// Blocks until there is one.
    pub fn wait(&self) -> StopReason {
        self.reasons.recv().expect("a sender is held beside the receiver")
    }
}

/// Takes SIGHUP over: a thread calls `then` after each, once where several came meanwhile.
///
/// # Errors
/// What the operating system says.
pub fn on_hangup(mut then: impl FnMut() + Send + 'static) -> io::Result<()> {
    let (mut signalled, raised) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGHUP, raised)?;
    let run = move || {
        while matches!(signalled.read(&mut [0; 64]), Ok(1..)) {
            then();
        }
    };
    thread::Builder::new().name("hangup".to_owned()).spawn(run).map(drop)
}

fn spawn(
    name: &str,
    sender: Sender<StopReason>,
    reason: StopReason,
    wait: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        wait();
        // Nobody may wait any more.
        let _ = sender.send(reason);
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}
