//! Capsules set aside so that the data behind them can come in.
//!
//! A capsule that the target cannot take now, or whose data it has no buffer for now, stops the
//! stream. What the target waits for may be behind it in the same stream: the data of commands
//! that hold all the buffers. So while the host owes such data, the capsule is copied here, and
//! reading goes on. This happens only when buffers or slots have run out; it is the one place
//! where the data path allocates. Order is kept: once one capsule was refused, those that follow
//! wait behind it.

use std::collections::VecDeque;

use nvme::Sqe;
use target::RequestId;

/// A capsule set aside.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) sqe: Sqe,
    /// The request, if the target has taken the command and owes a buffer for the data.
    pub(crate) request: Option<RequestId>,
    pub(crate) data: Box<[u8]>,
    /// The data digest was wrong.
    pub(crate) damaged: bool,
}

/// The capsules of a connection that are set aside, in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    capsules: VecDeque<Parked>,
}

impl Parking {
    pub(crate) fn len(&self) -> usize {
        self.capsules.len()
    }

    pub(crate) fn push(&mut self, capsule: Parked) {
        self.capsules.push_back(capsule);
    }

    /// Whether a capsule waits for the target to take it at all.
    pub(crate) fn has_refused(&self) -> bool {
        self.first_refused().is_some()
    }

    /// The first capsule that the target has not taken.
    pub(crate) fn first_refused(&self) -> Option<(usize, &Parked)> {
        self.capsules.iter().enumerate().find(|(_, capsule)| capsule.request.is_none())
    }

    /// The target has taken the capsule at `index` as `request`; without data it is done with.
    pub(crate) fn taken(&mut self, index: usize, request: RequestId) {
        if let Some(capsule) = self.capsules.get_mut(index) {
            capsule.request = Some(request);
            if capsule.data.is_empty() {
                self.capsules.remove(index);
            }
        }
    }

    /// Takes out the capsule of `request`.
    pub(crate) fn remove(&mut self, request: RequestId) -> Option<Parked> {
        let found = self.capsules.iter().position(|capsule| capsule.request == Some(request))?;
        self.capsules.remove(found)
    }

    pub(crate) fn clear(&mut self) {
        self.capsules.clear();
    }
}
