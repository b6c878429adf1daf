//! The command line: one definition, from which parsing, help, shell completions and man pages
//! come.

use std::path::PathBuf;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::devices::{self, DevicesArgs};
use crate::discover::{self, DiscoverArgs};
use crate::failure::{Failure, WrongInvocation};
use crate::identify::{self, IdentifyArgs};
use crate::output;
use crate::perf::{self, PerfArgs};
use crate::rpc::{self, RpcArgs};
use crate::serve::{self, ServeArgs};
use crate::top::{self, TopArgs};

/// A userspace NVMe-oF storage node: exports files, block devices and memory to remote hosts.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the storage node until SIGTERM or SIGINT.
    Serve(ServeArgs),
    /// List the NVMe controllers of this machine; hand one to the node or back to the kernel.
    Devices(DevicesArgs),
    /// List the subsystems that a target offers to this host.
    Discover(DiscoverArgs),
    /// Show what a controller and its namespaces say of themselves.
    Identify(IdentifyArgs),
    /// Measure a namespace, and verify what is read.
    Perf(Box<PerfArgs>),
    /// Call a method of a running node.
    Rpc(RpcArgs),
    /// Watch what a running node does: reactors, devices, controllers.
    Top(TopArgs),
    /// Print a completion script for a shell, for its completion folder.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a folder.
    Man(ManArgs),
    /// Read the state that `serve` keeps in a folder; what `serve` does before it opens it.
    #[command(name = serve::VERIFY_STATE, hide = true)]
    VerifyState {
        /// The folder.
        directory: PathBuf,
    },
}

/// Arguments of `man`.
#[derive(Debug, Args)]
struct ManArgs {
    /// The folder, which must exist.
    folder: PathBuf,
}

/// Does what this process's command line says.
///
/// # Errors
/// A wrong invocation, folded into one line, or whatever made the command fail.
pub(crate) fn run() -> Result<(), Failure> {
    match Cli::try_parse() {
        Ok(cli) => cli.command.run(),
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            Ok(output::written(error.print())?)
        }
        Err(error) => Err(WrongInvocation(one_line(&error)).into()),
    }
}

/// clap's message without its usage block: its first paragraph, and where to read more.
fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given: try 'tidegate --help'".to_owned();
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = paragraph.split_whitespace().collect();
    let line = words.join(" ");
    format!("{}: try --help", line.strip_prefix("error: ").unwrap_or(&line))
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever made it fail, as [`Failure::report`] prints it.
    fn run(self) -> Result<(), Failure> {
        match self {
            Command::Serve(args) => serve::run(&args),
            Command::Devices(args) => Ok(devices::run(&args)?),
            Command::Discover(args) => Ok(discover::run(&args)?),
            Command::Identify(args) => Ok(identify::run(&args)?),
            Command::Perf(args) => Ok(perf::run(&args)?),
            Command::Rpc(args) => Ok(rpc::run(&args)?),
            Command::Top(args) => Ok(top::run(&args)?),
            Command::Completions { shell } => {
                // Into memory, since the generator panics where it cannot write.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut script);
                if shell == Shell::Fish {
                    script.extend_from_slice(rpc::fish_methods().as_bytes());
                }
                Ok(output::write(&script)?)
            }
            Command::VerifyState { directory } => serve::verify_state(&directory),
            Command::Man(args) => {
                let folder = args.folder.display();
                if !args.folder.is_dir() {
                    return Err(WrongInvocation(format!(
                        "{folder} is not a folder: create it first"
                    ))
                    .into());
                }
                Ok(clap_mangen::generate_to(Cli::command(), &args.folder).with_context(|| {
                    format!("cannot write the manual pages into {folder}, choose another folder")
                })?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_invocation_is_one_line() {
        for arguments in [
            &["tidegate"][..],
            &["tidegate", "serve", "--reseed"],
            &["tidegate", "serve", "--confg", "x"],
            &["tidegate", "nonsense"],
        ] {
            let line = one_line(&Cli::try_parse_from(arguments).unwrap_err());
            assert!(
                !line.contains('\n') && line.ends_with("--help") || line.ends_with("--help'"),
                "{line}"
            );
        }
    }
}
