//! A client of the Unix socket, and the daemon that it talks to.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, tidegate};
use crate::support::{PATIENCE, until};

const SOCKET: &str = "rpc.sock";

/// Starts a daemon in `folder` that keeps its state there, and waits until it serves.
pub(crate) fn start(folder: &Path, more: &[&str]) -> Daemon {
    start_as(folder, more, |command| command)
}

/// The same, with something changed about how it is started.
pub(crate) fn start_as(
    folder: &Path,
    more: &[&str],
    change: impl FnOnce(&mut Command) -> &mut Command,
) -> Daemon {
    let own = ["serve", "--banner", "json", "--rpc-socket", SOCKET, "--state", "state"];
    let mut command = tidegate(folder);
    let daemon = Daemon::spawn_command(change(command.args(own).args(more)));
    daemon.banner();
    daemon
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    /// Received and not looked at yet.
    received: Vec<u8>,
    next: u64,
}

impl Client {
    pub(crate) fn connect(folder: &Path) -> Client {
        let path: PathBuf = folder.join(SOCKET);
        let stream = until("the daemon takes the connection", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, received: Vec::new(), next: 1 }
    }

    /// Calls a method and waits for its answer: the result, or the error's code and text. Fails if the connection ends.
    pub(crate) fn try_call(
        &mut self,
        method: &str,
        params: &Value,
    ) -> io::Result<Result<Value, (i64, String)>> {
        let id = self.next;
        self.next += 1;
        let call = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.stream.write_all(call.to_string().as_bytes())?;
        let answer = self.answer()?;
        assert_eq!(answer["id"], id, "{answer}");
        Ok(match answer.get("error") {
            None => Ok(answer["result"].clone()),
            Some(error) => {
                let text = error["message"].as_str().unwrap().to_owned();
                Err((error["code"].as_i64().unwrap(), text))
            }
        })
    }

    /// The next answer, whole.
    fn answer(&mut self) -> io::Result<Value> {
        loop {
            // Each ends with a line feed. To look earlier would read a long one over and over.
            let looked_at = if self.received.ends_with(b"\n") { &self.received[..] } else { &[] };
            let mut values = serde_json::Deserializer::from_slice(looked_at).into_iter();
            match values.next() {
                Some(Ok(value)) => {
                    let used = values.byte_offset();
                    self.received.drain(..used);
                    return Ok(value);
                }
                Some(Err(error)) if !error.is_eof() => panic!("{error}"),
                _ => {}
            }
            let mut piece = vec![0; 1 << 16];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend_from_slice(&piece[..count]),
            }
        }
    }

    /// Sends bytes that no client should; the code and the text of the error that comes back.
    pub(crate) fn answer_to(&mut self, bytes: &[u8]) -> (i64, String) {
        self.stream.write_all(bytes).unwrap();
        self.stream.shutdown(Shutdown::Write).unwrap();
        let error = &self.answer().unwrap()["error"];
        (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
    }

    /// Calls a method that must succeed.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        match self.try_call(method, params).unwrap() {
            Ok(result) => result,
            Err(error) => panic!("{method} {params}: {error:?}"),
        }
    }

    /// Calls a method that must fail: the code and the text.
    pub(crate) fn refused(&mut self, method: &str, params: &Value) -> (i64, String) {
        match self.try_call(method, params).unwrap() {
            Ok(result) => panic!("{method} {params}: {result}"),
            Err(error) => error,
        }
    }
}
