//! What hosts do with their namespaces, and what they make of the answers.

use block::BlockDevice;
use nvme::admin::{self, Abort, GetFeatures, GetLogPage, Identify};
use nvme::command::Direction;
use nvme::feature::Feature;
use nvme::io::{BlockRange, Command, DatasetManagement, DsmRange, Opcode, Transfer, WriteZeroes};
use nvme::log::LogPage;
use nvme::{NSID_ALL, Sgl, Sqe, Status, U16, U32};
use zerocopy::IntoBytes;

use super::host::{Job, Outstanding, Payload};
use super::oracle::{Ended, WriteId};
use super::scenario::SECOND;
use super::world::World;
use crate::disk::pattern;

/// A namespace, as a host that uses it sees it.
#[derive(Debug, Clone, Copy)]
struct Place {
    nsid: u32,
    disk: usize,
    block_size: u64,
    blocks: u64,
}

impl World {
    /// A running host does some work.
    pub fn work(&mut self, host: usize) {
        if self.stopping {
            return;
        }
        if self.resting {
            self.sweep(host);
            return;
        }
        let count = self.random.spread(1, 8);
        for _ in 0..count {
            let me = &self.hosts[host];
            let place = self.random.index(me.queues.len().max(2) - 1) + 1;
            let Some(Some(queue)) = me.queues.get(place) else { continue };
            // Linux leaves one entry free, as the specification demands with flow control.
            if !queue.connected || queue.outstanding() + 1 >= usize::from(queue.entries) {
                continue;
            }
            if self.random.permille(self.scenario.nonsense) {
                self.nonsense(host, place);
            } else {
                self.io(host, place);
            }
        }
        if self.random.permille(self.scenario.aborts) {
            self.abort_something(host);
        }
        if self.random.permille(20) {
            self.ask_something(host);
        }
    }

    fn some_place(&mut self, host: usize) -> Option<Place> {
        let me = &self.hosts[host];
        let nsids: Vec<u32> = me.known.keys().copied().collect();
        if nsids.is_empty() {
            return None;
        }
        let nsid = *self.random.pick(&nsids);
        self.place(host, nsid)
    }

    fn place(&self, host: usize, nsid: u32) -> Option<Place> {
        let at = usize::try_from(nsid.checked_sub(1)?).ok()?;
        let disk = *self.operator.places[self.hosts[host].subsystem].get(at)?;
        let geometry = self.disks[disk].geometry();
        let (block_size, blocks) = (u64::from(geometry.block_size), geometry.blocks);
        Some(Place { nsid, disk, block_size, blocks })
    }

    fn range(&mut self, place: Place) -> BlockRange {
        let most = (u64::from(self.scenario.max_transfer) / place.block_size).max(1);
        let slba = self.random.below(place.blocks);
        let most = most.min(place.blocks - slba);
        let blocks = self.random.spread(1, most);
        BlockRange { slba, blocks: u32::try_from(blocks).unwrap() }
    }

    /// A command that makes sense.
    fn io(&mut self, host: usize, queue: usize) {
        let Some(place) = self.some_place(host) else { return };
        let range = self.range(place);
        let mut transfer = Transfer::new(range.slba, range.blocks);
        transfer.fua = self.random.permille(150);
        let command = match self.random.below(100) {
            0..38 => Command::Read(transfer),
            38..78 => Command::Write(transfer),
            78..83 => Command::Flush,
            83..87 => {
                let mut zeroes = WriteZeroes::new(range.slba, range.blocks);
                zeroes.deallocate = self.random.permille(500);
                zeroes.fua = transfer.fua;
                Command::WriteZeroes(zeroes)
            }
            87..91 => {
                let ranges = u16::try_from(self.random.spread(1, 40)).unwrap();
                Command::DatasetManagement(DatasetManagement::deallocate(ranges))
            }
            91..96 => Command::Compare(transfer),
            _ => Command::Verify(transfer),
        };
        let nsid = match command {
            Command::Flush if self.random.permille(400) => NSID_ALL,
            _ => place.nsid,
        };
        let sqe = command.to_sqe(nsid);
        self.send_io(host, queue, sqe, None);
    }

