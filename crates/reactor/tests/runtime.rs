//! Mailboxes, sleeping and waking, offloaded jobs, pollers, threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use reactor::{
    Handle, IdlePolicy, Instant, JoinError, Local, Poller, Progress, Reactor, ReactorConfig,
    ReactorError, RingChoice, SimulatedClock, Workers, spawn,
};

/// Far longer than anything here takes; reached only by what would otherwise hang.
const FOREVER: Duration = Duration::from_mins(1);

fn config(idle: IdlePolicy) -> ReactorConfig {
    ReactorConfig { idle, ring: RingChoice::Forbidden, ..ReactorConfig::default() }
}

fn simulated(time: &SimulatedClock, idle: IdlePolicy) -> ReactorConfig {
    ReactorConfig { clock: time.clock(), ..config(idle) }
}

/// The policies that sleep, and one that falls asleep in the middle of arrivals.
const POLICIES: [IdlePolicy; 4] = [
    IdlePolicy::Interrupt,
    IdlePolicy::Adaptive { max_spin: Duration::from_micros(3) },
    IdlePolicy::Adaptive { max_spin: Duration::from_micros(100) },
    IdlePolicy::Poll,
];

#[test]
fn no_message_is_lost_between_going_to_sleep_and_being_woken() {
    // Each sender waits for its answer before it sends again, so the reactor falls asleep all the
    // time, and a wake that is lost leaves a sender waiting.
    const SENDERS: usize = 3;
    const ROUNDS: usize = 5_000;
    for policy in POLICIES {
        let mut reactors = spawn(vec![config(policy)], 1).unwrap();
        let handle = reactors.handles()[0].clone();
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let handle = handle.clone();
                thread::spawn(move || {
                    let (answer, answered) = sync_channel(1);
                    for round in 0..ROUNDS {
                        let answer = answer.clone();
                        handle.send(move |_| answer.send(round).unwrap()).unwrap();
                        let got = answered.recv_timeout(FOREVER).expect("a wake was lost");
                        assert_eq!(got, round);
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        let counters = handle.counters();
        assert_eq!(counters.messages, u64::try_from(SENDERS * ROUNDS).unwrap());
        assert!(counters.wakeups <= counters.sleeps, "{counters:?}");
        if policy == IdlePolicy::Poll {
            assert_eq!(counters.sleeps, 0);
        }
        if policy == IdlePolicy::Interrupt {
            assert!(counters.sleeps > 0);
        }
        reactors.stop();
        reactors.join(FOREVER).unwrap();
    }
}

#[test]
fn two_reactors_play_ping_pong_across_sleep() {
    fn serve(local: &Local, left: usize, done: std::sync::mpsc::Sender<()>) {
        if left == 0 {
            done.send(()).unwrap();
            return;
        }
        let other = local.handle(1 - local.index()).unwrap();
        other.send(move |local| serve(local, left - 1, done)).unwrap();
    }
    for policy in POLICIES {
        let mut reactors = spawn(vec![config(policy); 2], 1).unwrap();
        let (done, finished) = channel();
        reactors.handles()[0].send(move |local| serve(local, 4_000, done)).unwrap();
        finished.recv_timeout(FOREVER).expect("a wake was lost");
        reactors.stop();
        reactors.join(FOREVER).unwrap();
    }
}

#[test]
fn a_full_mailbox_gives_the_message_back_and_keeps_the_order() {
    let time = SimulatedClock::new();
    let config = ReactorConfig { mailbox: 100, ..simulated(&time, IdlePolicy::Poll) };
    let mut reactor = Reactor::new(&config).unwrap();
    let handle = reactor.handle();
    let (seen, sees) = channel();
    let message = |number: u32| {
        let seen = seen.clone();
        move |_: &Local| seen.send(number).unwrap()
    };
    for number in 0..100 {
        handle.send(message(number)).unwrap();
    }
    let refused = handle.send(message(100)).unwrap_err();
    assert_eq!(refused.to_string(), "the mailbox is full");
    // A turn takes only so many.
    assert_eq!(reactor.turn(), Progress::Worked);
    assert_eq!(sees.try_iter().count(), 64);
    handle.send_boxed(refused.0).unwrap();
    assert_eq!(reactor.turn(), Progress::Worked);
    assert_eq!(sees.try_iter().collect::<Vec<_>>(), (64..=100).collect::<Vec<_>>());
    assert_eq!(reactor.turn(), Progress::Idle);
}

#[test]
fn an_awake_reactor_is_not_woken() {
    let time = SimulatedClock::new();
    let mut reactor = Reactor::new(&simulated(&time, IdlePolicy::Interrupt)).unwrap();
    let handle = reactor.handle();
    for _ in 0..50 {
        handle.send(|_| ()).unwrap();
        reactor.step();
    }
    let counters = handle.counters();
    assert_eq!((counters.messages, counters.sleeps, counters.wakeups), (50, 0, 0));
    // Now it goes to sleep, on this clock without blocking; nobody was there to wake it.
    reactor.step();
    assert_eq!((handle.counters().sleeps, handle.counters().wakeups), (1, 0));
}

#[derive(Default)]
struct Script {
    work: Cell<u32>,
    restless: Cell<bool>,
    deadline: Cell<Option<Instant>>,
    polls: Cell<u32>,
    flushes: Cell<u32>,
}

struct Scripted(Rc<Script>);

impl Poller for Scripted {
    fn poll(&mut self) -> Progress {
        self.0.polls.set(self.0.polls.get() + 1);
        let work = self.0.work.get();
        self.0.work.set(work.saturating_sub(1));
        Progress::from_worked(work > 0)
    }

    fn flush(&mut self) {
        self.0.flushes.set(self.0.flushes.get() + 1);
    }

    fn ready_to_sleep(&mut self) -> bool {
        !self.0.restless.get()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.deadline.get()
    }
}

#[test]
fn adaptive_spins_then_asks_and_sleeps() {
    let time = SimulatedClock::new();
    let max_spin = Duration::from_micros(10);
    let mut reactor = Reactor::new(&simulated(&time, IdlePolicy::Adaptive { max_spin })).unwrap();
    let local = reactor.local().clone();
    let script = Rc::new(Script::default());
    local.add_poller(Box::new(Scripted(Rc::clone(&script))));
    let sleeps = || local.counters().sleeps;
    script.work.set(5);
    let steps = |reactor: &mut Reactor, count: u32| {
        for _ in 0..count {
            time.advance(Duration::from_micros(1));
            reactor.step();
        }
    };
    // Five turns of work, the turn that starts the spin, and ten microseconds of it.
    steps(&mut reactor, 5 + 10);
    assert_eq!(sleeps(), 0);
    steps(&mut reactor, 1);
    assert_eq!(sleeps(), 1);
    // A poller with work that no event announces keeps it awake.
    script.restless.set(true);
    steps(&mut reactor, 5);
    assert_eq!(sleeps(), 1);
    script.restless.set(false);
    steps(&mut reactor, 1);
    assert_eq!(sleeps(), 2);
    // So does a deadline that has passed, but not one that is to come.
    script.deadline.set(Some(local.now()));
    steps(&mut reactor, 1);
    assert_eq!(sleeps(), 2);
    script.deadline.set(Some(local.now() + FOREVER));
    assert_eq!(reactor.next_deadline(), script.deadline.get());
    steps(&mut reactor, 1);
    assert_eq!(sleeps(), 3);
    assert_eq!(local.counters().turns, u64::from(script.polls.get()));
    assert_eq!(script.polls, script.flushes);
    assert_eq!(local.counters().busy_turns, 5);
}

#[test]
fn a_deadline_ends_a_sleep() {
    let mut reactor = Reactor::new(&config(IdlePolicy::Interrupt)).unwrap();
    let local = reactor.local().clone();
    let script = Rc::new(Script::default());
    local.add_poller(Box::new(Scripted(Rc::clone(&script))));
    let deadline = local.now() + Duration::from_millis(20);
    script.deadline.set(Some(deadline));
    while local.now() < deadline {
        reactor.step();
    }
    // It slept until then: with rounding and early ends a handful of turns, not thousands.
    let counters = local.counters();
    assert!(counters.sleeps >= 1 && counters.turns < 50, "{counters:?}");
}

#[test]
fn pollers_come_and_go_between_passes() {
    /// Adds another like itself, then leaves.
    struct Relay {
        local: Local,
        left: u32,
        id: Rc<Cell<Option<reactor::PollerId>>>,
        dropped: Rc<Cell<u32>>,
    }
    impl Poller for Relay {
        fn poll(&mut self) -> Progress {
            if let Some(id) = self.id.take() {
                self.local.remove_poller(id);
                if self.left > 0 {
                    add(&self.local, self.left - 1, &self.dropped);
                }
            }
            Progress::Worked
        }
    }
    impl Drop for Relay {
        fn drop(&mut self) {
            self.dropped.set(self.dropped.get() + 1);
        }
    }
    fn add(local: &Local, left: u32, dropped: &Rc<Cell<u32>>) {
        let id = Rc::new(Cell::new(None));
        let poller =
            Relay { local: local.clone(), left, id: Rc::clone(&id), dropped: Rc::clone(dropped) };
        id.set(Some(local.add_poller(Box::new(poller))));
    }
    let mut reactor = Reactor::new(&config(IdlePolicy::Poll)).unwrap();
    let dropped = Rc::new(Cell::new(0));
    add(reactor.local(), 9, &dropped);
    for _ in 0..10 {
        assert_eq!(reactor.turn(), Progress::Worked);
    }
    assert_eq!(dropped.get(), 9);
    assert_eq!(reactor.turn(), Progress::Idle);
    assert_eq!(dropped.get(), 10);
    // One that holds the reactor's services goes with the reactor, added or still to be added.
    add(reactor.local(), 0, &dropped);
    reactor.turn();
    add(reactor.local(), 0, &dropped);
    drop(reactor);
    assert_eq!(dropped.get(), 12);
}

#[test]
fn jobs_run_elsewhere_and_their_results_come_home() {
    /// More than the workers' queue takes.
    const JOBS: usize = 3000;
    let workers = Workers::start(3).unwrap();
    let mut reactors = Reactor::group(&[config(IdlePolicy::Interrupt)], &workers).unwrap();
    let reactor = &mut reactors[0];
    let local = reactor.local().clone();
    let here = thread::current().id();
    // Given before the first may finish.
    let gate = Arc::new(Barrier::new(4));
    let results = Rc::new(RefCell::new(Vec::new()));
    for number in 0..JOBS {
        let gate = (number < 3).then(|| Arc::clone(&gate));
        let results = Rc::clone(&results);
        let job = move || {
            if let Some(gate) = gate {
                gate.wait();
            }
            assert_ne!(thread::current().id(), here);
            number.to_string()
        };
        local.offload(job, move |result| {
            assert_eq!(thread::current().id(), here);
            results.borrow_mut().push(result.parse::<usize>().unwrap());
        });
    }
    assert_eq!(results.borrow().len(), 0);
    gate.wait();
    let end = local.now() + FOREVER;
    while results.borrow().len() < JOBS {
        reactor.step();
        assert!(local.now() < end, "results were lost");
    }
    let mut results = results.take();
    results.sort_unstable();
    assert_eq!(results, (0..JOBS).collect::<Vec<_>>());
    assert_eq!(local.counters().offloads, 3000);
}

#[test]
fn inline_jobs_run_a_turn_later_in_order() {
    let time = SimulatedClock::new();
    let mut reactor = Reactor::new(&simulated(&time, IdlePolicy::Interrupt)).unwrap();
    let local = reactor.local().clone();
    let results = Rc::new(RefCell::new(Vec::new()));
    for number in 0..10 {
        let results = Rc::clone(&results);
        local.offload(move || number, move |number| results.borrow_mut().push(number));
    }
    assert!(results.borrow().is_empty());
    reactor.step();
    assert_eq!(*results.borrow(), (0..10).collect::<Vec<_>>());
    assert_eq!(local.counters().sleeps, 0);
}

#[test]
fn a_jobs_panic_surfaces_on_its_reactor() {
    let mut reactors = spawn(vec![config(IdlePolicy::Interrupt); 2], 1).unwrap();
    reactors.handles()[1]
        .send(|local| local.offload(|| panic!("as it should"), |()| unreachable!()))
        .unwrap();
    let handle = reactors.handles()[0].clone();
    // The other reactor and the worker are unharmed.
    let (done, finished) = channel();
    handle.send(move |local| local.offload(|| 7, move |seven| done.send(seven).unwrap())).unwrap();
    assert_eq!(finished.recv_timeout(FOREVER), Ok(7));
    handle.stop();
    assert_eq!(reactors.join(FOREVER), Err(JoinError::Panicked(vec![1])));
}

#[test]
fn stopping_wakes_sleepers_and_ends_the_busy() {
    struct Busy;
    impl Poller for Busy {
        fn poll(&mut self) -> Progress {
            Progress::Worked
        }
    }
    let mut configs: Vec<_> = POLICIES.iter().map(|policy| config(*policy)).collect();
    configs.push(ReactorConfig::default());
    for _ in 0..20 {
        let mut reactors = spawn(configs.clone(), 1).unwrap();
        reactors.handles()[1]
            .send(|local| {
                local.add_poller(Box::new(Busy));
            })
            .unwrap();
        reactors.stop();
        reactors.join(FOREVER).unwrap();
    }
}

#[test]
fn who_is_stuck_is_named() {
    struct Wedged(Arc<AtomicBool>, std::sync::mpsc::Sender<()>);
    impl Poller for Wedged {
        fn poll(&mut self) -> Progress {
            while !self.0.load(Ordering::Relaxed) {
                let _ = self.1.send(());
                thread::yield_now();
            }
            Progress::Idle
        }

        fn name(&self) -> &'static str {
            "the wedged one"
        }
    }
    let mut reactors = spawn(vec![config(IdlePolicy::Interrupt); 3], 1).unwrap();
    let release = Arc::new(AtomicBool::new(false));
    let (inside, is_inside) = channel();
    let free = Arc::clone(&release);
    reactors.handles()[1]
        .send(move |local| {
            local.add_poller(Box::new(Wedged(free, inside)));
        })
        .unwrap();
    is_inside.recv_timeout(FOREVER).unwrap();
    reactors.stop();
    let Err(error) = reactors.join(Duration::from_millis(200)) else { panic!("it is stuck") };
    assert!(
        error.to_string().contains("reactor 1 is stuck in poll of poller the wedged one"),
        "{error}"
    );
    release.store(true, Ordering::Relaxed);
    reactors.join(FOREVER).unwrap();
}

#[test]
fn a_core_that_is_not_allowed_is_no_error() {
    let config = ReactorConfig { core: Some(1000), ..config(IdlePolicy::Interrupt) };
    let mut reactors = spawn(vec![config], 1).unwrap();
    reactors.stop();
    reactors.join(FOREVER).unwrap();
    assert!(matches!(spawn(Vec::new(), 1), Err(ReactorError::NoReactor)));
}

#[test]
fn a_pinned_reactor_runs_on_its_core() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..1024).rfind(|core| allowed.is_set(*core)).unwrap();
    let config = ReactorConfig { core: Some(core), ..config(IdlePolicy::Interrupt) };
    let mut reactors = spawn(vec![config], 1).unwrap();
    let (tell, told) = channel();
    reactors.handles()[0]
        .send(move |_| tell.send(rustix::thread::sched_getaffinity(None).unwrap()).unwrap())
        .unwrap();
    let pinned = told.recv_timeout(FOREVER).unwrap();
    assert!(pinned.is_set(core) && pinned.count() == 1);
    reactors.stop();
    reactors.join(FOREVER).unwrap();
}

