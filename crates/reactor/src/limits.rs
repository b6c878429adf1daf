//! The process's own limits, raised as far as it may without asking anybody.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises locked memory (pinned buffers) and open files (connections) from the soft to the hard
/// limit. What is not granted shows where it is missed.
pub(crate) fn raise() {
    for resource in [Resource::Memlock, Resource::Nofile] {
        let limit = getrlimit(resource);
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}
