//! The log: events on standard error, as text or JSON. Ids and codes, never payloads.

use std::io;

use serde::Deserialize;
use tracing_subscriber::filter::LevelFilter;

/// The table `log` of a settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// `text` (the default) or `json`.
    pub format: Format,
    /// `error`, `warn`, `info` (the default), `debug` or `trace`.
    pub level: Level,
}

/// How an event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object on a line.
    Json,
}

/// The least important events that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What an operator has to act on now.
    Error,
    /// What an operator should look at.
    Warn,
    /// Starts, ends and changes of state.
    #[default]
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// Starts the process's log. Where one runs already, that one goes on.
pub fn start(settings: &LogSettings) {
    // Without internal errors: they would panic where standard error is closed.
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .with_max_level(settings.level);
    let log: Box<dyn tracing::Subscriber + Send + Sync> = match settings.format {
        Format::Text => Box::new(builder.finish()),
        Format::Json => Box::new(builder.json().finish()),
    };
    let _ = tracing::subscriber::set_global_default(log);
}
