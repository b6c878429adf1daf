//! A controller in memory, the driver's machine and some reactors, all on this thread, under one clock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use block::{BlockDevice, BlockQueue, Completion, Data, ErrorKind, Kind, Operation, Token};
use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE};
use nvme_pcie::{AttachError, Controller, Machine, Options, software};
use reactor::{
    IdlePolicy, Poller, Progress, Reactor, ReactorConfig, RingChoice, SimulatedClock, Workers,
};

/// Bytes of each reactor's pool.
const POOL: usize = 4 * SLAB_SIZE;

/// What a reactor has here: its queues, by NSID, and what came out of them.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub(crate) queues: BTreeMap<u32, Box<dyn BlockQueue>>,
    pub(crate) done: Vec<(u32, Completion)>,
}

/// Polls the queues, as a shard does.
struct Driver(Rc<RefCell<Inside>>);

impl Poller for Driver {
    fn poll(&mut self) -> Progress {
        let Inside { queues, done } = &mut *self.0.borrow_mut();
        let before = done.len();
        for (nsid, queue) in queues {
            queue.poll(64, &mut |completion| done.push((*nsid, completion)));
        }
        Progress::from_worked(done.len() > before)
    }

    fn ready_to_sleep(&mut self) -> bool {
        !self.0.borrow().queues.values().any(|queue| queue.needs_poll())
    }
}

pub(crate) struct Rig {
    pub(crate) soft: software::Controller,
    pub(crate) clock: SimulatedClock,
    pub(crate) pools: Vec<Pool>,
    pub(crate) insides: Vec<Rc<RefCell<Inside>>>,
    pub(crate) reactors: Vec<Reactor>,
    pub(crate) machine: Machine,
    pub(crate) controller: Controller,
    attached: Receiver<Result<(), AttachError>>,
    /// The answer of the attachment, once it is there.
    pub(crate) answer: Option<Result<(), AttachError>>,
    next: u64,
}

impl Rig {
    /// Nothing has been stepped yet.
    pub(crate) fn new(
        seed: u64,
        soft: software::Options,
        reactors: usize,
        options: &Options,
    ) -> Rig {
        let soft = software::Controller::new(seed, soft);
        let clock = SimulatedClock::new();
        let config = ReactorConfig {
            clock: clock.clock(),
            idle: IdlePolicy::Poll,
            ring: RingChoice::Forbidden,
            ..ReactorConfig::default()
        };
        let arena =
            Arena::new(ArenaConfig { capacity: POOL * reactors, hugepages: Hugepages::Never });
        let pools: Vec<_> = (0..reactors).map(|_| arena.pool(POOL).unwrap()).collect();
        let reactors = Reactor::group(&vec![config; reactors], &Workers::inline()).unwrap();
        let insides: Vec<_> = reactors.iter().map(|_| Rc::default()).collect();
        for (reactor, inside) in reactors.iter().zip(&insides) {
            reactor.local().add_poller(Box::new(Driver(Rc::clone(inside))));
        }
        let (done, attached) = mpsc::channel();
        let slot = Arc::new(soft.clone());
        let (controller, machine) =
            Controller::stepped("soft", slot, &arena, reactors.len(), options, done).unwrap();
        Rig {
            soft,
            clock,
            pools,
            insides,
            reactors,
            machine,
            controller,
            attached,
            answer: None,
            next: 0,
        }
    }

    /// One that is in service, with a queue of every namespace on every reactor.
    pub(crate) fn served(seed: u64, soft: software::Options, reactors: usize) -> Rig {
        let mut rig = Rig::new(seed, soft, reactors, &Options::default());
        rig.attach();
        assert_eq!(rig.answer, Some(Ok(())));
        rig.open();
        rig
    }

    /// Everybody has a turn; time goes on a little.
    pub(crate) fn turn(&mut self) {
        self.clock.advance(Duration::from_micros(20));
        self.machine.poll(self.clock.now());
        for reactor in &mut self.reactors {
            reactor.turn();
        }
    }

    /// The device does so many things, and everybody has a turn.
    pub(crate) fn step(&mut self, steps: usize) {
        for _ in 0..steps {
            self.soft.step();
        }
        self.turn();
    }

