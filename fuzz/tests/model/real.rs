//! Real machines in the model's place: each action becomes what a host would send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keymeld_core::api::rest::{ItemHint, SignRequest};
use keymeld_core::api::router::Call;
use keymeld_core::artifact::VERSION;
use keymeld_core::artifact::approval::Approval;
use keymeld_core::artifact::intent::{Intent, Item, Origin, SealedIntent, VerifiedIntent};
use keymeld_core::artifact::registration::user_auth_key;
use keymeld_core::artifact::result::SigningResult;
use keymeld_core::bytes::{Blob, PublicKey, Salt, XOnlyKey};
use keymeld_core::client::VerifiedKey;
use keymeld_core::crypto::derive::Purpose;
use keymeld_core::crypto::seal::SealKey;
use keymeld_core::enclave::{Command, Enclave, Event};
use keymeld_core::id::{AttemptId, KeygenId, SigningId, UserId};
use keymeld_core::link::message::{
    Addressed, Aggregate, MakeNonces, MakePartials, OpenKeygen, Reply, Request, RunKey,
};
use keymeld_core::record::Persist;
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use keymeld_core::time::Time;
use keymeld_fuzz::model::{AGGREGATOR, APPROVER, Action, Cell, ENCLAVES, SESSIONS, State, View};
use keymeld_fuzz::stage::Stage;
use keymeld_fuzz::stage::host::Host;
use keymeld_fuzz::stage::story::{keygen, signing_key};

use super::gateway::Gate;

/// A completed keygen of three, each at an enclave of its own.
pub(crate) struct Keygen {
    stage: std::cell::RefCell<Stage>,
    key: Arc<VerifiedKey>,
    session_secret: Secret<32>,
    keygen_id: KeygenId,
    users: Vec<UserId>,
    keys: Vec<PublicKey>,
    opens: Vec<OpenKeygen>,
}

impl Keygen {
    pub(crate) fn new() -> Keygen {
        let mut stage = Stage::new(ENCLAVES, 7);
        let invites = keygen(&mut stage);
        let asked = stage.journal.asked.iter().map(|asked| Request::decode(&asked.body).expect("genuine"));
        let open = |request| match request {
            Request::OpenKeygen(open) => Some(open),
            _ => None,
        };
        let keys: Vec<PublicKey> = stage.hosts.iter().map(|host| host.shared[0].keys().enclave_key).collect();
        let mut opens: Vec<OpenKeygen> = asked.filter_map(open).collect();
        opens.sort_by_key(|open| keys.iter().position(|key| *key == open.enclave_key));
        opens.dedup_by_key(|open| open.enclave_key);
        let users: Vec<UserId> = stage.seats.iter().map(|seat| seat.machine.user_id()).collect();
        let key = Arc::clone(stage.seats[0].machine.key().expect("verified"));
        for (place, user) in users.iter().enumerate() {
            let record = key.roster().record(*user).expect("registered");
            assert_eq!(record.enclave_key, keys[place], "each participant is at its own enclave");
        }
        Keygen {
            key,
            session_secret: Secret::copied_from(invites[0].session_secret.expose()),
            keygen_id: invites[0].keygen_id,
            users,
            keys,
            opens,
            stage: std::cell::RefCell::new(stage),
        }
    }

    fn seal(&self, signing_id: SigningId) -> SealKey {
        SealKey::derived(&self.session_secret, Purpose::SigningSeal(signing_id))
    }

    fn auth(&self, place: usize) -> keymeld_core::crypto::auth::AuthKey {
        user_auth_key(&signing_key(place), self.keygen_id).expect("a key")
    }

    fn sealed(request: &SignRequest) -> SealedIntent {
        SealedIntent { sealed: request.intent.clone(), digest: request.intent_digest }
    }

