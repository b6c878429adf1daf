//! Files and block devices: the lock, durability, holes, full and shrinking media, refusals.
//! Everything is done by both back ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod rig;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use block::file::{Direct, DurabilityCounts, FileDevice, FileOptions};
use block::{BlockDevice, BlockError, Completion, Data, ErrorKind, Kind, Operation, Token};
use rig::{BACKENDS, Host, LoopDevice, Mount, command, skip};

const MIB: u64 = 1 << 20;

/// The kernel lets go of a closed file's lock a moment later, so opening again waits.
fn options(path: impl AsRef<Path>) -> FileOptions {
    FileOptions { create_size: Some(8 * MIB), ..FileOptions::new("disk", path.as_ref()) }
}

/// Whether somebody else has it.
fn is_locked(options: &FileOptions) -> bool {
    let lock_wait = Duration::from_millis(100);
    let result = FileDevice::open(&FileOptions { lock_wait, ..options.clone() });
    matches!(result, Err(BlockError::Locked { .. }))
}

fn message(result: Result<FileDevice, BlockError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_second_opener_is_refused_until_the_first_and_its_ring_have_let_go() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path().join("disk"));
        let device = FileDevice::open(&options).unwrap();
        let mut queue = host.queue(&device);
        host.write(&mut *queue, 0, 1, &[1; 512], false).unwrap();
        assert!(is_locked(&options));
        let lock_wait = Duration::ZERO;
        let text = message(FileDevice::open(&FileOptions { lock_wait, ..options.clone() }));
        assert!(text.contains("disk") && text.contains("in use"), "{text}");

        // Another one waits for it.
        let other = std::thread::spawn(move || FileDevice::open(&options));
        host.let_go((device, queue));
        other.join().unwrap().unwrap();
    }
}

#[test]
fn readers_share_and_exclude_writers() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path().join("disk"));
    drop(FileDevice::open(&options).unwrap());
    let read_only = FileOptions { read_only: true, ..options.clone() };
    let readers = [FileDevice::open(&read_only).unwrap(), FileDevice::open(&read_only).unwrap()];
    assert!(is_locked(&options));
    drop(readers);
    let writer = FileDevice::open(&options).unwrap();
    assert!(is_locked(&read_only));
    drop(writer);
}

#[test]
fn read_only_devices_refuse_changes_and_need_no_flush() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path().join("disk"));
        drop(FileDevice::open(&options).unwrap());
        let read_only = FileOptions { read_only: true, ..options };
        let device = FileDevice::open(&read_only).unwrap();
        let mut queue = host.queue(&device);
        assert_eq!(host.write(&mut *queue, 0, 1, &[1; 512], true), Err(ErrorKind::ReadOnly));
        let kind = Kind::WriteZeroes { deallocate: true };
        let result = host.run(&mut *queue, kind, 0, 1, Data::none(), false);
        assert_eq!(result, Err(ErrorKind::ReadOnly));
        assert_eq!(host.flush(&mut *queue), Ok(()));
        assert_eq!(host.read(&mut *queue, 0, 1, 512), Ok(vec![0; 512]));
        assert_eq!(device.durability(), DurabilityCounts::default());
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| FileOptions { create_size: None, ..options(directory.path().join(name)) };
    let text = message(FileDevice::open(&at("missing")));
    assert!(text.contains("cannot find") && text.contains("missing"), "{text}");
    fs::write(directory.path().join("empty"), b"").unwrap();
    let text = message(FileDevice::open(&at("empty")));
    assert!(text.contains("less than one block of"), "{text}");
    let text = message(FileDevice::open(&at(".")));
    assert!(text.contains("neither a regular file nor a block device"), "{text}");
    let text = message(FileDevice::open(&FileOptions::new("disk", "/dev/null")));
    assert!(text.contains("neither a regular file nor a block device"), "{text}");
    let odd = FileOptions { block_size: Some(1024), ..options(directory.path().join("odd")) };
    let text = message(FileDevice::open(&odd));
    assert!(text.contains("1024") && text.contains("512 or 4096"), "{text}");
}

#[test]
fn an_empty_file_left_by_a_cut_start_is_filled_out_and_a_full_one_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/directory/disk");
    let device = FileDevice::open(&options(&path)).unwrap();
    assert_eq!(device.geometry().bytes(), 8 * MIB);
    assert!(fs::metadata(&path).unwrap().blocks() < 100, "it is sparse");
    drop(device);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(FileDevice::open(&options(&path)).unwrap().geometry().bytes(), 8 * MIB);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB + 100).unwrap();
    assert_eq!(FileDevice::open(&options(&path)).unwrap().geometry().bytes(), MIB);
}

