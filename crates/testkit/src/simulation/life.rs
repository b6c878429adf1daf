//! The life of a host: how it prepares a controller, attaches its queues, loses them, goes and comes back.

use std::collections::BTreeMap;

use nvme::HostId;
use nvme::admin::{self, SetFeatures};
use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, PropertyGet, PropertySet, PropertySize,
};
use nvme::feature::Feature;
use nvme::register::{Configuration, ShutdownNotification};
use zerocopy::IntoBytes;

use super::host::{HostQueue, Job, Payload, Phase};
use super::operator::host_name;
use super::scenario::{MS, SECOND, US};
use super::wire::Target;
use super::world::{Event, World};

impl World {
    pub(super) fn script(&mut self, host: usize, jobs: &[Job]) {
        self.hosts[host].script = jobs.iter().cloned().collect();
        self.next_in_script(host);
    }

    pub(super) fn next_in_script(&mut self, host: usize) {
        let Some(job) = self.hosts[host].script.pop_front() else {
            return self.attach(host);
        };
        let set = |value: Configuration| {
            PropertySet { size: PropertySize::Four, offset: 0x14, value: value.bits().into() }
                .to_sqe()
        };
        let enabled = Configuration { en: true, iosqes: 6, iocqes: 4, ..Configuration::default() };
        let status = PropertyGet { size: PropertySize::Four, offset: 0x1c }.to_sqe();
        let feature = |set: SetFeatures| admin::Command::SetFeatures(set).to_sqe(0);
        let sqe = match job {
            Job::Capabilities => PropertyGet { size: PropertySize::Eight, offset: 0 }.to_sqe(),
            Job::Enable => set(enabled),
            Job::Disable => set(Configuration { en: false, ..enabled }),
            Job::Stop => set(Configuration { shn: ShutdownNotification::Normal, ..enabled }),
            Job::AwaitReady | Job::AwaitDisabled | Job::AwaitStopped => status,
            Job::Queues => feature(SetFeatures::new(Feature::NumberOfQueues, 0x0007_0007)),
            Job::WantEvents => feature(SetFeatures::new(Feature::AsynchronousEvents, 0x900)),
            Job::WriteThrough => {
                if !self.random.permille(150) {
                    return self.next_in_script(host);
                }
                feature(SetFeatures::new(Feature::VolatileWriteCache, 0))
            }
            _ => return,
        };
        self.submit(host, 0, sqe, Payload::None, job);
    }

    /// The controller is ready: events, then I/O queues.
    fn attach(&mut self, host: usize) {
        self.hosts[host].phase = Phase::Attaching;
        let wanted = u32::try_from(self.random.between(1, 4)).unwrap();
        while self.hosts[host].event_requests < wanted {
            self.ask_for_event(host);
        }
        for qid in 1..=self.hosts[host].want_queues {
            self.connect_queue(host, qid);
        }
    }

    /// Connects one queue.
    pub fn connect_queue(&mut self, host: usize, qid: u16) {
        let shard = self.random.index(self.nodes.len());
        let epoch = self.hosts[host].epoch;
        let connection = self.connect(host, epoch, qid, shard);
        let me = &mut self.hosts[host];
        let entries = if qid == 0 { 32 } else { me.entries };
        let place = usize::from(qid);
        if me.queues.len() <= place {
            me.queues.resize_with(place + 1, || None);
        }
        me.queues[place] = Some(HostQueue {
            connection,
            qid,
            entries,
            flow_control: me.flow_control,
            connected: false,
            commands: BTreeMap::new(),
            completions: 0,
        });
        let connect = Connect {
            recfmt: 0,
            qid,
            sqsize: entries - 1,
            cattr: ConnectAttributes {
                disable_sq_flow_control: !me.flow_control,
                ..ConnectAttributes::default()
            },
            kato: if qid == 0 { me.kato } else { 0 },
        };
        let mut id = [7; 16];
        id[0] = u8::try_from(me.identity).unwrap();
        let cntlid = if qid == 0 { CNTLID_DYNAMIC } else { me.cntlid };
        let data = ConnectData::new(
            HostId(id),
            cntlid,
            &self.operator.subsystems[me.subsystem],
            &host_name(me.identity),
        );
        let job = if qid == 0 { Job::ConnectAdmin } else { Job::ConnectIo };
        let data = data.as_bytes().to_vec();
        self.submit(host, place, connect.to_sqe(), Payload::Out(data), job);
    }

