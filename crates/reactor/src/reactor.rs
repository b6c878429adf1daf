//! The reactor itself: its turn, its idle time, its end.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::activity::Step;
use crate::counters::BusyMeter;
use crate::events::Epoll;
use crate::handle::{Handle, Shared};
use crate::idle::Idle;
use crate::local::{Change, Inner, Local};
use crate::offload::{Offload, Workers};
use crate::residents::Residents;
use crate::ring::{self, Ring};
use crate::{Clock, IdlePolicy, Instant, ReactorError};

/// Mailbox messages run per turn.
const MESSAGES_PER_TURN: usize = 64;
/// Results of offloaded jobs consumed per turn.
const RESULTS_PER_TURN: usize = 64;
/// While every turn finds work, epoll is asked once in so many turns...
const EPOLL_TURNS: u32 = 8;
/// ...or after this long, whichever comes first.
const EPOLL_INTERVAL: Duration = Duration::from_micros(50);

/// The longest single sleep; one that ends early costs an idle turn.
const LONGEST_SLEEP: Duration = Duration::from_hours(1);

/// Whether anything was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There was nothing to do.
    Idle,
    /// Something was done, and more may be waiting.
    Worked,
}

impl Progress {
    /// [`Progress::Worked`] if `worked`.
    pub const fn from_worked(worked: bool) -> Progress {
        if worked { Progress::Worked } else { Progress::Idle }
    }
}

/// A component that a reactor serves every turn.
pub trait Poller {
    /// Does a bounded amount of work.
    fn poll(&mut self) -> Progress;

    /// Sends what the turn has queued. Called once at the end of every turn.
    fn flush(&mut self) {}

    /// Whether everything that this poller waits for will be announced by an event source, the ring,
    /// a message, a job's result, or [`Poller::next_deadline`].
    fn ready_to_sleep(&mut self) -> bool {
        true
    }

    /// When it wants to be polled at the latest.
    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// What to call it when it does not come back.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

/// Names a poller on its reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PollerId(pub(crate) u32);

/// Whether a reactor uses `io_uring`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingChoice {
    /// With every feature that works here, but for those `without`.
    Probe {
        /// Features to leave unused even where they work, so that tests reach every fallback.
        without: ring::Features,
    },
    /// Not at all.
    Forbidden,
}

impl Default for RingChoice {
    fn default() -> RingChoice {
        RingChoice::Probe { without: ring::Features::empty() }
    }
}

/// What to make a reactor with. Its index is its place among the configurations given.
#[derive(Debug, Clone)]
pub struct ReactorConfig {
    /// The core to run on; `None`: wherever the system puts it.
    pub core: Option<usize>,
    /// What it does when there is nothing to do.
    pub idle: IdlePolicy,
    /// Where it takes the time from.
    pub clock: Clock,
    /// Whether it uses `io_uring`.
    pub ring: RingChoice,
    /// Operations in flight on the ring at most; a power of two.
    pub ring_entries: u32,
    /// Messages in the mailbox at most.
    pub mailbox: usize,
}

impl Default for ReactorConfig {
    fn default() -> ReactorConfig {
        ReactorConfig {
            core: None,
            idle: IdlePolicy::default(),
            clock: Clock::monotonic(),
            ring: RingChoice::default(),
            ring_entries: 1024,
            mailbox: 1024,
        }
    }
}

struct Entry {
    id: PollerId,
    poller: Box<dyn Poller>,
}

/// One reactor, on the thread that made it.
pub struct Reactor {
    // Pollers go first: they hold ports of the ring and views of the epoll instance.
    pollers: Vec<Entry>,
    local: Local,
    clock: Clock,
    idle: Idle,
    meter: BusyMeter,
    last: Progress,
    epoll_due: EpollDue,
}

/// When epoll is asked next without sleeping.
#[derive(Debug)]
struct EpollDue {
    turns: u32,
    asked: Instant,
    more: bool,
}

impl Reactor {
    /// A single reactor on this thread, with no peers and no worker threads.
    ///
    /// # Errors
    /// [`ReactorError`] if the system refuses a descriptor.
    pub fn new(config: &ReactorConfig) -> Result<Reactor, ReactorError> {
        let peers = share(std::slice::from_ref(config))?;
        Reactor::with_peers(0, config, &peers, &Workers::inline())
    }

