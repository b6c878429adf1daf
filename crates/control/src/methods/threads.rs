//! The reactors, as SPDK's clients know them: one thread on each, which serves its share of everything. None of them
//! is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::iostat::{TICK_RATE, thread_id};
use super::{Nothing, Reply, parameters};
use crate::plane::Plane;

/// The name of a reactor's thread; clients look for "poll" in it.
pub(super) fn thread_name(reactor: usize) -> String {
    format!("nvmf_tgt_poll_group_{reactor:03}")
}

/// One object for each reactor.
fn each(plane: &Plane, name: &str, describe: impl Fn(usize, &node::Reactor) -> Value) -> Value {
    let reactors = plane.node().reactors();
    let each = reactors.iter().enumerate().map(|(number, it)| describe(number, it));
    let each: Value = each.collect();
    json!({ "tick_rate": TICK_RATE, name: each })
}

/// The core as a bit in SPDK's form. A reactor that is bound to none has that of its number.
fn mask(core: usize) -> String {
    format!("{:x}", u32::try_from(core).ok().and_then(|core| 1_u128.checked_shl(core)).unwrap_or(0))
}

pub(super) async fn get_stats(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    Ok(each(&plane, "threads", |number, it| {
        let counters = &it.counters;
        json!({
            "name": thread_name(number),
            "id": thread_id(number),
            "cpumask": mask(it.core.unwrap_or(number)),
            "busy": counters.busy_nanos,
            "idle": counters.idle_nanos.saturating_add(counters.sleep_nanos),
            "active_pollers_count": it.pollers.len(),
            "timed_pollers_count": 0,
            "paused_pollers_count": 0,
        })
    }))
}

/// Every poller runs in every turn; that one of them was busy is counted of all together.
pub(super) async fn get_pollers(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    Ok(each(&plane, "threads", |number, it| {
        let pollers = it.pollers.iter().enumerate().map(|(id, name)| {
            json!({
                "name": name,
                "id": id + 1,
                "state": "waiting",
                "run_count": it.counters.turns,
                "busy_count": it.counters.busy_turns,
            })
        });
        json!({
            "name": thread_name(number),
            "id": thread_id(number),
            "active_pollers": pollers.collect::<Value>(),
            "timed_pollers": [],
            "paused_pollers": [],
        })
    }))
}

/// A channel is a reactor's way to a device, and each namespace over the device holds it.
pub(super) async fn get_io_channels(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    let state = plane.state();
    let mut users = BTreeMap::new();
    for subsystem in state.subsystems.values() {
        for namespace in subsystem.namespaces.values() {
            *users.entry(&namespace.device).or_insert(0_u32) += 1;
        }
    }
    let open = |name: &str| state.devices.get(name).is_some_and(|it| it.device.is_ok());
    users.retain(|name, _| open(name));
    Ok(each(&plane, "threads", |number, _| {
        let channels = users.iter().map(|(name, users)| json!({ "name": name, "ref": users }));
        json!({ "name": thread_name(number), "io_channels": channels.collect::<Value>() })
    }))
}

pub(super) async fn get_reactors(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    let mut reply = each(&plane, "reactors", |number, it| {
        let core = it.core.unwrap_or(number);
        let counters = &it.counters;
        let (busy, idle, slept) = (counters.busy_nanos, counters.idle_nanos, counters.sleep_nanos);
        let elapsed = busy.saturating_add(idle).saturating_add(slept);
        json!({
            "lcore": core,
            "busy": busy,
            "idle": idle.saturating_add(slept),
            "tidegate_sleep": slept,
            "in_interrupt": it.sleeps,
            // Not looked up: SPDK has noughts, too, where it cannot.
            "irq": 0,
            "sys": 0,
            "usr": 0,
            "lw_threads": [{
                "name": thread_name(number),
                "id": thread_id(number),
                "cpumask": mask(core),
                "elapsed": elapsed,
            }],
        })
    });
    if let Some(reply) = reply.as_object_mut() {
        reply.insert("pid".to_owned(), std::process::id().into());
    }
    Ok(reply)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MonitorContextSwitch {
    /// None: only asks.
    enabled: Option<bool>,
}

pub(super) async fn monitor_context_switch(plane: Arc<Plane>, params: Value) -> Reply {
    let MonitorContextSwitch { enabled } = parameters(params)?;
    let switches = plane.context_switches();
    if let Some(enabled) = enabled {
        switches.enable(enabled);
    }
    Ok(json!({ "enabled": switches.is_enabled() }))
}