    /// What the requester signs for a session.
    fn request(&self, session: usize) -> SignRequest {
        let mut stage = self.stage.borrow_mut();
        let now = stage.time.unix_ms;
        let entropy = &mut stage.entropy;
        let item = Item::of(Origin::Text(format!("session {session}")), entropy).expect("test entropy");
        let intent = Intent {
            version: VERSION,
            salt: Salt(entropy.bytes().expect("test entropy")),
            keygen_id: self.keygen_id,
            manifest_hash: self.key.roster().manifest_hash(),
            roster_hash: self.key.roster().roster_hash(),
            signing_id: SigningId::random(entropy).expect("test entropy"),
            requester: self.users[0],
            created_at: now,
            expires_at: now + 3_600_000,
            items: vec![item],
            psbts: Vec::new(),
        };
        let sealed = intent.seal(&self.auth(0), &self.seal(intent.signing_id), entropy).expect("small");
        SignRequest {
            signing_id: intent.signing_id,
            keygen_id: self.keygen_id,
            requester: self.users[0],
            intent: sealed.sealed,
            intent_digest: sealed.digest,
            expires_at: intent.expires_at,
            items: vec![ItemHint { item_id: intent.items[0].item_id, subset: None }],
        }
    }
}

type Sent = (usize, usize, usize);

/// The machines, and everything that the host has seen.
pub(crate) struct Real<'a> {
    keygen: &'a Keygen,
    requests: Vec<SignRequest>,
    approvals: Vec<Approval>,
    calls: u64,
    /// By enclave, session, attempt and life.
    nonces: BTreeMap<(Sent, bool), Vec<Addressed>>,
    /// By enclave, session, attempt and view.
    answers: BTreeMap<(Sent, View), Blob>,
    /// Every public nonce bundle that was ever made, for none may come twice.
    ever: BTreeSet<Vec<u8>>,
    gate: Gate,
    seed: u64,
    /// What each session's record is made of, by level.
    history: [Vec<Persist>; SESSIONS],
    /// Requests whose answers show the next level, and must not come before it is durable.
    held: [Option<u64>; SESSIONS],
}

