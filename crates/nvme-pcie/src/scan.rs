//! What a controller says of itself and of its namespaces, and what follows for the commands that it is sent.

use std::time::Duration;

use block::{Deallocation, Identity, Properties};
use nvme::admin::{Command, GetLogPage, IDENTIFY_LENGTH, Identify};
use nvme::identify::{
    Cns, DeallocatedRead, Descriptor, Descriptors, IdentifyController, IdentifyNamespace,
    NamespaceFeatures, NamespaceList, NamespaceSharing, NvmController, OptionalCommands,
    SglSupport,
};
use nvme::log::{Health, LogPage};
use nvme::register::Version;
use uuid::Uuid;
use zerocopy::FromBytes;

use crate::admin::{Admin, AdminError, Data};
use crate::plan::{Limits, PAGES_PER_COMMAND, Sgls};

/// The most blocks that a command's length field can say.
const BLOCKS_MOST: u64 = 1 << 16;

/// The page of a controller that limits are counted in.
const PAGE: u64 = 4096;

/// What a controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Controller {
    pub(crate) identify: Box<IdentifyController>,
    pub(crate) version: Version,
    commands: OptionalCommands,
    limits: Box<NvmController>,
    sgls: Sgls,
}

/// A namespace that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) blocks: u64,
    pub(crate) limits: Limits,
    pub(crate) properties: Properties,
    pub(crate) identity: Identity,
    /// Whether other controllers may have it too.
    pub(crate) shareable: bool,
}

/// A text field: without the spaces that pad it.
pub(crate) fn text(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    text.trim_matches(|it: char| it == ' ' || it == '\0').to_owned()
}

async fn identify<T: FromBytes>(admin: &Admin, cns: Cns, nsid: u32) -> Result<Box<T>, AdminError> {
    let command = Command::Identify(Identify::new(cns)).to_sqe(nsid);
    let answer = admin.command(command, Data::In(IDENTIFY_LENGTH)).await?;
    T::read_from_bytes(&answer.data)
        .map(Box::new)
        .map_err(|_| AdminError::Data("an answer of the wrong length".to_owned()))
}

/// `len` bytes of a log page.
pub(crate) async fn log_page(
    admin: &Admin,
    page: LogPage,
    len: usize,
) -> Result<Vec<u8>, AdminError> {
    let bytes = u64::try_from(len).unwrap_or(u64::MAX);
    let command = Command::GetLogPage(GetLogPage::new(page, 0, bytes)).to_sqe(nvme::NSID_ALL);
    Ok(admin.command(command, Data::In(len)).await?.data)
}

/// The controller's SMART log.
pub(crate) async fn health(admin: &Admin) -> Result<Box<Health>, AdminError> {
    let page = log_page(admin, LogPage::Health, size_of::<Health>()).await?;
    Health::read_from_bytes(&page)
        .map(Box::new)
        .map_err(|_| AdminError::Data("an answer of the wrong length".to_owned()))
}

impl Controller {
    pub(crate) async fn find(admin: &Admin, version: Version) -> Result<Controller, AdminError> {
        let identify_controller: Box<IdentifyController> =
            identify(admin, Cns::Controller, 0).await?;
        // Unknown before 2.0: then there are no limits but those of old.
        let limits = if version < Version::V2_0 {
            Box::default()
        } else {
            match identify(admin, Cns::CommandSetController, 0).await {
                Err(AdminError::Status(_)) => Box::default(),
                limits => limits?,
            }
        };
        let sgls = SglSupport::from_bits_truncate(identify_controller.sgls.get());
        let sgls = if sgls.contains(SglSupport::SUPPORTED) {
            Sgls::Bytes
        } else if sgls.contains(SglSupport::DWORD) {
            Sgls::Dwords
        } else {
            Sgls::No
        };
        let commands = OptionalCommands::from_bits_truncate(identify_controller.oncs.get());
        Ok(Controller { identify: identify_controller, version, commands, limits, sgls })
    }

    /// Bytes of data that a command may have; None: as many as can be said.
    pub(crate) fn data_most(&self) -> Option<u64> {
        let shift = u32::from(self.identify.mdts);
        (shift > 0).then(|| PAGE.checked_shl(shift).unwrap_or(u64::MAX))
    }

    /// Command Retry Delay Times.
    pub(crate) fn delays(&self) -> [Duration; 3] {
        let identify = &self.identify;
        [identify.crdt1, identify.crdt2, identify.crdt3]
            .map(|it| Duration::from_millis(100 * u64::from(it.get())))
    }

    /// The namespaces that there are.
    pub(crate) async fn namespaces(&self, admin: &Admin) -> Result<Vec<u32>, AdminError> {
        let mut all = Vec::new();
        loop {
            let from = all.last().copied().unwrap_or(0);
            let list: Result<Box<NamespaceList>, _> =
                identify(admin, Cns::ActiveNamespaces, from).await;
            let list = match list {
                // There is no such list before 1.1.
                Err(AdminError::Status(_)) if all.is_empty() => {
                    return Ok((1..=self.identify.nn.get().min(1024)).collect());
                }
                list => list?,
            };
            let found: Vec<_> = list.iter().filter(|nsid| *nsid > from).collect();
            let more = found.len() == list.nsids.len();
            all.extend(found);
            if !more {
                return Ok(all);
            }
        }
    }

