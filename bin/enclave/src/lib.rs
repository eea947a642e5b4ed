//! KeyMeld's enclave: keygen, nonces and partial signatures.
//!
//! A thin blocking shell around [`keymeld_core::enclave::Enclave`]: one machine for each worker thread.
//! A frame goes to the worker that its routing id names, so a session always meets the same machine; frames
//! without a session, those about identities, go to the first worker, which shares what it opens. Security
//! module and key service have a thread each, so that no worker waits for them.
//!
//! **Invariant:** nothing blocks on a worker's inbox and it cannot grow without bound: requests in it are
//! counted by the link's limits, answers by the machine's.
//!
//! **Invariant:** a panic of any of these threads ends the process: an enclave never signs on.
//!
//! A build without the feature `dev` takes settings and refuses to start: it has no security module yet.
//!
//! Modules: `config` (settings), `platform` (what the enclave trusts), `worker`, `service` (the threads of
//! security module and key service), `clock`; with `dev` also `development` and `dev_keyring`.

#[cfg(all(feature = "dev", feature = "production"))]
compile_error!(
    "a production enclave holds no development code: the features `dev` and `production` exclude each other"
);

mod clock;
mod config;
#[cfg(feature = "dev")]
mod dev_keyring;
#[cfg(feature = "dev")]
pub mod development;
mod platform;
mod service;
mod worker;

use std::hash::RandomState;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keymeld_core::enclave::{Enclave, Event};
use keymeld_transport::link::address::Address;
use keymeld_transport::link::server::{LinkServer, Listener, Service, serve};
use keymeld_transport::process::announce;
use keymeld_transport::process::log;
use keymeld_transport::process::settings::SettingsError;
use keymeld_transport::process::stop::Stops;

use crate::platform::Platform;
use crate::service::{KeyQuestion, ModuleQuestion};
use crate::worker::{Inbound, Worker, shard};

#[cfg(feature = "dev")]
pub use config::DevelopmentSettings;
pub use config::{Config, LinkSettings, Pcr0};
pub use platform::PlatformError;

/// What the names of environment variables begin with.
pub const ENVIRONMENT_PREFIX: &str = "KEYMELD_ENCLAVE_";

/// Why the enclave does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are not good.
    #[error("configuration: {0}")]
    Settings(#[from] SettingsError),
    /// A setting has a value that it cannot have.
    #[error("configuration: {key}: {reason}")]
    Setting {
        /// Which.
        key: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Security module or key service are not to be had.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: Address,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// A thread, a descriptor or standard output is not to be had.
    #[error("the operating system refuses: {0}")]
    System(#[from] io::Error),
}

/// An enclave that runs. Dropping it ends it without a drain.
#[derive(Debug)]
pub struct Running {
    server: Option<LinkServer>,
    address: Address,
    drain: Duration,
    workers: Vec<Sender<Inbound>>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens security module and key service, binds, and starts to serve.
///
/// # Errors
/// [`Error`]; nothing runs then.
pub fn start(config: &Config) -> Result<Running, Error> {
    let mut platform = Platform::open(config)?;
    let machine = platform.machine(config)?;
    let address = config.listen.clone();
    let listener = Listener::bind(&address).map_err(|error| Error::Listen { address, error })?;

    let address = listener.address().clone();
    let mut running =
        Running { server: None, address, drain: config.drain(), workers: Vec::new(), threads: Vec::new() };
    let (module, module_questions) = mpsc::channel::<ModuleQuestion>();
    let (keys, key_questions) = mpsc::channel::<KeyQuestion>();
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..config.workers()).map(|_| mpsc::channel()).unzip();
    running.workers = senders;
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let entropy = platform.entropy()?;
        let services = (module.clone(), keys.clone());
        let enclave = Enclave::new(machine.clone());
        let worker = Worker::new(index, enclave, entropy, inbox, running.workers.clone(), services);
        running.spawn(format!("worker-{index}"), move || worker.run())?;
    }
    let Platform { nsm, keys: key_service, .. } = platform;
    running.spawn("module".to_owned(), move || service::answer_for_module(nsm, &module_questions))?;
    running.spawn("keys".to_owned(), move || service::answer_for_keys(key_service, &key_questions))?;
    for worker in &running.workers {
        // A worker ends only when it is told to.
        let _ = worker.send(Inbound::Event(Event::Started));
    }
    running.server = Some(serve(listener, config.link.limits(), service(running.workers.clone()))?);
    Ok(running)
}

impl Running {
    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes no new connection, replies to what is under way within the configured time, and ends all
    /// threads.
    pub fn stop(mut self) {
        self.end(self.drain);
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    fn end(&mut self, drain: Duration) {
        if let Some(server) = self.server.take() {
            if !drain.is_zero() && !server.drain(drain) {
                tracing::info!("some requests went without their reply");
            }
            server.shutdown();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.send(Inbound::Stop);
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("a panic of such a thread ends the process");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// What the link's threads do: pass the frame on.
fn service(workers: Vec<Sender<Inbound>>) -> Service {
    let hasher = RandomState::new();
    Arc::new(move |frame, reply| {
        let worker = &workers[shard(&hasher, &frame.routing_id, workers.len())];
        // Where the enclave ends, the reply is dropped and the gateway asks again.
        let _ = worker.send(Inbound::Requested(frame, reply));
    })
}

/// Runs an enclave until a signal, or the end of standard input where so configured: logs to standard error,
/// prints its address as one JSON line, drains, and returns.
///
/// # Errors
/// [`Error`].
pub fn run(config: &Config) -> Result<(), Error> {
    log::start(&config.log);
    let stops = Stops::watch(config.exit_with_stdin)?;
    let running = start(config)?;
    let address = running.address();
    tracing::info!(enclave_id = %config.enclave_id, %address, config_hash = %config.hash(), "the enclave runs");
    announce(&address.to_string())?;
    let reason = stops.wait();
    tracing::info!(?reason, "the enclave drains");
    running.stop();
    tracing::info!("the enclave has ended");
    Ok(())
}

/// The whole program, after its arguments were read: `keymeld enclave` and `keymeld-enclave` alike.
///
/// Settings come from the file, if one is named, and the environment; in an image both are measured. With
/// `check` it prints `ok` and ends. A reason to fail goes to standard error, on one line; the exit code is 2
/// for the configuration's and 1 for all others.
pub fn main(config: Option<&Path>, check: bool) -> ExitCode {
    let outcome = Config::load(config).and_then(|config| {
        if check {
            println!("ok");
            return Ok(());
        }
        run(&config)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keymeld-enclave: {error}");
            match error {
                Error::Settings(_) | Error::Setting { .. } => ExitCode::from(2),
                Error::Platform(_) | Error::Listen { .. } | Error::System(_) => ExitCode::from(1),
            }
        }
    }
}
