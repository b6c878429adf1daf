//! The data of a command in the words of NVMe/RDMA.

use memory::Segment;
use nvme::sgl::SglDescriptor;
use nvme::{Sgl, Sqe};
use verbs::RegisteredArena;
use zerocopy::IntoBytes;

/// Last Segment, sub type Offset: descriptors in the capsule.
const LAST_SEGMENT_IN_CAPSULE: u8 = 0x31;

fn descriptor(memory: &RegisteredArena, segment: &Segment, invalidate: bool) -> SglDescriptor {
    let remote = memory.remote(segment).unwrap();
    let length = u32::try_from(segment.len()).unwrap();
    Sgl::Keyed { address: remote.address, length, key: remote.key, invalidate }.into()
}

/// The command with its data in one piece of the host's memory.
pub fn keyed(sqe: Sqe, memory: &RegisteredArena, segment: &Segment, invalidate: bool) -> Vec<u8> {
    let mut sqe = sqe.with_sgl(Sgl::Keyed { address: 0, length: 0, key: 0, invalidate });
    sqe.dptr = descriptor(memory, segment, invalidate);
    sqe.as_bytes().to_vec()
}

/// The command with its data in several pieces of the host's memory, whose descriptors lie `offset` bytes behind it.
pub fn listed(
    sqe: Sqe,
    memory: &RegisteredArena,
    segments: &[Segment],
    offset: usize,
    invalidate: bool,
) -> Vec<u8> {
    let mut sqe = sqe.with_sgl(Sgl::Other(LAST_SEGMENT_IN_CAPSULE));
    sqe.dptr.address = (offset as u64).into();
    let length = u32::try_from(segments.len() * 16).unwrap();
    sqe.dptr.specific[..4].copy_from_slice(&length.to_le_bytes());
    let mut capsule = sqe.as_bytes().to_vec();
    capsule.resize(64 + offset, 0xEE);
    for segment in segments {
        capsule.extend(descriptor(memory, segment, invalidate).as_bytes());
    }
    capsule
}

/// The command with its data `offset` bytes behind it.
pub fn in_capsule(sqe: Sqe, data: &[u8], offset: usize) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let sqe = sqe.with_sgl(Sgl::InCapsule { offset: offset as u64, length });
    let mut capsule = sqe.as_bytes().to_vec();
    capsule.resize(64 + offset, 0xEE);
    capsule.extend(data);
    capsule
}
