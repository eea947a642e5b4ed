//! The enclave machine: identities, keygen sessions, the signing rounds.
//!
//! It trusts its own security module and nothing that its host says. `Time.unix_ms` is ignored: time comes
//! from attestation documents that the enclave asked for itself. Sessions are rebuilt from ciphertext
//! whenever they are needed, so that nothing here has to survive a restart, and nonces never do.
//!
//! A binary runs one machine per worker thread. Frames go to a worker by their routing id; the worker that
//! opens an identity shares it with the others ([`Command::ShareIdentity`], [`Event::IdentityShared`]).
//!
//! ```
//! use keymeld_core::attestation::Root;
//! use keymeld_core::bytes::Hash;
//! use keymeld_core::enclave::{Command, Config, Enclave, Event};
//! use keymeld_core::entropy::Origin;
//! use keymeld_core::id::EnclaveId;
//! use keymeld_core::link::message::{Reply, Request};
//! use keymeld_core::time::Time;
//!
//! # let mut entropy = keymeld_core::entropy::test_entropy(1); // in earnest the security module's
//! let mut enclave = Enclave::new(Config {
//!     enclave_id: EnclaveId([1; 16]),
//!     root: Root::aws_nitro_g1(),
//!     running_pcr0: [2; 48],
//!     predecessors: Vec::new(),
//!     config_hash: Hash([3; 32]),
//!     key_arn: "arn:aws:kms:...".into(),
//!     entropy_origin: Origin::Test, // in earnest `Origin::Nsm`, and no other is accepted then
//! });
//! let now = Time { unix_ms: 0, mono_ms: 0 };
//! enclave.handle(now, Event::Started, &mut entropy);
//! // It asks its own security module for the time; the document would go back as `Event::Attested`.
//! assert!(matches!(enclave.poll_command(), Some(Command::Attest { .. })));
//! // A frame of the gateway's, answered at once: it holds no identity yet.
//! let (call, body) = (7, Request::Hello.encode());
//! let routing_id = Request::Hello.routing_id();
//! enclave.handle(now, Event::Requested { call, routing_id, body }, &mut entropy);
//! let Some(Command::Reply { call: 7, body }) = enclave.poll_command() else { panic!("no reply") };
//! let Ok(Reply::Hello(hello)) = Reply::decode(&body) else { panic!("another reply") };
//! assert_eq!(hello.enclave_id, EnclaveId([1; 16]));
//! ```

pub mod bundle;
pub mod identity;
mod session;
mod signing;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::attestation::Root;
use crate::attestation::document::Document;
use crate::bounded::BoundedMap;
use crate::bytes::{Blob, Hash, PublicKey};
use crate::entropy::{Entropy, Origin};
use crate::id::{AttemptId, EnclaveId, KeygenId};
use crate::link::message::{Reply, Request};
use crate::refusal::{Code, Refusal};
use crate::secret::Secret;
use crate::time::{Deadline, DeadlineReason, Time};
use identity::{DataKey, Draft, Identity};
use session::OpenSession;
use signing::Attempt;

/// Participants of all keygen sessions that one worker holds open, each some 2 KiB; more push the least recently
/// used sessions out.
pub const PARTICIPANTS_OPEN_MAX: usize = 8_192;
/// Nonces and cached answers that one worker holds, in signatures; more push the oldest attempts out.
pub const SHARES_HELD_MAX: usize = 200_000;
/// So many bytes of a request and of its answer weigh as much as a signature.
pub const BYTES_PER_SHARE: usize = 512;
/// Secrets shared with other enclaves that one worker caches.
pub const PAIR_SECRETS_MAX: usize = 4_096;
/// Questions to the security module or the key service that may be open at a time.
pub const PENDING_MAX: usize = 64;
/// How many of them may be clients' challenges, which anybody can send: births, openings and the time always
/// find room.
pub const ATTESTATIONS_PENDING_MAX: usize = 48;
/// Identities, one per epoch.
pub const IDENTITIES_MAX: usize = 64;
/// How often the enclave asks its security module for the time.
pub const TIME_REFRESH_MS: u64 = 4 * 60_000;
/// How soon it asks again where that failed.
pub const TIME_RETRY_MS: u64 = 5_000;
/// The most commands that one event yields.
pub const COMMANDS_MAX: usize = 4;

