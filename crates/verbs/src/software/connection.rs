//! The provider's side of librdmacm. Safety as in [`objects`](super::objects): the caller keeps to the C interface.

#![allow(clippy::cast_ptr_alignment, reason = "the other side has the address of a larger whole")]

use std::ffi::{c_int, c_uint, c_void};
use std::mem;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::{Arc, MutexGuard};

use libc::{sockaddr, sockaddr_storage};

use super::Shared;
use super::device::{SoftDevice, refuse, refuse_object};
use super::world::{CmMessage, Identifier, Notices, Stage, World};
use crate::sys;

#[repr(C)]
struct SoftChannel {
    base: sys::EventChannel,
    number: u32,
    shared: Arc<Shared>,
    _fd: Arc<OwnedFd>,
}

impl Shared {
    /// What `rdma_create_event_channel` is to the libraries.
    pub(crate) fn event_channel(self: &Arc<Shared>) -> *mut sys::EventChannel {
        let Ok(notices) = Notices::new() else { return refuse_object(libc::EMFILE) };
        let mut world = self.world();
        let number = world.number();
        let (base, fd) = (sys::EventChannel { fd: notices.raw_fd() }, Arc::clone(&notices.fd));
        world.channels.insert(number, notices);
        let channel = SoftChannel { base, number, shared: Arc::clone(self), _fd: fd };
        Box::into_raw(Box::new(channel)).cast()
    }
}

pub(crate) unsafe extern "C" fn no_event_channel() -> *mut sys::EventChannel {
    refuse_object(libc::ENOSYS)
}

pub(crate) unsafe extern "C" fn destroy_event_channel(raw: *mut sys::EventChannel) {
    // SAFETY: see the module.
    let channel = unsafe { channel(raw) };
    let mut world = channel.shared.world();
    if world.identifiers.values().any(|identifier| identifier.channel == channel.number) {
        world.refuse_to_destroy();
        return;
    }
    world.channels.remove(&channel.number);
    drop(world);
    debug_assert!(channel.base.fd >= 0, "an eventfd");
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw.cast::<SoftChannel>()) });
}

/// # Safety
/// A live channel.
unsafe fn channel<'a>(raw: *mut sys::EventChannel) -> &'a SoftChannel {
    // SAFETY: the caller's word.
    unsafe { &*raw.cast::<SoftChannel>() }
}

/// An identifier: what the layer above knows, and its number here.
#[repr(C)]
struct SoftId {
    base: sys::CmId,
    number: u32,
}

/// # Safety
/// A live identifier.
unsafe fn open<'a>(id: *mut sys::CmId) -> (MutexGuard<'a, World>, u32) {
    // SAFETY: the caller's word; its channel lives as long as it does.
    unsafe { (channel((*id).channel).shared.world(), (*id.cast::<SoftId>()).number) }
}

fn make(
    world: &mut World,
    raw: *mut sys::EventChannel,
    channel: u32,
    context: *mut c_void,
) -> (*mut sys::CmId, u32) {
    let number = world.number();
    // SAFETY: integers and pointers, for which zero is a value.
    let mut base: sys::CmId = unsafe { mem::zeroed() };
    (base.channel, base.context, base.ps) = (raw, context, sys::PS_TCP);
    let pointer = Box::into_raw(Box::new(SoftId { base, number }));
    let identifier = Identifier {
        address: pointer.expose_provenance(),
        channel,
        device: None,
        local: None,
        remote: None,
        stage: Stage::Idle,
        peer: None,
        peer_qp: 0,
        responder_resources: 0,
        initiator_depth: 0,
        retries: 0,
        rnr_retries: 0,
        inbox: std::collections::VecDeque::new(),
    };
    world.identifiers.insert(number, identifier);
    (pointer.cast(), number)
}

pub(crate) unsafe extern "C" fn create_id(
    raw: *mut sys::EventChannel,
    id: *mut *mut sys::CmId,
    context: *mut c_void,
    _ps: c_uint,
) -> c_int {
    // SAFETY: see the module.
    let channel = unsafe { channel(raw) };
    let (pointer, _) = make(&mut channel.shared.world(), raw, channel.number, context);
    // SAFETY: see the module.
    unsafe { *id = pointer };
    0
}

pub(crate) unsafe extern "C" fn destroy_id(id: *mut sys::CmId) -> c_int {
    // SAFETY: see the module.
    let (shared, (mut world, number)) = unsafe { (&channel((*id).channel).shared, open(id)) };
    world.drop_identifier(number);
    shared.await_acknowledgement(world, id.addr());
    // SAFETY: made by `make`, destroyed once.
    drop(unsafe { Box::from_raw(id.cast::<SoftId>()) });
    0
}

