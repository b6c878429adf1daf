//! Asynchronous events: what a controller tells its host without being asked.
//!
//! An event goes from armed to pending when it happens, from pending to reported when an Asynchronous Event
//! Request carries it, and back to armed when the host has read its log page with RAE 0. What happens
//! while it is reported is in the log page when that is read, so nothing is lost.

use nvme::Status;
use nvme::event::Event;
use nvme::feature::AsynchronousEvents;
use nvme::log::LogPage;

use super::Shard;
use super::controller::Kind;
use super::intake::Outcome;
use super::message::Body;
use super::request::Stage;
use crate::RequestId;
use crate::identify::ASYNC_EVENT_LIMIT;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Armed,
    Pending,
    Reported,
}

/// The events of one controller: it is of one kind, so there is one event that can happen to it.
#[derive(Debug, Default)]
pub(crate) struct Events {
    state: State,
    /// Asynchronous Event Requests that wait.
    parked: Vec<RequestId>,
}

/// A change that controllers are told of once every shard runs this version of the configuration: a host
/// that hears of a namespace may use it on any of its queues at once.
#[derive(Debug)]
pub(crate) struct Announcement {
    pub(crate) version: u64,
    pub(crate) cntlid: u16,
}

/// The event that a controller of this kind sends, the page that re-arms it, and how a host asks for it.
fn event_of(kind: Kind) -> (Event, LogPage, AsynchronousEvents) {
    match kind {
        Kind::Discovery => {
            (Event::DISCOVERY_CHANGE, LogPage::Discovery, AsynchronousEvents::DISCOVERY)
        }
        Kind::Nvm(_) => {
            (Event::NAMESPACE_CHANGED, LogPage::ChangedNamespaces, AsynchronousEvents::NAMESPACE)
        }
    }
}

impl Shard {
    /// Asynchronous Event Request.
    pub(super) fn event_request(&mut self, id: RequestId, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if controller.events.parked.len() >= usize::from(ASYNC_EVENT_LIMIT) {
            self.answer(id, Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr().into());
            return;
        }
        controller.events.parked.push(id);
        if let Some(request) = self.requests.get_mut(id) {
            request.stage = Stage::Event;
            request.since = self.now;
        }
        self.deliver_event(cntlid);
    }

    /// The event of this controller has happened.
    fn raise_event(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        let (_, _, wanted) = event_of(controller.kind);
        if controller.events.state == State::Armed && controller.features.events().contains(wanted)
        {
            controller.events.state = State::Pending;
        }
        self.deliver_event(cntlid);
    }

    /// Tells the host what is pending, if it has left a request to answer.
    pub(super) fn deliver_event(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if controller.events.state != State::Pending || controller.events.parked.is_empty() {
            return;
        }
        controller.events.state = State::Reported;
        let id = controller.events.parked.remove(0);
        let (event, _, _) = event_of(controller.kind);
        self.counters.events_reported += 1;
        self.answer(id, Outcome::result(event.dw0().into()));
    }

    /// The host has read this page and lets go of its events.
    pub(super) fn rearm_event(&mut self, cntlid: u16, page: LogPage) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if event_of(controller.kind).1 == page {
            controller.events.state = State::Armed;
            controller.changed.clear();
        }
    }

    /// A controller is reset: its waiting requests end. They would otherwise count against the limit of a
    /// host that sends new ones.
    pub(super) fn abort_events(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        controller.events.state = State::Armed;
        controller.changed.clear();
        for id in std::mem::take(&mut controller.events.parked) {
            self.answer(id, Status::ABORTED_SQ_DELETION.into());
        }
    }

    /// A waiting request is aborted by itself.
    pub(super) fn forget_event_request(&mut self, cntlid: u16, id: RequestId) {
        if let Some(controller) = self.controllers.get_mut(&cntlid) {
            controller.events.parked.retain(|parked| *parked != id);
        }
    }

    /// This shard runs a version of the configuration; controllers of its own may have to be told.
    pub(super) fn announce(&mut self, version: u64, cntlids: impl IntoIterator<Item = u16>) {
        for cntlid in cntlids {
            self.announcements.push(Announcement { version, cntlid });
        }
        self.broadcast(|| Body::Configured { version });
    }

    /// A shard runs this version.
    pub(super) fn configured(&mut self, from: crate::ShardIndex, version: u64) {
        if let Some(known) = self.versions.get_mut(usize::from(from.0)) {
            *known = version.max(*known);
        }
        let everywhere = self.versions.iter().copied().min().unwrap_or(0);
        let mut at = 0;
        while let Some(announcement) = self.announcements.get(at) {
            if announcement.version <= everywhere {
                let Announcement { cntlid, .. } = self.announcements.remove(at);
                self.raise_event(cntlid);
            } else {
                at += 1;
            }
        }
    }
}
