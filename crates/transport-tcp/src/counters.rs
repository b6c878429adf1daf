//! What the transport counts on one reactor.

use nvme::tcp::FatalErrorStatus;

use crate::deadline::Timeout;

reactor::counters! {
    /// Connections accepted by a listener of this reactor.
    accepted,
    /// Connections that this reactor began to serve.
    opened,
    /// Connections that it has ceased to serve.
    closed,
    /// Connections closed at once because there are as many as allowed.
    refused,
    /// Times accepting paused because descriptors or memory had run out.
    accept_pauses,
    /// Times a connection had to wait for the next turn because this one was full.
    turns_waited,
    /// PDUs received whole.
    pdus_received,
    /// PDUs handed to the socket.
    pdus_sent,
    /// Command capsules among the PDUs received.
    commands,
    /// Bytes received.
    bytes_received,
    /// Bytes sent.
    bytes_sent,
    /// System calls that received.
    receive_calls,
    /// Those among them that found nothing.
    receive_calls_empty,
    /// System calls that sent.
    send_calls,
    /// Those among them that the socket took only in part, or not at all.
    send_calls_short,
    /// Bytes copied from a receive buffer into a request's buffer.
    bytes_copied,
    /// Commands that the target had no room for at first.
    commands_held,
    /// Capsules set aside so that data behind them could come in.
    capsules_parked,
    /// Termination requests sent: invalid PDU header field (01h).
    terminations_header_field,
    /// Termination requests sent: PDU sequence error (02h).
    terminations_sequence,
    /// Termination requests sent: header digest error (03h).
    terminations_header_digest,
    /// Termination requests sent: data transfer out of range (04h).
    terminations_range,
    /// Termination requests sent: data transfer limit exceeded (05h).
    terminations_limit,
    /// Termination requests sent: unsupported parameter (06h).
    terminations_parameter,
    /// Termination requests received.
    terminations_received,
    /// PDUs whose data digest was wrong.
    data_digest_errors,
    /// Connections closed: no ICReq in time.
    timeouts_negotiation,
    /// Connections closed: a PDU was begun and not finished in time.
    timeouts_pdu,
    /// Connections closed: data asked for by an R2T did not come in time.
    timeouts_data,
    /// Connections closed: the peer did not read in time what we sent.
    timeouts_send,
    /// Connections closed: the peer did not close in time after the last PDU.
    timeouts_close,
}

impl Counters {
    pub(crate) fn termination(&self, status: FatalErrorStatus) {
        match status {
            FatalErrorStatus::PduSequence => &self.terminations_sequence,
            FatalErrorStatus::HeaderDigest => &self.terminations_header_digest,
            FatalErrorStatus::DataTransferOutOfRange => &self.terminations_range,
            FatalErrorStatus::DataTransferLimit => &self.terminations_limit,
            FatalErrorStatus::UnsupportedParameter => &self.terminations_parameter,
            FatalErrorStatus::InvalidHeaderField | FatalErrorStatus::Unknown(_) => {
                &self.terminations_header_field
            }
        }
        .add(1);
    }

    pub(crate) fn timeout(&self, timeout: Timeout) {
        match timeout {
            Timeout::Negotiation => &self.timeouts_negotiation,
            Timeout::Pdu => &self.timeouts_pdu,
            Timeout::Data => &self.timeouts_data,
            Timeout::Send => &self.timeouts_send,
            Timeout::Close => &self.timeouts_close,
        }
        .add(1);
    }
}
