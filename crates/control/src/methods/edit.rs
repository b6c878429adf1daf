//! Changes of what is configured, made as one.
//!
//! An [`Edit`] says what a method does to the [`State`], and nothing else: it opens nothing and listens nowhere. A call
//! is one edit, a configuration file a list of them. They are tried on a copy first, which shows what is wrong, which devices
//! are new and which addresses; those are opened and bound, which may take long and holds up no other change; then the
//! edits are carried out on the state of that moment, all or none.
//!
//! *Rejected:* preparing under the lock of changes, which is simpler by one copy: a device that hangs would hold up
//! every client.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use serde_json::Value;
use target::configuration::Configuration;

use super::Reply;
use super::reply::{Errno, failed, internal, invalid, unopened};
use crate::controllers::Attached;
use crate::jsonrpc::RpcError;
use crate::objects::Subsystem;
use crate::plane::{ChangeError, Creation, PATIENCE, Plane, Prepared};
use crate::state::{Opened, State};

/// What is done to the state; the reply of its method. It may be carried out twice, and does the same then.
pub(super) type Edit = Box<dyn Fn(&mut State) -> Reply + Send + Sync>;

/// Carries out what one method's parameters ask for, if they make sense.
pub(super) fn apply_one(
    plane: &Arc<Plane>,
    edit: Result<Edit, RpcError>,
) -> impl Future<Output = Reply> + Send + use<> {
    let plane = Arc::clone(plane);
    async move {
        let replies = apply(&plane, vec![edit?]).await?;
        Ok(replies.into_iter().next().unwrap_or(Value::Null))
    }
}

/// How often a change is tried again because others changed what it was prepared for.
const ATTEMPTS: u32 = 100;

/// Carries out all of them or none; their replies.
pub(super) async fn apply(plane: &Arc<Plane>, edits: Vec<Edit>) -> Result<Vec<Value>, RpcError> {
    let edits = Arc::new(edits);
    for _ in 0..ATTEMPTS {
        if let Some(replies) = attempt(plane, Arc::clone(&edits)).await? {
            return Ok(replies);
        }
    }
    Err(Errno::Busy.about("others change the same all the time; try again"))
}

/// Why prepared edits were not carried out.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// A method refuses it.
    #[error("{0}")]
    Method(RpcError),
    /// What was prepared is not what is needed now.
    #[error("others changed the same at the same time")]
    Unprepared,
}

/// Prepares and carries out the edits; None if others changed the same in the meantime.
async fn attempt(
    plane: &Arc<Plane>,
    edits: Arc<Vec<Edit>>,
) -> Result<Option<Vec<Value>>, RpcError> {
    let before = plane.state();
    let mut wanted = State::clone(&before);
    run(&edits, &mut wanted)?;
    wanted.number_listeners();
    if edits.len() > 1 {
        // A single one is checked when it is made; a long list is not to make files in vain.
        wanted.steps(&State::default(), &Configuration::empty()).map_err(invalid)?;
    }

    let mut opened = Vec::new();
    for device in wanted.unopened() {
        let waits = |old: &Arc<Opened>| old.device.is_err() && old.object.opens_as(&device.object);
        if before.devices.get(&device.object.name).is_some_and(waits) {
            continue;
        }
        let found = plane.open(device.object.clone(), PATIENCE, Creation::Allowed).await;
        opened.push(found.map_err(|error| unopened(&error))?);
    }
    let mut arriving = Vec::new();
    for attached in wanted.unattached() {
        let waits = |old: &Arc<Attached>| old.controller.is_err() && old.object == attached.object;
        if !before.controllers.get(&attached.object.name).is_some_and(waits) {
            let found = plane.attach(attached.object.clone(), wanted.nvme_options).await;
            arriving.push(found.map_err(|error| Errno::NoDevice.about(error))?);
        }
    }
    let rdma = plane.prepare_rdma(&before, &wanted).await.map_err(|error| {
        internal(format_args!("Transport type 'RDMA' cannot be created: {error}"))
    })?;
    let mut prepared = Prepared { rdma, listeners: Vec::new() };
    let mut listening = BTreeSet::new();
    for address in wanted.listeners.keys().filter(|it| !before.listeners.contains_key(it)) {
        let bound = plane.bind_new(*address, prepared.rdma.as_ref(), PATIENCE).await;
        if let Some(listener) = bound.map_err(invalid)? {
            prepared.listeners.push(listener);
            listening.insert(*address);
        }
    }

    let changed = plane.change_prepared(prepared, move |state| {
        let unopened = state.unopened().count() + state.unattached().count();
        state.arriving = arriving;
        listening.extend(state.listeners.keys().copied());
        let replies = run(&edits, state).map_err(Refusal::Method)?;
        for device in opened {
            state.put_opened(device);
        }
        let is_bound = |subsystem: &Arc<Subsystem>| {
            subsystem.listeners.keys().all(|address| listening.contains(address))
        };
        state.arriving.clear();
        let missing = state.unopened().count() + state.unattached().count();
        if missing > unopened || !state.subsystems.values().all(is_bound) {
            return Err(Refusal::Unprepared);
        }
        Ok(replies)
    });
    match changed.await {
        Ok(replies) => Ok(Some(replies)),
        Err(ChangeError::Refused(Refusal::Unprepared)) => Ok(None),
        Err(ChangeError::Refused(Refusal::Method(error))) => Err(error),
        Err(error) => Err(failed(error)),
    }
}

fn run(edits: &[Edit], state: &mut State) -> Result<Vec<Value>, RpcError> {
    edits.iter().map(|edit| edit(state)).collect()
}
