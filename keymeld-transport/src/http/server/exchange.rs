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

/// Called where a parked request's peer has left.
type Notice = Box<dyn FnOnce() + Send>;

enum State {
    /// The connection's thread waits.
    Pending,
    /// The connection's thread is to leave its connection here and end.
    ParkWanted(Notice),
    /// No thread waits.
    Parked(Box<Connection>, Notice),
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
                State::ParkWanted(notice) => {
                    *state = State::Parked(connection, notice);
                    return Outcome::Parked;
                }
                State::Answered(answer) => return Outcome::Answered(connection, answer),
                State::Ended => return Outcome::Abandoned,
                State::Parked(..) => unreachable!("only this wait parks, and it ends then"),
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
            State::Pending | State::ParkWanted(_) => {
                *state = State::Answered(answer);
                self.changed.notify_all();
                None
            }
            State::Parked(connection, _) => Some((connection, answer)),
            State::Answered(_) => unreachable!("a responder answers once"),
            State::Ended => None,
        }
    }

    /// Ends the exchange where it is parked and its peer has closed, at least its own direction, and tells
    /// the service.
    pub(super) fn leave_if_gone(&self) -> bool {
        let mut state = self.lock();
        let gone = match &mut *state {
            State::Parked(connection, _) => connection.stream.is_gone(),
            State::Pending | State::ParkWanted(_) | State::Answered(_) | State::Ended => false,
        };
        if !gone {
            return false;
        }
        let left = mem::replace(&mut *state, State::Ended);
        drop(state);
        if let State::Parked(_, notice) = left {
            notice();
        }
        true
    }

    fn is_ended(&self) -> bool {
        matches!(*self.lock(), State::Ended)
    }

    fn want_parking(&self, notice: Notice) {
        let mut state = self.lock();
        if matches!(*state, State::Pending) {
            *state = State::ParkWanted(notice);
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
    /// Peers that leave are looked for only where places are short. `gone` is called, from any thread, where
    /// this one has left; whoever gets its place asks after that.
    ///
    /// The caller bounds how long a request stays parked and how many a session has.
    pub fn park(mut self, gone: impl FnOnce() + Send + 'static) -> Option<Responder> {
        if self.place.is_none() {
            self.place = self.reserve();
            if self.place.is_none() && self.shared.table.sweep(self.peer, self.shared.limits.parked_max) {
                self.place = self.reserve();
            }
            if self.place.is_none() {
                self.answer(Refusal::TooManyParked.into());
                return None;
            }
            self.exchange.want_parking(Box::new(gone));
        }
        Some(self)
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_too_late(&self) -> bool {
        self.exchange.is_ended()
    }

    fn reserve(&self) -> Option<ParkedPlace> {
        let limits = &self.shared.limits;
        let (max, per_address_max) = (limits.parked_max, limits.parked_per_address_max);
        self.shared.table.reserve(self.peer, &self.exchange, max, per_address_max)
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
