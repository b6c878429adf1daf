//! Block devices.

use std::path::PathBuf;
use std::sync::Arc;

use block::passthrough::PassthroughDevice;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::edit::Edit;
use super::faults;
use super::reply::{Errno, internal, invalid};
use super::{Reply, bdev_nvme, parameters, qos};
use crate::jsonrpc::RpcError;
use crate::objects::{Device, DeviceKind, Direct, FileMethod, RateLimits};
use crate::plane::Plane;
use crate::state::{Opened, State};

/// Bytes in a device's name, as in a file's.
const LONGEST_NAME: usize = 255;

/// Adds a device; its name.
pub(super) fn create(device: Device) -> Result<Edit, RpcError> {
    check_name(&device.name)?;
    Ok(Box::new(move |state| add(state, device.clone())))
}

fn add(state: &mut State, device: Device) -> Reply {
    if state.is_namespace_by_itself(&device) {
        return Ok(Value::String(device.name));
    }
    refuse_twice(state, &device)?;
    faults::refuse_claimed(state, &device)?;
    let name = device.name.clone();
    state.devices.insert(name.clone(), Arc::new(Opened::not_yet(device)));
    Ok(Value::String(name))
}

/// A name stands in lists, logs and keys of the store.
pub(super) fn check_name(name: &str) -> Result<(), RpcError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > LONGEST_NAME {
        "is longer than 255 bytes"
    } else if name.contains(char::is_control) {
        "has a control character"
    } else {
        return Ok(());
    };
    Err(invalid(format_args!("name {problem}")))
}

fn refuse_twice(state: &State, device: &Device) -> Result<(), RpcError> {
    if state.devices.contains_key(&device.name) {
        return Err(Errno::Exists.about(format_args!("there is a bdev {}", device.name)));
    }
    let Some(uuid) = device.uuid else { return Ok(()) };
    match state.devices.values().find(|other| other.object.uuid == Some(uuid)) {
        Some(other) => {
            let other = &other.object.name;
            Err(Errno::Exists.about(format_args!("bdev {other} has UUID {uuid}")))
        }
        None => Ok(()),
    }
}

/// Removes a device, and the namespaces over it: hosts see them go. Not one that a layer stands on: SPDK takes the layer
/// away with it, and what a host has below it then is not what its operator set up.
pub(super) fn delete(params: Value, fits: fn(&DeviceKind) -> bool) -> Result<Edit, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Delete {
        name: String,
    }
    let Delete { name } = parameters(params)?;
    Ok(Box::new(move |state| {
        let found = state.device(&name).filter(|opened| fits(&opened.object.kind)).cloned();
        let opened = found.ok_or_else(|| Errno::NoDevice.about(&name))?;
        remove(state, &opened.object.name)
    }))
}

/// Removes a device that is there, and the namespaces over it.
pub(super) fn remove(state: &mut State, name: &str) -> Reply {
    if let Some(layer) = state.layer_on(name) {
        let layer = &layer.object.name;
        return Err(Errno::Busy.about(format_args!("{layer} stands on {name}: delete that first")));
    }
    for (nqn, nsid) in state.users_of(name) {
        if let Some(subsystem) = state.subsystems.get_mut(&nqn) {
            Arc::make_mut(subsystem).namespaces.remove(&nsid);
        }
    }
    state.devices.remove(name);
    Ok(Value::Bool(true))
}

