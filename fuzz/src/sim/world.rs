//! The world: virtual time, what happens next, and who is told.

use std::collections::BTreeMap;

use keymeld_core::api::http::Response;
use keymeld_core::id::SigningId;
use keymeld_core::link::message::Request;
use keymeld_core::time::Time;
use keymeld_core::{client, enclave, gateway};

use super::chance::{Chance, Health};
use super::gateway_node::GatewayNode;
use super::god::God;
use super::host::{Host, Origin};
use super::hostile::Hostile;
use super::log::Log;
use super::module::START;
use super::plan::Plan;
use super::seat::{Errand, Seat};
use super::watcher::Watcher;
use super::wire::Exchange;

/// Steps of one run. Far more than any takes: a run that gets there goes in circles.
const STEPS_MAX: u64 = 60_000;
/// How long after the last deadline of all sessions, and after faults have stopped, everything has ended.
pub(crate) const ENDS_WITHIN_MS: u64 = 15 * 60_000;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Happening {
    GatewayStarts,
    GatewayWorks { life: u64 },
    ExchangeArrives { exchange: u64, copy: bool },
    ExchangeReturns { exchange: u64, response: Response },
    ExchangeFails { exchange: u64 },
    FrameArrives { at: usize, life: u64, bytes: Vec<u8>, origin: Origin },
    ReplyArrives { at: usize, generation: u64, bytes: Vec<u8> },
    CallTimesOut { at: usize, generation: u64, request_id: u64 },
    LinkDown { at: usize, generation: u64 },
    LinkUp { at: usize },
    HostStarts { at: usize },
    HostHears { at: usize, life: u64, worker: usize, event: enclave::Event },
    ModuleAnswers { at: usize, life: u64, worker: usize, asked: ModuleAsked },
    HostTicks { at: usize, life: u64, worker: usize },
    ClientHears { seat: usize, life: u64, event: client::Event },
    ClientTicks { seat: usize, life: u64 },
    ClientStarts { seat: usize },
    Invited { seat: usize, invite: Vec<u8> },
    Told { seat: usize, want: usize, signing_id: SigningId },
    Acts { seat: usize, errand: Errand },
    Rotates { at: usize },
    SpellBegins { spell: Spell, lasts_ms: u64 },
    SpellEnds { spell: Spell },
    Watches { circle: usize },
    Strikes,
    StrikesWith { number: u64, at: usize, life: u64, request: Box<Request> },
    PuppetActs { forged: usize },
    RunGoesOn { index: usize },
}

/// What a security module is asked for.
#[derive(Debug)]
pub(crate) struct ModuleAsked {
    pub(crate) token: u64,
    pub(crate) public_key: Option<Vec<u8>>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) user_data: Option<Vec<u8>>,
}

/// Something that is wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spell {
    HostGenerator(usize, Health),
    GatewayGenerator(Health),
    ClientGenerator(usize, Health),
    GatewayClock(i64),
    ClientClock(usize, i64),
}

/// Everything that there is.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) log: Log,
    pub(crate) chance: Chance,
    pub(crate) plan: Plan,
    pub(crate) now_ms: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    lives: u64,
    pub(crate) gateway: GatewayNode,
    pub(crate) hosts: Vec<Host>,
    pub(crate) seats: Vec<Seat>,
    pub(crate) exchanges: BTreeMap<u64, Exchange>,
    pub(crate) last_exchange: u64,
    pub(crate) watcher: Watcher,
    pub(crate) god: God,
    pub(crate) hostile: Hostile,
    /// What people still want done.
    pub(crate) errands: u64,
}

