//! The hostile host: it owns what is between the gateway and the enclaves and between the clients and the
//! gateway, keeps all that it ever saw, and people help it with what they know.
//!
//! The gateway in its middle is an honest machine: so things get far enough to be worth attacking. Beside it the
//! host runs the rounds by itself, with its own attempts (`runs`), with what colluders forge (`people`), and
//! lies to clients (`lies`). Everything that it changes is structured: a field, a list, a blob for another
//! (`fields`).

mod fields;
mod lies;
mod people;
mod puppet;
mod rosters;
mod rows;
mod runs;

use std::collections::BTreeMap;

use keymeld_core::api::http::{Request as HttpRequest, Response};
use keymeld_core::bytes::PublicKey;
use keymeld_core::entropy::Entropy;
use keymeld_core::id::KeygenId;
use keymeld_core::link::message::{
    CreateIdentity, IdentityRow, MakeNonces, OpenKeygen, Refused, Reply, Request,
};
use keymeld_core::refusal::Code;

use super::chance::generator;
use super::host::Origin;
use super::wire::Asker;
use super::world::{Happening, World};
use fields::Pools;
use puppet::Puppet;
use rosters::Forged;
use runs::HostileRun;

/// Frames, replies and HTTP messages that it remembers, of each.
const HEARD_MAX: usize = 256;
/// Processes that it clones, of all enclaves.
const CLONES_MAX: usize = 20;
/// Runs of the rounds that it begins.
const RUNS_MAX: usize = 12;

/// What it knows.
pub(crate) struct Hostile {
    entropy: Entropy,
    pools: Pools,
    frames: Vec<(usize, Request)>,
    replies: Vec<Reply>,
    rows: Vec<IdentityRow>,
    /// What opens each keygen at each key.
    openings: BTreeMap<(KeygenId, PublicKey), OpenKeygen>,
    /// What begins each run that it saw.
    beginnings: Vec<MakeNonces>,
    responses: Vec<(String, Response)>,
    requests: Vec<HttpRequest>,
    clones: Vec<(usize, u64)>,
    runs: Vec<HostileRun>,
    /// Which of its runs each of its frames is for.
    sent: BTreeMap<u64, (usize, PublicKey)>,
    /// An enclave of its own for each circle that somebody betrays.
    puppets: BTreeMap<usize, Puppet>,
    forged: Vec<Forged>,
    /// Which of them each of its frames opens, and where.
    openings_sent: BTreeMap<u64, (usize, PublicKey)>,
    last_number: u64,
}

impl Hostile {
    pub(crate) fn new(seed: u64) -> Hostile {
        Hostile {
            entropy: generator(seed, 7).0,
            pools: Pools::default(),
            frames: Vec::new(),
            replies: Vec::new(),
            rows: Vec::new(),
            openings: BTreeMap::new(),
            beginnings: Vec::new(),
            responses: Vec::new(),
            requests: Vec::new(),
            clones: Vec::new(),
            runs: Vec::new(),
            sent: BTreeMap::new(),
            puppets: BTreeMap::new(),
            forged: Vec::new(),
            openings_sent: BTreeMap::new(),
            last_number: 0,
        }
    }

    fn learn_request(&mut self, at: usize, request: &Request) {
        self.pools.learn_request(request);
        if self.frames.len() < HEARD_MAX {
            self.frames.push((at, request.clone()));
        }
        match request {
            Request::OpenKeygen(open) => {
                self.openings.entry((open.keygen_id, open.enclave_key)).or_insert_with(|| open.clone());
            }
            Request::MakeNonces(make) => {
                let known = self.beginnings.iter().any(|other| other.run.digest == make.run.digest);
                if !known && self.beginnings.len() < HEARD_MAX {
                    self.beginnings.push(make.clone());
                }
            }
            Request::Hello
            | Request::CreateIdentity(_)
            | Request::OpenIdentity(_)
            | Request::Attest(_)
            | Request::CheckRegistration(_)
            | Request::MakePartials(_)
            | Request::Aggregate(_) => {}
        }
    }

