//! What is about the process itself.

use std::sync::Arc;

use rustix::process::{Signal, getpid, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{internal, invalid};
use super::{Nothing, Reply, names, parameters};
use crate::plane::Plane;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetMethods {
    /// Only those that can be called now: all.
    #[serde(default, rename = "current")]
    _current: bool,
    /// There are none.
    #[serde(default, rename = "include_aliases")]
    _include_aliases: bool,
}

pub(super) async fn get_methods(_: Arc<Plane>, params: Value) -> Reply {
    let _: GetMethods = parameters(params)?;
    Ok(names().collect())
}

/// Clients look at the fields, and abort where there are none: the version is SPDK's in shape, ours in content.
pub(super) async fn get_version(_: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    let version = env!("CARGO_PKG_VERSION");
    let number = |part: &str| part.parse::<u32>().unwrap_or(0);
    Ok(json!({
        "version": format!("Tidegate v{version}"),
        "fields": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        },
    }))
}

/// Ends this process in order, as the signal would. Others than the two that mean that are refused.
pub(super) async fn kill_instance(_: Arc<Plane>, params: Value) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Kill {
        sig_name: String,
    }
    let Kill { sig_name } = parameters(params)?;
    let name = sig_name.to_ascii_uppercase();
    let signal = match name.strip_prefix("SIG").unwrap_or(&name) {
        "TERM" | "15" => Signal::TERM,
        "INT" | "2" => Signal::INT,
        _ => {
            return Err(invalid(format_args!("sig_name: {sig_name} is not SIGTERM or SIGINT")));
        }
    };
    kill_process(getpid(), signal).map_err(internal)?;
    Ok(Value::Bool(true))
}
