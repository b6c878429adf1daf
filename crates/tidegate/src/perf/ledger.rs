//! Which generation of every chunk was sent and which was acknowledged: what `--verify` judges by.
//!
//! Each job has the part of the table that belongs to its range. With `--verify-state` the table is a file as well, so
//! that a later run can judge what an earlier one left behind when its target was killed. The rule that makes the file
//! right at any moment: "sent" is in it before the command leaves, "acknowledged" goes in after the answer came. One run at
//! a time has it, by a lock (`flock`): two would each overwrite what the other knows. It is written without `fsync`: it outlives this process and the target, not a power cut of this machine.
//!
//! File: one block of 4,096 bytes with a line of JSON that says what it belongs to, then eight bytes per chunk:
//! acknowledged and sent generation, little endian.

use super::pattern::Acceptable;
use crate::failure::WrongInvocation;
use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const HEADER: usize = 4096;
const ENTRY: usize = 8;
/// Largest table that is kept in memory: 2 GiB of entries.
const CHUNKS_MAX: u64 = 1 << 28;

/// What a table belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    /// Identifies the first run that wrote.
    pub(crate) run: u64,
    pub(crate) nsid: u32,
    /// First byte of the namespace.
    pub(crate) offset: u64,
    /// Bytes of a chunk.
    pub(crate) chunk_bytes: u64,
    pub(crate) chunks: u64,
}

/// The generations of one chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Generations {
    acknowledged: u32,
    sent: u32,
}

/// The table of a whole run, from which every job takes its part.
#[derive(Debug)]
pub(crate) struct Ledger {
    extent: Extent,
    table: Vec<Generations>,
    file: Option<Arc<StateFile>>,
}

#[derive(Debug)]
struct StateFile {
    file: File,
    path: PathBuf,
}

impl Ledger {
    /// A new table; with `path` a table that continues the file, or a new file.
    pub(crate) fn open(extent: Extent, path: Option<&Path>) -> anyhow::Result<Self> {
        if extent.chunks > CHUNKS_MAX {
            bail!(WrongInvocation(format!(
                "--verify keeps 8 bytes for each of the {} blocks of --bs: shorten the range with --size",
                extent.chunks
            )));
        }
        let count = usize::try_from(extent.chunks)?;
        let Some(path) = path else {
            return Ok(Self { extent, table: filled(count)?, file: None });
        };
        let context = || format!("--verify-state {}", path.display());
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(context)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another run is using it, wait for its end or name another file",
                    context()
                )
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
        let exists = file.metadata().with_context(context)?.len() > 0;
        let state = StateFile { file, path: path.to_owned() };
        let (extent, table) = if exists {
            state.load(&extent).with_context(context)?
        } else {
            state.create(&extent).with_context(context)?;
            (extent, filled(count)?)
        };
        Ok(Self { extent, table, file: Some(Arc::new(state)) })
    }

    /// The run whose blocks these are.
    pub(crate) fn run(&self) -> u64 {
        self.extent.run
    }

    /// Whether any write was ever sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.iter().all(|entry| entry.sent == 0)
    }

    /// The part of `count` chunks from `first`.
    pub(crate) fn part(&self, first: u64, count: u64) -> anyhow::Result<Part> {
        let range = usize::try_from(first).unwrap_or(usize::MAX)
            ..usize::try_from(first + count).unwrap_or(usize::MAX);
        let own = self.table.get(range).unwrap_or_default();
        let mut table = filled(own.len())?;
        table.copy_from_slice(own);
        Ok(Part { first, busy: filled(own.len())?, table, file: self.file.clone() })
    }
}

impl StateFile {
    fn create(&self, extent: &Extent) -> anyhow::Result<()> {
        let mut header = serde_json::to_vec(extent)?;
        header.resize(HEADER - 1, b' ');
        header.push(b'\n');
        self.file.set_len(u64::try_from(HEADER + ENTRY * usize::try_from(extent.chunks)?)?)?;
        self.file.write_all_at(&header, 0)?;
        Ok(())
    }

    fn load(&self, wanted: &Extent) -> anyhow::Result<(Extent, Vec<Generations>)> {
        let mut header = vec![0; HEADER];
        self.file
            .read_exact_at(&mut header, 0)
            .context("is too short to be a state file: remove it to begin anew")?;
        let found: Extent = serde_json::from_slice(&header)
            .context("is not a state file: remove it to begin anew")?;
        let expected = Extent { run: found.run, ..wanted.clone() };
        if found != expected {
            bail!(WrongInvocation(format!(
                "was made with --nsid {} --offset {} --bs {} --size {}: pass the same, or remove it to begin anew",
                found.nsid,
                found.offset,
                found.chunk_bytes,
                found.chunks.saturating_mul(found.chunk_bytes),
            )));
        }
        let mut bytes = filled(usize::try_from(found.chunks)? * ENTRY)?;
        self.file
            .read_exact_at(&mut bytes, u64::try_from(HEADER)?)
            .context("is cut off: remove it to begin anew")?;
        let table = bytes
            .as_chunks::<ENTRY>()
            .0
            .iter()
            .map(|entry| Generations::from_bytes(*entry))
            .collect();
        Ok((found, table))
    }
}

impl Generations {
    fn to_bytes(self) -> [u8; ENTRY] {
        (u64::from(self.acknowledged) | u64::from(self.sent) << 32).to_le_bytes()
    }

