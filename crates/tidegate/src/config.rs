//! The TOML configuration of `serve`: its schema, and the checks that need nothing but the text
//! and a look at the file system.
//!
//! [`load`] refuses what is wrong before anything is created, naming file, line and key. What it
//! returns is the schema itself: every value in it has been checked alone (an NQN is an NQN, a
//! device exists under the name that a namespace gives); how they fit together is the target's
//! own validation.

mod check;
mod devices;
pub(crate) mod quantity;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::objects::AnaState;
use nvme::Nqn;
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use transport_rdma::RdmaConfig;
use uuid::Uuid;

pub(crate) use devices::{Controller, Device, DeviceKind, Direct};
use quantity::{Size, Time};

/// Reactors without a list of cores.
const DEFAULT_REACTORS: usize = 4;

/// A whole configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// How long SIGTERM waits for what is in flight.
    pub(crate) shutdown_timeout: Option<Time>,
    pub(crate) reactors: Reactors,
    pub(crate) memory: Memory,
    pub(crate) transports: Transports,
    pub(crate) controllers: BTreeMap<String, Spanned<Controller>>,
    pub(crate) devices: BTreeMap<String, Spanned<Device>>,
    pub(crate) subsystems: Vec<Spanned<Subsystem>>,
    pub(crate) referrals: Vec<Spanned<Referral>>,
    pub(crate) rpc: Rpc,
    pub(crate) state: State,
    pub(crate) logging: Logging,
}

impl Config {
    /// The cores to run reactors on.
    ///
    /// # Errors
    /// The system does not say which cores are allowed.
    pub(crate) fn cores(&self) -> io::Result<Vec<usize>> {
        if let Some(cores) = &self.reactors.cores {
            return Ok(cores.get_ref().clone());
        }
        let allowed = sched_getaffinity(None)?;
        let all = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        Ok(all.take(DEFAULT_REACTORS).collect())
    }

    /// Whether some subsystem is to be reached over RDMA.
    pub(crate) fn serves_rdma(&self) -> bool {
        let mut listeners = self.subsystems.iter().flat_map(|it| &it.get_ref().listeners);
        listeners.any(|it| it.get_ref().transport == Transport::Rdma)
    }

    /// How long SIGTERM waits for what is in flight; 10 s unless configured.
    pub(crate) fn shutdown_timeout(&self) -> Duration {
        self.shutdown_timeout.map_or(Duration::from_secs(10), |time| time.0)
    }
}

/// `[reactors]`: the threads that do the work.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Reactors {
    /// One reactor is pinned to each of these; unset: up to four of the cores allowed.
    pub(crate) cores: Option<Spanned<Vec<usize>>>,
    /// What a reactor does when there is nothing to do.
    pub(crate) idle: Idle,
    /// Longest time that an `adaptive` reactor spins before it sleeps.
    pub(crate) max_spin: Option<Time>,
    /// Different idle policies for some cores: `idle_by_core = { 3 = "poll" }`.
    pub(crate) idle_by_core: BTreeMap<String, Spanned<Idle>>,
    /// Whether files are driven by io_uring.
    pub(crate) io_uring: IoUring,
}

impl Reactors {
    /// The idle policy of the reactor on this core.
    pub(crate) fn idle_on(&self, core: usize) -> Idle {
        self.idle_by_core.get(&core.to_string()).map_or(self.idle, |own| *own.get_ref())
    }
}

/// Idle policy of a reactor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Idle {
    /// Never sleeps.
    Poll,
    /// Spins for a self-tuning time, then sleeps until something happens.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Interrupt,
}

/// Whether io_uring is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IoUring {
    /// Where the kernel allows it.
    #[default]
    Auto,
    /// Not at all: a thread pool serves files.
    Never,
}

/// `[memory]`: buffers for data in flight.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Memory {
    /// Of each reactor's pool.
    pub(crate) per_reactor: Spanned<Size>,
    pub(crate) hugepages: Hugepages,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { per_reactor: Spanned::new(0..0, Size(64 << 20)), hugepages: Hugepages::default() }
    }
}

/// Whether hugepages are tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hugepages {
    /// Where there are some.
    #[default]
    Try,
    /// Plain pages.
    Never,
}

/// `[transports]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Transports {
    pub(crate) tcp: Tcp,
    pub(crate) rdma: Rdma,
}