#[test]
fn flush_is_a_sync_and_fua_a_durable_write_and_nothing_else_is() {
    for backend in BACKENDS {
        for direct in [Direct::Auto, Direct::Never] {
            let Some(mut host) = Host::new(backend) else { continue };
            let directory = tempfile::tempdir().unwrap();
            let options = FileOptions { direct, ..options(directory.path().join("disk")) };
            let device = FileDevice::open(&options).unwrap();
            let mut queue = host.queue(&device);
            let mut counted = |act: &mut dyn FnMut(&mut Host, &mut dyn block::BlockQueue)| {
                let before = device.durability();
                act(&mut host, &mut *queue);
                let after = device.durability();
                (after.syncs - before.syncs, after.durable_writes - before.durable_writes)
            };
            let zeroes = Kind::WriteZeroes { deallocate: true };
            let plain = counted(&mut |host, queue| {
                host.write(queue, 0, 8, &[1; 4096], false).unwrap();
                host.read(queue, 0, 8, 4096).unwrap();
                host.run(queue, zeroes, 0, 8, Data::none(), false).unwrap();
            });
            assert_eq!(plain, (0, 0), "{backend:?}");
            let flush = counted(&mut |host, queue| host.flush(queue).unwrap());
            assert_eq!(flush, (1, 0), "{backend:?}");
            let fua = counted(&mut |host, queue| host.write(queue, 0, 1, &[1; 512], true).unwrap());
            assert_eq!(fua, (0, 1), "{backend:?}");
            let fua = counted(&mut |host, queue| {
                host.run(queue, zeroes, 0, 8, Data::none(), true).unwrap();
            });
            assert_eq!(fua, (1, 0), "{backend:?}");
        }
    }
}

/// What the kernel says: flushes that reached the block device.
fn flushes(device: &LoopDevice) -> u64 {
    let name = device.path.file_name().unwrap().to_str().unwrap();
    let line = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    line.split_whitespace().nth(15).unwrap().parse().unwrap()
}

#[test]
fn flush_and_fua_reach_the_block_device() {
    let directory = tempfile::tempdir().unwrap();
    let backing = directory.path().join("backing");
    let Some(disk) = LoopDevice::with_file(&backing, 8 * MIB, 512) else { return };
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let device = FileDevice::open(&options(&disk.path)).unwrap();
        assert!(device.properties().volatile_write_cache);
        let mut queue = host.queue(&device);
        let start = flushes(&disk);
        host.write(&mut *queue, 0, 8, &[1; 4096], false).unwrap();
        assert_eq!(flushes(&disk), start, "{backend:?}: a plain write");
        host.flush(&mut *queue).unwrap();
        let flushed = flushes(&disk);
        assert!(flushed > start, "{backend:?}: flush");
        host.write(&mut *queue, 0, 8, &[2; 4096], true).unwrap();
        assert!(flushes(&disk) > flushed, "{backend:?}: FUA");
        host.let_go(queue);
    }
}

#[test]
fn block_devices_are_exclusive_and_zeroed_and_freed() {
    let directory = tempfile::tempdir().unwrap();
    let backing = directory.path().join("backing");
    fs::write(&backing, vec![7; 8 << 20]).unwrap();
    let Some(disk) = LoopDevice::new(&backing, 512) else { return };
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let device = FileDevice::open(&options(&disk.path)).unwrap();
        assert!(is_locked(&options(&disk.path)));
        let read_only = FileOptions { read_only: true, ..options(&disk.path) };
        FileDevice::open(&read_only).unwrap();
        assert_eq!(device.geometry().bytes(), 8 * MIB);
        let mut queue = host.queue(&device);
        host.write(&mut *queue, 2048, 2048, &vec![9; 1 << 20], false).unwrap();
        for kind in [Kind::WriteZeroes { deallocate: false }, Kind::Deallocate] {
            host.write(&mut *queue, 0, 2048, &vec![9; 1 << 20], false).unwrap();
            if kind == Kind::Deallocate && device.properties().deallocation.is_none() {
                skip("this loop device cannot deallocate");
                continue;
            }
            host.run(&mut *queue, kind, 0, 2048, Data::none(), true).unwrap();
            assert_eq!(host.read(&mut *queue, 0, 2048, 1 << 20), Ok(vec![0; 1 << 20]));
            assert_eq!(host.read(&mut *queue, 2048, 8, 4096), Ok(vec![9; 4096]));
        }
        host.let_go((device, queue));
    }
}

