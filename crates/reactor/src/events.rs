//! Readiness of file descriptors: one epoll instance per reactor, shared by all components.
//!
//! Everything is edge-triggered: a descriptor is reported once when it becomes ready, and its owner
//! reads or writes until `WouldBlock`. The kernel's events are sorted into one queue per
//! [`EventSource`] at once, so an owner never sees another's events, and none is lost when an owner
//! does not come to look for a while. Runs on the reactor's thread only.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bitflags::bitflags;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use slab::Slab;

bitflags! {
    /// What an owner wants to hear of.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Interest: u8 {
        /// There is something to read or to accept.
        const READ = 1;
        /// There is room to write.
        const WRITE = 2;
        /// Only to be woken from sleep: while the reactor is awake its owner finds out for itself, and the kernel need not
        /// be asked on its behalf.
        const SLEEP = 4;
    }

    /// What a descriptor is ready for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Readiness: u8 {
        /// There is something to read or to accept, or an error or end that reading will show.
        const READ = 1;
        /// There is room to write, or an error that writing will show.
        const WRITE = 2;
        /// The peer has closed its side, or the descriptor is in error.
        const CLOSED = 4;
    }
}

/// Events taken from the kernel by one call.
const BATCH: usize = 256;
/// The source number that stands for the reactor's inbox.
const OWN: u16 = u16::MAX;

/// What one `epoll_wait` brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waited {
    /// Events for components.
    pub(crate) events: usize,
    /// The inbox's eventfd is set.
    pub(crate) inbox: bool,
    /// The kernel may have more: ask again next turn.
    pub(crate) more: bool,
}

/// Identifies a registration in the kernel's event: key, its generation, source.
#[derive(Clone, Copy)]
struct Token {
    source: u16,
    generation: u16,
    key: u32,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.source) << 48 | u64::from(self.generation) << 32 | u64::from(self.key)
    }

    fn unpack(packed: u64) -> Token {
        let low = |value: u64| u16::try_from(value & 0xFFFF).unwrap_or_default();
        Token {
            source: low(packed >> 48),
            generation: low(packed >> 32),
            key: u32::try_from(packed & u64::from(u32::MAX)).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// Tells events of this registration from late ones of the key's former owner.
    generation: u16,
    registered: bool,
    /// It is of interest while the reactor is awake, too.
    awake: bool,
    queued: bool,
    readiness: Readiness,
}

#[derive(Debug)]
struct Source {
    entries: Vec<Entry>,
    ready: VecDeque<u32>,
    /// Where its entries' generations begin: sources that follow one another under the same number
    /// differ in it.
    salt: u16,
}

impl Source {
    fn entry(&mut self, key: u32) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(key).ok()?)
    }

    fn push(&mut self, token: Token, readiness: Readiness) {
        let Some(entry) = self.entry(token.key) else {
            return;
        };
        if !entry.registered || entry.generation != token.generation {
            return;
        }
        entry.readiness |= readiness;
        if !entry.queued {
            entry.queued = true;
            self.ready.push_back(token.key);
        }
    }

    fn pop(&mut self) -> Option<(u32, Readiness)> {
        while let Some(key) = self.ready.pop_front() {
            let Some(entry) = self.entry(key) else {
                continue;
            };
            entry.queued = false;
            let readiness = std::mem::take(&mut entry.readiness);
            // Empty: it was deregistered after it had been queued.
            if !readiness.is_empty() {
                return Some((key, readiness));
            }
        }
        None
    }
}

