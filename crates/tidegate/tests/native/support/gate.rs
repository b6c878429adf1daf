//! A device that can be told to hang: while its gate is shut it keeps what is submitted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use block::{
    BlockDevice, BlockError, BlockQueue, Completion, Geometry, Identity, Operation, Properties,
    Token,
};
use reactor::{CounterValues, Handle, Local};

/// The test's hand on a [`GatedDevice`], and its ear at the reactors that have opened it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: AtomicBool,
    held: AtomicUsize,
    reactors: Mutex<Vec<Handle>>,
}

impl Gate {
    /// From now on the device keeps what comes.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// The device does what it kept, and what comes.
    pub(crate) fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
        for reactor in self.reactors.lock().unwrap().iter() {
            // Wakes it; one that is too busy for a message is awake.
            let _ = reactor.send(|_| ());
        }
    }

    /// Operations kept now.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// The counters of every reactor.
    pub(crate) fn counters(&self) -> Vec<CounterValues> {
        self.reactors.lock().unwrap().iter().map(Handle::counters).collect()
    }
}

/// Any device, behind a gate.
#[derive(Debug)]
pub(crate) struct GatedDevice {
    inner: Arc<dyn BlockDevice>,
    gate: Arc<Gate>,
}

impl GatedDevice {
    pub(crate) fn new(inner: Arc<dyn BlockDevice>) -> (Arc<GatedDevice>, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (Arc::new(GatedDevice { inner, gate: Arc::clone(&gate) }), gate)
    }
}

impl BlockDevice for GatedDevice {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn properties(&self) -> &Properties {
        self.inner.properties()
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn open_queue(&self, local: &Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        self.gate.reactors.lock().unwrap().extend(local.handle(local.index()));
        let (inner, gate) = (self.inner.open_queue(local)?, Arc::clone(&self.gate));
        Ok(Box::new(GatedQueue { inner, gate, kept: VecDeque::new() }))
    }
}

#[derive(Debug)]
struct GatedQueue {
    inner: Box<dyn BlockQueue>,
    gate: Arc<Gate>,
    kept: VecDeque<Operation>,
}

impl GatedQueue {
    fn is_shut(&self) -> bool {
        self.gate.shut.load(Ordering::SeqCst)
    }
}

impl BlockQueue for GatedQueue {
    fn submit(&mut self, operation: Operation) {
        if self.is_shut() {
            self.gate.held.fetch_add(1, Ordering::SeqCst);
            self.kept.push_back(operation);
        } else {
            self.inner.submit(operation);
        }
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        if !self.is_shut() {
            while let Some(operation) = self.kept.pop_front() {
                self.gate.held.fetch_sub(1, Ordering::SeqCst);
                self.inner.submit(operation);
            }
        }
        self.inner.poll(max, done)
    }

    fn cancel(&mut self, token: Token) -> bool {
        // A device that hangs lets go of nothing.
        self.inner.cancel(token)
    }

    fn outstanding(&self) -> usize {
        self.inner.outstanding() + self.kept.len()
    }

    fn needs_poll(&self) -> bool {
        self.inner.needs_poll() || !self.is_shut() && !self.kept.is_empty()
    }
}
