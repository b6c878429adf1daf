//! What a controller's thread and the reactors tell each other.
//!
//! The thread publishes a [`State`]: queues to use, that they must not be used, or that there are none. Each state has a number, its epoch, at which
//! a reactor looks once per turn; when it is another one, the reactor takes the new state in and acknowledges the epoch. The thread waits for all of
//! them before it relies on it, and wakes those that sleep. So a reset needs no lock on the path of an I/O.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reactor::Handle;
use rustix::event::{EventfdFlags, eventfd};

use crate::counters::Counters;
use crate::seat::Seat;

/// What reactors may do with the controller.
#[derive(Debug)]
pub(crate) enum State {
    /// Nothing: it is being reset. What is out may have been carried out, may yet be, or will not.
    Paused {
        /// Somebody asked for that, so no command is to blame for it.
        asked_for: bool,
    },
    /// Each has its seat.
    Running(Seats),
    /// Nothing: it is not there, and reaches no memory any more.
    Gone,
}

/// The seats of a session, by reactor; each is taken by one lane at a time.
#[derive(Debug)]
pub(crate) struct Seats(Vec<Mutex<Option<Seat>>>);

impl Seats {
    pub(crate) fn new(seats: Vec<Seat>) -> Seats {
        Seats(seats.into_iter().map(|seat| Mutex::new(Some(seat))).collect())
    }

    pub(crate) fn take(&self, reactor: usize) -> Option<Seat> {
        lock(self.0.get(reactor)?).take()
    }

    /// The lane that had it has gone.
    pub(crate) fn give_back(&self, reactor: usize, seat: Seat) {
        if let Some(place) = self.0.get(reactor) {
            *lock(place) = Some(seat);
        }
    }
}

/// What a reactor asks the controller's thread for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// This command takes too long.
    Overdue { qid: u16, cid: u16 },
    /// It still does, though it was to be aborted.
    Stuck { qid: u16, cid: u16 },
}

/// What one reactor and the thread share.
#[derive(Debug, Default)]
struct Place {
    acknowledged: AtomicU64,
    /// Where it is, while it has a lane.
    home: Mutex<Option<Handle>>,
    counters: Arc<Counters>,
}

/// Between the thread of a controller and all reactors.
#[derive(Debug)]
pub(crate) struct Link {
    epoch: AtomicU64,
    state: Mutex<Arc<State>>,
    places: Vec<Place>,
    reports: Mutex<Vec<Report>>,
    bell: OwnedFd,
}

impl Link {
    /// For so many reactors; the controller is not there yet.
    pub(crate) fn new(reactors: usize) -> io::Result<Link> {
        Ok(Link {
            epoch: AtomicU64::new(1),
            state: Mutex::new(Arc::new(State::Gone)),
            places: (0..reactors).map(|_| Place::default()).collect(),
            reports: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// How many reactors there are.
    pub(crate) fn reactors(&self) -> usize {
        self.places.len()
    }

    // The thread's side.

    /// Puts a state in force, and wakes whoever sleeps.
    pub(crate) fn publish(&self, state: State) {
        let mut current = lock(&self.state);
        *current = Arc::new(state);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        drop(current);
        for place in &self.places {
            if let Some(home) = &*lock(&place.home) {
                // A full mailbox is as good: the reactor is awake.
                let _ = home.send(|_| ());
            }
        }
    }

    /// Whether every reactor that has a lane goes by what was published last.
    pub(crate) fn is_acknowledged(&self) -> bool {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let goes_by = |place: &Place| {
            lock(&place.home).is_none() || place.acknowledged.load(Ordering::SeqCst) == epoch
        };
        self.places.iter().all(goes_by)
    }

    /// What reactors have asked for since the last time.
    pub(crate) fn reports(&self) -> Vec<Report> {
        std::mem::take(&mut *lock(&self.reports))
    }

    /// What wakes the thread; to be read when it has rung.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The counters of a reactor's lanes.
    pub(crate) fn counters(&self, reactor: usize) -> Option<&Arc<Counters>> {
        self.places.get(reactor).map(|place| &place.counters)
    }

    // Anybody's.

    /// Wakes the controller's thread.
    pub(crate) fn ring(&self) {
        // Full means that it has been rung for often enough.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    // A reactor's side.

    /// The epoch at this moment.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What is in force, and its epoch.
    pub(crate) fn state(&self) -> (u64, Arc<State>) {
        let state = lock(&self.state);
        (self.epoch.load(Ordering::SeqCst), Arc::clone(&state))
    }

    /// A reactor has a lane from now on, and acknowledges what it sees next.
    pub(crate) fn join(&self, reactor: usize, home: Handle) {
        if let Some(place) = self.places.get(reactor) {
            place.acknowledged.store(0, Ordering::SeqCst);
            *lock(&place.home) = Some(home);
        }
    }

    /// It has none any more.
    pub(crate) fn leave(&self, reactor: usize) {
        if let Some(place) = self.places.get(reactor) {
            *lock(&place.home) = None;
        }
        self.ring();
    }

    /// It goes by this epoch.
    pub(crate) fn acknowledge(&self, reactor: usize, epoch: u64) {
        if let Some(place) = self.places.get(reactor) {
            place.acknowledged.store(epoch, Ordering::SeqCst);
        }
        self.ring();
    }

    /// Asks the thread for something.
    pub(crate) fn report(&self, report: Report) {
        lock(&self.reports).push(report);
        self.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
