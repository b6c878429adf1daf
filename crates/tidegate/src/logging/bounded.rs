//! Bounds what strangers can make the log grow by: of each kind of line, which is each place in the code
//! that logs, only so many are written in a minute. How many were left out is said before the next one
//! that is written.
//!
//! Rejected: a limit over all kinds (a flood of one would hide the others), and leaving it to whoever
//! keeps the log (who is not known).

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Metadata;
use tracing::callsite::Identifier;
use tracing_subscriber::fmt::MakeWriter;

/// Lines of one kind in a window: more than any start or reconnect of many hosts needs.
const LINES: u32 = 500;
/// A window.
const WINDOW: Duration = Duration::from_mins(1);

/// Standard error, within bounds. See the [module](self).
#[derive(Debug)]
pub(super) struct Bounded {
    /// Lines are JSON.
    json: bool,
    kinds: Mutex<HashMap<Identifier, Window>>,
}

impl Bounded {
    pub(super) fn new(json: bool) -> Bounded {
        Bounded { json, kinds: Mutex::default() }
    }
}

/// What one kind of line has had since the window began.
#[derive(Debug)]
struct Window {
    began: Instant,
    written: u32,
    left_out: u64,
}

impl Window {
    fn new(now: Instant) -> Window {
        Window { began: now, written: 0, left_out: 0 }
    }

    /// Whether another line may be written, and how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let mut left_out = 0;
        if now.saturating_duration_since(self.began) >= WINDOW {
            left_out = self.left_out;
            *self = Window::new(now);
        }
        if self.written >= LINES {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(left_out)
    }
}

/// Where one line goes. It never fails: where standard error cannot be written to (a full disk, a reader that has
/// ended) there is nobody to tell, and the daemon goes on.
#[derive(Debug)]
pub(super) enum Line {
    Written(io::Stderr),
    LeftOut,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Line::Written(stderr) => Ok(stderr.write(bytes).unwrap_or(bytes.len())),
            Line::LeftOut => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Line::Written(stderr) = self {
            let _ = stderr.flush();
        }
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Bounded {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line::Written(io::stderr())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let now = Instant::now();
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let window = kinds.entry(metadata.callsite()).or_insert_with(|| Window::new(now));
        let admitted = window.admit(now);
        drop(kinds);
        let mut line = match admitted {
            None => return Line::LeftOut,
            Some(_) => Line::Written(io::stderr()),
        };
        if let Some(left_out @ 1..) = admitted {
            let text = format!("{left_out} lines like the next one were left out");
            // Where standard error cannot be written to, nobody can be told.
            let _ = if self.json {
                writeln!(line, r#"{{"level":"INFO","fields":{{"message":"{text}"}}}}"#)
            } else {
                writeln!(line, "{text}")
            };
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_window_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut window = Window::new(start);
        let admitted = (0..2 * LINES).filter(|_| window.admit(start) == Some(0)).count();
        assert_eq!(admitted, 500);
        assert_eq!(window.admit(start + WINDOW / 2), None);
        assert_eq!(window.admit(start + WINDOW), Some(u64::from(LINES) + 1));
        assert_eq!(window.admit(start + WINDOW), Some(0));
        assert_eq!(window.admit(start + 3 * WINDOW), Some(0));
    }
}
