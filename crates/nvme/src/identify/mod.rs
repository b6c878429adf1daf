//! Identify data structures: 4,096 bytes each, chosen by CNS.
//!
//! NVMe Base 2.0c, section 5.17.2; NVM Command Set Specification 1.0c, section 4.1.5.

mod command_set;
mod controller;
mod descriptor;
mod list;
mod namespace;

pub use command_set::{CommandSets, NvmController, NvmNamespace};
pub use controller::{
    AnaCapabilities, ControllerType, FabricsAttributes, IdentifyController, MultiPathCapabilities,
    OptionalAdminCommands, OptionalCommands, PowerState, SglSupport, ascii,
};
pub use descriptor::{Descriptor, DescriptorHeader, DescriptorType, DescriptorWriter, Descriptors};
pub use list::{CONTROLLER_LIST_MAX, ControllerList, NAMESPACE_LIST_MAX, NamespaceList};
pub use namespace::{
    DeallocatedRead, IdentifyNamespace, IndependentNamespace, LbaFormat, NamespaceFeatures,
    NamespaceSharing,
};

use crate::admin::IDENTIFY_LENGTH;
use crate::codes::codes;

codes! {
    /// Controller or Namespace Structure (CNS).
    pub enum Cns {
        Namespace = 0x00, "Identify Namespace";
        Controller = 0x01, "Identify Controller";
        ActiveNamespaces = 0x02, "Active Namespace ID list";
        NamespaceDescriptors = 0x03, "Namespace Identification Descriptor list";
        NvmSets = 0x04, "NVM Set List";
        CommandSetNamespace = 0x05, "I/O Command Set specific Identify Namespace";
        CommandSetController = 0x06, "I/O Command Set specific Identify Controller";
        CommandSetActiveNamespaces = 0x07, "Active Namespace ID list of an I/O Command Set";
        IndependentNamespace = 0x08, "I/O Command Set Independent Identify Namespace";
        NamespaceFormat = 0x09, "Identify Namespace of a User Data Format";
        CommandSetNamespaceFormat = 0x0a, "I/O Command Set specific Identify Namespace of a User Data Format";
        AllocatedNamespaces = 0x10, "Allocated Namespace ID list";
        AllocatedNamespace = 0x11, "Identify Namespace of an allocated NSID";
        AttachedControllers = 0x12, "Controller list of a namespace";
        Controllers = 0x13, "Controller list of the NVM subsystem";
        PrimaryController = 0x14, "Primary Controller Capabilities";
        SecondaryControllers = 0x15, "Secondary Controller list";
        NamespaceGranularity = 0x16, "Namespace Granularity List";
        Uuids = 0x17, "UUID List";
        Domains = 0x18, "Domain List";
        EnduranceGroups = 0x19, "Endurance Group List";
        CommandSetAllocatedNamespaces = 0x1a, "Allocated Namespace ID list of an I/O Command Set";
        CommandSetAllocatedNamespace = 0x1b, "Identify Namespace of an allocated NSID of an I/O Command Set";
        CommandSets = 0x1c, "Identify I/O Command Set";
    }
}

codes! {
    /// Command Set Identifier (CSI).
    pub enum Csi {
        Nvm = 0x00, "NVM";
        KeyValue = 0x01, "Key Value";
        Zoned = 0x02, "Zoned Namespace";
    }
}
