//! What goes wrong when it is to: commands, completions, resets, removal, power.

use std::os::fd::AsFd;
use std::time::Duration;

use nvme::admin::{self, Abort};
use nvme::identify::DeallocatedRead;
use nvme::io::{Command, DatasetManagement, DsmRange, Opcode, Transfer, WriteZeroes};
use nvme::register::{Configuration, ShutdownNotification, ShutdownStatus, offset};
use nvme::{Prps, Sqe, Status, copy, pcie};
use nvme_pcie::function::Slot;
use nvme_pcie::software::{Chaos, Fault, NamespaceOptions, Options, Target};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::raw::Raw;

fn flush() -> Sqe {
    Command::Flush.to_sqe(1).with_prps(Prps::default())
}

fn abort(sqid: u16, cid: u16) -> Sqe {
    admin::Command::Abort(Abort { sqid, cid }).to_sqe(0).with_prps(Prps::default())
}

fn readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Duration::ZERO.try_into().unwrap())).unwrap() > 0
}

#[test]
fn a_hanging_command_can_be_aborted() {
    let mut raw = Raw::ready(1, Options::default());
    raw.controller.plan(Target::Io(Opcode::Flush), Fault::Hangs);
    let cid = raw.submit(1, flush());
    assert!(raw.wait(1, cid).is_none());
    raw.controller.set_aborts(0);
    assert_eq!(raw.admin_ok(abort(1, cid)).dw0(), 1);
    raw.controller.set_aborts(1000);
    assert_eq!(raw.admin_ok(abort(1, cid)).dw0(), 0);
    // The completion of what was aborted is there first.
    assert_eq!(raw.poll(1).unwrap().status(), Status::ABORT_REQUESTED);
    assert_eq!(raw.admin_ok(abort(1, cid)).dw0(), 1);
    raw.controller.plan(Target::Admin(admin::Opcode::Abort), Fault::Hangs);
    let cid = raw.submit(0, abort(1, 9));
    assert!(raw.wait(0, cid).is_none());
    raw.innocent();
}

#[test]
fn only_so_many_aborts_at_a_time() {
    let mut raw = Raw::ready(1, Options { acl: 0, ..Options::default() });
    raw.controller.plan(Target::Admin(admin::Opcode::Abort), Fault::Hangs);
    raw.submit(0, abort(1, 1));
    let second = raw.call(0, abort(1, 1));
    assert!(second.status().same_code(Status::ABORT_LIMIT_EXCEEDED));
    raw.innocent();
}

#[test]
fn completions_go_wrong() {
    let mut raw = Raw::ready(1, Options::default());
    raw.controller.plan(Target::AnyIo, Fault::Fails(Status::NAMESPACE_NOT_READY));
    assert_eq!(raw.io(flush()), Status::NAMESPACE_NOT_READY.with_more());
    assert!(raw.io(flush()).is_success());
    raw.controller.plan(Target::AnyIo, Fault::Duplicate);
    let cid = raw.submit(1, flush());
    raw.controller.settle();
    let twice = [raw.poll(1), raw.poll(1)].map(|cqe| cqe.unwrap().cid.get());
    assert_eq!(twice, [cid, cid]);
    raw.controller.plan(Target::AnyIo, Fault::WrongQueue(9));
    raw.submit(1, flush());
    raw.controller.settle();
    assert_eq!(raw.poll(1).unwrap().sqid.get(), 9);
    raw.controller.ghost(1, 0x1234);
    raw.controller.settle();
    assert_eq!(raw.poll(1).unwrap().cid.get(), 0x1234);
    raw.controller.plan(Target::AnyIo, Fault::Late(100));
    raw.submit(1, flush());
    assert!(raw.controller.run(100) == 100 && raw.poll(1).is_none());
    raw.controller.settle();
    assert!(raw.poll(1).is_some());
    assert!(raw.controller.set_stuck(1, true));
    raw.submit(1, flush());
    raw.controller.settle();
    assert!(raw.poll(1).is_none());
    assert!(raw.controller.set_stuck(1, false));
    raw.controller.settle();
    assert!(raw.poll(1).is_some());
    raw.innocent();
}

#[test]
fn a_controller_that_failed_is_reset() {
    let mut raw = Raw::ready(1, Options::default());
    raw.controller.plan(Target::AnyIo, Fault::Fatal);
    raw.submit(1, flush());
    raw.controller.settle();
    assert!(raw.csts().cfs && raw.csts().rdy);
    raw.disable();
    assert!(!raw.csts().cfs);
    raw.enable(16);
    raw.grant(1);
    raw.create_pair(1, 16);
    assert!(raw.io(flush()).is_success());
    raw.innocent();
}

#[test]
fn a_controller_that_stays_as_it_is_is_reset_by_the_system() {
    let mut raw = Raw::ready(1, Options::default());
    raw.controller.set_never_not_ready(true);
    raw.configure(Configuration { en: false, ..Raw::configuration() });
    raw.controller.settle();
    assert!(raw.csts().rdy);
    raw.function.reset().unwrap();
    assert!(!raw.csts().rdy);
    raw.controller.set_never_ready(true);
    raw.prepare(16);
    raw.configure(Raw::configuration());
    raw.controller.settle();
    assert!(!raw.csts().rdy);
    raw.function.reset().unwrap();
    raw.controller.set_never_ready(false);
    raw.enable(16);
    raw.innocent();
}

