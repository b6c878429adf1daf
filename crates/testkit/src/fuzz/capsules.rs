//! A shard and a transport that tells it anything, in any order, within the contract of `target`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nvme::address::TransportType;
use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, PropertySet, PropertySize,
};
use nvme::sgl::Sgl;
use nvme::{HostId, Nqn, Sqe, Status};
use target::{ADMIN_IN_CAPSULE, Action, Borrows, QueueId, QueueInfo, RequestId};
use zerocopy::{FromBytes, IntoBytes};

use super::bench::{Bench, PORT, listener, peer};
use super::steps::Steps;
use crate::peer::{BLOCK, SUBSYSTEM, host_nqn};

const STEPS: usize = 300;

/// A command that the shard has taken and not answered.
#[derive(Debug)]
struct Taken {
    queue: QueueId,
    cid: u16,
    /// Data for it, where the script is not to make it up.
    data: Option<Box<ConnectData>>,
}

/// Data that the shard waits for.
#[derive(Debug)]
struct Owed {
    queue: QueueId,
    request: RequestId,
    length: u32,
    data: Option<Box<ConnectData>>,
}

#[derive(Debug)]
struct Transport {
    bench: Bench,
    queues: Vec<QueueId>,
    taken: BTreeMap<RequestId, Taken>,
    owed: VecDeque<Owed>,
    /// Answers on their way to the host.
    sending: VecDeque<(QueueId, RequestId)>,
    /// The controller that was made last.
    cntlid: u16,
    succeeded: u32,
}

/// Steps of a transport; how many commands succeeded.
pub fn capsules(bytes: &[u8]) -> u32 {
    let mut steps = Steps(bytes);
    let mut transport = Transport {
        bench: Bench::new(),
        queues: Vec::new(),
        taken: BTreeMap::new(),
        owed: VecDeque::new(),
        sending: VecDeque::new(),
        cntlid: 1,
        succeeded: 0,
    };
    for _ in 0..STEPS {
        if steps.is_over() {
            break;
        }
        transport.step(&mut steps);
        transport.act();
    }
    for queue in std::mem::take(&mut transport.queues) {
        transport.bench.shard.close_queue(queue);
    }
    transport.bench.ends_empty();
    transport.succeeded
}

impl Transport {
    fn step(&mut self, steps: &mut Steps<'_>) {
        match steps.byte() % 16 {
            0 => self.open(),
            1 => {
                let sqe = Sqe::read_from_bytes(&steps.array::<64>()).unwrap();
                let in_capsule = u32::from(steps.word()) % (ADMIN_IN_CAPSULE + 1);
                self.command(steps.byte(), &sqe, in_capsule, None);
            }
            // A good admin queue, as far as the script lets it become one.
            2 => self.connect(steps.byte(), 0, CNTLID_DYNAMIC),
            3 => {
                let (queue, qid) = (steps.byte(), u16::from(steps.byte() % 4));
                self.connect(queue, qid, self.cntlid);
            }
            4 => {
                let value = if steps.byte() & 1 == 0 { 0x0046_0001 } else { 0 };
                let set = PropertySet { size: PropertySize::Four, offset: 0x14, value };
                self.command(steps.byte(), &set.to_sqe(), 0, None);
            }
            // Commands with a data pointer that fits.
            5..=7 => {
                let mut sqe = Sqe::read_from_bytes(&steps.array::<64>()).unwrap();
                let length = u32::from(steps.byte() % 32 + 1) * BLOCK;
                let in_capsule = steps.byte() & 1 == 0 && length <= ADMIN_IN_CAPSULE;
                sqe = sqe.with_sgl(if in_capsule {
                    Sgl::InCapsule { offset: 0, length }
                } else {
                    Sgl::TransportData { length }
                });
                self.command(steps.byte(), &sqe, if in_capsule { length } else { 0 }, None);
            }
            8..=10 => self.bring_data(steps),
            11 | 12 => {
                if let Some((_, request)) = self.sending.pop_front() {
                    self.bench.shard.response_sent(request);
                }
            }
            13 => {
                let index = usize::from(steps.byte());
                if index < self.queues.len() {
                    self.close(index);
                }
            }
            14 => self.bench.wait(Duration::from_millis(u64::from(steps.word()))),
            _ => self.stale(steps),
        }
        self.bench.poll();
    }

