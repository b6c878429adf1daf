//! The live view on a terminal: from keys, samples and signals to frames.
//!
//! ```text
//!   keys:    reads the terminal ---+
//!   sampler: asks the node --------+--> channel --> main thread: State, draws
//!   signals: waits for them -------+
//! ```
//!
//! So a node that hangs holds up no key. The terminal is put back in every way that this ends: quitting, a signal, a failure, and a
//! panic of any thread, before its message is printed. The three threads are left to the end of the process.

use std::io;
use std::panic;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event as Input, KeyEvent};
use ratatui::crossterm::execute;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::sample::{Sample, Sampler};
use super::screen::{self, Look};
use super::state::{Next, State};
use crate::failure;

/// What the main thread waits for.
enum Event {
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    Sampled(Result<Sample, String>),
    /// A signal to end.
    Signal,
    /// The terminal cannot be read any more.
    Deaf(io::Error),
}

/// How often the node is asked, and how many times; None: until the user quits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) interval: Duration,
    pub(super) iterations: Option<u64>,
}

/// Shows the node until the user has had enough.
///
/// # Errors
/// The terminal cannot be used.
pub(super) fn run(state: State, look: &Look, sampler: Sampler, pace: Pace) -> anyhow::Result<()> {
    let (sender, events) = mpsc::channel();
    // Before the terminal is changed, so that no signal leaves it changed.
    watch_signals(sender.clone())?;
    show_cursor_at_panic();
    let terminal = ratatui::try_init().context("this terminal cannot be drawn on, try --batch");
    let ended = terminal.and_then(|mut terminal| {
        read_keys(sender.clone())?;
        take_samples(sampler, pace.interval, sender)?;
        let ended = show(&mut terminal, state, look, pace, &events);
        if terminal.show_cursor().is_err() {
            // Dropped, it would try again, and panic where it cannot say that it failed: with the terminal,
            // standard error has gone.
            std::mem::forget(terminal);
        }
        ended
    });
    // Also where only half of it was set up.
    let restored = ratatui::try_restore();
    ended.and(restored.context("cannot put the terminal back, try `reset`"))
}

/// What else there is to put back is put back by the hook of [`ratatui::try_init`], which goes before this one; the cursor is left
/// to a destructor, and where a panic ends the process at once none runs.
fn show_cursor_at_panic() {
    let then = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // Nothing more can be done.
        let _ = execute!(io::stdout(), Show);
        then(info);
    }));
}

fn show(
    terminal: &mut DefaultTerminal,
    mut state: State,
    look: &Look,
    pace: Pace,
    events: &mpsc::Receiver<Event>,
) -> anyhow::Result<()> {
    let mut left = pace.iterations;
    let mut heard = Instant::now();
    // Longer than an answer takes that comes in time.
    let patience = pace.interval + Duration::from_secs(2);
    while left != Some(0) {
        terminal.draw(|frame| screen::draw(frame, &state, look)).context("cannot draw")?;
        match events.recv_timeout(Duration::from_secs(1)) {
            Ok(Event::Key(key)) => {
                if state.key(key) == Next::Quit {
                    break;
                }
            }
            Ok(Event::Sampled(sample)) => {
                heard = Instant::now();
                if state.sampled(sample).is_some() {
                    left = left.map(|left| left - 1);
                }
            }
            Ok(Event::Signal) | Err(RecvTimeoutError::Disconnected) => break,
            Ok(Event::Deaf(error)) => return Err(error).context("cannot read keys"),
            // The next frame has the size that there is.
            Ok(Event::Resized) | Err(RecvTimeoutError::Timeout) => {}
        }
        state.silence = Some(heard.elapsed()).filter(|silence| *silence > patience);
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).context("cannot start a thread")
}

fn watch_signals(events: Sender<Event>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot wait for signals")?;
    spawn("signals", move || {
        signals.forever().take_while(|_| events.send(Event::Signal).is_ok()).for_each(drop);
    })
}

fn read_keys(events: Sender<Event>) -> anyhow::Result<()> {
    spawn("keys", move || {
        loop {
            let event = match event::read() {
                Ok(Input::Key(key)) => Event::Key(key),
                Ok(Input::Resize(..)) => Event::Resized,
                Ok(_) => continue,
                Err(error) => {
                    // Nobody listens if the view has ended.
                    let _ = events.send(Event::Deaf(error));
                    return;
                }
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })
}

fn take_samples(
    mut sampler: Sampler,
    interval: Duration,
    events: Sender<Event>,
) -> anyhow::Result<()> {
    spawn("sampler", move || {
        let mut next = Instant::now();
        loop {
            next = (next + interval).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let sample = sampler.take().map_err(|error| failure::line(&error));
            if events.send(Event::Sampled(sample)).is_err() {
                return;
            }
        }
    })
}
