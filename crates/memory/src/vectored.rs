//! System calls on a socket or file that gather from, or scatter into, segments and plain bytes.
//!
//! They are here, not with the transports, because an I/O vector over lent memory needs raw
//! pointers. Non-blocking; at most [`MAX_PIECES`] pieces a call, no allocation.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::slice;

use rustix::net::{SendAncillaryBuffer, SendFlags};

use crate::Segment;

/// The most pieces that one call takes; the rest waits for the next one.
pub const MAX_PIECES: usize = 128;

/// Something to send.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Bytes of our own: a header, a digest.
    Bytes(&'a [u8]),
    /// `len` bytes of a segment from `offset`.
    Part(&'a Segment, usize, usize),
}

/// Somewhere to receive into.
#[derive(Debug)]
pub enum Space<'a> {
    /// Bytes of our own.
    Bytes(&'a mut [u8]),
    /// `len` bytes of a segment from `offset`; none of a lease, which cannot be written.
    Part(&'a Segment, usize, usize),
}

/// Sends the pieces in order, as far as the socket takes them; the number of bytes it took.
///
/// # Errors
/// The system's: `WouldBlock` when the socket takes nothing now.
pub fn send<'a>(
    socket: BorrowedFd<'_>,
    pieces: impl IntoIterator<Item = Piece<'a>>,
) -> io::Result<usize> {
    let mut slices = [const { MaybeUninit::<IoSlice<'_>>::uninit() }; MAX_PIECES];
    let mut count = 0;
    for (slot, piece) in slices.iter_mut().zip(pieces) {
        let bytes: &[u8] = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Part(segment, offset, len) => {
                let len = len.min(segment.len().saturating_sub(offset));
                let offset = offset.min(segment.len());
                // SAFETY: the range was clipped to the segment, which lives for the whole call.
                // The slice goes only to the system call, which reads the bytes without assuming
                // that they hold still.
                unsafe { slice::from_raw_parts(segment.as_ptr().add(offset), len) }
            }
        };
        slot.write(IoSlice::new(bytes));
        count += 1;
    }
    // SAFETY: each of the first `count` slots was just written, in order.
    let slices = unsafe { slice::from_raw_parts(slices.as_ptr().cast::<IoSlice<'_>>(), count) };
    let mut ancillary = SendAncillaryBuffer::default();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(socket, slices, &mut ancillary, flags)?)
}

/// Receives into the spaces in order; the number of bytes that came, 0 at the end of the stream.
///
/// # Errors
/// The system's: `WouldBlock` when nothing is there (the descriptor is to be non-blocking).
pub fn receive(socket: BorrowedFd<'_>, spaces: &mut [Space<'_>]) -> io::Result<usize> {
    let mut slices = [const { MaybeUninit::<IoSliceMut<'_>>::uninit() }; MAX_PIECES];
    let count = spaces.len().min(MAX_PIECES);
    for (slot, space) in slices.iter_mut().zip(spaces.iter_mut()) {
        let bytes: &mut [u8] = match space {
            Space::Bytes(bytes) => bytes,
            Space::Part(segment, offset, len) => {
                let room = if segment.is_lease() { 0 } else { segment.len() };
                let len = (*len).min(room.saturating_sub(*offset));
                let offset = (*offset).min(room);
                // SAFETY: the range was clipped to the segment, which lives for the whole call.
                // The slice goes only to the system call, which writes it; on this thread nothing
                // else runs meanwhile, so no view of the buffer is open. It is empty for a lease.
                unsafe { slice::from_raw_parts_mut(segment.as_mut_ptr().add(offset), len) }
            }
        };
        slot.write(IoSliceMut::new(bytes));
    }
    // SAFETY: the first `count` slots were just written: `zip` ran over `count` of both.
    let slices =
        unsafe { slice::from_raw_parts_mut(slices.as_mut_ptr().cast::<IoSliceMut<'_>>(), count) };
    Ok(rustix::io::readv(socket, slices)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, ArenaConfig, Hugepages, SLAB_SIZE};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn gathers_and_scatters_in_order() {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(SLAB_SIZE).unwrap();
        let mut buffer = pool.take(10).unwrap();
        buffer.bytes_mut().unwrap().copy_from_slice(b"0123456789");
        let segment = buffer.segment(0, 10).unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        right.set_nonblocking(true).unwrap();
        let pieces = [Piece::Bytes(b"ab"), Piece::Part(&segment, 3, 4), Piece::Bytes(b"c")];
        assert_eq!(send(left.as_fd(), pieces).unwrap(), 7);
        let mut head = [0; 3];
        let into = buffer.segment(0, 10).unwrap();
        let mut spaces = [Space::Bytes(&mut head), Space::Part(&into, 6, 100)];
        assert_eq!(receive(right.as_fd(), &mut spaces).unwrap(), 7);
        assert_eq!(&head, b"ab3");
        drop((segment, into));
        assert_eq!(buffer.bytes_mut().unwrap(), b"012345456c");
        let error = receive(right.as_fd(), &mut [Space::Bytes(&mut head)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
