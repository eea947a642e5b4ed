//! A worker thread: one machine, its inbox, and the replies it owes.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use keymeld_core::enclave::{Command, Enclave, Event};
use keymeld_core::entropy::Entropy;
use keymeld_core::link::frame::Frame;
use keymeld_transport::link::server::{ReplyError, ReplyHandle};
use keymeld_transport::process::EndsWithThread;

use crate::clock::Clock;
use crate::service::{KeyQuestion, KeyTask, ModuleQuestion};

/// What a worker waits for.
pub(crate) enum Inbound {
    /// A frame came.
    Requested(Frame, ReplyHandle),
    /// An answer, or an identity that another worker opened.
    Event(Event),
    /// The enclave ends.
    Stop,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Inbound::Requested(..) => "Requested",
            Inbound::Event(_) => "Event",
            Inbound::Stop => "Stop",
        })
    }
}

/// Which of `count` workers a routing id belongs to. Zeros, of requests without a session, are the first's.
///
/// The hasher is this process's own: clients choose session ids, but not whom they share a worker with.
pub(crate) fn shard(hasher: &RandomState, routing_id: &[u8; 16], count: usize) -> usize {
    if *routing_id == [0; 16] {
        return 0;
    }
    usize::try_from(hasher.hash_one(routing_id) % count as u64).expect("below a usize")
}

/// Everything that a worker thread owns.
pub(crate) struct Worker {
    index: usize,
    machine: Enclave,
    entropy: Entropy,
    clock: Clock,
    inbox: Receiver<Inbound>,
    /// The inboxes of all workers, its own among them.
    workers: Vec<Sender<Inbound>>,
    module: Sender<ModuleQuestion>,
    keys: Sender<KeyQuestion>,
    replies: BTreeMap<u64, ReplyHandle>,
    last_call: u64,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        machine: Enclave,
        entropy: Entropy,
        inbox: Receiver<Inbound>,
        workers: Vec<Sender<Inbound>>,
        (module, keys): (Sender<ModuleQuestion>, Sender<KeyQuestion>),
    ) -> Worker {
        Worker {
            index,
            machine,
            entropy,
            clock: Clock::new(),
            inbox,
            workers,
            module,
            keys,
            replies: BTreeMap::new(),
            last_call: 0,
        }
    }

    /// Runs until [`Inbound::Stop`].
    pub(crate) fn run(mut self) {
        // Dropped before everything else: a panic answers nobody.
        let _guard = EndsWithThread;
        loop {
            match self.next() {
                Some(Inbound::Requested(frame, reply)) => self.requested(frame, reply),
                Some(Inbound::Event(event)) => self.handle(event),
                Some(Inbound::Stop) => return,
                None => {}
            }
            // Also where requests never cease.
            if self.until_deadline().is_some_and(|left| left.is_zero()) {
                self.handle(Event::Ticked);
            }
        }
    }

    /// Blocks until there is something to do, or a deadline has passed: then there is nothing.
    fn next(&self) -> Option<Inbound> {
        let received = match self.until_deadline() {
            Some(left) => self.inbox.recv_timeout(left),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(inbound) => Some(inbound),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("it holds a sender itself"),
        }
    }

    fn until_deadline(&self) -> Option<Duration> {
        let deadline = self.machine.next_deadline()?;
        Some(Duration::from_millis(deadline.mono_ms.saturating_sub(self.clock.now().mono_ms)))
    }

    fn requested(&mut self, frame: Frame, reply: ReplyHandle) {
        // A flood over connections that are given up is not to be worked off.
        if reply.is_closed() {
            return;
        }
        self.last_call += 1;
        self.replies.insert(self.last_call, reply);
        let Frame { routing_id, body, .. } = frame;
        self.handle(Event::Requested { call: self.last_call, routing_id, body });
    }

    fn handle(&mut self, event: Event) {
        self.machine.handle(self.clock.now(), event, &mut self.entropy);
        while let Some(command) = self.machine.poll_command() {
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Reply { call, body } => self.reply(call, body),
            Command::Attest { token, public_key, nonce, user_data } => {
                let asker = self.workers[self.index].clone();
                let question = ModuleQuestion { asker, token, public_key, nonce, user_data };
                // The services end after the workers.
                let _ = self.module.send(question);
            }
            Command::GenerateDataKey { token, context } => {
                self.ask_keys(token, KeyTask::Generate(context));
            }
            Command::DecryptDataKey { token, context, encrypted } => {
                self.ask_keys(token, KeyTask::Decrypt(context, encrypted));
            }
            Command::ShareIdentity(identity) => {
                tracing::info!(epoch = identity.epoch(), "identity opened");
                let others = self.workers.iter().enumerate().filter(|(index, _)| *index != self.index);
                for (_, worker) in others {
                    // One that has ended needs none.
                    let _ = worker.send(Inbound::Event(Event::IdentityShared(identity.clone())));
                }
            }
        }
    }

    fn ask_keys(&self, token: u64, task: KeyTask) {
        let asker = self.workers[self.index].clone();
        let _ = self.keys.send(KeyQuestion { asker, token, task });
    }

    fn reply(&mut self, call: u64, body: Vec<u8>) {
        let reply = self.replies.remove(&call).expect("a machine replies once to each request");
        match reply.send(body) {
            Ok(()) => {}
            Err(ReplyError::TooLarge) => tracing::error!("a reply does not fit in a frame"),
            // The gateway knows, and asks again.
            Err(ReplyError::Closed) => tracing::debug!("the connection of a request is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use keymeld_core::entropy::test_entropy;
    use keymeld_core::id::KeygenId;

    use super::{RandomState, shard};

    #[test]
    fn sessions_are_spread_and_requests_without_one_go_to_the_first_worker() {
        let mut entropy = test_entropy(1);
        let hasher = RandomState::new();
        for count in 1..=8 {
            assert_eq!(shard(&hasher, &[0; 16], count), 0);
            let mut sessions = vec![0; count];
            for _ in 0..1_000 {
                sessions[shard(&hasher, &KeygenId::random(&mut entropy).expect("entropy").0, count)] += 1;
            }
            // By a hasher of this run: far from even only once in many lifetimes.
            assert!(sessions.iter().all(|held| *held > 500 / count), "{sessions:?}");
        }
    }
}
