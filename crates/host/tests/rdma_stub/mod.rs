//! The controller of `answers` over RDMA, on software devices. One thread is the controller and steps the devices, so that a
//! host on another thread blocks as it does on hardware.

#![allow(dead_code, reason = "each test uses its part")]

use crate::answers::{Answer, Answers, IN_CAPSULE, Script, State};
use memory::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE, Segment};
use nvme::rdma::{Accept, Request};
use nvme::{Cqe, Sgl, Sqe, Status as NvmeStatus};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use verbs::software::DeviceOptions;
use verbs::{
    Access, Capacity, Completion, CompletionQueue, Connection, ConnectionId, Device, Domain,
    EventChannel, Fabric, Flags, Kind, Library, Parameters, QueuePair, RegisteredArena, Remote,
    SendChain, Status, Work, WorkQueue,
};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const HOST: &str = "192.0.2.1";
pub(crate) const TARGET: &str = "192.0.2.2:4420";

/// Commands that the controller receives at a time.
const RECEIVES: u32 = 256;

/// The tag of responses.
const RESPONSE: u32 = u32::MAX;

/// What an I/O queue does with its commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Manner {
    #[default]
    Obliging,
    /// Answers only when there are so many, the last one first.
    Reversed(usize),
    /// Never answers.
    Mute,
    /// Answers another command than was asked.
    Confused,
    /// Answers with so many bytes.
    Garbled(usize),
    /// Ends the connection instead of answering.
    Leaving,
}

/// How connections are dealt with.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    pub(crate) io: Manner,
    /// Reject every connection with this.
    pub(crate) reject: Option<Vec<u8>>,
    /// Leave requests for a connection unanswered.
    pub(crate) ignore: bool,
    /// Accept with this instead of CRQSIZE.
    pub(crate) accept: Option<Vec<u8>>,
    /// What the host's device is like.
    pub(crate) host_device: Option<DeviceOptions>,
}

/// What the controller has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: Mutex<Vec<Request>>,
    /// SQSIZE of the Connect commands.
    pub(crate) sqsizes: Mutex<Vec<u16>>,
    /// Its queue pairs.
    pub(crate) pairs: Mutex<Vec<u32>>,
    pub(crate) in_capsule: AtomicUsize,
    pub(crate) keyed: AtomicUsize,
    /// I/O commands received, answered or not.
    pub(crate) commands: AtomicUsize,
    /// Responses that the host has received.
    pub(crate) answered: AtomicUsize,
    /// Turns in which nothing could happen.
    pub(crate) idle: AtomicUsize,
    /// Asks the controller to end all connections.
    pub(crate) leave: AtomicBool,
    /// Connections at present.
    pub(crate) open: AtomicUsize,
}

pub(crate) struct RdmaStub {
    pub(crate) fabric: Fabric,
    /// The host's entrance.
    pub(crate) library: Library,
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RdmaStub {
    pub(crate) fn start(seed: u64, script: Script, manners: Manners) -> Self {
        let fabric = Fabric::new(seed);
        let soft0 = DeviceOptions::new("soft0", HOST.parse().unwrap());
        fabric.add_device(manners.host_device.clone().unwrap_or(soft0));
        let address: SocketAddr = TARGET.parse().unwrap();
        fabric.add_device(DeviceOptions::new("soft1", address.ip()));
        let state = State::new(script);
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server {
            fabric: fabric.clone(),
            state: Arc::clone(&state),
            seen: Arc::clone(&seen),
            manners,
        };
        let stopped = Arc::clone(&stop);
        let (ready, listens) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || server.run(address, &ready, &stopped));
        listens.recv().unwrap();
        let library = fabric.library();
        Self { fabric, library, address, state, seen, stop, thread: Some(thread) }
    }

    /// What to connect to it with.
    pub(crate) fn options(&self) -> host::ConnectOptions {
        host::ConnectOptions {
            transport: nvme::address::TransportType::Rdma,
            rdma: Some(self.library.clone()),
            ..crate::answers::options(self.address)
        }
    }

    pub(crate) fn host_device(&self) -> Device {
        self.library.devices().unwrap().swap_remove(0)
    }
}

impl Drop for RdmaStub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "the controller failed");
        }
    }
}

struct Server {
    fabric: Fabric,
    state: Arc<State>,
    seen: Arc<Seen>,
    manners: Manners,
}