    /// Sends an I/O command, telling the oracle what it does, as its bytes say.
    fn send_io(&mut self, host: usize, queue: usize, sqe: Sqe, payload: Option<Payload>) {
        let nsid = sqe.nsid.get();
        let command = Command::parse(&sqe).ok().filter(|_| !sqe.is_fabrics());
        let Some(command) = command else {
            let payload = payload.unwrap_or(Payload::None);
            return self.submit(host, queue, sqe, payload, Job::Harmless);
        };
        if let Command::Flush = command {
            let disks = self.flushes(host, nsid);
            let payload = payload.unwrap_or(Payload::None);
            return self.submit(host, queue, sqe, payload, Job::Flush { disks });
        }
        let Some(place) = self.place(host, nsid) else {
            let payload = payload.unwrap_or(Payload::None);
            return self.submit(host, queue, sqe, payload, Job::Harmless);
        };
        let Place { disk, block_size, .. } = place;
        let whole = self.disks[disk].whole_size();
        let inside = |range: BlockRange| range.end().is_some_and(|end| end <= whole);
        let written_through = self.hosts[host].write_through;
        let keeps = !self.disks[disk].properties().volatile_write_cache;
        let size = usize::try_from(block_size).unwrap();
        match command {
            Command::Read(Transfer { range, .. }) => {
                let length = u32::try_from(range.bytes(place.block_size as u32)).unwrap_or(0);
                let payload = payload.unwrap_or(Payload::In(length));
                let job = if inside(range) {
                    Job::Read { disk, lba: range.slba, blocks: range.blocks.into() }
                } else {
                    Job::Harmless
                };
                self.submit(host, queue, sqe, payload, job);
            }
            Command::Verify(_) => {
                let payload = payload.unwrap_or(Payload::None);
                self.submit(host, queue, sqe, payload, Job::Harmless);
            }
            Command::Write(Transfer { range, fua, .. }) => {
                let moment = self.moment();
                let version = self.oracle.next_version();
                let ranges =
                    if inside(range) { vec![(range.slba, range.blocks.into())] } else { vec![] };
                let id = self.oracle.send(disk, &ranges, false, moment);
                let count = if inside(range) { range.blocks as usize } else { 1 };
                let data = pattern::blocks(&vec![version; count], range.slba, size);
                let payload = match payload {
                    Some(Payload::AsIs(mut other)) => {
                        for (to, from) in other.iter_mut().zip(&data) {
                            *to = *from;
                        }
                        Payload::AsIs(other)
                    }
                    _ => Payload::Out(data),
                };
                let durable = fua || written_through || keeps;
                self.submit(host, queue, sqe, payload, write(disk, id, durable));
            }
            Command::WriteZeroes(zeroes) => {
                let moment = self.moment();
                let range = zeroes.range;
                let ranges =
                    if inside(range) { vec![(range.slba, range.blocks.into())] } else { vec![] };
                let id = self.oracle.send(disk, &ranges, true, moment);
                let durable = zeroes.fua || written_through || keeps;
                let payload = payload.unwrap_or(Payload::None);
                self.submit(host, queue, sqe, payload, write(disk, id, durable));
            }
            Command::DatasetManagement(command) => {
                self.deallocate(host, queue, sqe, command, place, payload);
            }
            Command::Compare(Transfer { range, .. }) => {
                let moment = self.moment();
                let count = if inside(range) { range.blocks.into() } else { 0 };
                let mut versions = Vec::new();
                for lba in range.slba..range.slba.saturating_add(count) {
                    let allowed = self.oracle.allowed(disk, lba, moment);
                    versions.push(*self.random.pick(&allowed));
                }
                let data = match count {
                    0 => vec![0; size],
                    _ => pattern::blocks(&versions, range.slba, size),
                };
                let (payload, job) = match payload {
                    Some(payload) => (payload, Job::Harmless),
                    None if count == 0 => (Payload::Out(data), Job::Harmless),
                    None => {
                        let job = Job::Compare { disk, lba: range.slba, versions };
                        (Payload::Out(data), job)
                    }
                };
                self.submit(host, queue, sqe, payload, job);
            }
            Command::Flush => {}
        }
    }

