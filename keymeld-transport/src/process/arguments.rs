//! The arguments that both programs take.

use std::ffi::OsString;
use std::path::PathBuf;

/// What was asked for on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `--config FILE`. Without it all settings come from the environment.
    pub config: Option<PathBuf>,
    /// `--check-config`: say whether the settings are good, and end.
    pub check_config: bool,
}

/// A command line that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// An argument that is not known.
    #[error("unknown argument {0:?}; known are --config FILE and --check-config")]
    Unknown(OsString),
    /// `--config` without a file.
    #[error("--config needs a file")]
    NoFile,
    /// An argument that came before.
    #[error("{0} is given twice")]
    Repeated(&'static str),
}

impl Arguments {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// [`ArgumentsError`].
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, ArgumentsError> {
        let mut parsed = Arguments::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--config" {
                let file = arguments.next().ok_or(ArgumentsError::NoFile)?;
                if parsed.config.replace(file.into()).is_some() {
                    return Err(ArgumentsError::Repeated("--config"));
                }
            } else if argument == "--check-config" {
                if parsed.check_config {
                    return Err(ArgumentsError::Repeated("--check-config"));
                }
                parsed.check_config = true;
            } else {
                return Err(ArgumentsError::Unknown(argument));
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, ArgumentsError};

    fn parse(arguments: &[&str]) -> Result<Arguments, ArgumentsError> {
        Arguments::parse(arguments.iter().map(Into::into))
    }

    #[test]
    fn arguments_come_in_any_order_and_once() {
        let both = Arguments { config: Some("a.toml".into()), check_config: true };
        assert_eq!(parse(&[]), Ok(Arguments::default()));
        assert_eq!(parse(&["--config", "a.toml", "--check-config"]), Ok(both.clone()));
        assert_eq!(parse(&["--check-config", "--config", "a.toml"]), Ok(both));
        assert_eq!(parse(&["--config"]), Err(ArgumentsError::NoFile));
        assert_eq!(parse(&["-v"]), Err(ArgumentsError::Unknown("-v".into())));
        let twice = ["--config", "a", "--config", "b"];
        assert_eq!(parse(&twice), Err(ArgumentsError::Repeated("--config")));
        assert_eq!(
            parse(&["--check-config", "--check-config"]),
            Err(ArgumentsError::Repeated("--check-config"))
        );
    }
}
