//! Data that the target asks for: R2T out, `H2CData` in.

use nvme::tcp::{H2cData, Layout, crc32c};
use target::RequestId;
use zerocopy::FromBytes;

use super::input::Arriving;
use super::output::Entry;
use super::terminate::{CloseReason, Violation};
use super::{Connection, Core, Step, Stop, Turn, read_digest, to_usize, verdict};

impl Connection {
    /// The request holds a buffer for `length` bytes of data: asks for them.
    pub(super) fn ask<C: Core>(&mut self, request: RequestId, length: u32, turn: &mut Turn<'_, C>) {
        if self.is_ending() {
            return;
        }
        let deadline = turn.now + turn.config.timeouts.data;
        let cid = turn.command_ids.get(request);
        match self.transfers.open(request, cid, length, deadline) {
            Some(ttag) => {
                self.output.push(Entry::Request { ttag, cid, length });
                self.wake_by(deadline);
            }
            None => self.end(CloseReason::Inconsistent("no transfer tag is left"), turn),
        }
    }

    /// Takes the header of an `H2CData`, and from then on its data.
    pub(super) fn data_header<C: Core>(&mut self, layout: Layout, turn: &mut Turn<'_, C>) -> Step {
        let head = self.head(&layout, layout.data_offset)?;
        let Ok((pdu, _)) = H2cData::ref_from_prefix(head) else { return Err(Stop::Starved) };
        let header = head.get(..to_usize(layout.header_length)).unwrap_or(head);
        let placement = self
            .transfers
            .place(pdu, layout.data_length)
            .map_err(|breach| Violation::new(breach, header))?;
        let into = placement
            .request
            .and_then(|request| turn.core.segment(request, placement.offset, placement.length));
        self.input.consume(to_usize(layout.data_offset));
        self.input.begin_data(Arriving {
            ttag: placement.ttag,
            into,
            length: to_usize(placement.length),
            done: 0,
            digest: layout.data_digest,
        });
        self.data(turn)
    }

    /// Takes what has come of the data; done with the PDU when all of it and its digest are there.
    pub(super) fn data<C: Core>(&mut self, turn: &mut Turn<'_, C>) -> Step {
        let (arrived, copied) = self.input.take_data();
        turn.counters.bytes_copied.add_len(copied);
        let Some(arriving) = arrived else { return Err(Stop::Starved) };
        let mut damaged = false;
        if arriving.digest {
            let Some(digest) = read_digest(self.input.bytes()) else {
                self.input.begin_data(arriving);
                return Err(Stop::Starved);
            };
            self.input.consume(4);
            let found = arriving.into.as_ref().map(|segment| segment.view(crc32c));
            damaged = found.is_some_and(|found| found != Some(digest));
            if damaged {
                turn.counters.data_digest_errors.add(1);
            }
        }
        let length = u32::try_from(arriving.length).unwrap_or(u32::MAX);
        // The loan ends before the target hears that the data is there.
        let ttag = arriving.ttag;
        drop(arriving);
        if let Some(finished) = self.transfers.received(ttag, length, damaged)
            && let Some(request) = finished.request
        {
            turn.core.data_received(request, verdict(finished.damaged));
        }
        Ok(())
    }
}
