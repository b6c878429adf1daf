//! Subsystems.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use target::configuration::{MAX_CONTROLLER_ID, MAX_NAMESPACES, derive_serial};

use super::super::edit::Edit;
use super::super::reply::{Errno, internal, invalid};
use super::super::{Reply, parameters};
use super::{check_target, listeners, nguid_text, nqn_of};
use crate::jsonrpc::RpcError;
use crate::objects::Subsystem;
use crate::plane::Plane;
use crate::state::State;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateSubsystem {
    nqn: String,
    tgt_name: Option<String>,
    serial_number: Option<String>,
    model_number: Option<String>,
    #[serde(default)]
    max_namespaces: u32,
    #[serde(default)]
    allow_any_host: bool,
    #[serde(default)]
    ana_reporting: bool,
    min_cntlid: Option<u16>,
    max_cntlid: Option<u16>,
    #[serde(default, rename = "max_discard_size_kib")]
    _max_discard_size_kib: u64,
    #[serde(default, rename = "max_write_zeroes_size_kib")]
    _max_write_zeroes_size_kib: u64,
    #[serde(default, rename = "dmrsl")]
    _dmrsl: Option<u32>,
    #[serde(default, rename = "wzsl")]
    _wzsl: Option<u8>,
    #[serde(default)]
    passthrough: bool,
    #[serde(default, rename = "enable_nssr")]
    _enable_nssr: bool,
}

pub(in crate::methods) fn create_subsystem(params: Value) -> Result<Edit, RpcError> {
    let wanted: CreateSubsystem = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    if wanted.passthrough {
        return Err(invalid("passthrough is not supported"));
    }
    let nqn = nqn_of(&wanted.nqn)?;
    let subsystem = Subsystem {
        nqn: nqn.clone(),
        // Clients that have none send an empty one.
        serial: wanted.serial_number.filter(|serial| !serial.is_empty()),
        model: wanted.model_number.filter(|model| !model.is_empty()),
        allow_any_host: wanted.allow_any_host,
        hosts: BTreeSet::new(),
        // SPDK's default is 32; nothing here is saved by so few.
        max_namespaces: match wanted.max_namespaces {
            0 => MAX_NAMESPACES,
            some => some.min(MAX_NAMESPACES),
        },
        min_cntlid: wanted.min_cntlid.unwrap_or(1),
        // SPDK's highest is one more than what hosts and we use.
        max_cntlid: wanted.max_cntlid.unwrap_or(MAX_CONTROLLER_ID).min(MAX_CONTROLLER_ID),
        ana_reporting: wanted.ana_reporting,
        namespaces: BTreeMap::new(),
        listeners: BTreeMap::new(),
    };
    Ok(Box::new(move |state| {
        if state.subsystems.contains_key(&nqn) {
            return Err(internal(format_args!(
                "Unable to create subsystem {nqn}: there is one of this name"
            )));
        }
        state.subsystems.insert(nqn.clone(), Arc::new(subsystem.clone()));
        Ok(Value::Bool(true))
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OneSubsystem {
    pub(super) nqn: String,
    pub(super) tgt_name: Option<String>,
}

pub(in crate::methods) fn delete_subsystem(params: Value) -> Result<Edit, RpcError> {
    let wanted: OneSubsystem = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let nqn = nqn_of(&wanted.nqn)?;
    Ok(Box::new(move |state| {
        let removed = state.subsystems.remove(&nqn);
        removed.ok_or_else(|| invalid(format_args!("there is no subsystem {nqn}")))?;
        Ok(Value::Bool(true))
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetSubsystems {
    nqn: Option<String>,
    tgt_name: Option<String>,
}

pub(in crate::methods) async fn get_subsystems(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: GetSubsystems = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let state = plane.state();
    if let Some(nqn) = wanted.nqn {
        let subsystem = nqn_of(&nqn).ok().and_then(|nqn| state.subsystems.get(&nqn));
        return match subsystem {
            Some(subsystem) => Ok(Value::Array(vec![describe(&state, subsystem)])),
            None => Err(Errno::NoDevice.about(nqn)),
        };
    }
    let discovery = json!({
        "nqn": nvme::nqn::DISCOVERY_NQN,
        "subtype": "Discovery",
        "listen_addresses": [],
        "allow_any_host": true,
        "hosts": [],
    });
    let others = state.subsystems.values().map(|subsystem| describe(&state, subsystem));
    Ok(std::iter::once(discovery).chain(others).collect())
}

/// A subsystem as SPDK's clients read it.
fn describe(state: &State, subsystem: &Subsystem) -> Value {
    let configured = subsystem.serial.clone();
    let serial = configured.unwrap_or_else(|| derive_serial(subsystem.nqn.as_str()));
    let model = subsystem.model.as_deref().unwrap_or("Tidegate");
    let hosts = subsystem.hosts.iter().map(|host| json!({ "nqn": host }));
    let namespaces = subsystem.namespaces.iter().map(|(nsid, namespace)| {
        let device = state.devices.get(&namespace.device);
        let uuid = namespace.uuid.or(device.and_then(|opened| opened.object.uuid));
        let mut described = json!({
            "nsid": nsid,
            "bdev_name": namespace.device,
            "name": namespace.device,
            "nguid": namespace.nguid.or(uuid).map(nguid_text),
            "uuid": uuid,
        });
        if let Some(described) = described.as_object_mut() {
            if subsystem.ana_reporting {
                let group = namespace.anagrpid.unwrap_or(*nsid);
                described.insert("anagrpid".to_owned(), group.into());
            }
            // SPDK does not say who sees a namespace.
            if namespace.no_auto_visible {
                let hosts = namespace.hosts.iter().map(|host| json!({ "nqn": host }));
                described.insert("no_auto_visible".to_owned(), true.into());
                described.insert("hosts".to_owned(), hosts.collect());
            }
        }
        described
    });
    json!({
        "nqn": subsystem.nqn.as_str(),
        "subtype": "NVMe",
        "listen_addresses": subsystem.listeners.keys().map(listeners::describe).collect::<Vec<_>>(),
        "allow_any_host": subsystem.allow_any_host,
        "hosts": hosts.collect::<Vec<_>>(),
        "serial_number": serial,
        "model_number": model,
        "max_namespaces": subsystem.max_namespaces,
        "min_cntlid": subsystem.min_cntlid,
        "max_cntlid": subsystem.max_cntlid,
        "namespaces": namespaces.collect::<Vec<_>>(),
    })
}