impl Server {
    fn run(self, address: SocketAddr, ready: &std::sync::mpsc::Sender<()>, stop: &AtomicBool) {
        let library = self.fabric.library();
        let events = EventChannel::new(&library).unwrap();
        let listener = Connection::new(&events).unwrap();
        listener.bind(address).unwrap();
        listener.listen(16).unwrap();
        ready.send(()).unwrap();
        let mut peers: Vec<Peer> = Vec::new();
        let mut ignored = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let moved = self.fabric.step();
            while let Some(event) = events.next_event().unwrap() {
                match event.kind {
                    Kind::ConnectRequest { connection, .. } if self.manners.ignore => {
                        ignored.push(connection);
                    }
                    Kind::ConnectRequest { connection, .. } => {
                        peers.extend(self.request(connection, event.private_data.bytes()));
                    }
                    Kind::Disconnected => {
                        peers.retain(|peer| peer.id() != event.connection);
                    }
                    _ => {}
                }
            }
            peers.retain_mut(Peer::turn);
            if self.seen.leave.load(Ordering::Relaxed) {
                peers.clear();
            }
            self.seen.open.store(peers.len(), Ordering::Relaxed);
            if !moved {
                self.seen.idle.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        }
    }

    fn request(&self, connection: Connection, data: &[u8]) -> Option<Peer> {
        let request = Request::parse(data).unwrap();
        self.seen.requests.lock().unwrap().push(request);
        if let Some(data) = &self.manners.reject {
            connection.reject(data).unwrap();
            return None;
        }
        let accept = Accept::new(u16::try_from(request.commands()).unwrap());
        let accept = self.manners.accept.clone().unwrap_or_else(|| accept.as_bytes().to_vec());
        let answers = Answers::new(Arc::clone(&self.state));
        Some(Peer::new(connection, &accept, answers, self.manners.io, &self.seen))
    }
}

/// One connection.
struct Peer {
    queue: WorkQueue,
    chain: SendChain,
    cq: CompletionQueue,
    memory: RegisteredArena,
    pool: Pool,
    connection: Connection,
    answers: Answers,
    manner: Manner,
    seen: Arc<Seen>,
    /// Commands whose data is being read, by tag.
    reading: Vec<Option<(Sqe, Segment)>>,
    /// Commands to be answered later.
    held: Vec<(Sqe, Vec<u8>)>,
}

impl Peer {
    fn new(
        connection: Connection,
        accept: &[u8],
        answers: Answers,
        manner: Manner,
        seen: &Arc<Seen>,
    ) -> Self {
        let device = connection.device().unwrap().unwrap();
        let domain = Domain::new(&device).unwrap();
        let size = 8 * SLAB_SIZE;
        let arena = Arena::new(ArenaConfig { capacity: size, hugepages: Hugepages::Never });
        let pool = arena.pool(size).unwrap();
        let memory = RegisteredArena::new(&domain, &arena, Access::LOCAL_WRITE).unwrap();
        let cq = CompletionQueue::new(&device, 4 * RECEIVES, 0, None, 0).unwrap();
        let capacity = Capacity { sends: 3 * RECEIVES, receives: RECEIVES, pieces: 2, inline: 64 };
        let pair = QueuePair::new(&domain, &cq, &cq, None, capacity).unwrap();
        seen.pairs.lock().unwrap().push(pair.number());
        connection.prepare(&pair).unwrap();
        let mut queue = WorkQueue::new(pair).unwrap();
        for tag in 0..RECEIVES {
            let piece = |bytes: usize| pool.take(bytes).unwrap().segment(0, bytes);
            let pieces = [piece(64), piece(usize::try_from(IN_CAPSULE).unwrap())];
            queue.push_receive(tag, &memory, pieces).unwrap();
        }
        queue.flush_receives().unwrap();
        let parameters = Parameters {
            private_data: accept,
            responder_resources: 0,
            initiator_depth: 4,
            ..Parameters::default()
        };
        connection.accept(&parameters).unwrap();
        Self {
            queue,
            chain: SendChain::new(2, 4),
            cq,
            memory,
            pool,
            connection,
            answers,
            manner,
            seen: Arc::clone(seen),
            reading: (0..RECEIVES).map(|_| None).collect(),
            held: Vec::new(),
        }
    }

    fn id(&self) -> ConnectionId {
        self.connection.id()
    }

    /// False: it is over.
    fn turn(&mut self) -> bool {
        let mut room = [Completion::default(); 16];
        let arrived = self.cq.poll(&mut room).unwrap().to_vec();
        for completion in arrived {
            self.queue.retire(&completion);
            if completion.status() != Status::SUCCESS {
                return false;
            }
            if completion.is_receive() {
                if !self.received(&completion) {
                    return false;
                }
            } else if completion.tag() == RESPONSE {
                self.seen.answered.fetch_add(1, Ordering::Relaxed);
            } else if let Some(place) = self.reading.get_mut(completion.tag() as usize)
                && let Some((sqe, segment)) = place.take()
            {
                self.command(sqe, bytes_of(&segment));
            }
        }
        true
    }