/// `[transports.tcp]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tcp {
    /// Data that a write command may carry in its capsule.
    pub(crate) in_capsule_data: Spanned<Size>,
    /// Most data of one command.
    pub(crate) max_transfer: Spanned<Size>,
    /// I/O queues of one controller.
    pub(crate) max_io_queues: Spanned<u16>,
    /// Commands in flight on one queue.
    pub(crate) queue_depth: Spanned<u16>,
    /// When the SUCCESS flag replaces a response capsule.
    pub(crate) c2h_success: Success,
    /// From the accepted connection to the Connect command.
    pub(crate) connect_timeout: Spanned<Time>,
    /// For a PDU that has begun, and for data that was asked for.
    pub(crate) receive_timeout: Spanned<Time>,
    /// For bytes that the host does not read.
    pub(crate) send_timeout: Spanned<Time>,
}

impl Default for Tcp {
    fn default() -> Tcp {
        let spanned = |bytes| Spanned::new(0..0, Size(bytes));
        let seconds = |seconds| Spanned::new(0..0, Time(Duration::from_secs(seconds)));
        Tcp {
            in_capsule_data: spanned(8 << 10),
            max_transfer: spanned(1 << 20),
            max_io_queues: Spanned::new(0..0, 128),
            queue_depth: Spanned::new(0..0, 128),
            c2h_success: Success::default(),
            connect_timeout: seconds(10),
            receive_timeout: seconds(30),
            send_timeout: seconds(30),
        }
    }
}

/// `[transports.rdma]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rdma {
    /// Data that a write command may carry in its capsule.
    pub(crate) in_capsule_data: Spanned<Size>,
    /// Commands in flight on one queue.
    pub(crate) queue_depth: Spanned<u16>,
    /// Receives that the queues of a reactor share on each device.
    pub(crate) shared_receives: Spanned<u32>,
    /// Completions that a completion queue has room for.
    pub(crate) completions: Spanned<u32>,
    /// For work that a device has taken, as long as none of it ends.
    pub(crate) progress_timeout: Spanned<Time>,
}

impl Default for Rdma {
    fn default() -> Rdma {
        let RdmaConfig {
            in_capsule_data, queue_depth, shared_receives, completions, progress, ..
        } = RdmaConfig::default();
        Rdma {
            in_capsule_data: Spanned::new(0..0, Size(in_capsule_data.into())),
            queue_depth: Spanned::new(0..0, queue_depth),
            shared_receives: Spanned::new(0..0, shared_receives),
            completions: Spanned::new(0..0, completions),
            progress_timeout: Spanned::new(0..0, Time(progress)),
        }
    }
}

impl Rdma {
    /// As the transport takes it.
    pub(crate) fn to_settings(&self) -> RdmaConfig {
        RdmaConfig {
            in_capsule_data: self.in_capsule_data.get_ref().narrow(),
            queue_depth: *self.queue_depth.get_ref(),
            shared_receives: *self.shared_receives.get_ref(),
            completions: *self.completions.get_ref(),
            progress: self.progress_timeout.get_ref().0,
            ..RdmaConfig::default()
        }
    }
}

/// When a read ends by the SUCCESS flag of its last data PDU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Success {
    /// Whenever there is nothing else to say, as SPDK does.
    #[default]
    On,
    /// Only on queues without submission queue flow control, as the Linux target does.
    Strict,
    /// Never.
    Off,
}

/// `[[subsystems]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subsystem {
    pub(crate) nqn: Spanned<String>,
    pub(crate) serial: Option<Spanned<String>>,
    pub(crate) model: Option<Spanned<String>>,
    /// Hosts that may connect; unset or empty together with `allow_any_host`: all.
    #[serde(default)]
    pub(crate) hosts: Vec<Spanned<String>>,
    /// Whether every host may connect; the default is yes if `hosts` is empty.
    pub(crate) allow_any_host: Option<bool>,
    /// Whether hosts are told how good each path is.
    #[serde(default)]
    pub(crate) ana_reporting: bool,
    #[serde(default)]
    pub(crate) namespaces: Vec<Spanned<Namespace>>,
    pub(crate) listeners: Vec<Spanned<Listener>>,
}

impl Subsystem {
    /// Whether every host may connect.
    pub(crate) fn allows_any_host(&self) -> bool {
        self.allow_any_host.unwrap_or(self.hosts.is_empty())
    }
}

/// `[[subsystems.namespaces]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Namespace {
    pub(crate) nsid: Spanned<u32>,
    pub(crate) device: Spanned<String>,
    pub(crate) uuid: Option<Uuid>,
    pub(crate) nguid: Option<Uuid>,
    /// Its ANA group; the default is its NSID.
    pub(crate) ana_group: Option<u32>,
    /// The hosts that see it; unset: all that may connect.
    pub(crate) hosts: Option<Vec<Spanned<String>>>,
}

