//! The limits of the transport. Every one of them bounds something that a peer could otherwise make grow or last without
//! end; a device may have lower ones, which hold then.

use std::time::Duration;

use crate::receives::shared_count;

/// The least depth of a host's queue: NVMe over Fabrics wants 32 entries on the admin queue.
pub const MIN_QUEUE_DEPTH: u16 = 32;

/// Work requests beyond two for each command: reads, and pieces of large or scattered transfers.
const SPARE_SENDS: u32 = 32;

/// Work requests of ours that a queue of so many commands has room for, where its device has.
pub(crate) fn sends(depth: u32) -> u32 {
    depth.saturating_mul(2).saturating_add(SPARE_SENDS)
}

/// Configuration of the transport, the same for every device and on every reactor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaConfig {
    /// Commands on one queue that are granted to a host at most. One that has announced more may send as many all the same, up to
    /// 4,096, as Linux does.
    pub queue_depth: u16,
    /// Bytes of data in the capsule of a command, a multiple of 16.
    pub in_capsule_data: u32,
    /// Receives of a shared receive queue, of which each reactor has one on each device. Fewer than its hosts could fill:
    /// one that finds none waits and tries again.
    pub shared_receives: u32,
    /// Completions that a completion queue is to have room for.
    pub completions: u32,
    /// Queues served by one reactor; more are refused.
    pub max_connections: usize,
    /// How long the request of a host may wait for its listener to admit hosts; beyond that it is refused.
    pub admission: Duration,
    /// How long work of ours may stay with a device without any of it ending.
    pub progress: Duration,
    /// How long that may be where a device's own memory has been lent to it, and somebody waits to write there; and
    /// how long one host's capsules may take nearly all receives that it shares with others.
    pub lease: Duration,
    /// How long a queue that is being ended may take to send what is queued on it.
    pub close: Duration,
    /// How long to wait for a device to say that a queue pair has taken its last receive.
    pub last_receive: Duration,
}

impl Default for RdmaConfig {
    fn default() -> RdmaConfig {
        RdmaConfig {
            queue_depth: 128,
            in_capsule_data: 4096,
            shared_receives: 1024,
            completions: 16 * 1024,
            max_connections: 4096,
            // A host's connection manager gives up after a minute.
            admission: Duration::from_secs(20),
            // A Linux host gives a command up after 30 s.
            progress: Duration::from_secs(30),
            lease: Duration::from_secs(2),
            close: Duration::from_secs(5),
            last_receive: Duration::from_secs(1),
        }
    }
}

impl RdmaConfig {
    /// The same with every value inside what the protocol and the code can work with.
    #[must_use]
    pub fn clamped(mut self) -> RdmaConfig {
        self.queue_depth = self.queue_depth.clamp(MIN_QUEUE_DEPTH, 4096);
        // A receive's data is one buffer of the pool.
        self.in_capsule_data = self.in_capsule_data.min(1024 * 1024) & !15;
        self.shared_receives = self.shared_receives.clamp(64, 64 * 1024);
        self.completions = self.completions.clamp(1024, 1 << 20);
        self
    }

    /// How many of its shared receives the first device gets from a reactor's pool of so many bytes. Those after it may get fewer.
    pub fn receives_from(&self, pool: usize) -> u32 {
        let wanted = usize::try_from(self.shared_receives).unwrap_or(usize::MAX);
        let data = usize::try_from(self.in_capsule_data).unwrap_or(usize::MAX);
        u32::try_from(shared_count(wanted, data, pool, 0)).unwrap_or(u32::MAX)
    }
}
