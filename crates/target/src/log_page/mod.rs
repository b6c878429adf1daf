//! Get Log Page: which pages there are, what a request for one must look like, and the bytes it gets.
//!
//! Pure functions of what the caller hands in ([`Sources`]), run on the controller's reactor. A page is
//! written piece by piece into the [`Window`] that the host asked for, so that a long page is never built whole.
//!
//! Reading a page with Retain Asynchronous Event clear re-arms the event that belongs to it and empties
//! the changed namespace list; that is the controller's to do, once the response can no longer fail.
//!
//! NVMe Base 2.0c, section "Get Log Page command".

mod ana;
mod changed_namespaces;
mod error_log;
mod health;
mod support;
mod window;

use nvme::Status;
use nvme::admin::GetLogPage;
use nvme::identify::{ControllerType, Csi, ascii};
use nvme::log::{FirmwareSlots, LogPage};
use zerocopy::IntoBytes;

pub use changed_namespaces::ChangedNamespaces;
pub use error_log::{ERROR_LOG_ENTRIES, ErrorLog, Failure};
pub use health::Counters;
pub use window::Window;

use crate::configuration::View;
use crate::discovery::DiscoveryLog;

/// A request for part of a log page, its fields checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The page.
    pub page: LogPage,
    /// First byte asked for, a multiple of four.
    pub offset: u64,
    /// Bytes asked for; the data pointer must describe exactly these.
    pub length: u32,
    /// Retain Asynchronous Event: reading changes nothing.
    pub retain: bool,
    /// Log Specific Field.
    lsp: u8,
}

/// What the pages are made from.
#[derive(Clone, Copy, Debug)]
pub enum Sources<'a> {
    /// Of an I/O controller.
    Io {
        /// Its subsystem, as its host sees it.
        view: View<'a>,
        /// Whether it reports a volatile write cache.
        volatile_write_cache: bool,
        /// Its errors.
        error_log: &'a ErrorLog,
        /// The namespaces that changed since it was last asked.
        changed: &'a ChangedNamespaces,
        /// How often the ANA page has changed since it was reset.
        ana_changes: u64,
        /// What has been counted.
        counters: &'a Counters,
    },
    /// Of a discovery controller.
    Discovery {
        /// Its errors.
        error_log: &'a ErrorLog,
        /// The log for this host on this connection.
        log: DiscoveryLog<'a>,
    },
}

impl Sources<'_> {
    fn kind(&self) -> ControllerType {
        match self {
            Self::Io { .. } => ControllerType::Io,
            Self::Discovery { .. } => ControllerType::Discovery,
        }
    }

    fn ana(&self) -> bool {
        matches!(self, Self::Io { view, .. } if view.subsystem.options().ana.is_some())
    }
}

/// Checks the fields of a Get Log Page command to a controller of this type. `ana`: whether it reports asymmetric
/// access. `max_transfer`: the most bytes that one command may transfer.
///
/// NSID is looked at only where a page could be of a namespace: hosts send 0, `FFFFFFFFh` and, by nvme-cli on a
/// block device, a namespace for pages of the controller. LSI means nothing to our pages.
pub fn parse(
    command: &GetLogPage,
    nsid: u32,
    kind: ControllerType,
    ana: bool,
    max_transfer: u32,
) -> Result<Request, Status> {
    let page = LogPage::try_from(command.lid).ok();
    let page = page.filter(|page| support::pages(kind, ana).any(|known| known == *page));
    let page = page.ok_or(Status::INVALID_LOG_PAGE.with_dnr())?;
    let offset = command.byte_offset().map_err(Status::with_dnr)?;
    let length = u32::try_from(command.length()).ok();
    let length = length.filter(|length| *length <= max_transfer);
    let length = length.ok_or(Status::INVALID_FIELD.with_dnr())?;
    // LPA bit 0 is clear: there is no SMART log of a single namespace.
    let of_a_namespace = page == LogPage::Health && !matches!(nsid, 0 | nvme::NSID_ALL);
    let of_another_set = page == LogPage::CommandEffects && command.csi != Csi::Nvm.code();
    // There is no UUID list that an index could point into.
    if of_a_namespace || of_another_set || command.uuid_index != 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    Ok(Request { page, offset, length, retain: command.rae, lsp: command.lsp })
}