/// Asked for only by clients that know what they would do with it; refused by name if it is not the default.
fn refuse_metadata(md_size: u32, dif_type: i32) -> Result<(), RpcError> {
    if md_size == 0 && dif_type == 0 {
        Ok(())
    } else {
        Err(invalid("md_size and dif_type: metadata is not supported; leave them at 0"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MallocCreate {
    name: Option<String>,
    num_blocks: u64,
    block_size: u32,
    uuid: Option<Uuid>,
    #[serde(default)]
    md_size: u32,
    #[serde(default)]
    dif_type: i32,
    #[serde(default, rename = "physical_block_size")]
    _physical_block_size: Option<u32>,
    #[serde(default, rename = "optimal_io_boundary")]
    _optimal_io_boundary: Option<u32>,
    #[serde(default, rename = "md_interleave")]
    _md_interleave: bool,
    #[serde(default, rename = "dif_is_head_of_md")]
    _dif_is_head_of_md: bool,
    #[serde(default, rename = "dif_pi_format")]
    _dif_pi_format: Option<u32>,
    #[serde(default, rename = "numa_id")]
    _numa_id: Option<i32>,
}

pub(super) fn malloc_create(params: Value) -> Result<Edit, RpcError> {
    let wanted: MallocCreate = parameters(params)?;
    refuse_metadata(wanted.md_size, wanted.dif_type)?;
    let size = size(wanted.num_blocks, wanted.block_size)?;
    let kind = DeviceKind::Ram { size, block_size: wanted.block_size, read_only: false };
    let uuid = Some(chosen(wanted.uuid));
    let limits = RateLimits::default();
    match wanted.name {
        Some(name) => create(Device { name, uuid, kind, limits }),
        None => Ok(Box::new(move |state| {
            let name = free_name(state, "Malloc");
            add(state, Device { name, uuid, kind: kind.clone(), limits })
        })),
    }
}

fn size(num_blocks: u64, block_size: u32) -> Result<u64, RpcError> {
    let size = num_blocks.checked_mul(block_size.into());
    size.ok_or_else(|| invalid(format_args!("num_blocks: {num_blocks} are more than there can be")))
}

/// The UUID that a client asked for, or a new one, which is kept with the device. Zero asks for none, as in SPDK.
pub(super) fn chosen(uuid: Option<Uuid>) -> Uuid {
    uuid.filter(|uuid| !uuid.is_nil()).unwrap_or_else(Uuid::new_v4)
}

/// The first name of this kind that no device has: `Malloc0`, `Malloc1`.
fn free_name(state: &State, prefix: &str) -> String {
    let mut names = (0_u64..).map(|number| format!("{prefix}{number}"));
    names.find(|name| !state.devices.contains_key(name)).unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NullCreate {
    name: String,
    num_blocks: u64,
    block_size: u32,
    uuid: Option<Uuid>,
    #[serde(default)]
    md_size: u32,
    #[serde(default)]
    dif_type: i32,
    #[serde(default, rename = "physical_block_size")]
    _physical_block_size: Option<u32>,
    #[serde(default, rename = "dif_is_head_of_md")]
    _dif_is_head_of_md: bool,
    #[serde(default, rename = "dif_pi_format")]
    _dif_pi_format: Option<u32>,
    // Hints to hosts, which nothing follows from here.
    #[serde(default, rename = "preferred_write_alignment")]
    _preferred_write_alignment: Option<u32>,
    #[serde(default, rename = "preferred_write_granularity")]
    _preferred_write_granularity: Option<u32>,
    #[serde(default, rename = "optimal_write_size")]
    _optimal_write_size: Option<u32>,
    #[serde(default, rename = "preferred_unmap_alignment")]
    _preferred_unmap_alignment: Option<u32>,
    #[serde(default, rename = "preferred_unmap_granularity")]
    _preferred_unmap_granularity: Option<u32>,
}

pub(super) fn null_create(params: Value) -> Result<Edit, RpcError> {
    let wanted: NullCreate = parameters(params)?;
    refuse_metadata(wanted.md_size, wanted.dif_type)?;
    let size = size(wanted.num_blocks, wanted.block_size)?;
    let kind = DeviceKind::Null { size, block_size: wanted.block_size };
    let uuid = Some(chosen(wanted.uuid));
    create(Device { name: wanted.name, uuid, kind, limits: RateLimits::default() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCreate {
    name: String,
    filename: PathBuf,
    block_size: Option<u32>,
    uuid: Option<Uuid>,
    #[serde(default)]
    readonly: bool,
    /// Deallocation is always there where the medium has it.
    #[serde(default, rename = "fallocate")]
    _fallocate: bool,
    #[serde(default, rename = "nowait")]
    _nowait: bool,
}

fn file_create(params: Value, made_as: FileMethod) -> Result<Edit, RpcError> {
    let wanted: FileCreate = parameters(params)?;
    let kind = DeviceKind::File {
        path: wanted.filename,
        // Clients send 0 for what the medium has.
        block_size: wanted.block_size.filter(|size| *size != 0),
        create_size: None,
        direct: Direct::Auto,
        read_only: wanted.readonly,
        made_as,
    };
    let uuid = Some(chosen(wanted.uuid));
    create(Device { name: wanted.name, uuid, kind, limits: RateLimits::default() })
}

pub(super) fn aio_create(params: Value) -> Result<Edit, RpcError> {
    file_create(params, FileMethod::Aio)
}

pub(super) fn uring_create(params: Value) -> Result<Edit, RpcError> {
    file_create(params, FileMethod::Uring)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct XnvmeCreate {
    name: String,
    filename: PathBuf,
    io_mechanism: Mechanism,
    /// How reactors wait is configured for all devices.
    #[serde(default, rename = "conserve_cpu")]
    _conserve_cpu: bool,
}

/// What SPDK's users choose between. Here the path decides: a generic device takes commands, anything else is a file.
#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Mechanism {
    Libaio,
    IoUring,
    IoUringCmd,
}

pub(super) fn xnvme_create(params: Value) -> Result<Edit, RpcError> {
    let wanted: XnvmeCreate = parameters(params)?;
    let path = wanted.filename;
    let takes_commands = PassthroughDevice::is_meant_by(&path);
    if path.exists() && takes_commands != (wanted.io_mechanism == Mechanism::IoUringCmd) {
        return Err(invalid(format_args!(
            "{} is {} NVMe generic character device, which io_uring_cmd is for",
            path.display(),
            if takes_commands { "an" } else { "no" },
        )));
    }
    let kind = DeviceKind::File {
        path,
        block_size: None,
        create_size: None,
        direct: Direct::Auto,
        read_only: false,
        made_as: FileMethod::Xnvme,
    };
    let uuid = Some(chosen(None));
    create(Device { name: wanted.name, uuid, kind, limits: RateLimits::default() })
}

/// Makes any device in the words in which it is stored: what SPDK's methods cannot say (a read-only RAM disk, a
/// file that is made, a page cache that is not bypassed) is said so.
pub(super) fn tidegate_create(params: Value) -> Result<Edit, RpcError> {
    let asked = params.clone();
    let device: Device = parameters(params)?;
    let mut known = serde_json::to_value(&device).map_err(internal)?;
    // Not written where there are none.
    if let Some(known) = known.as_object_mut() {
        let limits = serde_json::to_value(device.limits).map_err(internal)?;
        known.insert("limits".to_owned(), limits);
    }
    match stranger(&asked, &known) {
        Some(key) => Err(invalid(format_args!("unknown field `{key}`"))),
        None => create(device),
    }
}

/// The first key of one object that another one lacks, at any depth.
fn stranger<'a>(object: &'a Value, known: &Value) -> Option<&'a String> {
    object.as_object()?.iter().find_map(|(key, value)| match known.get(key) {
        None => Some(key),
        Some(known) => stranger(value, known),
    })
}

fn is_made_as(kind: &DeviceKind, method: FileMethod) -> bool {
    matches!(kind, DeviceKind::File { made_as, .. } if *made_as == method)
}

pub(super) fn aio_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| is_made_as(kind, FileMethod::Aio))
}

pub(super) fn uring_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| is_made_as(kind, FileMethod::Uring))
}

pub(super) fn xnvme_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| is_made_as(kind, FileMethod::Xnvme))
}

