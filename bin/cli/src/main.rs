//! The command: gateway, enclave, demo, and everything that people who sign do.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use keymeld::commands::{self, enclaves, finish, keygen, keys, policy, roster, signing, status};

/// Distributed MuSig2 signing with AWS Nitro Enclaves.
#[derive(Parser)]
#[command(name = "keymeld", version, propagate_version = true, after_help = commands::EXIT_CODES)]
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
    KeygenKey(keys::KeygenKey),
    Policy(policy::PolicyOptions),
    Enclaves(enclaves::Enclaves),
    Reserve(Box<keygen::Reserve>),
    Init(keygen::Init),
    Invite(keygen::InviteOptions),
    Join(keygen::Join),
    Roster(roster::RosterOptions),
    Status(status::Status),
    Sign(Box<signing::Sign>),
    Intent(signing::IntentOptions),
    Approve(signing::Approve),
    Decline(signing::Decline),
    Cancel(signing::Cancel),
    Verify(keys::Verify),
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
        Command::KeygenKey(options) => finish("keygen-key", options.json, keys::keygen_key(&options)),
        Command::Policy(options) => finish("policy", options.json, policy::policy(&options)),
        Command::Enclaves(options) => finish("enclaves", options.json, enclaves::enclaves(&options)),
        Command::Reserve(options) => finish("reserve", options.member.json, keygen::reserve(&options)),
        Command::Init(options) => finish("init", options.member.json, keygen::init(&options)),
        Command::Invite(options) => finish("invite", options.member.json, keygen::invite(&options)),
        Command::Join(options) => finish("join", options.member.json, keygen::join(&options)),
        Command::Roster(options) => finish("roster", options.member.json, roster::roster(&options)),
        Command::Status(options) => finish("status", options.member.json, status::status(&options)),
        Command::Sign(options) => finish("sign", options.member.json, signing::sign(&options)),
        Command::Intent(options) => finish("intent", options.member.json, signing::intent(&options)),
        Command::Approve(options) => finish("approve", options.member.json, signing::approve(&options)),
        Command::Decline(options) => finish("decline", options.json(), signing::decline(&options)),
        Command::Cancel(options) => finish("cancel", options.json(), signing::cancel(&options)),
        Command::Verify(options) => finish("verify", options.json, keys::verify(&options)),
    }
}