    /// What a namespace is; or, in words, why it is not served. None: it is not there.
    pub(crate) async fn namespace(
        &self,
        admin: &Admin,
        nsid: u32,
    ) -> Result<Option<Result<Namespace, String>>, AdminError> {
        let found: Result<Box<IdentifyNamespace>, _> = identify(admin, Cns::Namespace, nsid).await;
        let found = match found {
            Err(AdminError::Status(_)) => return Ok(None),
            found => found?,
        };
        if found.nsze.get() == 0 {
            return Ok(None);
        }
        let mut uuid = None;
        let mut nguid = Some(found.nguid).filter(|nguid| *nguid != [0; 16]);
        if self.version >= Version::V1_3 {
            let command = Command::Identify(Identify::new(Cns::NamespaceDescriptors)).to_sqe(nsid);
            if let Ok(answer) = admin.command(command, Data::In(IDENTIFY_LENGTH)).await {
                for descriptor in Descriptors::new(&answer.data) {
                    match descriptor {
                        Descriptor::Uuid(found) => {
                            uuid = Some(found).filter(|uuid| !Uuid::is_nil(uuid));
                        }
                        Descriptor::Nguid(found) => nguid = Some(found),
                        _ => {}
                    }
                }
            }
        }
        Ok(Some(self.judge(&found, Identity { uuid, nguid })))
    }

    fn judge(&self, found: &IdentifyNamespace, identity: Identity) -> Result<Namespace, String> {
        let format = found.format().ok_or("its LBA format is not there")?;
        let ms = format.ms.get();
        if ms != 0 {
            let size = format.block_size().unwrap_or(0);
            let place = if found.flbas & 0x10 != 0 {
                "interleaved with the data"
            } else {
                "in a buffer of its own"
            };
            return Err(format!(
                "its LBA format has {ms} bytes of metadata for {size} bytes of data, {place}, which is not supported: format it without metadata"
            ));
        }
        let block_size = match format.block_size() {
            Some(size @ (512 | 4096)) => size,
            other => {
                let size = other.unwrap_or(0);
                return Err(format!(
                    "blocks of {size} bytes are not supported: format it with 512 or 4096"
                ));
            }
        };
        let limits = self.limits(found, block_size.trailing_zeros());
        let features = NamespaceFeatures::from_bits_truncate(found.nsfeat);
        let preferred = |field: nvme::U16| {
            let there = features.contains(NamespaceFeatures::OPTIMAL_PERFORMANCE);
            if there { u32::from(field.get()) + 1 } else { 1 }
        };
        let deallocation = (limits.deallocate > 0).then(|| Deallocation {
            reads_zero: found.dlfeat & 0x7 == DeallocatedRead::Zeroes.code(),
            granularity: preferred(found.npdg),
        });
        let [model, serial] = [text(&self.identify.mn), text(&self.identify.sn)];
        let properties = Properties {
            read_only: found.nsattr & IdentifyNamespace::WRITE_PROTECTED != 0,
            volatile_write_cache: limits.volatile,
            deallocation,
            memory_alignment: 4,
            optimal_blocks: preferred(found.npwg),
            description: format!("nvme: {model}, serial {serial}, driven from user space"),
        };
        let shareable =
            NamespaceSharing::from_bits_truncate(found.nmic).contains(NamespaceSharing::SHARED);
        Ok(Namespace { blocks: found.nsze.get(), limits, properties, identity, shareable })
    }

    fn limits(&self, found: &IdentifyNamespace, shift: u32) -> Limits {
        let small = |blocks: u64| u32::try_from(blocks).unwrap_or(u32::MAX);
        // What can be named wherever it begins.
        let named = (PAGES_PER_COMMAND - 1) * PAGE;
        let data = self.data_most().map_or(named, |most| most.min(named)) >> shift;
        // Limits of commands without data: powers of two of pages, none if 0.
        let sized = |there: OptionalCommands, exponent: u8| {
            let most = if exponent == 0 {
                u64::MAX
            } else {
                PAGE.checked_shl(exponent.into()).unwrap_or(u64::MAX)
            };
            let blocks = (most >> shift).clamp(1, BLOCKS_MOST);
            if self.commands.contains(there) { small(blocks) } else { 0 }
        };
        let ranges = match self.limits.dmrsl.get() {
            0 => u32::MAX,
            most => most,
        };
        Limits {
            shift,
            data: small(data.clamp(1, BLOCKS_MOST)),
            boundary: u32::from(found.noiob.get()),
            zeroes: sized(OptionalCommands::WRITE_ZEROES, self.limits.wzsl),
            zeroes_deallocate: found.dlfeat & IdentifyNamespace::WRITE_ZEROES_DEALLOCATES != 0,
            deallocate: if self.commands.contains(OptionalCommands::DATASET_MANAGEMENT) {
                ranges
            } else {
                0
            },
            verify: sized(OptionalCommands::VERIFY, self.limits.vsl),
            compare: self.commands.contains(OptionalCommands::COMPARE),
            volatile: self.identify.vwc & IdentifyController::VWC_PRESENT != 0,
            sgls: self.sgls,
        }
    }
}