    /// The target has closed a connection.
    pub fn host_closed(&mut self, connection: usize) {
        let host = self.connections[connection].host;
        let me = &self.hosts[host];
        let Some(at) = me
            .queues
            .iter()
            .position(|queue| queue.as_ref().is_some_and(|queue| queue.connection == connection))
        else {
            return;
        };
        self.trace.note(self.now, &[33, host as u64, at as u64], || {
            format!("host {host}: queue {at} is gone")
        });
        let expected = matches!(me.phase, Phase::Resetting | Phase::Stopping);
        self.lose_queue(host, at);
        if at == 0 {
            let abruptly = self.random.permille(500);
            self.leave(host, abruptly);
        } else if !expected {
            // Linux gives up the controller; others just connect the queue again.
            if self.hosts[host].phase == Phase::Running && self.random.permille(500) {
                self.connect_queue(host, u16::try_from(at).unwrap());
            } else {
                let abruptly = self.random.permille(500);
                self.leave(host, abruptly);
            }
        }
    }

    /// A queue is no more: what was outstanding on it will never be known.
    pub fn lose_queue(&mut self, host: usize, at: usize) {
        let Some(queue) = self.hosts[host].queues.get_mut(at).and_then(Option::take) else {
            return;
        };
        for command in queue.commands.into_values().flatten() {
            match command.job {
                Job::Write { id, .. } => self.hosts[host].unknown.push((id, queue.qid)),
                Job::Read { .. } | Job::Compare { .. } => self.oracle.read_ended(command.moment),
                Job::EventRequest => self.hosts[host].event_requests -= 1,
                _ => {}
            }
        }
        self.hosts[host].old.push(queue.connection);
    }

    pub(super) fn drop_io_queues(&mut self, host: usize) {
        for at in 1..self.hosts[host].queues.len() {
            if let Some(queue) = &self.hosts[host].queues[at] {
                let connection = queue.connection;
                self.close_host(connection, false);
            }
            self.lose_queue(host, at);
        }
        self.hosts[host].queues.truncate(1);
    }

    /// The host lets go of its controller, whatever is outstanding.
    pub fn leave(&mut self, host: usize, abruptly: bool) {
        let order = self.hosts[host].queues.len();
        for at in 0..order {
            if let Some(queue) = &self.hosts[host].queues[at] {
                let connection = queue.connection;
                self.close_host(connection, abruptly);
            }
            self.lose_queue(host, at);
        }
        let back_at_once = self.random.permille(500);
        let pause = if back_at_once { 0 } else { self.random.spread(MS, SECOND) };
        let me = &mut self.hosts[host];
        me.queues.clear();
        me.phase = Phase::Off;
        me.epoch += 1;
        me.script.clear();
        me.claims.clear();
        me.silent = false;
        me.write_through = false;
        (me.masked, me.paths_masked) = (false, false);
        me.looking = false;
        me.event_requests = 0;
        me.sweep = None;
        me.resume_at = self.now + pause;
        self.trace.note(self.now, &[34, host as u64], || format!("host {host} is off"));
    }

    /// All writes that were never answered are known to be over.
    pub fn forget_unknown_writes(&mut self) {
        for host in &mut self.hosts {
            host.unknown.clear();
        }
    }

    /// A controller was given up for silence: was its host silent?
    pub fn check_keep_alive(&self, number: usize) {
        let connection = &self.connections[number];
        let host = &self.hosts[connection.host];
        let alive = connection.host_open && host.epoch == connection.epoch && !host.silent;
        assert!(
            !alive,
            "host {} was not silent: it said something at {}",
            host.number, host.last_sent
        );
    }