pub(super) fn malloc_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| matches!(kind, DeviceKind::Ram { .. }))
}

pub(super) fn null_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| matches!(kind, DeviceKind::Null { .. }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetBdevs {
    name: Option<String>,
    /// How long a device that is not there may take to come: none comes by itself.
    #[serde(default, rename = "timeout")]
    _timeout: u64,
}

pub(super) async fn get_bdevs(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: GetBdevs = parameters(params)?;
    let state = plane.state();
    match wanted.name {
        None => {
            // Looked up once: of thousands of devices, each would be searched for in thousands of subsystems.
            let used = state.used_devices();
            let is_used = |opened: &Opened| used.contains(opened.object.name.as_str());
            let devices = state.devices.values();
            Ok(devices.map(|opened| describe(&state, opened, is_used(opened))).collect())
        }
        Some(name) => match state.device(&name) {
            Some(opened) => {
                let name = &opened.object.name;
                let is_used = !state.users_of(name).is_empty() || state.layer_on(name).is_some();
                Ok(Value::Array(vec![describe(&state, opened, is_used)]))
            }
            None => Err(Errno::NoDevice.about(name)),
        },
    }
}

/// A device as SPDK's clients read it.
fn describe(state: &State, opened: &Opened, is_used: bool) -> Value {
    let Device { name, uuid: own, kind, limits } = &opened.object;
    let uuid = opened.uuid();
    let device = opened.device.as_ref().ok();
    let geometry = device.map(|device| device.geometry());
    let deallocates = device.is_some_and(|device| device.properties().deallocation.is_some());
    let read_only = device.is_some_and(|device| device.properties().read_only);
    let (product, specific) = match kind {
        DeviceKind::Null { .. } => ("Null disk", json!({})),
        DeviceKind::Ram { .. } => ("Malloc disk", json!({})),
        DeviceKind::File { path, block_size, made_as: FileMethod::Aio, .. } => {
            let about = json!({
                "filename": path,
                "block_size_override": block_size.is_some(),
                "readonly": read_only,
                "fallocate": deallocates,
            });
            ("AIO disk", json!({ "aio": about }))
        }
        DeviceKind::File { made_as: FileMethod::Xnvme, .. } => ("xNVMe bdev", json!({})),
        DeviceKind::File { path, .. } => ("URING bdev", json!({ "uring": { "filename": path } })),
        DeviceKind::Nvme { controller, nsid } => {
            ("NVMe disk", bdev_nvme::namespace(state, opened, (controller, *nsid)))
        }
        DeviceKind::Delay { base, latencies } => {
            let about = faults::delay_parameters(name, *own, base, *latencies);
            ("delay", json!({ "delay": about }))
        }
        DeviceKind::Error { base } => {
            ("Error Injection Disk", json!({ "error_disk": { "base_bdev": base } }))
        }
    };
    let mut object = json!({
        "name": name,
        "aliases": uuid.iter().collect::<Vec<_>>(),
        "product_name": product,
        "block_size": geometry.map_or(0, |geometry| geometry.block_size),
        "num_blocks": geometry.map_or(0, |geometry| geometry.blocks),
        "uuid": uuid,
        "assigned_rate_limits": qos::assigned(limits),
        "claimed": is_used,
        "zoned": false,
        "supported_io_types": {
            "read": true,
            "write": !read_only,
            "unmap": deallocates,
            "flush": true,
            "reset": true,
            "nvme_admin": false,
            "nvme_io": false,
            "nvme_io_md": false,
            "write_zeroes": !read_only,
            "zcopy": false,
            "get_zone_info": false,
            "zone_management": false,
            "zone_append": false,
            "compare": true,
            "compare_and_write": false,
            "abort": true,
            "seek_hole": false,
            "seek_data": false,
            "copy": false,
            "nvme_iov_md": false,
        },
        "driver_specific": specific,
    });
    if let Some(object) = object.as_object_mut() {
        if is_used {
            object.insert("claim_type".to_owned(), "exclusive_write".into());
        }
        if let Err(waiting) = &opened.device {
            object.insert("tidegate_waiting".to_owned(), Value::String(waiting.clone()));
        }
    }
    object
}
