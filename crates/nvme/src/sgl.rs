//! Scatter gather list descriptors: where the data of a command is.
//!
//! NVMe Base 2.0c, section 4.1.2 "Scatter Gather Lists". Over fabrics the SQE carries exactly one
//! descriptor. Which of them a queue may use is the transport's to say (NVMe/TCP:
//! [`Sgl::InCapsule`] and [`Sgl::TransportData`]; NVMe/RDMA: [`Sgl::InCapsule`] and
//! [`Sgl::Keyed`]). On PCIe it is [`LocalSgl`], which may lead to more of them in memory; or the sixteen bytes are [`Prps`].

use crate::codes::{layout, wire};
use crate::command::Prps;
use zerocopy::little_endian::U64;

wire! {
    /// The sixteen bytes of a descriptor as they lie in the SQE. [`SglDescriptor::sgl`] gives them
    /// a meaning.
    pub struct SglDescriptor {
        /// Address, or offset into the capsule, or reserved: the type says which.
        pub address: U64,
        /// Length in bytes (32 bits) and reserved bytes, or length (24 bits) and key (32 bits).
        pub specific: [u8; 7],
        /// SGL Identifier: type in bits 7:4, sub type in bits 3:0.
        pub identifier: u8,
    }
}
layout!(SglDescriptor, 16, address @ 0, specific @ 8, identifier @ 15);

/// SGL Identifier of an SGL Data Block descriptor, sub type Address: data in memory.
pub const IDENTIFIER_DATA: u8 = 0x00;
/// SGL Identifier of an SGL Bit Bucket descriptor: data of a read that is not wanted.
pub const IDENTIFIER_BIT_BUCKET: u8 = 0x10;
/// SGL Identifier of an SGL Segment descriptor: the last of its segment, more descriptors elsewhere.
pub const IDENTIFIER_SEGMENT: u8 = 0x20;
/// SGL Identifier of an SGL Last Segment descriptor: as a segment, of which the descriptors are the last.
pub const IDENTIFIER_LAST_SEGMENT: u8 = 0x30;
/// SGL Identifier of an SGL Data Block descriptor, sub type Offset: data in the capsule.
pub const IDENTIFIER_IN_CAPSULE: u8 = 0x01;
/// SGL Identifier of a Transport SGL Data Block descriptor.
pub const IDENTIFIER_TRANSPORT_DATA: u8 = 0x5a;
/// SGL Identifier of a Keyed SGL Data Block descriptor, sub type Address.
pub const IDENTIFIER_KEYED: u8 = 0x40;
/// SGL Identifier of a Keyed SGL Data Block descriptor whose key is invalidated with the response.
pub const IDENTIFIER_KEYED_INVALIDATE: u8 = 0x4f;

/// Largest length of a keyed descriptor: 24 bits.
pub const KEYED_LENGTH_MAX: u32 = 0x00ff_ffff;

/// A descriptor by its meaning. Reserved bytes are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sgl {
    /// 01h: the data follows the SQE in the capsule.
    InCapsule {
        /// Bytes from the end of the SQE (plus ICDOFF) to the data.
        offset: u64,
        /// Bytes of data.
        length: u32,
    },
    /// 5Ah: the transport moves the data as it knows how (NVMe/TCP: R2T, H2CData, C2HData).
    TransportData {
        /// Bytes of data.
        length: u32,
    },
    /// 40h and 4Fh: remote memory with a key (NVMe/RDMA).
    Keyed {
        /// Address in the memory region of the host.
        address: u64,
        /// Bytes of data, at most [`KEYED_LENGTH_MAX`].
        length: u32,
        /// Remote key of the memory region.
        key: u32,
        /// 4Fh: invalidate `key` with the response.
        invalidate: bool,
    },
    /// Any other identifier: not for a fabrics capsule.
    Other(u8),
}

impl Sgl {
    /// Bytes of data described; 0 for [`Sgl::Other`].
    pub const fn length(&self) -> u32 {
        match *self {
            Self::InCapsule { length, .. }
            | Self::TransportData { length }
            | Self::Keyed { length, .. } => length,
            Self::Other(_) => 0,
        }
    }
}

impl SglDescriptor {
    /// What the descriptor says.
    pub fn sgl(&self) -> Sgl {
        let [l0, l1, l2, l3, k1, k2, k3] = self.specific;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        match self.identifier {
            IDENTIFIER_IN_CAPSULE => Sgl::InCapsule { offset: self.address.get(), length },
            IDENTIFIER_TRANSPORT_DATA => Sgl::TransportData { length },
            IDENTIFIER_KEYED | IDENTIFIER_KEYED_INVALIDATE => Sgl::Keyed {
                address: self.address.get(),
                length: length & KEYED_LENGTH_MAX,
                key: u32::from_le_bytes([l3, k1, k2, k3]),
                invalidate: self.identifier == IDENTIFIER_KEYED_INVALIDATE,
            },
            other => Sgl::Other(other),
        }
    }
}

