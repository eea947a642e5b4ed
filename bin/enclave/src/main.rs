//! The enclave's program: `keymeld-enclave [--config FILE] [--check-config]`.

use std::process::ExitCode;

use keymeld_transport::process::arguments::Arguments;

fn main() -> ExitCode {
    match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => keymeld_enclave::main(arguments.config.as_deref(), arguments.check_config),
        Err(error) => {
            eprintln!("keymeld-enclave: {error}");
            ExitCode::from(2)
        }
    }
}
