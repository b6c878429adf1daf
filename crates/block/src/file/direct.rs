//! Whether a medium can be used directly, and the alignment that this needs.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, OFlags, Statx, StatxFlags, fcntl_getfl, fcntl_setfl, statx};
use rustix::io::{Errno, pread};

/// What direct I/O needs, in bytes, powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub(super) memory: u32,
    /// Of offsets and lengths.
    pub(super) offset: u32,
}

/// Alignments to try where the kernel does not say.
const CANDIDATES: [u32; 2] = [512, 4096];

/// Sets the descriptor to direct I/O and says what that needs; `None` if there is no direct I/O
/// here, and then it is left as it was.
pub(super) fn go_direct(file: &OwnedFd) -> rustix::io::Result<Option<Alignment>> {
    let said = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let said = said.filter(|facts| facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    if said.as_ref().is_some_and(|facts| facts.stx_dio_offset_align == 0) {
        return Ok(None);
    }
    let flags = fcntl_getfl(file)?;
    match fcntl_setfl(file, flags | OFlags::DIRECT) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    if let Some(Statx { stx_dio_mem_align: memory, stx_dio_offset_align: offset, .. }) = said {
        return Ok(Some(Alignment { memory: memory.max(1), offset }));
    }
    for align in CANDIDATES {
        match read_aligned(file, align) {
            Ok(()) => return Ok(Some(Alignment { memory: align, offset: align })),
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    fcntl_setfl(file, flags)?;
    Ok(None)
}

/// Reads `align` bytes at offset `align` into memory that is aligned to `align` and not to more.
fn read_aligned(file: &OwnedFd, align: u32) -> rustix::io::Result<()> {
    let size = usize::try_from(align).map_err(|_| Errno::INVAL)?;
    let mut memory = vec![0_u8; size * 4];
    let even = memory.as_ptr().align_offset(size * 2);
    let buffer = memory.get_mut(even + size..even + size * 2).ok_or(Errno::INVAL)?;
    pread(file, buffer, u64::from(align)).map(drop)
}
