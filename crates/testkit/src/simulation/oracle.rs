//! What a read may return: slow, simple, and knowing nothing of how the target works.
//!
//! Every block is a register of its own. A write of it has a life: it was *sent* at one moment; from *latest* on it can
//! no longer take effect (it was answered, or the rules say that it is dead); by *effective* it certainly
//! has taken effect (it was answered with success, or a read has seen it); by *durable* it certainly survives a loss
//! of power. A moment that has not come is [`NEVER`].
//!
//! A read between `from` and `to` may return any write that was sent before `to`, unless another one lies wholly
//! between: sent at or after the first's *latest*, and *effective* by `from`. After a loss of power the same with
//! *durable* in place of *effective*.
//!
//! This accepts some histories that are not linearizable (three writes at once may be seen in two orders); what
//! it rejects is wrong.

use std::collections::BTreeMap;

use crate::disk::pattern::Version;

/// A moment that has not come.
pub const NEVER: u64 = u64::MAX;

/// Names a write that has been sent.
pub type WriteId = u64;

#[derive(Debug, Clone)]
struct Record {
    id: WriteId,
    value: Version,
    sent: u64,
    latest: u64,
    effective: u64,
    durable: u64,
    /// A read has returned it, beyond doubt.
    seen: bool,
    /// Which loss of power it may have been the survivor of: one of those with the same number is the truth.
    survivor_of: Option<u64>,
}

/// How a write ended, as far as its host was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With success.
    Done,
    /// With a status by which nothing was written.
    Nothing,
    /// With a status that leaves it open, for each block by itself.
    Open,
}

/// All blocks of all disks.
#[derive(Debug, Default)]
pub struct Oracle {
    disks: Vec<Vec<Vec<Record>>>,
    /// Where each write that has not ended lies.
    places: BTreeMap<WriteId, Vec<(usize, u64)>>,
    next: WriteId,
    /// Reads that are under way, by the moment they were sent.
    reading: BTreeMap<u64, u32>,
    /// When the process ended last.
    ended_at: u64,
}

impl Oracle {
    /// A disk of `blocks` zeroed blocks; its number.
    pub fn add_disk(&mut self, blocks: u64) -> usize {
        let zero = Record {
            id: 0,
            value: 0,
            sent: 0,
            latest: 0,
            effective: 0,
            durable: 0,
            seen: false,
            survivor_of: None,
        };
        self.disks.push((0..blocks).map(|_| vec![zero.clone()]).collect());
        self.disks.len() - 1
    }

    /// A write is sent. `zero`: it writes zeroes, otherwise its own number is the version that it writes.
    pub fn send(&mut self, disk: usize, ranges: &[(u64, u64)], zero: bool, now: u64) -> WriteId {
        self.next += 1;
        let id = self.next;
        let value = if zero { 0 } else { id };
        let mut places = Vec::new();
        for (lba, blocks) in ranges {
            for at in *lba..lba.saturating_add(*blocks) {
                let Some(records) =
                    usize::try_from(at).ok().and_then(|at| self.disks[disk].get_mut(at))
                else {
                    break;
                };
                if records.iter().any(|record| record.id == id) {
                    continue;
                }
                records.push(Record {
                    id,
                    value,
                    sent: now,
                    latest: NEVER,
                    effective: NEVER,
                    durable: NEVER,
                    seen: false,
                    survivor_of: None,
                });
                places.push((disk, at));
            }
        }
        self.places.insert(id, places);
        id
    }

    /// The version that a write with this number writes; asked before it is sent.
    pub fn next_version(&self) -> Version {
        self.next + 1
    }

    /// A write was answered. `durable`: what it wrote survives a loss of power from now on.
    ///
    /// # Errors
    /// It was answered as if it had done nothing, but a read has returned it.
    pub fn ended(
        &mut self,
        id: WriteId,
        how: Ended,
        durable: bool,
        now: u64,
    ) -> Result<(), String> {
        let mut seen = None;
        self.each(id, |at, records, record| {
            let record = &mut records[record];
            record.latest = now;
            match how {
                Ended::Done => {
                    record.effective = record.effective.min(now);
                    if durable {
                        record.durable = record.durable.min(now);
                    }
                }
                Ended::Open => {}
                Ended::Nothing if record.seen => seen = Some(at),
                Ended::Nothing => records.retain(|record| record.id != id),
            }
        });
        self.places.remove(&id);
        match seen {
            None => Ok(()),
            Some((disk, lba)) => Err(format!(
                "write {id} was answered as if it had not been done, but block {lba} of disk {disk} was read with it"
            )),
        }
    }

    /// From now on these writes, which were never answered, can no longer take effect.
    pub fn dead(&mut self, writes: &[WriteId], now: u64) {
        for id in writes {
            self.each(*id, |_, records, record| records[record].latest = now);
            self.places.remove(id);
        }
    }

    fn each(&mut self, id: WriteId, mut change: impl FnMut((usize, u64), &mut Vec<Record>, usize)) {
        let horizon = self.reading.keys().next().copied().unwrap_or(NEVER);
        for (disk, lba) in self.places.get(&id).into_iter().flatten().copied() {
            let records = &mut self.disks[disk][usize::try_from(lba).unwrap()];
            if let Some(at) = records.iter().position(|record| record.id == id) {
                change((disk, lba), records, at);
            }
            forget(records, horizon);
        }
    }

