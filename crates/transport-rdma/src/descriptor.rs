//! Where the data of a command is: the descriptor in its SQE, and those that it may lead to.
//!
//! NVMe Base 2.0c, section 4.1.2 "Scatter Gather Lists"; NVMe RDMA transport 1.0c, section "SGL Support". One descriptor is keyed
//! memory of the host, or data in the capsule at an offset. A Last Segment descriptor leads to several keyed ones in the capsule; they are
//! looked up there when they are used, so that no list is copied. The target is told of their sum as if it were one, and
//! moves no data itself.

use nvme::command::DataPointer;
use nvme::sgl::{KEYED_LENGTH_MAX, SglDescriptor};
use nvme::{Sgl, Sqe, Status};
use verbs::Remote;
use zerocopy::FromBytes;

/// SGL Identifier of a Last Segment descriptor, sub type Offset: descriptors in the capsule.
const IDENTIFIER_LAST_SEGMENT: u8 = 0x31;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u32 = 16;
/// Descriptors that one may lead to: MSDBD of Identify Controller.
const DESCRIPTORS_MOST: u32 = 16;

/// Where the data of a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Data {
    /// Nowhere, or the transport need not know.
    #[default]
    None,
    /// In the capsule, so many bytes after the SQE.
    InCapsule {
        /// Bytes from the end of the SQE.
        offset: u32,
    },
    /// In the host's memory.
    Keyed(Keyed),
    /// In several places of the host's memory, which descriptors in the capsule name.
    List {
        /// Bytes from the end of the SQE to the first of them.
        offset: u32,
        /// How many there are.
        count: u32,
    },
}

/// A piece of the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keyed {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) key: u32,
    /// The host wants the key to be invalidated with the response.
    pub(crate) invalidate: bool,
}

/// A command as the target is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The SQE, with one descriptor for all of the data.
    pub(crate) sqe: Sqe,
    /// Bytes of data in the capsule.
    pub(crate) in_capsule: u32,
    pub(crate) data: Data,
}

fn keyed(descriptor: &SglDescriptor) -> Option<Keyed> {
    match descriptor.sgl() {
        Sgl::Keyed { address, length, key, invalidate } => {
            Some(Keyed { address, length, key, invalidate })
        }
        _ => None,
    }
}

/// The descriptor with this number, of those at `offset` of what came with the SQE.
fn listed(capsule: &[u8], offset: u32, index: u32) -> Option<Keyed> {
    let start = index.checked_mul(DESCRIPTOR_BYTES)?.checked_add(offset)?;
    let bytes = capsule.get(usize::try_from(start).ok()?..)?;
    let (descriptor, _) = SglDescriptor::ref_from_prefix(bytes).ok()?;
    keyed(descriptor)
}

/// Finds the data of `sqe`, with which `capsule` came.
///
/// # Errors
/// The status that the command fails with.
pub(crate) fn resolve(sqe: &Sqe, capsule: &[u8]) -> Result<Resolved, Status> {
    let unchanged = |data| Ok(Resolved { sqe: *sqe, in_capsule: 0, data });
    if sqe.data_pointer() != DataPointer::Sgl {
        return unchanged(Data::None);
    }
    let inside = u32::try_from(capsule.len()).unwrap_or(u32::MAX);
    match sqe.sgl() {
        Sgl::Keyed { .. } => unchanged(keyed(&sqe.dptr).map_or(Data::None, Data::Keyed)),
        Sgl::InCapsule { offset, length } => {
            let offset = within(inside, offset, length)?;
            let sqe = sqe.with_sgl(Sgl::InCapsule { offset: 0, length });
            Ok(Resolved { sqe, in_capsule: length, data: Data::InCapsule { offset } })
        }
        Sgl::Other(IDENTIFIER_LAST_SEGMENT) => resolve_list(sqe, capsule, inside),
        _ => unchanged(Data::None),
    }
}

/// The offset, if `length` bytes from there are in the capsule.
fn within(inside: u32, offset: u64, length: u32) -> Result<u32, Status> {
    let start = u32::try_from(offset).ok().filter(|&start| start <= inside);
    let start = start.ok_or(Status::SGL_OFFSET_INVALID.with_dnr())?;
    if length > inside - start {
        return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    }
    Ok(start)
}

fn resolve_list(sqe: &Sqe, capsule: &[u8], inside: u32) -> Result<Resolved, Status> {
    let [l0, l1, l2, l3, ..] = sqe.dptr.specific;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length == 0 || !length.is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(Status::INVALID_SGL_SEGMENT.with_dnr());
    }
    let count = length / DESCRIPTOR_BYTES;
    if count > DESCRIPTORS_MOST {
        return Err(Status::INVALID_SGL_COUNT.with_dnr());
    }
    let offset = within(inside, sqe.dptr.address.get(), length)
        .map_err(|_| Status::SGL_OFFSET_INVALID.with_dnr())?;
    let mut total = 0_u32;
    for index in 0..count {
        let keyed = listed(capsule, offset, index);
        let keyed = keyed.ok_or(Status::SGL_TYPE_INVALID.with_dnr())?;
        total = total.saturating_add(keyed.length);
    }
    if total > KEYED_LENGTH_MAX {
        return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    }
    let whole = Sgl::Keyed { address: 0, length: total, key: 0, invalidate: false };
    let data = Data::List { offset, count };
    Ok(Resolved { sqe: sqe.with_sgl(whole), in_capsule: 0, data })
}

