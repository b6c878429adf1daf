//! A device: its limits, its ports, and what it reports of itself unasked.

use std::ffi::CStr;
use std::fmt;
use std::mem::{self, MaybeUninit};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::error::{check, check_ready, last, let_go};
use crate::{Library, VerbsError, sys};

/// What a device can do. All limits are the device's own words, which it keeps only in part: creating something beyond what
/// is free fails then and there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of ibv_device_attr, which its manual page describes")]
pub struct DeviceAttributes {
    pub max_mr_size: u64,
    pub max_mr: u32,
    pub max_qp_wr: u32,
    pub max_sge: u32,
    pub max_cqe: u32,
    pub max_srq: u32,
    pub max_srq_wr: u32,
    pub max_srq_sge: u32,
    /// RDMA reads that a queue pair answers at a time.
    pub max_qp_rd_atom: u8,
    /// RDMA reads that a queue pair has on their way at a time.
    pub max_qp_init_rd_atom: u8,
    pub ports: u8,
    pub completion_vectors: u32,
    /// Whether SEND_WITH_INV can be relied on. rxe says it can do it, and does it wrong.
    pub send_with_invalidate: bool,
}

/// A port as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortAttributes {
    /// It carries traffic.
    pub active: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Length of its table of GIDs.
    pub gids: u32,
    /// The longest message in bytes.
    pub max_message: u32,
}

/// What a device reports unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncEvent {
    /// A queue pair in error has taken its last receive from the shared receive queue.
    LastWqeReached {
        /// Its number.
        qp_num: u32,
    },
    /// A queue pair broke.
    QueuePairError {
        /// Its number.
        qp_num: u32,
    },
    /// A queue pair saw its first message before the connection was reported established.
    CommunicationEstablished {
        /// Its number.
        qp_num: u32,
    },
    /// A completion queue overflowed or broke; all its queue pairs go down with it.
    CompletionQueueError {
        /// Its token.
        token: u64,
    },
    /// A shared receive queue fell below its limit, which has to be set anew.
    SharedReceiveQueueLimit {
        /// Its token.
        token: u64,
    },
    /// A shared receive queue broke.
    SharedReceiveQueueError {
        /// Its token.
        token: u64,
    },
    /// A port came up.
    PortActive(u8),
    /// A port went down.
    PortError(u8),
    /// The device is gone; all its objects have to be destroyed.
    DeviceFatal,
    /// The addresses of a port changed.
    GidChange(u8),
    /// Another event, by its number.
    Other(u32),
}

/// A device that has been opened; it is closed when the last object of it is gone.
pub(crate) struct Opened {
    pub(crate) library: Library,
    pub(crate) context: NonNull<sys::Context>,
    name: String,
    attributes: DeviceAttributes,
    removed: AtomicBool,
}

