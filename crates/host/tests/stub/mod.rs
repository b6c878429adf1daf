//! A controller that is just good enough to talk to: one thread per connection, blocking sockets, a vector for a disk.
//! It exists to try the host where the real target cannot be made to misbehave.

use crate::wire::Wire;
use nvme::admin::{self, Command as Admin};
use nvme::fabrics::{Command as Fabrics, Connect};
use nvme::feature::{Feature, NumberOfQueues};
use nvme::identify::{
    Cns, Descriptor, DescriptorWriter, IdentifyController, IdentifyNamespace, LbaFormat,
    NamespaceList,
};
use nvme::io::Command as Io;
use nvme::log::{DiscoveryEntry, DiscoveryHeader};
use nvme::register::{
    Capabilities, Configuration, ControllerStatus, Property, ShutdownNotification, ShutdownStatus,
};
use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DigestFlags, Flags, H2cData, IcReq, IcResp,
    R2t, crc32c,
};
use nvme::{Cqe, Nqn, Sqe, Status};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: usize = 2048;
pub(crate) const IN_CAPSULE: u32 = 4096;

/// How the stub behaves.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Answer every Connect with this.
    pub(crate) refuse: Option<(Status, u32)>,
    /// Subsystems in the discovery log.
    pub(crate) subsystems: Vec<&'static str>,
    /// The generation counter goes up with so many reads of the discovery header.
    pub(crate) restless: u64,
    /// Use the success flag.
    pub(crate) success_flag: bool,
    /// Queues granted at most.
    pub(crate) queues: u16,
}

#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    pub(crate) disk: Arc<Mutex<Vec<u8>>>,
}

struct State {
    script: Script,
    disk: Arc<Mutex<Vec<u8>>>,
    header_reads: Mutex<u64>,
}

impl Stub {
    pub(crate) fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let disk = Arc::new(Mutex::new(vec![0; BLOCK * BLOCKS]));
        let state =
            Arc::new(State { script, disk: Arc::clone(&disk), header_reads: Mutex::new(0) });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&state);
                std::thread::spawn(move || Connection::new(stream.unwrap(), &state).serve());
            }
        });
        Self { address, disk }
    }
}

