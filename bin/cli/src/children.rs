//! A gateway and its enclaves as child processes of this program, on loopback ports that they choose.
//!
//! Children end when their standard input is closed: whatever happens to this process, none is left behind.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use keymeld_core::attestation::policy::Policy;
use keymeld_core::entropy::EntropyFailed;
use keymeld_core::id::EnclaveId;
use keymeld_enclave::PlatformError;
use serde::Deserialize;

pub use crate::os_entropy;

/// Why children do not run.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// A file or a process is not to be had.
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// A child ended before it said where it listens.
    #[error("the {0} did not start; see its log above")]
    NotStarted(&'static str),
    /// The development root is not to be had.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The settings that this program writes itself are refused.
    #[error(transparent)]
    Settings(#[from] keymeld_enclave::Error),
    /// No randomness.
    #[error("the operating system's generator failed")]
    Entropy(#[from] EntropyFailed),
}

#[derive(Deserialize)]
struct Announcement {
    listening: String,
}

/// A child process that said where it listens.
#[derive(Debug)]
pub struct Service {
    kind: &'static str,
    program: PathBuf,
    config: PathBuf,
    address: String,
    child: Child,
}

impl Service {
    /// Starts `PROGRAM KIND --config FILE` and waits for the line with its address.
    fn start(kind: &'static str, program: &Path, config: &Path) -> Result<Service, ChildError> {
        let mut child = Command::new(program)
            .args([kind, "--config"])
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| ChildError::System("cannot start a child", error))?;
        let mut line = String::new();
        let out = child.stdout.take().expect("standard output is piped");
        BufReader::new(out)
            .read_line(&mut line)
            .map_err(|error| ChildError::System("cannot read from a child", error))?;
        let Ok(Announcement { listening }) = serde_json::from_str(&line) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(ChildError::NotStarted(kind));
        };
        let (program, config) = (program.to_owned(), config.to_owned());
        Ok(Service { kind, program, config, address: listening, child })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The operating system's number of the process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    ///
    /// # Errors
    /// [`ChildError::System`].
    pub fn kill(&mut self) -> Result<(), ChildError> {
        let system = |error| ChildError::System("cannot kill a child", error);
        self.child.kill().map_err(system)?;
        self.child.wait().map(drop).map_err(system)
    }

    /// Starts it again where it listened before.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn restart(&mut self) -> Result<(), ChildError> {
        let text = fs::read_to_string(&self.config);
        let text = text.map_err(|error| ChildError::System("cannot read a configuration", error))?;
        let listen = |line: &str| {
            if line.starts_with("listen = ") { format!("listen = {:?}", self.address) } else { line.into() }
        };
        let text: Vec<String> = text.lines().map(listen).collect();
        write(&self.config, &text.join("\n"))?;
        *self = Service::start(self.kind, &self.program, &self.config)?;
        Ok(())
    }

    fn stop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself; where it is dead already there is nothing to wait for.
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A gateway and its enclaves.
#[derive(Debug)]
pub struct Children {
    /// The gateway. It ends first.
    pub gateway: Service,
    /// The enclaves.
    pub enclaves: Vec<Service>,
    /// What clients accept: these enclaves and no others.
    pub policy: Policy,
}

impl Children {
    /// Starts `count` enclaves and a gateway for them; settings, database and development state are in
    /// `folder`. `program` is this command.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn start(program: &Path, folder: &Path, count: usize) -> Result<Children, ChildError> {
        let mut entropy = os_entropy();
        let state = folder.join("development");
        fs::create_dir_all(&state).map_err(|error| ChildError::System("cannot make a folder", error))?;
        let mut enclaves = Vec::with_capacity(count);
        let mut listed = String::new();
        let mut policy = None;
        for number in 1..=count {
            let enclave_id = EnclaveId::random(&mut entropy)?;
            let text = format!(
                "enclave_id = \"{enclave_id}\"\nlisten = \"tcp:127.0.0.1:0\"\nexit_with_stdin = true\n\
                 workers = 1\n[log]\nlevel = \"error\"\n[development]\nstate_dir = {state:?}\n"
            );
            if policy.is_none() {
                let config = keymeld_enclave::Config::from_toml(&text, [])?;
                policy = Some(keymeld_enclave::development::policy(&config)?);
            }
            let config = folder.join(format!("enclave-{number}.toml"));
            write(&config, &text)?;
            let enclave = Service::start("enclave", program, &config)?;
            let address = enclave.address();
            listed.push_str(&format!("[[enclaves]]\nid = \"{enclave_id}\"\naddress = \"{address}\"\n"));
            enclaves.push(enclave);
        }
        let database = folder.join("keymeld.db");
        let config = folder.join("gateway.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndatabase = {database:?}\nexit_with_stdin = true\n{listed}\
             [log]\nlevel = \"error\"\n"
        );
        write(&config, &text)?;
        let gateway = Service::start("gateway", program, &config)?;
        let policy = policy.ok_or(ChildError::NotStarted("enclave"))?;
        Ok(Children { gateway, enclaves, policy })
    }

    /// The gateway's base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.gateway.address())
    }
}

fn write(path: &Path, text: &str) -> Result<(), ChildError> {
    fs::write(path, text).map_err(|error| ChildError::System("cannot write a configuration", error))
}
