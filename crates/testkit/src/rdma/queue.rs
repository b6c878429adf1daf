//! A host's machine and its queues, in terms of verbs: messages out and in, memory that may be read and written.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE, Segment};
use verbs::{
    Access, Capacity, Completion, CompletionQueue, Connection, Device, Domain, EventChannel,
    Fabric, Flags, Kind, Library, Parameters, QueuePair, RegisteredArena, SendChain, Status, Work,
    WorkQueue,
};

/// Bytes for messages.
const MESSAGES: usize = 8 << 20;

/// A host's device with memory that peers may read and write.
pub struct Machine {
    /// Its own process, as it were.
    pub library: Library,
    /// All of its memory, for one key a slab.
    pub memory: Rc<RegisteredArena>,
    /// The memory for data.
    pub pool: Pool,
    /// What is on its way lies here.
    messages: Pool,
    address: SocketAddr,
    arena: Arena,
    domain: Domain,
    device: Device,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Machine {
    /// A process on the device with this address, with so many bytes of memory for data.
    pub fn new(fabric: &Fabric, address: IpAddr, bytes: usize) -> Rc<Machine> {
        let library = fabric.library();
        let devices = library.devices().unwrap();
        let device = devices.into_iter().find(|device| device.name() == "host").unwrap();
        let domain = Domain::new(&device).unwrap();
        let capacity = bytes.next_multiple_of(SLAB_SIZE) + MESSAGES;
        let arena = Arena::for_peers(ArenaConfig { capacity, hugepages: Hugepages::Never });
        let (pool, messages) = (arena.pool(bytes).unwrap(), arena.pool(MESSAGES).unwrap());
        let memory = Rc::new(RegisteredArena::new(&domain, &arena, Access::all()).unwrap());
        let address = SocketAddr::new(address, 0);
        Rc::new(Machine { library, memory, pool, messages, address, arena, domain, device })
    }

    /// So many bytes, `offset` bytes into a buffer of their own.
    pub fn segment(&self, offset: usize, bytes: usize) -> Segment {
        let buffer = self.pool.take(offset + bytes).expect("the host's memory");
        buffer.segment(offset, bytes).unwrap()
    }

    /// So many bytes for what is no data of a block, of which there is always enough.
    pub fn page(&self, bytes: usize) -> Segment {
        let buffer = self.messages.take(bytes).expect("memory for messages");
        buffer.segment(0, bytes).unwrap()
    }

    /// The same memory under new keys, which end with what is returned.
    pub fn registered_anew(&self) -> Rc<RegisteredArena> {
        Rc::new(RegisteredArena::new(&self.domain, &self.arena, Access::all()).unwrap())
    }
}

/// How a connection is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Whom.
    pub to: SocketAddr,
    /// What NVMe/RDMA wants to know, or anything.
    pub private_data: Vec<u8>,
    /// RDMA reads that the host answers at a time.
    pub responder_resources: u8,
    /// RDMA reads that it would send.
    pub initiator_depth: u8,
    /// Messages that the queue pair has room for, and responses that it can receive.
    pub depth: u32,
    /// How often it tries when the node is not ready: 7 is for ever.
    pub rnr_retries: u8,
    /// It posts receives, and posts each again.
    pub receives: bool,
}

impl Wish {
    /// What a good host says for a queue of this many entries.
    pub fn new(to: SocketAddr, qid: u16, entries: u16) -> Wish {
        Wish {
            to,
            private_data: zerocopy::IntoBytes::as_bytes(&nvme::rdma::Request::new(qid, entries, 0))
                .to_vec(),
            responder_resources: 16,
            initiator_depth: 0,
            depth: u32::from(entries),
            rnr_retries: 7,
            receives: true,
        }
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The address is being resolved, then the route.
    Resolving,
    /// The request is out.
    Asking,
    /// Messages may be sent.
    Connected,
    /// The reason, and the private data that came with it.
    Refused(i32, Vec<u8>),
    /// Nobody answers, or the connection failed.
    Failed(i32),
    /// It was connected.
    Over,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The key that it made useless.
    pub invalidated: Option<u32>,
}

/// An end of a connection; dropped, it vanishes without a word of its own.
pub struct Queue {
    // Before everything that its queue pair uses.
    work: WorkQueue,
    connection: Connection,
    events: EventChannel,
    chain: SendChain,
    completions: CompletionQueue,
    wish: Wish,
    /// See [`Phase`].
    pub phase: Phase,
    /// What the node granted: CRQSIZE.
    pub granted: u16,
    /// Messages that have come.
    pub arrived: VecDeque<Message>,
    /// Messages that have been delivered.
    pub delivered: u64,
    /// What failed, flushed work aside.
    pub failures: Vec<Status>,
    /// For what comes.
    room: Buffer,
    machine: Rc<Machine>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("number", &self.number())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Bytes that a message may have which comes.
const MESSAGE_BYTES: usize = 16;
/// Messages posted at a time.
const CHAIN: usize = 64;

impl Queue {
    /// Begins to ask for a connection; [`Queue::turn`] goes on with it.
    pub fn ask(machine: &Rc<Machine>, wish: Wish) -> Queue {
        let machine = Rc::clone(machine);
        let room = wish.depth * 2 + 32;
        let completions = CompletionQueue::new(&machine.device, room * 2, 0, None, 0).unwrap();
        let capacity = Capacity { sends: room, receives: wish.depth.max(1), pieces: 2, inline: 0 };
        let (domain, queue) = (&machine.domain, &completions);
        let pair = QueuePair::new(domain, queue, queue, None, capacity).unwrap();
        let bytes = capacity.receives as usize * MESSAGE_BYTES;
        let memory = machine.messages.take(bytes).expect("memory for messages");
        let events = EventChannel::new(&machine.library).unwrap();
        let connection = Connection::new(&events).unwrap();
        let time = Duration::from_secs(1);
        connection.resolve_address(Some(machine.address), wish.to, time).unwrap();
        Queue {
            work: WorkQueue::new(pair).unwrap(),
            connection,
            events,
            chain: SendChain::new(CHAIN, 2 * CHAIN),
            completions,
            wish,
            phase: Phase::Resolving,
            granted: 0,
            arrived: VecDeque::new(),
            delivered: 0,
            failures: Vec::new(),
            room: memory,
            machine,
        }
    }

