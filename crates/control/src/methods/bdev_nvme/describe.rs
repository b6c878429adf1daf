//! What controllers and their namespaces are, in SPDK's shapes.

use std::sync::Arc;
use std::sync::mpsc;

use nvme::NSID_ALL;
use nvme::admin::{Command, GetLogPage};
use nvme::identify::{MultiPathCapabilities, OptionalAdminCommands};
use nvme::log::{Health, LogPage};
use nvme_pcie::{Identification, NamespaceDevice, Phase};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zerocopy::FromBytes;

use super::command::carry_out;
use crate::controllers::Attached;
use crate::methods::reply::{Errno, internal};
use crate::methods::threads::thread_name;
use crate::methods::{Reply, parameters};
use crate::objects::Place;
use crate::plane::Plane;
use crate::state::{Opened, State};

/// Zero degrees Celsius in kelvin, as SPDK has it.
const FREEZING: i64 = 273;

impl Attached {
    /// Where it is, or is to be: its PCI address, if that is known.
    pub(super) fn address(&self) -> Option<String> {
        let found = self.controller.as_ref().ok().and_then(|controller| controller.address());
        found.or_else(|| match &self.object.place {
            Place::Pci(address) => Some(address.clone()),
            Place::Serial(_) => None,
        })
    }

    fn identification(&self) -> Option<Identification> {
        self.controller.as_ref().ok()?.identification()
    }

    /// Its state under SPDK's name, and why it is not in service.
    fn state(&self) -> (&'static str, Option<String>) {
        match self.controller.as_ref().map(|controller| controller.phase()) {
            Ok(Phase::Live) => ("enabled", None),
            Ok(Phase::Resetting | Phase::Attaching) => ("resetting", None),
            Ok(Phase::Gone(problem)) => ("failed", Some(problem)),
            Ok(Phase::Detached) => ("deleting", None),
            Err(waiting) => ("failed", Some(waiting.clone())),
        }
    }

