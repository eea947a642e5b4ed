//! A user's state directory: one folder for each keygen, and the newest epochs that the user has seen.
//!
//! ```text
//! HOME/                        0700
//!   lock                       held while a command runs
//!   births.json                the newest epoch seen of each enclave
//!   keygens/KEYGEN_ID/         0700
//!     session.json             the gateway's URL and what was asked for
//!     membership.json          the client's own: a secret
//!     request-SIGNING_ID.json  a request whose acceptance was not shown yet
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keymeld_core::api::rest::SignRequest;
use keymeld_core::client::{MEMBERSHIP_BYTES_MAX, MembershipError, birth_in};
use keymeld_core::id::{EnclaveId, KeygenId, SigningId};
use keymeld_core::limits::BODY_BYTES_MAX;
use keymeld_core::refusal::Code;
use keymeld_core::strict::{self, JsonError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::kept::{self, KeptError, MEMBERSHIP_FILE};

const LOCK_FILE: &str = "lock";
const BIRTHS_FILE: &str = "births.json";
const KEYGENS_FOLDER: &str = "keygens";
const SESSION_FILE: &str = "session.json";
/// The most bytes of `births.json`: ten thousand enclaves.
const BIRTHS_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes of `session.json`: a hundred participants with their names and keys, and 64 subsets.
const SESSION_BYTES_MAX: usize = 1024 * 1024;
const VERSION: u64 = 1;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// There is none.
    #[error("{0}: no state directory; `keymeld reserve` or `keymeld join` makes one")]
    Missing(PathBuf),
    /// Another command works in it.
    #[error("{0}: another keymeld command works in this directory")]
    Busy(PathBuf),
    /// A file or folder cannot be used.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// A file was altered, or something else wrote it.
    #[error("{0}: the file was altered or is damaged: {1}")]
    Damaged(PathBuf, #[source] JsonError),
    /// The same for the membership.
    #[error("{0}: {1}")]
    Membership(PathBuf, #[source] MembershipError),
    /// The same for a request.
    #[error("{0}: the request was altered or is damaged: {1}")]
    Request(PathBuf, #[source] Code),
    /// A version of this file that is not known here.
    #[error("{0}: another version of keymeld wrote this")]
    Version(PathBuf),
    /// A keygen that is not here.
    #[error("there is no keygen {0} in this directory")]
    UnknownKeygen(KeygenId),
    /// None at all.
    #[error("there is no keygen in this directory; `keymeld reserve` or `keymeld join` makes one")]
    NoKeygen,
    /// More than one.
    #[error("there are several keygens in this directory; name one with --keygen: {}", list(.0))]
    SeveralKeygens(Vec<KeygenId>),
}

fn list(ids: &[KeygenId]) -> String {
    ids.iter().map(KeygenId::to_string).collect::<Vec<_>>().join(", ")
}

/// An open state directory. No other command gets into it meanwhile.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Births {
    version: u64,
    births: Vec<Birth>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Birth {
    enclave_id: EnclaveId,
    birth_time_ms: u64,
}

/// What is kept of a keygen beside the client's own file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Session<T> {
    version: u64,
    gateway_url: String,
    asked: T,
}

impl Home {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn open(folder: &Path) -> Result<Home, HomeError> {
        if !folder.exists() {
            return Err(HomeError::Missing(folder.to_owned()));
        }
        kept::check_folder(folder)?;
        let system = |error| KeptError::System(folder.to_owned(), error);
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600);
        let lock = lock.open(folder.join(LOCK_FILE)).map_err(system)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(HomeError::Busy(folder.to_owned())),
            Err(TryLockError::Error(error)) => return Err(system(error).into()),
        }
        kept::sweep(folder).map_err(system)?;
        Ok(Home { folder: folder.to_owned(), _lock: lock })
    }

    /// Makes the directory where it is absent, and opens it.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn open_or_make(folder: &Path) -> Result<Home, HomeError> {
        kept::make_folder(folder)?;
        Home::open(folder)
    }

    /// Every keygen that was begun.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn keygens(&self) -> Result<Vec<KeygenId>, HomeError> {
        let folder = self.folder.join(KEYGENS_FOLDER);
        let system = |error| KeptError::System(folder.clone(), error);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(system(error).into()),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(system)?;
            let name = entry.file_name();
            let id: Option<KeygenId> = name.to_str().and_then(|name| name.parse().ok());
            // What was not kept was not sent either: a keygen without a membership never was.
            ids.extend(id.filter(|_| entry.path().join(MEMBERSHIP_FILE).exists()));
        }
        ids.sort();
        Ok(ids)
    }

    /// The keygen with this id, or the only one.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn keygen(&self, id: Option<KeygenId>) -> Result<KeygenFolder, HomeError> {
        let ids = self.keygens()?;
        let id = match (id, ids.as_slice()) {
            (Some(id), ids) if ids.contains(&id) => id,
            (Some(id), _) => return Err(HomeError::UnknownKeygen(id)),
            (None, []) => return Err(HomeError::NoKeygen),
            (None, [id]) => *id,
            (None, _) => return Err(HomeError::SeveralKeygens(ids)),
        };
        let folder = self.keygen_path(id);
        kept::check_folder(&folder)?;
        kept::sweep(&folder).map_err(|error| KeptError::System(folder.clone(), error))?;
        Ok(KeygenFolder { folder })
    }

    /// The folder of a new keygen.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn begin<T: Serialize>(
        &self,
        id: KeygenId,
        gateway_url: &str,
        asked: &T,
    ) -> Result<KeygenFolder, HomeError> {
        self.sweep_keygens()?;
        let folder = self.keygen_path(id);
        kept::make_folder(&folder)?;
        let session = Session { version: VERSION, gateway_url: gateway_url.to_owned(), asked };
        let path = folder.join(SESSION_FILE);
        kept::write(&path, &strict::to_json(&session)).map_err(|error| KeptError::System(path, error))?;
        Ok(KeygenFolder { folder })
    }

    /// Deletes the folders of keygens that ended before anything of them was kept: nothing of them was sent.
    fn sweep_keygens(&self) -> Result<(), HomeError> {
        let folder = self.folder.join(KEYGENS_FOLDER);
        let system = |error| KeptError::System(folder.clone(), error);
        kept::make_folder(&folder)?;
        for entry in fs::read_dir(&folder).map_err(system)? {
            let path = entry.map_err(system)?.path();
            if path.is_dir() && !path.join(MEMBERSHIP_FILE).exists() {
                fs::remove_dir_all(&path).map_err(system)?;
            }
        }
        Ok(())
    }

    fn keygen_path(&self, id: KeygenId) -> PathBuf {
        self.folder.join(KEYGENS_FOLDER).join(id.to_string())
    }

    /// The newest birth of each enclave that this user has ever seen. Every registration counts from the
    /// moment that it was kept.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn births(&self) -> Result<BTreeMap<EnclaveId, u64>, HomeError> {
        let mut newest = self.kept_births()?;
        for id in self.keygens()? {
            let path = self.keygen_path(id).join(MEMBERSHIP_FILE);
            let Some(bytes) = kept::read_private(&path, MEMBERSHIP_BYTES_MAX)? else { continue };
            let birth = birth_in(&bytes).map_err(|error| HomeError::Membership(path, error))?;
            merge(&mut newest, birth);
        }
        Ok(newest)
    }

    fn kept_births(&self) -> Result<BTreeMap<EnclaveId, u64>, HomeError> {
        let path = self.folder.join(BIRTHS_FILE);
        let Some(bytes) = kept::read_private(&path, BIRTHS_BYTES_MAX)? else { return Ok(BTreeMap::new()) };
        let read: Births = strict::from_json(&bytes, BIRTHS_BYTES_MAX)
            .map_err(|error| HomeError::Damaged(path.clone(), error))?;
        if read.version != VERSION {
            return Err(HomeError::Version(path));
        }
        Ok(read.births.into_iter().map(|birth| (birth.enclave_id, birth.birth_time_ms)).collect())
    }

    /// Keeps births that are news.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn keep_births(&self, seen: impl IntoIterator<Item = (EnclaveId, u64)>) -> Result<(), HomeError> {
        let before = self.kept_births()?;
        let mut newest = before.clone();
        merge(&mut newest, seen);
        if newest == before {
            return Ok(());
        }
        let births =
            newest.into_iter().map(|(enclave_id, birth_time_ms)| Birth { enclave_id, birth_time_ms });
        let births = Births { version: VERSION, births: births.collect() };
        let path = self.folder.join(BIRTHS_FILE);
        kept::write(&path, &strict::to_json(&births)).map_err(|error| KeptError::System(path, error))?;
        Ok(())
    }
}

