//! Fabrics commands: Connect, Disconnect, Property Get and Set.
//!
//! NVMe Base 2.0c, section 6 "Fabrics Command Set". All have opcode 7Fh, and the byte where other
//! commands have the first byte of the NSID says which one it is (FCTYPE).

use crate::codes::{codes, layout, wire};
use crate::command::{Cqe, OPCODE_FABRICS, Sqe};
use crate::nqn::{HostId, NQN_FIELD, Nqn, NqnError};
use crate::status::Status;
use uuid::Uuid;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};

codes! {
    /// Fabrics Command Type (FCTYPE).
    pub enum CommandType {
        PropertySet = 0x00, "Property Set";
        Connect = 0x01, "Connect";
        PropertyGet = 0x04, "Property Get";
        AuthenticationSend = 0x05, "Authentication Send";
        AuthenticationReceive = 0x06, "Authentication Receive";
        Disconnect = 0x08, "Disconnect";
    }
}

/// CNTLID in Connect data by which a host asks for any controller: the dynamic controller model.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// CNTLID in Connect data by which a host asks for any static controller.
pub const CNTLID_STATIC: u16 = 0xfffe;
/// Largest CNTLID that a controller may have.
pub const CNTLID_MAX: u16 = 0xffef;

/// A fabrics command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Property Set.
    PropertySet(PropertySet),
    /// Connect.
    Connect(Connect),
    /// Property Get.
    PropertyGet(PropertyGet),
    /// Authentication Send or Receive.
    Authentication(CommandType),
    /// Disconnect.
    Disconnect(Disconnect),
}

impl Command {
    /// The command in an SQE for which [`Sqe::is_fabrics`] holds. `INVALID_OPCODE` for any other
    /// SQE, and for a type that is not known, as Linux's target and SPDK answer it: the type is
    /// what other commands have the opcode for.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        if !sqe.is_fabrics() {
            return Err(Status::INVALID_OPCODE);
        }
        let command_type =
            CommandType::try_from(sqe.fctype()).map_err(|_| Status::INVALID_OPCODE)?;
        Ok(match command_type {
            CommandType::PropertySet => Self::PropertySet(PropertySet::parse(sqe)?),
            CommandType::Connect => Self::Connect(Connect::parse(sqe)),
            CommandType::PropertyGet => Self::PropertyGet(PropertyGet::parse(sqe)?),
            CommandType::AuthenticationSend | CommandType::AuthenticationReceive => {
                Self::Authentication(command_type)
            }
            CommandType::Disconnect => Self::Disconnect(Disconnect::parse(sqe)),
        })
    }
}

fn sqe(command_type: CommandType) -> Sqe {
    Sqe::new(OPCODE_FABRICS, u32::from(command_type.code()))
}

/// Connect: makes a queue, and with the admin queue a controller. Its data is [`ConnectData`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect {
    /// Record Format (RECFMT): 0 is the only one.
    pub recfmt: u16,
    /// Queue Identifier (QID): 0 for the admin queue.
    pub qid: u16,
    /// Submission Queue Size (SQSIZE), 0's based: 31 means 32 entries.
    pub sqsize: u16,
    /// Connect Attributes (CATTR).
    pub cattr: ConnectAttributes,
    /// Keep Alive Timeout (KATO) in milliseconds, 0 for none; for the admin queue only.
    pub kato: u32,
}

/// Connect Attributes (CATTR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectAttributes {
    /// Priority Class, bits 1:0: of use with weighted round robin only.
    pub priority: u8,
    /// Disable SQ Flow Control, bit 2: no completion carries an SQHD.
    pub disable_sq_flow_control: bool,
    /// Individual I/O Queue Deletion Support, bit 3: the host knows Disconnect.
    pub individual_queue_deletion: bool,
}

impl From<u8> for ConnectAttributes {
    fn from(raw: u8) -> Self {
        Self {
            priority: raw & 0x3,
            disable_sq_flow_control: raw & 0x4 != 0,
            individual_queue_deletion: raw & 0x8 != 0,
        }
    }
}

impl From<ConnectAttributes> for u8 {
    fn from(value: ConnectAttributes) -> u8 {
        (value.priority & 0x3)
            | (u8::from(value.disable_sq_flow_control) << 2)
            | (u8::from(value.individual_queue_deletion) << 3)
    }
}

impl Connect {
    /// Reads the fields; whether they make sense is for the target to say with [`ConnectFailure`].
    pub fn parse(sqe: &Sqe) -> Self {
        let [r0, r1, q0, q1] = sqe.cdw10.get().to_le_bytes();
        let [s0, s1, cattr, _] = sqe.cdw11.get().to_le_bytes();
        Self {
            recfmt: u16::from_le_bytes([r0, r1]),
            qid: u16::from_le_bytes([q0, q1]),
            sqsize: u16::from_le_bytes([s0, s1]),
            cattr: cattr.into(),
            kato: sqe.cdw12.get(),
        }
    }

