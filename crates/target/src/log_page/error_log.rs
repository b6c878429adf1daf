//! The last errors of a controller: log page 01h.

use nvme::address::TransportType;
use nvme::log::{ERROR_PARAMETER_NONE, ErrorEntry};
use nvme::{Status, U16, U32, U64};
use zerocopy::IntoBytes;

use super::Window;

/// Errors that are kept: the newest. Identify reports it, less one (ELPE).
pub const ERROR_LOG_ENTRIES: u8 = 64;

const ENTRY_BYTES: usize = size_of::<ErrorEntry>();

/// Bytes of the page.
pub(super) const LENGTH: u64 = ERROR_LOG_ENTRIES as u64 * ENTRY_BYTES as u64;

/// What went wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Queue (QID).
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// How the command was completed.
    pub status: Status,
    /// The namespace it named, or 0.
    pub nsid: u32,
    /// The first logical block that failed, or 0.
    pub lba: u64,
    /// The byte and bit of the command to blame, if one is: see [`ErrorEntry::parameter`].
    pub location: Option<u16>,
    /// How the command came.
    pub transport: TransportType,
}

/// A ring of the newest errors, all its memory taken when the controller is made. It outlives resets of
/// the controller, as the error count must.
#[derive(Clone, Debug)]
pub struct ErrorLog {
    entries: Box<[ErrorEntry]>,
    count: u64,
}

impl Default for ErrorLog {
    fn default() -> Self {
        let entries = vec![ErrorEntry::default(); usize::from(ERROR_LOG_ENTRIES)];
        Self { entries: entries.into(), count: 0 }
    }
}

impl ErrorLog {
    /// Notes a command that failed, in place of the oldest.
    pub fn record(&mut self, failure: &Failure) {
        self.count += 1;
        let entry = ErrorEntry {
            error_count: U64::new(self.count),
            sqid: U16::new(failure.sqid),
            cid: U16::new(failure.cid),
            status_field: U16::new(failure.status.to_wire()),
            parameter_error_location: U16::new(failure.location.unwrap_or(ERROR_PARAMETER_NONE)),
            lba: U64::new(failure.lba),
            nsid: U32::new(failure.nsid),
            trtype: failure.transport.code(),
            ..ErrorEntry::default()
        };
        if let Some(slot) = self.slot(self.count).and_then(|slot| self.entries.get_mut(slot)) {
            *slot = entry;
        }
    }

    /// Errors since the controller was made.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Where the error of this count is or was.
    fn slot(&self, count: u64) -> Option<usize> {
        usize::try_from(count % self.entries.len() as u64).ok()
    }

    /// Fills the page: newest first, then zeroes.
    pub(super) fn write(&self, window: &mut Window<'_>) {
        let counts = (1..=self.count).rev().take(self.entries.len());
        let entries = counts.filter_map(|count| self.entries.get(self.slot(count)?));
        for (position, entry) in (0..).step_by(ENTRY_BYTES).zip(entries) {
            window.put(position, entry.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::FromBytes;

    fn failure(cid: u16) -> Failure {
        Failure {
            sqid: 3,
            cid,
            status: Status::LBA_OUT_OF_RANGE.with_dnr(),
            nsid: 7,
            lba: 1 << 40,
            location: None,
            transport: TransportType::Tcp,
        }
    }

    proptest! {
        #[test]
        fn it_shows_the_newest_first(count in 0_u16..200) {
            let mut log = ErrorLog::default();
            for cid in 0..count {
                log.record(&failure(cid));
            }
            prop_assert_eq!(log.count(), u64::from(count));
            let mut bytes = [0xff; 4096];
            log.write(&mut Window::new(0, &mut bytes));
            let entries = <[ErrorEntry]>::ref_from_bytes(&bytes).unwrap();
            for (age, entry) in (0_u16..64).zip(entries) {
                if age < count {
                    prop_assert_eq!(entry.cid.get(), count - 1 - age);
                    prop_assert_eq!(entry.error_count.get(), u64::from(count - age));
                    prop_assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
                    prop_assert_eq!(entry.parameter_error_location.get(), ERROR_PARAMETER_NONE);
                } else {
                    prop_assert_eq!(entry, &ErrorEntry::default());
                }
            }
        }
    }
}
