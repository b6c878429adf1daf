//! One reactor's way to a namespace: checks operations, gives them to an engine, and answers them.

use std::collections::VecDeque;
use std::sync::Arc;

use reactor::ring::Features;
use reactor::ring::nvme::CommandRing;
use reactor::{Instant, Local};

use super::engine::CommandEngine;
use super::medium::Medium;
use crate::fault::Fault;
use crate::inquiry::Inquiry;
use crate::workers::{Cancelled, WorkerEngine, Workers};
use crate::{BlockError, BlockQueue, Completion, ErrorKind, Kind, Operation, Token};

#[derive(Debug)]
pub(super) struct PassthroughQueue {
    medium: Arc<Medium>,
    local: Local,
    commands: Option<CommandEngine>,
    workers: WorkerEngine<Medium>,
    done: VecDeque<Completion>,
    inquiry: Inquiry,
}

impl PassthroughQueue {
    pub(super) fn new(
        medium: Arc<Medium>,
        workers: Arc<Workers<Medium>>,
        local: &Local,
    ) -> Result<PassthroughQueue, BlockError> {
        let Some(home) = local.handle(local.index()) else {
            let problem = "its reactor has no handle of its own".to_owned();
            return Err(BlockError::Unsuitable { device: medium.name.clone(), problem });
        };
        let ring = CommandRing::of(local, medium.features);
        let features = ring.as_ref().map(|ring| ring.features());
        medium.said.call_once(|| say_which_way(&medium, features));
        Ok(PassthroughQueue {
            commands: ring.map(|ring| CommandEngine::new(Arc::clone(&medium), &ring)),
            workers: WorkerEngine::new(Arc::clone(&medium), workers, home),
            medium,
            local: local.clone(),
            done: VecDeque::new(),
            inquiry: Inquiry::default(),
        })
    }

    /// Finds out whether the device is still there, if something makes us doubt it.
    fn inquire(&mut self) {
        if self.inquiry.answer() == Some(true) {
            self.medium.remove();
        }
        if self.commands.as_mut().is_some_and(CommandEngine::take_doubt) {
            let medium = Arc::clone(&self.medium);
            self.inquiry.start(&self.local, move || medium.is_gone());
        }
    }

    fn say(&mut self, token: Token, result: Result<(), ErrorKind>) {
        self.done.push_back(Completion::new(token, result));
    }
}

impl BlockQueue for PassthroughQueue {
    fn submit(&mut self, operation: Operation) {
        // Now, not when they end, perhaps all at once: so growing depends on the depth alone.
        self.done.reserve(self.outstanding() + 1 - self.done.len());
        let properties = &self.medium.properties;
        let verdict = operation.admit(self.medium.geometry(), properties);
        let nothing_to_do = match operation.kind {
            Kind::Flush => properties.read_only,
            _ => operation.blocks == 0,
        };
        match verdict {
            Err(kind) => self.say(operation.token, Err(kind)),
            Ok(()) if self.medium.is_removed() => {
                self.say(operation.token, Err(ErrorKind::Removed));
            }
            Ok(()) if nothing_to_do => self.say(operation.token, Ok(())),
            Ok(()) => match &mut self.commands {
                Some(commands) if self.medium.identified.has(operation.kind) => {
                    commands.start(operation);
                }
                _ => self.workers.start(operation),
            },
        }
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.inquire();
        let ends = &mut self.done;
        let mut finished = |operation: Operation, outcome: Result<(), Fault>| {
            let result = outcome.map_err(|fault| fault.kind(operation.kind));
            ends.push_back(Completion::new(operation.token, result));
        };
        if let Some(commands) = &mut self.commands {
            commands.poll(self.local.now(), &mut finished);
        }
        self.workers.poll(&mut finished);
        let count = max.min(self.done.len());
        self.done.drain(..count).for_each(done);
        count
    }

    fn cancel(&mut self, token: Token) -> bool {
        let given_back = self.commands.as_mut().and_then(|commands| commands.cancel(token));
        let given_back = match given_back {
            Some(operation) => Cancelled::GivenBack(operation),
            None => self.workers.cancel(token),
        };
        match given_back {
            Cancelled::GivenBack(operation) => {
                self.say(operation.token, Err(ErrorKind::Aborted));
                true
            }
            Cancelled::WillAbort => true,
            Cancelled::No => false,
        }
    }

    fn outstanding(&self) -> usize {
        let commands = self.commands.as_ref().map_or(0, CommandEngine::outstanding);
        commands + self.workers.outstanding() + self.done.len()
    }

    fn needs_poll(&self) -> bool {
        !self.done.is_empty()
            || self.inquiry.is_answered()
            || self.commands.as_ref().is_some_and(CommandEngine::needs_poll)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.commands.as_ref().and_then(CommandEngine::next_deadline)
    }
}

fn say_which_way(medium: &Medium, features: Option<Features>) {
    let way = match features {
        None => "by worker threads, which is slower".to_owned(),
        Some(features) => {
            let pinned =
                if features.contains(Features::FIXED_BUFFERS) { "pinned" } else { "plain" };
            let polled = features.contains(Features::POLLED_COMMANDS);
            let how = if polled { "polled" } else { "with interrupts" };
            format!("by io_uring, {pinned} buffers, {how}")
        }
    };
    tracing::info!("device {}: commands go to {} {way}", medium.name, medium.path.display());
}
