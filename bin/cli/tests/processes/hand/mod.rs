//! The commands of people who sign, as processes, each with a state directory of its own.

mod files;
mod kills;
mod lies;
mod story;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use keymeld::children::Children;
use serde_json::Value;
use tempfile::TempDir;

const ENCLAVES: usize = 2;

/// A gateway, enclaves, and a folder where people keep what is theirs.
struct Hand {
    folder: TempDir,
    children: Children,
}

/// What came of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn json(&self) -> Value {
        let one_line = self.stdout.strip_suffix('\n').filter(|line| !line.contains('\n'));
        serde_json::from_str(one_line.unwrap_or_else(|| panic!("{self:?}"))).expect("JSON")
    }

    /// Whether a terminal shows all of it as it is, and obeys nothing in it.
    fn is_plain(&self) -> bool {
        let plain = |byte: u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n');
        self.stdout.bytes().chain(self.stderr.bytes()).all(plain)
    }
}

impl Hand {
    /// With an enclave for each of two slots, so that one of them holds two keys of three.
    fn start() -> Hand {
        let folder = tempfile::tempdir().expect("a folder");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_keymeld"));
        let services = folder.path().join("services");
        fs::create_dir(&services).expect("a folder");
        let children = Children::start(&program, &services, ENCLAVES).expect("starts");
        fs::write(folder.path().join("policy.json"), children.policy.to_json()).expect("writes");
        let hand = Hand { folder, children };
        let url = hand.children.url();
        let ready = hand.plain(&["enclaves", "--wait", "--gateway", &url, "--policy", "policy.json"]);
        assert_eq!(ready.code, Some(0), "{ready:?}");
        hand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command without anybody's directory or key.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keymeld"));
        command.args(words).current_dir(self.folder.path()).stdin(Stdio::null()).env_clear();
        command
    }

    fn plain(&self, words: &[&str]) -> Ended {
        Ended::of(self.command(words).output().expect("runs"))
    }

    /// A command of somebody.
    fn command_as(&self, name: &str, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.args(["--home", name, "--key-file", &format!("{name}.key"), "--policy", "policy.json"]);
        command
    }

    fn run(&self, name: &str, words: &[&str]) -> Ended {
        Ended::of(self.command_as(name, words).output().expect("runs"))
    }

    /// A command that succeeds, and its report.
    fn done(&self, name: &str, words: &[&str]) -> Value {
        self.ends(name, words, 0)
    }

    fn ends(&self, name: &str, words: &[&str], code: i32) -> Value {
        let ended = self.run(name, &[words, &["--json"]].concat());
        assert_eq!(ended.code, Some(code), "{name} {words:?}: {ended:?}");
        let report = ended.json();
        if let Some(error) = report.get("error") {
            assert_eq!(error["exit_code"], code, "{report}");
        }
        report
    }

    fn key(&self, name: &str) -> String {
        let made = self.plain(&["keygen-key", "--json", "--out", &format!("{name}.key")]);
        assert_eq!(made.code, Some(0), "{made:?}");
        text(&made.json()["public_key"])
    }

    fn reserve<'a>(&'a self, url: &'a str) -> Vec<&'a str> {
        vec!["reserve", "--gateway", url, "--name", "alice", "--participant", "bob", "--participant", "carol"]
    }

    fn invite(&self, name: &str) {
        let file = format!("{name}.invite");
        self.done("alice", &["invite", name, "--out", &file]);
    }

    /// A completed keygen of alice, bob and carol; carol delegates.
    fn keygen(&self) {
        for name in ["alice", "bob", "carol"] {
            self.key(name);
        }
        self.done("alice", &self.reserve(&self.children.url()));
        self.done("alice", &["init"]);
        self.invite("bob");
        self.invite("carol");
        self.done("alice", &["join"]);
        self.done("bob", &["join", "--invite", "bob.invite"]);
        self.done("carol", &["join", "--invite", "carol.invite", "--delegate"]);
        self.done("alice", &["roster", "--wait"]);
    }

    /// The folder of somebody's keygen with this id.
    fn keygen_folder_of(&self, name: &str, id: &str) -> PathBuf {
        self.path(name).join("keygens").join(id)
    }

    /// The folder of somebody's only keygen.
    fn keygen_folder(&self, name: &str) -> PathBuf {
        let folders: Vec<PathBuf> = list(&self.path(name).join("keygens"));
        assert_eq!(folders.len(), 1, "{folders:?}");
        folders[0].clone()
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.expect("an entry").path()).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    paths
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}
