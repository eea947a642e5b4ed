//! Named maxima and the settings of the database file.

/// The most bytes that one row may hold. A larger write fails its token, alone, with
/// [`PersistError::Failed`](keymeld_core::record::PersistError::Failed).
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The most tokens in one transaction. A longer batch takes several, in order.
pub const GROUP_TOKENS_MAX: usize = 1_024;

/// The pages in the log after which a commit moves them into the database file. At 4 KiB a page the log
/// stays near 16 MiB unless another connection keeps reading. (SQLite's default of 1,000 costs a third of
/// the rows a second.)
pub const CHECKPOINT_PAGES: u32 = 4_000;

/// What the log file is cut to when it starts anew, after a long reader let it grow.
pub const LOG_BYTES_KEPT: i64 = 32 * 1024 * 1024;

/// The page size of a new database.
pub const PAGE_BYTES: u32 = 4_096;

/// The most memory that SQLite's page cache takes.
pub const CACHE_KIB: i64 = 16 * 1024;

/// How long a commit waits for another process that is writing. None should be: the store is the one
/// writer, and the core thread stands still meanwhile.
pub const BUSY_TIMEOUT_MS: u64 = 1_000;