    /// Its queue pair's number.
    pub fn number(&self) -> u32 {
        self.work.pair().number()
    }

    /// The machine that it is on.
    pub fn machine(&self) -> &Rc<Machine> {
        &self.machine
    }

    /// Whether nothing can come any more.
    pub fn is_over(&self) -> bool {
        !matches!(self.phase, Phase::Resolving | Phase::Asking | Phase::Connected)
    }

    /// Messages that may still be sent before one of those under way has been delivered.
    pub fn room(&self) -> usize {
        self.work.room()
    }

    /// Messages under way.
    pub fn under_way(&self) -> usize {
        self.work.outstanding()
    }

    /// Sends a message; nothing if the queue pair is in no state for that.
    pub fn send(&mut self, bytes: &[u8]) {
        let segment = (!bytes.is_empty()).then(|| {
            let segment = self.machine.page(bytes.len());
            assert_eq!(segment.copy_from(0, bytes), bytes.len());
            segment
        });
        let memory = Rc::clone(&self.machine.memory);
        self.chain.push(Work::Send, Flags::SIGNALED, 0, &memory, segment).unwrap();
        if self.work.post(&mut self.chain).is_err() {
            self.chain.clear();
        }
    }

    /// Ends the connection in order.
    pub fn disconnect(&mut self) {
        // Over already.
        let _ = self.connection.disconnect();
    }

    /// Begins to take what the node sends, if the wish was not to.
    pub fn start_receiving(&mut self) {
        self.wish.receives = true;
        for tag in 0..self.wish.depth.max(1) {
            self.receive(tag);
        }
        self.work.flush_receives().unwrap();
    }

    /// Takes what there are receives for, and nothing beyond.
    pub fn stop_receiving(&mut self) {
        self.wish.receives = false;
    }

    fn receive(&mut self, tag: u32) {
        let memory = Rc::clone(&self.machine.memory);
        let segment = self.room.segment(tag as usize * MESSAGE_BYTES, MESSAGE_BYTES).unwrap();
        self.work.push_receive(tag, &memory, [Some(segment), None]).unwrap();
    }

    fn parameters(&self) -> Parameters<'_> {
        Parameters {
            private_data: &self.wish.private_data,
            responder_resources: self.wish.responder_resources,
            initiator_depth: self.wish.initiator_depth,
            rnr_retries: self.wish.rnr_retries,
            ..Parameters::default()
        }
    }

    /// Takes what has happened; whether anything has.
    pub fn turn(&mut self) -> bool {
        let mut worked = false;
        while let Ok(Some(event)) = self.events.next_event() {
            worked = true;
            let data = event.private_data.bytes();
            match event.kind {
                Kind::AddressResolved => {
                    self.connection.resolve_route(Duration::from_secs(1)).unwrap();
                }
                Kind::RouteResolved => {
                    self.connection.prepare(self.work.pair()).unwrap();
                    if self.wish.receives {
                        self.start_receiving();
                    }
                    self.phase = Phase::Asking;
                    self.connection.connect(self.work.pair(), &self.parameters()).unwrap();
                }
                Kind::ConnectResponse(_) => {
                    let accept = nvme::rdma::Accept::parse(data).expect("private data");
                    self.granted = accept.crqsize.get();
                    // The node may be gone already.
                    self.phase = match self.connection.establish(&self.parameters()) {
                        Ok(()) => Phase::Connected,
                        Err(_) => Phase::Over,
                    };
                }
                Kind::Rejected(reason) => self.phase = Phase::Refused(reason, data.to_vec()),
                Kind::Failed(error) => self.phase = Phase::Failed(error),
                Kind::Disconnected | Kind::DeviceRemoved => {
                    self.disconnect();
                    self.phase = Phase::Over;
                }
                _ => {}
            }
        }
        worked | self.take_completions()
    }

    fn take_completions(&mut self) -> bool {
        let mut room = [Completion::default(); 16];
        let taken = self.completions.poll(&mut room).unwrap();
        for completion in taken {
            let status = completion.status();
            self.work.retire(completion);
            let received = self.work.take_receive(completion);
            if status != Status::SUCCESS {
                if status != Status::FLUSHED {
                    self.failures.push(status);
                }
                if self.phase == Phase::Connected {
                    self.disconnect();
                    self.phase = Phase::Over;
                }
                continue;
            }
            let Some([Some(segment), _]) = received else {
                self.delivered += 1;
                continue;
            };
            let mut bytes = vec![0; completion.byte_len() as usize];
            segment.copy_to(0, &mut bytes);
            let invalidated = completion.invalidated();
            self.arrived.push_back(Message { bytes, invalidated });
            if self.wish.receives && !self.is_over() {
                drop(segment);
                self.receive(completion.tag());
            }
        }
        let worked = !taken.is_empty();
        if worked && !self.is_over() {
            let _ = self.work.flush_receives();
        }
        worked
    }
}
