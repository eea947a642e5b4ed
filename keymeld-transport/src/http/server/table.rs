//! Which connections there are, what each is doing, and which requests are parked.

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::exchange::Exchange;

/// What a connection's thread is doing, in the order in which connections are closed for new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Waits for the first byte of a request, or for its peer to close.
    Idle,
    /// Reads a request.
    Reading,
    /// Waits for the service, or writes its answer. Never closed for another connection.
    Answering,
}

struct Active {
    stream: Arc<TcpStream>,
    phase: Phase,
    since: Instant,
    exchange: Weak<Exchange>,
}

struct Place {
    address: IpAddr,
    exchange: Weak<Exchange>,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    closing: bool,
    cut: bool,
    /// Threads that run, among them those whose connection was closed for another.
    threads: usize,
    /// Threads that ever ended, so that a wait can tell whether one did.
    ended: u64,
    active: BTreeMap<u64, Active>,
    places: BTreeMap<u64, Place>,
    places_by_address: BTreeMap<IpAddr, usize>,
}

impl Inner {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Closes the connection that has been idle longest, or else the one that has been reading longest.
    fn evict(&mut self) -> bool {
        let victim = self
            .active
            .iter()
            .filter(|(_, active)| active.phase != Phase::Answering)
            .min_by_key(|(_, active)| (active.phase, active.since))
            .map(|(id, _)| *id);
        let Some(active) = victim.and_then(|id| self.active.remove(&id)) else {
            return false;
        };
        // The peer may be gone already.
        let _ = active.stream.shutdown(Shutdown::Both);
        true
    }

    fn insert(&mut self, stream: Arc<TcpStream>, phase: Phase) -> u64 {
        let id = self.id();
        self.threads += 1;
        self.active.insert(id, Active { stream, phase, since: Instant::now(), exchange: Weak::new() });
        id
    }
}

/// The connections of one listener.
#[derive(Default)]
pub(super) struct Table {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Table {
    /// Lists a new connection, closing another for it at the cap; `None` where every one is busy.
    pub(super) fn admit(self: &Arc<Self>, stream: &Arc<TcpStream>, max: usize) -> Option<Seat> {
        let mut inner = self.lock();
        if inner.closing || (inner.active.len() >= max && !inner.evict()) {
            return None;
        }
        let id = inner.insert(Arc::clone(stream), Phase::Idle);
        Some(Seat { table: Arc::clone(self), id })
    }

    /// Lists the connection of a parked request that has its answer now, and says whether that is one
    /// more than the cap.
    pub(super) fn admit_answered(self: &Arc<Self>, stream: &Arc<TcpStream>, max: usize) -> (Seat, bool) {
        let mut inner = self.lock();
        let over = inner.active.len() >= max && !inner.evict();
        let id = inner.insert(Arc::clone(stream), Phase::Answering);
        (Seat { table: Arc::clone(self), id }, over)
    }

    /// Closes the longest-idle connection, if there is one, and waits until some thread has ended and so
    /// given its descriptor back, or until the time is over.
    pub(super) fn free_a_descriptor(&self, timeout: Duration) {
        let mut inner = self.lock();
        let ended = inner.ended;
        inner.evict();
        drop(
            self.changed
                .wait_timeout_while(inner, timeout, |inner| inner.ended == ended && !inner.closing)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// A place in the parked table; `None` where it is full, for all or for this address.
    pub(super) fn reserve(
        self: &Arc<Self>,
        address: IpAddr,
        exchange: &Arc<Exchange>,
        max: usize,
        per_address_max: usize,
    ) -> Option<ParkedPlace> {
        let mut inner = self.lock();
        let here = inner.places_by_address.get(&address).copied().unwrap_or(0);
        if inner.places.len() >= max || here >= per_address_max {
            return None;
        }
        let id = inner.id();
        inner.places_by_address.insert(address, here + 1);
        inner.places.insert(id, Place { address, exchange: Arc::downgrade(exchange) });
        Some(ParkedPlace { table: Arc::clone(self), id })
    }

    /// Parked requests and connections with a thread.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.places.len(), inner.active.len())
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Takes no new connection from now on and closes the idle ones.
    pub(super) fn begin_closing(&self) {
        let mut inner = self.lock();
        inner.closing = true;
        // Unlisted, so that one whose next request arrives just now does not begin with it.
        inner.active.retain(|_, active| {
            let busy = active.phase != Phase::Idle;
            if !busy {
                // Wakes its thread, which closes it and, under TLS, says so.
                let _ = active.stream.shutdown(Shutdown::Read);
            }
            busy
        });
        self.changed.notify_all();
    }

    /// Waits until no connection and no parked request is left; false where the time ran out.
    pub(super) fn wait_drained(&self, timeout: Duration) -> bool {
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |inner| {
                !(inner.active.is_empty() && inner.places.is_empty())
            })
            .unwrap_or_else(PoisonError::into_inner);
        inner.active.is_empty() && inner.places.is_empty()
    }

    /// Ends every connection and every parked request, answered or not.
    pub(super) fn cut(&self) {
        let mut inner = self.lock();
        inner.cut = true;
        let mut exchanges = Vec::new();
        for active in inner.active.values() {
            let _ = active.stream.shutdown(Shutdown::Both);
            exchanges.push(active.exchange.clone());
        }
        exchanges.extend(inner.places.values().map(|place| place.exchange.clone()));
        // An exchange is never locked under the table's lock.
        drop(inner);
        for exchange in exchanges.iter().filter_map(Weak::upgrade) {
            exchange.abandon();
        }
    }

    /// Waits until the last connection's thread has ended.
    pub(super) fn wait_threads(&self) {
        drop(
            self.changed
                .wait_while(self.lock(), |inner| inner.threads > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing here leaves the table half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry among those with a thread, and that thread's; given up on drop.
pub(super) struct Seat {
    table: Arc<Table>,
    id: u64,
}

impl Seat {
    /// Names the connection in logs.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Says what the thread does next; false where the connection was closed meanwhile.
    pub(super) fn enter(&self, phase: Phase) -> bool {
        self.change(phase, Weak::new())
    }

    /// As [`enter`](Self::enter) with [`Phase::Answering`], so that the wait can be cut short.
    pub(super) fn enter_exchange(&self, exchange: &Arc<Exchange>) -> bool {
        self.change(Phase::Answering, Arc::downgrade(exchange))
    }

    fn change(&self, phase: Phase, exchange: Weak<Exchange>) -> bool {
        let mut inner = self.table.lock();
        if inner.cut || (inner.closing && phase == Phase::Idle) {
            return false;
        }
        let Some(active) = inner.active.get_mut(&self.id) else {
            return false;
        };
        if active.phase != phase {
            active.phase = phase;
            active.since = Instant::now();
        }
        active.exchange = exchange;
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        inner.active.remove(&self.id);
        inner.threads -= 1;
        inner.ended += 1;
        self.table.changed.notify_all();
    }
}

/// A place in the parked table; given up on drop.
pub(super) struct ParkedPlace {
    table: Arc<Table>,
    id: u64,
}

impl Drop for ParkedPlace {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        if let Some(place) = inner.places.remove(&self.id) {
            let here = inner.places_by_address.get(&place.address).copied().unwrap_or(0);
            if here > 1 {
                inner.places_by_address.insert(place.address, here - 1);
            } else {
                inner.places_by_address.remove(&place.address);
            }
        }
        self.table.changed.notify_all();
    }
}
