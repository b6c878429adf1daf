//! Hosts: how they connect, keep a controller, lose it, and come back.
//!
//! Most behave as Linux does. Now and then one crashes with writes in flight and is back at once, falls silent,
//! resets or shuts down its controller, drops a single queue, or talks nonsense.
//!
//! What a host may rely on, and what the oracle is told therefore: writes that were never answered are dead
//! once (a) a new Connect of the same host has been answered, made after the target had learned that the old
//! association was gone; (b) a reset or shutdown that the host waited for is complete; (c) an I/O queue with the same
//! number in the same controller has been connected again.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use nvme::admin::{self, GetLogPage, Identify};
use nvme::event::Event as AsyncEvent;
use nvme::fabrics::ConnectResult;
use nvme::log::{AnaState, LogPage};
use nvme::register::{ControllerStatus, ShutdownStatus};
use nvme::{Cqe, Sgl, Sqe, Status};

use super::oracle::WriteId;
use super::scenario::{MS, Scenario, US};
use super::wire::{IN_CAPSULE, Up};
use super::world::World;
use crate::Random;
use crate::disk::pattern::Version;

/// What a command is for.
#[derive(Debug, Clone)]
pub enum Job {
    ConnectAdmin,
    ConnectIo,
    Capabilities,
    Enable,
    AwaitReady,
    Disable,
    AwaitDisabled,
    Stop,
    AwaitStopped,
    Queues,
    WantEvents,
    WriteThrough,
    ActiveList,
    Size(u32),
    ChangedLog,
    Paths,
    EventRequest,
    KeepAlive,
    Abort(u64),
    Disconnect,
    /// Whatever it does, it changes no block.
    Harmless,
    Read {
        disk: usize,
        lba: u64,
        blocks: u64,
    },
    /// Changes blocks. `sure`: success means that it did; `parts`: it is several operations, of which a
    /// failure leaves some done.
    Write {
        disk: usize,
        id: WriteId,
        durable: bool,
        sure: bool,
        parts: bool,
    },
    Flush {
        disks: Vec<usize>,
    },
    Compare {
        disk: usize,
        lba: u64,
        versions: Vec<Version>,
    },
}

/// A command that has not been answered.
pub struct Outstanding {
    pub job: Job,
    /// The moment it was sent.
    pub moment: u64,
    /// The time it was sent.
    pub time: u64,
    /// What the host sends with it when asked.
    pub data: Vec<u8>,
    /// Unlike any other's.
    pub serial: u64,
    /// An Abort has been sent for it.
    pub aborted: bool,
}

impl fmt::Debug for Outstanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, sent at {} ns (moment {})", self.job, self.time, self.moment)
    }
}

/// One queue, as its host sees it.
#[derive(Debug)]
pub struct HostQueue {
    pub connection: usize,
    pub qid: u16,
    pub entries: u16,
    pub flow_control: bool,
    pub connected: bool,
    pub commands: BTreeMap<u16, VecDeque<Outstanding>>,
    pub(super) completions: u64,
}

impl HostQueue {
    /// Commands that have not been answered.
    pub fn outstanding(&self) -> usize {
        self.commands.values().map(VecDeque::len).sum()
    }
}

/// What a host is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is connected.
    Off,
    /// The admin queue is being connected, or the controller prepared.
    Preparing,
    /// The I/O queues are being connected.
    Attaching,
    /// At work.
    Running,
    /// Waiting for a reset to finish.
    Resetting,
    /// Waiting for a shutdown to finish.
    Stopping,
}

