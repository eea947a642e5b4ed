//! What commands are given: keys, tokens and policies. Secrets come from files, descriptors or standard input,
//! never from an argument, which every process of the machine can read.

use std::env;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str;

use clap::Args;
use keymeld_core::attestation::RootKind;
use keymeld_core::attestation::policy::{POLICY_BYTES_MAX, Policy, PolicyError};
use keymeld_core::crypto::auth;
use keymeld_core::secret::{ApiToken, Secret};
use zeroize::Zeroizing;

use crate::kept::{self, KeptError};

/// The most bytes of a key's file: 64 hex digits and white space around them.
const KEY_BYTES_MAX: usize = 256;
/// The most bytes of a token's file.
const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// Where the name of the key's file may stand instead.
const KEY_FILE_VARIABLE: &str = "KEYMELD_KEY_FILE";
/// Where the API token may stand instead.
const TOKEN_VARIABLE: &str = "KEYMELD_API_TOKEN";
/// Permissions that let others read or change a file.
const OPEN: u32 = 0o077;
/// Permissions that let others change a file.
const WRITABLE: u32 = 0o022;

/// Why something that was given is not used.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// No key at all.
    #[error("a signing key is needed: --key-file FILE, --key-file - or --key-fd N")]
    NoKey,
    /// Not a key.
    #[error("the key is not 64 lower-case hex digits of a private key of secp256k1")]
    BadKey,
    /// Not a token.
    #[error("the API token is empty or not ASCII text")]
    BadToken,
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] KeptError),
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Input(#[source] io::Error),
    /// More than fits.
    #[error("standard input: too much of it")]
    InputTooLarge,
    /// Not a policy.
    #[error("{0}: {1}")]
    Policy(PathBuf, #[source] PolicyError),
    /// Development enclaves beside real ones: a leak of the former's files would open the latter's door.
    #[error("{0}: a policy names the AWS root or development roots, not both")]
    MixedPolicy(PathBuf),
}

/// Where the user's signing key is.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct KeySource {
    /// The file with the signing key (mode 0600), or - for standard input. The variable KEYMELD_KEY_FILE may
    /// name it.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// An open descriptor to read the signing key from.
    #[arg(long, value_name = "N")]
    pub key_fd: Option<u32>,
}

impl KeySource {
    /// Whether standard input is taken.
    pub fn is_input(&self) -> bool {
        self.key_fd == Some(0) || (self.key_fd.is_none() && self.file().as_deref() == Some(Path::new("-")))
    }

    fn file(&self) -> Option<PathBuf> {
        self.key_file.clone().or_else(|| env::var_os(KEY_FILE_VARIABLE).map(PathBuf::from))
    }

    /// Reads the key.
    ///
    /// # Errors
    /// [`GivenError`].
    pub fn read(&self) -> Result<Secret<32>, GivenError> {
        let bytes = match (self.key_fd, self.file()) {
            (Some(number), _) => read_descriptor(number, KEY_BYTES_MAX)?,
            (None, Some(file)) => read_file(&file, KEY_BYTES_MAX)?,
            (None, None) => return Err(GivenError::NoKey),
        };
        let key = Secret::from_hex(bytes.trim_ascii()).ok_or(GivenError::BadKey)?;
        auth::public_key(&key).map_err(|_| GivenError::BadKey)?;
        Ok(key)
    }
}

/// Where the operator's API token is, if one is needed.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct TokenSource {
    /// The file with the gateway operator's API token (mode 0600), or - for standard input. The variable
    /// KEYMELD_API_TOKEN may hold the token itself.
    #[arg(long, value_name = "FILE")]
    pub api_token_file: Option<PathBuf>,
    /// An open descriptor to read the API token from.
    #[arg(long, value_name = "N")]
    pub api_token_fd: Option<u32>,
}

impl TokenSource {
    /// Reads the token, if there is one.
    ///
    /// # Errors
    /// [`GivenError`].
    pub fn read(&self) -> Result<Option<ApiToken>, GivenError> {
        let bytes = match (&self.api_token_fd, &self.api_token_file) {
            (Some(number), _) => read_descriptor(*number, TOKEN_BYTES_MAX)?,
            (None, Some(file)) => read_file(file, TOKEN_BYTES_MAX)?,
            (None, None) => match env::var(TOKEN_VARIABLE) {
                Ok(token) => Zeroizing::new(token.into_bytes()),
                Err(env::VarError::NotPresent) => return Ok(None),
                Err(env::VarError::NotUnicode(_)) => return Err(GivenError::BadToken),
            },
        };
        let token = str::from_utf8(bytes.trim_ascii()).map_err(|_| GivenError::BadToken)?;
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(GivenError::BadToken);
        }
        Ok(Some(ApiToken::new(token.to_owned())))
    }
}

/// Reads a file with a secret, or standard input for `-`.
///
/// # Errors
/// [`GivenError`].
pub fn read_file(file: &Path, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, GivenError> {
    if file == Path::new("-") {
        return kept::read_whole(Unbuffered, bytes_max)
            .map_err(GivenError::Input)?
            .ok_or(GivenError::InputTooLarge);
    }
    Ok(kept::read(file, bytes_max, OPEN, "600")?)
}

fn read_descriptor(number: u32, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, GivenError> {
    // Whoever opened it has decided who else may read it.
    Ok(kept::read(Path::new(&format!("/dev/fd/{number}")), bytes_max, 0, "600")?)
}

/// Standard input without the standard library's buffer, which nobody wipes.
struct Unbuffered;

impl Read for Unbuffered {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use std::os::fd::AsFd;
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        std::fs::File::from(input).read(out)
    }
}

/// Reads a policy, which others may read but not change.
///
/// # Errors
/// [`GivenError`].
pub fn policy(file: &Path) -> Result<Policy, GivenError> {
    let bytes = kept::read(file, POLICY_BYTES_MAX, WRITABLE, "644")?;
    let policy = Policy::from_json(&bytes).map_err(|error| GivenError::Policy(file.to_owned(), error))?;
    let kinds = policy.roots.iter().map(|root| matches!(root.kind(), RootKind::AwsNitroG1));
    let (aws, development): (Vec<bool>, Vec<bool>) = kinds.partition(|is_aws| *is_aws);
    if aws.is_empty() || development.is_empty() {
        Ok(policy)
    } else {
        Err(GivenError::MixedPolicy(file.to_owned()))
    }
}
