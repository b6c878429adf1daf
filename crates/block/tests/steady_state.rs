//! In the steady state an I/O allocates nothing: on a file by the ring, on a RAM disk, on nothing.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "../../reactor/tests/counting/mod.rs"]
mod counting;
mod rig;

use block::file::{Direct, FileDevice, FileOptions};
use block::null::NullDevice;
use block::ram::{RamDevice, RamOptions};
use block::{BlockDevice, Data, Kind, Operation, Token};
use counting::allocations;
use rig::{Backend, Host};

/// More than an engine takes at a time, so that some wait.
const OUT: u64 = 200;

#[test]
fn an_operation_allocates_nothing() {
    let Some(mut host) = Host::new(Backend::Ring) else { return };
    let directory = tempfile::tempdir().unwrap();
    let size = 1 << 20;
    let file = |direct| {
        let name = format!("{direct:?}");
        let options = FileOptions::new("file", directory.path().join(name));
        FileDevice::open(&FileOptions { direct, create_size: Some(size), ..options }).unwrap()
    };
    let ram = RamOptions { name: "ram".to_owned(), size, block_size: 512, read_only: false };
    let devices: [Box<dyn BlockDevice>; 4] = [
        Box::new(file(Direct::Auto)),
        Box::new(file(Direct::Never)),
        Box::new(RamDevice::new(&ram).unwrap()),
        Box::new(NullDevice::new("null", size, 512).unwrap()),
    ];
    for device in devices {
        let mut queue = host.queue(&*device);
        let buffer = host.buffer(&[1; 512]);
        let mut round = || {
            for number in 0..OUT {
                let (kind, fua) = match number % 8 {
                    0..3 => (Kind::Read, false),
                    3..6 => (Kind::Write, false),
                    6 => (Kind::Write, true),
                    _ if number % 16 == 7 => (Kind::WriteZeroes { deallocate: true }, true),
                    _ => (Kind::Flush, false),
                };
                let moves = matches!(kind, Kind::Read | Kind::Write);
                let segment = moves.then(|| buffer.segment(0, 512).unwrap());
                let data = segment.map_or_else(Data::none, Data::from);
                let token = Token(number);
                queue.submit(Operation { token, kind, lba: number, blocks: 1, data, fua });
            }
            let mut done = 0;
            while queue.outstanding() > 0 {
                host.reactor.turn();
                done += queue.poll(64, &mut |completion| completion.result.unwrap());
            }
            assert_eq!(done, usize::try_from(OUT).unwrap());
        };
        // Tables grow to the depth that is used.
        round();
        round();
        let before = allocations();
        for _ in 0..5 {
            round();
        }
        let allocations = allocations() - before;
        assert_eq!(allocations, 0, "{:?}", device.properties().description);
    }
}