pub(crate) unsafe extern "C" fn set_option(
    _: *mut sys::CmId,
    _: c_int,
    _: c_int,
    _: *mut c_void,
    _: usize,
) -> c_int {
    0
}

/// Writes down what the layer above reads of an identifier.
///
/// # Safety
/// A live identifier that nobody reads meanwhile.
unsafe fn show(world: &World, id: *mut sys::CmId, number: u32) {
    let Some(identifier) = world.identifiers.get(&number) else { return };
    // SAFETY: the caller's word.
    unsafe {
        if let Some(state) = identifier.device.and_then(|device| world.devices.get(device)) {
            (*id).verbs = SoftDevice::stub(state.address);
            (*id).port_num = 1;
        }
        if let Some(local) = identifier.local {
            (*id).src_addr = sys::encode(local);
        }
        if let Some(remote) = identifier.remote {
            (*id).dst_addr = sys::encode(remote);
        }
    }
}

/// # Safety
/// An address that lies in a whole `sockaddr_storage`.
unsafe fn address(raw: *mut sockaddr) -> Option<std::net::SocketAddr> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: the caller's word.
    sys::decode(unsafe { &*raw.cast::<sockaddr_storage>() })
}

pub(crate) unsafe extern "C" fn bind_addr(id: *mut sys::CmId, to: *mut sockaddr) -> c_int {
    // SAFETY: see the module.
    let ((mut world, number), address) = unsafe { (open(id), address(to)) };
    let Some(mut address) = address else { return refuse(libc::EAFNOSUPPORT) };
    let Some(device) = world.device_at(address) else { return refuse(libc::EADDRNOTAVAIL) };
    if address.port() == 0 {
        let port = 32_768 + world.number() % 28_000;
        address.set_port(u16::try_from(port).unwrap_or(u16::MAX));
    }
    let taken = world
        .identifiers
        .values()
        .any(|other| other.stage == Stage::Listening && other.local == Some(address));
    if taken {
        return refuse(libc::EADDRINUSE);
    }
    if let Some(identifier) = world.identifiers.get_mut(&number) {
        identifier.local = Some(address);
        identifier.device = (!address.ip().is_unspecified()).then_some(device);
    }
    // SAFETY: see the module.
    unsafe { show(&world, id, number) };
    0
}

pub(crate) unsafe extern "C" fn listen(id: *mut sys::CmId, _backlog: c_int) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    match world.identifiers.get_mut(&number) {
        Some(identifier) if identifier.local.is_some() && identifier.stage == Stage::Idle => {
            identifier.stage = Stage::Listening;
            0
        }
        _ => refuse(libc::EINVAL),
    }
}

pub(crate) unsafe extern "C" fn resolve_addr(
    id: *mut sys::CmId,
    from: *mut sockaddr,
    to: *mut sockaddr,
    _timeout: c_int,
) -> c_int {
    // SAFETY: see the module.
    let ((mut world, number), from, to) = unsafe { (open(id), address(from), address(to)) };
    let Some(to) = to else { return refuse(libc::EAFNOSUPPORT) };
    let Some(identifier) = world.identifiers.get_mut(&number) else { return refuse(libc::EINVAL) };
    if identifier.stage != Stage::Idle {
        return refuse(libc::EINVAL);
    }
    identifier.remote = Some(to);
    let from = from.or(identifier.local);
    // Without a source, any device will do whose address is of the same family.
    let device = match from {
        Some(from) => world.device_at(from),
        None => world.devices.iter().position(|state| {
            !state.removed
                && state.options.addresses.iter().any(|own| own.is_ipv4() == to.is_ipv4())
        }),
    };
    let message = match device {
        Some(device) => {
            let own = world.devices.get(device).map(|state| state.options.addresses.clone());
            let own = own.into_iter().flatten().find(|own| own.is_ipv4() == to.is_ipv4());
            let port = u16::try_from(32_768 + number % 28_000).unwrap_or(u16::MAX);
            let local = from.or_else(|| Some((own?, port).into()));
            CmMessage { device, local, ..CmMessage::new(sys::CM_EVENT_ADDR_RESOLVED, 0) }
        }
        None => CmMessage::new(sys::CM_EVENT_ADDR_ERROR, -libc::ENODEV),
    };
    world.send_message(number, message);
    0
}

pub(crate) unsafe extern "C" fn resolve_route(id: *mut sys::CmId, _timeout: c_int) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    let stage = world.identifiers.get(&number).map(|identifier| identifier.stage);
    if stage != Some(Stage::Resolved) {
        return refuse(libc::EINVAL);
    }
    world.send_message(number, CmMessage::new(sys::CM_EVENT_ROUTE_RESOLVED, 0));
    0
}

