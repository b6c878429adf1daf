//! A node that speaks NVMe/RDMA on software devices, and hosts that say anything, all on one thread and on a clock that a test
//! moves: nothing happens but by [`World::step`].
//!
//! ```text
//!   Machine, Queue (a host, raw verbs) == Fabric == Manager, Reactor { shard, RdmaTransport } -- Disk or RAM device
//! ```
//!
//! [`Queue`] knows connections, messages and completions and nothing of NVMe; what it sends is up to the test. [`World::connect`] and
//! [`World::execute`] are what a good host does with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]

mod capsule;
mod nvme_host;
mod queue;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use block::{BlockDevice, BlockError, BlockQueue, Geometry, Properties};
use memory::{Arena, ArenaConfig, Hugepages, Pool};
use nvme::address::TransportType;
use reactor::{
    Handle, Instant, Placement, Reactor, ReactorConfig, RingChoice, SimulatedClock, Workers,
};
use target::{PortId, Shard};
use transport_rdma::{Manager, RdmaConfig, RdmaNetwork, RdmaTransport};
use verbs::software::DeviceOptions;
use verbs::{Device, Fabric, Library};

use crate::Random;
use crate::column;
use crate::disk::Disk;

pub use capsule::{in_capsule, keyed, listed};
pub use nvme_host::{Controller, Refused};
pub use queue::{Machine, Message, Phase, Queue, Wish};

/// The port that hosts ask for.
pub const PORT: u16 = 4420;

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything that chance decides.
    pub seed: u64,
    /// The node's devices; hosts come by a device of their own.
    pub devices: Vec<DeviceOptions>,
    /// The transport's limits.
    pub config: RdmaConfig,
    /// Reactors.
    pub reactors: usize,
    /// Bytes of each reactor's pool.
    pub pool: usize,
    /// Requests of each reactor's shard.
    pub requests: u32,
    /// Where the blocks are.
    pub medium: Medium,
}

/// Where the blocks are.
#[derive(Debug, Clone)]
pub enum Medium {
    /// In memory, which is lent to those who read: so many bytes.
    Ram(u64),
    /// On a disk that takes its time.
    Disk(Arc<Disk>),
}

/// The address of a device of the node.
pub fn node_address(device: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + device as u8])
}

/// The address that hosts have.
pub fn host_address() -> IpAddr {
    IpAddr::from([192, 0, 2, 101])
}

/// The name of a device of the node.
pub fn device_name(device: usize) -> String {
    format!("soft{device}")
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 1,
            devices: vec![DeviceOptions::new(&device_name(0), node_address(0))],
            config: RdmaConfig::default(),
            reactors: 1,
            pool: 32 << 20,
            requests: 1024,
            medium: Medium::Ram(16 << 20),
        }
    }
}

/// A simulated disk as a device of a reactor.
#[derive(Debug)]
struct Opened(Arc<Disk>);

impl BlockDevice for Opened {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn properties(&self) -> &Properties {
        self.0.properties()
    }

    fn open_queue(&self, local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        Ok(Box::new(self.0.queue(&Rc::default(), local.index())))
    }
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// The reactors' time.
    pub clock: SimulatedClock,
    /// The devices of the node and of the hosts.
    pub fabric: Fabric,
    /// The node's own way to its devices.
    pub library: Library,
    /// The transport.
    pub network: RdmaNetwork,
    /// Its manager, which is stepped, too.
    pub manager: Manager,
    /// The reactors.
    pub reactors: Vec<Reactor>,
    /// The shard of each.
    pub shards: Vec<Rc<RefCell<Shard>>>,
    /// The pool of each.
    pub pools: Vec<Pool>,
    /// Where hosts find the node, by device.
    pub addresses: Vec<SocketAddr>,
    /// What chance decides outside of the fabric.
    pub random: Random,
    disk: Option<Arc<Disk>>,
}

impl World {
    /// A node that listens on all of its devices.
    pub fn new(options: &Options) -> World {
        let fabric = Fabric::new(options.seed);
        for device in &options.devices {
            fabric.add_device(device.clone());
        }
        fabric.add_device(DeviceOptions::new("host", host_address()));
        let library = fabric.library();
        let clock = SimulatedClock::new();
        clock.advance(Duration::from_secs(1));
        let ring = RingChoice::Forbidden;
        let config = ReactorConfig { clock: clock.clock(), ring, ..ReactorConfig::default() };
        let configs = vec![config; options.reactors];
        let reactors = Reactor::group(&configs, &Workers::inline()).unwrap();
        let handles: Vec<Handle> = reactors.iter().map(Reactor::handle).collect();
        let capacity = options.pool * options.reactors;
        let arena = Arena::new(ArenaConfig { capacity, hugepages: Hugepages::Never });
        let each = reactors.iter().map(|_| arena.pool(options.pool).unwrap());
        let pools: Vec<Pool> = each.collect();
        let (network, manager) = RdmaNetwork::stepped(
            options.config.clone(),
            library.clone(),
            arena,
            Placement::new(&handles),
            &handles,
        )
        .unwrap();
        let addresses: Vec<_> =
            options.devices.iter().map(|it| SocketAddr::new(it.addresses[0], PORT)).collect();
        let listeners: Vec<_> = addresses.iter().map(|&at| (TransportType::Rdma, at)).collect();
        let (device, disk): (Arc<dyn BlockDevice>, _) = match &options.medium {
            Medium::Ram(size) => (Arc::new(column::ram(*size)), None),
            Medium::Disk(disk) => (Arc::new(Opened(Arc::clone(disk))), Some(Arc::clone(disk))),
        };
        network.lend(device.medium().cloned().into_iter().collect());
        let configuration = column::configuration(&listeners, device);
        let mailboxes = column::mailboxes(options.reactors);
        let mut shards = Vec::new();
        for (reactor, pool) in reactors.iter().zip(&pools) {
            let (local, configuration) = (reactor.local(), configuration.clone());
            let (pool, mailboxes) = (pool.clone(), mailboxes.clone());
            let shard =
                column::furnish(local, pool.clone(), options.requests, configuration, mailboxes);
            RdmaTransport::start(&network, local, shard.clone(), &pool, PortId(0));
            shards.push(shard);
        }
        let random = Random::new(options.seed ^ 0x5eed);
        let mut world = World {
            clock,
            fabric,
            library,
            network,
            manager,
            reactors,
            shards,
            pools,
            addresses,
            random,
            disk,
        };
        for address in world.addresses.clone() {
            assert_eq!(world.bind(address), address);
            world.network.admit(address);
        }
        world.turn();
        world
    }

