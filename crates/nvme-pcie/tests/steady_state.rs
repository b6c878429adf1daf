//! What an I/O costs once everything is warm: no allocation, no system call, and doorbells for many commands at once.

#![allow(unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation)]

#[path = "../../reactor/tests/counting/mod.rs"]
#[allow(dead_code)]
mod counting;
#[path = "driver/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::process::Command;

use block::Kind;
use counting::allocations;
use memory::Buffer;
use nvme_pcie::CounterValues;
use nvme_pcie::software::Options;

use rig::Rig;

const DEPTH: usize = 32;

/// Reads and writes at a constant depth: what has ended is sent again.
struct Load {
    rig: Rig,
    buffers: Vec<Buffer>,
    sent: u64,
    allocated: u64,
}

impl Load {
    fn new(options: Options) -> Load {
        let rig = Rig::served(1, options, 1);
        let buffers: Vec<_> = (0..DEPTH).map(|_| rig.buffer(0, 4096)).collect();
        let mut load = Load { rig, buffers, sent: 0, allocated: 0 };
        (0..DEPTH).for_each(|_| load.send());
        load
    }

    fn send(&mut self) {
        let at = self.sent % DEPTH as u64;
        let kind = if self.sent.is_multiple_of(2) { Kind::Read } else { Kind::Write };
        self.sent += 1;
        let data = self.buffers[at as usize].segment(0, 4096).unwrap().into();
        self.rig.submit(0, 1, kind, (at * 8, 8), data);
    }

    /// Turns of the reactor, between which the device does so many things at most.
    fn run(&mut self, turns: usize, steps: usize) {
        for _ in 0..turns {
            self.rig.soft.run(steps);
            let before = allocations();
            self.rig.reactors[0].turn();
            let ended = {
                let mut inside = self.rig.insides[0].borrow_mut();
                inside.done.drain(..).inspect(|(_, it)| assert_eq!(it.result, Ok(()))).count()
            };
            (0..ended).for_each(|_| self.send());
            self.allocated += allocations() - before;
        }
    }

    fn counted(&self) -> CounterValues {
        self.rig.controller.counters()[0]
    }

    /// Commands for each doorbell of the two ends.
    fn commands_per_doorbell(&mut self, steps: usize) -> (u64, u64) {
        self.run(2000, steps);
        let before = self.counted();
        self.run(2000, steps);
        let after = self.counted();
        let commands = after.commands - before.commands;
        assert!(commands > 4000);
        (
            commands / (after.submission_doorbells - before.submission_doorbells),
            commands / (after.completion_doorbells - before.completion_doorbells),
        )
    }
}

#[test]
fn doorbells_tell_of_many_commands_at_once() {
    // A device that has ended all of them when the reactor looks, and one that has ended some.
    for steps in [100_000, 24, 12] {
        let mut load = Load::new(Options::default());
        let (submitted, completed) = load.commands_per_doorbell(steps);
        assert!(submitted >= 8 || steps < 100, "{submitted} commands for a submission doorbell");
        assert!(completed >= 16, "{completed} commands for a completion doorbell, {steps} steps");
        // Independently of what the driver counts; the admin queue's are among them.
        let seen = load.rig.soft.doorbells();
        assert!(seen.completion <= load.counted().completion_doorbells + 60);
    }
}

#[test]
fn reads_and_writes_allocate_nothing() {
    for shadow_doorbells in [false, true] {
        let mut load = Load::new(Options { shadow_doorbells, ..Options::default() });
        load.run(3000, 40);
        load.allocated = 0;
        load.run(2000, 40);
        assert_eq!(load.allocated, 0);
    }
}

/// From here on any system call but the end of the process kills it.
fn forbid_system_calls() {
    let step =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the call; the end is allowed, anything else is not.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_exit_group as u32, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers, and a program that lives through the call, which copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            0
        );
    }
}

/// In a process of its own: one system call ends it.
#[test]
fn reads_and_writes_need_no_system_call() {
    const CHILD: &str = "TIDEGATE_WITHOUT_SYSTEM_CALLS";
    if let Ok(child) = std::env::var(CHILD) {
        let mut load = Load::new(Options::default());
        load.run(500, 40);
        let before = load.counted().commands;
        forbid_system_calls();
        load.run(2000, 40);
        if child == "with one" {
            std::thread::yield_now();
        }
        let enough = load.counted().commands > before + 1000;
        // SAFETY: ends the process, whatever else there is in it.
        unsafe { libc::_exit(if enough { 0 } else { 7 }) }
    }
    let run = |child: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let arguments = ["--exact", "reads_and_writes_need_no_system_call", "--test-threads=1"];
        command.args(arguments).env(CHILD, child).output().unwrap()
    };
    let ended = run("without");
    assert!(ended.status.success(), "{ended:?}");
    assert!(!run("with one").status.success(), "a system call is not noticed");
}
