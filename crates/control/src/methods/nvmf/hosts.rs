//! Who may connect to a subsystem.

use nvme::Nqn;
use serde::Deserialize;
use serde_json::Value;

use super::super::edit::Edit;
use super::super::parameters;
use super::super::reply::invalid;
use super::{change_subsystem, check_target, nqn_of};
use crate::jsonrpc::RpcError;

/// Relaxed, as in SPDK: newer clients send more. Keys would be believed to be in force, so they are refused.
#[derive(Deserialize)]
struct AddHost {
    nqn: String,
    host: String,
    tgt_name: Option<String>,
    psk: Option<String>,
    dhchap_key: Option<String>,
    dhchap_ctrlr_key: Option<String>,
}

pub(in crate::methods) fn add_host(params: Value) -> Result<Edit, RpcError> {
    let wanted: AddHost = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let keys = [
        ("psk", wanted.psk.is_some()),
        ("dhchap_key", wanted.dhchap_key.is_some()),
        ("dhchap_ctrlr_key", wanted.dhchap_ctrlr_key.is_some()),
    ];
    if let Some((name, _)) = keys.iter().find(|(_, asked)| *asked) {
        return Err(invalid(format_args!("{name}: keys are not supported")));
    }
    let nqn = nqn_of(&wanted.nqn)?;
    let host: Nqn = wanted.host.parse().map_err(|error| invalid(format_args!("host: {error}")))?;
    change_subsystem(nqn, move |subsystem| {
        subsystem.hosts.insert(host.to_string());
        Ok(Value::Bool(true))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveHost {
    nqn: String,
    host: String,
    tgt_name: Option<String>,
    #[serde(default, rename = "timeout_ms")]
    _timeout_ms: u64,
}

pub(in crate::methods) fn remove_host(params: Value) -> Result<Edit, RpcError> {
    let wanted: RemoveHost = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let (nqn, host) = (nqn_of(&wanted.nqn)?, wanted.host);
    change_subsystem(nqn, move |subsystem| {
        if subsystem.hosts.remove(&host) {
            Ok(Value::Bool(true))
        } else {
            Err(invalid(format_args!("host: {host} is not listed")))
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowAnyHost {
    nqn: String,
    tgt_name: Option<String>,
    #[serde(rename = "allow_any_host")]
    allow: Option<bool>,
    /// What older clients send instead.
    disable: Option<bool>,
}

pub(in crate::methods) fn allow_any_host(params: Value) -> Result<Edit, RpcError> {
    let wanted: AllowAnyHost = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let allow = match (wanted.allow, wanted.disable) {
        (Some(allow), _) => allow,
        (None, Some(disable)) => !disable,
        (None, None) => return Err(invalid("allow_any_host is missing")),
    };
    change_subsystem(nqn_of(&wanted.nqn)?, move |subsystem| {
        subsystem.allow_any_host = allow;
        Ok(Value::Bool(true))
    })
}
