//! The gateway's settings.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keymeld_core::gateway;
use keymeld_core::id::EnclaveId;
use keymeld_core::secret::ApiToken;
use keymeld_transport::http::server::{ServerLimits, Tls};
use keymeld_transport::link::address::Address;
use keymeld_transport::link::pool::PoolOptions;
use keymeld_transport::process::log::LogSettings;
use keymeld_transport::process::settings;
use serde::{Deserialize, Deserializer};

use crate::{ENVIRONMENT_PREFIX, Error};

/// No time of the listener is longer.
const DAY_MS: u64 = 24 * 3_600_000;

/// The settings of a gateway, as its file and its environment name them. Unknown keys are refused.
///
#[doc = concat!("```toml\n", include_str!("../gateway.toml"), "```")]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The public address.
    pub listen: SocketAddr,
    /// Where it is there, the public address speaks TLS and nothing else. Without it it speaks plain HTTP, for
    /// a proxy with TLS in front.
    #[serde(default)]
    pub tls: Option<TlsSettings>,
    /// The database's file. Its folder has to exist.
    pub database: PathBuf,
    /// The size that the database may grow to, in pages of 4 KiB.
    #[serde(default)]
    pub database_pages_max: Option<u32>,
    /// The enclaves, in the order in which slots are dealt out.
    pub enclaves: Vec<EnclaveAddress>,
    /// What reserving a keygen needs, as a bearer token.
    #[serde(default, deserialize_with = "token")]
    pub api_token: Option<ApiToken>,
    /// A file that holds it instead; white space around it is not part of it.
    #[serde(default)]
    pub api_token_file: Option<PathBuf>,
    /// How long requests under way may take when the gateway stops, in milliseconds.
    #[serde(default = "drain_ms_default")]
    pub drain_ms: u64,
    /// Whether to stop when standard input is closed, for children of another program.
    #[serde(default)]
    pub exit_with_stdin: bool,
    /// Limits of keygens.
    #[serde(default)]
    pub keygen: KeygenSettings,
    /// Limits of sessions in memory.
    #[serde(default)]
    pub sessions: SessionSettings,
    /// Limits of the public listener.
    #[serde(default)]
    pub http: HttpSettings,
    /// Limits of the links.
    #[serde(default)]
    pub link: LinkSettings,
    /// The log.
    #[serde(default)]
    pub log: LogSettings,
}

/// The table `tls`: two PEM files, read at the start and again at each SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The certificate chain, the gateway's own first.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
}

/// Where an enclave is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnclaveAddress {
    /// Its id; it has to say the same of itself.
    pub id: EnclaveId,
    /// Where it listens.
    pub address: Address,
}

/// Reads a token. Untagged, because the error for another type then does not show the value.
fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ApiToken>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a token is a text; put quotes around a number")]
    enum Token {
        Text(String),
    }
    let Token::Text(text) = Token::deserialize(deserializer)?;
    Ok(Some(ApiToken::new(text)))
}

/// The table `keygen`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeygenSettings {
    /// How long a keygen may take where the coordinator does not say.
    pub timeout_default_ms: u64,
    /// How long it may take at most.
    pub timeout_max_ms: u64,
}

impl Default for KeygenSettings {
    fn default() -> Self {
        let gateway::Config { keygen_timeout_default_ms, keygen_timeout_max_ms, .. } =
            gateway::Config::new(Vec::new());
        KeygenSettings {
            timeout_default_ms: keygen_timeout_default_ms,
            timeout_max_ms: keygen_timeout_max_ms,
        }
    }
}

/// The table `sessions`: see [`gateway::Config`] for each key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "named for the fields of gateway::Config")]
pub struct SessionSettings {
    pub sessions_max: usize,
    pub sessions_bytes_max: usize,
    pub unregistered_max: usize,
    pub open_per_requester_max: usize,
}

impl Default for SessionSettings {
    fn default() -> Self {
        let gateway::Config {
            sessions_max,
            sessions_bytes_max,
            unregistered_max,
            open_per_requester_max,
            ..
        } = gateway::Config::new(Vec::new());
        SessionSettings { sessions_max, sessions_bytes_max, unregistered_max, open_per_requester_max }
    }
}

