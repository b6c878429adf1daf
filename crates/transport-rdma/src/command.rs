//! The commands in flight, by the target's place for each: what the transport has to remember of a command until it has been answered.

use target::RequestId;

use crate::descriptor::Data;

/// One command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    request: RequestId,
    session: usize,
    /// The receive that its capsule is kept in, because there is something in it that is needed still.
    pub(crate) capsule: Option<Capsule>,
    pub(crate) data: Data,
    /// RDMA reads that are out, and whether more will be.
    pub(crate) reads: u32,
    pub(crate) asked_for_all: bool,
}

/// A capsule that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capsule {
    pub(crate) tag: u32,
    /// Bytes that came with the SQE.
    pub(crate) length: usize,
}

/// A table of them; it grows to the number of places that the target has, and then never again.
#[derive(Debug, Default)]
pub(crate) struct Commands(Vec<Option<Command>>);

impl Commands {
    /// The target has taken a command of this session.
    pub(crate) fn insert(
        &mut self,
        request: RequestId,
        session: usize,
        capsule: Option<Capsule>,
        data: Data,
    ) {
        let slot = usize::try_from(request.slot).unwrap_or(usize::MAX);
        if slot >= self.0.len() {
            self.0.resize(slot.saturating_add(1).next_power_of_two(), None);
        }
        if let Some(entry) = self.0.get_mut(slot) {
            let command =
                Command { request, session, capsule, data, reads: 0, asked_for_all: false };
            *entry = Some(command);
        }
    }

    /// A command, if it is that one.
    pub(crate) fn get(&mut self, request: RequestId) -> Option<&mut Command> {
        let entry = self.0.get_mut(usize::try_from(request.slot).ok()?)?;
        entry.as_mut().filter(|command| command.request == request)
    }

    /// Which command of this session has this place.
    pub(crate) fn request(&self, slot: u32, session: usize) -> Option<RequestId> {
        let command = self.0.get(usize::try_from(slot).ok()?)?.as_ref()?;
        (command.session == session).then_some(command.request)
    }
}
