//! People with their clients: what they want done, one errand after the other, and what they keep.

use std::collections::BTreeMap;

use keymeld_core::api::rest::SignRequest;
use keymeld_core::artifact::intent::{Item, Origin};
use keymeld_core::artifact::invite::Invite;
use keymeld_core::artifact::registration::{ApprovalRule, Rules};
use keymeld_core::attestation::Root;
use keymeld_core::attestation::policy::{ImagePcrs, Policy};
use keymeld_core::bytes::{Blob, Message};
use keymeld_core::client::{
    Client, Command, Config, Done, Event, Fault, Invitee, Job, JobId, Keep, Plan as ClientPlan, Review,
};
use keymeld_core::entropy::Entropy;
use keymeld_core::id::{EnclaveId, SigningId};
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_transport::nsm::software::Pcrs;

use super::chance::{Switch, generator};
use super::host::CONFIG_HASH;
use super::module::{self, START};
use super::plan::{Decision, ItemKind};
use super::wire::Asker;
use super::world::{Happening, World};

/// Host and port that proofs name, though nothing listens there.
pub(crate) const AUTHORITY: &str = "gateway.example:80";
/// How old an attestation may be.
const FRESHNESS_MS: u64 = 300_000;
/// How long registrations last; no run is as long.
const VALID_MS: u64 = 30 * 24 * 3_600_000;
/// How long somebody goes on after faults have stopped, where it has not heard a final word.
const PATIENCE_MS: u64 = 8 * 60_000;

/// Something that somebody wants done.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Reserve,
    Init,
    Join,
    AwaitKey,
    /// Ask for signatures; which of the circle's wants.
    Sign(usize),
    Review(usize, SigningId),
    Approve(usize, Box<Review>, bool),
    Withdraw(usize, Box<Review>),
    Await(usize, SigningId),
}

/// A task and how often it was tried.
#[derive(Clone, Debug)]
pub(crate) struct Errand {
    pub(crate) task: Task,
    pub(crate) tries: u32,
}

/// A person at a client.
pub(crate) struct Seat {
    pub(crate) circle: usize,
    pub(crate) member: usize,
    /// Counts the client's lives.
    pub(crate) life: u64,
    pub(crate) machine: Option<Client>,
    started_ms: u64,
    pub(crate) skew_ms: i64,
    entropy: Entropy,
    pub(crate) switch: Switch,
    invite: Option<Vec<u8>>,
    pub(crate) kept: Option<Vec<u8>>,
    /// Requests that were kept, by what was wanted.
    pub(crate) requests: BTreeMap<usize, Box<SignRequest>>,
    jobs: BTreeMap<JobId, Errand>,
    last_job: u64,
    ticks_at_ms: Option<u64>,
    /// What it does once it is back.
    postponed: Vec<Errand>,
    /// Whether it has anything to do yet.
    begun: bool,
    /// The newest births that it knew in its first life.
    pub(crate) births: BTreeMap<EnclaveId, u64>,
    pub(crate) has_key: bool,
}

impl Seat {
    pub(crate) fn new(seed: u64, circle: usize, member: usize, place: usize) -> Seat {
        let (entropy, switch) = generator(seed, 10 + place as u64);
        Seat {
            circle,
            member,
            life: 0,
            machine: None,
            started_ms: 0,
            skew_ms: 0,
            entropy,
            switch,
            invite: None,
            kept: None,
            requests: BTreeMap::new(),
            jobs: BTreeMap::new(),
            last_job: 0,
            ticks_at_ms: None,
            postponed: Vec::new(),
            begun: false,
            births: BTreeMap::new(),
            has_key: false,
        }
    }
}

/// The policy that trusts exactly the genuine enclaves.
fn config(births: BTreeMap<EnclaveId, u64>) -> Config {
    let Pcrs { pcr0, pcr1, pcr2, .. } = Pcrs::default();
    Config {
        authority: AUTHORITY.into(),
        policy: Policy {
            roots: vec![Root::development(module::root().certificate()).expect("a certificate")],
            images: vec![ImagePcrs { pcr0, pcr1, pcr2, pcr8: None }],
            birth_pcr0: vec![pcr0],
            config_hashes: vec![CONFIG_HASH],
            freshness_ms: FRESHNESS_MS,
        },
        api_token: None,
        newest_births: births,
    }
}

