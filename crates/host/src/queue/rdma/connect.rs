//! How the connection of a queue comes about: address, route, request, response, each within one time limit.

use super::{DEVICE_REMOVED, RdmaQueue, Settings};
use crate::error::{HostError, ProtocolError, RequestError};
use crate::queue::deadline_after;
use crate::queue::slots::{DEPTH_MAX, Slots};
use crate::socket::{SystemCalls, sleep};
use nvme::Cqe;
use nvme::rdma::{Accept, Reject, Request};
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use verbs::endpoint::{SLOT_MAX, Shape};
use verbs::{
    Connection, Device, Endpoint, Event, EventChannel, Kind, Library, Parameters, PrivateData,
    REJECTED_BY_CONSUMER, REJECTED_NOBODY_LISTENS, VerbsError,
};
use zerocopy::IntoBytes;

/// A connection that is being made.
struct Attempt {
    events: EventChannel,
    address: SocketAddr,
    qid: u16,
    deadline: Instant,
    timeout: Duration,
}

impl RdmaQueue {
    /// Connects the queue that `request` names. Until the Connect command has been sent, which is the caller's, a controller knows
    /// of it no more than that.
    pub(crate) fn connect(
        library: &Library,
        address: SocketAddr,
        settings: Settings,
        request: Request,
        timeout: Duration,
    ) -> Result<Self, HostError> {
        let failed = |source| HostError::Rdma { address, source };
        let attempt = Attempt {
            events: EventChannel::new(library).map_err(failed)?,
            address,
            qid: request.qid.get(),
            deadline: deadline_after(timeout),
            timeout,
        };
        let connection = Connection::new(&attempt.events).map_err(failed)?;
        let resolving = connection.resolve_address(None, address, timeout);
        resolving.map_err(|error| attempt.unresolved(error))?;
        attempt
            .until("the resolution of its address", |kind| matches!(kind, Kind::AddressResolved))?;
        let resolving = connection.resolve_route(timeout);
        resolving.map_err(|error| attempt.unresolved(error))?;
        attempt.until("the resolution of the route to it", |kind| {
            matches!(kind, Kind::RouteResolved)
        })?;

        let device = connection.device().map_err(failed)?;
        let device = device.ok_or(VerbsError::Misuse("the route has no device")).map_err(failed)?;
        let mut endpoint = endpoint(&device, address, settings)?;
        connection.prepare(endpoint.pair()).map_err(failed)?;
        endpoint.post_receives().map_err(failed)?;
        let parameters = Parameters {
            private_data: request.as_bytes(),
            // The controller fetches the data of writes by RDMA reads; this end sends none.
            responder_resources: device.attributes().max_qp_rd_atom,
            initiator_depth: 0,
            ..Parameters::default()
        };
        connection.connect(endpoint.pair(), &parameters).map_err(failed)?;
        let response = attempt
            .until("the connection request", |kind| matches!(kind, Kind::ConnectResponse(_)))?;
        let accept = Accept::parse(response.private_data.bytes());
        let accept =
            accept.ok_or(HostError::Protocol { address, source: ProtocolError::AcceptFormat })?;
        connection.establish(&parameters).map_err(failed)?;

        // Zero is what arrives of a controller that does not say.
        let most = Some(accept.crqsize.get()).filter(|&most| most > 0).unwrap_or(u16::MAX);
        let slot_bytes = usize::try_from(settings.slot_bytes).unwrap_or(usize::MAX);
        Ok(Self {
            slots: Slots::new(settings.depth.min(most), slot_bytes),
            endpoint,
            _connection: connection,
            events: attempt.events,
            peer: address,
            in_capsule: if attempt.qid == 0 { 0 } else { settings.in_capsule },
            arrived: false,
            nothing: 0,
            end: None,
            calls: SystemCalls::default(),
        })
    }
}

fn endpoint(
    device: &Device,
    address: SocketAddr,
    settings: Settings,
) -> Result<Endpoint, HostError> {
    let Settings { depth, slot_bytes, .. } = settings;
    let asked = usize::try_from(slot_bytes).unwrap_or(usize::MAX);
    if asked > SLOT_MAX {
        return Err(RequestError::SlotTooLong { asked, limit: SLOT_MAX }.into());
    }
    let shape = Shape {
        slots: depth.clamp(1, DEPTH_MAX).into(),
        slot_bytes: asked,
        message_bytes: size_of::<Cqe>(),
    };
    Endpoint::new(device, shape).map_err(|source| match source {
        VerbsError::Memory(_) => HostError::Memory { depth, slot_bytes },
        source => HostError::Rdma { address, source },
    })
}

impl Attempt {
    /// Waits for the event that `wanted` knows.
    fn until(
        &self,
        what: &'static str,
        wanted: impl Fn(&Kind) -> bool,
    ) -> Result<Event, HostError> {
        let address = self.address;
        loop {
            let event = self.events.next_event();
            let event = event.map_err(|source| HostError::Rdma { address, source })?;
            match event {
                Some(event) if wanted(&event.kind) => return Ok(event),
                Some(event) => self.judge(&event)?,
                None => {
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(HostError::Timeout { address, what, after: self.timeout });
                    }
                    sleep(&mut [PollFd::new(&self.events, PollFlags::IN)], left)
                        .map_err(|source| HostError::Socket { address, source })?;
                }
            }
        }
    }

    /// What an event means that was not waited for.
    fn judge(&self, event: &Event) -> Result<(), HostError> {
        let address = self.address;
        match event.kind {
            Kind::Failed(error) => {
                let source = io::Error::from_raw_os_error(error.saturating_abs());
                Err(HostError::Unreachable { address, source })
            }
            Kind::Rejected(reason) => Err(self.rejected(reason, &event.private_data)),
            Kind::Disconnected => {
                Err(HostError::Closed { address, during: "before it was initialised" })
            }
            Kind::DeviceRemoved => Err(HostError::Broken { address, reason: DEVICE_REMOVED }),
            _ => Ok(()),
        }
    }

    fn rejected(&self, reason: i32, data: &PrivateData) -> HostError {
        let (address, queue) = (self.address, self.qid);
        let reject = Reject::parse(data.bytes()).filter(|_| reason == REJECTED_BY_CONSUMER);
        match reject {
            Some(reject) => HostError::Rejected { address, queue, status: reject.status() },
            None if reason == REJECTED_NOBODY_LISTENS => {
                HostError::Unreachable { address, source: io::ErrorKind::ConnectionRefused.into() }
            }
            None => HostError::NotConnected { address, queue, reason },
        }
    }

    fn unresolved(&self, error: VerbsError) -> HostError {
        let address = self.address;
        match error {
            VerbsError::Call { source, .. } => HostError::Unreachable { address, source },
            source => HostError::Rdma { address, source },
        }
    }
}
