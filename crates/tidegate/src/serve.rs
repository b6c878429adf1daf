//! `tidegate serve`: from a configuration file to a running node, and back down again.
//!
//! Runs on the main thread. Nothing is created before the whole configuration has been checked.

mod assemble;
mod banner;
mod limits;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidegate::node::Node;
use tracing::info;

use crate::config;
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

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A wrong configuration, something that cannot be had, or what was stuck at the end.
pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let (config, source) = config::load(&args.config)?;
    logging::start(&config.logging);
    limits::raise();
    // Before any thread starts, so that none of them takes the signal instead.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;

    let cores = assemble::cores(&config)?;
    // What the target itself refuses is found out before devices are opened or made.
    assemble::configuration(&config, &source, &assemble::Devices::new())?;
    let devices = assemble::devices(&config)?;
    let configuration = assemble::configuration(&config, &source, &devices)?;
    let node = Node::start(assemble::node(&config, &cores))?;
    node.configure(&configuration)?;
    for address in assemble::addresses(&config) {
        node.listen(address, assemble::PATIENCE)?;
    }
    banner::print(&config, &cores, &configuration, &node, args.json)?;

    let signal = signals.forever().next();
    let name = if signal == Some(SIGINT) { "SIGINT" } else { "SIGTERM" };
    let timeout = config.shutdown_timeout();
    info!("{name}: finishing what is in flight, for up to {timeout:?}");
    node.shutdown(timeout)?;
    info!("all finished and flushed");
    Ok(())
}
