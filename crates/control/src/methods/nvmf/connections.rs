//! Who is connected: controllers, queue pairs, and what each reactor has of them.
//!
//! Reactors are asked for it by letter, from a thread that may wait.

use std::net::SocketAddr;
use std::sync::Arc;

use node::{Census, Node, NodeError};
use nvme::address::TransportType;
use serde::Deserialize;
use serde_json::{Value, json};
use target::shard::report::{ControllerReport, QueueState};
use transport_rdma::DeviceCounters;
use uuid::Uuid;

use super::super::iostat::TICK_RATE;
use super::super::reply::{internal, invalid};
use super::super::threads::thread_name;
use super::super::{Reply, parameters};
use super::subsystems::OneSubsystem;
use super::{check_target, listeners, nqn_of};
use crate::jsonrpc::RpcError;
use crate::objects::{Address, Trtype};
use crate::plane::Plane;

/// Asks the node something on a thread that may wait.
async fn ask<T: Send + 'static>(
    plane: Arc<Plane>,
    question: fn(&Node) -> Result<T, NodeError>,
) -> Result<T, RpcError> {
    let answer = tokio::task::spawn_blocking(move || question(plane.node())).await;
    answer.map_err(internal)?.map_err(internal)
}

/// The controllers of one subsystem.
async fn controllers(plane: Arc<Plane>, params: Value) -> Result<Vec<ControllerReport>, RpcError> {
    let wanted: OneSubsystem = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let nqn = nqn_of(&wanted.nqn)?;
    if !nqn.is_discovery() && !plane.state().subsystems.contains_key(&nqn) {
        return Err(invalid(format_args!("there is no subsystem {nqn}")));
    }
    let mut controllers = ask(plane, Node::controllers).await?;
    controllers.retain(|it| match &it.subsystem {
        Some(subsystem) => *subsystem == nqn,
        None => nqn.is_discovery(),
    });
    controllers.sort_by_key(|it| it.cntlid);
    Ok(controllers)
}

pub(in crate::methods) async fn get_controllers(plane: Arc<Plane>, params: Value) -> Reply {
    let controllers = controllers(plane, params).await?;
    let describe = |it: &ControllerReport| {
        json!({
            "cntlid": it.cntlid,
            "cntrltype": if it.subsystem.is_some() { "io" } else { "discovery" },
            "hostnqn": it.host.as_str(),
            "hostid": Uuid::from_bytes(it.host_id.0),
            "num_io_qpairs": it.io_queues,
        })
    };
    Ok(controllers.iter().map(describe).collect())
}

pub(in crate::methods) async fn get_qpairs(plane: Arc<Plane>, params: Value) -> Reply {
    let controllers = controllers(Arc::clone(&plane), params).await?;
    let mut pairs = Vec::new();
    for (reactor, queues) in ask(plane, Node::queues).await?.into_iter().enumerate() {
        for queue in queues {
            let Some((cntlid, qid)) = queue.of else { continue };
            let controller = controllers.binary_search_by_key(&cntlid, |it| it.cntlid);
            let controller = controller.ok().and_then(|at| controllers.get(at));
            let Some(controller) = controller else { continue };
            pairs.push(json!({
                "cntlid": cntlid,
                "qid": qid,
                "state": state(queue.state),
                "thread": thread_name(reactor),
                "hostnqn": controller.host.as_str(),
                "listen_address": address(queue.info.transport, queue.info.local),
                "peer_address": address(queue.info.transport, queue.info.peer),
                "tidegate_depth": queue.entries,
            }));
        }
    }
    Ok(Value::Array(pairs))
}

fn state(state: QueueState) -> &'static str {
    match state {
        QueueState::Unconnected => "uninitialized",
        QueueState::Connecting => "connecting",
        QueueState::Enabled => "enabled",
        QueueState::Ending => "deactivating",
    }
}

fn address(transport: TransportType, address: SocketAddr) -> Value {
    let trtype = if transport == TransportType::Rdma { Trtype::Rdma } else { Trtype::Tcp };
    let (traddr, trsvcid) = (address.ip().to_canonical(), address.port());
    listeners::describe(&Address { trtype, traddr, trsvcid })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetStats {
    tgt_name: Option<String>,
}

pub(in crate::methods) async fn get_stats(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: GetStats = parameters(params)?;
    check_target(wanted.tgt_name.as_deref())?;
    let counted = ask(Arc::clone(&plane), Node::census).await?;
    let queues = ask(Arc::clone(&plane), Node::queues).await?;
    let rdma = plane.node().rdma().map(|rdma| rdma.network().counters());
    let groups = counted.iter().zip(queues).enumerate().map(|(reactor, (census, queues))| {
        let count = |wanted: fn(Option<(u16, u16)>) -> bool| {
            queues.iter().filter(|queue| wanted(queue.of)).count()
        };
        json!({
            "name": thread_name(reactor),
            "admin_qpairs": census.counters.controllers_created,
            "io_qpairs": census.counters.io_queues_connected,
            "current_admin_qpairs": count(|of| matches!(of, Some((_, 0)))),
            "current_io_qpairs": count(|of| matches!(of, Some((_, 1..)))),
            "current_unassociated_qpairs": count(|of| of.is_none()),
            // A device here never refuses an operation for want of anything.
            "pending_bdev_io": 0,
            "completed_nvme_io": census.counters.answered_io,
            "tidegate_lent_reads": census.counters.lent,
            "tidegate_not_lent_reads": census.counters.not_lent,
            "tidegate_given_back_reads": census.counters.given_back,
            "transports": transports(reactor, census, rdma.as_deref()),
        })
    });
    let groups: Value = groups.collect();
    Ok(json!({ "tick_rate": TICK_RATE, "poll_groups": groups }))
}

/// What the transports of a reactor have counted: in SPDK's words, and only what is counted here.
fn transports(reactor: usize, census: &Census, rdma: Option<&[DeviceCounters]>) -> Value {
    let rdma = rdma.map(|counted| {
        let here = counted.iter().filter(|it| it.reactor == reactor);
        json!({
            "trtype": "RDMA",
            // The transports of a reactor share its memory.
            "pending_data_buffer": census.counters.buffer_waits,
            "devices": here.map(device).collect::<Value>(),
        })
    });
    [Some(json!({ "trtype": "TCP" })), rdma].into_iter().flatten().collect()
}

fn device(counted: &DeviceCounters) -> Value {
    let values = &counted.values;
    json!({
        "name": counted.device,
        "completions": values.completions,
        "requests": values.commands,
        "pending_rdma_read": values.reads_delayed,
        "total_send_wrs": values.reads.wrapping_add(values.writes).wrapping_add(values.responses),
        "send_doorbell_updates": values.posts,
        "total_recv_wrs": values.receives,
        "recv_doorbell_updates": values.receive_posts,
    })
}