impl Data {
    /// The host's memory for the data from `offset` on, and how many bytes of it lie together there. `capsule` is what
    /// came with the SQE.
    pub(crate) fn remote(&self, capsule: &[u8], offset: u32) -> Option<(Remote, u32)> {
        match *self {
            Data::None | Data::InCapsule { .. } => None,
            Data::Keyed(keyed) => keyed.from(offset),
            Data::List { offset: list, count } => {
                let mut skip = offset;
                for index in 0..count {
                    let keyed = listed(capsule, list, index)?;
                    if skip < keyed.length {
                        return keyed.from(skip);
                    }
                    skip -= keyed.length;
                }
                None
            }
        }
    }

    /// The key that the host wants to be invalidated; one at most, as there is one response.
    pub(crate) fn invalidate(&self, capsule: &[u8]) -> Option<u32> {
        let wanted = |keyed: Keyed| keyed.invalidate.then_some(keyed.key);
        match *self {
            Data::None | Data::InCapsule { .. } => None,
            Data::Keyed(keyed) => wanted(keyed),
            Data::List { offset, count } => {
                (0..count).find_map(|index| listed(capsule, offset, index).and_then(wanted))
            }
        }
    }
}

impl Keyed {
    fn from(self, offset: u32) -> Option<(Remote, u32)> {
        let left = self.length.checked_sub(offset).filter(|&left| left > 0)?;
        // Beyond the end of all addresses is beyond the end of every region: the host's device refuses it.
        let address = self.address.wrapping_add(u64::from(offset));
        Some((Remote { address, key: self.key }, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme::sgl::IDENTIFIER_KEYED;
    use zerocopy::IntoBytes;

    fn one(address: u64, length: u32, key: u32) -> SglDescriptor {
        Sgl::Keyed { address, length, key, invalidate: false }.into()
    }

    fn leading_to(offset: u64, length: u32) -> Sqe {
        let mut sqe = Sqe::new(2, 1);
        let [l0, l1, l2, l3] = length.to_le_bytes();
        sqe.dptr.address = offset.into();
        sqe.dptr.specific = [l0, l1, l2, l3, 0, 0, 0];
        sqe.dptr.identifier = IDENTIFIER_LAST_SEGMENT;
        sqe
    }

    #[test]
    fn data_in_the_capsule_may_begin_anywhere_in_it() {
        let sqe = |offset, length| Sqe::new(1, 1).with_sgl(Sgl::InCapsule { offset, length });
        let resolved = resolve(&sqe(512, 1024), &[0; 1536]).unwrap();
        assert_eq!(resolved.data, Data::InCapsule { offset: 512 });
        assert_eq!(resolved.in_capsule, 1024);
        assert_eq!(resolved.sqe.sgl(), Sgl::InCapsule { offset: 0, length: 1024 });
        let error = resolve(&sqe(1537, 0), &[0; 1536]).unwrap_err();
        assert!(error.same_code(Status::SGL_OFFSET_INVALID));
        assert!(resolve(&sqe(u64::MAX, 1), &[0; 1536]).is_err());
        let error = resolve(&sqe(512, 1025), &[0; 1536]).unwrap_err();
        assert!(error.same_code(Status::SGL_DATA_LENGTH_INVALID));
    }

    #[test]
    fn several_descriptors_are_one_to_the_target_and_themselves_to_the_wire() {
        let list = [one(1000, 10, 7), one(5000, 0, 8), one(9000, 20, 9)];
        let mut capsule = vec![0xEE; 8];
        capsule.extend(list.iter().flat_map(|it| it.as_bytes().to_vec()));
        let resolved = resolve(&leading_to(8, 48), &capsule).unwrap();
        assert_eq!(resolved.sqe.sgl().length(), 30);
        let at = |offset| resolved.data.remote(&capsule, offset);
        assert_eq!(at(0), Some((Remote { address: 1000, key: 7 }, 10)));
        assert_eq!(at(9), Some((Remote { address: 1009, key: 7 }, 1)));
        assert_eq!(at(10), Some((Remote { address: 9000, key: 9 }, 20)));
        assert_eq!(at(29), Some((Remote { address: 9019, key: 9 }, 1)));
        assert_eq!(at(30), None);
        assert_eq!(resolved.data.invalidate(&capsule), None);
    }

    #[test]
    fn lists_that_make_no_sense_fail_their_command() {
        let code = |sqe: &Sqe, capsule: &[u8]| resolve(sqe, capsule).unwrap_err();
        assert!(code(&leading_to(0, 0), &[]).same_code(Status::INVALID_SGL_SEGMENT));
        assert!(code(&leading_to(0, 15), &[0; 64]).same_code(Status::INVALID_SGL_SEGMENT));
        assert!(code(&leading_to(0, 17 * 16), &[0; 512]).same_code(Status::INVALID_SGL_COUNT));
        assert!(code(&leading_to(1, 16), &[0; 16]).same_code(Status::SGL_OFFSET_INVALID));
        assert!(code(&leading_to(0, 16), &[0; 16]).same_code(Status::SGL_TYPE_INVALID));
        let long = [one(0, KEYED_LENGTH_MAX, 1), one(0, 1, 1)];
        let error = code(&leading_to(0, 32), long.as_bytes());
        assert!(error.same_code(Status::SGL_DATA_LENGTH_INVALID));
        assert_eq!(long[0].identifier, IDENTIFIER_KEYED);
    }
}
