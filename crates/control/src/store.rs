//! What survives: every object under its key, in one file of the state directory.
//!
//! A commit is all or nothing and on the medium when it returns, whatever becomes of the process or the machine
//! afterwards. One that fails (a full disk, a read-only directory) has changed nothing. Used from threads that may
//! block; redb locks its file, so two daemons cannot share a directory.
//!
//! redb refuses everything after a failure of the medium until the file has been opened anew, and whether the commit
//! that failed is on the medium is not known then. So the next commit opens it again, and puts what the failed one
//! would have changed back to what it was, in the same transaction as its own changes.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

/// The objects: their JSON by their key, `device/NAME` and the like.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// What the file is: its format's version.
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
/// The version of the format that is written. A newer one is refused: what it means is not known here.
const FORMAT: u64 = 1;
/// Between two attempts to open what another process has open.
const RETRY: Duration = Duration::from_millis(50);
/// The file in the state directory.
const FILE: &str = "state.redb";

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made.
    #[error("state directory {}: cannot create it: {problem}; choose another with --state", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        problem: std::io::Error,
    },
    /// Another daemon has it.
    #[error("state {} is in use by another process: stop it, or choose another directory with --state", .0.display())]
    InUse(PathBuf),
    /// A newer version wrote it.
    #[error("state {} has format {found}, this version knows {FORMAT}: install the version that wrote it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// What is in it makes no sense.
    #[error("state {} is damaged ({problem}): move it away, and load what save_config has saved", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that was found.
        problem: String,
    },
    /// It cannot be read or written.
    #[error("state {}: {problem}; it has to be writable and to have room", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        problem: Box<redb::Error>,
    },
}

/// One object that changes: its new JSON, or None if it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its key.
    pub key: String,
    /// Its JSON.
    pub value: Option<Vec<u8>>,
}

/// The state directory's file, or nothing if nothing is to be kept.
#[derive(Debug)]
pub struct Store {
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    medium: Mutex<Medium>,
}

#[derive(Debug, Default)]
struct Medium {
    /// None after a failure.
    database: Option<Database>,
    /// What failed commits would have changed, as it was before the first of them.
    doubtful: BTreeMap<String, Option<Vec<u8>>>,
}

impl Store {
    /// Keeps nothing.
    pub fn none() -> Self {
        Self { kept: None }
    }

    /// Opens the state in `directory`, which is made if it is not there. One that is in use is waited for: an
    /// earlier daemon that was killed may still hold it.
    ///
    /// # Errors
    /// [`StoreError`], naming the file.
    pub fn open(directory: &Path, patience: Duration) -> Result<Self, StoreError> {
        let until = Instant::now() + patience;
        loop {
            match Self::open_now(directory) {
                Err(StoreError::InUse(_)) if Instant::now() < until => thread::sleep(RETRY),
                opened => return opened,
            }
        }
    }

    /// Reads all of the state in `directory` and compares its checksums.
    ///
    /// Where a file is damaged, redb may not only refuse it but panic: to be called in a process of its own, before
    /// [`Store::open`] in one that is to go on.
    ///
    /// # Errors
    /// [`StoreError`], naming the file.
    pub fn verify(directory: &Path, patience: Duration) -> Result<(), StoreError> {
        let Some(Kept { path, medium }) = Self::open(directory, patience)?.kept else {
            return Ok(());
        };
        let mut medium = medium.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &mut medium.database {
            database.check_integrity().map_err(|error| wrong(&path, error))?;
            load(database).map_err(|error| wrong(&path, error))?;
        }
        Ok(())
    }

    /// Where the state in `directory` is.
    pub fn file(directory: &Path) -> PathBuf {
        directory.join(FILE)
    }

    fn open_now(directory: &Path) -> Result<Self, StoreError> {
        let made = fs::create_dir_all(directory);
        made.map_err(|problem| StoreError::Directory { path: directory.to_owned(), problem })?;
        let path = Self::file(directory);
        let database = open(&path)?;
        check_format(&path, &database)?;
        let medium = Medium { database: Some(database), ..Medium::default() };
        Ok(Self { kept: Some(Kept { path, medium: Mutex::new(medium) }) })
    }

