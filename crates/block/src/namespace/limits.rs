//! How large commands may be, and how an operation is cut into them.

use super::Identified;
use crate::Kind;

/// The most blocks that the field of a transfer holds.
const FIELD: u64 = 1 << 16;

/// What the way to the controller allows beside what the controller says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of a page: the unit of MDTS (CAP.MPSMIN).
    pub page: u32,
    /// Bytes of a transfer at most.
    pub transfer: u64,
}

/// The most blocks of a command, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    transfer: u64,
    verify: u64,
    zeroes: u64,
    deallocate: u64,
    /// A transfer that crosses a multiple of so many blocks is slower; 0 if none is.
    boundary: u64,
}

impl Limits {
    /// Those of this namespace.
    ///
    /// The limit of transfers is rounded down to a power of two. So parts of an operation are as large as pieces of
    /// memory commonly are, and each has one piece, which a pinned buffer must.
    pub fn new(identified: &Identified, sizes: Sizes) -> Limits {
        let size = u64::from(identified.block_size().unwrap_or(512)).max(512);
        let blocks = |bytes: u64| (bytes / size).clamp(1, FIELD);
        // Nought states nothing, and what no number holds is no limit either.
        let units = |exponent: u8| {
            let factor = 1_u64.checked_shl(exponent.into()).unwrap_or(u64::MAX);
            (exponent > 0).then(|| blocks(u64::from(sizes.page).saturating_mul(factor)))
        };
        let mdts = units(identified.controller.mdts).unwrap_or(FIELD);
        let transfer = mdts.min(blocks(sizes.transfer));
        let transfer = 1 << transfer.ilog2();
        let nvm = &identified.nvm;
        let stated = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let range = stated(u64::from(nvm.dmrsl.get())).min(u64::from(u32::MAX));
        Limits {
            transfer,
            // A controller that states nothing may take its limit for one of these as well; so do kernels.
            verify: units(nvm.vsl).unwrap_or(mdts),
            zeroes: units(nvm.wzsl).unwrap_or(mdts),
            deallocate: range.min(stated(nvm.dmsl.get())),
            boundary: u64::from(identified.namespace.noiob.get()),
        }
    }