/// The table `http`: see [`ServerLimits`] for each key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "named for the fields of ServerLimits")]
pub struct HttpSettings {
    pub header_bytes_max: usize,
    pub headers_max: usize,
    pub body_bytes_max: usize,
    pub held_bytes_max: usize,
    pub connections_max: usize,
    pub request_time_ms: u64,
    pub idle_ms: u64,
    pub answer_ms: u64,
    pub write_time_ms: u64,
    pub linger_ms: u64,
    pub parked_max: usize,
    pub parked_per_address_max: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        let limits = ServerLimits::default();
        HttpSettings {
            header_bytes_max: limits.header_bytes_max,
            headers_max: limits.headers_max,
            body_bytes_max: limits.body_bytes_max,
            held_bytes_max: limits.held_bytes_max,
            connections_max: limits.connections_max,
            request_time_ms: limits.request_time_ms,
            idle_ms: limits.idle_ms,
            answer_ms: limits.answer_ms,
            write_time_ms: limits.write_time_ms,
            linger_ms: limits.linger_ms,
            parked_max: limits.parked_max,
            parked_per_address_max: limits.parked_per_address_max,
        }
    }
}

impl HttpSettings {
    fn is_usable(&self) -> bool {
        let ServerLimits {
            header_bytes_max,
            headers_max,
            body_bytes_max,
            held_bytes_max,
            connections_max,
            request_time_ms,
            idle_ms,
            answer_ms,
            write_time_ms,
            linger_ms,
            parked_max,
            parked_per_address_max,
        } = self.limits();
        let sizes = [header_bytes_max, headers_max, body_bytes_max, held_bytes_max, connections_max];
        let parked = [parked_max, parked_per_address_max];
        let times = [request_time_ms, idle_ms, answer_ms, write_time_ms, linger_ms];
        sizes.iter().chain(&parked).all(|limit| *limit > 0)
            && times.iter().all(|ms| (1..=DAY_MS).contains(ms))
    }

    pub(crate) fn limits(&self) -> ServerLimits {
        ServerLimits {
            header_bytes_max: self.header_bytes_max,
            headers_max: self.headers_max,
            body_bytes_max: self.body_bytes_max,
            held_bytes_max: self.held_bytes_max,
            connections_max: self.connections_max,
            request_time_ms: self.request_time_ms,
            idle_ms: self.idle_ms,
            answer_ms: self.answer_ms,
            write_time_ms: self.write_time_ms,
            linger_ms: self.linger_ms,
            parked_max: self.parked_max,
            parked_per_address_max: self.parked_per_address_max,
        }
    }
}

/// The table `link`: see [`PoolOptions`] for each key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "named for the fields of PoolOptions")]
pub struct LinkSettings {
    pub connections: usize,
    pub in_flight_per_connection_max: usize,
    pub queued_bytes_max: usize,
    pub replies_bytes_max: usize,
    pub request_ms: u64,
    pub connect_ms: u64,
    pub ping_interval_ms: u64,
    pub ping_timeout_ms: u64,
    pub backoff_min_ms: u64,
    pub backoff_max_ms: u64,
}

impl Default for LinkSettings {
    fn default() -> Self {
        let options = PoolOptions::default();
        LinkSettings {
            connections: options.connections,
            in_flight_per_connection_max: options.in_flight_per_connection_max,
            queued_bytes_max: options.queued_bytes_max,
            replies_bytes_max: options.replies_bytes_max,
            request_ms: options.request_ms,
            connect_ms: options.connect_ms,
            ping_interval_ms: options.ping_interval_ms,
            ping_timeout_ms: options.ping_timeout_ms,
            backoff_min_ms: options.backoff_min_ms,
            backoff_max_ms: options.backoff_max_ms,
        }
    }
}

impl LinkSettings {
    pub(crate) fn options(&self) -> PoolOptions {
        PoolOptions {
            connections: self.connections,
            in_flight_per_connection_max: self.in_flight_per_connection_max,
            queued_bytes_max: self.queued_bytes_max,
            replies_bytes_max: self.replies_bytes_max,
            request_ms: self.request_ms,
            connect_ms: self.connect_ms,
            ping_interval_ms: self.ping_interval_ms,
            ping_timeout_ms: self.ping_timeout_ms,
            backoff_min_ms: self.backoff_min_ms,
            backoff_max_ms: self.backoff_max_ms,
        }
    }
}

fn drain_ms_default() -> u64 {
    5_000
}