/// The reactor's epoll instance.
pub(crate) struct Epoll {
    fd: OwnedFd,
    sources: RefCell<Slab<Source>>,
    buffer: RefCell<Vec<Event>>,
    registered: Cell<usize>,
    salt: Cell<u16>,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        Ok(Epoll {
            fd: epoll::create(CreateFlags::CLOEXEC)?,
            sources: RefCell::default(),
            buffer: RefCell::new(Vec::with_capacity(BATCH)),
            registered: Cell::new(0),
            salt: Cell::new(0),
        })
    }

    /// Level-triggered: a sleep ends at once if the eventfd was written before it.
    pub(crate) fn watch_inbox(&self, fd: impl AsFd) -> io::Result<()> {
        let token = Token { source: OWN, generation: 0, key: 0 };
        epoll::add(&self.fd, fd, EventData::new_u64(token.pack()), EventFlags::IN)?;
        Ok(())
    }

    /// Whether any component has a descriptor here that is of interest while the reactor is awake. If not, there is nothing to ask the kernel for
    /// while awake: the inbox and the ring are looked at directly.
    pub(crate) fn is_used(&self) -> bool {
        self.registered.get() > 0
    }

    /// Whether a component has not yet fetched an event.
    pub(crate) fn has_unfetched(&self) -> bool {
        self.sources.borrow().iter().any(|(_, source)| !source.ready.is_empty())
    }

    /// Asks the kernel, waiting up to `timeout`, and sorts what it says.
    pub(crate) fn wait(&self, timeout: Duration) -> Waited {
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        match epoll::wait(&self.fd, spare_capacity(&mut buffer), Some(&timeout)) {
            // A signal, or the kernel running io_uring's task work: an early end like any other.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                // Only a descriptor that is not an epoll instance or a bad buffer get here.
                debug_assert!(false, "epoll_wait: {error}");
            }
        }
        let mut waited = Waited { more: buffer.len() == BATCH, ..Waited::default() };
        let mut sources = self.sources.borrow_mut();
        for event in buffer.iter() {
            let token = Token::unpack(event.data.u64());
            if token.source == OWN {
                waited.inbox = true;
            } else if let Some(source) = sources.get_mut(usize::from(token.source)) {
                waited.events += 1;
                source.push(token, readiness(event.flags));
            }
        }
        waited
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("registered", &self.registered).finish_non_exhaustive()
    }
}

fn readiness(flags: EventFlags) -> Readiness {
    let mut readiness = Readiness::empty();
    let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
    if broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP) {
        readiness |= Readiness::READ;
    }
    if broken || flags.contains(EventFlags::OUT) {
        readiness |= Readiness::WRITE;
    }
    if broken || flags.contains(EventFlags::RDHUP) {
        readiness |= Readiness::CLOSED;
    }
    readiness
}

fn flags(interest: Interest) -> EventFlags {
    let mut flags = EventFlags::ET | EventFlags::RDHUP;
    if interest.contains(Interest::READ) {
        flags |= EventFlags::IN;
    }
    if interest.contains(Interest::WRITE) {
        flags |= EventFlags::OUT;
    }
    flags
}

/// One component's view of the reactor's epoll instance: the descriptors it registered, each under
/// a key of its own choice, and the events of those alone.
///
/// Keys index a table, so they are to be small and dense, such as slab indices.
pub struct EventSource {
    epoll: Rc<Epoll>,
    source: u16,
}

