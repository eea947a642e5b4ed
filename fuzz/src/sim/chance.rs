//! Chance as a function of the seed, of what is drawn for, and of how often it was drawn for that.
//!
//! So a fault that is left out does not change what the others are: shrinking keeps the meaning of a seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use keymeld_core::entropy::{Entropy, EntropyFailed, Origin};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function.
pub(crate) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(GOLDEN);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// FNV-1a, to be continued from `state`.
pub(crate) fn hash(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where [`hash`] begins.
pub(crate) const HASH_BEGIN: u64 = 0xcbf2_9ce4_8422_2325;

/// All of a run's chance.
#[derive(Debug)]
pub(crate) struct Chance {
    seed: u64,
    drawn: BTreeMap<&'static str, u64>,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance { seed: mix(seed), drawn: BTreeMap::new() }
    }

    pub(crate) fn draw(&mut self, what: &'static str) -> u64 {
        let count = self.drawn.entry(what).or_default();
        *count += 1;
        mix(self.seed ^ mix(hash(HASH_BEGIN, what.as_bytes()).wrapping_add(count.wrapping_mul(GOLDEN))))
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, what: &'static str, end: u64) -> u64 {
        self.draw(what) % end
    }

    /// A number from `first` to `last`.
    pub(crate) fn between(&mut self, what: &'static str, first: u64, last: u64) -> u64 {
        first + self.below(what, last - first + 1)
    }

    /// Whether what happens once in so many times happens now; never for 0.
    pub(crate) fn one_in(&mut self, what: &'static str, times: u64) -> bool {
        times != 0 && self.below(what, times) == 0
    }

    /// A place in a list of `count`, which is not 0.
    pub(crate) fn place(&mut self, what: &'static str, count: usize) -> usize {
        (self.draw(what) % count as u64) as usize
    }

    pub(crate) fn bytes(&mut self, what: &'static str) -> [u8; 32] {
        let mut bytes = [0; 32];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.draw(what).to_be_bytes());
        }
        bytes
    }
}

/// How a generator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It gives fresh bytes.
    Works,
    /// It gives the same block for ever.
    Stuck,
    /// It fails.
    Fails,
}

/// The switch of one generator.
#[derive(Clone, Debug)]
pub(crate) struct Switch(Arc<AtomicU8>);

impl Switch {
    pub(crate) fn set(&self, health: Health) {
        self.0.store(health as u8, Ordering::Relaxed);
    }

    pub(crate) fn works(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Health::Works as u8
    }
}

/// A generator of its own for each seed and label, and its switch.
pub(crate) fn generator(seed: u64, label: u64) -> (Entropy, Switch) {
    let switch = Switch(Arc::new(AtomicU8::new(Health::Works as u8)));
    let read = Arc::clone(&switch.0);
    let begin = mix(seed ^ mix(label));
    let mut state = begin;
    let source = move |out: &mut [u8]| {
        let health = read.load(Ordering::Relaxed);
        if health == Health::Fails as u8 {
            return Err(EntropyFailed);
        }
        let stuck = health == Health::Stuck as u8;
        let mut word = begin;
        for chunk in out.chunks_mut(8) {
            if stuck {
                word = word.wrapping_add(GOLDEN);
            } else {
                state = state.wrapping_add(GOLDEN);
                word = state;
            }
            chunk.copy_from_slice(&mix(word).to_be_bytes()[..chunk.len()]);
        }
        Ok(())
    };
    (Entropy::new(Origin::Test, source), switch)
}

#[cfg(test)]
mod tests {
    use super::{Chance, Health, generator};

    #[test]
    fn what_is_drawn_for_one_thing_does_not_depend_on_what_is_drawn_for_another() {
        let mut alone = Chance::new(7);
        let mut mixed = Chance::new(7);
        for _ in 0..100 {
            mixed.draw("other");
            assert_eq!(alone.draw("this"), mixed.draw("this"));
        }
        assert_ne!(Chance::new(7).draw("this"), Chance::new(8).draw("this"));
        assert!(!alone.one_in("never", 0));
    }

    #[test]
    fn a_generator_that_is_switched_off_is_refused() {
        let (mut entropy, switch) = generator(1, 1);
        let first = entropy.bytes::<32>().expect("works");
        switch.set(Health::Stuck);
        assert_ne!(entropy.bytes::<32>(), Ok(first));
        assert!(entropy.bytes::<32>().is_err());
        switch.set(Health::Fails);
        assert!(entropy.bytes::<32>().is_err());
        switch.set(Health::Works);
        assert!(entropy.bytes::<32>().is_ok_and(|bytes| bytes != first));
    }
}
