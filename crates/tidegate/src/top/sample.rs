//! What the node has counted at a moment: the answer to `tidegate_get_statistics`, as far as it is shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use crate::rpc::Client;

/// How long an answer is waited for: longer than the node waits for a reactor of its own that hangs.
const PATIENCE: Duration = Duration::from_secs(100);

/// All counters at a moment.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Sample {
    /// When, in ticks of a clock that a restart of the node does not set back.
    pub(super) ticks: u64,
    /// Ticks in a second.
    pub(super) tick_rate: u64,
    pub(super) reactors: Vec<Reactor>,
    pub(super) devices: Vec<Device>,
    pub(super) controllers: Vec<Controller>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Reactor {
    #[serde(rename = "reactor")]
    pub(super) number: u64,
    pub(super) core: Option<u64>,
    /// Ticks in turns in which something was done.
    pub(super) busy: u64,
    /// Ticks in turns that found nothing to do.
    pub(super) idle: u64,
    pub(super) turns: u64,
    /// None if it did not answer.
    #[serde(flatten)]
    pub(super) shard: Option<Shard>,
}

/// What a reactor has in use, and what it has done for hosts.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Shard {
    pub(super) queues: u64,
    pub(super) requests: u64,
    pub(super) controllers: u64,
    pub(super) pool_bytes: u64,
    pub(super) pool_used_bytes: u64,
    pub(super) commands: u64,
    pub(super) failed_commands: u64,
    pub(super) slot_waits: u64,
    pub(super) buffer_waits: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Device {
    #[serde(rename = "device")]
    pub(super) name: String,
    /// None while it is waited for.
    pub(super) size_bytes: Option<u64>,
    pub(super) operations_in_flight: u64,
    /// By class: `read`, `write` and others.
    pub(super) operations: BTreeMap<String, Operations>,
    /// By kind.
    pub(super) errors: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Operations {
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// The sum of the latencies.
    pub(super) latency_ticks: u64,
    /// How many took from when to before when, in ticks; without those that are empty.
    pub(super) latency_buckets: Vec<(u64, u64, u64)>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Controller {
    #[serde(rename = "controller")]
    pub(super) cntlid: u16,
    pub(super) subsystem: String,
    pub(super) host: String,
    /// The host's address.
    pub(super) peer: Option<String>,
    pub(super) io_queues: u64,
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) written_bytes: u64,
    pub(super) media_errors: u64,
}

/// Takes samples, by a connection that is made anew after each failure.
pub(super) struct Sampler {
    socket: PathBuf,
    client: Option<Client>,
}

impl Sampler {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, client: None }
    }

    /// The counters now.
    ///
    /// # Errors
    /// The node cannot be reached or does not know the method. The next sample may be another process's.
    pub(super) fn take(&mut self) -> anyhow::Result<Sample> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket, PATIENCE)?,
        };
        let answer = client.call("tidegate_get_statistics", Value::Null)?;
        let sample = Sample::deserialize(answer).context("the node is of another version")?;
        self.client = Some(client);
        Ok(sample)
    }
}
