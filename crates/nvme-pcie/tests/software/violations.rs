//! Whatever a driver can do wrong is noticed, and answered with the status that the specification has for it.

use nvme::admin::{self, GetLogPage, SetFeatures};
use nvme::feature::{Feature, NumberOfQueues};
use nvme::identify::{OptionalCommands, SglSupport};
use nvme::io::{Command, DatasetManagement, DsmRange, Protection, Transfer};
use nvme::log::LogPage;
use nvme::pcie;
use nvme::register::{Configuration, ShutdownNotification, offset};
use nvme::{LocalSgl, Prps, Sqe, Status, copy};
use nvme_pcie::Pages;
use nvme_pcie::function::{ARENA_IOVA, Mapping};
use nvme_pcie::software::{Fault, Options, Target};
use std::sync::Arc;

use crate::raw::Raw;

fn ready() -> Raw {
    Raw::ready(11, Options { sgls: SglSupport::DWORD, ..Options::default() })
}

fn flush() -> Sqe {
    Command::Flush.to_sqe(1).with_prps(Prps::default())
}

fn read(blocks: u32) -> Sqe {
    Command::Read(Transfer::new(0, blocks)).to_sqe(1)
}

/// Enables a controller that was prepared by `wrong`, and expects to hear of it.
#[track_caller]
fn enable_wrongly(of: &str, wrong: impl FnOnce(&Raw, &mut Configuration)) {
    let mut raw = Raw::open(1, Options { mpsmax: 0, ..Options::default() });
    raw.prepare(16);
    let mut cc = Raw::configuration();
    wrong(&raw, &mut cc);
    raw.configure(cc);
    raw.controller.settle();
    assert!(raw.csts().cfs && !raw.csts().rdy);
    raw.guilty(of);
}

#[test]
fn controllers_that_are_enabled_wrongly_fail() {
    let write = |at: usize, value: u32| {
        move |raw: &Raw, _: &mut Configuration| raw.function.registers().write32(at, value)
    };
    enable_wrongly("fewer than two", write(offset::AQA, 0));
    enable_wrongly("AQA has reserved bits", write(offset::AQA, 0x000f_f00f));
    enable_wrongly("ASQ", |raw, _| {
        raw.function.registers().write64(offset::ASQ, raw.iova(0) + 64);
    });
    enable_wrongly("ACQ", |raw, _| {
        raw.function.registers().write64(offset::ACQ, raw.iova(crate::raw::MEMORY));
    });
    enable_wrongly("CC.MPS", |_, cc| cc.mps = 1);
    enable_wrongly("CC.CSS", |_, cc| cc.css = 1);
    enable_wrongly("CC.AMS", |_, cc| cc.ams = 1);
    enable_wrongly("CC.CRIME", |_, cc| cc.crime = true);
    enable_wrongly("phase tag", |raw, _| {
        assert!(raw.memory.put(4096 + 5 * 16 + 14, &1_u16.to_le_bytes()));
    });
}

#[test]
fn registers_are_written_in_their_time_only() {
    let raw = ready();
    let registers = raw.function.registers();
    for at in [offset::AQA, offset::ASQ, offset::ACQ + 4] {
        registers.write32(at, 0x10_0000);
        raw.controller.settle();
        raw.guilty("written while CC.EN is set");
    }
    for at in [offset::CAP, offset::VS, offset::CSTS, offset::INTMS, offset::NSSR, offset::CRTO] {
        let value = registers.read32(at);
        registers.write32(at, 0x5555_5555);
        raw.controller.settle();
        assert_eq!(registers.read32(at), value);
        raw.guilty("is not to be written");
    }
    raw.configure(Configuration { mps: 1, ..Raw::configuration() });
    raw.controller.settle();
    raw.guilty("while CC.EN is set");
    raw.configure(Configuration { shn: ShutdownNotification::Reserved, ..Raw::configuration() });
    raw.controller.settle();
    raw.guilty("");
    registers.write32(offset::DOORBELLS + 0xff0, 1);
    raw.guilty("which is no doorbell");
}

#[test]
fn enabling_and_disabling_wait_for_the_controller() {
    let raw = ready();
    raw.controller.settle();
    raw.configure(Configuration { en: false, ..Raw::configuration() });
    assert!(raw.controller.step());
    raw.configure(Raw::configuration());
    assert!(raw.until(|| !raw.controller.violations().is_empty()));
    raw.guilty("CC.EN set before CSTS.RDY was clear");
    let mut raw = Raw::open(1, Options { ready_steps: 50, ..Options::default() });
    raw.prepare(16);
    raw.configure(Raw::configuration());
    raw.controller.run(3);
    raw.configure(Configuration { en: false, ..Raw::configuration() });
    raw.controller.settle();
    raw.guilty("CC.EN cleared before CSTS.RDY was set");
}