    /// The command, without data pointer and CID.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = sqe(CommandType::Connect);
        let [r0, r1] = self.recfmt.to_le_bytes();
        let [q0, q1] = self.qid.to_le_bytes();
        let [s0, s1] = self.sqsize.to_le_bytes();
        sqe.cdw10 = U32::from_bytes([r0, r1, q0, q1]);
        sqe.cdw11 = U32::from_bytes([s0, s1, self.cattr.into(), 0]);
        sqe.cdw12 = U32::new(self.kato);
        sqe
    }

    /// Result of a successful Connect: dword 0.
    pub fn response(cntlid: u16, authreq: AuthenticationRequirement) -> u32 {
        u32::from(cntlid) | (u32::from(authreq.ascr) << 18) | (u32::from(authreq.atr) << 17)
    }
}

/// AUTHREQ in the response to Connect: what the host must do before any other command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuthenticationRequirement {
    /// Authentication and Secure Channel Required (ASCR), bit 2 of AUTHREQ.
    pub ascr: bool,
    /// Authentication Transaction Required (ATR), bit 1 of AUTHREQ.
    pub atr: bool,
}

/// Result of a successful Connect as the host reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectResult {
    /// Controller Identifier (CNTLID).
    pub cntlid: u16,
    /// Authentication Requirements (AUTHREQ).
    pub authreq: AuthenticationRequirement,
}

impl From<&Cqe> for ConnectResult {
    fn from(cqe: &Cqe) -> Self {
        let [c0, c1, auth, _] = cqe.dw0().to_le_bytes();
        Self {
            cntlid: u16::from_le_bytes([c0, c1]),
            authreq: AuthenticationRequirement { ascr: auth & 0x4 != 0, atr: auth & 0x2 != 0 },
        }
    }
}

wire! {
    /// Data of Connect, 1,024 bytes.
    pub struct ConnectData {
        /// Host Identifier (HOSTID).
        pub hostid: [u8; 16],
        /// Controller Identifier (CNTLID): [`CNTLID_DYNAMIC`] with the admin queue, that of the
        /// controller with an I/O queue.
        pub cntlid: U16,
        /// Reserved.
        pub reserved18: [u8; 238],
        /// NVM Subsystem NVMe Qualified Name (SUBNQN).
        pub subnqn: [u8; NQN_FIELD],
        /// Host NVMe Qualified Name (HOSTNQN).
        pub hostnqn: [u8; NQN_FIELD],
        /// Reserved.
        pub reserved768: [u8; 256],
    }
}
layout!(ConnectData, 1024, hostid @ 0, cntlid @ 16, subnqn @ 256, hostnqn @ 512, reserved768 @ 768);

impl ConnectData {
    /// The data that a host sends.
    pub fn new(hostid: HostId, cntlid: u16, subnqn: &Nqn, hostnqn: &Nqn) -> Self {
        Self {
            hostid: hostid.0,
            cntlid: U16::new(cntlid),
            subnqn: subnqn.to_wire(),
            hostnqn: hostnqn.to_wire(),
            ..Self::new_zeroed()
        }
    }

    /// Host Identifier.
    pub fn host_id(&self) -> HostId {
        HostId(self.hostid)
    }

    /// SUBNQN, checked.
    pub fn subsystem(&self) -> Result<Nqn, NqnError> {
        Nqn::from_wire(&self.subnqn)
    }

    /// HOSTNQN, checked. A host that gives no name, as `spdk_nvme_perf` without `hostnqn:` does, is known by the
    /// uuid form of its identifier.
    pub fn host(&self) -> Result<Nqn, NqnError> {
        match Nqn::from_wire(&self.hostnqn) {
            Err(NqnError::Empty) => Ok(Nqn::from_uuid(Uuid::from_bytes(self.hostid))),
            named => named,
        }
    }
}

/// Why a Connect fails, with what the completion says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// RECFMT is not 0.
    IncompatibleFormat,
    /// No controller can be had now.
    ControllerBusy,
    /// A field of the SQE is wrong; where, see [`ConnectField`].
    Parameter(ConnectField),
    /// The subsystem is not to be had here; the host asks the discovery service again.
    RestartDiscovery,
    /// The host is not allowed to use the subsystem.
    InvalidHost,
}

/// Where a Connect is wrong: Invalid Attributes (IATTR) and Invalid Parameter Offset (IPO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectField {
    /// RECFMT, SQE byte 40.
    RecordFormat,
    /// QID, SQE byte 42.
    QueueId,
    /// SQSIZE, SQE byte 44.
    QueueSize,
    /// CATTR, SQE byte 46.
    Attributes,
    /// KATO, SQE byte 48.
    KeepAlive,
    /// HOSTID, data byte 0.
    HostId,
    /// CNTLID, data byte 16.
    ControllerId,
    /// SUBNQN, data byte 256.
    SubsystemNqn,
    /// HOSTNQN, data byte 512.
    HostNqn,
}