impl Config {
    /// Settings made by a program that has a gateway inside: everything else is as where it is not set.
    pub fn new(listen: SocketAddr, database: PathBuf, enclaves: Vec<EnclaveAddress>) -> Config {
        Config {
            listen,
            tls: None,
            database,
            database_pages_max: None,
            enclaves,
            api_token: None,
            api_token_file: None,
            drain_ms: drain_ms_default(),
            exit_with_stdin: false,
            keygen: KeygenSettings::default(),
            sessions: SessionSettings::default(),
            http: HttpSettings::default(),
            link: LinkSettings::default(),
            log: LogSettings::default(),
        }
    }

    /// Reads a file, if one is named, and this process's environment.
    ///
    /// # Errors
    /// [`Error::Settings`], [`Error::Setting`], [`Error::TokenFile`].
    pub fn load(file: Option<&Path>) -> Result<Config, Error> {
        settings::load::<Config>(file, ENVIRONMENT_PREFIX)?.completed()
    }

    /// Reads a file's text and an environment.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_toml(
        text: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Error> {
        settings::parse::<Config>(text, ENVIRONMENT_PREFIX, environment)?.completed()
    }

    /// Reads the token's file, and checks everything.
    fn completed(mut self) -> Result<Config, Error> {
        if let Some(path) = &self.api_token_file {
            if self.api_token.is_some() {
                return Err(Error::Setting { key: "api_token_file", reason: "api_token is set too" });
            }
            let token = fs::read_to_string(path).map_err(Error::TokenFile)?;
            self.api_token = Some(ApiToken::new(token.trim().to_owned()));
        }
        self.check()?;
        Ok(self)
    }

