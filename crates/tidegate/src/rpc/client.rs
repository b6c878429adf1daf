//! A connection to the RPC socket of a running node: one call after the other, each answered before the next.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::de::IoRead;
use serde_json::{StreamDeserializer, Value, json};

/// The node does not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("{method}: no answer within {} s", .patience.as_secs())]
pub(crate) struct NoAnswer {
    method: String,
    patience: Duration,
}

/// The connection. After a call that failed it is of no more use, unless the node itself refused the call.
pub(crate) struct Client {
    /// Its path, to be shown.
    socket: String,
    patience: Duration,
    stream: UnixStream,
    answers: StreamDeserializer<'static, IoRead<BufReader<UnixStream>>, Value>,
    calls: u64,
}

impl Client {
    /// Connects to the node's socket; an answer is waited for as long as `patience`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) fn connect(socket: &Path, patience: Duration) -> anyhow::Result<Self> {
        let shown = socket.display();
        let stream = UnixStream::connect(socket).with_context(|| {
            format!(
                "{shown}: is the node running (tidegate serve), and its socket there? See --rpc-socket"
            )
        })?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let answers = serde_json::Deserializer::from_reader(BufReader::new(stream.try_clone()?));
        let answers = answers.into_iter();
        Ok(Self { socket: shown.to_string(), patience, stream, answers, calls: 0 })
    }

    /// Calls a method; its result. Parameters that are null are left out.
    ///
    /// # Errors
    /// The node refuses the call, does not answer in time ([`NoAnswer`]) or is gone.
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        self.calls = self.calls.wrapping_add(1);
        let mut request = json!({ "jsonrpc": "2.0", "id": self.calls, "method": method });
        if let (Some(request), false) = (request.as_object_mut(), parameters.is_null()) {
            request.insert("params".to_owned(), parameters);
        }
        let socket = &self.socket;
        let sent = self.stream.write_all(request.to_string().as_bytes());
        let sent = sent.map_err(serde_json::Error::io);
        let mut answer = match sent.and_then(|()| self.answers.next().transpose()) {
            Ok(Some(answer)) => answer,
            Ok(None) => anyhow::bail!("{socket}: the node has closed the connection"),
            Err(error) if error.io_error_kind() == Some(io::ErrorKind::WouldBlock) => {
                return Err(NoAnswer { method: method.to_owned(), patience: self.patience }.into());
            }
            Err(error) if error.is_io() => return Err(error).context(socket.clone()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{socket}: what answers there is not JSON-RPC"));
            }
        };
        if let Some(error) = answer.get("error") {
            let message = error.get("message").and_then(Value::as_str).unwrap_or("an error");
            let code = error.get("code").and_then(Value::as_i64).unwrap_or(0);
            anyhow::bail!("{method}: {message} (code {code})");
        }
        Ok(answer.get_mut("result").map(Value::take).unwrap_or_default())
    }
}