// SAFETY: the verbs may be called from any thread, several at a time; everything else here is immutable or atomic.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// A handle to a device; clones refer to the same.
#[derive(Clone)]
pub struct Device(pub(crate) Arc<Opened>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl Opened {
    pub(crate) fn name_of(library: &Library, device: *mut sys::Device) -> String {
        // SAFETY: a device out of the list, which is not freed yet, or that of an open context; its name is terminated.
        let name = unsafe { CStr::from_ptr((library.api().ibv_get_device_name)(device)) };
        name.to_string_lossy().into_owned()
    }

    pub(crate) fn open(
        library: Library,
        device: *mut sys::Device,
        name: String,
    ) -> Result<Opened, VerbsError> {
        // SAFETY: a device as in `name_of`.
        let context = unsafe { (library.api().ibv_open_device)(device) };
        let context = NonNull::new(context).ok_or_else(|| last("ibv_open_device"))?;
        let mut attributes = MaybeUninit::<sys::DeviceAttr>::zeroed();
        // SAFETY: an open context, and room for the answer, which consists of integers.
        let (queried, raw, vectors) = unsafe {
            let queried =
                (library.api().ibv_query_device)(context.as_ptr(), attributes.as_mut_ptr());
            (queried, attributes.assume_init(), (*context.as_ptr()).num_comp_vectors)
        };
        let attributes = DeviceAttributes::read(&raw, vectors);
        let removed = AtomicBool::new(false);
        // Made first, so that it is closed if what follows fails.
        let opened = Opened { library, context, name, attributes, removed };
        check("ibv_query_device", queried)?;
        let fd = opened.async_fd();
        let unblocked = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK));
        unblocked.map_err(|error| VerbsError::Call { call: "fcntl", source: error.into() })?;
        Ok(opened)
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name && !self.is_removed()
    }

    /// Whether this is what it was opened by: one that comes back has another description, even under the old name.
    pub(crate) fn is_of(&self, description: *mut sys::Device) -> bool {
        // SAFETY: our own context is open, and its description stays as long.
        ptr::eq(unsafe { (*self.context.as_ptr()).device }, description)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context's descriptor is open as long as the context, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw((*self.context.as_ptr()).async_fd) }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: our own context; every object made of it held this, so none is left.
        let result = unsafe { (self.library.api().ibv_close_device)(self.context.as_ptr()) };
        let_go("ibv_close_device", result, || ());
    }
}

impl DeviceAttributes {
    fn read(raw: &sys::DeviceAttr, vectors: i32) -> DeviceAttributes {
        let count = |value: i32| u32::try_from(value).unwrap_or(0);
        let small = |value: i32| u8::try_from(value.max(0)).unwrap_or(u8::MAX);
        // How rxe calls itself, formerly and now.
        let rxe = matches!(raw.vendor_id, 0 | 0x00FF_FFFF);
        DeviceAttributes {
            max_mr_size: raw.max_mr_size,
            max_mr: count(raw.max_mr),
            max_qp_wr: count(raw.max_qp_wr),
            max_sge: count(raw.max_sge),
            max_cqe: count(raw.max_cqe),
            max_srq: count(raw.max_srq),
            max_srq_wr: count(raw.max_srq_wr),
            max_srq_sge: count(raw.max_srq_sge),
            max_qp_rd_atom: small(raw.max_qp_rd_atom),
            max_qp_init_rd_atom: small(raw.max_qp_init_rd_atom),
            ports: raw.phys_port_cnt,
            completion_vectors: count(vectors),
            send_with_invalidate: raw.device_cap_flags & sys::DEVICE_MEM_MGT_EXTENSIONS != 0
                && !rxe,
        }
    }
}

impl Device {
    pub(crate) fn context(&self) -> *mut sys::Context {
        self.0.context.as_ptr()
    }

    pub(crate) fn library(&self) -> &Library {
        &self.0.library
    }

    /// Its name, such as `mlx5_0`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its limits, as they were when it was opened.
    pub fn attributes(&self) -> &DeviceAttributes {
        &self.0.attributes
    }

    /// Whether it was reported gone: by itself ([`AsyncEvent::DeviceFatal`]) or by rdma_cm
    /// ([`Kind::DeviceRemoved`](crate::Kind::DeviceRemoved)), whichever came first.
    pub fn is_removed(&self) -> bool {
        self.0.is_removed()
    }

    /// A port, counted from 1.
    ///
    /// # Errors
    /// If there is no such port, or the device is gone.
    pub fn port(&self, port: u8) -> Result<PortAttributes, VerbsError> {
        let mut raw = sys::PortAttr::default();
        // SAFETY: an open context and room for the answer: the function writes less than the structure.
        let result =
            unsafe { (self.library().api().ibv_query_port)(self.context(), port, &raw mut raw) };
        check("ibv_query_port", result)?;
        Ok(PortAttributes {
            active: raw.state == sys::PORT_ACTIVE,
            // 1 to 5 stand for 256 to 4,096.
            mtu: if (1..=5).contains(&raw.active_mtu) { 128 << raw.active_mtu } else { 0 },
            gids: u32::try_from(raw.gid_tbl_len).unwrap_or(0),
            max_message: raw.max_msg_sz,
        })
    }

