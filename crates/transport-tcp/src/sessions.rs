//! The connections of one reactor with their sockets: which of them is read, sent to, waited for.
//!
//! ```text
//!  poll    epoll's events, deadlines -> active
//!          each active: readv -> PDUs -> target      (bounded, round robin)
//!          the target's actions -> active, dirty
//!  flush   the target's actions
//!          each dirty: one sendmsg
//! ```
//!
//! Events are edge-triggered, so what is known about a socket is kept here: `readable` until a read
//! came back short, `writable` until a send did. A connection that has just been read is *hot*: the
//! next turns try to read it without waiting for an event, because a busy reactor asks epoll only
//! now and then. A read that finds nothing costs a system call, so there are few such tries.

use std::collections::VecDeque;
use std::io;

use memory::vectored::Space;
use reactor::{EventSource, Instant, Interest, Place, Readiness, TimerId, Timers};
use slab::Slab;
use target::{Action, QueueId};
use tracing::{debug, info};

use crate::connection::{Addresses, Advance, CloseReason, Connection, Core, Turn};
use crate::network::Seat;
use crate::socket::Socket;

/// Turns in a row in which a connection is read without an event, and nothing is found.
const HOT_TRIES: u8 = 2;
/// With more active connections than this a turn finds enough to do, and epoll finds it cheaper.
const HOT_SESSIONS: usize = 4;
/// PDUs taken in a turn from all connections together: about the turn's length, 1 ms at most.
const PDUS_PER_TURN: u32 = 1024;

/// Names a session; stale once it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    slot: u32,
    serial: u64,
}

#[derive(Debug)]
struct Session {
    socket: Socket,
    _place: Place,
    connection: Connection,
    serial: u64,
    queue: Option<QueueId>,
    timer: Option<(TimerId, Instant)>,
    /// The kernel may have bytes, or the end of the stream.
    readable: bool,
    /// The peer has closed its half: reading goes on until the end is found.
    closing: bool,
    /// The kernel may take bytes.
    writable: bool,
    /// We have closed our half.
    finished: bool,
    /// PDUs may lie in the receive buffer.
    unread: bool,
    /// Turns without an event in which it is still read.
    tries: u8,
    active: bool,
    dirty: bool,
    /// Closed, and soon to be dropped.
    doomed: bool,
}

/// The connections of one reactor.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: Slab<Session>,
    serial: u64,
    source: EventSource,
    /// The session of each queue of the target, by the queue's slot.
    by_queue: Vec<Option<Key>>,
    /// To be read in the next poll, in order.
    active: VecDeque<Key>,
    /// To be sent to in the next flush, in order.
    dirty: VecDeque<Key>,
    /// Closed, to be dropped at the end of the pass.
    closed: Vec<Key>,
    timers: Timers<Key>,
}

