//! NVMe controllers whose namespaces are devices here.

use nvme_pcie::pci;
use serde::Deserialize;
use serde_json::{Value, json};

use super::edit::Edit;
use super::reply::{Errno, invalid};
use super::{Reply, bdev, parameters};
use crate::jsonrpc::RpcError;
use crate::objects::{Controller, Place};
use crate::state::State;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attach {
    name: String,
    trtype: String,
    /// Of a local one: its PCI address.
    traddr: Option<String>,
    /// Ours: the serial number of a local one, in the place of its address.
    tidegate_serial: Option<String>,
}

impl Attach {
    fn place(&self) -> Result<Place, RpcError> {
        if !self.trtype.eq_ignore_ascii_case("PCIe") {
            return Err(invalid(format_args!(
                "trtype: {} is not supported: only PCIe is",
                self.trtype
            )));
        }
        match (&self.traddr, &self.tidegate_serial) {
            (Some(address), None) => {
                let address: pci::Address =
                    address.parse().map_err(|error| invalid(format_args!("traddr: {error}")))?;
                Ok(Place::Pci(address.to_string()))
            }
            (None, Some(serial)) if !serial.is_empty() => Ok(Place::Serial(serial.clone())),
            _ => Err(invalid("traddr: give the PCI address of the controller")),
        }
    }
}

/// Attaches a controller; the names of the devices that its namespaces are.
pub(super) fn attach_controller(params: Value) -> Result<Edit, RpcError> {
    let wanted: Attach = parameters(params)?;
    bdev::check_name(&wanted.name)?;
    let object = Controller { place: wanted.place()?, name: wanted.name };
    Ok(Box::new(move |state| {
        refuse_twice(state, &object)?;
        state.add_controller(object.clone());
        Ok(state.devices_of(&object.name).into())
    }))
}

fn refuse_twice(state: &State, object: &Controller) -> Result<(), RpcError> {
    let name = &object.name;
    if state.controllers.contains_key(name) {
        return Err(Errno::Exists.about(format_args!("there is a controller {name}")));
    }
    match state.controllers.values().find(|other| other.object.place == object.place) {
        Some(other) => {
            let other = &other.object.name;
            Err(Errno::Exists.about(format_args!("controller {other} is attached there")))
        }
        None => Ok(()),
    }
}

#[derive(Deserialize)]
struct Detach {
    name: String,
}

/// Gives a controller back, and removes its devices and the namespaces over them.
pub(super) fn detach_controller(params: Value) -> Result<Edit, RpcError> {
    let Detach { name } = parameters(params)?;
    Ok(Box::new(move |state| detach(state, &name)))
}

fn detach(state: &mut State, name: &str) -> Reply {
    if !state.controllers.contains_key(name) {
        return Err(Errno::NoDevice.about(name));
    }
    for device in state.devices_of(name) {
        bdev::remove(state, &device)?;
    }
    state.controllers.remove(name);
    Ok(Value::Bool(true))
}

/// The call that attaches a controller.
pub(super) fn parameters_of(object: &Controller) -> Value {
    match &object.place {
        Place::Pci(address) => json!({ "name": object.name, "trtype": "PCIe", "traddr": address }),
        Place::Serial(serial) => {
            json!({ "name": object.name, "trtype": "PCIe", "tidegate_serial": serial })
        }
    }
}