    /// Listens there; the manager is stepped meanwhile.
    pub fn bind(&mut self, address: SocketAddr) -> SocketAddr {
        let network = self.network.clone();
        thread::scope(|scope| {
            let binding = scope.spawn(move || network.bind(address, Duration::ZERO));
            while !binding.is_finished() {
                self.manager.turn();
            }
            binding.join().unwrap().unwrap()
        })
    }

    /// One turn of the manager and of each reactor; whether anything was done.
    pub fn turn(&mut self) -> bool {
        let mut worked = self.manager.turn();
        for reactor in &mut self.reactors {
            worked |= reactor.turn() == reactor::Progress::Worked;
        }
        worked
    }

    /// Some of what could happen, in any order; a little time passes.
    pub fn step(&mut self) {
        for _ in 0..self.random.below(12) {
            self.fabric.step();
        }
        if self.random.permille(300) {
            self.manager.turn();
        }
        for reactor in 0..self.reactors.len() {
            if self.random.permille(700) {
                self.reactors[reactor].turn();
            }
        }
        let time = self.random.below(20);
        self.pass(Duration::from_micros(time));
    }

    /// Time passes and nothing happens.
    pub fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        if let Some(disk) = &self.disk {
            disk.set_time(self.clock.now().as_nanos());
        }
    }

    /// Steps until nothing happens any more but by time; panics if it goes on for ever.
    pub fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..200_000 {
            let steps = self.fabric.run(64);
            let worked = self.turn();
            idle = if steps > 0 || worked { 0 } else { idle + 1 };
            if idle >= 4 {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.network.total());
    }

    /// Lets so much time pass, and everything happen that it brings.
    pub fn wait(&mut self, time: Duration) {
        let until = self.clock.now() + time;
        while self.clock.now() < until {
            let left = until.since(self.clock.now());
            self.pass(left.min(Duration::from_millis(50)));
            self.settle();
        }
    }

    /// Steps until `attempt` has a result, for at most ten minutes of the world's time.
    pub fn until<T>(&mut self, what: &str, mut attempt: impl FnMut(&mut World) -> Option<T>) -> T {
        let start = self.clock.now();
        let mut steps = 0_u64;
        loop {
            if let Some(result) = attempt(self) {
                return result;
            }
            self.step();
            steps += 1;
            if steps.is_multiple_of(256) {
                // Whatever is waited for wants time, not steps: the more, the longer it has been.
                self.pass((self.clock.now().since(start) / 4).max(Duration::from_millis(20)));
            }
            let waited = self.clock.now().since(start);
            assert!(waited < Duration::from_mins(10), "{what}: {:?}", self.network.total());
        }
    }

    /// The node's own view of a device that hosts may be coming by.
    pub fn device(&self, device: usize) -> Option<Device> {
        let all = self.library.devices().unwrap();
        all.into_iter().find(|it| it.name() == device_name(device))
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Requests, queues and controllers that the shards have.
    pub fn shards_hold(&self) -> [usize; 3] {
        let mut sum = [0; 3];
        for shard in &self.shards {
            let shard = shard.borrow();
            sum[0] += shard.requests_in_use() as usize;
            sum[1] += shard.queues_in_use() as usize;
            sum[2] += shard.controllers_in_use();
        }
        sum
    }

    /// Bytes of all pools that nobody holds.
    pub fn available(&self) -> usize {
        self.pools.iter().map(Pool::available).sum()
    }

    /// Queue pairs that exist, on both sides.
    pub fn queue_pairs(&self) -> usize {
        self.fabric.census()[0]
    }

    /// Waits for the end of everything that hosts had, who are gone by now.
    pub fn empties(&mut self) {
        for _ in 0..400 {
            self.settle();
            if self.network.connections() == 0
                && self.queue_pairs() == 0
                && self.shards_hold() == [0; 3]
            {
                break;
            }
            self.pass(Duration::from_millis(100));
        }
        // A lane that was closed goes a moment later.
        self.wait(Duration::from_secs(1));
        let total = self.network.total();
        assert_eq!(self.network.connections(), 0, "connections are left: {total:?}");
        assert_eq!(self.queue_pairs(), 0, "queue pairs are left: {total:?}");
        assert_eq!(self.shards_hold(), [0; 3], "requests, queues, controllers are left");
        assert_eq!(target::forgotten_commands(), 0, "commands were forgotten");
        assert_eq!(self.fabric.refusals(), 0, "something was destroyed that was in use");
    }
}
