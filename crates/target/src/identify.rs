//! Identify: what a controller says of itself, of its namespaces and of its subsystem.
//!
//! Pure functions of the configuration and of the few facts about the controller that are not in it. Every
//! number here is one that the code elsewhere keeps: limits come from the configuration that the checks use,
//! capabilities from the devices.
//!
//! Every CNS that the specification makes mandatory is served, and every other that costs nothing because the
//! answer follows from what is there: all allocated namespaces are active ones, and a namespace has
//! one user data format, index 0. What belongs to a capability that is not offered (NVM sets, virtualization,
//! namespace granularity, UUID lists, domains, endurance groups) is an Invalid Field, as the specification has it.
//!
//! A namespace whose device is missing stays in the lists, and asking about it fails retryably (Namespace
//! Not Ready): Linux then keeps the disk that it has, where an error with Do Not Retry, or the NSID's absence
//! from the list, would make it take the disk away from under a mounted file system.
//!
//! A namespace that is hidden from the host is answered for as one that is not there. One that is out of reach by ANA
//! is described like any other, apart from what of it is in use.
//!
//! NVMe Base 2.0c, section "Identify command"; NVM Command Set Specification 1.0c.

use block::{BlockDevice, Geometry};
use nvme::address::TransportType;
use nvme::admin::Identify;
use nvme::feature::AsynchronousEvents;
use nvme::identify::{
    AnaCapabilities, Cns, CommandSets, ControllerList, ControllerType, Csi, DeallocatedRead,
    Descriptor, DescriptorWriter, IdentifyController, IdentifyNamespace, IndependentNamespace,
    LbaFormat, MultiPathCapabilities, NamespaceFeatures, NamespaceList, NamespaceSharing,
    NvmController, NvmNamespace, OptionalCommands, SglSupport, ascii,
};
use nvme::log::AnaState;
use nvme::register::Version;
use nvme::{NSID_ALL, Nqn, Status, U16, U32, U64, U128};
use zerocopy::IntoBytes;

use crate::configuration::{
    FIRMWARE, Limits, MINIMUM_PAGE, MODEL, Namespace, Subsystem, View, derive_serial,
};
use crate::feature::{self, KEEP_ALIVE_GRANULARITY, WARNING_TEMPERATURE};
use crate::io::WRITE_ZEROES_LIMIT;
use crate::log_page::ERROR_LOG_ENTRIES;

/// Asynchronous Event Requests that a controller holds at a time.
pub const ASYNC_EVENT_LIMIT: u8 = 4;

/// Abort commands that a controller works on at a time.
pub const ABORT_LIMIT: u8 = 4;

/// The version of the base specification that controllers follow.
pub const VERSION: Version = Version::V2_0;

/// Critical Composite Temperature Threshold in kelvin (CCTEMP), as the specification recommends.
const CRITICAL_TEMPERATURE: u16 = 0x0175;

/// The longest that a shutdown takes, in microseconds (RTD3E).
const SHUTDOWN_TIME: u32 = 10_000_000;

/// The longest that a group stays in the state "change", in seconds (ANATT): nothing here takes any time, so this
/// is what an operator gets who sets that state. As SPDK's.
const ANA_TRANSITION_TIME: u8 = 10;

/// Bytes of a submission and of a completion queue entry, and the unit of capsule sizes.
const SQE_BYTES: u32 = 64;
const CQE_BYTES: u32 = 16;
const CAPSULE_UNIT: u32 = 16;

/// Bytes of an SGL descriptor, and how many of them the RDMA transport takes for one command.
const DESCRIPTOR_BYTES: u32 = 16;
const RDMA_DESCRIPTORS: u8 = 16;

/// The controller that is asked.
#[derive(Clone, Copy, Debug)]
pub struct Controller<'a> {
    /// What it gives access to.
    pub scope: Scope<'a>,
    /// Its identifier.
    pub cntlid: u16,
    /// How its capsules travel.
    pub transport: TransportType,
    /// Bytes of data in an I/O command capsule: the lesser of the subsystem's limit and the transport's.
    pub in_capsule: u32,
    /// Whether it reports a volatile write cache: fixed when it was made, see
    /// [`Subsystem::has_volatile_write_cache`].
    pub volatile_write_cache: bool,
    /// The identifiers of the subsystem's controllers from CNTID of the command on, ascending; empty if it
    /// [is not about them](is_about_controllers).
    pub controllers: &'a [u16],
}