#[test]
fn doorbells_are_rung_with_sense() {
    let mut raw = ready();
    let registers = raw.function.registers();
    for (place, value, of) in [
        (offset::tail_doorbell(1, 0), 16, "it has 16 entries"),
        (offset::tail_doorbell(1, 0), 0, "the value that it had"),
        (offset::head_doorbell(1, 0), 16, "it has 16 entries"),
        (offset::head_doorbell(1, 0), 1, "and its tail is 0"),
        (offset::head_doorbell(1, 0), 0, "the value that it had"),
        (offset::tail_doorbell(2, 0), 1, "does not exist"),
        (offset::head_doorbell(2, 0), 1, "does not exist"),
        (offset::tail_doorbell(17, 0), 1, "does not exist"),
    ] {
        registers.write32(place, value);
        raw.controller.settle();
        raw.guilty(of);
    }
    // Fifteen fit; they are taken at once, and yet their places are not free before a completion says so.
    for _ in 0..15 {
        raw.push(1, flush());
    }
    raw.ring_tail(1);
    assert!(raw.controller.set_stuck(1, true));
    raw.controller.settle();
    raw.innocent();
    raw.submit(1, flush());
    raw.controller.settle();
    raw.guilty("only 0 were free");
    // None of a queue after its shutdown.
    let mut raw = ready();
    raw.configure(Configuration { shn: ShutdownNotification::Normal, ..Raw::configuration() });
    raw.controller.settle();
    raw.submit(1, flush());
    raw.controller.settle();
    raw.guilty("after CC.SHN");
}

#[test]
fn an_identifier_is_one_command_s() {
    let mut raw = ready();
    raw.plan_hang();
    raw.push_as(1, flush().with_cid(7));
    raw.push_as(1, flush().with_cid(7));
    raw.ring_tail(1);
    raw.controller.settle();
    assert_eq!(raw.poll(1).unwrap().status(), Status::COMMAND_ID_CONFLICT.with_dnr());
    raw.guilty("outstanding already");
    raw.push_as(1, flush().with_cid(u16::MAX));
    raw.ring_tail(1);
    raw.controller.settle();
    raw.guilty("FFFFh");
}

impl Raw {
    fn plan_hang(&self) {
        self.controller.plan(Target::AnyIo, Fault::Hangs);
    }
}

#[test]
fn queues_are_created_with_sense() {
    let mut raw = Raw::open(1, Options::default());
    raw.enable(16);
    let page = raw.pages(4);
    let cq = |raw: &mut Raw, qid, entries| raw.create_cq(qid, entries, page, None);
    let expect = |raw: &mut Raw, sqe: Sqe, status: Status, of: &str| {
        let answer = raw.call(0, sqe);
        assert!(answer.status().same_code(status), "{of}: {}", answer.status());
        raw.guilty(of);
    };
    let create = cq(&mut raw, 1, 16);
    expect(&mut raw, create, Status::INVALID_QUEUE_ID, "before the number of queues");
    assert_eq!(raw.grant(100), 16);
    for (qid, entries, status, of) in [
        (0, 16, Status::INVALID_QUEUE_ID, "completion queue 0"),
        (17, 16, Status::INVALID_QUEUE_ID, "more than 16"),
        (1, 1, Status::INVALID_QUEUE_SIZE, "1 entries"),
        (1, 1025, Status::INVALID_QUEUE_SIZE, "1025 entries"),
    ] {
        let create = cq(&mut raw, qid, entries);
        expect(&mut raw, create, status, of);
    }
    let vector = raw.create_cq(1, 16, page, Some(17));
    expect(&mut raw, vector, Status::INVALID_INTERRUPT_VECTOR, "vector");
    let offset = raw.create_cq(1, 16, page + 16, None);
    expect(&mut raw, offset, Status::PRP_OFFSET_INVALID, "does not begin a page");
    let outside = raw.create_cq(1, 16, crate::raw::MEMORY, None);
    expect(&mut raw, outside, Status::DATA_TRANSFER_ERROR, "not mapped");
    let mut pieces = cq(&mut raw, 1, 16);
    pieces.cdw11.set(0);
    expect(&mut raw, pieces, Status::INVALID_FIELD, "not contiguous");
    let lone = raw.create_sq(1, 16, page + 4096, 1);
    expect(&mut raw, lone, Status::INVALID_COMPLETION_QUEUE, "with completion queue 1");
    let admin = raw.create_sq(1, 16, page + 4096, 0);
    expect(&mut raw, admin, Status::INVALID_QUEUE_ID, "with completion queue 0");
    assert!(raw.memory.put(page + 4096 + 14, &1_u16.to_le_bytes()));
    let dirty = raw.create_cq(1, 16, page + 4096, None);
    raw.admin_ok(dirty);
    raw.guilty("phase tag");
    let create = raw.create_sq(1, 16, page, 1);
    raw.admin_ok(create);
    let again = cq(&mut raw, 1, 16);
    expect(&mut raw, again, Status::INVALID_QUEUE_ID, "or there");
    let number = NumberOfQueues { submission: 1, completion: 1 };
    let number = SetFeatures::new(Feature::NumberOfQueues, number.into());
    let number = admin::Command::SetFeatures(number).to_sqe(0).with_prps(Prps::default());
    expect(&mut raw, number, Status::COMMAND_SEQUENCE_ERROR, "after some were created");
    for (command, status, of) in [
        (
            pcie::Command::DeleteIoCompletionQueue(1),
            Status::INVALID_QUEUE_DELETION,
            "before its submission queues",
        ),
        (pcie::Command::DeleteIoCompletionQueue(2), Status::INVALID_QUEUE_ID, "does not exist"),
        (pcie::Command::DeleteIoSubmissionQueue(0), Status::INVALID_QUEUE_ID, "does not exist"),
        (pcie::Command::DoorbellBufferConfig, Status::INVALID_OPCODE, "OACS"),
    ] {
        expect(&mut raw, command.to_sqe(Prps::default()), status, of);
    }
}

