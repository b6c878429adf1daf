//! Features: what Get Features and Set Features are about, by the values in dword 11 and dword 0.
//!
//! NVMe Base 2.0c, section 5.27.1. Get Features returns in dword 0 of the completion what Set
//! Features takes in dword 11 of the command, except where said otherwise.

use crate::codes::{codes, layout, wire};

codes! {
    /// Feature Identifier (FID).
    pub enum Feature {
        Arbitration = 0x01, "Arbitration";
        PowerManagement = 0x02, "Power Management";
        LbaRangeType = 0x03, "LBA Range Type";
        TemperatureThreshold = 0x04, "Temperature Threshold";
        ErrorRecovery = 0x05, "Error Recovery";
        VolatileWriteCache = 0x06, "Volatile Write Cache";
        NumberOfQueues = 0x07, "Number of Queues";
        InterruptCoalescing = 0x08, "Interrupt Coalescing";
        InterruptVector = 0x09, "Interrupt Vector Configuration";
        WriteAtomicity = 0x0a, "Write Atomicity Normal";
        AsynchronousEvents = 0x0b, "Asynchronous Event Configuration";
        AutonomousPowerStates = 0x0c, "Autonomous Power State Transition";
        HostMemoryBuffer = 0x0d, "Host Memory Buffer";
        Timestamp = 0x0e, "Timestamp";
        KeepAlive = 0x0f, "Keep Alive Timer";
        HostThermalManagement = 0x10, "Host Controlled Thermal Management";
        NonOperationalPowerStates = 0x11, "Non-Operational Power State Config";
        ReadRecoveryLevel = 0x12, "Read Recovery Level Config";
        PredictableLatencyMode = 0x13, "Predictable Latency Mode Config";
        PredictableLatencyWindow = 0x14, "Predictable Latency Mode Window";
        LbaStatusInterval = 0x15, "LBA Status Information Report Interval";
        HostBehavior = 0x16, "Host Behavior Support";
        SanitizeConfig = 0x17, "Sanitize Config";
        EnduranceGroupEvents = 0x18, "Endurance Group Event Configuration";
        CommandSetProfile = 0x19, "I/O Command Set Profile";
        SpinupControl = 0x1a, "Spinup Control";
        EnhancedControllerMetadata = 0x7d, "Enhanced Controller Metadata";
        ControllerMetadata = 0x7e, "Controller Metadata";
        NamespaceMetadata = 0x7f, "Namespace Metadata";
        SoftwareProgress = 0x80, "Software Progress Marker";
        HostIdentifier = 0x81, "Host Identifier";
        ReservationNotificationMask = 0x82, "Reservation Notification Mask";
        ReservationPersistence = 0x83, "Reservation Persistence";
        NamespaceWriteProtection = 0x84, "Namespace Write Protection Config";
    }
}

/// Arbitration (01h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arbitration {
    /// Arbitration Burst (AB), bits 2:0: 2 ^ this commands, 111b no limit.
    pub burst: u8,
    /// Low Priority Weight (LPW), bits 15:8, 0's based.
    pub low: u8,
    /// Medium Priority Weight (MPW), bits 23:16, 0's based.
    pub medium: u8,
    /// High Priority Weight (HPW), bits 31:24, 0's based.
    pub high: u8,
}

impl From<u32> for Arbitration {
    fn from(value: u32) -> Self {
        let [burst, low, medium, high] = value.to_le_bytes();
        Self { burst: burst & 0x7, low, medium, high }
    }
}

impl From<Arbitration> for u32 {
    fn from(value: Arbitration) -> u32 {
        u32::from_le_bytes([value.burst & 0x7, value.low, value.medium, value.high])
    }
}

/// Power Management (02h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PowerManagement {
    /// Power State (PS), bits 4:0.
    pub power_state: u8,
    /// Workload Hint (WH), bits 7:5.
    pub workload_hint: u8,
}

impl From<u32> for PowerManagement {
    fn from(value: u32) -> Self {
        let [low, ..] = value.to_le_bytes();
        Self { power_state: low & 0x1f, workload_hint: low >> 5 }
    }
}

impl From<PowerManagement> for u32 {
    fn from(value: PowerManagement) -> u32 {
        u32::from(value.power_state & 0x1f) | u32::from(value.workload_hint & 0x7) << 5
    }
}

/// Temperature Threshold (04h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TemperatureThreshold {
    /// Temperature Threshold (TMPTH) in kelvin, bits 15:0.
    pub kelvin: u16,
    /// Threshold Temperature Select (TMPSEL), bits 19:16: 0 composite, 1..8 sensors, Fh all (Set
    /// only).
    pub sensor: u8,
    /// Threshold Type Select (THSEL), bits 21:20: 00b over, 01b under temperature, others reserved.
    pub kind: u8,
}

impl From<u32> for TemperatureThreshold {
    fn from(value: u32) -> Self {
        let [k0, k1, select, _] = value.to_le_bytes();
        Self {
            kelvin: u16::from_le_bytes([k0, k1]),
            sensor: select & 0xf,
            kind: (select >> 4) & 0x3,
        }
    }
}

