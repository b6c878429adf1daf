//! The life of a controller: it is opened, serves in sessions between which it is reset, is lost and found again.
//!
//! Runs on a thread of its own, or is stepped by a test. While the controller is being reset, what reactors have in it waits. When it is gone, or cannot
//! be used, it is closed, and what they have fails; from then on it is looked for, at longer and longer intervals.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::{Context, Waker};
use std::time::Duration;

use memory::Arena;
use reactor::{Clock, Instant};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;

use crate::controller::{AttachError, Loss, Options, Phase, Shared};
use crate::function::{Function, Mapping, Slot};
use crate::link::State;
use crate::session::{self, End, Session};
use crate::tasks::Time;

/// Between attempts to find a controller again: at first, and at most.
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(10);

/// Resets one after the other, none of which led to a session that lasted, after which a controller counts as failed.
const RESETS: u32 = 3;

/// How long a session lasts that counts as one.
const LASTING: Duration = Duration::from_secs(10);

/// What wakes the thread, besides time.
#[derive(Debug, Default)]
struct Watched {
    function: Option<Arc<dyn Function>>,
    admin: Option<Arc<OwnedFd>>,
}

/// What runs a controller: polled again and again, by a thread or by a test.
pub struct Machine {
    shared: Arc<Shared>,
    time: Rc<Time>,
    watched: Rc<RefCell<Watched>>,
    life: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Machine {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        slot: Arc<dyn Slot>,
        arena: &Arena,
        options: Options,
        attached: Sender<Result<(), AttachError>>,
    ) -> Machine {
        let (time, watched) = (Rc::new(Time::default()), Rc::default());
        let life = Life {
            shared: Arc::clone(shared),
            slot,
            arena: arena.clone(),
            options,
            time: Rc::clone(&time),
            watched: Rc::clone(&watched),
            attached: RefCell::new(Some(attached)),
        };
        let life: Pin<Box<dyn Future<Output = ()>>> = Box::pin(life.live());
        Machine { shared: Arc::clone(shared), time, watched, life: Some(life) }
    }

