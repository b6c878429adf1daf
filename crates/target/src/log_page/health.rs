//! How the controller is doing: log page 02h.
//!
//! What a drive counts over its life is counted here from the start of the process, traffic and busy time from the
//! controller's Connect: nothing is persisted, and the media have counters of their own. So there has been one
//! power cycle, that start, and no unsafe shutdown that is known of.

use std::time::Duration;

use nvme::U128;
use nvme::log::{CriticalWarning, Health};
use zerocopy::IntoBytes;

use super::Window;

/// Bytes of the page.
pub(super) const LENGTH: u64 = size_of::<Health>() as u64;

/// What has been counted, by whoever owns the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that Read, Compare and Verify took from the media.
    pub bytes_read: u128,
    /// Bytes written by hosts.
    pub bytes_written: u128,
    /// Read, Compare and Verify commands completed.
    pub read_commands: u64,
    /// Write commands completed.
    pub write_commands: u64,
    /// Time during which at least one I/O command was outstanding.
    pub busy: Duration,
    /// Time since the daemon started: its "power on".
    pub running: Duration,
    /// Media errors: commands that a device failed.
    pub media_errors: u64,
    /// Entries ever made in the error log.
    pub error_log_entries: u64,
    /// Starts known of: the process's own.
    pub power_cycles: u64,
    /// Starts known of that followed no orderly stop.
    pub unsafe_shutdowns: u64,
    /// Every namespace can only be read, though not all are configured so.
    pub read_only: bool,
    /// A device is gone or failing.
    pub degraded: bool,
}

/// Fills the page. There is no thermometer and no flash that wears: temperature and wear are 0, and all spare
/// is there.
pub(super) fn write(counters: &Counters, window: &mut Window<'_>) {
    let mut warning = CriticalWarning::empty();
    warning.set(CriticalWarning::READ_ONLY, counters.read_only);
    warning.set(CriticalWarning::RELIABILITY, counters.degraded);
    let count = |count: u64| U128::new(u128::from(count));
    let health = Health {
        critical_warning: warning.bits(),
        available_spare: 100,
        data_units_read: Health::data_units(counters.bytes_read),
        data_units_written: Health::data_units(counters.bytes_written),
        host_read_commands: count(counters.read_commands),
        host_write_commands: count(counters.write_commands),
        controller_busy_time: count(counters.busy.as_secs() / 60),
        power_cycles: count(counters.power_cycles),
        power_on_hours: count(counters.running.as_secs() / 3600),
        unsafe_shutdowns: count(counters.unsafe_shutdowns),
        media_errors: count(counters.media_errors),
        error_log_entries: count(counters.error_log_entries),
        ..Health::default()
    };
    window.put(0, health.as_bytes());
}
