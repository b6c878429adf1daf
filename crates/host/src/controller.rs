//! A controller as a host sees it: the admin queue with everything that is done over it, one command at a time.
//!
//! All of it blocks, each step within a time limit. `Controller::connect` does what a host must do before it may
//! use a controller (NVMe Base 2.0c, section 3.5.2 "Message-based Transport Controller Initialization"): Connect, read CAP, enable, wait
//! for CSTS.RDY, Identify. I/O queues are made by [`Controller::open_queue`] and then belong to whoever runs them. Whoever
//! holds the controller sends Keep Alive in time; dropping it closes the admin connection, upon which the controller ends.

use crate::error::HostError;
use crate::options::ConnectOptions;
use crate::queue::{Completion, Queue, Settings, SlotId, Transfer, deadline_after};
use nvme::address::TransportType;
use nvme::admin::{self, GetFeatures, GetLogPage, Identify, SetFeatures};
use nvme::event::Event;
use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, ConnectResult, PropertyGet,
    PropertySet,
};
use nvme::feature::{Feature, NumberOfQueues};
use nvme::identify::{
    Cns, IdentifyController, IdentifyNamespace, NAMESPACE_LIST_MAX, NamespaceList, SglSupport,
};
use nvme::log::{DiscoveryEntry, DiscoveryHeader, LogPage};
use nvme::rdma::{ADMIN_QUEUE_SIZE, Request};
use nvme::register::{
    Capabilities, Configuration, ControllerStatus, Property, ShutdownNotification, ShutdownStatus,
    Version,
};
use nvme::{Cqe, Sqe, Status};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

/// Entries of the admin submission queue: what every controller has.
const ADMIN_ENTRIES: u16 = ADMIN_QUEUE_SIZE;
/// Bytes that one admin command moves at most; longer logs are read in pieces of this size.
const ADMIN_BYTES: u32 = 8192;
/// Data of a Connect command.
const CONNECT_BYTES: u32 = 1024;
/// Reads of a discovery log before it is called unsteady.
const LOG_ATTEMPTS: u32 = 10;
/// Discovery records that are taken from a controller: 64 MiB of them.
const RECORDS_MAX: usize = 65_536;
/// Between two looks at CSTS.
const STATUS_INTERVAL: Duration = Duration::from_millis(5);

/// See the module's description.
#[derive(Debug)]
pub struct Controller {
    queue: Queue,
    options: ConnectOptions,
    cntlid: u16,
    capabilities: Capabilities,
    version: Version,
    data: Box<IdentifyController>,
}

impl Controller {
    /// Connects, enables the controller and identifies it.
    pub fn connect(mut options: ConnectOptions) -> Result<Self, HostError> {
        options.open_libraries()?;
        let settings = Settings {
            // One entry of a submission queue stays empty.
            depth: ADMIN_ENTRIES - 1,
            slot_bytes: ADMIN_BYTES,
            in_capsule: ADMIN_BYTES,
            header_digest: options.header_digest,
            data_digest: options.data_digest,
        };
        let mut queue = options.open_queue(settings, Request::new(0, ADMIN_ENTRIES, 0))?;
        let result = connect_queue(&mut queue, &options, 0, ADMIN_ENTRIES - 1, CNTLID_DYNAMIC)?;
        if result.authreq.ascr || result.authreq.atr {
            return Err(HostError::Unsupported {
                address: options.address,
                what: String::from("requires authentication, which this host cannot do yet"),
            });
        }
        let mut controller = Self {
            queue,
            cntlid: result.cntlid,
            capabilities: Capabilities::default(),
            version: Version::V2_0,
            data: Box::default(),
            options,
        };
        controller.capabilities =
            Capabilities::from_bits(controller.property(Property::Capabilities)?);
        let version = controller.property(Property::Version)?;
        controller.version = Version::from_bits(u32::try_from(version).unwrap_or(0));
        controller.enable()?;
        let mut data = std::mem::take(&mut controller.data);
        controller.identify(Identify::new(Cns::Controller), 0, data.as_mut_bytes())?;
        controller.data = data;
        if controller.options.transport == TransportType::Rdma
            && !controller.sgl_support().contains(SglSupport::KEYED)
        {
            return Err(HostError::Unsupported {
                address: controller.address(),
                what: String::from("takes no keyed SGL descriptors, which RDMA needs"),
            });
        }
        Ok(controller)
    }