impl<'a> Real<'a> {
    pub(crate) fn new(keygen: &'a Keygen, seed: u64) -> Real<'a> {
        let requests: Vec<SignRequest> = (0..SESSIONS).map(|session| keygen.request(session)).collect();
        let approve = |request: &SignRequest| {
            let (id, user, digest) = (request.signing_id, keygen.users[APPROVER], request.intent_digest);
            let entropy = &mut keygen.stage.borrow_mut().entropy;
            Approval::sign(id, user, digest, false, &keygen.auth(APPROVER), entropy).expect("test entropy")
        };
        let approvals = requests.iter().map(approve).collect();
        let mut real = Real {
            gate: gate(keygen, seed, &[Vec::new(), Vec::new()]),
            keygen,
            requests,
            approvals,
            calls: 0,
            nonces: BTreeMap::new(),
            answers: BTreeMap::new(),
            ever: BTreeSet::new(),
            seed,
            history: [Vec::new(), Vec::new()],
            held: [None, None],
        };
        for enclave in 0..ENCLAVES {
            real.boot(enclave);
        }
        real
    }

    /// Does what an action stands for, and checks that it goes as the model says. Whether there was anything to do:
    /// some of what is impossible cannot even be tried.
    pub(crate) fn act(&mut self, action: Action, before: &State, after: Option<&State>) -> bool {
        match action {
            Action::Request(_) | Action::Approve(_) => false,
            Action::Submit(session) => self.submit(session, before, after.is_some()),
            Action::Commit(session) => after.is_some() && self.commit(session),
            Action::Acknowledge(session) => self.acknowledge(session, before),
            Action::MakeNonces(enclave, session, attempt) => {
                before.requested[session]
                    && self.make_nonces((enclave, session, attempt), before, after.is_some())
            }
            Action::Sign(enclave, session, attempt, view) => {
                self.sign((enclave, session, attempt), view, before, after.is_some())
            }
            Action::CrashEnclave(enclave) => {
                if after.is_some() {
                    self.boot(enclave);
                }
                false
            }
            Action::CrashGateway => {
                if after.is_some() {
                    self.restart_gateway();
                }
                false
            }
            Action::RollBack(session, level) => {
                if after.is_some() {
                    self.history[session].truncate(usize::from(level));
                    self.restart_gateway();
                }
                false
            }
        }
    }

    /// The real machines show as much as the model has.
    pub(crate) fn compare(&mut self, state: &State, path: &[Action]) {
        let stage = self.keygen.stage.borrow();
        for enclave in 0..ENCLAVES {
            let held = state.cells[enclave].iter().filter(|cell| **cell != Cell::Empty).count();
            assert_eq!(stage.hosts[enclave].machine.attempts_held(), held, "enclave {enclave}: {path:?}");
        }
        for session in 0..SESSIONS {
            let record = state.records[session];
            assert_eq!(self.history[session].len(), usize::from(record.durable), "{session}: {path:?}");
        }
        let pending = state.records.iter().filter(|record| record.pending).count();
        assert_eq!(self.gate.persists.len(), pending, "{path:?}");
        for number in self.held.iter().flatten() {
            assert!(!self.gate.responses.contains_key(number), "answered before it is durable: {path:?}");
        }
    }

    fn now(&self) -> Time {
        self.keygen.stage.borrow().time
    }

    /// An enclave that was only just started and has its identity, the time and the session again.
    fn boot(&mut self, enclave: usize) {
        let now = self.now();
        {
            let mut stage = self.keygen.stage.borrow_mut();
            let Host { machine, config, shared, entropy, .. } = &mut stage.hosts[enclave];
            *machine = Enclave::new(config.clone());
            machine.handle(now, Event::IdentityShared(Arc::clone(&shared[0])), entropy);
            machine.handle(now, Event::Started, entropy);
            let host = &mut stage.hosts[enclave];
            while let Some(command) = host.machine.poll_command() {
                if let Some(event) = host.carry_out(command) {
                    host.machine.handle(now, event, &mut host.entropy);
                }
            }
        }
        let opened = self.ask(enclave, Request::OpenKeygen(self.keygen.opens[enclave].clone()));
        assert!(matches!(opened, Ok(Reply::KeygenOpened(_))), "{opened:?}");
    }

    fn ask(&mut self, enclave: usize, request: Request) -> Result<Reply, Code> {
        self.calls += 1;
        let now = self.now();
        let mut stage = self.keygen.stage.borrow_mut();
        let Host { machine, entropy, .. } = &mut stage.hosts[enclave];
        let event =
            Event::Requested { call: self.calls, routing_id: request.routing_id(), body: request.encode() };
        machine.handle(now, event, entropy);
        let Some(Command::Reply { call, body }) = machine.poll_command() else {
            panic!("an enclave answers at once");
        };
        assert_eq!((call, machine.poll_command().is_none()), (self.calls, true));
        match Reply::decode(&body).expect("well-formed") {
            Reply::Refused(refused) => Err(refused.refusal().code),
            reply => Ok(reply),
        }
    }

    fn run(&self, (enclave, session, attempt): Sent) -> RunKey {
        let request = &self.requests[session];
        RunKey {
            enclave_key: self.keygen.keys[enclave],
            keygen_id: self.keygen.keygen_id,
            signing_id: request.signing_id,
            digest: request.intent_digest,
            attempt: AttemptId([u8::try_from(attempt).expect("few"); 16]),
            aggregator: self.keygen.keys[AGGREGATOR],
        }
    }

    fn make_nonces(&mut self, of: Sent, before: &State, possible: bool) -> bool {
        let (enclave, session, _) = of;
        // Without the approval, all that there is: the other session's, if that was given.
        let given = (0..SESSIONS).filter(|session| before.approved[*session]);
        let approvals = given.map(|session| self.approvals[session]).filter(|approval| {
            approval.intent_digest == self.requests[session].intent_digest || !before.approved[session]
        });
        let approvals = approvals.collect();
        let intent = self.requests[session].intent.clone();
        let made =
            self.ask(enclave, Request::MakeNonces(MakeNonces { run: self.run(of), intent, approvals }));
        let key = (of, before.reborn[enclave]);
        match (made, possible) {
            (Ok(Reply::NoncesMade(bundles)), true) => {
                for bundle in &bundles {
                    assert!(self.ever.insert(bundle.blob.0.clone()));
                }
                assert_eq!(bundles.len(), ENCLAVES - 1);
                assert!(self.nonces.insert(key, bundles).is_none(), "nonces of one name and life twice");
            }
            // The same request once more has the same answer.
            (Ok(Reply::NoncesMade(bundles)), false) => assert_eq!(Some(&bundles), self.nonces.get(&key)),
            (Err(_), false) => {}
            (other, possible) => panic!("nonces of {of:?}, possible: {possible}: {other:?}"),
        }
        true
    }

    /// The bundles for an enclave under a view; where the host has none, another run's in its place.
    fn bundles(&self, (enclave, session, attempt): Sent, view: View) -> Option<Vec<Addressed>> {
        let own = self.keygen.keys[enclave];
        let others = (0..ENCLAVES).filter(|other| *other != enclave);
        others
            .map(|other| {
                let right = self.nonces.get(&((other, session, attempt), view >> other & 1 == 1));
                let another = |sent: &Sent| sent.0 == other && (sent.1, sent.2) != (session, attempt);
                let wrong = || self.nonces.iter().find(|((sent, _), _)| another(sent)).map(|(_, made)| made);
                let to_own = right.or_else(wrong)?.iter().find(|bundle| bundle.peer == own)?;
                Some(Addressed { peer: self.keygen.keys[other], blob: to_own.blob.clone() })
            })
            .collect()
    }

    fn partials(&self, (_, session, attempt): Sent, view: View) -> Option<Vec<Addressed>> {
        let others = (0..ENCLAVES).filter(|other| *other != AGGREGATOR);
        others
            .map(|other| {
                let right = self.answers.get(&((other, session, attempt), view));
                let wrong =
                    || self.answers.iter().find(|((sent, _), _)| sent.0 == other).map(|(_, made)| made);
                Some(Addressed { peer: self.keygen.keys[other], blob: right.or_else(wrong)?.clone() })
            })
            .collect()
    }

    fn sign(&mut self, of: Sent, view: View, before: &State, possible: bool) -> bool {
        let (enclave, session, _) = of;
        // Which own nonce is used is not the host's to say.
        if (view >> enclave & 1 == 1) != before.reborn[enclave] {
            return false;
        }
        let Some(nonces) = self.bundles(of, view) else { return false };
        let run = self.run(of);
        let request = if enclave == AGGREGATOR {
            let Some(partials) = self.partials(of, view) else { return false };
            Request::Aggregate(Aggregate { run, nonces, partials })
        } else {
            Request::MakePartials(MakePartials { run, nonces })
        };
        match (self.ask(enclave, request), possible) {
            (Ok(Reply::PartialsMade(blob) | Reply::Aggregated(blob)), true) => {
                if enclave == AGGREGATOR {
                    self.check_result(session, &blob);
                }
                assert!(self.answers.insert((of, view), blob).is_none());
            }
            // The same request once more has the same answer, as long as the enclave remembers it.
            (Ok(Reply::PartialsMade(blob) | Reply::Aggregated(blob)), false) => {
                assert_eq!(Some(&blob), self.answers.get(&(of, view)));
            }
            (Err(_), false) => {}
            (other, possible) => panic!("{of:?} signs under {view}, possible: {possible}: {other:?}"),
        }
        true
    }

    /// A result is a signature of what was asked for, under the key that everybody knows.
    fn check_result(&self, session: usize, result: &Blob) {
        let request = &self.requests[session];
        let seal = self.keygen.seal(request.signing_id);
        let sealed = Keygen::sealed(request);
        let roster = self.keygen.key.roster();
        let intent = VerifiedIntent::open(roster, request.signing_id, &seal, &sealed).expect("genuine");
        let outcomes = SigningResult::open(roster, &intent, &seal, result).expect("genuine");
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }

    fn submit(&mut self, session: usize, before: &State, possible: bool) -> bool {
        let record = before.records[session];
        // What would come next is on the gateway's way already, or does not exist.
        let exists = [before.requested[session], before.approved[session], before.has_result(session)];
        if record.pending || !exists.get(usize::from(record.durable)).is_some_and(|exists| *exists) {
            return self.submit_too_early(session, before);
        }
        assert!(possible);
        let writes = self.gate.persists.len();
        match record.durable {
            0 => {
                let caller = self.caller(0);
                let request = self.requests[session].clone();
                self.held[session] = Some(self.gate.request(Call::Sign { caller, request }));
            }
            1 => {
                let caller = self.caller(APPROVER);
                let (signing_id, approval) = (self.requests[session].signing_id, self.approvals[session]);
                self.held[session] = Some(self.gate.request(Call::Approve { caller, signing_id, approval }));
            }
            _ => {
                let of_session =
                    |((sent, _), _): &(&(Sent, View), &Blob)| (sent.0, sent.1) == (AGGREGATOR, session);
                let (_, result) = self.answers.iter().find(of_session).expect("the model has one");
                let result = result.clone();
                let kept = std::mem::take(&mut self.gate.persists);
                self.gate.give_result(self.requests[session].signing_id, &self.keygen.keys, &result);
                self.gate.persists.splice(0..0, kept);
            }
        }
        assert_eq!(self.gate.persists.len(), writes + 1, "a change is written before anything else");
        true
    }

    /// An approval of a session that the gateway does not have is refused.
    fn submit_too_early(&mut self, session: usize, before: &State) -> bool {
        let record = before.records[session];
        if record.durable > 0 || record.pending {
            return false;
        }
        let caller = self.caller(APPROVER);
        let (signing_id, approval) = (self.requests[session].signing_id, self.approvals[session]);
        let number = self.gate.request(Call::Approve { caller, signing_id, approval });
        assert_eq!(self.gate.responses.remove(&number).map(|response| response.status), Some(404));
        true
    }

    fn caller(&mut self, place: usize) -> keymeld_core::api::proof::Caller {
        let key: XOnlyKey = self.keygen.auth(place).public();
        self.gate.caller(key)
    }

    fn commit(&mut self, session: usize) -> bool {
        let id = self.requests[session].signing_id.0;
        let of = |persist: &Persist| persist.writes[0].key.record.id == id;
        let index = self.gate.persists.iter().position(of).expect("the model has it pending");
        let persist = self.gate.persists.remove(index);
        self.gate.persists.insert(0, persist);
        let persist = self.gate.commit();
        self.history[session].push(persist);
        if let Some(number) = self.held[session].take() {
            let response = self.gate.responses.remove(&number).expect("answered once it is durable");
            assert!((200..300).contains(&response.status), "{response:?}");
        }
        true
    }

    fn acknowledge(&mut self, session: usize, before: &State) -> bool {
        let record = before.records[session];
        let key = self.keygen.auth(0).public();
        let level = self.gate.level(self.requests[session].signing_id, key);
        // While a write is open nothing is said of the session at all.
        let expected = (!record.pending).then_some(record.durable);
        assert_eq!(level, expected, "session {session}");
        true
    }

    fn restart_gateway(&mut self) {
        self.held = [None, None];
        self.seed += 1_000;
        self.gate = gate(self.keygen, self.seed, &self.history);
    }
}

fn gate(keygen: &Keygen, seed: u64, history: &[Vec<Persist>; SESSIONS]) -> Gate {
    let stage = keygen.stage.borrow();
    let ids = stage.hosts.iter().map(Host::enclave_id).collect();
    let writes = stage.journal.persists.iter().chain(history.iter().flatten());
    Gate::start(ids, stage.time, 50_000 + seed, writes)
}
