//! Discovery log page (70h): a header of 1,024 bytes, then entries of 1,024 bytes, one for each way
//! to reach a subsystem.
//!
//! NVMe Base 2.0c, section "Discovery Log Page". TRSVCID and TRADDR are ASCII padded with spaces by
//! the specification; hosts accept NUL padding too, and Linux's target pads with NUL. We write
//! spaces and accept both.

use crate::address::{AddressFamily, TransportAddress, TransportType};
use crate::codes::{codes, layout, wire};
use crate::nqn::{NQN_FIELD, Nqn, NqnError};
use std::fmt::Write;
use zerocopy::little_endian::{U16, U64};

/// Record Format of the log: 0 is the only one.
pub const DISCOVERY_RECFMT: u16 = 0;
/// Bytes of TRSVCID.
pub const TRSVCID_FIELD: usize = 32;
/// Bytes of TRADDR.
pub const TRADDR_FIELD: usize = 256;

wire! {
    /// What the log begins with.
    pub struct DiscoveryHeader {
        /// Generation Counter (GENCTR): changes whenever an entry does.
        pub genctr: U64,
        /// Number of Records (NUMREC).
        pub numrec: U64,
        /// Record Format (RECFMT).
        pub recfmt: U16,
        /// Reserved.
        pub reserved18: [u8; 1006],
    }
}
layout!(DiscoveryHeader, 1024, genctr @ 0, numrec @ 8, recfmt @ 16);

codes! {
    /// Subsystem Type (SUBTYPE) of an entry.
    pub enum SubsystemType {
        Referral = 0x01, "discovery subsystem referral";
        Nvm = 0x02, "nvme subsystem";
        CurrentDiscovery = 0x03, "current discovery subsystem";
    }
}

codes! {
    /// Secure channel in TREQ, bits 1:0.
    pub enum SecureChannel {
        NotSpecified = 0x0, "not specified";
        Required = 0x1, "required";
        NotRequired = 0x2, "not required";
    }
}

/// Transport Requirements (TREQ).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportRequirements {
    /// Bits 1:0: whether connections must use a secure channel.
    pub secure_channel: SecureChannel,
    /// Bit 2: SQ flow control may be switched off in Connect.
    pub sq_flow_control_disable: bool,
}

impl From<TransportRequirements> for u8 {
    fn from(value: TransportRequirements) -> u8 {
        value.secure_channel.code() | u8::from(value.sq_flow_control_disable) << 2
    }
}

bitflags::bitflags! {
    /// Entry Flags (EFLAGS).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct DiscoveryFlags: u16 {
        /// DUPRETINFO: the same information is to be had from the other entries of this subsystem
        /// type.
        const DUPLICATE = 1 << 0;
        /// EPCSD: the discovery subsystem supports explicit persistent connections.
        const PERSISTENT = 1 << 1;
    }
}

wire! {
    /// Transport Specific Address Subtype (TSAS) of RDMA.
    pub struct RdmaAddressSubtype {
        /// RDMA QP Service Type (`RDMA_QPTYPE`): 1 reliable connected.
        pub qptype: u8,
        /// RDMA Provider Type (`RDMA_PRTYPE`): 1 not specified, 2 InfiniBand, 3 RoCE, 4 RoCE v2, 5
        /// iWARP.
        pub prtype: u8,
        /// RDMA Connection Management Service (`RDMA_CMS`): 1 `RDMA_IP_CM`.
        pub cms: u8,
        /// Reserved.
        pub reserved3: [u8; 5],
        /// RDMA Partition Key (`RDMA_PKEY`), for InfiniBand addresses.
        pub pkey: U16,
        /// Reserved.
        pub reserved10: [u8; 246],
    }
}
layout!(RdmaAddressSubtype, 256, qptype @ 0, prtype @ 1, cms @ 2, pkey @ 8);

wire! {
    /// Transport Specific Address Subtype (TSAS) of TCP.
    pub struct TcpAddressSubtype {
        /// Security Type (SECTYPE): 0 none, 1 TLS 1.2, 2 TLS 1.3.
        pub sectype: u8,
        /// Reserved.
        pub reserved1: [u8; 255],
    }
}
layout!(TcpAddressSubtype, 256, sectype @ 0);

