//! Enabling, identifying, queues, reading and writing.

use nvme::admin::{self, Identify};
use nvme::identify::SglSupport;
use nvme::identify::{Cns, IdentifyController, IdentifyNamespace, NamespaceList};
use nvme::io::{Command, Opcode, Transfer};
use nvme::pcie;
use nvme::register::{Capabilities, Configuration, Version, offset};
use nvme::{LocalSgl, Prps, Status};
use nvme_pcie::software::{NamespaceOptions, Options};
use zerocopy::FromBytes;

use crate::raw::Raw;

#[test]
fn it_says_what_it_is_and_becomes_ready() {
    let mut raw = Raw::open(1, Options::default());
    let registers = raw.function.registers();
    let cap = Capabilities::from_bits(registers.read64(offset::CAP));
    assert_eq!((cap.mqes, cap.dstrd, cap.cqr, cap.mpsmin), (1023, 0, true, 0));
    assert_eq!(Version::from_bits(registers.read32(offset::VS)), Version::V2_0);
    assert!(!raw.controller.step());
    raw.enable(16);
    let at = raw.pages(1);
    let identify = admin::Command::Identify(Identify::new(Cns::Controller)).to_sqe(0);
    assert!(raw.admin_data(identify, at).status().is_success());
    let data = IdentifyController::read_from_bytes(&raw.bytes(at, 4096)).unwrap();
    assert_eq!(&data.sn[..8], b"SOFT0001");
    assert_eq!((data.mdts, data.nn.get(), data.vwc), (5, 32, 0b111));
    let identify = admin::Command::Identify(Identify::new(Cns::ActiveNamespaces)).to_sqe(0);
    assert!(raw.admin_data(identify, at).status().is_success());
    let list = NamespaceList::read_from_bytes(&raw.bytes(at, 4096)).unwrap();
    assert_eq!(list.iter().collect::<Vec<_>>(), [1]);
    let identify = admin::Command::Identify(Identify::new(Cns::Namespace)).to_sqe(1);
    assert!(raw.admin_data(identify, at).status().is_success());
    let data = IdentifyNamespace::read_from_bytes(&raw.bytes(at, 4096)).unwrap();
    assert_eq!((data.nsze.get(), data.format().unwrap().block_size()), (128 << 10, Some(512)));
    raw.disable();
    raw.enable(2);
    raw.innocent();
}

#[test]
fn what_is_written_is_read_however_it_lies_in_memory() {
    for seed in 0..40_usize {
        let options = Options { mdts: 0, round_robin: seed % 2 == 0, ..Options::default() };
        let mut raw = Raw::ready(seed as u64, options);
        // From within a page to lists that lead on to other lists.
        let blocks = [1, 7, 8, 9, 16, 17, 100, 1024, 4200][seed % 9];
        let len = blocks * 512;
        let (from, to) = (raw.pages(len / 4096 + 2) + seed % 5 * 512, raw.pages(len / 4096 + 2));
        let to = to + seed % 7 * 4;
        let data = raw.fill(from, len, seed as u8);
        let transfer = Transfer::new(seed as u64 * 3, blocks as u32);
        let status = raw.io_data(Command::Write(transfer).to_sqe(1), from, len);
        assert!(status.is_success(), "{status}");
        assert_eq!(raw.controller.read_medium(1, seed as u64 * 3, blocks as u64), data);
        let status = raw.io_data(Command::Read(transfer).to_sqe(1), to, len);
        assert!(status.is_success(), "{status}");
        assert_eq!(raw.bytes(to, len), data);
        assert_eq!(raw.controller.io_commands(Opcode::Write), 1);
        raw.innocent();
    }
}

#[test]
fn a_list_may_begin_within_its_page() {
    let mut raw = Raw::ready(3, Options::default());
    let at = raw.pages(9);
    let data = raw.fill(at, 9 * 4096, 1);
    // Three of eight entries fit in the first page of the list.
    let pages: Vec<u64> = (1..9).map(|page| raw.iova(at + page * 4096)).collect();
    let prps = Prps { first: raw.iova(at), second: raw.list(&pages, 4096 - 32) };
    let write = Command::Write(Transfer::new(0, 72)).to_sqe(1).with_prps(prps);
    assert!(raw.call(1, write).status().is_success());
    assert_eq!(raw.controller.read_medium(1, 0, 72), data);
    raw.innocent();
}

#[test]
fn sgls_lead_where_they_say() {
    let sgls = SglSupport::SUPPORTED | SglSupport::BIT_BUCKET;
    let mut raw = Raw::ready(4, Options { sgls, ..Options::default() });
    let at = raw.pages(4);
    let data = raw.fill(at, 8192, 9);
    let write = Command::Write(Transfer::new(5, 16)).to_sqe(1);
    let whole = LocalSgl::Data { address: raw.iova(at), length: 8192 };
    assert!(raw.call(1, write.with_local_sgl(whole)).status().is_success());
    assert_eq!(raw.controller.read_medium(1, 5, 16), data);
    // Odd pieces in two segments, and some of it nowhere.
    let to = raw.iova(at + 8192);
    let last = raw.segment(&[
        LocalSgl::BitBucket { length: 1000 },
        LocalSgl::Data { address: to + 1101, length: 8192 - 2001 },
    ]);
    let first = raw.segment(&[
        LocalSgl::Data { address: to, length: 1001 },
        LocalSgl::LastSegment { address: last, length: 32 },
    ]);
    let read = Command::Read(Transfer::new(5, 16)).to_sqe(1);
    let segments = LocalSgl::Segment { address: first, length: 32 };
    assert!(raw.call(1, read.with_local_sgl(segments)).status().is_success());
    let back = raw.bytes(at + 8192, 8192);
    assert_eq!(back[..1001], data[..1001]);
    assert_eq!(back[1001..1101], [0; 100]);
    assert_eq!(back[1101..1101 + 8192 - 2001], data[2001..]);
    assert_eq!(raw.controller.commands_by_sgl(), 2);
    raw.innocent();
}

