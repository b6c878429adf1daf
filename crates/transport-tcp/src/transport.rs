//! One reactor's transport: the poller that ties sockets to the shard of the target on its thread.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use memory::Segment;
use nvme::address::TransportType;
use nvme::{Sqe, Status};
use reactor::{Instant, Local, Place, Poller, PollerId, Progress};
use target::{
    Action, Borrows, CommandRefused, Lease, PortId, QueueId, QueueInfo, RequestId, Shard,
};
use tracing::warn;

use crate::buffers::Buffers;
use crate::connection::{Addresses, CommandIds, Core, Turn};
use crate::listener::Acceptor;
use crate::network::{LISTENING_REACTOR, Note, Seat, Shared, TcpNetwork};
use crate::sessions::Sessions;
use crate::socket::Socket;

/// NVMe/TCP on one reactor. It polls after the shard, whose answers it sends at the turn's end.
pub struct TcpTransport {
    local: Local,
    shared: Arc<Shared>,
    shard: Rc<RefCell<Shard>>,
    port: PortId,
    sessions: Sessions,
    /// On the reactor that listens.
    acceptor: Option<Acceptor>,
    buffers: Buffers,
    command_ids: CommandIds,
    stopping: bool,
}

/// The shard as one port of it sees it.
#[derive(Debug)]
pub(crate) struct Port<'a> {
    pub(crate) shard: &'a mut Shard,
    pub(crate) port: PortId,
}

impl Core for Port<'_> {
    fn open_queue(&mut self, addresses: &Addresses, in_capsule_limit: u32) -> Option<QueueId> {
        let Addresses { local, peer } = *addresses;
        // A socket takes whatever memory there is.
        let (transport, borrows) = (TransportType::Tcp, Borrows::Anything);
        let info = QueueInfo { transport, local, peer, in_capsule_limit, borrows };
        self.shard.open_queue(self.port, info)
    }

    fn command(
        &mut self,
        queue: QueueId,
        sqe: &Sqe,
        data: u32,
    ) -> Result<RequestId, CommandRefused> {
        self.shard.command(queue, sqe, data)
    }

    fn data_received(&mut self, request: RequestId, result: Result<(), Status>) {
        self.shard.data_received(request, result);
    }

    fn response_sent(&mut self, request: RequestId) {
        self.shard.response_sent(request);
    }

    fn close_queue(&mut self, queue: QueueId) {
        self.shard.close_queue(queue);
    }

    fn segment(&self, request: RequestId, offset: u32, length: u32) -> Option<Segment> {
        self.shard.segment(request, offset, length)
    }

    fn give_back(&mut self, request: RequestId) -> Lease {
        self.shard.give_back(request)
    }

    fn next_action(&mut self) -> Option<Action> {
        self.shard.next_action(self.port)
    }
}

impl TcpTransport {
    /// Adds the transport of `network` to this reactor, whose `shard` it serves as `port`. To be
    /// called on the reactor's thread, after the shard's own poller was added.
    pub fn start(
        network: &TcpNetwork,
        local: &Local,
        shard: Rc<RefCell<Shard>>,
        port: PortId,
    ) -> PollerId {
        let shared = Arc::clone(&network.shared);
        let buffers = Buffers::new(shared.config.receive_buffer);
        let acceptor = (local.index() == LISTENING_REACTOR).then(|| Acceptor::new(local));
        local.add_poller(Box::new(TcpTransport {
            local: local.clone(),
            shared,
            shard,
            port,
            sessions: Sessions::new(local.source()),
            acceptor,
            buffers,
            command_ids: CommandIds::default(),
            stopping: false,
        }))
    }

    /// Runs `act` with everything that it may use this turn.
    fn turn<R>(
        &mut self,
        act: impl FnOnce(&mut Sessions, &Seat, &mut Turn<'_, Port<'_>>) -> R,
    ) -> Option<R> {
        let seat = self.shared.seats.get(self.local.index())?;
        let mut shard = self.shard.borrow_mut();
        let mut port = Port { shard: &mut shard, port: self.port };
        let mut turn = Turn {
            core: &mut port,
            buffers: &mut self.buffers,
            command_ids: &mut self.command_ids,
            config: &self.shared.config,
            counters: &seat.counters,
            now: self.local.now(),
        };
        Some(act(&mut self.sessions, seat, &mut turn))
    }

    /// Does what other threads have asked for; whether they have.
    fn take_notes(&mut self) -> bool {
        let Some(seat) = self.shared.seats.get(self.local.index()) else { return false };
        let notes = seat.notes.take();
        let worked = !notes.is_empty();
        for note in notes {
            match (note, &mut self.acceptor) {
                (Note::Listen(listener), Some(acceptor)) if !self.stopping => {
                    acceptor.add(listener);
                }
                (Note::Unlisten(address), Some(acceptor)) => acceptor.remove(address),
                (Note::Listen(_) | Note::Unlisten(_), _) => {}
                (Note::Shutdown, acceptor) => {
                    self.stopping = true;
                    if let Some(acceptor) = acceptor {
                        acceptor.clear();
                    }
                    self.turn(|sessions, _, turn| sessions.shut_down(turn));
                }
                (Note::Serve(socket, place), _) => self.serve(socket, place),
            }
        }
        worked
    }

    fn serve(&mut self, socket: Socket, place: Place) {
        let stopping = self.stopping;
        self.turn(|sessions, seat, turn| {
            if stopping || sessions.len() >= turn.config.max_connections {
                turn.counters.refused.add(1);
                return;
            }
            match sessions.open(socket, place, turn) {
                Ok(()) => seat.joined(),
                Err(error) => {
                    turn.counters.refused.add(1);
                    warn!("a connection was closed at once: {error}");
                }
            }
        });
    }

    fn accept(&mut self) -> bool {
        let Some(acceptor) = &mut self.acceptor else { return false };
        let Some(seat) = self.shared.seats.get(self.local.index()) else { return false };
        acceptor.accept(self.local.now(), &seat.counters, |socket| self.shared.place(socket))
    }
}

// A method's path is not general enough in its lifetimes where a closure is.
#[allow(clippy::redundant_closure_for_method_calls)]
impl Poller for TcpTransport {
    fn poll(&mut self) -> Progress {
        let mut worked = self.accept();
        worked |= self.take_notes();
        worked |= self.turn(|sessions, seat, turn| sessions.poll(seat, turn)).unwrap_or(false);
        self.buffers.trim(self.local.now());
        Progress::from_worked(worked)
    }

    fn flush(&mut self) {
        self.turn(|sessions, seat, turn| sessions.flush(seat, turn));
    }

    fn ready_to_sleep(&mut self) -> bool {
        self.sessions.is_idle() && self.acceptor.as_ref().is_none_or(Acceptor::is_idle)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let accepting = self.acceptor.as_ref().and_then(Acceptor::next_deadline);
        let sessions = self.sessions.next_deadline();
        accepting.into_iter().chain(sessions).chain(self.buffers.next_trim()).min()
    }

    fn name(&self) -> &'static str {
        "transport-tcp"
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("connections", &self.sessions.len())
            .finish_non_exhaustive()
    }
}