impl From<TemperatureThreshold> for u32 {
    fn from(value: TemperatureThreshold) -> u32 {
        u32::from(value.kelvin)
            | u32::from(value.sensor & 0xf) << 16
            | u32::from(value.kind & 0x3) << 20
    }
}

/// Error Recovery (05h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorRecovery {
    /// Time Limited Error Recovery (TLER), bits 15:0, in 100 ms; 0 for none.
    pub time_limit: u16,
    /// Deallocated or Unwritten Logical Block Error Enable (DULBE), bit 16.
    pub dulbe: bool,
}

impl From<u32> for ErrorRecovery {
    fn from(value: u32) -> Self {
        let [t0, t1, flags, _] = value.to_le_bytes();
        Self { time_limit: u16::from_le_bytes([t0, t1]), dulbe: flags & 1 != 0 }
    }
}

impl From<ErrorRecovery> for u32 {
    fn from(value: ErrorRecovery) -> u32 {
        u32::from(value.time_limit) | u32::from(value.dulbe) << 16
    }
}

/// Volatile Write Cache (06h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolatileWriteCache {
    /// Volatile Write Cache Enable (WCE), bit 0.
    pub enabled: bool,
}

impl From<u32> for VolatileWriteCache {
    fn from(value: u32) -> Self {
        Self { enabled: value & 1 != 0 }
    }
}

impl From<VolatileWriteCache> for u32 {
    fn from(value: VolatileWriteCache) -> u32 {
        u32::from(value.enabled)
    }
}

/// Number of Queues (07h). Both numbers are 0's based and do not count the admin queue. Set
/// Features answers in dword 0 with what is allocated, which may be less or more; `FFFFh` in either
/// is `INVALID_FIELD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// Number of I/O Submission Queues (NSQR, NSQA), bits 15:0, 0's based.
    pub submission: u16,
    /// Number of I/O Completion Queues (NCQR, NCQA), bits 31:16, 0's based.
    pub completion: u16,
}

impl From<u32> for NumberOfQueues {
    fn from(value: u32) -> Self {
        let [s0, s1, c0, c1] = value.to_le_bytes();
        Self { submission: u16::from_le_bytes([s0, s1]), completion: u16::from_le_bytes([c0, c1]) }
    }
}

impl From<NumberOfQueues> for u32 {
    fn from(value: NumberOfQueues) -> u32 {
        u32::from(value.submission) | u32::from(value.completion) << 16
    }
}

/// Interrupt Coalescing (08h): of I/O completion queues, where a vector's configuration does not except it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterruptCoalescing {
    /// Aggregation Threshold (THR), bits 7:0: completions in a vector before it interrupts, 0's based.
    pub threshold: u8,
    /// Aggregation Time (TIME), bits 15:8, in 100 µs; 0 for no delay.
    pub time: u8,
}

impl From<u32> for InterruptCoalescing {
    fn from(value: u32) -> Self {
        let [threshold, time, ..] = value.to_le_bytes();
        Self { threshold, time }
    }
}

impl From<InterruptCoalescing> for u32 {
    fn from(value: InterruptCoalescing) -> u32 {
        u32::from_le_bytes([value.threshold, value.time, 0, 0])
    }
}

/// Interrupt Vector Configuration (09h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterruptVector {
    /// Interrupt Vector (IV), bits 15:0.
    pub vector: u16,
    /// Coalescing Disable (CD), bit 16.
    pub uncoalesced: bool,
}

impl From<u32> for InterruptVector {
    fn from(value: u32) -> Self {
        let [v0, v1, flags, _] = value.to_le_bytes();
        Self { vector: u16::from_le_bytes([v0, v1]), uncoalesced: flags & 1 != 0 }
    }
}

impl From<InterruptVector> for u32 {
    fn from(value: InterruptVector) -> u32 {
        u32::from(value.vector) | u32::from(value.uncoalesced) << 16
    }
}

/// Write Atomicity Normal (0Ah).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteAtomicity {
    /// Disable Normal (DN), bit 0: only AWUPF and NAWUPF are asked for.
    pub disable_normal: bool,
}

impl From<u32> for WriteAtomicity {
    fn from(value: u32) -> Self {
        Self { disable_normal: value & 1 != 0 }
    }
}

impl From<WriteAtomicity> for u32 {
    fn from(value: WriteAtomicity) -> u32 {
        u32::from(value.disable_normal)
    }
}