    fn trid(&self) -> Value {
        match self.address() {
            Some(address) => json!({ "trtype": "PCIe", "traddr": address }),
            None => json!({ "trtype": "PCIe" }),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: Option<String>,
}

pub(in crate::methods) async fn get_controllers(plane: Arc<Plane>, params: Value) -> Reply {
    let Named { name } = parameters(params)?;
    let state = plane.state();
    match name {
        None => Ok(state.controllers.values().map(|attached| describe(attached)).collect()),
        Some(name) => match state.controllers.get(&name) {
            Some(attached) => Ok(Value::Array(vec![describe(attached)])),
            None => Err(Errno::Invalid.says(format_args!("Controller {name} does not exist"))),
        },
    }
}

fn describe(attached: &Attached) -> Value {
    let (state, waiting) = attached.state();
    let mut controller = json!({
        "state": state,
        "trid": attached.trid(),
        "cntlid": attached.identification().map_or(0, |it| it.identify.cntlid.get()),
        "host": { "nqn": "", "addr": "", "svcid": "", "no_shn_notification": false },
    });
    if let (Some(waiting), Some(controller)) = (waiting, controller.as_object_mut()) {
        controller.insert("tidegate_waiting".to_owned(), waiting.into());
    }
    json!({ "name": attached.object.name, "ctrlrs": [controller] })
}

/// A device that is a namespace, under `driver_specific`.
pub(in crate::methods) fn namespace(
    state: &State,
    opened: &Opened,
    (controller, nsid): (&str, u32),
) -> Value {
    let mut about = Map::new();
    let mut put = |name: &str, value: Value| about.insert(name.to_owned(), value);
    let attached = state.controllers.get(controller);
    if let Some(attached) = attached {
        if let Some(address) = attached.address() {
            put("pci_address", address.into());
        }
        put("trid", attached.trid());
    }
    let mut data = json!({ "id": nsid });
    if let Some(found) = attached.and_then(|attached| attached.identification()) {
        put("ctrlr_data", controller_data(&found));
        put("vs", json!({ "nvme_version": found.version.to_string() }));
        if has(&found, OptionalAdminCommands::SECURITY) {
            put("security", json!({ "opal": false }));
        }
        if let Some(data) = data.as_object_mut() {
            if has_paths(&found, MultiPathCapabilities::ANA) {
                data.insert("ana_state".to_owned(), "optimized".into());
            }
            let shareable = opened.namespace().is_some_and(NamespaceDevice::is_shareable);
            data.insert("can_share".to_owned(), shareable.into());
        }
    }
    put("ns_data", data);
    json!({ "nvme": [about], "mp_policy": "active_passive" })
}

fn has(found: &Identification, command: OptionalAdminCommands) -> bool {
    OptionalAdminCommands::from_bits_truncate(found.identify.oacs.get()).contains(command)
}

fn has_paths(found: &Identification, capability: MultiPathCapabilities) -> bool {
    MultiPathCapabilities::from_bits_truncate(found.identify.cmic).contains(capability)
}

fn controller_data(found: &Identification) -> Value {
    let Identification { model, serial, firmware, identify, .. } = found;
    let mut data = json!({
        "cntlid": identify.cntlid.get(),
        "vendor_id": format!("0x{:04x}", identify.vid.get()),
        "model_number": model,
        "serial_number": serial,
        "firmware_revision": firmware,
        "oacs": {
            "security": u32::from(has(found, OptionalAdminCommands::SECURITY)),
            "format": u32::from(has(found, OptionalAdminCommands::FORMAT)),
            "firmware": u32::from(has(found, OptionalAdminCommands::FIRMWARE)),
            "ns_manage": u32::from(has(found, OptionalAdminCommands::NAMESPACE_MANAGEMENT)),
        },
        "multi_ctrlr": has_paths(found, MultiPathCapabilities::CONTROLLERS),
        "ana_reporting": has_paths(found, MultiPathCapabilities::ANA),
    });
    let name = identify.subnqn.split(|byte| *byte == 0).next().unwrap_or_default();
    if let (false, Some(data)) = (name.is_empty(), data.as_object_mut()) {
        data.insert("subnqn".to_owned(), String::from_utf8_lossy(name).into());
    }
    data
}

/// Every reactor has a path to each namespace that hosts or other devices are served by.
pub(in crate::methods) async fn get_io_paths(plane: Arc<Plane>, params: Value) -> Reply {
    let Named { name } = parameters(params)?;
    let state = plane.state();
    let used = state.used_devices();
    let wanted =
        |device: &str| used.contains(device) && name.as_ref().is_none_or(|name| name == device);
    let paths: Value = state
        .devices
        .values()
        .filter(|opened| wanted(&opened.object.name))
        .filter_map(|opened| {
            let (controller, _) = opened.object.kind.controller()?;
            let attached = state.controllers.get(controller)?;
            let found = attached.identification();
            let live = attached.state().0 == "enabled";
            Some(json!({
                "bdev_name": opened.object.name,
                "cntlid": found.map_or(0, |it| it.identify.cntlid.get()),
                "current": live,
                "connected": live,
                "accessible": opened.namespace().is_some_and(|it| !it.is_gone()),
                "transport": attached.trid(),
            }))
        })
        .collect();
    let groups: Value = (0..plane.node().reactors().len())
        .map(|reactor| json!({ "thread": thread_name(reactor), "io_paths": paths }))
        .collect();
    Ok(json!({ "poll_groups": groups }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthOf {
    name: String,
}

/// Asked of the controller now.
pub(in crate::methods) async fn get_controller_health_info(
    plane: Arc<Plane>,
    params: Value,
) -> Reply {
    let HealthOf { name } = parameters(params)?;
    let state = plane.state();
    let attached = state.controllers.get(&name);
    let attached = attached.ok_or_else(|| internal(format_args!("Device not found: {name}")))?;
    let failed = |problem: &str| internal(format_args!("Internal error.: {problem}"));
    let controller = attached.controller.clone().map_err(|waiting| failed(&waiting))?;
    let len = size_of::<Health>();
    let bytes = u64::try_from(len).unwrap_or(u64::MAX);
    let read = Command::GetLogPage(GetLogPage::new(LogPage::Health, 0, bytes)).to_sqe(NSID_ALL);
    let (done, told) = mpsc::channel();
    controller
        .admin(read, len, Vec::new(), None, done)
        .map_err(|status| failed(&status.to_string()))?;
    let answer = carry_out(told).await.map_err(|error| failed(&error.to_string()))?;
    let status = answer.completion.status();
    if !status.is_success() {
        return Err(failed(&status.to_string()));
    }
    let health =
        Health::read_from_bytes(&answer.data).map_err(|_| failed("a log page too short"))?;
    Ok(describe_health(attached, &health))
}

fn celsius(kelvin: u16) -> i64 {
    i64::from(kelvin) - FREEZING
}

fn describe_health(attached: &Attached, health: &Health) -> Value {
    let found = attached.identification();
    let said = |read: fn(&Identification) -> &String| found.as_ref().map(read);
    // JSON numbers of clients have 64 bits.
    let wide = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    let sensors = health.temperature_sensors.iter().map(|kelvin| kelvin.get());
    let sensors: Vec<_> = sensors.filter(|kelvin| *kelvin != 0).map(celsius).collect();
    let mut about = json!({
        "model_number": said(|it| &it.model),
        "serial_number": said(|it| &it.serial),
        "firmware_revision": said(|it| &it.firmware),
        "traddr": attached.address(),
        "critical_warning": health.critical_warning,
        "temperature_celsius": celsius(health.composite_temperature.get()),
        "available_spare_percentage": health.available_spare,
        "available_spare_threshold_percentage": health.available_spare_threshold,
        "percentage_used": health.percentage_used,
        "data_units_read": wide(health.data_units_read.get()),
        "data_units_written": wide(health.data_units_written.get()),
        "host_read_commands": wide(health.host_read_commands.get()),
        "host_write_commands": wide(health.host_write_commands.get()),
        "controller_busy_time": wide(health.controller_busy_time.get()),
        "power_cycles": wide(health.power_cycles.get()),
        "power_on_hours": wide(health.power_on_hours.get()),
        "unsafe_shutdowns": wide(health.unsafe_shutdowns.get()),
        "media_errors": wide(health.media_errors.get()),
        "num_err_log_entries": wide(health.error_log_entries.get()),
        "warning_temperature_time_minutes": health.warning_temperature_time.get(),
        "critical_composite_temperature_time_minutes": health.critical_temperature_time.get(),
    });
    // SPDK writes the same key once for each sensor, of which readers of JSON take the last.
    if let (Some(last), Some(about)) = (sensors.last(), about.as_object_mut()) {
        about.insert("temperature_sensor_celsius".to_owned(), (*last).into());
        about.insert("tidegate_temperature_sensors_celsius".to_owned(), sensors.into());
    }
    about
}