    /// The address connected to.
    pub fn address(&self) -> SocketAddr {
        self.queue.peer()
    }

    /// What the controller was connected with.
    pub fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// Controller identifier.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// CAP.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// VS.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Identify Controller, as read when connected.
    pub fn data(&self) -> &IdentifyController {
        &self.data
    }

    /// Digests in effect on the admin queue: of headers, of data.
    pub fn digests(&self) -> (bool, bool) {
        self.queue.digests()
    }

    /// Most bytes of data in one command (MDTS); `None` if there is no limit.
    pub fn max_transfer(&self) -> Option<u64> {
        let shift = 12 + u32::from(self.capabilities.mpsmin) + u32::from(self.data.mdts);
        (self.data.mdts != 0).then(|| 1_u64.checked_shl(shift)).flatten()
    }

    /// Most bytes of data that the capsule of an I/O command carries.
    pub fn in_capsule(&self) -> u32 {
        let whole = self.data.ioccsz.get().saturating_mul(16).saturating_sub(64);
        if self.options.transport == TransportType::Tcp {
            return whole;
        }
        // Over RDMA not every controller takes any, and where it is to begin later this host sends none.
        let takes = self.sgl_support().contains(SglSupport::OFFSET) && self.data.icdoff.get() == 0;
        if takes { whole } else { 0 }
    }

    fn sgl_support(&self) -> SglSupport {
        SglSupport::from_bits_truncate(self.data.sgls.get())
    }

    /// Sets CC.EN and waits for CSTS.RDY.
    pub fn enable(&mut self) -> Result<(), HostError> {
        let css = if self.capabilities.css & Capabilities::CSS_NVM == 0
            && self.capabilities.css & Capabilities::CSS_IO_COMMAND_SETS != 0
        {
            0b110
        } else {
            0
        };
        let configuration =
            Configuration { en: true, css, iosqes: 6, iocqes: 4, ..Configuration::default() };
        self.set_property(Property::Configuration, u64::from(configuration.bits()))?;
        let limit = Duration::from_millis(500) * u32::from(self.capabilities.to.max(1));
        self.await_status(limit, "CC.EN with CSTS.RDY", |status| status.rdy)
    }

    /// Clears CC.EN (controller reset) and waits for CSTS.RDY to clear. I/O queues are gone after this.
    pub fn reset(&mut self) -> Result<(), HostError> {
        self.set_property(Property::Configuration, 0)?;
        let limit = Duration::from_millis(500) * u32::from(self.capabilities.to.max(1));
        self.await_status(limit, "CC.EN cleared with CSTS.RDY cleared", |status| !status.rdy)
    }

    /// Shuts the controller down in order and closes the admin connection.
    pub fn shutdown(mut self) -> Result<(), HostError> {
        let now = self.property(Property::Configuration)?;
        let configuration = Configuration {
            shn: ShutdownNotification::Normal,
            ..Configuration::from_bits(u32::try_from(now).unwrap_or(0))
        };
        self.set_property(Property::Configuration, u64::from(configuration.bits()))?;
        let limit = self.options.timeout;
        self.await_status(limit, "CC.SHN with CSTS.SHST", |status| {
            status.shst == ShutdownStatus::Complete
        })
    }

    fn await_status(
        &mut self,
        limit: Duration,
        what: &'static str,
        reached: impl Fn(&ControllerStatus) -> bool,
    ) -> Result<(), HostError> {
        let deadline = deadline_after(limit);
        loop {
            let bits = self.property(Property::Status)?;
            let status = ControllerStatus::from_bits(u32::try_from(bits).unwrap_or(0));
            if reached(&status) {
                return Ok(());
            }
            if status.cfs {
                return Err(HostError::Fatal { address: self.address() });
            }
            if Instant::now() >= deadline {
                return Err(HostError::Timeout { address: self.address(), what, after: limit });
            }
            std::thread::sleep(STATUS_INTERVAL);
        }
    }

