//! What a controller has: log pages (00h), commands (05h) and features (12h), each with its effects.

use nvme::identify::ControllerType;
use nvme::log::{CommandEffects, Effects, LogPage, SupportedLogPages, SupportedPage};
use nvme::{admin, command, io};
use zerocopy::IntoBytes;

use super::Window;
use crate::feature;

/// Bytes of page 00h.
pub(super) const LOG_PAGES_LENGTH: u64 = size_of::<SupportedLogPages>() as u64;
/// Bytes of page 05h.
pub(super) const COMMANDS_LENGTH: u64 = size_of::<CommandEffects>() as u64;
/// Bytes of page 12h: one dword for each feature.
pub(super) const FEATURES_LENGTH: u64 = 1024;

/// The pages of an I/O controller.
const IO_PAGES: &[LogPage] = &[
    LogPage::Supported,
    LogPage::ErrorInformation,
    LogPage::Health,
    LogPage::FirmwareSlots,
    LogPage::ChangedNamespaces,
    LogPage::CommandEffects,
    LogPage::Ana,
    LogPage::FeatureEffects,
];

/// The pages of a discovery controller.
const DISCOVERY_PAGES: &[LogPage] = &[
    LogPage::Supported,
    LogPage::ErrorInformation,
    LogPage::CommandEffects,
    LogPage::FeatureEffects,
    LogPage::Discovery,
];

/// The pages that a controller of this type has; `ana`: whether it reports asymmetric access.
pub(super) fn pages(kind: ControllerType, ana: bool) -> impl Iterator<Item = LogPage> {
    let pages = match kind {
        ControllerType::Discovery => DISCOVERY_PAGES,
        ControllerType::Io | ControllerType::Administrative => IO_PAGES,
    };
    pages.iter().copied().filter(move |page| ana || *page != LogPage::Ana)
}

pub(super) fn write_log_pages(kind: ControllerType, ana: bool, window: &mut Window<'_>) {
    let mut table = SupportedLogPages::default();
    for page in pages(kind, ana) {
        table.set(page, SupportedPage::SUPPORTED);
    }
    window.put(0, table.as_bytes());
}

pub(super) fn write_commands(kind: ControllerType, window: &mut Window<'_>) {
    let mut table = CommandEffects::default();
    for opcode in [
        admin::Opcode::GetLogPage,
        admin::Opcode::Identify,
        admin::Opcode::Abort,
        admin::Opcode::SetFeatures,
        admin::Opcode::GetFeatures,
        admin::Opcode::AsynchronousEventRequest,
        admin::Opcode::KeepAlive,
    ] {
        table.set_admin(opcode.code(), Effects::SUPPORTED);
    }
    table.set_admin(command::OPCODE_FABRICS, Effects::SUPPORTED);
    if kind != ControllerType::Discovery {
        for opcode in [io::Opcode::Flush, io::Opcode::Read, io::Opcode::Compare, io::Opcode::Verify]
        {
            table.set_io(opcode.code(), Effects::SUPPORTED);
        }
        for opcode in [io::Opcode::Write, io::Opcode::WriteZeroes, io::Opcode::DatasetManagement] {
            table.set_io(opcode.code(), Effects::SUPPORTED | Effects::CONTENT_CHANGE);
        }
        table.set_io(command::OPCODE_FABRICS, Effects::SUPPORTED);
    }
    window.put(0, table.as_bytes());
}

/// FID Supported, bit 0 of an entry of page 12h.
const FEATURE_SUPPORTED: u32 = 1 << 0;
/// FID Scope (bits 31:20): the controller.
const SCOPE_CONTROLLER: u32 = 1 << 21;
/// FID Scope: a namespace.
const SCOPE_NAMESPACE: u32 = 1 << 20;

pub(super) fn write_features(
    kind: ControllerType,
    volatile_write_cache: bool,
    window: &mut Window<'_>,
) {
    for feature in feature::supported(kind, volatile_write_cache) {
        let scope = if feature::is_namespace_specific(feature) {
            SCOPE_NAMESPACE
        } else {
            SCOPE_CONTROLLER
        };
        let entry = FEATURE_SUPPORTED | scope;
        window.put(u64::from(feature.code()) * 4, &entry.to_le_bytes());
    }
}
