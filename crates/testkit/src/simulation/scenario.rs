//! What kind of world a seed makes: how many of everything, how slow, how bad the weather.

use std::sync::Arc;

use block::{Deallocation, Geometry, Properties};

use crate::Random;
use crate::disk::{Disk, Weather};

/// A microsecond in nanoseconds.
pub const US: u64 = 1_000;
/// A millisecond.
pub const MS: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1_000_000_000;

/// A range of durations in nanoseconds, drawn so that short ones are the rule.
pub type Delay = (u64, u64);

/// One kind of world.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Shards: mostly two or three.
    pub shards: usize,
    /// Hosts; some have one name together.
    pub hosts: usize,
    /// Subsystems, each with a few namespaces.
    pub subsystems: usize,
    /// Disks, each behind one namespace.
    pub disks: usize,
    /// Blocks of each disk.
    pub blocks: u64,
    /// How long things are being done to the target, before all comes to rest.
    pub duration: u64,
    /// Events after which a busy world has seen enough, however short its life has been.
    pub events: u64,
    /// Bytes of each pool that somebody else has taken.
    pub pool_taken: usize,
    /// Request slots of a shard.
    pub requests: u32,
    /// Queues of a shard.
    pub queues: u32,
    /// Bytes of one command.
    pub max_transfer: u32,
    /// How long a message is under way between two shards.
    pub mail: Delay,
    /// Messages that fit in one mailbox.
    pub mailbox: usize,
    /// How long a shard's turn takes.
    pub turn: Delay,
    /// How long bytes are under way.
    pub wire: Delay,
    /// How long a disk takes.
    pub disk: Delay,
    /// Operations in a thousand that fail at a disk.
    pub disk_failures: u64,
    /// Operations in a thousand that take ten to a hundred times as long.
    pub disk_stragglers: u64,
    /// Cancellations in a thousand that a disk agrees to.
    pub disk_cancels: u64,
    /// How often a disk hangs for a while.
    pub hangs: u64,
    /// Losses of power or of the process.
    pub ends: u64,
    /// Changes of the configuration, pauses and the like.
    pub changes: u64,
    /// Of the operator's steps, in a thousand, those that change what a disk may do per second.
    pub limits: u64,
    /// Hosts' misfortunes in a thousand of their steps: crashes, resets, disconnects.
    pub misfortunes: u64,
    /// Nonsense that hosts send, in a thousand commands.
    pub nonsense: u64,
    /// Data that arrives damaged, in a thousand transfers.
    pub damage: u64,
    /// Commands in a thousand that their host aborts.
    pub aborts: u64,
    /// The end is a shutdown with commands in flight.
    pub shutdown: bool,
}

impl Scenario {
    /// Draws one.
    pub fn draw(random: &mut Random) -> Self {
        // A third of the worlds is calm, so that what happens there has no excuse.
        let calm = random.permille(330);
        let rough = |random: &mut Random, chance: u64, low: u64, high: u64| {
            if !calm && random.permille(chance) { random.spread(low, high) } else { 0 }
        };
        let max_transfer = 4096_u32 << random.below(6);
        let disk_top = *random.pick(&[MS, 5 * MS, 40 * MS]);
        let subsystems = usize::try_from(random.between(1, 3)).unwrap();
        Self {
            shards: usize::try_from(*random.pick(&[1, 2, 2, 2, 2, 3, 3, 4])).unwrap(),
            hosts: usize::try_from(random.between(1, 5)).unwrap(),
            subsystems,
            disks: subsystems * usize::try_from(random.between(1, 3)).unwrap(),
            blocks: random.spread(8, 128),
            duration: random.between(SECOND, 6 * SECOND),
            events: random.spread(2_000, 40_000),
            pool_taken: match random.below(3) {
                0 => 0,
                1 => 1 << 20,
                _ => (2 << 20) - (512 << 10),
            },
            requests: *random.pick(&[64, 96, 128, 512]),
            queues: *random.pick(&[24, 64, 64, 256]),
            max_transfer,
            mail: (US, *random.pick(&[10 * US, MS, 30 * MS])),
            mailbox: usize::try_from(random.spread(1, 64)).unwrap(),
            turn: (US, *random.pick(&[20 * US, 200 * US, 10 * MS])),
            wire: (5 * US, *random.pick(&[50 * US, MS, 20 * MS])),
            disk: (10 * US, disk_top),
            disk_failures: rough(random, 400, 2, 100),
            disk_stragglers: rough(random, 500, 2, 60),
            disk_cancels: *random.pick(&[0, 300, 1000]),
            hangs: rough(random, 400, 1, 4),
            ends: rough(random, 400, 1, 3),
            changes: rough(random, 600, 1, 40),
            misfortunes: rough(random, 700, 2, 40),
            nonsense: rough(random, 500, 5, 100),
            damage: rough(random, 300, 5, 50),
            aborts: rough(random, 500, 5, 60),
            shutdown: random.permille(300),
            limits: *random.pick(&[0, 0, 50, 300]),
        }
    }

    /// Draws one of its disks.
    pub fn disk(&self, name: String, random: &mut Random) -> Arc<Disk> {
        let block_size = *random.pick(&[512, 512, 512, 4096]);
        let properties = Properties {
            read_only: false,
            volatile_write_cache: random.permille(700),
            deallocation: random
                .permille(700)
                .then(|| Deallocation { reads_zero: random.permille(700), granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: "simulated".to_owned(),
        };
        let weather = Weather {
            latency: self.disk,
            failures: self.disk_failures,
            stragglers: self.disk_stragglers,
            cancels: self.disk_cancels,
            ..Weather::default()
        };
        let geometry = Geometry { block_size, blocks: self.blocks, generation: 0 };
        Disk::new(name, geometry, properties, weather, random.split())
    }

    /// Whether a command may only fail for a reason of its own.
    pub fn is_calm(&self) -> bool {
        self.disk_failures == 0
            && self.hangs == 0
            && self.ends == 0
            && self.changes == 0
            && self.misfortunes == 0
            && self.damage == 0
            && self.aborts == 0
    }
}
