//! Whether the data pointer of a command fits what the command needs and what its transport can do.
//!
//! NVMe/TCP knows two descriptors: transport data block (5Ah, data is fetched or sent by data PDUs) and
//! data block with sub type offset (01h, data is in the capsule). NVMe/RDMA knows the latter and keyed
//! descriptors. A wrong descriptor fails its command and nothing else.

use nvme::address::TransportType;
use nvme::command::DataPointer;
use nvme::{Sgl, Sqe, Status};

use crate::QueueInfo;
use crate::action::ADMIN_IN_CAPSULE;

/// Which way the data of a command goes, and how much of it there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// No data.
    None,
    /// The host sends at least `least` bytes and at most `most`. Linux always sends 4 KiB with Dataset
    /// Management, however few ranges it names.
    FromHost { least: u32, most: u32 },
    /// The host gets `length` bytes and has room for at least as many.
    ToHost { length: u32 },
    /// The host gets `length` bytes and describes just as many: reads of logical blocks.
    ToHostExactly { length: u32 },
}

impl Transfer {
    /// The host sends exactly this much.
    pub(crate) const fn from_host(length: u32) -> Self {
        Self::FromHost { least: length, most: length }
    }
}

/// What was found out about a command's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Bytes to move.
    pub(crate) length: u32,
    /// They are in the capsule.
    pub(crate) in_capsule: bool,
}

/// Checks the data pointer of `sqe`, which came with `in_capsule` bytes of data.
pub(crate) fn check(
    info: &QueueInfo,
    is_io: bool,
    sqe: &Sqe,
    in_capsule: u32,
    transfer: Transfer,
) -> Result<Checked, Status> {
    if sqe.data_pointer() != DataPointer::Sgl {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let limit =
        if is_io { info.in_capsule_limit } else { info.in_capsule_limit.max(ADMIN_IN_CAPSULE) };
    let (least, most) = match transfer {
        Transfer::None => {
            return match in_capsule {
                0 => Ok(Checked { length: 0, in_capsule: false }),
                _ => Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr()),
            };
        }
        Transfer::FromHost { least, most } => (least, most),
        Transfer::ToHost { length } => (length, u32::MAX),
        Transfer::ToHostExactly { length } => (length, length),
    };
    let from_host = matches!(transfer, Transfer::FromHost { .. });
    let (length, inside) = match (sqe.sgl(), info.transport) {
        (Sgl::InCapsule { offset, length }, _) if from_host => {
            if offset != 0 {
                return Err(Status::SGL_OFFSET_INVALID.with_dnr());
            }
            if length != in_capsule || length > limit {
                return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
            }
            (length, true)
        }
        (Sgl::TransportData { length }, TransportType::Tcp)
        | (Sgl::Keyed { length, .. }, TransportType::Rdma) => {
            if in_capsule != 0 {
                return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
            }
            (length, false)
        }
        _ => return Err(Status::SGL_TYPE_INVALID.with_dnr()),
    };
    if length < least || length > most {
        return Err(Status::SGL_DATA_LENGTH_INVALID.with_dnr());
    }
    let length = if from_host { length } else { least };
    Ok(Checked { length, in_capsule: inside })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Borrows;

    fn info(transport: TransportType) -> QueueInfo {
        QueueInfo {
            transport,
            local: "127.0.0.1:4420".parse().unwrap(),
            peer: "127.0.0.1:50000".parse().unwrap(),
            in_capsule_limit: 4096,
            borrows: Borrows::Anything,
        }
    }

    fn tcp(is_io: bool, sgl: Sgl, in_capsule: u32, transfer: Transfer) -> Result<Checked, Status> {
        let sqe = Sqe::new(1, 1).with_sgl(sgl);
        check(&info(TransportType::Tcp), is_io, &sqe, in_capsule, transfer)
    }

    const LENGTH: Status = Status::SGL_DATA_LENGTH_INVALID.with_dnr();
    const TYPE: Status = Status::SGL_TYPE_INVALID.with_dnr();

    #[test]
    fn data_in_the_capsule_has_to_be_all_of_it_and_from_its_start() {
        let inside = |offset, length| Sgl::InCapsule { offset, length };
        let write = Transfer::from_host(4096);
        let ok = Checked { length: 4096, in_capsule: true };
        assert_eq!(tcp(true, inside(0, 4096), 4096, write), Ok(ok));
        assert_eq!(
            tcp(true, inside(8, 4096), 4096, write),
            Err(Status::SGL_OFFSET_INVALID.with_dnr())
        );
        assert_eq!(tcp(true, inside(0, 4096), 4095, write), Err(LENGTH));
        assert_eq!(tcp(true, inside(0, 512), 512, write), Err(LENGTH));
        assert_eq!(tcp(true, inside(0, 8192), 8192, Transfer::from_host(8192)), Err(LENGTH));
        assert_eq!(
            tcp(false, inside(0, 8192), 8192, Transfer::from_host(8192)),
            Ok(Checked { length: 8192, in_capsule: true })
        );
        assert_eq!(tcp(true, inside(0, 4096), 0, Transfer::ToHost { length: 4096 }), Err(TYPE));
    }

    #[test]
    fn a_transport_takes_its_own_descriptors_only() {
        let plain = Sgl::TransportData { length: 512 };
        let keyed = Sgl::Keyed { address: 0, length: 512, key: 1, invalidate: false };
        let read = Transfer::ToHostExactly { length: 512 };
        let ok = Ok(Checked { length: 512, in_capsule: false });
        assert_eq!(tcp(true, plain, 0, read), ok);
        assert_eq!(tcp(true, keyed, 0, read), Err(TYPE));
        assert_eq!(tcp(true, Sgl::Other(0x20), 0, read), Err(TYPE));
        let rdma =
            |sgl| check(&info(TransportType::Rdma), true, &Sqe::new(2, 1).with_sgl(sgl), 0, read);
        assert_eq!(rdma(keyed), ok);
        assert_eq!(rdma(plain), Err(TYPE));
        assert_eq!(tcp(true, plain, 512, Transfer::from_host(512)), Err(LENGTH));
    }

    #[test]
    fn reads_of_structures_may_offer_more_room_than_needed() {
        let room = Sgl::TransportData { length: 8192 };
        assert_eq!(
            tcp(false, room, 0, Transfer::ToHost { length: 4096 }),
            Ok(Checked { length: 4096, in_capsule: false })
        );
        assert_eq!(tcp(true, room, 0, Transfer::ToHostExactly { length: 4096 }), Err(LENGTH));
        assert_eq!(
            tcp(
                true,
                Sgl::TransportData { length: 4096 },
                0,
                Transfer::FromHost { least: 16, most: 4096 }
            ),
            Ok(Checked { length: 4096, in_capsule: false })
        );
        assert_eq!(tcp(true, room, 0, Transfer::FromHost { least: 16, most: 4096 }), Err(LENGTH));
    }

    #[test]
    fn prps_are_refused() {
        let mut sqe = Sqe::new(2, 1).with_sgl(Sgl::TransportData { length: 512 });
        sqe.flags = 0;
        let result = check(&info(TransportType::Tcp), true, &sqe, 0, Transfer::None);
        assert_eq!(result, Err(Status::INVALID_FIELD.with_dnr()));
    }
}