    /// A read is sent.
    pub fn read_sent(&mut self, now: u64) {
        *self.reading.entry(now).or_default() += 1;
    }

    /// A read that was sent at `from` has ended, or will never.
    pub fn read_ended(&mut self, from: u64) {
        if let Some(count) = self.reading.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.reading.remove(&from);
            }
        }
    }

    /// What a read that was sent at `from` may return.
    pub fn allowed(&self, disk: usize, lba: u64, from: u64) -> Vec<Version> {
        let records = &self.disks[disk][usize::try_from(lba).unwrap()];
        let mut values: Vec<_> = candidates(records, from, |record| record.effective)
            .map(|record| record.value)
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// A read between `from` and `to` returned `value`.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn returned(
        &mut self,
        disk: usize,
        lba: u64,
        value: Version,
        (from, to): (u64, u64),
    ) -> Result<(), String> {
        if from < self.ended_at {
            // Its answer was under way when the process ended; what it saw may be gone since.
            return Ok(());
        }
        let records = &mut self.disks[disk][usize::try_from(lba).unwrap()];
        let matching: Vec<(WriteId, Option<u64>)> =
            candidates(records, from, |record| record.effective)
                .filter(|record| record.value == value)
                .map(|record| (record.id, record.survivor_of))
                .collect();
        let Some((first, survivor_of)) = matching.first().copied() else {
            let history: Vec<_> = records
                .iter()
                .map(|r| {
                    format!(
                        "\n    write {} value {} sent {} latest {} effective {} durable {}{}",
                        r.id,
                        r.value,
                        moment(r.sent),
                        moment(r.latest),
                        moment(r.effective),
                        moment(r.durable),
                        if r.survivor_of.is_some() { " survivor" } else { "" }
                    )
                })
                .collect();
            return Err(format!(
                "block {lba} of disk {disk}, read between {from} and {to}, returned version {value}; its writes:{}",
                history.concat()
            ));
        };
        if survivor_of.is_some() && matching.iter().all(|(_, other)| *other == survivor_of) {
            // Now it is known what survived.
            let lost = survivor_of;
            records.retain(|record| record.survivor_of != lost || record.value == value);
        }
        if let [_] = matching[..]
            && let Some(record) = records.iter_mut().find(|record| record.id == first)
        {
            record.seen = true;
            record.effective = record.effective.min(to);
            if let Some(when) = record.survivor_of {
                record.effective = record.effective.min(when);
                record.durable = record.durable.min(when);
            }
        }
        Ok(())
    }

    /// A flush between `from` and `to` succeeded.
    pub fn flushed(&mut self, disk: usize, from: u64, to: u64) {
        let horizon = self.reading.keys().next().copied().unwrap_or(NEVER);
        for records in &mut self.disks[disk] {
            for record in records.iter_mut() {
                // One that a read has seen already may still be under way, and not covered.
                if record.effective <= from && record.latest <= from {
                    record.durable = record.durable.min(to);
                }
            }
            forget(records, horizon);
        }
    }

    /// The process is gone: nothing that was sent before takes effect from now on.
    pub fn killed(&mut self, now: u64) {
        for record in self.disks.iter_mut().flatten().flatten() {
            record.latest = record.latest.min(now);
        }
        self.places.clear();
        self.reading.clear();
        self.ended_at = now;
    }

    /// The power is gone: what was not durable may be lost, block by block.
    pub fn power_lost(&mut self, now: u64) {
        self.killed(now);
        for records in self.disks.iter_mut().flatten() {
            let mut survivors: Vec<Record> =
                candidates(records, now, |record| record.durable).cloned().collect();
            let alone = survivors.len() == 1;
            for record in &mut survivors {
                record.survivor_of = Some(now);
                let known = if alone { now } else { NEVER };
                (record.effective, record.durable) = (known, known);
            }
            *records = survivors;
        }
    }
}

fn moment(at: u64) -> String {
    if at == NEVER { "never".to_owned() } else { at.to_string() }
}

/// Writes that are not overwritten for certain by `from`, as `certain` says when one holds.
fn candidates(
    records: &[Record],
    from: u64,
    certain: impl Fn(&Record) -> u64,
) -> impl Iterator<Item = &Record> {
    // A write overwrites all those that were over when it was sent; so the one sent last of those that
    // hold decides.
    let last = records.iter().filter(|r| certain(r) <= from).map(|r| r.sent).max();
    records.iter().filter(move |r| last.is_none_or(|sent| sent <= r.sent || sent < r.latest))
}

/// Drops writes that neither a read under way, nor a later one, nor a loss of power can bring back.
fn forget(records: &mut Vec<Record>, horizon: u64) {
    let holds = |r: &&Record| r.effective < horizon && r.effective != NEVER && r.durable != NEVER;
    let Some(last) = records.iter().filter(holds).map(|record| record.sent).max() else { return };
    records.retain(|record| last <= record.sent || last < record.latest);
}
