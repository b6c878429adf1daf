//! Handing a controller to `vfio-pci`, and back to the kernel.
//!
//! [`System::bind`] claims every namespace, looks at all of it once more, and lets the claims go only after the kernel's driver has let the
//! controller go. [`System::unbind`] holds the controller's group meanwhile: one who had it would keep the kernel waiting for as long as he
//! likes. Whatever fails on the way, the controller goes back to the driver that it was with.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::{Address, Content, Controller, KERNEL_DRIVER, Status, System, Usage, Use, VFIO_DRIVER};

/// How often a device that is open is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What became of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Where it is.
    pub address: Address,
    /// The driver it was with.
    pub from: Option<String>,
    /// The driver it is with: the same if nothing had to be done.
    pub to: String,
    /// Its IOMMU group.
    pub group: Option<u32>,
}

/// Why a controller stays with the driver that has it. Each is one line: what, which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is none.
    #[error("{0} is no NVMe controller: `tidegate devices` lists those there are")]
    NoController(Address),
    /// Nothing would keep it from the memory of others.
    #[error(
        "{0} has no IOMMU: switch it on in the firmware (VT-d, AMD-Vi) and start the kernel with intel_iommu=on \
         (AMD's needs no parameter)"
    )]
    NoIommu(Address),
    /// It cannot be had alone.
    #[error(
        "{address} shares IOMMU group {group} with {others}: put the controller into a slot with a group of its own, or switch ACS on in the firmware"
    )]
    Shared {
        /// The controller.
        address: Address,
        /// The group.
        group: u32,
        /// Whom with.
        others: String,
    },
    /// The kernel's driver is busy with it.
    #[error("{address} is {state}: wait until it is live, or reset it")]
    NotLive {
        /// The controller.
        address: Address,
        /// Its state.
        state: String,
    },
    /// What it cannot be taken from.
    #[error("{address} is in use: {uses}: {remedy}")]
    InUse {
        /// The controller.
        address: Address,
        /// How.
        uses: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There is something on it.
    #[error(
        "{address} is not blank: {contents}: clear it (blkdiscard or wipefs -a), or say --i-know if nobody needs that any more"
    )]
    NotBlank {
        /// The controller.
        address: Address,
        /// What, on which namespace.
        contents: String,
    },
    /// There may be something on it.
    #[error(
        "nobody knows what is on {address}: {why}: {remedy}, or say --i-know if nobody needs it"
    )]
    Unknown {
        /// The controller.
        address: Address,
        /// Why.
        why: String,
        /// How to find out.
        remedy: String,
    },
    /// A namespace could not be claimed, or usage not be asked for.
    #[error("{address}: cannot tell whether it is in use: {source}: {}", remedy(.source))]
    Untold {
        /// The controller.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The driver is not there.
    #[error(
        "there is no driver vfio-pci: {source}: load it with `modprobe vfio-pci`, or have a kernel that has it"
    )]
    NoDriver {
        /// Why it could not be loaded.
        source: io::Error,
    },
    /// A driver has it that is not for us to judge.
    #[error(
        "{address} is with {driver}, not with vfio-pci: take it from that driver as it was given to it"
    )]
    Foreign {
        /// The controller.
        address: Address,
        /// The driver.
        driver: String,
    },
    /// The system refused, or did something else.
    #[error("{address} is not handed to {wanted}: {problem}; it is with {now} now: {remedy}")]
    Failed {
        /// The controller.
        address: Address,
        /// The driver that was to have it.
        wanted: &'static str,
        /// What happened.
        problem: String,
        /// The driver that has it.
        now: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// What to do about something that could not be opened.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run it as root",
        io::ErrorKind::TimedOut => "see what the kernel's log says of it",
        _ => "see that /dev, /proc and /sys are those of the machine",
    }
}

impl System {
    /// Hands a controller to `vfio-pci`, unless it is in use, or holds something and `i_know` is not said.
    ///
    /// # Errors
    /// Why not. The controller is with the driver it was with, if that can be.
    pub fn bind(&self, address: Address, i_know: bool) -> Result<Moved, BindError> {
        let controller = self.controller(address).ok_or(BindError::NoController(address))?;
        if controller.is_with(VFIO_DRIVER) {
            return Ok(controller.moved(VFIO_DRIVER));
        }
        if !self.has_vfio() {
            // For nothing that is refused, nothing is loaded.
            self.check(&controller, i_know)?;
            self.load_module(VFIO_DRIVER).map_err(|source| BindError::NoDriver { source })?;
            // The driver asks for it where a program cannot; without it there is another way.
            let _ = self.load_module("vfio_iommu_type1");
        }
        let status = self.check(&controller, i_know)?;
        self.hand_over(&controller, status).map_err(|(problem, is_stuck)| {
            if !is_stuck {
                self.put_back(&controller);
            }
            self.failed(address, VFIO_DRIVER, problem)
        })?;
        Ok(controller.moved(VFIO_DRIVER))
    }

