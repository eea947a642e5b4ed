//! One request and its answer, which may come from any thread, at once or much later.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keymeld_core::api::http::Response;

use super::Shared;
use super::connection::Connection;
use super::refusal::Refusal;
use super::table::ParkedPlace;

/// An answer, and whether the connection ends with it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) close: bool,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Answer { response: refusal.response(), close: true }
    }
}

enum State {
    /// The connection's thread waits.
    Pending,
    /// The connection's thread is to leave its connection here and end.
    ParkWanted,
    /// No thread waits.
    Parked(Box<Connection>),
    /// The connection's thread has not taken it yet.
    Answered(Answer),
    /// Taken, too late or cut off.
    Ended,
}

/// What the connection's thread does after its wait.
pub(super) enum Outcome {
    Answered(Box<Connection>, Answer),
    Parked,
    Abandoned,
}

/// Where a connection's thread and the service meet.
pub(super) struct Exchange {
    state: Mutex<State>,
    changed: Condvar,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Exchange { state: Mutex::new(State::Pending), changed: Condvar::new() }
    }

    /// Waits for the answer, or until the request is parked.
    pub(super) fn wait(&self, connection: Box<Connection>, timeout: Duration) -> Outcome {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            match mem::replace(&mut *state, State::Ended) {
                State::Pending => {}
                State::ParkWanted => {
                    *state = State::Parked(connection);
                    return Outcome::Parked;
                }
                State::Answered(answer) => return Outcome::Answered(connection, answer),
                State::Ended => return Outcome::Abandoned,
                State::Parked(_) => unreachable!("only this wait parks, and it ends then"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Outcome::Answered(connection, Refusal::AnswerTimedOut.into());
            }
            *state = State::Pending;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the exchange without an answer and closes a parked connection.
    pub(super) fn abandon(&self) {
        let ended = mem::replace(&mut *self.lock(), State::Ended);
        self.changed.notify_all();
        drop(ended);
    }

    /// Hands the answer to the waiting thread, or gives back the connection that nobody waits for.
    fn answer(&self, answer: Answer) -> Option<(Box<Connection>, Answer)> {
        let mut state = self.lock();
        match mem::replace(&mut *state, State::Ended) {
            State::Pending | State::ParkWanted => {
                *state = State::Answered(answer);
                self.changed.notify_all();
                None
            }
            State::Parked(connection) => Some((connection, answer)),
            State::Answered(_) => unreachable!("a responder answers once"),
            State::Ended => None,
        }
    }

    fn want_parking(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Pending) {
            *state = State::ParkWanted;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one way to answer a request, from any thread. Dropped unanswered, it answers 500.
#[must_use = "dropping it answers 500"]
pub struct Responder {
    shared: Arc<Shared>,
    exchange: Arc<Exchange>,
    peer: std::net::IpAddr,
    place: Option<ParkedPlace>,
    answered: bool,
}

impl Responder {
    pub(super) fn new(shared: Arc<Shared>, exchange: Arc<Exchange>, peer: std::net::IpAddr) -> Self {
        Responder { shared, exchange, peer, place: None, answered: false }
    }

    /// Answers. Never blocks on the peer: the connection's thread writes, or a new one where the request
    /// is parked.
    pub fn send(mut self, response: Response) {
        self.answer(Answer { response, close: false });
    }

    /// Parks the request, for a long poll: its connection's thread ends, and the request waits without
    /// one until it is answered. `None` where the parked table is full, for all or for this peer's
    /// address: 429 has been answered then. Parking twice changes nothing.
    ///
    /// The caller bounds how long a request stays parked and how many a session has.
    pub fn park(mut self) -> Option<Responder> {
        if self.place.is_none() {
            let limits = &self.shared.limits;
            let (max, per_address_max) = (limits.parked_max, limits.parked_per_address_max);
            self.place = self.shared.table.reserve(self.peer, &self.exchange, max, per_address_max);
            if self.place.is_none() {
                self.answer(Refusal::TooManyParked.into());
                return None;
            }
            self.exchange.want_parking();
        }
        Some(self)
    }

    fn answer(&mut self, answer: Answer) {
        self.answered = true;
        if let Some((connection, answer)) = self.exchange.answer(answer) {
            self.shared.resume(connection, answer, self.place.take());
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Refusal::Unanswered.into());
        }
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder").field("parked", &self.place.is_some()).finish_non_exhaustive()
    }
}
