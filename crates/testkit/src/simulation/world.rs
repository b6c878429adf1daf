//! The world: one list of things that will happen, in the order of their time, and everything they happen to.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE, Segment};
use target::configuration::Configuration;
use target::{Instant, Message, QueueId, RequestId, Shard, ShardConfig, ShardIndex, ShardLimits};

use super::host::Host;
use super::operator::Operator;
use super::oracle::Oracle;
use super::scenario::{Scenario, US};
use super::trace::Trace;
use super::wire::Connection;
use crate::Random;
use crate::disk::{Agenda, Disk};

/// Turns of one shard, without a pause of the clock, after which it is thought to run in circles.
const TURNS_MOST: u64 = 4_000_000;

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A shard's turn.
    Turn(usize),
    /// Something for a shard to look at has come.
    Wake(usize),
    /// The same, on this connection.
    Readable(usize),
    /// Something has come to the host's end of a connection.
    ToHost(usize),
    /// A socket has let go of a response.
    Sent(usize, RequestId),
    /// A host does its next step.
    Host(usize),
    /// A host crashes.
    Crash(usize),
    /// The operator does the next thing.
    Operator,
    /// A shard is handed a configuration.
    Configure(usize),
}

/// One shard and what is around it.
#[derive(Debug)]
pub struct Node {
    /// The shard.
    pub shard: Shard,
    /// Its memory.
    pub pool: Pool,
    /// Memory that somebody else has.
    _taken: Vec<Buffer>,
    next_turn: Option<u64>,
    /// A message that did not fit in its mailbox.
    blocked: Option<(usize, Message)>,
    /// Connections that are not closed.
    pub connections: Vec<usize>,
    /// Of those, the ones that are served.
    pub by_queue: BTreeMap<QueueId, usize>,
    /// Commands taken and not answered, with their connections and identifiers.
    pub requests: BTreeMap<RequestId, (usize, u16)>,
    /// Memory of connections that are gone.
    pub lingering: Vec<(u64, Segment)>,
    /// Configurations that it is still to be handed.
    pub configurations: VecDeque<Arc<Configuration>>,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// The time.
    pub now: u64,
    /// Counts moments, so that no two are the same.
    moments: u64,
    /// What kind of world this is.
    pub scenario: Scenario,
    /// What decides.
    pub random: Random,
    /// What has happened.
    pub trace: Trace,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    turns: u64,
    /// The shards.
    pub nodes: Vec<Node>,
    mail: Vec<VecDeque<(u64, Message)>>,
    /// Every connection that there ever was.
    pub connections: Vec<Connection>,
    /// The disks.
    pub disks: Vec<Arc<Disk>>,
    /// When shards have to look at their disks.
    pub agenda: Rc<RefCell<Agenda>>,
    /// What reads may return.
    pub oracle: Oracle,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// Who changes the configuration.
    pub operator: Operator,
    /// How often the target has been started.
    pub lives: u32,
    /// Nothing new is begun any more.
    pub resting: bool,
    /// The target is being shut down.
    pub stopping: bool,
}

impl World {
    /// The world of this seed, at its beginning.
    pub fn new(seed: u64, printing: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::draw(&mut random);
        let mut oracle = Oracle::default();
        let disks: Vec<_> = (0..scenario.disks)
            .map(|number| {
                oracle.add_disk(scenario.blocks);
                scenario.disk(format!("disk{number}"), &mut random)
            })
            .collect();
        let operator = Operator::new(&mut random, &scenario, &disks);
        let hosts =
            (0..scenario.hosts).map(|number| Host::new(number, &mut random, &scenario)).collect();
        let mut world = Self {
            now: 0,
            moments: 0,
            random,
            trace: Trace::new(printing),
            events: BinaryHeap::new(),
            scheduled: 0,
            turns: 0,
            nodes: Vec::new(),
            mail: Vec::new(),
            connections: Vec::new(),
            disks,
            agenda: Rc::default(),
            oracle,
            hosts,
            operator,
            lives: 0,
            resting: false,
            stopping: false,
            scenario,
        };
        let text = format!("{:?}", world.scenario);
        world.trace.note(0, &[seed], || text);
        world.start_target();
        for host in 0..world.hosts.len() {
            let at = world.random.spread(US, 100_000 * US);
            world.at(at, Event::Host(host));
        }
        let at = world.operator_pause();
        world.at(at, Event::Operator);
        world
    }

