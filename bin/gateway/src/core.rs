//! The core thread: events in, commands out, one transaction for everything that came meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use keymeld_core::api::http::Response;
use keymeld_core::api::problem;
use keymeld_core::api::router::Call;
use keymeld_core::entropy::Entropy;
use keymeld_core::gateway::{CallId, Command, Event, Gateway, Report, RequestId};
use keymeld_core::id::EnclaveId;
use keymeld_core::record::{Persist, Query};
use keymeld_core::refusal::Code;
use keymeld_store::Store;
use keymeld_store::limits::GROUP_TOKENS_MAX;
use keymeld_transport::http::server::Responder;
use keymeld_transport::link::pool::{LinkEvent, Pool};
use keymeld_transport::process::EndsWithThread;

use keymeld_transport::clock::Clock;

/// Events that are taken in before what they want to write is made durable.
const BATCH_MAX: usize = GROUP_TOKENS_MAX;

/// What the core thread waits for.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A request that the router understood, parked already where it may wait long.
    Request(RequestId, Box<Call>, Responder),
    /// Whoever asked has left; where the request is yet to come, its responder says so.
    Left(RequestId),
    /// Something happened on the link to an enclave.
    Link(EnclaveId, LinkEvent),
    /// The listener is about to close: answer who waits, let nobody wait any more.
    Drain,
    /// Nobody is left to be answered.
    Stop,
}

/// Whether the thread goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Stop,
}

/// Everything that the core thread owns.
pub(crate) struct Core {
    machine: Gateway,
    store: Store,
    entropy: Entropy,
    clock: Clock,
    pools: BTreeMap<EnclaveId, Pool>,
    inbox: Receiver<Inbound>,
    /// Answers owed.
    responders: BTreeMap<RequestId, Responder>,
    /// Those of them that may take long.
    long_polls: BTreeSet<RequestId>,
    draining: bool,
    /// What commands brought forth and the machine has not been told yet.
    answers: VecDeque<Event>,
    /// Writes of this batch.
    writes: Vec<Persist>,
}

impl Core {
    pub(crate) fn new(
        machine: Gateway,
        store: Store,
        entropy: Entropy,
        clock: Clock,
        pools: BTreeMap<EnclaveId, Pool>,
        inbox: Receiver<Inbound>,
    ) -> Core {
        Core {
            machine,
            store,
            entropy,
            clock,
            pools,
            inbox,
            responders: BTreeMap::new(),
            long_polls: BTreeSet::new(),
            draining: false,
            answers: VecDeque::new(),
            writes: Vec::new(),
        }
    }

    /// Runs until [`Inbound::Stop`].
    pub(crate) fn run(mut self) {
        // Dropped before everything else: a panic answers nobody.
        let _guard = EndsWithThread;
        self.handle(Event::Started);
        self.commit();
        while self.batch() == Flow::On {}
        if let Err(error) = self.store.close() {
            tracing::warn!(%error, "the log stays beside the database");
        }
        // Each may take as long as an attempt to connect.
        thread::scope(|scope| {
            for (_, pool) in self.pools {
                scope.spawn(|| pool.shutdown());
            }
        });
    }

