//! Why an attestation document is refused.

/// Why an attestation document is refused. One variant per reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    // The document's bytes.
    /// Longer than [`DOCUMENT_BYTES_MAX`](super::document::DOCUMENT_BYTES_MAX).
    #[error("the document is too long")]
    DocumentTooLong,
    /// Not CBOR, cut short, or CBOR of another type than the place calls for.
    #[error("the document is malformed")]
    Malformed,
    /// Bytes follow the COSE_Sign1 or its payload.
    #[error("bytes follow the document")]
    TrailingBytes,
    /// Neither an untagged array of four elements nor one under tag 18.
    #[error("not a COSE_Sign1")]
    NotSign1,
    /// The protected header is not exactly `{1: -35}` (ES384).
    #[error("the protected header is not ES384")]
    ProtectedHeader,
    /// The unprotected header, which no signature covers, is not empty.
    #[error("the unprotected header is not empty")]
    UnprotectedHeader,
    /// The signature is not 96 bytes long.
    #[error("the signature has the wrong length")]
    SignatureLength,
    /// The payload has a field that AWS does not define.
    #[error("unknown field")]
    UnknownField,
    /// The payload has a field twice.
    #[error("duplicate field")]
    DuplicateField,
    /// The payload lacks a field.
    #[error("missing field")]
    MissingField,
    /// `module_id` is empty or too long.
    #[error("module_id has the wrong length")]
    ModuleIdLength,
    /// `digest` is not SHA384.
    #[error("the digest is not SHA384")]
    Digest,
    /// A PCR's index is over 31.
    #[error("PCR index out of range")]
    PcrIndex,
    /// A PCR occurs twice.
    #[error("duplicate PCR")]
    DuplicatePcr,
    /// A PCR is not 48 bytes long.
    #[error("a PCR has the wrong length")]
    PcrLength,
    /// A certificate is empty or longer than 1,024 bytes.
    #[error("a certificate has the wrong length")]
    CertificateLength,
    /// `cabundle` is empty or holds too many certificates.
    #[error("the cabundle has the wrong length")]
    CabundleLength,
    /// `public_key`, `user_data` or `nonce` is longer than 1,024 bytes.
    #[error("an optional field is too long")]
    OptionalFieldLength,

    // Signature and certificates.
    /// The trust anchor itself is not a certificate.
    #[error("the root is not a certificate")]
    RootMalformed,
    /// The cabundle does not begin with a pinned root.
    #[error("the root is not trusted")]
    RootUntrusted,
    /// The signing certificate cannot be read or does not hold a P-384 key.
    #[error("the signing certificate is malformed")]
    CertificateMalformed,
    /// The document is not signed by its certificate.
    #[error("the signature is wrong")]
    SignatureInvalid,
    /// A certificate of the path is not valid yet at the document's time.
    #[error("a certificate is not valid yet")]
    CertificateNotYetValid,
    /// A certificate of the path has expired at the document's time.
    #[error("a certificate has expired")]
    CertificateExpired,
    /// No valid path leads from the signing certificate to the root.
    #[error("no certificate path leads to the root")]
    PathInvalid,

    // What made the document.
    /// `module_id` is not that of an enclave; a NitroTPM's document chains to the same root.
    #[error("the document is not an enclave's")]
    NotAnEnclave,
    /// A PCR that has to be checked is not in the document.
    #[error("a PCR is missing")]
    PcrMissing,
    /// PCR0 is all zeros: the enclave runs in debug mode and hides nothing.
    #[error("the enclave runs in debug mode")]
    DebugMode,

    // What the client demands.
    /// The document is older than the policy allows.
    #[error("the document is stale")]
    Stale,
    /// The document's time is ahead of the client's clock by more than the permitted skew.
    #[error("the document is from the future")]
    FromTheFuture,
    /// The nonce is absent or not the one that was sent.
    #[error("the nonce is wrong")]
    Nonce,
    /// No allowed image has these PCRs.
    #[error("the image is not allowed")]
    ImageNotAllowed,
    /// `public_key` is absent or not a compressed secp256k1 point.
    #[error("the encryption key is malformed")]
    EciesKey,
    /// `user_data` is absent.
    #[error("user_data is missing")]
    UserDataMissing,
    /// `user_data` is not the one encoding of what it should hold.
    #[error("user_data is malformed")]
    UserDataMalformed,
    /// `user_data` has a version that is not known here.
    #[error("unknown version of user_data")]
    UserDataVersion,
    /// `user_data` was made for another purpose.
    #[error("the document is for another purpose")]
    Purpose,
    /// The identity key is not an x-only secp256k1 public key.
    #[error("the identity key is malformed")]
    IdentityKey,
    /// The image that the enclave's keys were made under is not allowed.
    #[error("the birth image is not allowed")]
    BirthImageNotAllowed,
    /// The enclave's configuration is not allowed.
    #[error("the configuration is not allowed")]
    ConfigNotAllowed,
    /// For registering: the enclave's keys were made under another image than the one that runs.
    #[error("the enclave was born under another image")]
    BornUnderAnotherImage,
    /// For registering: a newer epoch of this enclave has been seen.
    #[error("the enclave was born before its newest epoch")]
    BornBeforeNewest,

    // What a restarting enclave demands of its row.
    /// The row's enclave id is not the birth document's.
    #[error("the enclave id differs")]
    EnclaveIdDiffers,
    /// The row's epoch is not the birth document's.
    #[error("the epoch differs")]
    EpochDiffers,
    /// The row's ECIES key is not the birth document's.
    #[error("the encryption key differs")]
    EciesKeyDiffers,
    /// The row's identity key is not the birth document's.
    #[error("the identity key differs")]
    IdentityKeyDiffers,
    /// The row's encrypted DEK does not have the birth document's hash.
    #[error("the encrypted DEK differs")]
    EncryptedDekDiffers,
    /// The birth document's image is neither the running one nor one of its listed predecessors.
    #[error("the birth image is not a predecessor")]
    NotAPredecessor,
}