/// `[[subsystems.listeners]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    #[serde(default)]
    pub(crate) transport: Transport,
    pub(crate) address: IpAddr,
    #[serde(default = "io_port")]
    pub(crate) port: u16,
    /// The state of every ANA group there.
    #[serde(default)]
    pub(crate) ana_state: AnaState,
    /// The states of single groups, where they are others.
    #[serde(default)]
    pub(crate) ana_groups: BTreeMap<String, Spanned<AnaState>>,
}

/// `[[referrals]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Referral {
    #[serde(default)]
    pub(crate) transport: Transport,
    pub(crate) address: IpAddr,
    #[serde(default = "discovery_port")]
    pub(crate) port: u16,
    /// What is there; unset: the discovery subsystem.
    pub(crate) nqn: Option<Spanned<String>>,
    /// Whether a connection there has to be a secure one.
    #[serde(default)]
    pub(crate) secure_channel: bool,
}

/// The port that is registered for discovery.
fn discovery_port() -> u16 {
    8009
}

/// The port that is registered for NVMe over Fabrics.
fn io_port() -> u16 {
    4420
}

/// The transports that a listener can be of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    #[default]
    Tcp,
    Rdma,
}

/// `[rpc]`: where clients reach the control plane.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rpc {
    /// The Unix socket, or `none`.
    pub(crate) socket: Option<PathBuf>,
    /// JSON-RPC on a TCP port; unset: not at all.
    pub(crate) tcp: Option<RpcTcp>,
    /// JSON-RPC by HTTP; unset: not at all.
    pub(crate) http: Option<RpcHttp>,
}

/// `[rpc.tcp]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RpcTcp {
    #[serde(default = "loopback")]
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// `[rpc.http]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RpcHttp {
    #[serde(default = "loopback")]
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// A file that holds `user:password`.
    pub(crate) credentials: PathBuf,
}

/// Reachable from this machine alone.
fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

/// `[state]`: what clients configured is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// The directory, or `none`.
    pub(crate) directory: Option<PathBuf>,
}

/// `[logging]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Logging {
    pub(crate) level: Level,
    pub(crate) format: Format,
}

/// The least important lines that are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Something wrong with a configuration file: one line, with the place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConfigError {
    file: PathBuf,
    /// 1-based; `None` if the file could not be read at all.
    line: Option<usize>,
    /// Dotted, as in the file; empty if the text is no TOML.
    key: String,
    problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

impl ConfigError {
    /// Something that is wrong with a file, wherever in it.
    pub(crate) fn of_file(file: &Path, problem: String) -> ConfigError {
        ConfigError { file: file.to_owned(), line: None, key: String::new(), problem }
    }
}

/// A configuration and the text it came from, which later refusals point into.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: PathBuf,
    text: String,
}

impl Source {
    /// An error at a place in the text.
    pub(crate) fn error(
        &self,
        span: std::ops::Range<usize>,
        key: impl Into<String>,
        problem: impl fmt::Display,
    ) -> ConfigError {
        let before = self.text.get(..span.start).unwrap_or_default();
        ConfigError {
            file: self.file.clone(),
            line: Some(before.bytes().filter(|&byte| byte == b'\n').count() + 1),
            key: key.into(),
            problem: problem.to_string(),
        }
    }
}

/// What a daemon without a configuration file is told: nothing.
pub(crate) fn empty() -> (Config, Source) {
    (Config::default(), Source { file: PathBuf::new(), text: String::new() })
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub(crate) fn load(file: &Path) -> Result<(Config, Source), ConfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| ConfigError::of_file(file, format!("cannot be read: {error}")))?;
    let source = Source { file: file.to_owned(), text };
    let config = parse(&source)?;
    check::check(&config, &source)?;
    Ok((config, source))
}

/// Parses the text; names the key of what does not fit.
fn parse<T: DeserializeOwned>(source: &Source) -> Result<T, ConfigError> {
    let refused = |key: String, error: &toml::de::Error| {
        let span = error.span().unwrap_or(0..0);
        source.error(span, key, error.message().replace('\n', " "))
    };
    let deserializer =
        toml::Deserializer::parse(&source.text).map_err(|error| refused(String::new(), &error))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        // `Spanned` passes through serde as a struct with a private field; that is no key of ours.
        let path = error.path().to_string();
        let keys = path.split('.').filter(|key| !key.is_empty() && !key.starts_with("$__"));
        refused(keys.collect::<Vec<_>>().join("."), error.inner())
    })
}

/// An NQN, or why it is none.
pub(crate) fn nqn(source: &Source, key: &str, text: &Spanned<String>) -> Result<Nqn, ConfigError> {
    text.get_ref()
        .parse()
        .map_err(|error: nvme::nqn::NqnError| source.error(text.span(), key, error))
}
