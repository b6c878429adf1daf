//! Log pages: errors, health, firmware slots, changed namespaces, effects.

use std::collections::VecDeque;

use nvme::admin::{self, GetLogPage};
use nvme::event::Event;
use nvme::feature::AsynchronousEvents;
use nvme::identify::OptionalCommands;
use nvme::io;
use nvme::log::{
    ChangedNamespaces, CommandEffects, CriticalWarning, ERROR_PARAMETER_NONE, Effects, ErrorEntry,
    Health, LogPage, SupportedLogPages, SupportedPage,
};
use nvme::register::Version;
use nvme::{NSID_ALL, Sqe, Status};
use zerocopy::IntoBytes;

use super::world::{Command, World};

/// Entries of the error log (ELPE + 1).
pub(super) const ERRORS: usize = 64;

/// The error log, newest first.
#[derive(Debug, Default)]
pub(super) struct Errors {
    entries: VecDeque<ErrorEntry>,
    count: u64,
    /// Critical warnings that a test has set.
    pub(super) warning: CriticalWarning,
    /// Media errors so far.
    media: u64,
}

impl Errors {
    /// A command of an I/O queue failed: there is more to say about it.
    pub(super) fn record(&mut self, command: &Command, status: Status) -> Status {
        let expected = [Status::COMPARE_FAILURE, Status::ABORT_REQUESTED];
        if command.sqid == 0 || expected.iter().any(|&other| status.same_code(other)) {
            return status;
        }
        let status = status.with_more();
        let mut entry = ErrorEntry::default();
        self.count += 1;
        self.media += u64::from(status.status_type() == nvme::status::StatusType::Media);
        entry.error_count.set(self.count);
        entry.sqid.set(command.sqid);
        entry.cid = command.sqe.cid;
        entry.status_field.set(status.to_wire());
        entry.parameter_error_location.set(ERROR_PARAMETER_NONE);
        let (low, high) = (command.sqe.cdw10.get(), command.sqe.cdw11.get());
        entry.lba.set(u64::from(low) | u64::from(high) << 32);
        entry.nsid = command.sqe.nsid;
        self.entries.truncate(ERRORS - 1);
        self.entries.push_front(entry);
        status
    }
}

