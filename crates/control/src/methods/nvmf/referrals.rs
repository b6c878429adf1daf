//! Where else hosts may look for subsystems: entries of the discovery log that lead to other nodes.

use std::sync::Arc;

use nvme::Nqn;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::edit::Edit;
use super::super::reply::{internal, invalid};
use super::super::{Reply, parameters};
use super::check_target;
use super::listeners::{self, ListenAddress};
use crate::jsonrpc::RpcError;
use crate::objects::{Address, Referral};
use crate::plane::Plane;

/// Relaxed, as in SPDK: newer clients send more.
#[derive(Deserialize)]
struct AddReferral {
    address: ListenAddress,
    subnqn: Option<String>,
    #[serde(default)]
    secure_channel: bool,
    tgt_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveReferral {
    address: ListenAddress,
    subnqn: Option<String>,
    tgt_name: Option<String>,
}

/// Where a referral leads.
fn place(address: &ListenAddress, subnqn: Option<&str>) -> Result<(Address, Nqn), RpcError> {
    let subnqn = match subnqn.filter(|subnqn| !subnqn.is_empty()) {
        None => Nqn::discovery(),
        Some(subnqn) => subnqn.parse().map_err(|error| invalid(format_args!("subnqn: {error}")))?,
    };
    if address.trsvcid.is_none() {
        return Err(internal("Service ID is required."));
    }
    Ok((address.parse("address")?, subnqn))
}

pub(in crate::methods) fn add_referral(params: Value) -> Result<Edit, RpcError> {
    let AddReferral { address, subnqn, secure_channel, tgt_name } = parameters(params)?;
    check_target(tgt_name.as_deref())?;
    let place = place(&address, subnqn.as_deref())?;
    let (address, subnqn) = place.clone();
    let referral = Arc::new(Referral { address, subnqn, secure_channel });
    Ok(Box::new(move |state| {
        // One that is there stays as it is, as in SPDK.
        state.referrals.entry(place.clone()).or_insert_with(|| Arc::clone(&referral));
        Ok(Value::Bool(true))
    }))
}

pub(in crate::methods) fn remove_referral(params: Value) -> Result<Edit, RpcError> {
    let RemoveReferral { address, subnqn, tgt_name } = parameters(params)?;
    check_target(tgt_name.as_deref())?;
    let place = place(&address, subnqn.as_deref())?;
    Ok(Box::new(move |state| match state.referrals.remove(&place) {
        Some(_) => Ok(Value::Bool(true)),
        None => Err(internal("Unable to remove a referral.")),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetReferrals {
    tgt_name: Option<String>,
}

pub(in crate::methods) async fn get_referrals(plane: Arc<Plane>, params: Value) -> Reply {
    let GetReferrals { tgt_name } = parameters(params)?;
    check_target(tgt_name.as_deref())?;
    Ok(plane.state().referrals.values().map(|it| describe(it)).collect())
}

/// A referral as SPDK's clients read it, and as its configuration files have it.
pub(in crate::methods) fn describe(referral: &Referral) -> Value {
    json!({
        "address": listeners::describe(&referral.address),
        "secure_channel": referral.secure_channel,
        "subnqn": referral.subnqn.as_str(),
    })
}
