//! Connections by rdma_cm: identifiers, and the channel on which their events arrive.
//!
//! A connection and its queue pair have lives of their own: the connection stays with the thread that manages connections,
//! the queue pair goes to the reactor that posts to it. So the queue pair is not made through rdma_cm; its state is changed
//! here, with the attributes that rdma_cm negotiated, which also lets us choose how long a peer waits on receiver-not-ready
//! (rdma_cm's own choice is 655 ms).
//!
//! ```text
//!   listener: bind, listen -> ConnectRequest -> accept (or reject) -> Established -> Disconnected
//!   host:     resolve_address -> AddressResolved -> resolve_route -> RouteResolved -> connect
//!             -> ConnectResponse -> establish -> Disconnected
//! ```
//!
//! librdmacm fills in an identifier without a lock: when an event of it is taken, when it is bound, when it is resolved. Each may be
//! done by another thread than reads it, so a channel has one lock for all its identifiers, held for one call at a time. Rejected:
//! connections that cannot be shared (whoever takes the channel's events writes to them none the less), and a copy of what an event
//! has changed (a second place for what binding changes, too).

use std::ffi::c_void;
use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::error::{check, check_ready, last};
use crate::event::{ConnectionId, Event, Kind, PrivateData};
use crate::queue_pair::{self, Lifeline};
use crate::{Device, Domain, Library, QueuePair, State, VerbsError, sys};

struct Channel {
    raw: NonNull<sys::EventChannel>,
    library: Library,
    /// Held by whoever reads an identifier of this channel, or lets librdmacm write to one.
    identifiers: Mutex<()>,
}

impl Channel {
    fn identifiers(&self) -> MutexGuard<'_, ()> {
        self.identifiers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: the address is handed to librdmacm alone, which may be called from any thread.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: our own channel; every connection of it held this, so none is left, nor any event.
        unsafe { (self.library.api().rdma_destroy_event_channel)(self.raw.as_ptr()) };
    }
}

/// Where the events of connections arrive; clones refer to the same.
#[derive(Clone)]
pub struct EventChannel(Arc<Channel>);

impl fmt::Debug for EventChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventChannel").finish_non_exhaustive()
    }
}

impl EventChannel {
    /// A new channel.
    ///
    /// # Errors
    /// If the kernel's module `rdma_ucm` is not there.
    pub fn new(library: &Library) -> Result<EventChannel, VerbsError> {
        let raw = match &library.0.software {
            Some(software) => software.event_channel(),
            // SAFETY: no precondition.
            None => unsafe { (library.api().rdma_create_event_channel)() },
        };
        let raw = NonNull::new(raw).ok_or_else(|| last("rdma_create_event_channel"))?;
        let channel = EventChannel(Arc::new(Channel {
            raw,
            library: library.clone(),
            identifiers: Mutex::new(()),
        }));
        let fd = channel.as_fd();
        let unblocked = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK));
        unblocked.map_err(|error| VerbsError::Call { call: "fcntl", source: error.into() })?;
        Ok(channel)
    }

    fn library(&self) -> &Library {
        &self.0.library
    }

    /// The next event, if there is one. The descriptor becomes readable when there is.
    ///
    /// # Errors
    /// If rdma_cm cannot be asked.
    pub fn next_event(&self) -> Result<Option<Event>, VerbsError> {
        let api = self.library().api();
        let mut raw = ptr::null_mut();
        let _held = self.0.identifiers();
        // SAFETY: a live channel and room for the answer.
        let result = unsafe { (api.rdma_get_cm_event)(self.0.raw.as_ptr(), &raw mut raw) };
        if !check_ready("rdma_get_cm_event", result)? {
            return Ok(None);
        }
        // SAFETY: an event just received; its identifiers are not destroyed before it is acknowledged.
        let event = unsafe { self.read(raw) };
        // SAFETY: the same event, once.
        unsafe { (api.rdma_ack_cm_event)(raw) };
        Ok(Some(event))
    }

    /// # Safety
    /// An event of this channel that has not been acknowledged.
    unsafe fn read(&self, raw: *mut sys::CmEvent) -> Event {
        // SAFETY: the caller's word; what was received has private data of this length, or none.
        let (id, number, status, conn, data) = unsafe {
            let raw = &*raw;
            let data = PrivateData::copy(raw.conn.private_data.cast(), raw.conn.private_data_len);
            (raw.id, raw.event, raw.status, raw.conn, data)
        };
        let request = (number == sys::CM_EVENT_CONNECT_REQUEST).then(|| {
            // SAFETY: the event's other identifier is that of the listener.
            let listener = token(unsafe { (*raw).listen_id });
            // SAFETY: a new identifier, which nobody else has seen, so its context is ours to set.
            let connection = unsafe { Connection::adopt(self.clone(), id) };
            (listener, connection)
        });
        let connection = match &request {
            Some((_, connection)) => connection.id(),
            None => token(id),
        };
        if number == sys::CM_EVENT_DEVICE_REMOVAL {
            // SAFETY: the event's identifier, as above; the context that it refers to lives as long.
            unsafe { self.library().device_removed((*id).verbs) };
        }
        Event { connection, kind: Kind::read(number, status, &conn, request), private_data: data }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's descriptor is open as long as the channel, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw((*self.0.raw.as_ptr()).fd) }
    }
}