wire! {
    /// One way to reach a subsystem.
    pub struct DiscoveryEntry {
        /// Transport Type (TRTYPE); see [`TransportType`].
        pub trtype: u8,
        /// Address Family (ADRFAM); see [`AddressFamily`].
        pub adrfam: u8,
        /// Subsystem Type (SUBTYPE); see [`SubsystemType`].
        pub subtype: u8,
        /// Transport Requirements (TREQ); see [`TransportRequirements`].
        pub treq: u8,
        /// Port ID (PORTID): names the port of the subsystem.
        pub portid: U16,
        /// Controller ID (CNTLID): `FFFFh` for the dynamic controller model.
        pub cntlid: U16,
        /// Admin Max SQ Size (ASQSZ), counted from 1, at least 32.
        pub asqsz: U16,
        /// Entry Flags (EFLAGS); see [`DiscoveryFlags`].
        pub eflags: U16,
        /// Reserved.
        pub reserved12: [u8; 20],
        /// Transport Service Identifier (TRSVCID).
        pub trsvcid: [u8; TRSVCID_FIELD],
        /// Reserved.
        pub reserved64: [u8; 192],
        /// NVM Subsystem Qualified Name (SUBNQN).
        pub subnqn: [u8; NQN_FIELD],
        /// Transport Address (TRADDR).
        pub traddr: [u8; TRADDR_FIELD],
        /// Transport Specific Address Subtype (TSAS).
        pub tsas: [u8; 256],
    }
}
layout!(
    DiscoveryEntry, 1024,
    trtype @ 0, adrfam @ 1, subtype @ 2, treq @ 3, portid @ 4, cntlid @ 6, asqsz @ 8, eflags @ 10,
    trsvcid @ 32, subnqn @ 256, traddr @ 512, tsas @ 768,
);

impl DiscoveryEntry {
    /// Puts the address into TRTYPE, ADRFAM, TRADDR and TRSVCID.
    pub fn set_address(&mut self, address: &TransportAddress) {
        self.trtype = address.trtype.code();
        self.adrfam = address.adrfam().code();
        self.traddr = padded(format_args!("{}", address.traddr));
        self.trsvcid = padded(format_args!("{}", address.trsvcid));
    }

    /// The address, if it is one of a kind that [`TransportAddress`] holds.
    pub fn address(&self) -> Option<TransportAddress> {
        let trtype = TransportType::try_from(self.trtype).ok()?;
        let address = TransportAddress {
            trtype,
            traddr: text(&self.traddr)?.parse().ok()?,
            trsvcid: text(&self.trsvcid)?.parse().ok()?,
        };
        (AddressFamily::try_from(self.adrfam) == Ok(address.adrfam())).then_some(address)
    }

    /// TRADDR as text, without padding.
    pub fn traddr(&self) -> Option<&str> {
        text(&self.traddr)
    }

    /// TRSVCID as text, without padding.
    pub fn trsvcid(&self) -> Option<&str> {
        text(&self.trsvcid)
    }

    /// SUBNQN, checked.
    pub fn subsystem(&self) -> Result<Nqn, NqnError> {
        Nqn::from_wire(&self.subnqn)
    }
}

/// A field that is filled from the left with text and otherwise with spaces.
fn padded<const N: usize>(value: std::fmt::Arguments<'_>) -> [u8; N] {
    struct Fill<'a>(&'a mut [u8]);

    impl Write for Fill<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let rest = std::mem::take(&mut self.0);
            let (now, later) = rest.split_at_mut_checked(text.len()).ok_or(std::fmt::Error)?;
            now.copy_from_slice(text.as_bytes());
            self.0 = later;
            Ok(())
        }
    }

    let mut field = [b' '; N];
    // An address or port is always shorter than its field; were it not, the field would just end
    // early.
    let _ = Fill(&mut field).write_fmt(value);
    field
}

/// The text in a field padded with spaces or NUL; `None` if it is not UTF-8.
fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(field.get(..end)?).ok()?;
    Some(text.trim_end_matches(' '))
}