    /// Property Get.
    pub fn property(&mut self, property: Property) -> Result<u64, HostError> {
        let command = PropertyGet { size: property.size(), offset: property.offset() };
        let cqe = self.succeed(command.to_sqe(), "Property Get")?;
        Ok(cqe.result.get())
    }

    /// Property Set.
    pub fn set_property(&mut self, property: Property, value: u64) -> Result<(), HostError> {
        let command = PropertySet { size: property.size(), offset: property.offset(), value };
        self.succeed(command.to_sqe(), "Property Set").map(drop)
    }

    /// Asks for `wanted` I/O queues and says how many there may be, at most `wanted`.
    pub fn request_queues(&mut self, wanted: u16) -> Result<u16, HostError> {
        let number = wanted.max(1) - 1;
        let value = NumberOfQueues { submission: number, completion: number };
        let dw0 = self.set_feature(Feature::NumberOfQueues, value.into())?;
        let granted = NumberOfQueues::from(dw0);
        Ok(granted.submission.min(granted.completion).min(number) + 1)
    }

    /// Opens I/O queue `qid` (from 1) for `depth` outstanding commands of at most `slot_bytes` of data each.
    ///
    /// With submission queue flow control one entry stays empty; a queue of all the entries that the controller has is
    /// therefore opened without.
    pub fn open_queue(
        &mut self,
        qid: u16,
        depth: u16,
        slot_bytes: u32,
    ) -> Result<Queue, HostError> {
        let most = self.capabilities.mqes;
        let mut options = self.options.clone();
        if u32::from(depth) == u32::from(most) + 1 {
            options.disable_sq_flow_control = true;
        }
        let sqsize = if options.disable_sq_flow_control { depth.max(2) - 1 } else { depth.max(1) };
        if sqsize > most {
            return Err(HostError::Unsupported {
                address: self.address(),
                what: format!(
                    "takes {} commands per queue, not {depth}: lower the depth (--iodepth)",
                    u32::from(most) + 1
                ),
            });
        }
        let settings = Settings {
            depth,
            // The Connect command's data must fit as well.
            slot_bytes: slot_bytes.max(CONNECT_BYTES),
            in_capsule: self.in_capsule(),
            header_digest: self.options.header_digest,
            data_digest: self.options.data_digest,
        };
        let request = Request::new(qid, sqsize.saturating_add(1), self.cntlid);
        let mut queue = options.open_queue(settings, request)?;
        connect_queue(&mut queue, &options, qid, sqsize, self.cntlid)?;
        Ok(queue)
    }

    /// Identify into `data`, which takes the first bytes of the 4,096 that come.
    pub fn identify(
        &mut self,
        command: Identify,
        nsid: u32,
        data: &mut [u8],
    ) -> Result<(), HostError> {
        let sqe = admin::Command::Identify(command).to_sqe(nsid);
        self.fetch(sqe, admin::IDENTIFY_LENGTH, data, "Identify")
    }

    /// Identify Namespace.
    pub fn namespace(&mut self, nsid: u32) -> Result<Box<IdentifyNamespace>, HostError> {
        let mut data = Box::<IdentifyNamespace>::default();
        self.identify(Identify::new(Cns::Namespace), nsid, data.as_mut_bytes())?;
        Ok(data)
    }