impl World {
    pub(crate) fn new(seed: u64, hostile: Option<bool>, log: Log) -> World {
        let mut chance = Chance::new(seed);
        let plan = Plan::new(&mut chance, hostile);
        let hosts: Vec<Host> = (0..plan.enclaves).map(|at| Host::new(seed, at, plan.workers)).collect();
        let mut seats = Vec::new();
        for (circle, of) in plan.circles.iter().enumerate() {
            for member in 0..of.members.len() {
                seats.push(Seat::new(seed, circle, member, seats.len()));
            }
        }
        let god = God::new(&plan, &seats);
        let mut world = World {
            seed,
            log,
            gateway: GatewayNode::new(seed, &hosts, plan.sessions_max),
            god,
            hostile: Hostile::new(seed),
            watcher: Watcher::default(),
            chance,
            plan,
            now_ms: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            lives: 0,
            hosts,
            seats,
            exchanges: BTreeMap::new(),
            last_exchange: 0,
            errands: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.note_plan();
        for at in 0..self.hosts.len() {
            let starts_ms = self.chance.below("enclave starts", 3_000);
            self.later(starts_ms, Happening::HostStarts { at });
            for _ in 0..self.plan.rotations {
                let rotates_ms = self.chance.below("rotates", self.plan.quiet_ms);
                self.later(rotates_ms, Happening::Rotates { at });
            }
        }
        self.later(0, Happening::GatewayStarts);
        for seat in 0..self.seats.len() {
            if self.seats[seat].member == 0 {
                let starts_ms = self.plan.circles[self.seats[seat].circle].starts_ms;
                self.later(starts_ms, Happening::ClientStarts { seat });
            }
        }
        for _ in 0..self.plan.rates.spells {
            let (begins_ms, lasts_ms) = self.spell_times();
            let spell = self.spell();
            self.later(begins_ms, Happening::SpellBegins { spell, lasts_ms });
        }
        if self.plan.hostile {
            self.later(1_000, Happening::Strikes);
        }
    }

    fn note_plan(&mut self) {
        let plan = &self.plan;
        let members: Vec<usize> = plan.circles.iter().map(|circle| circle.members.len()).collect();
        self.log.note(format_args!(
            "{} enclaves of {} workers, circles of {members:?}, {}, quiet from {} ms",
            plan.enclaves,
            plan.workers,
            if plan.hostile { "a hostile wire" } else { "an honest wire" },
            plan.quiet_ms
        ));
        if self.log.read(|held| held.lines.is_some()) {
            let text = format!("{plan:?}");
            self.log.note(format_args!("{text}"));
        } else {
            let text = format!("{plan:?}");
            self.log.read(|held| held.hash = super::chance::hash(held.hash, text.as_bytes()));
        }
    }

    fn spell_times(&mut self) -> (u64, u64) {
        let begins_ms = self.chance.below("spell begins", self.plan.quiet_ms);
        let lasts_ms = self.chance.between("spell lasts", 100, 30_000);
        (begins_ms, lasts_ms.min(self.plan.quiet_ms - begins_ms))
    }

    fn spell(&mut self) -> Spell {
        let health = if self.chance.one_in("stuck", 2) { Health::Stuck } else { Health::Fails };
        let far = self.chance.one_in("far off", 4);
        let skew = self.chance.between("skew", 0, if far { 1_200_000 } else { 90_000 }) as i64;
        let skew = skew - if far { 600_000 } else { 45_000 };
        match self.chance.below("spell", 6) {
            0 | 1 => Spell::HostGenerator(self.chance.place("spell enclave", self.hosts.len()), health),
            2 => Spell::GatewayGenerator(health),
            3 => Spell::ClientGenerator(self.chance.place("spell client", self.seats.len()), health),
            4 => Spell::GatewayClock(if far { skew / 4 } else { skew }),
            _ => Spell::ClientClock(self.chance.place("spell client", self.seats.len()), skew),
        }
    }

    /// Runs until there is nothing left to do, and looks at what is left.
    pub(crate) fn run(&mut self) {
        while self.errands > 0 || self.now_ms < self.plan.quiet_ms {
            if !self.step() {
                break;
            }
        }
        assert!(
            self.errands == 0,
            "liveness: nothing happens any more and {} errands are open",
            self.errands
        );
        self.gateway_dies(None);
        self.check_end();
    }

    fn step(&mut self) -> bool {
        let Some(((at_ms, _), happening)) = self.queue.pop_first() else { return false };
        self.now_ms = at_ms;
        let steps = self.log.step(at_ms);
        assert!(steps < STEPS_MAX, "liveness: the run goes in circles");
        let ends_ms = self.god.last_deadline_ms.max(self.plan.quiet_ms) + ENDS_WITHIN_MS;
        assert!(self.now_ms <= ends_ms, "liveness: {} errands are open at {} ms", self.errands, self.now_ms);
        self.take(happening);
        true
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::GatewayStarts => self.gateway_starts(),
            Happening::GatewayWorks { life } => self.gateway_works(life),
            Happening::ExchangeArrives { exchange, copy } => self.exchange_arrives(exchange, copy),
            Happening::ExchangeReturns { exchange, response } => self.exchange_returns(exchange, response),
            Happening::ExchangeFails { exchange } => self.exchange_fails(exchange),
            Happening::FrameArrives { at, life, bytes, origin } => {
                self.frame_arrives(at, life, &bytes, origin)
            }
            Happening::ReplyArrives { at, generation, bytes } => self.reply_arrives(at, generation, &bytes),
            Happening::CallTimesOut { at, generation, request_id } => {
                self.call_fails(at, generation, request_id);
            }
            Happening::LinkDown { at, generation } => self.link_down(at, generation),
            Happening::LinkUp { at } => self.link_up(at),
            Happening::HostStarts { at } => self.host_starts(at),
            Happening::HostHears { at, life, worker, event } => self.host_hears(at, life, worker, event),
            Happening::ModuleAnswers { at, life, worker, asked } => {
                self.module_answers(at, life, worker, asked);
            }
            Happening::HostTicks { at, life, worker } => {
                self.host_hears(at, life, worker, enclave::Event::Ticked);
            }
            Happening::ClientHears { seat, life, event } => self.client_hears(seat, life, event),
            Happening::ClientTicks { seat, life } => self.client_hears(seat, life, client::Event::Ticked),
            Happening::ClientStarts { seat } => self.client_starts(seat),
            Happening::Invited { seat, invite } => self.invited(seat, invite),
            Happening::Told { seat, want, signing_id } => self.told(seat, want, signing_id),
            Happening::Acts { seat, errand } => self.acts(seat, errand),
            Happening::Rotates { at } => {
                let enclave_id = self.hosts[at].id;
                self.gateway_hears(gateway::Event::RotationAsked { enclave_id });
            }
            Happening::SpellBegins { spell, lasts_ms } => self.spell_begins(spell, lasts_ms),
            Happening::SpellEnds { spell } => self.put_spell(spell, false),
            Happening::Watches { circle } => self.watches(circle),
            Happening::Strikes => self.strikes(),
            Happening::StrikesWith { number, at, life, request } => {
                self.strikes_as(number, at, Some(life), *request);
            }
            Happening::PuppetActs { forged } => self.puppet_acts(forged),
            Happening::RunGoesOn { index } => self.asks_for_partials(index),
        }
    }

