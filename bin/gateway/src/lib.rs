//! KeyMeld's gateway: REST, SQLite and the link to the enclaves.
//!
//! A thin blocking shell around [`keymeld_core::gateway::Gateway`]. One core thread owns the machine, the
//! store and the answers that are owed; threads of the listener and of the links put events into its inbox
//! and never wait for it.
//!
//! **Invariant:** nothing blocks on the inbox and it cannot grow without bound: each event in it is the one
//! request of a connection or of a parked place, or the one outcome of a call, and all three are counted by
//! the limits of listener and links.
//!
//! **Invariant:** the core thread is the only one that decides. Where it panics the process ends.
//!
//! Modules: `config` (settings), `core` (the core thread).

mod config;
mod core;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keymeld_core::api::problem;
use keymeld_core::api::router::route;
use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};
use keymeld_core::gateway::{Gateway, RequestId};
use keymeld_core::id::EnclaveId;
use keymeld_store::{OpenError, Store};
use keymeld_transport::clock::Clock;
use keymeld_transport::http::server::{Server, Service, Tls, TlsError};
use keymeld_transport::link::address::Address;
use keymeld_transport::link::pool::Pool;
use keymeld_transport::process::announce;
use keymeld_transport::process::log;
use keymeld_transport::process::settings::SettingsError;
use keymeld_transport::process::stop::{self, Stops};

use crate::core::{Core, Inbound};

pub use config::{
    Config, EnclaveAddress, HttpSettings, KeygenSettings, LinkSettings, SessionSettings, TlsSettings,
};

/// What the names of environment variables begin with.
pub const ENVIRONMENT_PREFIX: &str = "KEYMELD_GATEWAY_";

