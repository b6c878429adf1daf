//! The provider's side of the verbs: regions, queues, and what is posted to them.
//!
//! Safety throughout: pointers are those that functions of this module returned and that have not been destroyed, answers
//! have room, and chains are well formed. That is what the C interface asks of its caller, which is this crate.

use std::collections::VecDeque;
use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::Arc;

use super::device::{context, refuse, refuse_object, world};
use super::world::{
    CompletionChannel, CompletionQueue, Faults, MAX_PIECES, Notices, Pair, Phase, Pieces, Receive,
    Region, Send, SharedReceives,
};
use crate::{MAX_INLINE, sys};

/// The address of an object that the world is to remember.
fn expose<T>(object: Box<T>) -> (*mut T, usize) {
    let raw = Box::into_raw(object);
    (raw, raw.expose_provenance())
}

pub(crate) unsafe extern "C" fn reg_mr(
    pd: *mut sys::Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut sys::Mr {
    // SAFETY: see the module.
    let (raw, domain) = unsafe { ((*pd).context, (*pd).handle) };
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let limit = world.devices.get(context.device).map_or(0, |device| device.options.max_mr);
    if world.is_removed(context.device) || world.regions.len() >= limit as usize {
        return refuse_object(libc::ENOMEM);
    }
    if access & sys::ACCESS_REMOTE_WRITE != 0 && access & sys::ACCESS_LOCAL_WRITE == 0 {
        return refuse_object(libc::EINVAL);
    }
    // Keys of one region are not those of the next, and neither is 0.
    let key = world.number() << 8 | 0x5A;
    let base = addr.expose_provenance() as u64;
    let region = Region { domain, base, length: length as u64, access, valid: true };
    world.regions.insert(key, region);
    Box::into_raw(Box::new(sys::Mr {
        context: raw,
        pd,
        addr,
        length,
        handle: key,
        lkey: key,
        rkey: key,
    }))
}

pub(crate) unsafe extern "C" fn dereg_mr(raw: *mut sys::Mr) -> c_int {
    // SAFETY: see the module.
    let mr = unsafe { Box::from_raw(raw) };
    // SAFETY: see the module.
    unsafe { world(mr.context) }.regions.remove(&mr.lkey);
    0
}

#[repr(C)]
struct SoftCompChannel {
    base: sys::CompChannel,
    number: u32,
    _fd: Arc<OwnedFd>,
}

pub(crate) unsafe extern "C" fn create_comp_channel(
    raw: *mut sys::Context,
) -> *mut sys::CompChannel {
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let Ok(notices) = Notices::new() else { return refuse_object(libc::EMFILE) };
    let number = world.number();
    let base = sys::CompChannel { context: raw, fd: notices.raw_fd(), refcnt: 0 };
    let channel = SoftCompChannel { base, number, _fd: Arc::clone(&notices.fd) };
    let entry = CompletionChannel { context: context.number, notices };
    world.completion_channels.insert(number, entry);
    Box::into_raw(Box::new(channel)).cast()
}

pub(crate) unsafe extern "C" fn destroy_comp_channel(raw: *mut sys::CompChannel) -> c_int {
    // SAFETY: see the module.
    let (context, number) = unsafe { ((*raw).context, (*raw.cast::<SoftCompChannel>()).number) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    if world.completion_queues.values().any(|queue| queue.channel == Some(number)) {
        return world.refuse_to_destroy();
    }
    world.completion_channels.remove(&number);
    drop(world);
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw.cast::<SoftCompChannel>()) });
    0
}

pub(crate) unsafe extern "C" fn create_cq(
    raw: *mut sys::Context,
    capacity: c_int,
    token: *mut c_void,
    channel: *mut sys::CompChannel,
    _vector: c_int,
) -> *mut sys::Cq {
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let limit = world.devices.get(context.device).map_or(0, |device| device.options.max_cqe);
    let wanted = u32::try_from(capacity).unwrap_or(0);
    if world.is_removed(context.device) || wanted == 0 || wanted > limit {
        return refuse_object(libc::EINVAL);
    }
    let handle = world.number();
    let cq = Box::new(sys::Cq { context: raw, channel, cq_context: token, handle, cqe: capacity });
    let (pointer, address) = expose(cq);
    let number = if channel.is_null() {
        None
    } else {
        // SAFETY: see the module.
        Some(unsafe { (*channel.cast::<SoftCompChannel>()).number })
    };
    let queue = CompletionQueue {
        address,
        context: context.number,
        channel: number,
        capacity: wanted as usize,
        entries: VecDeque::new(),
        armed: false,
        broken: false,
    };
    world.completion_queues.insert(handle, queue);
    pointer
}