/// What a controller gives access to.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The namespaces of an NVM subsystem that the host sees.
    Io(View<'a>),
    /// The discovery log, within these limits.
    Discovery(&'a Limits),
}

/// Whether the answer depends on which controllers the subsystem has.
pub fn is_about_controllers(command: &Identify) -> bool {
    match Cns::try_from(command.cns) {
        Ok(Cns::AttachedControllers | Cns::Controllers) => true,
        Ok(Cns::CommandSets) => command.cntid != u16::MAX,
        _ => false,
    }
}

/// Whether only those controllers count that a namespace is attached to.
pub fn is_about_attached(command: &Identify) -> bool {
    Cns::try_from(command.cns) == Ok(Cns::AttachedControllers)
}

impl Controller<'_> {
    /// Fills `out` with the data structure that the command asks for, as much of it as there is room for.
    pub fn identify(&self, command: &Identify, nsid: u32, out: &mut [u8]) -> Result<(), Status> {
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        let Ok(cns) = Cns::try_from(command.cns) else { return invalid };
        let view = match (cns, self.scope) {
            (Cns::Controller, Scope::Discovery(limits)) => {
                put(out, self.discovery_controller(limits).as_bytes());
                return Ok(());
            }
            (_, Scope::Discovery(_)) => return invalid,
            (_, Scope::Io(view)) => view,
        };
        let subsystem = view.subsystem;
        let of_nvm = command.csi == Csi::Nvm.code();
        match cns {
            Cns::Controller => put(out, self.io_controller(subsystem).as_bytes()),
            Cns::Namespace | Cns::AllocatedNamespace => {
                let namespace = find(view, nsid)?.map(|it| describe(view, it)).transpose()?;
                put(out, namespace.unwrap_or_default().as_bytes());
            }
            Cns::NamespaceFormat if of_nvm => {
                check_format(*command)?;
                put(out, common_capabilities(subsystem).as_bytes());
            }
            Cns::CommandSetNamespaceFormat if of_nvm => {
                // No protection information in any namespace: all zero.
                check_format(*command)?;
                put(out, NvmNamespace::default().as_bytes());
            }
            Cns::CommandSetNamespace | Cns::CommandSetAllocatedNamespace if of_nvm => {
                // No protection information, so no storage tags: all zero, as for an inactive namespace.
                if let Some(namespace) = find(view, nsid)? {
                    namespace.ready()?;
                }
                put(out, NvmNamespace::default().as_bytes());
            }
            Cns::IndependentNamespace => {
                let namespace = find(view, nsid)?.map(|it| describe_independently(view, it));
                put(out, namespace.unwrap_or_default().as_bytes());
            }
            Cns::ActiveNamespaces | Cns::AllocatedNamespaces => {
                put(out, list_namespaces(view, nsid)?.as_bytes());
            }
            Cns::CommandSetActiveNamespaces | Cns::CommandSetAllocatedNamespaces if of_nvm => {
                put(out, list_namespaces(view, nsid)?.as_bytes());
            }
            Cns::NamespaceDescriptors => {
                let namespace = active(view, nsid)?;
                namespace.ready()?;
                put(out, list_identifiers(namespace).bytes());
            }
            Cns::CommandSetController if of_nvm => {
                put(out, nvm_controller(subsystem.limits()).as_bytes());
            }
            Cns::AttachedControllers => {
                active(view, nsid)?;
                put(out, self.list_controllers(command.cntid).as_bytes());
            }
            Cns::Controllers => put(out, self.list_controllers(command.cntid).as_bytes()),
            Cns::CommandSets => {
                // FFFFh is the controller that is asked; all are alike.
                if command.cntid != u16::MAX && !self.controllers.contains(&command.cntid) {
                    return invalid;
                }
                put(out, CommandSets::one(CommandSets::NVM).as_bytes());
            }
            _ => return invalid,
        }
        Ok(())
    }

    fn io_controller(&self, subsystem: &Subsystem) -> IdentifyController {
        let (options, limits) = (subsystem.options(), subsystem.limits());
        let sharing = MultiPathCapabilities::PORTS | MultiPathCapabilities::CONTROLLERS;
        let ana = options.ana.is_some();
        let vwc = if self.volatile_write_cache { IdentifyController::VWC_PRESENT } else { 0 };
        IdentifyController {
            sn: ascii(subsystem.serial()),
            mn: ascii(&options.model),
            fr: ascii(&options.firmware),
            cmic: if ana { sharing | MultiPathCapabilities::ANA } else { sharing }.bits(),
            rtd3e: U32::new(SHUTDOWN_TIME),
            // Slot 1 is read-only, and there is no other.
            frmw: 0b01 | 1 << 1,
            wctemp: U16::new(WARNING_TEMPERATURE),
            cctemp: U16::new(CRITICAL_TEMPERATURE),
            sqes: IdentifyController::SQES_NVM,
            cqes: IdentifyController::CQES_NVM,
            nn: U32::new(limits.max_namespaces),
            mnan: U32::new(limits.max_namespaces),
            anatt: if ana { ANA_TRANSITION_TIME } else { 0 },
            anacap: if ana { ana_capabilities().bits() } else { 0 },
            anagrpmax: U32::new(if ana { limits.max_namespaces } else { 0 }),
            nanagrpid: U32::new(if ana { limits.max_namespaces } else { 0 }),
            oncs: U16::new(optional_commands(subsystem).bits()),
            // Fused operations are not offered.
            fuses: U16::new(0),
            vwc: vwc | IdentifyController::VWC_FLUSH_ALL,
            subnqn: subsystem.nqn().to_wire(),
            ioccsz: U32::new((SQE_BYTES + self.in_capsule) / CAPSULE_UNIT),
            iorcsz: U32::new(CQE_BYTES / CAPSULE_UNIT),
            ofcs: U16::new(IdentifyController::OFCS_DISCONNECT),
            ..self.any_controller(ControllerType::Io, ana, limits)
        }
    }

    fn discovery_controller(&self, limits: &Limits) -> IdentifyController {
        let nqn = Nqn::discovery();
        IdentifyController {
            sn: ascii(&derive_serial(nqn.as_str())),
            mn: ascii(MODEL),
            fr: ascii(FIRMWARE),
            subnqn: nqn.to_wire(),
            ..self.any_controller(ControllerType::Discovery, false, limits)
        }
    }

    /// What both kinds have in common.
    fn any_controller(
        &self,
        kind: ControllerType,
        ana: bool,
        limits: &Limits,
    ) -> IdentifyController {
        let events: AsynchronousEvents = feature::optional_events(kind, ana);
        let kas = u16::try_from(KEEP_ALIVE_GRANULARITY / 100).unwrap_or(u16::MAX);
        IdentifyController {
            mdts: limits.mdts(),
            cntlid: U16::new(self.cntlid),
            ver: U32::new(VERSION.bits()),
            oaes: U32::new(events.bits()),
            ctratt: U32::new(IdentifyController::CTRATT_HOST_ID | IdentifyController::CTRATT_TBKAS),
            cntrltype: kind.code(),
            acl: ABORT_LIMIT - 1,
            aerl: ASYNC_EVENT_LIMIT - 1,
            lpa: IdentifyController::LPA_EFFECTS
                | IdentifyController::LPA_EXTENDED
                | IdentifyController::LPA_SUPPORTED_PAGES,
            elpe: ERROR_LOG_ENTRIES - 1,
            kas: U16::new(kas),
            maxcmd: U16::new(limits.queue_depth),
            sgls: U32::new(sgl_support(self.transport).bits()),
            msdbd: self.descriptors(),
            ..IdentifyController::default()
        }
    }

    /// Descriptors of one command's data: over RDMA as many as there is room for in the capsule, where a list of them is.
    fn descriptors(&self) -> u8 {
        match self.transport {
            TransportType::Rdma => {
                let room = self.in_capsule / DESCRIPTOR_BYTES;
                u8::try_from(room).unwrap_or(RDMA_DESCRIPTORS).clamp(1, RDMA_DESCRIPTORS)
            }
            _ => 1,
        }
    }

    fn list_controllers(&self, from: u16) -> ControllerList {
        let controllers = self.controllers.iter().copied();
        ControllerList::new(controllers.filter(|cntlid| *cntlid >= from))
    }
}

