//! Features, log pages, events, firmware, and what controllers of other versions say.

use nvme::admin::{self, GetFeatures, GetLogPage, Identify, Select, SetFeatures};
use nvme::event::Event;
use nvme::feature::{AsynchronousEvents, ErrorRecovery, Feature, TemperatureThreshold, Timestamp};
use nvme::identify::{
    Cns, Csi, Descriptor, Descriptors, IdentifyController, IdentifyNamespace, NamespaceFeatures,
};
use nvme::io::{Command, Transfer};
use nvme::log::{ChangedNamespaces, CriticalWarning, ErrorEntry, FirmwareSlots, Health, LogPage};
use nvme::pcie::{self, CommitAction, FirmwareCommit, FirmwareImageDownload};
use nvme::register::Version;
use nvme::{Prps, Status};
use nvme_pcie::software::{Fault, NamespaceOptions, Options, Preferred, Target};
use zerocopy::FromBytes;

use crate::raw::Raw;

fn set(feature: Feature, value: u32) -> nvme::Sqe {
    admin::Command::SetFeatures(SetFeatures::new(feature, value)).to_sqe(0)
}

fn get(feature: Feature) -> nvme::Sqe {
    admin::Command::GetFeatures(GetFeatures::new(feature)).to_sqe(0)
}

fn page<T: FromBytes>(raw: &mut Raw, page: LogPage) -> T {
    let at = raw.pages(1);
    let get = GetLogPage::new(page, 0, size_of::<T>() as u64);
    let cqe = raw.admin_data(admin::Command::GetLogPage(get).to_sqe(0), at);
    assert!(cqe.status().is_success(), "{}", cqe.status());
    T::read_from_bytes(&raw.bytes(at, size_of::<T>())).unwrap()
}

#[test]
fn features_keep_what_was_set() {
    let mut raw = Raw::ready(1, Options::default());
    let arbitration = 0x0102_0303;
    raw.admin_ok(set(Feature::Arbitration, arbitration).with_prps(Prps::default()));
    let value = raw.admin_ok(get(Feature::Arbitration).with_prps(Prps::default()));
    assert_eq!(value.dw0(), arbitration);
    assert_eq!(raw.admin_ok(get(Feature::VolatileWriteCache)).dw0(), 1);
    assert_eq!(raw.admin_ok(get(Feature::NumberOfQueues)).dw0(), 0x0003_0003);
    let low = TemperatureThreshold { kelvin: 0, sensor: 0, kind: 1 };
    let mut both = GetFeatures::new(Feature::TemperatureThreshold);
    assert_eq!(raw.admin_ok(admin::Command::GetFeatures(both).to_sqe(0)).dw0(), 343);
    both.cdw11 = low.into();
    assert_eq!(raw.admin_ok(admin::Command::GetFeatures(both).to_sqe(0)).dw0(), 0);
    let at = raw.pages(1);
    assert!(raw.memory.put(at, &Timestamp::new(123_456_789, 0)));
    assert!(raw.admin_data(set(Feature::Timestamp, 0), at).status().is_success());
    raw.memory.put(at, &[0_u8; 8]);
    assert!(raw.admin_data(get(Feature::Timestamp), at).status().is_success());
    let timestamp: Timestamp = raw.memory.get(at).unwrap();
    assert_eq!(timestamp, Timestamp::new(123_456_789, Timestamp::ORIGIN_HOST));
    // Of a namespace: blocks that were never written fail.
    let dulbe = ErrorRecovery { time_limit: 0, dulbe: true };
    let mut recovery = set(Feature::ErrorRecovery, dulbe.into()).with_prps(Prps::default());
    recovery.nsid.set(1);
    raw.admin_ok(recovery);
    let read = Command::Read(Transfer::new(0, 1)).to_sqe(1);
    assert!(raw.io_data(read, at, 512).same_code(Status::DEALLOCATED_OR_UNWRITTEN));
    for (sqe, status) in [
        (set(Feature::SanitizeConfig, 0), Status::INVALID_FIELD),
        (set(Feature::PowerManagement, 1), Status::INVALID_FIELD),
        (get(Feature::KeepAlive), Status::INVALID_FIELD),
    ] {
        let answer = raw.call(0, sqe.with_prps(Prps::default()));
        assert!(answer.status().same_code(status));
    }
    let default = GetFeatures { select: Select::Default, ..GetFeatures::new(Feature::Arbitration) };
    let default = admin::Command::GetFeatures(default).to_sqe(0).with_prps(Prps::default());
    assert!(raw.call(0, default).status().same_code(Status::INVALID_FIELD));
    raw.innocent();
}

