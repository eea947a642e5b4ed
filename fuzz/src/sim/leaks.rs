//! S3 and S5: nothing that is secret, and nothing that the host must not learn, is anywhere in the clear.

use std::collections::{BTreeMap, BTreeSet};

/// What a pattern is known by: its first bytes.
const PATTERN_BYTES: usize = 16;
/// Raw, hex, hex of hex, hex of that: artifacts are hex of JSON with hex in it.
const FORMS: usize = 4;
const FILTER_BITS: usize = 1 << 16;

/// Everything that must not be seen, and where to look for it.
pub(crate) struct Leaks {
    known: BTreeSet<Vec<u8>>,
    /// By the first 8 bytes of each form.
    forms: BTreeMap<u64, Vec<(Vec<u8>, &'static str)>>,
    filter: Vec<u64>,
    pub(crate) bytes: u64,
}

impl Leaks {
    pub(crate) fn new() -> Leaks {
        Leaks { known: BTreeSet::new(), forms: BTreeMap::new(), filter: vec![0; FILTER_BITS / 64], bytes: 0 }
    }

    /// From now on these bytes must not be seen.
    pub(crate) fn add(&mut self, bytes: &[u8], what: &'static str) {
        // Zeros, and whatever is short, occur by themselves.
        if bytes.len() < PATTERN_BYTES || bytes[..PATTERN_BYTES].iter().all(|byte| *byte == bytes[0]) {
            return;
        }
        let mut form = bytes[..PATTERN_BYTES].to_vec();
        if !self.known.insert(form.clone()) {
            return;
        }
        for _ in 0..FORMS {
            let first = word(&form, 0);
            let bit = place(first);
            self.filter[bit / 64] |= 1 << (bit % 64);
            let longer = hex(&form);
            self.forms.entry(first).or_default().push((form, what));
            form = longer;
        }
    }

    /// Looks for all of them.
    ///
    /// # Panics
    /// Where one is there.
    pub(crate) fn scan(&mut self, bytes: &[u8], place_of: &str) {
        self.bytes += bytes.len() as u64;
        let Some(last) = bytes.len().checked_sub(8) else { return };
        for at in 0..=last {
            let first = word(bytes, at);
            let bit = place(first);
            if self.filter[bit / 64] & (1 << (bit % 64)) == 0 {
                continue;
            }
            for (form, what) in self.forms.get(&first).into_iter().flatten() {
                assert!(!bytes[at..].starts_with(form), "S3, S5: {what} is in {place_of} in the clear");
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn place(word: u64) -> usize {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

pub(crate) fn hex(bytes: &[u8]) -> Vec<u8> {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::{Leaks, hex};

    #[test]
    fn what_must_not_be_seen_is_found_in_every_form_and_nothing_else_is() {
        let secret: Vec<u8> = (100..132).collect();
        let mut leaks = Leaks::new();
        leaks.add(&secret, "a key");
        leaks.add(&[0; 32], "nothing");
        leaks.scan(&secret[..15], "a prefix");
        leaks.scan(&[0; 64], "zeros");
        let mut form = secret;
        for _ in 0..4 {
            let around = [b"around".as_slice(), &form, b"it"].concat();
            let found = std::panic::catch_unwind(move || {
                let mut leaks = Leaks::new();
                leaks.add(&(100..132).collect::<Vec<u8>>(), "a key");
                leaks.scan(&around, "a frame");
            });
            assert!(found.is_err());
            form = hex(&form);
        }
    }
}
