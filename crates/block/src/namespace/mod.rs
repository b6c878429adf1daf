//! What an NVMe namespace and its controller say of themselves, in this crate's terms: the same for every way in which
//! local devices are reached.

mod limits;
mod status;

use nvme::admin::IDENTIFY_LENGTH;
use nvme::identify::{
    DeallocatedRead, Descriptor, Descriptors, IdentifyController, IdentifyNamespace,
    NamespaceFeatures, NvmController, OptionalCommands,
};

use crate::{Deallocation, Identity, Kind, Properties};

pub use limits::{Limits, Sizes};
pub use status::{error_kind, may_pass};

/// The preferred size of I/O where a namespace states none.
const PAGE: u32 = 4096;

/// The data of Identify that say what a namespace is and can do.
#[derive(Debug, Clone)]
pub struct Identified {
    /// Identify Controller.
    pub controller: Box<IdentifyController>,
    /// Identify Controller of the NVM command set; zeroes if the controller has none.
    pub nvm: Box<NvmController>,
    /// Identify Namespace.
    pub namespace: Box<IdentifyNamespace>,
    /// Namespace Identification Descriptors; zeroes if the controller has none.
    pub descriptors: Box<[u8; IDENTIFY_LENGTH]>,
}

impl Identified {
    /// Bytes in a block; `None` if there is no such format.
    pub fn block_size(&self) -> Option<u32> {
        self.namespace.format()?.block_size()
    }

    /// Size in bytes; saturates.
    pub fn bytes(&self) -> u64 {
        let size = u64::from(self.block_size().unwrap_or_default());
        self.namespace.nsze.get().saturating_mul(size)
    }

    /// Whether writes are refused at present.
    pub fn is_write_protected(&self) -> bool {
        self.namespace.nsattr & IdentifyNamespace::WRITE_PROTECTED != 0
    }

    /// Whether the controller has a command for operations of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        let optional = OptionalCommands::from_bits_retain(self.controller.oncs.get());
        match kind {
            Kind::Read | Kind::Write | Kind::Flush => true,
            Kind::WriteZeroes { .. } => optional.contains(OptionalCommands::WRITE_ZEROES),
            Kind::Deallocate => optional.contains(OptionalCommands::DATASET_MANAGEMENT),
            Kind::Compare => optional.contains(OptionalCommands::COMPARE),
            Kind::Verify => optional.contains(OptionalCommands::VERIFY),
        }
    }

    /// Whether Write Zeroes may be told to deallocate.
    pub fn write_zeroes_deallocates(&self) -> bool {
        self.namespace.dlfeat & IdentifyNamespace::WRITE_ZEROES_DEALLOCATES != 0
    }

    /// What a device on it can do and promises.
    pub fn properties(&self, read_only: bool, description: String) -> Properties {
        let namespace = &self.namespace;
        let features = NamespaceFeatures::from_bits_retain(namespace.nsfeat);
        let stated = features.contains(NamespaceFeatures::OPTIMAL_PERFORMANCE);
        let size = self.block_size().unwrap_or(PAGE).max(1);
        let (write, deallocate) = (namespace.npwg.get(), namespace.npdg.get());
        let reads_zero = DeallocatedRead::try_from(namespace.dlfeat & 0x7);
        let deallocation = Deallocation {
            reads_zero: reads_zero == Ok(DeallocatedRead::Zeroes),
            granularity: if stated { u32::from(deallocate) + 1 } else { 1 },
        };
        Properties {
            read_only: read_only || self.is_write_protected(),
            volatile_write_cache: self.controller.vwc & IdentifyController::VWC_PRESENT != 0,
            deallocation: self.has(Kind::Deallocate).then_some(deallocation),
            // What PRPs and SGLs without restrictions ask for.
            memory_alignment: 4,
            optimal_blocks: if stated { u32::from(write) + 1 } else { (PAGE / size).max(1) },
            description,
        }
    }

    /// The names that the namespace goes by.
    pub fn identity(&self) -> Identity {
        let nguid = Some(self.namespace.nguid).filter(|nguid| *nguid != [0; 16]);
        let mut identity = Identity { nguid, uuid: None };
        for descriptor in Descriptors::new(&*self.descriptors) {
            match descriptor {
                Descriptor::Uuid(uuid) if !uuid.is_nil() => identity.uuid = Some(uuid),
                Descriptor::Nguid(nguid) if nguid != [0; 16] => identity.nguid = Some(nguid),
                _ => {}
            }
        }
        identity
    }
}

