//! Asynchronous events: what happened, and the commands that wait to tell it.
//!
//! An event is told once; events of the same type and page are not told again before the host has read that page.

use std::collections::{BTreeSet, VecDeque};

use nvme::Status;
use nvme::event::Event;
use nvme::log::LogPage;

use super::world::{Answer, Command, Stage, World};

/// Events that are kept for a host that does not ask.
const KEPT: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Events {
    queue: VecDeque<Event>,
    /// Types and pages of which an event was told and the page not read since.
    told: BTreeSet<(u8, u8)>,
    /// Namespaces that changed since the page was read.
    pub(super) changed: BTreeSet<u32>,
}

fn key(event: Event) -> (u8, u8) {
    (event.event_type.code(), event.lid)
}

impl Events {
    pub(super) fn reset(&mut self) {
        *self = Events::default();
    }

    /// Something happened.
    pub(super) fn push(&mut self, event: Event) {
        if !self.queue.contains(&event) && self.queue.len() < KEPT {
            self.queue.push_back(event);
        }
    }

    /// The host has read a page.
    pub(super) fn read(&mut self, page: LogPage) {
        self.told.retain(|&(_, lid)| lid != page.code());
    }

    fn tellable(&self) -> Option<usize> {
        self.queue.iter().position(|&event| !self.told.contains(&key(event)))
    }

    pub(super) fn can_tell(&self) -> bool {
        self.tellable().is_some()
    }

    fn tell(&mut self) -> Option<Event> {
        let event = self.queue.remove(self.tellable()?)?;
        self.told.insert(key(event));
        Some(event)
    }
}

impl World {
    /// A command waits for an event.
    pub(super) fn listen(&mut self, command: &Command) -> Option<Result<u32, Status>> {
        let waiting = |other: &&Command| other.stage == Stage::Listening;
        if self.commands.iter().filter(waiting).count() > usize::from(self.options.aerl) {
            return Some(Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr()));
        }
        let listener = self.commands.iter_mut().find(|other| other.number == command.number)?;
        listener.stage = Stage::Listening;
        None
    }

    pub(super) fn listener(&self) -> Option<usize> {
        self.commands.iter().position(|command| command.stage == Stage::Listening)
    }

    pub(super) fn tell_event(&mut self) {
        let Some(index) = self.listener() else { return };
        let Some(event) = self.events.tell() else { return };
        if let Some(command) = self.commands.get_mut(index) {
            let (status, dw0) = (Status::SUCCESS, event.dw0());
            command.stage = Stage::Done(Answer { status, dw0 });
        }
    }
}
