//! Keep-alive: controllers whose hosts are gone without a word.
//!
//! Any command on any queue of the controller counts as a sign of life (traffic-based keep-alive), read from
//! the ticks that the queues publish. The Keep Alive command itself therefore needs nothing but its answer.

use std::time::Duration;

use super::Shard;
use super::controller::{Controller, Ending, Kind};
use crate::{DisconnectReason, Instant};

/// A host that promised a command every KATO gets this much longer, up to as long again: networks and
/// schedulers are late at times, and losing a live controller costs more than keeping a dead one a moment.
const GRACE_MOST: Duration = Duration::from_secs(5);

/// How long a discovery controller without a keep-alive timeout may be silent.
const DISCOVERY_SILENCE: Duration = Duration::from_mins(2);

impl Controller {
    /// When it is given up unless its host says something; None: never.
    pub(super) fn expires(&self) -> Option<Instant> {
        if matches!(self.ending, Some(Ending::Shutdown | Ending::Dead))
            || self.csts.shst != nvme::register::ShutdownStatus::Normal
        {
            return None;
        }
        let timeout = Duration::from_millis(self.features.keep_alive().into());
        let silence = match self.kind {
            Kind::Discovery if timeout.is_zero() => DISCOVERY_SILENCE,
            _ if timeout.is_zero() => return None,
            _ => timeout + timeout.min(GRACE_MOST),
        };
        Some(self.last_command() + silence)
    }
}

impl Shard {
    /// Gives up the controllers whose hosts have been silent too long.
    pub(super) fn expire_controllers(&mut self) {
        let now = self.now;
        let expired: Vec<u16> = self
            .controllers
            .iter()
            .filter(|(_, controller)| controller.expires().is_some_and(|at| at <= now))
            .map(|(cntlid, _)| *cntlid)
            .collect();
        for cntlid in expired {
            let Some(controller) = self.controllers.get_mut(&cntlid) else { continue };
            tracing::warn!(
                cntlid,
                host = %controller.host.nqn,
                silent_s = now.since(controller.last_command()).as_secs(),
                age_s = controller.age(now).as_secs(),
                "keep-alive expired: controller dropped"
            );
            controller.csts.cfs = true;
            self.counters.keep_alive_expired += 1;
            self.kill_controller(cntlid, DisconnectReason::KeepAlive);
        }
    }
}
