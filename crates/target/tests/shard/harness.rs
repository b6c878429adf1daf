//! Hosts and transports of the tests.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use memory::{Arena, ArenaConfig, Hugepages, Pool};
use nvme::address::{TransportAddress, TransportType};
use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, Disconnect, PropertyGet, PropertySet,
    PropertySize,
};
use nvme::register::{Configuration as Cc, ControllerStatus, Property};
use nvme::{Cqe, HostId, Nqn, Sgl, Sqe, Status};
use target::configuration::{
    Configuration, Hosts, Listener, ListenerId, NamespaceOptions, SubsystemOptions,
};
use target::{
    Action, Borrows, CommandRefused, DisconnectReason, Instant, Message, PortId, QueueId,
    QueueInfo, RequestId, Shard, ShardConfig, ShardIndex, ShardLimits,
};
use zerocopy::IntoBytes;

use crate::device::TestDevice;

pub(crate) const PORT: PortId = PortId(0);
pub(crate) const HOST: &str = "nqn.2026-11.io.example:host";
pub(crate) const NQN: &str = "nqn.2026-11.io.example:disk";

pub(crate) fn nqn(text: &str) -> Nqn {
    text.parse().unwrap()
}

pub(crate) fn host_id(number: u8) -> HostId {
    HostId([number; 16])
}

/// One subsystem with these namespaces, open to all hosts.
pub(crate) fn configuration(devices: &[(u32, &Arc<TestDevice>)]) -> Arc<Configuration> {
    configuration_with(
        devices,
        SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() },
    )
}

pub(crate) fn configuration_with(
    devices: &[(u32, &Arc<TestDevice>)],
    options: SubsystemOptions,
) -> Arc<Configuration> {
    let mut builder = Configuration::empty().change();
    builder
        .add_listener(Listener {
            id: ListenerId(1),
            address: TransportAddress {
                trtype: TransportType::Tcp,
                traddr: "127.0.0.1".parse().unwrap(),
                trsvcid: 4420,
            },
        })
        .unwrap();
    builder.add_subsystem(nqn(NQN), options).unwrap();
    for (nsid, device) in devices {
        let device: Arc<TestDevice> = Arc::clone(device);
        builder.add_namespace(&nqn(NQN), NamespaceOptions::new(*nsid, device)).unwrap();
    }
    builder.build().unwrap()
}

pub(crate) fn pool(bytes: usize) -> Pool {
    let config = ArenaConfig { capacity: bytes, hugepages: Hugepages::Never };
    Arena::new(config).pool(bytes).unwrap()
}

/// A finished command as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) cqe: Cqe,
    pub(crate) data: Vec<u8>,
}

impl Finished {
    pub(crate) fn status(&self) -> Status {
        self.cqe.status()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status().is_success(), "{}", self.status());
        self
    }

    #[track_caller]
    pub(crate) fn failed(&self, status: Status) {
        assert_eq!(self.status(), status);
    }
}

/// One connection as its transport sees it.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// Data that the host has for its commands.
    outgoing: HashMap<RequestId, Vec<u8>>,
    pub(crate) finished: VecDeque<Finished>,
    pub(crate) disconnected: Option<DisconnectReason>,
    pub(crate) resumes: usize,
    /// Receives that the transport has not served, while `lazy`.
    pub(crate) receives: VecDeque<(RequestId, u32)>,
    /// The host's data does not come.
    pub(crate) lazy: bool,
    /// Answers that the host has not taken, while it takes `none`.
    pub(crate) unsent: VecDeque<RequestId>,
    pub(crate) takes_none: bool,
    next_cid: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Wire {
    pub(crate) shard: usize,
    pub(crate) queue: QueueId,
}

/// Shards and the hosts on them.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) shards: Vec<Shard>,
    pub(crate) now: Instant,
    pub(crate) wires: BTreeMap<Wire, Connection>,
    devices: Vec<Arc<TestDevice>>,
    /// Messages under way, in order for each pair of shards.
    mail: BTreeMap<(usize, usize), VecDeque<Message>>,
    /// Messages stay under way.
    pub(crate) hold_mail: bool,
    /// What connections that are opened can send from.
    pub(crate) borrows: Borrows,
}

impl World {
    pub(crate) fn new(shards: u16) -> Self {
        Self::with(shards, 8 << 20, &ShardLimits { requests: 256, ..ShardLimits::default() })
    }

