//! Resource limits of the process, raised as far as it may raise them by itself.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Raises the soft limits of open files and of locked memory to their hard limits. Nothing depends
/// on it: what does not fit runs with less, and says so where it happens.
pub(crate) fn raise() {
    for (resource, name) in [(Resource::Nofile, "open files"), (Resource::Memlock, "locked memory")]
    {
        let Rlimit { current, maximum } = getrlimit(resource);
        if current == maximum {
            continue;
        }
        match setrlimit(resource, Rlimit { current: maximum, maximum }) {
            Ok(()) => debug!("limit of {name}: {current:?} raised to {maximum:?}"),
            Err(error) => debug!("limit of {name} stays at {current:?}: {error}"),
        }
    }
}
