//! What layers have in common: a block device over another one, which it alone uses.
//!
//! A layer's queue owns a queue of the device below on the same reactor, and passes on what it does not deal with
//! itself. Size and properties are the base's, read when they are asked for, so a base that grows grows under its layers.
//! Its identity is not: a layer is a device of its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use reactor::{Handle, Local};

use crate::{BlockDevice, Properties};

/// The properties of a layer over `base` that changes none of them.
pub(crate) fn properties(base: &dyn BlockDevice, what: &str) -> Properties {
    let properties = base.properties().clone();
    let description = format!("{what} over {} ({})", base.name(), properties.description);
    Properties { description, ..properties }
}

/// The reactors that have queues of a layer: woken when another thread has news for those.
#[derive(Debug, Default)]
pub(crate) struct Reactors(Mutex<BTreeMap<usize, Handle>>);

impl Reactors {
    /// This one has a queue from now on.
    pub(crate) fn join(&self, local: &Local) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(local.handle(local.index()).map(|handle| (handle.index(), handle)));
    }

    /// Has every one take a turn. The news is where its queues look in every turn.
    pub(crate) fn wake(&self) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for handle in known.values() {
            // A mailbox that is full wakes its reactor by itself.
            let _ = handle.send(|_| {});
        }
    }
}