/// The measured configuration: nothing here can be changed at run time.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which enclave this is.
    pub enclave_id: EnclaveId,
    /// The root that birth documents must chain to.
    pub root: Root,
    /// PCR0 of this image, as its own security module says.
    pub running_pcr0: [u8; 48],
    /// Earlier images whose identities this one may open.
    pub predecessors: Vec<[u8; 48]>,
    /// What attestations say about the rest of the configuration.
    pub config_hash: Hash,
    /// The KMS key; empty in development.
    pub key_arn: String,
    /// The only origin of randomness that is accepted.
    pub entropy_origin: Origin,
}

/// What a data key is for; the encryption context of the key service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeyContext {
    /// The enclave.
    pub enclave_id: EnclaveId,
    /// The epoch.
    pub epoch: u32,
    /// PCR0 of the image that asked for the key.
    pub birth_pcr0: Vec<u8>,
}

/// Something outside did not work; the driver has logged what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// Pairs a command with the event that answers it.
pub type CommandToken = u64;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The process is up.
    Started,
    /// A frame came.
    Requested {
        /// Names the reply.
        call: u64,
        /// As in the frame's header.
        routing_id: [u8; 16],
        /// The message.
        body: Vec<u8>,
    },
    /// The security module answered [`Command::Attest`].
    Attested {
        /// Of the command.
        token: CommandToken,
        /// The document.
        document: Result<Vec<u8>, Failed>,
    },
    /// The key service answered [`Command::GenerateDataKey`].
    DataKeyGenerated {
        /// Of the command.
        token: CommandToken,
        /// The key, both ways.
        key: Result<DataKey, Failed>,
    },
    /// The key service answered [`Command::DecryptDataKey`].
    DataKeyDecrypted {
        /// Of the command.
        token: CommandToken,
        /// The key.
        key: Result<Secret<32>, Failed>,
    },
    /// Another worker opened an identity.
    IdentityShared(Arc<Identity>),
    /// A deadline passed, or not.
    Ticked,
}

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Answer a frame.
    Reply {
        /// Of the request.
        call: u64,
        /// The message.
        body: Vec<u8>,
    },
    /// Ask the security module for a document.
    Attest {
        /// Names the answer.
        token: CommandToken,
        /// Its public_key.
        public_key: Option<Vec<u8>>,
        /// Its nonce.
        nonce: Option<Vec<u8>>,
        /// Its user_data.
        user_data: Option<Vec<u8>>,
    },
    /// Ask the key service for a data key.
    GenerateDataKey {
        /// Names the answer.
        token: CommandToken,
        /// What it is for.
        context: DataKeyContext,
    },
    /// Ask the key service to decrypt a data key.
    DecryptDataKey {
        /// Names the answer.
        token: CommandToken,
        /// What it is for.
        context: DataKeyContext,
        /// The encrypted key.
        encrypted: Vec<u8>,
    },
    /// Give an identity to the other workers.
    ShareIdentity(Arc<Identity>),
}

/// What an open question is about.
#[derive(Debug)]
enum Pending {
    Time,
    ClientAttestation { call: u64 },
    BirthKey { call: u64, draft: Draft },
    BirthDocument { call: u64, draft: Draft, encrypted_data_key: Blob, encrypted_seed: Blob },
    OpenRow { call: u64, row: crate::link::message::IdentityRow, birth_time_ms: u64 },
}

/// The time as the security module last said.
#[derive(Clone, Copy, Debug)]
struct OwnTime {
    unix_ms: u64,
    at_mono_ms: u64,
}

type SessionKey = (KeygenId, PublicKey);
type AttemptKey = (KeygenId, PublicKey, AttemptId);

/// The enclave machine.
#[derive(Debug)]
pub struct Enclave {
    config: Config,
    identities: BTreeMap<PublicKey, Arc<Identity>>,
    sessions: BoundedMap<SessionKey, OpenSession>,
    attempts: BoundedMap<AttemptKey, Attempt>,
    pair_secrets: BoundedMap<(PublicKey, PublicKey), Secret<32>>,
    pending: BTreeMap<CommandToken, Pending>,
    last_token: CommandToken,
    time: Option<OwnTime>,
    time_due_mono_ms: Option<u64>,
    commands: VecDeque<Command>,
}

