//! Methods that a test can see into, and a client that reads answers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::jsonrpc::{Calling, Methods, RpcError};
use control::server::{Limits, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;

/// `echo`, `big` (a text of so many bytes), `hold` (until released) and `late` (both).
pub(crate) struct Probe {
    pub(crate) begun: watch::Sender<u64>,
    pub(crate) ended: watch::Sender<u64>,
    released: watch::Sender<BTreeSet<u64>>,
    order: Mutex<Vec<u64>>,
}

impl Probe {
    pub(crate) fn new() -> Arc<Probe> {
        let (begun, ended) = (watch::Sender::new(0), watch::Sender::new(0));
        let (released, order) = (watch::Sender::default(), Mutex::default());
        Arc::new(Probe { begun, ended, released, order })
    }

    pub(crate) fn release(&self, number: u64) {
        self.released.send_modify(|released| {
            released.insert(number);
        });
    }

    /// The first parameters of what was called, in the order in which that began.
    pub(crate) fn order(&self) -> Vec<u64> {
        self.order.lock().unwrap().clone()
    }

    /// Waits until so many calls have begun.
    pub(crate) async fn begun(&self, count: u64) {
        self.begun.subscribe().wait_for(|&begun| begun >= count).await.unwrap();
    }

    pub(crate) async fn ended(&self, count: u64) {
        self.ended.subscribe().wait_for(|&ended| ended >= count).await.unwrap();
    }
}

impl Methods for Probe {
    fn call<'a>(&'a self, method: &'a str, params: Value) -> Calling<'a> {
        Box::pin(async move {
            let number = params.get(0).and_then(Value::as_u64).unwrap_or_default();
            self.order.lock().unwrap().push(number);
            self.begun.send_modify(|begun| *begun += 1);
            let result = match method {
                "echo" => Ok(params),
                "late" => {
                    let mut released = self.released.subscribe();
                    released.wait_for(|released| released.contains(&number)).await.unwrap();
                    Ok(Value::from("x".repeat(usize::try_from(number).unwrap())))
                }
                "big" => Ok(Value::from("x".repeat(usize::try_from(number).unwrap()))),
                "hold" => {
                    let mut released = self.released.subscribe();
                    released.wait_for(|released| released.contains(&number)).await.unwrap();
                    Ok(params)
                }
                _ => Err(RpcError::method_not_found()),
            };
            self.ended.send_modify(|ended| *ended += 1);
            result
        })
    }
}

pub(crate) const IDLE: Duration = Duration::from_mins(1);

pub(crate) fn limits() -> Limits {
    let (idle, farewell) = (IDLE, Duration::from_secs(5));
    Limits { message: 1 << 20, connections: 8, idle, farewell, ..Limits::default() }
}

/// A server, and a connection to it that holds so many bytes in each direction.
pub(crate) fn connect(limits: Limits, bytes: usize) -> (Arc<Probe>, Server, Client) {
    let probe = Probe::new();
    let server = Server::new(probe.clone(), limits);
    let client = join(&server, bytes);
    (probe, server, client)
}

/// Another connection to it.
pub(crate) fn join(server: &Server, bytes: usize) -> Client {
    let (ours, theirs) = tokio::io::duplex(bytes);
    server.stream(theirs);
    let (reader, writer) = tokio::io::split(ours);
    Client { answers: Answers::new(reader), writer }
}

pub(crate) struct Client {
    pub(crate) answers: Answers<ReadHalf<DuplexStream>>,
    pub(crate) writer: WriteHalf<DuplexStream>,
}

/// Reads answers, which the server ends with newlines.
pub(crate) struct Answers<R>(BufReader<R>);

impl<R: AsyncRead + Unpin> Answers<R> {
    pub(crate) fn new(reader: R) -> Answers<R> {
        Answers(BufReader::new(reader))
    }

    /// The text of the next one; empty at the end of the stream.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line
    }

    /// The next one; none at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let line = self.line().await;
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    pub(crate) async fn id(&mut self) -> Value {
        self.next().await.unwrap()["id"].clone()
    }

    /// The next answer is an error without an addressee, and the last.
    pub(crate) async fn told_off(&mut self) -> i64 {
        let answer = self.next().await.unwrap();
        assert_eq!((&answer["id"], self.next().await), (&Value::Null, None));
        answer["error"]["code"].as_i64().unwrap()
    }
}

/// The text of a request.
pub(crate) fn request(id: u64, method: &str, number: u64) -> String {
    json!({ "jsonrpc": "2.0", "method": method, "params": [number], "id": id }).to_string()
}