fn put(out: &mut [u8], data: &[u8]) {
    for (to, from) in out.iter_mut().zip(data) {
        *to = *from;
    }
}

/// The active namespace of this number; None: the number is possible, but no active namespace has it.
fn find(view: View<'_>, nsid: u32) -> Result<Option<&Namespace>, Status> {
    if nsid == 0 || nsid > view.subsystem.limits().max_namespaces {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    Ok(view.namespace(nsid).map(AsRef::as_ref))
}

fn active(view: View<'_>, nsid: u32) -> Result<&Namespace, Status> {
    find(view, nsid)?.ok_or(Status::INVALID_NAMESPACE.with_dnr())
}

fn list_namespaces(view: View<'_>, after: u32) -> Result<NamespaceList, Status> {
    // FFFFFFFEh has no successor that could be listed.
    if after >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    let namespaces = view.active_after(after);
    Ok(NamespaceList::new(namespaces.map(|namespace| namespace.nsid())))
}

fn list_identifiers(namespace: &Namespace) -> DescriptorWriter {
    let identity = namespace.identity();
    let mut list = DescriptorWriter::new();
    list.push(Descriptor::Uuid(identity.uuid));
    list.push(Descriptor::Nguid(identity.nguid));
    list.push(Descriptor::Csi(Csi::Nvm));
    list
}

/// The one user data format of every namespace is number 0.
fn check_format(command: Identify) -> Result<(), Status> {
    if command.cnssid == 0 { Ok(()) } else { Err(Status::INVALID_FIELD.with_dnr()) }
}

/// Identify Namespace of a namespace in service.
fn describe(view: View<'_>, namespace: &Namespace) -> Result<IdentifyNamespace, Status> {
    let capabilities = capabilities(namespace)?;
    let Geometry { block_size, blocks, .. } = namespace.ready()?.geometry();
    let used = match view.ana_state(namespace) {
        AnaState::Inaccessible | AnaState::PersistentLoss => 0,
        _ => blocks,
    };
    Ok(IdentifyNamespace {
        nsze: U64::new(blocks),
        ncap: U64::new(blocks),
        nuse: U64::new(used),
        anagrpid: ana_group(view, namespace),
        nvmcap: U128::new(u128::from(blocks) * u128::from(block_size)),
        nsattr: if namespace.is_read_only() { IdentifyNamespace::WRITE_PROTECTED } else { 0 },
        nguid: namespace.identity().nguid,
        ..capabilities
    })
}

/// ANAGRPID: zero unless ANA is reported.
fn ana_group(view: View<'_>, namespace: &Namespace) -> U32 {
    let reported = view.subsystem.options().ana.is_some();
    U32::new(if reported { namespace.ana_group() } else { 0 })
}

/// Every state can be set. The group of a namespace can change at any time.
fn ana_capabilities() -> AnaCapabilities {
    AnaCapabilities::OPTIMIZED
        | AnaCapabilities::NON_OPTIMIZED
        | AnaCapabilities::INACCESSIBLE
        | AnaCapabilities::PERSISTENT_LOSS
        | AnaCapabilities::CHANGE
}

/// Of Identify Namespace what goes with the format: the fields that the specification marks as namespace
/// capabilities ("Reported").
fn capabilities(namespace: &Namespace) -> Result<IdentifyNamespace, Status> {
    let device = namespace.ready()?;
    let properties = device.properties();
    let format = LbaFormat::plain(device.geometry().block_size).ok_or(Status::INTERNAL_ERROR)?;
    let mut data = IdentifyNamespace {
        nmic: NamespaceSharing::SHARED.bits(),
        nsfeat: NamespaceFeatures::OPTIMAL_PERFORMANCE.bits(),
        ..IdentifyNamespace::default()
    };
    if let Some(first) = data.lbaf.first_mut() {
        *first = format;
    }
    let optimal = zero_based(properties.optimal_blocks);
    (data.npwg, data.npwa, data.nows) = (optimal, optimal, optimal);
    (data.npdg, data.npda) = (optimal, optimal);
    if let Some(deallocation) = &properties.deallocation {
        let granularity = zero_based(deallocation.granularity);
        (data.npdg, data.npda) = (granularity, granularity);
        let read = if deallocation.reads_zero {
            DeallocatedRead::Zeroes
        } else {
            DeallocatedRead::NotReported
        };
        data.dlfeat = read.code() | IdentifyNamespace::WRITE_ZEROES_DEALLOCATES;
    }
    Ok(data)
}

/// The capabilities that all namespaces in service share; what they differ in is zero. So where block sizes differ
/// there is no format (LBADS 0): none that a host could expect of any namespace.
fn common_capabilities(subsystem: &Subsystem) -> IdentifyNamespace {
    let in_service = subsystem.active_after(0);
    let every = in_service.filter_map(|namespace| capabilities(namespace).ok());
    let optimal =
        |data: &IdentifyNamespace| (data.npwg, data.npwa, data.npdg, data.npda, data.nows);
    let common = every.reduce(|mut common, other| {
        let other_format = common.lbaf != other.lbaf;
        // In logical blocks, so of no use without their size.
        if other_format || optimal(&common) != optimal(&other) {
            common.nsfeat &= !NamespaceFeatures::OPTIMAL_PERFORMANCE.bits();
            (common.npwg, common.npwa, common.nows) = (U16::ZERO, U16::ZERO, U16::ZERO);
            (common.npdg, common.npda) = (U16::ZERO, U16::ZERO);
        }
        if other_format {
            common.lbaf = IdentifyNamespace::default().lbaf;
        }
        if common.dlfeat != other.dlfeat {
            common.dlfeat = 0;
        }
        common
    });
    common.unwrap_or_default()
}

/// A number of blocks as a 0's based field has it; what does not fit is the most that does.
fn zero_based(blocks: u32) -> U16 {
    U16::new(u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX))
}

