//! Which connections there are, what each is doing, and which requests are parked.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::exchange::Exchange;

/// At most so often all parked connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// What a connection's thread is doing, in the order in which connections are closed for new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Waits for the first byte of a request, or for its peer to close.
    Idle,
    /// Reads a request.
    Reading,
    /// Writes an answer, for long only to a peer that does not read.
    Writing,
    /// Waits for the service. Never closed for another connection.
    Answering,
}

struct Active {
    stream: Arc<TcpStream>,
    address: IpAddr,
    phase: Phase,
    since: Instant,
    exchange: Weak<Exchange>,
    /// Bytes of its request, or of its answer, that count towards the bound for all.
    held: usize,
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
    /// The sum over all of [`Active::held`].
    held: usize,
    places: BTreeMap<u64, Place>,
    places_by_address: BTreeMap<IpAddr, usize>,
    swept: Option<Instant>,
}

impl Inner {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Closes a connection of the address that has most of them, so that nobody drives others out by
    /// coming often: there the one that has been idle longest, or else reading, or else writing.
    fn evict(&mut self) -> bool {
        let closable = || self.active.iter().filter(|(_, active)| active.phase != Phase::Answering);
        let mut of_address: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (_, active) in closable() {
            *of_address.entry(active.address).or_default() += 1;
        }
        let victim = closable()
            .min_by_key(|(_, active)| (Reverse(of_address[&active.address]), active.phase, active.since))
            .map(|(id, _)| *id);
        self.close(victim)
    }

    /// Closes the connection, other than this one, that has been reading a large request or writing a large answer
    /// longest.
    fn evict_holder(&mut self, but: u64) -> bool {
        let victim = self
            .active
            .iter()
            .filter(|(id, active)| **id != but && active.phase != Phase::Answering && active.held > 0)
            .min_by_key(|(_, active)| active.since)
            .map(|(id, _)| *id);
        self.close(victim)
    }

    fn close(&mut self, victim: Option<u64>) -> bool {
        let Some(active) = victim.and_then(|id| self.remove(id)) else {
            return false;
        };
        // The peer may be gone already.
        let _ = active.stream.shutdown(Shutdown::Both);
        true
    }

    fn insert(&mut self, stream: &Arc<TcpStream>, address: IpAddr, phase: Phase) -> u64 {
        let id = self.id();
        self.threads += 1;
        let active = Active {
            stream: Arc::clone(stream),
            address: group(address),
            phase,
            since: Instant::now(),
            exchange: Weak::new(),
            held: 0,
        };
        self.active.insert(id, active);
        id
    }

    fn remove(&mut self, id: u64) -> Option<Active> {
        let active = self.active.remove(&id)?;
        self.held -= active.held;
        Some(active)
    }

    fn give_up_place(&mut self, id: u64) {
        if let Some(place) = self.places.remove(&id) {
            let here = self.places_by_address.get(&place.address).copied().unwrap_or(0);
            if here > 1 {
                self.places_by_address.insert(place.address, here - 1);
            } else {
                self.places_by_address.remove(&place.address);
            }
        }
    }
}

