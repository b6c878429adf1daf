//! What sysfs says of disks.

use std::fs;
use std::path::PathBuf;

/// What sysfs says of a block device's queue; every item may be missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskFacts {
    /// Whether it has a volatile write cache.
    pub(crate) volatile_cache: Option<bool>,
    /// Whether it can zero, and thereby free, a range by itself.
    pub(crate) write_zeroes: bool,
    /// Bytes it deallocates at a time.
    pub(crate) discard_granularity: Option<u32>,
    /// Bytes it likes an I/O to be.
    pub(crate) optimal_io: Option<u32>,
    /// The most bytes of a command.
    pub(crate) max_bytes: Option<u64>,
    /// The most pieces of memory, at worst pages, of a command.
    pub(crate) max_segments: Option<u64>,
    /// Whether it can be asked for completions.
    pub(crate) polls: bool,
}

impl DiskFacts {
    pub(crate) fn read(major: u32, minor: u32) -> DiskFacts {
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition has no queue of its own, but lies inside its disk's directory.
        let queues = [device.join("queue"), device.join("../queue")];
        let item = |name: &str| {
            let text = queues.iter().find_map(|queue| fs::read_to_string(queue.join(name)).ok());
            text.map(|text| text.trim().to_owned())
        };
        let number = |name: &str| item(name)?.parse::<u64>().ok();
        let size = |name: &str| u32::try_from(number(name)?).ok().filter(|&size| size > 0);
        DiskFacts {
            volatile_cache: item("write_cache").map(|mode| mode != "write through"),
            write_zeroes: number("write_zeroes_max_bytes").is_some_and(|max| max > 0),
            discard_granularity: size("discard_granularity"),
            optimal_io: size("optimal_io_size"),
            max_bytes: number("max_hw_sectors_kb").map(|kib| kib.saturating_mul(1024)),
            max_segments: number("max_segments"),
            polls: number("io_poll").is_some_and(|polls| polls > 0),
        }
    }
}