/// What every command set says of a namespace. The one structure that can tell of a namespace that is not ready.
fn describe_independently(view: View<'_>, namespace: &Namespace) -> IndependentNamespace {
    IndependentNamespace {
        anagrpid: ana_group(view, namespace),
        nmic: NamespaceSharing::SHARED.bits(),
        nsattr: if namespace.is_read_only() { IdentifyNamespace::WRITE_PROTECTED } else { 0 },
        nstat: if namespace.device().is_some() { IndependentNamespace::READY } else { 0 },
        ..IndependentNamespace::default()
    }
}

/// Limits of single commands. Those of Dataset Management are zero: it has none but the namespace's size.
fn nvm_controller(limits: &Limits) -> NvmController {
    let pages = |bytes: u32| {
        let shift = (bytes / MINIMUM_PAGE).max(1).ilog2();
        u8::try_from(shift).unwrap_or(u8::MAX)
    };
    NvmController {
        vsl: limits.mdts(),
        wzsl: pages(WRITE_ZEROES_LIMIT),
        ..NvmController::default()
    }
}

/// The commands that are optional. Dataset Management depends on the devices: offered if any can deallocate, or
/// may turn out to. Where it is offered for the sake of one device, it does nothing on the others.
fn optional_commands(subsystem: &Subsystem) -> OptionalCommands {
    let mut commands = OptionalCommands::COMPARE
        | OptionalCommands::WRITE_ZEROES
        | OptionalCommands::FEATURE_SAVE
        | OptionalCommands::VERIFY;
    let deallocates = |device: &dyn BlockDevice| device.properties().deallocation.is_some();
    let mut active = subsystem.active_after(0).peekable();
    let offered = active.peek().is_none()
        || active
            .any(|namespace| namespace.device().is_none_or(|device| deallocates(device.as_ref())));
    commands.set(OptionalCommands::DATASET_MANAGEMENT, offered);
    commands
}

fn sgl_support(transport: TransportType) -> SglSupport {
    let both = SglSupport::SUPPORTED | SglSupport::OFFSET;
    match transport {
        TransportType::Tcp => both | SglSupport::TRANSPORT,
        TransportType::Rdma => both | SglSupport::KEYED,
        TransportType::FibreChannel | TransportType::IntraHost => both,
    }
}

#[cfg(test)]
mod tests;
