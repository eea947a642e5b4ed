//! The body of a reply, which takes room in its pool until it is taken.

use std::fmt;
use std::sync::Weak;

use super::Shared;

/// The message of a reply. Until it is taken or dropped it counts for
/// [`replies_bytes_max`](super::PoolOptions::replies_bytes_max).
#[derive(Debug)]
pub struct Body {
    bytes: Vec<u8>,
    _room: Option<Room>,
}

impl Body {
    /// One that the pool has counted.
    pub(super) fn counted(bytes: Vec<u8>, shared: Weak<Shared>) -> Body {
        let room = Room { shared, bytes: bytes.len() };
        Body { bytes, _room: Some(room) }
    }

    /// Takes the message out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A message that takes no room, to compare with.
impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body { bytes, _room: None }
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Body) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Body {}

/// Bytes that a reply takes of its pool.
struct Room {
    shared: Weak<Shared>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        // Nobody counts any more where the pool is gone.
        if let Some(shared) = self.shared.upgrade() {
            shared.took(self.bytes);
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Room").field(&self.bytes).finish()
    }
}
