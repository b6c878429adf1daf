//! What the transport counts of one device on one reactor.

reactor::counters! {
    /// Queues that were begun to be served.
    opened,
    /// Queues that have ceased to be served.
    closed,
    /// Command capsules received.
    commands,
    /// Commands that the target had no room for at first.
    commands_held,
    /// Capsules with data in them.
    in_capsule,
    /// Bytes of data received, in capsules or by RDMA reads.
    bytes_received,
    /// Bytes of data sent by RDMA writes.
    bytes_sent,
    /// Bytes copied out of a capsule.
    bytes_copied,
    /// Work requests posted: RDMA reads.
    reads,
    /// Work requests posted: RDMA writes.
    writes,
    /// Work requests posted: responses.
    responses,
    /// Responses that invalidated the host's key.
    invalidations,
    /// Calls that posted work requests, however many at once.
    posts,
    /// Receives posted.
    receives,
    /// Calls that posted receives, however many at once.
    receive_posts,
    /// Completions taken.
    completions,
    /// Times that all receives were in use: hosts met receiver-not-ready then, unless there was nothing to send.
    receives_exhausted,
    /// Receives that could not be posted again at once because the pool was empty.
    receives_delayed,
    /// Commands whose RDMA reads waited for earlier ones, as many as the host answers at a time.
    reads_delayed,
    /// Completion events slept for.
    events,
    /// Work that ended with an error, flushed work aside.
    failed_work,
    /// Queues ended: a capsule was too short, or there were more than the queue has room for.
    violations,
    /// Queues ended: capsules of their host took nearly all receives for a while, and others had none.
    receives_reclaimed,
    /// Queues ended: nothing of what was posted ended in time.
    timeouts,
    /// Queue pairs that were destroyed though the device did not say that it had taken its last receive.
    last_receives_missed,
}
