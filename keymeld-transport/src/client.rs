//! The blocking client: [`keymeld_core::client::Client`] over HTTP, one job at a time.
//!
//! `examples/client.rs` is a whole service around it. In short, for a participant who has joined:
//!
//! ```no_run
//! use keymeld_core::client::{Client, Config, Done, Job};
//! use keymeld_core::client::Keep;
//! use keymeld_transport::client::BlockingClient;
//! use keymeld_transport::http::client::Client as Http;
//! # fn keeps(_: &Keep) -> std::io::Result<()> { Ok(()) }
//! # fn story(config: Config, key: keymeld_core::secret::Secret<32>, bytes: &[u8],
//! #     entropy: keymeld_core::entropy::Entropy) -> Result<(), Box<dyn std::error::Error>> {
//! let http = Http::new("http://127.0.0.1:8080")?;
//! let machine = Client::resume(config, key, bytes)?;
//! let mut client = BlockingClient::new(machine, http, entropy, keeps);
//! if let Done::Key(key) = client.run(Job::AwaitKey, 60_000)? {
//!     println!("{}", key.output_key());
//! }
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use keymeld_core::client::{Client, Command, Done, Event, Fault, Job, JobId, Keep};
use keymeld_core::entropy::Entropy;

use crate::clock::Clock;
use crate::http::client::{Client as Http, ClientError, Outgoing};

/// Makes what a client keeps durable, atomically, before it returns.
pub type Keeper = dyn FnMut(&Keep) -> io::Result<()> + Send;

/// A client of one gateway, for one user in one keygen.
pub struct BlockingClient {
    machine: Client,
    http: Http,
    entropy: Entropy,
    keeper: Box<Keeper>,
    clock: Clock,
    last_job: u64,
    last_failure: Option<ClientError>,
}

impl BlockingClient {
    /// Puts a machine to work. Its configuration has to name `http`'s authority.
    ///
    /// `keeper` is called with everything that has to outlast the process. Where it fails, nothing that
    /// depends on it is sent.
    pub fn new(
        machine: Client,
        http: Http,
        entropy: Entropy,
        keeper: impl FnMut(&Keep) -> io::Result<()> + Send + 'static,
    ) -> BlockingClient {
        let (keeper, clock) = (Box::new(keeper), Clock::new());
        BlockingClient { machine, http, entropy, keeper, clock, last_job: 0, last_failure: None }
    }

    /// The machine, for its accessors.
    pub fn machine(&self) -> &Client {
        &self.machine
    }

    /// Why the last request had no answer; `None` where it had one. Requests are repeated while a job's time
    /// lasts: this tells somebody whose job was not done in time what was in the way.
    pub fn last_failure(&self) -> Option<ClientError> {
        self.last_failure
    }

    /// Does a job. The thread blocks until it is done, for `timeout_ms` milliseconds at most and an answer's
    /// time more.
    ///
    /// # Errors
    /// The job's own [`Fault`].
    pub fn run(&mut self, job: Job, timeout_ms: u64) -> Result<Done, Fault> {
        self.last_job += 1;
        let mut event = Event::Asked { job_id: JobId(self.last_job), job, timeout_ms };
        loop {
            self.machine.handle(self.clock.now(), event, &mut self.entropy);
            // With one job at a time a machine wants one thing at a time.
            event = match self.machine.poll_command() {
                Some(Command::Finish { outcome, .. }) => return outcome,
                Some(Command::Store { token, keep }) => match (self.keeper)(&keep) {
                    Ok(()) => Event::Stored { token },
                    Err(_) => Event::StoreFailed { token },
                },
                Some(Command::Send { call, request, timeout_ms }) => {
                    let outgoing = Outgoing {
                        method: request.method,
                        target: &request.target,
                        proof: request.proof.as_deref(),
                        authorization: request.authorization.as_deref(),
                        body: &request.body,
                        timeout_ms,
                    };
                    let outcome = self.http.send(&outgoing);
                    self.last_failure = outcome.as_ref().err().copied();
                    match outcome {
                        Ok(response) => Event::Replied { call, response },
                        Err(_) => Event::CallFailed { call },
                    }
                }
                // A pause before a failed request is repeated: nothing can happen meanwhile.
                None => {
                    let deadline = self.machine.next_deadline().expect("a job under way has a deadline");
                    let pause_ms = deadline.mono_ms.saturating_sub(self.clock.now().mono_ms);
                    thread::sleep(Duration::from_millis(pause_ms));
                    Event::Ticked
                }
            };
        }
    }
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingClient").field("http", &self.http).finish_non_exhaustive()
    }
}
