//! Frames on a stream: read one at a time, written many at once.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keymeld_core::link::frame::{Frame, FrameError};

use super::stream::{Stream, left_until};

const BUFFER_BYTES: usize = 64 * 1024;
/// How much is written at once.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Why there is no further frame.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The peer closed between two frames.
    Closed,
    /// The socket failed, a time ran out, or the peer closed within a frame.
    Io(io::Error),
    /// The peer does not keep to the format.
    Malformed(FrameError),
}

/// Reads frames.
pub(super) struct FrameReader {
    inner: BufReader<Source>,
    idle: Option<Duration>,
    whole: Option<Duration>,
}

impl FrameReader {
    /// Without limits of time: whoever watches the connection shuts it down.
    pub(super) fn watched(stream: Arc<Stream>, heard: Arc<Heard>) -> Self {
        Self::with(Source { stream, heard: Some(heard), until: Until::Never, set: None }, None, None)
    }

    /// With a limit to the silence between two frames, and to the time from a frame's first byte to its
    /// last.
    pub(super) fn timed(stream: Arc<Stream>, idle: Duration, whole: Duration) -> Self {
        let source = Source { stream, heard: None, until: Until::Idle(idle), set: None };
        Self::with(source, Some(idle), Some(whole))
    }

    fn with(source: Source, idle: Option<Duration>, whole: Option<Duration>) -> Self {
        FrameReader { inner: BufReader::with_capacity(BUFFER_BYTES, source), idle, whole }
    }

    /// The next frame. What was announced is reserved at once, for a buffer that grows step by step tears holes into
    /// an allocator's heaps; only what has arrived is written to, so that an announcement alone takes no memory.
    pub(super) fn read(&mut self) -> Result<Frame, ReadError> {
        if let Some(idle) = self.idle {
            self.inner.get_mut().until = Until::Idle(idle);
        }
        loop {
            match self.inner.fill_buf() {
                Ok([]) => return Err(ReadError::Closed),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        if let Some(whole) = self.whole {
            self.inner.get_mut().until = Until::At(Instant::now() + whole);
        }
        let mut field = [0; 4];
        self.inner.read_exact(&mut field).map_err(ReadError::Io)?;
        let length = Frame::length(field).map_err(ReadError::Malformed)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| ReadError::Io(ErrorKind::OutOfMemory.into()))?;
        while bytes.len() < length {
            let arrived = match self.inner.fill_buf() {
                Ok([]) => return Err(ReadError::Io(ErrorKind::UnexpectedEof.into())),
                Ok(arrived) => arrived,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(ReadError::Io(error)),
            };
            let count = arrived.len().min(length - bytes.len());
            bytes.extend_from_slice(&arrived[..count]);
            self.inner.consume(count);
        }
        Frame::decode(bytes).map_err(ReadError::Malformed)
    }
}

enum Until {
    Never,
    Idle(Duration),
    At(Instant),
}

/// A stream that sets its time-out before it reads and notes when it was heard.
struct Source {
    stream: Arc<Stream>,
    heard: Option<Arc<Heard>>,
    until: Until,
    /// The time-out that the socket has: the same one is not set twice.
    set: Option<Duration>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let timeout = match self.until {
            Until::Never => None,
            Until::Idle(timeout) => Some(timeout),
            Until::At(deadline) => Some(left_until(deadline)?),
        };
        if self.set != timeout {
            self.stream.set_read_timeout(timeout)?;
            self.set = timeout;
        }
        let count = (&*self.stream).read(buffer)?;
        if let Some(heard) = &self.heard {
            heard.now();
        }
        Ok(count)
    }
}

/// When a byte last arrived.
pub(super) struct Heard {
    start: Instant,
    micros: AtomicU64,
}

impl Heard {
    /// A new connection counts as heard.
    pub(super) fn new() -> Self {
        Heard { start: Instant::now(), micros: AtomicU64::new(0) }
    }

    fn now(&self) {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.micros.store(micros, Ordering::Relaxed);
    }

    pub(super) fn at(&self) -> Instant {
        self.start + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// Takes frames off a queue for one write, at least one if there is any, and says how many.
pub(super) fn take_batch(queue: &mut VecDeque<Vec<u8>>) -> (Vec<u8>, usize) {
    let Some(mut batch) = queue.pop_front() else {
        return (Vec::new(), 0);
    };
    let mut count = 1;
    while queue.front().is_some_and(|next| batch.len() + next.len() <= BATCH_BYTES_MAX) {
        batch.append(&mut queue.pop_front().expect("it has a front"));
        count += 1;
    }
    (batch, count)
}

/// Writes all bytes, or fails when they are not accepted in time.
pub(super) fn write_within(stream: &Stream, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left_until(deadline)?))?;
        match (&mut &*stream).write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BATCH_BYTES_MAX, take_batch};

    #[test]
    fn small_frames_go_together_and_large_ones_alone() {
        let mut queue = [vec![1; 10], vec![2; 20], vec![3; BATCH_BYTES_MAX], vec![4; 5]].into();
        assert_eq!(take_batch(&mut queue).1, 2);
        assert_eq!(take_batch(&mut queue), (vec![3; BATCH_BYTES_MAX], 1));
        assert_eq!(take_batch(&mut queue), (vec![4; 5], 1));
        assert_eq!(take_batch(&mut queue), (Vec::new(), 0));
    }
}
