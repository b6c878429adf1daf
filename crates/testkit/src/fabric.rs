//! Software devices that work by themselves, for tests with real reactors and hosts.

#![allow(clippy::missing_panics_doc)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use verbs::Fabric;

/// Steps a device, or a fabric of them, on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Stepper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stepper {
    /// Steps this one from now on.
    pub fn start(fabric: &Fabric) -> Stepper {
        let fabric = fabric.clone();
        Stepper::run(move || fabric.step())
    }

    /// Has this thing take its steps, which says whether there was anything to do.
    pub fn run(mut step: impl FnMut() -> bool + Send + 'static) -> Stepper {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !step() {
                    thread::yield_now();
                }
            }
        });
        Stepper { stop, thread: Some(thread) }
    }
}

impl Drop for Stepper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics only if the device does, which its users see.
            let _ = thread.join();
        }
    }
}
