//! What the client commands print: text for people, or JSON with `--json`.

use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};

/// Writes `value` to standard output. That nobody reads on (`| head`) is no failure.
pub(crate) fn print<T: Serialize + Display>(value: &T, json: bool) -> anyhow::Result<()> {
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(value)?)
    } else {
        value.to_string()
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