pub(crate) unsafe extern "C" fn destroy_cq(raw: *mut sys::Cq) -> c_int {
    // SAFETY: see the module.
    let (context, handle) = unsafe { (context((*raw).context), (*raw).handle) };
    let mut world = context.shared.world();
    let ends = |pair: &Pair| pair.send_queue == handle || pair.receive_queue == handle;
    if world.pairs.values().any(ends) {
        return world.refuse_to_destroy();
    }
    if let Some(queue) = world.completion_queues.remove(&handle) {
        world.forget(queue.context, queue.address);
        for channel in world.completion_channels.values_mut() {
            channel.notices.retain(|&address| address != queue.address);
        }
    }
    context.shared.await_acknowledgement(world, raw.addr());
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw) });
    0
}

pub(crate) unsafe extern "C" fn get_cq_event(
    channel: *mut sys::CompChannel,
    cq: *mut *mut sys::Cq,
    token: *mut *mut c_void,
) -> c_int {
    // SAFETY: see the module.
    let (context, number) =
        unsafe { ((*channel).context, (*channel.cast::<SoftCompChannel>()).number) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    let channel = world.completion_channels.get_mut(&number);
    let Some(address) = channel.and_then(|channel| channel.notices.pop()) else {
        return refuse(libc::EAGAIN);
    };
    world.told.add(address);
    let queue = ptr::with_exposed_provenance_mut::<sys::Cq>(address);
    // SAFETY: a queue that is destroyed takes its notices along; see the module for the answers.
    unsafe {
        *cq = queue;
        *token = (*queue).cq_context;
    }
    0
}

pub(crate) unsafe extern "C" fn ack_cq_events(raw: *mut sys::Cq, events: c_uint) {
    // SAFETY: see the module: a queue is there until its events are acknowledged.
    unsafe { context((*raw).context) }.shared.acknowledge(raw.addr(), events);
}

pub(crate) unsafe extern "C" fn poll_cq(raw: *mut sys::Cq, room: c_int, to: *mut sys::Wc) -> c_int {
    // SAFETY: see the module.
    let (context, handle) = unsafe { ((*raw).context, (*raw).handle) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    let mut count = 0;
    while count < room {
        let Some(queue) = world.completion_queues.get_mut(&handle) else { break };
        let Some((wc, covers)) = queue.entries.pop_front() else { break };
        if let Some(pair) = world.pairs.get_mut(&wc.qp_num) {
            debug_assert!(covers <= pair.occupied, "more ended than were posted");
            pair.occupied = pair.occupied.saturating_sub(covers);
        }
        // SAFETY: `count` is below what there is room for.
        unsafe { *to.add(usize::try_from(count).unwrap_or(0)) = wc };
        count += 1;
    }
    count
}

pub(crate) unsafe extern "C" fn req_notify_cq(raw: *mut sys::Cq, _solicited_only: c_int) -> c_int {
    // SAFETY: see the module.
    let (context, handle) = unsafe { ((*raw).context, (*raw).handle) };
    // SAFETY: see the module.
    if let Some(queue) = unsafe { world(context) }.completion_queues.get_mut(&handle) {
        queue.armed = true;
    }
    0
}

pub(crate) unsafe extern "C" fn create_srq(
    pd: *mut sys::Pd,
    options: *mut sys::SrqInitAttr,
) -> *mut sys::Srq {
    // SAFETY: see the module.
    let (raw, domain, options) = unsafe { ((*pd).context, (*pd).handle, &*options) };
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let count = world.shared_receives.len();
    let limits = world.devices.get(context.device).filter(|device| !device.removed);
    let fits = limits.is_some_and(|device| {
        let limits = &device.options;
        count < limits.max_srq as usize
            && options.attr.max_wr <= limits.max_srq_wr
            && options.attr.max_sge <= limits.max_sge
    });
    if !fits {
        return refuse_object(libc::EINVAL);
    }
    let handle = world.number();
    let srq = Box::new(sys::Srq { context: raw, srq_context: options.srq_context, pd, handle });
    let (pointer, address) = expose(srq);
    let queue = SharedReceives {
        address,
        context: context.number,
        domain,
        capacity: options.attr.max_wr as usize,
        limit: 0,
        queue: VecDeque::new(),
    };
    world.shared_receives.insert(handle, queue);
    pointer
}

pub(crate) unsafe extern "C" fn modify_srq(
    raw: *mut sys::Srq,
    attributes: *mut sys::SrqAttr,
    mask: c_int,
) -> c_int {
    // SAFETY: see the module.
    let (context, handle, limit) =
        unsafe { ((*raw).context, (*raw).handle, (*attributes).srq_limit) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    let Some(queue) = world.shared_receives.get_mut(&handle) else { return libc::EINVAL };
    if mask != sys::SRQ_LIMIT || limit as usize > queue.capacity {
        return libc::EINVAL;
    }
    queue.limit = limit as usize;
    if queue.queue.len() < queue.limit {
        queue.limit = 0;
        let (context, address) = (queue.context, queue.address);
        world.report(context, sys::EVENT_SRQ_LIMIT_REACHED, address);
    }
    0
}

pub(crate) unsafe extern "C" fn destroy_srq(raw: *mut sys::Srq) -> c_int {
    // SAFETY: see the module.
    let (context, handle) = unsafe { (context((*raw).context), (*raw).handle) };
    let mut world = context.shared.world();
    if world.pairs.values().any(|pair| pair.shared == Some(handle)) {
        return world.refuse_to_destroy();
    }
    if let Some(queue) = world.shared_receives.remove(&handle) {
        world.forget(queue.context, queue.address);
    }
    context.shared.await_acknowledgement(world, raw.addr());
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw) });
    0
}