#[test]
fn prps_are_where_they_may_be() {
    let mut raw = ready();
    let at = raw.pages(8);
    let base = raw.iova(at);
    let outside = raw.iova(crate::raw::MEMORY);
    let good: Vec<u64> = (1..4).map(|page| base + page * 4096).collect();
    let list = raw.list(&good, 0);
    let bad_entry = raw.list(&[base + 4096, base + 8196, base], 0);
    let bad_place = raw.list(&[base + 4096, outside, base], 0);
    for (first, second, blocks, status, of) in [
        (base + 2, 0, 1, Status::PRP_OFFSET_INVALID, "aligned to a dword"),
        (base, base, 8, Status::SUCCESS, "one page is enough"),
        (base, base + 4100, 16, Status::PRP_OFFSET_INVALID, "beginning of a page"),
        (base + 4, 0, 8, Status::DATA_TRANSFER_ERROR, "not mapped"),
        (base, list + 4, 32, Status::PRP_OFFSET_INVALID, "aligned to a qword"),
        (base, outside, 32, Status::DATA_TRANSFER_ERROR, "PRP list"),
        (base, bad_entry, 32, Status::PRP_OFFSET_INVALID, "beginning of a page"),
        (base, bad_place, 32, Status::DATA_TRANSFER_ERROR, "not mapped"),
        (outside - 4096, outside, 16, Status::DATA_TRANSFER_ERROR, "not mapped"),
        (0, 0, 1, Status::DATA_TRANSFER_ERROR, "not mapped"),
        (u64::MAX - 3, 0, 1, Status::DATA_TRANSFER_ERROR, "not mapped"),
        (base, 0, 257, Status::INVALID_FIELD, "MDTS"),
    ] {
        let answer = raw.call(1, read(blocks).with_prps(Prps { first, second }));
        assert!(answer.status().same_code(status), "{of}: {}", answer.status());
        raw.guilty(of);
    }
    assert_eq!(raw.controller.iommu_faults(), 6);
    let chained = raw.pages(2);
    let last = chained + 4096 - 8;
    assert!(raw.memory.put(last, &(raw.iova(chained + 4096) + 8).to_le_bytes()));
    let prps = Prps { first: base, second: raw.iova(last) };
    let answer = raw.call(1, read(32).with_prps(prps));
    assert!(answer.status().same_code(Status::PRP_OFFSET_INVALID));
    raw.guilty("beginning of a page");
}