    fn open(&mut self) {
        let info = QueueInfo {
            transport: TransportType::Tcp,
            local: listener(),
            peer: peer(),
            in_capsule_limit: 8192,
            borrows: Borrows::Anything,
        };
        let queue = self.bench.shard.open_queue(PORT, info);
        assert_eq!(queue.is_some(), self.queues.len() < 8, "as many queues as are allowed");
        self.queues.extend(queue);
    }

    fn queue(&self, index: u8) -> Option<QueueId> {
        let count = self.queues.len().max(1);
        self.queues.get(usize::from(index) % count).copied()
    }

    fn command(&mut self, queue: u8, sqe: &Sqe, in_capsule: u32, data: Option<Box<ConnectData>>) {
        let Some(queue) = self.queue(queue) else { return };
        if let Ok(request) = self.bench.shard.command(queue, sqe, in_capsule) {
            let taken = Taken { queue, cid: sqe.cid.get(), data };
            assert!(self.taken.insert(request, taken).is_none(), "two commands of one name");
        }
    }

    fn connect(&mut self, queue: u8, qid: u16, cntlid: u16) {
        let connect =
            Connect { recfmt: 0, qid, sqsize: 15, cattr: ConnectAttributes::default(), kato: 0 };
        let subsystem: Nqn = SUBSYSTEM.parse().unwrap();
        let data = ConnectData::new(HostId([7; 16]), cntlid, &subsystem, &host_nqn(1));
        let sgl = Sgl::InCapsule { offset: 0, length: 1024 };
        self.command(queue, &connect.to_sqe().with_sgl(sgl), 1024, Some(Box::new(data)));
    }

    fn bring_data(&mut self, steps: &mut Steps<'_>) {
        let Some(owed) = self.owed.pop_front() else { return };
        let segment = self.bench.shard.segment(owed.request, 0, owed.length).unwrap();
        let result = if let Some(data) = owed.data {
            segment.copy_from(0, data.as_bytes());
            Ok(())
        } else {
            let length = steps.byte();
            segment.copy_from(0, steps.bytes(usize::from(length)));
            if length == 255 { Err(Status::TRANSIENT_TRANSPORT_ERROR) } else { Ok(()) }
        };
        drop(segment);
        self.bench.shard.data_received(owed.request, result);
    }

    fn close(&mut self, index: usize) {
        let queue = self.queues.swap_remove(index);
        self.taken.retain(|_, taken| taken.queue != queue);
        self.owed.retain(|owed| owed.queue != queue);
        self.sending.retain(|(of, _)| *of != queue);
        self.bench.shard.close_queue(queue);
    }

    /// Names of nothing.
    fn stale(&mut self, steps: &mut Steps<'_>) {
        let slot = u32::from(steps.word());
        let request = RequestId { slot, generation: u32::MAX };
        let queue = QueueId { slot, generation: u32::MAX };
        let shard = &mut self.bench.shard;
        shard.data_received(request, Ok(()));
        shard.response_sent(request);
        shard.close_queue(queue);
        assert!(shard.segment(request, 0, 0).is_none());
        assert!(shard.command(queue, &Sqe::new(2, 1), 0).is_err());
    }

    /// Takes the shard's actions, and holds it to its word.
    fn act(&mut self) {
        while let Some(action) = self.bench.shard.next_action(PORT) {
            assert!(self.queues.contains(&action.queue()), "{action:?} for a queue that is closed");
            match action {
                Action::Receive { queue, request, length, .. } => {
                    let taken = self.taken.get_mut(&request).expect("data of a command");
                    assert_eq!(taken.queue, queue);
                    let data = taken.data.take();
                    assert!(length > 0 && self.bench.shard.segment(request, 0, length).is_some());
                    self.owed.push_back(Owed { queue, request, length, data });
                }
                Action::Respond { queue, request, cqe, data, .. } => {
                    let taken = self.taken.remove(&request).expect("one answer to a command");
                    assert_eq!((taken.queue, taken.cid), (queue, cqe.cid.get()));
                    if data > 0 {
                        assert!(cqe.status().is_success());
                        assert!(self.bench.shard.segment(request, 0, data).is_some());
                    }
                    self.succeeded += u32::from(cqe.status().is_success());
                    if cqe.status().is_success() && cqe.dw0() != 0 {
                        self.cntlid = cqe.dw0() as u16;
                    }
                    self.owed.retain(|owed| owed.request != request);
                    self.sending.push_back((queue, request));
                }
                Action::Resume { .. } => {}
                Action::Disconnect { queue, .. } => {
                    if let Some(index) = self.queues.iter().position(|open| *open == queue) {
                        self.close(index);
                    }
                }
            }
        }
    }
}
