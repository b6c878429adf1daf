//! What the run cost this process: instructions, processor time and system calls of the jobs' threads.
//!
//! Instructions are counted by the processor where the kernel lets us (`perf_event_open`; virtual machines often do not).
//! Where it does not, `valgrind --tool=callgrind` over runs of two lengths (`--number-ios`) gives the same figure.

use host::{Queue, SystemCalls};
use perf_event::{Builder, Counter};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// See the module's description.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// In user mode; `None` where the processor's counter is not to be had.
    pub(crate) instructions: Option<u64>,
    /// User and system time.
    pub(crate) cpu: Duration,
    pub(crate) calls: SystemCalls,
}

impl Cost {
    pub(crate) fn add(&mut self, other: &Self) {
        self.instructions =
            self.instructions.zip(other.instructions).map(|(sum, more)| sum.saturating_add(more));
        self.cpu += other.cpu;
        self.calls += other.calls;
    }

    /// The neutral element of [`Cost::add`].
    pub(crate) fn zero() -> Self {
        Self { instructions: Some(0), ..Self::default() }
    }
}

/// Measures the thread that it lives on.
#[derive(Debug)]
pub(crate) struct Meter {
    instructions: Option<Counter>,
    cpu: Duration,
    calls: SystemCalls,
}

impl Meter {
    pub(crate) fn start(queues: &[Queue]) -> Self {
        let mut instructions = Builder::new().build().ok();
        if let Some(counter) = &mut instructions
            && counter.enable().is_err()
        {
            instructions = None;
        }
        Self { instructions, cpu: thread_time(), calls: calls(queues) }
    }

    pub(crate) fn stop(mut self, queues: &[Queue]) -> Cost {
        let instructions = self.instructions.as_mut().and_then(|counter| {
            counter.disable().ok()?;
            counter.read().ok()
        });
        let now = calls(queues);
        let before = self.calls;
        Cost {
            // A counter that never ran on a processor counts nothing.
            instructions: instructions.filter(|&count| count > 0),
            cpu: thread_time().saturating_sub(self.cpu),
            calls: SystemCalls {
                receive: now.receive - before.receive,
                receive_empty: now.receive_empty - before.receive_empty,
                send: now.send - before.send,
                wait: now.wait - before.wait,
            },
        }
    }
}

fn calls(queues: &[Queue]) -> SystemCalls {
    let mut sum = SystemCalls::default();
    for queue in queues {
        sum += queue.system_calls();
    }
    sum
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
