//! Two connected ends, over software devices that are stepped or over the machine's own.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE, Segment};
use verbs::software::DeviceOptions;
use verbs::{
    Access, Capacity, Completion, CompletionChannel, CompletionQueue, Connection, ConnectionId,
    Device, Domain, Event, EventChannel, Fabric, Kind, Library, Parameters, QueuePair,
    RegisteredArena, SharedReceiveQueue, SharedReceives, WorkQueue,
};

/// What makes things happen: steps, or time.
#[derive(Clone)]
pub(crate) struct Driver(pub(crate) Option<Fabric>);

impl Driver {
    /// Repeats `attempt` until it has a result.
    pub(crate) fn until<T>(&self, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        let (start, mut idle) = (Instant::now(), 0);
        loop {
            if let Some(result) = attempt() {
                return result;
            }
            match &self.0 {
                Some(fabric) if fabric.step() => idle = 0,
                Some(_) => idle += 1,
                None => std::thread::yield_now(),
            }
            assert!(idle < 3, "{what}: nothing happens any more");
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: took too long");
        }
    }

    pub(crate) fn event(&self, channel: &EventChannel, what: &str) -> Event {
        self.until(what, || channel.next_event().unwrap())
    }
}

/// What an end is made of.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) capacity: Capacity,
    pub(crate) completions: u32,
    /// Receives of its shared receive queue; 0 for none.
    pub(crate) shared: u32,
}

impl Default for Shape {
    fn default() -> Self {
        let capacity = Capacity { sends: 32, receives: 32, pieces: 4, inline: 32 };
        Shape { capacity, completions: 128, shared: 64 }
    }
}

pub(crate) struct End {
    pub(crate) queue: WorkQueue,
    pub(crate) shared: Option<SharedReceives>,
    pub(crate) cq: CompletionQueue,
    pub(crate) channel: CompletionChannel,
    pub(crate) memory: RegisteredArena,
    pub(crate) pool: Pool,
    pub(crate) connection: Connection,
    pub(crate) events: EventChannel,
    pub(crate) device: Device,
}

pub(crate) fn registered(domain: &Domain, access: Access) -> (RegisteredArena, Pool) {
    let config = ArenaConfig { capacity: 2 * SLAB_SIZE, hugepages: Hugepages::Never };
    let peers = access.contains(Access::REMOTE_WRITE);
    let arena = if peers { Arena::for_peers(config) } else { Arena::new(config) };
    let pool = arena.pool(SLAB_SIZE).unwrap();
    (RegisteredArena::new(domain, &arena, access).unwrap(), pool)
}

impl End {
    pub(crate) fn parts(
        device: &Device,
        shape: Shape,
    ) -> (QueuePair, impl FnOnce(QueuePair, Connection, EventChannel) -> End + use<>) {
        let domain = Domain::new(device).unwrap();
        let (memory, pool) = registered(&domain, Access::all());
        let domain = domain.for_thread();
        let channel = CompletionChannel::new(device).unwrap();
        let cq = CompletionQueue::new(device, shape.completions, 77, Some(&channel), 0).unwrap();
        let shared =
            (shape.shared > 0).then(|| SharedReceiveQueue::new(&domain, shape.shared, 88).unwrap());
        let pair = QueuePair::new(&domain, &cq, &cq, shared.as_ref(), shape.capacity).unwrap();
        let (device, shared) = (device.clone(), shared.map(SharedReceives::new));
        let build = move |pair, connection, events| {
            let queue = WorkQueue::new(pair).unwrap();
            End { queue, shared, cq, channel, memory, pool, connection, events, device }
        };
        (pair, build)
    }

    pub(crate) fn number(&self) -> u32 {
        self.queue.pair().number()
    }

    pub(crate) fn buffer(&self, bytes: &[u8]) -> Buffer {
        let buffer = self.pool.take(bytes.len().max(1)).unwrap();
        assert_eq!(buffer.segment(0, bytes.len()).unwrap().copy_from(0, bytes), bytes.len());
        buffer
    }

    pub(crate) fn filled(&self, bytes: &[u8]) -> Segment {
        self.buffer(bytes).segment(0, bytes.len()).unwrap()
    }

    /// Posts a receive of `length` bytes.
    pub(crate) fn receive(&mut self, tag: u32, length: usize) {
        let segment = self.filled(&vec![0; length]);
        let segments = [Some(segment), None];
        if let Some(shared) = &mut self.shared {
            shared.push(tag, &self.memory, segments).unwrap();
            shared.flush().unwrap();
        } else {
            self.queue.push_receive(tag, &self.memory, segments).unwrap();
            self.queue.flush_receives().unwrap();
        }
    }

    /// Takes completions as they are, and retires what they tell of.
    pub(crate) fn poll(&mut self) -> Vec<Completion> {
        let mut room = [Completion::default(); 8];
        let taken = self.cq.poll(&mut room).unwrap().to_vec();
        for completion in &taken {
            self.queue.retire(completion);
        }
        taken
    }