impl EventSource {
    pub(crate) fn new(epoll: Rc<Epoll>) -> EventSource {
        let salt = epoll.salt.replace(epoll.salt.get().wrapping_add(0x0101));
        let new = Source { entries: Vec::new(), ready: VecDeque::new(), salt };
        let index = epoll.sources.borrow_mut().insert(new);
        // 65,535 components on one reactor: a table that large means a leak, and then events of the
        // sources beyond it are not delivered.
        let source = u16::try_from(index).unwrap_or(OWN);
        debug_assert!(source != OWN, "event sources leak");
        EventSource { epoll, source }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Source) -> T) -> Option<T> {
        self.epoll.sources.borrow_mut().get_mut(usize::from(self.source)).map(act)
    }

    /// Reports `fd` under `key` from now on, its present readiness included. To be ended by
    /// [`EventSource::deregister`] before the descriptor is closed.
    ///
    /// # Errors
    /// The system's, and `AlreadyExists` if the key is in use.
    pub fn register(&self, fd: impl AsFd, key: u32, interest: Interest) -> io::Result<()> {
        let index = usize::try_from(key).map_err(|_| io::ErrorKind::InvalidInput)?;
        let generation = self
            .with(|source| {
                let new = || Entry { generation: source.salt, ..Entry::default() };
                if source.entries.len() <= index {
                    source.entries.resize_with(index + 1, new);
                }
                // Room for all of them at once, so that no event allocates.
                source.ready.reserve(source.entries.len());
                let entry = source.entry(key)?;
                if entry.registered {
                    return None;
                }
                entry.registered = true;
                entry.awake = !interest.contains(Interest::SLEEP);
                Some(entry.generation)
            })
            .flatten()
            .ok_or(io::ErrorKind::AlreadyExists)?;
        let token = Token { source: self.source, generation, key };
        let data = EventData::new_u64(token.pack());
        if let Err(error) = epoll::add(&self.epoll.fd, fd, data, flags(interest)) {
            self.with(|source| source.entry(key).map(|entry| entry.registered = false));
            return Err(error.into());
        }
        let awake = usize::from(!interest.contains(Interest::SLEEP));
        self.epoll.registered.set(self.epoll.registered.get() + awake);
        Ok(())
    }

    /// Changes what is reported of `fd`, and reports its present readiness again.
    ///
    /// # Errors
    /// The system's, and `NotFound` if the key is not in use.
    pub fn modify(&self, fd: impl AsFd, key: u32, interest: Interest) -> io::Result<()> {
        let generation = self
            .with(|source| {
                source.entry(key).filter(|entry| entry.registered).map(|entry| entry.generation)
            })
            .flatten()
            .ok_or(io::ErrorKind::NotFound)?;
        let token = Token { source: self.source, generation, key };
        let data = EventData::new_u64(token.pack());
        epoll::modify(&self.epoll.fd, fd, data, flags(interest))?;
        Ok(())
    }

    /// Ends the reports of `fd`; those not yet fetched are dropped.
    ///
    /// # Errors
    /// The system's, and `NotFound` if the key is not in use.
    pub fn deregister(&self, fd: impl AsFd, key: u32) -> io::Result<()> {
        let awake = self
            .with(|source| {
                let entry = source.entry(key).filter(|entry| entry.registered)?;
                entry.registered = false;
                entry.generation = entry.generation.wrapping_add(1);
                entry.readiness = Readiness::empty();
                Some(usize::from(entry.awake))
            })
            .flatten()
            .ok_or(io::ErrorKind::NotFound)?;
        self.epoll.registered.set(self.epoll.registered.get().saturating_sub(awake));
        epoll::delete(&self.epoll.fd, fd)?;
        Ok(())
    }

    /// The next descriptor that became ready. Several events of one are reported as one.
    pub fn next(&self) -> Option<(u32, Readiness)> {
        self.with(Source::pop).flatten()
    }

    /// Calls `each` for every descriptor that became ready; the source may be used from within. The
    /// number of calls.
    pub fn drain(&self, mut each: impl FnMut(u32, Readiness)) -> usize {
        let waiting = self.with(|source| source.ready.len()).unwrap_or(0);
        let mut count = 0;
        while count < waiting {
            let Some((key, readiness)) = self.next() else {
                break;
            };
            count += 1;
            each(key, readiness);
        }
        count
    }
}

impl Drop for EventSource {
    fn drop(&mut self) {
        let mut sources = self.epoll.sources.borrow_mut();
        if let Some(source) = sources.try_remove(usize::from(self.source)) {
            let counts = |entry: &&Entry| entry.registered && entry.awake;
            let left = source.entries.iter().filter(counts).count();
            self.epoll.registered.set(self.epoll.registered.get().saturating_sub(left));
        }
    }
}

impl fmt::Debug for EventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSource").field("source", &self.source).finish_non_exhaustive()
    }
}
