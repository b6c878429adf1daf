//! The provider's device, context and table of functions.

use std::ffi::{CString, c_char, c_int};
use std::mem::{self, offset_of};
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::{Arc, MutexGuard, Weak};

use super::world::{Context, Notices, World};
use super::{Shared, connection, domains, objects};
use crate::sys::{self, Api};

pub(crate) static API: Api = Api {
    ibv_get_device_list: no_device_list,
    ibv_free_device_list: free_device_list,
    ibv_get_device_name: device_name,
    ibv_open_device: open_device,
    ibv_close_device: close_device,
    ibv_query_device: query_device,
    ibv_query_port: query_port,
    ibv_query_gid: query_gid,
    ibv_get_async_event: get_async_event,
    ibv_ack_async_event: ack_async_event,
    ibv_alloc_pd: domains::alloc_pd,
    ibv_dealloc_pd: domains::dealloc_pd,
    ibv_reg_mr: objects::reg_mr,
    ibv_dereg_mr: objects::dereg_mr,
    ibv_create_comp_channel: objects::create_comp_channel,
    ibv_destroy_comp_channel: objects::destroy_comp_channel,
    ibv_create_cq: objects::create_cq,
    ibv_destroy_cq: objects::destroy_cq,
    ibv_get_cq_event: objects::get_cq_event,
    ibv_ack_cq_events: objects::ack_cq_events,
    ibv_create_srq: objects::create_srq,
    ibv_modify_srq: objects::modify_srq,
    ibv_destroy_srq: objects::destroy_srq,
    ibv_create_qp: objects::create_qp,
    ibv_modify_qp: objects::modify_qp,
    ibv_query_qp: objects::query_qp,
    ibv_destroy_qp: objects::destroy_qp,
    rdma_create_event_channel: connection::no_event_channel,
    rdma_destroy_event_channel: connection::destroy_event_channel,
    rdma_create_id: connection::create_id,
    rdma_destroy_id: connection::destroy_id,
    rdma_set_option: connection::set_option,
    rdma_bind_addr: connection::bind_addr,
    rdma_listen: connection::listen,
    rdma_resolve_addr: connection::resolve_addr,
    rdma_resolve_route: connection::resolve_route,
    rdma_init_qp_attr: connection::init_qp_attr,
    rdma_connect: connection::connect,
    rdma_establish: connection::establish,
    rdma_accept: connection::accept,
    rdma_reject: connection::reject,
    rdma_disconnect: connection::disconnect,
    rdma_get_cm_event: connection::get_cm_event,
    rdma_ack_cm_event: connection::ack_cm_event,
};

/// Fails a call with this error number.
pub(crate) fn refuse(error: i32) -> c_int {
    // SAFETY: the address of this thread's own errno.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// Fails a call that returns an object.
pub(crate) fn refuse_object<T>(error: i32) -> *mut T {
    refuse(error);
    ptr::null_mut()
}

/// A device's description. The layer above holds its address, which is the address of the whole.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SoftDevice {
    index: usize,
    name: CString,
    shared: Weak<Shared>,
    /// What identifiers of connections refer to; leads to the description and nowhere else.
    context: StubContext,
}

#[repr(transparent)]
struct StubContext(sys::Context);

impl std::fmt::Debug for StubContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StubContext")
    }
}

// SAFETY: the one address in it is that of its own description, which is never written to once it is made.
unsafe impl Send for StubContext {}
// SAFETY: as above.
unsafe impl Sync for StubContext {}

impl SoftDevice {
    pub(crate) fn new(shared: &Arc<Shared>, index: usize, name: &str) -> Box<SoftDevice> {
        let name = CString::new(name).unwrap_or_default();
        let context = StubContext(sys::Context {
            device: ptr::null_mut(),
            ops: NO_OPS,
            cmd_fd: -1,
            async_fd: -1,
            num_comp_vectors: 0,
            mutex: libc::PTHREAD_MUTEX_INITIALIZER,
            abi_compat: ptr::null_mut(),
        });
        let mut device =
            Box::new(SoftDevice { index, name, shared: Arc::downgrade(shared), context });
        device.context.0.device = ptr::from_mut(&mut *device).cast();
        device
    }

    /// The context that an identifier on the device at this address refers to.
    pub(crate) fn stub(address: usize) -> *mut sys::Context {
        let device = ptr::with_exposed_provenance_mut::<SoftDevice>(address);
        // SAFETY: the address of a description that lives as long as the world; the first field of the stub is its all.
        unsafe { (&raw mut (*device).context).cast() }
    }
}

const NO_OPS: sys::ContextOps = sys::ContextOps {
    before_poll_cq: [0; 11],
    poll_cq: None,
    req_notify_cq: None,
    before_post_srq_recv: [0; 7],
    post_srq_recv: None,
    before_post_send: [0; 4],
    post_send: None,
    post_recv: None,
    after_post_recv: [0; 5],
};

