//! The one way to a new configuration: from the one before, change by change, each checked as it comes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nvme::Nqn;

use super::{
    Configuration, ConfigurationError, Listener, ListenerId, Namespace, NamespaceOptions,
    NamespaceState, Reach, Referral, Subsystem, SubsystemOptions,
};

/// A configuration in the making. A refused change leaves it as it was, so the caller may go on. Dropping
/// it drops the changes; the configuration that it came from is never touched.
#[derive(Clone, Debug)]
pub struct ConfigurationBuilder {
    before: Arc<Configuration>,
    subsystems: Vec<Arc<Subsystem>>,
    listeners: Vec<Listener>,
    referrals: Arc<Vec<Referral>>,
    /// Subsystems that a shard has to look at.
    touched: BTreeSet<Nqn>,
}

impl ConfigurationBuilder {
    pub(super) fn new(before: Arc<Configuration>) -> Self {
        Self {
            subsystems: before.subsystems.clone(),
            listeners: before.listeners.clone(),
            referrals: Arc::clone(&before.referrals),
            touched: BTreeSet::new(),
            before,
        }
    }

    /// Adds a listener.
    pub fn add_listener(&mut self, listener: Listener) -> Result<(), ConfigurationError> {
        let Listener { id, address } = listener;
        let refuse = |problem| Err(ConfigurationError::Address { listener: id, address, problem });
        if address.trsvcid == 0 {
            return refuse("has port 0, which no host can be told; name a port");
        }
        if let Some(problem) = unreachable(address.traddr) {
            return refuse(problem);
        }
        if self.listeners.iter().any(|other| other.id == id) {
            return Err(ConfigurationError::DuplicateListener(id));
        }
        let same = |other: &&Listener| {
            other.address.trtype == address.trtype
                && other.address.trsvcid == address.trsvcid
                && other.address.traddr.to_canonical() == address.traddr.to_canonical()
        };
        if let Some(other) = self.listeners.iter().find(same) {
            let (one, other) = (other.id, id);
            return Err(ConfigurationError::DuplicateAddress { one, other, address });
        }
        // The system lets nobody listen on an address that a wildcard on the same port covers.
        let covers =
            |one: IpAddr, other: IpAddr| one.is_unspecified() && one.is_ipv4() == other.is_ipv4();
        let overlaps = |other: &&Listener| {
            let (one, other) = (address, other.address);
            (one.trtype, one.trsvcid) == (other.trtype, other.trsvcid)
                && (covers(one.traddr, other.traddr) || covers(other.traddr, one.traddr))
        };
        if let Some(other) = self.listeners.iter().find(overlaps) {
            return Err(ConfigurationError::OverlappingAddress {
                listener: id,
                address,
                other: other.address,
            });
        }
        let at = self.listeners.partition_point(|other| other.id < id);
        self.listeners.insert(at, listener);
        Ok(())
    }

    /// Removes a listener. Refused by [`Self::build`] while a subsystem names it.
    pub fn remove_listener(&mut self, id: ListenerId) -> Result<(), ConfigurationError> {
        let at = self.listeners.iter().position(|listener| listener.id == id);
        let at = at.ok_or(ConfigurationError::UnknownListener(id))?;
        self.listeners.remove(at);
        // Those that name listeners cannot name this one any more; the others have lost a way in.
        let all = self
            .subsystems
            .iter()
            .filter(|subsystem| subsystem.options().reach == Reach::Everywhere);
        self.touched.extend(all.map(|subsystem| subsystem.nqn().clone()));
        Ok(())
    }

    /// Adds a referral, in the place of one to the same thing if there is one.
    pub fn put_referral(&mut self, referral: Referral) {
        self.remove_referral(&referral);
        let at = self.referrals.partition_point(|other| *other < referral);
        Arc::make_mut(&mut self.referrals).insert(at, referral);
    }

    /// Removes the referral to the same thing, if there is one.
    pub fn remove_referral(&mut self, referral: &Referral) {
        if let Some(at) = self.referrals.iter().position(|other| other.is_like(referral)) {
            Arc::make_mut(&mut self.referrals).remove(at);
        }
    }

    /// Adds a subsystem without namespaces.
    pub fn add_subsystem(
        &mut self,
        nqn: Nqn,
        options: SubsystemOptions,
    ) -> Result<(), ConfigurationError> {
        match self.position(&nqn) {
            Ok(_) => Err(ConfigurationError::DuplicateSubsystem(nqn)),
            Err(at) => {
                self.subsystems.insert(at, Arc::new(Subsystem::new(nqn.clone(), options)?));
                self.touched.insert(nqn);
                Ok(())
            }
        }
    }

    /// Gives a subsystem other options. Its namespaces stay.
    pub fn change_subsystem(
        &mut self,
        nqn: &Nqn,
        options: SubsystemOptions,
    ) -> Result<(), ConfigurationError> {
        self.update(nqn, |subsystem| {
            *subsystem = subsystem.with_options(options)?;
            Ok(())
        })
    }

