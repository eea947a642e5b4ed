//! Frames, the messages in them, and what enclaves send each other.

use keymeld_core::enclave::bundle::{NonceBundle, PartialBundle};
use keymeld_core::link::frame::{Frame, Kind};
use keymeld_core::link::message::{Reply, Request};

/// A stream of frames, as a connection reads it.
///
/// # Panics
/// Where a frame's bytes are not the only ones for what was read.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((field, after)) = rest.split_first_chunk::<4>() {
        let Ok(length) = Frame::length(*field) else { return };
        let Some((frame, next)) = after.split_at_checked(length) else { return };
        let Ok(read) = Frame::decode(frame.to_vec()) else { return };
        assert_eq!(read.encode().as_deref(), Ok(&rest[..4 + length]));
        assert!(read.body.is_empty() || matches!(read.kind, Kind::Request | Kind::Reply));
        rest = next;
    }
}

/// A gateway's request.
///
/// # Panics
/// Where its bytes are not the only ones for what was read.
pub fn requests(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        let _ = request.routing_id();
        assert_eq!(request.encode(), bytes);
    }
}

/// An enclave's reply.
///
/// # Panics
/// Where its bytes are not the only ones for what was read.
pub fn replies(bytes: &[u8]) {
    if let Ok(reply) = Reply::decode(bytes) {
        if let Reply::Refused(refused) = &reply {
            let _ = refused.refusal();
        }
        assert_eq!(reply.encode(), bytes);
    }
}

/// Nonces and partial signatures; the first byte says how many are awaited.
///
/// # Panics
/// Where another number passes, or the bytes are not the only ones for what was read.
pub fn bundles(bytes: &[u8]) {
    let Some((count, bytes)) = bytes.split_first() else { return };
    let count = usize::from(*count);
    if let Ok(bundle) = NonceBundle::decode(bytes, count) {
        assert_eq!(bundle.nonces.len(), count);
        assert_eq!(bundle.encode(), bytes);
    }
    if let Ok(bundle) = PartialBundle::decode(bytes, count) {
        assert_eq!(bundle.partials.len(), count);
        assert_eq!(bundle.encode(), bytes);
    }
}
