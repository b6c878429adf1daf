//! What the commands print to standard output: text for people, or JSON with `--json`.

use anyhow::Context;
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};

/// Writes `value` to standard output.
pub(crate) fn print<T: Serialize + Display>(value: &T, json: bool) -> anyhow::Result<()> {
    if json { write_json(value) } else { write(value.to_string().as_bytes()) }
}

fn write_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    write(format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
}

/// Writes to standard output. That nobody reads on (`| head`) is no failure.
pub(crate) fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

/// What became of writing to standard output.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result
            .context("cannot write to standard output, make room there or send it elsewhere"),
    }
}