impl Request {
    /// Fills `bytes`, which is as long as the request, with that part of the page. What lies beyond the
    /// page's end is zero; an offset beyond it is an error.
    pub fn fill(&self, sources: &Sources<'_>, bytes: &mut [u8]) -> Result<(), Status> {
        if self.offset > self.page_length(sources)? {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let mut window = Window::new(self.offset, bytes);
        let window = &mut window;
        match (self.page, sources) {
            (LogPage::Supported, _) => {
                support::write_log_pages(sources.kind(), sources.ana(), window);
            }
            (LogPage::CommandEffects, _) => support::write_commands(sources.kind(), window),
            (LogPage::FeatureEffects, _) => {
                let cache = matches!(sources, Sources::Io { volatile_write_cache: true, .. });
                support::write_features(sources.kind(), cache, window);
            }
            (
                LogPage::ErrorInformation,
                Sources::Io { error_log, .. } | Sources::Discovery { error_log, .. },
            ) => error_log.write(window),
            (LogPage::Health, Sources::Io { counters, .. }) => health::write(counters, window),
            (LogPage::FirmwareSlots, Sources::Io { view, .. }) => {
                write_firmware(&view.subsystem.options().firmware, window);
            }
            (LogPage::ChangedNamespaces, Sources::Io { changed, .. }) => changed.write(window),
            (LogPage::Ana, Sources::Io { view, ana_changes, .. }) => {
                ana::Groups::of(*view, self.lsp).write(*ana_changes, window);
            }
            (LogPage::Discovery, Sources::Discovery { log, .. }) => log.write(window),
            _ => return Err(Status::INVALID_LOG_PAGE.with_dnr()),
        }
        Ok(())
    }

    fn page_length(&self, sources: &Sources<'_>) -> Result<u64, Status> {
        Ok(match (self.page, sources) {
            (LogPage::Supported, _) => support::LOG_PAGES_LENGTH,
            (LogPage::CommandEffects, _) => support::COMMANDS_LENGTH,
            (LogPage::FeatureEffects, _) => support::FEATURES_LENGTH,
            (LogPage::ErrorInformation, _) => error_log::LENGTH,
            (LogPage::Health, _) => health::LENGTH,
            (LogPage::FirmwareSlots, _) => size_of::<FirmwareSlots>() as u64,
            (LogPage::ChangedNamespaces, _) => changed_namespaces::LENGTH,
            (LogPage::Ana, Sources::Io { view, .. }) => ana::Groups::of(*view, self.lsp).length(),
            (LogPage::Discovery, Sources::Discovery { log, .. }) => log.length(),
            _ => return Err(Status::INVALID_LOG_PAGE.with_dnr()),
        })
    }
}

/// Page 03h: one slot, read-only, active.
fn write_firmware(revision: &str, window: &mut Window<'_>) {
    let mut slots = FirmwareSlots { afi: 1, ..FirmwareSlots::default() };
    if let Some(first) = slots.frs.first_mut() {
        *first = ascii(revision);
    }
    window.put(0, slots.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use nvme::address::TransportType;
    use nvme::log::{CommandEffects, Effects, Health, SupportedLogPages, SupportedPage};
    use nvme::{NSID_ALL, Nqn};
    use proptest::prelude::*;
    use zerocopy::FromBytes;

    use super::*;
    use crate::configuration::{Ana, Configuration, NamespaceOptions, SubsystemOptions};
    use crate::feature;

    const MAX_TRANSFER: u32 = 1 << 20;

    /// Everything that pages are made of, with something in each.
    struct Fixture {
        configuration: Arc<Configuration>,
        host: Nqn,
        error_log: ErrorLog,
        changed: ChangedNamespaces,
        counters: Counters,
    }

    impl Fixture {
        fn new() -> Self {
            let host: Nqn = "nqn.2026-11.io.tidegate:host".parse().unwrap();
            let mut builder = Configuration::empty().change();
            let options =
                SubsystemOptions { ana: Some(Ana::default()), ..SubsystemOptions::default() };
            builder.add_subsystem(host.clone(), options).unwrap();
            for (nsid, ana_group) in [(1, 7), (2, 2), (5, 7)] {
                let disk = NamespaceOptions::waiting(nsid, format!("disk{nsid}"));
                builder.add_namespace(&host, NamespaceOptions { ana_group, ..disk }).unwrap();
            }
            let mut error_log = ErrorLog::default();
            error_log.record(&Failure {
                sqid: 1,
                cid: 2,
                status: Status::COMPARE_FAILURE,
                nsid: 3,
                lba: 4,
                location: Some(40),
                transport: TransportType::Tcp,
            });
            let mut changed = ChangedNamespaces::default();
            changed.record(5);
            let counters = Counters {
                bytes_read: 512_001,
                bytes_written: 512_000,
                read_commands: 3,
                write_commands: 4,
                busy: Duration::from_secs(125),
                running: Duration::from_secs(7300),
                media_errors: 5,
                error_log_entries: 6,
                power_cycles: 7,
                unsafe_shutdowns: 8,
                read_only: false,
                degraded: true,
            };
            let configuration = builder.build().unwrap();
            Self { configuration, host, error_log, changed, counters }
        }

        fn io(&self) -> Sources<'_> {
            Sources::Io {
                view: View {
                    subsystem: self.configuration.subsystem(&self.host).unwrap(),
                    host: &self.host,
                    listener: None,
                },
                volatile_write_cache: true,
                error_log: &self.error_log,
                changed: &self.changed,
                ana_changes: 0,
                counters: &self.counters,
            }
        }

        fn discovery(&self) -> Sources<'_> {
            let local = "192.0.2.1".parse().unwrap();
            let log = DiscoveryLog::new(&self.configuration, &self.host, local);
            Sources::Discovery { error_log: &self.error_log, log }
        }
    }

