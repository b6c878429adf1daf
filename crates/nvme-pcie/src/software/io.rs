//! The commands of I/O queues, carried out at once and whole.

use nvme::copy::{self, Copy};
use nvme::feature::{ErrorRecovery, Feature};
use nvme::identify::OptionalCommands;
use nvme::io::{
    BlockRange, Command, DSM_RANGES_MAX, DatasetManagement, DsmRange, Protection, Transfer,
    WriteZeroes,
};
use nvme::{NSID_ALL, Sqe, Status};
use zerocopy::IntoBytes;

use super::namespace::Namespace;
use super::pointer::Cursor;
use super::world::World;

/// Which way the blocks of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
    Compare,
}

impl World {
    /// Carries an I/O command out.
    pub(super) fn io(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let result = self.io_command(sqe);
        result.map_err(|status| if is_permanent(status) { status.with_dnr() } else { status })
    }

    fn io_command(&mut self, sqe: &Sqe) -> Result<(), Status> {
        use nvme::io::Opcode;
        let opcode = Opcode::try_from(sqe.opcode).map_err(|_| Status::INVALID_OPCODE)?;
        let needs = match opcode {
            Opcode::Compare => OptionalCommands::COMPARE,
            Opcode::DatasetManagement => OptionalCommands::DATASET_MANAGEMENT,
            Opcode::WriteZeroes => OptionalCommands::WRITE_ZEROES,
            Opcode::Verify => OptionalCommands::VERIFY,
            Opcode::Copy => OptionalCommands::COPY,
            _ => OptionalCommands::empty(),
        };
        if !self.options.oncs.contains(needs) {
            let what = format!("{opcode} sent, which is not in ONCS");
            return self.refuse(Status::INVALID_OPCODE, what);
        }
        let nsid = sqe.nsid.get();
        if nsid == 0 || nsid == NSID_ALL && opcode != Opcode::Flush {
            return self.refuse(Status::INVALID_NAMESPACE, format!("{opcode} of NSID {nsid:x}h"));
        }
        if opcode == Opcode::Flush {
            return self.flush(nsid);
        }
        let namespace = self.namespaces.all.get(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        if namespace.options.metadata > 0 {
            return Err(Status::INVALID_NAMESPACE);
        }
        if opcode == Opcode::Copy {
            return self.copy(nsid, sqe, Copy::parse(sqe)?);
        }
        match Command::parse(sqe)? {
            Command::Flush => self.flush(nsid),
            Command::Read(transfer) => self.transfer(sqe, &transfer, Way::Read),
            Command::Write(transfer) => self.transfer(sqe, &transfer, Way::Write),
            Command::Compare(transfer) => self.transfer(sqe, &transfer, Way::Compare),
            Command::Verify(verify) => {
                let namespace = self.blocks_of(nsid, &verify.range, &verify.protection)?;
                let allocated = all_allocated(namespace, &verify.range);
                self.check_deallocated(nsid, allocated)
            }
            Command::WriteZeroes(zeroes) => self.write_zeroes(nsid, &zeroes),
            Command::DatasetManagement(dsm) => self.deallocate(sqe, dsm),
        }
    }

    fn flush(&mut self, nsid: u32) -> Result<(), Status> {
        if nsid == NSID_ALL {
            if !self.options.flush_all {
                return Err(Status::INVALID_NAMESPACE);
            }
            self.namespaces.flush_all();
            return Ok(());
        }
        let namespace = self.namespaces.all.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        namespace.medium.flush();
        Ok(())
    }

    /// The namespace, if these blocks are in it.
    fn blocks_of(
        &mut self,
        nsid: u32,
        range: &BlockRange,
        protection: &Protection,
    ) -> Result<&mut Namespace, Status> {
        if !protection.is_none() {
            let what = format!("protection information asked of namespace {nsid}, which has none");
            return self.refuse(Status::INVALID_FIELD, what);
        }
        let namespace = self.namespaces.all.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        range.check(namespace.options.blocks)?;
        Ok(namespace)
    }

    /// Whether what is written now may be lost with power, if the command does not say otherwise.
    fn caches(&self) -> bool {
        self.options.volatile_write_cache && self.features.write_cache()
    }

    /// Blocks that were never written are an error if the host asked for one (DULBE).
    fn check_deallocated(&self, nsid: u32, allocated: bool) -> Result<(), Status> {
        let recovery =
            ErrorRecovery::from(self.features.of_namespace(Feature::ErrorRecovery, nsid));
        if recovery.dulbe && !allocated {
            return Err(Status::DEALLOCATED_OR_UNWRITTEN);
        }
        Ok(())
    }

    fn transfer(&mut self, sqe: &Sqe, transfer: &Transfer, way: Way) -> Result<(), Status> {
        let (nsid, range) = (sqe.nsid.get(), transfer.range);
        if transfer.directive_type != 0 {
            return self
                .refuse(Status::INVALID_FIELD, "a directive, which are not supported".into());
        }
        let volatile = self.caches() && !transfer.fua;
        let namespace = self.blocks_of(nsid, &range, &transfer.protection)?;
        let options = &namespace.options;
        if way == Way::Write && options.write_protected {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        let (noiob, block_size) = (u64::from(options.noiob), options.block_size);
        let allocated = way == Way::Write || all_allocated(namespace, &range);
        let last = range.slba + u64::from(range.blocks) - 1;
        if let (Some(first), Some(last)) = (range.slba.checked_div(noiob), last.checked_div(noiob))
            && first != last
        {
            self.counters.across_boundaries += 1;
        }
        self.check_deallocated(nsid, allocated)?;
        self.resolve(sqe, range.bytes(block_size))?;
        let namespace = self.namespaces.all.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        self.block.resize(usize::try_from(block_size).unwrap_or(0), 0);
        let mut cursor = Cursor::new(&self.pieces);
        for lba in range.slba..=last {
            let whole = match way {
                Way::Read => cursor.scatter(&self.reach, namespace.medium.block(lba)),
                Way::Write | Way::Compare => cursor.gather(&self.reach, &mut self.block),
            };
            if !whole {
                return Err(Status::DATA_TRANSFER_ERROR);
            }
            if way == Way::Compare && namespace.medium.block(lba) != self.block {
                return Err(Status::COMPARE_FAILURE);
            }
            if way == Way::Write {
                let block = &self.block;
                namespace.medium.change(lba, volatile, true, &mut self.random, |to| {
                    to.copy_from_slice(block);
                });
            }
        }
        Ok(())
    }

    fn write_zeroes(&mut self, nsid: u32, zeroes: &WriteZeroes) -> Result<(), Status> {
        let volatile = self.caches() && !zeroes.fua;
        self.blocks_of(nsid, &zeroes.range, &zeroes.protection)?;
        let namespace = self.namespaces.all.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        if namespace.options.write_protected {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        let reads_zeroes = namespace.options.deallocated == nvme::identify::DeallocatedRead::Zeroes;
        let away = zeroes.deallocate && namespace.options.zeroes_deallocate && reads_zeroes;
        if away {
            namespace.deallocate(zeroes.range, volatile, &mut self.random);
            return Ok(());
        }
        for lba in zeroes.range.slba..zeroes.range.end().unwrap_or(u64::MAX) {
            namespace.medium.change(lba, volatile, true, &mut self.random, |to| to.fill(0));
        }
        Ok(())
    }

    fn deallocate(&mut self, sqe: &Sqe, dsm: DatasetManagement) -> Result<(), Status> {
        let nsid = sqe.nsid.get();
        let mut ranges = [DsmRange::default(); DSM_RANGES_MAX as usize];
        let count = usize::from(dsm.ranges).min(ranges.len());
        let (ranges, _) = ranges.split_at_mut(count);
        self.ask_for(sqe, ranges.as_mut_bytes())?;
        let volatile = self.caches();
        let namespace = self.namespaces.all.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        for range in ranges.iter() {
            range.range().check(namespace.options.blocks)?;
        }
        if !dsm.deallocate {
            return Ok(());
        }
        if namespace.options.write_protected {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        for range in ranges.iter().map(DsmRange::range) {
            namespace.deallocate(range, volatile, &mut self.random);
        }
        Ok(())
    }

    fn copy(&mut self, nsid: u32, sqe: &Sqe, command: Copy) -> Result<(), Status> {
        if command.format != copy::Format::Short.code() {
            let what = format!("Copy with format {}, which is not in OCFS", command.format);
            return self.refuse(Status::INVALID_FIELD, what);
        }
        if command.prinfor != 0 || command.stcr || !command.protection.is_none() {
            let what = "Copy asks for protection information".to_owned();
            return self.refuse(Status::INVALID_FIELD, what);
        }
        let namespace = self.namespaces.all.get(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        let options = &namespace.options;
        let (blocks, mssrl, mcl) = (options.blocks, u32::from(options.mssrl), options.mcl);
        let (msrc, write_protected) = (u16::from(options.msrc) + 1, options.write_protected);
        if command.ranges > msrc {
            let what = format!("Copy of {} ranges, and MSRC allows {msrc}", command.ranges);
            return self.refuse(Status::COMMAND_SIZE_LIMIT_EXCEEDED, what);
        }
        let mut ranges = vec![copy::Range::default(); usize::from(command.ranges)];
        self.ask_for(sqe, ranges.as_mut_slice().as_mut_bytes())?;
        if write_protected {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        let mut total = 0_u32;
        for range in ranges.iter().map(copy::Range::range) {
            total = total.saturating_add(range.blocks);
            if range.blocks > mssrl || total > mcl {
                let what = format!("Copy of {range:?}, {total} blocks in all: MSSRL, MCL");
                return self.refuse(Status::COMMAND_SIZE_LIMIT_EXCEEDED, what);
            }
            range.check(blocks)?;
        }
        let to = BlockRange { slba: command.sdlba, blocks: total };
        to.check(blocks)?;
        let volatile = self.caches() && !command.fua;
        let namespace = self.namespaces.all.get_mut(&nsid).ok_or(Status::INVALID_NAMESPACE)?;
        // All is read before anything is written: ranges may overlap.
        self.block.clear();
        for range in ranges.iter().map(copy::Range::range) {
            for lba in range.slba..range.end().unwrap_or(u64::MAX) {
                self.block.extend_from_slice(namespace.medium.block(lba));
            }
        }
        let size = usize::try_from(namespace.options.block_size).unwrap_or(512);
        for (lba, block) in (command.sdlba..).zip(self.block.chunks_exact(size)) {
            let copied = |to: &mut [u8]| to.copy_from_slice(block);
            namespace.medium.change(lba, volatile, true, &mut self.random, copied);
        }
        Ok(())
    }
}

fn all_allocated(namespace: &Namespace, range: &BlockRange) -> bool {
    (range.slba..range.end().unwrap_or(u64::MAX)).all(|lba| namespace.medium.is_allocated(lba))
}

/// Whether the same command would fail again.
fn is_permanent(status: Status) -> bool {
    let again = [Status::COMPARE_FAILURE, Status::DATA_TRANSFER_ERROR];
    !again.iter().any(|&other| status.same_code(other))
}
