//! The signing protocol, abstractly: three signers at three enclaves, two signing sessions, two attempts.
//!
//! The host is hostile: whatever was ever sent can be delivered to anybody, at any time, in any combination, or
//! never. One process may crash and one session's record may be rolled back. [`check`](checker::check) visits every
//! state; `tests/model.rs` replays paths on the real machines.
//!
//! What the model knows of cryptography: a bundle opens for the run, sender and recipient that it was sealed for,
//! and approvals and intents cannot be forged. Enclave 0 aggregates; the user of enclave 1 has to approve.

pub mod checker;

/// Enclaves, each with one signer.
pub const ENCLAVES: usize = 3;
/// Signing sessions.
pub const SESSIONS: usize = 2;
/// Names that the host can give to attempts.
pub const ATTEMPTS: usize = 2;
/// The enclave that aggregates.
pub const AGGREGATOR: usize = 0;
/// The enclave whose user has to approve.
pub const APPROVER: usize = 1;
/// How far a session's record can come: nothing, accepted, approved, completed.
pub const LEVEL_MAX: u8 = 3;

/// What an enclave holds of one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cell {
    /// Nothing.
    #[default]
    Empty,
    /// A nonce for a session.
    Nonce(u8),
    /// It signed, and keeps the answer.
    Answered(u8),
}

/// Which life of each enclave a nonce is from, one bit each: what a signer saw when it signed.
pub type View = u8;

/// The gateway's record of a session, and what of it was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// What is durable.
    pub durable: u8,
    /// Whether the next level was written and is not durable yet.
    pub pending: bool,
    /// What clients were told.
    pub acknowledged: u8,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// By enclave and attempt.
    pub cells: [[Cell; ATTEMPTS]; ENCLAVES],
    /// Whether an enclave lost its memory once.
    pub reborn: [bool; ENCLAVES],
    /// Nonce bundles that were sent: by enclave, session, attempt, life.
    pub made: u32,
    /// Challenges that were answered: by enclave, session, attempt, view.
    pub signed: u128,
    /// Intents that their requester signed and sent.
    pub requested: [bool; SESSIONS],
    /// Intents that the approver signed and sent an approval of.
    pub approved: [bool; SESSIONS],
    /// The gateway's records.
    pub records: [Record; SESSIONS],
    /// Whether a process crashed.
    pub crashed: bool,
    /// Whether a record was rolled back.
    pub rolled_back: bool,
}

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The requester signs an intent and sends it.
    Request(usize),
    /// The approver reads it and sends an approval.
    Approve(usize),
    /// The gateway gets what takes a session's record to the next level.
    Submit(usize),
    /// The next level becomes durable.
    Commit(usize),
    /// Clients hear of what is durable.
    Acknowledge(usize),
    /// Round 1 at an enclave: enclave, session, attempt.
    MakeNonces(usize, usize, usize),
    /// Round 2 at an enclave, with nonces of these lives; at the aggregator round 3, with the others' partial
    /// signatures: enclave, session, attempt, view.
    Sign(usize, usize, usize, View),
    /// An enclave loses its memory.
    CrashEnclave(usize),
    /// The gateway loses what is not durable.
    CrashGateway,
    /// The host brings a session's older record back.
    RollBack(usize, u8),
}

/// Which rules the enclaves keep. All of them, but for showing that the checker notices each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A nonce is gone once it signed.
    pub consumes: bool,
    /// Enclaves look for the approval themselves.
    pub checks_approval: bool,
    /// Clients hear of a change only once it is durable.
    pub holds_back: bool,
    /// A nonce is for one intent.
    pub binds: bool,
}

impl Rules {
    /// As the code has it.
    pub const KEPT: Rules = Rules { consumes: true, checks_approval: true, holds_back: true, binds: true };
}

fn made_bit(enclave: usize, session: usize, attempt: usize, life: bool) -> u32 {
    1 << (((enclave * SESSIONS + session) * ATTEMPTS + attempt) * 2 + usize::from(life))
}

fn signed_bit(enclave: usize, session: usize, attempt: usize, view: View) -> u128 {
    1 << (((enclave * SESSIONS + session) * ATTEMPTS + attempt) * 8 + usize::from(view))
}

fn life(view: View, enclave: usize) -> bool {
    view >> enclave & 1 == 1
}

impl State {
    /// Everything that could be tried, whether it is possible or not.
    pub fn candidates() -> Vec<Action> {
        let mut actions = vec![Action::CrashGateway];
        for session in 0..SESSIONS {
            actions.extend([Action::Request(session), Action::Approve(session), Action::Submit(session)]);
            actions.extend([Action::Commit(session), Action::Acknowledge(session)]);
            actions.extend((0..LEVEL_MAX).map(|level| Action::RollBack(session, level)));
            for enclave in 0..ENCLAVES {
                for attempt in 0..ATTEMPTS {
                    actions.push(Action::MakeNonces(enclave, session, attempt));
                    actions.extend((0..8).map(|view| Action::Sign(enclave, session, attempt, view)));
                }
            }
        }
        actions.extend((0..ENCLAVES).map(Action::CrashEnclave));
        actions
    }

