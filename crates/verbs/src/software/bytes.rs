//! The only place where the software provider touches memory.

use std::ptr;

use super::world::{Pieces, Send};
use crate::sys;

impl Send {
    /// The peer's memory that it names, as one piece.
    pub(crate) fn at_remote(&self) -> Pieces {
        let length = u32::try_from(self.pieces.length()).unwrap_or(u32::MAX);
        let mut pieces = Pieces { count: 1, ..Pieces::default() };
        if let Some(first) = pieces.all.first_mut() {
            *first = sys::Sge { addr: self.remote, length, lkey: self.key };
        }
        pieces
    }
}

/// Copies the data of a send, inline or not, to where it belongs. `to` was found to be registered just now.
pub(crate) fn transfer(send: &Send, to: &Pieces) {
    if !send.is_inline() {
        copy(&send.pieces, to);
        return;
    }
    let mut from = Pieces { count: 1, ..Pieces::default() };
    if let Some(first) = from.all.first_mut() {
        let length = u32::try_from(send.pieces.length()).unwrap_or(u32::MAX);
        let addr = send.inline.as_ptr().expose_provenance() as u64;
        *first = sys::Sge { addr, length, lkey: 0 };
    }
    copy(&from, to);
}

/// Copies all of `from` to the front of `to`, which has room for it. Both were found to be registered just now, under the
/// lock under which they could be taken back.
pub(crate) fn copy(from: &Pieces, to: &Pieces) {
    let mut targets = to.used().iter();
    let mut target = sys::Sge::default();
    for source in from.used() {
        let mut source = *source;
        while source.length > 0 {
            if target.length == 0 {
                match targets.next() {
                    Some(&next) => target = next,
                    None => return,
                }
                continue;
            }
            let count = source.length.min(target.length);
            let address = |addr: u64| usize::try_from(addr).unwrap_or(0);
            // SAFETY: both pieces lie inside regions that are registered while the world is locked, or in a send's own inline
            // data; whoever registered a region keeps it mapped until it is taken back. Nobody has a reference to these
            // bytes: what is posted is lent, none is given out while a device may write it, and what a peer names lies in an arena
            // of which none ever is. The two may overlap where a peer is the queue pair itself.
            unsafe {
                let from = ptr::with_exposed_provenance::<u8>(address(source.addr));
                let to = ptr::with_exposed_provenance_mut::<u8>(address(target.addr));
                ptr::copy(from, to, count as usize);
            }
            for piece in [&mut source, &mut target] {
                piece.addr += u64::from(count);
                piece.length -= count;
            }
        }
    }
}