impl World {
    /// The seat of a circle's member.
    pub(crate) fn seat_of(&self, circle: usize, member: usize) -> usize {
        let seat = self.seats.iter().position(|seat| seat.circle == circle && seat.member == member);
        seat.expect("every member has a seat")
    }

    fn rules(&self, circle: usize, member: usize) -> Rules {
        let of = &self.plan.circles[circle].members[member];
        Rules {
            approval: if of.approves { ApprovalRule::Required } else { ApprovalRule::Delegated },
            allow_any_requester: of.any_requester,
            allow_blind: of.blind,
            ..Rules::careful(START + VALID_MS)
        }
    }

    fn client_plan(&self, circle: usize) -> ClientPlan {
        let of = &self.plan.circles[circle];
        let invitee = |member: &super::plan::MemberPlan| Invitee {
            name: None,
            signing_key: member.pinned.then(|| self.god.public_key(&member.key)),
        };
        let invitees = of.members[1..].iter().map(invitee).collect();
        ClientPlan {
            subsets: of.subsets.clone(),
            default_tweak: of.default_tweak.clone(),
            requesters: of.requesters,
            timeout_ms: of.timeout_ms,
            ..ClientPlan::new(format!("http://{AUTHORITY}"), invitees, self.rules(circle, 0))
        }
    }

    /// A client process starts: from what was kept, from the invite, or anew.
    pub(crate) fn client_starts(&mut self, place: usize) {
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        let key = Secret::copied_from(&self.plan.circles[circle].members[member].key);
        let births = self.god.births_known(place);
        if !self.seats[place].begun {
            self.seats[place].births = births.clone();
        }
        let config = config(births);
        let now = self.clock(self.seats[place].skew_ms, self.now_ms);
        let (plan, rules) = (self.client_plan(circle), self.rules(circle, member));
        self.seats[place].life = self.new_life();
        let seat = &mut self.seats[place];
        let machine = match (&seat.kept, &seat.invite) {
            (Some(kept), _) => Some(Client::resume(config, key, kept).expect("what it kept is whole")),
            (None, Some(invite)) => {
                let invite = Invite::decode(invite).expect("as it was handed out");
                Some(Client::join(config, key, invite, rules).expect("a key"))
            }
            (None, None) => Client::coordinate(config, key, plan, now, &mut seat.entropy).ok(),
        };
        seat.started_ms = self.now_ms;
        seat.ticks_at_ms = None;
        seat.machine = machine;
        if seat.machine.is_none() {
            // Its generator does not work.
            self.log.note(format_args!("client {place} cannot start"));
            return self.later(1_000, Happening::ClientStarts { seat: place });
        }
        self.log.note(format_args!("client {place} starts"));
        let postponed = std::mem::take(&mut seat.postponed);
        for errand in postponed {
            self.later(1, Happening::Acts { seat: place, errand });
        }
        if !std::mem::replace(&mut self.seats[place].begun, true) {
            self.wants(place, if member == 0 { Task::Reserve } else { Task::Join }, 0);
        }
    }

    fn client_dies(&mut self, place: usize) {
        self.log.note(format_args!("client {place} dies"));
        let seat = &mut self.seats[place];
        seat.machine = None;
        seat.has_key = false;
        let jobs = std::mem::take(&mut seat.jobs);
        seat.postponed.extend(jobs.into_values());
        seat.life += 1 << 32;
        let down_ms = self.chance.between("client down", 10, 10_000);
        self.later(down_ms, Happening::ClientStarts { seat: place });
    }

    pub(crate) fn invited(&mut self, place: usize, invite: Vec<u8>) {
        self.errands -= 1;
        if self.seats[place].invite.is_none() {
            self.seats[place].invite = Some(invite);
            self.client_starts(place);
        }
    }

    /// Somebody has something more to do.
    fn wants(&mut self, place: usize, task: Task, after_ms: u64) {
        self.errands += 1;
        self.later(after_ms, Happening::Acts { seat: place, errand: Errand { task, tries: 0 } });
    }

    pub(crate) fn acts(&mut self, place: usize, errand: Errand) {
        let Some(job) = self.job(place, &errand.task) else { return };
        let patience_ms = self.chance.between("patience", 5_000, 300_000);
        let seat = &mut self.seats[place];
        if seat.machine.is_none() {
            return seat.postponed.push(errand);
        }
        seat.last_job += 1;
        let job_id = JobId(seat.last_job);
        self.log.note(format_args!("client {place} begins {}, try {}", name(&errand.task), errand.tries));
        seat.jobs.insert(job_id, errand);
        let life = seat.life;
        self.client_hears(place, life, Event::Asked { job_id, job, timeout_ms: patience_ms });
    }

