//! A reactor on the test's own thread, a device on it, and one operation after another.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use block::{BlockDevice, BlockQueue, Completion, Data, ErrorKind, Kind, Operation, Token};
use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool};
use reactor::ring::Features;
use reactor::{Reactor, ReactorConfig, RingChoice, SimulatedClock};

/// How long a test waits for anything before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which back end serves files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Ring,
    /// A ring without the features that newer kernels, or laxer limits, bring.
    BareRing,
    Threads,
}

pub(crate) const BACKENDS: [Backend; 3] = [Backend::Ring, Backend::BareRing, Backend::Threads];

/// A reactor and its memory.
pub(crate) struct Host {
    pub(crate) reactor: Reactor,
    pub(crate) pool: Pool,
}

impl Host {
    /// `None`, with a line that says so, if the machine forbids the back end.
    pub(crate) fn new(backend: Backend) -> Option<Host> {
        let ring = match backend {
            Backend::Ring => RingChoice::default(),
            Backend::BareRing => RingChoice::Probe { without: Features::all() },
            Backend::Threads => RingChoice::Forbidden,
        };
        let reactor = Reactor::new(&ReactorConfig { ring, ..ReactorConfig::default() }).unwrap();
        if backend != Backend::Threads && reactor.local().ring().is_none() {
            skip("io_uring is forbidden here");
            return None;
        }
        Some(Host::on(reactor))
    }

    /// On this reactor.
    pub(crate) fn on(reactor: Reactor) -> Host {
        let config = ArenaConfig { capacity: 16 << 20, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(16 << 20).unwrap();
        if let Some(ring) = reactor.local().ring() {
            ring.register_pool(&pool);
        }
        Host { reactor, pool }
    }

    /// In a time that passes when a test says so; no ring.
    pub(crate) fn simulated(clock: &SimulatedClock) -> Host {
        let (clock, ring) = (clock.clock(), RingChoice::Forbidden);
        let config = ReactorConfig { clock, ring, ..ReactorConfig::default() };
        Host::on(Reactor::new(&config).unwrap())
    }

    pub(crate) fn queue(&self, device: &dyn BlockDevice) -> Box<dyn BlockQueue> {
        device.open_queue(self.reactor.local()).unwrap()
    }

    pub(crate) fn buffer(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.pool.take(bytes.len()).unwrap();
        buffer.bytes_mut().unwrap().copy_from_slice(bytes);
        buffer
    }

    /// Turns until the queue has nothing outstanding.
    pub(crate) fn drain(&mut self, queue: &mut dyn BlockQueue) -> Vec<Completion> {
        let mut seen = Vec::new();
        self.until(queue, &mut seen, |queue, _| queue.outstanding() == 0);
        seen
    }

    /// Turns until `enough`.
    pub(crate) fn until(
        &mut self,
        queue: &mut dyn BlockQueue,
        seen: &mut Vec<Completion>,
        enough: impl Fn(&dyn BlockQueue, &[Completion]) -> bool,
    ) {
        let give_up = Instant::now() + PATIENCE;
        while !enough(queue, seen) {
            assert!(Instant::now() < give_up, "stuck; so far {seen:?}");
            self.reactor.turn();
            if queue.poll(64, &mut |completion| seen.push(completion)) == 0 {
                std::thread::yield_now();
            }
        }
    }

    /// Drops a device's queues, and whatever else, until the ring has let go of the file, too.
    pub(crate) fn let_go<T>(&mut self, queues: T) {
        drop(queues);
        self.reactor.turn();
        self.reactor.turn();
    }

    /// One operation, to its end.
    pub(crate) fn run(
        &mut self,
        queue: &mut dyn BlockQueue,
        kind: Kind,
        lba: u64,
        blocks: u64,
        data: Data,
        fua: bool,
    ) -> Result<(), ErrorKind> {
        let token = Token(u64::MAX);
        queue.submit(Operation { token, kind, lba, blocks, data, fua });
        let seen = self.drain(queue);
        let [Completion { result, .. }] = seen[..] else { panic!("one completion, not {seen:?}") };
        result
    }

    pub(crate) fn write(
        &mut self,
        queue: &mut dyn BlockQueue,
        lba: u64,
        blocks: u64,
        bytes: &[u8],
        fua: bool,
    ) -> Result<(), ErrorKind> {
        let buffer = self.buffer(bytes);
        let data = buffer.segment(0, bytes.len()).unwrap().into();
        self.run(queue, Kind::Write, lba, blocks, data, fua)
    }

    pub(crate) fn read(
        &mut self,
        queue: &mut dyn BlockQueue,
        lba: u64,
        blocks: u64,
        len: usize,
    ) -> Result<Vec<u8>, ErrorKind> {
        let mut buffer = self.buffer(&vec![0xEE; len]);
        let data = buffer.segment(0, len).unwrap().into();
        self.run(queue, Kind::Read, lba, blocks, data, false)?;
        Ok(buffer.bytes_mut().unwrap().to_vec())
    }

    pub(crate) fn flush(&mut self, queue: &mut dyn BlockQueue) -> Result<(), ErrorKind> {
        self.run(queue, Kind::Flush, 0, 0, Data::none(), false)
    }
}

/// Says that a test, or part of one, was left out; `tools/test` counts these lines. Past the capture of what tests
/// print, which would keep it to itself.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Runs a command; its output, or `None` with a line that says that the test needs it.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        }
        Ok(output) => {
            skip(&format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            None
        }
        Err(error) => {
            skip(&format!("{program}: {error}"));
            None
        }
    }
}

/// A loop device, detached when dropped.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
}

impl LoopDevice {
    pub(crate) fn new(file: &Path, block_size: u32) -> Option<LoopDevice> {
        let size = block_size.to_string();
        let arguments = ["-b", &size, "-f", "--show", file.to_str().unwrap()];
        Some(LoopDevice { path: command("losetup", &arguments)?.into() })
    }

    /// Over a new file of `size` bytes.
    pub(crate) fn with_file(file: &Path, size: u64, block_size: u32) -> Option<LoopDevice> {
        File::create(file).unwrap().set_len(size).unwrap();
        LoopDevice::new(file, block_size)
    }

    /// Changes the size of its file, and tells the kernel.
    pub(crate) fn resize(&self, file: &Path, size: u64) -> Option<()> {
        OpenOptions::new().write(true).open(file).unwrap().set_len(size).unwrap();
        command("losetup", &["-c", self.path.to_str().unwrap()]).map(|_| ())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).output();
    }
}

/// A mounted file system, unmounted when dropped.
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
}

impl Mount {
    pub(crate) fn new(arguments: &[&str], path: &Path) -> Option<Mount> {
        std::fs::create_dir_all(path).unwrap();
        let all = [arguments, &[path.to_str().unwrap()]].concat();
        command("mount", &all)?;
        Some(Mount { path: path.to_owned() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}