pub(crate) unsafe extern "C" fn init_qp_attr(
    id: *mut sys::CmId,
    attributes: *mut sys::QpAttr,
    mask: *mut c_int,
) -> c_int {
    // SAFETY: see the module.
    let (world, number) = unsafe { open(id) };
    let Some(identifier) = world.identifiers.get(&number) else { return refuse(libc::EINVAL) };
    // SAFETY: see the module.
    let attributes = unsafe {
        *mask = sys::QP_STATE;
        &mut *attributes
    };
    let known = matches!(identifier.stage, Stage::Asked | Stage::Responded);
    match attributes.qp_state {
        sys::QPS_INIT => {
            // As the kernel does: what the peer may do is known only once there is a peer.
            let reads = identifier.responder_resources > 0;
            let access = sys::ACCESS_REMOTE_WRITE | if reads { sys::ACCESS_REMOTE_READ } else { 0 };
            attributes.qp_access_flags = u32::try_from(access).unwrap_or(0) * u32::from(known);
            // SAFETY: see the module.
            unsafe { *mask |= sys::QP_ACCESS_FLAGS };
        }
        sys::QPS_RTR | sys::QPS_RTS if !known => return refuse(libc::EINVAL),
        sys::QPS_RTR => {
            attributes.dest_qp_num = identifier.peer_qp;
            attributes.max_dest_rd_atomic = identifier.responder_resources;
        }
        sys::QPS_RTS => {
            attributes.max_rd_atomic = identifier.initiator_depth;
            attributes.retry_cnt = identifier.retries;
            attributes.rnr_retry = identifier.rnr_retries;
        }
        _ => return refuse(libc::EINVAL),
    }
    0
}

/// # Safety
/// Parameters whose private data is as long as they say.
unsafe fn message(kind: u32, raw: *const sys::ConnParam) -> CmMessage {
    // SAFETY: the caller's word.
    let (raw, data) = unsafe {
        let raw = &*raw;
        let data = raw.private_data.cast::<u8>();
        let length = usize::from(raw.private_data_len);
        (
            raw,
            if length == 0 {
                Vec::new()
            } else {
                std::slice::from_raw_parts(data, length).to_vec()
            },
        )
    };
    CmMessage {
        private_data: data,
        responder_resources: raw.responder_resources,
        initiator_depth: raw.initiator_depth,
        rnr_retries: raw.rnr_retry_count,
        retries: raw.retry_count,
        qp_num: raw.qp_num,
        ..CmMessage::new(kind, 0)
    }
}

/// What the private data of a message is padded to on InfiniBand and RoCE.
fn padded(kind: u32) -> usize {
    match kind {
        sys::CM_EVENT_CONNECT_REQUEST => 56,
        sys::CM_EVENT_CONNECT_RESPONSE => 196,
        sys::CM_EVENT_REJECTED => 148,
        _ => 0,
    }
}

pub(crate) unsafe extern "C" fn connect(
    id: *mut sys::CmId,
    parameters: *mut sys::ConnParam,
) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    // SAFETY: see the module.
    let message = unsafe { message(sys::CM_EVENT_CONNECT_REQUEST, parameters) };
    if message.private_data.len() > padded(sys::CM_EVENT_CONNECT_REQUEST) {
        return refuse(libc::EINVAL);
    }
    match world.request(number, message) {
        Ok(()) => 0,
        Err(error) => refuse(error),
    }
}

pub(crate) unsafe extern "C" fn establish(id: *mut sys::CmId) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    let Some(identifier) = world.identifiers.get_mut(&number) else { return refuse(libc::EINVAL) };
    if identifier.stage != Stage::Responded {
        return refuse(libc::EINVAL);
    }
    identifier.stage = Stage::Connected;
    world.tell_peer(number, CmMessage::new(sys::CM_EVENT_ESTABLISHED, 0));
    0
}

pub(crate) unsafe extern "C" fn accept(
    id: *mut sys::CmId,
    parameters: *mut sys::ConnParam,
) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    // SAFETY: see the module.
    let message = unsafe { message(sys::CM_EVENT_CONNECT_RESPONSE, parameters) };
    let Some(identifier) = world.identifiers.get_mut(&number) else { return refuse(libc::EINVAL) };
    if identifier.stage != Stage::Asked || message.private_data.len() > padded(message.kind) {
        return refuse(libc::EINVAL);
    }
    let peer = identifier.peer;
    if !peer.is_some_and(|peer| world.identifiers.contains_key(&peer)) {
        return refuse(libc::ECONNRESET);
    }
    if let Some(identifier) = world.identifiers.get_mut(&number) {
        identifier.stage = Stage::Accepted;
    }
    let answer = CmMessage {
        responder_resources: message.initiator_depth,
        initiator_depth: message.responder_resources,
        from: number,
        ..message
    };
    world.tell_peer(number, answer);
    0
}

