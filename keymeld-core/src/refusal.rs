//! Refusals: one table of codes, each with a number for frames, a name for problem+json and a status.

use alloc::vec::Vec;
use core::fmt;

use crate::entropy::EntropyFailed;
use crate::id::UserId;
use crate::strict::{CborError, JsonError};

/// Whether a refused request may succeed unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After the time that Retry-After states.
    Later,
    /// At once, signed again.
    WithFreshProof,
    /// Not before it, or what it is about, is another.
    Never,
}

macro_rules! codes {
    ($($number:literal $variant:ident $name:literal $status:literal $advice:literal;)*) => {
        /// Why something was refused. Numbers and names never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $(#[doc = $advice] $variant = $number,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The stable name, as in problem+json.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            /// The HTTP status it is reported with.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// What happened and what to do about it.
            pub fn advice(self) -> &'static str {
                match self { $(Code::$variant => $advice,)* }
            }

            /// Whether it helps to ask again.
            pub fn retry(self) -> Retry {
                if matches!(self, Code::ProofStale | Code::ProofReplayed) {
                    Retry::WithFreshProof
                } else if matches!(self.status(), 429 | 503) {
                    Retry::Later
                } else {
                    Retry::Never
                }
            }

            /// The stable number, as in frames and records.
            pub fn number(self) -> u16 {
                self as u16
            }

            /// The code with this number.
            pub fn from_number(number: u16) -> Option<Code> {
                match number { $($number => Some(Code::$variant),)* _ => None }
            }

            /// The code with this name.
            pub fn from_name(name: &str) -> Option<Code> {
                match name { $($name => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    100 Malformed "malformed" 400 "Not well-formed JSON, CBOR or HTTP. Correct the request.";
    101 UnknownField "unknown-field" 400 "A field or variant that is not known here. Remove it.";
    102 MissingField "missing-field" 400 "A field is missing. Add it.";
    103 DuplicateName "duplicate-name" 400 "A name occurs twice in one object. Send it once.";
    104 NullField "null" 400 "null is not used. Leave the field out.";
    105 Float "float" 400 "A number with a fraction or exponent. Send an integer.";
    106 IntegerRange "integer-range" 400 "An integer below 0 or from 2^53. Send one in between.";
    107 BadHex "bad-hex" 400 "Not lower-case hex of whole bytes. Encode bytes as lower-case hex.";
    108 WrongLength "wrong-length" 400 "A byte string of another length than the field has. Send exactly as many bytes.";
    109 BadId "bad-id" 400 "Not a lower-case, hyphenated UUID. Write the id as one.";
    110 WrongType "wrong-type" 400 "A value of another type, or not in its one encoding. Send the type that the field has.";
    111 TooLarge "too-large" 413 "More bytes than allowed. Send less.";
    112 BadQuery "bad-query" 400 "A query parameter is unknown, missing, repeated or out of range. Correct the query.";
    113 UnsupportedVersion "unsupported-version" 400 "A version of an artifact or message that is not known here. Use a client that fits the gateway.";

    200 ProofMissing "proof-missing" 401 "The KeyMeld-Proof header is missing. Sign the request.";
    201 ProofWrong "proof-wrong" 401 "The proof does not verify for this method, authority, target and body. Sign exactly what is sent.";
    202 ProofStale "proof-stale" 401 "The proof's time is over 60 s off. Sign again with the time in `now`, once.";
    203 ProofReplayed "proof-replayed" 401 "This proof was used already. Sign again with a fresh nonce.";
    204 KeyNotAllowed "key-not-allowed" 403 "The proof's key may not do this. Use the session, slot or user auth key.";
    205 TokenRequired "token-required" 401 "The operator requires an API token to reserve. Send it as a bearer token.";

    300 UnknownId "unknown-id" 404 "Nothing with this id is known here. Check the id, and that this is its gateway.";
    301 UnknownEndpoint "unknown-endpoint" 404 "No such endpoint. See the API description.";
    302 MethodNotAllowed "method-not-allowed" 405 "The endpoint exists with another method. Use that one.";
    303 IdConflict "id-conflict" 409 "The id was used with other content. Send the stored bytes again, or use a fresh id.";
    304 WrongState "wrong-state" 409 "The session is in a state that does not allow this. Read its status.";
    305 Expired "expired" 410 "The session's time is over. Start a new one.";
    306 TooMany "too-many" 429 "Too many sessions, waiters or requests. Try again later.";
    307 EnclaveAway "enclave-away" 503 "The enclave cannot be reached. Try again; sessions go on by themselves.";
    308 DiskFull "disk-full" 503 "The gateway's disk is full; nothing changed. Try again later.";
    309 StorageFailed "storage-failed" 503 "The gateway's database failed; nothing changed. Try again later.";
    310 ShuttingDown "shutting-down" 503 "The gateway is shutting down. Try again.";
    311 Internal "internal" 500 "A fault of KeyMeld itself; nothing changed. Report it.";
    312 EntropyFailed "entropy-failed" 503 "The random generator failed or repeated itself; nothing was made. Try again; if it stays so, tell the operator.";

    400 TooFewParticipants "too-few-participants" 400 "A session needs at least two participants. Name more.";
    401 TooManyParticipants "too-many-participants" 400 "More participants than a session may have. Name fewer.";
    402 DuplicateUser "duplicate-user" 400 "A user occurs twice in one list. Name everybody once.";
    403 DuplicateKey "duplicate-key" 400 "Two users, or a user and the session, have the same key. Give each its own.";
    404 EqualX "equal-x" 400 "Two signing keys have the same x coordinate. Start a new keygen with other keys.";
    405 CoordinatorNotParticipant "coordinator-not-participant" 400 "The coordinator must be one of the participants. Name it among them.";
    406 UserNotInRoster "user-not-in-roster" 404 "The user is not a participant of this session. Check the user's id and the session's.";
    407 SlotTaken "slot-taken" 409 "The slot holds another registration. Send the stored bytes again, or start a new keygen.";
    408 WrongEnclaveKey "wrong-enclave-key" 400 "Made for another enclave's key than the slot's enclave has. Attest that enclave and use its key.";
    409 WrongEpoch "wrong-epoch" 409 "The enclave has no such epoch. Fetch its attestation again, without one.";
    410 ManifestHashMismatch "manifest-hash-mismatch" 400 "Another manifest than the session's. Take the one whose hash the invite names.";
    411 BadPossession "bad-possession" 400 "The proof of possession does not verify under the signing key. Register with that key's private half.";
    412 BadCosignature "bad-cosignature" 400 "The co-signature does not verify under the pinned or invite key. Register with the invite that was meant.";
    413 PointAtInfinity "point-at-infinity" 400 "A public key is the point at infinity. Send the key of a private key.";
    414 NotOnCurve "not-on-curve" 400 "A public key is not a point of secp256k1. Send the key of a private key.";
    415 InvalidPrivateKey "invalid-private-key" 400 "A private key is zero or not below the group order. Make another.";
    416 BadSubset "bad-subset" 400 "A subset has fewer than two members, a repeated one, a stranger or a used id, or there are too many. Correct it.";
    417 BadTweak "bad-tweak" 400 "A tweak is not below the group order, leads to infinity, or there are too many. Correct it.";
    418 BadTimes "bad-times" 400 "Times are out of order or further apart than allowed. Correct them.";
    419 BadName "bad-name" 400 "A name is too long. Shorten it.";
    420 PinMismatch "pin-mismatch" 400 "The record's keys are not the ones that the manifest pins. Register with the pinned key.";

    500 UnknownSession "unknown-session" 404 "The enclave does not hold this session. The gateway opens it there and goes on by itself.";
    501 UnknownAttempt "unknown-attempt" 409 "The enclave does not hold this attempt. The gateway starts a new one by itself.";
    502 EnvelopeUnreadable "envelope-unreadable" 400 "The envelope does not open under this enclave's key. Encrypt it to the key that the enclave attests.";
    503 EnvelopeMismatch "envelope-mismatch" 400 "The envelope is for another purpose, session, user or enclave. Make one for this slot.";
    504 SessionSecretsDiffer "session-secrets-differ" 400 "Two envelopes of the session hold different session secrets. Start a new keygen; mind where invites come from.";
    505 SealUnreadable "seal-unreadable" 400 "A sealed blob does not open under its session's key and context. Seal it with the invite's session secret.";
    506 RecordMismatch "record-mismatch" 400 "The record is for another session, user, manifest or enclave, or a hint beside it is wrong. Make one for this slot.";
    507 EnvelopeRecordMismatch "envelope-record-mismatch" 400 "Envelope and record disagree in a shared field. Make both at once.";
    508 EnclaveKeysMismatch "enclave-keys-mismatch" 400 "An ECIES and an identity key do not occur as one pair. Take both from one attestation, in a new keygen.";
    509 EnvelopeMissing "envelope-missing" 400 "A record names this enclave but no envelope came for it, or the reverse. Start a new keygen, at another gateway.";
    510 RosterIncomplete "roster-incomplete" 400 "Records and manifest do not name the same participants, each once. Start a new keygen, at another gateway.";
    511 RosterHashMismatch "roster-hash-mismatch" 409 "Another roster than the session's. Verify the keygen again and make a new intent.";
    512 RoutingMismatch "routing-mismatch" 400 "The frame's routing id is not the message's session. Report it: the gateway is at fault.";
    513 IdentityMissing "identity-missing" 503 "The enclave holds no identity yet. Try again; the gateway hands it over by itself.";
    514 IdentityRefused "identity-refused" 400 "The identity row was refused: made up, altered, or of another enclave. Operator: restore it, or rotate.";
    515 IdentityExists "identity-exists" 409 "The enclave holds an identity of this epoch already. The gateway goes on with it by itself.";
    516 NotAttested "not-attested" 503 "The enclave's security module gave no document. Try again; if it stays so, tell the operator.";
    517 TimeUnknown "time-unknown" 503 "The enclave does not know the time yet. Try again.";
    518 CertificatesDiffer "certificates-differ" 409 "Enclaves certified different rosters. Start a new keygen, at another gateway.";
    519 CertificateInvalid "certificate-invalid" 400 "A certificate does not verify or contradicts the roster. Do not use the key; start a new keygen.";
    520 RegistrationExpired "registration-expired" 410 "A registration's valid_until has passed. Start a new keygen.";
    521 KeyServiceFailed "key-service-failed" 503 "The key service refused or could not be reached. Try again; if it stays so, tell the operator.";
    522 ProductionOnly "entropy-origin" 503 "Randomness of an origin that a production enclave does not accept. Operator: run the enclave on its platform.";

    600 IntentUnsigned "intent-unsigned" 403 "The requester's signature on the intent does not verify. Sign it with the requester's auth key.";
    601 RequesterNotAllowed "requester-not-allowed" 403 "The manifest or a signer's rules do not let this user request. Let the coordinator request, or signers approve.";
    602 IntentMismatch "intent-mismatch" 400 "The intent is for another session, manifest or request. Make a new one.";
    603 IntentExpired "intent-expired" 410 "The intent has expired. Make a new one.";
    604 IntentNotYetValid "intent-not-yet-valid" 400 "The intent's created_at lies in the future. Correct the clock and make a new one.";
    605 IntentLifetime "intent-lifetime" 400 "The intent outlives a limit, a registration or the manifest. Make one that ends earlier.";
    606 ApprovalMissing "approval-missing" 403 "A signer's approval is required and is not there. Have the intent approved.";
    607 ApprovalInvalid "approval-invalid" 403 "An approval or its refusal does not verify for this intent and user. Sign its digest with the user's auth key.";
    608 BlindNotAllowed "blind-not-allowed" 403 "An item does not say what it signs and a signer does not allow that. State its origin, or have it approved as blind.";
    609 OriginMismatch "origin-mismatch" 400 "An item's message is not what its origin gives. Compute it from the origin.";
    610 OriginForbidden "origin-forbidden" 400 "The bytes are another protocol's tagged hash. State no origin, and have the item approved as blind.";
    611 Unsupported "unsupported" 400 "A part of the format that is defined but not supported yet. Leave it out.";
    612 BadItems "bad-items" 400 "Too few, too many or repeated items, or too many signers in sum. Split the intent.";
    613 UnknownSubset "unknown-subset" 400 "An item names a subset that the manifest does not define. Name one that it does.";
    614 BundleUnreadable "bundle-unreadable" 400 "A message of another enclave does not open in this context. The gateway tries again by itself.";
    615 BundleMismatch "bundle-mismatch" 400 "The messages of the other enclaves are not one from each. The gateway tries again by itself.";
    616 NonceInvalid "nonce-invalid" 400 "A public nonce is not a pair of points. The gateway tries again by itself.";
    617 NonceViewsDiffer "nonce-views-differ" 409 "Enclaves signed under different nonces; nobody can be blamed. The gateway tries again by itself.";
    618 PartialInvalid "partial-invalid" 409 "A partial signature is wrong; the culprits are named. Start a new keygen without them.";
    619 AttemptConsumed "attempt-consumed" 409 "The attempt's nonces were used for other bundles. The gateway tries again by itself.";
    620 NotConcerned "not-concerned" 400 "The enclave has no signer of this intent. Name the items' subsets as the intent does.";
    621 AggregatorInvalid "aggregator-invalid" 400 "The aggregator is not an enclave of a signer of this intent. Name the items' subsets as the intent does.";
    622 ResultInvalid "result-invalid" 400 "The result does not verify: the enclave or the gateway misbehaved. Do not use it; ask again.";
    623 Declined "declined" 409 "An approver declined. Ask for the reason before asking again.";
    624 Cancelled "cancelled" 409 "The requester cancelled. Ask again where the signature is still wanted.";
    625 TooManyAttempts "too-many-attempts" 409 "The signing was tried as often as allowed and failed. Tell the operator; ask again when the intent has expired.";
    626 SignatureInvalid "signature-invalid" 409 "The final signature does not verify although every partial does. Report it; ask again when the intent has expired.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Code {}

impl From<JsonError> for Code {
    fn from(error: JsonError) -> Code {
        match error {
            JsonError::TooLarge => Code::TooLarge,
            JsonError::Malformed => Code::Malformed,
            JsonError::DuplicateName => Code::DuplicateName,
            JsonError::Null => Code::NullField,
            JsonError::Float => Code::Float,
            JsonError::IntegerRange => Code::IntegerRange,
            JsonError::UnknownField => Code::UnknownField,
            JsonError::MissingField => Code::MissingField,
            JsonError::BadHex => Code::BadHex,
            JsonError::WrongLength => Code::WrongLength,
            JsonError::BadId => Code::BadId,
            JsonError::WrongType => Code::WrongType,
        }
    }
}

impl From<CborError> for Code {
    fn from(_: CborError) -> Code {
        Code::Malformed
    }
}

impl From<EntropyFailed> for Code {
    fn from(_: EntropyFailed) -> Code {
        Code::EntropyFailed
    }
}

impl From<crate::crypto::seal::OpenError> for Code {
    fn from(_: crate::crypto::seal::OpenError) -> Code {
        Code::SealUnreadable
    }
}

impl From<crate::crypto::seal::SealError> for Code {
    fn from(error: crate::crypto::seal::SealError) -> Code {
        match error {
            crate::crypto::seal::SealError::Entropy(_) => Code::EntropyFailed,
            crate::crypto::seal::SealError::TooLarge => Code::TooLarge,
        }
    }
}

impl From<crate::crypto::auth::InvalidKey> for Code {
    fn from(_: crate::crypto::auth::InvalidKey) -> Code {
        Code::InvalidPrivateKey
    }
}

/// A refusal with whoever is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// Who is to blame, where that is certain.
    pub culprits: Vec<UserId>,
}

impl Refusal {
    /// A refusal that blames these users.
    pub fn blaming(code: Code, culprits: Vec<UserId>) -> Refusal {
        Refusal { code, culprits }
    }

    /// Who is to blame, where that is certain.
    pub fn culprits(&self) -> &[UserId] {
        &self.culprits
    }
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Refusal {
        Refusal { code, culprits: Vec::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.name())
    }
}

impl core::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::Code;

    #[test]
    fn numbers_and_names_are_unique_and_read_back() {
        let numbers: BTreeSet<_> = Code::ALL.iter().map(|code| code.number()).collect();
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
            assert_eq!(Code::from_name(code.name()), Some(*code));
            assert!((400..=599).contains(&code.status()));
        }
    }
}
