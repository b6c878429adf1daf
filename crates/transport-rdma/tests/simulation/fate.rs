//! What befalls a world.

use std::time::Duration;

use memory::Buffer;
use nvme::fabrics::{Disconnect, PropertySet, PropertySize};
use verbs::Status;
use zerocopy::IntoBytes;

use crate::life::Life;

/// Mishaps that last.
#[derive(Debug)]
pub(crate) struct Fate {
    held: Vec<u32>,
    cut: Vec<u32>,
    /// They are not ready for messages of a peer that waits for ever.
    not_ready: Vec<u32>,
    ports_down: Vec<usize>,
    /// Memory that others on the reactors have.
    taken: Vec<Buffer>,
    /// Devices that are still there.
    devices: usize,
}

impl Fate {
    pub(crate) fn new(devices: usize) -> Fate {
        Fate {
            held: Vec::new(),
            cut: Vec::new(),
            not_ready: Vec::new(),
            ports_down: Vec::new(),
            taken: Vec::new(),
            devices,
        }
    }
}

/// Bytes that others leave of a reactor's memory.
const LEFT: usize = 512 << 10;

const STATUSES: [Status; 7] = [
    Status::LOCAL_PROTECTION,
    Status::REMOTE_ACCESS,
    Status::REMOTE_OPERATION,
    Status::RETRY_EXCEEDED,
    Status::RNR_RETRY_EXCEEDED,
    Status::FATAL,
    Status::GENERAL,
];

impl Life {
    /// One of the queue pairs, on either side.
    fn any_pair(&mut self) -> Option<u32> {
        let pairs = self.live_pairs();
        if pairs.is_empty() {
            return None;
        }
        let number = *self.random.pick(&pairs);
        if self.random.permille(600) { self.world.fabric.peer(number) } else { Some(number) }
    }

    pub(crate) fn mishap(&mut self) {
        self.report.mishaps += 1;
        let kind = self.random.below(18);
        let guest = self.random.index(self.guests.len());
        match kind {
            0..=6 => self.mishap_of_pair(kind),
            7 => {
                self.tell(|| "the next request for a connection is lost".to_owned());
                self.world.fabric.lose_requests(1);
            }
            8 => {
                self.tell(|| "the next request for a connection is refused by nobody".to_owned());
                self.world.fabric.refuse_request(self.random.between(1, 30) as i32);
            }
            9 => self.mishap_of_port(),
            10 if self.fate.devices > 1 && self.random.permille(300) => self.remove_device(),
            11 => {
                self.tell(|| format!("host {guest} vanishes"));
                self.leave(guest);
            }
            12 => {
                self.tell(|| format!("host {guest} ends its queues"));
                for io in &mut self.guests[guest].queues {
                    io.queue.disconnect();
                }
            }
            13 => {
                self.tell(|| format!("host {guest} sends Disconnect"));
                for io in &mut self.guests[guest].queues {
                    let sqe = Disconnect::default().to_sqe().with_cid(0xFFFE);
                    if !io.leaving && io.queue.room() > 0 {
                        io.queue.send(Life::plain(sqe).as_bytes());
                        io.leaving = true;
                    }
                }
            }
            14 => {
                self.tell(|| format!("host {guest} resets its controller"));
                let disable =
                    PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x46_0000 };
                if let Some(controller) = &mut self.guests[guest].controller {
                    controller.admin.send(Life::plain(disable.to_sqe()).as_bytes());
                }
            }
            15 => {
                let time = Duration::from_millis(self.random.spread(1, 40_000));
                self.tell(|| format!("nothing else happens for {time:?}"));
                self.world.wait(time);
            }
            16 => self.take_memory(),
            _ => self.let_go(),
        }
    }

    /// Others on a reactor take its memory, but for a little.
    fn take_memory(&mut self) {
        let reactor = self.random.index(self.world.pools.len());
        self.tell(|| format!("the memory of reactor {reactor} is taken"));
        let pool = &self.world.pools[reactor];
        while pool.available() > LEFT
            && let Some(buffer) = pool.take(64 << 10)
        {
            self.fate.taken.push(buffer);
        }
    }

    fn mishap_of_pair(&mut self, kind: u64) {
        let Some(number) = self.any_pair() else { return };
        let fabric = self.world.fabric.clone();
        match kind {
            0 => {
                let status = *self.random.pick(&STATUSES);
                self.tell(|| format!("the next work of qp {number} fails: {status}"));
                fabric.fail_next(number, status);
            }
            1 => {
                self.tell(|| format!("qp {number} breaks"));
                fabric.break_pair(number);
            }
            2 => {
                self.tell(|| format!("qp {number} is cut off"));
                fabric.cut(number, true);
                self.fate.cut.push(number);
            }
            3 | 4 => {
                let messages = self.random.spread(1, 50) as u32;
                self.tell(|| format!("qp {number} is not ready for {messages}"));
                fabric.not_ready_for(number, messages);
                self.fate.not_ready.push(number);
            }
            _ => {
                self.tell(|| format!("qp {number} is held"));
                fabric.hold(number, true);
                self.fate.held.push(number);
            }
        }
    }

    fn mishap_of_port(&mut self) {
        let index = self.random.index(self.world.addresses.len());
        let Some(device) = self.world.device(index) else { return };
        self.tell(|| format!("the port of device {index} goes down"));
        self.world.fabric.set_port(&device, false);
        self.fate.ports_down.push(index);
    }

    fn remove_device(&mut self) {
        let index = self.random.index(self.world.addresses.len());
        let Some(device) = self.world.device(index) else { return };
        self.tell(|| format!("device {index} is removed"));
        self.world.fabric.remove_device(&device);
        self.fate.devices -= 1;
    }

    /// What lasted is over.
    fn let_go(&mut self) {
        self.tell(|| "what was held is let go".to_owned());
        for number in self.fate.held.drain(..) {
            self.world.fabric.hold(number, false);
        }
        for number in self.fate.cut.drain(..) {
            self.world.fabric.cut(number, false);
        }
        for number in self.fate.not_ready.drain(..) {
            self.world.fabric.not_ready_for(number, 0);
        }
        self.fate.taken.clear();
        for index in self.fate.ports_down.drain(..) {
            if let Some(device) = self.world.device(index) {
                self.world.fabric.set_port(&device, true);
            }
        }
    }

    pub(crate) fn fate_rests(&mut self) {
        self.let_go();
        self.world.fabric.lose_requests(0);
        self.scenario.mishaps = u64::from(!self.is_calm());
    }
}