    fn from_bytes(bytes: [u8; ENTRY]) -> Self {
        let [a0, a1, a2, a3, s0, s1, s2, s3] = bytes;
        Self {
            acknowledged: u32::from_le_bytes([a0, a1, a2, a3]),
            sent: u32::from_le_bytes([s0, s1, s2, s3]),
        }
    }
}

/// The part of the table that belongs to a job. Chunks are counted from the job's first.
#[derive(Debug)]
pub(crate) struct Part {
    first: u64,
    table: Vec<Generations>,
    /// Chunks with a command under way: a second one would make the outcome a matter of chance.
    busy: Vec<bool>,
    file: Option<Arc<StateFile>>,
}

impl Part {
    /// Whether no command is under way for this chunk.
    pub(crate) fn is_idle(&self, chunk: u64) -> bool {
        index(chunk).is_some_and(|at| self.busy.get(at) == Some(&false))
    }

    /// Notes that a read is sent.
    pub(crate) fn reading(&mut self, chunk: u64) {
        self.set_busy(chunk, true);
    }

    /// Notes that a read has ended.
    pub(crate) fn read(&mut self, chunk: u64) {
        self.set_busy(chunk, false);
    }

    /// Notes that a write is about to be sent, and says as which generation.
    pub(crate) fn writing(&mut self, chunk: u64) -> anyhow::Result<u32> {
        self.set_busy(chunk, true);
        self.update(chunk, |entry| entry.sent += 1).map(|entry| entry.sent)
    }

    /// Notes that a write was acknowledged.
    pub(crate) fn written(&mut self, chunk: u64) -> anyhow::Result<()> {
        self.set_busy(chunk, false);
        self.update(chunk, |entry| entry.acknowledged = entry.sent).map(drop)
    }

    /// What the chunk may hold.
    pub(crate) fn acceptable(&self, chunk: u64) -> Acceptable {
        let entry = index(chunk).and_then(|at| self.table.get(at)).copied().unwrap_or_default();
        Acceptable { acknowledged: entry.acknowledged, sent: entry.sent }
    }

    /// The first chunk from `from` on that an acknowledged write went to.
    pub(crate) fn next_acknowledged(&self, from: u64) -> Option<u64> {
        let from = index(from)?;
        let at = self.table.get(from..)?.iter().position(|entry| entry.acknowledged > 0)?;
        u64::try_from(from + at).ok()
    }

    fn set_busy(&mut self, chunk: u64, busy: bool) {
        if let Some(place) = index(chunk).and_then(|at| self.busy.get_mut(at)) {
            *place = busy;
        }
    }

    fn update(
        &mut self,
        chunk: u64,
        change: impl FnOnce(&mut Generations),
    ) -> anyhow::Result<Generations> {
        let Some(entry) = index(chunk).and_then(|at| self.table.get_mut(at)) else {
            bail!("chunk {chunk} is outside of the range");
        };
        change(entry);
        if let Some(state) = &self.file {
            let at = HEADER as u64 + (self.first + chunk) * ENTRY as u64;
            state
                .file
                .write_all_at(&entry.to_bytes(), at)
                .with_context(|| format!("--verify-state {}", state.path.display()))?;
        }
        Ok(*entry)
    }
}

/// A table of `count` entries. A range may be so long that there is no memory for it.
fn filled<T: Clone + Default>(count: usize) -> anyhow::Result<Vec<T>> {
    let mut table = Vec::new();
    table.try_reserve_exact(count).map_err(|_| {
        anyhow!(
            "no memory to keep what was written to each block of --bs: shorten the range with --size"
        )
    })?;
    table.resize(count, T::default());
    Ok(table)
}

fn index(chunk: u64) -> Option<usize> {
    usize::try_from(chunk).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(run: u64) -> Extent {
        Extent { run, nsid: 1, offset: 8192, chunk_bytes: 4096, chunks: 10 }
    }

    #[test]
    fn a_later_run_sees_what_was_sent_and_what_was_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        {
            let ledger = Ledger::open(extent(1), Some(&path)).unwrap();
            assert!(ledger.is_empty());
            let mut part = ledger.part(4, 6).unwrap();
            assert_eq!(part.writing(2).unwrap(), 1);
            part.written(2).unwrap();
            assert_eq!(part.writing(2).unwrap(), 2);
            assert!(!part.is_idle(2));
            assert_eq!(part.writing(3).unwrap(), 1);
        }
        let ledger = Ledger::open(extent(99), Some(&path)).unwrap();
        assert_eq!(ledger.run(), 1);
        let part = ledger.part(0, 10).unwrap();
        assert_eq!(part.acceptable(6), Acceptable { acknowledged: 1, sent: 2 });
        assert_eq!(part.acceptable(7), Acceptable { acknowledged: 0, sent: 1 });
        assert_eq!(part.next_acknowledged(0), Some(6));
        assert_eq!(part.next_acknowledged(7), None);
    }

    #[test]
    fn a_file_of_other_blocks_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        Ledger::open(extent(1), Some(&path)).unwrap();
        let other = Extent { chunk_bytes: 512, ..extent(1) };
        let error = format!("{:#}", Ledger::open(other, Some(&path)).unwrap_err());
        assert!(error.contains("--bs 4096"), "{error}");
        std::fs::write(&path, "not a state file").unwrap();
        assert!(Ledger::open(extent(1), Some(&path)).is_err());
    }
}
