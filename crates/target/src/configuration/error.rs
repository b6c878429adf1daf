//! What can be wrong with a configuration. Every error names the thing and what to do about it.

use nvme::Nqn;
use nvme::address::TransportAddress;
use thiserror::Error;
use uuid::Uuid;

use super::ListenerId;

/// Why a change of the configuration is refused. Nothing of the change has been applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigurationError {
    /// The discovery subsystem exists by itself on every listener.
    #[error(
        "subsystem {0}: this name belongs to the discovery subsystem, which is always there; choose another"
    )]
    ReservedName(Nqn),
    /// Two subsystems of one name.
    #[error("subsystem {0} exists twice; remove one or give it another NQN")]
    DuplicateSubsystem(Nqn),
    /// A subsystem that is not there.
    #[error("subsystem {0} does not exist")]
    UnknownSubsystem(Nqn),
    /// A text field that the identify data cannot carry.
    #[error(
        "subsystem {subsystem}: {field} {value:?} must be 1 to {most} printable ASCII characters, not blank at either end"
    )]
    Text {
        /// The subsystem.
        subsystem: Nqn,
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
        /// How many characters fit.
        most: usize,
    },
    /// A controller identifier range that is empty or beyond what the specification allows.
    #[error(
        "subsystem {subsystem}: controller identifiers {min} to {max} must lie in 1 to 65518, the lower first"
    )]
    ControllerRange {
        /// The subsystem.
        subsystem: Nqn,
        /// Lowest identifier.
        min: u16,
        /// Highest identifier.
        max: u16,
    },
    /// A limit outside of what is possible.
    #[error("subsystem {subsystem}: {limit} is {value}, but must be {allowed}")]
    Limit {
        /// The subsystem.
        subsystem: Nqn,
        /// Which limit.
        limit: &'static str,
        /// What it was set to.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// A listener that the subsystem is to be reached on is not there.
    #[error("subsystem {subsystem}: listener {listener} does not exist; add it or leave it out")]
    UnknownListenerOf {
        /// The subsystem.
        subsystem: Nqn,
        /// The listener.
        listener: ListenerId,
    },
    /// An NSID that this subsystem cannot have.
    #[error("subsystem {subsystem}: NSID {nsid} must be 1 to {most}")]
    NamespaceId {
        /// The subsystem.
        subsystem: Nqn,
        /// The NSID.
        nsid: u32,
        /// The highest possible.
        most: u32,
    },
    /// Two namespaces of one NSID.
    #[error("subsystem {subsystem}: NSID {nsid} exists twice; remove one or give it another NSID")]
    DuplicateNamespace {
        /// The subsystem.
        subsystem: Nqn,
        /// The NSID.
        nsid: u32,
    },
    /// A namespace that is not there.
    #[error("subsystem {subsystem}: namespace {nsid} does not exist")]
    UnknownNamespace {
        /// The subsystem.
        subsystem: Nqn,
        /// The NSID.
        nsid: u32,
    },
    /// Two namespaces of a subsystem that a host cannot tell apart; Linux ignores the second.
    #[error(
        "subsystem {subsystem}: namespaces {one} and {other} have the same UUID {uuid}; configure another for one of them"
    )]
    DuplicateUuid {
        /// The subsystem.
        subsystem: Nqn,
        /// The lower NSID.
        one: u32,
        /// The higher NSID.
        other: u32,
        /// Their UUID.
        uuid: Uuid,
    },
    /// As [`Self::DuplicateUuid`], for the NGUID.
    #[error(
        "subsystem {subsystem}: namespaces {one} and {other} have the same NGUID {}; configure another for one of them",
        Uuid::from_bytes(*nguid).simple()
    )]
    DuplicateNguid {
        /// The subsystem.
        subsystem: Nqn,
        /// The lower NSID.
        one: u32,
        /// The higher NSID.
        other: u32,
        /// Their NGUID.
        nguid: [u8; 16],
    },
    /// An identifier of zeroes, which hosts take for none.
    #[error(
        "subsystem {subsystem}, namespace {nsid}: the {field} must not be zero; leave it out to have one derived"
    )]
    ZeroIdentifier {
        /// The subsystem.
        subsystem: Nqn,
        /// The NSID.
        nsid: u32,
        /// Which identifier.
        field: &'static str,
    },
    /// An ANA group that this subsystem cannot have.
    #[error("subsystem {subsystem}, namespace {nsid}: ANA group {group} must be 1 to {most}")]
    AnaGroup {
        /// The subsystem.
        subsystem: Nqn,
        /// The NSID.
        nsid: u32,
        /// The group.
        group: u32,
        /// The highest possible.
        most: u32,
    },
    /// A device that cannot be a namespace.
    #[error("subsystem {subsystem}, namespace {nsid}: device {device} {problem}")]
    Device {
        /// The subsystem.
        subsystem: Nqn,
        /// The NSID.
        nsid: u32,
        /// The device's name.
        device: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: &'static str,
    },
    /// Two listeners of one number.
    #[error("listener {0} exists twice; remove one or give it another number")]
    DuplicateListener(ListenerId),
    /// Two listeners on one address.
    #[error("listeners {one} and {other} have the same address {address}; remove one")]
    DuplicateAddress {
        /// The one that was there.
        one: ListenerId,
        /// The new one.
        other: ListenerId,
        /// Their address.
        address: TransportAddress,
    },
    /// A wildcard and an address that it covers, on one port.
    #[error(
        "listener {listener}: {address} and {other} overlap; the wildcard serves both, remove the other"
    )]
    OverlappingAddress {
        /// The new one.
        listener: ListenerId,
        /// Its address.
        address: TransportAddress,
        /// The address of the one that was there.
        other: TransportAddress,
    },
    /// An address that no host could be told to connect to.
    #[error("listener {listener}: address {address} {problem}")]
    Address {
        /// The listener.
        listener: ListenerId,
        /// Its address.
        address: TransportAddress,
        /// What is wrong with it, as the rest of a sentence.
        problem: &'static str,
    },
    /// A listener that is not there.
    #[error("listener {0} does not exist")]
    UnknownListener(ListenerId),
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A subsystem.
    Subsystem(&'a Nqn),
    /// A namespace of a subsystem.
    Namespace(&'a Nqn, u32),
    /// A listener.
    Listener(ListenerId),
}

impl ConfigurationError {
    /// What is refused: of two that contradict each other the later.
    pub fn subject(&self) -> Subject<'_> {
        match self {
            Self::ReservedName(subsystem)
            | Self::DuplicateSubsystem(subsystem)
            | Self::UnknownSubsystem(subsystem)
            | Self::Text { subsystem, .. }
            | Self::ControllerRange { subsystem, .. }
            | Self::Limit { subsystem, .. }
            | Self::UnknownListenerOf { subsystem, .. } => Subject::Subsystem(subsystem),
            Self::NamespaceId { subsystem, nsid, .. }
            | Self::DuplicateNamespace { subsystem, nsid }
            | Self::UnknownNamespace { subsystem, nsid }
            | Self::DuplicateUuid { subsystem, other: nsid, .. }
            | Self::DuplicateNguid { subsystem, other: nsid, .. }
            | Self::ZeroIdentifier { subsystem, nsid, .. }
            | Self::AnaGroup { subsystem, nsid, .. }
            | Self::Device { subsystem, nsid, .. } => Subject::Namespace(subsystem, *nsid),
            Self::DuplicateListener(listener)
            | Self::DuplicateAddress { other: listener, .. }
            | Self::OverlappingAddress { listener, .. }
            | Self::Address { listener, .. }
            | Self::UnknownListener(listener) => Subject::Listener(*listener),
        }
    }
}