#[test]
fn simulated_reactors_talk_on_one_thread() {
    fn visit(local: &Local, visits: &Arc<AtomicUsize>) {
        assert_eq!(local.reactors(), 3);
        let before = visits.fetch_add(1, Ordering::Relaxed);
        let next: Handle = local.handle((local.index() + 1) % 3).unwrap();
        if before < 8 {
            let visits = Arc::clone(visits);
            next.send(move |local| visit(local, &visits)).unwrap();
        }
    }
    let time = SimulatedClock::new();
    let configs = vec![simulated(&time, IdlePolicy::Interrupt); 3];
    let mut reactors = Reactor::group(&configs, &Workers::inline()).unwrap();
    let visits = Arc::new(AtomicUsize::new(0));
    visit(reactors[0].local(), &visits);
    let mut turns = 0;
    while visits.load(Ordering::Relaxed) < 9 {
        for reactor in &mut reactors {
            reactor.step();
        }
        turns += 1;
        assert!(turns < 10);
    }
    assert!(reactors[0].local().handle(3).is_none());
    reactors[2].handle().queue_added();
    assert_eq!(reactors[0].local().handles()[2].load().queues, 1);
}

#[test]
fn a_resident_is_one_reactors_own() {
    let configs = vec![config(IdlePolicy::Poll); 2];
    let reactors = Reactor::group(&configs, &Workers::inline()).unwrap();
    let [one, other] = [reactors[0].local(), reactors[1].local()];
    let make = |index: usize| move || Ok::<_, ReactorError>(Cell::new(index));
    let first = one.resident(7, make(0)).unwrap();
    let second = other.resident(7, make(1)).unwrap();
    first.set(10);
    assert_eq!(one.clone().resident(7, make(2)).unwrap().get(), 10);
    assert_eq!(second.get(), 1);
}
