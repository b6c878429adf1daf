//! What one shard has counted since it was made. Plain numbers: one thread writes and reads them.

/// The counters of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Commands taken.
    pub commands: u64,
    /// Commands answered with anything but success.
    pub failed_commands: u64,
    /// Commands on I/O queues that were answered, their Connects among them.
    pub answered_io: u64,
    /// Block operations submitted.
    pub operations: u64,
    /// Reads that devices lent their own memory for.
    pub lent: u64,
    /// Reads that were to be lent such, while somebody wrote there or was about to: they were copied.
    pub not_lent: u64,
    /// Reads whose memory was copied when a write waited for it and the host did not take it.
    pub given_back: u64,
    /// Commands not taken because no slot was free; the queue was resumed later.
    pub stalls: u64,
    /// Commands that had to wait for a buffer.
    pub buffer_waits: u64,
    /// Times that the pool had nothing for the one whose turn it was.
    pub pool_empty: u64,
    /// Times that the one whose turn it was found its device holding all that it may.
    pub device_crowded: u64,
    /// Queues refused because the shard had all it may have.
    pub queues_refused: u64,
    /// Queues ended because no Connect came.
    pub queues_unconnected: u64,
    /// Controllers made.
    pub controllers_created: u64,
    /// I/O queues that connected.
    pub io_queues_connected: u64,
    /// Connects refused.
    pub connects_refused: u64,
    /// Connects that were told to try again because old writes of the host did not finish in time.
    pub connects_deferred: u64,
    /// Questions about old writes that could not be answered at once.
    pub connects_waited: u64,
    /// Controllers whose keep-alive timer expired.
    pub keep_alive_expired: u64,
    /// Asynchronous events reported.
    pub events_reported: u64,
    /// Aborts that found their command.
    pub aborts: u64,
    /// Block operations that a device let go of when asked.
    pub cancelled: u64,
    /// Commands that stayed in a device beyond the deadline.
    pub overdue: u64,
    /// Namespaces fenced because of operations of dead queues.
    pub fences: u64,
    /// Pauses that ended by their deadline.
    pub pauses_expired: u64,
    /// Subsystems, namespaces and controllers looked at to take on configurations.
    pub configured: u64,
    /// Messages sent to other shards.
    pub messages_sent: u64,
    /// Handles that named nothing any more.
    pub stale_handles: u64,
}
