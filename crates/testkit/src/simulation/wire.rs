//! Connections, and the transport that serves them on each shard: what a real one does, at the pace of chance.
//!
//! A connection delivers in order, each way, late. The port reads a bounded number of things per turn, leaves
//! in-capsule data where it is until it is asked for, copies data piece by piece while time passes, tells the
//! shard of a response's end long after the host has it, and may keep memory a while after its connection is gone.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use memory::Segment;
use nvme::address::TransportType;
use nvme::{Cqe, Sqe, Status};
use target::{
    Action, Borrows, CommandRefused, DisconnectReason, PortId, QueueId, QueueInfo, RequestId,
};

use super::operator::way_in;
use super::scenario::US;
use super::world::{Event, World};

/// The one transport of each shard.
pub const PORT: PortId = PortId(0);

/// Bytes of data in a capsule of an I/O command.
pub const IN_CAPSULE: u32 = 8192;

/// From host to target.
#[derive(Debug)]
pub enum Up {
    /// A command with the data in its capsule.
    Capsule(Box<Sqe>, Vec<u8>),
    /// Data that was asked for.
    Data(RequestId, u32, Vec<u8>),
    /// The end.
    Close,
}

/// From target to host.
#[derive(Debug)]
pub enum Down {
    /// Send this command's data.
    R2t(u16, RequestId, u32),
    /// A completion with its data.
    Response(Cqe, Vec<u8>),
    /// The end.
    Close,
}

/// How far the target has got with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It has not seen it.
    Unseen,
    /// It serves it.
    Open(QueueId),
    /// It is done with it.
    Closed,
}

#[derive(Debug)]
struct Receiving {
    length: u32,
    got: u32,
}

#[derive(Debug)]
struct Sending {
    request: RequestId,
    cqe: Cqe,
    segment: Option<Segment>,
    data: Vec<u8>,
    sent: usize,
}

/// One connection.
pub struct Connection {
    /// Whose it is, in which of its lives, and for which queue.
    pub host: usize,
    /// The host's life.
    pub epoch: u32,
    /// The queue's number there.
    pub qid: u16,
    /// Where it is served.
    pub shard: usize,
    /// The target's end.
    pub target: Target,
    /// The host's end.
    pub host_open: bool,
    up: VecDeque<(u64, Up)>,
    up_due: u64,
    down: VecDeque<(u64, Down)>,
    down_due: u64,
    /// Refused for want of room, and kept.
    stalled: Option<(Box<Sqe>, Vec<u8>)>,
    /// In-capsule data that has not been asked for.
    capsule: Option<(RequestId, Vec<u8>)>,
    receiving: BTreeMap<RequestId, Receiving>,
    sending: VecDeque<Sending>,
    /// Close it when what was queued is sent.
    ending: bool,
    /// A request of it was gone: that can only be because it is being ended.
    must_end: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up: Vec<String> = self
            .up
            .iter()
            .map(|(due, item)| match item {
                Up::Capsule(sqe, data) => {
                    format!("{due}: command {:#x} and {} bytes", sqe.cid.get(), data.len())
                }
                Up::Data(request, offset, data) => {
                    format!("{due}: data of {request} from {offset}, {} bytes", data.len())
                }
                Up::Close => format!("{due}: close"),
            })
            .collect();
        f.debug_struct("Connection")
            .field("shard", &self.shard)
            .field("target", &self.target)
            .field("host_open", &self.host_open)
            .field("up", &up)
            .field("stalled", &self.stalled.as_ref().map(|(sqe, _)| sqe.cid.get()))
            .field("capsule", &self.capsule.as_ref().map(|(request, _)| *request))
            .field("receiving", &self.receiving)
            .field("sending", &self.sending.len())
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

impl World {
    /// A host connects.
    pub fn connect(&mut self, host: usize, epoch: u32, qid: u16, shard: usize) -> usize {
        let number = self.connections.len();
        self.connections.push(Connection {
            host,
            epoch,
            qid,
            shard,
            target: Target::Unseen,
            host_open: true,
            up: VecDeque::new(),
            up_due: 0,
            down: VecDeque::new(),
            down_due: 0,
            stalled: None,
            capsule: None,
            receiving: BTreeMap::new(),
            sending: VecDeque::new(),
            ending: false,
            must_end: false,
        });
        self.nodes[shard].connections.push(number);
        let shard = shard as u64;
        self.trace.note(self.now, &[1, host as u64, qid.into(), shard], || {
            format!("connection {number}: host {host} connects for queue {qid} on shard {shard}")
        });
        number
    }