    /// Disks that a flush certainly covers.
    fn flushes(&self, host: usize, nsid: u32) -> Vec<usize> {
        if nsid != NSID_ALL {
            return self.place(host, nsid).map(|place| place.disk).into_iter().collect();
        }
        // While the configuration changes nobody can say which namespaces there are.
        let settled = self.operator.changed_at + SECOND < self.now
            || (self.scenario.changes == 0 && self.scenario.ends == 0);
        if !settled {
            return Vec::new();
        }
        let nsids = self.operator.active(&self.hosts[host]);
        nsids.keys().filter_map(|nsid| self.place(host, *nsid)).map(|place| place.disk).collect()
    }

    fn deallocate(
        &mut self,
        host: usize,
        queue: usize,
        sqe: Sqe,
        command: DatasetManagement,
        place: Place,
        payload: Option<Payload>,
    ) {
        let mut list: Vec<DsmRange> = Vec::new();
        let mut ranges = Vec::new();
        for _ in 0..command.ranges {
            let range = self.range(place);
            let empty = self.random.permille(100);
            let blocks = if empty { 0 } else { range.blocks };
            list.push(DsmRange::new(range.slba, blocks));
            ranges.push((range.slba, u64::from(blocks)));
        }
        let disk = place.disk;
        let how = self.disks[disk].properties().deallocation;
        let does = command.deallocate && how.is_some();
        let moment = self.moment();
        let id = self.oracle.send(disk, if does { &ranges } else { &[] }, true, moment);
        let mut data = list.as_bytes().to_vec();
        if self.random.permille(500) {
            // Linux sends a page, however few ranges.
            data.resize(4096, 0);
        }
        let payload = match payload {
            Some(Payload::AsIs(mut other)) => {
                // Ranges that nobody filled in are empty ones.
                for (to, from) in other.iter_mut().zip(&data) {
                    *to = *from;
                }
                Payload::AsIs(other)
            }
            _ => Payload::Out(data),
        };
        let sure = how.is_some_and(|how| how.reads_zero);
        let job = Job::Write { disk, id, durable: false, sure, parts: true };
        self.submit(host, queue, sqe, payload, job);
    }

    /// A command that has something wrong with it, or everything.
    fn nonsense(&mut self, host: usize, queue: usize) {
        let Some(place) = self.some_place(host) else { return };
        let range = self.range(place);
        let transfer = Transfer::new(range.slba, range.blocks);
        let command = match self.random.below(6) {
            0 => Command::Read(transfer),
            1 | 2 => Command::Write(transfer),
            3 => Command::Compare(transfer),
            4 => Command::WriteZeroes(WriteZeroes::new(range.slba, range.blocks)),
            _ => Command::DatasetManagement(DatasetManagement::deallocate(3)),
        };
        let mut sqe = command.to_sqe(place.nsid);
        let length = match sqe.direction() {
            Direction::HostToController | Direction::ControllerToHost
                if sqe.opcode == Opcode::DatasetManagement.code() =>
            {
                48
            }
            Direction::None => 0,
            _ => u32::try_from(range.bytes(u32::try_from(place.block_size).unwrap())).unwrap(),
        };
        let mut sgl = Sgl::TransportData { length };
        for _ in 0..self.random.spread(1, 4) {
            let anything = self.random.number();
            let [a, b, ..] = anything.to_le_bytes();
            let (low, high) = (anything as u32, (anything >> 32) as u32);
            match self.random.below(9) {
                0 => sqe.cdw11 = U32::new(low),
                1 => sqe.cdw10 = U32::new(low % 200),
                2 => sqe.cdw12 = U32::new(low & 0xff),
                3 => {
                    sqe.nsid = U32::new(*self.random.pick(&[0, 1, 2, 3, 9, 0xffff_fffe, NSID_ALL]));
                }
                4 => sqe.opcode = if a < 200 { a % 0x20 } else { b },
                5 => sqe.flags = a,
                6 => sgl = Sgl::TransportData { length: low % 70_000 },
                7 => {
                    sgl = match a % 3 {
                        0 => Sgl::Other(b),
                        1 => Sgl::Keyed {
                            address: 1,
                            length: low % 5000,
                            key: high,
                            invalidate: false,
                        },
                        _ => Sgl::InCapsule { offset: u64::from(b % 2), length: low % 9000 },
                    }
                }
                _ => (sqe.cdw13, sqe.cdw15) = (U32::new(low), U32::new(high)),
            }
        }
        if sqe.opcode == nvme::command::OPCODE_FABRICS {
            sqe.opcode = 0xff;
        }
        let sqe = sqe.with_sgl(sgl);
        let bytes = usize::try_from(sqe.sgl().length()).unwrap();
        if self.random.permille(100) {
            return self.repeat_identifier(host, queue);
        }
        self.send_io(host, queue, sqe, Some(Payload::AsIs(vec![0; bytes])));
    }

