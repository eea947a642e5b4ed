//! Opening: the lock, the file, the settings and the checks.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::limits::{BUSY_TIMEOUT_MS, CACHE_KIB, CHECKPOINT_PAGES, LOG_BYTES_KEPT, PAGE_BYTES};
use crate::schema::{self, APPLICATION_ID, MIGRATIONS};
use crate::{Settings, Store};

/// `PRAGMA synchronous` in SQLite's numbers: every commit waits for the disk.
const SYNCHRONOUS_FULL: u32 = 2;

/// Statements that stay prepared; there are nine.
const STATEMENTS_PREPARED: usize = 16;

/// The smallest page that SQLite knows.
const PAGE_BYTES_MIN: u64 = 512;

/// Only the gateway's user reads ciphertext and routing data.
const FILE_MODE: u32 = 0o600;

/// How to open a database. The default is a writer without a size limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The size that the database may grow to, in pages; beyond it commits fail as on a full disk. Where it
    /// is larger already it keeps its size. The log beside it is not counted.
    pub pages_max: Option<u32>,
    /// Opens without the right to write: nothing is created, migrated or locked, every commit fails with
    /// [`PersistError::ReadOnly`](keymeld_core::record::PersistError::ReadOnly), and it works beside the
    /// gateway that has the database open. For inspection.
    pub read_only: bool,
}

/// Why a database was not opened. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another store, in this process or another, has the database open.
    #[error("another gateway has the database open")]
    InUse,
    /// The file is SQLite's but not ours, or not SQLite's at all.
    #[error("the file is not a KeyMeld database")]
    NotKeyMeld,
    /// A newer release wrote the file.
    #[error("the database has schema {found}, this release knows up to {known}")]
    NewerSchema {
        /// The file's schema version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// An older release wrote the file, and it is opened read-only, so it cannot be migrated.
    #[error("the database has schema {found}, reading needs {known}")]
    OlderSchema {
        /// The file's schema version.
        found: u32,
        /// The version that reading needs.
        known: u32,
    },
    /// Tables, indices or triggers are not those of the file's schema version: somebody changed them.
    #[error("the database's tables or triggers were changed")]
    SchemaChanged,
    /// The file is damaged. Restore a backup.
    #[error("the database is corrupt")]
    Corrupt,
    /// The file or its file system cannot be written to.
    #[error("the database cannot be written to")]
    ReadOnly,
    /// SQLite did not take a setting that durability rests on.
    #[error("SQLite did not take the setting {setting}")]
    SettingRefused {
        /// The pragma's name.
        setting: &'static str,
    },
    /// The path, the lock file or the database file cannot be made or looked up.
    #[error("the database's files cannot be accessed: {0}")]
    File(#[source] io::Error),
    /// Anything else that SQLite said.
    #[error("the database cannot be opened: {0}")]
    Sqlite(#[source] rusqlite::Error),
}

impl OpenError {
    fn of_file(error: io::Error) -> OpenError {
        if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
            OpenError::ReadOnly
        } else {
            OpenError::File(error)
        }
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> OpenError {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => OpenError::NotKeyMeld,
            Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt,
            Some(ErrorCode::ReadOnly) => OpenError::ReadOnly,
            _ => OpenError::Sqlite(error),
        }
    }
}

impl Store {
    /// Opens the database at `path`, or makes one with mode 0600 in an existing folder.
    ///
    /// Reads the whole file once to check it, so the time grows with its size. The lock is a file named
    /// `path` + `.lock`, which stays behind, empty.
    ///
    /// # Errors
    /// [`OpenError`]. A file that is refused is left as it was, apart from SQLite's recovery of a log that a
    /// crash left beside it.
    pub fn open(path: &Path, options: &Options) -> Result<Store, OpenError> {
        let path = resolve(path, options).map_err(OpenError::File)?;
        // The lock comes first. Opening and closing the database file by itself would drop the POSIX locks
        // of a store that this process has on it already.
        let lock = if options.read_only { None } else { Some(lock(&path)?) };
        if !options.read_only {
            create(&path).map_err(OpenError::of_file)?;
        }
        let mut connection = connect(&path, options)?;
        let found = check_identity(&connection)?;
        if found == 0 && is_fragment(&path).map_err(OpenError::File)? {
            return Err(OpenError::NotKeyMeld);
        }
        let known = u32::try_from(MIGRATIONS.len()).expect("a short list");
        if found > known {
            return Err(OpenError::NewerSchema { found, known });
        }
        if found < known && options.read_only {
            return Err(OpenError::OlderSchema { found, known });
        }
        check_content(&connection, &MIGRATIONS[..found as usize])?;
        if !options.read_only && is_cut(&connection, &path)? {
            return Err(OpenError::Corrupt);
        }
        apply_settings(&connection, options)?;
        if found < known {
            schema::migrate(&mut connection, MIGRATIONS)?;
        }
        Ok(Store { connection, failure: None, lock })
    }
}

/// What the connection runs with.
pub(crate) fn settings(connection: &Connection) -> rusqlite::Result<Settings> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok(Settings {
        journal_mode: connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?,
        synchronous: number("synchronous")?,
        checkpoint_pages: number("wal_autocheckpoint")?,
        log_bytes_kept: connection.pragma_query_value(None, "journal_size_limit", |row| row.get(0))?,
        page_bytes: number("page_size")?,
        page_count: number("page_count")?,
        pages_max: number("max_page_count")?,
    })
}