#[test]
fn blocks_smaller_than_the_medium_takes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let backing = directory.path().join("backing");
    let Some(disk) = LoopDevice::with_file(&backing, 8 * MIB, 4096) else { return };
    let small = FileOptions { block_size: Some(512), ..options(&disk.path) };
    let text = message(FileDevice::open(&small));
    assert!(text.contains("512") && text.contains("4096") && text.contains("loop"), "{text}");
    assert_eq!(FileDevice::open(&options(&disk.path)).unwrap().geometry().block_size, 4096);
}

#[test]
fn deallocated_blocks_are_given_back_to_the_file_system() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path().join("disk"));
        let device = FileDevice::open(&options).unwrap();
        assert!(device.properties().deallocation.is_some_and(|how| how.reads_zero));
        let mut queue = host.queue(&device);
        let allocated = || fs::metadata(&options.path).unwrap().blocks() * 512;
        for kind in [Kind::Deallocate, Kind::WriteZeroes { deallocate: true }] {
            host.write(&mut *queue, 0, 4096, &vec![3; 2 << 20], true).unwrap();
            assert!(allocated() >= 2 * MIB);
            host.run(&mut *queue, kind, 0, 2048, Data::none(), false).unwrap();
            host.flush(&mut *queue).unwrap();
            assert!(allocated() <= MIB + 65536, "{backend:?} {kind:?}: {}", allocated());
            assert_eq!(host.read(&mut *queue, 0, 2048, 1 << 20), Ok(vec![0; 1 << 20]));
        }
        let kind = Kind::WriteZeroes { deallocate: false };
        host.run(&mut *queue, kind, 0, 4096, Data::none(), true).unwrap();
        assert!(allocated() >= 2 * MIB, "{backend:?}: its space is kept");
        assert_eq!(host.read(&mut *queue, 2048, 2048, 1 << 20), Ok(vec![0; 1 << 20]));
    }
}

#[test]
fn a_full_file_system_is_no_space_and_zeroes_are_written_where_they_cannot_be_made() {
    let directory = tempfile::tempdir().unwrap();
    let small = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
    let Some(mount) = Mount::new(&small, &directory.path().join("small")) else { return };
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let path = mount.path.join("disk");
        let device = FileDevice::open(&options(&path)).unwrap();
        let mut queue = host.queue(&device);
        let result = host.write(&mut *queue, 0, 4096, &vec![5; 2 << 20], false);
        assert_eq!(result, Err(ErrorKind::NoSpace), "{backend:?}");
        host.run(&mut *queue, Kind::Deallocate, 0, 4096, Data::none(), false).unwrap();

        // This file system punches holes, but does not zero ranges.
        host.write(&mut *queue, 0, 1024, &vec![5; 512 << 10], false).unwrap();
        let kind = Kind::WriteZeroes { deallocate: false };
        host.run(&mut *queue, kind, 8, 1016, Data::none(), true).unwrap();
        let expected = [vec![5; 4096], vec![0; 508 << 10]].concat();
        assert_eq!(host.read(&mut *queue, 0, 1024, 512 << 10), Ok(expected));
        host.let_go((device, queue));
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn reads_beyond_the_end_of_a_shrunken_file_fail_and_a_rescan_tells_the_new_size() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path().join("disk"));
        let device = FileDevice::open(&options).unwrap();
        let before = device.geometry();
        let mut queue = host.queue(&device);
        let file = fs::OpenOptions::new().write(true).open(&options.path).unwrap();
        file.set_len(MIB + 700).unwrap();
        assert_eq!(host.read(&mut *queue, 2047, 2, 1024), Ok(vec![0; 1024]));
        for (lba, blocks) in [(2048, 2), (2049, 1), (2000, 100), (8192, 8)] {
            let len = usize::try_from(blocks * 512).unwrap();
            let result = host.read(&mut *queue, lba, blocks, len);
            assert_eq!(result, Err(ErrorKind::OutOfRange), "{backend:?} {lba}+{blocks}");
            let result = host.run(&mut *queue, Kind::Verify, lba, blocks, Data::none(), false);
            assert_eq!(result, Err(ErrorKind::OutOfRange), "{backend:?} {lba}+{blocks}");
        }
        let after = device.rescan().unwrap();
        assert_eq!(after.blocks, 2049);
        assert_ne!(after.generation, before.generation);
        assert_eq!(device.rescan().unwrap(), after);
        assert_eq!(device.geometry(), after);
    }
}

