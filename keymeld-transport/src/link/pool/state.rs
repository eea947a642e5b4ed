//! What a pool knows, changed under one lock: connections, requests in flight, deadlines, events to tell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use keymeld_core::link::frame::{Frame, Kind};

use super::super::stream::Stream;
use super::super::wire::Heard;
use super::{Body, FailReason, LinkEvent, PoolOptions, Shared, millis};

/// A connection that is up.
struct Live {
    stream: Arc<Stream>,
    heard: Arc<Heard>,
    queue: VecDeque<Vec<u8>>,
    in_flight: usize,
    /// Requests that have failed for their deadline and may still be replied to.
    late: BTreeSet<u64>,
    pinged: Option<Instant>,
    /// Pings that have no pong yet.
    pongs_due: u64,
    /// Whether its reader waits for replies to be taken: its silence is not the enclave's.
    paused: bool,
}

struct Pending {
    lane: usize,
    routing_id: [u8; 16],
    deadline: Instant,
}

pub(super) struct State {
    pub(super) closing: bool,
    /// When the clock's thread wakes by itself.
    pub(super) clock_wakes: Option<Instant>,
    /// Events that are not told yet, and whether a thread is telling.
    pub(super) outbox: Vec<LinkEvent>,
    pub(super) delivering: bool,
    lanes: Vec<Option<Live>>,
    pending: BTreeMap<u64, Pending>,
    deadlines: BTreeSet<(Instant, u64)>,
    queued_bytes: usize,
    /// Bytes of replies that were told and not taken.
    pub(super) replies_bytes: usize,
}

/// What became of a request that was taken.
pub(super) struct Queued {
    pub(super) lane: usize,
    /// The clock's thread would sleep past its deadline.
    pub(super) earlier_deadline: bool,
}

/// What the clock's thread has to do.
pub(super) struct Tick {
    /// When it is to look again, unless woken.
    pub(super) wake: Option<Instant>,
    /// Whose writer has something to do.
    pub(super) lanes: Vec<usize>,
    /// Whether there is something to tell.
    pub(super) failed: bool,
}

impl State {
    pub(super) fn new(lanes: usize) -> Self {
        State {
            closing: false,
            clock_wakes: None,
            outbox: Vec::new(),
            delivering: false,
            lanes: (0..lanes).map(|_| None).collect(),
            pending: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            queued_bytes: 0,
            replies_bytes: 0,
        }
    }

    /// Lists a new connection; false where the pool is closing. It begins with a ping: until an enclave has got a
    /// frame it takes a connection for a stranger's.
    pub(super) fn up(&mut self, lane: usize, stream: Arc<Stream>, heard: Arc<Heard>) -> bool {
        if self.closing {
            return false;
        }
        if self.lanes.iter().all(Option::is_none) {
            self.outbox.push(LinkEvent::Up);
        }
        let greeting = ping();
        self.queued_bytes += greeting.len();
        self.lanes[lane] = Some(Live {
            stream,
            heard,
            queue: [greeting].into(),
            in_flight: 0,
            late: BTreeSet::new(),
            pinged: None,
            pongs_due: 1,
            paused: false,
        });
        true
    }

    /// Takes all connections down because of one, and fails what was in flight; false where that one was
    /// down already.
    ///
    /// All, because whatever ends one may have ended the enclave: were the others kept, a new process could
    /// be reached before their end is noticed, and [`LinkEvent::Up`] would not tell that it is a new one.
    pub(super) fn sever(&mut self, lane: usize, reason: FailReason) -> bool {
        if self.lanes[lane].is_none() {
            return false;
        }
        for live in self.lanes.iter_mut().filter_map(Option::take) {
            live.stream.shutdown();
        }
        self.queued_bytes = 0;
        self.deadlines.clear();
        for request_id in std::mem::take(&mut self.pending).into_keys() {
            self.fail(request_id, reason);
        }
        self.outbox.push(LinkEvent::Down);
        true
    }

    pub(super) fn fail(&mut self, request_id: u64, reason: FailReason) {
        self.outbox.push(LinkEvent::Failed { request_id, reason });
    }

    pub(super) fn knows(&self, request_id: u64) -> bool {
        self.pending.contains_key(&request_id)
    }

    /// Puts a request on the least busy connection's queue.
    pub(super) fn queue(
        &mut self,
        request_id: u64,
        routing_id: [u8; 16],
        bytes: Vec<u8>,
        options: &PoolOptions,
    ) -> Result<Queued, FailReason> {
        let least_busy = self
            .lanes
            .iter_mut()
            .enumerate()
            .filter_map(|(lane, live)| live.as_mut().map(|live| (lane, live)))
            .min_by_key(|(_, live)| live.in_flight);
        let (lane, live) = least_busy.ok_or(FailReason::NotConnected)?;
        let bytes_after = self.queued_bytes + bytes.len();
        if live.in_flight >= options.in_flight_per_connection_max || bytes_after > options.queued_bytes_max {
            return Err(FailReason::Full);
        }
        live.in_flight += 1;
        live.queue.push_back(bytes);
        self.queued_bytes = bytes_after;
        let deadline = Instant::now() + millis(options.request_ms);
        self.pending.insert(request_id, Pending { lane, routing_id, deadline });
        self.deadlines.insert((deadline, request_id));
        let earlier_deadline = self.clock_wakes.is_none_or(|wakes| deadline < wakes);
        Ok(Queued { lane, earlier_deadline })
    }