    pub(crate) fn with(shards: u16, memory: usize, limits: &ShardLimits) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let make = |index| {
            Shard::new(ShardConfig {
                index: ShardIndex(index),
                shards,
                pool: pool(memory),
                limits: limits.clone(),
                now,
            })
        };
        Self {
            shards: (0..shards).map(make).collect(),
            now,
            wires: BTreeMap::new(),
            devices: Vec::new(),
            mail: BTreeMap::new(),
            hold_mail: false,
            borrows: Borrows::Anything,
        }
    }

    pub(crate) fn configure(
        &mut self,
        configuration: &Arc<Configuration>,
        devices: &[&Arc<TestDevice>],
    ) {
        for device in devices {
            if !self.devices.iter().any(|known| Arc::ptr_eq(known, device)) {
                self.devices.push(Arc::clone(device));
            }
        }
        for shard in 0..self.shards.len() {
            self.configure_shard(shard, configuration);
        }
        self.run();
    }

    pub(crate) fn configure_shard(&mut self, shard: usize, configuration: &Arc<Configuration>) {
        let devices = self.devices.clone();
        let errors = self.shards[shard].configure(Arc::clone(configuration), &mut |device| {
            let device = devices
                .iter()
                .find(|known| block::BlockDevice::name(known.as_ref()) == device.name());
            Ok(device.unwrap().queue())
        });
        assert!(errors.is_empty());
    }

    /// A world that exports one namespace of this size.
    pub(crate) fn one_disk(shards: u16, blocks: u64) -> (Self, Arc<TestDevice>) {
        let device = TestDevice::new("disk0", blocks);
        let mut world = Self::new(shards);
        world.configure(&configuration(&[(1, &device)]), &[&device]);
        (world, device)
    }

    /// Turns everything until nothing moves any more.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                return;
            }
        }
        panic!("the shards never come to rest");
    }

    /// One turn of every shard, its transport, and the mail.
    pub(crate) fn turn(&mut self) -> bool {
        let mut moved = false;
        for device in &self.devices {
            device.state.lock().unwrap().now = self.now;
        }
        for index in 0..self.shards.len() {
            moved |= self.shards[index].poll(self.now);
            moved |= self.serve(index);
        }
        moved |= self.collect_mail();
        if !self.hold_mail {
            moved |= self.deliver_mail();
        }
        moved || self.shards.iter().any(Shard::has_work)
    }

    /// One turn of one shard and its transport; what it sends goes to the post.
    pub(crate) fn turn_one(&mut self, shard: usize) {
        self.shards[shard].poll(self.now);
        self.serve(shard);
        self.collect_mail();
    }

    /// Takes what the shards send to the post; whether there was any.
    pub(crate) fn collect_mail(&mut self) -> bool {
        let mut moved = false;
        for (from, shard) in self.shards.iter_mut().enumerate() {
            while let Some((to, message)) = shard.next_message() {
                let to = usize::from(to.0);
                self.mail.entry((from, to)).or_default().push_back(message);
                moved = true;
            }
        }
        moved
    }

    pub(crate) fn deliver_mail(&mut self) -> bool {
        let mut moved = false;
        for ((_, to), messages) in &mut self.mail {
            for message in messages.drain(..) {
                self.shards[*to].deliver(message);
                moved = true;
            }
        }
        moved
    }

    /// Delivers one message of this pair of shards.
    pub(crate) fn deliver_one(&mut self, from: usize, to: usize) -> bool {
        let message = self.mail.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        message.map(|message| self.shards[to].deliver(message)).is_some()
    }

    fn serve(&mut self, index: usize) -> bool {
        let mut moved = false;
        while let Some(action) = self.shards[index].next_action(PORT) {
            moved = true;
            let wire = Wire { shard: index, queue: action.queue() };
            let connection = self.wires.get_mut(&wire).expect("no action for a closed queue");
            match action {
                Action::Receive { request, length, .. } => {
                    if connection.lazy {
                        connection.receives.push_back((request, length));
                    } else {
                        self.receive(wire, request, length);
                    }
                }
                Action::Respond { request, cqe, data, .. } => {
                    let mut bytes = vec![0; data as usize];
                    if data > 0 {
                        let segment = self.shards[index].segment(request, 0, data).unwrap();
                        assert_eq!(segment.copy_to(0, &mut bytes), bytes.len());
                    }
                    connection.finished.push_back(Finished { cqe, data: bytes });
                    if connection.takes_none {
                        connection.unsent.push_back(request);
                    } else {
                        self.shards[index].response_sent(request);
                    }
                }
                Action::Resume { .. } => connection.resumes += 1,
                Action::Disconnect { reason, .. } => connection.disconnected = Some(reason),
            }
        }
        moved
    }

    /// The host's data for this request arrives.
    pub(crate) fn receive(&mut self, wire: Wire, request: RequestId, length: u32) {
        let connection = self.wires.get_mut(&wire).unwrap();
        let data = connection.outgoing.remove(&request).unwrap_or_default();
        let mut bytes = vec![0; length as usize];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = from;
        }
        let shard = &mut self.shards[wire.shard];
        if let Some(segment) = shard.segment(request, 0, length) {
            assert_eq!(segment.copy_from(0, &bytes), bytes.len());
            drop(segment);
        }
        shard.data_received(request, Ok(()));
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        self.run();
    }

    /// Time passes in small steps, as a running reactor sees it.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.advance(Duration::from_millis(250));
        }
    }

    pub(crate) fn open(&mut self, shard: usize) -> Wire {
        self.open_at(shard, "127.0.0.1:4420")
    }

    /// A connection that came in by this address.
    pub(crate) fn open_at(&mut self, shard: usize, local: &str) -> Wire {
        let info = QueueInfo {
            transport: TransportType::Tcp,
            local: local.parse().unwrap(),
            peer: "127.0.0.1:50000".parse().unwrap(),
            in_capsule_limit: 8192,
            borrows: self.borrows,
        };
        let queue = self.shards[shard].open_queue(PORT, info).unwrap();
        let wire = Wire { shard, queue };
        self.wires.insert(wire, Connection::default());
        wire
    }

    pub(crate) fn close(&mut self, wire: Wire) {
        self.wires.remove(&wire);
        self.shards[wire.shard].close_queue(wire.queue);
        self.run();
    }

    /// Puts a command on the wire with what SGL it needs; its identifier.
    pub(crate) fn submit(&mut self, wire: Wire, sqe: Sqe, data: &[u8], room: u32) -> u16 {
        let connection = self.wires.get_mut(&wire).unwrap();
        connection.next_cid = connection.next_cid.wrapping_add(1);
        let cid = connection.next_cid;
        self.submit_as(wire, cid, sqe, data, room).unwrap();
        cid
    }

    pub(crate) fn submit_as(
        &mut self,
        wire: Wire,
        cid: u16,
        sqe: Sqe,
        data: &[u8],
        room: u32,
    ) -> Result<RequestId, CommandRefused> {
        let length = u32::try_from(data.len()).unwrap();
        let (sgl, in_capsule) = match (length, room) {
            (0, 0) => (Sgl::TransportData { length: 0 }, 0),
            (0, room) => (Sgl::TransportData { length: room }, 0),
            (length, _) if length <= 4096 => (Sgl::InCapsule { offset: 0, length }, length),
            (length, _) => (Sgl::TransportData { length }, 0),
        };
        let sqe = sqe.with_cid(cid).with_sgl(sgl);
        let result = self.shards[wire.shard].command(wire.queue, &sqe, in_capsule);
        if let Ok(request) = result
            && length > 0
        {
            self.wires.get_mut(&wire).unwrap().outgoing.insert(request, data.to_vec());
        }
        result
    }

    /// Runs until the next command of this wire has finished.
    #[track_caller]
    pub(crate) fn wait(&mut self, wire: Wire) -> Finished {
        self.run();
        let connection = self.wires.get_mut(&wire).unwrap();
        connection.finished.pop_front().expect("the command has not finished")
    }

    pub(crate) fn is_waiting(&mut self, wire: Wire) -> bool {
        self.run();
        self.wires[&wire].finished.is_empty()
    }

    #[track_caller]
    pub(crate) fn execute(&mut self, wire: Wire, sqe: Sqe, data: &[u8], room: u32) -> Finished {
        let cid = self.submit(wire, sqe, data, room);
        let finished = self.wait(wire);
        assert_eq!(finished.cqe.cid.get(), cid);
        finished
    }

    /// Connects a queue; the completion.
    #[track_caller]
    pub(crate) fn connect(&mut self, wire: Wire, attempt: &Attempt) -> Finished {
        let cid = self.begin_connect(wire, attempt);
        let finished = self.wait(wire);
        assert_eq!(finished.cqe.cid.get(), cid);
        finished
    }

    pub(crate) fn begin_connect(&mut self, wire: Wire, attempt: &Attempt) -> u16 {
        self.submit(wire, attempt.command.to_sqe(), attempt.data.as_bytes(), 0)
    }

    pub(crate) fn set_cc(&mut self, wire: Wire, cc: Cc) {
        let set = PropertySet {
            size: PropertySize::Four,
            offset: Property::Configuration.offset(),
            value: cc.bits().into(),
        };
        self.execute(wire, set.to_sqe(), &[], 0).ok();
    }

    pub(crate) fn csts(&mut self, wire: Wire) -> ControllerStatus {
        let get = PropertyGet { size: PropertySize::Four, offset: Property::Status.offset() };
        let value = self.execute(wire, get.to_sqe(), &[], 0).ok().cqe.result.get();
        ControllerStatus::from_bits(u32::try_from(value).unwrap())
    }

    /// An enabled controller: its admin queue and identifier.
    #[track_caller]
    pub(crate) fn controller(&mut self, shard: usize) -> (Wire, u16) {
        self.controller_of(shard, &Attempt::admin())
    }

    #[track_caller]
    pub(crate) fn controller_of(&mut self, shard: usize, attempt: &Attempt) -> (Wire, u16) {
        self.controller_at(shard, "127.0.0.1:4420", attempt)
    }

    #[track_caller]
    pub(crate) fn controller_at(
        &mut self,
        shard: usize,
        local: &str,
        attempt: &Attempt,
    ) -> (Wire, u16) {
        let wire = self.open_at(shard, local);
        let finished = self.connect(wire, attempt).ok();
        self.set_cc(wire, ENABLED);
        assert!(self.csts(wire).rdy);
        (wire, u16::try_from(finished.cqe.dw0()).unwrap())
    }

    #[track_caller]
    pub(crate) fn io_queue(&mut self, shard: usize, cntlid: u16, qid: u16) -> Wire {
        let wire = self.open(shard);
        self.connect(wire, &Attempt::io(cntlid, qid)).ok();
        wire
    }

    pub(crate) fn disconnect_command(&mut self, wire: Wire) -> Finished {
        self.execute(wire, Disconnect::default().to_sqe(), &[], 0)
    }

    #[track_caller]
    pub(crate) fn disconnected(&mut self, wire: Wire) -> DisconnectReason {
        self.run();
        self.wires[&wire].disconnected.expect("the queue is still there")
    }

    /// Nothing is left that should not be.
    #[track_caller]
    pub(crate) fn assert_clean(&mut self) {
        self.run();
        for shard in &self.shards {
            assert_eq!(shard.requests_in_use(), 0);
            assert_eq!(shard.queues_in_use(), 0);
            assert_eq!(shard.controllers_in_use(), 0);
        }
        assert_eq!(target::forgotten_commands(), 0);
    }
}

