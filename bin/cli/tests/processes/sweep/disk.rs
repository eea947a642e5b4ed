//! Disks that fail a gateway: full, read-only, and with a log that a long reader keeps from being emptied.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use keymeld::children::{Children, Program};
use rusqlite::{Connection, OpenFlags};

use super::run::{Acknowledged, Told, check, work};
use super::{Sizes, setup, trace};
use crate::matrix::{check_rows, restart_all, signal, start};
use crate::party::Access;

/// Room for the database, its log and some more.
const DISK_BYTES: usize = 4 * 1024 * 1024;
/// What the gateway's log file is cut to once nobody reads any more.
const LOG_BYTES_KEPT: u64 = 32 * 1024 * 1024;
const KEYGEN_MS: u64 = 600_000;

/// A small file system in memory, in a mount namespace of its own: it is gone when nobody uses it any more.
struct Disk {
    holder: Child,
    folder: PathBuf,
}

impl Disk {
    /// `None`, with a word about it, where this user may not have one.
    fn mount(home: &Path) -> Option<Disk> {
        let folder = home.join("disk");
        fs::create_dir(&folder).expect("a folder");
        let script = format!("mount -t tmpfs -o size={DISK_BYTES} none \"$0\" && echo mounted && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", &script])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let out = holder.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut line).expect("reads");
        let disk = Disk { holder, folder };
        if line.trim() == "mounted" {
            return Some(disk);
        }
        assert!(!Sizes::read().complete, "no disk can be mounted");
        eprintln!("crash sweep: nothing is shown about this disk: this user may not mount");
        None
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.entering());
        command
    }

    fn entering(&self) -> [String; 5] {
        let target = self.holder.id().to_string();
        ["--preserve-credentials", "--user", "--mount", "--target", &target].map(str::to_owned)
    }

    /// Has a gateway's database there.
    fn wrap(&self, program: &mut Program) {
        let database = format!("KEYMELD_GATEWAY_DATABASE={}", self.folder.join("keymeld.db").display());
        let mut arguments: Vec<_> = self.entering().map(Into::into).into();
        arguments.extend(["env".into(), database.into(), program.path.clone().into()]);
        arguments.append(&mut program.arguments);
        *program = Program { path: "nsenter".into(), arguments };
    }

    /// Where this process finds a file of it.
    fn file(&self, name: &str) -> PathBuf {
        let inside = self.folder.strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(inside).join(name)
    }

    fn fill(&self) {
        let mut junk = File::create(self.file("junk")).expect("a file");
        let full = loop {
            if let Err(error) = junk.write_all(&[0; 512]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_file(self.file("junk")).expect("removes");
    }

    fn remount(&self, how: &str) {
        let mut mount = self.enter();
        mount.args(["mount", "-o", &format!("remount,bind,{how}")]).arg(&self.folder);
        assert!(mount.status().expect("runs").success(), "cannot remount");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It has ended where it could not mount.
        let _ = self.holder.wait();
    }
}

/// Processes whose gateway has its database on a disk of its own, after a keygen and a signing.
fn begin(home: &Path, disk: &Disk) -> (Children, Access, Told) {
    let mut setup = setup();
    disk.wrap(&mut setup.gateway);
    let children = Children::start_as(&setup, home).expect("starts");
    let access = Access::to(&children);
    let told = work(&access, home, &Acknowledged::default());
    (children, access, told)
}

fn end(mut children: Children, told: Told, disk: &Disk, home: &Path) {
    restart_all(&mut children);
    told.ask_again();
    // A gateway that stops empties the log, and SQLite does not find its way into another namespace.
    drop(children);
    let copy = home.join("copy.db");
    fs::copy(disk.file("keymeld.db"), &copy).expect("copies");
    check_rows(&copy, home);
}

/// Has another signing begun while nothing can be written, and ended when it can again.
fn sign_across(told: &mut Told, access: &Access, code: &str, home: &Path, repair: impl FnOnce()) {
    let stored = requests(home);
    thread::scope(|scope| {
        let signing = scope.spawn(|| told.sign(&["asked for in bad times"]));
        // What is requested is stored by the requester before it is sent.
        while requests(home) == stored {
            thread::sleep(Duration::from_millis(10));
        }
        for _ in 0..20 {
            assert_eq!(access.reserve(0, KEYGEN_MS).as_deref(), Some(code));
        }
        assert!(!signing.is_finished(), "something was signed that cannot be kept");
        repair();
        signing.join().expect("signed");
    });
    assert_eq!(access.reserve(0, KEYGEN_MS), None);
}

/// How many requests the coordinator has stored.
fn requests(home: &Path) -> usize {
    let files = fs::read_dir(home.join("people").join("coordinator")).expect("a folder").flatten();
    files.filter(|file| file.file_name().to_string_lossy().starts_with("request-")).count()
}

#[test]
fn a_gateway_on_a_full_disk_shows_what_it_holds_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let Some(disk) = Disk::mount(home) else { return };
    let (mut children, access, mut told) = begin(home, &disk);
    disk.fill();
    assert_eq!(access.reserve(0, KEYGEN_MS).as_deref(), Some("disk-full"));
    told.confirm();
    sign_across(&mut told, &access, "disk-full", home, || disk.free());

    // Killed on a full disk it may not come up again before there is room.
    disk.fill();
    children.gateway.kill().expect("kills");
    let came_up = children.gateway.restart().is_ok();
    disk.free();
    if !came_up {
        start(&mut children.gateway, &[]);
    }
    told.sign(&["after it"]);
    end(children, told, &disk, home);
}

