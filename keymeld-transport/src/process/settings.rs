//! Settings: a TOML file, then the environment, which overrides it.
//!
//! A variable's name is a prefix, then the key in upper case, with two underscores between a table and a key
//! in it: with the prefix `KEYMELD_GATEWAY_`, `KEYMELD_GATEWAY_LOG__LEVEL` is `level` in the table `log`. Its
//! value is read as a TOML value where it is one (`7`, `true`, `[{ id = "..." }]`), and is a text otherwise.
//! A variable with the prefix that names no key is refused like an unknown key in the file.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// The most bytes of a settings file.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why there are no settings. The text fits on one line.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Its name.
        path: String,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// The file is not TOML.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A variable is not UTF-8, or would put a key into something that is no table.
    #[error("the variable {0} cannot be used")]
    Variable(String),
    /// An unknown or missing key, or a value of another type.
    #[error("{0}")]
    Content(String),
}

/// Reads settings from a file, if there is one, and this process's environment.
///
/// # Errors
/// [`SettingsError`].
pub fn load<T: DeserializeOwned>(file: Option<&Path>, prefix: &str) -> Result<T, SettingsError> {
    let text = match file {
        Some(path) => read_file(path)
            .map_err(|error| SettingsError::File { path: path.display().to_string(), error })?,
        None => String::new(),
    };
    parse(&text, prefix, env::vars_os())
}

fn read_file(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

/// Reads settings from a file's text and an environment.
///
/// # Errors
/// [`SettingsError`].
pub fn parse<T: DeserializeOwned>(
    text: &str,
    prefix: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<T, SettingsError> {
    let mut table: Table = toml::from_str(text).map_err(|error| syntax(text, &error))?;
    for (name, value) in environment {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let refused = || SettingsError::Variable(name.to_string_lossy().into_owned());
        let value = value.to_str().ok_or_else(refused)?;
        let value = value.parse().unwrap_or_else(|_| Value::String(value.to_owned()));
        set(&mut table, &key.to_ascii_lowercase(), value).ok_or_else(refused)?;
    }
    Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        let lines: Vec<String> = error.to_string().lines().map(|line| line.trim().to_owned()).collect();
        SettingsError::Content(lines.join(" "))
    })
}

fn syntax(text: &str, error: &toml::de::Error) -> SettingsError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    SettingsError::Syntax { line, reason: error.message().replace('\n', " ") }
}

/// Puts a value in; `None` where a part of the key is in use for something that is no table.
fn set(table: &mut Table, key: &str, value: Value) -> Option<()> {
    match key.split_once("__") {
        None => {
            table.insert(key.to_owned(), value);
            Some(())
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            set(inner.as_table_mut()?, rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use serde::Deserialize;

    use super::{SettingsError, parse};
    use crate::process::log::{Format, Level, LogSettings};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        name: String,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        log: LogSettings,
    }

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        parse(text, "KM_", environment.iter().map(pair))
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let text = "name = \"a\"\n[log]\nlevel = \"warn\"";
        let settings = read(text, &[]).expect("good");
        assert_eq!((settings.name.as_str(), settings.count, settings.log.level), ("a", 0, Level::Warn));
        let environment = [
            ("KM_NAME", "b c"),
            ("KM_COUNT", "7"),
            ("KM_LOG__FORMAT", "json"),
            ("KM_LOG__LEVEL", "\"debug\""),
            ("OTHER", "x"),
        ];
        let settings = read(text, &environment).expect("good");
        assert_eq!((settings.name.as_str(), settings.count), ("b c", 7));
        assert_eq!(settings.log, LogSettings { format: Format::Json, level: Level::Debug });
    }

    #[test]
    fn what_is_unknown_missing_or_mistyped_is_refused_on_one_line() {
        let refusals = [
            read("name = \"a\"\nnmae = 1", &[]),
            read("", &[]),
            read("name = \"a\"", &[("KM_NMAE", "x")]),
            read("name = \"a\"", &[("KM_NAME__X", "x")]),
            read("name = \"a\"", &[("KM_COUNT", "many")]),
            read("name = \"a\"\n[log]\ncolour = 1", &[]),
            read("name = \"a\"\nname = \"b\"", &[]),
        ];
        for refused in refusals {
            let reason = refused.expect_err("bad").to_string();
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
        }
        let reason = read("name = \"a\"\n\nx = = 1", &[]).expect_err("bad").to_string();
        assert!(reason.starts_with("line 3: "), "{reason}");
    }
}