fn token(id: *mut sys::CmId) -> ConnectionId {
    // SAFETY: the identifier of an event that has not been acknowledged.
    ConnectionId(unsafe { (*id).context }.addr() as u64)
}

/// What two ends agree on when they connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters<'a> {
    /// What the peer is told; at most 56 bytes in a request, 196 in a response.
    pub private_data: &'a [u8],
    /// RDMA reads of the peer that we answer at a time.
    pub responder_resources: u8,
    /// RDMA reads of ours on their way at a time.
    pub initiator_depth: u8,
    /// How often an unanswered message is repeated; of the requester's alone.
    pub retries: u8,
    /// How often the peer tries a receiver that is not ready; 7 is for ever.
    pub rnr_retries: u8,
    /// How often we do at most, of one who is asked: the peer may want less.
    pub own_rnr_retries: u8,
    /// How long the peer waits when we are not ready: the code of the specification, 12 for 0.64 ms.
    pub rnr_timer: u8,
}

impl Default for Parameters<'_> {
    fn default() -> Self {
        Parameters {
            private_data: &[],
            responder_resources: 16,
            initiator_depth: 16,
            retries: 7,
            rnr_retries: 7,
            own_rnr_retries: 7,
            rnr_timer: 12,
        }
    }
}

impl Parameters<'_> {
    fn raw(&self, number: u32, shared: bool) -> Result<sys::ConnParam, VerbsError> {
        let length = u8::try_from(self.private_data.len());
        Ok(sys::ConnParam {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: length.map_err(|_| VerbsError::Misuse("too much private data"))?,
            responder_resources: self.responder_resources,
            initiator_depth: self.initiator_depth,
            flow_control: 1,
            retry_count: self.retries,
            rnr_retry_count: self.rnr_retries,
            srq: shared.into(),
            qp_num: number,
        })
    }
}

/// An identifier of rdma_cm: a listener, or one end of a connection.
pub struct Connection {
    raw: NonNull<sys::CmId>,
    id: ConnectionId,
    channel: EventChannel,
    pair: Mutex<Option<Known>>,
}

/// The queue pair of a connection, which has a life of its own.
#[derive(Clone)]
struct Known {
    lifeline: Lifeline,
    domain: Domain,
    number: u32,
    /// It receives by a shared queue.
    shared: bool,
}

// SAFETY: the address is handed to librdmacm alone, which may be called from any thread.
unsafe impl Send for Connection {}
// SAFETY: as above; it is read and written to under its channel's lock.
unsafe impl Sync for Connection {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Connection {
    /// A new identifier, bound to nothing.
    ///
    /// # Errors
    /// If the kernel has no more.
    pub fn new(channel: &EventChannel) -> Result<Connection, VerbsError> {
        let mut raw = ptr::null_mut();
        let api = channel.library().api();
        // SAFETY: a live channel and room for the answer.
        let result = unsafe {
            (api.rdma_create_id)(channel.0.raw.as_ptr(), &raw mut raw, ptr::null_mut(), sys::PS_TCP)
        };
        check("rdma_create_id", result)?;
        // SAFETY: a new identifier.
        Ok(unsafe { Connection::adopt(channel.clone(), raw) })
    }

    /// # Safety
    /// An identifier that nobody else has.
    unsafe fn adopt(channel: EventChannel, raw: *mut sys::CmId) -> Connection {
        let token = channel.library().token();
        let context = ptr::without_provenance_mut(usize::try_from(token).unwrap_or_default());
        // SAFETY: the caller's word. The library made it, so it is not null; what is dangling is never used.
        unsafe { (*raw).context = context };
        let raw = NonNull::new(raw).unwrap_or(NonNull::dangling());
        Connection { raw, id: ConnectionId(token), channel, pair: Mutex::new(None) }
    }

    fn api(&self) -> &sys::Api {
        self.channel.library().api()
    }

    /// Lets `call` have the identifier, which nobody else reads or changes meanwhile.
    fn with<R>(&self, call: impl FnOnce(*mut sys::CmId) -> R) -> R {
        let _held = self.channel.0.identifiers();
        call(self.raw.as_ptr())
    }

