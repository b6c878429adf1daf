//! Identify where the answer depends on the controllers of the whole subsystem, which live on all shards.
//!
//! The command waits while a [`Roll`] goes round the shards, the asker's own among them. The list is no snapshot:
//! a controller that comes or goes meanwhile may be in it or not, as on any device with more than one host.
//! A controller that has lost its admin queue and waits for its last writes is not in it.

use nvme::Nqn;
use nvme::admin::{Command, Identify};
use nvme::identify::CONTROLLER_LIST_MAX;

use super::Shard;
use super::controller::{Ending, Kind};
use super::message::{Body, Roll};
use super::queue::Role;
use super::request::Task;
use crate::identify;
use crate::{RequestId, ShardIndex};

impl Shard {
    /// Asks all shards for the controllers of this subsystem that the command is about.
    pub(super) fn ask_for_controllers(
        &mut self,
        id: RequestId,
        subsystem: Nqn,
        nsid: u32,
        command: Identify,
    ) {
        self.park(id);
        let roll = Roll {
            asker: self.index,
            request: id,
            subsystem,
            namespace: identify::is_about_attached(&command).then_some(nsid),
            from: command.cntid,
            cntlids: Vec::new(),
        };
        self.send(ShardIndex(0), Body::CallRoll(Box::new(roll)));
    }

    /// A roll comes by: the controllers of this shard join it.
    pub(super) fn call_roll(&mut self, mut roll: Box<Roll>) {
        let found = self.subsystems.find(&roll.subsystem);
        if let Some((key, entry)) = found.and_then(|key| Some((key, self.subsystems.get(key)?))) {
            let namespace = roll.namespace.map(|nsid| entry.subsystem().namespace(nsid));
            let own = self.controllers.range(roll.from..).filter(|(_, controller)| {
                let sees = namespace.is_none_or(|namespace| {
                    namespace.is_some_and(|it| it.is_active_for(&controller.host.nqn))
                });
                controller.kind == Kind::Nvm(key) && controller.ending != Some(Ending::Dead) && sees
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
