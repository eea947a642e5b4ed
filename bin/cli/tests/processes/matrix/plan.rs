//! What is to happen, drawn from a seed: the same seed, the same keygens, signings and faults.

use std::time::Duration;

use keymeld::children::{Children, Service};

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for each number under a seed.
    pub(crate) fn new(seed: u64, number: u64) -> Random {
        let mut random = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `count` less one.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).expect("below a usize")
    }

    /// Once in `count` times.
    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}

/// A keygen and what is signed with its key.
#[derive(Debug)]
pub(super) struct KeygenPlan {
    pub(super) number: usize,
    pub(super) participants: usize,
    /// Whether the request of the coordinator is all that a signature needs.
    pub(super) delegated: bool,
    /// Whether somebody never comes: there must be no key then.
    pub(super) incomplete: bool,
    pub(super) signings: Vec<SigningPlan>,
}

/// A request for signatures and what the participants make of it.
#[derive(Debug)]
pub(super) struct SigningPlan {
    pub(super) texts: Vec<String>,
    pub(super) fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Whoever has to approves.
    Approved,
    /// That participant never says a word; the others approve.
    Ignored(usize),
    /// That participant declines; the others before it approve.
    Declined(usize),
    /// The requester cancels before the last approval.
    Cancelled,
}

impl KeygenPlan {
    /// The plan with that number, with so many signings.
    pub(super) fn draw(seed: u64, number: usize, signings: usize) -> KeygenPlan {
        let mut random = Random::new(seed, number as u64);
        let participants = 2 + random.below(3);
        let incomplete = signings == 0;
        let delegated = !incomplete && random.one_in(4);
        let signing = |at| {
            let texts = (0..=random.below(3)).map(|item| format!("{seed}/{number}/{at}/{item}")).collect();
            let other = 1 + random.below(participants - 1);
            let fate = match random.below(8) {
                _ if delegated => Fate::Approved,
                0 => Fate::Ignored(other),
                1 => Fate::Declined(other),
                2 => Fate::Cancelled,
                _ => Fate::Approved,
            };
            SigningPlan { texts, fate }
        };
        let signings = (0..signings).map(signing).collect();
        KeygenPlan { number, participants, delegated, incomplete, signings }
    }
}

/// One of the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Gateway,
    Enclave(usize),
}

impl Victim {
    pub(crate) fn among(self, children: &mut Children) -> &mut Service {
        match self {
            Victim::Gateway => &mut children.gateway,
            Victim::Enclave(at) => &mut children.enclaves[at],
        }
    }
}

/// What a process has to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// kill -9, and a restart.
    Kill(Victim),
    /// The same of all at once.
    KillAll,
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Victim),
    /// The gateway cannot write any more, until it is restarted.
    DiskFull,
    /// The gateway's clock is set back by an hour, until it is restarted.
    ClockBack,
}

/// A fault and when: after so many further steps of the participants, and a little.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) steps: usize,
    pub(super) after: Duration,
    pub(super) fault: Fault,
}

/// An endless schedule. It begins with one of each fault in some order, then kills; the others come back
/// once in a while.
pub(super) struct Schedule {
    random: Random,
    enclaves: usize,
    can_set_clock: bool,
    steps_max: usize,
    deck: Vec<Fault>,
}

impl Schedule {
    pub(super) fn new(seed: u64, enclaves: usize, can_set_clock: bool, steps_max: usize) -> Schedule {
        let mut random = Random::new(seed, u64::MAX);
        let mut deck = vec![Fault::KillAll, Fault::DiskFull];
        deck.extend(can_set_clock.then_some(Fault::ClockBack));
        deck.push(Fault::Pause(Victim::Gateway));
        deck.extend((0..enclaves).map(|at| Fault::Kill(Victim::Enclave(at))));
        deck.push(Fault::Kill(Victim::Gateway));
        deck.push(Fault::Pause(Victim::Enclave(random.below(enclaves))));
        random.shuffle(&mut deck);
        Schedule { random, enclaves, can_set_clock, steps_max, deck }
    }

    fn victim(&mut self) -> Victim {
        match self.random.below(self.enclaves + 1) {
            0 => Victim::Gateway,
            enclave => Victim::Enclave(enclave - 1),
        }
    }

    pub(super) fn draw(&mut self) -> Strike {
        let fault = match self.deck.pop() {
            Some(fault) => fault,
            None => match self.random.below(100) {
                0..8 => Fault::KillAll,
                8..10 => Fault::DiskFull,
                10..12 if self.can_set_clock => Fault::ClockBack,
                12 => Fault::Pause(self.victim()),
                _ => Fault::Kill(self.victim()),
            },
        };
        let steps = 1 + self.random.below(self.steps_max);
        // Anywhere within a step: most take some milliseconds.
        let after = Duration::from_micros(self.random.below(12_000) as u64);
        Strike { steps, after, fault }
    }
}