    /// Waits for something to do, takes in what has come until now, and makes it durable.
    fn batch(&mut self) -> Flow {
        let mut flow = match self.next() {
            Some(inbound) => self.take(inbound),
            None => Flow::On,
        };
        for _ in 1..BATCH_MAX {
            let Ok(inbound) = self.inbox.try_recv() else { break };
            if self.take(inbound) == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        // Also where events never cease.
        if self.until_deadline().is_some_and(|left| left.is_zero()) {
            self.handle(Event::Ticked);
        }
        self.commit();
        flow
    }

    /// Blocks until there is an event, or a deadline has passed: then there is none.
    fn next(&self) -> Option<Inbound> {
        let received = match self.until_deadline() {
            Some(left) => self.inbox.recv_timeout(left),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(inbound) => Some(inbound),
            Err(RecvTimeoutError::Timeout) => None,
            // Only where the gateway was dropped half started.
            Err(RecvTimeoutError::Disconnected) => Some(Inbound::Stop),
        }
    }

    fn until_deadline(&self) -> Option<Duration> {
        let deadline = self.machine.next_deadline()?;
        Some(Duration::from_millis(deadline.mono_ms.saturating_sub(self.clock.now().mono_ms)))
    }

    fn take(&mut self, inbound: Inbound) -> Flow {
        match inbound {
            Inbound::Request(request, call, responder) => self.requested(request, *call, responder),
            Inbound::Left(request) => self.left(request),
            Inbound::Link(enclave_id, event) => self.handle(match event {
                LinkEvent::Up => Event::EnclaveFound { enclave_id },
                LinkEvent::Down => Event::EnclaveLost { enclave_id },
                LinkEvent::Replied { request_id, body } => {
                    Event::Replied { call: CallId(request_id), body: body.into_bytes() }
                }
                LinkEvent::Failed { request_id, reason } => {
                    tracing::debug!(%enclave_id, call = request_id, ?reason, "call failed");
                    Event::CallFailed { call: CallId(request_id) }
                }
            }),
            Inbound::Drain => self.drain(),
            Inbound::Stop => return Flow::Stop,
        }
        Flow::On
    }

    fn requested(&mut self, request: RequestId, call: Call, responder: Responder) {
        if responder.is_too_late() {
            return;
        }
        if call.is_long_poll() && self.draining {
            return responder.send(shutting_down());
        }
        if call.is_long_poll() {
            self.long_polls.insert(request);
        }
        self.responders.insert(request, responder);
        self.handle(Event::Requested { request, call });
    }

    fn left(&mut self, request: RequestId) {
        if self.responders.remove(&request).is_some() {
            self.long_polls.remove(&request);
            self.handle(Event::Abandoned { request });
        }
    }

    /// Long polls would hold the listener's end up for as long as they may wait.
    fn drain(&mut self) {
        self.draining = true;
        for request in std::mem::take(&mut self.long_polls) {
            self.handle(Event::Abandoned { request });
            if let Some(responder) = self.responders.remove(&request) {
                responder.send(shutting_down());
            }
        }
    }

    /// Hands an event to the machine, and the answers to its commands until there are none.
    fn handle(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            self.machine.handle(self.clock.now(), event, &mut self.entropy);
            while let Some(command) = self.machine.poll_command() {
                self.execute(command);
            }
            next = self.answers.pop_front();
        }
    }

    /// Makes the batch's writes durable and whatever follows from that, until nothing does.
    fn commit(&mut self) {
        while !self.writes.is_empty() {
            let writes = std::mem::take(&mut self.writes);
            let answers = self.store.commit(&writes);
            self.log_failure();
            for (token, answer) in answers {
                self.handle(match answer {
                    Ok(()) => Event::Persisted { token },
                    Err(error) => {
                        tracing::warn!(token = token.0, %error, "writes did not take effect");
                        Event::PersistFailed { token, error }
                    }
                });
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Load(query) => self.load(query),
            Command::Persist(persist) => self.writes.push(persist),
            Command::Respond { request, response } => self.respond(request, response),
            Command::Send { enclave_id, call, routing_id, body } => match self.pools.get(&enclave_id) {
                Some(pool) => pool.send(call.0, routing_id, body),
                None => unreachable!("the machine and the pools are made from one list"),
            },
            Command::Report(report) => log_report(&report),
        }
    }

    fn load(&mut self, query: Query) {
        let rows = self.store.load(&query);
        self.log_failure();
        self.answers.push_back(Event::Loaded { query, rows });
    }

    fn respond(&mut self, request: RequestId, response: Response) {
        self.long_polls.remove(&request);
        // Absent only where the listener's end has answered for the machine.
        if let Some(responder) = self.responders.remove(&request) {
            responder.send(response);
        }
    }

    fn log_failure(&mut self) {
        if let Some(failure) = self.store.take_failure() {
            tracing::error!(error = %failure, "the database failed");
        }
    }
}

fn shutting_down() -> Response {
    problem::refused(&Code::ShuttingDown.into())
}

fn log_report(report: &Report) {
    match report {
        Report::EnclaveReady(enclave_id) => tracing::info!(%enclave_id, "enclave ready"),
        Report::EnclaveRefused(enclave_id, code) => tracing::warn!(%enclave_id, %code, "enclave refused"),
        Report::KeygenEnded(keygen_id, None) => tracing::info!(%keygen_id, "keygen completed"),
        Report::KeygenEnded(keygen_id, Some(code)) => tracing::info!(%keygen_id, %code, "keygen failed"),
        Report::SigningEnded(signing_id, None) => tracing::info!(%signing_id, "signing completed"),
        Report::SigningEnded(signing_id, Some(code)) => tracing::info!(%signing_id, %code, "signing failed"),
        Report::AttemptRefused(signing_id, code) => tracing::info!(%signing_id, %code, "attempt refused"),
        Report::RecordCorrupt(record) => tracing::error!(?record, "record cannot be read"),
    }
}