    fn job(&mut self, place: usize, task: &Task) -> Option<Job> {
        Some(match task {
            Task::Reserve => Job::Reserve,
            Task::Init => Job::Init,
            Task::Join => Job::Join,
            Task::AwaitKey => Job::AwaitKey,
            Task::Sign(want) => {
                let circle = self.seats[place].circle;
                let in_one = self.plan.circles[circle].wants[*want].in_one;
                match self.seats[place].requests.get(want) {
                    Some(request) if in_one => Job::Resume(*request.clone()),
                    Some(request) => Job::Resend(*request.clone()),
                    None => self.request_job(place, *want, in_one)?,
                }
            }
            Task::Review(_, signing_id) => Job::Review(*signing_id),
            Task::Approve(_, review, blind) => Job::Approve { review: review.clone(), blind: *blind },
            Task::Withdraw(_, review) => {
                Job::Withdraw { review: review.clone(), reason: Some("not this one".into()) }
            }
            Task::Await(_, signing_id) => Job::AwaitSignatures(*signing_id),
        })
    }

    fn request_job(&mut self, place: usize, want: usize, in_one: bool) -> Option<Job> {
        let circle = self.seats[place].circle;
        let of = &self.plan.circles[circle].wants[want];
        let seat = &mut self.seats[place];
        let mut items = Vec::new();
        for plan in &of.items {
            let made = match &plan.kind {
                ItemKind::Text(text) => Item::of(Origin::Text(text.clone()), &mut seat.entropy),
                ItemKind::Bytes(bytes) => Item::of(Origin::Bytes(Blob(bytes.clone())), &mut seat.entropy),
                ItemKind::Blind(message) => Item::blind(Message(*message), &mut seat.entropy),
            };
            let Ok(item) = made else {
                // Its generator does not work; it tries again.
                self.later(
                    2_000,
                    Happening::Acts { seat: place, errand: Errand { task: Task::Sign(want), tries: 1 } },
                );
                return None;
            };
            let subset = plan.subset.map(|subset| self.god.circles[circle].subsets[subset]);
            items.push(Item { subset, tweak: plan.tweak.clone(), ..item });
        }
        for item in &items {
            self.god.wanted.insert(item.item_id, (circle, want));
        }
        let unix_ms = (START + self.now_ms).saturating_add_signed(seat.skew_ms);
        let expires_at = of.lifetime_ms.map(|lifetime_ms| unix_ms + lifetime_ms);
        Some(if in_one { Job::Sign { items, expires_at } } else { Job::Request { items, expires_at } })
    }

    pub(crate) fn client_hears(&mut self, place: usize, life: u64, event: Event) {
        if self.seats[place].life != life || self.seats[place].machine.is_none() {
            return;
        }
        if self.fault("fault a client dies", 4 * self.plan.rates.client) {
            return self.client_dies(place);
        }
        let seat = &mut self.seats[place];
        let now = {
            let skew_ms = seat.skew_ms;
            let started_ms = seat.started_ms;
            keymeld_core::time::Time {
                unix_ms: (START + self.now_ms).saturating_add_signed(skew_ms),
                mono_ms: self.now_ms - started_ms,
            }
        };
        let Some(machine) = &mut seat.machine else { return };
        machine.handle(now, event, &mut seat.entropy);
        let mut commands = Vec::new();
        while let Some(command) = machine.poll_command() {
            commands.push(command);
        }
        if let Some(deadline) = machine.next_deadline() {
            let due_ms = (seat.started_ms + deadline.mono_ms).max(self.now_ms);
            if seat.ticks_at_ms.is_none_or(|at_ms| at_ms > due_ms || at_ms <= self.now_ms) {
                seat.ticks_at_ms = Some(due_ms);
                self.later(due_ms - self.now_ms, Happening::ClientTicks { seat: place, life });
            }
        }
        for command in commands {
            // It may have died of one of them.
            if self.seats[place].life == life {
                self.client_executes(place, life, command);
            }
        }
    }

