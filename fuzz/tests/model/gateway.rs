//! A real gateway under a test that decides when its writes become durable.

use std::collections::{BTreeMap, VecDeque};

use keymeld_core::api::http::Response;
use keymeld_core::api::proof::Caller;
use keymeld_core::api::rest::{SigningState, SigningStatus};
use keymeld_core::api::router::{Call, Wait};
use keymeld_core::bytes::{Blob, PublicKey, XOnlyKey};
use keymeld_core::entropy::{Entropy, test_entropy};
use keymeld_core::gateway::{CallId, Command, Config, Event, Gateway, RETRY_MS_MAX, RequestId};
use keymeld_core::id::{EnclaveId, SigningId};
use keymeld_core::link::message::{Addressed, HelloReply, Reply, Request};
use keymeld_core::record::Persist;
use keymeld_core::strict;
use keymeld_core::time::Time;
use keymeld_examples::disk::{Disk as _, MemoryDisk};

/// The gateway and what it waits for.
pub(crate) struct Gate {
    gateway: Gateway,
    disk: MemoryDisk,
    enclaves: Vec<EnclaveId>,
    time: Time,
    entropy: Entropy,
    last_request: u64,
    pub(crate) persists: Vec<Persist>,
    calls: Vec<(CallId, Request)>,
    pub(crate) responses: BTreeMap<u64, Response>,
}

impl Gate {
    /// A gateway that was only just started on what these writes left.
    pub(crate) fn start<'a>(
        enclaves: Vec<EnclaveId>,
        time: Time,
        seed: u64,
        writes: impl Iterator<Item = &'a Persist>,
    ) -> Gate {
        let mut gate = Gate {
            gateway: Gateway::new(Config::new(enclaves.clone())),
            disk: MemoryDisk::default(),
            enclaves,
            time,
            entropy: test_entropy(seed),
            last_request: 0,
            persists: Vec::new(),
            calls: Vec::new(),
            responses: BTreeMap::new(),
        };
        for persist in writes {
            let answers = gate.disk.commit(std::slice::from_ref(persist));
            assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "writes follow from each other");
        }
        gate.tell(Event::Started);
        for enclave_id in gate.enclaves.clone() {
            gate.tell(Event::EnclaveFound { enclave_id });
        }
        gate
    }

    /// Reads are answered at once and enclaves say that they are there; the rest waits for the test.
    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.gateway.handle(self.time, event, &mut self.entropy);
            while let Some(command) = self.gateway.poll_command() {
                match command {
                    Command::Load(query) => {
                        let rows = self.disk.load(&query);
                        events.push_back(Event::Loaded { query, rows });
                    }
                    Command::Persist(persist) => self.persists.push(persist),
                    Command::Respond { request, response } => {
                        self.responses.insert(request.0, response);
                    }
                    Command::Send { enclave_id, call, body, .. } => {
                        let request = Request::decode(&body).expect("well-formed");
                        if request == Request::Hello {
                            let hello = Reply::Hello(HelloReply { enclave_id, epochs: vec![0, 1] });
                            events.push_back(Event::Replied { call, body: hello.encode() });
                        } else {
                            self.calls.push((call, request));
                        }
                    }
                    Command::Report(_) => {}
                }
            }
        }
    }

    /// A fresh proof of a key.
    pub(crate) fn caller(&mut self, key: XOnlyKey) -> Caller {
        let nonce = self.entropy.bytes().expect("test entropy");
        Caller { key, unix_ms: self.time.unix_ms, nonce }
    }

    /// Asks; the answer is the request's number.
    pub(crate) fn request(&mut self, call: Call) -> u64 {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.tell(Event::Requested { request, call });
        self.last_request
    }

    /// Makes the open write durable.
    pub(crate) fn commit(&mut self) -> Persist {
        let persist = self.persists.remove(0);
        let (token, answer) = self.disk.commit(std::slice::from_ref(&persist)).remove(0);
        assert_eq!(answer, Ok(()), "a write that does not follow from what was read");
        self.tell(Event::Persisted { token });
        persist
    }

    /// Answers a session's calls as enclaves might, until the result is asked for, and gives this one.
    pub(crate) fn give_result(&mut self, signing_id: SigningId, keys: &[PublicKey], result: &Blob) {
        while self.persists.is_empty() {
            let of_session = |(_, request): &(CallId, Request)| match request {
                Request::MakeNonces(make) => make.run.signing_id == signing_id,
                Request::MakePartials(make) => make.run.signing_id == signing_id,
                Request::Aggregate(aggregate) => aggregate.run.signing_id == signing_id,
                _ => false,
            };
            let Some(index) = self.calls.iter().position(of_session) else {
                self.wait_for_a_retry();
                continue;
            };
            let (call, request) = self.calls.remove(index);
            let blob = Blob(vec![1]);
            let reply = match request {
                Request::MakeNonces(make) => {
                    let others = keys.iter().filter(|key| **key != make.run.enclave_key);
                    let to = |key: &PublicKey| Addressed { peer: *key, blob: blob.clone() };
                    Reply::NoncesMade(others.map(to).collect())
                }
                Request::MakePartials(_) => Reply::PartialsMade(blob),
                _ => Reply::Aggregated(result.clone()),
            };
            self.tell(Event::Replied { call, body: reply.encode() });
        }
    }

    /// What the gateway could not do at once, for no enclave was there yet, it tries again within seconds.
    fn wait_for_a_retry(&mut self) {
        let deadline = self.gateway.next_deadline().expect("an approved session is worked at");
        let wait_ms = deadline.mono_ms.saturating_sub(self.time.mono_ms);
        assert!(wait_ms <= RETRY_MS_MAX, "an approved session is worked at");
        self.time.mono_ms += wait_ms;
        self.time.unix_ms += wait_ms;
        self.tell(Event::Ticked);
    }

    /// How far the gateway says that a session has come; `None` where it does not say anything yet.
    pub(crate) fn level(&mut self, signing_id: SigningId, key: XOnlyKey) -> Option<u8> {
        let caller = self.caller(key);
        let number = self.request(Call::SigningStatus { caller, signing_id, wait: Wait::default() });
        let response = self.responses.remove(&number)?;
        if response.status == 404 {
            return Some(0);
        }
        let status: SigningStatus = strict::from_json(&response.body, 1 << 20).expect("a status");
        Some(match (status.state, status.approved.is_empty()) {
            (SigningState::Completed, _) => 3,
            (_, true) => 1,
            (_, false) => 2,
        })
    }
}
