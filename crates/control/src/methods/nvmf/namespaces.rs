//! Namespaces of subsystems, and who sees them.

use std::collections::BTreeSet;

use nvme::Nqn;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::edit::Edit;
use super::super::reply::invalid;
use super::super::{Reply, parameters};
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
        let unsupported =
            [("eui64", self.eui64.is_some()), ("ptpl_file", self.ptpl_file.is_some())];
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
        if state.device(&new.bdev_name).is_none() {
            state.expect_namespace(&new.bdev_name);
        }
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
        let namespace = Namespace {
            uuid: some(new.uuid),
            nguid: some(new.nguid),
            // Zero is that of the NSID, as none is.
            anagrpid: new.anagrpid.filter(|group| *group != 0),
            no_auto_visible: new.no_auto_visible,
            ..Namespace::over(device)
        };
        subsystem.namespaces.insert(nsid, namespace);
        Ok(Value::from(nsid))
    }))
}

/// A namespace of a subsystem, to be changed.
fn change_namespace<F>(nqn: Nqn, nsid: u32, edit: F) -> Result<Edit, RpcError>
where
    F: Fn(&mut Namespace) -> Reply + Send + Sync + 'static,
{
    change_subsystem(nqn, move |subsystem| {
        let namespace = subsystem.namespaces.get_mut(&nsid);
        edit(namespace.ok_or_else(|| no_namespace(nsid))?)
    })
}

fn no_namespace(nsid: u32) -> RpcError {
    invalid(format_args!("nsid: there is no namespace {nsid}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetAnaGroup {
    nqn: String,
    nsid: u32,
    anagrpid: u32,
    tgt_name: Option<String>,
    /// The group on the way, of ceph-nvmeof's SPDK. There is no way here: the namespace changes its group at once.
    #[serde(default, rename = "transit_anagrpid")]
    _transit: u32,
}

pub(in crate::methods) fn set_ana_group(params: Value) -> Result<Edit, RpcError> {
    let wanted: SetAnaGroup = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    if wanted.anagrpid == 0 {
        return Err(invalid("anagrpid: 0 is no group"));
    }
    change_namespace(nqn_of(&wanted.nqn)?, wanted.nsid, move |namespace| {
        namespace.anagrpid = Some(wanted.anagrpid);
        Ok(Value::Bool(true))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneHost {
    nqn: String,
    nsid: u32,
    host: String,
    tgt_name: Option<String>,
}

/// Changes the hosts that see a namespace.
fn change_hosts(params: Value, edit: fn(&mut BTreeSet<String>, &str)) -> Result<Edit, RpcError> {
    let wanted: OneHost = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let host: Nqn = wanted.host.parse().map_err(|error| invalid(format_args!("host: {error}")))?;
    change_namespace(nqn_of(&wanted.nqn)?, wanted.nsid, move |namespace| {
        if !namespace.no_auto_visible {
            return Err(invalid(
                "nsid: every host sees this namespace; add it with no_auto_visible",
            ));
        }
        edit(&mut namespace.hosts, host.as_str());
        Ok(Value::Bool(true))
    })
}

pub(in crate::methods) fn add_host(params: Value) -> Result<Edit, RpcError> {
    change_hosts(params, |hosts, host| {
        hosts.insert(host.to_owned());
    })
}

pub(in crate::methods) fn remove_host(params: Value) -> Result<Edit, RpcError> {
    change_hosts(params, |hosts, host| {
        hosts.remove(host);
    })
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
        removed.ok_or_else(|| no_namespace(nsid))?;
        Ok(Value::Bool(true))
    })
}
