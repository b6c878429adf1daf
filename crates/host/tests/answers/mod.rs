//! A controller that is just good enough to talk to, whatever carries its capsules: a vector for a disk, and answers.

#![allow(dead_code, reason = "each test uses its part")]

use nvme::admin::{self, Command as Admin};
use nvme::fabrics::{Command as Fabrics, Connect};
use nvme::feature::{Feature, NumberOfQueues};
use nvme::identify::{
    Cns, Descriptor, DescriptorWriter, IdentifyController, IdentifyNamespace, LbaFormat,
    NamespaceList, SglSupport,
};
use nvme::io::Command as Io;
use nvme::log::{DiscoveryEntry, DiscoveryHeader};
use nvme::register::{
    Capabilities, Configuration, ControllerStatus, Property, ShutdownNotification, ShutdownStatus,
};
use nvme::{HostId, Nqn, Sqe, Status};
use std::sync::{Arc, Mutex};
use zerocopy::IntoBytes;

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: usize = 2048;
pub(crate) const IN_CAPSULE: u32 = 4096;
pub(crate) const SUBSYSTEM: &str = "nqn.2026-11.io.tidegate:stub";

/// How the controller behaves.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Answer every Connect with this.
    pub(crate) refuse: Option<(Status, u32)>,
    /// Subsystems in the discovery log.
    pub(crate) subsystems: Vec<&'static str>,
    /// The generation counter goes up with so many reads of the discovery header.
    pub(crate) restless: u64,
    /// Use the success flag (TCP).
    pub(crate) success_flag: bool,
    /// Queues granted at most.
    pub(crate) queues: u16,
}

/// What all connections of a controller share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) script: Script,
    pub(crate) disk: Mutex<Vec<u8>>,
    header_reads: Mutex<u64>,
}

impl State {
    pub(crate) fn new(script: Script) -> Arc<Self> {
        let (disk, header_reads) = (Mutex::new(vec![0; BLOCK * BLOCKS]), Mutex::new(0));
        Arc::new(Self { script, disk, header_reads })
    }
}

/// The end of a command.
#[derive(Debug)]
pub(crate) enum Answer {
    Plain(Status, u64),
    /// Success, with data.
    Data(Vec<u8>),
}

/// One queue's side of it.
#[derive(Debug)]
pub(crate) struct Answers {
    state: Arc<State>,
    configuration: Configuration,
    pub(crate) io: bool,
    /// SQSIZE of the Connect command.
    pub(crate) sqsize: u16,
}

