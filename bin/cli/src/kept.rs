//! A participant's files: what a client keeps, written atomically, for its owner alone.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use keymeld_core::client::Keep;
use tempfile::{Builder, NamedTempFile};
use zeroize::Zeroizing;

/// The file of a membership.
pub const MEMBERSHIP_FILE: &str = "membership.json";
/// How a file's name begins until it is whole.
const UNFINISHED: &str = ".unfinished-";
/// Permissions of anybody but the owner.
const OTHERS: u32 = 0o077;

/// Why a private file or folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Whoever else may look into it, or change it.
    #[error("{path}: others than its owner may open it (mode {mode:04o}); use chmod {wanted}")]
    Open {
        /// Its name.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// The permissions that it should have.
        wanted: &'static str,
    },
    /// Not a plain file or folder.
    #[error("{0}: not of the kind that belongs here")]
    Kind(PathBuf),
    /// More bytes than such a file has.
    #[error("{0}: too large")]
    TooLarge(PathBuf),
    /// What the operating system says.
    #[error("{0}: {1}")]
    System(PathBuf, #[source] io::Error),
}

/// Makes a keeper for [`keymeld_transport::client::BlockingClient`] out of a folder, which is made where
/// absent.
///
/// # Errors
/// What the operating system says; [`KeptError::Open`] where others may open the folder.
pub fn keeper(folder: PathBuf) -> Result<impl FnMut(&Keep) -> io::Result<()> + Send + 'static, KeptError> {
    make_folder(&folder)?;
    Ok(move |keep: &Keep| match keep {
        Keep::Membership(bytes) => write(&folder.join(MEMBERSHIP_FILE), bytes),
        Keep::Request(request) => {
            let path = folder.join(format!("request-{}.json", request.signing_id));
            write(&path, &serde_json::to_vec(request).map_err(io::Error::other)?)
        }
    })
}

/// Makes a folder with mode 0700, and those above it, durably; one that is there already has to be private.
///
/// # Errors
/// [`KeptError`].
pub fn make_folder(folder: &Path) -> Result<(), KeptError> {
    let system = |error| KeptError::System(folder.to_owned(), error);
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(system)?;
    missing.into_iter().try_for_each(sync_folder).map_err(system)?;
    check_folder(folder)
}

/// Checks that nobody else gets into a folder.
///
/// # Errors
/// [`KeptError`].
pub fn check_folder(folder: &Path) -> Result<(), KeptError> {
    let metadata = fs::symlink_metadata(folder).map_err(|error| KeptError::System(folder.into(), error))?;
    if !metadata.is_dir() {
        return Err(KeptError::Kind(folder.to_owned()));
    }
    private(folder, &metadata, OTHERS, "700")
}

fn private(
    path: &Path,
    metadata: &fs::Metadata,
    forbidden: u32,
    wanted: &'static str,
) -> Result<(), KeptError> {
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden == 0 { Ok(()) } else { Err(KeptError::Open { path: path.to_owned(), mode, wanted }) }
}

/// Either the whole new file is there after a crash or the whole old one; mode 0600 from its first byte.
///
/// # Errors
/// What the operating system says.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    unfinished(path, bytes)?.persist(path)?;
    sync_folder(path)
}

/// The same for a file that is not there yet. One that is stays as it is.
///
/// # Errors
/// What the operating system says; [`io::ErrorKind::AlreadyExists`].
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    unfinished(path, bytes)?.persist_noclobber(path)?;
    sync_folder(path)
}

fn unfinished(path: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = Builder::new().prefix(UNFINISHED).tempfile_in(folder_of(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Deletes what a killed process did not finish. Nobody may be writing into the folder.
///
/// # Errors
/// What the operating system says.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Reads a file that only its owner can open; `None` where there is none.
///
/// # Errors
/// [`KeptError`].
pub fn read_private(path: &Path, bytes_max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, KeptError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(KeptError::Kind(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KeptError::System(path.to_owned(), error)),
    }
    read(path, bytes_max, OTHERS, "600").map(Some)
}

/// Reads a file, or whatever else has a path. A plain file has to have none of the `forbidden` permissions.
///
/// # Errors
/// [`KeptError`].
pub fn read(
    path: &Path,
    bytes_max: usize,
    forbidden: u32,
    wanted: &'static str,
) -> Result<Zeroizing<Vec<u8>>, KeptError> {
    let system = |error| KeptError::System(path.to_owned(), error);
    let file = File::open(path).map_err(system)?;
    let metadata = file.metadata().map_err(system)?;
    if metadata.is_file() {
        private(path, &metadata, forbidden, wanted)?;
    }
    read_whole(file, bytes_max).map_err(system)?.ok_or_else(|| KeptError::TooLarge(path.to_owned()))
}

/// Reads to the end; `None` for more than so many bytes. The buffer does not grow, so that a secret in it
/// leaves no copies.
///
/// # Errors
/// What the operating system says.
pub fn read_whole(mut from: impl Read, bytes_max: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(vec![0; bytes_max + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled > bytes_max {
        return Ok(None);
    }
    bytes.truncate(filled);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::{KeptError, MEMBERSHIP_FILE, keeper, read_private, sweep, write_new};
    use keymeld_core::client::Keep;
    use zeroize::Zeroizing;

    #[test]
    fn files_are_for_their_owner_and_replaced_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().join("alice");
        let mut keep = keeper(home.clone()).expect("makes the folder");
        for text in ["first", "second"] {
            keep(&Keep::Membership(Zeroizing::new(text.into()))).expect("keeps");
            assert_eq!(fs::read_to_string(home.join(MEMBERSHIP_FILE)).expect("reads"), text);
        }
        let mode = |path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!((mode(home.clone()), mode(home.join(MEMBERSHIP_FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&home).expect("a folder").count(), 1);
    }

    #[test]
    fn what_others_can_open_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().join("alice");
        drop(keeper(home.clone()).expect("makes the folder"));
        let file = home.join("secret");
        write_new(&file, b"1").expect("writes");
        assert_eq!(read_private(&file, 1).expect("reads").expect("is there").as_slice(), b"1");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).expect("sets");
            assert!(matches!(read_private(&file, 1), Err(KeptError::Open { .. })), "{mode:o}");
        }
        for mode in [0o750, 0o705, 0o701, 0o770] {
            fs::set_permissions(&home, Permissions::from_mode(mode)).expect("sets");
            assert!(matches!(keeper(home.clone()).err(), Some(KeptError::Open { .. })), "{mode:o}");
        }
    }

    #[test]
    fn only_plain_files_of_a_sane_size_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        assert!(read_private(&file, 1).expect("no file").is_none());
        write_new(&file, b"12").expect("writes");
        assert!(matches!(read_private(&file, 1), Err(KeptError::TooLarge(_))));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        assert!(matches!(read_private(&link, 2), Err(KeptError::Kind(_))));
        assert!(matches!(read_private(folder.path(), 2), Err(KeptError::Kind(_))));
    }

    #[test]
    fn a_new_file_replaces_none_and_leftovers_are_swept() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        write_new(&file, b"1").expect("writes");
        let error = write_new(&file, b"2").expect_err("is there");
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).expect("reads"), b"1");
        fs::write(folder.path().join(".unfinished-x"), "half").expect("writes");
        sweep(folder.path()).expect("sweeps");
        let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
        assert_eq!(left.len(), 1);
    }
}
