//! NVMe controllers, and how they are driven.

use serde::{Deserialize, Serialize};

/// An NVMe controller whose namespaces are devices here (`bdev_nvme_attach_controller`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Its name; that of namespace 1 as a device is `NAMEn1`.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// I/O queues that it is asked for at most; None: one for each reactor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_queues: Option<u32>,
    /// What becomes of it if it is lost.
    #[serde(default, skip_serializing_if = "LossTimeouts::is_default")]
    pub loss: LossTimeouts,
}

impl Controller {
    /// One of which nothing is asked.
    pub fn plain(name: String, place: Place) -> Self {
        Self { name, place, io_queues: None, loss: LossTimeouts::default() }
    }
}

/// Where a controller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The local PCI function of this address, with its domain: `0000:03:00.0`.
    Pci(String),
    /// The local controller of this serial number, wherever it is.
    Serial(String),
}

/// What becomes of a controller that is lost, in seconds, under SPDK's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossTimeouts {
    /// How long it is looked for; -1: for ever. 0: nothing has been chosen, and the others are 0 too.
    pub ctrlr_loss_timeout_sec: i32,
    /// How often it is looked for.
    pub reconnect_delay_sec: u32,
    /// How long commands wait for it before they fail; 0: as long as it is looked for.
    pub fast_io_fail_timeout_sec: u32,
}

impl LossTimeouts {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they fit together, as SPDK has it.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), &'static str> {
        let Self { ctrlr_loss_timeout_sec, reconnect_delay_sec, fast_io_fail_timeout_sec } = *self;
        let Ok(loss) = u32::try_from(ctrlr_loss_timeout_sec) else {
            return match (ctrlr_loss_timeout_sec, reconnect_delay_sec) {
                (..-1, _) => Err("ctrlr_loss_timeout_sec is to be -1 or more"),
                (_, 0) => Err("reconnect_delay_sec is to be given with ctrlr_loss_timeout_sec"),
                (_, delay) => check_fast(fast_io_fail_timeout_sec, delay),
            };
        };
        if loss == 0 {
            return match (reconnect_delay_sec, fast_io_fail_timeout_sec) {
                (0, 0) => Ok(()),
                _ => Err(
                    "reconnect_delay_sec and fast_io_fail_timeout_sec need ctrlr_loss_timeout_sec",
                ),
            };
        }
        if reconnect_delay_sec == 0 {
            return Err("reconnect_delay_sec is to be given with ctrlr_loss_timeout_sec");
        }
        if reconnect_delay_sec > loss {
            return Err("reconnect_delay_sec is more than ctrlr_loss_timeout_sec");
        }
        if fast_io_fail_timeout_sec > loss {
            return Err("fast_io_fail_timeout_sec is more than ctrlr_loss_timeout_sec");
        }
        check_fast(fast_io_fail_timeout_sec, reconnect_delay_sec)
    }
}

fn check_fast(fast_io_fail_timeout_sec: u32, reconnect_delay_sec: u32) -> Result<(), &'static str> {
    if fast_io_fail_timeout_sec != 0 && fast_io_fail_timeout_sec < reconnect_delay_sec {
        return Err("fast_io_fail_timeout_sec is less than reconnect_delay_sec");
    }
    Ok(())
}

/// What becomes of a command that takes too long, as SPDK's clients call it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutAction {
    /// It is counted and logged.
    #[default]
    None,
    /// The controller is reset.
    Reset,
    /// It is aborted.
    Abort,
}

/// How controllers are driven that are attached from now on (`bdev_nvme_set_options`), under SPDK's names and with its
/// values where nothing has been set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvmeOptions {
    /// What becomes of an I/O command that takes longer than `timeout_us`.
    pub action_on_timeout: TimeoutAction,
    /// How long that is, in microseconds; 0: the driver's own, with its own action.
    pub timeout_us: u64,
    /// How long an admin command may take; 0: as long as others.
    pub timeout_admin_us: u64,
    /// How often a command is carried out again that the controller says to repeat.
    pub transport_retry_count: u32,
    /// How often one is that was interrupted by a reset; -1: again and again. Here the larger number holds for both.
    pub bdev_retry_count: i32,
    /// Commands outstanding on a queue; 0: the driver's own.
    pub io_queue_requests: u32,
    /// What becomes of controllers that are lost, unless it is said of them when they are attached.
    #[serde(flatten)]
    pub loss: LossTimeouts,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self {
            action_on_timeout: TimeoutAction::default(),
            timeout_us: 0,
            timeout_admin_us: 0,
            transport_retry_count: 4,
            bdev_retry_count: 3,
            io_queue_requests: 0,
            loss: LossTimeouts::default(),
        }
    }
}

impl NvmeOptions {
    /// Whether they fit together, as SPDK has it.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.timeout_us == 0 && self.timeout_admin_us != 0 {
            return Err("timeout_admin_us needs timeout_us");
        }
        if self.bdev_retry_count < -1 {
            return Err("bdev_retry_count is to be -1 or more");
        }
        self.loss.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_lost_controllers_fit_together_or_are_refused() {
        for (loss, delay, fast, fits) in [
            (0, 0, 0, true),
            (0, 1, 0, false),
            (0, 0, 1, false),
            (-2, 1, 1, false),
            (-1, 0, 0, false),
            (-1, 5, 0, true),
            (-1, 5, 4, false),
            (-1, 5, 5, true),
            (-1, 5, u32::MAX, true),
            (10, 0, 0, false),
            (10, 11, 0, false),
            (10, 10, 0, true),
            (10, 5, 4, false),
            (10, 5, 10, true),
            (10, 5, 11, false),
        ] {
            let timeouts = LossTimeouts {
                ctrlr_loss_timeout_sec: loss,
                reconnect_delay_sec: delay,
                fast_io_fail_timeout_sec: fast,
            };
            assert_eq!(timeouts.check().is_ok(), fits, "{timeouts:?}: {:?}", timeouts.check());
        }
    }
}
