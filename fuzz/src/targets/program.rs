//! Bytes read as a program: each choice takes a byte or two, and when they run out every choice is the first.

/// The rest of an input.
#[derive(Clone, Debug)]
pub struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    /// A program from its beginning.
    pub fn new(bytes: &'a [u8]) -> Program<'a> {
        Program(bytes)
    }

    /// Whether it has nothing more to say.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte, 0 after the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `count`, 0 where that is 0.
    pub fn below(&mut self, count: usize) -> usize {
        let drawn = match count {
            0 | 1 => return 0,
            2..=256 => usize::from(self.byte()),
            _ => usize::from(u16::from_be_bytes([self.byte(), self.byte()])),
        };
        drawn % count
    }

    /// One of these.
    pub fn pick<'b, T>(&mut self, from: &'b [T]) -> Option<&'b T> {
        from.get(self.below(from.len()))
    }

    /// As many of the next bytes as there are, at most `count`.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// These bytes with one thing changed, or as they are.
    pub fn altered(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let at = self.below(bytes.len().max(1));
        match self.byte() % 8 {
            0 => {}
            1 if !bytes.is_empty() => bytes[at] ^= 1 << (self.byte() % 8),
            2 if !bytes.is_empty() => bytes[at] = self.byte(),
            3 => bytes.truncate(at),
            4 => {
                let count = usize::from(self.byte());
                let more = self.take(count).to_vec();
                bytes.splice(at..at, more);
            }
            5 => {
                let count = usize::from(self.byte()).min(bytes.len() - at);
                bytes.drain(at..at + count);
            }
            6 => {
                let count = usize::from(self.byte()).min(bytes.len() - at);
                let again = bytes[at..at + count].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let count = usize::from(self.byte());
                let over = self.take(count);
                for (byte, new) in bytes.iter_mut().skip(at).zip(over) {
                    *byte = *new;
                }
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Program;

    #[test]
    fn an_exhausted_program_chooses_the_first_and_alters_nothing() {
        let mut program = Program::new(&[]);
        assert!(program.is_over());
        assert_eq!((program.byte(), program.below(1_000), program.pick(&[7, 8])), (0, 0, Some(&7)));
        assert_eq!(program.altered(b"same"), b"same");
        assert_eq!(program.pick::<u8>(&[]), None);
    }

    #[test]
    fn every_alteration_stays_within_bounds() {
        for at in 0..=5_u8 {
            for kind in 0..8 {
                for count in [0, 1, 200] {
                    for base in [&b""[..], b"a", b"abcde"] {
                        Program::new(&[at, kind, count, 1, 2, 3]).altered(base);
                    }
                }
            }
        }
    }
}
