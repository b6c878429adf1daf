//! The functions that are called out of line, found in the libraries at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libc::sockaddr;

use super::{
    AsyncEvent, CmEvent, CmId, CompChannel, ConnParam, Context, Cq, Device, DeviceAttr,
    EventChannel, Gid, Mr, Pd, PortAttr, Qp, QpAttr, QpInitAttr, Srq, SrqAttr, SrqInitAttr,
};
use crate::OpenError;

/// Declares the table of functions, and how the libraries' own are found: name, version, signature.
macro_rules! functions {
    ($($library:ident $version:literal $name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The table of functions: the libraries' own, or the software provider's.
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        /// Opens both libraries, which stay open until the process ends, and finds every function.
        pub(crate) fn open() -> Result<Api, OpenError> {
            let verbs = SharedObject::open("libibverbs.so.1")?;
            let cm = SharedObject::open("librdmacm.so.1")?;
            let libraries = Libraries { verbs, cm };
            Ok(Api {
                $($name: {
                    let symbol = libraries.$library.symbol(stringify!($name), $version)?;
                    // SAFETY: a function of this name and version in this library has this signature; its
                    // ABI is frozen with the version. The library is never closed.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(symbol) }
                },)*
            })
        }
    };
}

functions! {
    verbs "IBVERBS_1.1" ibv_get_device_list(*mut c_int) -> *mut *mut Device;
    verbs "IBVERBS_1.1" ibv_free_device_list(*mut *mut Device);
    verbs "IBVERBS_1.1" ibv_get_device_name(*mut Device) -> *const c_char;
    verbs "IBVERBS_1.1" ibv_open_device(*mut Device) -> *mut Context;
    verbs "IBVERBS_1.1" ibv_close_device(*mut Context) -> c_int;
    verbs "IBVERBS_1.1" ibv_query_device(*mut Context, *mut DeviceAttr) -> c_int;
    verbs "IBVERBS_1.1" ibv_query_port(*mut Context, u8, *mut PortAttr) -> c_int;
    verbs "IBVERBS_1.1" ibv_query_gid(*mut Context, u8, c_int, *mut Gid) -> c_int;
    verbs "IBVERBS_1.1" ibv_get_async_event(*mut Context, *mut AsyncEvent) -> c_int;
    verbs "IBVERBS_1.1" ibv_ack_async_event(*mut AsyncEvent);
    verbs "IBVERBS_1.1" ibv_alloc_pd(*mut Context) -> *mut Pd;
    verbs "IBVERBS_1.1" ibv_dealloc_pd(*mut Pd) -> c_int;
    verbs "IBVERBS_1.1" ibv_reg_mr(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    verbs "IBVERBS_1.1" ibv_dereg_mr(*mut Mr) -> c_int;
    verbs "IBVERBS_1.0" ibv_create_comp_channel(*mut Context) -> *mut CompChannel;
    verbs "IBVERBS_1.0" ibv_destroy_comp_channel(*mut CompChannel) -> c_int;
    verbs "IBVERBS_1.1" ibv_create_cq(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    verbs "IBVERBS_1.1" ibv_destroy_cq(*mut Cq) -> c_int;
    verbs "IBVERBS_1.1" ibv_get_cq_event(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    verbs "IBVERBS_1.1" ibv_ack_cq_events(*mut Cq, c_uint);
    verbs "IBVERBS_1.1" ibv_create_srq(*mut Pd, *mut SrqInitAttr) -> *mut Srq;
    verbs "IBVERBS_1.1" ibv_modify_srq(*mut Srq, *mut SrqAttr, c_int) -> c_int;
    verbs "IBVERBS_1.1" ibv_destroy_srq(*mut Srq) -> c_int;
    verbs "IBVERBS_1.1" ibv_create_qp(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    verbs "IBVERBS_1.1" ibv_modify_qp(*mut Qp, *mut QpAttr, c_int) -> c_int;
    verbs "IBVERBS_1.1" ibv_query_qp(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
    verbs "IBVERBS_1.1" ibv_destroy_qp(*mut Qp) -> c_int;
    cm "RDMACM_1.0" rdma_create_event_channel() -> *mut EventChannel;
    cm "RDMACM_1.0" rdma_destroy_event_channel(*mut EventChannel);
    cm "RDMACM_1.0" rdma_create_id(*mut EventChannel, *mut *mut CmId, *mut c_void, c_uint) -> c_int;
    cm "RDMACM_1.0" rdma_destroy_id(*mut CmId) -> c_int;
    cm "RDMACM_1.0" rdma_set_option(*mut CmId, c_int, c_int, *mut c_void, usize) -> c_int;
    cm "RDMACM_1.0" rdma_bind_addr(*mut CmId, *mut sockaddr) -> c_int;
    cm "RDMACM_1.0" rdma_listen(*mut CmId, c_int) -> c_int;
    cm "RDMACM_1.0" rdma_resolve_addr(*mut CmId, *mut sockaddr, *mut sockaddr, c_int) -> c_int;
    cm "RDMACM_1.0" rdma_resolve_route(*mut CmId, c_int) -> c_int;
    cm "RDMACM_1.2" rdma_init_qp_attr(*mut CmId, *mut QpAttr, *mut c_int) -> c_int;
    cm "RDMACM_1.0" rdma_connect(*mut CmId, *mut ConnParam) -> c_int;
    cm "RDMACM_1.2" rdma_establish(*mut CmId) -> c_int;
    cm "RDMACM_1.0" rdma_accept(*mut CmId, *mut ConnParam) -> c_int;
    cm "RDMACM_1.0" rdma_reject(*mut CmId, *const c_void, u8) -> c_int;
    cm "RDMACM_1.0" rdma_disconnect(*mut CmId) -> c_int;
    cm "RDMACM_1.0" rdma_get_cm_event(*mut EventChannel, *mut *mut CmEvent) -> c_int;
    cm "RDMACM_1.0" rdma_ack_cm_event(*mut CmEvent) -> c_int;
}

struct Libraries {
    verbs: SharedObject,
    cm: SharedObject,
}

/// A library that has been opened and stays so.
struct SharedObject {
    name: &'static str,
    handle: *mut c_void,
}

impl SharedObject {
    fn open(name: &'static str) -> Result<SharedObject, OpenError> {
        let missing = |reason| OpenError::Missing { library: name, reason };
        let path = CString::new(name).map_err(|_| missing(String::new()))?;
        // SAFETY: a terminated string. The initialisers of these two libraries set up their own state only.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            Err(missing(last_error()))
        } else {
            Ok(SharedObject { name, handle })
        }
    }

    fn symbol(&self, name: &'static str, version: &'static str) -> Result<*mut c_void, OpenError> {
        let old = || OpenError::TooOld { library: self.name, function: name, version };
        let symbol = CString::new(name).map_err(|_| old())?;
        let version = CString::new(version).map_err(|_| old())?;
        // SAFETY: the handle is that of an open library, both strings are terminated.
        let address = unsafe { libc::dlvsym(self.handle, symbol.as_ptr(), version.as_ptr()) };
        if address.is_null() { Err(old()) } else { Ok(address) }
    }
}

/// What the loader last complained of on this thread.
fn last_error() -> String {
    // SAFETY: dlerror has no precondition.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "unknown reason".to_owned();
    }
    // SAFETY: a string of the loader's, valid until this thread's next call to it.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_in_one_line_with_what_to_install() {
        let error =
            SharedObject::open("libnothing-of-the-kind.so.1").map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("libnothing") && error.contains("install") && !error.contains('\n'),
            "{error}"
        );
        let Ok(library) = SharedObject::open("libc.so.6") else { return };
        let error = library.symbol("ibv_open_device", "IBVERBS_1.1").unwrap_err().to_string();
        assert!(error.contains("ibv_open_device") && error.contains("install"), "{error}");
    }
}
