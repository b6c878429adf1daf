//! On which reactor a connection is served.
//!
//! A host opens the queues of a controller one after the other, and they should work side by side: its connections
//! are spread first. Which controller a connection is for is said only by its Connect, when it has been placed;
//! the address that it comes from is known before, and spreading all connections of a host spreads those of each of
//! its controllers. Among equals the reactor with the fewest queues is taken, then the least busy one.
//!
//! All transports of a process ask the same [`Placement`]. It runs where connections are accepted and where they end, never per I/O. Rejected: moving a connection when its
//! Connect has come, which takes a reactor's buffers and events along.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Handle, Load};

/// How many connections each host has on each reactor.
#[derive(Debug, Default)]
struct Spread(Mutex<HashMap<IpAddr, Box<[u32]>>>);

impl Spread {
    fn hosts(&self) -> MutexGuard<'_, HashMap<IpAddr, Box<[u32]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses a reactor for a connection from `host` and counts it there.
    fn choose(&self, host: IpAddr, loads: &[Load]) -> Option<usize> {
        let mut hosts = self.hosts();
        let counts = hosts.entry(host).or_insert_with(|| vec![0; loads.len()].into());
        let each = counts.iter().zip(loads).enumerate();
        let best = each.min_by_key(|(_, (count, load))| (**count, load.queues, load.busy));
        let (reactor, _) = best?;
        let count = counts.get_mut(reactor)?;
        *count = count.saturating_add(1);
        Some(reactor)
    }

    fn leave(&self, host: IpAddr, reactor: usize) {
        let mut hosts = self.hosts();
        let Some(counts) = hosts.get_mut(&host) else { return };
        if let Some(count) = counts.get_mut(reactor) {
            *count = count.saturating_sub(1);
        }
        if counts.iter().all(|count| *count == 0) {
            hosts.remove(&host);
        }
    }
}

/// Chooses a reactor for every connection; clones are the same.
#[derive(Debug, Clone)]
pub struct Placement {
    reactors: Arc<[Handle]>,
    spread: Arc<Spread>,
}

impl Placement {
    /// For connections that these reactors serve, in the order of their indices.
    pub fn new(reactors: &[Handle]) -> Self {
        Self { reactors: reactors.into(), spread: Arc::default() }
    }

    /// The place for a connection from `host`, which counts from now on, so that a burst spreads.
    pub fn place(&self, host: IpAddr) -> Option<Place> {
        let loads: Vec<Load> = self.reactors.iter().map(Handle::load).collect();
        let reactor = self.spread.choose(host, &loads)?;
        let handle = self.reactors.get(reactor)?.clone();
        handle.queue_added();
        Some(Place { host, reactor, handle, spread: Arc::clone(&self.spread) })
    }
}

/// A connection's place on a reactor, taken until it is dropped.
#[derive(Debug)]
pub struct Place {
    host: IpAddr,
    reactor: usize,
    handle: Handle,
    spread: Arc<Spread>,
}

impl Place {
    /// The reactor's index.
    pub fn reactor(&self) -> usize {
        self.reactor
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handle.queue_removed();
        self.spread.leave(self.host, self.reactor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(queues: u32, busy: u32) -> Load {
        Load { queues, busy }
    }

    fn host(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn the_connections_of_a_host_are_spread_whatever_others_have() {
        let spread = Spread::default();
        let mut loads = [load(40, 0), load(2, 900), load(0, 0)];
        let mut places = Vec::new();
        for _ in 0..6 {
            let reactor = spread.choose(host(1), &loads).unwrap();
            loads[reactor].queues += 1;
            places.push(reactor);
        }
        assert_eq!(places, [2, 1, 0, 2, 1, 0]);
    }

    #[test]
    fn among_equals_the_fewest_queues_count_then_the_time() {
        let spread = Spread::default();
        assert_eq!(spread.choose(host(1), &[load(3, 0), load(2, 900), load(2, 100)]), Some(2));
        assert_eq!(spread.choose(host(1), &[load(3, 0), load(2, 900), load(0, 0)]), Some(1));
        assert_eq!(spread.choose(host(2), &[load(3, 0), load(2, 900), load(0, 0)]), Some(2));
    }

    #[test]
    fn a_place_that_is_left_is_taken_again() {
        let spread = Spread::default();
        let loads = [load(0, 0), load(0, 0)];
        assert_eq!(spread.choose(host(1), &loads), Some(0));
        assert_eq!(spread.choose(host(1), &loads), Some(1));
        spread.leave(host(1), 1);
        assert_eq!(spread.choose(host(1), &loads), Some(1));
        spread.leave(host(1), 0);
        spread.leave(host(1), 1);
        assert!(spread.hosts().is_empty(), "nothing is kept of a host that is gone");
    }
}
