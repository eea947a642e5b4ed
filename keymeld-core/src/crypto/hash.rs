//! BIP-340 tagged hashes: one tag per purpose, so that nothing hashed or signed for one can serve another.

use sha2::{Digest, Sha256};

use crate::bytes::Hash;

/// Every purpose that something is hashed or signed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// A caller's proof on an HTTP request.
    HttpProof,
    /// The hash of a manifest.
    Manifest,
    /// The hash of a roster.
    Roster,
    /// A record: the proof of possession by its signing key.
    Possession,
    /// A record: the co-signature by the pinned signing key.
    PinnedKey,
    /// A record: the co-signature by the invite key.
    InviteKey,
    /// An enclave's certificate of a keygen.
    Certificate,
    /// The digest of an intent, and the requester's signature.
    Intent,
    /// An approval of an intent.
    Approve,
    /// A decline of an intent.
    Decline,
    /// A cancellation of an intent.
    Cancel,
    /// An aggregator's signature on a result.
    Result,
    /// The hash of all public nonces that a partial was made under.
    NonceView,
    /// A message that is the hash of a text.
    Text,
    /// An enclave's measured configuration.
    Config,
}

impl Tag {
    /// Every tag.
    pub const ALL: [Tag; 15] = [
        Tag::HttpProof,
        Tag::Manifest,
        Tag::Roster,
        Tag::Possession,
        Tag::PinnedKey,
        Tag::InviteKey,
        Tag::Certificate,
        Tag::Intent,
        Tag::Approve,
        Tag::Decline,
        Tag::Cancel,
        Tag::Result,
        Tag::NonceView,
        Tag::Text,
        Tag::Config,
    ];

    /// The tag as BIP-340 hashes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Tag::HttpProof => "KeyMeld/http-proof/v1",
            Tag::Manifest => "KeyMeld/manifest/v1",
            Tag::Roster => "KeyMeld/roster/v1",
            Tag::Possession => "KeyMeld/possession/v1",
            Tag::PinnedKey => "KeyMeld/pinned-key/v1",
            Tag::InviteKey => "KeyMeld/invite-key/v1",
            Tag::Certificate => "KeyMeld/certificate/v1",
            Tag::Intent => "KeyMeld/intent/v1",
            Tag::Approve => "KeyMeld/approve/v1",
            Tag::Decline => "KeyMeld/decline/v1",
            Tag::Cancel => "KeyMeld/cancel/v1",
            Tag::Result => "KeyMeld/result/v1",
            Tag::NonceView => "KeyMeld/nonce-view/v1",
            Tag::Text => "KeyMeld/text/v1",
            Tag::Config => "KeyMeld/config/v1",
        }
    }
}

/// BIP-340's `hash_tag(parts)`, the parts one after another without lengths.
///
/// Callers pass one part, or parts of fixed length, or write lengths themselves.
pub fn tagged_hash(tag: Tag, parts: &[&[u8]]) -> Hash {
    let tag_hash = Sha256::digest(tag.as_str().as_bytes());
    let mut hasher = Sha256::new().chain_update(tag_hash).chain_update(tag_hash);
    for part in parts {
        hasher.update(part);
    }
    Hash(hasher.finalize().into())
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::{Tag, tagged_hash};

    #[test]
    fn tags_differ_and_so_do_their_hashes() {
        let names: BTreeSet<_> = Tag::ALL.iter().map(|tag| tag.as_str()).collect();
        assert_eq!(names.len(), Tag::ALL.len());
        let hashes: BTreeSet<_> = Tag::ALL.iter().map(|tag| tagged_hash(*tag, &[b"x"])).collect();
        assert_eq!(hashes.len(), Tag::ALL.len());
        assert_eq!(tagged_hash(Tag::Text, &[b"ab", b"c"]), tagged_hash(Tag::Text, &[b"a", b"bc"]));
    }
}
