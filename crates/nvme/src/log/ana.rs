//! Asymmetric Namespace Access log page (0Ch): a header, then one descriptor per group, each
//! followed by the NSIDs of its namespaces.

use crate::codes::{codes, layout, wire};
use zerocopy::little_endian::{U16, U32, U64};

codes! {
    /// Asymmetric Namespace Access State.
    pub enum AnaState {
        Optimized = 0x01, "optimized";
        NonOptimized = 0x02, "non-optimized";
        Inaccessible = 0x03, "inaccessible";
        PersistentLoss = 0x04, "persistent-loss";
        Change = 0x0f, "change";
    }
}

/// Return Groups Only (RGO), bit 0 of LSP: descriptors without NSIDs.
pub const ANA_RETURN_GROUPS_ONLY: u8 = 1;

wire! {
    /// What the log begins with.
    pub struct AnaHeader {
        /// Change Count.
        pub chgcnt: U64,
        /// Number of ANA Group Descriptors.
        pub ngrps: U16,
        /// Reserved.
        pub reserved10: [u8; 6],
    }
}
layout!(AnaHeader, 16, chgcnt @ 0, ngrps @ 8);

wire! {
    /// A group descriptor; `nnsids` NSIDs of four bytes follow it.
    pub struct AnaGroup {
        /// ANA Group ID.
        pub grpid: U32,
        /// Number of NSID Values.
        pub nnsids: U32,
        /// Change Count.
        pub chgcnt: U64,
        /// Asymmetric Namespace Access State, bits 3:0; see [`AnaState`].
        pub state: u8,
        /// Reserved.
        pub reserved17: [u8; 15],
    }
}
layout!(AnaGroup, 32, grpid @ 0, nnsids @ 4, chgcnt @ 8, state @ 16);