    fn learn_reply(&mut self, reply: &Reply) {
        self.pools.learn_reply(reply);
        if let Reply::IdentityCreated(row) = reply {
            self.rows.push(row.clone());
        }
        if self.replies.len() < HEARD_MAX {
            self.replies.push(reply.clone());
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

impl World {
    /// A frame of the gateway is on its way to an enclave.
    pub(crate) fn frame_on_wire(&mut self, at: usize, routing_id: [u8; 16], body: Vec<u8>, origin: Origin) {
        if !self.plan.hostile {
            return self.deliver_frame(at, routing_id, body, origin);
        }
        let request = Request::decode(&body).expect("the gateway speaks the protocol");
        self.hostile.learn_request(at, &request);
        if !self.fault("hostile: a frame", self.plan.rates.hostile) {
            return self.deliver_frame(at, routing_id, body, origin);
        }
        let action = self.chance.below("hostile frame", 8);
        match action {
            // It takes long, or for ever.
            0 => {}
            // Something in it is changed.
            1 | 2 => {
                let (changed, routing_id) = self.changed(&request, routing_id);
                self.deliver_frame(at, routing_id, changed, origin);
            }
            // The same, for the host itself, before the genuine one.
            3 | 4 => {
                let (changed, routing_id) = self.changed(&request, routing_id);
                self.strikes_with(at, None, routing_id, changed);
                self.deliver_frame(at, routing_id, body, origin);
            }
            // Another gets it.
            5 => {
                let other = self.chance.place("another enclave", self.hosts.len());
                self.deliver_frame(other, routing_id, body, origin);
            }
            // A clone gets it too.
            6 => {
                if let Some((of, life)) = self.some_clone() {
                    self.strikes_with(of, Some(life), routing_id, body.clone());
                }
                self.deliver_frame(at, routing_id, body, origin);
            }
            // Twice.
            _ => {
                self.strikes_with(at, None, routing_id, body.clone());
                self.deliver_frame(at, routing_id, body, origin);
            }
        }
    }

    /// A request with one thing changed; mostly under the routing id that goes with it.
    fn changed(&mut self, request: &Request, routing_id: [u8; 16]) -> (Vec<u8>, [u8; 16]) {
        let mut request = request.clone();
        self.hostile.pools.change_request(&mut request, &mut self.chance);
        if self.chance.one_in("two changes", 5) {
            self.hostile.pools.change_request(&mut request, &mut self.chance);
        }
        let routing_id =
            if self.chance.one_in("wrong routing", 8) { routing_id } else { request.routing_id() };
        let mut body = request.encode();
        if self.chance.one_in("random bytes", 12) {
            let at = self.chance.place("random byte", body.len());
            body[at] ^= 1 << self.chance.below("random bit", 8);
        }
        (body, routing_id)
    }

    fn some_clone(&mut self) -> Option<(usize, u64)> {
        let count = self.hostile.clones.len();
        (count > 0).then(|| self.hostile.clones[self.chance.place("which clone", count)])
    }

    /// Sends an enclave's process something of the host's own; the first process where none is named.
    fn strikes_with(&mut self, at: usize, life: Option<u64>, routing_id: [u8; 16], body: Vec<u8>) -> u64 {
        let number = self.hostile.number();
        if let Some(life) = life.or(self.hosts[at].life()) {
            self.deliver_frame_to(at, life, routing_id, body, Origin::Hostile { number });
        }
        number
    }

    /// Sends a process something that already has its number.
    pub(crate) fn strikes_as(&mut self, number: u64, at: usize, life: Option<u64>, request: Request) {
        let routing_id = request.routing_id();
        if let Some(life) = life.or(self.hosts[at].life()) {
            self.deliver_frame_to(at, life, routing_id, request.encode(), Origin::Hostile { number });
        }
    }

    fn strikes_with_request(&mut self, at: usize, life: Option<u64>, request: Request) -> u64 {
        let routing_id = request.routing_id();
        self.strikes_with(at, life, routing_id, request.encode())
    }

    /// An enclave's reply is on its way.
    pub(crate) fn reply_on_wire(
        &mut self,
        at: usize,
        origin: Origin,
        routing_id: [u8; 16],
        body: Vec<u8>,
        reply: &Reply,
    ) {
        if self.plan.hostile {
            self.hostile.learn_reply(reply);
        }
        let (generation, request_id) = match origin {
            Origin::Gateway { generation, request_id } => (generation, request_id),
            Origin::Hostile { number } => return self.run_goes_on(number, reply),
        };
        if !self.plan.hostile || !self.fault("hostile: a reply", 2 * self.plan.rates.hostile) {
            return self.deliver_reply(at, (generation, request_id), routing_id, body);
        }
        let body = match self.chance.below("hostile reply", 5) {
            0 => return,
            1 => {
                let other = self.chance.place("other reply", self.hostile.replies.len());
                self.hostile.replies[other].clone().encode()
            }
            2 => {
                let codes = Code::ALL;
                let code = codes[self.chance.place("code", codes.len())];
                Reply::Refused(Refused { code: code.number(), culprits: Vec::new() }).encode()
            }
            _ => {
                let mut changed = reply.clone();
                self.hostile.pools.change_field(fields::of_reply(&mut changed), &mut self.chance);
                changed.encode()
            }
        };
        self.deliver_reply(at, (generation, request_id), routing_id, body);
    }

    /// From time to time the host does something by itself.
    pub(crate) fn strikes(&mut self) {
        if self.now_ms >= self.plan.quiet_ms {
            return;
        }
        let after_ms = self.chance.between("strikes again", 200, 6_000);
        self.later(after_ms, Happening::Strikes);
        if !self.fault("hostile: a strike", 1) {
            return;
        }
        match self.chance.below("strike", 18) {
            0 => self.replays_frame(),
            1 => self.strikes_with_row(),
            2 => self.opens_altered(),
            3 => self.clones(),
            4 => self.replays_request(),
            5 => self.makes_up_row(),
            6..=8 => self.forges_roster(),
            9 | 10 => self.forges_intent(),
            11 => self.forges_approval(),
            12 | 13 => self.approves_carelessly(),
            _ => self.runs_again(),
        }
    }

    fn replays_frame(&mut self) {
        if self.hostile.frames.is_empty() {
            return;
        }
        let which = self.chance.place("which frame", self.hostile.frames.len());
        let (at, request) = self.hostile.frames[which].clone();
        let life = if self.chance.one_in("to a clone", 3) { self.some_clone() } else { None };
        self.log.note(format_args!("hostile: a frame of before to enclave {at}"));
        match life {
            Some((of, life)) => self.strikes_with_request(of, Some(life), request),
            None if self.chance.one_in("changed", 2) => {
                let (body, routing_id) = self.changed(&request, request.routing_id());
                self.strikes_with(at, None, routing_id, body)
            }
            None => self.strikes_with_request(at, None, request),
        };
    }

    fn strikes_with_row(&mut self) {
        let at = self.chance.place("row at", self.hosts.len());
        let epoch = 1 + self.chance.below("row epoch", 3) as u32;
        let request = if self.hostile.rows.is_empty() || self.chance.one_in("create", 4) {
            Request::CreateIdentity(CreateIdentity { epoch })
        } else {
            let which = self.chance.place("which row", self.hostile.rows.len());
            Request::OpenIdentity(self.hostile.rows[which].clone())
        };
        self.log.note(format_args!("hostile: a row to enclave {at}"));
        let (body, routing_id) = match self.chance.one_in("row as it is", 3) {
            true => (request.clone().encode(), request.routing_id()),
            false => self.changed(&request, [0; 16]),
        };
        let life = if self.chance.one_in("to a clone", 3) { self.some_clone() } else { None };
        match life {
            Some((of, life)) => self.strikes_with(of, Some(life), routing_id, body),
            None => self.strikes_with(at, None, routing_id, body),
        };
    }

    fn opens_altered(&mut self) {
        let Some((open, at)) = self.some_opening() else { return };
        self.log.note(format_args!("hostile: an altered opening to enclave {at}"));
        let request = Request::OpenKeygen(open);
        let (body, routing_id) = self.changed(&request, request.routing_id());
        self.strikes_with(at, None, routing_id, body);
    }

    fn some_opening(&mut self) -> Option<(OpenKeygen, usize)> {
        let count = self.hostile.openings.len();
        if count == 0 {
            return None;
        }
        let which = self.chance.place("which opening", count);
        let open = self.hostile.openings.values().nth(which)?.clone();
        let at = self.god.identities.get(&open.enclave_key)?.at;
        Some((open, at))
    }

    fn clones(&mut self) {
        if self.hostile.clones.len() >= CLONES_MAX / 4 || self.hostile.rows.is_empty() {
            return;
        }
        let which = self.chance.place("which row", self.hostile.rows.len());
        let row = self.hostile.rows[which].clone();
        let Some(at) = self.hosts.iter().position(|host| host.id == row.enclave_id) else { return };
        let life = self.clone_starts(at);
        self.log.note(format_args!("hostile: a clone of enclave {at}"));
        self.log.reached("hostile: a clone");
        self.hostile.clones.push((at, life));
        self.strikes_with_request(at, Some(life), Request::OpenIdentity(row.clone()));
        for open in self.hostile.openings.values().cloned().collect::<Vec<_>>() {
            if open.enclave_key == row.ecies_key {
                self.strikes_with_request(at, Some(life), Request::OpenKeygen(open));
            }
        }
    }

    /// A clone that has opened nothing but the identity with this key.
    fn fresh_clone(&mut self, enclave_key: PublicKey) -> Option<u64> {
        let row = self.hostile.rows.iter().find(|row| row.ecies_key == enclave_key)?.clone();
        let at = self.hosts.iter().position(|host| host.id == row.enclave_id)?;
        if self.hostile.clones.len() >= CLONES_MAX {
            return None;
        }
        let life = self.clone_starts(at);
        self.log.note(format_args!("hostile: a fresh clone of enclave {at}"));
        self.hostile.clones.push((at, life));
        self.strikes_with_request(at, Some(life), Request::OpenIdentity(row));
        Some(life)
    }

    fn replays_request(&mut self) {
        if self.hostile.requests.is_empty() {
            return;
        }
        let which = self.chance.place("which request", self.hostile.requests.len());
        let request = self.hostile.requests[which].clone();
        self.log.note(format_args!("hostile: {} again", request.target));
        self.sends_request(Asker::Nobody, request, 40_000);
    }
}
