//! Changed Namespace List log page (04h).

use crate::codes::{layout, wire};
use crate::command::NSID_ALL;
use zerocopy::little_endian::U32;

/// Most namespaces that the list names.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

wire! {
    /// NSIDs that changed since the page was last read, ascending, then zeroes. If there are more
    /// than fit: `FFFFFFFFh`, then zeroes.
    pub struct ChangedNamespaces {
        /// The NSIDs.
        pub nsids: [U32; CHANGED_NAMESPACES_MAX],
    }
}
layout!(ChangedNamespaces, 4096);

impl ChangedNamespaces {
    /// The list of `changed`, which is ascending.
    pub fn new(changed: impl IntoIterator<Item = u32>) -> Self {
        let mut list = Self::default();
        let mut entries = list.nsids.iter_mut();
        for nsid in changed {
            match entries.next() {
                Some(entry) => *entry = U32::new(nsid),
                None => return Self::overflowed(),
            }
        }
        list
    }

    /// The list that says: too many to name.
    pub fn overflowed() -> Self {
        let mut list = Self::default();
        if let Some(first) = list.nsids.first_mut() {
            *first = U32::new(NSID_ALL);
        }
        list
    }
}
