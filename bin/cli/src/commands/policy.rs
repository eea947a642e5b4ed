//! `policy`: a policy file, looked at or made.

use std::path::{Path, PathBuf};

use clap::Args;
use keymeld_core::attestation::RootKind;
use keymeld_core::attestation::policy::Policy;
use serde::Serialize;

use super::{Contradiction, Failure, Report};
use crate::{given, kept};

/// Check a policy file; with --enclave-config, make one that trusts development enclaves.
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Examples:\n",
    "  keymeld policy policy.json\n",
    "  keymeld policy policy.json --enclave-config enclave-1.toml --enclave-config enclave-2.toml\n\n",
    "A policy is JSON: {\"version\":1,\"roots\":[\"aws_nitro_g1\"],\"images\":[{\"pcr0\":HEX,\"pcr1\":HEX,\"pcr2\":HEX}],\n",
    "\"birth_pcr0\":[HEX],\"config_hashes\":[HEX],\"freshness_ms\":300000}. Development enclaves protect nothing."
))]
pub struct PolicyOptions {
    /// The policy's file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The settings of a development enclave to trust.
    #[cfg(feature = "dev")]
    #[arg(long, value_name = "FILE")]
    enclave_config: Vec<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct PolicyReport {
    file: String,
    aws_root: bool,
    development_roots: usize,
    images: usize,
    birth_images: usize,
    config_hashes: usize,
    freshness_ms: u64,
}

/// `keymeld policy`.
///
/// # Errors
/// [`Failure`].
pub fn policy(options: &PolicyOptions) -> Result<Report, Failure> {
    #[cfg(feature = "dev")]
    if !options.enclave_config.is_empty() {
        make(&options.file, &options.enclave_config)?;
    }
    let policy = given::policy(&options.file)?;
    let aws = policy.roots.iter().filter(|root| matches!(root.kind(), RootKind::AwsNitroG1)).count();
    let report = PolicyReport {
        file: options.file.display().to_string(),
        aws_root: aws > 0,
        development_roots: policy.roots.len() - aws,
        images: policy.images.len(),
        birth_images: policy.birth_pcr0.len(),
        config_hashes: policy.config_hashes.len(),
        freshness_ms: policy.freshness_ms,
    };
    Ok(Report::new(&report, text(&report)))
}

/// Trusts these development enclaves, all of them, and nothing else.
#[cfg(feature = "dev")]
fn make(file: &Path, settings: &[PathBuf]) -> Result<(), Failure> {
    let mut whole: Option<Policy> = None;
    for path in settings {
        let config = keymeld_enclave::Config::load(Some(path))?;
        let one = keymeld_enclave::development::policy(&config)?;
        match &mut whole {
            None => whole = Some(one),
            Some(whole) => {
                add(&mut whole.roots, one.roots);
                add(&mut whole.images, one.images);
                add(&mut whole.birth_pcr0, one.birth_pcr0);
                add(&mut whole.config_hashes, one.config_hashes);
            }
        }
    }
    let Some(policy) = whole else { return Ok(()) };
    let text = policy.to_json() + "\n";
    match kept::write_new(file, text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // The same command again.
            if std::fs::read_to_string(file).is_ok_and(|there| there == text) {
                Ok(())
            } else {
                Err(Contradiction::FileExists(file.to_owned()).into())
            }
        }
        Err(error) => Err(Failure::File(file.to_owned(), error)),
    }
}

#[cfg(feature = "dev")]
fn add<T: PartialEq>(whole: &mut Vec<T>, more: Vec<T>) {
    for one in more {
        if !whole.contains(&one) {
            whole.push(one);
        }
    }
}

fn text(report: &PolicyReport) -> String {
    let roots = if report.aws_root {
        "the AWS Nitro root".to_owned()
    } else {
        format!("{} DEVELOPMENT root(s), which protect nothing", report.development_roots)
    };
    format!(
        "{}: trusts {roots}; {} image(s), {} configuration(s), documents of at most {} s",
        report.file,
        report.images,
        report.config_hashes,
        report.freshness_ms / 1_000
    )
}
