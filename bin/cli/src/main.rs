//! The command: `keymeld gateway`, `keymeld enclave`, `keymeld demo`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Distributed MuSig2 signing with AWS Nitro Enclaves.
#[derive(Parser)]
#[command(name = "keymeld", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a gateway.
    Gateway(Service),
    /// Run an enclave. Without a real security module it is for development only.
    Enclave(Service),
    /// Start a gateway and enclaves, do a keygen, sign, verify, and clean up.
    #[cfg(feature = "dev")]
    Demo(keymeld::demo::Options),
}

#[derive(Args)]
struct Service {
    /// The settings, TOML. The environment (KEYMELD_GATEWAY_..., KEYMELD_ENCLAVE_...) overrides it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the settings, say whether they are good, and end.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Gateway(service) => keymeld_gateway::main(service.config.as_deref(), service.check_config),
        Command::Enclave(service) => keymeld_enclave::main(service.config.as_deref(), service.check_config),
        #[cfg(feature = "dev")]
        Command::Demo(options) => keymeld::demo::main(&options),
    }
}
