//! A controller as the rest of the program has it: attached, asked, detached.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memory::Arena;
use nvme::identify::IdentifyController;
use nvme::log::Health;
use nvme::register::Version;
use nvme::{Sqe, Status};

use crate::admin::{AdminError, Answer};
use crate::counters::CounterValues;
use crate::function::Slot;
use crate::lane::Settings;
use crate::life::Machine;
use crate::link::Link;
use crate::namespace::{self, NamespaceDevice};
use crate::scan;
use crate::session;

/// How a controller is driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Commands outstanding on each reactor, at most 1,023; fewer where the controller has shorter queues.
    pub queue_depth: u16,
    /// How long an I/O command may take before it is aborted; as long again, and the controller is reset.
    pub timeout: Duration,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// How often an I/O command is carried out again: after a reset, or because the controller asks for it.
    pub retries: u8,
    /// How often the SMART log is read.
    pub health_interval: Duration,
    /// Whether to use shadow doorbells where the controller has them.
    pub shadow_doorbells: bool,
    /// I/O queue pairs at most.
    pub io_queues: u16,
    /// What becomes of a command that takes too long.
    pub on_timeout: OnTimeout,
    /// What becomes of a controller that is lost.
    pub loss: Loss,
}

/// What becomes of an I/O command that takes too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// It is counted and logged, and goes on.
    Nothing,
    /// It is aborted; if it takes as long again, the controller is reset.
    #[default]
    Abort,
    /// The controller is reset.
    Reset,
}

/// What becomes of a controller that is lost: taken away, or out of service by a failure that no reset mends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// How often it is looked for; None: at longer and longer intervals.
    pub interval: Option<Duration>,
    /// How long it is looked for; None: for ever. Later it is looked for when somebody asks for a reset.
    pub look: Option<Duration>,
    /// How long commands wait for it before they fail, at most as long as it is looked for; None: as long as that.
    pub hold: Option<Duration>,
}

impl Default for Loss {
    fn default() -> Loss {
        Loss { interval: None, look: None, hold: Some(Duration::ZERO) }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            queue_depth: 256,
            timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_mins(1),
            retries: 4,
            health_interval: Duration::from_secs(30),
            shadow_doorbells: true,
            io_queues: u16::MAX,
            on_timeout: OnTimeout::default(),
            loss: Loss::default(),
        }
    }
}

/// Why a controller could not be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("NVMe controller {controller}: {problem}")]
pub struct AttachError {
    /// Which.
    pub controller: String,
    /// Why, and what to do.
    pub problem: String,
}

/// How a controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It has not been in service yet.
    Attaching,
    /// In service.
    Live,
    /// Being reset; what comes waits.
    Resetting,
    /// Not there, or failed, for this reason; it is looked for. What comes fails, after the time that [`Loss`] gives it.
    Gone(String),
    /// Given back.
    Detached,
}

/// What has happened to a controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Incidents {
    /// Commands that it was asked to abort, since they took too long.
    pub aborts: u64,
    /// Resets.
    pub resets: u64,
    /// Times that it reported a fatal error.
    pub fatal: u64,
    /// Times that the device was taken away.
    pub removals: u64,
    /// Times that it was given up as failed.
    pub failures: u64,
    /// Asynchronous events.
    pub events: u64,
    /// Completions of admin commands that are not there.
    pub stray_completions: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) aborts: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) fatal: AtomicU64,
    pub(crate) removals: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) events: AtomicU64,
    strays: AtomicU64,
}

/// Where it is told what became of a reset: the controller is in service, or why it is not.
pub type ResetDone = Sender<Result<(), String>>;

/// Something for the controller's thread to do.
#[derive(Debug)]
pub(crate) enum Request {
    Detach,
    /// Who hears what became of it, if anybody does.
    Reset(Option<ResetDone>),
    Rescan,
    Admin {
        sqe: Box<Sqe>,
        /// Bytes that it brings.
        read: usize,
        /// What it takes along.
        write: Vec<u8>,
        patience: Option<Duration>,
        answer: Sender<Result<Answer, AdminError>>,
    },
}

