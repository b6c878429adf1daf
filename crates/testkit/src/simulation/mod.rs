//! The target core in a world of which every chance is drawn from one number.
//!
//! Shards of the real [`target::Shard`], and around them, simulated: the clock, the mailboxes between them, the
//! wire and the transports, hosts of several tempers, disks, and an operator. Nothing in it knows a real clock, a
//! socket or a thread, so a seed gives the same world every time, to the last event ([`Report::hash`]).
//!
//! Who judges: the [`oracle`] says what a read may return; the simulated transport sees that each command is
//! answered once, and the hosts that the answer makes sense; in the end everything has to have been given back.
//! A judge that is not content panics; [`run`] lets that through.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::needless_pass_by_value,
    clippy::missing_panics_doc,
    missing_docs
)]

pub mod host;
pub mod life;
pub mod operator;
pub mod oracle;
mod paths;
pub mod scenario;
pub mod trace;
pub mod wire;
pub mod workload;
pub mod world;

use host::Phase;
use scenario::{MS, SECOND};
use world::World;

/// What came of a run in which nobody complained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// The same for the same events.
    pub hash: u64,
    /// Number of events.
    pub events: u64,
    /// Simulated nanoseconds.
    pub time: u64,
    /// What the shards counted, all together, since the last start.
    pub counted: Counted,
}

/// A few of the shards' counters: whether the worlds are rough enough to show anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub commands: u64,
    pub operations: u64,
    pub stalls: u64,
    pub pool_empty: u64,
    pub connects_waited: u64,
    pub connects_deferred: u64,
    pub keep_alive_expired: u64,
    pub events_reported: u64,
    pub aborts: u64,
    pub fences: u64,
    pub overdue: u64,
    pub messages: u64,
    pub held_back: u64,
}

impl std::ops::AddAssign for Counted {
    fn add_assign(&mut self, other: Self) {
        self.commands += other.commands;
        self.operations += other.operations;
        self.stalls += other.stalls;
        self.pool_empty += other.pool_empty;
        self.connects_waited += other.connects_waited;
        self.connects_deferred += other.connects_deferred;
        self.keep_alive_expired += other.keep_alive_expired;
        self.events_reported += other.events_reported;
        self.aborts += other.aborts;
        self.fences += other.fences;
        self.overdue += other.overdue;
        self.messages += other.messages;
        self.held_back += other.held_back;
    }
}

/// Lets the world of this seed live, rest and end. Panics if something was wrong; `printing`: tells everything
/// that happens on standard error.
pub fn run(seed: u64, printing: bool) -> Report {
    let mut world = World::new(seed, printing);
    let duration = world.scenario.duration;
    world.run(duration, |world| world.trace.events() > world.scenario.events);
    if world.scenario.shutdown {
        shut_down(&mut world);
    }
    rest(&mut world);
    let report = Report {
        hash: world.trace.hash(),
        events: world.trace.events(),
        time: world.now,
        counted: count(&world),
    };
    part(&mut world);
    report
}

fn count(world: &World) -> Counted {
    let mut counted = Counted::default();
    for node in &world.nodes {
        let c = node.shard.counters();
        counted += Counted {
            commands: c.commands,
            operations: c.operations,
            stalls: c.stalls,
            pool_empty: c.pool_empty,
            connects_waited: c.connects_waited,
            connects_deferred: c.connects_deferred,
            keep_alive_expired: c.keep_alive_expired,
            events_reported: c.events_reported,
            aborts: c.aborts,
            fences: c.fences,
            overdue: c.overdue,
            messages: c.messages_sent,
            held_back: 0,
        };
    }
    for subsystem in world.operator.configuration.subsystems() {
        let namespaces = subsystem.namespaces().iter();
        counted.held_back += namespaces.map(|it| it.statistics().total().held_back).sum::<u64>();
    }
    counted
}

