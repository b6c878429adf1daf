//! What is about the process itself.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Reply, names, parameters};
use crate::plane::Plane;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// What SPDK waits for has happened when the first call is answered.
pub(super) async fn done(_: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    Ok(Value::Bool(true))
}

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
