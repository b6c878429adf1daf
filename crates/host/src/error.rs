//! What can go wrong between this host and a controller. Every message is one line that names the
//! address or the subsystem and, where there is one, the remedy; it leaves the cause to its source.

use nvme::address::TransportType;
use nvme::fabrics::ConnectField;
use nvme::rdma::RejectStatus;
use nvme::tcp::{FatalErrorStatus, HeaderError, PduType};
use nvme::{Nqn, Status};
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use verbs::{OpenError, VerbsError};

/// A failure of a connection, of a queue, or of a command that had to succeed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No connection came about.
    #[error("{}", unreachable_text(*.address, .source))]
    Unreachable {
        /// Where to.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name of an address did not resolve.
    #[error("address {name:?} is unknown, give a numeric IPv4 or IPv6 address with -a")]
    Unresolved {
        /// The name asked for.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The kernel failed a socket that was connected.
    #[error("connection to {address} failed")]
    Socket {
        /// The peer.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer closed the connection.
    #[error("{address} closed the connection {during}: see the log of the target for the reason")]
    Closed {
        /// The peer.
        address: SocketAddr,
        /// What was going on.
        during: &'static str,
    },
    /// Something was not answered in time.
    #[error("{address} did not answer {what} within {} s: check the target, or that it speaks NVMe/TCP (with -t rdma: NVMe/RDMA) on this port", .after.as_secs_f64())]
    Timeout {
        /// The peer.
        address: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// What came over the connection is not what the transport allows; the queue is dead.
    #[error("protocol error on the connection to {address}")]
    Protocol {
        /// The peer.
        address: SocketAddr,
        /// What was wrong.
        source: ProtocolError,
    },
    /// What answered the connection request does not speak NVMe/TCP, by all that came.
    #[error("what {address} answers is not NVMe/TCP: check -a and -s")]
    NotNvme {
        /// The peer.
        address: SocketAddr,
        /// What was wrong with the first bytes.
        source: ProtocolError,
    },
    /// A transport that this host does not speak.
    #[error("no connection over {0}: give tcp or rdma with -t")]
    Transport(TransportType),
    /// This machine has no RDMA libraries.
    #[error(transparent)]
    NoRdma(#[from] OpenError),
    /// The device or the kernel failed an RDMA connection.
    #[error("{}", rdma_text(*.address, .source))]
    Rdma {
        /// The peer.
        address: SocketAddr,
        /// What was called, and what it said.
        source: VerbsError,
    },
    /// The controller rejected the RDMA connection of a queue.
    #[error("{}", rejected_text(*.address, *.queue, *.status))]
    Rejected {
        /// The peer.
        address: SocketAddr,
        /// The queue asked for; 0 is the admin queue.
        queue: u16,
        /// Its reason, or a code that is unknown here.
        status: Result<RejectStatus, u16>,
    },
    /// Something between rejected the RDMA connection of a queue, or a peer that gave no reason of NVMe/RDMA's.
    #[error(
        "{address} rejected the RDMA connection of the {} (reason {reason} of InfiniBand's): check the network, and that it speaks NVMe/RDMA on this port", queue_name(*.queue)
    )]
    NotConnected {
        /// The peer.
        address: SocketAddr,
        /// The queue asked for.
        queue: u16,
        /// The connection manager's reason.
        reason: i32,
    },
    /// An RDMA connection broke.
    #[error(
        "RDMA connection to {address} broke ({reason}): check the network, and the log of the target"
    )]
    Broken {
        /// The peer.
        address: SocketAddr,
        /// How.
        reason: &'static str,
    },
    /// The subsystem refused the Connect command of a queue.
    #[error("{}", refused_text(*.address, .subsystem, .host, *.queue, *.status, *.result))]
    Refused {
        /// The peer.
        address: SocketAddr,
        /// The subsystem asked for.
        subsystem: Nqn,
        /// The host that asked.
        host: Nqn,
        /// The queue asked for; 0 is the admin queue.
        queue: u16,
        /// The answer.
        status: Status,
        /// Dword 0 of the answer: which parameter, if one was invalid.
        result: u32,
    },
    /// An admin command failed.
    #[error("{command} failed on {address}: {status}")]
    Command {
        /// The peer.
        address: SocketAddr,
        /// The command in words.
        command: &'static str,
        /// The answer.
        status: Status,
    },
    /// What a controller sent did not match its digest.
    #[error(
        "data from {address} does not match its digest: the network or the target damages data"
    )]
    DataDigest {
        /// The peer.
        address: SocketAddr,
    },
    /// The controller lacks something that is needed, or asks for something that is not here.
    #[error("controller at {address} {what}")]
    Unsupported {
        /// The peer.
        address: SocketAddr,
        /// The sentence's rest.
        what: String,
    },
    /// The controller reports a fatal status (CSTS.CFS).
    #[error("controller at {address} reports a fatal status: it must be reset or restarted")]
    Fatal {
        /// The peer.
        address: SocketAddr,
    },
    /// A log page kept changing while it was read.
    #[error(
        "log page {page:#04x} of {address} changed {attempts} times while it was read: try again when its configuration is at rest"
    )]
    Unsteady {
        /// The peer.
        address: SocketAddr,
        /// The log identifier.
        page: u8,
        /// Reads that were given up.
        attempts: u32,
    },
    /// There is no memory for the data of a queue's commands.
    #[error(
        "no memory for a queue of {depth} commands of {slot_bytes} bytes: lower --iodepth, --bs, --numjobs or --connections"
    )]
    Memory {
        /// Commands outstanding at most.
        depth: u16,
        /// Bytes of each.
        slot_bytes: u32,
    },
    /// The caller asked for what a queue cannot carry.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No host NQN was given and none can be derived.
    #[error("host identity: {0}")]
    Identity(String),
}