/// An orderly end with everything in flight, then a loss of power: nothing that was acknowledged is lost.
fn shut_down(world: &mut World) {
    world.operator_rests();
    world.stopping = true;
    world.trace.note(world.now, &[40], || "======== the target is shut down".to_owned());
    for node in &mut world.nodes {
        node.shard.begin_shutdown();
    }
    world.wake_all();
    let drained = |world: &World| world.nodes.iter().all(|node| node.shard.drained().is_ok());
    world.run(world.now + 30 * SECOND, drained);
    for node in &world.nodes {
        if let Err(stuck) = node.shard.drained() {
            panic!("the shutdown does not end: {stuck:?}");
        }
    }
    let moment = world.moment();
    // Only what is exported is flushed; and while that changes nobody can say what it is.
    if world.operator.changed_at + SECOND < world.now {
        for disk in world.operator.served_disks() {
            world.oracle.flushed(disk, moment, moment);
        }
    }
    world.end_target(true);
    world.stopping = false;
    world.start_target();
}

/// Nothing new is begun and nothing fails any more: everything has to be answered, everybody has to know
/// what there is, and every block has to be readable.
fn rest(world: &mut World) {
    world.resting = true;
    world.operator_rests();
    world.trace.note(world.now, &[41], || "======== rest".to_owned());
    let settled = |world: &World| {
        world.hosts.iter().enumerate().all(|(number, host)| match host.phase {
            Phase::Off => !world.operator.admits(host.subsystem, host.identity),
            Phase::Running => {
                world.has_swept(number) && !host.looking && host.unanswered().is_empty()
            }
            _ => false,
        })
    };
    world.run(world.now + 60 * SECOND, |world| settled(world) && world.is_silent());
    for (number, host) in world.hosts.iter().enumerate() {
        if let Some((qid, command)) = host.unanswered().first() {
            let place = host.queues[usize::from(*qid)].as_ref().map(|queue| queue.connection);
            let place = place.map(|connection| world.describe(connection));
            panic!("host {number}, queue {qid}: never answered: {command:?}\n  {}", place.unwrap());
        }
    }
    // Time for what is told by housekeeping.
    world.run(world.now + SECOND, |_| false);
    world.run(world.now + 30 * SECOND, |world| settled(world) && world.is_silent());
    assert!(world.is_silent(), "the shards go on talking");
    for (number, host) in world.hosts.iter().enumerate() {
        let admitted = world.operator.admits(host.subsystem, host.identity);
        match host.phase {
            Phase::Running => {}
            Phase::Off if !admitted => continue,
            phase => panic!("host {number} does not get to work: {phase:?}"),
        }
        let known: Vec<u32> = host.known.keys().copied().collect();
        let active = world.operator.active(host);
        assert!(known.iter().eq(active.keys()), "host {number} was not told of every change");
        for (nsid, expected) in &active {
            let believed = host.paths.get(nsid);
            assert_eq!(believed, Some(expected), "host {number}: the path to namespace {nsid}");
        }
        for (nsid, size) in &host.known {
            let place = usize::try_from(*nsid - 1).unwrap();
            let disk = world.operator.places[host.subsystem][place];
            let blocks = block::BlockDevice::geometry(&*world.disks[disk]).blocks;
            let ready = world.operator.is_ready(host.subsystem, *nsid);
            assert!(
                !ready || *size == Some(blocks),
                "host {number} believes that namespace {nsid} has {size:?} blocks; it has {blocks}"
            );
        }
    }
}

/// Everybody goes; nothing may be left.
fn part(world: &mut World) {
    world.stopping = true;
    for host in 0..world.hosts.len() {
        world.leave(host, host % 2 == 0);
    }
    world.run(world.now + 10 * SECOND, |_| false);
    // Hosts keep their steps; shards have nothing to do any more.
    world.run(world.now + 10 * MS, |_| false);
    assert!(world.is_silent(), "the shards are busy with nobody");
    world.check_empty();
}
