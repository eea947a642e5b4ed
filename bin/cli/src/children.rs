//! A gateway and its enclaves as child processes of this program, on loopback ports that they choose.
//!
//! Children end when their standard input is closed: whatever happens to this process, none is left behind.

use std::ffi::OsString;
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

/// A program with its first arguments; `--config FILE` follows.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file that is run.
    pub path: PathBuf,
    /// What comes before the settings: a subcommand, or nothing.
    pub arguments: Vec<OsString>,
}

/// What is started, and with which settings.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The gateway.
    pub gateway: Program,
    /// Each enclave.
    pub enclave: Program,
    /// How many of them.
    pub enclaves: usize,
    /// Tables to add to the gateway's settings, as TOML.
    pub gateway_tables: String,
    /// Tables to add to each enclave's settings, as TOML.
    pub enclave_tables: String,
    /// How often a child is started that ends before it says where it listens.
    pub starts_max: usize,
}

impl Setup {
    /// Gateway and enclaves out of one command, this one, with default settings.
    pub fn of(command: &Path, enclaves: usize) -> Setup {
        let program = |kind: &str| Program { path: command.to_owned(), arguments: vec![kind.into()] };
        let (gateway_tables, enclave_tables) = (String::new(), String::new());
        Setup {
            gateway: program("gateway"),
            enclave: program("enclave"),
            enclaves,
            gateway_tables,
            enclave_tables,
            starts_max: 1,
        }
    }

    fn start(
        &self,
        kind: &'static str,
        program: &Program,
        config: &Path,
        text: &str,
    ) -> Result<Service, ChildError> {
        write(config, text)?;
        let mut starts = 1;
        loop {
            match Service::start(kind, program.clone(), config.to_owned(), &[]) {
                Err(ChildError::NotStarted(_)) if starts < self.starts_max => starts += 1,
                started => return started,
            }
        }
    }
}

/// A child process that said where it listens.
#[derive(Debug)]
pub struct Service {
    kind: &'static str,
    program: Program,
    config: PathBuf,
    address: String,
    child: Child,
}

impl Service {
    /// Starts a program and waits for the line with its address.
    fn start(
        kind: &'static str,
        program: Program,
        config: PathBuf,
        environment: &[(&str, &str)],
    ) -> Result<Service, ChildError> {
        let mut child = Command::new(&program.path)
            .args(&program.arguments)
            .arg("--config")
            .arg(&config)
            .envs(environment.iter().copied())
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

    /// Waits until it ends by itself or is killed by somebody else.
    ///
    /// # Errors
    /// [`ChildError::System`].
    pub fn wait(&mut self) -> Result<(), ChildError> {
        // `Child::wait` would close it, and that would end the child.
        let input = self.child.stdin.take();
        let ended = self.child.wait();
        self.child.stdin = input;
        ended.map(drop).map_err(|error| ChildError::System("cannot wait for a child", error))
    }

    /// Starts it again where it listened before.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn restart(&mut self) -> Result<(), ChildError> {
        self.restart_in(&[])
    }

    /// The same, with variables that this run alone has in its environment.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn restart_in(&mut self, environment: &[(&str, &str)]) -> Result<(), ChildError> {
        let text = fs::read_to_string(&self.config);
        let text = text.map_err(|error| ChildError::System("cannot read a configuration", error))?;
        let listen = |line: &str| {
            if line.starts_with("listen = ") { format!("listen = {:?}", self.address) } else { line.into() }
        };
        let text: Vec<String> = text.lines().map(listen).collect();
        write(&self.config, &text.join("\n"))?;
        *self = Service::start(self.kind, self.program.clone(), self.config.clone(), environment)?;
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
        Children::start_as(&Setup::of(program, count), folder)
    }

    /// Starts what a setup says.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn start_as(setup: &Setup, folder: &Path) -> Result<Children, ChildError> {
        Children::start_through(setup, folder, |_, address| address.to_owned())
    }

    /// The same with something between gateway and enclaves: `reach` says at which address the gateway finds
    /// the enclave with that number, from 0, that listens at that address.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn start_through(
        setup: &Setup,
        folder: &Path,
        mut reach: impl FnMut(usize, &str) -> String,
    ) -> Result<Children, ChildError> {
        let mut entropy = os_entropy();
        let state = folder.join("development");
        fs::create_dir_all(&state).map_err(|error| ChildError::System("cannot make a folder", error))?;
        let mut enclaves = Vec::with_capacity(setup.enclaves);
        let mut listed = String::new();
        let mut policy = None;
        for number in 1..=setup.enclaves {
            let enclave_id = EnclaveId::random(&mut entropy)?;
            let text = format!(
                "enclave_id = \"{enclave_id}\"\nlisten = \"tcp:127.0.0.1:0\"\nexit_with_stdin = true\n\
                 workers = 1\n[log]\nlevel = \"error\"\n[development]\nstate_dir = {state:?}\n{}",
                setup.enclave_tables
            );
            let config = folder.join(format!("enclave-{number}.toml"));
            let enclave = setup.start("enclave", &setup.enclave, &config, &text)?;
            if policy.is_none() {
                let config = keymeld_enclave::Config::from_toml(&text, [])?;
                policy = Some(keymeld_enclave::development::policy(&config)?);
            }
            let address = reach(number - 1, enclave.address());
            listed.push_str(&format!("[[enclaves]]\nid = \"{enclave_id}\"\naddress = \"{address}\"\n"));
            enclaves.push(enclave);
        }
        let database = folder.join("keymeld.db");
        let config = folder.join("gateway.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndatabase = {database:?}\nexit_with_stdin = true\n{listed}\
             [log]\nlevel = \"error\"\n{}",
            setup.gateway_tables
        );
        let gateway = setup.start("gateway", &setup.gateway, &config, &text)?;
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
