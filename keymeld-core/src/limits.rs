//! Every bound that is part of the protocol, by name. Bounds of sockets are in keymeld-transport.

/// A participant list is at least this long.
pub const PARTICIPANTS_MIN: usize = 2;
/// A participant list is at most this long.
pub const PARTICIPANTS_MAX: usize = 100;
/// Subsets that one manifest may define.
pub const SUBSETS_MAX: usize = 64;
/// Members of all subsets of a manifest, summed.
pub const SUBSET_MEMBERS_SUM_MAX: usize = 1_000;
/// Items of one intent.
pub const ITEMS_MAX: usize = 1_000;
/// Sum over the items of an intent of branches times signers.
pub const SHARES_MAX: usize = 20_000;
/// Public nonces that one enclave may have to send in one run, each counted for every peer that gets it: all
/// of them go into one frame.
pub const NONCES_SENT_MAX: usize = 100_000;
/// Tweaks applied to one key, in order.
pub const TWEAKS_MAX: usize = 8;
/// Bytes of a name in a manifest.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a manifest's JSON.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a record's body, which takes below 1 KiB.
pub const RECORD_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a certificate's body.
pub const CERTIFICATE_BYTES_MAX: usize = 32 * 1024;
/// Bytes of an intent's body.
pub const INTENT_BYTES_MAX: usize = 512 * 1024;
/// Bytes of a sealed intent: its body in hex, a signature and the seal.
pub const SEALED_INTENT_BYTES_MAX: usize = 2 * INTENT_BYTES_MAX + 1_024;
/// Bytes of the words of who declines or cancels.
pub const REASON_BYTES_MAX: usize = 1_024;
/// Bytes of a result's body. [`ITEMS_MAX`] failures that name [`SHARES_MAX`] culprits fit.
pub const RESULT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of the plaintext of an envelope.
pub const ENVELOPE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of any sealed blob.
pub const SEALED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of an invite.
pub const INVITE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a request body of the REST API.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a response body of the REST API: the largest completed keygen and the largest result fit.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How far clocks may disagree.
pub const SKEW_MS: u64 = 60_000;
/// The longest life of an intent.
pub const INTENT_LIFETIME_MAX_MS: u64 = 7 * 24 * 3_600_000;
/// The life of an intent where the requester says nothing.
pub const INTENT_LIFETIME_DEFAULT_MS: u64 = 3_600_000;
/// The life of a registration where its owner says nothing.
pub const VALID_DEFAULT_MS: u64 = 365 * 24 * 3_600_000;
/// Integers in JSON stay below this, where every language reads them exactly.
pub const JSON_INTEGER_MAX: u64 = (1 << 53) - 1;
