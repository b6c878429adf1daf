//! A terminal without anybody in front of it: the commands that draw run on one, keys are pressed, and the screen is read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::daemon::tidegate;
use crate::support::until;

/// The command and its terminal.
pub(crate) struct Terminal {
    child: Child,
    master: File,
    written: Arc<Mutex<Vec<u8>>>,
    /// Nobody reads on.
    is_gone: Arc<AtomicBool>,
    size: (u16, u16),
    /// What the terminal was set to before.
    before: String,
}

/// The settings that a program may change.
fn settings(master: &File) -> String {
    let all = tcgetattr(master).unwrap();
    let modes = (all.input_modes, all.output_modes, all.control_modes, all.local_modes);
    format!("{modes:?} {:?}", all.special_codes)
}

fn resize(master: &File, (columns, rows): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).unwrap();
}

impl Terminal {
    /// Runs the binary on a terminal of so many columns and rows.
    pub(crate) fn run(folder: &Path, arguments: &[&str], size: (u16, u16)) -> Terminal {
        // Else the command would hold its own terminal open.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave: OwnedFd = OpenOptions::new().read(true).write(true).open(name).unwrap().into();
        let master = File::from(master);
        resize(&master, size);
        let before = settings(&master);
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = tidegate(folder)
            .args(arguments)
            .env("TERM", "xterm")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let is_gone = Arc::new(AtomicBool::new(false));
        let (mut from, to) = (master.try_clone().unwrap(), Arc::clone(&written));
        let ends = Arc::clone(&is_gone);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // The last slave's end is an error.
            while let Ok(count @ 1..) = from.read(&mut piece) {
                to.lock().unwrap().extend_from_slice(&piece[..count]);
                if ends.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Terminal { child, master, written, is_gone, size, before }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Another size, and the signal that the kernel sends to who has this terminal as its own.
    pub(crate) fn resize(&mut self, size: (u16, u16)) {
        self.size = size;
        // What was drawn for the other size is not looked at again.
        self.written.lock().unwrap().clear();
        resize(&self.master, size);
        self.signal(Signal::WINCH);
    }

    /// All that has been written to it.
    pub(crate) fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// What stands on the screen.
    pub(crate) fn screen(&self) -> Vec<String> {
        screen(&self.written(), self.size)
    }

    /// Waits until a line of the screen is as wanted.
    pub(crate) fn shows(&self, what: &str, is_wanted: impl Fn(&str) -> bool) {
        let found = || self.screen().iter().any(|line| is_wanted(line)).then_some(());
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until(what, found)));
        assert!(looked.is_ok(), "{what}: {:#?}", self.screen());
    }

    /// Whether keys come one by one and unseen.
    pub(crate) fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.master).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// The terminal is no more, as when its window is closed; how the command ended. It has to write for that.
    pub(crate) fn hang_up(&mut self) -> ExitStatus {
        self.is_gone.store(true, Ordering::Relaxed);
        self.master = File::open("/dev/null").unwrap();
        until("the command ends", || self.child.try_wait().unwrap())
    }

    /// Waits for the command's end, which has to leave the terminal as it was.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let status = until("the command ends", || self.child.try_wait().unwrap());
        assert_eq!(settings(&self.master), self.before);
        for put_back in ["\u{1b}[?1049l", "\u{1b}[?25h"] {
            until(put_back, || self.written().contains(put_back).then_some(()));
        }
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a terminal of this size shows after it was sent this: as much of it as a program uses that puts texts at places.
fn screen(written: &str, (columns, rows): (u16, u16)) -> Vec<String> {
    let (columns, rows) = (usize::from(columns), usize::from(rows));
    let mut cells = vec![vec![' '; columns]; rows];
    let (mut row, mut column) = (0, 0);
    let mut rest = written.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            if !c.is_control() {
                if let Some(cell) =
                    cells.get_mut(row).and_then(|it: &mut Vec<_>| it.get_mut(column))
                {
                    *cell = c;
                }
                column += 1;
            }
            continue;
        }
        if rest.next() != Some('[') {
            continue;
        }
        let mut parameters = String::new();
        let end = rest.by_ref().find(|c| {
            let is_end = c.is_ascii_alphabetic();
            if !is_end {
                parameters.push(*c);
            }
            is_end
        });
        match end {
            Some('H') => {
                let mut numbers = parameters.split(';').map(|it| it.parse().unwrap_or(1_usize));
                row = numbers.next().unwrap_or(1) - 1;
                column = numbers.next().unwrap_or(1) - 1;
            }
            Some('J') => cells.iter_mut().for_each(|line| line.fill(' ')),
            _ => {}
        }
    }
    cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned()).collect()
}
