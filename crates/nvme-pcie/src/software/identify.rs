//! Identify: what the controller says of itself and its namespaces.

use nvme::admin::Identify;
use nvme::identify::{
    Cns, CommandSets, ControllerType, Csi, Descriptor, DescriptorWriter, IdentifyController,
    IdentifyNamespace, IndependentNamespace, LbaFormat, NamespaceFeatures, NamespaceList,
    NvmController, NvmNamespace, OptionalAdminCommands, OptionalCommands, ascii,
};
use nvme::register::Version;
use nvme::{Nqn, Sqe, Status};
use zerocopy::IntoBytes;

use super::feature::EVENTS;
use super::log::ERRORS;
use super::namespace::Namespace;
use super::world::World;

/// Largest NSID that a list of the ones behind it may be asked for.
const LAST_NSID: u32 = 0xffff_fffd;

impl World {
    pub(super) fn identify(&mut self, sqe: &Sqe, identify: Identify) -> Result<u32, Status> {
        let version = self.options.version;
        let cns = Cns::try_from(identify.cns).map_err(|_| Status::INVALID_FIELD)?;
        let since = match cns {
            Cns::Namespace | Cns::Controller | Cns::ActiveNamespaces => Version::V1_2,
            Cns::NamespaceDescriptors => Version::V1_3,
            Cns::CommandSetNamespace
            | Cns::CommandSetController
            | Cns::CommandSetActiveNamespaces
            | Cns::IndependentNamespace
            | Cns::CommandSets => Version::V2_0,
            _ => return Err(Status::INVALID_FIELD),
        };
        if version < since {
            return self.refuse(Status::INVALID_FIELD, format!("Identify {cns} before {since}"));
        }
        let of_a_set = matches!(
            cns,
            Cns::CommandSetNamespace | Cns::CommandSetController | Cns::CommandSetActiveNamespaces
        );
        if of_a_set && identify.csi != Csi::Nvm.code() {
            return Err(Status::INVALID_COMMAND_SET);
        }
        let nsid = sqe.nsid.get();
        let bytes = match cns {
            Cns::Controller => self.identify_controller().as_bytes().to_vec(),
            Cns::Namespace => {
                if nsid == 0 || nsid > self.namespaces.largest {
                    // Broadcast would mean what all namespaces have in common: controllers with namespace management say that.
                    let what = format!("Identify Namespace of {nsid:x}h, and NN is less");
                    return self.refuse(Status::INVALID_NAMESPACE, what);
                }
                let namespace = self.namespaces.all.get(&nsid);
                let data = namespace.map(|namespace| self.identify_namespace(namespace));
                data.unwrap_or_default().as_bytes().to_vec()
            }
            Cns::ActiveNamespaces | Cns::CommandSetActiveNamespaces => {
                if nsid > LAST_NSID {
                    let what = format!("list of namespaces behind {nsid:x}h");
                    return self.refuse(Status::INVALID_NAMESPACE, what);
                }
                let behind = self.namespaces.all.keys().copied().filter(|&other| other > nsid);
                NamespaceList::new(behind).as_bytes().to_vec()
            }
            Cns::NamespaceDescriptors => {
                let nsid = self.named(nsid)?;
                let namespace = self.namespaces.all.get(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
                let modern = version >= Version::V2_0;
                descriptors(namespace, modern).bytes().to_vec()
            }
            Cns::CommandSetNamespace => {
                self.named(nsid)?;
                NvmNamespace::default().as_bytes().to_vec()
            }
            Cns::CommandSetController => NvmController::default().as_bytes().to_vec(),
            Cns::IndependentNamespace => {
                let nsid = self.named(nsid)?;
                let namespace = self.namespaces.all.get(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
                let data = IndependentNamespace {
                    nsattr: u8::from(namespace.options.write_protected),
                    nstat: IndependentNamespace::READY,
                    ..IndependentNamespace::default()
                };
                data.as_bytes().to_vec()
            }
            Cns::CommandSets => CommandSets::one(CommandSets::NVM).as_bytes().to_vec(),
            _ => return Err(Status::INVALID_FIELD),
        };
        self.answer_with(sqe, &bytes, bytes.len() as u64)?;
        Ok(0)
    }

    fn identify_controller(&self) -> IdentifyController {
        let options = &self.options;
        let mut data = IdentifyController::default();
        data.vid.set(0x1b36);
        data.ssvid.set(0x1af4);
        data.sn = ascii(&options.serial);
        data.mn = ascii(&options.model);
        data.fr = self.firmware.revision();
        data.ieee = [0x38, 0x25, 0x00];
        data.mdts = options.mdts;
        data.cntlid.set(1);
        data.ver.set(options.version.bits());
        data.rtd3e.set(2_000_000);
        data.oaes.set(EVENTS.bits() & 0xffff_ff00);
        if options.version >= Version::V1_4 {
            data.cntrltype = ControllerType::Io.code();
        }
        let mut oacs = OptionalAdminCommands::empty();
        oacs.set(OptionalAdminCommands::FIRMWARE, options.firmware_slots > 0);
        oacs.set(OptionalAdminCommands::DOORBELL_BUFFER, options.shadow_doorbells);
        data.oacs.set(oacs.bits());
        data.acl = options.acl;
        data.aerl = options.aerl;
        data.frmw = options.firmware_slots.min(7) << 1 | u8::from(options.activates_at_once) << 4;
        data.lpa = IdentifyController::LPA_EFFECTS | IdentifyController::LPA_EXTENDED;
        if options.version >= Version::V2_0 {
            data.lpa |= IdentifyController::LPA_SUPPORTED_PAGES;
        }
        data.elpe = u8::try_from(ERRORS - 1).unwrap_or(u8::MAX);
        data.wctemp.set(343);
        data.cctemp.set(353);
        let bytes = |namespace: &Namespace| {
            u128::from(namespace.options.blocks) * u128::from(namespace.options.block_size)
        };
        data.tnvmcap.set(self.namespaces.all.values().map(bytes).sum());
        data.sqes = IdentifyController::SQES_NVM;
        data.cqes = IdentifyController::CQES_NVM;
        data.nn.set(self.namespaces.largest);
        data.oncs.set(options.oncs.bits());
        if options.volatile_write_cache {
            data.vwc = IdentifyController::VWC_PRESENT
                | if options.flush_all {
                    IdentifyController::VWC_FLUSH_ALL
                } else {
                    IdentifyController::VWC_FLUSH_ALL_UNSUPPORTED
                };
        }
        data.ocfs.set(u16::from(options.oncs.contains(OptionalCommands::COPY)));
        data.sgls.set(options.sgls.bits());
        if let Ok(nqn) =
            format!("nqn.2014.08.org.nvmexpress:soft:{}", options.serial).parse::<Nqn>()
        {
            data.subnqn = nqn.to_wire();
        }
        if let Some(state) = data.psd.first_mut() {
            state.mp.set(2500);
        }
        data
    }

    fn identify_namespace(&self, namespace: &Namespace) -> IdentifyNamespace {
        let options = &namespace.options;
        let mut data = IdentifyNamespace::default();
        data.nsze.set(options.blocks);
        data.ncap.set(options.blocks);
        data.nuse.set(options.blocks);
        let mut format = LbaFormat::plain(options.block_size).unwrap_or_default();
        format.ms.set(options.metadata);
        if let Some(first) = data.lbaf.first_mut() {
            *first = format;
        }
        data.flbas = u8::from(options.metadata > 0 && options.extended) << 4;
        data.mc = if options.metadata == 0 { 0 } else { 1 << u8::from(!options.extended) };
        data.dlfeat = options.deallocated.code();
        if options.zeroes_deallocate {
            data.dlfeat |= IdentifyNamespace::WRITE_ZEROES_DEALLOCATES;
        }
        data.noiob.set(options.noiob);
        data.nvmcap.set(u128::from(options.blocks) * u128::from(options.block_size));
        let mut features = NamespaceFeatures::DEALLOCATED_ERROR;
        if let Some(preferred) = options.preferred {
            features |= NamespaceFeatures::OPTIMAL_PERFORMANCE;
            data.npwg.set(preferred.npwg);
            data.npwa.set(preferred.npwa);
            data.npdg.set(preferred.npdg);
            data.npda.set(preferred.npda);
            data.nows.set(preferred.nows);
        }
        data.nsfeat = features.bits();
        if self.options.oncs.contains(OptionalCommands::COPY) {
            data.mssrl.set(options.mssrl);
            data.mcl.set(options.mcl);
            data.msrc = options.msrc;
        }
        data.nsattr = u8::from(options.write_protected);
        data.nguid = options.nguid;
        data.eui64 = options.eui64;
        data
    }
}

fn descriptors(namespace: &Namespace, modern: bool) -> DescriptorWriter {
    let mut list = DescriptorWriter::new();
    list.push(Descriptor::Eui64(namespace.options.eui64));
    list.push(Descriptor::Nguid(namespace.options.nguid));
    list.push(Descriptor::Uuid(namespace.options.uuid));
    if modern {
        list.push(Descriptor::Csi(Csi::Nvm));
    }
    list
}
