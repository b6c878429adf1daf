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

/// The error in one line: causes follow their effects, separated by colons, but for a cause that the line has already told.
/// Some errors have the text of their cause within their own, to put a remedy behind it.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open disk.img: {source}; raise the limit")]
    struct TellsItsCause {
        source: io::Error,
    }

    #[test]
    fn every_layer_is_told_once() {
        let source = io::Error::from_raw_os_error(24);
        let text = source.to_string();
        let error = Err::<(), _>(TellsItsCause { source }).context("device disk").unwrap_err();
        assert_eq!(
            line(&error),
            format!("device disk: cannot open disk.img: {text}; raise the limit")
        );
        let error = anyhow::Error::from(io::Error::from_raw_os_error(2)).context("one\ntwo");
        assert_eq!(line(&error), "one two: No such file or directory (os error 2)");
    }
}
