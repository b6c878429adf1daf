//! NVMe controllers whose namespaces are devices here: what is configured of them, and what is asked of them.
//!
//! Local ones, by their PCI address or serial number. What SPDK's clients can say of any controller is taken for these too: what has a meaning only over
//! a fabric means nothing, as in SPDK, and what somebody would rely on that is not there (keys, protection information, a second path) is refused by name.
//! Remote ones have their place in [`Attach::place`].

mod command;
mod describe;
mod firmware;

use nvme_pcie::pci;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(super) use self::command::{reset_controller, send_cmd};
pub(super) use self::describe::{
    get_controller_health_info, get_controllers, get_io_paths, namespace,
};
pub(super) use self::firmware::apply_firmware;
use super::edit::Edit;
use super::reply::{Errno, internal, invalid};
use super::{Reply, bdev, parameters};
use crate::controllers::Attached;
use crate::jsonrpc::RpcError;
use crate::objects::{Controller, LossTimeouts, NvmeOptions, Place, TimeoutAction};
use crate::state::State;

/// I/O queues that a controller can have.
const QUEUES_MOST: u32 = 1 << 16;

/// Names that SPDK's clients know families of addresses by.
const FAMILIES: [&str; 5] = ["IPv4", "IPv6", "IB", "FC", "intra_host"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attach {
    name: String,
    trtype: String,
    /// Of a local one: its PCI address.
    traddr: Option<String>,
    /// Ours: the serial number of a local one, in the place of its address.
    tidegate_serial: Option<String>,
    num_io_queues: Option<u32>,
    #[serde(default)]
    multipath: Paths,
    max_bdevs: Option<u32>,
    ctrlr_loss_timeout_sec: Option<i32>,
    reconnect_delay_sec: Option<u32>,
    fast_io_fail_timeout_sec: Option<u32>,
    adrfam: Option<String>,
    // What a client would rely on.
    #[serde(default)]
    prchk_reftag: bool,
    #[serde(default)]
    prchk_guard: bool,
    #[serde(default)]
    allow_unrecognized_csi: bool,
    psk: Option<String>,
    dhchap_key: Option<String>,
    dhchap_ctrlr_key: Option<String>,
    // What has no meaning for a local one, or with one path.
    #[serde(rename = "trsvcid")]
    _trsvcid: Option<String>,
    #[serde(rename = "priority")]
    _priority: Option<String>,
    #[serde(rename = "subnqn")]
    _subnqn: Option<String>,
    #[serde(rename = "hostnqn")]
    _hostnqn: Option<String>,
    #[serde(rename = "hostaddr")]
    _hostaddr: Option<String>,
    #[serde(rename = "hostsvcid")]
    _hostsvcid: Option<String>,
    #[serde(default, rename = "hdgst")]
    _hdgst: bool,
    #[serde(default, rename = "ddgst")]
    _ddgst: bool,
    #[serde(rename = "fabrics_connect_timeout_us")]
    _fabrics_connect_timeout_us: Option<u64>,
    #[serde(rename = "multipath_opts")]
    _multipath_opts: Option<PathOptions>,
}

/// What a second path to a controller would be.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Paths {
    Disable,
    Failover,
    #[default]
    Multipath,
}

/// How I/O would be spread over paths.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathOptions {
    #[serde(rename = "policy")]
    _policy: Option<Policy>,
    #[serde(rename = "selector")]
    _selector: Option<Selector>,
    #[serde(rename = "min_io")]
    _min_io: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Policy {
    ActivePassive,
    ActiveActive,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Selector {
    RoundRobin,
    QueueDepth,
}

impl Attach {
    fn place(&self) -> Result<Place, RpcError> {
        match self.trtype.to_ascii_uppercase().as_str() {
            "PCIE" => self.local_place(),
            "TCP" | "RDMA" => {
                let trtype = &self.trtype;
                Err(invalid(format_args!("trtype: {trtype} is not supported: only PCIe is")))
            }
            _ => Err(Errno::Invalid.says(format_args!("Failed to parse trtype: {}", self.trtype))),
        }
    }

    fn local_place(&self) -> Result<Place, RpcError> {
        match (&self.traddr, &self.tidegate_serial) {
            (Some(address), None) => Ok(Place::Pci(pci_address(address)?.to_string())),
            (None, Some(serial)) if !serial.is_empty() => Ok(Place::Serial(serial.clone())),
            _ => Err(invalid("traddr: give the PCI address of the controller")),
        }
    }

    /// Refuses what is not there, or cannot be.
    fn check(&self) -> Result<(), RpcError> {
        let keys = [
            ("psk", &self.psk),
            ("dhchap_key", &self.dhchap_key),
            ("dhchap_ctrlr_key", &self.dhchap_ctrlr_key),
        ];
        if let Some((key, _)) = keys.iter().find(|(_, key)| key.is_some()) {
            return Err(invalid(format_args!("{key}: keys are not supported")));
        }
        let flags = [
            ("prchk_reftag", self.prchk_reftag),
            ("prchk_guard", self.prchk_guard),
            ("allow_unrecognized_csi", self.allow_unrecognized_csi),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, set)| *set) {
            return Err(invalid(format_args!("{flag} is not supported")));
        }
        check_family(self.adrfam.as_deref())?;
        if self.max_bdevs == Some(0) {
            return Err(Errno::Invalid.says("max_bdevs cannot be zero"));
        }
        if self.num_io_queues.is_some_and(|queues| !(1..=QUEUES_MOST).contains(&queues)) {
            return Err(Errno::Invalid
                .says(format_args!("num_io_queues out of bounds, min: 1 max: {QUEUES_MOST}")));
        }
        Ok(())
    }
}

