//! The enclave's settings.

use std::ffi::OsString;
use std::path::Path;
#[cfg(feature = "dev")]
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use keymeld_core::bytes::Hash;
use keymeld_core::crypto::hash::sha256;
use keymeld_core::id::EnclaveId;
use keymeld_transport::link::address::Address;
use keymeld_transport::link::server::ServeLimits;
use keymeld_transport::process::log::LogSettings;
use keymeld_transport::process::settings;
use serde::Deserialize;

use crate::{ENVIRONMENT_PREFIX, Error};

/// The most worker threads.
pub(crate) const WORKERS_MAX: usize = 64;
/// The most predecessors.
pub(crate) const PREDECESSORS_MAX: usize = 64;

/// The settings of an enclave, as its file and its environment name them. Unknown keys are refused.
///
#[doc = concat!("```toml\n", include_str!("../enclave.toml"), "```")]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which enclave this is.
    pub enclave_id: EnclaveId,
    /// Where it listens.
    pub listen: Address,
    /// Worker threads; as many as there are processors where it is not set.
    #[serde(default)]
    pub workers: Option<usize>,
    /// Earlier images whose identities this one may open.
    #[serde(default)]
    pub predecessors: Vec<Pcr0>,
    /// How long requests under way may take when the enclave stops, in milliseconds.
    #[serde(default = "drain_ms_default")]
    pub drain_ms: u64,
    /// Whether to stop when standard input is closed, for children of another program.
    #[serde(default)]
    pub exit_with_stdin: bool,
    /// Limits of the link.
    #[serde(default)]
    pub link: LinkSettings,
    /// The log.
    #[serde(default)]
    pub log: LogSettings,
    /// The software security module and the keyring.
    #[cfg(feature = "dev")]
    pub development: DevelopmentSettings,
}

/// The measurement of an image, 96 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pcr0(pub [u8; 48]);

impl TryFrom<String> for Pcr0 {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut pcr0 = [0; 48];
        match base16ct::lower::decode(text, &mut pcr0) {
            Ok(decoded) if decoded.len() == 48 => Ok(Pcr0(pcr0)),
            Ok(_) | Err(_) => Err("a PCR0 is 96 lower-case hex digits"),
        }
    }
}

/// The table `development`.
#[cfg(feature = "dev")]
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevelopmentSettings {
    /// Where test root and keyring are kept; made where absent. Enclaves may share it.
    pub state_dir: PathBuf,
    /// The made-up image that the security module measures.
    #[serde(default = "image_default")]
    pub image: String,
}

#[cfg(feature = "dev")]
fn image_default() -> String {
    "development".to_owned()
}

/// The table `link`: see [`ServeLimits`] for each key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "named for the fields of ServeLimits")]
pub struct LinkSettings {
    pub connections_max: usize,
    pub in_flight_max: usize,
    pub requests_bytes_max: usize,
    pub queued_bytes_max: usize,
    pub idle_ms: u64,
    pub frame_ms: u64,
    pub write_ms: u64,
}

impl Default for LinkSettings {
    fn default() -> Self {
        let limits = ServeLimits::default();
        LinkSettings {
            connections_max: limits.connections_max,
            in_flight_max: limits.in_flight_max,
            requests_bytes_max: limits.requests_bytes_max,
            queued_bytes_max: limits.queued_bytes_max,
            idle_ms: limits.idle_ms,
            frame_ms: limits.frame_ms,
            write_ms: limits.write_ms,
        }
    }
}

impl LinkSettings {
    pub(crate) fn limits(&self) -> ServeLimits {
        ServeLimits {
            connections_max: self.connections_max,
            in_flight_max: self.in_flight_max,
            requests_bytes_max: self.requests_bytes_max,
            queued_bytes_max: self.queued_bytes_max,
            idle_ms: self.idle_ms,
            frame_ms: self.frame_ms,
            write_ms: self.write_ms,
        }
    }
}

fn drain_ms_default() -> u64 {
    5_000
}

impl Config {
    /// Reads a file, if one is named, and this process's environment.
    ///
    /// # Errors
    /// [`Error::Settings`], [`Error::Setting`].
    pub fn load(file: Option<&Path>) -> Result<Config, Error> {
        settings::load::<Config>(file, ENVIRONMENT_PREFIX)?.checked()
    }

    /// Reads a file's text and an environment.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_toml(
        text: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Error> {
        settings::parse::<Config>(text, ENVIRONMENT_PREFIX, environment)?.checked()
    }