    /// Goes on until `done`, for a while of simulated time at most.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Rig) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            let moved = (0..4).filter(|_| self.soft.step()).count();
            self.turn();
            if moved == 0 {
                // Whatever comes next comes with time.
                self.clock.advance(Duration::from_millis(20));
            }
        }
        let outstanding: Vec<_> = self
            .insides
            .iter()
            .map(|it| {
                it.borrow().queues.values().map(|queue| queue.outstanding()).collect::<Vec<_>>()
            })
            .collect();
        panic!(
            "never: {what}; {:?}, {:?}, {:?} in the device, {outstanding:?} in the queues, {:?}, {:?}",
            self.controller.phase(),
            self.soft.violations(),
            self.soft.outstanding(),
            self.controller.counters(),
            self.controller.incidents(),
        );
    }

    pub(crate) fn attach(&mut self) {
        self.until("attached", |rig| {
            rig.answer = rig.attached.try_recv().ok();
            rig.answer.is_some()
        });
    }

    /// Opens a queue of every namespace on every reactor.
    pub(crate) fn open(&mut self) {
        for (reactor, inside) in self.reactors.iter().zip(&self.insides) {
            for (nsid, found) in self.controller.namespaces(|nsid| format!("n{nsid}")) {
                if let Ok(device) = found {
                    let queue = device.open_queue(reactor.local()).unwrap();
                    inside.borrow_mut().queues.insert(nsid, queue);
                }
            }
        }
    }

    /// A buffer of a reactor's.
    pub(crate) fn buffer(&self, reactor: usize, len: usize) -> Buffer {
        self.pools[reactor].take(len).expect("a pool that is large enough")
    }

    pub(crate) fn filled(&self, reactor: usize, bytes: &[u8]) -> Buffer {
        let mut buffer = self.buffer(reactor, bytes.len());
        buffer.bytes_mut().unwrap().copy_from_slice(bytes);
        buffer
    }

    /// Submits to a queue of a reactor; the token.
    pub(crate) fn submit(
        &mut self,
        reactor: usize,
        nsid: u32,
        kind: Kind,
        (lba, blocks): (u64, u64),
        data: Data,
    ) -> Token {
        self.submit_fua(reactor, nsid, kind, (lba, blocks), data, false)
    }

    pub(crate) fn submit_fua(
        &mut self,
        reactor: usize,
        nsid: u32,
        kind: Kind,
        (lba, blocks): (u64, u64),
        data: Data,
        fua: bool,
    ) -> Token {
        self.next += 1;
        let token = Token(self.next);
        let operation = Operation { token, kind, lba, blocks, data, fua };
        let mut inside = self.insides[reactor].borrow_mut();
        inside.queues.get_mut(&nsid).expect("a queue").submit(operation);
        token
    }

    /// The result of an operation, once it is there.
    pub(crate) fn result(&self, token: Token) -> Option<Result<(), ErrorKind>> {
        self.insides.iter().find_map(|inside| {
            let mut inside = inside.borrow_mut();
            let place = inside.done.iter().position(|(_, it)| it.token == token)?;
            Some(inside.done.remove(place).1.result)
        })
    }

    /// Carries an operation out.
    pub(crate) fn run(
        &mut self,
        nsid: u32,
        kind: Kind,
        range: (u64, u64),
        data: Data,
    ) -> Result<(), ErrorKind> {
        let token = self.submit(0, nsid, kind, range, data);
        let mut result = None;
        self.until("an operation", |rig| {
            result = rig.result(token);
            result.is_some()
        });
        result.unwrap()
    }

    pub(crate) fn write(&mut self, nsid: u32, lba: u64, bytes: &[u8]) -> Result<(), ErrorKind> {
        let buffer = self.filled(0, bytes);
        let blocks = bytes.len() as u64 / self.block_size(nsid);
        self.run(nsid, Kind::Write, (lba, blocks), buffer.segment(0, bytes.len()).unwrap().into())
    }

    pub(crate) fn read(&mut self, nsid: u32, lba: u64, blocks: u64) -> Result<Vec<u8>, ErrorKind> {
        let len = usize::try_from(blocks * self.block_size(nsid)).unwrap();
        let mut buffer = self.buffer(0, len);
        self.run(nsid, Kind::Read, (lba, blocks), buffer.segment(0, len).unwrap().into())?;
        Ok(buffer.bytes_mut().expect("given back").to_vec())
    }

    pub(crate) fn block_size(&self, nsid: u32) -> u64 {
        let found = self.controller.namespaces(|_| String::new()).remove(&nsid);
        u64::from(found.unwrap().unwrap().geometry().block_size)
    }

    /// Closes all queues, gives the controller back, and sees that nothing is left and that the driver did nothing wrong.
    pub(crate) fn end(mut self) {
        for inside in &self.insides {
            inside.borrow_mut().queues.clear();
        }
        self.controller.detach();
        for _ in 0..40_000 {
            self.soft.step();
            self.clock.advance(Duration::from_millis(1));
            for reactor in &mut self.reactors {
                reactor.turn();
            }
            if !self.machine.poll(self.clock.now()) {
                break;
            }
        }
        assert!(!self.soft.is_open(), "it has been given back");
        assert_eq!(self.soft.violations(), Vec::<String>::new());
        for pool in &self.pools {
            assert_eq!(pool.available(), pool.capacity(), "all memory is back");
        }
    }
}
