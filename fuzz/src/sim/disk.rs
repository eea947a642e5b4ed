//! The gateway's database: a real SQLite file in memory, and copies of it as a crash would leave them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use keymeld_core::record::{LoadError, Persist, PersistError, Query, Row, Token};
use keymeld_store::{Options, Store};

use super::chance::Chance;

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;

/// The files of a database that is not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    database: Vec<u8>,
    log: Vec<u8>,
}

/// A database in a folder of its own, which goes with it.
pub(crate) struct Disk {
    folder: PathBuf,
    number: u64,
    store: Option<Store>,
}

type Answers = Vec<(Token, Result<(), PersistError>)>;

/// An empty database, as [`Store::open`] makes it.
fn empty() -> &'static [u8] {
    static EMPTY: OnceLock<Vec<u8>> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let folder = new_folder();
        let path = folder.join("empty.db");
        let store = Store::open(&path, &Options::default()).expect("a new database");
        store.close().expect("nobody reads it");
        let bytes = fs::read(&path).expect("it was just made");
        remove(&folder);
        bytes
    })
}

/// In memory where the machine has a file system there: nothing of this has to outlast the process.
fn new_folder() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = base.join(format!("keymeld-sim-{}-{count}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for databases");
    folder
}

/// What is left behind costs memory, not more.
fn remove(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
}

impl Disk {
    pub(crate) fn new() -> Disk {
        let mut disk = Disk { folder: new_folder(), number: 0, store: None };
        disk.reopen(&Files { database: empty().to_vec(), log: Vec::new() });
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.db", self.number))
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("it is open between two reopenings")
    }

    pub(crate) fn load(&mut self, query: &Query) -> Result<Vec<Row>, LoadError> {
        self.store().load(query)
    }

    pub(crate) fn commit(&mut self, batch: &[Persist]) -> Answers {
        self.store().commit(batch)
    }

    /// The files as a crash of the process would leave them.
    pub(crate) fn files(&self) -> Files {
        let path = self.path();
        Files { database: read(&path), log: read(&path.with_extension("db-wal")) }
    }

    /// Opens a database anew from these files.
    pub(crate) fn reopen(&mut self, files: &Files) {
        self.number += 1;
        let path = self.path();
        fs::write(&path, &files.database).expect("writes to memory");
        if !files.log.is_empty() {
            fs::write(path.with_extension("db-wal"), &files.log).expect("writes to memory");
        }
        // The one before ends with this; what it still does to its own files is of no interest.
        self.store = Some(Store::open(&path, &Options::default()).expect("a crash leaves a good database"));
    }

    /// The files as they may be where the machine dies in the middle of a commit: some sectors of the log are
    /// written and others are not, and only where all are the database may have been touched.
    pub(crate) fn torn(before: &Files, after: &Files, chance: &mut Chance) -> Files {
        let mut torn = before.clone();
        let sectors = changed(&before.log, &after.log);
        let written = chance.below("torn log", sectors.len() as u64 + 1) as usize;
        let in_order = chance.one_in("torn in order", 2);
        for sector in &sectors[..written] {
            if in_order || chance.one_in("torn sector", 2) {
                put(&mut torn.log, &after.log, *sector);
            }
        }
        if torn.log != after.log {
            return torn;
        }
        let sectors = changed(&before.database, &after.database);
        let written = chance.below("torn database", sectors.len() as u64 + 1) as usize;
        for sector in &sectors[..written] {
            put(&mut torn.database, &after.database, *sector);
        }
        torn
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

fn sector(bytes: &[u8], number: usize) -> &[u8] {
    let begin = (number * SECTOR_BYTES).min(bytes.len());
    &bytes[begin..(begin + SECTOR_BYTES).min(bytes.len())]
}

fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    let count = after.len().div_ceil(SECTOR_BYTES);
    (0..count).filter(|number| sector(before, *number) != sector(after, *number)).collect()
}

fn put(to: &mut Vec<u8>, from: &[u8], number: usize) {
    let begin = number * SECTOR_BYTES;
    let bytes = sector(from, number);
    if to.len() < begin + bytes.len() {
        to.resize(begin + bytes.len(), 0);
    }
    to[begin..begin + bytes.len()].copy_from_slice(bytes);
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.store = None;
        remove(&self.folder);
    }
}