    fn spell_begins(&mut self, spell: Spell, lasts_ms: u64) {
        let what = match spell {
            Spell::HostGenerator(..) => "fault an enclave's generator",
            Spell::GatewayGenerator(_) => "fault the gateway's generator",
            Spell::ClientGenerator(..) => "fault a client's generator",
            Spell::GatewayClock(_) => "fault the gateway's clock",
            Spell::ClientClock(..) => "fault a client's clock",
        };
        if self.log.fault(what) {
            self.log.note(format_args!("{spell:?} for {lasts_ms} ms"));
            self.put_spell(spell, true);
            self.later(lasts_ms, Happening::SpellEnds { spell });
        }
    }

    fn put_spell(&mut self, spell: Spell, begins: bool) {
        let health = |health| if begins { health } else { Health::Works };
        let skew = |skew| if begins { skew } else { 0 };
        match spell {
            Spell::HostGenerator(at, how) => self.hosts[at].set_generators(health(how)),
            Spell::GatewayGenerator(how) => self.gateway.switch.set(health(how)),
            Spell::ClientGenerator(seat, how) => self.seats[seat].switch.set(health(how)),
            Spell::GatewayClock(by) => self.gateway.skew_ms = skew(by),
            Spell::ClientClock(seat, by) => self.seats[seat].skew_ms = skew(by),
        }
    }

    /// Something will happen after a time.
    pub(crate) fn later(&mut self, after_ms: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + after_ms, self.sequence), happening);
    }

    /// A number for a process that starts.
    pub(crate) fn new_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// Whether something goes wrong now.
    pub(crate) fn fault(&mut self, what: &'static str, one_in: u64) -> bool {
        self.now_ms < self.plan.quiet_ms && self.chance.one_in(what, one_in) && self.log.fault(what)
    }

    /// How long a message takes.
    pub(crate) fn latency_ms(&mut self) -> u64 {
        self.chance.below("latency", 20)
    }

    /// The true time.
    pub(crate) fn unix_ms(&self) -> u64 {
        START + self.now_ms
    }

    /// The time on a clock that is off, of a process that started at a time.
    pub(crate) fn clock(&self, skew_ms: i64, started_ms: u64) -> Time {
        Time {
            unix_ms: self.unix_ms().saturating_add_signed(skew_ms),
            mono_ms: self.now_ms.saturating_sub(started_ms),
        }
    }
}