pub(crate) unsafe extern "C" fn create_qp(
    pd: *mut sys::Pd,
    options: *mut sys::QpInitAttr,
) -> *mut sys::Qp {
    // SAFETY: see the module.
    let (raw, domain, options) = unsafe { ((*pd).context, (*pd).handle, &mut *options) };
    // SAFETY: see the module.
    let (context, mut world) = unsafe { (context(raw), world(raw)) };
    let count = world.pairs.values().filter(|pair| pair.device == context.device).count();
    let limits = world.devices.get(context.device).filter(|device| !device.removed);
    let Some(limits) = limits.map(|device| &device.options) else {
        return refuse_object(libc::EIO);
    };
    let cap = options.cap;
    let fits = count < limits.max_qp as usize
        && cap.max_send_wr.max(cap.max_recv_wr) <= limits.max_qp_wr
        && cap.max_send_sge.max(cap.max_recv_sge) <= limits.max_sge
        && cap.max_inline_data <= limits.max_inline
        && options.qp_type == sys::QPT_RC;
    if !fits {
        return refuse_object(libc::EINVAL);
    }
    let reports_last_wqe = limits.reports_last_wqe;
    let number = world.number();
    // SAFETY: see the module.
    let (send_queue, receive_queue) =
        unsafe { ((*options.send_cq).handle, (*options.recv_cq).handle) };
    // SAFETY: see the module.
    let shared = (!options.srq.is_null()).then(|| unsafe { (*options.srq).handle });
    let qp = Box::new(sys::Qp {
        context: raw,
        qp_context: options.qp_context,
        pd,
        send_cq: options.send_cq,
        recv_cq: options.recv_cq,
        srq: options.srq,
        handle: number,
        qp_num: number,
        state: sys::QPS_RESET,
        qp_type: sys::QPT_RC,
    });
    let (pointer, address) = expose(qp);
    let pair = Pair {
        address,
        context: context.number,
        device: context.device,
        domain,
        send_queue,
        receive_queue,
        shared,
        max_sends: cap.max_send_wr,
        max_receives: cap.max_recv_wr,
        state: sys::QPS_RESET,
        peer: 0,
        access: 0,
        max_reads_out: 0,
        max_reads_in: 0,
        retries: 0,
        rnr_retries: 0,
        // Small queues never grow: whether they do is chance, which a test that counts allocations could not have.
        sends: VecDeque::with_capacity(usize::try_from(cap.max_send_wr.min(64)).unwrap_or(0)),
        started: 0,
        reads_out: 0,
        reads_in: 0,
        occupied: 0,
        silent: 0,
        receives: VecDeque::new(),
        retries_left: 0,
        rnr_left: 0,
        last_wqe_told: !reports_last_wqe,
        faults: Faults::default(),
    };
    world.pairs.insert(number, pair);
    pointer
}