    /// The host puts something on the wire.
    pub fn send_up(&mut self, number: usize, item: Up) {
        let delay = self.random.spread(self.scenario.wire.0, self.scenario.wire.1);
        let connection = &mut self.connections[number];
        if !connection.host_open {
            return;
        }
        connection.up_due = connection.up_due.max(self.now + delay);
        let due = connection.up_due;
        connection.up.push_back((due, item));
        self.at(due, Event::Readable(number));
    }

    /// The host closes its end: in order, or so that what is under way is lost.
    pub fn close_host(&mut self, number: usize, abruptly: bool) {
        if !self.connections[number].host_open {
            return;
        }
        if abruptly {
            let keep = self.random.index(self.connections[number].up.len() + 1);
            self.connections[number].up.truncate(keep);
        }
        self.send_up(number, Up::Close);
        let connection = &mut self.connections[number];
        connection.host_open = false;
        connection.down.clear();
        self.trace.note(self.now, &[2, number as u64, u64::from(abruptly)], || {
            format!(
                "connection {number}: the host closes it{}",
                if abruptly { " abruptly" } else { "" }
            )
        });
    }

    fn send_down(&mut self, number: usize, item: Down) {
        let delay = self.random.spread(self.scenario.wire.0, self.scenario.wire.1);
        let connection = &mut self.connections[number];
        if !connection.host_open {
            return;
        }
        connection.down_due = connection.down_due.max(self.now + delay);
        let due = connection.down_due;
        connection.down.push_back((due, item));
        self.at(due, Event::ToHost(number));
    }

    /// Something has arrived at the host.
    pub fn arrive_at_host(&mut self, number: usize) {
        loop {
            let now = self.now;
            let connection = &mut self.connections[number];
            if !connection.host_open || connection.down.front().is_none_or(|(due, _)| *due > now) {
                return;
            }
            let Some((_, item)) = connection.down.pop_front() else { return };
            match item {
                Down::R2t(cid, request, length) => self.host_asked(number, cid, request, length),
                Down::Response(cqe, data) => self.host_answered(number, &cqe, &data),
                Down::Close => {
                    self.connections[number].host_open = false;
                    self.host_closed(number);
                }
            }
        }
    }

    /// The process or the machine is gone: connections break, and nobody is left to close them.
    pub fn break_connections(&mut self) {
        for number in 0..self.connections.len() {
            let connection = &mut self.connections[number];
            if connection.target == Target::Closed {
                continue;
            }
            connection.target = Target::Closed;
            connection.up.clear();
            connection.capsule = None;
            connection.stalled = None;
            connection.receiving.clear();
            connection.sending.clear();
            self.send_down(number, Down::Close);
        }
    }

    /// The port reads what has arrived.
    pub fn port_read(&mut self, shard: usize) {
        for number in self.nodes[shard].connections.clone() {
            let mut budget = self.random.between(1, 8);
            while budget > 0 && self.port_read_one(shard, number) {
                budget -= 1;
            }
        }
        let connections = &self.connections;
        self.nodes[shard].connections.retain(|number| {
            let connection = &connections[*number];
            connection.target != Target::Closed
        });
    }

    /// Whether the port has something to read that nothing holds up.
    pub fn is_readable(&self, number: usize) -> bool {
        let connection = &self.connections[number];
        connection.target != Target::Closed
            && connection.stalled.is_none()
            && connection.capsule.is_none()
            && connection.up.front().is_some_and(|(due, _)| *due <= self.now)
    }

    /// Whether the port has something to send.
    pub fn is_sending(&self, number: usize) -> bool {
        let connection = &self.connections[number];
        connection.target != Target::Closed && (connection.ending || !connection.sending.is_empty())
    }

