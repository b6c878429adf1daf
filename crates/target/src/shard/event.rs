//! Asynchronous events: what a controller tells its host without being asked.
//!
//! An event goes from armed to pending when it happens, from pending to reported when an Asynchronous Event
//! Request carries it, and back to armed when the host has read its log page with RAE 0. What happens
//! while it is reported is in the log page when that is read, so nothing is lost. Each kind of notice goes this way by
//! itself.

use nvme::Status;
use nvme::event::Event;
use nvme::feature::AsynchronousEvents;
use nvme::log::LogPage;

use super::Shard;
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

/// What a controller can have to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    /// Of an I/O controller: namespaces came, went or changed.
    Namespaces,
    /// Of an I/O controller: the states of paths changed, or a namespace's group.
    Ana,
    /// Of a discovery controller: its log changed.
    Discovery,
}

impl Notice {
    /// The event, the page that re-arms it, and how a host asks for it.
    fn about(self) -> (Event, LogPage, AsynchronousEvents) {
        match self {
            Self::Namespaces => (
                Event::NAMESPACE_CHANGED,
                LogPage::ChangedNamespaces,
                AsynchronousEvents::NAMESPACE,
            ),
            Self::Ana => (Event::ANA_CHANGE, LogPage::Ana, AsynchronousEvents::ANA),
            Self::Discovery => {
                (Event::DISCOVERY_CHANGE, LogPage::Discovery, AsynchronousEvents::DISCOVERY)
            }
        }
    }
}

/// The events of one controller.
#[derive(Debug, Default)]
pub(crate) struct Events {
    namespaces: State,
    ana: State,
    discovery: State,
    /// Asynchronous Event Requests that wait.
    parked: Vec<RequestId>,
}

impl Events {
    fn state(&mut self, notice: Notice) -> &mut State {
        match notice {
            Notice::Namespaces => &mut self.namespaces,
            Notice::Ana => &mut self.ana,
            Notice::Discovery => &mut self.discovery,
        }
    }

    /// The next to be told, if there is a request for it.
    fn next(&mut self) -> Option<(Notice, RequestId)> {
        let all = [Notice::Namespaces, Notice::Ana, Notice::Discovery];
        let notice = all.into_iter().find(|it| *self.state(*it) == State::Pending)?;
        if self.parked.is_empty() {
            return None;
        }
        *self.state(notice) = State::Reported;
        Some((notice, self.parked.remove(0)))
    }
}

/// A change that controllers are told of once every shard runs this version of the configuration: a host
/// that hears of a namespace may use it on any of its queues at once.
#[derive(Debug)]
pub(crate) struct Announcement {
    pub(crate) version: u64,
    pub(crate) cntlid: u16,
    pub(crate) notice: Notice,
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

    /// Something has happened that this controller's host may want to know.
    fn raise_event(&mut self, cntlid: u16, notice: Notice) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        let (_, _, wanted) = notice.about();
        let state = controller.events.state(notice);
        if *state == State::Armed && controller.features.events().contains(wanted) {
            *state = State::Pending;
        }
        self.deliver_event(cntlid);
    }

    /// Tells the host what is pending, as far as it has left requests to answer.
    pub(super) fn deliver_event(&mut self, cntlid: u16) {
        while let Some(controller) = self.controllers.get_mut(&cntlid)
            && let Some((notice, id)) = controller.events.next()
        {
            let (event, _, _) = notice.about();
            self.counters.events_reported += 1;
            self.answer(id, Outcome::result(event.dw0().into()));
        }
    }

    /// The host has read this page and lets go of its events.
    pub(super) fn rearm_event(&mut self, cntlid: u16, page: LogPage) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        match page {
            LogPage::ChangedNamespaces => {
                controller.events.namespaces = State::Armed;
                controller.changed.clear();
            }
            LogPage::Ana => controller.events.ana = State::Armed,
            LogPage::Discovery => controller.events.discovery = State::Armed,
            _ => {}
        }
    }

    /// A controller is reset: its waiting requests end. They would otherwise count against the limit of a
    /// host that sends new ones.
    pub(super) fn abort_events(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        controller.changed.clear();
        controller.ana_changes = 0;
        for id in std::mem::take(&mut controller.events).parked {
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
    pub(super) fn announce(&mut self, version: u64, told: impl IntoIterator<Item = (u16, Notice)>) {
        for (cntlid, notice) in told {
            self.announcements.push(Announcement { version, cntlid, notice });
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
                let Announcement { cntlid, notice, .. } = self.announcements.remove(at);
                self.raise_event(cntlid, notice);
            } else {
                at += 1;
            }
        }
    }
}