    fn client_executes(&mut self, place: usize, life: u64, command: Command) {
        match command {
            Command::Store { token, keep } => {
                let event = if self.fault("fault a client's disk fails", 4 * self.plan.rates.client) {
                    Event::StoreFailed { token }
                } else {
                    self.keeps(place, keep);
                    Event::Stored { token }
                };
                let after_ms = self.chance.below("stored", 5);
                self.later(after_ms, Happening::ClientHears { seat: place, life, event });
            }
            Command::Send { call, request, timeout_ms } => {
                self.judge_request(place, &request);
                self.sends_request(Asker::Seat { seat: place, life, call }, request, timeout_ms);
            }
            Command::Finish { job_id, outcome } => {
                let errand = self.seats[place].jobs.remove(&job_id);
                let errand = errand.expect("a job finishes once");
                self.finished(place, errand, outcome);
            }
        }
    }

    fn keeps(&mut self, place: usize, keep: Keep) {
        match keep {
            Keep::Membership(bytes) => {
                self.god.kept(&bytes);
                self.seats[place].kept = Some(bytes.to_vec());
            }
            Keep::Request(request) => {
                let first = request.items.first().map(|item| item.item_id);
                let wanted = first.and_then(|item_id| self.god.wanted.get(&item_id));
                let (circle, want) = *wanted.expect("clients ask for what people want");
                // It has asked already, and its answer is not known: one request for one payment.
                assert!(!self.seats[place].requests.contains_key(&want), "S4: a second request is made");
                self.god.requested(&self.plan.circles[circle], circle, want, &request);
                let signing_id = request.signing_id;
                self.seats[place].requests.insert(want, request);
                self.log.note(format_args!("client {place} keeps request {signing_id}"));
                self.tells(circle, want, signing_id);
                if self.plan.watched {
                    self.later(500, Happening::Watches { circle });
                }
            }
        }
    }

    /// The requester tells the others, and itself, of a session.
    fn tells(&mut self, circle: usize, want: usize, signing_id: SigningId) {
        for member in 0..self.plan.circles[circle].members.len() {
            if self.plan.circles[circle].members[member].absent {
                continue;
            }
            let seat = self.seat_of(circle, member);
            self.errands += 1;
            let after_ms = self.chance.between("told", 10, 10_000);
            self.later(after_ms, Happening::Told { seat, want, signing_id });
        }
    }

    pub(crate) fn told(&mut self, place: usize, want: usize, signing_id: SigningId) {
        self.errands -= 1;
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        let of = &self.plan.circles[circle].wants[want];
        let (requests, in_one, decision) = (of.requester == member, of.in_one, of.decisions[member]);
        match decision {
            Decision::Ignore => {}
            Decision::Approve { .. } if requests => {}
            Decision::Approve { .. } | Decision::Refuse => {
                self.wants(place, Task::Review(want, signing_id), 0)
            }
        }
        if !(requests && in_one) {
            self.wants(place, Task::Await(want, signing_id), 0);
        }
    }

    fn finished(&mut self, place: usize, errand: Errand, outcome: Result<Done, Fault>) {
        match &outcome {
            Ok(_) => self.log.note(format_args!("client {place} has done {}", name(&errand.task))),
            Err(fault) => self.log.note(format_args!("client {place}, {}: {fault}", name(&errand.task))),
        }
        match outcome {
            Ok(done) => {
                self.errands -= 1;
                self.done(place, errand.task, done);
            }
            Err(fault) => self.failed(place, errand, fault),
        }
    }

    fn done(&mut self, place: usize, task: Task, done: Done) {
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        match (task, done) {
            (Task::Reserve, Done::Reserved) => self.wants(place, Task::Init, 0),
            (Task::Init, Done::Initialised) => {
                self.hands_out_invites(place);
                self.wants(place, Task::Join, 0);
                if self.plan.watched {
                    self.later(0, Happening::Watches { circle });
                }
            }
            (Task::Join, Done::Joined) => self.wants(place, Task::AwaitKey, 0),
            (Task::AwaitKey, Done::Key(key)) => {
                self.judge_key(place, &key);
                if std::mem::replace(&mut self.seats[place].has_key, true) {
                    return;
                }
                for want in 0..self.plan.circles[circle].wants.len() {
                    let of = &self.plan.circles[circle].wants[want];
                    if of.requester == member {
                        let starts_ms = of.starts_ms;
                        self.wants(place, Task::Sign(want), starts_ms);
                    }
                }
            }
            (Task::Sign(want), Done::Requested(signing_id)) => {
                assert_eq!(self.seats[place].requests[&want].signing_id, signing_id);
            }
            (Task::Sign(want) | Task::Await(want, _), Done::Signed(signing_id, outcomes)) => {
                self.judge_signatures(place, want, signing_id, &outcomes);
            }
            (Task::Review(want, _), Done::Reviewed(review)) => self.decides(place, want, review),
            (Task::Approve(..), Done::Approved) | (Task::Withdraw(..), Done::Withdrawn) => {}
            (task, done) => panic!("S4: {task:?} ends as {done:?}"),
        }
    }

