//! What a disk says that it holds: the marks that partition tables, file systems, volume managers and the like leave.
//!
//! A mark is a few bytes in a place that is known, counted from the start or from the end. The check is there to keep a disk that holds
//! something from being handed to somebody who will overwrite it, so it looks at marks alone and not at what stands around them: two
//! bytes that happen to be there make a disk look used, never an old superblock with a bad checksum a disk look free.
//! Places are those that `wipefs -a` clears; copies that file systems keep farther inside do not count.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A place on a disk.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// So many bytes from the start.
    At(u64),
    /// So many bytes before the end, which is rounded down to a multiple of the unit first.
    Before { unit: u64, bytes: u64 },
}

use Place::{At, Before};

/// A mark: what leaves it, its bytes, and the places where it may be.
type Mark = (&'static str, &'static [u8], &'static [Place]);

const KIB: u64 = 1 << 10;

/// The last ten bytes of the first page, for each size that a page may have.
const PAGE_ENDS: &[Place] = &[At(0xff6), At(0x1ff6), At(0x3ff6), At(0x7ff6), At(0xfff6)];

/// The mark of UFS in a superblock at each of its places: at the start, after 8, 64 and 256 KiB.
const UFS: &[Place] = &[At(0x55c), At(0x255c), At(0x1_055c), At(0x4_055c)];

/// The first bytes.
const START: &[Place] = &[At(0)];

/// All but the mark of a boot sector, which means a partition table only where nothing else has a boot sector.
#[rustfmt::skip]
const MARKS: &[Mark] = &[
    // Partition tables.
    ("GPT", b"EFI PART", &[
        At(512), At(4096), Before { unit: 512, bytes: 512 }, Before { unit: 4096, bytes: 4096 },
    ]),
    ("BSD disk label", b"\x57\x45\x56\x82", &[At(64), At(128), At(512)]),
    ("SGI disk label", b"\x0b\xe5\xa9\x41", START),
    ("Sun disk label", b"\xda\xbe", &[At(508)]),
    ("Mac partition table", b"ER", START),
    // Volume managers, RAID and caches.
    ("LVM2", b"LVM2 001", &[At(0x018), At(0x218), At(0x418), At(0x618)]),
    ("LVM1", b"HM\x01\x00", START),
    ("LVM1", b"HM\x02\x00", START),
    // Versions 1.1, 1.2, 1.0 and 0.90.
    ("Linux RAID", b"\xfc\x4e\x2b\xa9", &[
        At(0), At(4 * KIB), Before { unit: 4 * KIB, bytes: 8 * KIB }, Before { unit: 64 * KIB, bytes: 64 * KIB },
    ]),
    ("Linux RAID", b"\xa9\x2b\x4e\xfc", &[Before { unit: 64 * KIB, bytes: 64 * KIB }]),
    ("Intel RAID", b"Intel Raid ISM Cfg Sig. ", &[
        Before { unit: 512, bytes: 1024 }, Before { unit: 4096, bytes: 8192 },
    ]),
    ("DDF RAID", b"\xde\x11\xde\x11", &[
        Before { unit: 512, bytes: 512 }, Before { unit: 512, bytes: 257 * 512 }, Before { unit: 4096, bytes: 4096 },
    ]),
    ("DDF RAID", b"\x11\xde\x11\xde", &[
        Before { unit: 512, bytes: 512 }, Before { unit: 512, bytes: 257 * 512 }, Before { unit: 4096, bytes: 4096 },
    ]),
    ("LSI RAID", b"$XIDE$", &[Before { unit: 512, bytes: 512 }]),
    ("NVIDIA RAID", b"NVIDIA  ", &[Before { unit: 512, bytes: 1024 }]),
    ("FreeBSD GEOM", b"GEOM::", &[Before { unit: 512, bytes: 512 }, Before { unit: 4096, bytes: 4096 }]),
    ("bcache", b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", &[At(0x1018)]),
    ("DRBD", b"\x83\x74\x02\x6b", &[Before { unit: 4096, bytes: 4096 - 60 }]),
    ("DRBD", b"\x83\x74\x02\x6c", &[Before { unit: 4096, bytes: 4096 - 60 }]),
    ("DRBD", b"\x83\x74\x02\x6d", &[Before { unit: 4096, bytes: 4096 - 60 }]),
    ("Stratis", b"!Stra0tis\x86\xff\x02^\x41rh", &[At(0x204), At(0x1204)]),
    ("VDO", b"dmvdo001", START),
    ("dm-snapshot", b"SnAp", START),
    ("dm-integrity", b"integrt\0", START),
    ("dm-verity", b"verity\0\0", START),
    ("VMFS volume", b"\x0d\xd0\x01\xc0", &[At(1024 * KIB)]),
    ("Oracle ASM", b"ORCLDISK", &[At(32)]),
    ("Storage Spaces", b"SPACEDB ", &[At(4096)]),
    ("SPDK blobstore", b"SPDKBLOB", START),
    ("SPDK RAID", b"SPDKRAID", START),
    // Encryption.
    ("LUKS", b"LUKS\xba\xbe", START),
    ("LUKS", b"SKUL\xba\xbe", &[
        At(0x4000), At(0x8000), At(0x1_0000), At(0x2_0000), At(0x4_0000), At(0x8_0000), At(0x10_0000), At(0x20_0000),
        At(0x40_0000),
    ]),
    ("BitLocker", b"-FVE-FS-", &[At(3)]),
    // Swap, and what hibernation leaves there.
    ("swap", b"SWAPSPACE2", PAGE_ENDS),
    ("swap", b"SWAP-SPACE", PAGE_ENDS),
    ("swap", b"S1SUSPEND", PAGE_ENDS),
    ("swap", b"S2SUSPEND", PAGE_ENDS),
    ("swap", b"ULSUSPEND", PAGE_ENDS),
    ("swap", b"LINHIB0001", PAGE_ENDS),
    // Stores.
    ("Ceph BlueStore", b"bluestore block device", START),
    // The head of the list of names and values in each of four labels, two at each end.
    ("ZFS", b"\x01\x01\0\0\0\0\0\0\0\0\0\x01", &[
        At(16 * KIB), At(272 * KIB),
        Before { unit: 256 * KIB, bytes: 496 * KIB }, Before { unit: 256 * KIB, bytes: 240 * KIB },
    ]),
    ("ZFS", b"\x01\0\0\0\0\0\0\0\0\0\0\x01", &[
        At(16 * KIB), At(272 * KIB),
        Before { unit: 256 * KIB, bytes: 496 * KIB }, Before { unit: 256 * KIB, bytes: 240 * KIB },
    ]),
    // File systems.
    ("ext2/3/4", b"\x53\xef", &[At(0x438)]),
    ("XFS", b"XFSB", START),
    ("Btrfs", b"_BHRfS_M", &[At(0x1_0040)]),
    ("bcachefs", b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", &[
        At(0x1018), At(2048 * KIB + 0x18), Before { unit: 512, bytes: 1024 * KIB - 0x18 },
    ]),
    ("F2FS", b"\x10\x20\xf5\xf2", &[At(0x400)]),
    ("FAT", b"FAT12   ", &[At(0x36)]),
    ("FAT", b"FAT16   ", &[At(0x36)]),
    ("FAT", b"FAT     ", &[At(0x36)]),
    ("FAT", b"MSDOS", &[At(0x36)]),
    ("FAT", b"FAT32   ", &[At(0x52)]),
    ("FAT", b"MSWIN", &[At(0x52)]),
    ("exFAT", b"EXFAT   ", &[At(3)]),
    ("NTFS", b"NTFS    ", &[At(3)]),
    ("ReFS", b"\0\0\0ReFS\0", START),
    ("APFS", b"NXSB", &[At(32)]),
    ("HFS", b"BD", &[At(0x400)]),
    ("HFS+", b"H+", &[At(0x400)]),
    ("HFS+", b"HX", &[At(0x400)]),
    ("SquashFS", b"hsqs", START),
    ("SquashFS", b"sqsh", START),
    ("EROFS", b"\xe2\xe1\xf5\xe0", &[At(0x400)]),
    ("cramfs", b"\x45\x3d\xcd\x28", START),
    ("cramfs", b"\x28\xcd\x3d\x45", START),
    ("romfs", b"-rom1fs-", START),
    ("ISO 9660", b"CD001", &[At(0x8001)]),
    ("UDF", b"BEA01", &[At(0x8001)]),
    ("UDF", b"NSR02", &[At(0x8001)]),
    ("UDF", b"NSR03", &[At(0x8001)]),
    ("JFS", b"JFS1", &[At(0x8000)]),
    ("NILFS2", b"\x34\x34", &[At(0x406), Before { unit: 512, bytes: 4096 - 6 }]),
    ("ReiserFS", b"ReIsErFs", &[At(0x2014), At(0x2034), At(0x1_0034)]),
    ("ReiserFS", b"ReIsEr2Fs", &[At(0x1_0034)]),
    ("ReiserFS", b"ReIsEr3Fs", &[At(0x1_0034)]),
    ("Reiser4", b"ReIsEr4", &[At(0x1_0000)]),
    ("GFS2", b"\x01\x16\x19\x70", &[At(0x1_0000)]),
    ("OCFS2", b"OCFSV2", &[At(0x400), At(0x800), At(0x1000), At(0x2000)]),
    ("ScoutFS", b"\x8b\x42\x3c\x10", &[At(0x1_0004)]),
    ("zonefs", b"SFOZ", START),
    ("VxFS", b"\xf5\xfc\x01\xa5", &[At(0x400)]),
    ("VxFS", b"\xa5\x01\xfc\xf5", &[At(0x2000)]),
    ("VMFS", b"\x5e\xf1\xab\x2f", &[At(2048 * KIB)]),
    ("UFS", b"\x00\x01\x19\x54", UFS),
    ("UFS", b"\x54\x19\x01\x00", UFS),
    ("UFS", b"\x19\x54\x01\x19", UFS),
    ("UFS", b"\x19\x01\x54\x19", UFS),
    ("Minix", b"\x7f\x13", &[At(0x410)]),
    ("Minix", b"\x8f\x13", &[At(0x410)]),
    ("Minix", b"\x68\x24", &[At(0x410)]),
    ("Minix", b"\x78\x24", &[At(0x410)]),
    ("Minix", b"\x5a\x4d", &[At(0x418)]),
    ("HAMMER2", b"\x11\x20\x17\x05\x32\x4d\x41\x48", START),
    // Images of disks, written to a disk as they are.
    ("QCOW", b"QFI\xfb", START),
];

/// The end of a boot sector.
const BOOT_SECTOR: Mark = ("MBR", b"\x55\xaa", &[At(510)]);

impl Place {
    /// Where that is on a disk of this size, if it has so much room.
    fn on(self, size: u64) -> Option<u64> {
        match self {
            At(offset) => Some(offset),
            Before { unit, bytes } => (size - size % unit).checked_sub(bytes),
        }
    }
}

/// What has left its mark on this disk or image of one, each name once; nothing if it is blank.
///
/// # Errors
/// A place that cannot be read.
pub(super) fn of(file: &File) -> io::Result<Vec<&'static str>> {
    // What the kernel says of the size of a block device is here, and nowhere in its status.
    let mut end = file;
    let size = end.seek(SeekFrom::End(0))?;
    let mut found = Vec::new();
    for mark in MARKS {
        if !found.contains(&mark.0) && is_there(file, size, *mark)? {
            found.push(mark.0);
        }
    }
    // GPT protects itself by one, and file systems that can be booted have one.
    if found.is_empty() && is_there(file, size, BOOT_SECTOR)? {
        found.push(BOOT_SECTOR.0);
    }
    Ok(found)
}