    /// The process starts: shards without a configuration, then with one.
    pub fn start_target(&mut self) {
        self.lives += 1;
        let shards = self.scenario.shards;
        let capacity = 2 * shards * SLAB_SIZE;
        let arena = Arena::new(ArenaConfig { capacity, hugepages: Hugepages::Never });
        self.mail = (0..shards * shards).map(|_| VecDeque::new()).collect();
        self.nodes.clear();
        for index in 0..shards {
            let pool = arena.pool(SLAB_SIZE).unwrap();
            let mut taken = Vec::new();
            let mut left = self.scenario.pool_taken;
            while left > 0 {
                let piece = left.min(512 << 10);
                taken.push(pool.take(piece).unwrap());
                left -= piece;
            }
            let limits = ShardLimits {
                requests: self.scenario.requests,
                queues: self.scenario.queues,
                connect_timeout: Duration::from_secs(2),
                drain_wait: Duration::from_millis(900),
                fence_after: Duration::from_millis(1500),
                command_deadline: Duration::from_secs(3),
            };
            let index = u16::try_from(index).unwrap();
            let shard = Shard::new(ShardConfig {
                index: ShardIndex(index),
                shards: u16::try_from(shards).unwrap(),
                pool: pool.clone(),
                limits,
                now: Instant::from_nanos(self.now),
            });
            self.nodes.push(Node {
                shard,
                pool,
                _taken: taken,
                next_turn: None,
                blocked: None,
                connections: Vec::new(),
                by_queue: BTreeMap::new(),
                requests: BTreeMap::new(),
                lingering: Vec::new(),
                configurations: VecDeque::new(),
            });
        }
        let configuration = Arc::clone(&self.operator.configuration);
        self.publish(&configuration);
    }

    /// The process ends without a word; with `power`, the machine.
    pub fn end_target(&mut self, power: bool) {
        self.trace.note(self.now, &[5, u64::from(power)], || {
            format!("======== the {} ends", if power { "power" } else { "process" })
        });
        self.break_connections();
        self.mail.clear();
        for disk in &self.disks {
            disk.set_time(self.now);
        }
        self.nodes.clear();
        self.agenda.borrow_mut().take();
        let moment = self.moment();
        if power {
            for disk in &self.disks {
                disk.cut();
            }
            self.oracle.power_lost(moment);
        } else {
            self.oracle.killed(moment);
        }
        self.operator.forget_pauses();
        self.forget_unknown_writes();
    }

    /// Every shard will be handed this, each in its own time.
    pub fn publish(&mut self, configuration: &Arc<Configuration>) {
        for shard in 0..self.nodes.len() {
            self.nodes[shard].configurations.push_back(Arc::clone(configuration));
            let at = self.now + self.random.spread(self.scenario.mail.0, self.scenario.mail.1);
            self.at(at, Event::Configure(shard));
        }
    }

