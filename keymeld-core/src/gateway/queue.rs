//! From work to effects: a session takes one step at a time; what a step shows outside is held back until its
//! writes are durable.

use alloc::sync::Arc;

use super::admission::{session_allows_reading, status_wait};
use super::enclaves::Member;
use super::session::{Effect, Entry, Purpose, Session, SessionKey, Step, Work};
use super::{CallOwner, Command, Gateway, QUEUE_MAX, RETRY_MS_MAX, TokenOwner};
use crate::entropy::Entropy;
use crate::record::{Persist, PersistError, Query, Token};
use crate::refusal::Code;
use crate::time::Time;

impl Gateway {
    /// Gives work to a session, or to its queue.
    pub(super) fn submit(&mut self, now: Time, key: SessionKey, work: Work, entropy: &mut Entropy) {
        if !self.entries.contains_key(&key) {
            // First, so that however many sleep, one may take this one's place.
            let slept_until = self.wake(key);
            while self.is_full() {
                if !self.make_room() {
                    if let Some(due) = slept_until {
                        self.sleep_until(key, due);
                    }
                    return self.turn_away(now, key, work, Code::TooMany);
                }
            }
            let open = slept_until.is_some() || matches!(work, Work::Resume | Work::Expire | Work::GiveWay);
            self.commands.push_back(Command::Load(Query::Record(key.record())));
            self.last_revision += 1;
            self.entries.insert(key, Entry::loading(open, self.last_revision));
        }
        self.touch(key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.is_blocked() || !entry.queue.is_empty() {
            let full = entry.queue.len() >= QUEUE_MAX && work.is_asked_for();
            // A stranger must not take the places of those whose session it is.
            if full || !entry.lets_wait(&work) {
                return self.turn_away(now, key, work, Code::TooMany);
            }
            entry.queue.push_back(work);
        } else {
            self.run(now, key, work, entropy);
        }
    }

    /// Work that cannot be taken on: whoever waits for it is told.
    pub(super) fn turn_away(&mut self, now: Time, key: SessionKey, work: Work, code: Code) {
        match work {
            Work::Call(request, _) | Work::Accept(request, _, _) => self.refuse(request, code),
            Work::Supply(signing_id) => self.supply(now, signing_id, None),
            Work::Answered(Purpose::CheckRegistration { request, .. }, _) => self.refuse(request, code),
            // The session is not in memory: what it had begun is begun anew when it is read again.
            Work::Answered(..) | Work::AnswerPolls => {}
            Work::Resume | Work::Expire | Work::GiveWay => self.sleep_until(key, now.mono_ms + RETRY_MS_MAX),
        }
    }

    /// Lets a session take one step and does what the step wants.
    pub(super) fn run(&mut self, now: Time, key: SessionKey, work: Work, entropy: &mut Entropy) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let mut session = core::mem::replace(&mut entry.session, Session::Loading);
        let revision = entry.revision;
        let mut step = Step::default();
        let mut wait = None;
        let work = match work {
            Work::AnswerPolls => {
                self.put_back(key, session);
                return self.answer_polls(now, key, Some(now.mono_ms));
            }
            Work::Expire if self.expires_later(now, key, &session) => None,
            Work::Call(request, call) => match status_wait(&call) {
                Some((caller, asked)) => {
                    let allowed = session_allows_reading(&session, &caller.key);
                    if matches!(session, Session::Absent) {
                        self.put_back(key, session);
                        self.refuse(request, Code::UnknownId);
                        return self.settle(now, key);
                    }
                    match self.admit(now, &caller, allowed) {
                        Ok(()) => wait = Some((request, asked)),
                        Err(response) => self.respond(request, response),
                    }
                    None
                }
                None => Some(Work::Call(request, call)),
            },
            other => Some(other),
        };
        if let Some(work) = work {
            session = match key {
                SessionKey::Keygen(id) => self.step_keygen(now, id, session, work, &mut step),
                SessionKey::Signing(id) => self.step_signing(now, id, session, work, &mut step, entropy),
            };
        }
        self.put_back(key, session);
        self.take_step(now, key, step);
        if let Some((request, asked)) = wait {
            self.wait_for_change(now, key, request, asked, revision);
        }
        self.settle(now, key);
    }