    fn checked(self) -> Result<Config, Error> {
        let bad = |key, reason| Err(Error::Setting { key, reason });
        if self.workers.is_some_and(|workers| workers == 0 || workers > WORKERS_MAX) {
            return bad("workers", "from 1 to 64");
        }
        if self.predecessors.len() > PREDECESSORS_MAX {
            return bad("predecessors", "more than 64");
        }
        // Debug mode measures nothing: any image at all would be a predecessor.
        if self.predecessors.contains(&Pcr0([0; 48])) {
            return bad("predecessors", "zeros are an image in debug mode");
        }
        if self.link.connections_max == 0 || self.link.in_flight_max == 0 {
            return bad("link", "without connections or requests on them nobody is served");
        }
        Ok(self)
    }

    /// What attestations say of the configuration: SHA-256 over everything in it that changes what the
    /// enclave trusts, in text lines. Enclaves that differ in id, address or limits have the same hash.
    pub fn hash(&self) -> Hash {
        let mut text = String::from("keymeld enclave configuration 1\n");
        text += if cfg!(feature = "dev") { "platform development\n" } else { "platform nitro\n" };
        let mut predecessors: Vec<[u8; 48]> = self.predecessors.iter().map(|pcr0| pcr0.0).collect();
        predecessors.sort_unstable();
        for predecessor in predecessors {
            text += &format!("predecessor {}\n", base16ct::lower::encode_string(&predecessor));
        }
        sha256(text.as_bytes())
    }

    pub(crate) fn workers(&self) -> usize {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(processors).min(WORKERS_MAX)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use keymeld_transport::link::server::ServeLimits;
    use keymeld_transport::process::log::LogSettings;

    use super::Config;
    use crate::Error;

    const TEXT: &str = "
        enclave_id = \"5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47\"
        listen = \"tcp:127.0.0.1:0\"
        ";
    /// A build without development code refuses even its table.
    const DEVELOPMENT: &str = if cfg!(feature = "dev") { "[development]\nstate_dir = \"state\"" } else { "" };

    fn read(extra: &str, environment: &[(&str, &str)]) -> Result<Config, Error> {
        let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        Config::from_toml(&format!("{TEXT}{extra}\n{DEVELOPMENT}"), environment.iter().map(pair))
    }

    #[test]
    fn the_example_is_good() {
        let example = include_str!("../enclave.toml");
        let (everywhere, _) = example.split_once("[development]").expect("it has that table");
        let text = if cfg!(feature = "dev") { example } else { everywhere };
        let config = Config::from_toml(text, []).expect("good");
        assert_eq!((config.link.limits(), config.log), (ServeLimits::default(), LogSettings::default()));
    }

    #[test]
    fn what_is_not_set_has_its_default() {
        let config = read("", &[]).expect("good");
        assert_eq!(config.link.limits(), ServeLimits::default());
        assert!(config.workers() >= 1);
        assert!(!config.exit_with_stdin);
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config = read("workers = 1", &[("KEYMELD_ENCLAVE_WORKERS", "3")]).expect("good");
        assert_eq!(config.workers(), 3);
        let config = read("", &[("KEYMELD_ENCLAVE_LINK__IDLE_MS", "9")]).expect("good");
        assert_eq!(config.link.idle_ms, 9);
    }

    #[test]
    fn bad_settings_are_refused() {
        let zeros = format!("predecessors = [\"{}\"]", "00".repeat(48));
        for extra in ["wrokers = 1", "workers = 0", "workers = 65", "predecessors = [\"00\"]", &zeros] {
            assert!(read(extra, &[]).is_err(), "{extra}");
        }
        assert!(matches!(read("", &[("KEYMELD_ENCLAVE_WROKERS", "1")]), Err(Error::Settings(_))));
        let development = read("", &[("KEYMELD_ENCLAVE_DEVELOPMENT__STATE_DIR", "elsewhere")]);
        assert_eq!(development.is_ok(), cfg!(feature = "dev"));
    }

    #[test]
    fn the_hash_is_of_what_the_enclave_trusts() {
        let hash = |extra: &str| read(extra, &[]).expect("good").hash();
        let image = |digit: &str| format!("\"{}\"", digit.repeat(96));
        let (first, second) = (image("1"), image("2"));
        assert_eq!(hash(""), hash("workers = 7"));
        assert_ne!(hash(""), hash(&format!("predecessors = [{first}]")));
        assert_eq!(
            hash(&format!("predecessors = [{first}, {second}]")),
            hash(&format!("predecessors = [{second}, {first}]"))
        );
    }
}