    /// An entry of a port's table of GIDs; on RoCE an IP address, mapped if of version 4. Free ones are all zero.
    ///
    /// # Errors
    /// If there is no such entry.
    pub fn gid(&self, port: u8, index: u16) -> Result<Ipv6Addr, VerbsError> {
        let mut gid = sys::Gid::default();
        // SAFETY: an open context and room for the answer.
        let result = unsafe {
            (self.library().api().ibv_query_gid)(self.context(), port, index.into(), &raw mut gid)
        };
        check("ibv_query_gid", result)?;
        let [high, low] = gid.raw.map(u64::from_be);
        Ok(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)))
    }

    /// The next thing that it reports, if there is one. [`Device::as_fd`] becomes readable when there is.
    ///
    /// # Errors
    /// If the device cannot be asked.
    pub fn next_event(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        let api = self.library().api();
        // SAFETY: a structure of integers and pointers, for which zero is a value.
        let mut raw: sys::AsyncEvent = unsafe { mem::zeroed() };
        // SAFETY: an open context and room for the answer.
        let result = unsafe { (api.ibv_get_async_event)(self.context(), &raw mut raw) };
        if !check_ready("ibv_get_async_event", result)? {
            return Ok(None);
        }
        // SAFETY: the type of the event says which element it has; an object is not destroyed before its events have
        // been acknowledged, which is done right after.
        let event = unsafe { AsyncEvent::read(&raw) };
        // SAFETY: the event just received, once.
        unsafe { (api.ibv_ack_async_event)(&raw mut raw) };
        if event == AsyncEvent::DeviceFatal {
            self.0.remove();
        }
        Ok(Some(event))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.async_fd()
    }
}

impl AsyncEvent {
    /// # Safety
    /// An event that has not been acknowledged.
    unsafe fn read(raw: &sys::AsyncEvent) -> AsyncEvent {
        // SAFETY: the caller's word; each closure is used for the types whose element it reads.
        let qp_num = || unsafe { (*raw.element.qp).qp_num };
        // SAFETY: as above.
        let cq = || unsafe { (*raw.element.cq).cq_context }.addr() as u64;
        // SAFETY: as above.
        let srq = || unsafe { (*raw.element.srq).srq_context }.addr() as u64;
        // SAFETY: as above.
        let port = || u8::try_from(unsafe { raw.element.port_num }).unwrap_or(0);
        match raw.event_type {
            sys::EVENT_QP_LAST_WQE_REACHED => AsyncEvent::LastWqeReached { qp_num: qp_num() },
            sys::EVENT_QP_FATAL | sys::EVENT_QP_REQ_ERR | sys::EVENT_QP_ACCESS_ERR => {
                AsyncEvent::QueuePairError { qp_num: qp_num() }
            }
            sys::EVENT_COMM_EST => AsyncEvent::CommunicationEstablished { qp_num: qp_num() },
            sys::EVENT_CQ_ERR => AsyncEvent::CompletionQueueError { token: cq() },
            sys::EVENT_SRQ_LIMIT_REACHED => AsyncEvent::SharedReceiveQueueLimit { token: srq() },
            sys::EVENT_SRQ_ERR => AsyncEvent::SharedReceiveQueueError { token: srq() },
            sys::EVENT_PORT_ACTIVE => AsyncEvent::PortActive(port()),
            sys::EVENT_PORT_ERR => AsyncEvent::PortError(port()),
            sys::EVENT_DEVICE_FATAL => AsyncEvent::DeviceFatal,
            sys::EVENT_GID_CHANGE => AsyncEvent::GidChange(port()),
            other => AsyncEvent::Other(other),
        }
    }
}