    /// Whether a controller could be bound now.
    ///
    /// # Errors
    /// Why not.
    pub fn may_bind(&self, address: Address, i_know: bool) -> Result<(), BindError> {
        let controller = self.controller(address).ok_or(BindError::NoController(address))?;
        if controller.is_with(VFIO_DRIVER) {
            return Ok(());
        }
        self.check(&controller, i_know).map(drop)
    }

    /// Gives a controller back to the kernel, unless a program has it.
    ///
    /// # Errors
    /// Why not.
    pub fn unbind(&self, address: Address) -> Result<Moved, BindError> {
        let controller = self.controller(address).ok_or(BindError::NoController(address))?;
        let held = match controller.driver.as_deref() {
            Some(VFIO_DRIVER) => self.hold_group(&controller)?,
            Some(KERNEL_DRIVER) if controller.driver_override.is_none() => {
                return Ok(controller.moved(KERNEL_DRIVER));
            }
            None | Some(KERNEL_DRIVER) => None,
            Some(driver) => {
                return Err(BindError::Foreign { address, driver: driver.to_owned() });
            }
        };
        let result = self.take_back(&controller);
        drop(held);
        result.map_err(|(problem, _)| self.failed(address, KERNEL_DRIVER, problem))?;
        Ok(controller.moved(KERNEL_DRIVER))
    }

    fn has_vfio(&self) -> bool {
        self.path("/sys/bus/pci/drivers").join(VFIO_DRIVER).exists()
    }

    /// Everything that speaks against taking a controller. If nothing does, its namespaces are claimed as long as the status lives.
    fn check(&self, controller: &Controller, i_know: bool) -> Result<Status, BindError> {
        let address = controller.address;
        let Some(group) = controller.group else { return Err(BindError::NoIommu(address)) };
        if !controller.companions.is_empty() {
            let others = list(controller.companions.iter().map(|other| match &other.driver {
                Some(driver) => format!("{} ({driver})", other.address),
                None => other.address.clone(),
            }));
            return Err(BindError::Shared { address, group, others });
        }
        if !controller.is_live() {
            let state = controller.state.clone().unwrap_or_default();
            return Err(BindError::NotLive { address, state });
        }
        let mut status = self.last_look(controller)?;
        if !status.uses.is_empty() {
            return Err(in_use(address, &status.uses));
        }
        if let Some((node, error)) = status.unclaimed.pop() {
            let source = io::Error::new(error.kind(), format!("{node}: {error}"));
            return Err(BindError::Untold { address, source });
        }
        if !i_know {
            check_content(controller, &status)?;
        }
        Ok(status)
    }

