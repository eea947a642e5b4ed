//! HTTP exchanges and what becomes of them on the way.

use keymeld_core::api::http::{Request, Response};
use keymeld_core::api::problem;
use keymeld_core::api::router::{self, Call};
use keymeld_core::client::{CallId, Event};
use keymeld_core::gateway;
use keymeld_core::limits::SKEW_MS;
use keymeld_core::refusal::Code;

use super::world::{Happening, World};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A client, in one of its lives.
    Seat { seat: usize, life: u64, call: CallId },
    /// Whoever follows all sessions.
    Watcher { circle: usize },
    /// The hostile wire, which does not care about the answer.
    Nobody,
}

/// A request under way, or its answer.
pub(crate) struct Exchange {
    pub(crate) asker: Asker,
    pub(crate) request: Request,
    /// What the router made of it.
    pub(crate) call: Option<Call>,
    answer_lost: bool,
}

/// What becomes of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    /// The request gets lost, and the client hears so.
    Lost,
    /// It gets lost, and the client hears nothing.
    Swallowed,
    /// It is carried out, and the answer gets lost, with a word or without.
    AnswerLost,
    AnswerSwallowed,
    Late,
    /// It arrives twice.
    Doubled,
    /// The client gives up, and it is carried out all the same.
    GivenUp,
}

impl World {
    fn fate(&mut self) -> Fate {
        if !self.fault("fault an exchange", self.plan.rates.exchange) {
            return Fate::Good;
        }
        let fates = [
            Fate::Lost,
            Fate::Swallowed,
            Fate::AnswerLost,
            Fate::AnswerSwallowed,
            Fate::Late,
            Fate::Doubled,
            Fate::GivenUp,
        ];
        let fate = fates[self.chance.place("fate", fates.len())];
        self.log.note(format_args!("fate: {fate:?}"));
        fate
    }

    /// A request goes out.
    pub(crate) fn sends_request(&mut self, asker: Asker, request: Request, timeout_ms: u64) {
        self.god.leaks.scan(&request.body, "a request");
        self.god.leaks.scan(request.target.as_bytes(), "a target");
        let fate = self.fate();
        self.last_exchange += 1;
        let number = self.last_exchange;
        let answer_lost = matches!(fate, Fate::AnswerLost | Fate::AnswerSwallowed);
        let request = self.request_on_wire(request);
        self.exchanges.insert(number, Exchange { asker, request, call: None, answer_lost });
        self.later(timeout_ms, Happening::ExchangeFails { exchange: number });
        let mut after_ms = self.latency_ms();
        match fate {
            Fate::Lost => return self.later(after_ms, Happening::ExchangeFails { exchange: number }),
            Fate::Swallowed => return,
            Fate::AnswerLost | Fate::GivenUp => {
                let gives_up_ms = self.chance.below("gives up", 2_000);
                self.later(gives_up_ms, Happening::ExchangeFails { exchange: number });
            }
            Fate::Late => after_ms += self.chance.below("late request", 20_000),
            Fate::Good | Fate::AnswerSwallowed | Fate::Doubled => {}
        }
        self.later(after_ms, Happening::ExchangeArrives { exchange: number, copy: false });
        if fate == Fate::Doubled {
            let copy_ms = self.chance.below("copy", 5_000);
            self.later(copy_ms, Happening::ExchangeArrives { exchange: number, copy: true });
        }
    }

    pub(crate) fn exchange_arrives(&mut self, number: u64, copy: bool) {
        let Some(exchange) = self.exchanges.get(&number) else { return };
        if !self.gateway.is_up() {
            return self.later(1, Happening::ExchangeFails { exchange: number });
        }
        let number = if copy {
            let Exchange { request, .. } = exchange;
            let copied =
                Exchange { asker: Asker::Nobody, request: request.clone(), call: None, answer_lost: true };
            self.last_exchange += 1;
            self.exchanges.insert(self.last_exchange, copied);
            self.last_exchange
        } else {
            number
        };
        match router::route(&self.exchanges[&number].request) {
            Ok(call) => {
                if let Some(exchange) = self.exchanges.get_mut(&number) {
                    exchange.call = Some(call.clone());
                }
                let request = self.gateway.request(number);
                self.gateway_hears(gateway::Event::Requested { request, call });
            }
            Err(code) => {
                let response = problem::refused(&Code::into(code));
                self.response_leaves(number, response);
            }
        }
    }

    /// The gateway answers.
    pub(crate) fn gateway_responds(&mut self, number: u64, response: Response) {
        if let Some(exchange) = self.exchanges.get(&number)
            && let Some(call) = &exchange.call
        {
            let call = call.clone();
            let done = (200..300).contains(&response.status);
            if let Some(proof) = exchange.request.proof.clone().filter(|_| done) {
                let earlier = self.god.proofs.insert((self.gateway.life, proof), self.now_ms);
                let long_ago = |at_ms| self.now_ms - at_ms > 2 * SKEW_MS;
                assert!(earlier.is_none_or(long_ago), "a proof is taken twice");
            }
            self.god.leaks.scan(&response.body, "a response");
            self.judge_response(&call, &response);
        }
        self.response_leaves(number, response);
    }

    fn response_leaves(&mut self, number: u64, response: Response) {
        let Some(exchange) = self.exchanges.get(&number) else { return };
        self.log.note(format_args!(
            "{:?}: {} {} is answered {}",
            exchange.asker,
            exchange.request.method.as_str(),
            exchange.request.target,
            response.status
        ));
        if exchange.answer_lost {
            return;
        }
        let response = self.response_on_wire(number, response);
        let after_ms = self.latency_ms();
        self.later(after_ms, Happening::ExchangeReturns { exchange: number, response });
    }

    pub(crate) fn exchange_returns(&mut self, number: u64, response: Response) {
        let Some(exchange) = self.exchanges.remove(&number) else { return };
        match exchange.asker {
            Asker::Seat { seat, life, call } => {
                self.client_hears(seat, life, Event::Replied { call, response });
            }
            Asker::Watcher { circle } => {
                self.watcher_hears(circle, &exchange.request.target, Some(&response))
            }
            Asker::Nobody => {}
        }
    }

    pub(crate) fn exchange_fails(&mut self, number: u64) {
        // Whoever gives up does not undo what is under way.
        let Some(exchange) = self.exchanges.get_mut(&number) else { return };
        let asker = std::mem::replace(&mut exchange.asker, Asker::Nobody);
        let target = exchange.request.target.clone();
        // A listener that notices says so.
        let request = self.gateway.requests.iter().find(|(_, other)| **other == number).map(|(id, _)| *id);
        if let Some(request) = request
            && self.chance.one_in("abandoned", 2)
        {
            self.gateway.requests.remove(&request);
            self.gateway_hears(gateway::Event::Abandoned { request });
        }
        match asker {
            Asker::Seat { seat, life, call } => self.client_hears(seat, life, Event::CallFailed { call }),
            Asker::Watcher { circle } => self.watcher_hears(circle, &target, None),
            Asker::Nobody => {}
        }
    }
}
