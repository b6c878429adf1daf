//! Registered files: the ring's sparse table of descriptors.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{Submitter, types};

/// Places in the table; files beyond use their descriptors.
pub(super) const TABLE: u32 = 1024;

/// Which places are free. Shared with every [`RingFile`], so that a handle can give its place back
/// without the ring, which may be busy dropping it.
#[derive(Debug, Default)]
pub(super) struct FileTable {
    free: RefCell<Vec<u32>>,
    /// Given back, still occupied in the kernel.
    released: RefCell<Vec<u32>>,
}

impl FileTable {
    /// An empty table, of no places if files cannot be registered.
    pub(super) fn new(places: u32) -> Rc<FileTable> {
        let places = (0..places).rev().collect();
        Rc::new(FileTable { free: RefCell::new(places), released: RefCell::default() })
    }

    pub(super) fn register(
        self: &Rc<Self>,
        kernel: &Submitter<'_>,
        file: Arc<OwnedFd>,
    ) -> RingFile {
        self.release(kernel);
        let place = self.free.borrow_mut().pop();
        let place = place.filter(|&place| {
            let done = kernel.register_files_update(place, &[file.as_raw_fd()]);
            let done = done.is_ok_and(|count| count == 1);
            if !done {
                self.free.borrow_mut().push(place);
            }
            done
        });
        RingFile { inner: Rc::new(Inner { place, file, table: Rc::clone(self) }) }
    }

    /// Frees in the kernel the places that were given back.
    pub(super) fn release(&self, kernel: &Submitter<'_>) {
        if self.released.borrow().is_empty() {
            return;
        }
        for place in self.released.borrow_mut().drain(..) {
            // Emptying a place cannot fail but for a closed ring, which has no table any more.
            let _ = kernel.register_files_update(place, &[-1]);
            self.free.borrow_mut().push(place);
        }
    }
}

struct Inner {
    place: Option<u32>,
    file: Arc<OwnedFd>,
    table: Rc<FileTable>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.table.released.borrow_mut().push(place);
        }
    }
}

/// A file that the ring knows. Clones are the same registration; it ends with the last of them.
#[derive(Clone)]
pub struct RingFile {
    inner: Rc<Inner>,
}

impl RingFile {
    /// How a submission names the file on the ring with this table: the number, and whether it is a
    /// place in the table.
    pub(super) fn target(&self, table: &Rc<FileTable>) -> (types::Fd, bool) {
        let own = Rc::ptr_eq(&self.inner.table, table);
        let place = self.inner.place.filter(|_| own).and_then(|place| i32::try_from(place).ok());
        match place {
            Some(place) => (types::Fd(place), true),
            None => (types::Fd(self.inner.file.as_raw_fd()), false),
        }
    }

    /// Whether it has a place in the ring's table.
    pub fn is_registered(&self) -> bool {
        self.inner.place.is_some()
    }
}

impl AsFd for RingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl fmt::Debug for RingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingFile")
            .field("fd", &self.inner.file.as_raw_fd())
            .field("place", &self.inner.place)
            .finish()
    }
}