    fn read(
        sources: &Sources<'_>,
        page: LogPage,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>, Status> {
        let command = GetLogPage::new(page, offset, u64::from(length));
        let request = parse(&command, 0, sources.kind(), sources.ana(), MAX_TRANSFER)?;
        let mut bytes = vec![0xaa; usize::try_from(request.length).unwrap()];
        request.fill(sources, &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn the_supported_pages_are_those_that_can_be_read() {
        let fixture = Fixture::new();
        for sources in [fixture.io(), fixture.discovery()] {
            let table = read(&sources, LogPage::Supported, 0, 1024).unwrap();
            let table = SupportedLogPages::read_from_bytes(&table).unwrap();
            for page in LogPage::ALL {
                let listed = table.get(*page).contains(SupportedPage::SUPPORTED);
                assert_eq!(read(&sources, *page, 0, 512).is_ok(), listed, "{page}");
            }
        }
        for lid in (0..=u8::MAX).filter(|lid| LogPage::try_from(*lid).is_err()) {
            let command = GetLogPage { lid, ..GetLogPage::default() };
            let refused = parse(&command, 0, ControllerType::Io, true, MAX_TRANSFER);
            assert_eq!(refused, Err(Status::INVALID_LOG_PAGE.with_dnr()));
        }
    }

    #[test]
    fn health_shows_the_counters() {
        let fixture = Fixture::new();
        let health = read(&fixture.io(), LogPage::Health, 0, 512).unwrap();
        let health = Health::read_from_bytes(&health).unwrap();
        assert_eq!(health.critical_warning, 1 << 2);
        assert_eq!(health.available_spare, 100);
        assert_eq!(health.data_units_read.get(), 2);
        assert_eq!(health.data_units_written.get(), 1);
        assert_eq!(health.host_read_commands.get(), 3);
        assert_eq!(health.host_write_commands.get(), 4);
        assert_eq!(health.controller_busy_time.get(), 2);
        assert_eq!(health.power_on_hours.get(), 2);
        assert_eq!(health.media_errors.get(), 5);
        assert_eq!(health.error_log_entries.get(), 6);
        assert_eq!(health.power_cycles.get(), 7);
        assert_eq!(health.unsafe_shutdowns.get(), 8);
    }

    #[test]
    fn effects_name_the_commands_that_are_served() {
        let fixture = Fixture::new();
        let effects = |sources: &Sources<'_>| {
            let page = read(sources, LogPage::CommandEffects, 0, 4096).unwrap();
            CommandEffects::read_from_bytes(&page).unwrap()
        };
        let io = effects(&fixture.io());
        for opcode in 0..=0x7e {
            let sqe = nvme::Sqe::new(opcode, 1);
            let bits = Effects::from_bits_retain(io.iocs[usize::from(opcode)].get());
            let served = nvme::io::Command::parse(&sqe).is_ok();
            assert_eq!(bits.contains(Effects::SUPPORTED), served, "{opcode:#x}");
            let bits = Effects::from_bits_retain(io.acs[usize::from(opcode)].get());
            // Parsing a command of zeroes fails for no other reason than its opcode.
            let served = nvme::admin::Command::parse(&sqe).is_ok();
            assert_eq!(bits.contains(Effects::SUPPORTED), served, "{opcode:#x}");
        }
        let write = io.iocs[1].get();
        assert_eq!(write, (Effects::SUPPORTED | Effects::CONTENT_CHANGE).bits());
        assert!(effects(&fixture.discovery()).iocs.iter().all(|entry| entry.get() == 0));
    }

    #[test]
    fn the_features_page_lists_the_features() {
        let fixture = Fixture::new();
        for sources in [fixture.io(), fixture.discovery()] {
            let page = read(&sources, LogPage::FeatureEffects, 0, 1024).unwrap();
            let listed =
                (0..=u8::MAX).zip(page.chunks_exact(4)).filter(|(_, entry)| entry[0] & 1 != 0);
            let listed: Vec<u8> = listed.map(|(fid, _)| fid).collect();
            let supported = feature::supported(sources.kind(), true);
            assert_eq!(listed, supported.map(nvme::feature::Feature::code).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_firmware_slot_is_the_running_one() {
        let fixture = Fixture::new();
        let page = read(&fixture.io(), LogPage::FirmwareSlots, 0, 512).unwrap();
        assert_eq!(page[0], 1);
        assert_eq!(&page[8..16], &ascii::<8>(crate::configuration::FIRMWARE));
        assert!(page[16..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn fields_of_the_command_are_checked() {
        let good = GetLogPage::new(LogPage::Health, 0, 512);
        let effects = GetLogPage::new(LogPage::CommandEffects, 0, 4096);
        let io = |command: GetLogPage, nsid| {
            parse(&command, nsid, ControllerType::Io, true, MAX_TRANSFER)
        };
        assert!(io(good, 0).is_ok() && io(good, NSID_ALL).is_ok() && io(effects, 1).is_ok());
        assert!(io(GetLogPage { rae: true, ..good }, 0).unwrap().retain);
        for (wrong, nsid) in [
            (good, 1),
            (GetLogPage { offset: 2, ..good }, 0),
            (GetLogPage { offset_is_index: true, ..good }, 0),
            (GetLogPage { uuid_index: 1, ..good }, 0),
            (GetLogPage { numd: MAX_TRANSFER / 4, ..good }, 0),
            (GetLogPage { numd: u32::MAX, ..good }, 0),
            (GetLogPage { csi: 2, ..effects }, 0),
        ] {
            assert_eq!(io(wrong, nsid), Err(Status::INVALID_FIELD.with_dnr()), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_window_shows_its_part_of_the_page(
            at in 0_usize..12, words in 0_u64..1200, length in 1_u32..300,
        ) {
            let fixture = Fixture::new();
            let sources = [fixture.io(), fixture.discovery()];
            let served: Vec<_> = sources.iter().flat_map(|sources| {
                support::pages(sources.kind(), sources.ana()).map(move |page| (sources, page))
            }).collect();
            let (sources, page) = served[at % served.len()];
            let whole = read(sources, page, 0, 8192).unwrap();
            let (offset, length) = (words * 4, length * 4);
            let request = parse(
                &GetLogPage::new(page, offset, u64::from(length)), 0, sources.kind(), sources.ana(),
                MAX_TRANSFER,
            ).unwrap();
            let page_length = request.page_length(sources).unwrap();
            match read(sources, page, offset, length) {
                Ok(part) => {
                    prop_assert!(offset <= page_length);
                    let from = usize::try_from(offset).unwrap();
                    prop_assert_eq!(&part, &whole[from..from + part.len()]);
                }
                Err(status) => {
                    prop_assert!(offset > page_length);
                    prop_assert_eq!(status, Status::INVALID_FIELD.with_dnr());
                }
            }
        }

        #[test]
        fn nothing_that_a_host_asks_for_panics(
            fields: [u8; 64], lid in prop_oneof![0_u8..0x14, Just(0x70), any::<u8>()], discovery: bool,
        ) {
            let mut sqe = nvme::Sqe::read_from_bytes(&fields).unwrap();
            sqe.opcode = nvme::admin::Opcode::GetLogPage.code();
            let Ok(nvme::admin::Command::GetLogPage(command)) = nvme::admin::Command::parse(&sqe)
            else {
                return Err(TestCaseError::fail("not a Get Log Page"));
            };
            let command = GetLogPage { lid, ..command };
            let fixture = Fixture::new();
            let sources = if discovery { fixture.discovery() } else { fixture.io() };
            let most = 1 << 16;
            if let Ok(request) = parse(&command, sqe.nsid.get(), sources.kind(), sources.ana(), most) {
                prop_assert!(request.length <= most && request.offset.is_multiple_of(4));
                let mut bytes = vec![0; usize::try_from(request.length).unwrap()];
                let result = request.fill(&sources, &mut bytes);
                prop_assert!(result.err().is_none_or(Status::dnr));
            }
        }
    }
}