#[test]
fn events_are_told_once_until_their_page_is_read() {
    let mut raw = Raw::ready(2, Options { aerl: 1, ..Options::default() });
    let wanted = AsynchronousEvents::NAMESPACE | AsynchronousEvents::TEMPERATURE;
    raw.admin_ok(set(Feature::AsynchronousEvents, wanted.bits()).with_prps(Prps::default()));
    let listen = admin::Command::AsynchronousEventRequest.to_sqe(0).with_prps(Prps::default());
    let (first, second) = (raw.submit(0, listen), raw.submit(0, listen));
    raw.controller.settle();
    let third = raw.call(0, listen);
    assert!(third.status().same_code(Status::ASYNC_EVENT_LIMIT_EXCEEDED));
    assert_eq!(raw.controller.listening(), 2);
    raw.controller.add_namespace(&NamespaceOptions::new(2, 4096, 1000));
    let told = raw.wait(0, first).or_else(|| raw.wait(0, second)).unwrap();
    assert_eq!(Event::from_dw0(told.dw0()), Ok(Event::NAMESPACE_CHANGED));
    raw.controller.resize_namespace(1, 77);
    raw.controller.settle();
    assert!(raw.poll(0).is_none());
    let changed: ChangedNamespaces = page(&mut raw, LogPage::ChangedNamespaces);
    assert_eq!(changed, ChangedNamespaces::new([1, 2]));
    raw.controller.settle();
    assert_eq!(Event::from_dw0(raw.poll(0).unwrap().dw0()), Ok(Event::NAMESPACE_CHANGED));
    raw.controller.set_temperature(400);
    let told = raw.call(0, listen);
    assert_eq!(Event::from_dw0(told.dw0()), Ok(Event::TEMPERATURE));
    let health: Health = page(&mut raw, LogPage::Health);
    assert_eq!(health.composite_temperature.get(), 400);
    assert_eq!(health.critical_warning, CriticalWarning::TEMPERATURE.bits());
    // Not asked for.
    raw.controller.set_warning(CriticalWarning::SPARE);
    raw.submit(0, listen);
    raw.controller.settle();
    assert!(raw.poll(0).is_none());
    raw.innocent();
}

#[test]
fn errors_are_in_the_log_newest_first() {
    let mut raw = Raw::ready(2, Options::default());
    let at = raw.pages(1);
    for lba in [5_u64, 6] {
        raw.controller.plan(Target::AnyIo, Fault::Fails(Status::UNRECOVERED_READ_ERROR));
        let read = Command::Read(Transfer::new(lba, 1)).to_sqe(1);
        let status = raw.io_data(read, at, 512);
        assert_eq!(status, Status::UNRECOVERED_READ_ERROR.with_more());
    }
    let entries: [ErrorEntry; 3] = page(&mut raw, LogPage::ErrorInformation);
    assert_eq!(entries.map(|entry| entry.error_count.get()), [2, 1, 0]);
    assert_eq!((entries[0].lba.get(), entries[0].sqid.get(), entries[0].nsid.get()), (6, 1, 1));
    let health: Health = page(&mut raw, LogPage::Health);
    assert_eq!((health.media_errors.get(), health.error_log_entries.get()), (2, 2));
    let at = raw.pages(1);
    let other = admin::Command::GetLogPage(GetLogPage::new(LogPage::Sanitize, 0, 16)).to_sqe(0);
    assert!(raw.admin_data(other, at).status().same_code(Status::INVALID_LOG_PAGE));
    raw.innocent();
}

#[test]
fn firmware_is_loaded_and_activated() {
    let mut raw = Raw::ready(3, Options::default());
    let at = raw.pages(2);
    assert!(raw.memory.put_bytes(at, b"2.0     and then some code"));
    for (offset, place) in [(4096, at + 4096), (0, at)] {
        let piece = FirmwareImageDownload::new(offset, 4096).unwrap();
        let prps = raw.prps(place, 4096);
        raw.admin_ok(pcie::Command::FirmwareImageDownload(piece).to_sqe(prps));
    }
    let commit = |slot, action| {
        let commit = FirmwareCommit { slot, action, boot_partition: false };
        pcie::Command::FirmwareCommit(commit).to_sqe(Prps::default())
    };
    raw.admin_ok(commit(2, CommitAction::ReplaceActivateAtReset));
    let slots: FirmwareSlots = page(&mut raw, LogPage::FirmwareSlots);
    assert_eq!((slots.afi, &slots.frs[1]), (0x21, b"2.0     "));
    for (slot, action, status) in [
        (3, CommitAction::ActivateNow, Status::INVALID_FIRMWARE_SLOT),
        (4, CommitAction::Replace, Status::INVALID_FIRMWARE_SLOT),
        (2, CommitAction::Replace, Status::INVALID_FIRMWARE_IMAGE),
    ] {
        assert!(raw.call(0, commit(slot, action)).status().same_code(status));
    }
    raw.disable();
    raw.enable(16);
    let slots: FirmwareSlots = page(&mut raw, LogPage::FirmwareSlots);
    assert_eq!(slots.afi, 2);
    raw.admin_ok(commit(1, CommitAction::ActivateNow));
    let at = raw.pages(1);
    let identify = admin::Command::Identify(Identify::new(Cns::Controller)).to_sqe(0);
    raw.admin_data(identify, at);
    let data = IdentifyController::read_from_bytes(&raw.bytes(at, 4096)).unwrap();
    assert_eq!(&data.fr, b"1.0     ");
    raw.innocent();
}

