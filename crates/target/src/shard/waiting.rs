//! The commands of one queue that wait for a buffer: a list for each device, so that one whose device holds all
//! it may is not in the way of another's.

use super::request::{Fifo, Requests};
use super::table::Key;
use crate::RequestId;

/// Those of one queue. The memory of the lists is kept: waiting again allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Vec<(Option<Key>, Fifo)>);

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nobody waits for this device; None: admin commands and Connects.
    pub(crate) fn is_empty_for(&self, device: Option<Key>) -> bool {
        self.0.iter().all(|(other, _)| *other != device)
    }

    fn list(&mut self, device: Option<Key>) -> Option<&mut Fifo> {
        let at = self.0.iter().position(|(other, _)| *other == device).unwrap_or_else(|| {
            self.0.push((device, Fifo::default()));
            self.0.len() - 1
        });
        self.0.get_mut(at).map(|(_, list)| list)
    }

    pub(crate) fn push(&mut self, requests: &mut Requests, device: Option<Key>, id: RequestId) {
        if let Some(list) = self.list(device) {
            list.push(requests, id);
        }
    }

    /// Puts one before all others of its device, and its device before all others.
    pub(crate) fn push_front(
        &mut self,
        requests: &mut Requests,
        device: Option<Key>,
        id: RequestId,
    ) {
        if let Some(list) = self.list(device) {
            list.push_front(requests, id);
        }
        if let Some(at) = self.0.iter().position(|(other, _)| *other == device)
            && let Some(lists) = self.0.get_mut(..=at)
        {
            lists.rotate_right(1);
        }
    }

    /// How many devices are waited for.
    pub(crate) fn devices(&self) -> usize {
        self.0.len()
    }

    /// The first that waits for the device in this place.
    pub(crate) fn first(&self, place: usize) -> Option<RequestId> {
        self.0.get(place).and_then(|(_, list)| list.first())
    }

    /// The first of this place goes; next time the devices behind it have their turn before.
    pub(crate) fn pop(&mut self, requests: &mut Requests, place: usize) {
        let Some((_, list)) = self.0.get_mut(place) else { return };
        list.pop(requests);
        if list.is_empty() {
            self.0.remove(place);
        } else if let Some(lists) = self.0.get_mut(place..) {
            lists.rotate_left(1);
        }
    }

    /// Takes one out of the middle: a walk, for aborts and dying queues only.
    pub(crate) fn remove(&mut self, requests: &mut Requests, device: Option<Key>, id: RequestId) {
        let Some(at) = self.0.iter().position(|(other, _)| *other == device) else { return };
        let Some((_, list)) = self.0.get_mut(at) else { return };
        list.remove(requests, id);
        if list.is_empty() {
            self.0.remove(at);
        }
    }
}