/// A command that the caller may not submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// More data than a slot holds.
    #[error("a command of {asked} bytes on a queue made for {limit}")]
    TooLong {
        /// Bytes asked for.
        asked: usize,
        /// Bytes of a slot.
        limit: usize,
    },
    /// More data than one piece of registered memory holds.
    #[error("commands of {asked} bytes do not go over RDMA here, {limit} at most do: lower --bs")]
    SlotTooLong {
        /// Bytes asked for.
        asked: usize,
        /// Bytes of a slot at most.
        limit: usize,
    },
    /// A slot that is not reserved, or whose command is still outstanding.
    #[error("slot {0} is not reserved")]
    Slot(u16),
    /// The queue has ended.
    #[error("the queue has ended")]
    Ended,
}

/// What a peer did that the transport does not allow, or the end that it announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The peer ended the connection with a C2HTermReq.
    #[error("the controller ended it: {status} (information {information:#x})")]
    Terminated {
        /// Fatal Error Status.
        status: FatalErrorStatus,
        /// Fatal Error Information.
        information: u32,
    },
    /// The ICResp offers what this host cannot take.
    #[error("the controller's ICResp has {what}")]
    Greeting {
        /// What it has.
        what: &'static str,
    },
    /// A common header that is wrong in itself.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A PDU that may not come now.
    #[error("{pdu} came {what}")]
    Sequence {
        /// Its type.
        pdu: PduType,
        /// When it came.
        what: &'static str,
    },
    /// The header digest does not match.
    #[error("header digest of a {pdu} does not match")]
    HeaderDigest {
        /// Type in the common header.
        pdu: PduType,
    },
    /// A PDU that names a command which is not outstanding, or was completed before.
    #[error("{pdu} names command {cid:#06x}, which is not outstanding")]
    UnknownCommand {
        /// Its type.
        pdu: PduType,
        /// The command identifier.
        cid: u16,
    },
    /// Data outside the command or out of order.
    #[error("command {cid:#06x}: {what} (offset {offset}, length {length})")]
    Range {
        /// The command identifier.
        cid: u16,
        /// What is wrong.
        what: &'static str,
        /// Offset in the PDU.
        offset: u32,
        /// Length in the PDU.
        length: u32,
    },
    /// The private data of an accepted RDMA connection is not NVMe/RDMA's.
    #[error("the connection was accepted with private data that is not of NVMe/RDMA")]
    AcceptFormat,
    /// A message that is no response capsule.
    #[error("a response capsule of {length} bytes")]
    ResponseLength {
        /// Its bytes.
        length: usize,
    },
    /// A response capsule that names a command which is not outstanding.
    #[error("a response names command {cid:#06x}, which is not outstanding")]
    UnknownResponse {
        /// The command identifier.
        cid: u16,
    },
    /// A command was reported successful without all of its data.
    #[error("command {cid:#06x} succeeded with {moved} of {expected} bytes moved")]
    Short {
        /// The command identifier.
        cid: u16,
        /// Bytes that moved.
        moved: u32,
        /// Bytes of the command.
        expected: u32,
    },
}