    /// Several reactors that are each other's peers, all on this thread, for tests to step.
    ///
    /// # Errors
    /// [`ReactorError`] if there is no configuration or the system refuses a descriptor.
    pub fn group(
        configs: &[ReactorConfig],
        workers: &Workers,
    ) -> Result<Vec<Reactor>, ReactorError> {
        let peers = share(configs)?;
        let each = configs.iter().enumerate();
        each.map(|(index, config)| Reactor::with_peers(index, config, &peers, workers)).collect()
    }

    pub(crate) fn with_peers(
        index: usize,
        config: &ReactorConfig,
        peers: &Arc<[Handle]>,
        workers: &Workers,
    ) -> Result<Reactor, ReactorError> {
        let refused =
            |object| move |source| ReactorError::Create { reactor: index, object, source };
        let shared = Arc::clone(&peers.get(index).ok_or(ReactorError::NoReactor)?.shared);
        let epoll = Epoll::new().map_err(refused("epoll instance"))?;
        epoll.watch_inbox(&shared.inbox).map_err(refused("epoll entry"))?;
        let ring = match config.ring {
            RingChoice::Forbidden => None,
            RingChoice::Probe { without } => Ring::probe(index, config.ring_entries, without),
        };
        let now = config.clock.now();
        let inner = Inner {
            shared,
            peers: Arc::clone(peers),
            now: now.into(),
            changes: Vec::new().into(),
            next_poller: 0.into(),
            epoll: epoll.into(),
            ring,
            idle: config.idle,
            offload: Offload::new(workers.clone()),
            residents: Residents::default(),
        };
        Ok(Reactor {
            pollers: Vec::new(),
            local: Local { inner: inner.into() },
            clock: config.clock.clone(),
            idle: Idle::new(config.idle),
            meter: BusyMeter::new(now),
            last: Progress::Idle,
            epoll_due: EpollDue { turns: 0, asked: now, more: false },
        })
    }