#[test]
fn sgls_are_what_they_may_be() {
    let mut raw = ready();
    let at = raw.pages(2);
    let address = raw.iova(at);
    let data = |length| LocalSgl::Data { address, length };
    let short = raw.segment(&[data(512), data(512)]);
    let nested = raw.segment(&[LocalSgl::LastSegment { address: short, length: 32 }, data(512)]);
    for (sgl, status, of) in [
        (data(512), Status::SGL_DATA_LENGTH_INVALID, "too short"),
        (data(4096), Status::SGL_DATA_LENGTH_INVALID, "longer than the data"),
        (
            LocalSgl::Data { address: address + 2, length: 1024 },
            Status::SGL_GRANULARITY_INVALID,
            "dwords",
        ),
        (LocalSgl::Data { address: 0, length: 1024 }, Status::DATA_TRANSFER_ERROR, "not mapped"),
        (LocalSgl::BitBucket { length: 1024 }, Status::SGL_TYPE_INVALID, "not supported"),
        (LocalSgl::Other(0x41), Status::SGL_TYPE_INVALID, "not supported"),
        (
            LocalSgl::LastSegment { address: short, length: 24 },
            Status::INVALID_SGL_SEGMENT,
            "24 bytes",
        ),
        (
            LocalSgl::LastSegment { address: short, length: 0 },
            Status::INVALID_SGL_SEGMENT,
            "0 bytes",
        ),
        (
            LocalSgl::LastSegment { address: short + 4, length: 32 },
            Status::INVALID_SGL_SEGMENT,
            "segment",
        ),
        (
            LocalSgl::LastSegment { address: 16, length: 32 },
            Status::DATA_TRANSFER_ERROR,
            "SGL segment",
        ),
        (
            LocalSgl::LastSegment { address: nested, length: 32 },
            Status::INVALID_SGL_SEGMENT,
            "belongs",
        ),
        (LocalSgl::Segment { address: short, length: 32 }, Status::INVALID_SGL_SEGMENT, "belongs"),
        (
            LocalSgl::LastSegment { address: short, length: 16 },
            Status::SGL_DATA_LENGTH_INVALID,
            "too short",
        ),
    ] {
        let answer = raw.call(1, read(2).with_local_sgl(sgl));
        assert!(answer.status().same_code(status), "{of}: {}", answer.status());
        raw.guilty(of);
    }
    let mut reserved = read(2).with_local_sgl(data(1024));
    reserved.dptr.specific[5] = 1;
    assert!(raw.call(1, reserved).status().is_success());
    raw.guilty("reserved bits");
    // Segments that lead to themselves end.
    let circle = raw.segment(&[LocalSgl::Other(0)]);
    let next = LocalSgl::Segment { address: circle, length: 16 };
    let place = usize::try_from(circle - raw.iova(0)).unwrap();
    assert!(raw.memory.put(place, &nvme::SglDescriptor::from(next)));
    let answer = raw.call(1, read(2).with_local_sgl(next));
    assert!(answer.status().same_code(Status::SGL_DATA_LENGTH_INVALID));
    raw.guilty("too short");
    // A controller without SGLs, and the admin queue of any.
    let mut raw = Raw::ready(1, Options::default());
    let answer = raw.call(1, read(2).with_local_sgl(data(1024)));
    assert!(answer.status().same_code(Status::INVALID_FIELD));
    raw.guilty("PSDT");
    let answer = raw.call(0, admin::Command::AsynchronousEventRequest.to_sqe(0));
    assert!(answer.status().same_code(Status::INVALID_FIELD));
    raw.guilty("PSDT");
}

#[test]
fn entries_keep_to_what_is_defined() {
    let mut raw = ready();
    let page = raw.pages(1);
    let with = |change: &dyn Fn(&mut Sqe)| {
        let mut sqe = flush();
        change(&mut sqe);
        sqe
    };
    for (sqe, status, of) in [
        (with(&|sqe| sqe.flags = 0xc0), Status::INVALID_FIELD, "PSDT"),
        (with(&|sqe| sqe.flags = 1), Status::INVALID_FIELD, "fused"),
        (with(&|sqe| sqe.flags = 3), Status::INVALID_FIELD, "fused"),
        (with(&|sqe| sqe.flags = 4), Status::SUCCESS, "beside FUSE"),
        (with(&|sqe| sqe.cdw12.set(1)), Status::SUCCESS, "dword 12"),
        (with(&|sqe| sqe.cdw2.set(1)), Status::SUCCESS, "dwords 2, 3"),
        (with(&|sqe| sqe.mptr.set(1)), Status::SUCCESS, "metadata pointer"),
        (with(&|sqe| sqe.dptr.address.set(1)), Status::SUCCESS, "a data pointer"),
        (with(&|sqe| sqe.nsid.set(0)), Status::INVALID_NAMESPACE, "NSID 0h"),
    ] {
        let answer = raw.call(1, sqe);
        assert!(answer.status().same_code(status), "{of}: {}", answer.status());
        raw.guilty(of);
    }
    let prps = Prps { first: raw.iova(page), second: 0 };
    let broadcast = Command::Read(Transfer::new(0, 1)).to_sqe(nvme::NSID_ALL).with_prps(prps);
    assert!(raw.call(1, broadcast).status().same_code(Status::INVALID_NAMESPACE));
    raw.guilty("NSID");
    let mut protected = Transfer::new(0, 1);
    protected.protection = Protection { action: true, ..Protection::default() };
    let protected = Command::Read(protected).to_sqe(1).with_prps(prps);
    assert!(raw.call(1, protected).status().same_code(Status::INVALID_FIELD));
    raw.guilty("protection information");
    let named = pcie::Command::DeleteIoSubmissionQueue(1).to_sqe(Prps::default());
    let mut named = named;
    named.nsid.set(1);
    raw.admin_ok(named);
    raw.guilty("names a namespace");
    let unknown = Sqe::new(0xc0, 0).with_prps(Prps::default());
    assert!(raw.call(0, unknown).status().same_code(Status::INVALID_OPCODE));
    let events = SetFeatures::new(Feature::AsynchronousEvents, 1 << 30);
    let events = admin::Command::SetFeatures(events).to_sqe(0).with_prps(Prps::default());
    assert!(raw.call(0, events).status().same_code(Status::INVALID_FIELD));
    raw.guilty("not in OAES");
    let long = GetLogPage::new(LogPage::ErrorInformation, 0, 1 << 20);
    let long = admin::Command::GetLogPage(long).to_sqe(0);
    assert!(raw.admin_data(long, page).status().same_code(Status::INVALID_FIELD));
    raw.guilty("MDTS");
}

