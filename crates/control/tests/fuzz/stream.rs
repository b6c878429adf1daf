//! The body of the fuzz target `rpc_stream`, which `tests/server/corpus.rs` replays: any bytes as a client's stream.
//!
//! The first byte says in how large pieces the others arrive. What must hold: every request up to the first bytes
//! that are not JSON is carried out and answered once, what is no request is refused once, nothing else
//! is answered, each answer is JSON, and the connection and the server end. Where values begin and end is for `serde_json` to
//! say, which knows of no splitter.

// Of an object, serde_json reads the keys alone into such a map only.
#![allow(clippy::zero_sized_map_values)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use control::jsonrpc::{Calling, Message, Methods, RpcError};
use control::server::{Limits, Server};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MESSAGE: usize = 1 << 16;
const NESTING: u32 = 64;

#[derive(Default)]
struct Echo(AtomicUsize);

impl Methods for Echo {
    fn call<'a>(&'a self, _method: &'a str, params: Value) -> Calling<'a> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(params) })
    }
}

/// What a stream asks for.
#[derive(Debug, Default, PartialEq)]
struct Count {
    calls: usize,
    answers: usize,
    /// Answers that say that the stream is not JSON: one, or none.
    broken: usize,
}

/// Panics if a promise is broken.
pub(crate) fn stream(bytes: &[u8]) {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let echo = Arc::new(Echo::default());
    let text = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(exchange(echo.clone(), bytes, usize::from(first).max(1)));
    let mut found = Count { calls: echo.0.load(Ordering::Relaxed), ..Count::default() };
    for line in text.lines() {
        let batch = if line.starts_with('[') { String::from(line) } else { format!("[{line}]") };
        let keys: Vec<Keys> = serde_json::from_str(&batch).unwrap();
        let outcomes: Vec<Outcome> = serde_json::from_str(&batch).unwrap();
        keys.iter().zip(&outcomes).for_each(|(keys, outcome)| found.add(keys, outcome));
    }
    assert_eq!(found, expected(bytes));
}

/// Of an answer, the keys. The values are not read: an id may be a number that no parser holds.
type Keys = BTreeMap<String, IgnoredAny>;

/// Of an answer, the error.
#[derive(serde::Deserialize)]
struct Outcome {
    error: Option<Reason>,
}

#[derive(serde::Deserialize)]
struct Reason {
    code: i64,
    #[serde(rename = "message")]
    _message: String,
}

impl Count {
    fn add(&mut self, keys: &Keys, outcome: &Outcome) {
        let keys: Vec<&str> = keys.keys().map(String::as_str).collect();
        let error = match keys[..] {
            ["error", "id", "jsonrpc"] => true,
            ["id", "jsonrpc", "result"] => false,
            _ => panic!("an answer of {keys:?}"),
        };
        assert_eq!(outcome.error.is_some(), error);
        self.answers += 1;
        let broken = |reason: &Reason| reason.code == RpcError::PARSE_ERROR;
        self.broken += usize::from(outcome.error.as_ref().is_some_and(broken));
    }
}

fn expected(bytes: &[u8]) -> Count {
    let mut count = Count::default();
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    loop {
        let start = values.byte_offset();
        let broken = match values.next() {
            None => return count,
            Some(Err(_)) => true,
            Some(Ok(_)) => {
                let text = bytes[start..values.byte_offset()].trim_ascii();
                match Message::parse(text) {
                    _ if text.len() > MESSAGE || depth(text) > NESTING => true,
                    Err(error) if error.code == RpcError::PARSE_ERROR => true,
                    Err(_) => {
                        count.answers += 1;
                        false
                    }
                    Ok(message) => {
                        let requests = match message {
                            Message::Single(request) => vec![request],
                            Message::Batch(requests) => requests,
                        };
                        count.calls += requests.iter().filter(|one| one.call.is_ok()).count();
                        count.answers += requests.iter().filter(|one| one.id.is_some()).count();
                        false
                    }
                }
            }
        };
        if broken {
            count.answers += 1;
            count.broken += 1;
            return count;
        }
    }
}

/// How deep the brackets of a JSON text are nested.
fn depth(text: &[u8]) -> u32 {
    let (mut depth, mut deepest, mut string, mut escaped) = (0, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => string = !string,
            b'[' | b'{' if !string => depth += 1,
            b']' | b'}' if !string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

async fn exchange(echo: Arc<Echo>, bytes: &[u8], piece: usize) -> String {
    let limits = Limits { in_flight: 8, message: MESSAGE, nesting: NESTING, ..Limits::default() };
    let server = Server::new(echo, limits);
    let (ours, theirs) = tokio::io::duplex(64);
    server.stream(theirs);
    let (mut reader, mut writer) = tokio::io::split(ours);
    let write = async move {
        for piece in bytes.chunks(piece) {
            if writer.write_all(piece).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let mut answers = String::new();
    let (read, ()) = tokio::join!(reader.read_to_string(&mut answers), write);
    read.unwrap();
    assert_eq!(server.stop().await, 0);
    answers
}
