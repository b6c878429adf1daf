//! Transports: they have to be created before there are listeners, as in SPDK.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::edit::Edit;
use super::super::reply::{Errno, internal, invalid};
use super::super::{Nothing, Reply, parameters};
use super::{TARGET, check_target};
use crate::jsonrpc::RpcError;
use crate::objects::{Transport, Trtype};
use crate::plane::Plane;
use crate::state::State;

/// The transport of this name.
pub(super) fn trtype_of(text: &str) -> Result<Trtype, RpcError> {
    Trtype::of_name(text).ok_or_else(|| {
        invalid(format_args!("trtype: there is no transport {text} here; use TCP or RDMA"))
    })
}

/// Clients send whatever their version of SPDK knows: only what means something here is looked at.
#[derive(Deserialize)]
struct CreateTransport {
    trtype: String,
    tgt_name: Option<String>,
    max_queue_depth: Option<u16>,
    max_io_qpairs_per_ctrlr: Option<u16>,
    in_capsule_data_size: Option<u32>,
    max_io_size: Option<u32>,
    max_srq_depth: Option<u32>,
    num_cqe: Option<u32>,
}

impl CreateTransport {
    /// What no subsystem could be served with is refused here, where it is asked for. What is more than there can be
    /// is not: it is a bound.
    fn check(&self) -> Result<(), RpcError> {
        let refused = [
            (
                "max_queue_depth",
                self.max_queue_depth.is_some_and(|depth| depth < 32),
                "has to be 32 or more",
            ),
            (
                "max_io_qpairs_per_ctrlr",
                self.max_io_qpairs_per_ctrlr == Some(0),
                "has to be 1 or more",
            ),
            (
                "in_capsule_data_size",
                self.in_capsule_data_size.is_some_and(|size| !size.is_multiple_of(16)),
                "has to be a multiple of 16",
            ),
            (
                "max_io_size",
                self.max_io_size.is_some_and(|size| size < 4096 || !size.is_power_of_two()),
                "has to be a power of two, 4096 or more",
            ),
        ];
        match refused.iter().find(|(_, wrong, _)| *wrong) {
            Some((name, _, what)) => Err(invalid(format_args!("{name} {what}"))),
            None => Ok(()),
        }
    }
}

pub(in crate::methods) fn create_transport(params: Value) -> Result<Edit, RpcError> {
    let wanted: CreateTransport = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    wanted.check()?;
    let trtype = trtype_of(&wanted.trtype)?;
    let transport = Transport {
        trtype,
        max_queue_depth: wanted.max_queue_depth,
        max_io_qpairs_per_ctrlr: wanted.max_io_qpairs_per_ctrlr,
        in_capsule_data_size: wanted.in_capsule_data_size,
        max_io_size: wanted.max_io_size,
        // Of RDMA alone.
        max_srq_depth: wanted.max_srq_depth.filter(|_| trtype == Trtype::Rdma),
        num_cqe: wanted.num_cqe.filter(|_| trtype == Trtype::Rdma),
    };
    Ok(Box::new(move |state| {
        if state.transports.contains_key(&trtype) {
            let name = trtype.as_str();
            return Err(internal(format_args!("Transport type '{name}' already exists")));
        }
        state.transports.insert(trtype, Arc::new(transport.clone()));
        Ok(Value::Bool(true))
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetTransports {
    trtype: Option<String>,
    tgt_name: Option<String>,
}

pub(in crate::methods) async fn get_transports(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: GetTransports = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let state = plane.state();
    let describe = |trtype: Trtype| {
        let waiting = plane.rdma_waiting().filter(|_| trtype == Trtype::Rdma);
        describe(&state, trtype, waiting)
    };
    match wanted.trtype.as_deref().map(trtype_of).transpose()? {
        None => Ok(state.transports.keys().map(|trtype| describe(*trtype)).collect()),
        Some(trtype) if state.transports.contains_key(&trtype) => Ok(json!([describe(trtype)])),
        Some(trtype) => Err(Errno::NoDevice.about(format_args!("transport {}", trtype.as_str()))),
    }
}

/// A transport as SPDK's clients read it, with what is in force; and why it is waited for, if it is.
fn describe(state: &State, trtype: Trtype, waiting: Option<String>) -> Value {
    let limits = state.transport_limits(trtype);
    let mut transport = json!({
        "trtype": trtype.as_str(),
        "max_queue_depth": limits.queue_depth,
        "max_io_qpairs_per_ctrlr": limits.io_queues,
        "in_capsule_data_size": limits.in_capsule,
        "max_io_size": limits.max_transfer,
        "max_aq_depth": limits.queue_depth,
    });
    let mut put = |name: &str, value: Value| {
        transport.as_object_mut().map(|it| it.insert(name.to_owned(), value));
    };
    match trtype {
        Trtype::Tcp => put("c2h_success", true.into()),
        Trtype::Rdma => {
            let config = state.rdma_config();
            put("max_srq_depth", config.shared_receives.into());
            put("no_srq", false.into());
            put("num_cqe", config.completions.into());
        }
    }
    if let Some(why) = waiting {
        put("tidegate_waiting", why.into());
    }
    transport
}

pub(in crate::methods) async fn get_targets(_: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    Ok(json!([TARGET]))
}
