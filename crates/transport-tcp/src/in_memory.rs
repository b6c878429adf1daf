//! A connection whose bytes the caller carries: the very state machine that sockets drive, for
//! fuzzing, for simulated wires and for counting what a command costs without a kernel.
//!
//! One per host queue, on the thread of its shard. The caller routes the shard's actions to the
//! connection whose [`queue`](InMemoryConnection::queue) they name, and closes it when its wire is
//! cut.

use std::net::SocketAddr;

use memory::vectored::{Piece, Space};
use reactor::Instant;
use target::{Action, PortId, QueueId, Shard};

use crate::buffers::Buffers;
use crate::config::TcpConfig;
use crate::connection::{Addresses, Advance, CloseReason, CommandIds, Connection, Turn};
use crate::counters::{CounterValues, Counters};
use crate::transport::Port;

/// A connection without a socket.
#[derive(Debug)]
pub struct InMemoryConnection {
    connection: Connection,
    port: PortId,
    buffers: Buffers,
    command_ids: CommandIds,
    config: TcpConfig,
    counters: Counters,
}

impl InMemoryConnection {
    /// A connection of `peer` to `local`, just accepted; its queue will be one of `port`.
    pub fn new(
        config: TcpConfig,
        port: PortId,
        local: SocketAddr,
        peer: SocketAddr,
        now: Instant,
    ) -> InMemoryConnection {
        let config = config.clamped();
        InMemoryConnection {
            connection: Connection::new(Addresses { local, peer }, &config, now),
            port,
            buffers: Buffers::new(config.receive_buffer),
            command_ids: CommandIds::default(),
            config,
            counters: Counters::default(),
        }
    }

    fn turn<R>(
        &mut self,
        shard: &mut Shard,
        now: Instant,
        act: impl FnOnce(&mut Connection, &mut Turn<'_, Port<'_>>) -> R,
    ) -> R {
        let mut core = Port { shard, port: self.port };
        let mut turn = Turn {
            core: &mut core,
            buffers: &mut self.buffers,
            command_ids: &mut self.command_ids,
            config: &self.config,
            counters: &self.counters,
            now,
        };
        act(&mut self.connection, &mut turn)
    }

    /// The shard's name for it, from `ICReq` to the end.
    pub fn queue(&self) -> Option<QueueId> {
        self.connection.queue()
    }

    /// Puts bytes from the host in, as far as they are wanted now, and takes one turn's worth of
    /// PDUs; the number of bytes. To be called, without bytes too, after the shard's actions were
    /// carried out: they may be what it waited for.
    pub fn receive(&mut self, shard: &mut Shard, bytes: &[u8], now: Instant) -> usize {
        let mut budget = self.config.pdus_per_turn;
        let mut taken = 0;
        loop {
            let outcome =
                self.turn(shard, now, |connection, turn| connection.advance(turn, &mut budget));
            let rest = bytes.get(taken..).unwrap_or(&[]);
            let hungry = matches!(outcome, Advance::Starved | Advance::Ended);
            if !hungry || rest.is_empty() || self.connection.is_closed() {
                return taken;
            }
            let (direct, buffer) = self.connection.spaces(&mut self.buffers);
            let mut count = 0;
            for space in direct.into_iter().chain([buffer]) {
                count += put(space, rest.get(count..).unwrap_or(&[]));
            }
            self.connection.filled(count, &mut self.buffers);
            taken += count;
        }
    }

    /// Carries out an action of the shard that names this connection's queue.
    pub fn act(&mut self, shard: &mut Shard, action: Action, now: Instant) {
        self.turn(shard, now, |connection, turn| connection.act(action, turn));
    }

    /// Appends up to `most` bytes of what is to be sent to `out`; the number of bytes.
    pub fn send(
        &mut self,
        shard: &mut Shard,
        out: &mut Vec<u8>,
        most: usize,
        now: Instant,
    ) -> usize {
        let start = out.len();
        self.turn(shard, now, |connection, turn| {
            let Some(batch) = connection.batch(turn) else { return };
            for piece in batch.pieces() {
                let room = most.saturating_sub(out.len() - start);
                match piece {
                    Piece::Bytes(bytes) => {
                        out.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                    }
                    Piece::Part(segment, offset, len) => {
                        let at = out.len();
                        out.resize(at + len.min(room), 0);
                        segment.copy_to(offset, out.get_mut(at..).unwrap_or(&mut []));
                    }
                }
            }
            connection.sent(out.len() - start, turn);
        });
        out.len() - start
    }

    /// When to call [`check_deadlines`](Self::check_deadlines) at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.connection.wake_at()
    }

    /// Ends it if a deadline has passed.
    #[allow(clippy::redundant_closure_for_method_calls)] // The path is not general enough.
    pub fn check_deadlines(&mut self, shard: &mut Shard, now: Instant) {
        self.turn(shard, now, |connection, turn| connection.check_deadlines(turn));
    }

    /// The host has closed, or the wire is cut.
    pub fn close(&mut self, shard: &mut Shard, now: Instant) {
        self.turn(shard, now, |connection, turn| connection.end(CloseReason::ByPeer, turn));
    }

    /// Whether the connection has said all that it will: a socket would be closed for writing.
    pub fn has_said_all(&self) -> bool {
        self.connection.has_said_all()
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Why it is over, or about to be.
    pub fn reason(&self) -> Option<&CloseReason> {
        self.connection.reason()
    }

    /// What it has counted.
    pub fn counters(&self) -> CounterValues {
        self.counters.values()
    }
}

fn put(space: Space<'_>, bytes: &[u8]) -> usize {
    match space {
        Space::Bytes(room) => {
            let count = room.len().min(bytes.len());
            if let (Some(room), Some(bytes)) = (room.get_mut(..count), bytes.get(..count)) {
                room.copy_from_slice(bytes);
            }
            count
        }
        Space::Part(segment, offset, len) => {
            segment.copy_from(offset, bytes.get(..len).unwrap_or(bytes))
        }
    }
}
