//! NVMe controllers, and the devices that their namespaces are.
//!
//! A controller is attached as a file is opened: before the change that names it, on a thread that may block; or, if it is not there when
//! the node starts, whenever it comes. Its namespaces are devices, `NAMEn1` and so on, that nobody has to open: they are made in the change in which
//! the controller comes ([`State::stack`]), unless they have been named otherwise. What is stored is the controller and each of these devices, so a
//! restart knows them before the controller is there.
//!
//! A controller that is lost while it serves stays attached: its driver looks for it, and its devices are the same when it is back
//! ([`nvme_pcie`]).

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use block::BlockDevice;
use nvme_pcie::function::Slot;
use nvme_pcie::vfio::{SerialSlot, VfioSlot};
use nvme_pcie::{AttachError, Loss, NamespaceDevice, OnTimeout, Options};

use crate::objects::{
    Controller, Device, DeviceKind, LossTimeouts, NvmeOptions, Place, RateLimits, TimeoutAction,
};
use crate::plane::Plane;
use crate::state::{Opened, State};

/// A configured controller and, if it could be attached, the controller itself.
#[derive(Clone)]
pub struct Attached {
    /// As configured.
    pub object: Controller,
    /// The controller, or why it is waited for.
    pub controller: Result<Arc<nvme_pcie::Controller>, String>,
}

impl Attached {
    /// A controller that is configured and still to be attached.
    pub fn not_yet(object: Controller) -> Self {
        Self { object, controller: Err("it has not been attached yet".to_owned()) }
    }

    /// The devices that its namespaces would be by themselves, by NSID.
    fn namespaces(&self) -> Vec<u32> {
        let Ok(controller) = &self.controller else { return Vec::new() };
        let found = controller.namespaces(|nsid| device_name(&self.object.name, nsid));
        found.into_iter().filter(|(_, found)| found.is_ok()).map(|(nsid, _)| nsid).collect()
    }

    /// A namespace as the device of this name; or why not.
    fn device(&self, nsid: u32, name: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let controller = self.controller.as_ref().map_err(|waiting| {
            format!("its controller {} is not there: {waiting}", self.object.name)
        })?;
        let mut found = controller.namespaces(|_| name.to_owned());
        let missing = || format!("{} has no namespace {nsid}", self.object.name);
        let device = found.remove(&nsid).ok_or_else(missing)?;
        Ok(Arc::new(device?))
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("object", &self.object)
            .field("waiting", &self.controller.as_ref().err())
            .finish()
    }
}

/// The name of a namespace as a device, unless it is named otherwise.
pub(crate) fn device_name(controller: &str, nsid: u32) -> String {
    format!("{controller}n{nsid}")
}

impl DeviceKind {
    /// The controller that it is a namespace of, and which.
    pub fn controller(&self) -> Option<(&str, u32)> {
        match self {
            Self::Nvme { controller, nsid } => Some((controller, *nsid)),
            _ => None,
        }
    }
}

type FindSlot = dyn Fn(&Place) -> Arc<dyn Slot> + Send + Sync;

/// Where the driver finds controllers.
pub struct Slots(Box<FindSlot>);

impl Slots {
    /// Those that `find` finds.
    pub fn new(find: impl Fn(&Place) -> Arc<dyn Slot> + Send + Sync + 'static) -> Self {
        Self(Box::new(find))
    }
}

