//! Namespaces of subsystems.

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::edit::Edit;
use super::super::parameters;
use super::super::reply::invalid;
use super::{change_subsystem, check_target, find, nqn_of};
use crate::jsonrpc::RpcError;
use crate::objects::Namespace;

#[derive(Deserialize)]
struct AddNamespace {
    nqn: String,
    tgt_name: Option<String>,
    namespace: NewNamespace,
    /// The device may be another namespace, too: a configuration file may say so, SPDK's clients rely on the refusal.
    #[serde(default)]
    tidegate_shared: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNamespace {
    bdev_name: String,
    nsid: Option<u32>,
    nguid: Option<Uuid>,
    eui64: Option<String>,
    uuid: Option<Uuid>,
    ptpl_file: Option<String>,
    anagrpid: Option<u32>,
    #[serde(default)]
    no_auto_visible: bool,
    #[serde(default, rename = "hide_metadata")]
    _hide_metadata: bool,
}

impl NewNamespace {
    /// What is asked for and not there is refused by name: a client would believe that it has it.
    fn check(&self) -> Result<(), RpcError> {
        let unsupported = [
            ("eui64", self.eui64.is_some()),
            ("ptpl_file", self.ptpl_file.is_some()),
            ("anagrpid", self.anagrpid.is_some_and(|group| group > 1)),
            ("no_auto_visible", self.no_auto_visible),
        ];
        match unsupported.iter().find(|(_, asked)| *asked) {
            Some((name, _)) => Err(invalid(format_args!("namespace.{name} is not supported"))),
            None => Ok(()),
        }
    }
}

pub(in crate::methods) fn add_namespace(params: Value) -> Result<Edit, RpcError> {
    let wanted: AddNamespace = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    wanted.namespace.check()?;
    let (nqn, new, shared) = (nqn_of(&wanted.nqn)?, wanted.namespace, wanted.tidegate_shared);
    Ok(Box::new(move |state| {
        let device = state.device(&new.bdev_name).map(|opened| opened.object.name.clone());
        let device = device.ok_or_else(|| {
            invalid(format_args!("namespace.bdev_name: there is no bdev {}", new.bdev_name))
        })?;
        if let Some((user, nsid)) = state.users_of(&device).first()
            && !shared
        {
            return Err(invalid(format_args!(
                "namespace.bdev_name: {device} is namespace {nsid} of {user} already"
            )));
        }
        if let Some(layer) = state.layer_on(&device) {
            let layer = &layer.object.name;
            return Err(invalid(format_args!("namespace.bdev_name: {layer} stands on {device}")));
        }
        let subsystem = find(state, &nqn)?;
        let free = |nsid: &u32| !subsystem.namespaces.contains_key(nsid);
        let nsid = match new.nsid.filter(|nsid| *nsid != 0) {
            Some(nsid) if free(&nsid) => nsid,
            Some(nsid) => {
                return Err(invalid(format_args!("namespace.nsid: {nsid} is in use")));
            }
            None => (1..=subsystem.max_namespaces).find(free).ok_or_else(|| {
                invalid(format_args!("{nqn} has all the namespaces that it may have"))
            })?,
        };
        // Zero asks for none, as in SPDK.
        let some = |id: Option<Uuid>| id.filter(|id| !id.is_nil());
        let namespace = Namespace { device, uuid: some(new.uuid), nguid: some(new.nguid) };
        subsystem.namespaces.insert(nsid, namespace);
        Ok(Value::from(nsid))
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveNamespace {
    nqn: String,
    nsid: u32,
    tgt_name: Option<String>,
}

pub(in crate::methods) fn remove_namespace(params: Value) -> Result<Edit, RpcError> {
    let wanted: RemoveNamespace = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let (nqn, nsid) = (nqn_of(&wanted.nqn)?, wanted.nsid);
    change_subsystem(nqn, move |subsystem| {
        let removed = subsystem.namespaces.remove(&nsid);
        removed.ok_or_else(|| invalid(format_args!("nsid: there is no namespace {nsid}")))?;
        Ok(Value::Bool(true))
    })
}