impl From<Sgl> for SglDescriptor {
    /// A keyed length beyond 24 bits is cut to [`KEYED_LENGTH_MAX`]: a shorter transfer, never a
    /// wrong key.
    fn from(sgl: Sgl) -> Self {
        let plain = |address: u64, length: u32, identifier: u8| {
            let [l0, l1, l2, l3] = length.to_le_bytes();
            Self { address: U64::new(address), specific: [l0, l1, l2, l3, 0, 0, 0], identifier }
        };
        match sgl {
            Sgl::InCapsule { offset, length } => plain(offset, length, IDENTIFIER_IN_CAPSULE),
            Sgl::TransportData { length } => plain(0, length, IDENTIFIER_TRANSPORT_DATA),
            Sgl::Keyed { address, length, key, invalidate } => {
                let [l0, l1, l2, _] = length.min(KEYED_LENGTH_MAX).to_le_bytes();
                let [k0, k1, k2, k3] = key.to_le_bytes();
                Self {
                    address: U64::new(address),
                    specific: [l0, l1, l2, k0, k1, k2, k3],
                    identifier: if invalidate {
                        IDENTIFIER_KEYED_INVALIDATE
                    } else {
                        IDENTIFIER_KEYED
                    },
                }
            }
            Sgl::Other(identifier) => plain(0, 0, identifier),
        }
    }
}

/// A descriptor of memory that both sides know by address: what a controller on PCIe takes, in commands and in segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalSgl {
    /// 00h: data.
    Data {
        /// Where.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// 10h: so much of the data of a read is not transferred.
    BitBucket {
        /// Bytes.
        length: u32,
    },
    /// 20h: descriptors, of which the last is a segment again.
    Segment {
        /// Where, a multiple of eight.
        address: u64,
        /// Bytes, a multiple of sixteen.
        length: u32,
    },
    /// 30h: descriptors, the last there are.
    LastSegment {
        /// Where, a multiple of eight.
        address: u64,
        /// Bytes, a multiple of sixteen.
        length: u32,
    },
    /// Any other identifier: not for a controller on PCIe.
    Other(u8),
}

impl SglDescriptor {
    /// What the descriptor says to a controller on PCIe. Reserved bytes are not kept.
    pub fn local(&self) -> LocalSgl {
        let [l0, l1, l2, l3, ..] = self.specific;
        let (address, length) = (self.address.get(), u32::from_le_bytes([l0, l1, l2, l3]));
        match self.identifier {
            IDENTIFIER_DATA => LocalSgl::Data { address, length },
            IDENTIFIER_BIT_BUCKET => LocalSgl::BitBucket { length },
            IDENTIFIER_SEGMENT => LocalSgl::Segment { address, length },
            IDENTIFIER_LAST_SEGMENT => LocalSgl::LastSegment { address, length },
            other => LocalSgl::Other(other),
        }
    }
}

impl From<LocalSgl> for SglDescriptor {
    fn from(sgl: LocalSgl) -> Self {
        let (address, length, identifier) = match sgl {
            LocalSgl::Data { address, length } => (address, length, IDENTIFIER_DATA),
            LocalSgl::BitBucket { length } => (0, length, IDENTIFIER_BIT_BUCKET),
            LocalSgl::Segment { address, length } => (address, length, IDENTIFIER_SEGMENT),
            LocalSgl::LastSegment { address, length } => (address, length, IDENTIFIER_LAST_SEGMENT),
            LocalSgl::Other(identifier) => (0, 0, identifier),
        };
        let [l0, l1, l2, l3] = length.to_le_bytes();
        Self { address: U64::new(address), specific: [l0, l1, l2, l3, 0, 0, 0], identifier }
    }
}

impl From<Prps> for SglDescriptor {
    fn from(prps: Prps) -> Self {
        let [specific @ .., identifier] = prps.second.to_le_bytes();
        Self { address: U64::new(prps.first), specific, identifier }
    }
}

impl From<SglDescriptor> for Prps {
    fn from(descriptor: SglDescriptor) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6] = descriptor.specific;
        let second = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, descriptor.identifier]);
        Self { first: descriptor.address.get(), second }
    }
}
