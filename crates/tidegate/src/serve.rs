//! `tidegate serve`: from a configuration file and the remembered state to a running node, and back down again.
//!
//! The main thread waits for signals and for the node to start, which a thread of its own does. Nothing is created
//! before the whole configuration file has been checked, and no host can connect before everything is there.

mod assemble;
mod banner;
mod json;
mod limits;
mod objects;
mod rpc;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{ArgGroup, Args};
use control::controllers::Slots;
use control::logs::Logs;
use control::objects::Objects;
use control::plane::{Libraries, Plane};
use node::Node;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use target::configuration::Configuration;
use tracing::{info, warn};
use verbs::Library;

use self::rpc::Rpc;
use self::state::Seeded;
pub(crate) use self::state::{VERIFY as VERIFY_STATE, verify as verify_state};
use crate::config::{self, Config};
use crate::failure::Failure;
use crate::logging;

/// How long what is in use (a port, a file, the state) is waited for: after `kill -9` of an earlier daemon the kernel
/// holds it for a while, and its last writes may still be landing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("seed").multiple(true))]
pub(crate) struct ServeArgs {
    /// Configuration file in TOML; see docs/configuration.md and the examples in target-config/. Without one, the
    /// node serves what it remembers, or nothing until a client of its RPC socket says what.
    #[arg(long, short, value_name = "FILE", group = "seed")]
    config: Option<PathBuf>,
    /// Devices and subsystems from a JSON file, as `save_config` or SPDK's writes it. A file of --config may then
    /// say everything but `[controllers]`, `[devices]`, `[[subsystems]]` and `[[referrals]]`.
    #[arg(long, value_name = "FILE", group = "seed")]
    json: Option<PathBuf>,
    /// Answer JSON-RPC on this Unix socket; `none`: on no socket [default: rpc.socket of the file, else /var/tmp/tidegate.sock].
    #[arg(long, value_name = "PATH")]
    rpc_socket: Option<PathBuf>,
    /// Keep what is configured in this directory; `none`: forget it with the process [default: state.directory of the
    /// file, else /var/lib/tidegate for root, ~/.local/state/tidegate for others].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Replace what is remembered by what the files say.
    #[arg(long, requires = "seed")]
    reseed: bool,
    /// How to say what is exported: a text for people, or one line of JSON.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    banner: banner::Format,
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    Serving(Result<Box<Serving>, Failure>),
}

/// A node that hosts may connect to.
struct Serving {
    cores: Vec<usize>,
    configuration: Arc<Configuration>,
    plane: Arc<Plane>,
    rpc: Rpc,
    /// Where the state is kept; None: nowhere.
    state: Option<PathBuf>,
}

impl Serving {
    /// Finishes what is in flight, all within `timeout`.
    fn end(self, timeout: Duration) -> Result<(), Failure> {
        let until = Instant::now() + timeout;
        self.rpc.stop();
        // What is held on purpose would be held for longer than that.
        self.plane.retire();
        self.plane.node().shutdown(until.saturating_duration_since(Instant::now()))?;
        // Last: nothing is in them any more.
        self.plane.detach_controllers();
        Ok(())
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A wrong configuration, something that cannot be had, or what was stuck at the end.
pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let (mut config, source) = match &args.config {
        Some(path) => config::load(path)?,
        None => config::empty(),
    };
    let file = match &args.json {
        Some(path) => json::objects(path, &config, &source)?,
        None => objects::of(&config, &source)?,
    };
    // What the command line says goes before what the file says.
    config.rpc.socket = args.rpc_socket.clone().or(config.rpc.socket);
    config.state.directory = args.state.clone().or(config.state.directory);
    let logs = logging::start(&config.logging);
    limits::raise();
    let (config, reseed) = (Arc::new(config), args.reseed);
    let (sender, events) = mpsc::channel();
    watch_signals(sender.clone())?;
    // On a thread of its own: it may wait for a port or a lock, and a signal is not to wait for that.
    let wanted = Arc::clone(&config);
    thread::Builder::new()
        .name("start".to_owned())
        .spawn(move || drop(sender.send(Event::Serving(start(&wanted, file, reseed, logs)))))
        .context("cannot start a thread")?;
    let mut serving = None;
    loop {
        match events.recv().context("the start did not come to an end")? {
            Event::Serving(started) => {
                let started = started?;
                // Hosts are served all the same.
                if let Err(error) = banner::print(&config, &started, args.banner) {
                    warn!("what is exported cannot be printed: {error:#}");
                }
                serving = Some(started);
            }
            Event::Signal(signal) => {
                let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                let Some(serving) = serving else {
                    // No host can have connected: there is nothing to finish.
                    info!("{name}: not serving yet");
                    return Ok(());
                };
                let timeout = config.shutdown_timeout();
                info!("{name}: finishing what is in flight, for up to {timeout:?}");
                serving.end(timeout)?;
                info!("all finished and flushed");
                return Ok(());
            }
        }
    }
}

/// Passes signals on. Called before any other thread starts, so that none of them takes one instead.
fn watch_signals(events: Sender<Event>) -> Result<(), Failure> {
    let wanted = [SIGTERM, SIGINT, SIGXFSZ];
    let mut signals = Signals::new(wanted).context("cannot wait for signals")?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            // A write beyond the limit of file sizes fails like any other; the signal is not to end the process.
            for signal in signals.forever().filter(|signal| *signal != SIGXFSZ) {
                if events.send(Event::Signal(signal)).is_err() {
                    break;
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Opens what the state remembers or the file names, and listens.
fn start(
    config: &Config,
    file: Objects,
    reseed: bool,
    logs: Logs,
) -> Result<Box<Serving>, Failure> {
    let cores = config.cores().context("cannot ask which cores are allowed")?;
    let sockets = rpc::Sockets::bind(&config.rpc)?;
    let Seeded { directory, store, state, remembered } = state::open(config, file, reseed)?;
    if state.subsystems.is_empty() && !rpc::has_sockets(&config.rpc) {
        warn!("the configuration names no subsystem: there is nothing for a host to connect to");
    }
    let node = Node::start(assemble::node(config, &cores))?;
    let libraries = Libraries::new(Library::open);
    let plane =
        Plane::new(node, store, assemble::settings(config), libraries, Slots::default(), logs);
    let configuration = plane.begin(state, PATIENCE, remembered)?;
    let rpc = Rpc::start(sockets, &plane)?;
    Ok(Box::new(Serving { cores, configuration, plane, rpc, state: directory }))
}
