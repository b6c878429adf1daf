//! The orderly end: what is in flight finishes, devices are flushed, and what does not finish is named.

use block::{Data, ErrorKind, Kind, Operation, Token};

use super::Shard;
use super::request::Stage;
use super::table::Key;

/// The token of the last flush of each device; no request's (see [`super::request::MAX_REQUESTS`]).
pub(super) const TOKEN: Token = Token(u64::MAX);

/// How far the end has come.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    /// The flushes have been submitted.
    flushed: bool,
    /// Backends whose flush is still out.
    flushing: Vec<Key>,
    /// Devices that could not be flushed.
    failed: Vec<String>,
}

impl Shard {
    /// Refuses new controllers and new I/O commands (retryably: the one with a status, the other by not
    /// reading them), lets what is in flight finish, then flushes every device with a volatile cache.
    pub fn begin_shutdown(&mut self) {
        if self.shutdown.is_none() {
            self.shutdown = Some(Shutdown::default());
            self.woken = true;
        }
    }

    /// Whether everything in flight has finished and the devices are flushed.
    ///
    /// # Errors
    /// What is still there, by name.
    pub fn drained(&self) -> Result<(), Vec<String>> {
        let mut stuck = Vec::new();
        for (id, queue) in self.queues.iter() {
            let counted = self.in_flight(queue.requests);
            if counted > 0 {
                stuck.push(format!("{id} of {}: {counted} commands in flight", queue.info.peer));
            }
        }
        for (key, backend) in self.subsystems.backends.iter() {
            if backend.in_flight > 0
                && let Some((subsystem, nsid)) = self.name_of(key)
            {
                let device = backend.namespace.device_name();
                let operations = backend.in_flight;
                stuck.push(format!(
                    "namespace {nsid} of {subsystem}: device {device} holds {operations} operations"
                ));
            }
        }
        match &self.shutdown {
            Some(shutdown) if !shutdown.flushed && stuck.is_empty() => {
                stuck.push("devices not flushed yet".to_owned());
            }
            Some(shutdown) => stuck.extend(shutdown.failed.iter().cloned()),
            None => {}
        }
        if stuck.is_empty() { Ok(()) } else { Err(stuck) }
    }

    /// Commands in this list of a queue that are neither parked for an event nor waiting for a message.
    fn in_flight(&self, first: Option<crate::RequestId>) -> u32 {
        let mut next = first;
        let mut count = 0;
        while let Some(request) = next.and_then(|id| self.requests.get(id)) {
            next = request.next;
            if !matches!(request.stage, Stage::Event | Stage::Elsewhere) {
                count += 1;
            }
        }
        count
    }

    /// Once nothing of I/O queues is in flight any more: the last flush.
    pub(super) fn continue_shutdown(&mut self) {
        let Some(shutdown) = &self.shutdown else { return };
        if shutdown.flushed {
            return;
        }
        let busy = self
            .queues
            .iter()
            .any(|(_, queue)| queue.is_io() && self.in_flight(queue.requests) > 0);
        if busy || self.subsystems.backends.iter().any(|(_, backend)| backend.in_flight > 0) {
            return;
        }
        let mut flushing = Vec::new();
        for key in self.subsystems.backends.keys() {
            let Some(backend) = self.subsystems.backends.get_mut(key) else { continue };
            let Some(queue) = backend.queue.as_mut() else { continue };
            if !backend.bounds.volatile_write_cache {
                continue;
            }
            queue.submit(Operation {
                token: TOKEN,
                kind: Kind::Flush,
                lba: 0,
                blocks: 0,
                data: Data::none(),
                fua: false,
            });
            backend.in_flight += 1;
            flushing.push(key);
        }
        for key in &flushing {
            self.subsystems.activate(*key);
        }
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.flushed = true;
            shutdown.flushing = flushing;
        }
    }

    /// A last flush has come back.
    pub(super) fn last_flush_done(&mut self, key: Key, result: Result<(), ErrorKind>) {
        let name = self.name_of(key);
        let Some(shutdown) = &mut self.shutdown else { return };
        shutdown.flushing.retain(|flushing| *flushing != key);
        if let (Err(error), Some((subsystem, nsid))) = (result, name) {
            shutdown.failed.push(format!("namespace {nsid} of {subsystem}: flush failed: {error}"));
        }
    }
}
