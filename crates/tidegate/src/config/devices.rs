//! `[controllers.NAME]` and `[devices.NAME]`.

use std::path::PathBuf;

use control::objects::RateLimits;
use serde::Deserialize;
use toml::Spanned;

use super::quantity::{Size, Time};

/// `[controllers.NAME]`: an NVMe controller, driven from user space.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Controller {
    /// Where it is: its PCI address.
    pub(crate) address: Option<Spanned<String>>,
    /// Its serial number, wherever it is.
    pub(crate) serial: Option<Spanned<String>>,
}

/// `[devices.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Device {
    pub(crate) kind: DeviceKind,
    /// Of a `file` device: a regular file or a block device.
    pub(crate) path: Option<Spanned<PathBuf>>,
    /// Of `ram` and `null`; of a `file` that does not exist yet, to create it sparse.
    pub(crate) size: Option<Spanned<Size>>,
    /// 512 or 4096; the default is 4096, or what the block device itself has.
    pub(crate) block_size: Option<Spanned<u32>>,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) direct: Direct,
    /// Of `delay` and `error`: the device below.
    pub(crate) base: Option<Spanned<String>>,
    /// Of `delay`: how long completions are held; those of one operation in a hundred as long as the p99 ones say,
    /// which are the others unless they are given.
    pub(crate) read_latency: Option<Spanned<Time>>,
    pub(crate) read_latency_p99: Option<Spanned<Time>>,
    pub(crate) write_latency: Option<Spanned<Time>>,
    pub(crate) write_latency_p99: Option<Spanned<Time>>,
    /// Of `nvme`: the name of its controller,
    pub(crate) controller: Option<Spanned<String>>,
    /// and its number there.
    pub(crate) nsid: Option<Spanned<u32>>,
    /// How much it may do per second.
    #[serde(default)]
    pub(crate) limits: RateLimits,
}

/// The kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeviceKind {
    /// Does nothing, at once: for measuring.
    Null,
    /// Memory; lost when the daemon ends.
    Ram,
    /// A regular file or a block device.
    File,
    /// Another device, slow on purpose.
    Delay,
    /// Another device, which fails when it is told to.
    Error,
    /// A namespace of an NVMe controller.
    Nvme,
}

impl DeviceKind {
    /// Whether it stands on another device.
    pub(crate) fn is_layer(self) -> bool {
        matches!(self, Self::Delay | Self::Error)
    }
}

/// Whether a `file` device bypasses the page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direct {
    /// Where the file system can.
    #[default]
    Auto,
    /// Refuse the device otherwise.
    Always,
    /// Through the page cache.
    Never,
}
