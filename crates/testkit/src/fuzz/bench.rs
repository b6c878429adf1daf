//! A shard with a RAM device on a clock of its own, without a reactor.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use block::ram::{RamDevice, RamOptions};
use memory::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE};
use nvme::Nqn;
use nvme::address::{TransportAddress, TransportType};
use reactor::Instant;
use target::configuration::{
    Configuration, Hosts, Listener, ListenerId, NamespaceOptions, SubsystemOptions,
};
use target::{PortId, Shard, ShardConfig, ShardIndex, ShardLimits};

use crate::peer::{BLOCK, SUBSYSTEM};

/// The port of every queue.
pub(super) const PORT: PortId = PortId(0);
/// Bytes of the device.
pub(super) const DEVICE_SIZE: u64 = 1 << 20;

/// What does not change from one input to the next: making it takes longer than an input does.
struct Standing {
    pool: Pool,
    device: Arc<RamDevice>,
    configuration: Arc<Configuration>,
}

thread_local! {
    static STANDING: Standing = Standing::new();
}

/// The listener's end of every connection.
pub(super) fn listener() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4420))
}

/// The other end.
pub(super) fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], 40_000))
}

impl Standing {
    fn new() -> Standing {
        let arena = Arena::new(ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never });
        let options = RamOptions {
            name: "ram".into(),
            size: DEVICE_SIZE,
            block_size: BLOCK,
            read_only: false,
        };
        let device = Arc::new(RamDevice::new(&options).unwrap());
        let mut change = Configuration::empty().change();
        let address = TransportAddress {
            trtype: TransportType::Tcp,
            traddr: listener().ip(),
            trsvcid: listener().port(),
        };
        change.add_listener(Listener { id: ListenerId(1), address }).unwrap();
        let nqn: Nqn = SUBSYSTEM.parse().unwrap();
        let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
        change.add_subsystem(nqn.clone(), options).unwrap();
        let exported: Arc<RamDevice> = Arc::clone(&device);
        change.add_namespace(&nqn, NamespaceOptions::new(1, exported)).unwrap();
        let configuration = change.build().unwrap();
        Standing { pool: arena.pool(SLAB_SIZE).unwrap(), device, configuration }
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) shard: Shard,
    pub(super) now: Instant,
    pool: Pool,
}

impl Bench {
    pub(super) fn new() -> Bench {
        STANDING.with(|standing| {
            let now = Instant::from_nanos(1_000_000_000);
            let limits = ShardLimits { requests: 64, queues: 8, ..ShardLimits::default() };
            let mut shard = Shard::new(ShardConfig {
                index: ShardIndex(0),
                shards: 1,
                pool: standing.pool.clone(),
                limits,
                now,
            });
            let configuration = Arc::clone(&standing.configuration);
            let errors = shard.configure(configuration, &mut |_| Ok(standing.device.queue()));
            assert!(errors.is_empty());
            Bench { shard, now, pool: standing.pool.clone() }
        })
    }

    /// The shard's part of a turn, at this time; whether it did anything.
    pub(super) fn poll(&mut self) -> bool {
        let mut worked = self.shard.poll(self.now);
        while let Some((_, message)) = self.shard.next_message() {
            self.shard.deliver(message);
            worked = true;
        }
        worked
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// All connections are gone: so is everything that they had.
    pub(super) fn ends_empty(&mut self) {
        for _ in 0..100 {
            if !self.poll() && !self.shard.has_work() {
                break;
            }
            while self.shard.next_action(PORT).is_some() {}
        }
        assert_eq!(self.shard.queues_in_use(), 0, "queues are left");
        assert_eq!(self.shard.requests_in_use(), 0, "requests are left");
        assert_eq!(self.shard.controllers_in_use(), 0, "controllers are left");
        assert_eq!(self.pool.available(), self.pool.capacity(), "memory is left");
        assert_eq!(target::forgotten_commands(), 0, "commands were forgotten");
    }
}