struct Connection<'a> {
    stream: TcpStream,
    state: &'a State,
    wire: Wire,
    configuration: Configuration,
    /// Commands that came while data was awaited.
    waiting: VecDeque<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Connection<'a> {
    fn new(stream: TcpStream, state: &'a State) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            state,
            wire: Wire::default(),
            configuration: Configuration::default(),
            waiting: VecDeque::new(),
        }
    }

    /// One PDU: header and data.
    fn receive(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut header = vec![0; 8];
        self.stream.read_exact(&mut header).ok()?;
        let common = CommonHeader::read_from_bytes(&header).unwrap();
        let mut rest = vec![0; usize::try_from(common.plen.get()).unwrap() - 8];
        self.stream.read_exact(&mut rest).ok()?;
        header.extend(rest);
        let mut data = match common.pdo {
            0 => Vec::new(),
            pdo => header.split_off(usize::from(pdo)),
        };
        if common.flags().contains(Flags::DATA_DIGEST) && !data.is_empty() {
            let digest = data.split_off(data.len() - 4);
            assert_eq!(digest, crc32c(&data).to_le_bytes());
        }
        let digest = header.split_off(usize::from(common.hlen));
        if common.flags().contains(Flags::HEADER_DIGEST) {
            assert_eq!(digest[..4], crc32c(&header).to_le_bytes());
        }
        Some((header, data))
    }

    fn send(&mut self, header: &[u8], data: &[u8]) {
        // A host that has gone is noticed when reading.
        let _ = self.stream.write_all(&self.wire.pdu(header, data));
    }

    fn answer(&mut self, sqe: &Sqe, status: Status, result: u64) {
        let cqe = Cqe::new(sqe.cid.get(), 0, status).with_result(result);
        let flags = self.wire.flags(false);
        self.send(CapsuleResp::new(cqe, flags).as_bytes(), &[]);
    }

    fn answer_with(&mut self, sqe: &Sqe, data: &[u8]) {
        let wanted = usize::try_from(sqe.sgl().length()).unwrap();
        let mut data = data.to_vec();
        data.resize(wanted, 0);
        let success = self.state.script.success_flag;
        let half = if data.len() > 4096 { data.len() / 2 } else { data.len() };
        for (index, piece) in data.chunks(half).enumerate() {
            let mut flags = self.wire.flags(true);
            if (index + 1) * half >= data.len() {
                flags |= Flags::LAST;
                flags.set(Flags::SUCCESS, success);
            }
            let offset = u32::try_from(index * half).unwrap();
            let length = u32::try_from(piece.len()).unwrap();
            let header = C2hData::new(sqe.cid.get(), offset, length, flags, 0);
            self.send(header.as_bytes(), piece);
        }
        if !success {
            self.answer(sqe, Status::SUCCESS, 0);
        }
    }

    fn fetch(&mut self, sqe: &Sqe, in_capsule: Vec<u8>) -> Vec<u8> {
        let length = sqe.sgl().length();
        if !in_capsule.is_empty() || length == 0 {
            return in_capsule;
        }
        let flags = self.wire.flags(false);
        self.send(R2t::new(sqe.cid.get(), 5, 0, length, flags).as_bytes(), &[]);
        let mut data = Vec::new();
        while data.len() < usize::try_from(length).unwrap() {
            let (header, piece) = self.receive().unwrap();
            if header.len() == size_of::<CapsuleCmd>() {
                self.waiting.push_back((header, piece));
                continue;
            }
            let header = H2cData::read_from_bytes(&header).unwrap();
            assert_eq!(usize::try_from(header.datao.get()).unwrap(), data.len());
            data.extend(piece);
        }
        data
    }

    fn serve(mut self) {
        let Some((request, _)) = self.receive() else { return };
        let request = IcReq::read_from_bytes(&request).unwrap();
        self.stream.write_all(IcResp::new(0, request.digests(), 4096).as_bytes()).unwrap();
        self.wire.header_digest = request.digests().contains(DigestFlags::HEADER);
        self.wire.data_digest = request.digests().contains(DigestFlags::DATA);
        let mut io = false;
        while let Some((header, data)) = self.waiting.pop_front().or_else(|| self.receive()) {
            let Ok(capsule) = CapsuleCmd::read_from_bytes(&header) else { return };
            let sqe = capsule.sqe;
            if sqe.is_fabrics() {
                match Fabrics::parse(&sqe).unwrap() {
                    Fabrics::Connect(connect) => {
                        io = connect.qid != 0;
                        self.connect(&sqe, connect);
                    }
                    other => self.fabrics(&sqe, other),
                }
            } else if io {
                self.io(&sqe, data);
            } else {
                self.admin(&sqe);
            }
        }
    }

    fn connect(&mut self, sqe: &Sqe, connect: Connect) {
        if let Some((status, result)) = self.state.script.refuse {
            self.answer(sqe, status, result.into());
        } else {
            assert!(connect.sqsize > 0);
            self.answer(sqe, Status::SUCCESS, 17);
        }
    }

    fn fabrics(&mut self, sqe: &Sqe, command: Fabrics) {
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
        self.answer(sqe, Status::SUCCESS, result);
    }

    fn admin(&mut self, sqe: &Sqe) {
        match Admin::parse(sqe) {
            Ok(Admin::Identify(identify)) => match identify_data(identify, sqe.nsid.get()) {
                Some(data) => self.answer_with(sqe, &data),
                None => self.answer(sqe, Status::INVALID_FIELD, 0),
            },
            Ok(Admin::GetLogPage(get)) => {
                let log = self.discovery_log(get.offset);
                let offset = usize::try_from(get.offset).unwrap();
                self.answer_with(sqe, &log[offset..]);
            }
            Ok(Admin::SetFeatures(set)) if set.fid == Feature::NumberOfQueues.code() => {
                let number = self.state.script.queues.max(1) - 1;
                let granted = NumberOfQueues { submission: number, completion: number };
                self.answer(sqe, Status::SUCCESS, u32::from(granted).into());
            }
            Ok(Admin::KeepAlive) => self.answer(sqe, Status::SUCCESS, 0),
            _ => self.answer(sqe, Status::INVALID_OPCODE, 0),
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

    fn io(&mut self, sqe: &Sqe, in_capsule: Vec<u8>) {
        let bytes = |range: nvme::io::BlockRange| {
            let start = usize::try_from(range.slba).unwrap() * BLOCK;
            start..start + usize::try_from(range.blocks).unwrap() * BLOCK
        };
        match Io::parse(sqe) {
            Ok(Io::Read(transfer)) => {
                let data =
                    self.state.disk.lock().unwrap().get(bytes(transfer.range)).map(<[u8]>::to_vec);
                match data {
                    Some(data) => self.answer_with(sqe, &data),
                    None => self.answer(sqe, Status::LBA_OUT_OF_RANGE, 0),
                }
            }
            Ok(Io::Write(transfer)) => {
                let data = self.fetch(sqe, in_capsule);
                self.state.disk.lock().unwrap()[bytes(transfer.range)].copy_from_slice(&data);
                self.answer(sqe, Status::SUCCESS, 0);
            }
            Ok(_) => self.answer(sqe, Status::SUCCESS, 0),
            Err(status) => self.answer(sqe, status, 0),
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