    /// A command with an identifier that is outstanding. Not one that an Abort is under way for: when that comes, the first
    /// command may have ended, and it is this one that is aborted.
    fn repeat_identifier(&mut self, host: usize, queue: usize) {
        let Some(own) = &self.hosts[host].queues[queue] else { return };
        let mut outstanding = own.commands.iter();
        let unasked = outstanding.find(|(_, commands)| commands.iter().all(|it| !it.aborted));
        let Some(cid) = unasked.map(|(cid, _)| *cid) else { return };
        let Some(nsid) = self.hosts[host].known.keys().next().copied() else { return };
        let mut sqe = Command::Verify(Transfer::new(0, 1)).to_sqe(nsid);
        sqe.cid = U16::new(cid);
        self.submit_as(host, queue, sqe, Payload::None, Job::Harmless);
    }

    fn abort_something(&mut self, host: usize) {
        let me = &self.hosts[host];
        let candidates: Vec<(u16, u16, u64)> = me
            .queues
            .iter()
            .flatten()
            .flat_map(|queue| {
                queue.commands.iter().filter_map(|(cid, commands)| {
                    // Which of two with one identifier would be meant nobody knows.
                    let [command] = commands.as_slices().0 else { return None };
                    let fair =
                        !matches!(command.job, Job::Abort(_) | Job::ConnectIo | Job::EventRequest);
                    (fair && commands.len() == 1).then_some((queue.qid, *cid, command.serial))
                })
            })
            .filter(|(qid, ..)| *qid > 0)
            .collect();
        if candidates.is_empty() {
            return;
        }
        let (sqid, cid, serial) = *self.random.pick(&candidates);
        let queue = self.hosts[host].queues[usize::from(sqid)].as_mut().unwrap();
        if let Some(command) =
            queue.commands.get_mut(&cid).and_then(|commands| commands.front_mut())
        {
            command.aborted = true;
        }
        let sqe = admin::Command::Abort(Abort { sqid, cid }).to_sqe(0);
        self.submit(host, 0, sqe, Payload::None, Job::Abort(serial));
    }

    /// An admin command, out of curiosity.
    fn ask_something(&mut self, host: usize) {
        let identify = |cns| admin::Command::Identify(Identify { cns, ..Identify::default() });
        let (command, nsid, length) = match self.random.below(6) {
            0 => (identify(1), 0, 4096),
            1 => (identify(3), 1, 4096),
            2 => {
                let log = GetLogPage::new(LogPage::Health, 0, 512);
                (admin::Command::GetLogPage(log), NSID_ALL, 512)
            }
            3 => {
                let log = GetLogPage::new(LogPage::ErrorInformation, 0, 128);
                (admin::Command::GetLogPage(log), NSID_ALL, 128)
            }
            4 => {
                let get = GetFeatures::new(Feature::VolatileWriteCache);
                (admin::Command::GetFeatures(get), 0, 0)
            }
            _ => (identify(0x13), 0, 4096),
        };
        let payload = if length == 0 { Payload::None } else { Payload::In(length) };
        self.submit(host, 0, command.to_sqe(nsid), payload, Job::Harmless);
    }

