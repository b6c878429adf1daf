//! The commands of one queue that wait for a buffer, or for the limits of their device: lines for each device, so that one
//! whose device holds all it may, or has done all it may, is not in the way of another's. Reads and writes of a
//! device that has limits stand in lines of their own: a limit may concern one of them only.

use super::request::{Fifo, Requests};
use super::table::Key;
use crate::RequestId;
use crate::rate_limit::Way;

/// Devices for which a queue that waits for none of them remembers how far ahead of others it is.
const REMEMBERED: usize = 8;

/// The lines for one device.
#[derive(Debug, Default)]
struct Lines {
    device: Option<Key>,
    ways: [Fifo; Way::ALL.len()],
    /// The line that was served last; the other one goes first.
    served: usize,
    /// Up to where the queue has been served; see `super::limit`.
    paid: [u64; Way::ALL.len()],
}

impl Lines {
    fn is_empty(&self) -> bool {
        self.ways.iter().all(Fifo::is_empty)
    }

    fn is_forgettable(&self) -> bool {
        self.is_empty() && self.paid.iter().all(|paid| *paid == 0)
    }
}

/// Those of one queue. The memory of the lines is kept: waiting again allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Vec<Lines>);

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Lines::is_empty)
    }

    fn find(&self, device: Option<Key>) -> Option<usize> {
        self.0.iter().position(|lines| lines.device == device)
    }

    /// Whether nobody waits in this line for this device; no device: admin commands and Connects.
    pub(crate) fn is_empty_for(&self, device: Option<Key>, way: Way) -> bool {
        let lines = self.find(device).and_then(|at| self.0.get(at));
        lines.is_none_or(|lines| lines.ways.get(way.index()).is_none_or(Fifo::is_empty))
    }

    fn lines(&mut self, device: Option<Key>) -> Option<&mut Lines> {
        let at = self.find(device).unwrap_or_else(|| {
            if self.0.len() >= REMEMBERED
                && let Some(oldest) = self.0.iter().position(Lines::is_empty)
            {
                self.0.remove(oldest);
            }
            self.0.push(Lines { device, ..Lines::default() });
            self.0.len() - 1
        });
        self.0.get_mut(at)
    }

    fn line(&mut self, device: Option<Key>, way: Way) -> Option<&mut Fifo> {
        self.lines(device).and_then(|lines| lines.ways.get_mut(way.index()))
    }

    pub(crate) fn push(
        &mut self,
        requests: &mut Requests,
        device: Option<Key>,
        way: Way,
        id: RequestId,
    ) {
        if let Some(line) = self.line(device, way) {
            line.push(requests, id);
        }
    }

    /// Puts one before all others of its line, and its device before all others.
    pub(crate) fn push_front(
        &mut self,
        requests: &mut Requests,
        device: Option<Key>,
        way: Way,
        id: RequestId,
    ) {
        if let Some(line) = self.line(device, way) {
            line.push_front(requests, id);
        }
        if let Some(at) = self.find(device)
            && let Some(lines) = self.0.get_mut(..=at)
        {
            lines.rotate_right(1);
        }
    }

    /// How many lines there are to look at.
    pub(crate) fn places(&self) -> usize {
        self.0.len().saturating_mul(Way::ALL.len())
    }

    /// The lines of this place, and which of them it is.
    fn at(&self, place: usize) -> Option<(usize, usize)> {
        let (at, turn) = (place / Way::ALL.len(), place % Way::ALL.len());
        let lines = self.0.get(at)?;
        Some((at, (lines.served + 1 + turn) % Way::ALL.len()))
    }

    /// The first that waits in the line of this place.
    pub(crate) fn first(&self, place: usize) -> Option<RequestId> {
        let (at, way) = self.at(place)?;
        self.0.get(at)?.ways.get(way)?.first()
    }

    /// The first of this place goes; next time the lines behind it have their turn before.
    pub(crate) fn pop(&mut self, requests: &mut Requests, place: usize) {
        let Some((at, way)) = self.at(place) else { return };
        let Some(lines) = self.0.get_mut(at) else { return };
        lines.served = way;
        if let Some(line) = lines.ways.get_mut(way) {
            line.pop(requests);
        }
        if lines.is_forgettable() {
            self.0.remove(at);
        } else if let Some(lines) = self.0.get_mut(at..) {
            lines.rotate_left(1);
        }
    }

    /// Takes one out of the middle: a walk, for aborts and dying queues only.
    pub(crate) fn remove(
        &mut self,
        requests: &mut Requests,
        device: Option<Key>,
        way: Way,
        id: RequestId,
    ) {
        let Some(at) = self.find(device) else { return };
        let Some(lines) = self.0.get_mut(at) else { return };
        if let Some(line) = lines.ways.get_mut(way.index()) {
            line.remove(requests, id);
        }
        if lines.is_forgettable() {
            self.0.remove(at);
        }
    }

    /// Up to where the queue has been served in this lane of the device.
    pub(crate) fn paid(&self, device: Option<Key>, lane: usize) -> u64 {
        let lines = self.find(device).and_then(|at| self.0.get(at));
        lines.and_then(|lines| lines.paid.get(lane)).copied().unwrap_or(0)
    }

    pub(crate) fn pay(&mut self, device: Option<Key>, lane: usize, until: u64) {
        if let Some(paid) = self.lines(device).and_then(|lines| lines.paid.get_mut(lane)) {
            *paid = until;
        }
    }
}
