//! R2Ts that are outstanding, by transfer tag.
//!
//! A command has one R2T, for all of its data, sent when it holds a buffer for all of it. The host
//! answers with any number of `H2CData`, in order. So a transfer is a tag and a count of bytes, and
//! MAXR2T is kept whatever the host says.

use nvme::tcp::{Flags, H2cData};
use reactor::Instant;
use slab::Slab;
use target::RequestId;

use super::terminate::Breach;

/// Data that a command waits for.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// The command; `None` once it was answered without waiting for its data.
    pub(crate) request: Option<RequestId>,
    cid: u16,
    length: u32,
    received: u32,
    /// A data digest was wrong.
    damaged: bool,
    deadline: Instant,
}

/// The transfers of a connection.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    table: Slab<Transfer>,
}

/// What an `H2CData` is found to be.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) ttag: u16,
    pub(crate) request: Option<RequestId>,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// A transfer that has all its data.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) request: Option<RequestId>,
    pub(crate) damaged: bool,
}

impl Transfers {
    /// Whether the host owes no data.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Opens a transfer; its tag, or `None` if there are no more tags.
    pub(crate) fn open(
        &mut self,
        request: RequestId,
        cid: u16,
        length: u32,
        deadline: Instant,
    ) -> Option<u16> {
        let ttag = u16::try_from(self.table.vacant_key()).ok()?;
        let request = Some(request);
        let transfer = Transfer { request, cid, length, received: 0, damaged: false, deadline };
        self.table.insert(transfer);
        Some(ttag)
    }

    /// Whether this `H2CData` with `data` bytes of data may come now, and where it belongs.
    pub(crate) fn place(&self, pdu: &H2cData, data: u32) -> Result<Placement, Breach> {
        let ttag = pdu.ttag.get();
        let transfer = self.table.get(usize::from(ttag)).ok_or(Breach::TransferTag(ttag))?;
        if pdu.cccid.get() != transfer.cid {
            return Err(Breach::CommandId(transfer.cid));
        }
        let (offset, length) = (pdu.datao.get(), pdu.datal.get());
        if length == 0 || length != data {
            return Err(Breach::DataLength(length));
        }
        if offset != transfer.received {
            return Err(Breach::DataOffset(offset));
        }
        let left = transfer.length.saturating_sub(transfer.received);
        if length > left {
            return Err(Breach::TooMuchData);
        }
        if pdu.header.flags().contains(Flags::LAST) != (length == left) {
            return Err(Breach::LastFlag);
        }
        Ok(Placement { ttag, request: transfer.request, offset, length })
    }

    /// `length` bytes that were placed have come; the transfer if that was all of it.
    pub(crate) fn received(&mut self, ttag: u16, length: u32, damaged: bool) -> Option<Finished> {
        let transfer = self.table.get_mut(usize::from(ttag))?;
        transfer.received = transfer.received.saturating_add(length);
        transfer.damaged |= damaged;
        if transfer.received < transfer.length {
            return None;
        }
        let transfer = self.table.try_remove(usize::from(ttag))?;
        Some(Finished { request: transfer.request, damaged: transfer.damaged })
    }

    /// The request was answered early: its data, if it still comes, goes nowhere.
    pub(crate) fn forget(&mut self, request: RequestId) {
        for (_, transfer) in &mut self.table {
            if transfer.request == Some(request) {
                transfer.request = None;
            }
        }
    }

    /// The earliest deadline of a command that waits for data.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self.table.iter().filter(|(_, transfer)| transfer.request.is_some());
        waiting.map(|(_, transfer)| transfer.deadline).min()
    }

    /// Frees the tags of commands answered early whose data was due by `now`: a host that was told
    /// the answer need not have sent it.
    pub(crate) fn retire(&mut self, now: Instant) {
        self.table.retain(|_, transfer| transfer.request.is_some() || transfer.deadline > now);
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
    }
}