#[test]
fn a_gateway_on_a_read_only_disk_does_not_start_and_goes_on_when_it_can_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let Some(disk) = Disk::mount(home) else { return };
    let (mut children, _, mut told) = begin(home, &disk);
    children.gateway.kill().expect("kills");
    disk.remount("ro");
    assert!(children.gateway.restart().is_err());
    let mut program = setup().gateway;
    disk.wrap(&mut program);
    let config = home.join("gateway.toml");
    let refused = Command::new(program.path).args(program.arguments).arg("--config").arg(config).output();
    let said = String::from_utf8(refused.expect("runs").stderr).expect("UTF-8");
    assert!(said.contains("cannot be written to"), "{said}");
    disk.remount("rw");
    start(&mut children.gateway, &[]);
    told.confirm();
    told.sign(&["after it"]);
    end(children, told, &disk, home);
}

/// As where the kernel makes a file system read-only for its errors.
#[test]
fn a_gateway_whose_disk_turns_read_only_shows_what_it_holds_and_goes_on_when_it_can_write() {
    if !trace::is_there() {
        assert!(!Sizes::read().complete, "strace is not there");
        eprintln!("crash sweep: nothing is shown about a disk that turns read-only: strace is not there");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let children = Children::start_as(&setup(), home).expect("starts");
    let access = Access::to(&children);
    let mut told = work(&access, home, &Acknowledged::default());
    let how = "-e trace=write,pwrite64,ftruncate,fsync -e inject=write,pwrite64,ftruncate,fsync:error=EROFS";
    let mut strace = trace::attach(&children.gateway, how, &home.join("core.trace"));
    assert_eq!(access.reserve(0, KEYGEN_MS).as_deref(), Some("storage-failed"));
    told.confirm();
    sign_across(&mut told, &access, "storage-failed", home, || {
        signal(strace.id(), "INT");
        strace.wait().expect("it lets go");
    });
    check(children, told, home);
}

#[test]
fn a_long_reader_keeps_the_log_and_nobody_from_working() {
    let Sizes { commits, complete, .. } = Sizes::read();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    let database = home.join("keymeld.db");
    let log_bytes = || fs::metadata(home.join("keymeld.db-wal")).map_or(0, |file| file.len());
    let children = Children::start_as(&setup(), home).expect("starts");
    let access = Access::to(&children);
    let mut told = work(&access, home, &Acknowledged::default());
    let reserve = |count: usize| (0..count).for_each(|_| assert_eq!(access.reserve(0, KEYGEN_MS), None));

    let reader = Connection::open_with_flags(&database, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opens");
    let rows =
        || reader.query_row("SELECT count(*) FROM rows", [], |row| row.get::<_, i64>(0)).expect("rows");
    reader.execute_batch("BEGIN").expect("begins");
    let (seen, before) = (rows(), log_bytes());
    reserve(commits);
    told.sign(&["while somebody reads"]);
    let grown = log_bytes();
    assert!(grown > before, "{before} {grown}");
    assert_eq!(rows(), seen, "the reader sees what was there when it began");
    reader.execute_batch("COMMIT").expect("ends");
    assert!(rows() > seen);
    drop(reader);

    // One commit moves the log into the database; the next begins it anew.
    reserve(3);
    let after = log_bytes();
    eprintln!("crash sweep: a log of {grown} bytes while somebody reads, {after} after");
    assert!(after <= LOG_BYTES_KEPT, "{after}");
    assert!(!complete || grown > LOG_BYTES_KEPT, "{grown}: nothing had to be cut");
    check(children, told, home);
    assert_eq!(log_bytes(), 0, "a gateway that stops empties the log");
}
