//! What a connection may be waiting for, and for how long.
//!
//! A connection has one entry in its reactor's timers at most, however many commands it has. The
//! entry stands at or before the earliest deadline; when it comes due the deadlines are looked at,
//! and it is set anew for the earliest that is left. A deadline that goes away cancels nothing. As
//! all deadlines of a kind are equally long, hardly any I/O touches a timer.

use std::fmt;

use reactor::Instant;

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// No whole `ICReq`.
    Negotiation,
    /// A PDU was begun and not finished.
    Pdu,
    /// Data asked for by an R2T has not come.
    Data,
    /// The peer does not read.
    Send,
    /// The peer has not closed after the last PDU.
    Close,
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Timeout::Negotiation => "no ICReq came in time",
            Timeout::Pdu => "a PDU was not finished in time",
            Timeout::Data => "data asked for by an R2T did not come in time",
            Timeout::Send => "the host did not read in time",
            Timeout::Close => "the host did not close in time",
        })
    }
}

/// The earlier of two deadlines.
pub(crate) fn earlier(
    one: Option<(Instant, Timeout)>,
    other: Option<(Instant, Timeout)>,
) -> Option<(Instant, Timeout)> {
    match (one, other) {
        (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
        (a, b) => a.or(b),
    }
}