    pub(super) fn put_back(&mut self, key: SessionKey, session: Session) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.session = session;
        }
        self.weigh(key);
    }

    pub(super) fn take_step(&mut self, now: Time, key: SessionKey, step: Step) {
        let Step { writes, effects, changed, retry, again } = step;
        if retry {
            self.retry_later(now, key);
        }
        if again {
            self.todo.push_back((key, Work::Resume));
        }
        if writes.is_empty() {
            for effect in effects {
                self.effect(key, effect);
            }
            if changed {
                self.show_change(now, key);
            }
            return;
        }
        self.last_token += 1;
        let token = Token(self.last_token);
        self.tokens.insert(token, TokenOwner::Session(key));
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.token = Some(token);
            entry.held = effects;
            entry.held_change = changed;
        }
        self.commands.push_back(Command::Persist(Persist { token, writes }));
    }

    pub(super) fn effect(&mut self, key: SessionKey, effect: Effect) {
        match effect {
            Effect::Respond(request, response) => self.respond(request, response),
            Effect::Report(report) => self.commands.push_back(Command::Report(report)),
            Effect::Send(enclave_id, purpose, request) => {
                if self.members.get(&enclave_id).is_some_and(Member::is_ready) {
                    self.call(enclave_id, CallOwner::Session(key, purpose), request);
                } else {
                    self.todo.push_back((key, Work::Answered(purpose, Err(Code::EnclaveAway))));
                }
            }
        }
    }

    pub(super) fn persisted(&mut self, now: Time, token: Token) {
        match self.tokens.remove(&token) {
            Some(TokenOwner::Identity(enclave_id)) => self.identity_stored(now, enclave_id, true),
            Some(TokenOwner::Session(key)) => {
                let Some(entry) = self.entries.get_mut(&key) else { return };
                entry.token = None;
                let effects = core::mem::take(&mut entry.held);
                let changed = core::mem::take(&mut entry.held_change);
                for effect in effects {
                    self.effect(key, effect);
                }
                if changed {
                    self.show_change(now, key);
                }
                self.drain(key);
                self.settle(now, key);
            }
            None => {}
        }
    }

    /// What was not written did not happen: the session is forgotten and, where it is open, read again.
    pub(super) fn persist_failed(&mut self, now: Time, token: Token, error: PersistError) {
        let code = match error {
            PersistError::DiskFull => Code::DiskFull,
            PersistError::ReadOnly | PersistError::Failed => Code::StorageFailed,
            // Another writer or a changed file: nothing that this process believes holds any more.
            PersistError::VersionMismatch => panic!("the database was changed by somebody else"),
        };
        match self.tokens.remove(&token) {
            Some(TokenOwner::Identity(enclave_id)) => self.identity_stored(now, enclave_id, false),
            Some(TokenOwner::Session(key)) => self.forget(now, key, code),
            None => {}
        }
    }

    pub(super) fn forget(&mut self, now: Time, key: SessionKey, code: Code) {
        let Some(entry) = self.take_out(key) else { return };
        // It would wait for a visitor otherwise.
        if entry.open {
            self.sleep_until(key, now.mono_ms + RETRY_MS_MAX);
        }
        if let (SessionKey::Signing(id), Session::Signing(signing)) = (key, &entry.session) {
            self.open_signings.set(id, &signing.rows.request, entry.open);
        }
        for effect in entry.held {
            match effect {
                Effect::Respond(request, _) => self.refuse(request, code),
                Effect::Send(_, Purpose::CheckRegistration { request, .. }, _) => self.refuse(request, code),
                Effect::Send(..) | Effect::Report(_) => {}
            }
        }
        for waiter in entry.waiters {
            self.polls.remove(&waiter.request);
            self.refuse(waiter.request, code);
        }
        for work in entry.queue {
            self.turn_away(now, key, work, code);
        }
    }

    /// Moves the next of a session's queue to the work that is done before this event ends.
    pub(super) fn drain(&mut self, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        for work in core::mem::take(&mut entry.queue) {
            self.todo.push_back((key, work));
        }
    }

    /// Forgets a session that has nothing left to do.
    pub(super) fn settle(&mut self, now: Time, key: SessionKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let durable = entry.token.is_none();
        let idle = durable && entry.queue.is_empty() && entry.waiters.is_empty();
        let over = match &entry.session {
            Session::Loading => false,
            Session::Absent => true,
            Session::Keygen(keygen) => {
                if durable
                    && keygen.is_completed()
                    && let SessionKey::Keygen(id) = key
                {
                    self.completed.insert(id, keygen.bytes(), Arc::clone(keygen));
                }
                keygen.is_ended()
            }
            Session::Signing(signing) => signing.is_ended(),
        };
        // From here on the disk says so.
        entry.open |= durable && !over;
        if idle && over && !self.todo.iter().any(|(other, _)| *other == key) {
            self.take_out(key);
        } else if !over {
            self.set_deadline(now, key);
        }
    }
}
