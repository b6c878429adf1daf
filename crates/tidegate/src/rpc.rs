//! `tidegate rpc`: calls a method of a running node over its RPC socket.
//!
//! Parameters are one JSON object, or words `key=value`: a value that is JSON is taken as such, any other is a text, and a key
//! with periods leads into objects. The result is a table on a terminal, and JSON everywhere else.

mod client;

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) use self::client::{Client, NoAnswer};
use crate::failure::WrongInvocation;
use crate::output;

/// Where a node answers clients unless it is told otherwise; SPDK has `/var/tmp/spdk.sock`.
pub(crate) const DEFAULT_SOCKET: &str = "/var/tmp/tidegate.sock";

/// Calls a method of a running node.
#[derive(Debug, Args)]
pub(crate) struct RpcArgs {
    /// The node's Unix socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    rpc_socket: PathBuf,

    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    /// Print JSON on a terminal, too
    #[arg(long)]
    json: bool,

    /// The method; `rpc_get_methods` lists those of the node
    #[arg(value_parser = MethodName)]
    method: String,

    /// Its parameters: key=value words (`listen_address.traddr=127.0.0.1` leads into an object), or one JSON object
    #[arg(value_name = "PARAMETER")]
    parameters: Vec<String>,
}

/// Any name, for a node of another version; those that this version knows are completed.
#[derive(Debug, Clone)]
struct MethodName;

impl TypedValueParser for MethodName {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(control::methods::names().map(|name| PossibleValue::new(name).hide(false))))
    }
}

/// What fish needs to complete the method's name: the script that is generated for it knows options and subcommands alone.
pub(crate) fn fish_methods() -> String {
    let names: Vec<_> = control::methods::names().collect();
    // Until one of them stands there: what follows are parameters.
    format!(
        "set -g __fish_tidegate_methods {}\n\
         complete -c tidegate -n \"__fish_tidegate_using_subcommand rpc; \
         and not __fish_seen_subcommand_from \\$__fish_tidegate_methods\" \
         -f -a \"\\$__fish_tidegate_methods\"\n",
        names.join(" ")
    )
}

/// Calls the method and prints its result.
pub(crate) fn run(args: &RpcArgs) -> anyhow::Result<()> {
    let answer = parameters(&args.parameters).and_then(|parameters| call(args, parameters));
    output::conclude(answer, args.json || !io::stdout().is_terminal())
}

/// The parameters in the form in which they are sent; null if there are none.
fn parameters(words: &[String]) -> anyhow::Result<Value> {
    if let [object] = words
        && object.trim_start().starts_with('{')
    {
        let parsed = serde_json::from_str(object);
        return parsed.map_err(|error| WrongInvocation(format!("parameters: {error}")).into());
    }
    let mut parameters = Map::new();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            let problem = format!("{word:?} is neither key=value nor a JSON object");
            return Err(WrongInvocation(problem).into());
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        put(&mut parameters, key, value)
            .map_err(|problem| WrongInvocation(format!("{word:?}: {problem}")))?;
    }
    Ok(if parameters.is_empty() { Value::Null } else { parameters.into() })
}

/// Puts a value where the key's periods lead.
fn put(into: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), &'static str> {
    let Some((outer, inner)) = key.split_once('.') else {
        return match into.insert(key.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err("is given twice"),
        };
    };
    match into.entry(outer).or_insert_with(|| Map::new().into()) {
        Value::Object(object) => put(object, inner, value),
        _ => Err("is both a value and an object"),
    }
}

fn call(args: &RpcArgs, parameters: Value) -> anyhow::Result<Answer> {
    let mut client = Client::connect(&args.rpc_socket, Duration::from_secs(args.timeout))?;
    client.call(&args.method, parameters).map(Answer).map_err(|error| {
        match error.downcast::<NoAnswer>() {
            Ok(late) => anyhow::anyhow!("{late}; see --timeout"),
            Err(other) => other,
        }
    })
}

/// A result: shown as a table, one row for each object of a list.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Answer(Value);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Value::Array(list) if list.iter().all(Value::is_object) && !list.is_empty() => {
                writeln!(f, "{}", rows(list))
            }
            Value::Array(list) => list.iter().try_for_each(|item| writeln!(f, "{}", cell(item))),
            Value::Object(object) => {
                let mut table = output::table();
                for (key, value) in object {
                    table.add_row([key.clone(), cell(value)]);
                }
                writeln!(f, "{table}")
            }
            value => writeln!(f, "{}", cell(value)),
        }
    }
}

/// Objects one below the other, a column for each key in the order in which they come.
fn rows(list: &[Value]) -> Table {
    let objects = || list.iter().filter_map(Value::as_object);
    let mut keys: Vec<&String> = Vec::new();
    for key in objects().flat_map(Map::keys) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut table = output::table();
    table.set_header(&keys);
    for object in objects() {
        table.add_row(keys.iter().map(|key| object.get(*key).map(cell).unwrap_or_default()));
    }
    table
}

/// A value in one cell: what is nested, a line for each of its members.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join("\n"),
        Value::Object(object) => {
            let member = |(key, value): (&String, &Value)| format!("{key}: {}", cell(value));
            object.iter().map(member).collect::<Vec<_>>().join("\n")
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(words: &[&str]) -> Result<Value, String> {
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        parameters(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn words_become_an_object() {
        assert_eq!(of(&[]), Ok(Value::Null));
        assert_eq!(
            of(&[
                "name=disk",
                "num_blocks=8",
                "uuid=",
                "on=true",
                "list=[1]",
                "a.b.c=1",
                "a.b.d=x=y"
            ]),
            Ok(json!({
                "name": "disk", "num_blocks": 8, "uuid": "", "on": true, "list": [1],
                "a": { "b": { "c": 1, "d": "x=y" } },
            }))
        );
        assert_eq!(of(&[r#"name="8""#]), Ok(json!({ "name": "8" })));
        assert_eq!(of(&[r#" {"name": "disk"}"#]), Ok(json!({ "name": "disk" })));
    }

    #[test]
    fn words_that_are_neither_are_refused_by_name() {
        for (words, named) in [
            (&["disk"][..], "disk"),
            (&["a=1", "a=2"], "twice"),
            (&["a=1", "a.b=2"], "both"),
            (&["{\"a\":"], "parameters"),
        ] {
            let error = of(words).unwrap_err();
            assert!(error.contains(named), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_list_of_objects_is_a_table_with_all_their_keys() {
        let answer = Answer(json!([{ "name": "a", "size": 1 }, { "name": "b", "used": [1, 2] }]));
        let text = answer.to_string();
        let header = text.lines().find(|line| line.contains("name")).unwrap();
        assert!(header.contains("size") && header.contains("used"), "{text}");
        assert_eq!(Answer(json!(["x", "y"])).to_string(), "x\ny\n");
        assert_eq!(Answer(json!(true)).to_string(), "true\n");
    }
}
