//! The Nitro Security Module: attestation documents, random bytes and the image's measurement.

#[cfg(feature = "dev")]
pub mod software;

/// The most bytes that each of an attestation's three inputs may have.
pub const INPUT_BYTES_MAX: usize = 1024;

/// A security module, real or software. Calls block; a real one answers within milliseconds.
pub trait Nsm: Send {
    /// Makes an attestation document: a COSE_Sign1 over the inputs, the registers and the module's time.
    ///
    /// Each input has at most [`INPUT_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`NsmError`].
    fn attest(
        &mut self,
        public_key: Option<&[u8]>,
        nonce: Option<&[u8]>,
        user_data: Option<&[u8]>,
    ) -> Result<Vec<u8>, NsmError>;

    /// Fills `out` with random bytes.
    ///
    /// # Errors
    /// [`NsmError`]; `out` must not be used then.
    fn random(&mut self, out: &mut [u8]) -> Result<(), NsmError>;

    /// PCR0 of the image that runs: 48 bytes, all zeros in debug mode.
    ///
    /// # Errors
    /// [`NsmError`].
    fn pcr0(&mut self) -> Result<[u8; 48], NsmError>;
}

/// Why a security module did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NsmError {
    /// The device is absent, refused the call or gave an answer that cannot be read.
    #[error("the security module failed")]
    Device,
    /// An input is longer than [`INPUT_BYTES_MAX`].
    #[error("an input to the security module is too long")]
    InputTooLong,
    /// The random generator failed or repeated itself.
    #[error("the security module's generator failed")]
    Entropy,
}
