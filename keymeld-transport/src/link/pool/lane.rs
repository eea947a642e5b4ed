//! One connection of a pool: connect, read until it ends, wait, connect again.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use super::super::stream::Stream;
use super::super::wire::{FrameReader, Heard, ReadError, take_batch};
use super::{FailReason, HELD, Shared, millis, spawn};

/// The thread of a lane.
pub(super) fn run(shared: &Arc<Shared>, lane: usize) {
    let mut failed = 0;
    while !shared.lock().closing {
        match Stream::connect(&shared.address, millis(shared.options.connect_ms)) {
            Ok(stream) => {
                // Only a frame shows that an enclave is there: a multiplexer or a proxy accepts without one.
                if converse(shared, lane, Arc::new(stream)) {
                    failed = 0;
                }
            }
            Err(error) => tracing::debug!(enclave = %shared.address, lane, %error, "cannot connect"),
        }
        wait_before_retry(shared, failed);
        failed = failed.saturating_add(1);
    }
}

/// Serves a connection until it ends, and says whether a frame ever came.
fn converse(shared: &Arc<Shared>, lane: usize, stream: Arc<Stream>) -> bool {
    let heard = Arc::new(Heard::new());
    if !shared.lock().up(lane, Arc::clone(&stream), Arc::clone(&heard)) {
        return false;
    }
    tracing::info!(enclave = %shared.address, lane, "connected");
    shared.deliver();
    // Its pings are to be scheduled.
    shared.clock.notify_one();
    let writer = {
        let (shared, stream) = (Arc::clone(shared), Arc::clone(&stream));
        spawn("link-write", move || write(&shared, lane, &stream))
    };
    let Ok(writer) = writer else {
        shared.sever(lane, FailReason::ConnectionLost);
        return false;
    };
    let mut reader = FrameReader::watched(stream, heard);
    let mut any = false;
    let reason = loop {
        match reader.read() {
            Ok(frame) => {
                any = true;
                if let Err(reason) = shared.receive(lane, frame) {
                    break reason;
                }
                shared.deliver();
            }
            Err(ReadError::Malformed(error)) => {
                tracing::warn!(enclave = %shared.address, lane, %error, "malformed frame");
                break FailReason::PeerMisbehaved;
            }
            Err(ReadError::Io(error)) => {
                tracing::debug!(enclave = %shared.address, lane, %error, "cannot read");
                break FailReason::ConnectionLost;
            }
            Err(ReadError::Closed) => break FailReason::ConnectionLost,
        }
    };
    shared.sever(lane, reason);
    if writer.join().is_err() {
        tracing::error!(lane, "the writing thread had panicked");
    }
    any
}

/// The thread that writes to a connection. It may block for as long as the peer is heard: the clock's
/// thread shuts a silent connection down.
fn write(shared: &Shared, lane: usize, stream: &Stream) {
    let mut state = shared.lock();
    loop {
        let Some(queue) = state.queue_of(lane) else {
            return;
        };
        let (batch, frames) = take_batch(queue);
        if frames == 0 {
            state = shared.writable[lane].wait(state).expect(HELD);
            continue;
        }
        state.dequeued(batch.len());
        drop(state);
        if (&mut &*stream).write_all(&batch).is_err() {
            shared.sever(lane, FailReason::ConnectionLost);
            return;
        }
        state = shared.lock();
    }
}

/// Waits, twice as long after each failure, or until the pool closes. The jitter keeps the connections of
/// many pools from coming all at once.
fn wait_before_retry(shared: &Shared, failed: u32) {
    let options = &shared.options;
    let most = options.backoff_min_ms.saturating_mul(1_u64.checked_shl(failed).unwrap_or(u64::MAX));
    let most = most.min(options.backoff_max_ms);
    // The seed of a fresh hasher is random enough for this.
    let jitter = RandomState::new().hash_one(failed) % (most / 2 + 1);
    let wait = Duration::from_millis(most - jitter);
    drop(shared.closing.wait_timeout_while(shared.lock(), wait, |state| !state.closing).expect(HELD));
}
