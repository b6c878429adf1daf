//! Property Get and Set: the life of a controller as its host steers it.
//!
//! ```text
//!   disabled --CC.EN 1--> ready --CC.EN 0--> resetting (I/O queues end) --> disabled
//!                           |--CC.SHN------> shutting down (likewise) ----> shut down --CC.EN 0--> disabled
//!                           '--expired or bad CC--> fatal (CSTS.CFS)
//! ```
//!
//! A reset ends the I/O queues and keeps the admin queue. CSTS.RDY goes to 0 only when nothing of those
//! queues is in a device any more, so that a host which waits for it, as it must, cannot be overtaken by its
//! own old writes.

use nvme::Status;
use nvme::fabrics::{PropertyGet, PropertySet, PropertySize};
use nvme::register::{
    Capabilities, Configuration, ControllerStatus, Property, ReadyTimeouts, ShutdownNotification,
    ShutdownStatus,
};

use super::Shard;
use super::controller::{Controller, Ending, Kind};
use super::intake::{Classified, Outcome};
use super::queue::Role;
use crate::configuration::Limits;
use crate::identify::VERSION;
use crate::{DisconnectReason, RequestId};

/// CAP.TO and CRTO.CRWMT, in 500 ms: longer than a reset takes whose old writes have to be fenced off.
const READY_TIMEOUT: u8 = 120;

/// Entry sizes that CC has to carry when an I/O controller is enabled: 64 and 16 bytes as powers of two.
const IOSQES: u8 = 6;
const IOCQES: u8 = 4;

fn invalid() -> Outcome {
    Status::INVALID_FIELD.with_dnr().into()
}

/// A property that this controller does not have is told without DNR: nvme-cli's `show-regs` asks for each that there
/// is, takes exactly this status for "no such one", and crashes at any other.
fn absent() -> Outcome {
    Status::INVALID_FIELD.into()
}

impl Shard {
    fn capabilities(&self, controller: &Controller) -> Capabilities {
        let limits = match controller.kind {
            Kind::Discovery => Limits::default(),
            Kind::Nvm(key) => self
                .subsystems
                .get(key)
                .map_or_else(Limits::default, |entry| *entry.subsystem().limits()),
        };
        Capabilities {
            mqes: limits.queue_depth.saturating_sub(1),
            cqr: true,
            to: READY_TIMEOUT,
            css: Capabilities::CSS_NVM,
            crms: 1,
            ..Capabilities::default()
        }
    }

    pub(super) fn property_get(&self, cntlid: u16, get: PropertyGet) -> Classified {
        let Some(controller) = self.controllers.get(&cntlid) else {
            return Err(Status::INTERNAL_ERROR.into());
        };
        let property = Property::from_offset(get.offset).ok_or_else(absent)?;
        if property.size() != get.size {
            return Err(invalid());
        }
        let value = match property {
            Property::Capabilities => self.capabilities(controller).bits(),
            Property::Version => VERSION.bits().into(),
            Property::Configuration => controller.cc.bits().into(),
            Property::Status => controller.csts.bits().into(),
            Property::ReadyTimeouts => {
                let timeouts = ReadyTimeouts { crwmt: READY_TIMEOUT.into(), crimt: 0 };
                timeouts.bits().into()
            }
            // CAP.NSSRS is 0.
            Property::SubsystemReset => return Err(absent()),
        };
        // Not a failure: the answer is known, and nothing is left to do.
        Err(Outcome::result(value))
    }

    pub(super) fn property_set(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        let role = self.queues.get(request.queue).map(|queue| queue.role);
        let outcome = match (PropertySet::parse(&request.sqe), role) {
            (Ok(set), Some(Role::Admin { cntlid }))
                if Property::from_offset(set.offset) == Some(Property::Configuration)
                    && set.size == PropertySize::Four =>
            {
                let value = u32::try_from(set.value).unwrap_or(u32::MAX);
                self.set_configuration(cntlid, Configuration::from_bits(value))
            }
            _ => invalid(),
        };
        self.answer(id, outcome);
    }

    /// CC is written.
    fn set_configuration(&mut self, cntlid: u16, new: Configuration) -> Outcome {
        let Some(controller) = self.controllers.get_mut(&cntlid) else {
            return Status::INTERNAL_ERROR.into();
        };
        let old = controller.cc;
        if new.shn == ShutdownNotification::Reserved {
            return invalid();
        }
        controller.cc = new;
        if old.en && !new.en {
            tracing::info!(cntlid, "controller disabled by its host");
            self.abort_events(cntlid);
            self.end_io_queues(cntlid, Ending::Reset, DisconnectReason::Reset);
            return Outcome::SUCCESS;
        }
        if new.shn != ShutdownNotification::None && old.shn == ShutdownNotification::None {
            tracing::info!(cntlid, "controller shut down by its host");
            controller.csts.shst = ShutdownStatus::Occurring;
            self.end_io_queues(cntlid, Ending::Shutdown, DisconnectReason::Reset);
            return Outcome::SUCCESS;
        }
        if new.en && !old.en {
            self.enable(cntlid);
        }
        Outcome::SUCCESS
    }

    fn enable(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        let cc = controller.cc;
        let entries_fit = match controller.kind {
            Kind::Discovery => true,
            Kind::Nvm(_) => cc.iosqes == IOSQES && cc.iocqes == IOCQES,
        };
        // Not offered by CAP: a controller that cannot start says so with its fatal status.
        let possible = cc.css == 0 && cc.mps == 0 && cc.ams == 0 && entries_fit;
        if !possible || controller.ending.is_some() {
            tracing::warn!(
                cntlid,
                ?cc,
                "controller not enabled: its host asked for the impossible"
            );
            controller.csts.cfs = true;
            return;
        }
        controller.csts = ControllerStatus { rdy: true, ..ControllerStatus::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_timeout_outlasts_a_fenced_reset() {
        let limits = crate::ShardLimits::default();
        let timeout = std::time::Duration::from_millis(500) * u32::from(READY_TIMEOUT);
        assert!(timeout > limits.fence_after + limits.drain_wait);
    }
}