/// Whoever has an IPv6 address has the other 2^64 of its network too.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
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
    pub(super) fn admit(
        self: &Arc<Self>,
        stream: &Arc<TcpStream>,
        address: IpAddr,
        max: usize,
    ) -> Option<Seat> {
        self.seat(stream, address, Phase::Idle, max)
    }

    /// Lists the connection of a parked request that has its answer now; `None` where every one is busy.
    pub(super) fn admit_answered(
        self: &Arc<Self>,
        stream: &Arc<TcpStream>,
        address: IpAddr,
        max: usize,
    ) -> Option<Seat> {
        self.seat(stream, address, Phase::Writing, max)
    }

    fn seat(
        self: &Arc<Self>,
        stream: &Arc<TcpStream>,
        address: IpAddr,
        phase: Phase,
        max: usize,
    ) -> Option<Seat> {
        let mut inner = self.lock();
        let closing = inner.closing && phase == Phase::Idle;
        // Closed connections' threads end soon, but not at once.
        if closing || inner.threads >= max.saturating_mul(2) || (inner.active.len() >= max && !inner.evict())
        {
            return None;
        }
        let id = inner.insert(stream, address, phase);
        Some(Seat { table: Arc::clone(self), id })
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
        let address = group(address);
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

    /// Gives up the places of parked requests whose peers have left, where places are short: all, or those
    /// of one address. False where it has just been done, and there is no telling.
    pub(super) fn sweep(&self, address: IpAddr, max: usize) -> bool {
        let address = group(address);
        let mut inner = self.lock();
        if inner.swept.is_some_and(|swept| swept.elapsed() < SWEEP_INTERVAL) {
            return false;
        }
        inner.swept = Some(Instant::now());
        let all = inner.places.len() >= max;
        let places: Vec<(u64, Weak<Exchange>)> = inner
            .places
            .iter()
            .filter(|(_, place)| all || place.address == address)
            .map(|(id, place)| (*id, place.exchange.clone()))
            .collect();
        // An exchange is never locked under the table's lock.
        drop(inner);
        for (id, exchange) in places {
            // The service is told first: whoever gets the place comes after that.
            if exchange.upgrade().is_some_and(|exchange| exchange.leave_if_gone()) {
                self.lock().give_up_place(id);
                self.changed.notify_all();
            }
        }
        true
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
        // Unlisted, so that one whose next request arrives just now does not begin with it. What is idle
        // holds nothing.
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
        let Inner { active, held, .. } = &mut *inner;
        let Some(active) = active.get_mut(&self.id) else {
            return false;
        };
        if active.phase != phase {
            active.phase = phase;
            active.since = Instant::now();
        }
        if matches!(phase, Phase::Idle | Phase::Writing) {
            *held -= std::mem::take(&mut active.held);
        }
        active.exchange = exchange;
        true
    }

    /// Says how many bytes of a request the thread holds, which count until its answer, or of an answer, which
    /// count until it is written; false where that would be more than the bound for all, even after others that
    /// are slow were closed.
    pub(super) fn hold(&self, bytes: usize, max: usize) -> bool {
        let mut inner = self.table.lock();
        // One that was closed meanwhile closes nobody else.
        let Some(before) = inner.active.get(&self.id).map(|active| active.held) else {
            return false;
        };
        while inner.held - before + bytes > max {
            if !inner.evict_holder(self.id) {
                return false;
            }
        }
        let Inner { active, held, .. } = &mut *inner;
        active.get_mut(&self.id).expect("listed above, and not closed by itself").held = bytes;
        *held = *held - before + bytes;
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        inner.remove(self.id);
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
        inner.give_up_place(self.id);
        self.table.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{IpAddr, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Phase, Seat, Table, group};

    /// A seat, and the peer's end of its connection.
    fn seat(table: &Arc<Table>, address: &str, max: usize) -> (Seat, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        peer.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
        let stream = Arc::new(listener.accept().expect("a peer").0);
        (table.admit(&stream, address.parse().expect("an address"), max).expect("a seat"), peer)
    }

    fn is_open((seat, peer): &(Seat, TcpStream)) -> bool {
        let open = !matches!((&*peer).read(&mut [0]), Ok(0));
        assert_eq!(open, seat.table.lock().active.contains_key(&seat.id));
        open
    }

    #[test]
    fn whoever_comes_most_often_makes_way() {
        let table = Arc::new(Table::default());
        let first = seat(&table, "10.0.0.1", 4);
        let flood: Vec<_> = (0..6).map(|_| seat(&table, "10.0.0.2", 4)).collect();
        let last = seat(&table, "10.0.0.3", 4);
        assert!(is_open(&first) && is_open(&last));
        assert_eq!(flood.iter().map(is_open).collect::<Vec<_>>(), [false, false, false, false, true, true]);
    }

    #[test]
    fn among_those_of_one_address_the_idle_go_first_and_then_who_reads_or_takes_no_answer() {
        let table = Arc::new(Table::default());
        let all: Vec<_> = (0..4).map(|_| seat(&table, "10.0.0.1", 4)).collect();
        let phases = [Phase::Answering, Phase::Writing, Phase::Reading, Phase::Idle];
        for ((seat, _), phase) in all.iter().zip(phases) {
            assert!(seat.enter(phase));
        }
        for left in [3, 2, 1] {
            assert_eq!(all.iter().filter(|one| is_open(one)).count(), left + 1);
            let (newest, _peer) = seat(&table, "10.0.0.1", 4);
            assert!(newest.enter(Phase::Answering));
            std::mem::forget(newest);
            assert!(!is_open(&all[left]));
        }
        assert!(is_open(&all[0]));
    }

    #[test]
    fn large_requests_share_a_bound_and_slow_ones_make_way() {
        let table = Arc::new(Table::default());
        let all: Vec<_> = (0..3).map(|_| seat(&table, "10.0.0.1", 9)).collect();
        let [(slow, _), (fast, _), (done, _)] = &all[..] else { unreachable!("three") };
        for seat in [slow, fast, done] {
            assert!(seat.enter(Phase::Reading));
        }
        assert!(done.hold(40, 100) && done.enter(Phase::Answering));
        assert!(slow.hold(60, 100) && !slow.hold(61, 100));
        assert!(fast.hold(60, 100), "the slow one goes");
        assert!(!is_open(&all[0]) && is_open(&all[1]) && is_open(&all[2]));
        assert!(!fast.hold(70, 100), "what is being answered stays");
        assert!(!slow.hold(1, 100), "closed");
        assert!(done.enter(Phase::Writing) && fast.hold(100, 100));
        assert!(done.hold(50, 100) && !is_open(&all[1]), "an answer is held as a request is");
        let (newest, _peer) = seat(&table, "10.0.0.1", 9);
        assert!(newest.enter(Phase::Reading) && newest.hold(60, 100), "and makes way as one does");
        assert!(!is_open(&all[2]));
        drop(newest);
        drop(all);
        assert_eq!(table.lock().held, 0);
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let of = |text: &str| group(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
