//! What a good host does: connects queues, makes a controller, waits for answers.

use std::rc::Rc;

use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, PropertyGet, PropertySet, PropertySize,
};
use nvme::{Cqe, Nqn, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

use super::{Machine, Phase, Queue, Wish, World, keyed};
use crate::peer::{SUBSYSTEM, host_id, host_nqn};

/// Why there is no queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no connection.
    Connection(Phase),
    /// Connect failed.
    Status(Status),
    /// The connection ended before the answer.
    Ended,
}

/// A controller of a host.
#[derive(Debug)]
pub struct Controller {
    /// The admin queue.
    pub admin: Queue,
    /// Its identifier.
    pub cntlid: u16,
    /// Which host it is.
    pub host: usize,
    /// Where the node was found.
    pub device: usize,
}

impl World {
    /// Waits until the queue is connected, or will not be.
    pub fn connected(&mut self, mut queue: Queue) -> Result<Queue, Refused> {
        let done = |queue: &Queue| !matches!(queue.phase, Phase::Resolving | Phase::Asking);
        self.until("a connection", |_| {
            queue.turn();
            done(&queue).then_some(())
        });
        if queue.phase == Phase::Connected {
            Ok(queue)
        } else {
            Err(Refused::Connection(queue.phase.clone()))
        }
    }

    /// Waits for the next message. None: the connection is over.
    pub fn receive(&mut self, queue: &mut Queue) -> Option<Cqe> {
        self.until("an answer", |_| {
            queue.turn();
            let message = queue.arrived.pop_front();
            match message {
                Some(message) => Some(Cqe::read_from_bytes(&message.bytes).ok()),
                None => queue.is_over().then_some(None),
            }
        })
    }

    /// Sends a capsule and waits for the answer, with nothing else under way. None: the connection is over.
    pub fn execute(&mut self, queue: &mut Queue, capsule: &[u8]) -> Option<Cqe> {
        queue.send(capsule);
        self.receive(queue)
    }

    /// Sends Connect.
    pub fn connect_command(
        &mut self,
        queue: &mut Queue,
        host: usize,
        qid: u16,
        cntlid: u16,
        entries: u16,
    ) -> Result<u16, Refused> {
        let cattr = ConnectAttributes::default();
        let connect = Connect { recfmt: 0, qid, sqsize: entries - 1, cattr, kato: 0 };
        let subsystem: Nqn = SUBSYSTEM.parse().unwrap();
        let data = ConnectData::new(host_id(host), cntlid, &subsystem, &host_nqn(host));
        let segment = queue.machine().page(data.as_bytes().len());
        assert_eq!(segment.copy_from(0, data.as_bytes()), segment.len());
        let memory = Rc::clone(&queue.machine().memory);
        let capsule = keyed(connect.to_sqe().with_cid(1), &memory, &segment, false);
        let cqe = self.execute(queue, &capsule).ok_or(Refused::Ended)?;
        let status = cqe.status();
        if status.is_success() { Ok(cqe.dw0() as u16) } else { Err(Refused::Status(status)) }
    }

    /// A connected queue of this host's.
    pub fn connect(
        &mut self,
        machine: &Rc<Machine>,
        wish: Wish,
        host: usize,
        qid: u16,
        cntlid: u16,
    ) -> Result<(Queue, u16), Refused> {
        let entries = u16::try_from(wish.depth).unwrap();
        let mut queue = self.connected(Queue::ask(machine, wish))?;
        let cntlid = self.connect_command(&mut queue, host, qid, cntlid, entries)?;
        Ok((queue, cntlid))
    }

    /// An enabled controller, by this device of the node's.
    pub fn controller(
        &mut self,
        machine: &Rc<Machine>,
        host: usize,
        device: usize,
    ) -> Result<Controller, Refused> {
        let wish = Wish::new(self.addresses[device], 0, 32);
        let (mut admin, cntlid) = self.connect(machine, wish, host, 0, CNTLID_DYNAMIC)?;
        // CC: EN, I/O queue entries of 64 and 16 bytes.
        let enable = PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x0046_0001 };
        let sqe = |sqe: Sqe| {
            sqe.with_sgl(nvme::Sgl::Keyed { address: 0, length: 0, key: 0, invalidate: false })
        };
        let answer = self.execute(&mut admin, sqe(enable.to_sqe()).as_bytes());
        let status = answer.ok_or(Refused::Ended)?.status();
        if !status.is_success() {
            return Err(Refused::Status(status));
        }
        loop {
            let ready = PropertyGet { size: PropertySize::Four, offset: 0x1c };
            let answer = self.execute(&mut admin, sqe(ready.to_sqe()).as_bytes());
            if answer.ok_or(Refused::Ended)?.dw0() & 1 == 1 {
                return Ok(Controller { admin, cntlid, host, device });
            }
        }
    }

    /// An I/O queue of this controller.
    pub fn io_queue(
        &mut self,
        controller: &Controller,
        qid: u16,
        entries: u16,
    ) -> Result<Queue, Refused> {
        let wish = Wish::new(self.addresses[controller.device], qid, entries);
        let machine = Rc::clone(controller.admin.machine());
        let made = self.connect(&machine, wish, controller.host, qid, controller.cntlid);
        made.map(|(queue, _)| queue)
    }

    /// A controller with one I/O queue of 32 entries.
    pub fn host(&mut self, machine: &Rc<Machine>, number: usize) -> (Controller, Queue) {
        let controller = self.controller(machine, number, 0).unwrap();
        let queue = self.io_queue(&controller, 1, 32).unwrap();
        (controller, queue)
    }
}