/// Why the gateway does not run.
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
    /// The file with the API token cannot be read.
    #[error("configuration: api_token_file: {0}")]
    TokenFile(#[source] io::Error),
    /// The certificate or its key cannot be used.
    #[error("configuration: tls: {0}")]
    Tls(#[from] TlsError),
    /// The database cannot be opened.
    #[error("database {path}: {error}")]
    Store {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        error: OpenError,
    },
    /// The public address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// A thread, a descriptor or standard output is not to be had.
    #[error("the operating system refuses: {0}")]
    System(#[from] io::Error),
}

/// A gateway that runs. Dropping it ends it without a drain.
#[derive(Debug)]
pub struct Running {
    server: Option<Server>,
    tls: Option<Arc<Tls>>,
    address: SocketAddr,
    drain: Duration,
    inbox: Sender<Inbound>,
    core: Option<JoinHandle<()>>,
}

/// Opens the database, binds, and starts to serve and to connect.
///
/// # Errors
/// [`Error`]; nothing runs then.
pub fn start(config: &Config) -> Result<Running, Error> {
    start_by(Clock::new(), config)
}

/// The same by a given clock.
///
/// # Errors
/// As [`start`].
pub fn start_by(clock: Clock, config: &Config) -> Result<Running, Error> {
    config.check()?;
    let tls = config.tls()?;
    let machine = Gateway::new(config.machine());
    let store_error = |error| Error::Store { path: config.database.display().to_string(), error };
    let store = Store::open(&config.database, &config.store_options()).map_err(store_error)?;
    let address = config.listen;
    let listener = TcpListener::bind(address).map_err(|error| Error::Listen { address, error })?;

    let (inbox, events) = mpsc::channel();
    let mut pools = BTreeMap::new();
    for EnclaveAddress { id, address } in &config.enclaves {
        pools.insert(*id, pool(config, *id, address, &inbox)?);
    }
    let entropy = Entropy::new(Origin::Os, |out| getrandom::fill(out).map_err(|_| EntropyFailed));
    let core = Core::new(machine, store, entropy, clock, pools, events);
    let core = thread::Builder::new().name("core".to_owned()).spawn(move || core.run())?;
    let server = Server::start(listener, config.http.limits(), tls.clone(), service(inbox.clone()));
    let mut running = Running { server: None, tls, address, drain: config.drain(), inbox, core: Some(core) };
    // Where this fails, dropping `running` ends the core thread.
    let server = server?;
    running.address = server.address();
    running.server = Some(server);
    Ok(running)
}

impl Running {
    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it proves who it is with, where it speaks TLS: to have its files read again.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Long polls that wait now, for gauges.
    pub fn parked(&self) -> usize {
        self.server.as_ref().map_or(0, |server| server.counts().0)
    }

    /// Stops accepting, answers what is under way within the configured time, makes everything durable and
    /// ends all threads.
    pub fn stop(mut self) {
        self.end(self.drain);
    }

    fn end(&mut self, drain: Duration) {
        // Sending fails only where the core thread has ended.
        let _ = self.inbox.send(Inbound::Drain);
        if let Some(server) = self.server.take() {
            server.shutdown(drain);
        }
        let _ = self.inbox.send(Inbound::Stop);
        if let Some(core) = self.core.take() {
            core.join().expect("a panic of the core thread ends the process");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn pool(
    config: &Config,
    enclave_id: EnclaveId,
    address: &Address,
    inbox: &Sender<Inbound>,
) -> io::Result<Pool> {
    let inbox = inbox.clone();
    let events = Arc::new(move |event| {
        // Nobody listens any more where the gateway ends.
        let _ = inbox.send(Inbound::Link(enclave_id, event));
    });
    Pool::start(address.clone(), config.link.options(), events)
}

/// What the listener's threads do: read the request, check its proof, park it where it may wait long.
fn service(inbox: Sender<Inbound>) -> Service {
    let last_request = AtomicU64::new(0);
    Arc::new(move |request, responder| match route(&request) {
        Ok(call) => {
            let request = RequestId(last_request.fetch_add(1, Ordering::Relaxed) + 1);
            let responder = if call.is_long_poll() {
                let inbox = inbox.clone();
                responder.park(move || {
                    // Nobody listens any more where the gateway ends.
                    let _ = inbox.send(Inbound::Left(request));
                })
            } else {
                Some(responder)
            };
            if let Some(responder) = responder {
                // A responder that comes back in an error answers by being dropped.
                let _ = inbox.send(Inbound::Request(request, Box::new(call), responder));
            }
        }
        Err(code) => {
            tracing::debug!(%code, "refused");
            responder.send(problem::refused(&code.into()));
        }
    })
}

/// Runs a gateway until a signal, or the end of standard input where so configured: logs to standard error,
/// reads certificate and key again at SIGHUP where it speaks TLS, prints its address as one JSON line, drains, and returns.
///
/// # Errors
/// [`Error`].
pub fn run(config: &Config) -> Result<(), Error> {
    log::start(&config.log);
    let stops = Stops::watch(config.exit_with_stdin)?;
    let running = start(config)?;
    if let Some(tls) = running.tls() {
        stop::on_hangup(move || reload(&tls))?;
    }
    let address = running.address();
    tracing::info!(%address, enclaves = config.enclaves.len(), "the gateway runs");
    announce(&address.to_string())?;
    let reason = stops.wait();
    tracing::info!(?reason, "the gateway drains");
    running.stop();
    tracing::info!("the gateway has ended");
    Ok(())
}

fn reload(tls: &Tls) {
    match tls.reload() {
        Ok(()) => tracing::info!("certificate and key were read again"),
        Err(error) => tracing::error!(%error, "certificate and key stay as they were"),
    }
}

/// The whole program, after its arguments were read: `keymeld gateway` and `keymeld-gateway` alike.
///
/// Settings come from the file, if one is named, and the environment. With `check` it prints `ok` and ends.
/// A reason to fail goes to standard error, on one line; the exit code is 2 for the configuration's and 1
/// for all others.
pub fn main(config: Option<&Path>, check: bool) -> ExitCode {
    let outcome = Config::load(config).and_then(|config| {
        if check {
            config.tls()?;
            println!("ok");
            return Ok(());
        }
        run(&config)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keymeld-gateway: {error}");
            match error {
                Error::Settings(_) | Error::Setting { .. } | Error::TokenFile(_) | Error::Tls(_) => {
                    ExitCode::from(2)
                }
                Error::Store { .. } | Error::Listen { .. } | Error::System(_) => ExitCode::from(1),
            }
        }
    }
}
