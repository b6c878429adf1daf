//! Identify where the answer depends on the controllers of the whole subsystem, which live on all shards.
//!
//! The command waits while a [`Roll`] goes round the shards, the asker's own among them. The list is no snapshot:
//! a controller that comes or goes meanwhile may be in it or not, as on any device with more than one host.
//! A controller that has lost its admin queue and waits for its last writes is not in it.

use nvme::Nqn;
use nvme::admin::Command;
use nvme::identify::CONTROLLER_LIST_MAX;

use super::Shard;
use super::controller::{Ending, Kind};
use super::message::{Body, Roll};
use super::queue::Role;
use super::request::Task;
use crate::{RequestId, ShardIndex};

impl Shard {
    /// Asks all shards for the controllers of this subsystem from this identifier on.
    pub(super) fn ask_for_controllers(&mut self, id: RequestId, subsystem: Nqn, from: u16) {
        self.park(id);
        let cntlids = Vec::new();
        let roll = Roll { asker: self.index, request: id, subsystem, from, cntlids };
        self.send(ShardIndex(0), Body::CallRoll(Box::new(roll)));
    }

    /// A roll comes by: the controllers of this shard join it.
    pub(super) fn call_roll(&mut self, mut roll: Box<Roll>) {
        if let Some(key) = self.subsystems.find(&roll.subsystem) {
            let own = self.controllers.range(roll.from..).filter(|(_, controller)| {
                controller.kind == Kind::Nvm(key) && controller.ending != Some(Ending::Dead)
            });
            roll.cntlids.extend(own.map(|(cntlid, _)| *cntlid).take(CONTROLLER_LIST_MAX));
            roll.cntlids.sort_unstable();
            roll.cntlids.truncate(CONTROLLER_LIST_MAX);
        }
        let next = ShardIndex(self.index.0.saturating_add(1));
        if next.0 < self.shards {
            self.send(next, Body::CallRoll(roll));
        } else {
            self.send(roll.asker, Body::RollCalled(roll));
        }
    }

    /// A roll of ours is complete.
    pub(super) fn roll_called(&mut self, roll: &Roll) {
        let Some(request) = self.requests.get(roll.request) else { return };
        let Task::Admin(Command::Identify(command)) = request.task else { return };
        let Some(Role::Admin { cntlid }) = self.queues.get(request.queue).map(|queue| queue.role)
        else {
            return;
        };
        self.answer_identify(roll.request, cntlid, command, &roll.cntlids);
    }
}