#[test]
fn what_the_controller_has_not_is_not_asked_for() {
    let oncs = OptionalCommands::COPY;
    let mut raw = Raw::ready(1, Options { oncs, ..Options::default() });
    let at = raw.pages(2);
    assert!(raw.memory.put(at, &DsmRange::new(0, 1)));
    let dsm = Command::DatasetManagement(DatasetManagement::deallocate(1)).to_sqe(1);
    let compare = Command::Compare(Transfer::new(0, 1)).to_sqe(1);
    for sqe in [dsm, compare] {
        assert!(raw.io_data(sqe, at, 512).same_code(Status::INVALID_OPCODE));
        raw.guilty("ONCS");
    }
    // A copy of more than there may be: ranges, blocks of a range, blocks in all.
    for (ranges, blocks) in [(17_u16, 1), (1, 257), (5, 256)] {
        for index in 0..ranges {
            let range = copy::Range::new(u64::from(index) * 1000, blocks);
            assert!(raw.memory.put(at + usize::from(index) * 32, &range));
        }
        let copy = copy::Copy::new(10_000, ranges);
        let len = usize::try_from(copy.data_length().unwrap()).unwrap();
        let status = raw.io_data(copy.to_sqe(1), at, len);
        assert!(status.same_code(Status::COMMAND_SIZE_LIMIT_EXCEEDED));
        raw.guilty("Copy of");
    }
    let mut long = copy::Copy::new(0, 1);
    long.format = 1;
    assert!(raw.io_data(long.to_sqe(1), at, 40).same_code(Status::INVALID_FIELD));
    raw.guilty("OCFS");
}

#[test]
fn memory_stays_mapped_while_it_is_in_use() {
    let mut raw = ready();
    let pages = Arc::new(Pages::new(8192, ARENA_IOVA).unwrap());
    raw.function.map(Mapping::pages(&pages)).unwrap();
    assert!(raw.function.map(Mapping::pages(&pages)).is_err());
    raw.guilty("mapped over something");
    raw.function.unmap(ARENA_IOVA + 4096);
    raw.guilty("nothing is mapped");
    raw.controller.plan(Target::AnyIo, Fault::Late(1000));
    raw.submit(1, read(16).with_prps(Prps { first: ARENA_IOVA, second: ARENA_IOVA + 4096 }));
    assert!(raw.until(|| raw.controller.outstanding() == 1));
    raw.function.unmap(ARENA_IOVA);
    raw.guilty("in use by command");
    raw.controller.settle();
    let answer = raw.poll(1).unwrap();
    assert!(answer.status().same_code(Status::DATA_TRANSFER_ERROR));
    raw.guilty("not mapped");
    let memory = raw.memory.iova();
    raw.function.unmap(memory);
    raw.guilty("unmapped, in use by");
    // The queues are gone with it.
    raw.ring_head(1);
    raw.controller.settle();
}

#[test]
fn vectors_are_those_there_are() {
    let raw = ready();
    raw.function.mask(17);
    raw.guilty("vector 17");
    let eventfd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    assert!(raw.function.connect((0..18).map(|_| eventfd()).collect()).is_err());
    raw.guilty("more eventfds");
}
