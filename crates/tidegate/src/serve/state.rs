//! What is served: what the state directory remembers, or the objects of a file, which seed an empty one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use control::objects::Objects;
use control::plane::{self, Creation};
use control::state::{self, State};
use control::store::{Store, StoreError};
use tracing::{info, warn};

use super::{PATIENCE, rpc};
use crate::config::Config;
use crate::failure::Failure;

/// In the place of a directory: nothing is to be kept.
const NONE: &str = "none";

/// What is to be served.
pub(super) struct Seeded {
    /// Where it is kept; None: nowhere.
    pub(super) directory: Option<PathBuf>,
    /// Where changes go.
    pub(super) store: Store,
    /// The objects, their devices opened.
    pub(super) state: State,
    /// Whether it was remembered: then what is missing is waited for. What a file names has to be there.
    pub(super) remembered: bool,
}

/// The directory for the state unless one is named: the system's for root, else the user's.
fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/tidegate");
    }
    let own = std::env::var_os("XDG_STATE_HOME").filter(|own| !own.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    own.unwrap_or_else(|| home().join(".local/state")).join("tidegate")
}

/// The command by which this binary calls [`verify`] in a process of its own.
pub(crate) const VERIFY: &str = "verify-state";

/// Reads all of the state in a directory, or dies of it.
pub(crate) fn verify(directory: &Path) -> Result<(), Failure> {
    Ok(Store::verify(directory, PATIENCE)?)
}

/// Has a process of its own read the state first: what is damaged may make it panic, and is to be one line here.
fn verify_apart(directory: &Path) -> Result<(), Failure> {
    let path = Store::file(directory);
    if fs::metadata(&path).map_or(0, |file| file.len()) == 0 {
        return Ok(());
    }
    let mut verification = Command::new("/proc/self/exe");
    verification.arg(VERIFY).arg(directory).env("RUST_BACKTRACE", "0");
    let ended = verification.stdin(Stdio::null()).stdout(Stdio::null()).output();
    match ended {
        // Whoever cannot start a process may still read the state.
        Err(error) => warn!("{} is not verified: {error}", path.display()),
        Ok(ended) if ended.status.success() => {}
        Ok(ended) => {
            let said = String::from_utf8_lossy(&ended.stderr);
            let own = said.lines().last().and_then(|line| line.strip_prefix("tidegate: "));
            if let Some(own) = own {
                return Err(anyhow::anyhow!("{own}").into());
            }
            let problem = format!("reading it ends with {}", ended.status);
            return Err(StoreError::Damaged { path, problem }.into());
        }
    }
    Ok(())
}

/// Opens the state in `directory` and what is in it; `reseed` replaces that by the objects of the file.
///
/// # Errors
/// The state cannot be had, or a device that the file names.
pub(super) fn open(config: &Config, file: Objects, reseed: bool) -> Result<Seeded, Failure> {
    let directory = config.state.directory.clone().unwrap_or_else(default_directory);
    let store = if directory == Path::new(NONE) {
        if rpc::has_sockets(&config.rpc) {
            warn!("state none: what clients configure is lost when this process ends");
        }
        Store::none()
    } else {
        verify_apart(&directory)?;
        Store::open(&directory, PATIENCE)?
    };
    let kept = Some(directory.clone()).filter(|it| it != Path::new(NONE));
    let stored = store.load()?;
    if reseed || stored.is_empty() {
        let mut state = State::from(file);
        plane::open_devices(&mut state, PATIENCE, Creation::Allowed, Err)?;
        store.replace(&State::default().changes(&state)?)?;
        return Ok(Seeded { directory: kept, store, state, remembered: false });
    }
    let mut state = State::from(state::read(&stored)?);
    info!("state in {}: {} objects", directory.display(), stored.len());
    for change in state.changes(&State::from(file))? {
        // What is not in the file was configured by clients.
        if change.value.is_some() {
            warn!(
                "{} is as the state has it, not as the file; --reseed applies the file",
                change.key
            );
        }
    }
    plane::open_devices(&mut state, PATIENCE, Creation::Never, |error| {
        warn!("{error}; its namespaces are not ready until it can be opened, which is tried again");
        Ok(())
    })?;
    Ok(Seeded { directory: kept, store, state, remembered: true })
}
