//! The messages inside frames: CBOR, decoded strictly, each with a version.
//!
//! The gateway asks, an enclave answers. Everything that matters in a request is ciphertext or signed by a
//! participant; the rest are routing hints that the enclave checks.

use alloc::vec::Vec;

use minicbor::{Decode, Encode};

use crate::artifact::approval::Approval;
use crate::bytes::{Blob, Hash, PublicKey, XOnlyKey};
use crate::id::{AttemptId, EnclaveId, KeygenId, SigningId, UserId};
use crate::limits::PARTICIPANTS_MAX;
use crate::refusal::{Code, Refusal};
use crate::strict;

/// The version of all messages.
pub const MESSAGE_VERSION: u32 = 1;

/// A request with its version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct VersionedRequest {
    #[n(0)]
    version: u32,
    #[n(1)]
    request: Request,
}

/// A reply with its version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct VersionedReply {
    #[n(0)]
    version: u32,
    #[n(1)]
    reply: Reply,
}

/// What the gateway asks of an enclave.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Who are you, and what do you hold?
    #[n(0)]
    Hello,
    /// Make an identity for a new epoch. It is used only once its row has come back.
    #[n(1)]
    CreateIdentity(#[n(0)] CreateIdentity),
    /// Here is the row of an identity that you made.
    #[n(2)]
    OpenIdentity(#[n(0)] IdentityRow),
    /// A client wants a document with its nonce.
    #[n(3)]
    Attest(#[n(0)] Attest),
    /// Check one registration before it is acknowledged.
    #[n(4)]
    CheckRegistration(#[n(0)] CheckRegistration),
    /// Open a keygen session and certify it.
    #[n(5)]
    OpenKeygen(#[n(0)] OpenKeygen),
    /// Round 1: make nonces.
    #[n(6)]
    MakeNonces(#[n(0)] MakeNonces),
    /// Round 2: make partial signatures.
    #[n(7)]
    MakePartials(#[n(0)] MakePartials),
    /// Round 3, to the aggregator: sign, aggregate, verify.
    #[n(8)]
    Aggregate(#[n(0)] Aggregate),
}

/// What an enclave answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// No, with the reason.
    #[n(0)]
    Refused(#[n(0)] Refused),
    /// To [`Request::Hello`].
    #[n(1)]
    Hello(#[n(0)] HelloReply),
    /// To [`Request::CreateIdentity`].
    #[n(2)]
    IdentityCreated(#[n(0)] IdentityRow),
    /// To [`Request::OpenIdentity`].
    #[n(3)]
    IdentityOpened,
    /// To [`Request::Attest`].
    #[n(4)]
    Attested(#[n(0)] Blob),
    /// To [`Request::CheckRegistration`].
    #[n(5)]
    RegistrationChecked,
    /// To [`Request::OpenKeygen`].
    #[n(6)]
    KeygenOpened(#[n(0)] KeygenOpened),
    /// To [`Request::MakeNonces`].
    #[n(7)]
    NoncesMade(#[n(0)] Vec<Addressed>),
    /// To [`Request::MakePartials`].
    #[n(8)]
    PartialsMade(#[n(0)] Blob),
    /// To [`Request::Aggregate`], and to [`Request::MakeNonces`] where all signers share one enclave.
    #[n(9)]
    Aggregated(#[n(0)] Blob),
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refused {
    /// A [`Code`]'s number.
    #[n(0)]
    pub code: u16,
    /// Who is to blame, where that is certain.
    #[n(1)]
    pub culprits: Vec<UserId>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused { code: refusal.code.number(), culprits: refusal.culprits }
    }
}

impl Refused {
    /// The refusal; an unknown number from a newer enclave becomes [`Code::Internal`].
    pub fn refusal(&self) -> Refusal {
        let mut culprits = self.culprits.clone();
        culprits.truncate(PARTICIPANTS_MAX);
        Refusal::blaming(Code::from_number(self.code).unwrap_or(Code::Internal), culprits)
    }
}

/// What an enclave is and holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HelloReply {
    /// Its measured id.
    #[n(0)]
    pub enclave_id: EnclaveId,
    /// The epochs whose rows were handed over and opened.
    #[n(1)]
    pub epochs: Vec<u32>,
}

/// Asks for a new identity.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CreateIdentity {
    /// Its epoch.
    #[n(0)]
    pub epoch: u32,
}

/// An enclave's identity at rest. The gateway stores it and can do nothing with it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct IdentityRow {
    /// [`MESSAGE_VERSION`] when it was made.
    #[n(0)]
    pub version: u32,
    /// The enclave.
    #[n(1)]
    pub enclave_id: EnclaveId,
    /// The epoch.
    #[n(2)]
    pub epoch: u32,
    /// The ECIES public key.
    #[n(3)]
    pub ecies_key: PublicKey,
    /// The identity public key.
    #[n(4)]
    pub identity_key: XOnlyKey,
    /// PCR0 of the image that made it.
    #[n(5)]
    pub birth_pcr0: Blob,
    /// The data key, encrypted by KMS.
    #[n(6)]
    pub encrypted_data_key: Blob,
    /// The seed, sealed under the data key.
    #[n(7)]
    pub encrypted_seed: Blob,
    /// The attestation document made at birth.
    #[n(8)]
    pub birth_document: Blob,
}

/// Asks for an attestation document.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attest {
    /// Which epoch.
    #[n(0)]
    pub epoch: u32,
    /// The client's challenge.
    #[n(1)]
    pub nonce: Hash,
}

/// A participant's sealed record.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UserBlob {
    /// Whose.
    #[n(0)]
    pub user_id: UserId,
    /// The record or envelope.
    #[n(1)]
    pub blob: Blob,
}

/// One registration, to be checked by itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CheckRegistration {
    /// Which of the enclave's keys the envelope is for.
    #[n(0)]
    pub enclave_key: PublicKey,
    /// The session.
    #[n(1)]
    pub keygen_id: KeygenId,
    /// The manifest's hash.
    #[n(2)]
    pub manifest_hash: Hash,
    /// The sealed manifest.
    #[n(3)]
    pub manifest: Blob,
    /// Whose slot it is.
    #[n(4)]
    pub user_id: UserId,
    /// The envelope.
    #[n(5)]
    pub envelope: Blob,
    /// The sealed record.
    #[n(6)]
    pub record: Blob,
    /// What the gateway was told of the record, and goes by: the auth key,
    #[n(7)]
    pub auth_key: XOnlyKey,
    /// and whether every intent needs an approval.
    #[n(8)]
    pub approval_required: bool,
}

/// Everything an enclave needs to hold a keygen session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OpenKeygen {
    /// Which of the enclave's keys is addressed.
    #[n(0)]
    pub enclave_key: PublicKey,
    /// The session.
    #[n(1)]
    pub keygen_id: KeygenId,
    /// The manifest's hash.
    #[n(2)]
    pub manifest_hash: Hash,
    /// The sealed manifest.
    #[n(3)]
    pub manifest: Blob,
    /// All sealed records.
    #[n(4)]
    pub records: Vec<UserBlob>,
    /// This key's envelopes.
    #[n(5)]
    pub envelopes: Vec<UserBlob>,
}

/// An opened session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KeygenOpened {
    /// The roster's hash, in the clear so that the gateway can compare.
    #[n(0)]
    pub roster_hash: Hash,
    /// The sealed certificate.
    #[n(1)]
    pub certificate: Blob,
}

/// Names a run of the signing rounds at one enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RunKey {
    /// Which of the enclave's keys is addressed.
    #[n(0)]
    pub enclave_key: PublicKey,
    /// The keygen session.
    #[n(1)]
    pub keygen_id: KeygenId,
    /// The signing session.
    #[n(2)]
    pub signing_id: SigningId,
    /// The intent's digest.
    #[n(3)]
    pub digest: Hash,
    /// The run.
    #[n(4)]
    pub attempt: AttemptId,
    /// The aggregator's ECIES key.
    #[n(5)]
    pub aggregator: PublicKey,
}

/// Round 1.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MakeNonces {
    /// The run.
    #[n(0)]
    pub run: RunKey,
    /// The sealed intent.
    #[n(1)]
    pub intent: Blob,
    /// The approvals so far.
    #[n(2)]
    pub approvals: Vec<Approval>,
}

/// A blob from one enclave key or to one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Addressed {
    /// In a reply the recipient, in a request the sender.
    #[n(0)]
    pub peer: PublicKey,
    /// Sealed under the pair's key.
    #[n(1)]
    pub blob: Blob,
}

/// Round 2.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MakePartials {
    /// The run.
    #[n(0)]
    pub run: RunKey,
    /// The nonce bundles of all other concerned enclave keys, by sender.
    #[n(1)]
    pub nonces: Vec<Addressed>,
}

/// Round 3.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Aggregate {
    /// The run.
    #[n(0)]
    pub run: RunKey,
    /// The nonce bundles of all other concerned enclave keys, by sender.
    #[n(1)]
    pub nonces: Vec<Addressed>,
    /// Their partials, by sender.
    #[n(2)]
    pub partials: Vec<Addressed>,
}

impl Request {
    /// The request's bytes.
    pub fn encode(self) -> Vec<u8> {
        strict::to_cbor(&VersionedRequest { version: MESSAGE_VERSION, request: self })
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::UnsupportedVersion`].
    pub fn decode(bytes: &[u8]) -> Result<Request, Code> {
        let message: VersionedRequest = strict::from_cbor(bytes)?;
        if message.version == MESSAGE_VERSION { Ok(message.request) } else { Err(Code::UnsupportedVersion) }
    }

    /// The routing id that a frame with this request must carry: the keygen's, or zeros.
    pub fn routing_id(&self) -> [u8; 16] {
        match self {
            Request::Hello | Request::CreateIdentity(_) | Request::OpenIdentity(_) | Request::Attest(_) => {
                [0; 16]
            }
            Request::CheckRegistration(request) => request.keygen_id.0,
            Request::OpenKeygen(request) => request.keygen_id.0,
            Request::MakeNonces(request) => request.run.keygen_id.0,
            Request::MakePartials(request) => request.run.keygen_id.0,
            Request::Aggregate(request) => request.run.keygen_id.0,
        }
    }
}

impl Reply {
    /// The reply's bytes.
    pub fn encode(self) -> Vec<u8> {
        strict::to_cbor(&VersionedReply { version: MESSAGE_VERSION, reply: self })
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::UnsupportedVersion`].
    pub fn decode(bytes: &[u8]) -> Result<Reply, Code> {
        let message: VersionedReply = strict::from_cbor(bytes)?;
        if message.version == MESSAGE_VERSION { Ok(message.reply) } else { Err(Code::UnsupportedVersion) }
    }
}
