//! A relay between the gateway and an enclave: it numbers the frames of each direction and, at one of them, has a
//! process killed or stopped before or after it passes the frame on.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use keymeld_core::link::frame::{Frame, Kind};

const HELD: &str = "no thread panics while holding it";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    ToEnclave,
    ToGateway,
}

/// Whether the victim is struck before the frame is passed on, which then is lost, or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Before,
    After,
}

/// A boundary of a frame. Frames are numbered from 1 in each direction, over all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Boundary {
    pub(super) direction: Direction,
    pub(super) number: usize,
    pub(super) side: Side,
}

/// Asks for something to be done to the victim; it is answered when that is done.
pub(super) type Strike = Sender<()>;

/// Listens on a Unix socket for the gateway, and connects to the enclave for each connection of it.
pub(super) struct Relay {
    path: PathBuf,
    listener: Option<UnixListener>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    enclave: Mutex<String>,
    state: Mutex<State>,
    closing: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Frames seen, to the enclave and to the gateway.
    counts: [usize; 2],
    armed: Option<(Boundary, Sender<Strike>)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(HELD)
    }
}

impl Relay {
    /// Until [`Relay::open`], connections wait.
    pub(super) fn bind(path: &Path) -> Relay {
        let listener = UnixListener::bind(path).expect("a socket");
        let (enclave, state, closing) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { enclave, state, closing });
        Relay { path: path.to_owned(), listener: Some(listener), shared, accepting: None }
    }

    /// Leads to the enclave that listens at that address, and says where the gateway finds it.
    pub(super) fn lead_to(&self, enclave: &str) -> String {
        let address = enclave.strip_prefix("tcp:").expect("enclaves listen on loopback");
        *self.shared.enclave.lock().expect(HELD) = address.to_owned();
        format!("unix:{}", self.path.display())
    }

    /// Tells of the boundary, once.
    pub(super) fn arm(&self, boundary: Boundary, strikes: Sender<Strike>) {
        self.shared.state().armed = Some((boundary, strikes));
    }

    pub(super) fn disarm(&self) {
        self.shared.state().armed = None;
    }

    /// Frames to the enclave and to the gateway until now; pings and pongs, which time brings, are not counted.
    pub(super) fn counts(&self) -> [usize; 2] {
        self.shared.state().counts
    }

    /// Takes connections from now on.
    pub(super) fn open(&mut self) {
        let listener = self.listener.take().expect("opened once");
        let shared = Arc::clone(&self.shared);
        self.accepting = Some(thread::spawn(move || accept(&listener, &shared)));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            // Wakes the thread, which looks whether it is to end.
            let woken = UnixStream::connect(&self.path);
            let ended = woken.is_ok() && accepting.join().is_ok();
            assert!(ended || thread::panicking(), "a relay has failed");
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut pumps = Vec::new();
    for gateway in listener.incoming() {
        if shared.closing.load(Ordering::Relaxed) {
            break;
        }
        let gateway = gateway.expect("a connection");
        let address = shared.enclave.lock().expect(HELD).clone();
        // Where the enclave is dead, the gateway finds its connection closed.
        let Ok(enclave) = TcpStream::connect(address) else { continue };
        enclave.set_nodelay(true).expect("a socket");
        let ends = Arc::new((gateway, enclave));
        for direction in [Direction::ToEnclave, Direction::ToGateway] {
            let (shared, ends) = (Arc::clone(shared), Arc::clone(&ends));
            pumps.push(thread::spawn(move || {
                let (gateway, enclave) = &*ends;
                match direction {
                    Direction::ToEnclave => pump(&shared, direction, gateway, enclave),
                    Direction::ToGateway => pump(&shared, direction, enclave, gateway),
                }
                // They may be closed already.
                let _ = gateway.shutdown(Shutdown::Both);
                let _ = enclave.shutdown(Shutdown::Both);
            }));
        }
    }
    for pump in pumps {
        pump.join().expect("a relay passes frames on");
    }
}

/// Passes frames on until one of the sockets ends.
fn pump<From, To>(shared: &Shared, direction: Direction, from: &From, mut to: &To)
where
    for<'a> &'a From: Read,
    for<'a> &'a To: Write,
{
    let mut from = BufReader::new(from);
    while let Ok((bytes, kind)) = read(&mut from) {
        let mut blow = None;
        if matches!(kind, Kind::Request | Kind::Reply) {
            let mut state = shared.state();
            let count = &mut state.counts[direction as usize];
            *count += 1;
            let number = *count;
            blow = state.armed.take_if(|(at, _)| at.direction == direction && at.number == number);
        }
        match blow {
            None => {
                if to.write_all(&bytes).is_err() {
                    return;
                }
            }
            Some((Boundary { side, .. }, strikes)) => {
                // The receiver may be dying by itself just now.
                let passed = side == Side::After && to.write_all(&bytes).is_ok();
                strike(&strikes);
                if !passed {
                    return;
                }
            }
        }
    }
}

/// Returns when it is done to the victim.
fn strike(strikes: &Sender<Strike>) {
    let (answer, answered) = mpsc::channel();
    // Where nobody listens, or answers, any more, the run is over.
    if strikes.send(answer).is_ok() {
        let _ = answered.recv();
    }
}

fn read(from: &mut impl Read) -> io::Result<(Vec<u8>, Kind)> {
    let mut field = [0; 4];
    from.read_exact(&mut field)?;
    let length = Frame::length(field).expect("both sides keep to the format");
    let mut bytes = field.to_vec();
    bytes.resize(4 + length, 0);
    from.read_exact(&mut bytes[4..])?;
    let frame = Frame::decode(bytes[4..].to_vec()).expect("both sides keep to the format");
    Ok((bytes, frame.kind))
}