impl Enclave {
    /// An enclave that holds nothing yet.
    pub fn new(config: Config) -> Enclave {
        Enclave {
            config,
            identities: BTreeMap::new(),
            sessions: BoundedMap::new(PARTICIPANTS_OPEN_MAX),
            attempts: BoundedMap::new(SHARES_HELD_MAX),
            pair_secrets: BoundedMap::new(PAIR_SECRETS_MAX),
            pending: BTreeMap::new(),
            last_token: 0,
            time: None,
            time_due_mono_ms: None,
            commands: VecDeque::new(),
        }
    }

    /// Takes an event in. To be called only when [`poll_command`](Self::poll_command) gives nothing.
    ///
    /// # Panics
    /// Where commands were left undone: that is a fault of the driver.
    pub fn handle(&mut self, now: Time, event: Event, entropy: &mut Entropy) {
        assert!(self.commands.is_empty(), "commands are drained before the next event");
        match event {
            Event::Started => self.ask_for_time(now),
            Event::Ticked => {
                if self.time_due_mono_ms.is_some_and(|due| now.mono_ms >= due) {
                    self.ask_for_time(now);
                    self.forget_expired(now);
                }
            }
            // Nobody waits for an answer; what is not taken over is refused when it is asked for.
            Event::IdentityShared(identity) => {
                let _ = self.adopt(identity);
            }
            Event::Requested { call, routing_id, body } => {
                let outcome = self.request(now, call, routing_id, &body, entropy);
                self.conclude(call, outcome);
            }
            Event::Attested { token, document } => self.attested(now, token, document),
            Event::DataKeyGenerated { token, key } => self.data_key_generated(token, key, entropy),
            Event::DataKeyDecrypted { token, key } => self.data_key_decrypted(token, key),
        }
        assert!(self.commands.len() <= COMMANDS_MAX, "one event yields few commands");
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When to tick.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.time_due_mono_ms.map(|mono_ms| Deadline { mono_ms, reason: DeadlineReason::EnclaveTime })
    }

    /// Keygen sessions held open, for tests and gauges.
    pub fn sessions_open(&self) -> usize {
        self.sessions.count()
    }

    /// Attempts held, for tests and gauges.
    pub fn attempts_held(&self) -> usize {
        self.attempts.count()
    }

    /// Forgets all sessions and attempts, as a restart would. Identities stay.
    pub fn evict_all(&mut self) {
        self.sessions = BoundedMap::new(PARTICIPANTS_OPEN_MAX);
        self.attempts = BoundedMap::new(SHARES_HELD_MAX);
    }

    fn request(
        &mut self,
        now: Time,
        call: u64,
        routing_id: [u8; 16],
        body: &[u8],
        entropy: &mut Entropy,
    ) -> Result<Option<Reply>, Refusal> {
        let request = Request::decode(body)?;
        if request.routing_id() != routing_id {
            return Err(Code::RoutingMismatch.into());
        }
        if entropy.origin() != self.config.entropy_origin {
            return Err(Code::ProductionOnly.into());
        }
        match request {
            Request::Hello => Ok(Some(self.hello())),
            Request::CreateIdentity(create) => {
                self.create_identity(call, create.epoch, entropy).map(|()| None)
            }
            Request::OpenIdentity(row) => self.open_identity(call, row),
            Request::Attest(attest) => self.attest(call, &attest).map(|()| None),
            Request::CheckRegistration(check) => self.check_registration(now, &check).map(Some),
            Request::OpenKeygen(open) => self.open_keygen(&open, entropy).map(Some),
            Request::MakeNonces(make) => self.make_nonces(now, &make, body, entropy).map(Some),
            Request::MakePartials(make) => self.make_partials(now, &make, body, entropy).map(Some),
            Request::Aggregate(aggregate) => self.aggregate(now, &aggregate, body, entropy).map(Some),
        }
    }

    /// Answers a request that is done; `None` means that the answer follows another event.
    fn conclude(&mut self, call: u64, outcome: Result<Option<Reply>, Refusal>) {
        let reply = match outcome {
            Ok(None) => return,
            Ok(Some(reply)) => reply,
            Err(refusal) => Reply::Refused(refusal.into()),
        };
        self.commands.push_back(Command::Reply { call, body: reply.encode() });
    }