    /// Claims and looks at all namespaces; again, for a while, as long as all that speaks against it is that a process has something open.
    fn last_look(&self, controller: &Controller) -> Result<Status, BindError> {
        let address = controller.address;
        let give_up = Instant::now() + self.passing;
        loop {
            let usage =
                Usage::read(self).map_err(|source| BindError::Untold { address, source })?;
            let status = self.look(&usage, controller, true);
            let may_pass = |found: &Use| matches!(found, Use::Open { .. });
            if status.uses.is_empty()
                || !status.uses.iter().all(may_pass)
                || Instant::now() >= give_up
            {
                return Ok(status);
            }
            drop(status);
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Lets `vfio-pci` have a controller whose namespaces are claimed.
    fn hand_over(&self, controller: &Controller, status: Status) -> Result<(), Failure> {
        let address = controller.address;
        self.write(self.function(address).join("driver_override"), VFIO_DRIVER)?;
        self.release(address)?;
        drop(status);
        self.probe(address)?;
        match self.driver(address) {
            Some(driver) if driver == VFIO_DRIVER => Ok(()),
            _ => Err((format!("{VFIO_DRIVER} did not take it"), false)),
        }
    }

    /// Has the kernel take a controller that nobody has open.
    fn take_back(&self, controller: &Controller) -> Result<(), Failure> {
        let address = controller.address;
        self.write(self.function(address).join("driver_override"), "\n")?;
        if controller.is_with(VFIO_DRIVER) {
            self.release(address)?;
        }
        if !controller.is_with(KERNEL_DRIVER) {
            self.probe(address)?;
        }
        match self.driver(address) {
            Some(driver) if driver == KERNEL_DRIVER => Ok(()),
            _ => Err((format!("{KERNEL_DRIVER} did not take it"), false)),
        }
    }

    /// Gives a controller back to the driver that it was with. Every step is tried, whatever became of the one before: what came of them all is
    /// looked up afterwards.
    fn put_back(&self, controller: &Controller) {
        let address = controller.address;
        let only = controller.driver_override.as_deref().unwrap_or("\n");
        let _ = self.write(self.function(address).join("driver_override"), only);
        if self.driver(address) == controller.driver {
            return;
        }
        let _ = self.release(address);
        if let Some(driver) = &controller.driver {
            let bind = self.path("/sys/bus/pci/drivers").join(driver).join("bind");
            let _ = self.write(bind, &address.to_string());
        }
    }

    /// Takes a function from the driver that has it, if one does.
    fn release(&self, address: Address) -> Result<(), Failure> {
        if self.driver(address).is_none() {
            return Ok(());
        }
        let unbind = self.function(address).join("driver/unbind");
        self.write(unbind, &address.to_string())
    }

    /// Has the driver take a function that may have it.
    fn probe(&self, address: Address) -> Result<(), Failure> {
        self.write(self.path("/sys/bus/pci/drivers_probe"), &address.to_string())
    }

    fn write(&self, attribute: PathBuf, value: &str) -> Result<(), Failure> {
        let path = attribute.display().to_string();
        self.set(attribute, value.to_owned()).map_err(|error| {
            let is_stuck = error.kind() == io::ErrorKind::TimedOut;
            (format!("cannot write {path}: {error}"), is_stuck)
        })
    }

    /// Holds the group of a controller, so that no program gets it; `None` where groups have no files.
    fn hold_group(&self, controller: &Controller) -> Result<Option<std::fs::File>, BindError> {
        let address = controller.address;
        let usage = Usage::read(self).map_err(|source| BindError::Untold { address, source })?;
        let uses = usage.of(self, controller);
        if !uses.is_empty() {
            return Err(in_use(address, &uses));
        }
        let Some(group) = controller.group else { return Ok(None) };
        let device = format!("vfio/{group}");
        match self.claim(self.path("/dev").join(&device)) {
            Ok(held) => Ok(Some(held)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(in_use(address, &[Use::Claimed { device }]))
            }
            // A kernel that offers devices one by one only.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BindError::Untold { address, source }),
        }
    }

    fn failed(&self, address: Address, wanted: &'static str, problem: String) -> BindError {
        let may_write = rustix::process::geteuid().is_root();
        let now = self.driver(address).unwrap_or_else(|| "no driver".to_owned());
        let remedy = if !may_write {
            "run it as root"
        } else if wanted == KERNEL_DRIVER && !self.path("/sys/bus/pci/drivers/nvme").exists() {
            "load the driver with `modprobe nvme`"
        } else {
            "see what the kernel's log (dmesg) says of it"
        };
        BindError::Failed { address, wanted, problem, now, remedy }
    }
}

/// What went wrong, and whether the kernel is still at it, so that nothing more can be done.
type Failure = (String, bool);

impl Controller {
    fn is_with(&self, driver: &str) -> bool {
        self.driver.as_deref() == Some(driver)
    }

    fn moved(&self, to: &str) -> Moved {
        let (address, group) = (self.address, self.group);
        Moved { address, from: self.driver.clone(), to: to.to_owned(), group }
    }
}

fn in_use(address: Address, uses: &[Use]) -> BindError {
    let remedy = match uses.first() {
        Some(Use::Mounted { .. }) => "unmount it first",
        Some(Use::Swap { .. }) => "take it out of swap first (swapoff)",
        Some(Use::Held { .. }) => "take apart what stands on it first",
        Some(Use::Open { .. }) => "end that process first",
        Some(Use::Claimed { .. }) | None => "end what uses it first",
    };
    BindError::InUse { address, uses: list(uses), remedy }
}

/// What a controller holds, if that speaks against taking it.
fn check_content(controller: &Controller, status: &Status) -> Result<(), BindError> {
    let address = controller.address;
    let unknown = |why: String, remedy: String| Err(BindError::Unknown { address, why, remedy });
    match &controller.driver {
        None => {
            let remedy =
                format!("give it to the kernel first (`tidegate devices unbind {address}`)");
            return unknown("no driver has it".to_owned(), remedy);
        }
        Some(driver) if driver != KERNEL_DRIVER => {
            return unknown(
                format!("it is with {driver}"),
                "give it to the kernel first".to_owned(),
            );
        }
        Some(_) if controller.namespaces.is_empty() => {
            let remedy = "wait until the kernel has found some".to_owned();
            return unknown("it shows no namespaces".to_owned(), remedy);
        }
        Some(_) => {}
    }
    let mut contents = Vec::new();
    for (namespace, content) in controller.namespaces.iter().zip(&status.contents) {
        match content {
            Content::Marks(marks) if marks.is_empty() => {}
            Content::Marks(marks) => {
                contents.push(format!("{} holds {}", namespace.name, marks.join(", ")));
            }
            Content::Unknown(why) => {
                let remedy = "see that it can be read".to_owned();
                return unknown(format!("{}: {why}", namespace.name), remedy);
            }
        }
    }
    if contents.is_empty() {
        Ok(())
    } else {
        Err(BindError::NotBlank { address, contents: list(contents) })
    }
}

/// Some of them, in one line.
fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests;
