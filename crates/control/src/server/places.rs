//! How many connections a socket has at a time, and which of them makes room when there are too many.
//!
//! A client that gives up on a hung method goes away, comes again and asks again. On a stream its going looks like
//! a client that has nothing more to say and waits for its answers, which has to be served. So neither
//! may its place be taken away while there are others, nor may it keep everybody else out: when all places are
//! in use, the connection that has waited longest for an answer without being listened to gives up its own.
//!
//! Rejected: a time limit on waiting for an answer (some methods rightly take hours).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The places on one socket.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

/// The connections that can be asked to leave, in the order in which that began.
#[derive(Debug, Default)]
struct Waiting {
    begun: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

/// A connection's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    wanted: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// While it lives, the connection can be asked to leave.
#[derive(Debug)]
pub(super) struct Yielding<'a> {
    places: &'a Places,
    number: u64,
}

impl Places {
    pub(super) fn new(count: usize) -> Arc<Places> {
        let free = Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Arc::new(Places { free, waiting: Mutex::default() })
    }

    /// A free place, or one that becomes free because its connection is asked to leave, which takes one turn
    /// of its task. None if nobody can be asked.
    pub(super) async fn take(self: &Arc<Places>) -> Option<Place> {
        let permit = if let Ok(permit) = self.free.clone().try_acquire_owned() {
            permit
        } else {
            let (_, longest) = self.waiting().connections.pop_first()?;
            longest.cancel();
            self.free.clone().acquire_owned().await.ok()?
        };
        let wanted = CancellationToken::new();
        Some(Place { places: self.clone(), wanted, _permit: permit })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// From now on the connection can be asked to leave.
    pub(super) fn may_be_taken(&self) -> Yielding<'_> {
        let mut waiting = self.places.waiting();
        let number = waiting.begun;
        waiting.begun = number.wrapping_add(1);
        waiting.connections.insert(number, self.wanted.clone());
        Yielding { places: &self.places, number }
    }

    /// Until the connection is asked to leave.
    pub(super) async fn wanted(&self) {
        self.wanted.cancelled().await;
    }
}

impl Drop for Yielding<'_> {
    fn drop(&mut self) {
        self.places.waiting().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn who_waited_longest_leaves_first_and_who_does_not_wait_stays() {
        let places = Places::new(3);
        let [busy, second, first] = [(); 3].map(|()| places.take().now_or_never().flatten());
        let (busy, second, first) = (busy.unwrap(), second.unwrap(), first.unwrap());
        drop(busy.may_be_taken());
        assert!(places.take().now_or_never().unwrap().is_none(), "nobody can be asked");
        {
            let waits_longer = first.may_be_taken();
            let _waits = second.may_be_taken();
            let mut take = Box::pin(places.take());
            assert!(take.as_mut().now_or_never().is_none());
            assert!(first.wanted().now_or_never().is_some());
            assert!(second.wanted().now_or_never().is_none());
            drop(waits_longer);
            drop(first);
            let third = take.now_or_never().unwrap().unwrap();
            assert!(third.wanted().now_or_never().is_none());
        }
        assert!(places.waiting().connections.is_empty());
        assert!(busy.wanted().now_or_never().is_none());
    }
}
