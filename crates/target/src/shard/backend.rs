//! This shard's side of the namespaces: one block queue each, and what is in it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use block::BlockQueue;
use memory::SharedMemory;
use nvme::{Nqn, Status};

use super::controller::Kind;
use super::limit::Turns;
use super::message::PauseKey;
use super::request::Fifo;
use super::table::{Key, Table};
use crate::Instant;
use crate::configuration::{Namespace, Subsystem, View};
use crate::io::Bounds;
use crate::rate_limit::RateLimits;
use crate::statistics::Counters;

/// One namespace on this shard.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) subsystem: Key,
    pub(crate) namespace: Arc<Namespace>,
    /// What its device lends. As the namespace it goes before the queue, which frees it elsewhere if it is the last to have it.
    pub(crate) medium: Option<Arc<SharedMemory>>,
    /// None: the queue could not be opened; tried again when the configuration changes.
    pub(crate) queue: Option<Box<dyn BlockQueue>>,
    pub(crate) bounds: Bounds,
    /// The device's geometry when `bounds` was taken.
    pub(crate) generation: u64,
    /// What the operations of its device on this shard have come to.
    pub(crate) counters: Arc<Counters>,
    /// How much its device may do, and whose turn it is here.
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) turns: Turns,
    /// Block operations that are out.
    pub(crate) in_flight: u32,
    /// It is in the list of those that are polled.
    pub(crate) active: bool,
    /// It has left the configuration and goes when its last operation is back.
    pub(crate) retired: bool,
    /// Shards whose dead queues left writes in the device that have been given up waiting for.
    pub(crate) fences: u32,
    pub(crate) pauses: Vec<Pause>,
    /// Requests that wait for the end of the pauses.
    pub(crate) held: Fifo,
    /// Request slots and bytes of the pool that its commands hold.
    pub(crate) slots: u32,
    pub(crate) charged: usize,
    /// Bytes that it lends to its commands.
    pub(crate) lent: usize,
    /// The latest round of the ring in which a command found that it holds all it may.
    pub(crate) crowded_in: Option<u64>,
}

/// One pause of a namespace.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) key: PauseKey,
    pub(crate) deadline: Instant,
    /// Its shard has been told that nothing is in the device.
    pub(crate) acknowledged: bool,
}

impl Backend {
    /// Whether commands may be carried out, or the status that refuses them.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.retired {
            return Err(Status::INVALID_NAMESPACE.with_dnr());
        }
        // Retryable: the device is expected back, and multipath hosts go elsewhere meanwhile.
        if self.fences > 0 || self.queue.is_none() {
            return Err(Status::NAMESPACE_NOT_READY);
        }
        Ok(())
    }

    /// What its commands hold of its own memory, or of the pool.
    pub(crate) fn held_mut(&mut self, lent: bool) -> &mut usize {
        if lent { &mut self.lent } else { &mut self.charged }
    }

    pub(crate) fn is_paused(&self) -> bool {
        !self.pauses.is_empty()
    }
}

/// One subsystem on this shard.
#[derive(Debug)]
pub(crate) struct Entry {
    subsystem: Arc<Subsystem>,
    /// [`Subsystem::is_guarded`], where every command passes.
    guarded: bool,
    /// Backends by NSID less one; absent where there is no device.
    backends: Vec<Option<Key>>,
    /// Its controllers on this shard.
    pub(crate) controllers: BTreeSet<u16>,
    /// It has left the configuration. Queues that are being ended still refer to it.
    pub(crate) retired: bool,
}

impl Entry {
    pub(crate) fn subsystem(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }

    /// Puts the subsystem of a later snapshot in the place of the one before.
    pub(crate) fn put(&mut self, subsystem: Arc<Subsystem>) {
        self.guarded = subsystem.is_guarded();
        self.subsystem = subsystem;
    }

    /// Why a command to this namespace is not carried out for whoever sent it from where, whatever its device; None:
    /// it may be. `sender` is asked only where the answer depends on it.
    pub(crate) fn refusal<'a>(
        &'a self,
        nsid: u32,
        sender: impl FnOnce(&'a Subsystem) -> Option<View<'a>>,
    ) -> Option<Status> {
        if !self.guarded {
            return None;
        }
        // Its queues are being ended, and the shard that does so may not know yet. A host that has another path goes there.
        if self.retired {
            return Some(Status::INTERNAL_PATH_ERROR);
        }
        let namespace = self.subsystem.namespace(nsid)?;
        match sender(&self.subsystem) {
            Some(view) => view.refusal(namespace),
            None => Some(Status::INTERNAL_ERROR),
        }
    }