    /// A moment unlike all others.
    pub fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// Something will happen.
    pub fn at(&mut self, time: u64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((time.max(self.now), self.scheduled, event)));
    }

    /// A shard has something to do.
    pub fn wake(&mut self, shard: usize) {
        let gap = self.random.spread(self.scenario.turn.0, self.scenario.turn.1);
        self.turn_at(shard, self.now + gap);
    }

    fn turn_at(&mut self, shard: usize, time: u64) {
        let Some(node) = self.nodes.get_mut(shard) else { return };
        if node.next_turn.is_none_or(|next| time < next) {
            node.next_turn = Some(time);
            self.at(time, Event::Turn(shard));
        }
    }

    /// Lets happen what happens until `end`, or until `done` is true.
    pub fn run(&mut self, end: u64, mut done: impl FnMut(&Self) -> bool) {
        while let Some(Reverse((time, _, event))) = self.events.peek().copied() {
            if time > end {
                break;
            }
            self.events.pop();
            self.now = time;
            self.happen(event);
            let wakes = self.agenda.borrow_mut().take();
            for (at, shard) in wakes {
                self.at(at, Event::Wake(shard));
            }
            if done(self) {
                return;
            }
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn(shard) => {
                let due = self.nodes.get(shard).and_then(|node| node.next_turn);
                if due == Some(self.now) {
                    self.nodes[shard].next_turn = None;
                    self.turn(shard);
                }
            }
            Event::Wake(shard) => self.wake(shard),
            Event::Readable(number) => self.wake(self.connections[number].shard),
            Event::ToHost(number) => self.arrive_at_host(number),
            Event::Sent(number, request) => self.sent(number, request),
            Event::Host(host) => self.host_step(host),
            Event::Crash(host) => self.crash(host),
            Event::Operator => self.operator_step(),
            Event::Configure(shard) => self.configure(shard),
        }
    }

    fn configure(&mut self, shard: usize) {
        let agenda = Rc::clone(&self.agenda);
        let disks = self.disks.clone();
        let Some(node) = self.nodes.get_mut(shard) else { return };
        let Some(configuration) = node.configurations.pop_front() else { return };
        let version = configuration.version();
        let errors = node.shard.configure(configuration, &mut |device| {
            let disk = disks.iter().find(|disk| disk.name_is(device)).expect("one of ours");
            Ok(Box::new(disk.queue(&agenda, shard)))
        });
        assert!(errors.is_empty(), "{errors:?}");
        self.trace.note(self.now, &[6, shard as u64, version], || {
            format!("shard {shard} has configuration {version}")
        });
        self.wake(shard);
    }

    fn turn(&mut self, shard: usize) {
        self.turns += 1;
        assert!(self.turns < TURNS_MOST, "the shards do not come to rest");
        for disk in &self.disks {
            disk.set_time(self.now);
        }
        self.take_mail(shard);
        let now = Instant::from_nanos(self.now);
        self.nodes[shard].lingering.retain(|(due, _)| *due > now.as_nanos());
        let worked = self.nodes[shard].shard.poll(now);
        self.trace.note(self.now, &[7, shard as u64, u64::from(worked)], || {
            format!("shard {shard}: turn{}", if worked { ", with work" } else { "" })
        });
        self.port_read(shard);
        self.nodes[shard].shard.poll(now);
        self.port_flush(shard);
        self.send_mail(shard);
        self.plan_turn(shard);
    }

    fn take_mail(&mut self, shard: usize) {
        let shards = self.nodes.len();
        for from in 0..shards {
            let mail = &mut self.mail[from * shards + shard];
            let mut budget = 8;
            while budget > 0
                && let Some((_, message)) = mail.pop_front_if(|(due, _)| *due <= self.now)
            {
                budget -= 1;
                self.trace.note(self.now, &[8, from as u64, shard as u64], || {
                    format!("shard {shard} reads of shard {from}: {message:?}")
                });
                self.nodes[shard].shard.deliver(message);
            }
        }
    }

    fn send_mail(&mut self, shard: usize) {
        let shards = self.nodes.len();
        loop {
            let next = self.nodes[shard].blocked.take().or_else(|| {
                let (to, message) = self.nodes[shard].shard.next_message()?;
                assert!(usize::from(to.0) < shards, "a message to nobody");
                Some((usize::from(to.0), message))
            });
            let Some((to, message)) = next else { return };
            assert_ne!(to, shard, "a message to itself left the shard");
            let mail = &mut self.mail[shard * shards + to];
            if mail.len() >= self.scenario.mailbox {
                self.nodes[shard].blocked = Some((to, message));
                return;
            }
            let delay = self.random.spread(self.scenario.mail.0, self.scenario.mail.1);
            let due = mail.back().map_or(0, |(due, _)| *due).max(self.now + delay);
            mail.push_back((due, message));
            self.at(due, Event::Wake(to));
        }
    }

    /// A shard sleeps until something comes, unless it says that there is work.
    fn plan_turn(&mut self, shard: usize) {
        let shards = self.nodes.len();
        let node = &self.nodes[shard];
        let mail = (0..shards).any(|from| {
            self.mail[from * shards + shard].front().is_some_and(|(due, _)| *due <= self.now)
        });
        let busy = mail
            || node.blocked.is_some()
            || node.shard.has_work()
            || node.shard.has_actions(super::wire::PORT)
            || node
                .connections
                .iter()
                .any(|number| self.is_readable(*number) || self.is_sending(*number));
        let deadline = node.shard.next_deadline();
        if busy {
            self.wake(shard);
        }
        if let Some(deadline) = deadline {
            self.turn_at(shard, deadline.as_nanos().max(self.now + US));
        }
    }

    /// Whether no message is under way and no shard has anything to do.
    pub fn is_silent(&self) -> bool {
        self.mail.iter().all(VecDeque::is_empty)
            && self.nodes.iter().all(|node| {
                node.blocked.is_none()
                    && !node.shard.has_work()
                    && node.configurations.is_empty()
                    && node.lingering.is_empty()
            })
    }

    /// What the target knows of a connection; for reports.
    pub fn describe(&self, number: usize) -> String {
        let connection = &self.connections[number];
        let node = &self.nodes[connection.shard];
        let owed: Vec<_> = node.requests.iter().filter(|(_, (of, _))| *of == number).collect();
        format!("{connection:?}\n  taken and not answered: {owed:?}\n  memory: {:?}", node.pool)
    }

    /// Every shard is empty: nothing of anybody is left.
    pub fn check_empty(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let shard = &node.shard;
            assert_eq!(shard.requests_in_use(), 0, "shard {index} keeps requests: {shard:#?}");
            assert_eq!(shard.queues_in_use(), 0, "shard {index} keeps queues");
            assert_eq!(shard.controllers_in_use(), 0, "shard {index} keeps controllers");
            let whole = node.pool.capacity() - self.scenario.pool_taken;
            assert_eq!(node.pool.available(), whole, "shard {index} keeps memory");
            assert!(node.requests.is_empty(), "shard {index} owes answers");
        }
        for (number, disk) in self.disks.iter().enumerate() {
            assert_eq!(disk.outstanding(), 0, "disk {number} holds operations");
        }
    }
}