fn is_there(file: &File, size: u64, (_, magic, places): Mark) -> io::Result<bool> {
    let length = u64::try_from(magic.len()).unwrap_or(u64::MAX);
    let mut bytes = vec![0; magic.len()];
    for offset in places.iter().filter_map(|place| place.on(size)) {
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            file.read_exact_at(&mut bytes, offset)?;
            if bytes == magic {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::Command;
    use tempfile::NamedTempFile;

    fn disk(size: u64) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    fn found(disk: &NamedTempFile) -> Vec<&'static str> {
        of(&File::open(disk.path()).unwrap()).unwrap()
    }

    /// 300 MiB and an odd number of sectors, so that ends are no multiples of anything by chance.
    const SIZE: u64 = (300 << 20) + 7 * 512;

    #[test]
    fn a_blank_disk_holds_nothing_however_small() {
        for size in [0, 1, 511, 512, 4096, 65_535, 65_536, 1 << 20, SIZE] {
            assert_eq!(found(&disk(size)), [""; 0], "{size}");
        }
    }

    #[test]
    fn every_mark_is_found_in_every_place() {
        for (name, magic, places) in MARKS.iter().chain([&BOOT_SECTOR]) {
            for place in *places {
                let disk = disk(SIZE);
                disk.as_file().write_all_at(magic, place.on(SIZE).unwrap()).unwrap();
                assert_eq!(found(&disk), [*name], "{place:?}");
            }
        }
    }

    #[test]
    fn where_linux_raid_is_at_the_end() {
        // 0.90: the last whole 64 KiB; 1.0: at least 8 KiB before the end, on a multiple of 4 KiB.
        for (size, offset) in [
            (1 << 20, (1 << 20) - 65_536),
            ((1 << 20) + 65_535, (1 << 20) - 65_536),
            (1 << 20, (1 << 20) - 8192),
            ((1 << 20) + 4095, (1 << 20) - 8192),
            ((1 << 20) + 4096, (1 << 20) - 4096),
        ] {
            let disk = disk(size);
            disk.as_file().write_all_at(&0xa92b_4efc_u32.to_le_bytes(), offset).unwrap();
            assert_eq!(found(&disk), ["Linux RAID"], "{size} {offset}");
            disk.as_file().write_all_at(&[0; 4], offset).unwrap();
            disk.as_file().write_all_at(&0xa92b_4efc_u32.to_le_bytes(), offset + 512).unwrap();
            assert_eq!(found(&disk), [""; 0], "{size} {offset}");
        }
    }

    #[test]
    fn a_partition_table_is_named_once() {
        let disk = disk(SIZE);
        disk.as_file().write_all_at(b"\x55\xaa", 510).unwrap();
        assert_eq!(found(&disk), ["MBR"]);
        disk.as_file().write_all_at(b"EFI PART", 512).unwrap();
        disk.as_file().write_all_at(b"EFI PART", SIZE - 512).unwrap();
        assert_eq!(found(&disk), ["GPT"]);
    }

    /// Runs a program that formats `path`; whether it is there.
    fn format(program: &str, arguments: &[&str], path: &std::path::Path) -> bool {
        let path_variable = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new(program);
        match command.args(arguments).arg(path).env("PATH", path_variable).output() {
            Ok(output) => {
                assert!(output.status.success(), "{program}: {output:?}");
                true
            }
            Err(error) => {
                let _ = writeln!(io::stderr(), "skipped: {program}: {error}");
                false
            }
        }
    }

    #[test]
    fn what_real_programs_leave_is_found_and_gone_after_wipefs() {
        for (program, arguments, name) in [
            ("mkfs.ext2", &["-q", "-F"][..], "ext2/3/4"),
            ("mkfs.ext4", &["-q", "-F"], "ext2/3/4"),
            ("mkfs.xfs", &["-q", "-f"], "XFS"),
            ("mkfs.btrfs", &["-q", "-f"], "Btrfs"),
            ("mkfs.f2fs", &["-q", "-f"], "F2FS"),
            ("mkfs.vfat", &[], "FAT"),
            ("mkfs.exfat", &[], "exFAT"),
            ("mkfs.ntfs", &["-q", "-F", "-f"], "NTFS"),
            ("mkfs.minix", &[], "Minix"),
            ("mkswap", &[], "swap"),
            ("bcachefs", &["format", "-f"], "bcachefs"),
        ] {
            let disk = disk(SIZE);
            if !format(program, arguments, disk.path()) {
                continue;
            }
            assert!(found(&disk).contains(&name), "{program}: {:?}", found(&disk));
            if format("wipefs", &["-q", "-a"], disk.path()) {
                assert_eq!(found(&disk), [""; 0], "{program}");
            }
        }
    }

    proptest! {
        /// Whatever the size, and whatever else is there: no panic, and a mark is not lost.
        #[test]
        fn any_size_is_read(size in 0..(1_u64 << 22), noise in prop::collection::vec(any::<(u64, u8)>(), 0..64)) {
            let disk = disk(size);
            for (offset, byte) in noise {
                disk.as_file().write_all_at(&[byte], offset % size.max(1)).unwrap();
            }
            disk.as_file().set_len(size.max(4)).unwrap();
            disk.as_file().write_all_at(b"XFSB", 0).unwrap();
            prop_assert!(found(&disk).contains(&"XFS"));
        }
    }
}
