//! The metrics that are a number each, with their names. The page serves a counter's name with `_total` behind it, the
//! method `tidegate_get_statistics` the name without what it is of (`reactor_`, `controller_`).

use node::{Census, ReactorCounters};
use target::shard::report::ControllerReport;

/// A figure of something: its name, what it is, where it is.
pub(crate) type Figure<T> = (&'static str, &'static str, fn(&T) -> u64);

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

pub(crate) const SHARD_GAUGES: &[Figure<Census>] = &[
    ("reactor_queues", "Queues of hosts", |it| it.queues.into()),
    ("reactor_requests", "Commands in flight", |it| it.requests.into()),
    ("reactor_controllers", "Controllers", |it| wide(it.controllers)),
    ("reactor_pool_bytes", "Memory for data in flight", |it| wide(it.pool)),
    ("reactor_pool_used_bytes", "Of that, what is in use", |it| wide(it.memory)),
];

pub(crate) const SHARD_COUNTERS: &[Figure<Census>] = &[
    ("commands", "Commands taken", |it| it.counters.commands),
    ("answered_io_commands", "Commands answered on I/O queues", |it| it.counters.answered_io),
    ("failed_commands", "Commands answered with an error", |it| it.counters.failed_commands),
    ("device_submissions", "Operations submitted to devices", |it| it.counters.operations),
    ("lent_reads", "Reads sent from the memory of their RAM device", |it| it.counters.lent),
    ("not_lent_reads", "Reads of RAM devices copied because of a write there", |it| {
        it.counters.not_lent
    }),
    ("given_back_reads", "Reads copied after all because a write waited", |it| {
        it.counters.given_back
    }),
    ("slot_waits", "Commands that waited for a slot", |it| it.counters.stalls),
    ("buffer_waits", "Commands that waited for memory", |it| it.counters.buffer_waits),
    ("pool_empty", "Times that the pool had nothing for the next in line", |it| {
        it.counters.pool_empty
    }),
    ("device_crowded", "Times that the next in line found its device holding its share", |it| {
        it.counters.device_crowded
    }),
    ("queues_refused", "Connections refused because there are as many as allowed", |it| {
        it.counters.queues_refused
    }),
    ("queues_unconnected", "Connections ended because no Connect came", |it| {
        it.counters.queues_unconnected
    }),
    ("controllers_created", "Controllers made", |it| it.counters.controllers_created),
    ("io_queues_connected", "I/O queues that connected", |it| it.counters.io_queues_connected),
    ("connects_refused", "Connect commands refused", |it| it.counters.connects_refused),
    ("connects_deferred", "Connects told to try again because of old writes", |it| {
        it.counters.connects_deferred
    }),
    ("keep_alive_expired", "Controllers whose host fell silent", |it| {
        it.counters.keep_alive_expired
    }),
    ("events_reported", "Asynchronous events reported", |it| it.counters.events_reported),
    ("aborts", "Aborts that found their command", |it| it.counters.aborts),
    ("overdue_commands", "Commands that a device kept beyond the deadline", |it| {
        it.counters.overdue
    }),
    ("fences", "Namespaces fenced because of operations of dead queues", |it| it.counters.fences),
];

pub(crate) const REACTOR_COUNTERS: &[Figure<ReactorCounters>] = &[
    ("reactor_turns", "Turns taken", |it| it.turns),
    ("reactor_busy_turns", "Turns in which something was done", |it| it.busy_turns),
    ("reactor_sleeps", "Times it went to sleep", |it| it.sleeps),
    ("reactor_wakeups", "Times another thread woke it", |it| it.wakeups),
    ("reactor_messages", "Mailbox messages run", |it| it.messages),
    ("reactor_epoll_calls", "System calls epoll_wait", |it| it.epoll_calls),
    ("reactor_ring_enters", "System calls io_uring_enter", |it| it.ring_enters),
    ("reactor_offloads", "Jobs given to worker threads", |it| it.offloads),
];

pub(crate) const CONTROLLER_GAUGES: &[Figure<ControllerReport>] =
    &[("controller_io_queues", "I/O queues", |it| wide(it.io_queues))];

pub(crate) const CONTROLLER_COUNTERS: &[Figure<ControllerReport>] = &[
    ("controller_reads", "Commands that read", |it| it.traffic.reads),
    ("controller_read_bytes", "Bytes read", |it| it.traffic.units_read.wrapping_mul(512)),
    ("controller_writes", "Commands that wrote", |it| it.traffic.writes),
    ("controller_written_bytes", "Bytes written", |it| it.traffic.units_written.wrapping_mul(512)),
    ("controller_media_errors", "Commands that failed because of the medium", |it| {
        it.traffic.media_errors
    }),
];

/// Nanoseconds, served as seconds.
pub(crate) const REACTOR_TIMES: &[Figure<ReactorCounters>] = &[
    ("reactor_busy_seconds", "Time in turns in which something was done", |it| it.busy_nanos),
    ("reactor_idle_seconds", "Time in turns that found nothing to do", |it| it.idle_nanos),
    ("reactor_sleep_seconds", "Time slept", |it| it.sleep_nanos),
];

/// The metric of a counter of the TCP transport, and what sets it apart from others of the same metric.
pub(super) fn tcp(name: &'static str) -> (String, Option<(&'static str, &'static str)>) {
    let parts = name.split_once('_');
    match parts {
        Some(("terminations", reason)) if reason != "received" => {
            ("tcp_terminations_sent".to_owned(), Some(("reason", reason)))
        }
        Some(("timeouts", reason)) => ("tcp_timeouts".to_owned(), Some(("reason", reason))),
        Some(("bytes", what)) => (format!("tcp_{what}_bytes"), None),
        _ => (format!("tcp_{name}"), None),
    }
}

/// The metric of a counter of the RDMA transport.
pub(super) fn rdma(name: &str) -> String {
    match name.strip_prefix("bytes_") {
        Some(what) => format!("rdma_{what}_bytes"),
        None => format!("rdma_{name}"),
    }
}
