//! `tidegate`: the storage node daemon and the tools that go with it, in one binary.
//!
//! Exit status: 0, or 1 for a failure, or 2 for a wrong invocation or configuration. Every failure
//! is one line on standard error that names the thing and the remedy; where a command that was understood is to print JSON, its
//! failure is an object with an `error` as well.

mod cli;
mod config;
mod connection;
mod devices;
mod discover;
mod failure;
mod identify;
mod logging;
mod output;
mod perf;
mod rpc;
mod serve;
mod top;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