    fn port_read_one(&mut self, shard: usize, number: usize) -> bool {
        if !self.is_readable(number) {
            return false;
        }
        if self.connections[number].target == Target::Unseen {
            let info = QueueInfo {
                transport: TransportType::Tcp,
                local: way_in(self.connections[number].host),
                peer: "192.0.2.2:50000".parse().unwrap(),
                in_capsule_limit: IN_CAPSULE,
                borrows: Borrows::Anything,
            };
            let Some(queue) = self.nodes[shard].shard.open_queue(PORT, info) else {
                self.connections[number].target = Target::Closed;
                self.send_down(number, Down::Close);
                return false;
            };
            self.connections[number].target = Target::Open(queue);
            self.nodes[shard].by_queue.insert(queue, number);
        }
        let Some((_, item)) = self.connections[number].up.pop_front() else { return false };
        match item {
            Up::Capsule(sqe, data) => self.port_command(shard, number, sqe, data),
            Up::Data(request, offset, data) => {
                self.port_data(shard, number, request, offset, &data);
            }
            Up::Close => self.port_close(shard, number),
        }
        true
    }

    fn port_command(&mut self, shard: usize, number: usize, sqe: Box<Sqe>, data: Vec<u8>) {
        let Target::Open(queue) = self.connections[number].target else { return };
        let length = u32::try_from(data.len()).unwrap();
        match self.nodes[shard].shard.command(queue, &sqe, length) {
            Ok(request) => {
                let before = self.nodes[shard].requests.insert(request, (number, sqe.cid.get()));
                assert!(before.is_none(), "{request} was given away twice");
                if !data.is_empty() {
                    self.connections[number].capsule = Some((request, data));
                }
            }
            Err(CommandRefused::Busy) => self.connections[number].stalled = Some((sqe, data)),
            Err(CommandRefused::Closed) => {}
        }
    }

    fn port_data(
        &mut self,
        shard: usize,
        number: usize,
        request: RequestId,
        offset: u32,
        data: &[u8],
    ) {
        let Some(receiving) = self.connections[number].receiving.get_mut(&request) else { return };
        let length = u32::try_from(data.len()).unwrap();
        let Some(segment) = self.nodes[shard].shard.segment(request, offset, length) else {
            // The queue is being ended, and we are going to be told in this turn.
            self.connections[number].must_end = true;
            return;
        };
        assert_eq!(segment.copy_from(0, data), data.len());
        receiving.got += length;
        if receiving.got == receiving.length {
            self.connections[number].receiving.remove(&request);
            self.received(shard, request);
        }
    }

    fn received(&mut self, shard: usize, request: RequestId) {
        let damaged = self.random.permille(self.scenario.damage);
        let result = if damaged { Err(Status::TRANSIENT_TRANSPORT_ERROR) } else { Ok(()) };
        self.nodes[shard].shard.data_received(request, result);
    }

    /// The connection is gone.
    fn port_close(&mut self, shard: usize, number: usize) {
        let Target::Open(queue) = self.connections[number].target else {
            self.connections[number].target = Target::Closed;
            return;
        };
        self.trace.note(self.now, &[3, number as u64], || {
            format!("connection {number}: shard {shard} is told that it is gone")
        });
        let connection = &mut self.connections[number];
        connection.target = Target::Closed;
        connection.up.clear();
        connection.stalled = None;
        connection.capsule = None;
        let requests: Vec<RequestId> = connection
            .receiving
            .keys()
            .copied()
            .chain(connection.sending.iter().map(|sending| sending.request))
            .collect();
        connection.receiving.clear();
        let segments: Vec<Segment> = std::mem::take(&mut connection.sending)
            .into_iter()
            .filter_map(|sending| sending.segment)
            .collect();
        let node = &mut self.nodes[shard];
        node.by_queue.remove(&queue);
        node.shard.close_queue(queue);
        node.requests.retain(|_, (owner, _)| *owner != number);
        for segment in segments {
            // The network card may have it a while longer.
            let due = self.now + self.random.spread(US, 1000 * US);
            self.nodes[shard].lingering.push((due, segment));
            self.at(due, Event::Wake(shard));
        }
        // A transport that is confused speaks of what is gone; nothing may come of it.
        if self.random.permille(100) {
            for request in requests {
                let shard = &mut self.nodes[shard].shard;
                match self.random.below(3) {
                    0 => shard.response_sent(request),
                    1 => shard.data_received(request, Ok(())),
                    _ => assert!(
                        shard.segment(request, 0, 1).is_none(),
                        "{request} of a dead queue has memory"
                    ),
                }
            }
            self.nodes[shard].shard.close_queue(queue);
        }
        self.send_down(number, Down::Close);
    }