#[test]
fn a_device_that_hangs_holds_up_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let backing = directory.path().join("backing");
    fs::File::create(&backing).unwrap().set_len(64 * MIB).unwrap();
    if command("mkfs.ext4", &["-q", backing.to_str().unwrap()]).is_none() {
        return;
    }
    let Some(disk) = LoopDevice::new(&backing, 512) else { return };
    let place = directory.path().join("slow");
    let Some(mount) = Mount::new(&[disk.path.to_str().unwrap()], &place) else { return };
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let slow = FileDevice::open(&options(mount.path.join("disk"))).unwrap();
        let fast = FileDevice::open(&options(directory.path().join("disk"))).unwrap();
        let (mut slow, mut fast) = (host.queue(&slow), host.queue(&fast));
        host.write(&mut *slow, 0, 8, &[1; 4096], false).unwrap();

        // A frozen file system lets no write through; they wait in the kernel.
        let Some(frozen) = Frozen::new(&mount.path) else { return };
        let buffer = host.buffer(&[2; 512]);
        let count = 600;
        for number in 0..count {
            let (kind, fua) = match number % 4 {
                0 => (Kind::WriteZeroes { deallocate: true }, true),
                1 => (Kind::Write, true),
                _ => (Kind::Write, false),
            };
            let data = match kind {
                Kind::Write => buffer.segment(0, 512).unwrap().into(),
                _ => Data::none(),
            };
            let token = Token(number);
            slow.submit(Operation { token, kind, lba: number, blocks: 1, data, fua });
        }
        for round in 0..50 {
            slow.poll(64, &mut |done| panic!("{done:?} on a frozen file system"));
            host.write(&mut *fast, round, 1, &[3; 512], true).unwrap();
            host.flush(&mut *fast).unwrap();
            assert_eq!(host.read(&mut *fast, round, 1, 512), Ok(vec![3; 512]));
        }
        assert_eq!(slow.outstanding(), usize::try_from(count).unwrap());
        // What waits in the queue can be given up meanwhile.
        assert!(slow.cancel(Token(count - 1)));
        drop(frozen);
        let done = host.drain(&mut *slow);
        assert_eq!(done.len(), usize::try_from(count).unwrap());
        for Completion { token, result, .. } in done {
            let expected = if token.0 == count - 1 { Err(ErrorKind::Aborted) } else { Ok(()) };
            assert_eq!(result, expected, "{token:?}");
        }
        host.let_go((slow, fast, buffer));
    }
}

struct Frozen(String);

impl Frozen {
    fn new(path: &Path) -> Option<Frozen> {
        let path = path.to_str().unwrap().to_owned();
        command("fsfreeze", &["-f", &path]).map(|_| Frozen(path))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        command("fsfreeze", &["-u", &self.0]);
    }
}

#[test]
fn a_disk_that_was_pulled_out_is_removed_and_stays_so() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let backing = directory.path().join("backing");
        let Some(disk) = LoopDevice::with_file(&backing, 8 * MIB, 512) else { return };
        let device = FileDevice::open(&options(&disk.path)).unwrap();
        let mut queue = host.queue(&device);
        host.write(&mut *queue, 0, 1, &[1; 512], false).unwrap();
        // The kernel sets the size of a disk that is pulled out to zero; so does this.
        if disk.resize(&backing, 0).is_none() {
            return;
        }
        assert_eq!(host.read(&mut *queue, 0, 1, 512), Err(ErrorKind::Removed), "{backend:?}");
        assert_eq!(host.write(&mut *queue, 0, 1, &[1; 512], false), Err(ErrorKind::Removed));
        assert_eq!(host.flush(&mut *queue), Err(ErrorKind::Removed));
        host.let_go((device, queue));
    }
}