#[test]
fn after_a_reset_nothing_is_touched() {
    for seed in 0..40_u64 {
        let mut raw = Raw::ready(seed, Options::default());
        let at = raw.pages(8);
        for index in 0..8 {
            let prps = raw.prps(at + index * 4096, 4096);
            raw.push(1, Command::Read(Transfer::new(0, 8)).to_sqe(1).with_prps(prps));
        }
        raw.ring_tail(1);
        raw.controller.run(usize::try_from(seed).unwrap() % 20);
        if seed % 2 == 0 {
            raw.disable();
        } else {
            raw.function.reset().unwrap();
        }
        let written = raw.fill(0, 1 << 20, 0xa5);
        raw.controller.settle();
        assert!(raw.bytes(0, 1 << 20) == written);
        assert_eq!(raw.controller.outstanding(), 0);
        raw.innocent();
    }
}

#[test]
fn a_shutdown_is_answered_and_flushes() {
    let mut raw = Raw::ready(1, Options::default());
    let at = raw.pages(1);
    assert!(raw.io_data(Command::Write(Transfer::new(0, 8)).to_sqe(1), at, 4096).is_success());
    assert_eq!(raw.controller.dirty(1), 8);
    let shn = ShutdownNotification::Normal;
    raw.configure(Configuration { shn, ..Raw::configuration() });
    assert!(raw.until(|| raw.csts().shst == ShutdownStatus::Complete));
    assert_eq!(raw.controller.dirty(1), 0);
    raw.innocent();
}

#[test]
fn a_controller_is_taken_out_and_put_back() {
    let raw = Raw::ready(1, Options::default());
    let wanted = raw.function.wanted_back().unwrap();
    assert!(!readable(wanted));
    raw.controller.want_back();
    assert!(readable(wanted));
    raw.controller.remove();
    let registers = raw.function.registers();
    assert_eq!((registers.read32(offset::CSTS), registers.read64(0)), (u32::MAX, u64::MAX));
    registers.write32(offset::CC, 0);
    raw.controller.settle();
    assert_eq!(registers.read32(offset::CC), u32::MAX);
    assert!(raw.function.reset().is_err());
    assert!(raw.controller.open().is_err());
    raw.controller.insert();
    // Whoever had it has to let it go.
    assert!(raw.controller.open().unwrap_err().to_string().contains("open already"));
    raw.controller.settle();
    assert_eq!(registers.read32(offset::CSTS), u32::MAX);
    raw.innocent();
    let controller = raw.controller.clone();
    drop(raw);
    let mut raw = Raw::open_again(controller);
    raw.enable(16);
    raw.controller.remove_by_surprise();
    assert!(!readable(raw.function.wanted_back().unwrap()));
    raw.innocent();
}

#[test]
fn what_was_neither_flushed_nor_forced_may_be_lost() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..30 {
        let mut raw = Raw::ready(seed, Options::default());
        let at = raw.pages(2);
        let data = raw.fill(at, 4096, 1);
        let write = |slba| Transfer::new(slba, 8);
        assert!(raw.io_data(Command::Write(write(0)).to_sqe(1), at, 4096).is_success());
        assert!(raw.io(flush()).is_success());
        let mut forced = write(8);
        forced.fua = true;
        assert!(raw.io_data(Command::Write(forced).to_sqe(1), at, 4096).is_success());
        assert!(raw.io_data(Command::Write(write(16)).to_sqe(1), at, 4096).is_success());
        // One that is not over when power fails.
        raw.controller.plan(Target::AnyIo, Fault::Late(1000));
        let prps = raw.prps(at, 4096);
        raw.submit(1, Command::Write(write(24)).to_sqe(1).with_prps(prps));
        assert!(raw.until(|| raw.controller.outstanding() == 1));
        raw.controller.power_cut();
        raw.controller.insert();
        let controller = raw.controller.clone();
        raw.innocent();
        drop(raw);
        let raw = Raw::open_again(controller);
        assert_eq!(raw.controller.read_medium(1, 0, 8), data);
        assert_eq!(raw.controller.read_medium(1, 8, 8), data);
        for block in 16..32 {
            let place = block % 8 * 512;
            let found = raw.controller.read_medium(1, block as u64, 1);
            if found == data[place..place + 512] {
                kept += 1;
            } else {
                assert_eq!(found, [0; 512]);
                lost += 1;
            }
        }
    }
    assert!(lost > 100 && kept > 100, "{lost} {kept}");
}