    fn received(&mut self, completion: &Completion) -> bool {
        let pieces = self.queue.take_receive(completion).unwrap();
        let [capsule, data] = pieces.each_ref().map(|piece| bytes_of(piece.as_ref().unwrap()));
        let tag = completion.tag();
        self.queue.push_receive(tag, &self.memory, pieces).unwrap();
        self.queue.flush_receives().unwrap();
        let sqe = Sqe::read_from_bytes(&capsule).unwrap();
        if self.answers.io && !sqe.is_fabrics() {
            self.seen.commands.fetch_add(1, Ordering::Relaxed);
            match self.manner {
                Manner::Mute => return true,
                Manner::Leaving => return false,
                _ => {}
            }
        }
        let carried = completion.byte_len() as usize - 64;
        match sqe.sgl() {
            Sgl::InCapsule { offset, length } => {
                assert_eq!((offset, length as usize), (0, carried));
                self.seen.in_capsule.fetch_add(1, Ordering::Relaxed);
                self.command(sqe, data[..carried].to_vec());
            }
            Sgl::Keyed { address, length, key, invalidate } => {
                assert_eq!((carried, invalidate), (0, false));
                self.seen.keyed.fetch_add(1, Ordering::Relaxed);
                if self.answers.takes_data(&sqe) {
                    let from = Remote { address, key };
                    let into = self.buffer(&vec![0; length as usize]);
                    let work = Work::Read(from);
                    let segments = [into.clone()];
                    self.chain.push(work, Flags::SIGNALED, tag, &self.memory, segments).unwrap();
                    self.queue.post(&mut self.chain).unwrap();
                    self.reading[tag as usize] = Some((sqe, into));
                } else {
                    self.command(sqe, Vec::new());
                }
            }
            other => panic!("{other:?}"),
        }
        true
    }

    fn buffer(&self, bytes: &[u8]) -> Segment {
        let mut buffer = self.pool.take(bytes.len()).unwrap();
        buffer.bytes_mut().unwrap().copy_from_slice(bytes);
        buffer.segment(0, bytes.len()).unwrap()
    }

    fn command(&mut self, sqe: Sqe, data: Vec<u8>) {
        let is_io = self.answers.io && !sqe.is_fabrics();
        if let Manner::Reversed(count) = self.manner
            && is_io
        {
            self.held.push((sqe, data));
            if self.held.len() == count {
                for (sqe, data) in std::mem::take(&mut self.held).into_iter().rev() {
                    self.answer(&sqe, &data);
                }
            }
        } else {
            self.answer(&sqe, &data);
        }
    }

    fn answer(&mut self, sqe: &Sqe, data: &[u8]) {
        let had_connected = self.answers.sqsize;
        let answer = self.answers.to(sqe, data);
        if self.answers.sqsize != had_connected {
            self.seen.sqsizes.lock().unwrap().push(self.answers.sqsize);
        }
        let (status, result) = match answer {
            Answer::Plain(status, result) => (status, result),
            Answer::Data(mut data) => {
                let Sgl::Keyed { address, length, key, .. } = sqe.sgl() else { panic!("{sqe:?}") };
                data.resize(length as usize, 0);
                let to = Work::Write(Remote { address, key });
                let segments = [self.buffer(&data)];
                self.chain.push(to, Flags::empty(), 0, &self.memory, segments).unwrap();
                (NvmeStatus::SUCCESS, 0)
            }
        };
        let is_io = self.answers.io && !sqe.is_fabrics();
        let (mut cid, mut length) = (sqe.cid.get(), size_of::<Cqe>());
        match self.manner {
            Manner::Confused if is_io => cid ^= 0x1000,
            Manner::Garbled(bytes) if is_io => length = bytes,
            _ => {}
        }
        let cqe = Cqe::new(cid, 0, status).with_result(result);
        let mut message = cqe.as_bytes().to_vec();
        message.resize(length, 0);
        self.chain.push_inline(Work::Send, Flags::SIGNALED, RESPONSE, &message).unwrap();
        self.queue.post(&mut self.chain).unwrap();
    }
}

fn bytes_of(segment: &Segment) -> Vec<u8> {
    let mut bytes = vec![0; segment.len()];
    segment.copy_to(0, &mut bytes);
    bytes
}
