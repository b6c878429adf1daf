//! What is asked of a controller that is attached: a reset, an admin command of somebody's own making.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use nvme::Sqe;
use nvme_pcie::{AdminError, Answer};
use serde::Deserialize;
use serde_json::{Value, json};
use zerocopy::{FromBytes, IntoBytes};

use super::find;
use crate::jsonrpc::RpcError;
use crate::methods::reply::{Errno, internal, invalid};
use crate::methods::{Reply, parameters};
use crate::plane::Plane;
use crate::state::State;

/// As SPDK writes it; what clients send may lack the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The most data of a command that anybody may ask for: more than any controller takes at a time.
const DATA_MOST: u32 = 16 << 20;

/// What comes from the controller's thread.
async fn told<T: Send + 'static>(receiver: Receiver<T>) -> Option<T> {
    let heard = tokio::task::spawn_blocking(move || receiver.recv().ok());
    heard.await.ok().flatten()
}

/// What the controller says to an admin command that has been given to it.
pub(super) async fn carry_out(
    answer: Receiver<Result<Answer, AdminError>>,
) -> Result<Answer, AdminError> {
    told(answer).await.unwrap_or(Err(AdminError::NotInService))
}

/// A controller that is attached.
pub(super) fn attached(state: &State, name: &str) -> Result<Arc<nvme_pcie::Controller>, RpcError> {
    let found = find(state, name)?.controller.clone();
    found.map_err(|waiting| Errno::NoDevice.about(format_args!("{name}: {waiting}")))
}

/// Resets a controller; back when it is in service, or has failed.
pub(super) async fn reset(controller: &nvme_pcie::Controller) -> Result<(), String> {
    let (done, outcome) = mpsc::channel();
    controller.reset_and_tell(done);
    told(outcome).await.unwrap_or_else(|| Err("it has been detached".to_owned()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    name: String,
    /// 0, as none: every controller of this name; there is one.
    cntlid: Option<u16>,
}

pub(in crate::methods) async fn reset_controller(plane: Arc<Plane>, params: Value) -> Reply {
    let Reset { name, cntlid } = parameters(params)?;
    let controller = attached(&plane.state(), &name)?;
    let own = controller.identification().map(|it| it.identify.cntlid.get());
    if let Some(cntlid) = cntlid.filter(|cntlid| *cntlid != 0 && Some(*cntlid) != own) {
        let problem = format_args!("cntlid: {name} has no controller {cntlid}");
        return Err(Errno::NoDevice.about(problem));
    }
    reset(&controller).await.map_err(|problem| Errno::Io.about(problem))?;
    Ok(Value::Bool(true))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SendCommand {
    name: String,
    cmd_type: CommandType,
    data_direction: Direction,
    /// The submission queue entry.
    cmdbuf: String,
    data: Option<String>,
    data_len: Option<u32>,
    metadata: Option<String>,
    metadata_len: Option<u32>,
    /// 0, as none: as long as admin commands may take.
    timeout_ms: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CommandType {
    Admin,
    Io,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    C2h,
    H2c,
}

fn decode(name: &str, text: &str) -> Result<Vec<u8>, RpcError> {
    BASE64.decode(text).map_err(|error| invalid(format_args!("{name}: not base64: {error}")))
}

impl SendCommand {
    fn command(&self) -> Result<Sqe, RpcError> {
        let bytes = decode("cmdbuf", &self.cmdbuf)?;
        let len = bytes.len();
        let wrong = |_| invalid(format_args!("cmdbuf: a command has 64 bytes, not {len}"));
        Sqe::read_from_bytes(&bytes).map_err(wrong)
    }

    /// Bytes to be read, and bytes to be written.
    fn data(&self) -> Result<(usize, Vec<u8>), RpcError> {
        let given = self.data.as_deref().map(|data| decode("data", data)).transpose()?;
        let len = self.data_len.unwrap_or(0);
        if len > DATA_MOST {
            return Err(invalid(format_args!("data_len: {len} bytes are more than {DATA_MOST}")));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if given.as_ref().is_some_and(|given| self.data_len.is_some() && given.len() != len) {
            return Err(invalid("data_len: data is of another length"));
        }
        match (self.data_direction, given) {
            (Direction::C2h, Some(given)) => Ok((given.len(), Vec::new())),
            (Direction::C2h, None) => Ok((len, Vec::new())),
            (Direction::H2c, Some(given)) => Ok((0, given)),
            // As many noughts.
            (Direction::H2c, None) => Ok((0, vec![0; len])),
        }
    }
}

/// Has a controller carry out an admin command. Whatever it says is an answer.
pub(in crate::methods) async fn send_cmd(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: SendCommand = parameters(params)?;
    let name = &wanted.name;
    if wanted.cmd_type == CommandType::Io {
        return Err(invalid("cmd_type: commands of I/O queues are not supported"));
    }
    if wanted.metadata.is_some() || wanted.metadata_len.is_some_and(|len| len != 0) {
        return Err(invalid("metadata is not supported"));
    }
    let (command, (read, write)) = (wanted.command()?, wanted.data()?);
    let state = plane.state();
    let attached = state.controllers.get(name);
    let attached =
        attached.ok_or_else(|| invalid(format_args!("name: there is no controller {name}")))?;
    let controller = attached.controller.clone().map_err(internal)?;
    let patience = wanted.timeout_ms.filter(|millis| *millis > 0);
    let patience = patience.map(|millis| Duration::from_millis(millis.into()));
    let (done, answer) = mpsc::channel();
    controller.admin(command, read, write, patience, done).map_err(|_| {
        Errno::NotPermitted.about("cmdbuf: it would take from the driver what it works with")
    })?;
    match carry_out(answer).await {
        Ok(answer) => {
            let mut reply = json!({ "cpl": BASE64.encode(answer.completion.as_bytes()) });
            if let (true, Some(reply)) = (read > 0, reply.as_object_mut()) {
                reply.insert("data".to_owned(), BASE64.encode(answer.data).into());
            }
            Ok(reply)
        }
        Err(AdminError::Data(problem)) => Err(invalid(format_args!("data_len: {problem}"))),
        Err(error) => Err(internal(error)),
    }
}
