//! What a controller's thread does is written down as it happens, one step after the other, and takes its time: it is async. There is no
//! executor and nothing wakes anything: all of it is polled again whenever the thread has been woken, and the thread sleeps until what is due first.
//!
//! So a test can step it under a clock of its own, and what the thread does several of at a time (aborts, events, somebody's admin command) needs no
//! state machine each. Rejected: blocking code (a test could not step it), tokio (a runtime, for one thread that waits for three descriptors).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use reactor::Instant;

/// The time of a pass over the tasks, and when the next one is due.
#[derive(Debug, Default)]
pub(crate) struct Time {
    now: Cell<Instant>,
    due: Cell<Option<Instant>>,
}

impl Time {
    /// A pass begins.
    pub(crate) fn begin(&self, now: Instant) {
        self.now.set(now);
        self.due.set(None);
    }

    /// When the next pass has to be at the latest; None: when something happens.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.get()
    }

    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Asks for a pass at that time.
    pub(crate) fn call_at(&self, at: Instant) {
        self.due.set(Some(self.due.get().map_or(at, |due| due.min(at))));
    }

    /// Waits.
    pub(crate) async fn sleep(&self, time: Duration) {
        let never = || None::<()>;
        self.wait(Some(time), never).await;
    }

    /// Waits until there is something, looking in every pass; None if there was nothing for so long.
    pub(crate) async fn wait<T>(
        &self,
        patience: Option<Duration>,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let until = patience.map(|patience| self.now() + patience);
        poll_fn(|_| {
            if let Some(found) = look() {
                return Poll::Ready(Some(found));
            }
            match until {
                Some(until) if until <= self.now() => Poll::Ready(None),
                Some(until) => {
                    self.call_at(until);
                    Poll::Pending
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Tasks that are polled together.
#[derive(Default)]
pub(crate) struct Tasks<'a> {
    running: RefCell<Vec<Task<'a>>>,
    /// Those that were added while the others were polled.
    added: RefCell<Vec<Task<'a>>>,
}

impl<'a> Tasks<'a> {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'a) {
        self.added.borrow_mut().push(Box::pin(task));
    }

    /// Polls them all; those that have ended are dropped.
    pub(crate) fn poll(&self, context: &mut Context<'_>) {
        loop {
            let mut running = self.running.take();
            let added = self.added.take();
            let mut fresh: Vec<_> = added;
            if running.is_empty() && fresh.is_empty() {
                return;
            }
            running.append(&mut fresh);
            running.retain_mut(|task| task.as_mut().poll(context).is_pending());
            self.running.replace(running);
            if self.added.borrow().is_empty() {
                return;
            }
        }
    }
}

impl fmt::Debug for Tasks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    #[test]
    fn tasks_go_on_when_they_are_due_and_may_make_others() {
        let (time, log) = (Time::default(), Rc::new(RefCell::new(Vec::new())));
        let note = |what: &'static str| log.borrow_mut().push(what);
        let made = std::cell::Cell::new(false);
        let tasks = Tasks::default();
        tasks.spawn(async {
            time.sleep(Duration::from_secs(2)).await;
            note("two");
            made.set(true);
        });
        tasks.spawn(async {
            let found = time.wait(Some(Duration::from_secs(1)), || None::<()>).await;
            note(if found.is_none() { "one" } else { "what?" });
        });
        let pass = |seconds: u64| {
            time.begin(Instant::ZERO + Duration::from_secs(seconds));
            tasks.poll(&mut Context::from_waker(Waker::noop()));
            if made.take() {
                tasks.spawn(async { note("made") });
                tasks.poll(&mut Context::from_waker(Waker::noop()));
            }
            time.due().map(|due| due.since(Instant::ZERO).as_secs())
        };
        assert_eq!(pass(0), Some(1));
        assert_eq!(pass(1), Some(2));
        assert_eq!(*log.borrow(), ["one"]);
        assert_eq!(pass(2), None);
        assert_eq!(*log.borrow(), ["one", "two", "made"]);
    }
}