    /// An I/O command has ended.
    pub fn io_ended(
        &mut self,
        host: usize,
        command: Outstanding,
        status: Status,
        data: &[u8],
        moment: u64,
    ) {
        let ok = status.is_success();
        let from = command.moment;
        match command.job {
            Job::Read { disk, lba, blocks } => {
                if ok {
                    let size = usize::try_from(self.disks[disk].geometry().block_size).unwrap();
                    assert_eq!(data.len() as u64, blocks * size as u64, "a read's length");
                    for (lba, block) in (lba..).zip(data.chunks_exact(size)) {
                        let version =
                            pattern::read(block, lba).unwrap_or_else(|why| fail(host, &why));
                        self.oracle
                            .returned(disk, lba, version, (from, moment))
                            .unwrap_or_else(|why| fail(host, &why));
                    }
                }
                self.oracle.read_ended(from);
            }
            Job::Write { id, durable, sure, parts, .. } => {
                let how = match (ok, sure) {
                    (true, true) => Ended::Done,
                    (true, false) => Ended::Open,
                    (false, _) if parts || leaves_open(status) => Ended::Open,
                    (false, _) => Ended::Nothing,
                };
                self.oracle.ended(id, how, durable, moment).unwrap_or_else(|why| fail(host, &why));
            }
            Job::Flush { disks } if ok => {
                for disk in disks {
                    self.oracle.flushed(disk, from, moment);
                }
            }
            Job::Compare { disk, lba, versions } => {
                if ok {
                    for (lba, version) in (lba..).zip(&versions) {
                        self.oracle.returned(disk, lba, *version, (from, moment)).unwrap_or_else(
                            |why| fail(host, &format!("a Compare succeeded: {why}")),
                        );
                    }
                } else if status.same_code(Status::COMPARE_FAILURE) {
                    let equal = (lba..)
                        .zip(&versions)
                        .all(|(lba, version)| self.oracle.allowed(disk, lba, from) == [*version]);
                    assert!(
                        !equal,
                        "host {host}: a Compare of {lba} on disk {disk} failed, yet all is equal"
                    );
                }
                self.oracle.read_ended(from);
            }
            _ => {}
        }
    }

    /// In the end every host reads every block of every namespace that it has.
    fn sweep(&mut self, host: usize) {
        let me = &self.hosts[host];
        if me.looking || me.unanswered().len() > 4 {
            return;
        }
        let (nsid, lba) = me.sweep.unwrap_or((1, 0));
        let places = self.operator.places[me.subsystem].len();
        if usize::try_from(nsid).unwrap() > places {
            return;
        }
        let queue = 1 + self.random.index(me.queues.len() - 1);
        let place = self.place(host, nsid).filter(|_| me.known.contains_key(&nsid));
        let Some(place) = place.filter(|place| lba < place.blocks) else {
            self.hosts[host].sweep = Some((nsid + 1, 0));
            return;
        };
        let most = (u64::from(self.scenario.max_transfer) / place.block_size).max(1);
        let blocks = most.min(place.blocks - lba);
        let transfer = Transfer::new(lba, u32::try_from(blocks).unwrap());
        self.send_io(host, queue, Command::Read(transfer).to_sqe(nsid), None);
        self.hosts[host].sweep = Some((nsid, lba + blocks));
    }

    /// Whether this host has read everything.
    pub fn has_swept(&self, host: usize) -> bool {
        let me = &self.hosts[host];
        let places = self.operator.places[me.subsystem].len();
        me.sweep.is_some_and(|(nsid, _)| usize::try_from(nsid).unwrap() > places)
    }
}

/// A write that is one operation.
fn write(disk: usize, id: WriteId, durable: bool) -> Job {
    Job::Write { disk, id, durable, sure: true, parts: false }
}

fn fail(host: usize, why: &str) -> ! {
    panic!("host {host}: {why}")
}

/// Statuses after which a write may have been done in part.
fn leaves_open(status: Status) -> bool {
    status.same_code(Status::WRITE_FAULT)
        || status.same_code(Status::UNRECOVERED_READ_ERROR)
        || status.same_code(Status::CAPACITY_EXCEEDED)
        || status.same_code(Status::NAMESPACE_NOT_READY)
        || status.same_code(Status::INTERNAL_ERROR)
}