    /// Whether the target has learned that the life before is over: of its admin queue, or of all others.
    fn old_life_is_over(&self, host: usize) -> bool {
        let closed = |number: &usize| self.connections[*number].target == Target::Closed;
        let old = &self.hosts[host].old;
        match old.iter().find(|number| self.connections[**number].qid == 0) {
            Some(admin) if closed(admin) => true,
            _ => old.iter().all(|number| self.connections[*number].qid == 0 || closed(number)),
        }
    }

    /// A host's next step.
    pub fn host_step(&mut self, host: usize) {
        let me = &self.hosts[host];
        if me.phase == Phase::Off {
            if me.resume_at <= self.now && self.old_life_is_over(host) && !self.stopping {
                self.hosts[host].phase = Phase::Preparing;
                self.hosts[host].old.clear();
                self.connect_queue(host, 0);
            }
        } else {
            self.misfortune(host);
        }
        if self.hosts[host].admin().is_some_and(|admin| admin.connected) {
            let me = &self.hosts[host];
            let half = u64::from(me.kato) * MS / 2;
            if half > 0 && self.now >= me.last_sent + half && !me.silent {
                let sqe = admin::Command::KeepAlive.to_sqe(0);
                self.submit(host, 0, sqe, Payload::None, Job::KeepAlive);
            }
        }
        if self.hosts[host].phase == Phase::Running && !self.hosts[host].silent {
            self.work(host);
        }
        let busy = self.hosts[host].busy;
        let pause = self.random.spread(10 * US, busy.max(20 * US));
        self.at(self.now + pause, Event::Host(host));
    }

    /// A host crashes, if it is at work, and is back before long.
    pub fn crash(&mut self, host: usize) {
        if self.hosts[host].phase == Phase::Running && !self.resting && !self.stopping {
            self.leave(host, true);
            let soon = self.now + self.random.spread(US, MS);
            self.hosts[host].resume_at = soon;
        }
    }

    fn misfortune(&mut self, host: usize) {
        if self.resting {
            if self.hosts[host].silent {
                self.leave(host, true);
            }
            return;
        }
        let me = &self.hosts[host];
        let enough = 2 * u64::from(me.kato) * MS + 3 * SECOND;
        assert!(
            !me.silent || me.kato == 0 || self.now < me.last_sent + enough,
            "host {host} has been silent since {} and still has its controller",
            me.last_sent
        );
        self.lose_patience(host);
        // The more often a host steps, the less happens to it in each step.
        let chance = self.scenario.misfortunes * 1000;
        if self.random.below(1_000_000) >= chance / 10 {
            return;
        }
        let running = self.hosts[host].phase == Phase::Running;
        match self.random.below(10) {
            0..4 => {
                let abruptly = self.random.permille(700);
                self.leave(host, abruptly);
            }
            4 | 5 if running => {
                self.hosts[host].phase = Phase::Resetting;
                self.script(host, &[Job::Disable]);
            }
            6 if running => {
                self.hosts[host].phase = Phase::Stopping;
                self.script(host, &[Job::Stop]);
            }
            7 if running => self.hosts[host].silent = true,
            _ if running => {
                let queues = self.hosts[host].queues.len();
                let at = usize::try_from(self.random.between(1, queues as u64 - 1)).unwrap();
                let Some(queue) = &self.hosts[host].queues[at] else { return };
                let connection = queue.connection;
                if self.random.permille(500) {
                    let sqe = nvme::fabrics::Disconnect::default().to_sqe();
                    self.submit(host, at, sqe, Payload::None, Job::Disconnect);
                } else {
                    self.close_host(connection, true);
                    self.lose_queue(host, at);
                    self.connect_queue(host, u16::try_from(at).unwrap());
                }
            }
            _ => {}
        }
    }

    /// A command has taken too long: the host aborts it, and gives up if that does not help.
    fn lose_patience(&mut self, host: usize) {
        let late = |limit: u64| {
            let now = self.now;
            self.hosts[host].unanswered().iter().any(|(_, command)| command.time + limit < now)
        };
        if late(8 * SECOND) || (self.hosts[host].silent && late(4 * SECOND)) {
            self.leave(host, true);
        }
    }
}
