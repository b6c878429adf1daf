//! Thread domains: what the headers' inline functions call lies before the context, in a table that grows downwards.

#![allow(
    missing_docs,
    missing_debug_implementations,
    reason = "the headers of rdma-core describe them"
)]

use std::ffi::{c_int, c_void};
use std::mem::offset_of;

use super::{Context, Pd};

/// Whole.
#[repr(C)]
pub struct Td {
    pub context: *mut Context,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct TdInitAttr {
    pub comp_mask: u32,
}

#[repr(C)]
pub struct ParentDomainInitAttr {
    pub pd: *mut Pd,
    pub td: *mut Td,
    pub comp_mask: u32,
    /// Functions that are looked at only if the mask says so.
    pub alloc: *mut c_void,
    pub free: *mut c_void,
    pub pd_context: *mut c_void,
}

pub type AllocParentDomain =
    unsafe extern "C" fn(*mut Context, *mut ParentDomainInitAttr) -> *mut Pd;
pub type DeallocTd = unsafe extern "C" fn(*mut Td) -> c_int;
pub type AllocTd = unsafe extern "C" fn(*mut Context, *mut TdInitAttr) -> *mut Td;

/// From the first field used to the context, with which it ends.
#[repr(C)]
pub struct VerbsContext {
    pub alloc_parent_domain: Option<AllocParentDomain>,
    pub dealloc_td: Option<DeallocTd>,
    pub alloc_td: Option<AllocTd>,
    pub after_alloc_td: [usize; 22],
    /// Bytes of the whole, the context included, as the library has it.
    pub sz: usize,
    pub context: Context,
}

/// What a context's `abi_compat` is if there is a table before it.
pub const ABI_IS_EXTENDED: usize = usize::MAX;

/// The functions for thread domains.
#[derive(Debug, Clone, Copy)]
pub struct ThreadDomains {
    pub alloc_parent_domain: AllocParentDomain,
    pub dealloc_td: DeallocTd,
    pub alloc_td: AllocTd,
}

/// A context's functions for thread domains; none if its library has no place for them. (Those of a driver that cannot do it are
/// there, and say so.)
///
/// # Safety
/// An open context, which the library or the software provider has made.
pub unsafe fn thread_domains(context: *mut Context) -> Option<ThreadDomains> {
    // SAFETY: the caller's word. The table is there if the context says so, and has the fields that its size reaches down to.
    unsafe {
        if (*context).abi_compat.addr() != ABI_IS_EXTENDED {
            return None;
        }
        let size =
            context.byte_sub(offset_of!(VerbsContext, context) - offset_of!(VerbsContext, sz));
        if *size.cast::<usize>() < size_of::<VerbsContext>() {
            return None;
        }
        let table = context.byte_sub(offset_of!(VerbsContext, context)).cast::<VerbsContext>();
        Some(ThreadDomains {
            alloc_parent_domain: (*table).alloc_parent_domain?,
            dealloc_td: (*table).dealloc_td?,
            alloc_td: (*table).alloc_td?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::ptr;

    use super::*;

    unsafe extern "C" fn join(_: *mut Context, _: *mut ParentDomainInitAttr) -> *mut Pd {
        ptr::null_mut()
    }

    unsafe extern "C" fn free(_: *mut Td) -> c_int {
        0
    }

    unsafe extern "C" fn make(_: *mut Context, _: *mut TdInitAttr) -> *mut Td {
        ptr::null_mut()
    }

    #[test]
    fn functions_are_taken_from_a_table_that_is_there_and_large_enough() {
        let found = |change: fn(&mut VerbsContext)| {
            // SAFETY: addresses, numbers and no functions, for all of which zero is a value.
            let mut table: Box<VerbsContext> = unsafe { Box::new(std::mem::zeroed()) };
            table.context.abi_compat = ptr::without_provenance_mut(ABI_IS_EXTENDED);
            table.sz = size_of::<VerbsContext>();
            table.alloc_parent_domain = Some(join);
            table.dealloc_td = Some(free);
            table.alloc_td = Some(make);
            change(&mut table);
            let whole = Box::into_raw(table);
            // SAFETY: the context of a table as the library makes them, which is freed after its last use.
            unsafe {
                let found = thread_domains(&raw mut (*whole).context).is_some();
                drop(Box::from_raw(whole));
                found
            }
        };
        assert!(found(|_| ()));
        assert!(found(|table| table.sz += 8), "a newer library");
        assert!(!found(|table| table.sz -= 8), "an older library");
        assert!(!found(|table| table.context.abi_compat = ptr::null_mut()), "a very old one");
        assert!(!found(|table| table.alloc_td = None));
        assert!(!found(|table| table.dealloc_td = None));
        assert!(!found(|table| table.alloc_parent_domain = None));
    }
}