    /// Does what is to be done at this time; false once there is nothing more ever.
    pub fn poll(&mut self, now: Instant) -> bool {
        self.time.begin(now);
        let Some(life) = &mut self.life else { return false };
        if life.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.life = None;
        }
        self.life.is_some()
    }

    /// When to poll at the latest; None: when something wakes it.
    pub fn due(&self) -> Option<Instant> {
        self.time.due()
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) {
        let clock = Clock::monotonic();
        while self.poll(clock.now()) {
            let patience = self.due().map(|due| due.since(clock.now()));
            self.sleep(patience);
        }
    }

    /// Sleeps until something happens, or for so long.
    fn sleep(&self, patience: Option<Duration>) {
        let watched = self.watched.borrow();
        let admin = watched.admin.as_ref().map(|admin| admin.as_fd());
        let wanted_back = watched.function.as_ref().and_then(|function| function.wanted_back());
        let fds = [Some(self.shared.link.bell()), admin, wanted_back];
        let mut polled: Vec<_> =
            fds.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let patience = patience.map(|patience| Timespec::try_from(patience).unwrap_or_default());
        // An early end is an early pass.
        let _ = poll(&mut polled, patience.as_ref());
        drop(polled);
        drain(self.shared.link.bell());
        if let Some(admin) = admin {
            drain(admin);
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// Takes back what an eventfd that does not block has counted.
fn drain(eventfd: BorrowedFd<'_>) {
    let _ = rustix::io::read(eventfd, &mut [0; 8]);
}

/// An open function, and what its interrupts signal.
type Opened = (Arc<dyn Function>, Vec<Arc<OwnedFd>>);

/// A controller that is not there.
#[derive(Debug)]
struct Absence {
    since: Instant,
    /// Until the next attempt, unless that is settled otherwise.
    delay: Duration,
    /// What the reactors have has failed, and what comes does.
    failing: bool,
    given_up: bool,
}

impl Default for Absence {
    fn default() -> Absence {
        Absence { since: Instant::ZERO, delay: SOON, failing: false, given_up: false }
    }
}

struct Life {
    shared: Arc<Shared>,
    slot: Arc<dyn Slot>,
    arena: Arena,
    options: Options,
    time: Rc<Time>,
    watched: Rc<RefCell<Watched>>,
    /// Who waits for the first session.
    attached: RefCell<Option<Sender<Result<(), AttachError>>>>,
}

impl Life {
    async fn live(self) {
        let mut absence = Absence::default();
        loop {
            match self.open() {
                Ok((function, vectors)) => {
                    let sessions = self.shared.sessions();
                    let end = self.serve(&function, &vectors, &mut absence.delay).await;
                    *self.watched.borrow_mut() = Watched::default();
                    // The last that has it: the reactors have left it.
                    debug_assert_eq!(
                        Arc::strong_count(&function),
                        1,
                        "somebody still has the function"
                    );
                    drop(function);
                    let over = self.is_over(&end);
                    if self.shared.sessions() != sessions {
                        let delay = absence.delay;
                        absence = Absence { since: self.time.now(), delay, ..Absence::default() };
                    }
                    if over || absence.failing {
                        // What the reactors have had in it is let go of when nothing reaches it any more.
                        self.publish_gone().await;
                    }
                    if over {
                        return;
                    }
                }
                Err(problem) => {
                    if !self.look_again(&problem) {
                        return;
                    }
                }
            }
            if self.rest(&mut absence).await {
                return;
            }
        }
    }

    /// Says what became of it. Whether it was all: it was to be detached, or never came into service.
    fn is_over(&self, end: &End) -> bool {
        let name = self.shared.name();
        let problem = match end {
            End::Detached => {
                self.shared.set_phase(Phase::Detached);
                return true;
            }
            End::Removed => "the device is not there any more".to_owned(),
            End::Failed(problem) | End::Reset(problem) => problem.clone(),
            End::Renewed => "it was to be reset before it was in service".to_owned(),
        };
        if let Some(attached) = self.attached.take() {
            let _ = attached.send(Err(AttachError { controller: name.to_owned(), problem }));
            self.shared.set_phase(Phase::Detached);
            return true;
        }
        tracing::error!("{name}: out of service: {problem}");
        if *end == End::Removed {
            self.shared.counts.removals.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.counts.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.set_phase(Phase::Gone(problem));
        false
    }

    /// It could not be opened; whether to try again.
    fn look_again(&self, problem: &str) -> bool {
        let Some(attached) = self.attached.take() else {
            self.shared.tell_reset(&Err(problem.to_owned()));
            return true;
        };
        let controller = self.shared.name().to_owned();
        let _ = attached.send(Err(AttachError { controller, problem: problem.to_owned() }));
        self.shared.set_phase(Phase::Detached);
        false
    }

    /// Waits before the next attempt, and has the reactors answer what they have once it has been gone for too long. Whether it was told to end
    /// instead.
    async fn rest(&self, absence: &mut Absence) -> bool {
        let Loss { interval, look, hold } = self.options.loss;
        let after = |limit: Duration| absence.since + limit;
        let (fail_at, look_until) = (hold.or(look).map(after), look.map(after));
        let next = self.time.now() + interval.unwrap_or(absence.delay);
        absence.delay = (absence.delay * 2).min(LATE);
        loop {
            let now = self.time.now();
            if !absence.failing && fail_at.is_some_and(|at| at <= now) {
                absence.failing = true;
                self.publish_gone().await;
                continue;
            }
            let given_up = look_until.is_some_and(|until| until <= now);
            if given_up && !absence.given_up {
                absence.given_up = true;
                tracing::error!("{}: not looked for any more", self.shared.name());
            }
            if !given_up && next <= now {
                return false;
            }
            let next = (!given_up).then_some(next);
            let fail_at = fail_at.filter(|_| !absence.failing);
            let until = next.into_iter().chain(fail_at).chain(look_until.filter(|_| !given_up));
            let patience = until.min().map(|until| until.since(now));
            let told = self.time.wait(patience, || {
                let request = self.shared.next_request()?;
                request.refuse(&self.shared)
            });
            match told.await {
                Some(true) => {
                    if !absence.failing {
                        self.publish_gone().await;
                    }
                    self.shared.set_phase(Phase::Detached);
                    return true;
                }
                Some(false) => return false,
                None => {}
            }
        }
    }

    /// Opens the function, and has the device reach the arena.
    fn open(&self) -> Result<Opened, String> {
        let function = self.slot.open().map_err(|error| error.to_string())?;
        self.shared.set_address(function.address());
        for slab in self.arena.slabs() {
            let mapped = function.map(Mapping::slab(&self.arena, &slab));
            mapped.map_err(|error| format!("it cannot be given the memory for data: {error}"))?;
        }
        let wanted =
            u16::try_from(self.shared.link.reactors()).unwrap_or(u16::MAX).saturating_add(1);
        let (mut vectors, mut handed) = (Vec::new(), Vec::new());
        for _ in 0..wanted.min(function.vectors()) {
            let refused = |error| format!("no eventfd for its interrupts: {error}");
            let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|error| refused(error.into()))?;
            handed.push(made.try_clone().map_err(refused)?);
            vectors.push(Arc::new(made));
        }
        if !handed.is_empty() {
            function
                .connect(handed)
                .map_err(|error| format!("its interrupts cannot be had: {error}"))?;
        }
        *self.watched.borrow_mut() =
            Watched { function: Some(Arc::clone(&function)), admin: vectors.first().cloned() };
        Ok((function, vectors))
    }

    /// Sessions, one after the other, until it is not to go on with this function.
    async fn serve(
        &self,
        function: &Arc<dyn Function>,
        vectors: &[Arc<OwnedFd>],
        patience: &mut Duration,
    ) -> End {
        let mut resets = 0;
        loop {
            if let Err(end) = session::disable(function, &self.time).await {
                return end;
            }
            let end =
                match Session::begin(&self.shared, &self.options, function, vectors, &self.time) {
                    Ok(mut session) => {
                        let end = session.run(&self.attached).await;
                        if session.lasted() >= LASTING {
                            (resets, *patience) = (0, SOON);
                        }
                        session.finish(end).await
                    }
                    Err(end) => end,
                };
            match &end {
                End::Renewed => {
                    self.shared.counts.resets.fetch_add(1, Ordering::Relaxed);
                    self.shared.set_phase(Phase::Resetting);
                    tracing::info!("{}: resetting it: somebody asked for it", self.shared.name());
                }
                End::Reset(reason) if resets < RESETS => {
                    resets += 1;
                    self.shared.counts.resets.fetch_add(1, Ordering::Relaxed);
                    self.shared.set_phase(Phase::Resetting);
                    tracing::warn!("{}: resetting it: {reason}", self.shared.name());
                }
                End::Failed(problem) if resets < RESETS && self.attached.borrow().is_none() => {
                    resets += 1;
                    tracing::warn!("{}: resetting it again: {problem}", self.shared.name());
                }
                _ => return end,
            }
        }
    }

    /// The reactors learn that there is nothing to be had, and answer what they have.
    async fn publish_gone(&self) {
        self.shared.link.publish(State::Gone);
        self.time.wait(None, || self.shared.link.is_acknowledged().then_some(())).await;
    }
}