const OPS: sys::ContextOps = sys::ContextOps {
    poll_cq: Some(objects::poll_cq),
    req_notify_cq: Some(objects::req_notify_cq),
    post_srq_recv: Some(objects::post_srq_recv),
    post_send: Some(objects::post_send),
    post_recv: Some(objects::post_recv),
    ..NO_OPS
};

/// An open context: what the layer above knows, of which it holds the address of the inner context, and after it what we do.
#[repr(C)]
pub(crate) struct SoftContext {
    base: sys::VerbsContext,
    pub(crate) shared: Arc<Shared>,
    pub(crate) device: usize,
    pub(crate) number: u32,
    _fd: Arc<OwnedFd>,
}

/// The whole that a context is part of.
///
/// # Safety
/// A context that `open_device` has made.
unsafe fn whole(context: *mut sys::Context) -> *mut SoftContext {
    // SAFETY: the caller's word: the pointer was made of one to the whole, so far from its beginning.
    unsafe { context.byte_sub(offset_of!(sys::VerbsContext, context)).cast() }
}

/// The context behind a pointer that the layer above was given.
///
/// # Safety
/// A context of this provider that is open.
pub(crate) unsafe fn context<'a>(context: *mut sys::Context) -> &'a SoftContext {
    // SAFETY: the caller's word; it was made as a `SoftContext` by `open_device`.
    unsafe { &*whole(context) }
}

/// The world of an open context, locked.
///
/// # Safety
/// As [`context`].
pub(crate) unsafe fn world<'a>(raw: *mut sys::Context) -> MutexGuard<'a, World> {
    // SAFETY: the caller's word.
    unsafe { context(raw) }.shared.world()
}

unsafe extern "C" fn no_device_list(_: *mut c_int) -> *mut *mut sys::Device {
    refuse_object(libc::ENOSYS)
}

unsafe extern "C" fn free_device_list(_: *mut *mut sys::Device) {}

unsafe extern "C" fn device_name(device: *mut sys::Device) -> *const c_char {
    // SAFETY: a description of `device_list`, which lives as long as the world.
    unsafe { (*device.cast::<SoftDevice>()).name.as_ptr() }
}

unsafe extern "C" fn open_device(device: *mut sys::Device) -> *mut sys::Context {
    // SAFETY: as in `device_name`.
    let description = unsafe { &*device.cast::<SoftDevice>() };
    let Some(shared) = description.shared.upgrade() else { return refuse_object(libc::ENODEV) };
    let mut world = shared.world();
    let index = description.index;
    if world.is_removed(index) {
        return refuse_object(libc::ENODEV);
    }
    let Ok(reports) = Notices::new() else { return refuse_object(libc::EMFILE) };
    let number = world.number();
    let (fd, raw) = (Arc::clone(&reports.fd), reports.raw_fd());
    world.contexts.insert(number, Context { device: index, reports });
    drop(world);
    let context = sys::Context {
        device,
        ops: OPS,
        cmd_fd: -1,
        async_fd: raw,
        num_comp_vectors: 4,
        mutex: libc::PTHREAD_MUTEX_INITIALIZER,
        abi_compat: ptr::without_provenance_mut(sys::ABI_IS_EXTENDED),
    };
    let base = sys::VerbsContext {
        alloc_parent_domain: Some(domains::alloc_parent_domain),
        dealloc_td: Some(domains::dealloc_td),
        alloc_td: Some(domains::alloc_td),
        after_alloc_td: [0; 22],
        sz: size_of::<sys::VerbsContext>(),
        context,
    };
    let whole = Box::new(SoftContext { base, shared, device: index, number, _fd: fd });
    let whole = Box::into_raw(whole);
    // SAFETY: inside of what was just made.
    unsafe { &raw mut (*whole).base.context }
}

unsafe extern "C" fn close_device(raw: *mut sys::Context) -> c_int {
    // SAFETY: made by `open_device`, and open still.
    let context = unsafe { context(raw) };
    let mut world = context.shared.world();
    let number = context.number;
    // Everything else is made of a domain.
    let used = world.domains.values().any(|domain| domain.context == number)
        || world.thread_domains.values().any(|&of| of == number)
        || world.completion_channels.values().any(|channel| channel.context == number)
        || world.completion_queues.values().any(|queue| queue.context == number);
    if used {
        return world.refuse_to_destroy();
    }
    world.contexts.remove(&number);
    drop(world);
    debug_assert_eq!(context.base.context.num_comp_vectors, 4);
    // SAFETY: made by `open_device`, closed once.
    drop(unsafe { Box::from_raw(whole(raw)) });
    0
}