    /// The namespace of this number, if it has a device.
    pub(crate) fn backend(&self, nsid: u32) -> Option<Key> {
        let at = usize::try_from(nsid.checked_sub(1)?).ok()?;
        self.backends.get(at).copied().flatten()
    }

    /// All its backends.
    pub(crate) fn backends(&self) -> impl Iterator<Item = Key> {
        self.backends.iter().copied().flatten()
    }

    pub(crate) fn set_backend(&mut self, nsid: u32, backend: Option<Key>) {
        let Some(at) = nsid.checked_sub(1).and_then(|at| usize::try_from(at).ok()) else { return };
        if at >= self.backends.len() {
            self.backends.resize(at.saturating_add(1), None);
        }
        if let Some(place) = self.backends.get_mut(at) {
            *place = backend;
        }
    }

    /// The first namespace with a device from NSID `from` on, and its NSID.
    pub(crate) fn next_backend(&self, from: u32) -> Option<(u32, Key)> {
        let skip = usize::try_from(from.saturating_sub(1)).ok()?;
        let rest = self.backends.get(skip..)?;
        let (more, key) =
            rest.iter().enumerate().find_map(|(more, key)| key.map(|key| (more, key)))?;
        Some((u32::try_from(skip.checked_add(more)?.checked_add(1)?).ok()?, key))
    }
}

/// The subsystems and namespaces of this shard.
#[derive(Debug)]
pub(crate) struct Subsystems {
    table: Table<Key, Entry>,
    by_name: HashMap<Nqn, Key>,
    /// Controllers of the discovery subsystem on this shard.
    discovery: BTreeSet<u16>,
    pub(crate) backends: Table<Key, Backend>,
    /// Backends with operations out: all that has to be polled, in the order of their turns.
    pub(crate) active: VecDeque<Key>,
}

impl Subsystems {
    pub(crate) fn new() -> Self {
        Self {
            table: Table::growing(u32::MAX),
            by_name: HashMap::new(),
            discovery: BTreeSet::new(),
            backends: Table::growing(u32::MAX),
            active: VecDeque::new(),
        }
    }

    pub(crate) fn find(&self, nqn: &Nqn) -> Option<Key> {
        self.by_name.get(nqn).copied()
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Entry> {
        self.table.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.table.get_mut(key)
    }

    /// The backend of a namespace by its names.
    pub(crate) fn backend(&self, nqn: &Nqn, nsid: u32) -> Option<Key> {
        self.get(self.find(nqn)?)?.backend(nsid)
    }

    pub(crate) fn add(&mut self, subsystem: &Arc<Subsystem>) -> Option<Key> {
        let entry = Entry {
            subsystem: Arc::clone(subsystem),
            guarded: subsystem.is_guarded(),
            backends: Vec::new(),
            controllers: BTreeSet::new(),
            retired: false,
        };
        let key = self.table.insert(entry).ok()?;
        self.by_name.insert(subsystem.nqn().clone(), key);
        Some(key)
    }

    /// The controllers of this kind on this shard.
    pub(crate) fn controllers(&self, kind: Kind) -> Option<&BTreeSet<u16>> {
        match kind {
            Kind::Discovery => Some(&self.discovery),
            Kind::Nvm(key) => Some(&self.table.get(key)?.controllers),
        }
    }

    /// The same, to enter one that has come or take out one that goes.
    pub(crate) fn controllers_mut(&mut self, kind: Kind) -> Option<&mut BTreeSet<u16>> {
        match kind {
            Kind::Discovery => Some(&mut self.discovery),
            Kind::Nvm(key) => Some(&mut self.table.get_mut(key)?.controllers),
        }
    }

    /// Takes a subsystem out of service; its record stays for queues that still refer to it, but lets go of the
    /// devices: whoever removed them may want their files or memory for something else.
    pub(crate) fn retire(&mut self, key: Key) {
        if let Some(entry) = self.table.get_mut(key) {
            entry.retired = true;
            self.by_name.remove(entry.subsystem.nqn());
            entry.put(Arc::new(entry.subsystem.without_namespaces()));
            // Every command is refused now.
            entry.guarded = true;
        }
    }

    /// Frees the record of a subsystem that nothing refers to any longer.
    pub(crate) fn forget(&mut self, key: Key) {
        self.table.remove(key);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &Entry)> {
        self.table.iter()
    }

    /// A backend has its first operation out: it is polled from now on.
    pub(crate) fn activate(&mut self, key: Key) {
        if let Some(backend) = self.backends.get_mut(key)
            && !backend.active
        {
            backend.active = true;
            self.active.push_back(key);
        }
    }
}