/// CC of a host that enables its controller.
pub(crate) const ENABLED: Cc = Cc {
    en: true,
    css: 0,
    mps: 0,
    ams: 0,
    shn: nvme::register::ShutdownNotification::None,
    iosqes: 6,
    iocqes: 4,
    crime: false,
};

/// A Connect with its data, to be bent by tests.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) command: Connect,
    pub(crate) data: ConnectData,
}

impl Attempt {
    pub(crate) fn admin() -> Self {
        Self {
            command: Connect {
                recfmt: 0,
                qid: 0,
                sqsize: 31,
                cattr: ConnectAttributes::default(),
                kato: 0,
            },
            data: ConnectData::new(host_id(1), CNTLID_DYNAMIC, &nqn(NQN), &nqn(HOST)),
        }
    }

    pub(crate) fn discovery() -> Self {
        Self::admin().subsystem(nvme::nqn::DISCOVERY_NQN)
    }

    pub(crate) fn io(cntlid: u16, qid: u16) -> Self {
        let mut attempt = Self::admin();
        attempt.command.qid = qid;
        attempt.command.sqsize = 127;
        attempt.data.cntlid.set(cntlid);
        attempt
    }

    pub(crate) fn subsystem(mut self, text: &str) -> Self {
        self.data.subnqn = nqn(text).to_wire();
        self
    }

    pub(crate) fn host(mut self, text: &str, id: u8) -> Self {
        self.data.hostnqn = nqn(text).to_wire();
        self.data.hostid = [id; 16];
        self
    }

    pub(crate) fn kato(mut self, milliseconds: u32) -> Self {
        self.command.kato = milliseconds;
        self
    }
}