    /// What comes of an action; `None` where it is not possible: an enclave refuses, or there is nothing to deliver.
    pub fn after(&self, action: Action, rules: Rules) -> Option<State> {
        let mut next = self.clone();
        let possible = match action {
            Action::Request(session) => !core::mem::replace(&mut next.requested[session], true),
            Action::Approve(session) => {
                self.requested[session] && !core::mem::replace(&mut next.approved[session], true)
            }
            Action::Submit(session) => next.submit(session),
            Action::Commit(session) => next.records[session].commit(),
            Action::Acknowledge(session) => next.records[session].acknowledge(rules),
            Action::MakeNonces(enclave, session, attempt) => {
                next.make_nonces(enclave, session, attempt, rules)
            }
            Action::Sign(enclave, session, attempt, view) => {
                next.sign(enclave, session, attempt, view, rules)
            }
            Action::CrashEnclave(enclave) => next.crash_enclave(enclave),
            Action::CrashGateway => next.crash_gateway(),
            Action::RollBack(session, level) => next.roll_back(session, level),
        };
        possible.then_some(next)
    }

    fn submit(&mut self, session: usize) -> bool {
        let has = match self.records[session].durable {
            0 => self.requested[session],
            1 => self.approved[session],
            2 => self.has_result(session),
            _ => false,
        };
        has && !core::mem::replace(&mut self.records[session].pending, true)
    }

    /// Whether the aggregator made a result.
    pub fn has_result(&self, session: usize) -> bool {
        let of = |attempt| (0..8).any(|view| self.has_signed(AGGREGATOR, session, attempt, view));
        (0..ATTEMPTS).any(of)
    }

    /// Whether an enclave answered this challenge.
    pub fn has_signed(&self, enclave: usize, session: usize, attempt: usize, view: View) -> bool {
        self.signed & signed_bit(enclave, session, attempt, view) != 0
    }

    fn make_nonces(&mut self, enclave: usize, session: usize, attempt: usize, rules: Rules) -> bool {
        let authorised = self.requested[session]
            && (enclave != APPROVER || self.approved[session] || !rules.checks_approval);
        if !authorised || self.cells[enclave][attempt] != Cell::Empty {
            return false;
        }
        self.cells[enclave][attempt] = Cell::Nonce(session as u8);
        self.made |= made_bit(enclave, session, attempt, self.reborn[enclave]);
        true
    }

    fn sign(&mut self, enclave: usize, session: usize, attempt: usize, view: View, rules: Rules) -> bool {
        let own = self.cells[enclave][attempt];
        let holds = match own {
            Cell::Empty => false,
            Cell::Nonce(of) => usize::from(of) == session || !rules.binds,
            Cell::Answered(of) => usize::from(of) == session && !rules.consumes,
        };
        let of_now = life(view, enclave) == self.reborn[enclave];
        let sent =
            |of: usize| of == enclave || self.made & made_bit(of, session, attempt, life(view, of)) != 0;
        let partials = |of: usize| of == enclave || self.has_signed(of, session, attempt, view);
        let complete = (0..ENCLAVES).all(sent) && (enclave != AGGREGATOR || (0..ENCLAVES).all(partials));
        if !holds || !of_now || !complete {
            return false;
        }
        self.cells[enclave][attempt] = Cell::Answered(session as u8);
        let bit = signed_bit(enclave, session, attempt, view);
        let anew = self.signed & bit == 0;
        self.signed |= bit;
        anew
    }

    fn crash_enclave(&mut self, enclave: usize) -> bool {
        self.cells[enclave] = [Cell::Empty; ATTEMPTS];
        self.reborn[enclave] = true;
        !core::mem::replace(&mut self.crashed, true)
    }

    fn crash_gateway(&mut self) -> bool {
        for record in &mut self.records {
            record.pending = false;
        }
        !core::mem::replace(&mut self.crashed, true)
    }

    fn roll_back(&mut self, session: usize, level: u8) -> bool {
        for record in &mut self.records {
            record.pending = false;
        }
        let newer = core::mem::replace(&mut self.records[session].durable, level);
        newer > level && !core::mem::replace(&mut self.rolled_back, true)
    }

    /// The same state with sessions and attempts in another order: names mean nothing.
    pub fn renamed(&self, swap_sessions: bool, swap_attempts: bool) -> State {
        let session = |session: usize| if swap_sessions { SESSIONS - 1 - session } else { session };
        let attempt = |attempt: usize| if swap_attempts { ATTEMPTS - 1 - attempt } else { attempt };
        let mut renamed = State {
            reborn: self.reborn,
            crashed: self.crashed,
            rolled_back: self.rolled_back,
            ..State::default()
        };
        for s in 0..SESSIONS {
            renamed.requested[session(s)] = self.requested[s];
            renamed.approved[session(s)] = self.approved[s];
            renamed.records[session(s)] = self.records[s];
        }
        for e in 0..ENCLAVES {
            for a in 0..ATTEMPTS {
                renamed.cells[e][attempt(a)] = match self.cells[e][a] {
                    Cell::Empty => Cell::Empty,
                    Cell::Nonce(s) => Cell::Nonce(session(usize::from(s)) as u8),
                    Cell::Answered(s) => Cell::Answered(session(usize::from(s)) as u8),
                };
                for s in 0..SESSIONS {
                    for life in [false, true] {
                        if self.made & made_bit(e, s, a, life) != 0 {
                            renamed.made |= made_bit(e, session(s), attempt(a), life);
                        }
                    }
                    for view in 0..8 {
                        if self.has_signed(e, s, a, view) {
                            renamed.signed |= signed_bit(e, session(s), attempt(a), view);
                        }
                    }
                }
            }
        }
        renamed
    }
}

