//! The namespaces, and what changes them from outside.

use std::collections::BTreeMap;

use nvme::identify::{DeallocatedRead, LbaFormat};
use nvme::io::BlockRange;

use super::medium::Medium;
use super::options::NamespaceOptions;
use super::random::Random;

#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) options: NamespaceOptions,
    pub(super) medium: Medium,
}

impl Namespace {
    fn new(options: &NamespaceOptions) -> Namespace {
        let fill = if options.deallocated == DeallocatedRead::Ones { 0xff } else { 0 };
        let block = usize::try_from(options.block_size).unwrap_or(512);
        Namespace { options: options.clone(), medium: Medium::new(block, fill) }
    }

    /// Takes the content of blocks away.
    pub(super) fn deallocate(&mut self, range: BlockRange, volatile: bool, random: &mut Random) {
        let fill = match self.options.deallocated {
            DeallocatedRead::NotReported => None,
            DeallocatedRead::Zeroes => Some(0),
            DeallocatedRead::Ones => Some(0xff),
        };
        let (mut at, end) = (range.slba, range.end().unwrap_or(u64::MAX));
        while let Some(lba) = self.medium.next_allocated(at, end) {
            self.medium.change(lba, volatile, false, random, |block| {
                if let Some(fill) = fill {
                    block.fill(fill);
                }
            });
            at = lba + 1;
        }
    }
}

/// All namespaces, by NSID.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) all: BTreeMap<u32, Namespace>,
    /// The largest NSID that there was from the beginning (NN).
    pub(super) largest: u32,
}

impl Namespaces {
    pub(super) fn new(options: &[NamespaceOptions]) -> Namespaces {
        let valid = |namespace: &&NamespaceOptions| {
            LbaFormat::plain(namespace.block_size).is_some() && namespace.nsid > 0
        };
        let all = options.iter().filter(valid);
        let all: BTreeMap<_, _> =
            all.map(|options| (options.nsid, Namespace::new(options))).collect();
        let largest = all.keys().next_back().map_or(0, |&nsid| nsid.max(32));
        Namespaces { all, largest }
    }

    pub(super) fn add(&mut self, options: &NamespaceOptions) {
        self.all.insert(options.nsid, Namespace::new(options));
        self.largest = self.largest.max(options.nsid);
    }

    pub(super) fn flush_all(&mut self) {
        self.all.values_mut().for_each(|namespace| namespace.medium.flush());
    }
}