impl Sessions {
    pub(crate) fn new(source: EventSource) -> Sessions {
        Sessions {
            table: Slab::new(),
            serial: 0,
            source,
            by_queue: Vec::new(),
            active: VecDeque::new(),
            dirty: VecDeque::new(),
            closed: Vec::new(),
            timers: Timers::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Serves a connection from now on.
    ///
    /// # Errors
    /// The system's; the socket is closed then.
    pub(crate) fn open<C: Core>(
        &mut self,
        socket: Socket,
        place: Place,
        turn: &mut Turn<'_, C>,
    ) -> io::Result<()> {
        let (local, peer) = socket.addresses()?;
        let connection = Connection::new(Addresses { local, peer }, turn.config, turn.now);
        let entry = self.table.vacant_entry();
        let slot = u32::try_from(entry.key()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.source.register(&socket, slot, Interest::READ | Interest::WRITE)?;
        let serial = self.serial;
        self.serial = self.serial.wrapping_add(1);
        entry.insert(Session {
            socket,
            _place: place,
            connection,
            serial,
            queue: None,
            timer: None,
            readable: true,
            closing: false,
            writable: true,
            finished: false,
            unread: false,
            tries: 0,
            active: false,
            dirty: false,
            doomed: false,
        });
        let key = Key { slot, serial };
        self.activate(key);
        self.settle(key);
        turn.counters.opened.add(1);
        debug!("{peer}: connected to {local}");
        Ok(())
    }

    /// Reads what has come and hands it to the target; whether anything was done.
    pub(crate) fn poll<C: Core>(&mut self, seat: &Seat, turn: &mut Turn<'_, C>) -> bool {
        let mut worked = self.take_events(turn);
        worked |= self.take_deadlines(turn);
        let mut left = PDUS_PER_TURN;
        for _ in 0..self.active.len() {
            let Some(key) = self.active.pop_front() else { break };
            if left == 0 {
                turn.counters.turns_waited.add(1);
                self.active.push_back(key);
                continue;
            }
            let Some(session) = self.get(key) else { continue };
            session.active = false;
            let budget = left.min(turn.config.pdus_per_turn);
            let spent = self.serve(key, budget, turn);
            left = left.saturating_sub(spent.unwrap_or(0));
            worked |= spent.is_some();
            self.settle(key);
        }
        worked |= self.act(turn);
        self.reap(seat, turn);
        worked
    }

    /// Sends what the turn has queued.
    pub(crate) fn flush<C: Core>(&mut self, seat: &Seat, turn: &mut Turn<'_, C>) {
        self.act(turn);
        for _ in 0..self.dirty.len() {
            let Some(key) = self.dirty.pop_front() else { break };
            let Some(session) = self.get(key) else { continue };
            session.dirty = false;
            send(session, turn);
            self.settle(key);
        }
        // What the target does with slots and buffers that have just become free.
        self.act(turn);
        self.reap(seat, turn);
    }

    /// Whether all there is to do will be announced by an event or a deadline.
    pub(crate) fn is_idle(&self) -> bool {
        let is_quiet = |key: &Key| {
            let slot = usize::try_from(key.slot).ok();
            let session = slot.and_then(|slot| self.table.get(slot));
            session.is_none_or(|session| !session.readable && !session.unread)
        };
        self.dirty.is_empty() && self.active.iter().all(is_quiet)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ends every connection once what is queued for it has been sent.
    pub(crate) fn shut_down<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        let keys: Vec<_> =
            self.table.iter().map(|(slot, session)| (slot, session.serial)).collect();
        for (slot, serial) in keys {
            let Ok(slot) = u32::try_from(slot) else { continue };
            let key = Key { slot, serial };
            if let Some(session) = self.get(key) {
                session.connection.shut_down(turn);
                self.settle(key);
            }
        }
    }

    fn get(&mut self, key: Key) -> Option<&mut Session> {
        let session = self.table.get_mut(usize::try_from(key.slot).ok()?)?;
        (session.serial == key.serial).then_some(session)
    }

    /// Has the session read in the next poll.
    fn activate(&mut self, key: Key) {
        if let Some(session) = self.get(key)
            && !session.active
        {
            session.active = true;
            self.active.push_back(key);
        }
    }

    /// Takes note of what epoll has seen; whether any of it is of use. An event that only says that
    /// a socket is still writable is a leftover of bytes that were read without it.
    fn take_events<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> bool {
        let Sessions { table, source, active, dirty, closed, .. } = self;
        let mut worked = false;
        source.drain(|slot, readiness| {
            let session = usize::try_from(slot).ok().and_then(|slot| table.get_mut(slot));
            let Some(session) = session else { return };
            let key = Key { slot, serial: session.serial };
            if readiness.contains(Readiness::READ) {
                worked = true;
                session.readable = true;
                session.closing |= readiness.contains(Readiness::CLOSED);
                if session.closing && !session.connection.wants_bytes() && !session.doomed {
                    // It is not being read, so the end would not be found; and nobody is left to
                    // whom the answers would matter.
                    session.connection.end(CloseReason::ByPeer, turn);
                    session.doomed = true;
                    closed.push(key);
                }
                if !session.active {
                    session.active = true;
                    active.push_back(key);
                }
            }
            if readiness.contains(Readiness::WRITE) {
                session.writable = true;
                if session.connection.wants_to_send() && !session.dirty {
                    worked = true;
                    session.dirty = true;
                    dirty.push_back(key);
                }
            }
        });
        worked
    }

    fn take_deadlines<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> bool {
        let mut worked = false;
        while let Some(key) = self.timers.pop_due(turn.now) {
            worked = true;
            if let Some(session) = self.get(key) {
                session.timer = None;
                session.connection.check_deadlines(turn);
                self.settle(key);
            }
        }
        worked
    }

    /// Takes up to `budget` PDUs of one connection, reading as needed. The number of PDUs, or
    /// `None` if there was nothing to do.
    fn serve<C: Core>(&mut self, key: Key, budget: u32, turn: &mut Turn<'_, C>) -> Option<u32> {
        let mut left = budget;
        let mut calls = turn.config.calls_per_turn;
        let mut found = false;
        loop {
            let session = self.get(key)?;
            session.unread = false;
            let outcome = session.connection.advance(turn, &mut left);
            let queue = session.connection.queue();
            if queue != session.queue {
                session.queue = queue;
                self.note_queue(key, queue);
            }
            match outcome {
                Advance::Offered => {
                    self.act(turn);
                    continue;
                }
                Advance::Spent => {
                    if let Some(session) = self.get(key) {
                        session.unread = true;
                    }
                    self.activate(key);
                    break;
                }
                Advance::Stalled => {
                    if let Some(session) = self.get(key)
                        && session.closing
                    {
                        session.connection.end(CloseReason::ByPeer, turn);
                    }
                    break;
                }
                Advance::Starved | Advance::Ended => {}
            }
            let session = self.get(key)?;
            if session.connection.is_closed() {
                found = true;
                break;
            }
            if calls == 0 {
                self.activate(key);
                break;
            }
            let hot = calls == turn.config.calls_per_turn && session.tries > 0;
            if !session.readable && !hot {
                break;
            }
            calls -= 1;
            if !receive(session, turn) {
                break;
            }
            found = true;
        }
        found |= left < budget;
        let few = self.active.len() < HOT_SESSIONS;
        if let Some(session) = self.get(key) {
            session.tries = if found { HOT_TRIES } else { session.tries.saturating_sub(1) };
            if few && session.tries > 0 && session.connection.wants_bytes() {
                self.activate(key);
            }
        }
        found.then(|| budget - left)
    }

    /// Carries out what the target asks for; whether it asked for anything.
    fn act<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> bool {
        let mut acted = false;
        while let Some(action) = turn.core.next_action() {
            acted = true;
            let Some(key) = self.of_queue(action.queue()) else { continue };
            let Some(session) = self.get(key) else { continue };
            let connection = &mut session.connection;
            if connection.queue() != Some(action.queue()) {
                continue;
            }
            let was_waiting = !connection.wants_bytes();
            let is_response = matches!(action, Action::Respond { .. });
            connection.act(action, turn);
            if is_response && !was_waiting {
                // The usual case, of which nothing follows but that there is something to send.
                if session.writable && !session.dirty {
                    session.dirty = true;
                    self.dirty.push_back(key);
                }
                continue;
            }
            if was_waiting && connection.wants_bytes() {
                session.unread = true;
                self.activate(key);
            }
            self.settle(key);
        }
        acted
    }

    fn of_queue(&self, queue: QueueId) -> Option<Key> {
        *self.by_queue.get(usize::try_from(queue.slot).ok()?)?
    }

    fn note_queue(&mut self, key: Key, queue: Option<QueueId>) {
        let Some(queue) = queue else { return };
        let Ok(slot) = usize::try_from(queue.slot) else { return };
        if self.by_queue.len() <= slot {
            self.by_queue.resize(slot.saturating_add(1), None);
        }
        if let Some(entry) = self.by_queue.get_mut(slot) {
            *entry = Some(key);
        }
    }

    /// After anything was done with a connection: what follows from it.
    fn settle(&mut self, key: Key) {
        let Sessions { table, active, dirty, closed, timers, .. } = self;
        let session = usize::try_from(key.slot).ok().and_then(|slot| table.get_mut(slot));
        let Some(session) = session.filter(|session| session.serial == key.serial) else { return };
        let connection = &session.connection;
        if connection.is_closed() {
            if !session.doomed {
                session.doomed = true;
                closed.push(key);
            }
            return;
        }
        if connection.has_said_all() && !session.finished {
            session.finished = true;
            // A socket that is not connected any more says so when it is read.
            let _ = session.socket.finish();
            session.readable = true;
            if !session.active {
                session.active = true;
                active.push_back(key);
            }
        }
        if connection.wants_to_send() && session.writable && !session.dirty {
            session.dirty = true;
            dirty.push_back(key);
        }
        if let Some(at) = connection.wake_at()
            && session.timer.is_none_or(|(_, armed)| at < armed)
        {
            if let Some((id, _)) = session.timer {
                timers.cancel(id);
            }
            session.timer = Some((timers.insert(at, key), at));
        }
    }

    /// Drops the connections that are closed.
    fn reap<C: Core>(&mut self, seat: &Seat, turn: &mut Turn<'_, C>) {
        while let Some(key) = self.closed.pop() {
            let Ok(slot) = usize::try_from(key.slot) else { continue };
            let Some(session) = self.table.try_remove(slot) else { continue };
            if let Some((id, _)) = session.timer {
                self.timers.cancel(id);
            }
            // The descriptor leaves the epoll instance when it is closed, at the latest.
            let _ = self.source.deregister(&session.socket, key.slot);
            turn.counters.closed.add(1);
            seat.left();
            report(&session.connection);
        }
    }
}

/// Reads once; whether anything came, the end included.
fn receive<C: Core>(session: &mut Session, turn: &mut Turn<'_, C>) -> bool {
    let (direct, buffer) = session.connection.spaces(turn.buffers);
    let room = direct.as_ref().map_or(0, space_len).saturating_add(space_len(&buffer));
    turn.counters.receive_calls.add(1);
    let error = match session.socket.receive(direct, buffer) {
        Ok(0) => {
            session.connection.end(CloseReason::ByPeer, turn);
            return true;
        }
        Ok(count) => {
            turn.counters.bytes_received.add_len(count);
            session.connection.filled(count, turn.buffers);
            session.readable = count == room || session.closing;
            return true;
        }
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            turn.counters.receive_calls_empty.add(1);
            session.readable = false;
            session.connection.filled(0, turn.buffers);
        }
        io::ErrorKind::Interrupted => return true,
        _ => session.connection.end(CloseReason::Socket(error), turn),
    }
    false
}

/// Sends what is queued: one call, or a few if it does not fit into one batch.
fn send<C: Core>(session: &mut Session, turn: &mut Turn<'_, C>) {
    for _ in 0..turn.config.calls_per_turn {
        let Some(batch) = session.connection.batch(turn) else { return };
        let left = batch.left();
        let result = session.socket.send(batch.pieces());
        turn.counters.send_calls.add(1);
        match result {
            Ok(count) => {
                session.connection.sent(count, turn);
                if count < left {
                    turn.counters.send_calls_short.add(1);
                    session.writable = false;
                    session.connection.blocked(turn);
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                turn.counters.send_calls_short.add(1);
                session.writable = false;
                session.connection.blocked(turn);
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return session.connection.end(CloseReason::Socket(error), turn),
        }
    }
}

fn space_len(space: &Space<'_>) -> usize {
    match space {
        Space::Bytes(bytes) => bytes.len(),
        Space::Part(_, _, len) => *len,
    }
}

/// One line for a connection's end: louder if the peer broke the protocol or did not keep up.
fn report(connection: &Connection) {
    let Addresses { peer, .. } = connection.addresses();
    match connection.reason() {
        Some(reason @ (CloseReason::ByPeer | CloseReason::ByTarget(_) | CloseReason::Shutdown)) => {
            debug!("{peer}: connection closed: {reason}");
        }
        Some(reason) => info!("{peer}: connection closed: {reason}"),
        None => debug!("{peer}: connection closed"),
    }
}
