//! What operations do, on every kind of controller.

use block::{Data, ErrorKind, Kind};
use nvme::identify::{OptionalCommands, SglSupport};
use nvme::io::Opcode;
use nvme_pcie::software::{NamespaceOptions, Options};

use crate::rig::Rig;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

/// Controllers that differ in what they can do.
fn controllers() -> Vec<(&'static str, Options)> {
    let plain = Options::default;
    let two = vec![NamespaceOptions::new(1, 512, 4096), NamespaceOptions::new(2, 4096, 1024)];
    vec![
        ("as usual", plain()),
        ("without optional commands", Options { oncs: OptionalCommands::empty(), ..plain() }),
        ("with SGLs", Options { sgls: SglSupport::SUPPORTED, ..plain() }),
        ("with SGLs of dwords", Options { sgls: SglSupport::DWORD, ..plain() }),
        ("with shadow doorbells", Options { shadow_doorbells: true, dstrd: 1, ..plain() }),
        ("of the shortest queues", Options { mqes: 1, ..plain() }),
        ("of one page", Options { mdts: 1, ..plain() }),
        ("without a limit of size", Options { mdts: 0, ..plain() }),
        ("without interrupts", Options { vectors: 0, ..plain() }),
        ("of version 1.2", Options { version: nvme::register::Version::V1_2, ..plain() }),
        ("of one vector and two namespaces", Options { vectors: 1, namespaces: two, ..plain() }),
    ]
}

#[test]
fn every_operation_on_every_controller() {
    for (name, options) in controllers() {
        let mut rig = Rig::served(7, options, 1);
        let size = rig.block_size(1) as usize;
        let bytes = pattern(40 * size, 1);
        assert_eq!(rig.write(1, 3, &bytes), Ok(()), "{name}");
        assert_eq!(rig.soft.read_medium(1, 3, 40), bytes, "{name}");
        assert_eq!(rig.read(1, 3, 40), Ok(bytes.clone()), "{name}");
        assert_eq!(rig.run(1, Kind::Flush, (0, 0), Data::none()), Ok(()), "{name}");
        assert_eq!(rig.soft.dirty(1), 0, "{name}");
        assert_eq!(rig.run(1, Kind::Verify, (3, 40), Data::none()), Ok(()), "{name}");

        let same = rig.filled(0, &bytes);
        let data = same.segment(0, bytes.len()).unwrap();
        assert_eq!(rig.run(1, Kind::Compare, (3, 40), data.into()), Ok(()), "{name}");
        let mut other = bytes.clone();
        other[30 * size] ^= 1;
        let other = rig.filled(0, &other);
        let data = other.segment(0, bytes.len()).unwrap();
        let compared = rig.run(1, Kind::Compare, (3, 40), data.into());
        assert_eq!(compared, Err(ErrorKind::Miscompare), "{name}");

        let zeroes = Kind::WriteZeroes { deallocate: false };
        assert_eq!(rig.run(1, zeroes, (5, 20), Data::none()), Ok(()), "{name}");
        let mut expected = bytes;
        expected[2 * size..22 * size].fill(0);
        assert_eq!(rig.read(1, 3, 40), Ok(expected), "{name}");
        drop((same, other));
        rig.end();
    }
}

#[test]
fn what_is_deallocated_is_given_up() {
    let mut rig = Rig::served(1, Options::default(), 1);
    rig.write(1, 0, &pattern(8 * 512, 9)).unwrap();
    assert_eq!(rig.soft.allocated(1), 8);
    assert_eq!(rig.run(1, Kind::Deallocate, (2, 4), Data::none()), Ok(()));
    assert_eq!(rig.soft.allocated(1), 4);
    assert_eq!(rig.run(1, Kind::WriteZeroes { deallocate: true }, (0, 2), Data::none()), Ok(()));
    assert_eq!((rig.soft.allocated(1), rig.soft.io_commands(Opcode::WriteZeroes)), (2, 1));
    rig.end();
    // One that cannot says so, and its deallocating zeroes are written.
    let options = Options { oncs: OptionalCommands::WRITE_ZEROES, ..Options::default() };
    let mut rig = Rig::served(1, options, 1);
    let refused = rig.run(1, Kind::Deallocate, (0, 1), Data::none());
    assert_eq!(refused, Err(ErrorKind::Unsupported));
    rig.end();
}

#[test]
fn a_range_outside_is_refused_before_the_device_sees_it() {
    let mut rig = Rig::served(1, Options::default(), 1);
    assert_eq!(rig.read(1, (128 << 10) - 1, 2), Err(ErrorKind::OutOfRange));
    assert_eq!(rig.soft.io_commands(Opcode::Read), 0);
    rig.end();
}
