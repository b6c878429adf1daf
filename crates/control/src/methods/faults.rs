//! Devices that are slow or fail on purpose, over others. That they are there is configuration and kept; which errors are
//! injected is not, as in SPDK: it ends with the process.

use std::num::NonZeroU8;
use std::sync::Arc;

use block::ErrorKind;
use block::injection::{Effect, Injection, InjectionDevice, Victim};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::bdev::{chosen, create, delete};
use super::edit::Edit;
use super::reply::{Errno, invalid};
use super::{Reply, parameters};
use crate::jsonrpc::RpcError;
use crate::objects::{Device, DeviceKind, Latencies, RateLimits};
use crate::plane::Plane;
use crate::state::{Opened, State};

/// The name of the device that fails over another.
pub(super) fn error_name(base: &str) -> String {
    format!("EE_{base}")
}

/// The name of a device that a client names in some way; one that is not there yet has the name that it will have.
fn name_of(state: &State, named: &str) -> String {
    state.device(named).map_or(named, |opened| opened.object.name.as_str()).to_owned()
}

/// A new layer needs its base for itself. One that is not there yet is named by its name.
pub(super) fn refuse_claimed(state: &State, device: &Device) -> Result<(), RpcError> {
    let Some(base) = device.kind.base() else { return Ok(()) };
    // By its UUID it would be found when a document is loaded, in which it comes first, and not when it comes later.
    if !state.devices.contains_key(base) && Uuid::try_parse(base).is_ok() {
        return Err(Errno::NoDevice.about(base));
    }
    let refuse = |problem| Err(Errno::NotPermitted.about(problem));
    if let Some(layer) = state.layer_on(base) {
        return refuse(format!("{} stands on {base} already", layer.object.name));
    }
    if let Some((nqn, nsid)) = state.users_of(base).first() {
        return refuse(format!("{base} is namespace {nsid} of {nqn}"));
    }
    let under = state.devices.get(base).map(|opened| &opened.object);
    let mut under = under.into_iter().flat_map(|base| state.below(base).chain([base]));
    if device.name == base || under.any(|it| it.kind.base() == Some(&device.name)) {
        return Err(Errno::Invalid.about(format_args!("{base} would stand on itself")));
    }
    Ok(())
}