/// One host with one controller at a time.
#[derive(Debug)]
pub struct Host {
    pub(super) number: usize,
    /// Whose name it has.
    pub identity: usize,
    pub subsystem: usize,
    pub phase: Phase,
    pub epoch: u32,
    pub queues: Vec<Option<HostQueue>>,
    /// Connections of the life before: the admin queue's first.
    pub(super) old: Vec<usize>,
    pub(super) resume_at: u64,
    pub(super) script: VecDeque<Job>,
    pub(super) cntlid: u16,
    pub(super) want_queues: u16,
    pub(super) entries: u16,
    pub(super) flow_control: bool,
    pub(super) kato: u32,
    pub(super) last_sent: u64,
    /// It has stopped talking to see what happens.
    pub silent: bool,
    pub write_through: bool,
    /// Namespaces that it knows of, with their sizes.
    pub known: BTreeMap<u32, Option<u64>>,
    /// The group of each, and the state of its path.
    pub paths: BTreeMap<u32, (u32, AnaState)>,
    /// It has been told of an event and not finished looking.
    pub looking: bool,
    pub(super) masked: bool,
    /// The same of its paths.
    pub(super) paths_masked: bool,
    pub(super) event_requests: u32,
    /// Writes that were never answered, and on which queue.
    pub unknown: Vec<(WriteId, u16)>,
    /// Aborts that said "aborted" before the command itself ended, and the other way round.
    pub(super) claims: BTreeMap<u64, bool>,
    pub(super) next_cid: u16,
    pub busy: u64,
    /// In the end: which block of which namespace is read next.
    pub sweep: Option<(u32, u64)>,
}

impl Host {
    /// A host.
    pub fn new(number: usize, random: &mut Random, scenario: &Scenario) -> Self {
        let shared = number > 0 && random.permille(250);
        Self {
            number,
            identity: if shared { number - 1 } else { number },
            subsystem: random.index(scenario.subsystems),
            phase: Phase::Off,
            epoch: 0,
            queues: Vec::new(),
            old: Vec::new(),
            resume_at: 0,
            script: VecDeque::new(),
            cntlid: 0,
            want_queues: u16::try_from(random.between(1, 4)).unwrap(),
            entries: *random.pick(&[2, 4, 16, 32]),
            flow_control: random.permille(700),
            kato: *random.pick(&[0, 300, 500, 1000, 2000]),
            last_sent: 0,
            silent: false,
            write_through: false,
            known: BTreeMap::new(),
            paths: BTreeMap::new(),
            looking: false,
            masked: false,
            paths_masked: false,
            event_requests: 0,
            unknown: Vec::new(),
            claims: BTreeMap::new(),
            next_cid: 0,
            busy: random.spread(100 * US, 20 * MS),
            sweep: None,
        }
    }

    /// Its admin queue, while it has one.
    pub(super) fn admin(&self) -> Option<&HostQueue> {
        self.queues.first().and_then(Option::as_ref)
    }

    /// Whether it waits for what it has asked about its namespaces and paths.
    pub(super) fn is_still_looking(&self) -> bool {
        self.unanswered().iter().any(|(_, command)| {
            matches!(command.job, Job::Size(_) | Job::ActiveList | Job::ChangedLog | Job::Paths)
        })
    }

    /// Commands that have not been answered, apart from those that wait for events.
    pub fn unanswered(&self) -> Vec<(u16, &Outstanding)> {
        self.queues
            .iter()
            .flatten()
            .flat_map(|queue| queue.commands.values().flatten().map(|command| (queue.qid, command)))
            .filter(|(_, command)| !matches!(command.job, Job::EventRequest))
            .collect()
    }
}

/// Where the data of a command goes.
#[derive(Debug)]
pub enum Payload {
    None,
    /// From the host.
    Out(Vec<u8>),
    /// To the host, so many bytes.
    In(u32),
    /// As the command says by itself.
    AsIs(Vec<u8>),
}

impl World {
    /// Sends a command.
    pub fn submit(&mut self, host: usize, queue: usize, sqe: Sqe, payload: Payload, job: Job) {
        let moment = self.moment();
        let me = &mut self.hosts[host];
        me.last_sent = self.now;
        let Some(own) = me.queues[queue].as_mut() else { return };
        let mut cid = me.next_cid;
        while own.commands.contains_key(&cid) {
            cid = cid.wrapping_add(1);
        }
        // Linux keeps a count in the upper bits.
        me.next_cid =
            cid.wrapping_add(1).wrapping_add(if moment.is_multiple_of(7) { 0x1000 } else { 0 });
        let sqe = sqe.with_cid(cid);
        self.submit_as(host, queue, sqe, payload, job);
    }

