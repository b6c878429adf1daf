//! Lists of namespaces and of controllers.

use crate::codes::{layout, wire};
use zerocopy::little_endian::{U16, U32};

/// Most NSIDs in a list.
pub const NAMESPACE_LIST_MAX: usize = 1024;
/// Most controller identifiers in a list.
pub const CONTROLLER_LIST_MAX: usize = 2047;

wire! {
    /// Namespace List (CNS 02h, 07h, 10h): NSIDs ascending, then zeroes.
    pub struct NamespaceList {
        /// The NSIDs.
        pub nsids: [U32; NAMESPACE_LIST_MAX],
    }
}
layout!(NamespaceList, 4096);

impl NamespaceList {
    /// The first [`NAMESPACE_LIST_MAX`] of `nsids`, which is ascending and has none that the host
    /// did not ask for.
    pub fn new(nsids: impl IntoIterator<Item = u32>) -> Self {
        let mut list = Self::default();
        for (entry, nsid) in list.nsids.iter_mut().zip(nsids) {
            *entry = U32::new(nsid);
        }
        list
    }

    /// The NSIDs up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids.iter().map(|nsid| nsid.get()).take_while(|&nsid| nsid != 0)
    }
}

wire! {
    /// Controller List (CNS 12h, 13h): identifiers ascending.
    pub struct ControllerList {
        /// Number of Identifiers.
        pub count: U16,
        /// The controller identifiers (CNTLID).
        pub cntlids: [U16; CONTROLLER_LIST_MAX],
    }
}
layout!(ControllerList, 4096, count @ 0, cntlids @ 2);

impl ControllerList {
    /// The first [`CONTROLLER_LIST_MAX`] of `cntlids`, which is ascending and has none that the
    /// host did not ask for.
    pub fn new(cntlids: impl IntoIterator<Item = u16>) -> Self {
        let mut list = Self::default();
        let mut count: u16 = 0;
        for (entry, cntlid) in list.cntlids.iter_mut().zip(cntlids) {
            *entry = U16::new(cntlid);
            count = count.saturating_add(1);
        }
        list.count = U16::new(count);
        list
    }

    /// The identifiers, as many as `count` says and there is room for.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.cntlids.iter().take(usize::from(self.count.get())).map(|cntlid| cntlid.get())
    }
}
