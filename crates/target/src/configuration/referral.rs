//! A referral: another place where a host may look for subsystems.

use nvme::Nqn;
use nvme::address::TransportAddress;

/// An entry of the discovery log that is about another node. Every host is told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Referral {
    /// Where.
    pub address: TransportAddress,
    /// What is there: the discovery subsystem, as a rule.
    pub subsystem: Nqn,
    /// Whether a connection there has to be a secure one.
    pub secure_channel: bool,
}

impl Referral {
    /// Whether both lead to the same thing.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.address, &self.subsystem) == (other.address, &other.subsystem)
    }
}