/// A layer whose base is named as clients name devices.
fn create_layer(make: impl Fn(String) -> Device + Send + Sync + 'static, base: String) -> Edit {
    Box::new(move |state| create(make(name_of(state, &base)))?(state))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DelayCreate {
    name: String,
    base_bdev_name: String,
    uuid: Option<Uuid>,
    avg_read_latency: u64,
    p99_read_latency: u64,
    avg_write_latency: u64,
    p99_write_latency: u64,
}

pub(super) fn delay_create(params: Value) -> Result<Edit, RpcError> {
    let wanted: DelayCreate = parameters(params)?;
    let latencies = Latencies {
        avg_read: wanted.avg_read_latency,
        p99_read: wanted.p99_read_latency,
        avg_write: wanted.avg_write_latency,
        p99_write: wanted.p99_write_latency,
    };
    if !latencies.are_in_order() {
        return Err(Errno::Invalid.about("a p99 latency is less than the average one"));
    }
    let (name, uuid) = (wanted.name, Some(chosen(wanted.uuid)));
    let make = move |base| Device {
        name: name.clone(),
        uuid,
        kind: DeviceKind::Delay { base, latencies },
        limits: RateLimits::default(),
    };
    Ok(create_layer(make, wanted.base_bdev_name))
}

/// What SPDK says of such a device, and what makes it.
pub(super) fn delay_parameters(
    name: &str,
    uuid: Option<Uuid>,
    base: &str,
    latencies: Latencies,
) -> Value {
    json!({
        "name": name,
        "base_bdev_name": base,
        "uuid": uuid,
        "avg_read_latency": latencies.avg_read,
        "p99_read_latency": latencies.p99_read,
        "avg_write_latency": latencies.avg_write,
        "p99_write_latency": latencies.p99_write,
    })
}

pub(super) fn delay_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| matches!(kind, DeviceKind::Delay { .. }))
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum LatencyType {
    AvgRead,
    P99Read,
    AvgWrite,
    P99Write,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateLatency {
    delay_bdev_name: String,
    latency_type: LatencyType,
    latency_us: u64,
}

pub(super) fn delay_update_latency(params: Value) -> Result<Edit, RpcError> {
    let UpdateLatency { delay_bdev_name: wanted, latency_type, latency_us } = parameters(params)?;
    Ok(Box::new(move |state| {
        // SPDK's text.
        let missing = || invalid(format_args!("{wanted}: The requested bdev does not exist."));
        let opened = state.device(&wanted).ok_or_else(missing)?;
        let mut object = opened.object.clone();
        let DeviceKind::Delay { latencies, .. } = &mut object.kind else { return Err(missing()) };
        *match latency_type {
            LatencyType::AvgRead => &mut latencies.avg_read,
            LatencyType::P99Read => &mut latencies.p99_read,
            LatencyType::AvgWrite => &mut latencies.avg_write,
            LatencyType::P99Write => &mut latencies.p99_write,
        } = latency_us;
        let other = Opened { object, ..Opened::clone(opened) };
        state.devices.insert(other.object.name.clone(), Arc::new(other));
        Ok(Value::Bool(true))
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorCreate {
    base_name: String,
    uuid: Option<Uuid>,
}

/// Answers `true` and not the name: that follows from the base's.
pub(super) fn error_create(params: Value) -> Result<Edit, RpcError> {
    let wanted: ErrorCreate = parameters(params)?;
    let uuid = Some(chosen(wanted.uuid));
    let make = move |base: String| Device {
        name: error_name(&base),
        uuid,
        kind: DeviceKind::Error { base },
        limits: RateLimits::default(),
    };
    let edit = create_layer(make, wanted.base_name);
    Ok(Box::new(move |state| edit(state).map(|_| Value::Bool(true))))
}

pub(super) fn error_delete(params: Value) -> Result<Edit, RpcError> {
    delete(params, |kind| matches!(kind, DeviceKind::Error { .. }))
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum IoType {
    Clear,
    Read,
    Write,
    Unmap,
    Flush,
    All,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum ErrorType {
    Failure,
    NvmeFailure,
    Pending,
    CorruptData,
    Nomem,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InjectError {
    name: String,
    io_type: IoType,
    error_type: ErrorType,
    #[serde(default)]
    nvme_sct: u32,
    #[serde(default)]
    nvme_sc: u32,
    #[serde(default = "once")]
    num: u32,
    #[serde(default)]
    queue_depth: u64,
    #[serde(default)]
    corrupt_offset: u64,
    #[serde(default)]
    corrupt_value: u8,
}

fn once() -> u32 {
    1
}

impl InjectError {
    fn effect(&self) -> Result<Effect, RpcError> {
        let refuse = |problem: &str| Err(Errno::Invalid.about(problem));
        let has_status = (self.nvme_sct, self.nvme_sc) != (0, 0);
        if has_status != (self.error_type == ErrorType::NvmeFailure) {
            return refuse("nvme_sct or nvme_sc should be specified for NVMe error injection");
        }
        Ok(match self.error_type {
            ErrorType::Failure => Effect::Fail(ErrorKind::Internal),
            ErrorType::Pending => Effect::Pend,
            ErrorType::Nomem => Effect::NoMemory,
            ErrorType::NvmeFailure => {
                let sct = u8::try_from(self.nvme_sct).ok().filter(|sct| *sct <= 7);
                let (Some(sct), Ok(sc)) = (sct, u8::try_from(self.nvme_sc)) else {
                    return refuse("nvme_sct is 7 at most, nvme_sc 255");
                };
                Effect::Fail(ErrorKind::Status { sct, sc })
            }
            ErrorType::CorruptData => match NonZeroU8::new(self.corrupt_value) {
                Some(value) => Effect::Corrupt { offset: self.corrupt_offset, value },
                None => return refuse("corrupt_value should be non-zero"),
            },
        })
    }
}

/// The device of this name that can be made to fail.
fn find<'a>(state: &'a State, name: &str) -> Result<&'a InjectionDevice, RpcError> {
    let missing = || Errno::NoDevice.about(name);
    let opened = state.device(name).ok_or_else(missing)?;
    match (&opened.object.kind, &opened.device) {
        (DeviceKind::Error { .. }, Err(waiting)) => {
            Err(Errno::NoDevice.about(format_args!("{name}: {waiting}")))
        }
        _ => opened.injection().ok_or_else(missing),
    }
}

pub(super) async fn inject_error(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: InjectError = parameters(params)?;
    let effect = wanted.effect()?;
    let state = plane.state();
    let device = find(&state, &wanted.name)?;
    let injection = Injection { effect, count: wanted.num, queue_depth: wanted.queue_depth };
    let victims: &[Victim] = match wanted.io_type {
        IoType::Clear => {
            device.clear();
            &[]
        }
        IoType::Read => &[Victim::Read],
        IoType::Write => &[Victim::Write],
        IoType::Unmap => &[Victim::Deallocate],
        IoType::Flush => &[Victim::Flush],
        IoType::All => &Victim::ALL,
    };
    for victim in victims {
        device.inject(*victim, injection);
    }
    Ok(Value::Bool(true))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResumePending {
    name: String,
}

pub(super) async fn resume_pending(plane: Arc<Plane>, params: Value) -> Reply {
    let ResumePending { name } = parameters(params)?;
    find(&plane.state(), &name)?.resume();
    Ok(Value::Bool(true))
}