    fn hands_out_invites(&mut self, place: usize) {
        let circle = self.seats[place].circle;
        let machine = self.seats[place].machine.as_ref().expect("it has just finished a job");
        let invites: Vec<Vec<u8>> =
            machine.invites().iter().map(|invite| invite.encode().expect("short").to_vec()).collect();
        assert_eq!(invites.len() + 1, self.plan.circles[circle].members.len(), "everybody is invited");
        for (index, invite) in invites.into_iter().enumerate() {
            if !self.plan.circles[circle].members[index + 1].absent {
                let seat = self.seat_of(circle, index + 1);
                let after_ms = self.chance.below("invite", 5_000);
                self.errands += 1;
                self.later(after_ms, Happening::Invited { seat, invite });
            }
        }
    }

    fn decides(&mut self, place: usize, want: usize, review: Box<Review>) {
        let (circle, member) = (self.seats[place].circle, self.seats[place].member);
        self.judge_review(place, want, &review);
        let after_ms = self.chance.below("thinks", 3_000);
        match self.plan.circles[circle].wants[want].decisions[member] {
            Decision::Approve { blind } => self.wants(place, Task::Approve(want, review, blind), after_ms),
            Decision::Refuse => self.wants(place, Task::Withdraw(want, review), after_ms),
            Decision::Ignore => {}
        }
    }

    /// Nothing came of it: it is tried again, unless that was the last word.
    fn failed(&mut self, place: usize, errand: Errand, fault: Fault) {
        let gives_up_ms = self.god.last_deadline_ms.max(self.plan.quiet_ms) + PATIENCE_MS;
        let last_word = self.is_last_word(&errand.task, &fault);
        if last_word || self.now_ms >= gives_up_ms {
            self.errands -= 1;
            return self.judge_failure(place, &errand.task, &fault, last_word);
        }
        let again = Errand { tries: errand.tries + 1, ..errand };
        let after_ms = self.chance.between("tries again", 500, 4_000) * u64::from(again.tries.min(8));
        self.later(after_ms, Happening::Acts { seat: place, errand: again });
    }

    fn is_last_word(&self, task: &Task, fault: &Fault) -> bool {
        match fault {
            Fault::Ended(..) => true,
            Fault::Refused(refusal) => match task {
                // The session has ended, or does not need this.
                Task::Approve(..) | Task::Withdraw(..) => {
                    let codes = [Code::WrongState, Code::Expired, Code::KeyNotAllowed, Code::IntentExpired];
                    codes.contains(&refusal.code)
                }
                Task::Review(..) => refusal.code == Code::IntentExpired,
                Task::Sign(_) => {
                    let codes = [
                        Code::IntentExpired,
                        Code::RequesterNotAllowed,
                        Code::BadItems,
                        Code::IntentLifetime,
                        Code::BadTweak,
                        Code::IntentNotYetValid,
                    ];
                    codes.contains(&refusal.code)
                }
                Task::Join => {
                    let codes = [Code::SlotTaken, Code::DuplicateKey, Code::Expired];
                    codes.contains(&refusal.code)
                }
                Task::Reserve | Task::Init | Task::AwaitKey | Task::Await(..) => false,
            },
            Fault::Unverified(_) | Fault::Unattested(..) | Fault::NotStored | Fault::TimedOut => false,
        }
    }
}

/// For people who read traces.
pub(crate) fn name(task: &Task) -> String {
    match task {
        Task::Reserve => "reserving".into(),
        Task::Init => "publishing".into(),
        Task::Join => "joining".into(),
        Task::AwaitKey => "waiting for the key".into(),
        Task::Sign(want) => format!("asking for want {want}"),
        Task::Review(_, id) => format!("reviewing {id}"),
        Task::Approve(_, review, blind) => {
            format!("approving {} (blind: {blind})", review.intent.intent().signing_id)
        }
        Task::Withdraw(_, review) => format!("withdrawing {}", review.intent.intent().signing_id),
        Task::Await(_, id) => format!("waiting for {id}"),
    }
}
