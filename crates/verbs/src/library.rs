//! The entrance: the two libraries, or the software provider in their place.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use rustix::io::{DupFlags, dup3};

use crate::device::{Device, Opened};
use crate::software::Shared;
use crate::sys::{self, Api};
use crate::{OpenError, VerbsError, error};

/// A device by its name, or why it cannot be opened.
pub type NamedDevice = (String, Result<Device, VerbsError>);

pub(crate) struct Root {
    pub(crate) api: &'static Api,
    /// In the place of the libraries' entrances, which take nothing that could lead to it.
    pub(crate) software: Option<Arc<Shared>>,
    devices: Mutex<Vec<Weak<Opened>>>,
    tokens: AtomicU64,
}

/// A handle to libibverbs and librdmacm; clones refer to the same.
#[derive(Clone)]
pub struct Library(pub(crate) Arc<Root>);

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("software", &self.0.software.is_some())
            .finish_non_exhaustive()
    }
}

impl Library {
    /// Opens the machine's libraries.
    ///
    /// # Errors
    /// [`OpenError`], whose one line says what to install.
    pub fn open() -> Result<Library, OpenError> {
        static API: OnceLock<Api> = OnceLock::new();
        let api = if let Some(api) = API.get() {
            api
        } else {
            let opened = sys::open()?;
            API.get_or_init(|| opened)
        };
        Ok(Library::new(api, None))
    }

    pub(crate) fn new(api: &'static Api, software: Option<Arc<Shared>>) -> Library {
        let (devices, tokens) = (Mutex::new(Vec::new()), AtomicU64::new(1));
        Library(Arc::new(Root { api, software, devices, tokens }))
    }

    pub(crate) fn api(&self) -> &Api {
        self.0.api
    }

    pub(crate) fn token(&self) -> u64 {
        self.0.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Opens every device there is. One that is open already is the same [`Device`], unless it was removed meanwhile.
    ///
    /// # Errors
    /// If the list cannot be had, or some device not be opened. No device at all is an empty list.
    pub fn devices(&self) -> Result<Vec<Device>, VerbsError> {
        self.each_device()?.into_iter().map(|(_, device)| device).collect()
    }

    /// The same, each device by its name and on its own: that one cannot be opened says nothing of the others.
    ///
    /// # Errors
    /// If the list cannot be had.
    pub fn each_device(&self) -> Result<Vec<NamedDevice>, VerbsError> {
        let open = |device| (Opened::name_of(self, device), self.device(device));
        if let Some(software) = &self.0.software {
            return Ok(software.device_list().into_iter().map(open).collect());
        }
        let mut count = 0;
        // SAFETY: `count` is written to; the list is freed below.
        let list = unsafe { (self.api().ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            let error = error::last("ibv_get_device_list");
            // No kernel module for RDMA, hence no device.
            return if error.raw_os_error() == Some(libc::ENOSYS) {
                Ok(Vec::new())
            } else {
                Err(error)
            };
        }
        let count = usize::try_from(count).unwrap_or_default();
        // SAFETY: the list has `count` entries.
        let devices = (0..count).map(|index| open(unsafe { *list.add(index) })).collect();
        // SAFETY: the list just made; the devices that were opened stay.
        unsafe { (self.api().ibv_free_device_list)(list) };
        Ok(devices)
    }

    /// The device of this description, opened unless it is.
    pub(crate) fn device(&self, device: *mut sys::Device) -> Result<Device, VerbsError> {
        let name = Opened::name_of(self, device);
        // Dropped after the lock is released: whoever is the last closes the device.
        let known: Vec<_>;
        let mut devices = self.0.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|known| known.strong_count() > 0);
        known = devices.iter().filter_map(Weak::upgrade).collect();
        if known.iter().any(|known| known.is_of(device) && known.is_removed()) {
            // Opened once more, nobody would ever be told again that it is to be closed.
            let source = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(VerbsError::Call { call: "ibv_open_device", source });
        }
        let open = known.iter().find(|known| known.is(&name));
        let opened = if let Some(known) = open {
            Arc::clone(known)
        } else {
            let opened = Arc::new(Opened::open(self.clone(), device, name)?);
            devices.push(Arc::downgrade(&opened));
            opened
        };
        Ok(Device(opened))
    }

    /// rdma_cm has said, of an identifier that refers to this context, that its device goes.
    ///
    /// # Safety
    /// A context of librdmacm's own, of an identifier that is not destroyed meanwhile; or null.
    pub(crate) unsafe fn device_removed(&self, context: *mut sys::Context) {
        if context.is_null() {
            return;
        }
        // SAFETY: the caller's word.
        let device = unsafe { (*context).device };
        let devices = self.0.devices.lock().unwrap_or_else(PoisonError::into_inner);
        for known in devices.iter().filter_map(Weak::upgrade).filter(|known| known.is_of(device)) {
            known.remove();
        }
        if self.0.software.is_none() {
            // SAFETY: the caller's word.
            unsafe { vacate(context) };
        }
    }
}

/// Closes a device that librdmacm has opened for itself. It keeps each for as long as the process lives, unless another one comes
/// that it does not know: a kernel that waits until a removed device is closed would wait in vain. So its files are exchanged
/// for one that takes everything and does nothing: what librdmacm says to them when it frees the rest is said to nobody.
///
/// # Safety
/// A context of librdmacm's own that is open and stays so meanwhile; nobody needs its device any more.
unsafe fn vacate(context: *mut sys::Context) {
    // SAFETY: the caller's word.
    let files = unsafe { [(*context).cmd_fd, (*context).async_fd] };
    // Without it, the device stays open: the kernel waits for the end of the process.
    let Ok(nobody) = File::options().read(true).write(true).open("/dev/null") else { return };
    for file in files.into_iter().filter(|file| *file >= 0) {
        // SAFETY: a descriptor of the context's, which is not closed here. Nothing waits for it. What a driver has mapped from it
        // stays mapped: the kernel revokes that with the device.
        let mut file = unsafe { ManuallyDrop::new(OwnedFd::from_raw_fd(file)) };
        let _ = dup3(&nobody, &mut file, DupFlags::CLOEXEC);
    }
}