impl Record {
    fn commit(&mut self) -> bool {
        let pending = core::mem::replace(&mut self.pending, false);
        self.durable += u8::from(pending);
        pending
    }

    fn acknowledge(&mut self, rules: Rules) -> bool {
        let shown = if rules.holds_back { self.durable } else { self.durable + u8::from(self.pending) };
        let news = shown > self.acknowledged;
        self.acknowledged = self.acknowledged.max(shown);
        news
    }
}

/// Something that must hold in every state.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// In words.
    pub name: &'static str,
    /// Whether it holds in a state.
    pub holds: fn(&State) -> bool,
}

/// What must hold in every state.
pub const PROPERTIES: [Property; 5] = [
    Property { name: "a nonce signs one challenge", holds: one_challenge },
    Property {
        name: "nobody signs what was not requested, and approved where it has to be",
        holds: authorised,
    },
    Property {
        name: "nothing acknowledged is lost, but by a host that rolls its record back",
        holds: nothing_lost,
    },
    Property { name: "a result is of signatures of all under one view", holds: results_are_whole },
    Property { name: "an honest continuation completes every session", holds: can_complete },
];

fn one_challenge(state: &State) -> bool {
    (0..ENCLAVES).all(|enclave| {
        (0..ATTEMPTS).all(|attempt| {
            [false, true].into_iter().all(|of| {
                let views = (0..8_u8).filter(|view| life(*view, enclave) == of);
                let challenges = views.flat_map(|view| (0..SESSIONS).map(move |session| (session, view)));
                challenges.filter(|(s, view)| state.has_signed(enclave, *s, attempt, *view)).count() <= 1
            })
        })
    })
}

fn authorised(state: &State) -> bool {
    (0..SESSIONS).all(|session| {
        let signed = |enclave: usize| {
            let of = |attempt| (0..8).any(|view| state.has_signed(enclave, session, attempt, view));
            (0..ATTEMPTS).any(of)
        };
        let any = (0..ENCLAVES).any(signed);
        (!any || state.requested[session]) && (!signed(APPROVER) || state.approved[session])
    })
}

fn nothing_lost(state: &State) -> bool {
    state.rolled_back || state.records.iter().all(|record| record.acknowledged <= record.durable)
}

fn results_are_whole(state: &State) -> bool {
    (0..SESSIONS).all(|session| {
        (0..ATTEMPTS).all(|attempt| {
            let of = |view: &View| state.has_signed(AGGREGATOR, session, attempt, *view);
            (0..8)
                .filter(of)
                .all(|view| (0..ENCLAVES).all(|enclave| state.has_signed(enclave, session, attempt, view)))
        })
    })
}

/// Faults stop and everybody is honest: each session comes to its end, under an attempt that nobody named before.
fn can_complete(state: &State) -> bool {
    let mut state = state.clone();
    for session in 0..SESSIONS {
        // Attempts are random and many; the model has few names, so the old ones are used again.
        for cells in &mut state.cells {
            cells[0] = Cell::Empty;
        }
        for enclave in 0..ENCLAVES {
            for of in 0..SESSIONS {
                let lives = [false, true].map(|life| made_bit(enclave, of, 0, life));
                state.made &= !(lives[0] | lives[1]);
                for view in 0..8 {
                    state.signed &= !signed_bit(enclave, of, 0, view);
                }
            }
        }
        let view = (0..ENCLAVES).map(|enclave| View::from(state.reborn[enclave]) << enclave).sum();
        let mut honest = vec![Action::Request(session), Action::Approve(session)];
        for _ in 0..2 {
            honest.extend([Action::Submit(session), Action::Commit(session), Action::Acknowledge(session)]);
        }
        honest.extend((0..ENCLAVES).map(|enclave| Action::MakeNonces(enclave, session, 0)));
        honest.extend([1, 2, AGGREGATOR].map(|enclave| Action::Sign(enclave, session, 0, view)));
        for _ in 0..3 {
            honest.extend([Action::Submit(session), Action::Commit(session), Action::Acknowledge(session)]);
        }
        for action in honest {
            state = state.after(action, Rules::KEPT).unwrap_or(state);
        }
        if state.records[session].acknowledged != LEVEL_MAX || state.records[session].durable != LEVEL_MAX {
            return false;
        }
    }
    true
}
