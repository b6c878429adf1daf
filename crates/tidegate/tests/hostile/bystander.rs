//! An honest host that works all the time, and notices if it is not served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use host::Transfer;
use nvme::io::{Command, Transfer as Blocks};
use testkit::peer::{BLOCK, pattern};

use crate::support::daemon::NQN;
use crate::support::{call, connect, options, until};

/// See the module's description.
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Duration>,
}

impl Bystander {
    /// Writes and reads back `bytes` at a place of its own, `host` at a time, until told to stop.
    pub(crate) fn start(address: SocketAddr, host: u64, bytes: u32) -> Bystander {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            let name = format!("bystander-{host}");
            let (mut controller, mut queues) = connect(options(address, NQN, &name), 1, 4, bytes);
            let queue = &mut queues[0];
            let blocks = Blocks::new(host << 12, bytes / BLOCK);
            let mut worst = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let round = count.load(Ordering::Relaxed);
                let data = pattern(host << 32 | round, bytes as usize);
                let start = Instant::now();
                let write = Command::Write(blocks).to_sqe(1);
                let done = call(queue, write, Transfer::Write(bytes), &data);
                assert!(done.cqe.status().is_success(), "{done:?}");
                queue.release(done.slot);
                let read = Command::Read(blocks).to_sqe(1);
                let done = call(queue, read, Transfer::Read(bytes), &[]);
                assert!(done.cqe.status().is_success(), "{done:?}");
                let mut found = vec![0; data.len()];
                queue.copy_to(done.slot, 0, &mut found);
                assert!(found == data, "other data than written");
                queue.release(done.slot);
                controller.keep_alive().unwrap();
                worst = worst.max(start.elapsed());
                count.store(round + 1, Ordering::Relaxed);
            }
            worst
        });
        let bystander = Bystander { stop, rounds, thread };
        bystander.goes_on(1);
        bystander
    }

    /// Waits until it has gone round so many more times.
    pub(crate) fn goes_on(&self, rounds: u64) {
        let target = self.rounds.load(Ordering::Relaxed) + rounds;
        until("an honest host is served", || {
            assert!(!self.thread.is_finished(), "an honest host gave up");
            (self.rounds.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    /// Ends it; the longest that a round took.
    pub(crate) fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