    /// The reactor's services.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// The reactor as others see it.
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.local.inner.shared) }
    }

    /// One turn. Never blocks.
    pub fn turn(&mut self) -> Progress {
        let local = self.local.clone();
        let inner = &*local.inner;
        let shared = &*inner.shared;
        let now = self.clock.now();
        inner.now.set(now);
        let worked = self.last == Progress::Worked;
        self.meter.passed(now, worked, &shared.load, &shared.counters);

        let mut worked = self.run_messages();
        worked |= self.run_results();
        self.apply_changes();
        if self.epoll_due.is_due(self.last, now) && inner.epoll.is_used() {
            let waited = inner.epoll.wait(Duration::ZERO);
            shared.counters.epoll_calls.add(1);
            self.epoll_due = EpollDue { turns: 0, asked: now, more: waited.more };
            worked |= waited.events > 0;
        }
        if let Some(ring) = &inner.ring {
            worked |= ring.reap() > 0;
        }
        for entry in &mut self.pollers {
            shared.activity.enter(Step::Poll(entry.id));
            worked |= entry.poller.poll() == Progress::Worked;
        }
        for entry in &mut self.pollers {
            shared.activity.enter(Step::Flush(entry.id));
            entry.poller.flush();
        }
        shared.activity.enter(Step::Runtime);
        if let Some(ring) = &inner.ring {
            let entered = ring.submit();
            local.count_ring_enter(entered);
            // Completions that this brought are for the next turn, which is not to ask epoll first.
            worked |= entered && ring.has_completions();
        }
        shared.counters.turns.add(1);
        shared.counters.busy_turns.add(u64::from(worked));
        self.last = Progress::from_worked(worked);
        self.last
    }

    /// One turn and then, if it found nothing to do and the idle policy wants it, a sleep until
    /// something happens. On a simulated clock the sleep does not block: it looks at the event
    /// sources and counts as a sleep.
    pub fn step(&mut self) -> Progress {
        let progress = self.turn();
        if self.idle.after_turn(progress, self.local.now()) {
            self.sleep();
        }
        progress
    }

    /// Steps until [`Handle::stop`] is called.
    pub fn run(&mut self) {
        while !self.local.inner.shared.stopping() {
            if self.step() == Progress::Idle {
                std::hint::spin_loop();
            }
        }
    }

    /// The earliest deadline of all pollers: how far a simulation may move the clock at once.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.pollers.iter().filter_map(|entry| entry.poller.next_deadline()).min()
    }

    fn run_messages(&self) -> bool {
        let shared = &*self.local.inner.shared;
        let mut count = 0;
        while count < MESSAGES_PER_TURN {
            let Some(message) = shared.inbox.pop_message() else {
                break;
            };
            if count == 0 {
                shared.activity.enter(Step::Messages);
            }
            shared.counters.messages.add(1);
            message(&self.local);
            count += 1;
        }
        count > 0
    }

    fn run_results(&self) -> bool {
        let inner = &*self.local.inner;
        let mut worked = inner.offload.has_waiting() && inner.offload.pass_on();
        for _ in 0..RESULTS_PER_TURN {
            let Some(item) = inner.shared.inbox.pop_return() else {
                break;
            };
            inner.shared.activity.enter(Step::Results);
            inner.offload.finish(item);
            worked = true;
        }
        worked
    }

    fn apply_changes(&mut self) {
        let inner = &*self.local.inner;
        // Dropping a poller may ask for further changes.
        while !inner.changes.borrow().is_empty() {
            let changes = std::mem::take(&mut *inner.changes.borrow_mut());
            for change in changes {
                match change {
                    Change::Add(id, poller) => self.pollers.push(Entry { id, poller }),
                    Change::Remove(id) => {
                        self.pollers.retain(|entry| entry.id != id);
                        inner.shared.activity.remove(id);
                    }
                }
            }
        }
    }

    fn sleep(&mut self) {
        let local = self.local.clone();
        let inner = &*local.inner;
        let shared = &*inner.shared;
        let ready = inner.changes.borrow().is_empty()
            && !inner.offload.has_waiting()
            && !inner.epoll.has_unfetched()
            && self.pollers.iter_mut().all(|entry| entry.poller.ready_to_sleep());
        if !ready {
            return;
        }
        let Some(in_ring) = inner.ring.as_ref().map_or(Some(false), Ring::sleeps) else { return };
        let began = self.clock.now();
        let left = self.next_deadline().map(|deadline| deadline.since(began));
        if left == Some(Duration::ZERO) {
            return;
        }
        let mut timeout = left.map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP));
        if self.clock.is_simulated() {
            timeout = Duration::ZERO;
        }
        if !shared.inbox.may_sleep(|| !shared.stopping()) {
            return;
        }
        shared.activity.enter(Step::Sleep);
        shared.counters.sleeps.add(1);
        self.meter.passed(began, false, &shared.load, &shared.counters);
        let waited = match &inner.ring {
            Some(ring) if in_ring => {
                shared.counters.ring_enters.add(1);
                let ask = ring.sleep(inner.epoll.as_fd(), timeout);
                ask.then(|| inner.epoll.wait(Duration::ZERO))
            }
            _ => Some(inner.epoll.wait(timeout)),
        };
        let waited = waited.inspect(|_| shared.counters.epoll_calls.add(1)).unwrap_or_default();
        shared.inbox.awake(waited.inbox);
        shared.activity.enter(Step::Runtime);
        shared.counters.wakeups.add(u64::from(waited.inbox));
        let now = self.clock.now();
        self.meter.slept(now, &shared.counters);
        self.epoll_due = EpollDue { turns: 0, asked: now, more: waited.more };
        // What woke it is known already: the next turn need not ask again.
        self.last = Progress::from_worked(waited.events > 0);
    }
}

impl EpollDue {
    fn is_due(&mut self, last: Progress, now: Instant) -> bool {
        self.turns = self.turns.saturating_add(1);
        self.more
            || last == Progress::Idle
            || self.turns >= EPOLL_TURNS
            || now.since(self.asked) >= EPOLL_INTERVAL
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // What holds a `Local` in here would otherwise keep itself alive.
        self.apply_changes();
        self.pollers.clear();
        let inner = &*self.local.inner;
        inner.changes.borrow_mut().clear();
        inner.offload.clear();
        if let Some(ring) = &inner.ring {
            inner.shared.activity.enter(Step::RingDrop);
            ring.close();
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("index", &self.local.index())
            .field("pollers", &self.pollers.len())
            .finish_non_exhaustive()
    }
}

/// What the reactors of these configurations share with each other.
pub(crate) fn share(configs: &[ReactorConfig]) -> Result<Arc<[Handle]>, ReactorError> {
    if configs.is_empty() {
        return Err(ReactorError::NoReactor);
    }
    let each = configs.iter().enumerate();
    each.map(|(reactor, config)| {
        let shared = Shared::new(reactor, config.mailbox, config.clock.clone());
        let shared =
            shared.map_err(|source| ReactorError::Create { reactor, object: "eventfd", source })?;
        Ok(Handle { shared: Arc::new(shared) })
    })
    .collect()
}