    /// The queue that a lane's writer empties; `None` where the connection is down.
    pub(super) fn queue_of(&mut self, lane: usize) -> Option<&mut VecDeque<Vec<u8>>> {
        self.lanes[lane].as_mut().map(|live| &mut live.queue)
    }

    pub(super) fn dequeued(&mut self, bytes: usize) {
        self.queued_bytes -= bytes;
    }

    /// Whether a reply has to wait until others were taken.
    pub(super) fn is_full_for(&self, lane: usize, frame: &Frame, bytes_max: usize) -> bool {
        let awaited = self.pending.get(&frame.request_id).is_some_and(|pending| pending.lane == lane);
        frame.kind == Kind::Reply
            && awaited
            && self.replies_bytes > 0
            && self.replies_bytes + frame.body.len() > bytes_max
    }

    /// Notes that the reader of a connection waits.
    pub(super) fn pause(&mut self, lane: usize) {
        if let Some(live) = &mut self.lanes[lane] {
            live.paused = true;
        }
    }

    /// Takes a frame from the enclave.
    ///
    /// # Errors
    /// [`FailReason::PeerMisbehaved`], with which the connection is to end.
    pub(super) fn receive(
        &mut self,
        lane: usize,
        frame: Frame,
        shared: Weak<Shared>,
    ) -> Result<(), FailReason> {
        let Some(live) = self.lanes[lane].as_mut() else {
            // Severed meanwhile: what was asked on it has failed already.
            return Ok(());
        };
        live.paused = false;
        match frame.kind {
            // The reader has noted that it was heard.
            Kind::Pong if live.pongs_due > 0 => {
                live.pongs_due -= 1;
                return Ok(());
            }
            Kind::Pong => return Err(FailReason::PeerMisbehaved),
            Kind::Request | Kind::Ping => return Err(FailReason::PeerMisbehaved),
            Kind::Reply => {}
        }
        let request_id = frame.request_id;
        match self.pending.get(&request_id) {
            Some(pending) if pending.lane == lane && pending.routing_id == frame.routing_id => {
                self.deadlines.remove(&(pending.deadline, request_id));
                self.pending.remove(&request_id);
                live.in_flight -= 1;
                self.replies_bytes += frame.body.len();
                let body = Body::counted(frame.body, shared);
                self.outbox.push(LinkEvent::Replied { request_id, body });
                Ok(())
            }
            None if live.late.remove(&request_id) => Ok(()),
            Some(_) | None => Err(FailReason::PeerMisbehaved),
        }
    }

    /// Fails what is overdue, pings the silent and ends the dead.
    pub(super) fn advance(&mut self, now: Instant, options: &PoolOptions) -> Tick {
        let mut tick = Tick { wake: None, lanes: Vec::new(), failed: false };
        while let Some((deadline, request_id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)
        {
            self.deadlines.remove(&(deadline, request_id));
            if let Some(pending) = self.pending.remove(&request_id) {
                if let Some(live) = &mut self.lanes[pending.lane] {
                    live.in_flight -= 1;
                    live.late.insert(request_id);
                }
                self.fail(request_id, FailReason::TimedOut);
                tick.failed = true;
            }
        }
        for lane in 0..self.lanes.len() {
            let Some(live) = &mut self.lanes[lane] else {
                continue;
            };
            let heard = if live.paused { now } else { live.heard.at() };
            if live.pinged.is_some_and(|pinged| heard > pinged) {
                live.pinged = None;
            }
            let interval = millis(options.ping_interval_ms);
            let (wake, dead) = match live.pinged {
                Some(pinged) => {
                    let end = pinged + millis(options.ping_timeout_ms);
                    // Once in between: a pong wakes nobody, and the next ping is due long before the end.
                    let between = Some(pinged + interval).filter(|at| *at > now);
                    (between.map_or(end, |between| between.min(end)), end <= now)
                }
                None => (heard + interval, false),
            };
            // One that never replies, pings apart, is as good as dead, and its late replies are not to
            // be remembered for ever.
            let hopeless = live.late.len() > options.in_flight_per_connection_max;
            if hopeless || dead {
                self.sever(lane, FailReason::PeerSilent);
                tracing::info!(lane, "a connection was silent: all were closed");
                tick.lanes.extend(0..self.lanes.len());
                tick.failed = true;
                continue;
            }
            if wake > now {
                tick.wake = earliest(tick.wake, wake);
                continue;
            }
            let bytes = ping();
            self.queued_bytes += bytes.len();
            live.queue.push_back(bytes);
            live.pinged = Some(now);
            live.pongs_due += 1;
            tick.lanes.push(lane);
        }
        if let Some((deadline, _)) = self.deadlines.first() {
            tick.wake = earliest(tick.wake, *deadline);
        }
        tick
    }
}

fn ping() -> Vec<u8> {
    let ping = Frame { kind: Kind::Ping, request_id: 0, routing_id: [0; 16], body: Vec::new() };
    ping.encode().expect("a frame without a body fits")
}

fn earliest(wake: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(wake.map_or(other, |wake| wake.min(other)))
}
