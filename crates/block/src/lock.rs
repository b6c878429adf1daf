//! Waiting for another process to let go of a medium.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::BlockError;

/// How often it is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Calls `attempt` until it has the medium at `path`, or has not had it for as long as `wait`.
pub(crate) fn wait_for<T>(
    device: &str,
    path: &Path,
    wait: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>, BlockError>,
) -> Result<T, BlockError> {
    let give_up = Instant::now() + wait;
    let mut waited = false;
    loop {
        if let Some(held) = attempt()? {
            return Ok(held);
        }
        if Instant::now() >= give_up {
            let (device, path) = (device.to_owned(), path.display().to_string());
            return Err(BlockError::Locked { device, path });
        }
        if !waited {
            waited = true;
            tracing::info!(
                "device {device}: {} is in use by another process; waiting up to {wait:?} for it",
                path.display(),
            );
        }
        thread::sleep(RETRY);
    }
}
