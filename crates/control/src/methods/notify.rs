//! What happened; see [`crate::notifications`].

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Nothing, Reply, parameters};
use crate::notifications::Kind;
use crate::plane::Plane;

pub(super) async fn get_types(_: Arc<Plane>, params: Value) -> Reply {
    let Nothing {} = parameters(params)?;
    Ok(Kind::ALL.iter().map(|kind| kind.name()).collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetNotifications {
    #[serde(default)]
    id: u64,
    max: Option<u64>,
}

pub(super) async fn get_notifications(plane: Arc<Plane>, params: Value) -> Reply {
    let GetNotifications { id, max } = parameters(params)?;
    let found = plane.notifications().since(id, max.unwrap_or(u64::MAX));
    let describe = |it: crate::notifications::Notification| json!({ "type": it.kind.name(), "ctx": it.device, "id": it.id });
    Ok(found.into_iter().map(describe).collect())
}
