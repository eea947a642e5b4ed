//! A test root that survives restarts: two files in a directory.
//!
//! The certificate follows from the key, so only the key's file has to appear at once and whole: it is
//! written under another name and then linked, which fails where another process was first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keymeld_core::entropy::{Entropy, EntropyFailed};
use p384::ecdsa::SigningKey;
use zeroize::Zeroizing;

use super::{SoftwareRoot, signing_key};

/// The private key, 96 lower-case hex digits, mode 0600.
pub const KEY_FILE: &str = "development-root-key.hex";
/// The certificate, DER: what a development policy names.
pub const CERTIFICATE_FILE: &str = "development-root.der";

/// Why a stored root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootFileError {
    /// The directory or a file in it cannot be read or written.
    #[error("the development root's files cannot be read or written")]
    Io(#[from] io::Error),
    /// The key's file does not hold a P-384 key.
    #[error("the development root's key is malformed")]
    KeyMalformed,
    /// The certificate's file does not hold the key's certificate.
    #[error("the development root's certificate is not its key's")]
    CertificateDiffers,
    /// The random generator failed.
    #[error("the random generator failed")]
    Entropy,
}

impl From<EntropyFailed> for RootFileError {
    fn from(_: EntropyFailed) -> Self {
        RootFileError::Entropy
    }
}

impl SoftwareRoot {
    /// Loads the root kept in `directory`, which is created if absent; makes one where there is none.
    ///
    /// Several processes may do this at once: all get the same root.
    ///
    /// # Errors
    /// [`RootFileError`].
    pub fn load_or_create(directory: &Path, entropy: &mut Entropy) -> Result<SoftwareRoot, RootFileError> {
        fs::create_dir_all(directory)?;
        let key_path = directory.join(KEY_FILE);
        if !key_path.try_exists()? {
            create_key(&key_path, entropy)?;
        }
        let root = SoftwareRoot::from_key(read_key(&key_path)?);

        let certificate_path = directory.join(CERTIFICATE_FILE);
        match fs::read(&certificate_path) {
            Ok(stored) if stored == root.certificate() => {}
            Ok(_) => return Err(RootFileError::CertificateDiffers),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whoever renames last writes the same bytes.
                let written = write_beside(&certificate_path, root.certificate(), 0o644, entropy)?;
                fs::rename(written, &certificate_path)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(root)
    }
}

fn create_key(path: &Path, entropy: &mut Entropy) -> Result<(), RootFileError> {
    let scalar = Zeroizing::new(<[u8; 48]>::from(signing_key(entropy)?.to_bytes()));
    let hex = Zeroizing::new(base16ct::lower::encode_string(scalar.as_slice()));
    let written = write_beside(path, hex.as_bytes(), 0o600, entropy)?;
    let linked = fs::hard_link(&written, path);
    fs::remove_file(&written)?;
    match linked {
        // Another process was first; its key counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => Ok(linked?),
    }
}

fn read_key(path: &Path) -> Result<SigningKey, RootFileError> {
    let hex = Zeroizing::new(fs::read(path)?);
    let mut scalar = Zeroizing::new([0; 48]);
    match base16ct::lower::decode(hex.trim_ascii(), scalar.as_mut_slice()) {
        Ok(decoded) if decoded.len() == 48 => {}
        Ok(_) | Err(_) => return Err(RootFileError::KeyMalformed),
    }
    SigningKey::from_slice(scalar.as_slice()).map_err(|_| RootFileError::KeyMalformed)
}

/// Writes a new file next to `path` under a name of its own, durably, and returns that name.
fn write_beside(
    path: &Path,
    contents: &[u8],
    mode: u32,
    entropy: &mut Entropy,
) -> Result<PathBuf, RootFileError> {
    let suffix = base16ct::lower::encode_string(&entropy.bytes::<8>()?);
    let beside = path.with_extension(format!("{}-{suffix}.new", std::process::id()));
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(contents)?;
    file.sync_all()?;
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::{fs, thread};

    use keymeld_core::entropy::test_entropy;

    use super::{CERTIFICATE_FILE, KEY_FILE, RootFileError, SoftwareRoot};

    #[test]
    fn a_root_survives_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("root");
        let made = SoftwareRoot::load_or_create(&path, &mut test_entropy(1)).expect("creates");
        let loaded = SoftwareRoot::load_or_create(&path, &mut test_entropy(2)).expect("loads");
        assert_eq!(made.certificate(), loaded.certificate());
        assert_eq!(fs::read(path.join(CERTIFICATE_FILE)).expect("a file"), made.certificate());
        let mode = fs::metadata(path.join(KEY_FILE)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(path.join(CERTIFICATE_FILE)).expect("removes");
        SoftwareRoot::load_or_create(&path, &mut test_entropy(3)).expect("loads");
        assert_eq!(fs::read(path.join(CERTIFICATE_FILE)).expect("a file"), made.certificate());
        assert_eq!(fs::read_dir(&path).expect("a directory").count(), 2);
    }

    #[test]
    fn many_who_start_at_once_get_one_root() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let roots: Vec<Vec<u8>> = thread::scope(|scope| {
            let create = |seed| {
                let root = SoftwareRoot::load_or_create(path, &mut test_entropy(seed)).expect("creates");
                root.certificate().to_vec()
            };
            let running: Vec<_> = (0..8).map(|seed| scope.spawn(move || create(seed))).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
        assert_eq!(fs::read_dir(path).expect("a directory").count(), 2);
    }

    #[test]
    fn damaged_files_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        SoftwareRoot::load_or_create(path, &mut test_entropy(1)).expect("creates");
        fs::write(path.join(CERTIFICATE_FILE), b"another").expect("writes");
        let loaded = SoftwareRoot::load_or_create(path, &mut test_entropy(1));
        assert!(matches!(loaded, Err(RootFileError::CertificateDiffers)));
        for key in ["", "00", &"00".repeat(48), &"ff".repeat(48), &"0A".repeat(48), &"01".repeat(49)] {
            fs::write(path.join(KEY_FILE), key).expect("writes");
            let loaded = SoftwareRoot::load_or_create(path, &mut test_entropy(1));
            assert!(matches!(loaded, Err(RootFileError::KeyMalformed)), "{key}");
        }
    }
}