#[cfg(test)]
mod tests {
    use nvme::identify::{DescriptorWriter, LbaFormat};
    use nvme::{U16, U64};
    use uuid::Uuid;

    use super::*;

    fn identified(block_size: u32) -> Identified {
        let mut namespace = Box::<IdentifyNamespace>::default();
        namespace.nsze = U64::new(1000);
        // The format's index in both parts of the field.
        namespace.flbas = 0x20 | 0x1;
        namespace.lbaf[0x11] = LbaFormat::plain(block_size).unwrap();
        Identified {
            controller: Box::default(),
            nvm: Box::default(),
            namespace,
            descriptors: Box::new([0; IDENTIFY_LENGTH]),
        }
    }

    #[test]
    fn a_controller_that_states_nothing_promises_nothing() {
        let plain = identified(512);
        assert_eq!((plain.block_size(), plain.bytes()), (Some(512), 512_000));
        let properties = plain.properties(false, "it".to_owned());
        let expected = Properties {
            read_only: false,
            volatile_write_cache: false,
            deallocation: None,
            memory_alignment: 4,
            optimal_blocks: 8,
            description: "it".to_owned(),
        };
        assert_eq!(properties, expected);
        assert_eq!(plain.identity(), Identity::default());
        for kind in [Kind::Read, Kind::Write, Kind::Flush] {
            assert!(plain.has(kind));
        }
        for kind in [Kind::Compare, Kind::Verify, Kind::WriteZeroes { deallocate: false }] {
            assert!(!plain.has(kind));
        }
    }

    #[test]
    fn what_it_states_is_in_its_properties() {
        let mut full = identified(4096);
        full.controller.oncs = U16::new(0x8d);
        full.controller.vwc = 1;
        full.namespace.nsfeat = 0x10;
        full.namespace.npwg = U16::new(3);
        full.namespace.npdg = U16::new(15);
        full.namespace.dlfeat = 0x9;
        let properties = full.properties(false, String::new());
        assert!(properties.volatile_write_cache && !properties.read_only);
        assert_eq!(
            properties.deallocation,
            Some(Deallocation { reads_zero: true, granularity: 16 })
        );
        assert_eq!(properties.optimal_blocks, 4);
        assert!(full.write_zeroes_deallocates());
        for kind in [Kind::Compare, Kind::Verify, Kind::WriteZeroes { deallocate: false }] {
            assert!(full.has(kind));
        }
        full.namespace.dlfeat = 0x2;
        let deallocation = full.properties(false, String::new()).deallocation;
        assert!(deallocation.is_some_and(|deallocation| !deallocation.reads_zero));
        full.namespace.nsattr = 1;
        assert!(full.properties(false, String::new()).read_only);
    }

    #[test]
    fn its_names_are_those_of_the_list() {
        let mut named = identified(512);
        named.namespace.nguid = [1; 16];
        assert_eq!(named.identity(), Identity { uuid: None, nguid: Some([1; 16]) });
        let mut list = DescriptorWriter::new();
        list.push(Descriptor::Eui64([3; 8]));
        list.push(Descriptor::Uuid(Uuid::from_u128(7)));
        list.push(Descriptor::Nguid([2; 16]));
        *named.descriptors = *list.bytes();
        let expected = Identity { uuid: Some(Uuid::from_u128(7)), nguid: Some([2; 16]) };
        assert_eq!(named.identity(), expected);
    }
}
