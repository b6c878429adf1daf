//! A firmware for a controller: downloaded in pieces, committed, activated by a reset.

use std::sync::Arc;
use std::sync::mpsc;

use nvme::admin::Opcode;
use nvme::{Sqe, Status, U32};
use nvme_pcie::Controller;
use serde::Deserialize;
use serde_json::Value;

use super::command::{carry_out, reset};
use crate::jsonrpc::RpcError;
use crate::methods::reply::internal;
use crate::methods::{Reply, parameters};
use crate::plane::Plane;

/// Bytes of the image that are sent at a time, where that is left open; the unit of granularity (FWUG), too.
const PIECE: usize = 4096;

/// More than any image has.
const IMAGE_MOST: u64 = 256 << 20;

/// Commit Action: the image replaces that in the slot, and is activated at the next reset.
const REPLACE_AND_ACTIVATE: u32 = 1 << 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    /// The image, as the daemon sees it.
    filename: String,
    /// A namespace of the controller.
    bdev_name: String,
}

fn read(filename: &str) -> Result<Vec<u8>, RpcError> {
    let failed = |error| internal(format_args!("open file failed.: {filename}: {error}"));
    let size = std::fs::metadata(filename).map_err(failed)?.len();
    if size == 0 || size > IMAGE_MOST {
        return Err(internal(format_args!("Read firmware image failed!: it has {size} bytes")));
    }
    if size % 4 != 0 {
        return Err(internal("Firmware image size is not multiple of 4."));
    }
    std::fs::read(filename).map_err(failed)
}

pub(in crate::methods) async fn apply_firmware(plane: Arc<Plane>, params: Value) -> Reply {
    let Apply { filename, bdev_name } = parameters(params)?;
    let state = plane.state();
    let device = state.device(&bdev_name).ok_or_else(|| {
        internal(format_args!("bdev {bdev_name} could not be opened: there is none"))
    })?;
    let unknown =
        || internal(format_args!("Controller information for {bdev_name} were not found."));
    let (name, _) = device.object.kind.controller().ok_or_else(unknown)?;
    let attached = state.controllers.get(name).ok_or_else(unknown)?;
    let controller = attached.controller.clone().map_err(|waiting| {
        internal(format_args!("bdev {bdev_name} could not be opened: {waiting}"))
    })?;
    let image = tokio::task::spawn_blocking(move || read(&filename));
    let image = image.await.map_err(internal)??;
    download(&controller, &image).await?;
    let when = commit(&controller).await?;
    match when {
        Activation::Reset => {
            let failed = |problem| internal(format_args!("Controller reset failed.: {problem}"));
            reset(&controller).await.map_err(failed)?;
            Ok("firmware commit succeeded. Controller reset done.".into())
        }
        Activation::Elsewhere(what) => {
            Ok(format!("firmware commit succeeded. It is activated by {what}.").into())
        }
    }
}

/// Has the controller carry out a command; its status.
async fn ask(controller: &Controller, sqe: Sqe, data: Vec<u8>) -> Result<Status, String> {
    let (done, answer) = mpsc::channel();
    controller.admin(sqe, 0, data, None, done).map_err(|status| status.to_string())?;
    let answer = carry_out(answer).await.map_err(|error| error.to_string())?;
    Ok(answer.completion.status())
}

async fn download(controller: &Controller, image: &[u8]) -> Result<(), RpcError> {
    let failed = |problem: String| internal(format_args!("firmware download failed .: {problem}"));
    let granularity = controller.identification().map_or(0, |it| it.identify.fwug);
    // 0: nothing is said; FFh: there is no limit.
    let piece = if matches!(granularity, 0 | 0xFF) { 1 } else { usize::from(granularity) } * PIECE;
    let mut offset = 0_u32;
    for bytes in image.chunks(piece) {
        let dwords = u32::try_from(bytes.len() / 4).unwrap_or(u32::MAX);
        let sqe = Sqe {
            opcode: Opcode::FirmwareImageDownload.code(),
            cdw10: U32::new(dwords.saturating_sub(1)),
            cdw11: U32::new(offset),
            ..Sqe::default()
        };
        let status = ask(controller, sqe, bytes.to_vec()).await.map_err(failed)?;
        if !status.is_success() {
            return Err(failed(status.to_string()));
        }
        offset = offset.saturating_add(dwords);
    }
    Ok(())
}

/// When an image that has been committed is activated.
enum Activation {
    /// By a reset of the controller.
    Reset,
    /// By something that cannot be done from here.
    Elsewhere(&'static str),
}

async fn commit(controller: &Controller) -> Result<Activation, RpcError> {
    let failed = |problem: String| internal(format_args!("firmware commit failed.: {problem}"));
    let sqe = Sqe {
        opcode: Opcode::FirmwareCommit.code(),
        cdw10: U32::new(REPLACE_AND_ACTIVATE),
        ..Sqe::default()
    };
    let status = ask(controller, sqe, Vec::new()).await.map_err(failed)?;
    let is = |other: Status| status.same_code(other);
    if status.is_success() || is(Status::FIRMWARE_NEEDS_CONTROLLER_RESET) {
        Ok(Activation::Reset)
    } else if is(Status::FIRMWARE_NEEDS_CONVENTIONAL_RESET) {
        Ok(Activation::Elsewhere("a restart of the machine"))
    } else if is(Status::FIRMWARE_NEEDS_SUBSYSTEM_RESET) {
        Ok(Activation::Elsewhere("a reset of the NVM subsystem, or a restart of the machine"))
    } else {
        Err(failed(status.to_string()))
    }
}
