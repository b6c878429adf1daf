//! A device in memory whose operations finish when the test lets them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::{
    BlockDevice, BlockError, BlockQueue, Completion, Deallocation, ErrorKind, Geometry, Kind,
    Operation, Properties, Token,
};
use target::Instant;

pub(crate) const BLOCK: u32 = 512;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) bytes: Vec<u8>,
    pub(crate) geometry: Geometry,
    /// Operations stay in the queues of these numbers, which count the queues as they are opened.
    pub(crate) stuck: [bool; 8],
    /// Though stuck, it finishes so many more.
    allowed: usize,
    opened: usize,
    /// What it does not let go of, it does not cancel either.
    pub(crate) cancels: bool,
    /// The next operations fail so.
    pub(crate) failures: VecDeque<ErrorKind>,
    /// Every operation that was carried out.
    pub(crate) done: Vec<(Kind, u64, u64, bool)>,
    pub(crate) queues: usize,
    /// What the world's clock says.
    pub(crate) now: Instant,
    /// Every operation that has come back.
    pub(crate) log: Vec<Logged>,
}

/// An operation that has come back, as the device saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    /// The number of its queue.
    pub(crate) queue: usize,
    pub(crate) kind: Kind,
    pub(crate) blocks: u64,
    /// How long it was here.
    pub(crate) took: Duration,
    pub(crate) result: Result<(), ErrorKind>,
}

#[derive(Debug)]
pub(crate) struct TestDevice {
    name: String,
    properties: Properties,
    pub(crate) state: Arc<Mutex<State>>,
}

impl TestDevice {
    pub(crate) fn new(name: &str, blocks: u64) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            properties: Properties {
                read_only: false,
                volatile_write_cache: true,
                deallocation: Some(Deallocation { reads_zero: true, granularity: 1 }),
                memory_alignment: 1,
                optimal_blocks: 1,
                description: "test device".to_owned(),
            },
            state: Arc::new(Mutex::new(State {
                bytes: vec![0; usize::try_from(blocks).unwrap() * BLOCK as usize],
                geometry: Geometry { block_size: BLOCK, blocks, generation: 1 },
                stuck: [false; 8],
                allowed: 0,
                opened: 0,
                cancels: true,
                failures: VecDeque::new(),
                done: Vec::new(),
                queues: 0,
                now: Instant::ZERO,
                log: Vec::new(),
            })),
        })
    }

    pub(crate) fn queue(&self) -> Box<dyn BlockQueue> {
        let mut state = self.state.lock().unwrap();
        state.queues += 1;
        let number = state.opened % state.stuck.len();
        state.opened += 1;
        Box::new(TestQueue { state: Arc::clone(&self.state), number, operations: VecDeque::new() })
    }

    pub(crate) fn stick(&self, stuck: bool) {
        self.state.lock().unwrap().stuck = [stuck; 8];
    }

    pub(crate) fn stick_queue(&self, number: usize, stuck: bool) {
        self.state.lock().unwrap().stuck[number] = stuck;
    }

    /// It finishes so many operations though it is stuck.
    pub(crate) fn let_go_of(&self, operations: usize) {
        self.state.lock().unwrap().allowed += operations;
    }

    pub(crate) fn cancels(&self, cancels: bool) {
        self.state.lock().unwrap().cancels = cancels;
    }

    pub(crate) fn fail_next(&self, kind: ErrorKind) {
        self.state.lock().unwrap().failures.push_back(kind);
    }

    pub(crate) fn done(&self) -> Vec<(Kind, u64, u64, bool)> {
        std::mem::take(&mut self.state.lock().unwrap().done)
    }

    pub(crate) fn queues(&self) -> usize {
        self.state.lock().unwrap().queues
    }

    pub(crate) fn resize(&self, blocks: u64) {
        let mut state = self.state.lock().unwrap();
        state.geometry.blocks = blocks;
        state.geometry.generation += 1;
        state.bytes.resize(usize::try_from(blocks).unwrap() * BLOCK as usize, 0);
    }
}

impl BlockDevice for TestDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.state.lock().unwrap().geometry
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn open_queue(&self, _: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        Ok(self.queue())
    }
}

#[derive(Debug)]
struct TestQueue {
    state: Arc<Mutex<State>>,
    number: usize,
    operations: VecDeque<Held>,
}

#[derive(Debug)]
struct Held {
    operation: Operation,
    since: Instant,
    aborted: bool,
}

impl BlockQueue for TestQueue {
    fn submit(&mut self, operation: Operation) {
        assert!(
            self.operations.iter().all(|other| other.operation.token != operation.token),
            "a token is unique while its operation is out"
        );
        let since = self.state.lock().unwrap().now;
        self.operations.push_back(Held { operation, since, aborted: false });
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let mut state = self.state.lock().unwrap();
        let mut count = 0;
        let mut kept = VecDeque::new();
        while let Some(it) = self.operations.pop_front() {
            let held = state.stuck[self.number] && !it.aborted;
            if count >= max || (held && state.allowed == 0) {
                kept.push_back(it);
                continue;
            }
            state.allowed -= usize::from(held);
            count += 1;
            let Held { operation, since, aborted } = it;
            let result =
                if aborted { Err(ErrorKind::Aborted) } else { carry_out(&mut state, &operation) };
            let Operation { token, kind, blocks, .. } = operation;
            let took = state.now.since(since);
            state.log.push(Logged { queue: self.number, kind, blocks, took, result });
            drop(operation);
            done(Completion::new(token, result));
        }
        self.operations = kept;
        count
    }

    fn cancel(&mut self, token: Token) -> bool {
        if !self.state.lock().unwrap().cancels {
            return false;
        }
        let found = self.operations.iter_mut().find(|it| it.operation.token == token);
        found.map(|it| it.aborted = true).is_some()
    }

    fn outstanding(&self) -> usize {
        self.operations.len()
    }

    fn needs_poll(&self) -> bool {
        let state = self.state.lock().unwrap();
        let held = state.stuck[self.number] && state.allowed == 0;
        self.operations.iter().any(|it| it.aborted || !held)
    }
}

impl Drop for TestQueue {
    fn drop(&mut self) {
        self.state.lock().unwrap().queues -= 1;
    }
}

fn carry_out(state: &mut State, operation: &Operation) -> Result<(), ErrorKind> {
    if let Some(failure) = state.failures.pop_front() {
        return Err(failure);
    }
    if !state.geometry.contains(operation.lba, operation.blocks) {
        return Err(ErrorKind::OutOfRange);
    }
    state.done.push((operation.kind, operation.lba, operation.blocks, operation.fua));
    let at = usize::try_from(operation.lba).unwrap() * BLOCK as usize;
    let length = usize::try_from(operation.blocks).unwrap() * BLOCK as usize;
    let range = &mut state.bytes[at..at + length];
    let mut data = vec![0; length];
    let mut place = 0;
    for segment in operation.data.iter() {
        place += segment.copy_to(0, &mut data[place..]);
    }
    match operation.kind {
        Kind::Read => {
            let mut place = 0;
            for segment in operation.data.iter() {
                place += segment.copy_from(0, &range[place..]);
            }
            assert_eq!(place, length);
        }
        Kind::Write => {
            assert_eq!(place, length);
            range.copy_from_slice(&data);
        }
        Kind::Compare if range == &data[..] => {}
        Kind::Compare => return Err(ErrorKind::Miscompare),
        Kind::WriteZeroes { .. } | Kind::Deallocate => range.fill(0),
        Kind::Flush | Kind::Verify => {}
    }
    Ok(())
}
