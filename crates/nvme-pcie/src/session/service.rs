//! A session while the reactors use it: whether the controller is well, what reactors and others ask for.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::Poll;

use nvme::admin::{Abort, Command};
use nvme::{Sqe, Status};
use reactor::Instant;

use super::{EVENT_REQUESTS, End, Session, WATCH, status};
use crate::admin::{AdminError, Data};
use crate::controller::{OnTimeout, Request};
use crate::link::Report;
use crate::tasks::Tasks;

impl Session<'_> {
    /// Serves until something ends it.
    pub(super) async fn serve(&self) -> End {
        let tasks = Tasks::default();
        let requests = self
            .shared
            .identify()
            .map_or(1, |identify| identify.aerl.saturating_add(1).min(EVENT_REQUESTS));
        tasks.spawn(self.keep_health());
        for _ in 0..requests {
            tasks.spawn(self.hear_events());
        }
        let mut watch = Instant::ZERO;
        poll_fn(|context| {
            self.admin.poll();
            if watch <= self.time.now() {
                watch = self.time.now() + WATCH;
                self.look_after();
            }
            self.time.call_at(watch);
            if self.is_wanted_back() {
                self.end(End::Removed);
            }
            for report in self.shared.link.reports() {
                self.take_report(report, &tasks);
            }
            while let Some(request) = self.shared.next_request() {
                self.take_request(request, &tasks);
            }
            tasks.poll(context);
            match self.end.take() {
                Some(end) => Poll::Ready(end),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Whether the system has asked for the function since the last time.
    fn is_wanted_back(&self) -> bool {
        let asked = |eventfd| rustix::io::read(eventfd, &mut [0; 8]).is_ok();
        self.function.wanted_back().is_some_and(asked)
    }

    /// The first reason stands.
    pub(super) fn end(&self, end: End) {
        self.end.borrow_mut().get_or_insert(end);
    }

    /// Whether it is still there, and well.
    fn look_after(&self) {
        match status(self.function) {
            Err(end) => self.end(end),
            Ok(status) if status.cfs => {
                self.shared.counts.fatal.fetch_add(1, Ordering::Relaxed);
                self.end(End::Reset("it reports a fatal error".to_owned()));
            }
            Ok(status) if !status.rdy => {
                self.end(End::Reset("it has stopped by itself".to_owned()));
            }
            Ok(_) => {}
        }
        self.shared.admin_strays(self.admin.strays());
    }

    fn take_report<'t>(&'t self, report: Report, tasks: &Tasks<'t>) {
        match (report, self.options.on_timeout) {
            (Report::Overdue { qid, cid } | Report::Stuck { qid, cid }, OnTimeout::Nothing) => {
                tracing::warn!(
                    "{}: command {cid:#06x} of queue {qid} takes too long",
                    self.shared.name()
                );
            }
            (Report::Overdue { qid, cid }, OnTimeout::Reset) => {
                self.end(End::Reset(format!("command {cid:#06x} of queue {qid} takes too long")));
            }
            (Report::Overdue { qid, cid }, OnTimeout::Abort) => {
                let most = self.shared.identify().map_or(0, |identify| identify.acl);
                if self.aborting.get() > most {
                    // More than it takes at a time; this one gets its turn by the reset, if it comes to that.
                    return;
                }
                self.aborting.set(self.aborting.get() + 1);
                tasks.spawn(self.abort(qid, cid));
            }
            (Report::Stuck { qid, cid }, _) => {
                self.end(End::Reset(format!(
                    "command {cid:#06x} of queue {qid} is not completed, not even after an abort"
                )));
            }
        }
    }

    async fn abort(&self, qid: u16, cid: u16) {
        self.shared.counts.aborts.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            "{}: command {cid:#06x} of queue {qid} takes too long: aborting it",
            self.shared.name()
        );
        let abort = Command::Abort(Abort { sqid: qid, cid }).to_sqe(0);
        let answer = self.admin.command(abort, Data::None).await;
        self.aborting.set(self.aborting.get().saturating_sub(1));
        if let Err(AdminError::Timeout(_)) = answer {
            self.end(End::Reset("it does not answer an abort".to_owned()));
        }
    }

    fn take_request<'t>(&'t self, request: Request, tasks: &Tasks<'t>) {
        match request {
            // Whatever else ends it: nobody will ask again.
            Request::Detach => drop(self.end.replace(Some(End::Detached))),
            Request::Reset(done) => {
                self.shared.await_reset(done);
                self.end(End::Renewed);
            }
            Request::Rescan => tasks.spawn(self.rescan()),
            Request::Admin { sqe, read, write, patience, answer } => tasks.spawn(async move {
                let data = match (read, &write) {
                    (0, write) if write.is_empty() => Data::None,
                    (0, write) => Data::Out(write),
                    (read, _) => Data::In(read),
                };
                let patience = Some(patience.unwrap_or(self.options.admin_timeout));
                let result = self.admin.answer_within(patience, *sqe, data).await;
                // Whoever asked may have given up.
                let _ = answer.send(result);
            }),
        }
    }

    /// Looks for the namespaces again.
    pub(super) async fn rescan(&self) {
        let Some(controller) = self.shared.controller() else { return };
        match self.look(&controller).await {
            Ok(found) => self.shared.found(found),
            Err(error) => {
                tracing::warn!("{}: cannot look for namespaces: {error}", self.shared.name());
            }
        }
    }
}

/// An admin command of somebody else's making.
pub(crate) fn is_allowed(sqe: &Sqe) -> Result<(), Status> {
    use nvme::admin::Opcode;
    match Opcode::try_from(sqe.opcode) {
        // These would take away what the driver works with.
        Ok(
            Opcode::CreateIoSubmissionQueue
            | Opcode::CreateIoCompletionQueue
            | Opcode::DeleteIoSubmissionQueue
            | Opcode::DeleteIoCompletionQueue
            | Opcode::DoorbellBufferConfig
            | Opcode::AsynchronousEventRequest
            | Opcode::Abort,
        ) => Err(Status::OPERATION_DENIED),
        _ => Ok(()),
    }
}
