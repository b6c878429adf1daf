//! The simulated disk: every promise that a block device makes is kept to the letter and no further.
//!
//! * An operation takes effect block by block, at moments of its own between submission and completion, in
//!   no order with others. It reads the submitter's memory at those moments, not before.
//! * What was written is in a cache that a loss of power empties, see `medium.rs`. A flush covers what had been
//!   completed before it was submitted; FUA covers its own blocks.
//! * An operation that failed may have happened in part. One that was cancelled has not. When a process ends,
//!   what its queues held happens or does not, in part or in whole, and never later.
//!
//! The disk also watches its user: memory that changes while it is lent for a write, data that is no
//! [`pattern`], memory that does not fit the range and a token used twice are panics.
//!
//! The clock is its user's, so the same seed and the same calls at the same times give the same results. The medium is
//! shared by the queues of all threads; operations are their queue's, since memory is not `Send`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc
)]

mod medium;
pub mod pattern;
mod queue;
#[cfg(test)]
mod tests;

pub use queue::{Agenda, DiskQueue};

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use block::{BlockDevice, BlockError, BlockQueue, Geometry, Properties};

use crate::Random;
use medium::Medium;
use pattern::Version;

/// How a disk behaves at present. Chances are in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// The shortest and the longest time an operation takes, in nanoseconds, unless it straggles.
    pub latency: (u64, u64),
    /// Operations that fail.
    pub failures: u64,
    /// Operations that take ten to a hundred times as long.
    pub stragglers: u64,
    /// Cancellations that it agrees to.
    pub cancels: u64,
    /// Nothing is done any more.
    pub hangs: bool,
    /// It has been pulled out: what is submitted fails.
    pub gone: bool,
}

#[derive(Debug)]
struct State {
    now: u64,
    random: Random,
    weather: Weather,
    geometry: Geometry,
    medium: Medium,
    /// Operations begun, ever.
    begun: u64,
    /// Operations taken and not completed, of all queues.
    outstanding: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    name: String,
    properties: Properties,
    state: Mutex<State>,
}

impl Disk {
    /// A disk of zeroed blocks; all its chances come from `random`.
    pub fn new(
        name: String,
        geometry: Geometry,
        properties: Properties,
        weather: Weather,
        random: Random,
    ) -> Arc<Self> {
        let medium = Medium::new(geometry.blocks, properties.volatile_write_cache);
        let state = State { now: 0, random, weather, geometry, medium, begun: 0, outstanding: 0 };
        Arc::new(Self { name, properties, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether this is the one.
    pub fn name_is(&self, device: &dyn BlockDevice) -> bool {
        self.name == device.name()
    }

    /// The time is now.
    pub fn set_time(&self, now: u64) {
        self.state().now = now;
    }

    /// Whether it stops doing anything.
    pub fn hang(&self, hangs: bool) {
        self.state().weather.hangs = hangs;
    }

    /// Whether it has been pulled out.
    pub fn pull(&self, gone: bool) {
        self.state().weather.gone = gone;
    }

    /// From now on nothing fails and nothing straggles.
    pub fn calm(&self) {
        let weather = &mut self.state().weather;
        *weather =
            Weather { latency: weather.latency, cancels: weather.cancels, ..Weather::default() };
    }

    /// Shows only so many of its blocks; the rest comes back when it grows.
    pub fn resize(&self, blocks: u64) {
        let geometry = &mut self.state().geometry;
        geometry.blocks = blocks;
        geometry.generation += 1;
    }

    /// Blocks that it was made with.
    pub fn whole_size(&self) -> u64 {
        self.state().medium.size()
    }

    /// Operations that its queues hold.
    pub fn outstanding(&self) -> u64 {
        self.state().outstanding
    }

    /// The power is gone, and with it what was only in the cache, as chance has it. The queues are gone already.
    pub fn cut(&self) {
        let State { random, medium, .. } = &mut *self.state();
        medium.cut(random);
    }

    /// What a block holds now; for reports.
    pub fn version(&self, lba: u64) -> Version {
        self.state().medium.version(lba)
    }

    /// A queue of this disk for this shard.
    pub fn queue(self: &Arc<Self>, agenda: &Rc<RefCell<Agenda>>, shard: usize) -> DiskQueue {
        DiskQueue::new(Arc::clone(self), Rc::clone(agenda), shard)
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.state().geometry
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn open_queue(&self, _local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let problem = "a simulated disk is opened by its world".to_owned();
        Err(BlockError::Unsuitable { device: self.name.clone(), problem })
    }
}
