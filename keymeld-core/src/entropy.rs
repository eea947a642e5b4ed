//! Randomness as a fallible, named input.

use alloc::boxed::Box;
use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Where random bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The Nitro Security Module's GetRandom, mixed with the operating system's generator.
    Nsm,
    /// The operating system's generator.
    Os,
    /// A seeded generator of a test or of the simulator.
    Test,
}

/// The generator failed, ran short or repeated a block; whatever wanted the bytes is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the random generator failed or repeated itself")]
pub struct EntropyFailed;

type Source = dyn FnMut(&mut [u8]) -> Result<(), EntropyFailed> + Send;

const BLOCK: usize = 32;

/// A source of random bytes. Machines take it as the last parameter and never store it.
///
/// Bytes are drawn in blocks of 32 and each block is compared with the one before: a stuck generator
/// is noticed before a second nonce could be made from it.
pub struct Entropy {
    origin: Origin,
    source: Box<Source>,
    previous: Zeroizing<[u8; BLOCK]>,
}

impl Entropy {
    /// Wraps a generator. A closure that returns `Err` is a refusal for whoever asked.
    pub fn new(
        origin: Origin,
        source: impl FnMut(&mut [u8]) -> Result<(), EntropyFailed> + Send + 'static,
    ) -> Self {
        Entropy { origin, source: Box::new(source), previous: Zeroizing::new([0; BLOCK]) }
    }

    /// Where the bytes come from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// [`EntropyFailed`] where the source fails, gives all zeros or the same block twice running; `out`
    /// must not be used then.
    pub fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        for chunk in out.chunks_mut(BLOCK) {
            let mut block = Zeroizing::new([0; BLOCK]);
            (self.source)(block.as_mut_slice())?;
            let stuck = block.ct_eq(&*self.previous) | block.ct_eq(&[0; BLOCK]);
            if stuck.into() {
                return Err(EntropyFailed);
            }
            chunk.copy_from_slice(&block[..chunk.len()]);
            self.previous = block;
        }
        Ok(())
    }

    /// `N` random bytes that are not secret: a salt, an id, a GCM nonce.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], EntropyFailed> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entropy({:?})", self.origin)
    }
}

/// A seeded generator for tests and the simulator: SHA-256 in counter mode. Never for real keys.
pub fn test_entropy(seed: u64) -> Entropy {
    use sha2::{Digest, Sha256};
    let mut counter = 0_u64;
    Entropy::new(Origin::Test, move |out| {
        for chunk in out.chunks_mut(32) {
            counter += 1;
            let block = Sha256::new()
                .chain_update(b"keymeld test entropy")
                .chain_update(seed.to_be_bytes())
                .chain_update(counter.to_be_bytes())
                .finalize();
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::{Entropy, EntropyFailed, Origin, test_entropy};

    #[test]
    fn a_stuck_or_failing_generator_is_refused() {
        let mut stuck = Entropy::new(Origin::Test, |out| {
            out.fill(7);
            Ok(())
        });
        assert!(stuck.bytes::<32>().is_ok());
        assert_eq!(stuck.bytes::<32>(), Err(EntropyFailed));
        assert_eq!(stuck.bytes::<1>(), Err(EntropyFailed));

        let mut zero = Entropy::new(Origin::Test, |_| Ok(()));
        assert_eq!(zero.bytes::<16>(), Err(EntropyFailed));
        let mut short = Entropy::new(Origin::Test, |_| Err(EntropyFailed));
        assert_eq!(short.bytes::<16>(), Err(EntropyFailed));
    }

    #[test]
    fn a_seed_gives_the_same_bytes_again() {
        let mut first = test_entropy(1);
        let mut again = test_entropy(1);
        let mut other = test_entropy(2);
        let bytes = first.bytes::<80>().expect("never fails");
        assert_eq!(bytes, again.bytes::<80>().expect("never fails"));
        assert_ne!(bytes, other.bytes::<80>().expect("never fails"));
    }
}