bitflags::bitflags! {
    /// Asynchronous Event Configuration (0Bh): the events that the host wants. Identify
    /// Controller's OAES uses the bits from 8 on for the events that the controller can send.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct AsynchronousEvents: u32 {
        /// SMART: available spare.
        const SPARE = 1 << 0;
        /// SMART: temperature.
        const TEMPERATURE = 1 << 1;
        /// SMART: reliability degraded.
        const RELIABILITY = 1 << 2;
        /// SMART: media read-only.
        const READ_ONLY = 1 << 3;
        /// SMART: volatile memory backup failed.
        const BACKUP = 1 << 4;
        /// SMART: persistent memory region read-only or unreliable.
        const PERSISTENT_MEMORY = 1 << 5;
        /// Namespace Attribute Notices.
        const NAMESPACE = 1 << 8;
        /// Firmware Activation Notices.
        const FIRMWARE = 1 << 9;
        /// Telemetry Log Notices.
        const TELEMETRY = 1 << 10;
        /// Asymmetric Namespace Access Change Notices.
        const ANA = 1 << 11;
        /// Predictable Latency Event Aggregate Log Change Notices.
        const PREDICTABLE_LATENCY = 1 << 12;
        /// LBA Status Information Notices.
        const LBA_STATUS = 1 << 13;
        /// Endurance Group Event Aggregate Log Page Change Notices.
        const ENDURANCE_GROUP = 1 << 14;
        /// Normal NVM Subsystem Shutdown.
        const SUBSYSTEM_SHUTDOWN = 1 << 15;
        /// Zone Descriptor Changed Notices.
        const ZONE = 1 << 27;
        /// Discovery Log Page Change Notification.
        const DISCOVERY = 1 << 31;
    }
}

/// Keep Alive Timer (0Fh): Keep Alive Timeout (KATO) in milliseconds; 0 switches it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeepAlive {
    /// KATO.
    pub milliseconds: u32,
}

impl From<u32> for KeepAlive {
    fn from(milliseconds: u32) -> Self {
        Self { milliseconds }
    }
}

impl From<KeepAlive> for u32 {
    fn from(value: KeepAlive) -> u32 {
        value.milliseconds
    }
}

wire! {
    /// Timestamp (0Eh): data of Get and Set Features.
    pub struct Timestamp {
        /// Milliseconds since 1970-01-01 00:00 UTC, 48 bits.
        pub timestamp: [u8; 6],
        /// Attributes, Get only: bit 0 Synch, bits 3:1 Timestamp Origin (001b: set by the host).
        pub attributes: u8,
        /// Reserved.
        pub reserved7: u8,
    }
}
layout!(Timestamp, 8, timestamp @ 0, attributes @ 6);

impl Timestamp {
    /// Attributes: the host has set the time since the last reset.
    pub const ORIGIN_HOST: u8 = 0b001 << 1;

    /// Of a time in milliseconds, of which the low 48 bits count.
    pub fn new(milliseconds: u64, attributes: u8) -> Self {
        let [timestamp @ .., _, _] = milliseconds.to_le_bytes();
        Self { timestamp, attributes, reserved7: 0 }
    }

    /// Milliseconds since 1970-01-01 00:00 UTC.
    pub fn milliseconds(&self) -> u64 {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(self.timestamp) {
            *to = from;
        }
        u64::from_le_bytes(bytes)
    }
}

wire! {
    /// Host Behavior Support (16h): data of Get and Set Features.
    pub struct HostBehavior {
        /// Advanced Command Retry Enable (ACRE): 1 if the host heeds Command Retry Delay.
        pub acre: u8,
        /// Extended Telemetry Data Area 4 Supported (ETDAS).
        pub etdas: u8,
        /// LBA Format Extension Enable (LBAFEE).
        pub lbafee: u8,
        /// Reserved.
        pub reserved3: [u8; 509],
    }
}
layout!(HostBehavior, 512, acre @ 0, etdas @ 1, lbafee @ 2);

/// Host Identifier (81h): Enable Extended Host Identifier (EXHID), bit 0 of dword 11. Over fabrics
/// it must be set, the identifier is sixteen bytes, and it cannot be changed.
pub const EXTENDED_HOST_IDENTIFIER: u32 = 1;

/// Reservation Persistence (83h): Persist Through Power Loss (PTPL), bit 0.
pub const PERSIST_THROUGH_POWER_LOSS: u32 = 1;

codes! {
    /// Namespace Write Protection Config (84h): Write Protection State, bits 2:0.
    pub enum WriteProtection {
        None = 0x0, "No Write Protect";
        Protected = 0x1, "Write Protect";
        UntilPowerCycle = 0x2, "Write Protect Until Power Cycle";
        Permanent = 0x3, "Permanent Write Protect";
    }
}

/// I/O Command Set Profile (19h): which of the vectors of Identify CNS 1Ch is in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandSetProfile {
    /// I/O Command Set Combination Index (IOCSCI), bits 8:0.
    pub index: u16,
}

impl From<u32> for CommandSetProfile {
    fn from(value: u32) -> Self {
        let [low, high, ..] = value.to_le_bytes();
        Self { index: u16::from_le_bytes([low, high & 1]) }
    }
}

impl From<CommandSetProfile> for u32 {
    fn from(value: CommandSetProfile) -> u32 {
        u32::from(value.index & 0x1ff)
    }
}