unsafe extern "C" fn query_device(
    raw: *mut sys::Context,
    attributes: *mut sys::DeviceAttr,
) -> c_int {
    // SAFETY: an open context.
    let (context, world) = unsafe { (context(raw), world(raw)) };
    let Some(state) = world.devices.get(context.device) else { return libc::ENODEV };
    let options = &state.options;
    let count = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    // SAFETY: integers, for which zero is a value.
    let mut answer: sys::DeviceAttr = unsafe { mem::zeroed() };
    answer.node_guid = (context.device as u64 + 1).to_be();
    answer.max_mr_size = u64::MAX;
    answer.vendor_id = 0x0054_4753;
    answer.max_qp = count(options.max_qp);
    answer.max_qp_wr = count(options.max_qp_wr);
    answer.device_cap_flags =
        if options.send_with_invalidate { sys::DEVICE_MEM_MGT_EXTENSIONS } else { 0 };
    answer.max_sge = count(options.max_sge);
    answer.max_sge_rd = count(options.max_sge);
    answer.max_cq = 1 << 16;
    answer.max_cqe = count(options.max_cqe);
    answer.max_mr = count(options.max_mr);
    answer.max_pd = 1 << 16;
    answer.max_qp_rd_atom = options.max_qp_rd_atom.into();
    answer.max_qp_init_rd_atom = options.max_qp_init_rd_atom.into();
    answer.max_srq = count(options.max_srq);
    answer.max_srq_wr = count(options.max_srq_wr);
    answer.max_srq_sge = count(options.max_sge);
    answer.phys_port_cnt = 1;
    // SAFETY: the caller's room for the answer.
    unsafe { *attributes = answer };
    0
}

unsafe extern "C" fn query_port(
    raw: *mut sys::Context,
    port: u8,
    answer: *mut sys::PortAttr,
) -> c_int {
    // SAFETY: an open context.
    let (context, world) = unsafe { (context(raw), world(raw)) };
    let state = world.devices.get(context.device).filter(|device| !device.removed && port == 1);
    let Some(state) = state else { return libc::EINVAL };
    let up = if state.port_up { sys::PORT_ACTIVE } else { sys::PORT_DOWN };
    let gid_tbl_len = i32::try_from(state.options.addresses.len()).unwrap_or(0);
    // SAFETY: the caller's room for the answer.
    unsafe {
        *answer = sys::PortAttr {
            state: up,
            max_mtu: 5,
            active_mtu: 5,
            gid_tbl_len,
            max_msg_sz: 1 << 30,
            link_layer: sys::LINK_LAYER_ETHERNET,
            ..sys::PortAttr::default()
        };
    }
    0
}

unsafe extern "C" fn query_gid(
    raw: *mut sys::Context,
    port: u8,
    index: c_int,
    answer: *mut sys::Gid,
) -> c_int {
    // SAFETY: an open context.
    let (context, world) = unsafe { (context(raw), world(raw)) };
    let state = world.devices.get(context.device).filter(|_| port == 1);
    let address = usize::try_from(index).ok().and_then(|index| state?.options.addresses.get(index));
    let Some(address) = address else { return libc::EINVAL };
    let address = match address {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => *v6,
    };
    let half = |shift: u32| {
        u64::try_from(address.to_bits() >> shift & u128::from(u64::MAX)).unwrap_or(0).to_be()
    };
    // SAFETY: the caller's room for the answer.
    unsafe { (*answer).raw = [half(64), half(0)] };
    0
}

unsafe extern "C" fn get_async_event(
    raw: *mut sys::Context,
    answer: *mut sys::AsyncEvent,
) -> c_int {
    // SAFETY: an open context.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let report = world.contexts.get_mut(&context.number).and_then(|context| context.reports.pop());
    let Some(report) = report else { return refuse(libc::EAGAIN) };
    let port = matches!(report.kind, sys::EVENT_PORT_ACTIVE | sys::EVENT_PORT_ERR);
    let element = if port {
        sys::AsyncElement { port_num: i32::try_from(report.element).unwrap_or(0) }
    } else {
        if report.element != 0 {
            world.told.add(report.element);
        }
        sys::AsyncElement { qp: ptr::with_exposed_provenance_mut(report.element) }
    };
    // SAFETY: the caller's room for the answer.
    unsafe { *answer = sys::AsyncEvent { element, event_type: report.kind } };
    0
}

unsafe extern "C" fn ack_async_event(event: *mut sys::AsyncEvent) {
    // SAFETY: an event of `get_async_event`, whose type says which object it is of; that is there until the event is acknowledged.
    let (raw, object) = unsafe {
        let element = &(*event).element;
        match (*event).event_type {
            sys::EVENT_PORT_ACTIVE | sys::EVENT_PORT_ERR | sys::EVENT_DEVICE_FATAL => return,
            sys::EVENT_CQ_ERR => ((*element.cq).context, element.cq.addr()),
            sys::EVENT_SRQ_LIMIT_REACHED => ((*element.srq).context, element.srq.addr()),
            _ => ((*element.qp).context, element.qp.addr()),
        }
    };
    // SAFETY: the context of a live object is open.
    unsafe { context(raw) }.shared.acknowledge(object, 1);
}
