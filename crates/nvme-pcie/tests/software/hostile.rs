//! Nothing that a driver does makes the controller panic, and a thread may step it while others drive it.

use std::sync::atomic::{AtomicBool, Ordering};

use nvme::io::{Command, Transfer};
use nvme::register::offset;
use nvme::{Prps, Sqe};
use nvme_pcie::software::{Chaos, Options};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::raw::Raw;

/// Something that no driver does.
#[derive(Debug, Clone)]
enum Nonsense {
    Entry { index: usize, bytes: Vec<u8>, opcode: u8, nsid: u32, tame: bool },
    Register { at: usize, value: u32 },
    Memory { at: usize, value: u64 },
    Steps(usize),
    Abandon,
    Cut,
}

fn nonsense() -> impl Strategy<Value = Nonsense> {
    let entry =
        (0..2_usize, prop::collection::vec(any::<u8>(), 64), 0..0x26_u8, 0..3_u32, any::<bool>())
            .prop_map(|(index, bytes, opcode, nsid, tame)| Nonsense::Entry {
                index,
                bytes,
                opcode,
                nsid,
                tame,
            });
    let register = (0..0x420_usize, prop_oneof![0..20_u32, any::<u32>()])
        .prop_map(|(word, value)| Nonsense::Register { at: word * 4, value });
    let doorbell = (0..8_usize, 0..20_u32)
        .prop_map(|(word, value)| Nonsense::Register { at: offset::DOORBELLS + word * 4, value });
    let memory = (0..1000_usize, any::<u64>())
        .prop_map(|(word, value)| Nonsense::Memory { at: word * 8, value });
    prop_oneof![
        10 => entry,
        2 => register,
        3 => doorbell,
        2 => memory,
        5 => (0..50_usize).prop_map(Nonsense::Steps),
        1 => Just(Nonsense::Abandon),
        1 => Just(Nonsense::Cut),
    ]
}

/// Does everything right up to an I/O queue, away from the memory that nonsense goes to.
fn begin(raw: &mut Raw, chaos: Chaos) {
    raw.controller.set_chaos(Chaos::default());
    raw.pages(if raw.queues.is_empty() { 256 } else { 1 });
    raw.enable(16);
    raw.grant(4);
    raw.create_pair(1, 16);
    raw.controller.set_chaos(chaos);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_is_survived(seed: u64, acts in prop::collection::vec(nonsense(), 1..80)) {
        let sgls = nvme::identify::SglSupport::SUPPORTED;
        let chaos = Chaos { late: 100_000, duplicate: 100_000, ghost: 100_000, hang: 50_000, ..Chaos::default() };
        let options = Options { sgls, shadow_doorbells: true, ..Options::default() };
        let mut raw = Raw::open(seed, options);
        begin(&mut raw, chaos);
        for act in acts {
            match act {
                Nonsense::Entry { index, bytes, opcode, nsid, tame } => {
                    let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
                    sqe.opcode = opcode;
                    sqe.nsid.set(nsid);
                    sqe.flags &= 0x41;
                    if tame {
                        sqe.flags &= 0x40;
                        sqe.cdw10.set(sqe.cdw10.get() & 0x000f_000f);
                        sqe.cdw11.set(sqe.cdw11.get() & 0x0001_0003);
                        sqe.cdw12.set(sqe.cdw12.get() & 0x4000_00ff);
                        let first = raw.iova(usize::from(bytes[0]) * 4096);
                        let second = raw.iova(usize::from(bytes[1]) * 4096);
                        sqe.dptr = Prps { first, second }.into();
                    }
                    raw.push_as(index.min(raw.queues.len() - 1), sqe);
                    raw.ring_tail(index);
                }
                Nonsense::Register { at, value } => raw.function.registers().write32(at, value),
                Nonsense::Memory { at, value } => {
                    raw.memory.put(at, &value.to_le_bytes());
                }
                Nonsense::Steps(steps) => {
                    raw.controller.run(steps);
                }
                Nonsense::Abandon => {
                    raw.function.reset().unwrap();
                    begin(&mut raw, chaos);
                }
                Nonsense::Cut => {
                    raw.controller.power_cut();
                    raw.controller.insert();
                    let controller = raw.controller.clone();
                    drop(raw);
                    raw = Raw::open_again(controller);
                    begin(&mut raw, chaos);
                }
            }
        }
        raw.controller.run(5_000);
        drop(raw.controller.violations());
    }
}

#[test]
fn a_thread_steps_while_another_drives() {
    let mut raw = Raw::ready(9, Options::default());
    let at = raw.pages(15);
    raw.controller.settle();
    let (controller, ended) = (raw.controller.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if !controller.step() {
                    std::thread::yield_now();
                }
            }
        });
        let mut free: Vec<u16> = (0..15).collect();
        let (mut submitted, mut answered) = (0_u64, 0);
        while answered < 20_000 {
            let batch = free.len();
            for cid in free.drain(..) {
                let prps = Prps { first: raw.iova(at + usize::from(cid) * 4096), second: 0 };
                let transfer = Transfer::new(submitted % 1000 * 8, 8);
                let command = match submitted % 2 {
                    0 => Command::Write(transfer),
                    _ => Command::Read(transfer),
                };
                raw.push_as(1, command.to_sqe(1).with_prps(prps).with_cid(cid));
                submitted += 1;
            }
            if batch > 0 {
                raw.ring_tail(1);
            }
            while let Some(cqe) = raw.peek(1) {
                assert!(cqe.status().is_success(), "{}", cqe.status());
                free.push(cqe.cid.get());
                answered += 1;
            }
            if free.is_empty() {
                std::hint::spin_loop();
            } else {
                raw.ring_head(1);
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    raw.innocent();
}
