//! The one way to a change: validated, prepared, on disk, in force on every reactor; in this order.
//!
//! Reading takes the current snapshot and waits for nobody. A change is decided on a clone of it, one after the
//! other, on a thread that may block; whatever may take long (opening a file, binding a port) is done before, and
//! holds up no other change. A failure before the commit to disk leaves everything as it was.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use block::BlockDevice;
use block::file::{FileDevice, FileOptions};
use block::null::NullDevice;
use block::passthrough::{PassthroughDevice, PassthroughOptions};
use block::ram::{RamDevice, RamOptions};
use node::{Listener, Node, Rdma};
use target::configuration::{Configuration, ConfigurationError};
use tokio::sync::Mutex;
use verbs::{Library, OpenError};

use crate::context_switches::ContextSwitches;
use crate::controllers::{self, Slots};
use crate::layers;
use crate::logs::Logs;
use crate::notifications::{Kind, Notifications};
use crate::objects::{Address, Device, DeviceKind, Direct, Trtype};
use crate::state::{Opened, State};
use crate::store::{Store, StoreError};
use crate::transports::Settings;

/// How long a port or file in use is waited for when a client asks for it. At the start it is longer: then an
/// earlier daemon that was killed may still hold it.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Between two attempts to bind.
const RETRY: Duration = Duration::from_millis(10);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E> {
    /// The method refuses it.
    #[error("{0}")]
    Refused(E),
    /// The target refuses it.
    #[error(transparent)]
    Invalid(#[from] ConfigurationError),
    /// It could not be written to disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The reactors did not take it.
    #[error(transparent)]
    Node(#[from] node::NodeError),
    /// The node ends.
    #[error("the node is shutting down")]
    Ending,
}

/// What a change needs and what is there already, before it is made. Dropped, it is given back.
#[derive(Debug, Default)]
pub struct Prepared {
    /// RDMA, if the change creates the transport.
    pub rdma: Option<Rdma>,
    /// The addresses that it names.
    pub listeners: Vec<Listener>,
}

/// Where RDMA's libraries come from.
pub struct Libraries(Box<dyn Fn() -> Result<Library, OpenError> + Send + Sync>);

impl Libraries {
    /// Those that `open` opens.
    pub fn new(open: impl Fn() -> Result<Library, OpenError> + Send + Sync + 'static) -> Self {
        Self(Box::new(open))
    }

    pub(crate) fn open(&self) -> Result<Library, OpenError> {
        (self.0)()
    }
}

impl fmt::Debug for Libraries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libraries").finish_non_exhaustive()
    }
}

/// What is configured and running.
#[derive(Debug)]
pub struct Plane {
    node: Node,
    store: Store,
    settings: Settings,
    pub(crate) libraries: Libraries,
    pub(crate) slots: Slots,
    logs: Logs,
    notifications: Notifications,
    context_switches: ContextSwitches,
    current: RwLock<Arc<State>>,
    /// Addresses of the current state that could not be bound; see [`crate::waiting`].
    unbound: std::sync::Mutex<BTreeSet<Address>>,
    /// Why RDMA is waited for, if it is; see [`crate::transports`].
    pub(crate) rdma_waiting: std::sync::Mutex<Option<String>>,
    /// Held by the change that is being made: what the target serves.
    configuration: Mutex<Arc<Configuration>>,
}

