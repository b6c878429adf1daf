//! Devices that stand on other devices: `bdev_delay_create` and `bdev_error_create`.
//!
//! A layer names its base. The base is claimed: by one layer alone, and not by a namespace or another layer beside it,
//! and it cannot be deleted before the layer. It need not be there yet, as a file need not: SPDK's own documents make
//! layers before what they stand on. A layer that has a base to stand on comes by itself, in the very change in which
//! the base does ([`State::stack`]): that takes no time and cannot fail. So layers are neither opened nor waited for.
//!
//! What a client asks of a device while it is in use (another size, other latencies) is done in place, when it is on
//! disk: whatever stands on it goes on standing there.

use std::any::Any;
use std::sync::Arc;

use block::BlockDevice;
use block::delay::{self, DelayDevice};
use block::injection::InjectionDevice;
use block::null::NullDevice;

use crate::objects::{Device, DeviceKind, Latencies};
use crate::state::{Opened, State};

impl DeviceKind {
    /// The device that it stands on.
    pub fn base(&self) -> Option<&str> {
        match self {
            Self::Delay { base, .. } | Self::Error { base } => Some(base),
            Self::Null { .. } | Self::Ram { .. } | Self::File { .. } | Self::Nvme { .. } => None,
        }
    }
}

impl Latencies {
    /// Whether the rare ones are not the shorter ones.
    pub(crate) fn are_in_order(self) -> bool {
        self.p99_read >= self.avg_read && self.p99_write >= self.avg_write
    }
}

impl From<Latencies> for delay::Latencies {
    fn from(latencies: Latencies) -> Self {
        let Latencies { avg_read, p99_read, avg_write, p99_write } = latencies;
        Self { average_read: avg_read, p99_read, average_write: avg_write, p99_write }
    }
}

/// The layer that this is configured as, if it is one.
fn layer(object: &Device, base: &Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
    let (name, base) = (object.name.as_str(), Arc::clone(base));
    match &object.kind {
        DeviceKind::Delay { latencies, .. } => {
            Some(Arc::new(DelayDevice::new(name, base, (*latencies).into())))
        }
        DeviceKind::Error { .. } => Some(Arc::new(InjectionDevice::new(name, base))),
        DeviceKind::Null { .. }
        | DeviceKind::Ram { .. }
        | DeviceKind::File { .. }
        | DeviceKind::Nvme { .. } => None,
    }
}

/// Makes a device that is in use what it is configured as.
pub(crate) fn alter(opened: &Opened) {
    let Ok(device) = &opened.device else { return };
    let device: &dyn Any = device.as_ref();
    match &opened.object.kind {
        DeviceKind::Null { size, .. } => {
            if let Some(null) = device.downcast_ref::<NullDevice>() {
                null.resize(*size);
            }
        }
        DeviceKind::Delay { latencies, .. } => {
            if let Some(slow) = device.downcast_ref::<DelayDevice>() {
                slow.set_latencies((*latencies).into());
            }
        }
        DeviceKind::Ram { .. }
        | DeviceKind::File { .. }
        | DeviceKind::Nvme { .. }
        | DeviceKind::Error { .. } => {}
    }
}

impl Opened {
    /// The device that can be made to fail, if it is one and is there.
    pub(crate) fn injection(&self) -> Option<&InjectionDevice> {
        let device: &dyn Any = self.device.as_ref().ok()?.as_ref();
        device.downcast_ref()
    }

    /// Whether it serves by the same device as another one.
    pub(crate) fn has_device_of(&self, other: &Self) -> bool {
        match (&self.device, &other.device) {
            (Ok(one), Ok(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl State {
    /// The layer that stands on the device of this name, there or not.
    pub fn layer_on(&self, base: &str) -> Option<&Arc<Opened>> {
        self.devices.values().find(|opened| opened.object.kind.base() == Some(base))
    }

    /// What a device stands on, and what that stands on, down to the ground or to what is not configured.
    pub fn below(&self, device: &Device) -> impl Iterator<Item = &Device> {
        let under = |device: &Device| Some(&self.devices.get(device.kind.base()?)?.object);
        // A circle is refused when it is made; of one that is there all the same, no more than there is.
        std::iter::successors(under(device), move |device| under(device)).take(self.devices.len())
    }

    /// What stands on the device of this name, and what stands on that.
    pub fn above(&self, name: &str) -> impl Iterator<Item = &Device> {
        let over = |name: &str| Some(&self.layer_on(name)?.object);
        std::iter::successors(over(name), move |device| over(&device.name)).take(self.devices.len())
    }

    /// Makes every device of a controller that is attached, and puts every layer on its base that can be.
    pub fn stack(&mut self) {
        self.find_namespaces();
        loop {
            let ready = self.devices.values().filter(|opened| opened.device.is_err());
            let found: Vec<_> = ready
                .filter_map(|opened| {
                    let base = self.devices.get(opened.object.kind.base()?)?;
                    let device = layer(&opened.object, base.device.as_ref().ok()?)?;
                    Some(Opened { device: Ok(device), ..Opened::clone(opened) })
                })
                .collect();
            if found.is_empty() {
                return;
            }
            for opened in found {
                self.devices.insert(opened.object.name.clone(), Arc::new(opened));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Objects;

    fn device(name: &str, kind: DeviceKind) -> (String, Device) {
        (
            name.to_owned(),
            Device {
                name: name.to_owned(),
                uuid: None,
                kind,
                limits: crate::objects::RateLimits::default(),
            },
        )
    }

    fn over(name: &str, base: &str) -> (String, Device) {
        device(name, DeviceKind::Error { base: base.to_owned() })
    }

    #[test]
    fn layers_come_when_their_ground_does_however_they_are_named() {
        let devices = [
            over("a", "c"),
            over("c", "b"),
            device("b", DeviceKind::Null { size: 4096, block_size: 512 }),
            // Nothing is under these.
            over("d", "none"),
            over("e", "f"),
            over("f", "e"),
        ];
        let devices = devices.into_iter().collect();
        let mut state = State::from(Objects { devices, ..Objects::default() });
        state.stack();
        let there = |state: &State| -> Vec<String> {
            let there = state.devices.values().filter(|opened| opened.device.is_ok());
            there.map(|opened| opened.object.name.clone()).collect()
        };
        assert!(there(&state).is_empty());
        assert_eq!(state.unopened().map(|it| it.object.name.as_str()).collect::<Vec<_>>(), ["b"]);
        let null = NullDevice::new("b", 4096, 512).unwrap();
        let opened = state.devices.get_mut("b").unwrap();
        *opened = Arc::new(Opened { device: Ok(Arc::new(null)), ..Opened::clone(opened) });
        state.stack();
        assert_eq!(there(&state), ["a", "b", "c"]);
        let names = |devices: Vec<&Device>| -> Vec<String> {
            devices.into_iter().map(|device| device.name.clone()).collect()
        };
        assert_eq!(names(state.below(&state.devices["a"].object).collect()), ["c", "b"]);
        assert_eq!(names(state.above("b").collect()), ["c", "a"]);
        assert_eq!(state.below(&state.devices["e"].object).count(), 6);
    }
}
