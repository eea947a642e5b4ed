//! What a peer does that wants to do harm, drawn from a seed.

use std::env;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use keymeld_core::link::frame::{FRAME_BYTES_MAX, Frame, HEADER_BYTES, Kind};

use super::try_read;

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `count` less one.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.number() % count as u64).unwrap()
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.number().to_be_bytes()[0])
    }

    fn many(&mut self, length_max: usize) -> Vec<u8> {
        (0..self.below(length_max)).map(|_| self.number().to_be_bytes()[0]).collect()
    }
}

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

/// The seed, which is printed.
pub(crate) fn seed(what: &str) -> u64 {
    let mut drawn = [0; 8];
    getrandom::fill(&mut drawn).unwrap();
    let seed = variable("KEYMELD_TORTURE_SEED").unwrap_or(u64::from_be_bytes(drawn) >> 32);
    eprintln!("torture of the {what}: KEYMELD_TORTURE_SEED={seed}");
    seed
}

pub(crate) fn rounds(default: u64) -> u64 {
    variable("KEYMELD_TORTURE_ROUNDS").unwrap_or(default)
}

fn frame(random: &mut Random) -> Frame {
    let kind = [Kind::Request, Kind::Reply, Kind::Ping, Kind::Pong][random.below(4)];
    let body = if matches!(kind, Kind::Ping | Kind::Pong) { Vec::new() } else { random.many(300) };
    Frame { kind, request_id: random.number() % 8, routing_id: random.bytes(), body }
}

/// Good bytes with something wrong, or not even that.
fn spoilt(random: &mut Random) -> Vec<u8> {
    let mut bytes = frame(random).encode().unwrap();
    match random.below(7) {
        0 => bytes = random.many(400),
        1 => bytes.truncate(random.below(bytes.len())),
        2 | 3 => {
            let bit = random.below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        4 => {
            // A length that is too large, just, or too small.
            let most = u32::try_from(FRAME_BYTES_MAX).unwrap();
            let length = [u32::MAX, most + 1, most, 0, 25, 26][random.below(6)];
            bytes[..4].copy_from_slice(&length.to_be_bytes());
        }
        5 => bytes.extend(random.many(50)),
        _ => {}
    }
    bytes
}

/// What a connection sends to an enclave, piece by piece.
pub(crate) fn to_an_enclave(random: &mut Random) -> Vec<Vec<u8>> {
    let request = |body| Frame { kind: Kind::Request, request_id: 1, routing_id: [9; 16], body };
    match random.below(8) {
        // Half open: nothing ever comes.
        0 => Vec::new(),
        // Floods, of which nobody reads the answers.
        1 => vec![Frame { kind: Kind::Ping, ..request(Vec::new()) }.encode().unwrap(); 3_000],
        2 => vec![request(vec![7; 64 * 1024]).encode().unwrap(); 100],
        // A large frame that is never whole.
        3 => {
            let mut bytes = request(vec![0; FRAME_BYTES_MAX + 4 - HEADER_BYTES]).encode().unwrap();
            bytes.truncate(random.below(1024 * 1024));
            vec![bytes]
        }
        _ => (0..1 + random.below(8)).map(|_| spoilt(random)).collect(),
    }
}

/// How the enclave that the test plays behaves.
#[derive(Default)]
pub(crate) struct Conduct {
    /// It does what it should from now on.
    pub(crate) reformed: AtomicBool,
    /// It accepts no more.
    pub(crate) over: AtomicBool,
}

/// Accepts connections, each of which misbehaves in its own way.
pub(crate) fn enclave(listener: &TcpListener, seed: u64, conduct: &Conduct) {
    let mut random = Random::new(seed ^ 1);
    listener.set_nonblocking(true).unwrap();
    thread::scope(|scope| {
        while !conduct.over.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                thread::yield_now();
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            let random = Random::new(random.number());
            scope.spawn(move || converse(&stream, random, &conduct.reformed));
        }
    });
}

/// One connection to the end.
fn converse(stream: &TcpStream, mut random: Random, reformed: &AtomicBool) {
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let patience = random.below(12);
    let mut count = 0;
    while let Ok(asked) = try_read(stream) {
        let answer = match asked.kind {
            Kind::Ping => Frame { kind: Kind::Pong, ..asked.clone() },
            _ => Frame { kind: Kind::Reply, ..asked.clone() },
        };
        count += 1;
        if reformed.load(Ordering::Relaxed) || count <= patience {
            if (&*stream).write_all(&answer.encode().unwrap()).is_err() {
                return;
            }
            continue;
        }
        let id = asked.request_id;
        let bytes = match random.below(9) {
            0 => return,
            1 => continue,
            2 => Frame { request_id: id.wrapping_add(1), ..answer }.encode().unwrap(),
            3 => Frame { routing_id: random.bytes(), ..answer }.encode().unwrap(),
            4 => [answer.encode().unwrap(), answer.encode().unwrap()].concat(),
            5 => Frame { kind: Kind::Request, ..asked }.encode().unwrap(),
            6 => Frame { body: vec![0; 1024 * 1024], kind: Kind::Reply, ..answer }.encode().unwrap(),
            7 => Frame { kind: Kind::Pong, body: Vec::new(), ..answer }.encode().unwrap(),
            _ => spoilt(&mut random),
        };
        if (&*stream).write_all(&bytes).is_err() {
            return;
        }
    }
}
