//! Whether a device is still there: asked off the reactor, which must not block, when its I/O fails in a way that makes
//! one doubt it.

use std::cell::Cell;
use std::rc::Rc;

use reactor::Local;

/// One at a time.
#[derive(Debug, Default)]
pub(crate) struct Inquiry(Rc<Cell<State>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    None,
    Running,
    Answered {
        gone: bool,
    },
}

impl Inquiry {
    /// Has `is_gone`, which may block, asked, unless that is being done or its answer waits.
    pub(crate) fn start(&self, local: &Local, is_gone: impl FnOnce() -> bool + Send + 'static) {
        if self.0.get() == State::None {
            self.0.set(State::Running);
            let state = Rc::clone(&self.0);
            local.offload(is_gone, move |gone| state.set(State::Answered { gone }));
        }
    }

    /// Takes the answer, if there is one: whether it is gone.
    pub(crate) fn answer(&self) -> Option<bool> {
        let State::Answered { gone } = self.0.get() else {
            return None;
        };
        self.0.set(State::None);
        Some(gone)
    }

    /// Whether an answer waits to be taken.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.0.get(), State::Answered { .. })
    }
}
