//! What is counted of a controller: on each reactor by itself, and by the controller's thread.

reactor::counters! {
    /// Commands submitted to I/O queues.
    commands,
    /// Writes to submission queue tail doorbells; what a shadow doorbell saved is not among them.
    submission_doorbells,
    /// Writes to completion queue head doorbells.
    completion_doorbells,
    /// Commands that were carried out again: after a reset, or because the controller asked for it.
    retries,
    /// Commands that were not completed in time.
    timeouts,
    /// Completions of commands that are not there.
    stray_completions,
    /// Operations whose data went by way of a page of the driver's own.
    bounced,
}
