//! Devices that get another size. Hosts are told by the shards, which see it in the device or in what replaces it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::edit::Edit;
use super::reply::{Errno, invalid, unopened};
use super::{Reply, parameters};
use crate::jsonrpc::RpcError;
use crate::objects::{Device, DeviceKind, FileMethod};
use crate::plane::Plane;
use crate::state::Opened;

const MIB: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NullResize {
    name: String,
    /// In MiB.
    new_size: u64,
}

pub(super) fn null_resize(params: Value) -> Result<Edit, RpcError> {
    let NullResize { name, new_size } = parameters(params)?;
    let bytes = new_size.checked_mul(MIB);
    let bytes = bytes.ok_or_else(|| invalid(format_args!("new_size: {new_size} MiB cannot be")))?;
    Ok(Box::new(move |state| {
        let missing = || Errno::NoDevice.about(&name);
        let opened = state.device(&name).ok_or_else(missing)?;
        let Device { name, uuid, kind, limits } = &opened.object;
        let DeviceKind::Null { size, block_size } = *kind else {
            return Err(invalid(format_args!("name: {name} is no null device")));
        };
        if bytes < size {
            return Err(invalid(format_args!(
                "new_size: {name} has {size} bytes and cannot shrink"
            )));
        }
        let kind = DeviceKind::Null { size: bytes, block_size };
        let device = Device { name: name.clone(), uuid: *uuid, kind, limits: *limits };
        let larger = Opened { object: device, ..Opened::clone(opened) };
        state.devices.insert(larger.object.name.clone(), Arc::new(larger));
        Ok(Value::Bool(true))
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rescan {
    name: String,
}

/// Looks how large the file is now.
async fn rescan(plane: Arc<Plane>, params: Value, method: FileMethod) -> Reply {
    let Rescan { name } = parameters(params)?;
    let state = plane.state();
    let opened = state.device(&name).filter(|opened| {
        matches!(opened.object.kind, DeviceKind::File { made_as, .. } if made_as == method)
    });
    let opened = opened.ok_or_else(|| Errno::NoDevice.about(&name))?;
    let device = opened.device.as_ref().map_err(|waiting| Errno::NoDevice.about(waiting))?;
    plane.rescan(device).await.map_err(|error| unopened(&error))?;
    Ok(Value::Bool(true))
}

pub(super) async fn aio_rescan(plane: Arc<Plane>, params: Value) -> Reply {
    rescan(plane, params, FileMethod::Aio).await
}

pub(super) async fn uring_rescan(plane: Arc<Plane>, params: Value) -> Reply {
    rescan(plane, params, FileMethod::Uring).await
}
