//! What a world is like, drawn from its seed.

use block::{Deallocation, Geometry, Properties};
use testkit::Random;
use testkit::disk::{Disk, Weather};
use testkit::rdma::{Medium, Options, device_name, node_address};
use transport_rdma::RdmaConfig;
use verbs::software::DeviceOptions;

/// Blocks of the disk.
pub(crate) const BLOCKS: u64 = 6144;
pub(crate) const BLOCK: usize = 512;

#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) options: Options,
    /// Mishaps in a thousand steps.
    pub(crate) mishaps: u64,
    /// Steps before everybody rests.
    pub(crate) steps: u64,
    pub(crate) hosts: usize,
    /// The most I/O queues of a host.
    pub(crate) queues: u64,
    /// Blocks of a command at most.
    pub(crate) blocks: u64,
    /// Everything fits: no connection may be refused.
    pub(crate) roomy: bool,
}

fn device(index: usize, random: &mut Random) -> (DeviceOptions, bool) {
    let mut device = DeviceOptions::new(&device_name(index), node_address(index));
    let mut roomy = true;
    let mut lacks = |share| random.permille(share);
    if lacks(250) {
        device.max_srq = 0;
    }
    if lacks(250) {
        device.max_inline = 0;
    }
    if lacks(250) {
        device.reports_last_wqe = false;
    }
    if lacks(250) {
        device.send_with_invalidate = false;
    }
    if lacks(250) {
        (device.max_qp_init_rd_atom, device.max_qp_rd_atom) = (1, 1);
    }
    if lacks(200) {
        device.max_cqe = 512;
    }
    if lacks(200) {
        device.max_qp_wr = 20;
    }
    if lacks(200) {
        device.max_srq_wr = 40;
    }
    if lacks(300) {
        device.reports_removal = false;
    }
    if lacks(150) {
        (device.max_qp, roomy) = (6, false);
    }
    if lacks(50) {
        (device.max_cqe, roomy) = (64, false);
    }
    (device, roomy)
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Scenario {
        let mut random = Random::new(seed);
        let devices = 1 + usize::from(random.permille(400));
        let (devices, roomy): (Vec<_>, Vec<_>) =
            (0..devices).map(|index| device(index, &mut random)).unzip();
        let config = RdmaConfig {
            queue_depth: *random.pick(&[32, 64, 128]),
            in_capsule_data: *random.pick(&[0, 512, 4096, 8192]),
            shared_receives: *random.pick(&[64, 256, 1024]),
            // Time runs a thousand times as fast here as work gets done.
            lease: RdmaConfig::default().progress,
            ..RdmaConfig::default()
        };
        let properties = Properties {
            read_only: false,
            volatile_write_cache: false,
            deallocation: Some(Deallocation { reads_zero: true, granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: "simulated".to_owned(),
        };
        let slow = random.spread(1_000, 400_000);
        let weather = Weather {
            latency: (500, 500 + slow),
            stragglers: random.below(20),
            cancels: 500,
            ..Weather::default()
        };
        let geometry = Geometry { block_size: BLOCK as u32, blocks: BLOCKS, generation: 0 };
        let disk = Disk::new("disk".to_owned(), geometry, properties, weather, random.split());
        let lends = random.permille(400);
        let medium = if lends { Medium::Ram(BLOCKS * BLOCK as u64) } else { Medium::Disk(disk) };
        let calm = seed.is_multiple_of(3);
        Scenario {
            options: Options {
                seed,
                devices,
                config,
                reactors: 1 + usize::from(random.permille(300)),
                pool: *random.pick(&[8 << 20, 32 << 20]),
                requests: *random.pick(&[64, 256, 1024]),
                medium,
            },
            mishaps: if calm { 0 } else { random.spread(2, 60) },
            steps: random.between(300, 1500),
            hosts: 1 + random.index(3),
            queues: random.between(1, 4),
            blocks: *random.pick(&[8, 256, 4096]),
            roomy: roomy.iter().all(|&roomy| roomy),
        }
    }
}