    /// What events call it.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The device it came to lie on: known of a request, and after `AddressResolved`.
    ///
    /// # Errors
    /// If the device cannot be opened.
    pub fn device(&self) -> Result<Option<Device>, VerbsError> {
        // SAFETY: a live identifier; its context, where it has one, is open as long as it is.
        let device = self.with(|id| unsafe {
            let context = (*id).verbs;
            (!context.is_null()).then(|| (*context).device)
        });
        device.map(|device| self.channel.library().device(device)).transpose()
    }

    /// The port of the device, counted from 1; 0 while there is no device.
    pub fn port(&self) -> u8 {
        // SAFETY: a live identifier.
        self.with(|id| unsafe { (*id).port_num })
    }

    /// Its own address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        // SAFETY: a live identifier.
        self.with(|id| sys::decode(unsafe { &(*id).src_addr }))
    }

    /// The peer's address.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        // SAFETY: a live identifier.
        self.with(|id| sys::decode(unsafe { &(*id).dst_addr }))
    }

    /// Binds it to an address, which may be the unspecified one: that of version 6 stands for itself alone, too.
    ///
    /// # Errors
    /// If the address is not one of an RDMA device, or in use.
    pub fn bind(&self, address: SocketAddr) -> Result<(), VerbsError> {
        let mut yes: i32 = 1;
        let options = [sys::OPTION_ID_REUSEADDR, sys::OPTION_ID_AFONLY];
        let options = if address.is_ipv6() { &options[..] } else { &options[..1] };
        for option in options {
            // SAFETY: a live identifier and an option that is an int.
            self.with(|id| unsafe {
                let value = (&raw mut yes).cast::<c_void>();
                let (level, size) = (sys::OPTION_ID, size_of::<i32>());
                let result = (self.api().rdma_set_option)(id, level, *option, value, size);
                check("rdma_set_option", result)
            })?;
        }
        let mut address = sys::encode(address);
        // SAFETY: a live identifier and an address, which is copied.
        self.with(|id| unsafe {
            check("rdma_bind_addr", (self.api().rdma_bind_addr)(id, (&raw mut address).cast()))
        })
    }

    /// Listens; requests arrive as events of this identifier's channel.
    ///
    /// # Errors
    /// If the address is in use.
    pub fn listen(&self, backlog: u16) -> Result<(), VerbsError> {
        // SAFETY: a live identifier.
        self.with(|id| unsafe {
            check("rdma_listen", (self.api().rdma_listen)(id, backlog.into()))
        })
    }

    /// Finds the device that leads to `to`: answered by an event.
    ///
    /// # Errors
    /// If none does.
    pub fn resolve_address(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<(), VerbsError> {
        let mut from = from.map(sys::encode);
        let mut to = sys::encode(to);
        let from = from.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: a live identifier and addresses, which are copied.
        self.with(|id| unsafe {
            let (from, to) = (from.cast(), (&raw mut to).cast());
            let result = (self.api().rdma_resolve_addr)(id, from, to, milliseconds(timeout));
            check("rdma_resolve_addr", result)
        })
    }

    /// Finds the way: answered by an event.
    ///
    /// # Errors
    /// If there is none.
    pub fn resolve_route(&self, timeout: Duration) -> Result<(), VerbsError> {
        // SAFETY: a live identifier.
        self.with(|id| unsafe {
            check("rdma_resolve_route", (self.api().rdma_resolve_route)(id, milliseconds(timeout)))
        })
    }

    /// Brings the queue pair to the state Init, in which receives may be posted. `connect` does it, too.
    ///
    /// # Errors
    /// If the identifier has no device, or another one than the queue pair.
    pub fn prepare(&self, pair: &QueuePair) -> Result<(), VerbsError> {
        if self.device()?.as_ref() != Some(pair.domain().device()) {
            return Err(VerbsError::Misuse("connection and queue pair are of different devices"));
        }
        let known = Known {
            lifeline: pair.lifeline().clone(),
            domain: pair.domain().clone(),
            number: pair.number(),
            shared: pair.is_shared(),
        };
        *self.pair.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        self.change(State::Init, |_, _| ())
    }

    fn known(&self) -> Result<Known, VerbsError> {
        let pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pair.ok_or(VerbsError::Misuse("the connection has no queue pair"))
    }

    /// Brings the queue pair to `state` as rdma_cm knows it, changed by `adjust`.
    fn change(
        &self,
        state: State,
        adjust: impl FnOnce(&mut sys::QpAttr, &mut i32),
    ) -> Result<(), VerbsError> {
        let Known { lifeline, domain, .. } = self.known()?;
        let mut attributes = sys::QpAttr { qp_state: state.raw(), ..sys::QpAttr::default() };
        let mut mask = 0;
        // SAFETY: a live identifier and room for the answers.
        self.with(|id| unsafe {
            let (attributes, mask) = (&raw mut attributes, &raw mut mask);
            check("rdma_init_qp_attr", (self.api().rdma_init_qp_attr)(id, attributes, mask))
        })?;
        attributes.qp_state = state.raw();
        adjust(&mut attributes, &mut mask);
        lifeline.modify(&domain, &mut attributes, mask)
    }

    /// Asks the peer for a connection: answered by `ConnectResponse`, `Rejected` or `Failed`.
    ///
    /// # Errors
    /// If the route was not resolved, or the queue pair is of another device.
    pub fn connect(&self, pair: &QueuePair, parameters: &Parameters<'_>) -> Result<(), VerbsError> {
        self.prepare(pair)?;
        let mut raw = parameters.raw(pair.number(), pair.is_shared())?;
        // SAFETY: a live identifier, and parameters that are copied.
        self.with(|id| unsafe {
            check("rdma_connect", (self.api().rdma_connect)(id, &raw mut raw))
        })
    }

    /// Completes the connection after `ConnectResponse`: from now on the queue pair sends.
    ///
    /// # Errors
    /// If the connection is gone meanwhile.
    pub fn establish(&self, parameters: &Parameters<'_>) -> Result<(), VerbsError> {
        let timer = parameters.rnr_timer;
        // Once more: what the peer may do to our memory was not known when there was no peer.
        self.change(State::Init, |_, _| ())?;
        self.change(State::ReadyToReceive, |attributes, mask| {
            attributes.min_rnr_timer = timer;
            *mask |= sys::QP_MIN_RNR_TIMER;
        })?;
        self.change(State::ReadyToSend, |_, _| ())?;
        // SAFETY: a live identifier.
        self.with(|id| unsafe { check("rdma_establish", (self.api().rdma_establish)(id)) })
    }

    /// Grants a request, with the queue pair that was [prepared](Connection::prepare), wherever that is by now. It may send at once;
    /// `Established` says that the peer is ready, too. Both numbers of RDMA reads must be no larger than the request's.
    ///
    /// # Errors
    /// If the peer is gone meanwhile, or no queue pair was prepared.
    pub fn accept(&self, parameters: &Parameters<'_>) -> Result<(), VerbsError> {
        let Known { number, shared, .. } = self.known()?;
        self.change(State::ReadyToReceive, |attributes, mask| {
            attributes.min_rnr_timer = parameters.rnr_timer;
            attributes.max_dest_rd_atomic = parameters.responder_resources;
            *mask |= sys::QP_MIN_RNR_TIMER | sys::QP_MAX_DEST_RD_ATOMIC;
        })?;
        self.change(State::ReadyToSend, |attributes, mask| {
            attributes.max_rd_atomic = parameters.initiator_depth;
            attributes.rnr_retry = attributes.rnr_retry.min(parameters.own_rnr_retries);
            *mask |= sys::QP_MAX_QP_RD_ATOMIC;
        })?;
        let mut raw = parameters.raw(number, shared)?;
        // SAFETY: a live identifier, and parameters that are copied.
        self.with(|id| unsafe { check("rdma_accept", (self.api().rdma_accept)(id, &raw mut raw)) })
    }

    /// Refuses a request.
    ///
    /// # Errors
    /// If there is too much private data (148 bytes at most), or the peer is gone.
    pub fn reject(&self, private_data: &[u8]) -> Result<(), VerbsError> {
        let length = u8::try_from(private_data.len()).ok().filter(|&length| length <= 148);
        let length = length.ok_or(VerbsError::Misuse("too much private data"))?;
        // SAFETY: a live identifier, and data of this length, which is copied.
        self.with(|id| unsafe {
            let data = private_data.as_ptr().cast();
            check("rdma_reject", (self.api().rdma_reject)(id, data, length))
        })
    }

    /// Ends the connection: everything posted to the queue pair is flushed, the peer is told.
    ///
    /// # Errors
    /// If it was never established, or is gone; if the queue pair is of another thread's [domain](crate::Domain::for_thread) and that
    /// thread may still be posting: then the peer alone is told.
    pub fn disconnect(&self) -> Result<(), VerbsError> {
        let pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failed = pair.map_or(Ok(()), |known| queue_pair::fail(&known.lifeline, &known.domain));
        // SAFETY: a live identifier.
        let told =
            self.with(|id| unsafe { check("rdma_disconnect", (self.api().rdma_disconnect)(id)) });
        failed.and(told)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: our own identifier. Its events have all been acknowledged: that is done as they are read.
        unsafe { (self.api().rdma_destroy_id)(self.raw.as_ptr()) };
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

const _: () = assert!(mem::size_of::<usize>() == 8, "tokens are addresses to the C libraries");
