//! What is logged; see [`crate::logs`].

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::reply::invalid;
use super::{Nothing, Reply, parameters};
use crate::logs::Level;
use crate::plane::Plane;

pub(super) async fn set_level(plane: Arc<Plane>, params: Value) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct SetLevel {
        level: String,
    }
    let SetLevel { level } = parameters(params)?;
    let known = Level::of(&level);
    plane.logs().set_level(known.ok_or_else(|| {
        invalid(format_args!(
            "level: there is no level {level}; use ERROR, WARNING, NOTICE, INFO, DEBUG or DISABLED"
        ))
    })?);
    Ok(Value::Bool(true))
}

pub(super) async fn get_level(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    Ok(plane.logs().level().name().into())
}

fn flag(plane: &Plane, params: Value, on: bool) -> Reply {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Flag {
        flag: String,
    }
    let Flag { flag } = parameters(params)?;
    if plane.logs().set_flag(&flag, on) {
        Ok(Value::Bool(true))
    } else {
        Err(invalid(format_args!("invalid log flag: {flag}")))
    }
}

pub(super) async fn set_flag(plane: Arc<Plane>, params: Value) -> Reply {
    flag(&plane, params, true)
}

pub(super) async fn clear_flag(plane: Arc<Plane>, params: Value) -> Reply {
    flag(&plane, params, false)
}

pub(super) async fn get_flags(plane: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    let flags = plane.logs().flags().into_iter();
    Ok(Value::Object(
        flags.map(|(name, on)| (name.to_owned(), Value::Bool(on))).collect::<Map<_, _>>(),
    ))
}
