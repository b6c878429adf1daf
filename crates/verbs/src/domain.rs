//! The protection domain: what belongs together, and may not be reached from elsewhere.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::last;
use crate::{Device, VerbsError, sys};

struct Allocated {
    pd: NonNull<sys::Pd>,
    device: Device,
}

// SAFETY: an address that is only handed to the verbs, which may be called from any thread.
unsafe impl Send for Allocated {}
// SAFETY: as above.
unsafe impl Sync for Allocated {}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: our own domain; every region and queue of it held this, so none is left.
        unsafe { (self.device.library().api().ibv_dealloc_pd)(self.pd.as_ptr()) };
    }
}

/// A handle to a protection domain; clones refer to the same.
#[derive(Clone)]
pub struct Domain(Arc<Allocated>);

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("device", self.device()).finish_non_exhaustive()
    }
}

impl Domain {
    /// A new domain of a device.
    ///
    /// # Errors
    /// If the device has none left.
    pub fn new(device: &Device) -> Result<Domain, VerbsError> {
        // SAFETY: an open context.
        let pd = unsafe { (device.library().api().ibv_alloc_pd)(device.context()) };
        let pd = NonNull::new(pd).ok_or_else(|| last("ibv_alloc_pd"))?;
        Ok(Domain(Arc::new(Allocated { pd, device: device.clone() })))
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    pub(crate) fn pd(&self) -> *mut sys::Pd {
        self.0.pd.as_ptr()
    }
}