#[test]
fn namespaces_say_what_they_are() {
    let preferred = Preferred { npwg: 7, npwa: 7, npdg: 15, npda: 15, nows: 31 };
    let namespace = NamespaceOptions {
        preferred: Some(preferred),
        noiob: 64,
        write_protected: true,
        metadata: 16,
        extended: true,
        ..NamespaceOptions::new(4, 4096, 5000)
    };
    let options = Options { namespaces: vec![namespace.clone()], ..Options::default() };
    let mut raw = Raw::ready(3, options);
    let at = raw.pages(1);
    let mut ask = |cns, nsid| {
        let sqe = admin::Command::Identify(Identify::new(cns)).to_sqe(nsid);
        let status = raw.admin_data(sqe, at).status();
        status.into_result().map(|()| raw.bytes(at, 4096))
    };
    let data = IdentifyNamespace::read_from_bytes(&ask(Cns::Namespace, 4).unwrap()).unwrap();
    assert_eq!((data.nsze.get(), data.noiob.get(), data.npdg.get()), (5000, 64, 15));
    assert_eq!((data.flbas, data.format().unwrap().ms.get(), data.nsattr), (0x10, 16, 1));
    assert!(data.nsfeat & NamespaceFeatures::OPTIMAL_PERFORMANCE.bits() != 0);
    let names = ask(Cns::NamespaceDescriptors, 4).unwrap();
    let names: Vec<_> = Descriptors::new(&names).collect();
    let expected = [
        Descriptor::Eui64(namespace.eui64),
        Descriptor::Nguid(namespace.nguid),
        Descriptor::Uuid(namespace.uuid),
        Descriptor::Csi(Csi::Nvm),
    ];
    assert_eq!(names, expected);
    assert_eq!(ask(Cns::Namespace, 5).unwrap(), vec![0; 4096]);
    for cns in [Cns::CommandSetNamespace, Cns::CommandSetController, Cns::IndependentNamespace] {
        assert!(ask(cns, 4).is_ok());
    }
    assert!(ask(Cns::NamespaceDescriptors, 5).unwrap_err().same_code(Status::INVALID_NAMESPACE));
    assert!(ask(Cns::Uuids, 0).unwrap_err().same_code(Status::INVALID_FIELD));
    raw.innocent();
    assert!(ask_beyond(&mut raw, at).same_code(Status::INVALID_NAMESPACE));
    raw.guilty("NN is less");
}

fn ask_beyond(raw: &mut Raw, at: usize) -> Status {
    let sqe = admin::Command::Identify(Identify::new(Cns::Namespace)).to_sqe(33);
    raw.admin_data(sqe, at).status()
}

#[test]
fn what_it_has_not_is_an_invalid_opcode() {
    let mut raw = Raw::ready(3, Options::default());
    for opcode in [0x0d, 0x14, 0x15, 0x18, 0x19, 0x80, 0x84, 0xc0, 0xff] {
        let sqe = nvme::Sqe::new(opcode, 0).with_prps(Prps::default());
        assert_eq!(raw.call(0, sqe).status(), Status::INVALID_OPCODE.with_dnr());
    }
    raw.innocent();
}

#[test]
fn an_old_controller_knows_no_names() {
    let mut raw = Raw::ready(3, Options { version: Version::V1_2, ..Options::default() });
    let at = raw.pages(1);
    let sqe = admin::Command::Identify(Identify::new(Cns::NamespaceDescriptors)).to_sqe(1);
    assert!(raw.admin_data(sqe, at).status().same_code(Status::INVALID_FIELD));
    raw.guilty("before 1.3");
}
