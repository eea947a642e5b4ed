//! Status and the long polls that wait for it to change.

use alloc::vec::Vec;

use super::session::{Session, SessionKey};
use super::timers::TimerKind;
use super::{Gateway, RequestId, WAITERS_PER_SESSION_MAX};
use crate::api::http::Response;
use crate::api::problem;
use crate::api::router::Wait;
use crate::refusal::Code;
use crate::time::Time;

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) request: RequestId,
    pub(super) due_mono_ms: u64,
    pub(super) until_ended: bool,
}

impl Gateway {
    /// Long polls are answered, or set to wait.
    pub(super) fn wait_for_change(
        &mut self,
        now: Time,
        key: SessionKey,
        request: RequestId,
        wait: Wait,
        revision: u64,
    ) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let changed = wait.since.is_some_and(|since| since != revision) && !wait.until_ended;
        if wait.wait_ms == 0 || changed || entry.is_ended() {
            let response = self.status(key);
            return self.respond(request, response);
        }
        if entry.waiters.len() >= WAITERS_PER_SESSION_MAX {
            return self.refuse(request, Code::TooMany);
        }
        let due_mono_ms = now.mono_ms + wait.wait_ms;
        entry.waiters.push(Waiter { request, due_mono_ms, until_ended: wait.until_ended });
        self.polls.insert(request, key);
        self.set_poll_timer(key);
    }

    pub(super) fn abandoned(&mut self, now: Time, request: RequestId) {
        let Some(key) = self.polls.remove(&request) else { return };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.waiters.retain(|waiter| waiter.request != request);
        }
        self.set_poll_timer(key);
        self.settle(now, key);
    }

    pub(super) fn set_poll_timer(&mut self, key: SessionKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        let due = entry.waiters.iter().map(|waiter| waiter.due_mono_ms).min();
        self.set_timer(key, TimerKind::Poll, due);
    }

    pub(super) fn show_change(&mut self, now: Time, key: SessionKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            self.last_revision += 1;
            entry.revision = self.last_revision;
        }
        self.answer_polls(now, key, None);
    }

    /// Answers waiters: those that are due, or, on a change, those that it matters to.
    pub(super) fn answer_polls(&mut self, now: Time, key: SessionKey, due_by: Option<u64>) {
        let response = self.status(key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let ended = entry.is_ended();
        let answered = |waiter: &Waiter| match due_by {
            Some(mono_ms) => waiter.due_mono_ms <= mono_ms,
            None => ended || !waiter.until_ended,
        };
        let (now_answered, still_waiting) =
            core::mem::take(&mut entry.waiters).into_iter().partition(answered);
        entry.waiters = still_waiting;
        let now_answered: Vec<Waiter> = now_answered;
        for waiter in now_answered {
            self.polls.remove(&waiter.request);
            self.respond(waiter.request, response.clone());
        }
        self.set_poll_timer(key);
        if due_by.is_some() {
            self.settle(now, key);
        }
    }

    pub(super) fn status(&self, key: SessionKey) -> Response {
        let Some(entry) = self.entries.get(&key) else {
            return problem::refused(&Code::UnknownId.into());
        };
        match (&entry.session, key) {
            (Session::Keygen(keygen), SessionKey::Keygen(id)) => {
                problem::ok(200, &keygen.status(id, entry.revision))
            }
            (Session::Signing(signing), SessionKey::Signing(id)) => {
                problem::ok(200, &signing.status(id, entry.revision))
            }
            (Session::Loading | Session::Absent | Session::Keygen(_) | Session::Signing(_), _) => {
                problem::refused(&Code::UnknownId.into())
            }
        }
    }
}