/// The file itself, behind symbolic links, so that every way to name it leads to one lock.
fn resolve(path: &Path, options: &Options) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !options.read_only => {
            let name = path.file_name().ok_or(error)?;
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            Ok(fs::canonicalize(folder)?.join(name))
        }
        result => result,
    }
}

/// The file whose name has `ending` added.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let file = how.open(beside(path, ".lock")).map_err(OpenError::of_file)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => Err(OpenError::File(error)),
    }
}

/// Makes an empty file, which SQLite takes for an empty database. It gives its log files the same mode.
fn create(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(file) => {
            file.sync_all()?;
            // The name must survive a crash as well as the rows.
            path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn connect(path: &Path, options: &Options) -> Result<Connection, OpenError> {
    let access =
        if options.read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    // One thread at a time uses a `Store`, so SQLite needs no mutex of its own.
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_PREPARED);
    // The file may have been made by anybody: its schema gets no dangerous functions, and no statement may
    // rewrite the schema by hand.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // SQLite falls back to reading by itself where the file does not let it write.
    if !options.read_only && connection.is_readonly("main")? {
        return Err(OpenError::ReadOnly);
    }
    Ok(connection)
}

/// The file's schema version; 0 for an empty file, which is as good as a new one.
fn check_identity(connection: &Connection) -> Result<u32, OpenError> {
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = schema::version(connection)?;
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if id == 0 && version == 0 && objects == 0 {
        return Ok(0);
    }
    if id != APPLICATION_ID {
        return Err(OpenError::NotKeyMeld);
    }
    match u32::try_from(version) {
        Ok(version) if version > 0 => Ok(version),
        _ => Err(OpenError::Corrupt),
    }
}

/// Whether the file is too short for any page. SQLite takes a file of one byte for an empty one, and rows
/// must not be taken for absent because the file that held them was cut.
fn is_fragment(path: &Path) -> io::Result<bool> {
    Ok((1..PAGE_BYTES_MIN).contains(&fs::metadata(path)?.len()))
}

/// Whether the file ends within its last page, which SQLite would fill up with zeros. While the log holds
/// something the end may still be in there.
fn is_cut(connection: &Connection, path: &Path) -> Result<bool, OpenError> {
    let bytes = |path: &Path| match fs::metadata(path) {
        Ok(file) => Ok(file.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(OpenError::File(error)),
    };
    let taken = settings(connection)?;
    let whole = u64::from(taken.page_count) * u64::from(taken.page_bytes);
    Ok(bytes(&beside(path, "-wal"))? == 0 && bytes(path)? < whole)
}

fn check_content(connection: &Connection, migrations: &[&str]) -> Result<(), OpenError> {
    if !schema::matches(connection, migrations)? {
        return Err(OpenError::SchemaChanged);
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Corrupt) }
}

fn apply_settings(connection: &Connection, options: &Options) -> Result<(), OpenError> {
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // A read error in a mapped file would be a signal, not an error.
    connection.pragma_update(None, "mmap_size", 0)?;
    // Savepoints keep a journal of their own; it needs no file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    if !options.read_only {
        // First, so that the file's header is on the disk before the log is: SQLite deletes the log of an
        // empty file.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
        if let Some(pages_max) = options.pages_max {
            // 0 would ask for the limit instead of setting it.
            connection.pragma_update(None, "max_page_count", pages_max.max(1))?;
        }
    }
    let taken = settings(connection)?;
    if taken.journal_mode != "wal" {
        return Err(OpenError::SettingRefused { setting: "journal_mode" });
    }
    if taken.synchronous != SYNCHRONOUS_FULL {
        return Err(OpenError::SettingRefused { setting: "synchronous" });
    }
    Ok(())
}
