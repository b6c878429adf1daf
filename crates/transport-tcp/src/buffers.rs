//! What connections borrow while bytes are on their way, from one reactor's stock.
//!
//! A connection at rest holds none of it: a receive buffer only while part of a PDU is in it, a
//! batch only until the socket has taken it. The stock is last in, first out, so what is in use is
//! warm in the cache; it grows to the most that were ever needed at once, and what was not needed for
//! a while is given up, so that a flood of half PDUs leaves no memory behind. Where the need is steady
//! nothing is allocated.

use std::time::Duration;

use reactor::Instant;

use crate::connection::Batch;

/// Idle things that are never given up.
const KEPT: usize = 16;
/// What was not needed for this long is given up.
const TRIM_INTERVAL: Duration = Duration::from_secs(5);
/// Things given up in a turn.
const TRIMMED_PER_TURN: usize = 256;

/// The stock of one reactor.
#[derive(Debug)]
pub(crate) struct Buffers {
    receive: Stock<Box<[u8]>>,
    receive_len: usize,
    #[allow(clippy::vec_box)] // The box is what a connection holds.
    batches: Stock<Box<Batch>>,
    next_trim: Instant,
}

/// Things of one kind.
#[derive(Debug)]
struct Stock<T> {
    idle: Vec<T>,
    /// The fewest that were idle at a time since the last look.
    lowest: usize,
}

impl<T> Stock<T> {
    fn new() -> Stock<T> {
        Stock { idle: Vec::new(), lowest: 0 }
    }

    fn take(&mut self) -> Option<T> {
        let thing = self.idle.pop();
        self.lowest = self.lowest.min(self.idle.len());
        thing
    }

    fn give(&mut self, thing: T) {
        self.idle.push(thing);
    }

    /// Gives up what was idle all the time, up to a bound; whether more of it is left.
    fn trim(&mut self) -> bool {
        let surplus = self.lowest.saturating_sub(KEPT);
        let count = surplus.min(TRIMMED_PER_TURN);
        self.idle.truncate(self.idle.len().saturating_sub(count));
        if surplus > count {
            self.lowest = self.lowest.saturating_sub(count);
            return true;
        }
        self.lowest = self.idle.len();
        false
    }
}

impl Buffers {
    /// An empty stock of receive buffers of `receive_len` bytes, and of batches.
    pub(crate) fn new(receive_len: usize) -> Buffers {
        Buffers {
            receive: Stock::new(),
            receive_len,
            batches: Stock::new(),
            next_trim: Instant::from_nanos(0),
        }
    }

    /// A receive buffer, with whatever its last user left in it.
    pub(crate) fn take_receive(&mut self) -> Box<[u8]> {
        self.receive.take().unwrap_or_else(|| vec![0; self.receive_len].into_boxed_slice())
    }

    /// Takes a receive buffer back.
    pub(crate) fn give_receive(&mut self, buffer: Box<[u8]>) {
        self.receive.give(buffer);
    }

    /// An empty batch.
    pub(crate) fn take_batch(&mut self) -> Box<Batch> {
        self.batches.take().unwrap_or_default()
    }

    /// Takes a batch back and empties it, which ends its loans.
    pub(crate) fn give_batch(&mut self, mut batch: Box<Batch>) {
        batch.clear();
        self.batches.give(batch);
    }

    /// Gives up what nobody has needed for a while; once a turn.
    pub(crate) fn trim(&mut self, now: Instant) {
        if now < self.next_trim {
            return;
        }
        let more = self.receive.trim() | self.batches.trim();
        self.next_trim = if more { now } else { now + TRIM_INTERVAL };
    }

    /// When there may be something to give up.
    pub(crate) fn next_trim(&self) -> Option<Instant> {
        let plenty = self.receive.idle.len() > KEPT || self.batches.idle.len() > KEPT;
        plenty.then_some(self.next_trim)
    }

    /// Receive buffers and batches that are in stock.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> (usize, usize) {
        (self.receive.idle.len(), self.batches.idle.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stays_and_what_is_not_goes() {
        let mut buffers = Buffers::new(64);
        let mut now = Instant::from_nanos(1);
        let mut pass = |buffers: &mut Buffers| {
            now = now + TRIM_INTERVAL;
            buffers.trim(now);
            now
        };
        pass(&mut buffers);
        let lent: Vec<_> = (0..1000).map(|_| buffers.take_receive()).collect();
        for buffer in lent {
            buffers.give_receive(buffer);
        }
        pass(&mut buffers);
        assert_eq!(buffers.idle().0, 1000, "they were in use just now");
        // A steady need of 100.
        let lent: Vec<_> = (0..100).map(|_| buffers.take_receive()).collect();
        for buffer in lent {
            buffers.give_receive(buffer);
        }
        let at = pass(&mut buffers);
        assert_eq!(buffers.idle().0, 1000 - TRIMMED_PER_TURN);
        for _ in 0..10 {
            buffers.trim(at);
        }
        assert_eq!(buffers.idle().0, 100 + KEPT);
        pass(&mut buffers);
        assert_eq!(buffers.idle().0, KEPT);
        assert_eq!(buffers.next_trim(), None, "nothing to wake up for");
    }
}
