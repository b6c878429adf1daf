//! To which subsystem, and as whom: the flags that `discover`, `identify` and `perf` share, named as nvme-cli's.

use crate::config::quantity::Time;
use crate::failure::WrongInvocation;
use anyhow::{Context, ensure};
use clap::Args;
use host::{ConnectOptions, HostError, HostIdentity};
use nvme::address::{PORT_IO, TransportType};
use nvme::{HostId, Nqn};
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

/// A transport that a host can connect over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
}

impl From<Transport> for TransportType {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Rdma => Self::Rdma,
        }
    }
}

/// Address of a subsystem and identity of this host.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// Transport
    #[arg(short = 't', long, value_enum, default_value = "tcp")]
    transport: Transport,

    /// Address of the target: IPv4, IPv6 or a host name
    #[arg(short = 'a', long, value_name = "ADDR", default_value = "127.0.0.1")]
    traddr: String,

    /// Port of the target [default: 4420]
    #[arg(short = 's', long, value_name = "SVCID", value_parser = clap::value_parser!(u16).range(1..))]
    trsvcid: Option<u16>,

    /// NQN to present to the target [default: /etc/nvme/hostnqn, else derived from the machine id]
    #[arg(short = 'q', long, value_name = "HOSTNQN", value_parser = Nqn::from_str)]
    hostnqn: Option<Nqn>,

    /// Host identifier to present, a UUID [default: /etc/nvme/hostid, else that of the host NQN]
    #[arg(short = 'I', long, value_name = "HOSTID")]
    hostid: Option<HostId>,

    /// Protect PDU headers by a digest (tcp)
    #[arg(short = 'g', long)]
    hdr_digest: bool,

    /// Protect data by a digest (tcp)
    #[arg(short = 'G', long)]
    data_digest: bool,

    /// Ask the controller to switch submission queue flow control off
    #[arg(long)]
    disable_sqflow: bool,

    /// Keep alive timeout, in seconds or with a unit; 0 for none
    #[arg(short = 'k', long, value_name = "TIME", default_value = "15", value_parser = seconds)]
    keep_alive_tmo: Duration,

    /// Longest wait for a connection and for each admin command, in seconds or with a unit
    #[arg(long, value_name = "TIME", default_value = "10", value_parser = some_seconds)]
    timeout: Duration,
}

impl ConnectionArgs {
    /// What to connect to `subsystem` with, at each address that the name stands for.
    pub(crate) fn options(&self, subsystem: &Nqn) -> anyhow::Result<ConnectOptions> {
        ensure!(
            self.transport == Transport::Tcp || !(self.hdr_digest || self.data_digest),
            WrongInvocation(String::from(
                "--hdr-digest and --data-digest go with -t tcp only: RDMA has checks of its own"
            ))
        );
        let host = HostIdentity::resolve(self.hostnqn.clone(), self.hostid)?;
        let mut options = ConnectOptions::new(self.address()?, subsystem.clone(), host);
        options.transport = self.transport.into();
        options.header_digest = self.hdr_digest;
        options.data_digest = self.data_digest;
        options.disable_sq_flow_control = self.disable_sqflow;
        options.keep_alive = self.keep_alive_tmo;
        options.timeout = self.timeout;
        Ok(options)
    }

    fn address(&self) -> anyhow::Result<SocketAddr> {
        let port = self.trsvcid.unwrap_or(PORT_IO);
        let name = self.traddr.trim_start_matches('[').trim_end_matches(']');
        (name, port)
            .to_socket_addrs()
            .map_err(|source| HostError::Unresolved { name: name.to_owned(), source })?
            .next()
            .with_context(|| format!("address {name:?} stands for no IP address: check -a"))
    }
}

/// Beyond any use of a time here, and within what the clock and the Keep Alive Timeout (32 bits of milliseconds) hold.
const TIME_MAX: Duration = Duration::from_hours(30 * 24);

/// A time as nvme-cli and fio take it, in whole seconds, or a number with a unit; zero stands for none.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => text.parse::<Time>()?.0,
    };
    if time > TIME_MAX { Err("at most 30 days (43200min)".to_owned()) } else { Ok(time) }
}

/// The same where zero would be of no use.
pub(crate) fn some_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| {
        if time.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(time) }
    })
}