impl Default for Slots {
    /// Those of the machine, by VFIO.
    fn default() -> Self {
        Self::new(|place| match place {
            Place::Pci(address) => Arc::new(VfioSlot::new(address)),
            Place::Serial(serial) => Arc::new(SerialSlot::new(serial)),
        })
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}

impl From<LossTimeouts> for Loss {
    fn from(timeouts: LossTimeouts) -> Self {
        let LossTimeouts { ctrlr_loss_timeout_sec, reconnect_delay_sec, fast_io_fail_timeout_sec } =
            timeouts;
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        if ctrlr_loss_timeout_sec == 0 {
            return Self::default();
        }
        Self {
            interval: Some(seconds(reconnect_delay_sec)),
            look: u32::try_from(ctrlr_loss_timeout_sec).ok().map(seconds),
            hold: (fast_io_fail_timeout_sec != 0).then(|| seconds(fast_io_fail_timeout_sec)),
        }
    }
}

impl NvmeOptions {
    /// As the driver takes them, for this controller.
    fn driver(&self, controller: &Controller) -> Options {
        let own = Options::default();
        let micros = |micros: u64| (micros > 0).then(|| Duration::from_micros(micros));
        let (io, admin) = (micros(self.timeout_us), micros(self.timeout_admin_us));
        let retries = match u32::try_from(self.bdev_retry_count) {
            Ok(count) => count.max(self.transport_retry_count),
            Err(_) => u32::MAX,
        };
        let depth = u16::try_from(self.io_queue_requests).unwrap_or(u16::MAX);
        let queues = controller.io_queues.map(|queues| u16::try_from(queues).unwrap_or(u16::MAX));
        Options {
            queue_depth: if depth == 0 { own.queue_depth } else { depth },
            timeout: io.unwrap_or(own.timeout),
            on_timeout: match (io, self.action_on_timeout) {
                (None, _) => own.on_timeout,
                (_, TimeoutAction::None) => OnTimeout::Nothing,
                (_, TimeoutAction::Reset) => OnTimeout::Reset,
                (_, TimeoutAction::Abort) => OnTimeout::Abort,
            },
            admin_timeout: admin.or(io).unwrap_or(own.admin_timeout),
            retries: u8::try_from(retries).unwrap_or(u8::MAX),
            io_queues: queues.unwrap_or(own.io_queues),
            loss: controller.loss.into(),
            ..own
        }
    }
}

impl Opened {
    /// The namespace of a controller that it is, if it is there.
    pub(crate) fn namespace(&self) -> Option<&NamespaceDevice> {
        let device: &dyn Any = self.device.as_ref().ok()?.as_ref();
        device.downcast_ref()
    }
}

impl State {
    /// Controllers that are still to be attached.
    pub fn unattached(&self) -> impl Iterator<Item = &Arc<Attached>> {
        self.controllers.values().filter(|attached| attached.controller.is_err())
    }

    /// Adds a controller: attached, if it has been for this change.
    pub(crate) fn add_controller(&mut self, object: Controller) {
        let arrived = self.arriving.iter().position(|it| it.object == object);
        let attached = match arrived {
            Some(place) => self.arriving.swap_remove(place),
            None => Attached::not_yet(object),
        };
        self.put_controller(attached);
    }

    /// Puts a controller in the place of the same one that is still to be attached, unless that is gone.
    pub(crate) fn put_attached(&mut self, found: Attached) {
        let waits = self.controllers.get(&found.object.name).is_some_and(|attached| {
            attached.controller.is_err() && attached.object == found.object
        });
        if waits {
            self.put_controller(found);
        }
    }

    fn put_controller(&mut self, attached: Attached) {
        let name = attached.object.name.clone();
        let namespaces = attached.namespaces();
        self.controllers.insert(name.clone(), Arc::new(attached));
        for nsid in namespaces {
            self.name_namespace(&name, nsid);
        }
    }

    /// Makes a namespace a device by its own name, unless it is one.
    pub(crate) fn name_namespace(&mut self, controller: &str, nsid: u32) {
        let is_named =
            |opened: &Arc<Opened>| opened.object.kind.controller() == Some((controller, nsid));
        let name = device_name(controller, nsid);
        if self.devices.values().any(is_named) || self.devices.contains_key(&name) {
            return;
        }
        let kind = DeviceKind::Nvme { controller: controller.to_owned(), nsid };
        let limits = RateLimits::default();
        let device = Device { name: name.clone(), uuid: None, kind, limits };
        self.devices.insert(name, Arc::new(Opened::not_yet(device)));
    }

    /// Whether this device is a namespace that is one already under this name, as it is by itself. If it is to have another name, the one
    /// that it has by itself goes, unless somebody uses that.
    pub(crate) fn is_namespace_by_itself(&mut self, device: &Device) -> bool {
        let Some((controller, nsid)) = device.kind.controller() else { return false };
        let own = device_name(controller, nsid);
        let Some(opened) = self.devices.get(&own).filter(|it| it.object.kind == device.kind) else {
            return false;
        };
        if device.name == own {
            return opened.object.uuid == device.uuid && opened.object.limits == device.limits;
        }
        let is_free = self.users_of(&own).is_empty() && self.layer_on(&own).is_none();
        if is_free && opened.object.limits.is_none() {
            self.devices.remove(&own);
        }
        false
    }