fn check_family(adrfam: Option<&str>) -> Result<(), RpcError> {
    match adrfam {
        Some(adrfam) if !FAMILIES.iter().any(|family| family.eq_ignore_ascii_case(adrfam)) => {
            Err(Errno::Invalid.says(format_args!("Failed to parse adrfam: {adrfam}")))
        }
        _ => Ok(()),
    }
}

fn pci_address(text: &str) -> Result<pci::Address, RpcError> {
    text.parse().map_err(|error| invalid(format_args!("traddr: {error}")))
}

/// Attaches a controller; the names of the devices that its namespaces are.
pub(super) fn attach_controller(params: Value) -> Result<Edit, RpcError> {
    let wanted: Attach = parameters(params)?;
    bdev::check_name(&wanted.name)?;
    wanted.check()?;
    let place = wanted.place()?;
    Ok(Box::new(move |state| {
        refuse_twice(state, &wanted.name, &place, wanted.multipath)?;
        let own = state.nvme_options.loss;
        let loss = LossTimeouts {
            ctrlr_loss_timeout_sec: wanted
                .ctrlr_loss_timeout_sec
                .unwrap_or(own.ctrlr_loss_timeout_sec),
            reconnect_delay_sec: wanted.reconnect_delay_sec.unwrap_or(own.reconnect_delay_sec),
            fast_io_fail_timeout_sec: wanted
                .fast_io_fail_timeout_sec
                .unwrap_or(own.fast_io_fail_timeout_sec),
        };
        loss.check().map_err(|problem| Errno::Invalid.about(problem))?;
        let (name, place) = (wanted.name.clone(), place.clone());
        state.add_controller(Controller { name, place, io_queues: wanted.num_io_queues, loss });
        let devices = state.devices_of(&wanted.name);
        match wanted.max_bdevs.and_then(|most| usize::try_from(most).ok()) {
            Some(most) if devices.len() > most => {
                let count = devices.len();
                Err(Errno::Range.about(format_args!("max_bdevs: there are {count} namespaces")))
            }
            _ => Ok(devices.into()),
        }
    }))
}

fn refuse_twice(
    state: &State,
    name: &str,
    place: &Place,
    multipath: Paths,
) -> Result<(), RpcError> {
    if let Some(attached) = state.controllers.get(name) {
        let is_there = format!("A controller named {name} already exists");
        return Err(if multipath == Paths::Disable {
            Errno::Already.says(format_args!("{is_there} and multipath is disabled"))
        } else if attached.object.place == *place {
            Errno::Already.says(format_args!("{is_there} with the specified network path"))
        } else {
            Errno::Invalid.about(format_args!("{is_there}: a second path is not supported"))
        });
    }
    match state.controllers.values().find(|other| other.object.place == *place) {
        Some(other) => {
            let other = &other.object.name;
            Err(Errno::Exists.about(format_args!("controller {other} is attached there")))
        }
        None => Ok(()),
    }
}

/// A controller, or a path to it; there is one. What has no meaning for a local one is not looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detach {
    name: String,
    trtype: Option<String>,
    traddr: Option<String>,
    adrfam: Option<String>,
    #[serde(rename = "trsvcid")]
    _trsvcid: Option<String>,
    #[serde(rename = "subnqn")]
    _subnqn: Option<String>,
    #[serde(rename = "hostaddr")]
    _hostaddr: Option<String>,
    #[serde(rename = "hostsvcid")]
    _hostsvcid: Option<String>,
}

impl Detach {
    fn is_of(&self, attached: &Attached) -> Result<bool, RpcError> {
        let transport =
            self.trtype.as_ref().is_none_or(|trtype| trtype.eq_ignore_ascii_case("PCIe"));
        let address = self.traddr.as_deref().map(pci_address).transpose()?;
        let there = address
            .is_none_or(|address| attached.address().is_some_and(|it| it == address.to_string()));
        Ok(transport && there)
    }
}

/// Gives a controller back, and removes its devices and the namespaces over them.
pub(super) fn detach_controller(params: Value) -> Result<Edit, RpcError> {
    let wanted: Detach = parameters(params)?;
    check_family(wanted.adrfam.as_deref())?;
    Ok(Box::new(move |state| detach(state, &wanted)))
}

