//! The duty to end a command exactly once.
//!
//! Each request carries one [`Obligation`] from the moment its command was taken. It is consumed either
//! by answering ([`Obligation::answered`]) or, the one other way out, because the queue that would carry
//! the answer is gone ([`Obligation::excused`]). A code path that forgets the command drops the token:
//! a panic under debug assertions, a counted and logged event in production. Answering twice cannot be
//! written, because the token is moved out of the request by the first answer.

use std::sync::atomic::{AtomicU64, Ordering};

static FORGOTTEN: AtomicU64 = AtomicU64::new(0);

/// Commands that were forgotten since the process started. Anything but zero is a defect.
pub fn forgotten_commands() -> u64 {
    FORGOTTEN.load(Ordering::Relaxed)
}

/// The duty to end one command.
#[derive(Debug)]
#[must_use = "every command is ended exactly once"]
pub(crate) struct Obligation(());

impl Obligation {
    /// A command was taken.
    pub(crate) const fn new() -> Self {
        Self(())
    }

    /// Its completion goes to the transport.
    pub(crate) fn answered(self) {
        std::mem::forget(self);
    }

    /// Nobody is left to answer.
    pub(crate) fn excused(self) {
        std::mem::forget(self);
    }
}

impl Drop for Obligation {
    fn drop(&mut self) {
        FORGOTTEN.fetch_add(1, Ordering::Relaxed);
        if std::thread::panicking() {
            return;
        }
        tracing::error!("a command was dropped without an answer; this is a defect of the target");
        debug_assert!(false, "a command was dropped without an answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "without an answer")]
    fn forgetting_a_command_is_noticed() {
        drop(Obligation::new());
    }

    #[test]
    fn an_answer_ends_it() {
        Obligation::new().answered();
        Obligation::new().excused();
    }
}
