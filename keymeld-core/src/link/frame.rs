//! The frame: a fixed header and an opaque body.
//!
//! ```text
//! offset  bytes  field
//! 0       4      length of all that follows, big endian, at most FRAME_BYTES_MAX
//! 4       1      header version, 1
//! 5       1      kind
//! 6       8      request id, big endian: chosen by the gateway, echoed in the reply
//! 14      16     routing id: a keygen or key id, or zeros
//! 30      ...    body: one CBOR message
//! ```

use alloc::vec::Vec;

/// The bytes before a body.
pub const HEADER_BYTES: usize = 30;
/// The most that a frame may hold after its length field.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The version of the header.
pub const HEADER_VERSION: u8 = 1;

const AFTER_LENGTH: usize = HEADER_BYTES - 4;

/// What a frame is for. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The gateway asks.
    Request = 1,
    /// The enclave answers.
    Reply = 2,
    /// The gateway looks whether the connection lives; no body.
    Ping = 3,
    /// The enclave says that it does; no body.
    Pong = 4,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// Pairs a reply with its request on one connection.
    pub request_id: u64,
    /// Which session it is for, so that it can be routed without reading the body.
    pub routing_id: [u8; 16],
    /// The message.
    pub body: Vec<u8>,
}

/// Why bytes are not a frame. The connection cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is over [`FRAME_BYTES_MAX`].
    #[error("frame too large")]
    TooLarge,
    /// The length field is too small for a header.
    #[error("frame too short")]
    TooShort,
    /// A header version that is not known here.
    #[error("unknown frame version")]
    UnknownVersion,
    /// A kind that is not known here.
    #[error("unknown frame kind")]
    UnknownKind,
    /// A ping or pong with a body.
    #[error("unexpected body")]
    UnexpectedBody,
}

impl Frame {
    /// The frame's bytes.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] where the body does not fit.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let length = AFTER_LENGTH + self.body.len();
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge);
        }
        let length_field = u32::try_from(length).expect("FRAME_BYTES_MAX fits in 32 bits");
        let mut bytes = Vec::with_capacity(4 + length);
        bytes.extend_from_slice(&length_field.to_be_bytes());
        bytes.push(HEADER_VERSION);
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.request_id.to_be_bytes());
        bytes.extend_from_slice(&self.routing_id);
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }

    /// How many bytes follow the length field, to be read before [`Frame::decode`].
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] or [`FrameError::TooShort`], before anything is allocated.
    pub fn length(field: [u8; 4]) -> Result<usize, FrameError> {
        let length = usize::try_from(u32::from_be_bytes(field)).map_err(|_| FrameError::TooLarge)?;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge);
        }
        if length < AFTER_LENGTH {
            return Err(FrameError::TooShort);
        }
        Ok(length)
    }

    /// Reads a frame from all that followed its length field; the body stays in that memory.
    ///
    /// # Errors
    /// [`FrameError`], one variant per reason.
    pub fn decode(mut after_length: Vec<u8>) -> Result<Frame, FrameError> {
        if after_length.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge);
        }
        let header: [u8; AFTER_LENGTH] = *after_length.first_chunk().ok_or(FrameError::TooShort)?;
        if header[0] != HEADER_VERSION {
            return Err(FrameError::UnknownVersion);
        }
        let kind = [Kind::Request, Kind::Reply, Kind::Ping, Kind::Pong]
            .into_iter()
            .find(|kind| *kind as u8 == header[1])
            .ok_or(FrameError::UnknownKind)?;
        if matches!(kind, Kind::Ping | Kind::Pong) && after_length.len() > AFTER_LENGTH {
            return Err(FrameError::UnexpectedBody);
        }
        let mut request_id = [0; 8];
        request_id.copy_from_slice(&header[2..10]);
        let mut routing_id = [0; 16];
        routing_id.copy_from_slice(&header[10..26]);
        after_length.drain(..AFTER_LENGTH);
        Ok(Frame { kind, request_id: u64::from_be_bytes(request_id), routing_id, body: after_length })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::{FRAME_BYTES_MAX, Frame, FrameError, Kind};

    fn frame() -> Frame {
        Frame { kind: Kind::Request, request_id: 0x0102, routing_id: [0xaa; 16], body: vec![1, 2, 3] }
    }

    #[test]
    fn golden_bytes() {
        let bytes = frame().encode().expect("small");
        let hex = base16ct::lower::encode_string(&bytes);
        assert_eq!(hex, "0000001d01010000000000000102aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa010203");
        assert_eq!(Frame::decode(bytes[4..].to_vec()), Ok(frame()));
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        assert_eq!(Frame::length([0xff; 4]), Err(FrameError::TooLarge));
        assert_eq!(Frame::length([0, 0, 0, 25]), Err(FrameError::TooShort));
        assert_eq!(Frame::length([0, 0, 0, 26]), Ok(26));
        let most = u32::try_from(FRAME_BYTES_MAX).expect("fits");
        assert_eq!(Frame::length(most.to_be_bytes()), Ok(FRAME_BYTES_MAX));
        assert_eq!(Frame::length((most + 1).to_be_bytes()), Err(FrameError::TooLarge));
    }

    #[test]
    fn every_truncation_and_every_header_flip_is_refused_or_read_as_something_else() {
        let bytes = frame().encode().expect("small");
        for end in 4..30 {
            assert_eq!(Frame::decode(bytes[4..end].to_vec()), Err(FrameError::TooShort), "{end}");
        }
        for bit in 32..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Frame::decode(flipped[4..].to_vec()), Ok(frame()), "{bit}");
        }
    }
}
