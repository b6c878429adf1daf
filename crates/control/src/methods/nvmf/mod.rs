//! What hosts see: transports, subsystems, namespaces, hosts, listeners.

pub(super) mod hosts;
pub(super) mod listeners;
pub(super) mod namespaces;
pub(super) mod subsystems;
pub(super) mod transports;

use std::sync::Arc;

use nvme::Nqn;

use super::Reply;
use super::reply::invalid;
use crate::jsonrpc::RpcError;
use crate::objects::Subsystem;
use crate::plane::Plane;
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

/// A subsystem, to be changed.
fn find<'a>(state: &'a mut State, nqn: &Nqn) -> Result<&'a mut Subsystem, RpcError> {
    let subsystem = state.subsystems.get_mut(nqn);
    let subsystem = subsystem
        .ok_or_else(|| invalid(format_args!("Unable to find subsystem with NQN {nqn}")))?;
    Ok(Arc::make_mut(subsystem))
}

/// Changes one subsystem.
async fn change_subsystem<F>(plane: &Arc<Plane>, nqn: Nqn, edit: F) -> Reply
where
    F: FnOnce(&mut Subsystem) -> Reply + Send + 'static,
{
    plane.change(move |state| edit(find(state, &nqn)?)).await.map_err(RpcError::from)
}