    /// Removes a subsystem with all that is in it.
    pub fn remove_subsystem(&mut self, nqn: &Nqn) -> Result<(), ConfigurationError> {
        match self.position(nqn) {
            Ok(at) => {
                self.subsystems.remove(at);
                self.touched.insert(nqn.clone());
                Ok(())
            }
            Err(_) => Err(ConfigurationError::UnknownSubsystem(nqn.clone())),
        }
    }

    /// Adds a namespace to a subsystem.
    pub fn add_namespace(
        &mut self,
        nqn: &Nqn,
        options: NamespaceOptions,
    ) -> Result<(), ConfigurationError> {
        self.update(nqn, |subsystem| {
            let most = subsystem.limits().max_namespaces;
            subsystem.put(Namespace::new(nqn, most, options)?, false)
        })
    }

    /// Replaces a namespace by another of the same NSID.
    pub fn change_namespace(
        &mut self,
        nqn: &Nqn,
        options: NamespaceOptions,
    ) -> Result<(), ConfigurationError> {
        self.update(nqn, |subsystem| {
            let most = subsystem.limits().max_namespaces;
            subsystem.put(Namespace::new(nqn, most, options)?, true)
        })
    }

    /// Changes only what stands behind a namespace: its device came, or it is being removed.
    pub fn set_namespace_state(
        &mut self,
        nqn: &Nqn,
        nsid: u32,
        state: NamespaceState,
    ) -> Result<(), ConfigurationError> {
        self.update(nqn, |subsystem| {
            let before = subsystem.namespace(nsid).ok_or_else(|| {
                let subsystem = nqn.clone();
                ConfigurationError::UnknownNamespace { subsystem, nsid }
            })?;
            let options = NamespaceOptions { state, ..before.options().clone() };
            let most = subsystem.limits().max_namespaces;
            subsystem.put(Namespace::new(nqn, most, options)?, true)
        })
    }

    /// Removes a namespace altogether, which is right once nothing of it is in a device any more.
    pub fn remove_namespace(&mut self, nqn: &Nqn, nsid: u32) -> Result<(), ConfigurationError> {
        self.update(nqn, |subsystem| subsystem.remove(nsid))
    }

    /// The new configuration. What names something else is checked here: each listener that a subsystem
    /// is to be reached on exists.
    pub fn build(self) -> Result<Arc<Configuration>, ConfigurationError> {
        for subsystem in &self.subsystems {
            let Reach::On(wanted) = &subsystem.options().reach else { continue };
            let exists = |id: &&ListenerId| self.listeners.iter().any(|known| known.id == **id);
            if let Some(&listener) = wanted.iter().find(|id| !exists(id)) {
                let subsystem = subsystem.nqn().clone();
                return Err(ConfigurationError::UnknownListenerOf { subsystem, listener });
            }
        }
        let changed = self.changes_discovery();
        Ok(Arc::new(Configuration {
            discovery_generation: self.before.discovery_generation + u64::from(changed),
            version: self.before.version + 1,
            base: Arc::downgrade(&self.before),
            touched: self.touched.into_iter().collect(),
            subsystems: self.subsystems,
            listeners: self.listeners,
            referrals: self.referrals,
        }))
    }

    /// Whether any host's discovery log may read differently.
    fn changes_discovery(&self) -> bool {
        let same = |(one, other): (&Arc<Subsystem>, &Arc<Subsystem>)| {
            Arc::ptr_eq(one, other)
                || one.nqn() == other.nqn()
                    && one.options().hosts == other.options().hosts
                    && one.options().reach == other.options().reach
                    && one.limits().queue_depth == other.limits().queue_depth
        };
        let before = &self.before;
        self.listeners != before.listeners
            || self.referrals != before.referrals
            || self.subsystems.len() != before.subsystems.len()
            || !self.subsystems.iter().zip(&before.subsystems).all(same)
    }

    fn position(&self, nqn: &Nqn) -> Result<usize, usize> {
        self.subsystems.binary_search_by(|subsystem| subsystem.nqn().cmp(nqn))
    }

    /// Changes one subsystem. One that the configuration before still has is copied first; one that this
    /// builder made is changed in place, so that filling it takes time for what is put in alone. Every
    /// `change` checks before it alters anything.
    fn update(
        &mut self,
        nqn: &Nqn,
        change: impl FnOnce(&mut Subsystem) -> Result<(), ConfigurationError>,
    ) -> Result<(), ConfigurationError> {
        let place = self.position(nqn).ok().and_then(|at| self.subsystems.get_mut(at));
        let place = place.ok_or_else(|| ConfigurationError::UnknownSubsystem(nqn.clone()))?;
        self.touched.insert(nqn.clone());
        if let Some(own) = Arc::get_mut(place) {
            return change(own);
        }
        let mut subsystem = Subsystem::clone(place);
        change(&mut subsystem)?;
        *place = Arc::new(subsystem);
        Ok(())
    }
}

/// What is wrong with an address that no host can connect to, as the rest of a sentence.
fn unreachable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_multicast() => {
            Some("is a multicast address; name an address of this machine")
        }
        IpAddr::V4(address) if address.is_broadcast() => {
            Some("is the broadcast address; name an address of this machine")
        }
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Some("is an IPv4 address in IPv6's clothes; write it as IPv4")
        }
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            Some("is a link-local address, which means nothing without an interface; name another")
        }
        _ => None,
    }
}