    /// Sends a command whose identifier is set.
    pub fn submit_as(&mut self, host: usize, queue: usize, sqe: Sqe, payload: Payload, job: Job) {
        let moment = self.moment();
        let Some(own) = self.hosts[host].queues[queue].as_mut() else { return };
        let (connection, qid) = (own.connection, own.qid);
        let (sqe, data, inside) = match payload {
            Payload::None => (sqe, Vec::new(), false),
            Payload::In(length) => (sqe.with_sgl(Sgl::TransportData { length }), Vec::new(), false),
            Payload::Out(data) => {
                let length = u32::try_from(data.len()).unwrap();
                let inside = length <= IN_CAPSULE && self.random.permille(500);
                let sgl = if inside {
                    Sgl::InCapsule { offset: 0, length }
                } else {
                    Sgl::TransportData { length }
                };
                (sqe.with_sgl(sgl), data, inside)
            }
            Payload::AsIs(data) => {
                let inside = matches!(sqe.sgl(), Sgl::InCapsule { .. });
                (sqe, data, inside)
            }
        };
        let cid = sqe.cid.get();
        if matches!(job, Job::Read { .. } | Job::Compare { .. }) {
            self.oracle.read_sent(moment);
        }
        self.trace.note(
            self.now,
            &[30, host as u64, qid.into(), cid.into(), sqe.opcode.into()],
            || format!("host {host}: queue {qid} command {cid:#x}: {job:?} (moment {moment})"),
        );
        let capsule = if inside { data.clone() } else { Vec::new() };
        let outstanding =
            Outstanding { job, moment, time: self.now, data, serial: moment, aborted: false };
        let Some(own) = self.hosts[host].queues[queue].as_mut() else { return };
        own.commands.entry(cid).or_default().push_back(outstanding);
        self.send_up(connection, Up::Capsule(Box::new(sqe), capsule));
    }

    /// The target asks for a command's data.
    pub fn host_asked(
        &mut self,
        connection: usize,
        cid: u16,
        request: target::RequestId,
        length: u32,
    ) {
        let host = self.connections[connection].host;
        let queue = self.hosts[host].queues.iter().flatten().find(|q| q.connection == connection);
        let commands = queue.and_then(|queue| queue.commands.get(&cid));
        let Some(command) =
            commands.and_then(|commands| commands.iter().find(|command| !command.data.is_empty()))
        else {
            panic!("host {host} is asked for data of {cid:#x}, which has none");
        };
        let length = usize::try_from(length).unwrap();
        assert_eq!(
            length,
            command.data.len(),
            "host {host} is asked for more or less than there is"
        );
        let data = command.data.clone();
        let mut from = 0;
        while from < length {
            let piece = usize::try_from(self.random.spread(512, 1 << 16)).unwrap();
            let to = (from + piece).min(length);
            let piece = data[from..to].to_vec();
            self.send_up(connection, Up::Data(request, u32::try_from(from).unwrap(), piece));
            from = to;
        }
    }

    /// A completion has come.
    pub fn host_answered(&mut self, connection: usize, cqe: &Cqe, data: &[u8]) {
        let moment = self.moment();
        let host = self.connections[connection].host;
        let me = &mut self.hosts[host];
        let at = me
            .queues
            .iter()
            .position(|queue| queue.as_ref().is_some_and(|queue| queue.connection == connection));
        let Some(at) = at else { return };
        let Some(queue) = me.queues[at].as_mut() else { return };
        let (cid, status) = (cqe.cid.get(), cqe.status());
        queue.completions += 1;
        let expected = if queue.flow_control {
            u16::try_from(queue.completions % u64::from(queue.entries)).unwrap()
        } else {
            0xffff
        };
        if queue.connected {
            assert_eq!(cqe.sqhd.get(), expected, "SQHD of queue {} of host {host}", queue.qid);
        }
        let Some(commands) = queue.commands.get_mut(&cid) else {
            panic!(
                "host {host}, queue {}: {cid:#x} was answered and is not outstanding",
                queue.qid
            );
        };
        let conflict = status.same_code(Status::COMMAND_ID_CONFLICT);
        assert!(!conflict || commands.len() > 1, "{cid:#x} is no conflict");
        let command = if conflict { commands.pop_back() } else { commands.pop_front() };
        let Some(command) = command else { return };
        if commands.is_empty() {
            queue.commands.remove(&cid);
        }
        let qid = queue.qid;
        self.trace.note(
            self.now,
            &[
                31,
                host as u64,
                qid.into(),
                cid.into(),
                u64::from(status.to_wire()),
                cqe.result.get(),
            ],
            || {
                format!(
                    "host {host}: queue {qid} command {cid:#x} ended: {status} (moment {moment})"
                )
            },
        );
        self.check_status(host, &command, status);
        if command.aborted {
            let was = status.same_code(Status::ABORT_REQUESTED);
            if self.hosts[host].claims.insert(command.serial, was) == Some(true) {
                assert!(was, "an Abort said that {cid:#x} was aborted; it ended with {status}");
            }
        }
        match command.job {
            Job::Read { .. } | Job::Write { .. } | Job::Flush { .. } | Job::Compare { .. } => {
                self.io_ended(host, command, status, data, moment);
            }
            _ => self.admin_ended(host, at, command, cqe, data, moment),
        }
    }

