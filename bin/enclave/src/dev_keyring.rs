//! A key service for development: one key-encryption key in a file.
//!
//! It binds each data key to its context like KMS does. It differs in what matters: whoever reads the file
//! can unwrap every data key.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{DataKeyContext, Failed};
use keymeld_core::entropy::{Entropy, EntropyFailed};
use keymeld_core::secret::Secret;
use zeroize::Zeroizing;

use crate::service::KeyService;

/// The key-encryption key, 64 lower-case hex digits, mode 0600.
pub(crate) const KEYRING_FILE: &str = "development-keyring.hex";

const NONCE_BYTES: usize = 12;
/// What the additional data of every wrapped key begin with.
const PURPOSE: &[u8] = b"keymeld development data key 1";

/// Why a keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyringError {
    /// The directory or the file cannot be read or written.
    #[error("the keyring {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// The file holds something else than a key.
    #[error("the keyring {0} is malformed")]
    Malformed(PathBuf),
    /// The random generator failed.
    #[error("the random generator failed")]
    Entropy,
}

impl From<EntropyFailed> for KeyringError {
    fn from(_: EntropyFailed) -> Self {
        KeyringError::Entropy
    }
}

/// The keyring.
pub(crate) struct DevKeyring {
    key: Secret<32>,
    entropy: Entropy,
}

impl DevKeyring {
    /// Loads the keyring kept in `directory`, which is created if absent; makes one where there is none.
    /// Several processes may do this at once: all get the same one.
    pub(crate) fn load_or_create(directory: &Path, mut entropy: Entropy) -> Result<DevKeyring, KeyringError> {
        let path = directory.join(KEYRING_FILE);
        let failed = |error| KeyringError::Io(path.clone(), error);
        fs::create_dir_all(directory).map_err(failed)?;
        if !path.try_exists().map_err(failed)? {
            let key = Secret::<32>::random(&mut entropy)?;
            create(&path, key.to_hex().as_bytes(), entropy.bytes()?).map_err(failed)?;
        }
        let hex = Zeroizing::new(fs::read(&path).map_err(failed)?);
        let key = Secret::from_hex(hex.trim_ascii()).ok_or(KeyringError::Malformed(path))?;
        Ok(DevKeyring { key, entropy })
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.key.expose().into())
    }
}

/// Writes the file under another name and links it, so that it appears whole, and once.
fn create(path: &Path, contents: &[u8], suffix: [u8; 8]) -> io::Result<()> {
    let beside = path.with_extension(format!("{:016x}.new", u64::from_be_bytes(suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| fs::hard_link(&beside, path));
    fs::remove_file(&beside)?;
    match linked {
        // Another process was first; its key counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

fn additional_data(context: &DataKeyContext) -> Vec<u8> {
    let DataKeyContext { enclave_id, epoch, birth_pcr0 } = context;
    // All parts but the last have a fixed length.
    [PURPOSE, enclave_id.as_bytes(), &epoch.to_be_bytes(), birth_pcr0].concat()
}

impl KeyService for DevKeyring {
    fn generate(&mut self, context: &DataKeyContext) -> Result<DataKey, Failed> {
        let failed = |EntropyFailed| {
            tracing::error!("the random generator failed");
            Failed
        };
        let key = Secret::<32>::random(&mut self.entropy).map_err(failed)?;
        let nonce: [u8; NONCE_BYTES] = self.entropy.bytes().map_err(failed)?;
        let payload = Payload { msg: key.expose(), aad: &additional_data(context) };
        let wrapped = self.cipher().encrypt(&Nonce::from(nonce), payload).expect("far below 64 GiB");
        Ok(DataKey { key, encrypted: [nonce.as_slice(), &wrapped].concat() })
    }

    fn decrypt(&mut self, context: &DataKeyContext, encrypted: &[u8]) -> Result<Secret<32>, Failed> {
        let unwrap = || {
            let (nonce, wrapped) = encrypted.split_first_chunk::<NONCE_BYTES>()?;
            let payload = Payload { msg: wrapped, aad: &additional_data(context) };
            let key = Zeroizing::new(self.cipher().decrypt(&Nonce::from(*nonce), payload).ok()?);
            Some(Secret::copied_from(key.as_slice().try_into().ok()?))
        };
        unwrap().ok_or_else(|| {
            let DataKeyContext { enclave_id, epoch, .. } = context;
            tracing::warn!(%enclave_id, epoch, "a data key of another keyring or context was refused");
            Failed
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use keymeld_core::enclave::DataKeyContext;
    use keymeld_core::entropy::test_entropy;
    use keymeld_core::id::EnclaveId;

    use super::{DevKeyring, KEYRING_FILE, KeyService, KeyringError};

    fn context() -> DataKeyContext {
        DataKeyContext { enclave_id: EnclaveId([1; 16]), epoch: 7, birth_pcr0: vec![2; 48] }
    }

    #[test]
    fn a_data_key_opens_after_a_restart_in_its_own_context_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut keyring = DevKeyring::load_or_create(folder.path(), test_entropy(1)).expect("creates");
        let made = keyring.generate(&context()).expect("entropy");
        let mut again = DevKeyring::load_or_create(folder.path(), test_entropy(2)).expect("loads");
        assert_eq!(again.decrypt(&context(), &made.encrypted), Ok(made.key));
        let others = [
            DataKeyContext { enclave_id: EnclaveId([3; 16]), ..context() },
            DataKeyContext { epoch: 8, ..context() },
            DataKeyContext { birth_pcr0: vec![3; 48], ..context() },
            DataKeyContext { birth_pcr0: vec![2; 47], ..context() },
        ];
        for other in others {
            assert!(again.decrypt(&other, &made.encrypted).is_err(), "{other:?}");
        }
        for length in 0..made.encrypted.len() {
            assert!(again.decrypt(&context(), &made.encrypted[..length]).is_err());
        }
        for index in 0..made.encrypted.len() {
            let mut flipped = made.encrypted.clone();
            flipped[index] ^= 1;
            assert!(again.decrypt(&context(), &flipped).is_err());
        }
        let elsewhere = tempfile::tempdir().expect("a folder");
        let mut other = DevKeyring::load_or_create(elsewhere.path(), test_entropy(3)).expect("creates");
        assert!(other.decrypt(&context(), &made.encrypted).is_err());
    }

    #[test]
    fn the_file_is_private_made_once_and_never_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let (directory, path) = (folder.path(), folder.path().join(KEYRING_FILE));
        thread::scope(|scope| {
            for seed in 0..8 {
                scope.spawn(move || DevKeyring::load_or_create(directory, test_entropy(seed)).map(drop));
            }
        });
        assert_eq!(fs::read_dir(directory).expect("a folder").count(), 1);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        for damaged in ["", "00", &"0A".repeat(32)] {
            fs::write(&path, damaged).expect("writes");
            let loaded = DevKeyring::load_or_create(folder.path(), test_entropy(1));
            assert!(matches!(loaded, Err(KeyringError::Malformed(_))), "{damaged}");
        }
    }
}