pub(crate) unsafe extern "C" fn reject(
    id: *mut sys::CmId,
    data: *const c_void,
    length: u8,
) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    let Some(identifier) = world.identifiers.get_mut(&number) else { return refuse(libc::EINVAL) };
    if identifier.stage != Stage::Asked {
        return refuse(libc::EINVAL);
    }
    identifier.stage = Stage::Over;
    let mut message = CmMessage::new(sys::CM_EVENT_REJECTED, crate::event::REJECTED_BY_CONSUMER);
    if length > 0 {
        // SAFETY: see the module: so many bytes.
        message.private_data =
            unsafe { std::slice::from_raw_parts(data.cast(), length.into()) }.to_vec();
    }
    world.tell_peer(number, message);
    0
}

pub(crate) unsafe extern "C" fn disconnect(id: *mut sys::CmId) -> c_int {
    // SAFETY: see the module.
    let (mut world, number) = unsafe { open(id) };
    let Some(identifier) = world.identifiers.get_mut(&number) else { return refuse(libc::EINVAL) };
    if !matches!(identifier.stage, Stage::Accepted | Stage::Connected | Stage::Responded) {
        return refuse(libc::EINVAL);
    }
    identifier.stage = Stage::Over;
    let over = CmMessage::new(sys::CM_EVENT_DISCONNECTED, 0);
    world.tell_peer(number, over.clone());
    world.send_message(number, over);
    0
}

#[repr(C)]
struct SoftEvent {
    base: sys::CmEvent,
    data: [u8; 255],
    /// Whose event it is; of a request, the listener's.
    of: *mut sys::CmId,
}

pub(crate) unsafe extern "C" fn get_cm_event(
    raw: *mut sys::EventChannel,
    event: *mut *mut sys::CmEvent,
) -> c_int {
    // SAFETY: see the module.
    let own = unsafe { channel(raw) };
    let mut world = own.shared.world();
    let next = world.channels.get_mut(&own.number).and_then(Notices::pop);
    let Some((number, message)) = next else { return refuse(libc::EAGAIN) };
    let Some(identifier) = world.identifiers.get(&number) else { return refuse(libc::EAGAIN) };
    let address = identifier.address;
    world.told.add(address);
    let listener = ptr::with_exposed_provenance_mut::<sys::CmId>(address);
    let (mut id, mut number) = (listener, number);
    if message.kind == sys::CM_EVENT_CONNECT_REQUEST {
        (id, number) = make(&mut world, raw, own.number, ptr::null_mut());
        if let Some(identifier) = world.identifiers.get_mut(&number) {
            identifier.stage = Stage::Asked;
            identifier.device = Some(message.device);
            (identifier.local, identifier.remote) = (message.local, message.remote);
            (identifier.peer, identifier.peer_qp) = (Some(message.from), message.qp_num);
            identifier.responder_resources = message.responder_resources;
            identifier.initiator_depth = message.initiator_depth;
            (identifier.retries, identifier.rnr_retries) = (message.retries, message.rnr_retries);
        }
        if let Some(asking) = world.identifiers.get_mut(&message.from) {
            asking.peer = Some(number);
        }
    }
    // SAFETY: the identifier is alive: destroyed ones take their events along.
    unsafe { show(&world, id, number) };
    let mut data = [0; 255];
    for (to, from) in data.iter_mut().zip(&message.private_data) {
        *to = *from;
    }
    let length = padded(message.kind).max(message.private_data.len());
    let conn = sys::ConnParam {
        private_data: ptr::null(),
        private_data_len: u8::try_from(length).unwrap_or(u8::MAX),
        responder_resources: message.responder_resources,
        initiator_depth: message.initiator_depth,
        flow_control: 0,
        retry_count: message.retries,
        rnr_retry_count: message.rnr_retries,
        srq: 0,
        qp_num: message.qp_num,
    };
    let base =
        sys::CmEvent { id, listen_id: listener, event: message.kind, status: message.status, conn };
    let whole = Box::into_raw(Box::new(SoftEvent { base, data, of: listener }));
    // SAFETY: the event just made; see the module for the answer.
    unsafe {
        if length > 0 {
            (*whole).base.conn.private_data = (&raw const (*whole).data).cast();
        }
        *event = whole.cast();
    }
    0
}

pub(crate) unsafe extern "C" fn ack_cm_event(event: *mut sys::CmEvent) -> c_int {
    // SAFETY: made by `get_cm_event`, acknowledged once.
    let event = unsafe { Box::from_raw(event.cast::<SoftEvent>()) };
    // SAFETY: an identifier is there until its events are acknowledged, and its channel as long.
    unsafe { channel((*event.of).channel) }.shared.acknowledge(event.of.addr(), 1);
    0
}