impl Plane {
    /// The plane of a node that serves nothing yet.
    pub fn new(
        node: Node,
        store: Store,
        settings: Settings,
        libraries: Libraries,
        slots: Slots,
        logs: Logs,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            store,
            settings,
            libraries,
            slots,
            logs,
            notifications: Notifications::default(),
            context_switches: ContextSwitches::default(),
            current: RwLock::default(),
            unbound: std::sync::Mutex::default(),
            rdma_waiting: std::sync::Mutex::default(),
            configuration: Mutex::new(Configuration::empty()),
        })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What is logged.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// What happened.
    pub fn notifications(&self) -> &Notifications {
        &self.notifications
    }

    /// Whether context switches are logged.
    pub(crate) fn context_switches(&self) -> &ContextSwitches {
        &self.context_switches
    }

    /// What is configured now.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The process is about to end: what devices hold back on purpose ends now, as if they had left the configuration.
    pub fn retire(&self) {
        retire_devices(&self.state(), &State::default());
    }

    /// Makes a change: `edit` is given a clone of the current state. Back when it is on disk and in force.
    ///
    /// # Errors
    /// [`ChangeError`]; unless it is about the reactors, nothing has changed.
    pub async fn change<R, E, F>(self: &Arc<Self>, edit: F) -> Result<R, ChangeError<E>>
    where
        F: FnOnce(&mut State) -> Result<R, E> + Send + 'static,
        R: Send + 'static,
        E: Send + 'static,
    {
        self.change_prepared(Prepared::default(), edit).await
    }

    /// Makes a change that needs what was prepared: RDMA runs then, and hosts may connect to the addresses.
    ///
    /// # Errors
    /// As [`Plane::change`]; then nothing listens there.
    pub async fn change_prepared<R, E, F>(
        self: &Arc<Self>,
        prepared: Prepared,
        edit: F,
    ) -> Result<R, ChangeError<E>>
    where
        F: FnOnce(&mut State) -> Result<R, E> + Send + 'static,
        R: Send + 'static,
        E: Send + 'static,
    {
        let plane = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || plane.make_change(prepared, edit));
        task.await.unwrap_or(Err(ChangeError::Ending))
    }

    fn make_change<R, E>(
        &self,
        prepared: Prepared,
        edit: impl FnOnce(&mut State) -> Result<R, E>,
    ) -> Result<R, ChangeError<E>> {
        let mut serving = self.configuration.blocking_lock();
        let before = self.state();
        let mut after = State::clone(&before);
        let result = edit(&mut after).map_err(ChangeError::Refused)?;
        after.number_listeners();
        after.stack();
        let steps = after.steps(&before, &serving)?;
        self.store.commit(&before.changes(&after)?)?;
        let after = Arc::new(after);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&after);
        // Before the reactors are called: so those that sleep while commands wait for a limit see the new one.
        after.enforce_limits(&before, self.node.shards());
        self.alter_devices(&before, &after);
        let added = prepared.rdma.map_or(Ok(()), |rdma| self.node.add_rdma(rdma));
        let taken = added.and(self.put_in_force(&mut serving, &steps));
        // Within the change: whoever removes an address next has to find its listener in order to close it.
        for listener in prepared.listeners {
            self.node.accept_on(listener);
        }
        self.close_listeners(&before, &after);
        retire_devices(&before, &after);
        controllers::detach(&before, &after);
        self.notifications.compare(&before, &after);
        taken?;
        Ok(result)
    }

    /// Puts one configuration after the other in force. All of them live until every reactor has taken the last, so that
    /// none of them has to free what a thousand subsystems were.
    fn put_in_force(
        &self,
        serving: &mut Arc<Configuration>,
        steps: &[Arc<Configuration>],
    ) -> Result<(), node::NodeError> {
        let mut taken = Ok(());
        for step in steps {
            // What one reactor could not take is in force on the others, and the next step may mend it.
            taken = taken.and(self.node.configure(step));
        }
        if let Some(last) = steps.last() {
            *serving = Arc::clone(last);
        }
        taken
    }

    /// Devices that are configured otherwise and go on being used become so.
    fn alter_devices(&self, before: &State, after: &State) {
        for (name, opened) in &after.devices {
            let Some(old) = before.devices.get(name) else { continue };
            if !Arc::ptr_eq(old, opened)
                && old.has_device_of(opened)
                && let Ok(device) = &opened.device
            {
                let generation = device.geometry().generation;
                layers::alter(opened);
                if device.geometry().generation != generation {
                    self.note_resized(after, name);
                }
            }
        }
    }

    /// A device has another size, and so has what stands on it.
    fn note_resized(&self, state: &State, name: &str) {
        self.notifications.note(Kind::Resized, name);
        for layer in state.above(name) {
            self.notifications.note(Kind::Resized, &layer.name);
        }
    }

    /// Stops listening on addresses that no subsystem names any more.
    fn close_listeners(&self, before: &State, after: &State) {
        for address in before.listeners.keys() {
            if !after.listeners.contains_key(address) && !self.lock_unbound().remove(address) {
                self.node.unlisten((*address).into());
            }
        }
    }

    fn lock_unbound(&self) -> MutexGuard<'_, BTreeSet<Address>> {
        self.unbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of the current state that nothing listens on yet.
    pub fn unbound(&self) -> Vec<Address> {
        self.lock_unbound().iter().copied().collect()
    }

    /// Hosts may connect to an address that was waited for, unless it has been removed in the meantime.
    pub async fn bound(&self, address: Address, listener: Listener) {
        let _no_change = self.configuration.lock().await;
        if self.lock_unbound().remove(&address) {
            self.node.accept_on(listener);
        }
    }

    /// Whether some subsystem listens there already.
    pub fn listens(&self, address: Address) -> bool {
        self.state().listeners.contains_key(&address)
    }

    /// Binds an address that is about to be named, unless some subsystem names it already, waiting up to `patience`
    /// for one that is in use: by an earlier daemon, by a listener that is being closed, or by another client's
    /// call that is about to name it. `rdma` is that which is about to be created.
    ///
    /// # Errors
    /// The system's, naming the address.
    pub async fn bind_new(
        self: &Arc<Self>,
        address: Address,
        rdma: Option<&Rdma>,
        patience: Duration,
    ) -> Result<Option<Listener>, node::BindError> {
        let until = Instant::now() + patience;
        loop {
            if self.listens(address) {
                return Ok(None);
            }
            match self.bind(address, rdma).await {
                Ok(listener) => return Ok(Some(listener)),
                Err(error) if !error.is_in_use() => return Err(error),
                Err(_) if Instant::now() < until => tokio::time::sleep(RETRY).await,
                Err(_) if self.listens(address) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Binds an address; with `rdma`, unless the node has its own.
    ///
    /// # Errors
    /// The system's, naming the address.
    pub async fn bind(
        self: &Arc<Self>,
        address: Address,
        rdma: Option<&Rdma>,
    ) -> Result<Listener, node::BindError> {
        let (plane, rdma) = (Arc::clone(self), rdma.cloned());
        let bind = move || match rdma.filter(|_| address.trtype == Trtype::Rdma) {
            Some(rdma) => rdma.bind(address.socket(), Duration::ZERO),
            None => plane.node.bind(address.into(), Duration::ZERO),
        };
        let bound = tokio::task::spawn_blocking(bind).await;
        bound.unwrap_or_else(|_| Err(node::BindError::Interrupted(address.into())))
    }

    /// Opens a device that is about to be configured, waiting up to `patience` for one that is in use.
    ///
    /// # Errors
    /// The block layer's, naming the device.
    pub async fn open(
        &self,
        device: Device,
        patience: Duration,
        creation: Creation,
    ) -> Result<Opened, block::BlockError> {
        let opened = tokio::task::spawn_blocking(move || {
            let opened = open(&device, patience, creation)?;
            Ok(Opened { device: Ok(opened), ..Opened::not_yet(device) })
        });
        opened.await.unwrap_or_else(|_| {
            let problem = "opening it was interrupted".to_owned();
            Err(block::BlockError::Unsuitable { device: String::new(), problem })
        })
    }

    /// Asks a device how large it is now; hosts are told if that has changed.
    ///
    /// # Errors
    /// The block layer's, naming the device.
    pub async fn rescan(&self, device: &Arc<dyn BlockDevice>) -> Result<(), block::BlockError> {
        let (before, device) = (device.geometry(), Arc::clone(device));
        let name = device.name().to_owned();
        let asked = tokio::task::spawn_blocking(move || device.rescan());
        let now = asked.await.unwrap_or(Ok(before))?;
        if now.generation != before.generation {
            self.note_resized(&self.state(), &name);
        }
        Ok(())
    }

    /// Serves this state, which is what the store holds. With `lenient`, an address that cannot be had after
    /// `patience` is left out with a warning, to be tried again; one of RDMA is so in any case.
    ///
    /// # Errors
    /// The target refuses it, or an address cannot be listened on.
    pub fn begin(
        &self,
        mut state: State,
        patience: Duration,
        lenient: bool,
    ) -> Result<Arc<Configuration>, BeginError> {
        let mut serving = self.configuration.blocking_lock();
        state.settings = self.settings.clone();
        self.begin_controllers(&mut state, lenient)?;
        let steps = state.steps(&State::default(), &serving)?;
        state.enforce_limits(&State::default(), self.node.shards());
        self.put_in_force(&mut serving, &steps)?;
        let configuration = Arc::clone(&serving);
        self.begin_rdma(&state)?;
        // Before any of them accepts: no host is to find half of it.
        let mut listeners = Vec::new();
        for address in state.listeners.keys() {
            // No device of the network is a reason not to serve over the others.
            let lenient = lenient || address.trtype == Trtype::Rdma;
            match self.node.bind((*address).into(), patience) {
                Ok(listener) => listeners.push(listener),
                Err(error) if lenient => {
                    // That RDMA is not there has been said.
                    if !matches!(error, node::BindError::NoTransport(_)) {
                        tracing::warn!("{error}; it is tried again until it can be had");
                    }
                    self.lock_unbound().insert(*address);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.notifications.compare(&State::default(), &state);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        for listener in listeners {
            self.node.accept_on(listener);
        }
        Ok(configuration)
    }
}

/// Why a state could not be served.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The target refuses it.
    #[error(transparent)]
    Invalid(#[from] ConfigurationError),
    /// An NVMe controller cannot be attached.
    #[error(transparent)]
    Attach(#[from] nvme_pcie::AttachError),
    /// The reactors did not take it.
    #[error(transparent)]
    Node(#[from] node::NodeError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] node::BindError),
}

/// Whether files that are not there are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// Those that have a size.
    Allowed,
    /// Not those that were there once: a file system that is not mounted yet is not to be served as an empty disk.
    Never,
}

/// Opens every device that is not open yet, waiting up to `patience` for each that is in use. `refused` decides
/// whether one that cannot be opened ends it; if not, its namespaces are not ready.
///
/// # Errors
/// What `refused` gives back.
pub fn open_devices(
    state: &mut State,
    patience: Duration,
    creation: Creation,
    mut refused: impl FnMut(block::BlockError) -> Result<(), block::BlockError>,
) -> Result<(), block::BlockError> {
    let unopened: Vec<String> = state.unopened().map(|it| it.object.name.clone()).collect();
    for name in unopened {
        let Some(opened) = state.devices.get_mut(&name) else { continue };
        let device = match open(&opened.object, patience, creation) {
            Ok(device) => Ok(device),
            Err(error) => {
                let waiting = error.to_string();
                refused(error)?;
                Err(waiting)
            }
        };
        *opened = Arc::new(Opened { device, ..Opened::clone(opened) });
    }
    state.stack();
    Ok(())
}

/// Devices that nothing is configured as any more are told so, after the shards: what comes back from them now is not
/// tried there again.
fn retire_devices(before: &State, after: &State) {
    for (name, old) in &before.devices {
        let stays = after.devices.get(name).is_some_and(|opened| opened.has_device_of(old));
        if let Ok(device) = &old.device
            && !stays
        {
            device.retire();
        }
    }
}

/// Opens a device that is no layer, waiting up to `patience` for one that is in use. May block.
///
/// # Errors
/// The block layer's, naming the device.
pub fn open(
    object: &Device,
    patience: Duration,
    creation: Creation,
) -> Result<Arc<dyn BlockDevice>, block::BlockError> {
    let name = object.name.as_str();
    Ok(match &object.kind {
        DeviceKind::Null { size, block_size } => {
            Arc::new(NullDevice::new(name, *size, *block_size)?)
        }
        DeviceKind::Ram { size, block_size, read_only } => Arc::new(RamDevice::new(&RamOptions {
            name: name.to_owned(),
            size: *size,
            block_size: *block_size,
            read_only: *read_only,
        })?),
        DeviceKind::File { path, block_size, read_only, .. }
            if PassthroughDevice::is_meant_by(path) =>
        {
            Arc::new(PassthroughDevice::open(&PassthroughOptions {
                block_size: *block_size,
                read_only: *read_only,
                lock_wait: patience,
                ..PassthroughOptions::new(name, path)
            })?)
        }
        DeviceKind::File { path, block_size, create_size, direct, read_only, .. } => {
            Arc::new(FileDevice::open(&FileOptions {
                block_size: *block_size,
                create_size: create_size.filter(|_| creation == Creation::Allowed),
                direct: match direct {
                    Direct::Auto => block::file::Direct::Auto,
                    Direct::Always => block::file::Direct::Always,
                    Direct::Never => block::file::Direct::Never,
                },
                read_only: *read_only,
                lock_wait: patience,
                ..FileOptions::new(name, path)
            })?)
        }
        DeviceKind::Nvme { .. } | DeviceKind::Delay { .. } | DeviceKind::Error { .. } => {
            let problem = "what it stands on is not there".to_owned();
            return Err(block::BlockError::Unsuitable { device: name.to_owned(), problem });
        }
    })
}
