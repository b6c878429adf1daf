//! What is configured as a document, in the shape of SPDK's: a list of subsystems (parts of the program, not NVMe's),
//! each with the calls that make it what it is.
//!
//! ```json
//! { "subsystems": [ { "subsystem": "bdev", "config": [ { "method": "bdev_null_create", "params": { .. } } ] } ] }
//! ```
//!
//! A document of ours loads here as the very same state. What SPDK has too is said in its words; what it has not
//! (a device that has no UUID of its own, a RAM disk that is read-only) is in a subsystem `tidegate`, which SPDK
//! skips, as it does the key `tidegate_shared`. A document of SPDK's loads if all of its methods are known: edits, or
//! [what needs no knowing](super::IGNORED). It is one change: all of it or nothing.
//!
//! *Rejected:* writing only what a client once called. Deleted objects would have to be found and cancelled out, and
//! a configuration file's were never called.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::bdev_nvme;
use super::edit::{Edit, apply};
use super::faults;

use super::nvmf::{listeners, nguid_text, referrals};
use super::reply::{internal, invalid, unknown_method};
use super::{EDITS, IGNORED, Nothing, Reply, find, parameters, qos};
use crate::jsonrpc::RpcError;
use crate::objects::{
    AnaState, AnaStates, Device, DeviceKind, Direct, FileMethod, Objects, Place, RateLimits,
    Subsystem, Transport,
};
use crate::plane::Plane;
use crate::state::State;

/// The parts that have something to say, in the order in which they have to be made, and what they need.
const PARTS: &[(&str, &[&str])] =
    &[("bdev", &[]), ("tidegate", &["bdev"]), ("nvmf", &["bdev", "tidegate"])];

/// Parts of SPDK that clients may ask for. There is nothing of them here.
const EMPTY_PARTS: &[&str] = &[
    "accel",
    "fsdev",
    "iobuf",
    "iscsi",
    "keyring",
    "nbd",
    "scheduler",
    "scsi",
    "sock",
    "ublk",
    "vfio_user",
    "vhost_blk",
    "vhost_scsi",
    "vmd",
];

/// A whole document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    subsystems: Vec<Part>,
}

/// A part of it, also a document by itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    subsystem: String,
    /// SPDK says null where there is nothing.
    config: Option<Vec<Entry>>,
}

/// What stands in a part: a call, or several that SPDK makes as one batch.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    One(Call),
    Batch(Vec<Call>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    method: String,
    #[serde(default)]
    params: Value,
}

/// The objects that a document makes in an empty node.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn objects(document: &str) -> Result<Objects, RpcError> {
    let document = serde_json::from_str(document).map_err(invalid)?;
    let mut state = State::default();
    for edit in edits(parameters(document)?)? {
        edit(&mut state)?;
    }
    Ok(state.objects())
}

/// What the calls of a document do; their errors name the place.
fn edits(document: Document) -> Result<Vec<Edit>, RpcError> {
    let mut edits: Vec<Edit> = Vec::new();
    for part in document.subsystems {
        for (index, entry) in part.config.into_iter().flatten().enumerate() {
            let calls = match entry {
                Entry::One(call) => vec![call],
                Entry::Batch(calls) => calls,
            };
            for Call { method, params } in calls {
                let place = format!("subsystem {}, config[{index}], {method}", part.subsystem);
                let placed = move |RpcError { code, message }| RpcError {
                    code,
                    message: format!("{place}: {message}"),
                };
                if let Some(make) = find(EDITS, &method) {
                    let edit = make(params).map_err(&placed)?;
                    edits.push(Box::new(move |state| edit(state).map_err(&placed)));
                } else if find(IGNORED, &method).is_none() {
                    return Err(placed(unknown_method()));
                }
            }
        }
    }
    Ok(edits)
}

pub(super) async fn load_config(plane: Arc<Plane>, params: Value) -> Reply {
    load(&plane, parameters(params)?).await
}

pub(super) async fn load_subsystem_config(plane: Arc<Plane>, params: Value) -> Reply {
    load(&plane, Document { subsystems: vec![parameters(params)?] }).await
}

async fn load(plane: &Arc<Plane>, document: Document) -> Reply {
    apply(plane, edits(document)?).await?;
    Ok(Value::Bool(true))
}

pub(super) async fn save_config(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    document(&plane.state())
}