#[test]
fn a_smaller_disk_is_not_a_removed_one() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let backing = directory.path().join("backing");
        let Some(disk) = LoopDevice::with_file(&backing, 8 * MIB, 512) else { return };
        let device = FileDevice::open(&options(&disk.path)).unwrap();
        let mut queue = host.queue(&device);
        if disk.resize(&backing, 4 * MIB).is_none() {
            return;
        }
        assert_eq!(host.read(&mut *queue, 8192, 1, 512), Err(ErrorKind::OutOfRange));
        assert_eq!(host.write(&mut *queue, 0, 1, &[1; 512], true), Ok(()));
        assert_eq!(device.rescan().unwrap().blocks, 8192);
        host.let_go((device, queue));
    }
}

#[test]
fn once_data_were_lost_no_flush_succeeds_until_the_device_is_opened_anew() {
    let directory = tempfile::tempdir().unwrap();
    let small = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
    let Some(mount) = Mount::new(&small, &directory.path().join("small")) else { return };
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        // A disk that promises more than its medium has: what does not fit is lost at write-back.
        let backing = mount.path.join("backing");
        let Some(disk) = LoopDevice::with_file(&backing, 8 * MIB, 512) else { return };
        let cached = FileOptions { direct: Direct::Never, ..options(&disk.path) };
        let device = FileDevice::open(&cached).unwrap();
        let mut queue = host.queue(&device);
        let mut other = host.queue(&device);
        assert_eq!(host.write(&mut *queue, 0, 4096, &vec![1; 2 << 20], false), Ok(()));
        assert!(host.flush(&mut *queue).is_err(), "{backend:?}");
        assert!(device.durability().failed);
        // The kernel has told it once, and would now say that all is well.
        assert_eq!(host.flush(&mut *queue), Err(ErrorKind::MediumWrite));
        assert_eq!(host.flush(&mut *other), Err(ErrorKind::MediumWrite));
        assert_eq!(host.write(&mut *other, 0, 1, &[2; 512], true), Err(ErrorKind::MediumWrite));
        assert_eq!(host.write(&mut *other, 0, 1, &[2; 512], false), Ok(()));
        assert_eq!(host.read(&mut *other, 0, 1, 512), Ok(vec![2; 512]));
        host.let_go((device, queue, other));
        let again = FileDevice::open(&cached).unwrap();
        assert!(!again.durability().failed);
        drop((again, disk));
        fs::remove_file(backing).unwrap();
    }
}

#[test]
fn flushes_of_two_reactors_through_the_page_cache_take_turns() {
    for backend in BACKENDS {
        let hosts = [Host::new(backend), Host::new(backend)];
        let [Some(mut one), Some(mut two)] = hosts else { continue };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let device =
            FileDevice::open(&FileOptions { direct: Direct::Never, ..options(path) }).unwrap();
        let mut queues = [one.queue(&device), two.queue(&device)];
        let mut done = [0, 0];
        for number in 0..100 {
            for queue in &mut queues {
                let (token, kind, data) = (Token(number), Kind::Flush, Data::none());
                queue.submit(Operation { token, kind, lba: 0, blocks: 0, data, fua: false });
            }
        }
        let give_up = std::time::Instant::now() + Duration::from_secs(20);
        while queues.iter().any(|queue| queue.outstanding() > 0) {
            assert!(std::time::Instant::now() < give_up, "{done:?}");
            for (host, (queue, done)) in
                [&mut one, &mut two].into_iter().zip(queues.iter_mut().zip(&mut done))
            {
                host.reactor.turn();
                *done += queue.poll(64, &mut |completion| completion.result.unwrap());
            }
        }
        assert_eq!(done, [100, 100]);
        assert_eq!(device.durability().syncs, 200);
    }
}

#[test]
fn a_queue_dropped_with_operations_out_gives_its_memory_back() {
    for backend in BACKENDS {
        let Some(mut host) = Host::new(backend) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let device = FileDevice::open(&options(directory.path().join("disk"))).unwrap();
        let mut queue = host.queue(&device);
        let whole = host.pool.available();
        for number in 0..40 {
            let data = host.buffer(&[1; 4096]).segment(0, 4096).unwrap().into();
            let (token, kind) = (Token(number), Kind::Write);
            queue.submit(Operation { token, kind, lba: number * 8, blocks: 8, data, fua: false });
        }
        drop(queue);
        let give_up = std::time::Instant::now() + Duration::from_secs(20);
        while host.pool.available() != whole {
            assert!(std::time::Instant::now() < give_up, "{backend:?}");
            host.reactor.turn();
        }
    }
}
