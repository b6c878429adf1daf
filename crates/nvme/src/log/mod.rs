//! Log pages: what Get Log Page returns.
//!
//! NVMe Base 2.0c, section 5.16.1.

mod ana;
mod discovery;
mod effects;
mod error;
mod firmware;
mod health;
mod namespaces;

pub use ana::{ANA_RETURN_GROUPS_ONLY, AnaGroup, AnaHeader, AnaState};
pub use discovery::{
    DISCOVERY_RECFMT, DiscoveryEntry, DiscoveryFlags, DiscoveryHeader, RdmaAddressSubtype,
    SecureChannel, SubsystemType, TRADDR_FIELD, TRSVCID_FIELD, TcpAddressSubtype,
    TransportRequirements,
};
pub use effects::{CommandEffects, Effects, SupportedLogPages, SupportedPage};
pub use error::{ERROR_PARAMETER_NONE, ErrorEntry};
pub use firmware::FirmwareSlots;
pub use health::{CriticalWarning, Health};
pub use namespaces::{CHANGED_NAMESPACES_MAX, ChangedNamespaces};

use crate::codes::codes;

codes! {
    /// Log Page Identifier (LID).
    pub enum LogPage {
        Supported = 0x00, "Supported Log Pages";
        ErrorInformation = 0x01, "Error Information";
        Health = 0x02, "SMART / Health Information";
        FirmwareSlots = 0x03, "Firmware Slot Information";
        ChangedNamespaces = 0x04, "Changed Namespace List";
        CommandEffects = 0x05, "Commands Supported and Effects";
        DeviceSelfTest = 0x06, "Device Self-test";
        TelemetryHost = 0x07, "Telemetry Host-Initiated";
        TelemetryController = 0x08, "Telemetry Controller-Initiated";
        EnduranceGroup = 0x09, "Endurance Group Information";
        PredictableLatencySet = 0x0a, "Predictable Latency Per NVM Set";
        PredictableLatencyEvents = 0x0b, "Predictable Latency Event Aggregate";
        Ana = 0x0c, "Asymmetric Namespace Access";
        PersistentEvents = 0x0d, "Persistent Event Log";
        LbaStatus = 0x0e, "LBA Status Information";
        EnduranceGroupEvents = 0x0f, "Endurance Group Event Aggregate";
        MediaUnitStatus = 0x10, "Media Unit Status";
        CapacityConfigurations = 0x11, "Supported Capacity Configuration List";
        FeatureEffects = 0x12, "Feature Identifiers Supported and Effects";
        MiEffects = 0x13, "NVMe-MI Commands Supported and Effects";
        Lockdown = 0x14, "Command and Feature Lockdown";
        BootPartition = 0x15, "Boot Partition";
        RotationalMedia = 0x16, "Rotational Media Information";
        Discovery = 0x70, "Discovery";
        Reservations = 0x80, "Reservation Notification";
        Sanitize = 0x81, "Sanitize Status";
    }
}