impl ConnectField {
    /// Every field.
    pub const ALL: &'static [Self] = &[
        Self::RecordFormat,
        Self::QueueId,
        Self::QueueSize,
        Self::Attributes,
        Self::KeepAlive,
        Self::HostId,
        Self::ControllerId,
        Self::SubsystemNqn,
        Self::HostNqn,
    ];

    /// Invalid Parameter Offset (IPO) in bytes.
    pub const fn offset(self) -> u16 {
        match self {
            Self::RecordFormat => 40,
            Self::QueueId => 42,
            Self::QueueSize => 44,
            Self::Attributes => 46,
            Self::KeepAlive => 48,
            Self::HostId => 0,
            Self::ControllerId => 16,
            Self::SubsystemNqn => 256,
            Self::HostNqn => 512,
        }
    }

    /// Invalid Attributes (IATTR), bit 0: true if the offset is into the data, false if into the
    /// SQE.
    pub const fn in_data(self) -> bool {
        matches!(self, Self::HostId | Self::ControllerId | Self::SubsystemNqn | Self::HostNqn)
    }

    /// The field that IATTR and IPO name, if they name one.
    pub fn from_dw0(dw0: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.dw0() == dw0 & 0x0001_ffff)
    }

    /// Dword 0 of the completion: IPO in bits 15:0, IATTR in bits 23:16.
    pub fn dw0(self) -> u32 {
        u32::from(self.offset()) | (u32::from(self.in_data()) << 16)
    }
}

impl ConnectFailure {
    /// The status, without Do Not Retry: whether the host should try again is the target's to say.
    pub const fn status(self) -> Status {
        match self {
            Self::IncompatibleFormat => Status::CONNECT_INCOMPATIBLE_FORMAT,
            Self::ControllerBusy => Status::CONNECT_CONTROLLER_BUSY,
            Self::Parameter(_) => Status::CONNECT_INVALID_PARAMETERS,
            Self::RestartDiscovery => Status::CONNECT_RESTART_DISCOVERY,
            Self::InvalidHost => Status::CONNECT_INVALID_HOST,
        }
    }

    /// Dword 0 of the completion.
    pub fn dw0(self) -> u32 {
        match self {
            Self::Parameter(field) => field.dw0(),
            _ => 0,
        }
    }
}

/// Disconnect: ends the I/O queue it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disconnect {
    /// Record Format (RECFMT): 0 is the only one.
    pub recfmt: u16,
}

impl Disconnect {
    /// Reads the fields.
    pub fn parse(sqe: &Sqe) -> Self {
        let [r0, r1, ..] = sqe.cdw10.to_bytes();
        Self { recfmt: u16::from_le_bytes([r0, r1]) }
    }

    /// The command, without CID.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = sqe(CommandType::Disconnect);
        sqe.cdw10 = U32::new(u32::from(self.recfmt));
        sqe
    }
}

/// Size of a property, from ATTRIB bits 2:0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropertySize {
    /// 000b.
    Four,
    /// 001b.
    Eight,
}

impl PropertySize {
    fn parse(attrib: u8) -> Result<Self, Status> {
        match attrib & 0x7 {
            0 => Ok(Self::Four),
            1 => Ok(Self::Eight),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    const fn attrib(self) -> u32 {
        match self {
            Self::Four => 0,
            Self::Eight => 1,
        }
    }

    /// Bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// Property Get: reads a property of the controller; the value is the result of the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PropertyGet {
    /// Size asked for.
    pub size: PropertySize,
    /// Offset (OFST) in bytes; see [`crate::register::Property`].
    pub offset: u32,
}

impl PropertyGet {
    /// `INVALID_FIELD` for a size that is reserved.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let [attrib, ..] = sqe.cdw10.to_bytes();
        Ok(Self { size: PropertySize::parse(attrib)?, offset: sqe.cdw11.get() })
    }

    /// The command, without CID.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = sqe(CommandType::PropertyGet);
        sqe.cdw10 = U32::new(self.size.attrib());
        sqe.cdw11 = U32::new(self.offset);
        sqe
    }
}

/// Property Set: writes a property of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PropertySet {
    /// Size of the value.
    pub size: PropertySize,
    /// Offset (OFST) in bytes; see [`crate::register::Property`].
    pub offset: u32,
    /// Value; the upper half is reserved and read as zero if the size is four bytes.
    pub value: u64,
}

impl PropertySet {
    /// `INVALID_FIELD` for a size that is reserved.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let [attrib, ..] = sqe.cdw10.to_bytes();
        let size = PropertySize::parse(attrib)?;
        let low = u64::from(sqe.cdw12.get());
        let high = u64::from(sqe.cdw13.get()) << 32;
        Ok(Self {
            size,
            offset: sqe.cdw11.get(),
            value: match size {
                PropertySize::Four => low,
                PropertySize::Eight => low | high,
            },
        })
    }

    /// The command, without CID.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = sqe(CommandType::PropertySet);
        let [l0, l1, l2, l3, high @ ..] = self.value.to_le_bytes();
        sqe.cdw10 = U32::new(self.size.attrib());
        sqe.cdw11 = U32::new(self.offset);
        sqe.cdw12 = U32::from_bytes([l0, l1, l2, l3]);
        if self.size == PropertySize::Eight {
            sqe.cdw13 = U32::from_bytes(high);
        }
        sqe
    }
}