    /// The blocks of the first command for an operation of this kind on so many blocks from `lba`. At least one, but for
    /// none, and for a flush, which has no blocks.
    pub fn first(&self, kind: Kind, lba: u64, blocks: u64) -> u32 {
        let limit = match kind {
            Kind::Flush => 0,
            Kind::Read | Kind::Write | Kind::Compare => match lba.checked_rem(self.boundary) {
                Some(beyond) => self.transfer.min(self.boundary - beyond),
                None => self.transfer,
            },
            Kind::Verify => self.verify,
            Kind::WriteZeroes { .. } => self.zeroes,
            Kind::Deallocate => self.deallocate,
        };
        u32::try_from(blocks.min(limit)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use nvme::admin::IDENTIFY_LENGTH;
    use nvme::identify::{IdentifyNamespace, LbaFormat};
    use nvme::{U16, U32, U64};
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 6] = [
        Kind::Read,
        Kind::Write,
        Kind::Compare,
        Kind::Verify,
        Kind::WriteZeroes { deallocate: true },
        Kind::Deallocate,
    ];

    prop_compose! {
        fn identified()(
            large in any::<bool>(),
            [mdts, vsl, wzsl] in prop::array::uniform3(prop_oneof![0_u8..12, any::<u8>()]),
            dmrsl in prop_oneof![Just(0), 1_u32..5000, any::<u32>()],
            dmsl in prop_oneof![Just(0), 1_u64..5000, any::<u64>()],
            noiob in prop_oneof![Just(0), 1_u16..600, any::<u16>()],
        ) -> Identified {
            let mut namespace = Box::<IdentifyNamespace>::default();
            namespace.noiob = U16::new(noiob);
            namespace.lbaf[0] = LbaFormat::plain(if large { 4096 } else { 512 }).unwrap();
            let mut identified = Identified {
                controller: Box::default(),
                nvm: Box::default(),
                namespace,
                descriptors: Box::new([0; IDENTIFY_LENGTH]),
            };
            identified.controller.mdts = mdts;
            (identified.nvm.vsl, identified.nvm.wzsl) = (vsl, wzsl);
            identified.nvm.dmrsl = U32::new(dmrsl);
            identified.nvm.dmsl = U64::new(dmsl);
            identified
        }
    }

    /// Whether one command may be so, block by block and without any of the arithmetic above.
    fn allowed(identified: &Identified, sizes: Sizes, kind: Kind, lba: u64, blocks: u64) -> bool {
        let bytes = u128::from(blocks) * u128::from(identified.block_size().unwrap());
        let within = |exponent: u8| {
            let mut limit = u128::from(sizes.page);
            for _ in 0..exponent.min(64) {
                limit *= 2;
            }
            exponent == 0 || bytes <= limit
        };
        let (nvm, mdts) = (&identified.nvm, identified.controller.mdts);
        match kind {
            Kind::Flush => blocks == 0,
            Kind::Read | Kind::Write | Kind::Compare => {
                let noiob = u64::from(identified.namespace.noiob.get());
                let crosses = (lba + 1..lba + blocks).any(|lba| noiob != 0 && lba % noiob == 0);
                blocks <= 65_536 && within(mdts) && bytes <= u128::from(sizes.transfer) && !crosses
            }
            Kind::Verify => blocks <= 65_536 && within(if nvm.vsl == 0 { mdts } else { nvm.vsl }),
            Kind::WriteZeroes { .. } => {
                blocks <= 65_536 && within(if nvm.wzsl == 0 { mdts } else { nvm.wzsl })
            }
            Kind::Deallocate => {
                let (range, all) = (u64::from(nvm.dmrsl.get()), nvm.dmsl.get());
                u32::try_from(blocks).is_ok()
                    && (range == 0 || blocks <= range)
                    && (all == 0 || blocks <= all)
            }
        }
    }

    proptest! {
        /// The commands of an operation cover its blocks once, in order, each is allowed, and there are no more than needed:
        /// none could take on its successor whole.
        #[test]
        fn every_command_is_allowed(
            identified in identified(),
            page_shift in 12_u32..16,
            transfer in 4096_u64..(2 << 20),
            lba in 0_u64..100_000,
            blocks in 1_u64..3000,
        ) {
            let sizes = Sizes { page: 1 << page_shift, transfer };
            let limits = Limits::new(&identified, sizes);
            for kind in KINDS {
                let (mut at, mut left) = (lba, blocks);
                let mut before = None;
                while left > 0 {
                    let first = u64::from(limits.first(kind, at, left));
                    prop_assert!(first > 0 && first <= left);
                    prop_assert!(allowed(&identified, sizes, kind, at, first), "{:?} {} {}", kind, at, first);
                    if let Some(before) = before.replace(first) {
                        // But for the rounding to a power of two.
                        prop_assert!(!allowed(&identified, sizes, kind, at - before, 2 * (before + first)));
                    }
                    at += first;
                    left -= first;
                }
                prop_assert_eq!(at, lba + blocks);
            }
        }
    }

    #[test]
    fn the_largest_operations_and_none() {
        let mut namespace = Box::<IdentifyNamespace>::default();
        namespace.lbaf[0] = LbaFormat::plain(512).unwrap();
        let identified = Identified {
            controller: Box::default(),
            nvm: Box::default(),
            namespace,
            descriptors: Box::new([0; IDENTIFY_LENGTH]),
        };
        let sizes = Sizes { page: 4096, transfer: 508 << 10 };
        let limits = Limits::new(&identified, sizes);
        assert_eq!(limits.first(Kind::Read, 7, u64::MAX), 512, "256 KiB");
        assert_eq!(limits.first(Kind::Deallocate, 7, u64::MAX), u32::MAX);
        assert_eq!(limits.first(Kind::Verify, 7, u64::MAX), 65_536);
        for kind in KINDS.into_iter().chain([Kind::Flush]) {
            assert_eq!(limits.first(kind, 7, 0), 0);
        }
        assert_eq!(limits.first(Kind::Flush, 7, 100), 0);
        let tiny = Limits::new(&identified, Sizes { page: 4096, transfer: 0 });
        assert_eq!(tiny.first(Kind::Read, 7, 2), 1);
    }
}
