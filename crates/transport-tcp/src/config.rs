//! The limits of the transport. Every one of them bounds something that a peer could otherwise
//! make grow or last without end.

use std::time::Duration;

use nvme::tcp::MAXH2CDATA_MIN;

/// When the SUCCESS flag of the last `C2HData` stands for the response.
///
/// It saves a PDU per read, and is only ever used for a status and a result of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SuccessFlag {
    /// Whenever status and result are zero. The host then learns the submission queue head from
    /// its other completions, as with other targets that do so.
    #[default]
    Always,
    /// As above, and only on queues without submission queue flow control, where there is no
    /// head pointer to lose.
    Strict,
    /// Never: every command has its `CapsuleResp`.
    Never,
}

/// How long each stage of a connection may last. The time for Connect is the target's to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to the whole of its `ICReq`.
    pub negotiation: Duration,
    /// From the first byte of a PDU to its last, as long as we were reading.
    pub pdu: Duration,
    /// From an R2T to the last of the data that it asked for.
    pub data: Duration,
    /// For the peer to take one batch of what we send (about 1 MiB at most).
    pub send: Duration,
    /// For the peer to close after the last PDU of a connection.
    pub close: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            negotiation: Duration::from_secs(10),
            pdu: Duration::from_secs(30),
            // A Linux host gives a command up after 30 s (60 s on the admin queue).
            data: Duration::from_mins(1),
            send: Duration::from_secs(30),
            close: Duration::from_secs(5),
        }
    }
}

/// Configuration of the transport, the same on every reactor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConfig {
    /// Bytes of data in the capsule of an I/O command. Admin and fabrics commands may carry
    /// 8 KiB whatever this is.
    pub in_capsule_data: u32,
    /// Bytes of data in one `H2CData` (MAXH2CDATA); at least 4096, a multiple of 4.
    pub max_h2c_data: u32,
    /// Bytes of data in one `C2HData`, at least 4096.
    pub max_c2h_data: u32,
    /// When the SUCCESS flag is used.
    pub success_flag: SuccessFlag,
    /// How long each stage may last.
    pub timeouts: Timeouts,
    /// PDUs taken from one connection in a turn, so that none starves the others.
    pub pdus_per_turn: u32,
    /// System calls that receive, and that send, for one connection in a turn.
    pub calls_per_turn: u32,
    /// Bytes of a receive buffer. A connection holds one only while part of a PDU is in it.
    pub receive_buffer: usize,
    /// Capsules that a connection sets aside while data that it owes waits behind them.
    pub parked_capsules: usize,
    /// Connections served by one reactor; more are closed as they come.
    pub max_connections: usize,
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig {
            in_capsule_data: 8192,
            max_h2c_data: 128 * 1024,
            max_c2h_data: 128 * 1024,
            success_flag: SuccessFlag::default(),
            timeouts: Timeouts::default(),
            pdus_per_turn: 64,
            calls_per_turn: 4,
            receive_buffer: 64 * 1024,
            parked_capsules: 256,
            max_connections: 16 * 1024,
        }
    }
}

impl TcpConfig {
    /// The same with every value inside what the protocol and the code can work with.
    #[must_use]
    pub fn clamped(mut self) -> TcpConfig {
        self.in_capsule_data = self.in_capsule_data.min(1024 * 1024) & !15;
        self.max_h2c_data = self.max_h2c_data.max(MAXH2CDATA_MIN) & !3;
        self.max_c2h_data = self.max_c2h_data.max(4096) & !3;
        self.pdus_per_turn = self.pdus_per_turn.max(1);
        self.calls_per_turn = self.calls_per_turn.max(1);
        // A capsule is taken whole: header and digest, padding to PDO (at most 255), data, digest.
        let capsule = usize::try_from(self.capsule_limit()).unwrap_or(usize::MAX);
        self.receive_buffer = self.receive_buffer.max(capsule.saturating_add(512));
        self
    }

    /// Bytes of data that a capsule may carry on any queue.
    pub(crate) fn capsule_limit(&self) -> u32 {
        self.in_capsule_data.max(target::ADMIN_IN_CAPSULE)
    }
}