fn merge(newest: &mut BTreeMap<EnclaveId, u64>, seen: impl IntoIterator<Item = (EnclaveId, u64)>) {
    for (enclave_id, birth_time_ms) in seen {
        let known = newest.entry(enclave_id).or_default();
        *known = birth_time_ms.max(*known);
    }
}

/// The folder of one keygen.
#[derive(Clone, Debug)]
pub struct KeygenFolder {
    folder: PathBuf,
}

impl KeygenFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The file with the membership, and what is in it.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn membership(&self) -> Result<(PathBuf, Zeroizing<Vec<u8>>), HomeError> {
        let path = self.folder.join(MEMBERSHIP_FILE);
        let bytes = kept::read_private(&path, MEMBERSHIP_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| HomeError::Missing(path.clone()))?;
        Ok((path, bytes))
    }

    /// The gateway's URL, and what was asked for when the keygen was begun.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn session<T>(&self) -> Result<(String, T), HomeError>
    where
        T: for<'de> Deserialize<'de> + Serialize,
    {
        let path = self.folder.join(SESSION_FILE);
        let bytes = kept::read_private(&path, SESSION_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| HomeError::Missing(path.clone()))?;
        let session: Session<T> = strict::from_json(&bytes, SESSION_BYTES_MAX)
            .map_err(|error| HomeError::Damaged(path.clone(), error))?;
        if session.version != VERSION {
            return Err(HomeError::Version(path));
        }
        Ok((session.gateway_url, session.asked))
    }

    /// Requests that were kept, and whose acceptance nobody was shown yet.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn requests(&self) -> Result<Vec<SignRequest>, HomeError> {
        let system = |error| KeptError::System(self.folder.clone(), error);
        let mut requests = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(system)? {
            let path = entry.map_err(system)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(id) = name.strip_prefix("request-").and_then(|rest| rest.strip_suffix(".json")) else {
                continue;
            };
            let Some(bytes) = kept::read_private(&path, BODY_BYTES_MAX)? else { continue };
            let request: SignRequest = strict::from_json(&bytes, BODY_BYTES_MAX)
                .map_err(|error| HomeError::Damaged(path.clone(), error))?;
            if request.signing_id.to_string() != id {
                return Err(HomeError::Damaged(path, JsonError::BadId));
            }
            requests.push(request);
        }
        requests.sort_by_key(|request| request.signing_id);
        Ok(requests)
    }

    /// The file of a request.
    pub fn request_path(&self, id: SigningId) -> PathBuf {
        self.folder.join(format!("request-{id}.json"))
    }

    /// Forgets a request whose acceptance was shown.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn forget_request(&self, id: SigningId) -> io::Result<()> {
        match fs::remove_file(self.request_path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => File::open(&self.folder)?.sync_all(),
        }
    }
}
