//! Software RDMA devices that work by themselves, for tests with real reactors and hosts.

#![allow(clippy::missing_panics_doc)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use verbs::Fabric;

/// Steps a fabric on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Stepper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stepper {
    /// Steps this one from now on.
    pub fn start(fabric: &Fabric) -> Stepper {
        let (fabric, stop) = (fabric.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !fabric.step() {
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
            // It panics only if the fabric does, which its users see.
            let _ = thread.join();
        }
    }
}