/// The whole document of a state.
fn document(state: &State) -> Reply {
    let parts = PARTS.iter().map(|(part, _)| save(state, part)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "subsystems": parts }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OnePart {
    name: String,
    /// A batch is as good as its calls.
    #[serde(default, rename = "with_batches")]
    _with_batches: bool,
}

pub(super) async fn save_subsystem_config(plane: Arc<Plane>, params: Value) -> Reply {
    let OnePart { name, .. } = parameters(params)?;
    save(&plane.state(), &name)
}

pub(super) async fn framework_get_config(plane: Arc<Plane>, params: Value) -> Reply {
    let OnePart { name, .. } = parameters(params)?;
    Ok(Value::Array(calls(&plane.state(), &name)?))
}

pub(super) async fn framework_get_subsystems(_: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    let describe =
        |(part, needs): &(&str, &[&str])| json!({ "subsystem": part, "depends_on": needs });
    Ok(PARTS.iter().map(describe).collect())
}

fn save(state: &State, part: &str) -> Reply {
    Ok(json!({ "subsystem": part, "config": calls(state, part)? }))
}

/// The calls that make a part of the state.
fn calls(state: &State, part: &str) -> Result<Vec<Value>, RpcError> {
    let objects = || {
        let mut objects: Vec<_> = state.devices.values().map(|opened| &opened.object).collect();
        // What others stand on comes first.
        objects.sort_by_cached_key(|device| state.below(device).count());
        objects.into_iter()
    };
    // What stands on a device of our own words can only come after it.
    let spdk = |device: &Device| {
        let call = in_words_of_spdk(device)?;
        state.below(device).all(|base| in_words_of_spdk(base).is_some()).then_some(call)
    };
    let options = &state.nvme_options;
    let attached = |is: fn(&Place) -> bool| {
        let controllers = state.controllers.values().map(|it| &it.object);
        let call =
            |it| call("bdev_nvme_attach_controller", bdev_nvme::attach_parameters(it, options));
        controllers.filter(move |it| is(&it.place)).map(call)
    };
    Ok(match part {
        "bdev" => bdev_nvme::options_parameters(options)?
            .map(|params| call("bdev_nvme_set_options", params))
            .into_iter()
            .chain(attached(|place| matches!(place, Place::Pci(_))))
            .chain(
                objects()
                    .filter_map(|device| Some((device, spdk(device)?)))
                    .flat_map(|(device, created)| {
                        [Some(created), limits(device, qos::in_words_of_spdk)]
                    })
                    .flatten(),
            )
            .collect(),
        "tidegate" => {
            let created = objects()
                .filter(|device| spdk(device).is_none())
                .map(|device| Ok(call("tidegate_bdev_create", serde_json::to_value(device)?)));
            let limits = objects()
                .filter(|device| spdk(device).is_some())
                .filter_map(|device| limits(device, qos::in_words_of_ours).map(Ok));
            let attached = attached(|place| matches!(place, Place::Serial(_))).map(Ok);
            let calls =
                attached.chain(created).chain(limits).collect::<Result<_, serde_json::Error>>();
            calls.map_err(internal)?
        }
        "nvmf" => {
            let transports = state.transports.values().map(|it| transport(it));
            let subsystems = state.subsystems.values().flat_map(|it| subsystem(state, it));
            let referrals = state.referrals.values();
            let referrals =
                referrals.map(|it| call("nvmf_discovery_add_referral", referrals::describe(it)));
            transports.chain(referrals).chain(subsystems).collect()
        }
        _ if EMPTY_PARTS.contains(&part) => Vec::new(),
        _ => return Err(invalid(format_args!("Subsystem '{part}' not found"))),
    })
}

fn call(method: &str, params: Value) -> Value {
    json!({ "method": method, "params": without_nulls(params) })
}

/// SPDK takes no null in the place of what is left out.
fn without_nulls(mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    object
}

/// The call of SPDK that makes this very device, if there is one.
fn in_words_of_spdk(Device { name, uuid, kind, limits: _ }: &Device) -> Option<Value> {
    // SPDK would choose one.
    let uuid = (*uuid)?;
    let blocks = |size: u64, block_size: u32| {
        let block_size = u64::from(block_size);
        size.checked_rem(block_size).filter(|rest| *rest == 0).map(|_| size / block_size)
    };
    Some(match kind {
        DeviceKind::Null { size, block_size } => {
            let num_blocks = blocks(*size, *block_size)?;
            let params = json!({ "name": name, "uuid": uuid, "num_blocks": num_blocks, "block_size": block_size });
            call("bdev_null_create", params)
        }
        DeviceKind::Ram { size, block_size, read_only: false } => {
            let num_blocks = blocks(*size, *block_size)?;
            let params = json!({ "name": name, "uuid": uuid, "num_blocks": num_blocks, "block_size": block_size });
            call("bdev_malloc_create", params)
        }
        DeviceKind::File {
            path,
            block_size,
            create_size: None,
            direct: Direct::Auto,
            read_only,
            made_as,
        } if *block_size != Some(0) => {
            let (method, readonly) = match made_as {
                FileMethod::Aio => ("bdev_aio_create", Some(read_only)),
                FileMethod::Uring if !read_only => ("bdev_uring_create", None),
                // SPDK's call has no words for the UUID.
                FileMethod::Uring | FileMethod::Xnvme => return None,
            };
            let params = json!({
                "name": name, "uuid": uuid, "filename": path, "block_size": block_size, "readonly": readonly,
            });
            call(method, params)
        }
        // A device may have been updated to latencies that none is made with.
        DeviceKind::Delay { base, latencies } if latencies.are_in_order() => {
            let params = faults::delay_parameters(name, Some(uuid), base, *latencies);
            call("bdev_delay_create", params)
        }
        DeviceKind::Error { base } if *name == faults::error_name(base) => {
            call("bdev_error_create", json!({ "base_name": base, "uuid": uuid }))
        }
        DeviceKind::Ram { .. }
        | DeviceKind::File { .. }
        | DeviceKind::Nvme { .. }
        | DeviceKind::Delay { .. }
        | DeviceKind::Error { .. } => return None,
    })
}

/// The call that gives a device its limits, if it has any that these words can say.
fn limits(device: &Device, words: fn(&RateLimits) -> Map<String, Value>) -> Option<Value> {
    let mut params = words(&device.limits);
    params.retain(|_, limit| *limit != 0);
    if params.is_empty() {
        return None;
    }
    params.insert("name".to_owned(), device.name.clone().into());
    Some(call("bdev_set_qos_limit", params.into()))
}

fn transport(transport: &Transport) -> Value {
    let params = json!({
        "trtype": transport.trtype.as_str(),
        "max_queue_depth": transport.max_queue_depth,
        "max_io_qpairs_per_ctrlr": transport.max_io_qpairs_per_ctrlr,
        "in_capsule_data_size": transport.in_capsule_data_size,
        "max_io_size": transport.max_io_size,
        "max_srq_depth": transport.max_srq_depth,
        "num_cqe": transport.num_cqe,
    });
    call("nvmf_create_transport", params)
}

fn subsystem(state: &State, subsystem: &Subsystem) -> Vec<Value> {
    let nqn = subsystem.nqn.as_str();
    let created = json!({
        "nqn": nqn,
        "serial_number": subsystem.serial,
        "model_number": subsystem.model,
        "allow_any_host": subsystem.allow_any_host,
        "max_namespaces": subsystem.max_namespaces,
        "min_cntlid": subsystem.min_cntlid,
        "max_cntlid": subsystem.max_cntlid,
        "ana_reporting": subsystem.ana_reporting,
    });
    let mut calls = vec![call("nvmf_create_subsystem", created)];
    for host in &subsystem.hosts {
        calls.push(call("nvmf_subsystem_add_host", json!({ "nqn": nqn, "host": host })));
    }
    for (nsid, namespace) in &subsystem.namespaces {
        let described = without_nulls(json!({
            "nsid": nsid,
            "bdev_name": namespace.device,
            "uuid": namespace.uuid,
            "nguid": namespace.nguid.map(nguid_text),
            "anagrpid": namespace.anagrpid,
            "no_auto_visible": namespace.no_auto_visible,
        }));
        let shared = (state.users_of(&namespace.device).len() > 1).then_some(true);
        let params = json!({ "nqn": nqn, "namespace": described, "tidegate_shared": shared });
        calls.push(call("nvmf_subsystem_add_ns", params));
        for host in namespace.hosts.iter().filter(|_| namespace.no_auto_visible) {
            let params = json!({ "nqn": nqn, "nsid": nsid, "host": host });
            calls.push(call("nvmf_ns_add_host", params));
        }
    }
    for (address, AnaStates { every, groups }) in &subsystem.listeners {
        let params = json!({
            "nqn": nqn,
            "listen_address": listeners::describe(address),
            "ana_state": (*every != AnaState::default()).then_some(every),
        });
        calls.push(call("nvmf_subsystem_add_listener", params));
        for (group, state) in groups {
            let params = json!({
                "nqn": nqn,
                "listen_address": listeners::describe(address),
                "anagrpid": group,
                "ana_state": state,
            });
            calls.push(call("nvmf_subsystem_listener_set_ana_state", params));
        }
    }
    calls
}

#[cfg(test)]
mod tests;