fn detach(state: &mut State, wanted: &Detach) -> Reply {
    let attached = find(state, &wanted.name)?;
    if !wanted.is_of(attached)? {
        return Err(Errno::NoAddress.about(format_args!("{} has no such path", wanted.name)));
    }
    for device in state.devices_of(&wanted.name) {
        bdev::remove(state, &device)?;
    }
    state.controllers.remove(&wanted.name);
    Ok(Value::Bool(true))
}

/// A controller that is configured.
fn find<'a>(state: &'a State, name: &str) -> Result<&'a Attached, RpcError> {
    let attached = state.controllers.get(name).ok_or_else(|| Errno::NoDevice.about(name))?;
    Ok(attached)
}

/// What SPDK's clients can set that means something here. The rest of what they send tunes what SPDK has: it is taken, whatever it is.
#[derive(Deserialize)]
struct SetOptions {
    action_on_timeout: Option<TimeoutAction>,
    timeout_us: Option<u64>,
    timeout_admin_us: Option<u64>,
    transport_retry_count: Option<u32>,
    bdev_retry_count: Option<i32>,
    io_queue_requests: Option<u32>,
    ctrlr_loss_timeout_sec: Option<i32>,
    reconnect_delay_sec: Option<u32>,
    fast_io_fail_timeout_sec: Option<u32>,
}

impl SetOptions {
    /// What is not set stays as it is.
    fn over(&self, now: &NvmeOptions) -> NvmeOptions {
        let NvmeOptions {
            action_on_timeout,
            timeout_us,
            timeout_admin_us,
            transport_retry_count,
            bdev_retry_count,
            io_queue_requests,
            loss,
        } = *now;
        NvmeOptions {
            action_on_timeout: self.action_on_timeout.unwrap_or(action_on_timeout),
            timeout_us: self.timeout_us.unwrap_or(timeout_us),
            timeout_admin_us: self.timeout_admin_us.unwrap_or(timeout_admin_us),
            transport_retry_count: self.transport_retry_count.unwrap_or(transport_retry_count),
            bdev_retry_count: self.bdev_retry_count.unwrap_or(bdev_retry_count),
            io_queue_requests: self.io_queue_requests.unwrap_or(io_queue_requests),
            loss: LossTimeouts {
                ctrlr_loss_timeout_sec: self
                    .ctrlr_loss_timeout_sec
                    .unwrap_or(loss.ctrlr_loss_timeout_sec),
                reconnect_delay_sec: self.reconnect_delay_sec.unwrap_or(loss.reconnect_delay_sec),
                fast_io_fail_timeout_sec: self
                    .fast_io_fail_timeout_sec
                    .unwrap_or(loss.fast_io_fail_timeout_sec),
            },
        }
    }
}

/// Sets how controllers are driven that are attached later. As in SPDK, none may be attached now.
pub(super) fn set_options(params: Value) -> Result<Edit, RpcError> {
    let wanted: SetOptions = parameters(params)?;
    Ok(Box::new(move |state| {
        let options = wanted.over(&state.nvme_options);
        options.check().map_err(|problem| Errno::Invalid.about(problem))?;
        if !state.controllers.is_empty() {
            return Err(Errno::NotPermitted
                .says("RPC not permitted with nvme controllers already attached"));
        }
        state.nvme_options = options;
        Ok(Value::Bool(true))
    }))
}

/// The parameters of the call that makes options of these, if that is to be called.
pub(super) fn options_parameters(options: &NvmeOptions) -> Result<Option<Value>, RpcError> {
    let changed = *options != NvmeOptions::default();
    changed.then(|| serde_json::to_value(options).map_err(internal)).transpose()
}

/// Those of the call that attaches a controller, under these options.
pub(super) fn attach_parameters(object: &Controller, options: &NvmeOptions) -> Value {
    let Controller { name, place, io_queues, loss } = object;
    let mut params = Map::new();
    params.insert("name".to_owned(), json!(name));
    params.insert("trtype".to_owned(), json!("PCIe"));
    match place {
        Place::Pci(address) => params.insert("traddr".to_owned(), json!(address)),
        Place::Serial(serial) => params.insert("tidegate_serial".to_owned(), json!(serial)),
    };
    if let Some(queues) = io_queues {
        params.insert("num_io_queues".to_owned(), json!(queues));
    }
    if *loss != options.loss {
        for (name, value) in [
            ("ctrlr_loss_timeout_sec", json!(loss.ctrlr_loss_timeout_sec)),
            ("reconnect_delay_sec", json!(loss.reconnect_delay_sec)),
            ("fast_io_fail_timeout_sec", json!(loss.fast_io_fail_timeout_sec)),
        ] {
            params.insert(name.to_owned(), value);
        }
    }
    params.into()
}
