//! What the commands print to standard output: text for people, or JSON with `--json`.

use crate::failure;
use anyhow::Context;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};

/// Prints what a command found out, or passes on why it did not, as [`told`] does.
pub(crate) fn conclude<T: Serialize + Display>(
    result: anyhow::Result<T>,
    json: bool,
) -> anyhow::Result<()> {
    told(result, json).and_then(|value| print(&value, json))
}

/// Passes on what became of a command. With `json` a failure is printed as well, so that a program which reads standard output
/// always finds an object there, with an `error` if and only if there was one.
pub(crate) fn told<T>(result: anyhow::Result<T>, json: bool) -> anyhow::Result<T> {
    if let Err(error) = &result
        && json
    {
        // The failure stands, whether or not it could be printed.
        let _ = write_json(&serde_json::json!({ "error": failure::line(error) }));
    }
    result
}

/// Writes `value` to standard output.
pub(crate) fn print<T: Serialize + Display>(value: &T, json: bool) -> anyhow::Result<()> {
    if json { write_json(value) } else { write(value.to_string().as_bytes()) }
}

fn write_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    write(format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
}

/// A table as every command lays it out, as wide as the terminal has room.
pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// Writes to standard output. That nobody reads on (`| head`) is no failure.
pub(crate) fn write(bytes: &[u8]) -> anyhow::Result<()> {
    write_on(bytes).map(drop)
}

/// The same, for one who has more to write; whether somebody reads on.
pub(crate) fn write_on(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    let result = out.write_all(bytes).and_then(|()| out.flush());
    let is_read = !matches!(&result, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
    written(result).map(|()| is_read)
}

/// What became of writing to standard output.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => {
            result.context("cannot write to standard output, make room there or send it elsewhere")
        }
    }
}