pub(crate) unsafe extern "C" fn modify_qp(
    raw: *mut sys::Qp,
    to: *mut sys::QpAttr,
    mask: c_int,
) -> c_int {
    // SAFETY: see the module.
    let (context, number, to) = unsafe { ((*raw).context, (*raw).qp_num, &*to) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    let Some(pair) = world.pairs.get_mut(&number) else { return libc::EINVAL };
    if mask & sys::QP_STATE == 0 {
        return libc::EINVAL;
    }
    let known = matches!(
        (pair.state, to.qp_state),
        (sys::QPS_RESET, sys::QPS_INIT)
            | (sys::QPS_INIT, sys::QPS_INIT | sys::QPS_RTR)
            | (sys::QPS_RTR, sys::QPS_RTS)
            | (_, sys::QPS_ERR)
    );
    if !known {
        return libc::EINVAL;
    }
    if mask & sys::QP_ACCESS_FLAGS != 0 {
        pair.access = to.qp_access_flags;
    }
    match to.qp_state {
        sys::QPS_RTR => {
            (pair.peer, pair.max_reads_in) = (to.dest_qp_num, to.max_dest_rd_atomic);
        }
        sys::QPS_RTS => {
            pair.max_reads_out = to.max_rd_atomic;
            (pair.retries, pair.rnr_retries) = (to.retry_cnt, to.rnr_retry);
            (pair.retries_left, pair.rnr_left) = (to.retry_cnt, to.rnr_retry);
        }
        _ => {}
    }
    if to.qp_state == sys::QPS_ERR {
        world.fail_pair(number);
    } else {
        pair.state = to.qp_state;
    }
    0
}

pub(crate) unsafe extern "C" fn query_qp(
    raw: *mut sys::Qp,
    answer: *mut sys::QpAttr,
    _mask: c_int,
    _options: *mut sys::QpInitAttr,
) -> c_int {
    // SAFETY: see the module.
    let (context, number) = unsafe { ((*raw).context, (*raw).qp_num) };
    // SAFETY: see the module.
    let world = unsafe { world(context) };
    let Some(pair) = world.pairs.get(&number) else { return libc::EINVAL };
    // SAFETY: see the module.
    unsafe { (*answer).qp_state = pair.state };
    0
}

pub(crate) unsafe extern "C" fn destroy_qp(raw: *mut sys::Qp) -> c_int {
    // SAFETY: see the module.
    let (context, number) = unsafe { (context((*raw).context), (*raw).qp_num) };
    let mut world = context.shared.world();
    world.fail_pair(number);
    if let Some(pair) = world.pairs.remove(&number) {
        world.forget(pair.context, pair.address);
    }
    context.shared.await_acknowledgement(world, raw.addr());
    // SAFETY: see the module; destroyed once.
    drop(unsafe { Box::from_raw(raw) });
    0
}

/// The pieces of a request.
unsafe fn pieces(list: *const sys::Sge, count: c_int) -> Option<Pieces> {
    let count = usize::try_from(count).ok()?;
    let mut pieces = Pieces { count, ..Pieces::default() };
    for (index, piece) in pieces.all.get_mut(..count)?.iter_mut().enumerate() {
        // SAFETY: see the module: the list has `count` entries.
        *piece = unsafe { *list.add(index) };
    }
    Some(pieces)
}

/// The inline data of a request, put together.
unsafe fn inline_data(pieces: &Pieces) -> Option<[u8; MAX_INLINE]> {
    let mut data = [0; MAX_INLINE];
    let mut end = 0;
    for piece in pieces.used() {
        let part = data.get_mut(end..)?.get_mut(..piece.length as usize)?;
        let from = ptr::with_exposed_provenance::<u8>(usize::try_from(piece.addr).ok()?);
        // SAFETY: see the module: the caller's memory, readable during the call, and as long as `part`.
        unsafe { from.copy_to_nonoverlapping(part.as_mut_ptr(), part.len()) };
        end += piece.length as usize;
    }
    Some(data)
}

pub(crate) unsafe extern "C" fn post_send(
    qp: *mut sys::Qp,
    mut next: *mut sys::SendWr,
    bad: *mut *mut sys::SendWr,
) -> c_int {
    // SAFETY: see the module.
    let (context, number) = unsafe { ((*qp).context, (*qp).qp_num) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    while !next.is_null() {
        // SAFETY: see the module; this is to be overwritten with whatever comes after, if that fails.
        let request = unsafe {
            *bad = next;
            &*next
        };
        // SAFETY: see the module.
        let Some(pieces) = (unsafe { pieces(request.sg_list, request.num_sge) }) else {
            return libc::EINVAL;
        };
        let is_inline = request.send_flags & sys::SEND_INLINE != 0;
        let inline = if is_inline {
            // SAFETY: see the module.
            unsafe { inline_data(&pieces) }
        } else {
            Some([0; MAX_INLINE])
        };
        let Some(inline) = inline else { return libc::EINVAL };
        let Some(pair) = world.pairs.get_mut(&number) else { return libc::EINVAL };
        if !matches!(pair.state, sys::QPS_RTS | sys::QPS_ERR) {
            return libc::EINVAL;
        }
        if pair.occupied >= pair.max_sends {
            return libc::ENOMEM;
        }
        let invalidates = request.opcode == sys::WR_SEND_WITH_INV;
        pair.occupied += 1;
        pair.sends.push_back(Send {
            wr_id: request.wr_id,
            opcode: request.opcode,
            flags: request.send_flags,
            pieces,
            inline,
            remote: request.remote_addr,
            key: if invalidates { request.invalidate_rkey } else { request.rkey },
            phase: Phase::Queued,
        });
        world.busy_pairs.add(number);
        next = request.next;
    }
    0
}

unsafe fn receive(request: &sys::RecvWr) -> Option<Receive> {
    // SAFETY: see the module.
    let pieces = unsafe { pieces(request.sg_list, request.num_sge) }?;
    Some(Receive { wr_id: request.wr_id, pieces })
}

pub(crate) unsafe extern "C" fn post_recv(
    qp: *mut sys::Qp,
    mut next: *mut sys::RecvWr,
    bad: *mut *mut sys::RecvWr,
) -> c_int {
    // SAFETY: see the module.
    let (context, number) = unsafe { ((*qp).context, (*qp).qp_num) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    while !next.is_null() {
        // SAFETY: see the module.
        let request = unsafe {
            *bad = next;
            &*next
        };
        // SAFETY: see the module.
        let Some(receive) = (unsafe { receive(request) }) else { return libc::EINVAL };
        let Some(pair) = world.pairs.get_mut(&number) else { return libc::EINVAL };
        if pair.state == sys::QPS_RESET || pair.shared.is_some() {
            return libc::EINVAL;
        }
        if pair.receives.len() >= pair.max_receives as usize {
            return libc::ENOMEM;
        }
        pair.receives.push_back(receive);
        if pair.state == sys::QPS_ERR {
            world.busy_pairs.add(number);
        }
        next = request.next;
    }
    0
}

pub(crate) unsafe extern "C" fn post_srq_recv(
    srq: *mut sys::Srq,
    mut next: *mut sys::RecvWr,
    bad: *mut *mut sys::RecvWr,
) -> c_int {
    // SAFETY: see the module.
    let (context, handle) = unsafe { ((*srq).context, (*srq).handle) };
    // SAFETY: see the module.
    let mut world = unsafe { world(context) };
    while !next.is_null() {
        // SAFETY: see the module.
        let request = unsafe {
            *bad = next;
            &*next
        };
        // SAFETY: see the module.
        let Some(receive) = (unsafe { receive(request) }) else { return libc::EINVAL };
        let Some(queue) = world.shared_receives.get_mut(&handle) else { return libc::EINVAL };
        if queue.queue.len() >= queue.capacity {
            return libc::ENOMEM;
        }
        queue.queue.push_back(receive);
        next = request.next;
    }
    0
}

const _: () = assert!(MAX_PIECES >= 16, "what devices say they can");
