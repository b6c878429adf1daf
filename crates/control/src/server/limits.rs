//! What a client can have at most.

use std::time::Duration;

/// Bounds on what one server's clients can make it hold. They apply to each socket by itself, so that a crowd
/// on one does not shut out the others.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one message, and of all messages that a connection has under way.
    pub message: usize,
    /// Levels of brackets; 64 at most.
    pub nesting: u32,
    /// Messages under way on one connection, from their arrival until the client has taken the answer. Further ones wait in the socket.
    pub in_flight: u32,
    /// Bytes of answers that one connection's client has not taken. No further call is begun while there are half as many.
    pub answers: usize,
    /// Connections. For a further one, that which has waited longest for an answer without being listened to is closed;
    /// if there is none, the further one is told so and closed.
    pub connections: usize,
    /// Calls of one method under way, on all sockets together; further ones fail. Only a method that hangs gets there,
    /// and the others can still be called.
    pub alike: u32,
    /// How long a connection may stay silent with nothing under way, take to send one message, or leave an answer untaken.
    pub idle: Duration,
    /// How long answers have to leave when the server stops.
    pub farewell: Duration,
}

impl Default for Limits {
    /// 8 MiB are ten times the configuration of 1,000 subsystems with a namespace, a host and a listener each,
    /// indented; SPDK takes less than a hundredth of that. 1,024 are what Longhorn's client has in flight at most.
    /// 32 MiB are more
    /// than what there is to say of 10,000 devices. 256 connections are four times SPDK's. 4,096 calls are what four of Longhorn's clients can ask for. Ten minutes are far above the interval of any client that
    /// keeps a connection for polling, and short enough for those that forget to close.
    fn default() -> Limits {
        Limits {
            message: 8 << 20,
            nesting: 64,
            in_flight: 1024,
            answers: 32 << 20,
            connections: 256,
            alike: 4096,
            idle: Duration::from_mins(10),
            farewell: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// How many of the `in_flight` a message of this length counts for, so that their bytes are bounded, too.
    pub(super) fn weight(&self, length: usize) -> u32 {
        let most = self.in_flight.max(1);
        let unit = self.message.div_ceil(usize::try_from(most).unwrap_or(usize::MAX)).max(1);
        u32::try_from(length.div_ceil(unit)).unwrap_or(most).clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_small_messages_as_said_or_one_of_the_largest() {
        let limits = Limits::default();
        assert_eq!(limits.weight(0), 1);
        assert_eq!(limits.weight(8192), 1);
        assert_eq!(limits.weight(8193), 2);
        assert_eq!(limits.weight(8 << 20), 1024);
        let odd = Limits { message: 1000, in_flight: 7, ..limits };
        assert_eq!((odd.weight(1000), odd.weight(2000), odd.weight(143)), (7, 7, 1));
        assert_eq!(Limits { in_flight: 0, message: 0, ..limits }.weight(1), 1);
    }
}
