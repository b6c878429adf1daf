//! What hosts see: transports, subsystems, namespaces, hosts, listeners, referrals; and which of them are connected.

pub(super) mod connections;
pub(super) mod hosts;
pub(super) mod listeners;
pub(super) mod namespaces;
pub(super) mod referrals;
pub(super) mod subsystems;
pub(super) mod transports;

use std::sync::Arc;

use nvme::Nqn;
use uuid::Uuid;

use super::Reply;
use super::edit::Edit;
use super::reply::invalid;
use crate::jsonrpc::RpcError;
use crate::objects::Subsystem;
use crate::state::State;

/// The one target; its name is a parameter of every method.
const TARGET: &str = "nvmf_tgt";

/// What clients may call the target.
fn check_target(name: Option<&str>) -> Result<(), RpcError> {
    match name {
        None | Some(TARGET) => Ok(()),
        Some(other) => Err(invalid(format_args!("tgt_name: there is no target {other}"))),
    }
}

/// The name of a subsystem.
fn nqn_of(text: &str) -> Result<Nqn, RpcError> {
    text.parse().map_err(|error| invalid(format_args!("nqn: {error}")))
}

/// An NGUID as SPDK's clients read it.
pub(super) fn nguid_text(nguid: Uuid) -> String {
    format!("{:X}", nguid.simple())
}

/// A subsystem, to be changed.
fn find<'a>(state: &'a mut State, nqn: &Nqn) -> Result<&'a mut Subsystem, RpcError> {
    let subsystem = state.subsystems.get_mut(nqn);
    let subsystem = subsystem
        .ok_or_else(|| invalid(format_args!("Unable to find subsystem with NQN {nqn}")))?;
    Ok(Arc::make_mut(subsystem))
}

/// Changes one subsystem.
#[allow(clippy::unnecessary_wraps)] // It is what a method ends with.
fn change_subsystem<F>(nqn: Nqn, edit: F) -> Result<Edit, RpcError>
where
    F: Fn(&mut Subsystem) -> Reply + Send + Sync + 'static,
{
    Ok(Box::new(move |state| edit(find(state, &nqn)?)))
}
