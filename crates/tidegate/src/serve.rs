//! `tidegate serve`: from a configuration file to a running node, and back down again.
//!
//! The main thread waits for signals and for the node to start, which a thread of its own does. Nothing is created
//! before the whole configuration has been checked, and no host can connect before everything is there.

mod assemble;
mod banner;
mod limits;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::Context;
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use target::configuration::Configuration;
use tidegate::node::Node;
use tracing::{info, warn};

use crate::config::{self, Config, Source};
use crate::failure::Failure;
use crate::logging;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration file in TOML; see docs/configuration.md and the examples in target-config/.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Print what is exported as one line of JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    Serving(Result<Serving, Failure>),
}

/// A node that hosts may connect to.
struct Serving {
    cores: Vec<usize>,
    configuration: Arc<Configuration>,
    node: Node,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A wrong configuration, something that cannot be had, or what was stuck at the end.
pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let (config, source) = config::load(&args.config)?;
    logging::start(&config.logging);
    limits::raise();
    let config = Arc::new(config);
    let (sender, events) = mpsc::channel();
    watch_signals(sender.clone())?;
    // On a thread of its own: it may wait for a port or a lock, and a signal is not to wait for that.
    let wanted = Arc::clone(&config);
    thread::Builder::new()
        .name("start".to_owned())
        .spawn(move || drop(sender.send(Event::Serving(start(&wanted, &source)))))
        .context("cannot start a thread")?;
    let mut serving = None;
    loop {
        match events.recv().context("the start did not come to an end")? {
            Event::Serving(started) => {
                let Serving { cores, configuration, node } = started?;
                // Hosts are served all the same.
                if let Err(error) = banner::print(&config, &cores, &configuration, &node, args.json)
                {
                    warn!("what is exported cannot be printed: {error:#}");
                }
                serving = Some(node);
            }
            Event::Signal(signal) => {
                let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                let Some(node) = serving else {
                    // No host can have connected: there is nothing to finish.
                    info!("{name}: not serving yet");
                    return Ok(());
                };
                let timeout = config.shutdown_timeout();
                info!("{name}: finishing what is in flight, for up to {timeout:?}");
                node.shutdown(timeout)?;
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

/// Opens what the configuration names, and listens.
fn start(config: &Config, source: &Source) -> Result<Serving, Failure> {
    if config.subsystems.is_empty() {
        warn!("the configuration names no subsystem: there is nothing for a host to connect to");
    }
    let cores = config.cores().context("cannot ask which cores are allowed")?;
    // What the target itself refuses is found out before devices are opened or made.
    assemble::configuration(config, source, &assemble::Devices::new())?;
    let devices = assemble::devices(config)?;
    let configuration = assemble::configuration(config, source, &devices)?;
    let node = Node::start(assemble::node(config, &cores))?;
    node.configure(&configuration)?;
    node.listen(&assemble::addresses(config), assemble::PATIENCE)?;
    Ok(Serving { cores, configuration, node })
}