#[test]
fn commands_without_data_do_what_they_say() {
    let deallocated = DeallocatedRead::Ones;
    let second = NamespaceOptions { deallocated, ..NamespaceOptions::new(2, 4096, 1 << 40) };
    let namespaces = vec![NamespaceOptions::new(1, 512, 1000), second];
    let mut raw = Raw::ready(5, Options { namespaces, ..Options::default() });
    let ones = vec![1; 1000 * 512];
    raw.controller.write_medium(1, 0, &ones);
    let mut zeroes = WriteZeroes::new(10, 20);
    assert!(raw.io(Command::WriteZeroes(zeroes).to_sqe(1)).is_success());
    assert_eq!(raw.controller.read_medium(1, 9, 22)[512..21 * 512], [0; 20 * 512]);
    assert!(raw.controller.is_allocated(1, 10));
    zeroes.deallocate = true;
    assert!(raw.io(Command::WriteZeroes(zeroes).to_sqe(1)).is_success());
    assert!(!raw.controller.is_allocated(1, 10) && raw.controller.is_allocated(1, 30));
    let at = raw.pages(1);
    assert!(raw.memory.put(at, &[DsmRange::new(100, 50), DsmRange::new(990, 10)]));
    let dsm = Command::DatasetManagement(DatasetManagement::deallocate(2));
    assert!(raw.io_data(dsm.to_sqe(1), at, 32).is_success());
    assert_eq!(raw.controller.allocated(1), 1000 - 20 - 60);
    assert_eq!(raw.controller.read_medium(1, 100, 50), vec![0; 50 * 512]);
    // All of a namespace that is larger than memory, and reads as ones.
    raw.controller.write_medium(2, 1 << 39, &[3; 4096]);
    assert!(raw.memory.put(at, &DsmRange::new((1 << 39) - 7, 1 << 31)));
    let dsm = Command::DatasetManagement(DatasetManagement::deallocate(1));
    assert!(raw.io_data(dsm.to_sqe(2), at, 16).is_success());
    assert_eq!(raw.controller.read_medium(2, 1 << 39, 1), [0xff; 4096]);
    // Copies: one range after the other.
    raw.controller.write_medium(1, 0, &[7; 512]);
    assert!(raw.memory.put(at, &[copy::Range::new(0, 1), copy::Range::new(30, 2)]));
    let copy = copy::Copy::new(500, 2);
    assert!(raw.io_data(copy.to_sqe(1), at, 64).is_success());
    let copied = raw.controller.read_medium(1, 500, 3);
    assert_eq!((&copied[..512], &copied[512..]), ([7; 512].as_slice(), [1; 1024].as_slice()));
    assert!(raw.io(Command::Verify(Transfer::new(0, 1000)).to_sqe(1)).is_success());
    raw.fill(at, 512, 0);
    let compare = Command::Compare(Transfer::new(0, 1));
    assert_eq!(raw.io_data(compare.to_sqe(1), at, 512), Status::COMPARE_FAILURE);
    raw.controller.set_write_protected(1, true);
    let write = Command::Write(Transfer::new(0, 1));
    let refused = raw.io_data(write.to_sqe(1), at, 512);
    assert!(refused.same_code(Status::NAMESPACE_WRITE_PROTECTED));
    raw.innocent();
}

#[test]
fn interrupts_come_masked_or_not_and_get_lost() {
    let mut raw = Raw::ready(1, Options::default());
    let eventfds: Vec<_> = (0..3)
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
        .collect();
    let ours: Vec<_> = eventfds.iter().map(|fd| fd.try_clone().unwrap()).collect();
    raw.controller.settle();
    raw.function.connect(eventfds).unwrap();
    raw.function.mask(1);
    assert!(raw.io(flush()).is_success());
    raw.controller.settle();
    assert!(!readable(&ours[1]));
    raw.function.unmask(1);
    raw.controller.settle();
    assert!(readable(&ours[1]) && !readable(&ours[0]));
    assert_eq!(raw.controller.interrupts(), 1);
    raw.controller.lose_interrupts(1);
    assert!(raw.io(flush()).is_success());
    raw.controller.settle();
    assert_eq!(raw.controller.interrupts(), 1);
    // A queue without interrupts.
    let cq = raw.pages(1);
    let create = raw.create_cq(2, 16, cq, None);
    raw.admin_ok(create);
    raw.admin_ok(pcie::Command::DeleteIoCompletionQueue(2).to_sqe(Prps::default()));
    raw.innocent();
}

#[test]
fn chance_does_what_it_is_told_to() {
    let often = 100_000;
    let chaos = Chaos {
        transient: often,
        permanent: often,
        late: often,
        duplicate: often,
        ghost: often,
        ..Chaos::default()
    };
    let mut raw = Raw::ready(3, Options::default());
    raw.controller.set_chaos(chaos);
    let (mut failed, mut extra) = (0, 0);
    for _ in 0..300 {
        let cid = raw.submit(1, flush());
        raw.controller.settle();
        let mut own = 0;
        while let Some(cqe) = raw.poll(1) {
            own += u32::from(cqe.cid.get() == cid);
            extra += u32::from(cqe.cid.get() != cid);
            failed += u32::from(!cqe.status().is_success());
        }
        assert!(own > 0);
    }
    assert!(failed > 30 && extra > 10, "{failed} {extra}");
    raw.innocent();
}