    fn ask(
        &mut self,
        pending: Pending,
        command: impl FnOnce(CommandToken) -> Command,
    ) -> Result<(), Refusal> {
        if self.pending.len() >= PENDING_MAX {
            return Err(Code::TooMany.into());
        }
        self.last_token += 1;
        self.pending.insert(self.last_token, pending);
        self.commands.push_back(command(self.last_token));
        Ok(())
    }

    fn ask_for_time(&mut self, now: Time) {
        self.time_due_mono_ms = Some(now.mono_ms.saturating_add(TIME_RETRY_MS));
        let waiting = self.pending.values().any(|pending| matches!(pending, Pending::Time));
        if !waiting {
            // A full table is no loss: the next tick tries again.
            let _ = self.ask(Pending::Time, |token| Command::Attest {
                token,
                public_key: None,
                nonce: None,
                user_data: None,
            });
        }
    }

    fn attested(&mut self, now: Time, token: CommandToken, document: Result<Vec<u8>, Failed>) {
        match self.pending.remove(&token) {
            Some(Pending::Time) => {
                let read = document.ok().and_then(|bytes| Document::parse_unverified(&bytes).ok());
                if let Some(document) = read {
                    self.set_time(now, document.timestamp_ms);
                }
            }
            Some(Pending::ClientAttestation { call }) => {
                let outcome = document.map(|bytes| Some(Reply::Attested(Blob(bytes))));
                self.conclude(call, outcome.map_err(|Failed| Code::NotAttested.into()));
            }
            Some(Pending::BirthDocument { call, draft, encrypted_data_key, encrypted_seed }) => {
                let outcome = document
                    .map(|document| draft.row(&self.config, encrypted_data_key, encrypted_seed, document))
                    .map(|row| Some(Reply::IdentityCreated(row)));
                self.conclude(call, outcome.map_err(|Failed| Code::NotAttested.into()));
            }
            Some(other @ (Pending::BirthKey { .. } | Pending::OpenRow { .. })) => {
                self.pending.insert(token, other);
            }
            None => {}
        }
    }

    /// Enclave time never runs backwards, whatever the module says.
    fn set_time(&mut self, now: Time, unix_ms: u64) {
        let unix_ms = self.unix_ms(now).map_or(unix_ms, |current| current.max(unix_ms));
        self.time = Some(OwnTime { unix_ms, at_mono_ms: now.mono_ms });
        self.time_due_mono_ms = Some(now.mono_ms.saturating_add(TIME_REFRESH_MS));
    }

    fn unix_ms(&self, now: Time) -> Result<u64, Code> {
        let time = self.time.ok_or(Code::TimeUnknown)?;
        Ok(time.unix_ms.saturating_add(now.mono_ms.saturating_sub(time.at_mono_ms)))
    }

    fn forget_expired(&mut self, now: Time) {
        if let Ok(unix_ms) = self.unix_ms(now) {
            self.attempts.retain(|_, attempt| !attempt.is_expired(unix_ms));
        }
    }

    fn identity(&self, enclave_key: &PublicKey) -> Result<Arc<Identity>, Code> {
        if self.identities.is_empty() {
            return Err(Code::IdentityMissing);
        }
        self.identities.get(enclave_key).cloned().ok_or(Code::WrongEnclaveKey)
    }
}

#[cfg(test)]
mod tests {
    use static_assertions::assert_not_impl_any;

    use super::identity::Draft;
    use super::session::OpenSession;
    use super::signing::Attempt;
    use super::{Enclave, Pending};

    assert_not_impl_any!(Draft: Clone, Copy, serde::Serialize, minicbor::Encode<()>);
    assert_not_impl_any!(OpenSession: Clone, Copy, serde::Serialize, minicbor::Encode<()>);
    assert_not_impl_any!(Attempt: Clone, Copy, serde::Serialize, minicbor::Encode<()>);
    assert_not_impl_any!(Pending: Clone, Copy, serde::Serialize, minicbor::Encode<()>);
    assert_not_impl_any!(Enclave: Clone, Copy, serde::Serialize, minicbor::Encode<()>);
}