    /// The identifiers of every active namespace.
    pub fn namespaces(&mut self) -> Result<Vec<u32>, HostError> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let mut page = NamespaceList::default();
            let command = Identify::new(Cns::ActiveNamespaces);
            self.identify(command, after, page.as_mut_bytes())?;
            let before = all.len();
            all.extend(page.iter());
            match all.last() {
                // A full page whose last entry goes on upwards: there may be more.
                Some(&last) if all.len() - before == NAMESPACE_LIST_MAX && last > after => {
                    after = last;
                }
                _ => return Ok(all),
            }
        }
    }

    /// `data.len()` bytes of a log page from byte `offset`, read in as many pieces as it takes.
    pub fn log_page(
        &mut self,
        page: LogPage,
        nsid: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), HostError> {
        let step = usize::try_from(ADMIN_BYTES.min(4096)).unwrap_or(4096);
        let mut at = offset;
        for piece in data.chunks_mut(step) {
            let length = u64::try_from(piece.len()).unwrap_or(0);
            let command = GetLogPage::new(page, at, length);
            let sqe = admin::Command::GetLogPage(command).to_sqe(nsid);
            let fetched = usize::try_from(command.length()).unwrap_or(usize::MAX);
            self.fetch(sqe, fetched, piece, "Get Log Page")?;
            at += length;
        }
        Ok(())
    }

    /// The discovery log, all of one generation: read again if it changed meanwhile.
    pub fn discovery_log(&mut self) -> Result<(DiscoveryHeader, Vec<DiscoveryEntry>), HostError> {
        for _ in 0..LOG_ATTEMPTS {
            let mut header = DiscoveryHeader::new_zeroed();
            self.log_page(LogPage::Discovery, 0, 0, header.as_mut_bytes())?;
            let count = usize::try_from(header.numrec.get())
                .ok()
                .filter(|&count| count <= RECORDS_MAX)
                .ok_or_else(|| HostError::Unsupported {
                    address: self.address(),
                    what: format!("claims {} discovery records", header.numrec),
                })?;
            let mut entries = vec![DiscoveryEntry::default(); count];
            let offset = u64::try_from(size_of::<DiscoveryHeader>()).unwrap_or(0);
            self.log_page(LogPage::Discovery, 0, offset, entries.as_mut_bytes())?;
            let mut again = DiscoveryHeader::new_zeroed();
            self.log_page(LogPage::Discovery, 0, 0, again.as_mut_bytes())?;
            if again.genctr == header.genctr && again.numrec == header.numrec {
                return Ok((header, entries));
            }
        }
        Err(HostError::Unsteady {
            address: self.address(),
            page: LogPage::Discovery.code(),
            attempts: LOG_ATTEMPTS,
        })
    }

    /// Get Features, current value: dword 0.
    pub fn feature(&mut self, feature: Feature, nsid: u32) -> Result<u32, HostError> {
        let command = admin::Command::GetFeatures(GetFeatures::new(feature));
        Ok(self.succeed(command.to_sqe(nsid), "Get Features")?.dw0())
    }

    /// Set Features: dword 0 of the answer.
    pub fn set_feature(&mut self, feature: Feature, value: u32) -> Result<u32, HostError> {
        let command = admin::Command::SetFeatures(SetFeatures::new(feature, value));
        Ok(self.succeed(command.to_sqe(0), "Set Features")?.dw0())
    }

    /// Keep Alive.
    pub fn keep_alive(&mut self) -> Result<(), HostError> {
        self.succeed(admin::Command::KeepAlive.to_sqe(0), "Keep Alive").map(drop)
    }

    /// Abort. True if the command was aborted.
    pub fn abort(&mut self, sqid: u16, cid: u16) -> Result<bool, HostError> {
        let command = admin::Command::Abort(admin::Abort { sqid, cid });
        let cqe = self.succeed(command.to_sqe(0), "Abort")?;
        Ok(admin::Abort::aborted(&cqe))
    }

    /// Leaves an Asynchronous Event Request with the controller; [`Controller::next_event`] sees its end.
    pub fn request_event(&mut self) -> Result<(), HostError> {
        let slot = self.slot()?;
        let sqe = admin::Command::AsynchronousEventRequest.to_sqe(0);
        self.queue.submit(slot, sqe, Transfer::None)?;
        self.queue.flush()
    }

    /// The next event that the controller reports within `timeout`, or the status with which it refused a request for one.
    pub fn next_event(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<Result<Event, Status>>, HostError> {
        let deadline = deadline_after(timeout);
        loop {
            if let Some(completion) = self.queue.next_completion() {
                self.queue.release(completion.slot);
                if let Err(status) = completion.cqe.status().into_result() {
                    return Ok(Some(Err(status)));
                }
                if let Ok(event) = Event::from_dw0(completion.cqe.dw0()) {
                    return Ok(Some(Ok(event)));
                }
            }
            if !self.queue.receive()? {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                self.queue.wait(left)?;
            }
        }
    }

    /// Any admin command, whatever its outcome. `data` is what a write sends, and takes what a read brings.
    pub fn command(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        data: &mut [u8],
    ) -> Result<Cqe, HostError> {
        let slot = self.slot()?;
        if matches!(transfer, Transfer::Write(_)) {
            self.queue.copy_from(slot, 0, data);
        }
        let timeout = self.options.timeout;
        let result = self.queue.call(slot, sqe, transfer, timeout, "an admin command");
        let completion = self.ended(slot, result)?;
        if matches!(transfer, Transfer::Read(_)) {
            self.queue.copy_to(slot, 0, data);
        }
        self.queue.release(slot);
        Ok(completion.cqe)
    }

    /// A command without data that must succeed.
    fn succeed(&mut self, sqe: Sqe, name: &'static str) -> Result<Cqe, HostError> {
        let cqe = self.command(sqe, Transfer::None, &mut [])?;
        self.check(&cqe, name)?;
        Ok(cqe)
    }

    /// A command that brings `length` bytes and must succeed; `data` takes as many of them as it holds.
    fn fetch(
        &mut self,
        sqe: Sqe,
        length: usize,
        data: &mut [u8],
        name: &'static str,
    ) -> Result<(), HostError> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let cqe = self.command(sqe, Transfer::Read(length), data)?;
        self.check(&cqe, name)
    }

    fn check(&self, cqe: &Cqe, command: &'static str) -> Result<(), HostError> {
        cqe.status().into_result().map_err(|status| HostError::Command {
            address: self.address(),
            command,
            status,
        })
    }

    fn slot(&mut self) -> Result<SlotId, HostError> {
        self.queue.reserve().ok_or_else(|| HostError::Unsupported {
            address: self.address(),
            what: String::from("has as many admin commands outstanding as its queue holds"),
        })
    }

    fn ended(
        &mut self,
        slot: SlotId,
        result: Result<Completion, HostError>,
    ) -> Result<Completion, HostError> {
        match result {
            Ok(completion) if completion.data_digest_error => {
                self.queue.release(slot);
                Err(HostError::DataDigest { address: self.address() })
            }
            other => other,
        }
    }
}