impl Request {
    /// There is no session to take it. Whether it says to end.
    pub(crate) fn refuse(self, shared: &Shared) -> Option<bool> {
        match self {
            Request::Detach => Some(true),
            // To look for it now is what can be done.
            Request::Reset(done) => {
                shared.await_reset(done);
                Some(false)
            }
            Request::Rescan => Some(false),
            Request::Admin { answer, .. } => {
                let _ = answer.send(Err(AdminError::NotInService));
                shared.next_request().and_then(|next| next.refuse(shared))
            }
        }
    }
}

/// What has been found out.
#[derive(Debug)]
struct Known {
    phase: Phase,
    controller: Option<Arc<scan::Controller>>,
    /// Where it was found last.
    address: Option<String>,
    namespaces: BTreeMap<u32, Result<Arc<namespace::Shared>, String>>,
    health: Option<Health>,
    errors: Vec<u8>,
}

/// What the thread of a controller and everybody else share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    /// Tells it from all others in the process.
    number: u64,
    options: Options,
    pub(crate) link: Arc<Link>,
    known: Mutex<Known>,
    requests: Mutex<VecDeque<Request>>,
    /// Who waits for the end of the reset that goes on.
    resets: Mutex<Vec<ResetDone>>,
    /// How often it came into service.
    sessions: AtomicU64,
    /// Differs whenever the namespaces do.
    changes: AtomicU64,
    pub(crate) counts: Counts,
    /// It has shadow doorbells, and does not take them.
    pub(crate) without_shadow: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(name: &str, reactors: usize, options: &Options) -> io::Result<Shared> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let known = Known {
            phase: Phase::Attaching,
            controller: None,
            address: None,
            namespaces: BTreeMap::new(),
            health: None,
            errors: Vec::new(),
        };
        Ok(Shared {
            name: name.to_owned(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            options: options.clone(),
            link: Arc::new(Link::new(reactors)?),
            known: Mutex::new(known),
            requests: Mutex::default(),
            resets: Mutex::default(),
            sessions: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            counts: Counts::default(),
            without_shadow: AtomicBool::new(false),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn controller(&self) -> Option<Arc<scan::Controller>> {
        lock(&self.known).controller.clone()
    }

    pub(crate) fn identify(&self) -> Option<Box<IdentifyController>> {
        self.controller().map(|controller| controller.identify.clone())
    }

    pub(crate) fn health(&self) -> Option<Health> {
        lock(&self.known).health
    }

    pub(crate) fn next_request(&self) -> Option<Request> {
        lock(&self.requests).pop_front()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        let outcome = match &phase {
            Phase::Attaching | Phase::Live | Phase::Resetting => None,
            Phase::Gone(problem) => Some(problem.clone()),
            Phase::Detached => Some("it has been detached".to_owned()),
        };
        lock(&self.known).phase = phase;
        if let Some(problem) = outcome {
            self.tell_reset(&Err(problem));
        }
    }

    pub(crate) fn set_address(&self, address: &str) {
        lock(&self.known).address = Some(address.to_owned());
    }

    /// Who hears of the end of the reset that is about to begin.
    pub(crate) fn await_reset(&self, done: Option<ResetDone>) {
        lock(&self.resets).extend(done);
    }

    /// What became of the reset.
    pub(crate) fn tell_reset(&self, outcome: &Result<(), String>) {
        for done in std::mem::take(&mut *lock(&self.resets)) {
            // Whoever asked may have given up.
            let _ = done.send(outcome.clone());
        }
    }

    /// How often it came into service.
    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    pub(crate) fn admin_strays(&self, strays: u64) {
        self.counts.strays.store(strays, Ordering::Relaxed);
    }

    /// A session has begun.
    pub(crate) fn in_service(&self, controller: scan::Controller) {
        let mut known = lock(&self.known);
        known.controller = Some(Arc::new(controller));
        known.phase = Phase::Live;
        drop(known);
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.tell_reset(&Ok(()));
    }

    pub(crate) fn healthy(&self, health: &Health) {
        lock(&self.known).health = Some(*health);
    }

    pub(crate) fn erred(&self, entries: Vec<u8>) {
        lock(&self.known).errors = entries;
    }

    /// These are all namespaces that there are now.
    pub(crate) fn found(&self, found: Vec<(u32, Result<scan::Namespace, String>)>) {
        let mut known = lock(&self.known);
        let before = std::mem::take(&mut known.namespaces);
        let mut changed = false;
        for (nsid, found) in found {
            let old = before.get(&nsid).and_then(|old| old.as_ref().ok());
            let now = match (found, old) {
                (Ok(found), Some(old)) if old.is_same(&found) => {
                    changed |= old.update(found.blocks, found.limits);
                    Ok(Arc::clone(old))
                }
                (Ok(found), _) => {
                    changed = true;
                    Ok(Arc::new(namespace::Shared::new(nsid, found)))
                }
                (Err(problem), _) => {
                    tracing::warn!("{}: namespace {nsid} is left out: {problem}", self.name);
                    Err(problem)
                }
            };
            known.namespaces.insert(nsid, now);
        }
        for (nsid, old) in before {
            let stays = known.namespaces.get(&nsid).and_then(|now| now.as_ref().ok());
            if let Ok(old) = old
                && !stays.is_some_and(|now| Arc::ptr_eq(now, &old))
            {
                tracing::warn!("{}: namespace {nsid} is gone", self.name);
                old.lose();
                changed = true;
            }
        }
        drop(known);
        self.changes.fetch_add(u64::from(changed), Ordering::Release);
    }
}

/// What a controller says it is, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identification {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// The version of the specification that it follows.
    pub version: Version,
    /// The whole of Identify Controller.
    pub identify: Box<IdentifyController>,
}

/// A namespace of a controller, or why it is not served.
pub type Found = Result<NamespaceDevice, String>;

/// A controller that is attached. Dropped, it is given back.
#[derive(Debug)]
pub struct Controller {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Controller {
    /// Attaches the controller in `slot`, for so many reactors, which have their buffers in `arena`, all mapped by now. Blocks until it is in service.
    ///
    /// # Errors
    /// Why it cannot be had, or used.
    pub fn attach(
        name: &str,
        slot: Arc<dyn Slot>,
        arena: &Arena,
        reactors: usize,
        options: &Options,
    ) -> Result<Controller, AttachError> {
        let refuse = |problem: String| AttachError { controller: name.to_owned(), problem };
        let system = |error: io::Error| {
            refuse(format!("the system refuses a thread or a descriptor: {error}"))
        };
        let shared = Arc::new(Shared::new(name, reactors, options).map_err(system)?);
        let (done, attached) = mpsc::channel();
        let (theirs, arena, options) = (Arc::clone(&shared), arena.clone(), options.clone());
        let run = move || Machine::new(&theirs, slot, &arena, options, done).run();
        let thread =
            thread::Builder::new().name(format!("nvme-{name}")).spawn(run).map_err(system)?;
        let controller = Controller { shared, thread: Mutex::new(Some(thread)) };
        attached.recv().unwrap_or_else(|_| Err(refuse("its thread has ended".to_owned())))?;
        Ok(controller)
    }

    /// The same without a thread, for a test to step: [`Machine::poll`]. Attached once `attached` has something.
    ///
    /// # Errors
    /// The system's, if it refuses a descriptor.
    pub fn stepped(
        name: &str,
        slot: Arc<dyn Slot>,
        arena: &Arena,
        reactors: usize,
        options: &Options,
        attached: Sender<Result<(), AttachError>>,
    ) -> io::Result<(Controller, Machine)> {
        let shared = Arc::new(Shared::new(name, reactors, options)?);
        let machine = Machine::new(&shared, slot, arena, options.clone(), attached);
        Ok((Controller { shared, thread: Mutex::default() }, machine))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// How it is.
    pub fn phase(&self) -> Phase {
        lock(&self.shared.known).phase.clone()
    }

    /// What it is, as it said when it was last in service.
    pub fn identification(&self) -> Option<Identification> {
        let controller = self.shared.controller()?;
        let identify = controller.identify.clone();
        let [model, serial, firmware] =
            [&identify.mn[..], &identify.sn, &identify.fr].map(scan::text);
        Some(Identification { model, serial, firmware, version: controller.version, identify })
    }

    /// Where it was found last: the address of its PCI function.
    pub fn address(&self) -> Option<String> {
        lock(&self.shared.known).address.clone()
    }

    /// A number that is another one whenever namespaces have come, gone or changed.
    pub fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Acquire)
    }

    /// Its SMART log, as last read.
    pub fn health(&self) -> Option<Health> {
        self.shared.health()
    }

    /// Entries of its error log, as read when it last told of an error.
    pub fn errors(&self) -> Vec<u8> {
        lock(&self.shared.known).errors.clone()
    }

    /// Its namespaces: those that are served as the device of that name.
    pub fn namespaces(&self, name: impl Fn(u32) -> String) -> BTreeMap<u32, Found> {
        let settings = self.settings();
        let known = lock(&self.shared.known);
        let device = |nsid: u32, shared| {
            NamespaceDevice::new(
                &name(nsid),
                shared,
                &self.shared.link,
                self.shared.number,
                settings,
            )
        };
        let each = known.namespaces.iter();
        each.map(|(nsid, found)| {
            (*nsid, found.as_ref().map(|shared| device(*nsid, shared)).map_err(String::clone))
        })
        .collect()
    }

    fn settings(&self) -> Settings {
        let delays =
            self.shared.controller().map_or([Duration::ZERO; 3], |controller| controller.delays());
        let Options { timeout, retries, .. } = self.shared.options;
        Settings { timeout, retries, delays }
    }

    /// What has happened to it.
    pub fn incidents(&self) -> Incidents {
        let counts = &self.shared.counts;
        let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Incidents {
            aborts: value(&counts.aborts),
            resets: value(&counts.resets),
            fatal: value(&counts.fatal),
            removals: value(&counts.removals),
            failures: value(&counts.failures),
            events: value(&counts.events),
            stray_completions: value(&counts.strays),
        }
    }

    /// What each reactor has counted.
    pub fn counters(&self) -> Vec<CounterValues> {
        let link = &self.shared.link;
        (0..link.reactors())
            .filter_map(|reactor| link.counters(reactor))
            .map(|counters| counters.values())
            .collect()
    }

    fn ask(&self, request: Request) {
        lock(&self.shared.requests).push_back(request);
        self.shared.link.ring();
    }

    /// Has it reset soon; what is in it waits meanwhile. If it is gone, it is looked for now.
    pub fn reset(&self) {
        self.ask(Request::Reset(None));
    }

    /// The same; what became of it comes where it is to be sent.
    pub fn reset_and_tell(&self, done: ResetDone) {
        self.ask(Request::Reset(Some(done)));
    }

    /// Has its namespaces looked for again soon.
    pub fn rescan(&self) {
        self.ask(Request::Rescan);
    }

    /// Has it carry out an admin command, which may take so long (None: as long as others), reads `read` bytes or writes those of `write`. The answer
    /// comes where it is to be sent.
    ///
    /// # Errors
    /// The status for a command that would take from the driver what it works with.
    pub fn admin(
        &self,
        sqe: Sqe,
        read: usize,
        write: Vec<u8>,
        patience: Option<Duration>,
        answer: Sender<Result<Answer, AdminError>>,
    ) -> Result<(), Status> {
        session::is_allowed(&sqe)?;
        self.ask(Request::Admin { sqe: Box::new(sqe), read, write, patience, answer });
        Ok(())
    }

    /// Gives it back: shut down, disabled, closed. Blocks until that is so. What reactors still have in it fails.
    pub fn detach(&self) {
        self.ask(Request::Detach);
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of its thread has been reported; there is nothing left to give back.
            let _ = thread.join();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.detach();
    }
}