#[test]
fn commands_overtake_each_other() {
    let mut raw = Raw::ready(7, Options::default());
    let cids: Vec<u16> =
        (0..15).map(|_| raw.push(1, Command::Flush.to_sqe(1).with_prps(Prps::default()))).collect();
    raw.ring_tail(1);
    raw.controller.settle();
    let answered: Vec<u16> = std::iter::from_fn(|| raw.poll(1)).map(|cqe| cqe.cid.get()).collect();
    assert_ne!(answered, cids);
    let mut sorted = answered;
    sorted.sort_unstable();
    assert_eq!(sorted, cids);
    assert_eq!(raw.controller.doorbells().submission, 4);
    raw.innocent();
}

#[test]
fn a_seed_determines_everything() {
    let run = |seed| {
        let mut raw = Raw::ready(seed, Options::default());
        for _ in 0..15 {
            raw.push(1, Command::Flush.to_sqe(1).with_prps(Prps::default()));
        }
        raw.ring_tail(1);
        let steps = raw.controller.run(10_000);
        let order = std::iter::from_fn(|| raw.poll(1)).map(|cqe| cqe.cid.get()).collect::<Vec<_>>();
        (steps, order)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    let mut raw = Raw::open(2, Options::default());
    raw.enable(16);
    raw.grant(1);
    let (sq, cq) = (raw.pages(1), raw.pages(1));
    let create = raw.create_cq(1, 4, cq, None);
    raw.admin_ok(create);
    let create = raw.create_sq(1, 32, sq, 1);
    raw.admin_ok(create);
    raw.queues.push(crate::raw::Queue::new(1, 32, sq, cq));
    for _ in 0..20 {
        raw.push(1, Command::Flush.to_sqe(1).with_prps(Prps::default()));
    }
    raw.ring_tail(1);
    raw.queues[1].entries = 4;
    let mut answered = 0;
    for _ in 0..20 {
        raw.controller.settle();
        while raw.peek(1).is_some() {
            answered += 1;
        }
        if answered < 20 {
            assert_eq!(raw.controller.completions(), answered + 4 - 1);
            raw.ring_head(1);
        }
    }
    assert_eq!(answered, 20);
    raw.innocent();
}

#[test]
fn what_is_beyond_or_not_there_is_a_status() {
    let namespaces = vec![
        NamespaceOptions::new(1, 512, 100),
        NamespaceOptions { metadata: 8, ..NamespaceOptions::new(3, 4096, 100) },
    ];
    let mut raw = Raw::ready(1, Options { namespaces, ..Options::default() });
    let at = raw.pages(1);
    let read = |slba, blocks| Command::Read(Transfer::new(slba, blocks));
    for (command, nsid, status) in [
        (read(99, 2), 1, Status::LBA_OUT_OF_RANGE),
        (read(u64::MAX, 1), 1, Status::LBA_OUT_OF_RANGE),
        (read(0, 1), 2, Status::INVALID_NAMESPACE),
        (read(0, 1), 3, Status::INVALID_NAMESPACE),
    ] {
        assert_eq!(raw.io_data(command.to_sqe(nsid), at, 512), status.with_dnr().with_more());
    }
    assert!(raw.io_data(read(99, 1).to_sqe(1), at, 512).is_success());
    raw.innocent();
}

#[test]
fn queues_go_as_they_came() {
    for seed in 0..20 {
        let mut raw = Raw::ready(seed, Options::default());
        raw.create_pair(2, 8);
        assert_eq!(raw.controller.queues().submission, [(1, 1), (2, 2)]);
        // With commands under way, which end or are forgotten.
        for _ in 0..5 {
            raw.push(2, Command::Flush.to_sqe(1).with_prps(Prps::default()));
        }
        raw.ring_tail(2);
        raw.controller.run(usize::try_from(seed).unwrap() * 2);
        raw.admin_ok(pcie::Command::DeleteIoSubmissionQueue(2).to_sqe(Prps::default()));
        while let Some(cqe) = raw.poll(2) {
            let status = cqe.status();
            assert!(status.is_success() || status == Status::ABORTED_SQ_DELETION, "{status}");
        }
        raw.admin_ok(pcie::Command::DeleteIoCompletionQueue(2).to_sqe(Prps::default()));
        assert_eq!(raw.controller.queues().completion, [(1, Some(1))]);
        assert_eq!(raw.controller.outstanding(), 0);
        raw.queues.pop();
        raw.create_pair(2, 8);
        raw.innocent();
    }
}

#[test]
fn larger_pages_and_doorbells_further_apart() {
    let options = Options { dstrd: 2, mpsmin: 1, ..Options::default() };
    let mut raw = Raw::open(1, options);
    raw.pages(1);
    raw.prepare(8);
    // ASQ and ACQ begin pages of 8 KiB.
    let sq = raw.pages(2) / 8192 * 8192 + 8192;
    raw.pages(4);
    let registers = raw.function.registers();
    registers.write64(offset::ASQ, raw.iova(sq));
    registers.write64(offset::ACQ, raw.iova(sq + 8192));
    raw.queues[0] = crate::raw::Queue::new(0, 8, sq, sq + 8192);
    raw.configure(Configuration { mps: 1, ..Raw::configuration() });
    assert!(raw.until(|| raw.csts().rdy));
    raw.grant(1);
    raw.innocent();
}
