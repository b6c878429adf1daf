//! `docs/rpc-errors.md`, carried out line by line: what is documented is what is answered.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

use crate::client::{Client, start};
use crate::support::daemon::free_port;
use crate::support::folder;

const PAGE: &str = include_str!("../../../../docs/rpc-errors.md");

/// The text of a cell, which Markdown has between one backtick or two.
fn code_span(cell: &str) -> &str {
    let cell = cell.trim();
    let long = cell.strip_prefix("`` ").and_then(|cell| cell.strip_suffix(" ``"));
    long.unwrap_or_else(|| cell.trim_matches('`'))
}

/// A method and its parameters, as the page writes them.
fn parse(call: &str) -> (&str, Value) {
    let (method, params) = call.split_once(' ').unwrap_or((call, "null"));
    (method, serde_json::from_str(params).unwrap_or_else(|error| panic!("{call}: {error}")))
}

/// Whether a text is as documented, where `…` stands for anything.
fn is_like(text: &str, documented: &str) -> bool {
    let mut pieces = documented.split('…');
    let Some(mut rest) = pieces.next().and_then(|start| text.strip_prefix(start)) else {
        return false;
    };
    let mut open = false;
    for piece in pieces {
        open = true;
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty() || open && documented.ends_with('…')
}

#[test]
fn every_documented_error_is_what_comes() {
    let folder = folder();
    let _daemon = start(folder.path(), &[]);
    let mut client = Client::connect(folder.path());
    let page = PAGE.replace("4420", &free_port().to_string());
    for call in page.lines().filter_map(|line| line.strip_prefix("    ")) {
        let (method, params) = parse(call);
        client.call(method, &params);
    }
    let before = client.call("save_config", &Value::Null);
    let mut wrong = String::new();
    let mut codes = BTreeSet::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<_> = row.split('|').map(code_span).collect();
        let [call, code, text, _] = cells[..] else { panic!("not three columns: {row}") };
        let (found, answer) = if call.starts_with(char::is_alphabetic) {
            let (method, params) = parse(call);
            client.refused(method, &params)
        } else {
            // Not a call, but bytes; the connection may end.
            Client::connect(folder.path()).answer_to(call.as_bytes())
        };
        codes.insert(found);
        if found.to_string() != code || !is_like(&answer, text) {
            writeln!(wrong, "| `{call}` | {found} | `{answer}` |").unwrap();
        }
    }
    assert!(wrong.is_empty(), "these rows should be:\n{wrong}");
    assert_eq!(
        client.call("save_config", &Value::Null),
        before,
        "a refused call changed something"
    );
    let listed = page.lines().filter_map(|line| line.strip_prefix("* `-"));
    let listed = listed.map(|line| -line.split_once('`').unwrap().0.parse::<i64>().unwrap());
    assert!(codes.is_subset(&listed.collect()), "{codes:?}");
}
