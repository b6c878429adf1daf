//! What the operations of block devices have come to, as SPDK's clients read it.
//!
//! A tick is a nanosecond, and a channel is a reactor's share.

use std::sync::Arc;

use reactor::Clock;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use target::statistics::{Class, ERRORS};

use super::reply::Errno;
use super::{Reply, parameters};
use crate::jsonrpc::RpcError;
use crate::plane::Plane;
use crate::state::Opened;
use crate::statistics::{Figures, Reset};

/// Ticks in a second.
pub(super) const TICK_RATE: u64 = 1_000_000_000;

/// The time now.
pub(super) fn ticks() -> u64 {
    Clock::monotonic().now().as_nanos()
}

/// What SPDK's clients know the thread of a reactor by: a number from 1.
pub(super) fn thread_id(reactor: usize) -> usize {
    reactor.saturating_add(1)
}

/// The devices of these names, or all.
fn devices(plane: &Plane, names: Option<Vec<String>>) -> Result<Vec<Arc<Opened>>, RpcError> {
    let state = plane.state();
    match names {
        None => Ok(state.devices.values().cloned().collect()),
        Some(names) => names
            .into_iter()
            .map(|name| match state.device(&name) {
                Some(opened) => Ok(Arc::clone(opened)),
                None => Err(Errno::NoDevice.about(name)),
            })
            .collect(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetIostat {
    names: Option<Vec<String>>,
    /// What older clients send.
    name: Option<String>,
    #[serde(default)]
    per_channel: bool,
    reset_mode: Option<Reset>,
}

pub(super) async fn get_iostat(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: GetIostat = parameters(params)?;
    let names = wanted.names.or_else(|| wanted.name.map(|name| vec![name]));
    if wanted.per_channel && names.as_ref().is_none_or(|names| names.len() != 1) {
        return Err(Errno::Invalid.about("per_channel: name one bdev"));
    }
    let devices = devices(&plane, names)?;
    let reset = wanted.reset_mode.unwrap_or(Reset::None);
    let (tick_rate, ticks) = (TICK_RATE, ticks());
    if let (true, [opened]) = (wanted.per_channel, devices.as_slice()) {
        let channels = opened.statistics.figures(reset).into_iter().map(|(shard, figures)| {
            let mut channel = Map::new();
            channel.insert("thread_id".to_owned(), thread_id(shard.0.into()).into());
            describe(&figures, &mut channel);
            Value::Object(channel)
        });
        let channels: Value = channels.collect();
        let name = &opened.object.name;
        return Ok(json!({
            "tick_rate": tick_rate, "ticks": ticks, "name": name, "channels": channels,
        }));
    }
    let devices = devices.iter().map(|opened| {
        let mut total = Figures::default();
        for (_, figures) in opened.statistics.figures(reset) {
            total += &figures;
        }
        let mut device = Map::new();
        device.insert("name".to_owned(), opened.object.name.clone().into());
        describe(&total, &mut device);
        Value::Object(device)
    });
    let devices: Value = devices.collect();
    Ok(json!({ "tick_rate": tick_rate, "ticks": ticks, "bdevs": devices }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetIostat {
    name: Option<String>,
    mode: Option<Reset>,
}

pub(super) async fn reset_iostat(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: ResetIostat = parameters(params)?;
    for opened in devices(&plane, wanted.name.map(|name| vec![name]))? {
        opened.statistics.figures(wanted.mode.unwrap_or(Reset::All));
    }
    Ok(Value::Bool(true))
}

/// The names under which SPDK has them: of the bytes, of the operations, and of the latencies.
const CLASSES: [(Class, &str, &str, &str); 3] = [
    (Class::Read, "bytes_read", "num_read_ops", "read"),
    (Class::Write, "bytes_written", "num_write_ops", "write"),
    (Class::Deallocate, "bytes_unmapped", "num_unmap_ops", "unmap"),
];

/// Writes figures down. There is no copy operation: its figures are nought.
fn describe(figures: &Figures, to: &mut Map<String, Value>) {
    for (class, bytes, operations, latency) in CLASSES {
        let counts = figures.counts.class(class);
        let extremes = figures.extremes.class(class);
        to.insert(bytes.to_owned(), counts.bytes.into());
        to.insert(operations.to_owned(), counts.operations().into());
        to.insert(format!("{latency}_latency_ticks"), counts.nanos.into());
        let longest = extremes.longest().unwrap_or(0);
        to.insert(format!("max_{latency}_latency_ticks"), longest.into());
        let shortest = extremes.shortest().unwrap_or(0);
        to.insert(format!("min_{latency}_latency_ticks"), shortest.into());
    }
    for name in [
        "bytes_copied",
        "num_copy_ops",
        "copy_latency_ticks",
        "max_copy_latency_ticks",
        "min_copy_latency_ticks",
    ] {
        to.insert(name.to_owned(), 0.into());
    }
    to.insert("io_error".to_owned(), errors(figures));
}

/// Only those that there were, as in SPDK, which has fewer names for them.
fn errors(figures: &Figures) -> Value {
    let mut errors = Map::new();
    for ((kind, _), count) in ERRORS.into_iter().zip(figures.errors) {
        let name = match kind {
            block::ErrorKind::Miscompare => "miscompare",
            block::ErrorKind::Aborted => "aborted",
            _ => "failed",
        };
        let sum = errors.get(name).and_then(Value::as_u64).unwrap_or(0).saturating_add(count);
        if sum > 0 {
            errors.insert(name.to_owned(), sum.into());
        }
    }
    Value::Object(errors)
}
