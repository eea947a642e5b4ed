//! A participant's files: what a client keeps, written atomically, for its owner alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use keymeld_core::client::Keep;
use tempfile::NamedTempFile;

/// The file of a membership.
pub const MEMBERSHIP_FILE: &str = "membership.json";

/// Makes a keeper for [`keymeld_transport::client::BlockingClient`] out of a folder, which is made where
/// absent.
///
/// # Errors
/// What the operating system says.
pub fn keeper(folder: PathBuf) -> io::Result<impl FnMut(&Keep) -> io::Result<()> + Send + 'static> {
    fs::create_dir_all(&folder)?;
    private(&folder)?;
    Ok(move |keep: &Keep| match keep {
        Keep::Membership(bytes) => write(&folder, MEMBERSHIP_FILE, bytes),
        Keep::Request(request) => {
            let name = format!("request-{}.json", request.signing_id);
            write(&folder, &name, &serde_json::to_vec(request).map_err(io::Error::other)?)
        }
    })
}

#[cfg(unix)]
fn private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Either the whole new file is there after a crash or the whole old one; mode 0600 from its first byte.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::{MEMBERSHIP_FILE, keeper};
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
}
