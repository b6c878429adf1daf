//! Asynchronous events: what a completed Asynchronous Event Request tells the host.
//!
//! NVMe Base 2.0c, section 5.2.

use crate::codes::codes;
use crate::log::LogPage;

codes! {
    /// Asynchronous Event Type, bits 2:0 of dword 0.
    pub enum EventType {
        Error = 0x0, "Error status";
        Health = 0x1, "SMART / Health status";
        Notice = 0x2, "Notice";
        CommandSet = 0x6, "I/O Command specific status";
        Vendor = 0x7, "Vendor specific";
    }
}

/// Dword 0 of the completion of an Asynchronous Event Request.
///
/// An event is masked, once reported, until the host has read its log page with RAE 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    /// Asynchronous Event Type.
    pub event_type: EventType,
    /// Asynchronous Event Information; means something together with the type only.
    pub information: u8,
    /// Log Page Identifier (LID) of the page that says more and whose reading re-arms the event.
    pub lid: u8,
}

const fn event(event_type: EventType, information: u8, page: LogPage) -> Event {
    Event { event_type, information, lid: page.code() }
}

impl Event {
    /// Error: Write to Invalid Doorbell Register.
    pub const INVALID_DOORBELL: Self = event(EventType::Error, 0x00, LogPage::ErrorInformation);
    /// Error: Invalid Doorbell Write Value.
    pub const INVALID_DOORBELL_VALUE: Self =
        event(EventType::Error, 0x01, LogPage::ErrorInformation);
    /// Error: Diagnostic Failure.
    pub const DIAGNOSTIC_FAILURE: Self = event(EventType::Error, 0x02, LogPage::ErrorInformation);
    /// Error: Persistent Internal Error.
    pub const PERSISTENT_INTERNAL_ERROR: Self =
        event(EventType::Error, 0x03, LogPage::ErrorInformation);
    /// Error: Transient Internal Error.
    pub const TRANSIENT_INTERNAL_ERROR: Self =
        event(EventType::Error, 0x04, LogPage::ErrorInformation);
    /// Error: Firmware Image Load Error.
    pub const FIRMWARE_LOAD_ERROR: Self = event(EventType::Error, 0x05, LogPage::ErrorInformation);
    /// SMART / Health: NVM subsystem Reliability.
    pub const RELIABILITY: Self = event(EventType::Health, 0x00, LogPage::Health);
    /// SMART / Health: Temperature Threshold.
    pub const TEMPERATURE: Self = event(EventType::Health, 0x01, LogPage::Health);
    /// SMART / Health: Spare Below Threshold.
    pub const SPARE: Self = event(EventType::Health, 0x02, LogPage::Health);
    /// Notice: Namespace Attribute Changed.
    pub const NAMESPACE_CHANGED: Self = event(EventType::Notice, 0x00, LogPage::ChangedNamespaces);
    /// Notice: Firmware Activation Starting.
    pub const FIRMWARE_ACTIVATION: Self = event(EventType::Notice, 0x01, LogPage::FirmwareSlots);
    /// Notice: Asymmetric Namespace Access Change.
    pub const ANA_CHANGE: Self = event(EventType::Notice, 0x03, LogPage::Ana);
    /// Notice: Normal NVM Subsystem Shutdown. No log page belongs to it (LID 00h).
    pub const SUBSYSTEM_SHUTDOWN: Self = event(EventType::Notice, 0x07, LogPage::Supported);
    /// Notice: Discovery Log Page Change.
    pub const DISCOVERY_CHANGE: Self = event(EventType::Notice, 0xf0, LogPage::Discovery);

    /// Dword 0 of the completion.
    pub const fn dw0(self) -> u32 {
        u32::from_le_bytes([self.event_type.code(), self.information, self.lid, 0])
    }

    /// From dword 0 of a completion; the error is a reserved event type.
    pub fn from_dw0(dw0: u32) -> Result<Self, u8> {
        let [event_type, information, lid, _] = dw0.to_le_bytes();
        Ok(Self { event_type: EventType::try_from(event_type & 0x7)?, information, lid })
    }
}