    /// The port does what the shard asks, and sends.
    pub fn port_flush(&mut self, shard: usize) {
        while let Some(action) = self.nodes[shard].shard.next_action(PORT) {
            let queue = action.queue();
            let Some(number) = self.nodes[shard].by_queue.get(&queue).copied() else {
                panic!("an action for {queue}, which is closed: {action:?}");
            };
            self.port_act(shard, number, action);
        }
        for number in self.nodes[shard].connections.clone() {
            let connection = &self.connections[number];
            assert!(
                !connection.must_end || connection.ending,
                "a request of a live queue was gone"
            );
            self.port_send(shard, number);
        }
    }

    fn port_act(&mut self, shard: usize, number: usize, action: Action) {
        match action {
            Action::Receive { request, length, in_capsule, .. } => {
                let Some((owner, cid)) = self.nodes[shard].requests.get(&request).copied() else {
                    panic!("Receive for {request}, which is not outstanding");
                };
                assert_eq!(owner, number, "Receive for a request of another queue");
                if in_capsule {
                    // The queue may have been ended since.
                    let capsule = self.connections[number].capsule.take();
                    let Some((_, data)) = capsule.filter(|(of, _)| *of == request) else {
                        panic!("{request} wants data of a capsule that is not there");
                    };
                    let segment = self.nodes[shard].shard.segment(request, 0, length);
                    let Some(segment) = segment else {
                        self.connections[number].must_end = true;
                        return;
                    };
                    assert_eq!(segment.copy_from(0, &data), data.len());
                    drop(segment);
                    self.received(shard, request);
                } else {
                    let receiving = Receiving { length, got: 0 };
                    let before = self.connections[number].receiving.insert(request, receiving);
                    assert!(before.is_none(), "{request} is received twice");
                    self.send_down(number, Down::R2t(cid, request, length));
                }
            }
            Action::Respond { request, cqe, data, .. } => {
                let Some((owner, cid)) = self.nodes[shard].requests.remove(&request) else {
                    panic!("{request} is answered twice, or was never taken: {cqe:?}");
                };
                assert_eq!((owner, cid), (number, cqe.cid.get()), "an answer to another command");
                let connection = &mut self.connections[number];
                assert!(
                    !connection.receiving.contains_key(&request),
                    "{request} is answered while its data comes"
                );
                if connection.capsule.as_ref().is_some_and(|(of, _)| *of == request) {
                    connection.capsule = None;
                }
                let segment = (data > 0).then(|| {
                    self.nodes[shard].shard.segment(request, 0, data).expect("data to send")
                });
                let sending =
                    Sending { request, cqe, segment, data: vec![0; data as usize], sent: 0 };
                self.connections[number].sending.push_back(sending);
            }
            Action::Resume { .. } => {
                if let Some((sqe, data)) = self.connections[number].stalled.take() {
                    self.port_command(shard, number, sqe, data);
                }
            }
            Action::Disconnect { reason, .. } => {
                self.trace.note(self.now, &[4, number as u64], || {
                    format!("connection {number}: shard {shard} ends it: {reason}")
                });
                if reason == DisconnectReason::KeepAlive {
                    self.check_keep_alive(number);
                }
                self.connections[number].ending = true;
            }
        }
    }

    /// Sends as much as the socket takes now.
    fn port_send(&mut self, shard: usize, number: usize) {
        if self.connections[number].target == Target::Closed {
            return;
        }
        let mut room = usize::try_from(self.random.spread(256, 256 << 10)).unwrap();
        while let Some(sending) = self.connections[number].sending.front_mut() {
            let piece = (sending.data.len() - sending.sent).min(room);
            if let Some(segment) = &sending.segment {
                let to = &mut sending.data[sending.sent..sending.sent + piece];
                assert_eq!(segment.copy_to(sending.sent, to), piece);
                sending.sent += piece;
            }
            room -= piece;
            if room < 24 || sending.sent < sending.data.len() {
                return;
            }
            room -= 24;
            let Some(sending) = self.connections[number].sending.pop_front() else { return };
            let after = self.random.spread(US, 2000 * US);
            self.at(self.now + after, Event::Sent(number, sending.request));
            drop(sending.segment);
            self.send_down(number, Down::Response(sending.cqe, sending.data));
        }
        if self.connections[number].ending {
            self.port_close(shard, number);
        }
    }

    /// The socket has let go of a response.
    pub fn sent(&mut self, number: usize, request: RequestId) {
        let shard = self.connections[number].shard;
        if self.connections[number].target != Target::Closed {
            self.nodes[shard].shard.response_sent(request);
            self.wake(shard);
        }
    }
}
