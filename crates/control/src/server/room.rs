//! How many bytes of answers wait for one connection's client to take them.
//!
//! How large an answer is shows when it is there. So a call begins only while half of the room is free, and an answer
//! that has no room then (many large ones have been under way at once) is given up for an error that says so. One
//! answer alone goes whatever its size, and a small one always does: what it tells of has perhaps been changed.

use std::sync::Arc;

use tokio::sync::watch;

use crate::jsonrpc;

/// Up to this many bytes an answer is small.
const SMALL: usize = 4096;

/// The room of one connection.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    taken: watch::Sender<usize>,
}

/// What one message's answer takes of it; free again when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    room: Arc<Room>,
    taken: usize,
}

impl Room {
    pub(super) fn new(most: usize) -> Arc<Room> {
        Arc::new(Room { most, taken: watch::Sender::new(0) })
    }

    /// For an answer that is still to come.
    pub(super) fn ticket(self: &Arc<Room>) -> Ticket {
        Ticket { room: Arc::clone(self), taken: 0 }
    }

    fn is_free(&self, taken: usize) -> bool {
        taken <= self.most / 2
    }

    /// Waits until half of it is free.
    pub(super) async fn free(&self) {
        // It cannot be closed: we have the other end.
        let _ = self.taken.subscribe().wait_for(|taken| self.is_free(*taken)).await;
    }
}

impl jsonrpc::Room for Ticket {
    fn is_full(&self) -> bool {
        !self.room.is_free(*self.room.taken.borrow())
    }

    fn take(&mut self, bytes: usize) -> bool {
        let mut fits = false;
        self.room.taken.send_if_modified(|taken| {
            let after = taken.saturating_add(bytes);
            fits = bytes <= SMALL || *taken == 0 || after <= self.room.most;
            if fits {
                *taken = after;
            }
            // Nobody waits for less room.
            false
        });
        if fits {
            self.taken = self.taken.saturating_add(bytes);
        }
        fits
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.room.taken.send_if_modified(|taken| {
            let was_free = self.room.is_free(*taken);
            *taken = taken.saturating_sub(self.taken);
            !was_free && self.room.is_free(*taken)
        });
    }
}
