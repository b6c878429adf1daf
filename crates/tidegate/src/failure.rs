//! How a command fails: one line, and an exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::ConfigError;

/// A wrong invocation: the user has to change the command line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongInvocation(pub(crate) String);

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.into())
    }
}

impl Failure {
    /// Prints the one line; the status to exit with, which tells what there is to tell if standard error takes nothing.
    pub(crate) fn report(&self) -> ExitCode {
        let _ = writeln!(io::stderr().lock(), "tidegate: {}", line(&self.0));
        if self.0.is::<WrongInvocation>() || self.0.is::<ConfigError>() {
            ExitCode::from(2)
        } else {
            ExitCode::FAILURE
        }
    }
}

/// The error in one line: causes follow their effects, separated by colons; no layer repeats the one below.
pub(crate) fn line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