impl World {
    pub(super) fn get_log_page(&mut self, sqe: &Sqe, get: &GetLogPage) -> Result<u32, Status> {
        let modern = self.options.version >= Version::V2_0;
        let offset = get.byte_offset()?;
        let page = LogPage::try_from(get.lid).map_err(|_| Status::INVALID_LOG_PAGE)?;
        let bytes = match page {
            LogPage::Supported if modern => supported_pages().as_bytes().to_vec(),
            LogPage::ErrorInformation => {
                let mut bytes = vec![0; ERRORS * size_of::<ErrorEntry>()];
                let places = bytes.chunks_exact_mut(size_of::<ErrorEntry>());
                for (place, entry) in places.zip(&self.errors.entries) {
                    place.copy_from_slice(entry.as_bytes());
                }
                bytes
            }
            LogPage::Health => {
                let nsid = sqe.nsid.get();
                if nsid != 0 && nsid != NSID_ALL {
                    // No health of a single namespace: LPA bit 0 is clear.
                    let what = format!("health of namespace {nsid}");
                    return self.refuse(Status::INVALID_FIELD, what);
                }
                self.health().as_bytes().to_vec()
            }
            LogPage::FirmwareSlots => self.firmware.page().as_bytes().to_vec(),
            LogPage::ChangedNamespaces => {
                let changed = self.events.changed.iter().copied();
                ChangedNamespaces::new(changed).as_bytes().to_vec()
            }
            LogPage::CommandEffects => self.effects().as_bytes().to_vec(),
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        let start = usize::try_from(offset).ok().filter(|&start| start <= bytes.len());
        let rest = start.and_then(|start| bytes.get(start..)).ok_or(Status::INVALID_FIELD)?;
        self.answer_with(sqe, rest, get.length())?;
        if !get.rae {
            self.events.read(page);
            if page == LogPage::ChangedNamespaces {
                self.events.changed.clear();
            }
        }
        Ok(0)
    }

    pub(super) fn warning(&self) -> CriticalWarning {
        let temperature = CriticalWarning::TEMPERATURE;
        let hot = self.features.is_too_hot_or_cold(self.options.temperature);
        self.errors.warning | if hot { temperature } else { CriticalWarning::empty() }
    }

    /// Tells of a temperature beyond a threshold, if that is wanted.
    pub(super) fn watch_temperature(&mut self) {
        let hot = self.features.is_too_hot_or_cold(self.options.temperature);
        if hot && self.features.wants(AsynchronousEvents::TEMPERATURE) {
            self.events.push(Event::TEMPERATURE);
        }
    }

    fn health(&self) -> Health {
        let mut health = Health::default();
        let count = |opcode: io::Opcode| {
            let count = self.counters.io.get(usize::from(opcode.code())).copied();
            u128::from(count.unwrap_or(0))
        };
        health.critical_warning = self.warning().bits();
        health.composite_temperature.set(self.options.temperature);
        health.available_spare =
            if self.warning().contains(CriticalWarning::SPARE) { 5 } else { 100 };
        health.available_spare_threshold = 10;
        health.host_read_commands.set(count(io::Opcode::Read) + count(io::Opcode::Compare));
        health.host_write_commands.set(count(io::Opcode::Write));
        health.media_errors.set(u128::from(self.errors.media));
        health.error_log_entries.set(u128::from(self.errors.count));
        health.power_cycles.set(1);
        health
    }

    fn effects(&self) -> CommandEffects {
        let mut effects = CommandEffects::default();
        let mut known = vec![
            admin::Opcode::DeleteIoSubmissionQueue,
            admin::Opcode::CreateIoSubmissionQueue,
            admin::Opcode::GetLogPage,
            admin::Opcode::DeleteIoCompletionQueue,
            admin::Opcode::CreateIoCompletionQueue,
            admin::Opcode::Identify,
            admin::Opcode::Abort,
            admin::Opcode::SetFeatures,
            admin::Opcode::GetFeatures,
            admin::Opcode::AsynchronousEventRequest,
        ];
        if self.options.firmware_slots > 0 {
            known.extend([admin::Opcode::FirmwareCommit, admin::Opcode::FirmwareImageDownload]);
        }
        if self.options.shadow_doorbells {
            known.push(admin::Opcode::DoorbellBufferConfig);
        }
        for opcode in known {
            effects.set_admin(opcode.code(), Effects::SUPPORTED);
        }
        let changes = Effects::SUPPORTED | Effects::CONTENT_CHANGE;
        let all = OptionalCommands::empty();
        for (opcode, needs, effect) in [
            (io::Opcode::Flush, all, Effects::SUPPORTED),
            (io::Opcode::Write, all, changes),
            (io::Opcode::Read, all, Effects::SUPPORTED),
            (io::Opcode::Compare, OptionalCommands::COMPARE, Effects::SUPPORTED),
            (io::Opcode::WriteZeroes, OptionalCommands::WRITE_ZEROES, changes),
            (io::Opcode::DatasetManagement, OptionalCommands::DATASET_MANAGEMENT, changes),
            (io::Opcode::Verify, OptionalCommands::VERIFY, Effects::SUPPORTED),
            (io::Opcode::Copy, OptionalCommands::COPY, changes),
        ] {
            if self.options.oncs.contains(needs) {
                effects.set_io(opcode.code(), effect);
            }
        }
        effects
    }
}

fn supported_pages() -> SupportedLogPages {
    let mut pages = SupportedLogPages::default();
    for page in [
        LogPage::Supported,
        LogPage::ErrorInformation,
        LogPage::Health,
        LogPage::FirmwareSlots,
        LogPage::ChangedNamespaces,
        LogPage::CommandEffects,
    ] {
        pages.set(page, SupportedPage::SUPPORTED);
    }
    pages
}