/// Sends the Connect command of a queue.
fn connect_queue(
    queue: &mut Queue,
    options: &ConnectOptions,
    qid: u16,
    sqsize: u16,
    cntlid: u16,
) -> Result<ConnectResult, HostError> {
    let address = queue.peer();
    let milliseconds = u32::try_from(options.keep_alive.as_millis()).unwrap_or(u32::MAX);
    let command = Connect {
        recfmt: 0,
        qid,
        sqsize,
        cattr: ConnectAttributes {
            disable_sq_flow_control: options.disable_sq_flow_control,
            ..ConnectAttributes::default()
        },
        kato: if qid == 0 { milliseconds } else { 0 },
    };
    let data = ConnectData::new(options.host.id, cntlid, &options.subsystem, &options.host.nqn);
    let Some(slot) = queue.reserve() else {
        return Err(HostError::Request(crate::error::RequestError::Ended));
    };
    queue.copy_from(slot, 0, data.as_bytes());
    let completion = queue.call(
        slot,
        command.to_sqe(),
        Transfer::Write(CONNECT_BYTES),
        options.timeout,
        "the Connect command",
    )?;
    queue.release(slot);
    let status = completion.cqe.status();
    if !status.is_success() {
        return Err(HostError::Refused {
            address,
            subsystem: options.subsystem.clone(),
            host: options.host.nqn.clone(),
            queue: qid,
            status,
            result: completion.cqe.dw0(),
        });
    }
    Ok(ConnectResult::from(&completion.cqe))
}