    /// Takes one completion, so that none is lost on who waits for them one by one.
    pub(crate) fn poll_one(&mut self) -> Option<Completion> {
        let mut room = [Completion::default(); 1];
        let taken = self.cq.poll(&mut room).unwrap().first().copied()?;
        self.queue.retire(&taken);
        Some(taken)
    }

    pub(crate) fn taken(&mut self, completion: &Completion) -> Option<Segment> {
        let segments = match &mut self.shared {
            Some(shared) => shared.take(completion),
            None => self.queue.take_receive(completion),
        };
        segments.and_then(|[first, _]| first)
    }
}

pub(crate) fn bytes_of(segment: &Segment) -> Vec<u8> {
    let mut bytes = vec![0; segment.len()];
    segment.copy_to(0, &mut bytes);
    bytes
}

/// A fabric with two devices, and a library for each end.
pub(crate) fn software(seed: u64) -> (Fabric, Library, Library) {
    let fabric = Fabric::new(seed);
    fabric.add_device(DeviceOptions::new("soft0", "192.0.2.1".parse().unwrap()));
    fabric.add_device(DeviceOptions::new("soft1", "192.0.2.2".parse().unwrap()));
    let (host, target) = (fabric.library(), fabric.library());
    (fabric, host, target)
}

pub(crate) const TARGET: &str = "192.0.2.2:4420";

pub(crate) fn listener(library: &Library, at: SocketAddr) -> (EventChannel, Connection) {
    let events = EventChannel::new(library).unwrap();
    let listener = Connection::new(&events).unwrap();
    listener.bind(at).unwrap();
    listener.listen(16).unwrap();
    (events, listener)
}

/// An identifier that has found its way to `to`.
pub(crate) fn resolved(
    driver: &Driver,
    library: &Library,
    to: SocketAddr,
) -> (EventChannel, Connection) {
    let events = EventChannel::new(library).unwrap();
    let connection = Connection::new(&events).unwrap();
    connection.resolve_address(None, to, Duration::from_secs(2)).unwrap();
    let event = driver.event(&events, "resolving the address");
    assert!(matches!(event.kind, Kind::AddressResolved), "{event:?}");
    connection.resolve_route(Duration::from_secs(2)).unwrap();
    let event = driver.event(&events, "resolving the route");
    assert!(matches!(event.kind, Kind::RouteResolved), "{event:?}");
    (events, connection)
}

/// Takes a request out of a listener's channel.
pub(crate) fn requested(
    driver: &Driver,
    events: &EventChannel,
    of: ConnectionId,
) -> (Connection, Vec<u8>) {
    let event = driver.event(events, "a request");
    let Kind::ConnectRequest { listener, connection, .. } = event.kind else {
        panic!("{:?}", event.kind)
    };
    assert_eq!(listener, of);
    (connection, event.private_data.bytes().to_vec())
}

/// Connects host and target.
pub(crate) fn connected(
    driver: &Driver,
    libraries: (&Library, &Library),
    at: SocketAddr,
    shapes: (Shape, Shape),
    parameters: Parameters<'_>,
) -> (End, End) {
    connected_by(driver, libraries, at, shapes, (parameters, parameters))
}

/// Connects host and target, each of which has a mind of its own.
pub(crate) fn connected_by(
    driver: &Driver,
    (host, target): (&Library, &Library),
    at: SocketAddr,
    (host_shape, target_shape): (Shape, Shape),
    (parameters, targets): (Parameters<'_>, Parameters<'_>),
) -> (End, End) {
    let (target_events, listening) = listener(target, at);
    let (host_events, connection) = resolved(driver, host, at);
    let device = connection.device().unwrap().unwrap();
    let (pair, build) = End::parts(&device, host_shape);
    let asked = Parameters { private_data: b"may I come in", ..parameters };
    connection.connect(&pair, &asked).unwrap();
    let (accepted, data) = requested(driver, &target_events, listening.id());
    assert_eq!(&data[..13], b"may I come in");
    let device = accepted.device().unwrap().unwrap();
    let (target_pair, target_build) = End::parts(&device, target_shape);
    let granted = Parameters { private_data: b"do", ..targets };
    accepted.prepare(&target_pair).unwrap();
    accepted.accept(&granted).unwrap();
    let event = driver.event(&host_events, "the response");
    assert!(matches!(event.kind, Kind::ConnectResponse(_)), "{event:?}");
    assert_eq!(&event.private_data.bytes()[..2], b"do");
    connection.establish(&parameters).unwrap();
    let event = driver.event(&target_events, "the end of it");
    assert!(matches!(event.kind, Kind::Established), "{event:?}");
    assert_eq!(event.connection, accepted.id());
    (build(pair, connection, host_events), target_build(target_pair, accepted, target_events))
}
