//! `keygen-key` and `verify`: what needs no gateway.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use keymeld_core::artifact::intent::Origin;
use keymeld_core::bytes::{Blob, Message, PublicKey, Signature, XOnlyKey};
use keymeld_core::crypto::auth;
use keymeld_core::limits::INTENT_BYTES_MAX;
use keymeld_core::musig::round;
use keymeld_core::refusal::Code;
use keymeld_core::secret::Secret;
use serde::Serialize;

use super::{Contradiction, End, Failure, Report};
use crate::{kept, os_entropy};

/// Make a signing key, and print its public key.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  keymeld keygen-key --out alice.key")]
pub struct KeygenKey {
    /// The file, which is made with mode 0600; one that is there already is left as it is.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct KeyReport {
    public_key: PublicKey,
    file: String,
}

/// `keymeld keygen-key`.
///
/// # Errors
/// [`Failure`].
pub fn keygen_key(options: &KeygenKey) -> Result<Report, Failure> {
    let key = Secret::random(&mut os_entropy()).map_err(Code::from)?;
    // One in 2^128 draws is none.
    let public_key = auth::public_key(&key).map_err(Code::from)?;
    match kept::write_new(&options.out, key.to_hex().as_bytes()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Contradiction::FileExists(options.out.clone()).into());
        }
        Err(error) => return Err(Failure::File(options.out.clone(), error)),
    }
    let report = KeyReport { public_key, file: options.out.display().to_string() };
    Ok(Report::new(&report, format!("public key {public_key}")))
}

/// What an item is made of, wherever one is given.
pub(super) fn origin_of_file(file: &Path) -> Result<Origin, Failure> {
    let bytes = kept::read(file, INTENT_BYTES_MAX, 0, "600")?;
    Ok(Origin::Bytes(Blob(bytes.to_vec())))
}

/// Check a BIP-340 signature. Needs no gateway and no key of yours.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld verify --key 5f2c... --signature 9a31... --text 'pay 1 to Bob'\n",
    "  keymeld verify --key 5f2c... --signature 9a31... --file contract.pdf\n",
    "  keymeld verify --key 5f2c... --signature 9a31... --message 00ab...\n\n",
    "Ends with 0 if it verifies and with 4 if it does not."
))]
pub struct Verify {
    /// The BIP-340 public key, 64 hex digits.
    #[arg(long, value_name = "HEX", value_parser = hex::<XOnlyKey>)]
    key: XOnlyKey,
    /// The signature, 128 hex digits.
    #[arg(long, value_name = "HEX", value_parser = hex::<Signature>)]
    signature: Signature,
    /// The 32 bytes that were signed.
    #[arg(long, value_name = "HEX", value_parser = hex::<Message>)]
    message: Option<Message>,
    /// The text whose tagged hash was signed.
    #[arg(long)]
    text: Option<String>,
    /// The file whose SHA-256 was signed.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Byte strings that arguments are written as.
pub trait Hex: Sized {
    /// Reads lower-case hex.
    ///
    /// # Errors
    /// For clap.
    fn read(text: &str) -> Result<Self, keymeld_core::bytes::HexError>;
}

macro_rules! hex_arguments {
    ($($name:ty),*) => {$(
        impl Hex for $name {
            fn read(text: &str) -> Result<Self, keymeld_core::bytes::HexError> {
                <$name>::from_hex(text)
            }
        }
    )*};
}
hex_arguments!(XOnlyKey, Signature, Message, keymeld_core::bytes::Hash);

/// Reads a byte string.
///
/// # Errors
/// For clap.
pub fn hex<T: Hex>(text: &str) -> Result<T, keymeld_core::bytes::HexError> {
    T::read(text)
}

#[derive(Serialize)]
struct VerifyReport {
    verified: bool,
    key: XOnlyKey,
    message: Message,
    signature: Signature,
}

/// `keymeld verify`.
///
/// # Errors
/// [`Failure`].
pub fn verify(options: &Verify) -> Result<Report, Failure> {
    let message = match (&options.message, &options.text, &options.file) {
        (Some(message), None, None) => *message,
        (None, Some(text), None) => Origin::Text(text.clone()).message()?,
        (None, None, Some(file)) => origin_of_file(file)?.message()?,
        _ => return Err(Contradiction::OneMessage.into()),
    };
    let Verify { key, signature, .. } = *options;
    let verified = round::verify(&key.0, &message.0, &signature.0);
    let report = VerifyReport { verified, key, message, signature };
    let (text, end) = if verified {
        ("the signature verifies", End::Done)
    } else {
        ("the signature does NOT verify", End::Unverified)
    };
    Ok(Report::new(&report, text.to_owned()).ending(end))
}
