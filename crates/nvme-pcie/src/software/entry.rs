//! What is wrong with a submission queue entry before anybody asks what it means: FUSE, PSDT, reserved fields.
//!
//! A controller may ignore reserved fields; this one says what it finds, and ignores it.

use nvme::command::{DataPointer, Fuse};
use nvme::identify::SglSupport;
use nvme::{SglDescriptor, Sqe, Status, admin, io};

use super::world::World;

/// Bits that mean something in command dwords 10 to 15.
type Used = [u32; 6];

const ALL: u32 = u32::MAX;

/// What a command looks like: the bits that it uses, whether it is of a namespace, and whether it has data.
struct Shape {
    used: Used,
    namespace: bool,
    data: bool,
}

const fn shape(used: Used, namespace: bool, data: bool) -> Shape {
    Shape { used, namespace, data }
}

/// None for commands that nobody here knows.
fn shape_of_admin(opcode: u8) -> Option<Shape> {
    Some(match admin::Opcode::try_from(opcode).ok()? {
        admin::Opcode::DeleteIoSubmissionQueue | admin::Opcode::DeleteIoCompletionQueue => {
            shape([0xffff, 0, 0, 0, 0, 0], false, false)
        }
        admin::Opcode::CreateIoSubmissionQueue => {
            shape([ALL, 0xffff_0007, 0xffff, 0, 0, 0], false, true)
        }
        admin::Opcode::CreateIoCompletionQueue => {
            shape([ALL, 0xffff_0003, 0, 0, 0, 0], false, true)
        }
        admin::Opcode::GetLogPage => shape([ALL, ALL, ALL, ALL, 0xff80_007f, 0], true, true),
        admin::Opcode::Identify => shape([0xffff_00ff, 0xff00_ffff, 0, 0, 0x7f, 0], true, true),
        admin::Opcode::Abort => shape([ALL, 0, 0, 0, 0, 0], false, false),
        admin::Opcode::SetFeatures => shape([0x8000_00ff, ALL, ALL, ALL, 0x7f, ALL], true, true),
        admin::Opcode::GetFeatures => shape([0x7ff, ALL, 0, 0, 0x7f, 0], true, true),
        admin::Opcode::AsynchronousEventRequest | admin::Opcode::KeepAlive => {
            shape([0; 6], false, false)
        }
        admin::Opcode::DoorbellBufferConfig => shape([0; 6], false, true),
        admin::Opcode::FirmwareCommit => shape([0x8000_003f, 0, 0, 0, 0, 0], false, false),
        admin::Opcode::FirmwareImageDownload => shape([ALL, ALL, 0, 0, 0, 0], false, true),
        _ => return None,
    })
}

fn shape_of_io(opcode: u8) -> Option<Shape> {
    // Dwords 14 and 15 hold tags, which mean nothing without protection information and may be there.
    Some(match io::Opcode::try_from(opcode).ok()? {
        io::Opcode::Flush => shape([0; 6], true, false),
        io::Opcode::Write => shape([ALL, ALL, 0xfdf0_ffff, 0xffff_00ff, ALL, ALL], true, true),
        io::Opcode::Read => shape([ALL, ALL, 0xfd00_ffff, 0xff, ALL, ALL], true, true),
        io::Opcode::Compare => shape([ALL, ALL, 0xfd00_ffff, 0, ALL, ALL], true, true),
        io::Opcode::Verify => shape([ALL, ALL, 0xfd00_ffff, 0, ALL, ALL], true, false),
        io::Opcode::WriteZeroes => shape([ALL, ALL, 0xff00_ffff, 0, ALL, ALL], true, false),
        io::Opcode::DatasetManagement => shape([0xff, 0x7, 0, 0, 0, 0], true, true),
        io::Opcode::Copy => shape([ALL, ALL, 0xfff0_ffff, 0xffff_0000, ALL, ALL], true, true),
        _ => return None,
    })
}

impl World {
    /// Looks at what all commands have. The status is one that the command ends with.
    pub(super) fn check_entry(&mut self, admin: bool, sqe: &Sqe) -> Result<(), Status> {
        // Nothing is made of it for commands that are as they should be.
        let name = || {
            let (opcode, cid) = (sqe.opcode, sqe.cid.get());
            let queue = if admin { "admin" } else { "I/O" };
            format!("{queue} command {cid} with opcode {opcode:02x}h")
        };
        if sqe.fuse() != Fuse::Normal {
            return self.refuse(Status::INVALID_FIELD, format!("{} is fused", name()));
        }
        let known = SglSupport::SUPPORTED | SglSupport::DWORD;
        let sgls = !admin && self.options.sgls.intersects(known);
        match sqe.data_pointer() {
            DataPointer::Prp => {}
            DataPointer::Sgl if sgls => {}
            other => {
                return self
                    .refuse(Status::INVALID_FIELD, format!("{} has PSDT {other:?}", name()));
            }
        }
        if sqe.flags & 0x3c != 0 {
            self.violate(format!("{} has reserved bits beside FUSE and PSDT", name()));
        }
        let shape = if admin { shape_of_admin(sqe.opcode) } else { shape_of_io(sqe.opcode) };
        let Some(shape) = shape else { return Ok(()) };
        let dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15];
        for (number, (dword, used)) in (10..).zip(dwords.into_iter().zip(shape.used)) {
            if dword.get() & !used != 0 {
                self.violate(format!("{} has reserved bits in dword {number}: {dword:#x}", name()));
            }
        }
        if sqe.cdw2.get() != 0 || sqe.cdw3.get() != 0 || sqe.mptr.get() != 0 {
            self.violate(format!("{} has dwords 2, 3 or a metadata pointer", name()));
        }
        if !shape.namespace && sqe.nsid.get() != 0 {
            self.violate(format!("{} names a namespace", name()));
        }
        if !shape.data && sqe.dptr != SglDescriptor::default() {
            self.violate(format!("{} has a data pointer, and no data", name()));
        }
        Ok(())
    }
}
