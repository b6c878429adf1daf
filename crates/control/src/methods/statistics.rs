//! Everything that is counted, at one moment: `tidegate_get_statistics`.
//!
//! The figures and names are those of `/metrics`, so that one table has them; what only rates and percentiles need is
//! finer: the time of the snapshot, and each bucket of a latency histogram in which something is. Whoever asks
//! twice and subtracts has rates, mean depths and percentiles of the time between.
//!
//! It costs what a page of `/metrics` costs: one letter to each reactor for each 64 of its controllers and queues,
//! and no I/O anything. *Rejected:* SPDK's calls one by one, whose answers are of different moments, and whose histograms
//! belong to the client that enabled them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use node::{Census, Node, Reactor};
use nvme::nqn::DISCOVERY_NQN;
use serde_json::{Map, Value, json};
use target::shard::report::ControllerReport;
use target::statistics::{Class, ClassSnapshot, ERRORS, histogram};

use super::iostat::TICK_RATE;
use super::reply::internal;
use super::{Nothing, Reply, parameters};
use crate::pages::snapshot::{Device, Snapshot};
use crate::pages::tables;
use crate::plane::Plane;

pub(super) async fn get_statistics(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    // On a thread that may wait.
    let taken = tokio::task::spawn_blocking(move || (Snapshot::of(&plane), peers(plane.node())));
    let (snapshot, peers) = taken.await.map_err(internal)?;
    let reactors = snapshot.reactors.iter().enumerate();
    let reactors = reactors.map(|(number, it)| reactor(number, it, snapshot.shards.get(number)));
    let controllers =
        snapshot.controllers.iter().map(|it| controller(it, peers.get(&it.cntlid).copied()));
    Ok(json!({
        "tick_rate": TICK_RATE,
        "ticks": snapshot.ticks,
        "reactors": reactors.collect::<Value>(),
        "devices": snapshot.devices.iter().map(device).collect::<Value>(),
        "controllers": controllers.collect::<Value>(),
    }))
}

/// From where each controller's host has connected its admin queue.
fn peers(node: &Node) -> HashMap<u16, SocketAddr> {
    let queues = node.queues().unwrap_or_default().into_iter().flatten();
    let admin = queues.filter_map(|queue| match queue.of {
        Some((cntlid, 0)) => Some((cntlid, queue.info.peer)),
        _ => None,
    });
    admin.collect()
}

/// Puts the figures of a table under their names, without what they are of.
fn put<T>(to: &mut Map<String, Value>, prefix: &str, table: &[tables::Figure<T>], from: &T) {
    for (name, _, read) in table {
        let name = name.strip_prefix(prefix).unwrap_or(name);
        to.insert(name.to_owned(), read(from).into());
    }
}

/// A reactor, with what its shard has, if it answered.
fn reactor(number: usize, it: &Reactor, census: Option<&Census>) -> Value {
    let mut object = Map::new();
    object.insert("reactor".to_owned(), number.into());
    object.insert("core".to_owned(), it.core.into());
    for (name, nanos) in [
        ("busy", it.counters.busy_nanos),
        ("idle", it.counters.idle_nanos),
        ("sleep", it.counters.sleep_nanos),
    ] {
        object.insert(name.to_owned(), nanos.into());
    }
    put(&mut object, "reactor_", tables::REACTOR_COUNTERS, &it.counters);
    if let Some(census) = census {
        put(&mut object, "reactor_", tables::SHARD_GAUGES, census);
        put(&mut object, "reactor_", tables::SHARD_COUNTERS, census);
    }
    Value::Object(object)
}

/// A device; of its classes of operations those that it has carried out.
fn device(it: &Device) -> Value {
    let classes = Class::ALL.into_iter().map(|class| (class, it.counted.class(class)));
    let classes = classes.filter(|(_, counts)| counts.operations() > 0);
    let classes = classes.map(|(class, counts)| (class.name().to_owned(), operations(counts)));
    let errors = ERRORS.into_iter().zip(it.counted.errors).filter(|(_, count)| *count > 0);
    let errors = errors.map(|((_, error), count)| (error.to_owned(), count.into()));
    json!({
        "device": it.name,
        "size_bytes": it.size,
        "operations_in_flight": it.counted.in_flight(),
        "operations": classes.collect::<Map<_, _>>(),
        "errors": errors.collect::<Map<_, _>>(),
    })
}

/// The operations of a class: how many, how much, how long in all, and how many took from when to when.
fn operations(counts: &ClassSnapshot) -> Value {
    let used = counts.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
    let buckets = used.map(|(at, count)| {
        Value::from([histogram::start(at), histogram::start(at.saturating_add(1)), *count])
    });
    json!({
        "count": counts.operations(),
        "bytes": counts.bytes,
        "latency_ticks": counts.nanos,
        "latency_buckets": buckets.collect::<Value>(),
    })
}

fn controller(it: &ControllerReport, peer: Option<SocketAddr>) -> Value {
    let mut object = Map::new();
    object.insert("controller".to_owned(), it.cntlid.into());
    let subsystem = it.subsystem.as_ref().map_or(DISCOVERY_NQN, |it| it.as_str());
    object.insert("subsystem".to_owned(), subsystem.into());
    object.insert("host".to_owned(), it.host.as_str().into());
    let peer = peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string());
    object.insert("peer".to_owned(), peer.into());
    put(&mut object, "controller_", tables::CONTROLLER_GAUGES, it);
    put(&mut object, "controller_", tables::CONTROLLER_COUNTERS, it);
    Value::Object(object)
}
