//! What one controller gets of its subsystem: the namespaces that its host may see, and how good its path to them is.
//!
//! Plain data of a snapshot, read on any reactor. The state of a path (ANA, "Asymmetric Namespace Access") is that of
//! a listener and a group: a controller is told the states of the listener that its host connected to.
//! A namespace that is kept from a host is to it as if it were not there.
//!
//! *Rejected:* a table of accesses per queue, made when the configuration changes: it costs each change a walk over
//! all queues, so that the few commands to namespaces that are masked or out of reach save two look-ups.

use std::collections::BTreeMap;
use std::sync::Arc;

use nvme::log::AnaState;
use nvme::{Nqn, Status};

use super::{ListenerId, Namespace, Subsystem};

/// The states of all ANA groups on one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaStates {
    /// Of every group,
    pub every: AnaState,
    /// apart from these.
    pub groups: BTreeMap<u32, AnaState>,
}

impl Default for AnaStates {
    fn default() -> Self {
        Self { every: AnaState::Optimized, groups: BTreeMap::new() }
    }
}

impl AnaStates {
    /// The state of one group.
    pub fn of(&self, group: u32) -> AnaState {
        self.groups.get(&group).copied().unwrap_or(self.every)
    }

    fn all(&self) -> impl Iterator<Item = AnaState> {
        std::iter::once(self.every).chain(self.groups.values().copied())
    }
}

/// The states of a subsystem's groups, by listener. Where nothing is said everything is optimized.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ana(Arc<BTreeMap<ListenerId, AnaStates>>);

impl FromIterator<(ListenerId, AnaStates)> for Ana {
    fn from_iter<I: IntoIterator<Item = (ListenerId, AnaStates)>>(listeners: I) -> Self {
        Self(Arc::new(listeners.into_iter().collect()))
    }
}

impl Ana {
    /// What is said of a listener.
    pub fn states(&self, listener: Option<ListenerId>) -> Option<&AnaStates> {
        self.0.get(&listener?)
    }

    /// Whether some path does not serve.
    pub(super) fn bars(&self) -> bool {
        self.0.values().flat_map(AnaStates::all).any(|state| refusal(state).is_some())
    }
}

/// How a command is refused for the state of its path; None: it is served. Never for good: hosts go elsewhere on it.
pub fn refusal(state: AnaState) -> Option<Status> {
    match state {
        AnaState::Optimized | AnaState::NonOptimized => None,
        AnaState::Inaccessible => Some(Status::ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
        AnaState::Change => Some(Status::ANA_TRANSITION),
    }
}

/// A subsystem as a controller's host sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The subsystem.
    pub subsystem: &'a Subsystem,
    /// Who looks.
    pub host: &'a Nqn,
    /// From where: the listener that it connected to, if it is known.
    pub listener: Option<ListenerId>,
}

impl<'a> View<'a> {
    /// The namespace of this number, if it is active and not hidden.
    pub fn namespace(&self, nsid: u32) -> Option<&'a Arc<Namespace>> {
        self.subsystem.namespace(nsid).filter(|namespace| namespace.is_active_for(self.host))
    }

    /// The namespaces whose NSID is greater than `after`, in order.
    pub fn active_after(&self, after: u32) -> impl Iterator<Item = &'a Arc<Namespace>> + use<'a> {
        let host = self.host;
        self.subsystem.active_after(after).filter(move |namespace| namespace.is_active_for(host))
    }

    /// The state of the path to a namespace.
    pub fn ana_state(&self, namespace: &Namespace) -> AnaState {
        self.ana_states().map_or(AnaState::Optimized, |states| states.of(namespace.ana_group()))
    }

    /// The states of its paths, if something is said of them.
    pub fn ana_states(&self) -> Option<&'a AnaStates> {
        self.subsystem.options().ana.as_ref()?.states(self.listener)
    }

    /// Why no I/O command to this namespace is carried out here, whatever its device; None: it may be.
    pub fn refusal(&self, namespace: &Namespace) -> Option<Status> {
        if namespace.is_visible_to(self.host) {
            refusal(self.ana_state(namespace))
        } else {
            Some(Status::INVALID_NAMESPACE.with_dnr())
        }
    }
}