    /// Every object.
    ///
    /// # Errors
    /// [`StoreError::Database`]
    pub fn load(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let Some(kept) = &self.kept else { return Ok(Vec::new()) };
        kept.medium(|database, _| load(database))
    }

    /// Makes these the only objects there are, and returns when that is on the medium.
    ///
    /// # Errors
    /// [`StoreError::Database`]; nothing has changed then.
    pub fn replace(&self, objects: &[Change]) -> Result<(), StoreError> {
        let before = self.load()?;
        let gone = before
            .iter()
            .filter(|(key, _)| objects.iter().all(|object| object.key != *key))
            .map(|(key, _)| Change { key: key.clone(), value: None });
        let new = objects.iter().filter(|object| {
            let same = |(key, value): &(String, Vec<u8>)| {
                *key == object.key && Some(value) == object.value.as_ref()
            };
            !before.iter().any(same)
        });
        self.commit(&gone.chain(new.cloned()).collect::<Vec<_>>())
    }

    /// Applies the changes, all or none, and returns when they are on the medium.
    ///
    /// # Errors
    /// [`StoreError::Database`]; nothing has changed then.
    pub fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        match &self.kept {
            Some(kept) if !changes.is_empty() => {
                kept.medium(|database, doubtful| commit(database, doubtful, changes))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    let path = path.to_owned();
    match error.into() {
        redb::Error::Corrupted(problem) => StoreError::Damaged { path, problem },
        redb::Error::Io(problem) if problem.kind() == ErrorKind::InvalidData => {
            StoreError::Damaged { path, problem: problem.to_string() }
        }
        problem => StoreError::Database { path, problem: Box::new(problem) },
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    // What is configured is nobody else's to read; redb itself would leave that to the umask.
    let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    made.map_err(|error| wrong(path, redb::Error::Io(error)))?;
    match Database::create(path) {
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse(path.to_owned())),
        opened => opened.map_err(|error| wrong(path, error)),
    }
}

impl Kept {
    /// Does something with the database, which is opened again if it has failed, and closed if it fails.
    fn medium<T>(
        &self,
        act: impl FnOnce(&Database, &mut BTreeMap<String, Option<Vec<u8>>>) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        let Medium { database, doubtful } = &mut *medium;
        let open = match database.take() {
            Some(open) => open,
            None => open(&self.path)?,
        };
        let done = act(&open, doubtful).map_err(|error| wrong(&self.path, error))?;
        *database = Some(open);
        Ok(done)
    }
}

fn check_format(path: &Path, database: &Database) -> Result<(), StoreError> {
    let found = format(database).map_err(|error| wrong(path, error))?;
    if found > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found });
    }
    Ok(())
}

/// The format of the file, which a new one is given.
fn format(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let found = {
        let mut about = transaction.open_table(ABOUT)?;
        let found = about.get("format")?.map(|value| value.value());
        if found.is_none() {
            about.insert("format", FORMAT)?;
        }
        transaction.open_table(OBJECTS)?;
        found.unwrap_or(FORMAT)
    };
    transaction.commit()?;
    Ok(found)
}

fn load(database: &Database) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(OBJECTS)?;
    let mut objects = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        objects.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(objects)
}

fn commit(
    database: &Database,
    doubtful: &mut BTreeMap<String, Option<Vec<u8>>>,
    changes: &[Change],
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut before = Vec::new();
    {
        let mut table = transaction.open_table(OBJECTS)?;
        for (key, value) in &*doubtful {
            match value {
                Some(value) => drop(table.insert(key.as_str(), value.as_slice())?),
                None => drop(table.remove(key.as_str())?),
            }
        }
        for Change { key, value } in changes {
            let old = match value {
                Some(value) => table.insert(key.as_str(), value.as_slice())?,
                None => table.remove(key.as_str())?,
            };
            before.push((key, old.map(|old| old.value().to_vec())));
        }
    }
    for (key, old) in before {
        doubtful.entry(key.clone()).or_insert(old);
    }
    transaction.commit()?;
    doubtful.clear();
    Ok(())
}