fn unreachable_text(address: SocketAddr, source: &io::Error) -> String {
    if matches!(Errno::from_io_error(source), Some(Errno::MFILE | Errno::NFILE)) {
        return format!(
            "no descriptor is left for a connection to {address}, lower --numjobs or --connections, or raise the limit on open files (ulimit -n)"
        );
    }
    if matches!(Errno::from_io_error(source), Some(Errno::NODEV | Errno::ADDRNOTAVAIL)) {
        return format!(
            "no RDMA device of this machine leads to {address}: check -a, and with rdma link which devices there are"
        );
    }
    match source.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "nothing listens on {address}: start the target (tidegate serve --config FILE) or check -a and -s"
        ),
        io::ErrorKind::TimedOut => {
            format!("{address} does not answer: check -a and -s, the route and the firewall")
        }
        _ => format!("cannot connect to {address}, check -a and -s"),
    }
}

fn queue_name(queue: u16) -> String {
    if queue == 0 { String::from("admin queue") } else { format!("I/O queue {queue}") }
}

fn rdma_text(address: SocketAddr, source: &VerbsError) -> String {
    match source {
        VerbsError::Call { call: "rdma_create_event_channel", .. } => String::from(
            "the kernel manages no RDMA connections: load its module (modprobe rdma_ucm)",
        ),
        VerbsError::Call { call: "ibv_reg_mr", .. } => format!(
            "memory for a queue of {address} cannot be registered: raise the limit on locked memory (ulimit -l), or lower --iodepth or --bs"
        ),
        VerbsError::Call { call: "ibv_create_qp" | "ibv_create_cq", .. } => format!(
            "the RDMA device that leads to {address} has no room for such a queue: lower --iodepth, --numjobs or --connections"
        ),
        _ => format!("RDMA connection to {address} failed"),
    }
}

fn rejected_text(address: SocketAddr, queue: u16, status: Result<RejectStatus, u16>) -> String {
    let reason = match status {
        Ok(status) => status.to_string(),
        Err(code) => format!("status {code}"),
    };
    let remedy = match status {
        Ok(RejectStatus::InvalidLength | RejectStatus::InvalidRecordFormat) => {
            "it speaks another version of NVMe/RDMA, update the older of the two ends"
        }
        Ok(RejectStatus::InvalidQueueId) => {
            "it allows fewer queues, lower --numjobs or --connections"
        }
        Ok(RejectStatus::InvalidHsqsize | RejectStatus::InvalidHrqsize) => {
            "it allows fewer commands per queue, lower --iodepth"
        }
        Ok(RejectStatus::NoResources) => {
            "it has no room for another queue, lower --connections or --iodepth, disconnect a host, or raise its limits"
        }
        Ok(RejectStatus::InvalidIrd | RejectStatus::InvalidOrd) => {
            "it objects to how many RDMA reads this end's device answers, connect through another device"
        }
        Ok(RejectStatus::InvalidCntlid) => {
            "it does not have the controller any more, connect again"
        }
        Err(_) => "see the log of the target",
    };
    format!(
        "{address} rejected the RDMA connection of the {} ({reason}): {remedy}",
        queue_name(queue)
    )
}

fn refused_text(
    address: SocketAddr,
    subsystem: &Nqn,
    host: &Nqn,
    queue: u16,
    status: Status,
    result: u32,
) -> String {
    let which = queue_name(queue);
    let remedy = if status.same_code(Status::CONNECT_INVALID_HOST) {
        format!("{host} is not on its list of hosts: allow it there, or pass another host with -q")
    } else if status.same_code(Status::CONNECT_INVALID_PARAMETERS) {
        match ConnectField::from_dw0(result) {
            Some(ConnectField::SubsystemNqn) => String::from(
                "it does not know this subsystem: check -n (tidegate discover lists what is there)",
            ),
            Some(ConnectField::HostNqn) => format!("it does not accept {host}: check -q"),
            Some(ConnectField::HostId) => {
                String::from("it does not accept the host identifier: check -I")
            }
            Some(ConnectField::ControllerId) => {
                String::from("it does not know the controller: connect anew")
            }
            Some(ConnectField::QueueSize) => {
                String::from("it allows fewer commands per queue: lower --iodepth")
            }
            Some(ConnectField::QueueId) => {
                String::from("it allows fewer queues: lower --numjobs or --connections")
            }
            field => format!("it objects to {field:?}"),
        }
    } else if status.same_code(Status::CONNECT_CONTROLLER_BUSY) {
        String::from("it has no controller or queue free: disconnect a host, or raise its limits")
    } else if status.same_code(Status::AUTHENTICATION_REQUIRED) {
        String::from("it requires authentication, which this host cannot do yet")
    } else if status.dnr() {
        String::from("trying again will not help")
    } else {
        String::from("try again")
    };
    format!("{address} refused the {which} of {subsystem}: {status}; {remedy}")
}