    /// Makes a device of what is named like a namespace of a controller that is not there yet.
    pub(crate) fn expect_namespace(&mut self, name: &str) {
        let waits = |attached: &&Arc<Attached>| attached.controller.is_err();
        let found = self.controllers.values().filter(waits).find_map(|attached| {
            let nsid = name.strip_prefix(attached.object.name.as_str())?.strip_prefix('n')?;
            let nsid =
                nsid.parse().ok().filter(|nsid: &u32| nsid.to_string() == name_number(name))?;
            Some((attached.object.name.clone(), nsid))
        });
        if let Some((controller, nsid)) = found.filter(|(_, nsid)| *nsid > 0) {
            self.name_namespace(&controller, nsid);
        }
    }

    /// Makes every device that is a namespace of an attached controller.
    pub(crate) fn find_namespaces(&mut self) {
        let waiting = self.devices.values().filter(|opened| opened.device.is_err());
        let found: Vec<_> = waiting
            .filter_map(|opened| {
                let (controller, nsid) = opened.object.kind.controller()?;
                let attached = self.controllers.get(controller)?;
                let device = attached.device(nsid, &opened.object.name);
                Some(Opened { device, ..Opened::clone(opened) })
            })
            .collect();
        for opened in found {
            self.devices.insert(opened.object.name.clone(), Arc::new(opened));
        }
    }

    /// The names of the devices that a controller's namespaces are, in the order of these.
    pub(crate) fn devices_of(&self, controller: &str) -> Vec<String> {
        let mut found: Vec<_> = self
            .devices
            .values()
            .filter_map(|opened| {
                let (owner, nsid) = opened.object.kind.controller()?;
                (owner == controller).then(|| (nsid, opened.object.name.clone()))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, name)| name).collect()
    }
}

/// The digits that a name ends with.
fn name_number(name: &str) -> &str {
    name.rsplit_once('n').map_or("", |(_, number)| number)
}

impl Plane {
    /// Attaches a controller that is about to be configured. Blocks.
    fn attach_now(
        &self,
        object: Controller,
        options: &NvmeOptions,
    ) -> Result<Attached, AttachError> {
        let slot = (self.slots.0)(&object.place);
        let options = options.driver(&object);
        let controller = self.node().attach(&object.name, slot, &options)?;
        Ok(Attached { object, controller: Ok(Arc::new(controller)) })
    }

    /// Attaches a controller that is about to be configured.
    ///
    /// # Errors
    /// Why it cannot be had, or used.
    pub async fn attach(
        self: &Arc<Self>,
        object: Controller,
        options: NvmeOptions,
    ) -> Result<Attached, AttachError> {
        let (plane, name) = (Arc::clone(self), object.name.clone());
        let task = tokio::task::spawn_blocking(move || plane.attach_now(object, &options));
        let problem = "attaching it was interrupted".to_owned();
        task.await.unwrap_or(Err(AttachError { controller: name, problem }))
    }

    /// Attaches the controllers of a state that is about to be served, all at the same time. With `lenient`, one that cannot be had is
    /// left out with a warning, to be tried again.
    pub(crate) fn begin_controllers(
        &self,
        state: &mut State,
        lenient: bool,
    ) -> Result<(), AttachError> {
        let wanted: Vec<_> = state.unattached().map(|it| it.object.clone()).collect();
        let options = state.nvme_options;
        let found: Vec<_> = std::thread::scope(|scope| {
            let attach = |object: Controller| {
                scope.spawn(move || (object.clone(), self.attach_now(object, &options)))
            };
            let threads: Vec<_> = wanted.into_iter().map(attach).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        for (object, found) in found {
            match found {
                Ok(attached) => state.put_attached(attached),
                Err(error) if lenient => {
                    tracing::warn!(
                        "{error}; its namespaces are not ready until it can be attached, which is tried again"
                    );
                    let controller = Err(error.problem);
                    state.put_attached(Attached { object, controller });
                }
                Err(error) => return Err(error),
            }
        }
        state.stack();
        Ok(())
    }

    /// Gives all controllers back: the reactors have ended. Blocks.
    pub fn detach_controllers(&self) {
        detach(&self.state(), &State::default());
    }
}

/// Gives controllers back that are not configured any more: shut down, so that the system finds them in order. Blocks.
pub(crate) fn detach(before: &State, after: &State) {
    std::thread::scope(|scope| {
        for (name, old) in &before.controllers {
            let Ok(controller) = &old.controller else { continue };
            let stays = after.controllers.get(name).and_then(|it| it.controller.as_ref().ok());
            if !stays.is_some_and(|it| Arc::ptr_eq(it, controller)) {
                scope.spawn(|| controller.detach());
            }
        }
    });
}
