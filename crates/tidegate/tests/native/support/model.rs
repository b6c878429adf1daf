//! The oracle: what every block of a namespace must read as.
//!
//! A block holds a version: 0 is zeroes, any other number is a content that its namespace, address and
//! version determine. So a lost, stale, torn or misplaced block reads as none that is acceptable.

use std::collections::HashMap;
use std::ops::Range;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) nsid: u32,
    pub(crate) block_size: usize,
    /// By address: what was acknowledged last.
    versions: Vec<u32>,
    /// What may stand in a block instead, because a change of it was never answered.
    unanswered: HashMap<u64, Vec<u32>>,
    next_version: u32,
    /// What commands are working on; whether they change it.
    busy: Vec<(Range<u64>, bool)>,
}

impl Model {
    /// A namespace that is all zeroes.
    pub(crate) fn new(nsid: u32, block_size: usize, blocks: u64) -> Model {
        Model {
            nsid,
            block_size,
            versions: vec![0; usize::try_from(blocks).unwrap()],
            unanswered: HashMap::new(),
            next_version: 1,
            busy: Vec::new(),
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.versions.len() as u64
    }

    /// A version that was never used.
    pub(crate) fn new_version(&mut self) -> u32 {
        self.next_version += 1;
        self.next_version - 1
    }

    /// Reserves the range for a command, unless one is working on part of it with which the outcome
    /// would be anyone's guess.
    pub(crate) fn begin(&mut self, range: &Range<u64>, changes: bool) -> bool {
        let clash = self.busy.iter().any(|(other, other_changes)| {
            (changes || *other_changes) && range.start < other.end && other.start < range.end
        });
        if !clash {
            self.busy.push((range.clone(), changes));
        }
        !clash
    }

    /// The command on this range has been answered.
    pub(crate) fn end(&mut self, range: &Range<u64>) {
        let at = self.busy.iter().position(|(busy, _)| busy == range).unwrap();
        self.busy.swap_remove(at);
    }

    /// The command on this range, which was to leave `version` there, will never be answered.
    pub(crate) fn lose(&mut self, range: &Range<u64>, version: Option<u32>) {
        self.end(range);
        for lba in range.clone() {
            self.unanswered.entry(lba).or_default().extend(version);
        }
    }

    /// The range holds this version now.
    pub(crate) fn put(&mut self, range: &Range<u64>, version: u32) {
        for lba in range.clone() {
            self.versions[lba as usize] = version;
            self.unanswered.remove(&lba);
        }
    }

    /// Fills in what the range holds.
    pub(crate) fn expected(&self, range: &Range<u64>, data: &mut [u8]) {
        for (lba, block) in range.clone().zip(data.chunks_exact_mut(self.block_size)) {
            content(self.nsid, lba, self.versions[lba as usize], block);
        }
    }

    /// Fills in a version of the range.
    pub(crate) fn fill(&self, range: &Range<u64>, version: u32, data: &mut [u8]) {
        for (lba, block) in range.clone().zip(data.chunks_exact_mut(self.block_size)) {
            content(self.nsid, lba, version, block);
        }
    }

    /// Checks what was read; of what was unanswered, it learns what came of it.
    pub(crate) fn check(&mut self, range: &Range<u64>, data: &[u8]) {
        assert_eq!(data.len(), (range.end - range.start) as usize * self.block_size);
        let mut scratch = vec![0; self.block_size];
        for (lba, block) in range.clone().zip(data.chunks_exact(self.block_size)) {
            let version = self.versions[lba as usize];
            content(self.nsid, lba, version, &mut scratch);
            if block == scratch {
                self.unanswered.remove(&lba);
                continue;
            }
            let others = self.unanswered.remove(&lba).unwrap_or_default();
            let found = others.iter().copied().find(|&other| {
                content(self.nsid, lba, other, &mut scratch);
                block == scratch
            });
            let Some(found) = found else {
                panic!(
                    "namespace {} block {lba}: {}, not version {version} or one of {others:?}",
                    self.nsid,
                    self.recognise(lba, block)
                );
            };
            self.versions[lba as usize] = found;
        }
    }

    /// Says what a wrong block is.
    fn recognise(&self, lba: u64, block: &[u8]) -> String {
        let mut scratch = vec![0; self.block_size];
        if block.iter().all(|&byte| byte == 0) {
            return "zeroes".to_owned();
        }
        let nearby = lba.saturating_sub(2048)..(lba + 2048).min(self.blocks());
        for at in std::iter::once(lba).chain(nearby) {
            for version in 1..self.next_version {
                content(self.nsid, at, version, &mut scratch[..8]);
                if block[..8] == scratch[..8] {
                    content(self.nsid, at, version, &mut scratch);
                    let whole = if block == scratch { "" } else { " in its first bytes only" };
                    return format!("version {version} of block {at}{whole}");
                }
            }
        }
        format!("unknown bytes {:02x?}...", &block[..16])
    }
}

/// The content of a version of a block, or its first bytes if `data` is shorter.
fn content(nsid: u32, lba: u64, version: u32, data: &mut [u8]) {
    if version == 0 {
        data.fill(0);
        return;
    }
    let seed =
        testkit::Random::new(u64::from(nsid) << 56 ^ u64::from(version) << 32 ^ lba).number();
    for (index, word) in data.chunks_exact_mut(8).enumerate() {
        let number = seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&number.to_le_bytes());
    }
}