impl Answers {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { state, configuration: Configuration::default(), io: false, sqsize: 0 }
    }

    /// Whether the host sends data with this command.
    pub(crate) fn takes_data(&self, sqe: &Sqe) -> bool {
        if sqe.is_fabrics() {
            matches!(Fabrics::parse(sqe), Ok(Fabrics::Connect(_)))
        } else {
            self.io && matches!(Io::parse(sqe), Ok(Io::Write(_)))
        }
    }

    /// Does a command, given its data.
    pub(crate) fn to(&mut self, sqe: &Sqe, data: &[u8]) -> Answer {
        if sqe.is_fabrics() {
            match Fabrics::parse(sqe).unwrap() {
                Fabrics::Connect(connect) => self.connect(connect),
                other => self.fabrics(other),
            }
        } else if self.io {
            self.do_io(sqe, data)
        } else {
            self.admin(sqe)
        }
    }

    fn connect(&mut self, connect: Connect) -> Answer {
        (self.io, self.sqsize) = (connect.qid != 0, connect.sqsize);
        assert!(connect.sqsize > 0);
        match self.state.script.refuse {
            Some((status, result)) => Answer::Plain(status, result.into()),
            None => Answer::Plain(Status::SUCCESS, 17),
        }
    }

    fn fabrics(&mut self, command: Fabrics) -> Answer {
        let result = match command {
            Fabrics::PropertyGet(get) => match Property::from_offset(get.offset) {
                Some(Property::Capabilities) => Capabilities {
                    mqes: 127,
                    css: Capabilities::CSS_NVM,
                    to: 4,
                    ..Default::default()
                }
                .bits(),
                Some(Property::Version) => 0x0002_0000,
                Some(Property::Configuration) => self.configuration.bits().into(),
                Some(Property::Status) => {
                    let shut = self.configuration.shn != ShutdownNotification::None;
                    let shst = if shut { ShutdownStatus::Complete } else { ShutdownStatus::Normal };
                    ControllerStatus { rdy: self.configuration.en, shst, ..Default::default() }
                        .bits()
                        .into()
                }
                _ => 0,
            },
            Fabrics::PropertySet(set) => {
                self.configuration = Configuration::from_bits(set.value.try_into().unwrap());
                0
            }
            _ => 0,
        };
        Answer::Plain(Status::SUCCESS, result)
    }

    fn admin(&mut self, sqe: &Sqe) -> Answer {
        match Admin::parse(sqe) {
            Ok(Admin::Identify(identify)) => match identify_data(identify, sqe.nsid.get()) {
                Some(data) => Answer::Data(data),
                None => Answer::Plain(Status::INVALID_FIELD, 0),
            },
            Ok(Admin::GetLogPage(get)) => {
                let log = self.discovery_log(get.offset);
                let offset = usize::try_from(get.offset).unwrap();
                Answer::Data(log[offset..].to_vec())
            }
            Ok(Admin::SetFeatures(set)) if set.fid == Feature::NumberOfQueues.code() => {
                let number = self.state.script.queues.max(1) - 1;
                let granted = NumberOfQueues { submission: number, completion: number };
                Answer::Plain(Status::SUCCESS, u32::from(granted).into())
            }
            Ok(Admin::KeepAlive) => Answer::Plain(Status::SUCCESS, 0),
            _ => Answer::Plain(Status::INVALID_OPCODE, 0),
        }
    }

    fn discovery_log(&self, offset: u64) -> Vec<u8> {
        let mut reads = self.state.header_reads.lock().unwrap();
        if offset == 0 {
            *reads += 1;
        }
        let subsystems = &self.state.script.subsystems;
        let header = DiscoveryHeader {
            genctr: (*reads).min(self.state.script.restless).into(),
            numrec: u64::try_from(subsystems.len()).unwrap().into(),
            ..DiscoveryHeader::default()
        };
        let mut log = header.as_bytes().to_vec();
        for subsystem in subsystems {
            let entry = DiscoveryEntry {
                subnqn: subsystem.parse::<Nqn>().unwrap().to_wire(),
                ..DiscoveryEntry::default()
            };
            log.extend(entry.as_bytes());
        }
        log
    }

    fn do_io(&mut self, sqe: &Sqe, data: &[u8]) -> Answer {
        let bytes = |range: nvme::io::BlockRange| {
            let start = usize::try_from(range.slba).unwrap() * BLOCK;
            start..start + usize::try_from(range.blocks).unwrap() * BLOCK
        };
        let mut disk = self.state.disk.lock().unwrap();
        match Io::parse(sqe) {
            Ok(Io::Read(transfer)) => match disk.get(bytes(transfer.range)) {
                Some(data) => Answer::Data(data.to_vec()),
                None => Answer::Plain(Status::LBA_OUT_OF_RANGE, 0),
            },
            Ok(Io::Write(transfer)) => {
                disk[bytes(transfer.range)].copy_from_slice(data);
                Answer::Plain(Status::SUCCESS, 0)
            }
            Ok(_) => Answer::Plain(Status::SUCCESS, 0),
            Err(status) => Answer::Plain(status, 0),
        }
    }
}

fn identify_data(command: admin::Identify, nsid: u32) -> Option<Vec<u8>> {
    match Cns::try_from(command.cns).ok()? {
        Cns::Controller => {
            let data = IdentifyController {
                ioccsz: ((IN_CAPSULE + 64) / 16).into(),
                iorcsz: 1.into(),
                mdts: 5,
                sgls: (SglSupport::SUPPORTED | SglSupport::KEYED | SglSupport::OFFSET)
                    .bits()
                    .into(),
                kas: 10.into(),
                ..IdentifyController::default()
            };
            Some(data.as_bytes().to_vec())
        }
        Cns::ActiveNamespaces => {
            let all = (nsid + 1..=1500).filter(|nsid| nsid % 2 == 1);
            Some(NamespaceList::new(all).as_bytes().to_vec())
        }
        Cns::Namespace => {
            let mut data = IdentifyNamespace {
                nsze: u64::try_from(BLOCKS).unwrap().into(),
                ..IdentifyNamespace::default()
            };
            data.lbaf[0] = LbaFormat::plain(512)?;
            Some(data.as_bytes().to_vec())
        }
        Cns::NamespaceDescriptors => {
            let mut writer = DescriptorWriter::new();
            writer.push(Descriptor::Nguid([7; 16]));
            Some(writer.bytes().to_vec())
        }
        _ => None,
    }
}

/// What to connect to it with.
pub(crate) fn options(address: std::net::SocketAddr) -> host::ConnectOptions {
    let host = host::HostIdentity {
        nqn: "nqn.2014-08.org.nvmexpress:uuid:6b2a8a2e-3a1b-4f0e-9f7d-0a4c6f5b7c11"
            .parse()
            .unwrap(),
        id: HostId([9; 16]),
    };
    host::ConnectOptions::new(address, SUBSYSTEM.parse::<Nqn>().unwrap(), host)
}