    /// Checks what types do not say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |key, reason| Err(Error::Setting { key, reason });
        let ids: BTreeSet<EnclaveId> = self.enclaves.iter().map(|enclave| enclave.id).collect();
        if ids.is_empty() {
            return bad("enclaves", "there has to be one");
        }
        if ids.len() < self.enclaves.len() {
            return bad("enclaves", "two have the same id");
        }
        if self.api_token_file.is_some() && self.api_token.is_none() {
            return bad("api_token_file", "it is read with the other settings' file, or not at all");
        }
        if self.api_token.as_ref().is_some_and(|token| token.expose().is_empty()) {
            return bad("api_token", "an empty token protects nothing");
        }
        let KeygenSettings { timeout_default_ms, timeout_max_ms } = self.keygen;
        if timeout_default_ms == 0 || timeout_default_ms > timeout_max_ms {
            return bad("keygen.timeout_default_ms", "it lies between 1 and timeout_max_ms");
        }
        let SessionSettings { sessions_max, sessions_bytes_max, unregistered_max, open_per_requester_max } =
            self.sessions;
        if [sessions_max, sessions_bytes_max, unregistered_max, open_per_requester_max].contains(&0) {
            return bad("sessions", "without room for them there are no sessions");
        }
        if !self.http.is_usable() {
            return bad("http", "no limit is 0, and no time longer than a day");
        }
        if self.link.connections == 0 || self.link.in_flight_per_connection_max == 0 {
            return bad("link", "without connections or requests on them no enclave is reached");
        }
        Ok(())
    }

    /// What the machine is made from.
    pub(crate) fn machine(&self) -> gateway::Config {
        gateway::Config {
            api_token: self.api_token.clone(),
            keygen_timeout_default_ms: self.keygen.timeout_default_ms,
            keygen_timeout_max_ms: self.keygen.timeout_max_ms,
            sessions_max: self.sessions.sessions_max,
            sessions_bytes_max: self.sessions.sessions_bytes_max,
            unregistered_max: self.sessions.unregistered_max,
            open_per_requester_max: self.sessions.open_per_requester_max,
            ..gateway::Config::new(self.enclaves.iter().map(|enclave| enclave.id).collect())
        }
    }

    /// Reads certificate and key, where there are any.
    pub(crate) fn tls(&self) -> Result<Option<Arc<Tls>>, Error> {
        let Some(TlsSettings { certificate, key }) = &self.tls else { return Ok(None) };
        Ok(Some(Arc::new(Tls::load(certificate, key)?)))
    }

    pub(crate) fn store_options(&self) -> keymeld_store::Options {
        keymeld_store::Options { pages_max: self.database_pages_max, read_only: false }
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use keymeld_transport::link::pool::PoolOptions;
    use keymeld_transport::process::log::LogSettings;

    use super::{ApiToken, Config, HttpSettings, KeygenSettings, LinkSettings, SessionSettings};
    use crate::Error;

    const TEXT: &str = "
        listen = \"127.0.0.1:0\"
        database = \"gateway.db\"
        [[enclaves]]
        id = \"5c8f1e9a-7d0e-4a3b-9a58-0d6c1f2b3a47\"
        address = \"vsock:16:7000\"
        [link]
        connections = 3";

    fn read(environment: &[(&str, &str)]) -> Result<Config, Error> {
        let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        Config::from_toml(TEXT, environment.iter().map(pair))
    }

    #[test]
    fn the_example_is_good() {
        let example = include_str!("../gateway.toml").replace("api_token_file", "# api_token_file");
        // What is commented out is good too.
        let example = example
            .replace("# [tls]", "[tls]")
            .replace("# certificate", "certificate")
            .replace("# key =", "key =");
        let config = Config::from_toml(&example, []).expect("good");
        assert!(config.tls.is_some());
        assert_eq!(config.keygen, KeygenSettings::default());
        assert_eq!(config.sessions, SessionSettings::default());
        assert_eq!(config.http, HttpSettings::default());
        assert_eq!(config.link, LinkSettings::default());
        assert_eq!(config.log, LogSettings::default());
    }

    #[test]
    fn settings_made_by_a_program_are_checked_like_a_files() {
        let enclaves = read(&[]).expect("good").enclaves;
        let config =
            |enclaves| Config::new("127.0.0.1:0".parse().expect("an address"), "gateway.db".into(), enclaves);
        assert!(config(enclaves.clone()).check().is_ok());
        for bad in [
            config(Vec::new()),
            config([enclaves.clone(), enclaves.clone()].concat()),
            Config { api_token: Some(ApiToken::new(String::new())), ..config(enclaves.clone()) },
            Config { api_token_file: Some("token".into()), ..config(enclaves.clone()) },
            Config { http: HttpSettings { connections_max: 0, ..Default::default() }, ..config(enclaves) },
        ] {
            assert!(crate::start(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_set_has_its_default() {
        let config = read(&[]).expect("good");
        assert_eq!(config.link.options(), PoolOptions { connections: 3, ..PoolOptions::default() });
        assert_eq!(config.http.limits(), Default::default());
        assert_eq!(config.machine().api_token, None);
        assert!(!config.exit_with_stdin);
    }

    #[test]
    fn the_environment_reaches_tables_and_lists() {
        let enclaves = "[{ id = \"00000000-0000-0000-0000-000000000001\", address = \"unix:/a\" }]";
        let config = read(&[
            ("KEYMELD_GATEWAY_LISTEN", "[::1]:7"),
            ("KEYMELD_GATEWAY_ENCLAVES", enclaves),
            ("KEYMELD_GATEWAY_HTTP__PARKED_MAX", "5"),
        ])
        .expect("good");
        assert_eq!(config.listen, "[::1]:7".parse().expect("an address"));
        assert_eq!(config.enclaves[0].address.to_string(), "unix:/a");
        assert_eq!(config.http.parked_max, 5);
        assert!(matches!(read(&[("KEYMELD_GATEWAY_LISTN", "1")]), Err(Error::Settings(_))));
    }

    #[test]
    fn a_token_comes_from_one_place_and_is_not_shown() {
        let config = read(&[("KEYMELD_GATEWAY_API_TOKEN", "open sesame")]).expect("good");
        assert_eq!(config.api_token, Some(ApiToken::new("open sesame".into())));
        assert!(!format!("{config:?}").contains("sesame"));

        let number = read(&[("KEYMELD_GATEWAY_API_TOKEN", "271828")]).expect_err("a number").to_string();
        assert!(number.contains("quotes") && !number.contains("271828"), "{number}");

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "open sesame\n").expect("writes");
        let file = ("KEYMELD_GATEWAY_API_TOKEN_FILE", path.to_str().expect("UTF-8"));
        assert_eq!(read(&[file]).expect("good").api_token, Some(ApiToken::new("open sesame".into())));
        let both = [file, ("KEYMELD_GATEWAY_API_TOKEN", "x")];
        assert!(matches!(read(&both), Err(Error::Setting { key: "api_token_file", .. })));
        let absent = [("KEYMELD_GATEWAY_API_TOKEN_FILE", "absent")];
        assert!(matches!(read(&absent), Err(Error::TokenFile(_))));
    }
}