    /// Whether a command may end so.
    fn check_status(&self, host: usize, command: &Outstanding, status: Status) {
        if status.same_code(Status::ABORT_REQUESTED) {
            assert!(command.aborted, "host {host}: nobody aborted {command:?}");
        }
        let excused = match command.job {
            // Not every controller has a cache to turn off.
            Job::Harmless | Job::Abort(_) | Job::EventRequest | Job::WriteThrough => true,
            Job::ConnectAdmin | Job::ConnectIo => !status.dnr(),
            Job::Compare { .. } => status.same_code(Status::COMPARE_FAILURE),
            _ => false,
        };
        let calm = self.scenario.is_calm() && self.scenario.nonsense == 0 && self.lives == 1;
        let calm = calm && !self.stopping;
        assert!(
            status.is_success() || excused || !calm,
            "host {host}: {:?} failed with {status}, and nothing was wrong",
            command.job
        );
    }

    #[allow(clippy::too_many_lines)] // One short arm per job.
    fn admin_ended(
        &mut self,
        host: usize,
        at: usize,
        command: Outstanding,
        cqe: &Cqe,
        data: &[u8],
        moment: u64,
    ) {
        let status = cqe.status();
        let ok = status.is_success();
        match command.job {
            Job::ConnectAdmin if ok => {
                let me = &mut self.hosts[host];
                me.cntlid = ConnectResult::from(cqe).cntlid;
                if let Some(queue) = me.queues[at].as_mut() {
                    queue.connected = true;
                }
                let dead: Vec<_> = me.unknown.drain(..).map(|(id, _)| id).collect();
                self.oracle.dead(&dead, moment);
                self.script(
                    host,
                    &[
                        Job::Capabilities,
                        Job::Enable,
                        Job::AwaitReady,
                        Job::Queues,
                        Job::WantEvents,
                        Job::WriteThrough,
                    ],
                );
            }
            Job::ConnectIo if ok => {
                let me = &mut self.hosts[host];
                let Some(queue) = me.queues[at].as_mut() else { return };
                queue.connected = true;
                let qid = queue.qid;
                let dead: Vec<_> =
                    me.unknown.extract_if(.., |(_, of)| *of == qid).map(|(id, _)| id).collect();
                let all = me
                    .queues
                    .iter()
                    .skip(1)
                    .all(|queue| queue.as_ref().is_some_and(|queue| queue.connected));
                if all && me.phase == Phase::Attaching {
                    me.phase = Phase::Running;
                }
                self.oracle.dead(&dead, moment);
            }
            Job::Capabilities | Job::Enable | Job::Queues | Job::WantEvents if ok => {
                self.next_in_script(host);
            }
            Job::WriteThrough => {
                self.hosts[host].write_through = ok;
                self.next_in_script(host);
            }
            Job::AwaitReady if ok => {
                let csts = ControllerStatus::from_bits(cqe.dw0());
                if csts.rdy {
                    self.hosts[host].looking = true;
                    self.ask_for_list(host);
                    self.next_in_script(host);
                } else {
                    self.script(host, &[Job::AwaitReady]);
                }
            }
            Job::Disable if ok => self.script(host, &[Job::AwaitDisabled]),
            Job::AwaitDisabled if ok => {
                if ControllerStatus::from_bits(cqe.dw0()).rdy {
                    self.script(host, &[Job::AwaitDisabled]);
                    return;
                }
                self.drop_io_queues(host);
                let me = &mut self.hosts[host];
                me.write_through = false;
                (me.masked, me.paths_masked) = (false, false);
                me.looking = false;
                let dead: Vec<_> = me.unknown.drain(..).map(|(id, _)| id).collect();
                me.phase = Phase::Preparing;
                self.oracle.dead(&dead, moment);
                self.script(host, &[Job::Enable, Job::AwaitReady, Job::Queues, Job::WantEvents]);
            }
            Job::Stop if ok => self.script(host, &[Job::AwaitStopped]),
            Job::AwaitStopped if ok => {
                if ControllerStatus::from_bits(cqe.dw0()).shst != ShutdownStatus::Complete {
                    self.script(host, &[Job::AwaitStopped]);
                    return;
                }
                self.drop_io_queues(host);
                let dead: Vec<_> = self.hosts[host].unknown.drain(..).map(|(id, _)| id).collect();
                self.oracle.dead(&dead, moment);
                self.leave(host, false);
            }
            Job::ActiveList if ok => {
                let nsids: Vec<u32> = data
                    .chunks_exact(4)
                    .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
                    .take_while(|nsid| *nsid != 0)
                    .collect();
                let me = &mut self.hosts[host];
                me.known = nsids.iter().map(|nsid| (*nsid, None)).collect();
                me.looking = true;
                self.ask_for_paths(host);
                for nsid in nsids {
                    let identify = Identify { cns: 0, ..Identify::default() };
                    let sqe = admin::Command::Identify(identify).to_sqe(nsid);
                    self.submit(host, 0, sqe, Payload::In(4096), Job::Size(nsid));
                }
            }
            Job::Size(nsid) => {
                let me = &mut self.hosts[host];
                if ok && let Some(size) = me.known.get_mut(&nsid) {
                    *size = Some(u64::from_le_bytes(data[..8].try_into().unwrap()));
                } else if !status.same_code(Status::NAMESPACE_NOT_READY) {
                    me.known.remove(&nsid);
                }
                let me = &mut self.hosts[host];
                me.looking = me.is_still_looking();
            }
            Job::Paths if ok => self.paths_read(host, data),
            Job::ChangedLog if ok => {
                self.hosts[host].masked = false;
                self.ask_for_list(host);
            }
            Job::EventRequest => {
                let me = &mut self.hosts[host];
                me.event_requests -= 1;
                if !ok {
                    return;
                }
                let event = AsyncEvent::from_dw0(cqe.dw0());
                if event == Ok(AsyncEvent::ANA_CHANGE) {
                    return self.paths_changed(host);
                }
                assert_eq!(
                    event,
                    Ok(AsyncEvent::NAMESPACE_CHANGED),
                    "an event that nothing caused"
                );
                assert!(!me.masked, "an event was reported twice before its page was read");
                me.masked = true;
                me.looking = true;
                self.ask_for_event(host);
                let log = GetLogPage::new(LogPage::ChangedNamespaces, 0, 4096);
                let sqe = admin::Command::GetLogPage(log).to_sqe(nvme::NSID_ALL);
                self.submit(host, 0, sqe, Payload::In(4096), Job::ChangedLog);
            }
            Job::Abort(serial) => {
                if ok
                    && admin::Abort::aborted(cqe)
                    && let Some(was) = self.hosts[host].claims.insert(serial, true)
                {
                    assert!(was, "an Abort says that it aborted a command that ended otherwise");
                }
            }
            Job::KeepAlive | Job::Harmless | Job::Disconnect => {}
            job => {
                // What a host cannot do without has failed: it gives up and tries again.
                self.trace.note(self.now, &[32, host as u64], || {
                    format!("host {host} gives up: {job:?}: {status}")
                });
                let abruptly = self.random.permille(500);
                self.leave(host, abruptly);
            }
        }
    }

    pub(super) fn ask_for_list(&mut self, host: usize) {
        let identify = Identify { cns: 2, ..Identify::default() };
        let sqe = admin::Command::Identify(identify).to_sqe(0);
        self.submit(host, 0, sqe, Payload::In(4096), Job::ActiveList);
    }

    pub(super) fn ask_for_event(&mut self, host: usize) {
        self.hosts[host].event_requests += 1;
        let sqe = admin::Command::AsynchronousEventRequest.to_sqe(0);
        self.submit(host, 0, sqe, Payload::None, Job::EventRequest);
    }
}
