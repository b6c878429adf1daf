//! NVMe controllers as the system sees them: which there are, what is on them, whether anything uses it, and which driver has them.
//!
//! ```text
//!   sysfs  -> Controller   address, IOMMU group, driver, model, namespaces     controller
//!   /proc  -> Usage        what is mounted, what is swap, who has what open    usage
//!   disk   -> Content      the marks of partition tables, file systems, ...    signature
//!             all three -> Status: what `tidegate devices` shows and what decides whether a controller is handed over     status
//!                          bind, unbind                                                                                   binding
//! ```
//!
//! Everything is read below one directory, `/` unless a test says otherwise, and all of it on threads that may block.
//!
//! # What is never done
//! A controller whose namespaces are in use is not taken from the kernel, whatever the caller says. That holds at the moment of taking it:
//! every namespace is claimed (opened with `O_EXCL`) before it is looked at for the last time, and stays so until the driver is gone. Nothing can be
//! mounted, made swap or put under a device mapper meanwhile.
//!
//! # Nothing blocks for ever
//! A device that is broken can hold up whoever reads it or writes to its attributes. Whatever touches one is done on a thread of its own
//! and given up after a time.
//!
//! Rejected: asking `udev` or `libblkid` (programs and libraries that have to be there), and `new_id` of `vfio-pci` in the place of
//! `driver_override` (it takes every controller of that model, now and later).

mod address;
mod binding;
mod controller;
#[cfg(test)]
mod machine;
mod module;
mod signature;
mod status;
mod usage;

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

pub use self::address::{Address, NoAddress};
pub use self::binding::{BindError, Moved};
pub use self::controller::{Companion, Controller, KERNEL_DRIVER, Namespace, VFIO_DRIVER};
pub use self::status::{Content, Status};
pub use self::usage::{Process, Usage, Use};

/// Longest wait for a disk that is looked at.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// Longest wait for the kernel to do what an attribute was written for. The kernel's own driver may take a minute over a controller that does not
/// answer any more.
const ACT_LIMIT: Duration = Duration::from_mins(2);

/// How long a device may be open in a process before that counts: udev looks at each disk that somebody has just written to.
const PASSING: Duration = Duration::from_secs(5);

/// A system, seen from its root directory.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
    kernel: Arc<dyn Kernel>,
    passing: Duration,
}

/// What is asked of the kernel, but for reading. Tests have one of their own.
trait Kernel: Send + Sync + Debug {
    /// Writes an attribute.
    fn set(&self, attribute: &Path, value: &str) -> io::Result<()>;

    /// Opens a device for reading, as the only one who has it.
    fn claim(&self, device: &Path) -> io::Result<File>;
}

/// The one that there is.
#[derive(Debug)]
struct ThisKernel;

impl Kernel for ThisKernel {
    fn set(&self, attribute: &Path, value: &str) -> io::Result<()> {
        // Neither made nor cut: an attribute is there or it is not.
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(attribute, flags, Mode::empty())?;
        // In one piece, as attributes have to be written.
        let written = rustix::io::write(&file, value.as_bytes())?;
        if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn claim(&self, device: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(rustix::fs::open(device, flags, Mode::empty())?.into())
    }
}

impl System {
    /// The one below this directory; this machine's is below `/`.
    pub fn new(root: impl Into<PathBuf>) -> System {
        System { root: root.into(), kernel: Arc::new(ThisKernel), passing: PASSING }
    }

    /// Where something is that is at this absolute path on the system.
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn set(&self, attribute: PathBuf, value: String) -> io::Result<()> {
        let kernel = Arc::clone(&self.kernel);
        within(ACT_LIMIT, move || kernel.set(&attribute, &value))
    }

    fn claim(&self, device: PathBuf) -> io::Result<File> {
        let kernel = Arc::clone(&self.kernel);
        within(LOOK_LIMIT, move || kernel.claim(&device))
    }
}

/// Does a job on a thread of its own and gives it up after `limit`.
fn within<T: Send + 'static>(
    limit: Duration,
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = mpsc::sync_channel(1);
    thread::Builder::new().name("device".to_owned()).spawn(move || done.send(job()))?;
    result.recv_timeout(limit).unwrap_or_else(|_| {
        let problem = format!("nothing has happened for {} seconds", limit.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, problem))
    })
}

/// The text of an attribute, without what surrounds it; `None` if there is none.
fn attribute(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The names in a directory, in order; none if there is no such directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_by_key(|name| natural(name));
    names
}

/// A key by which `nvme0n10` comes after `nvme0n2`.
fn natural(name: &str) -> (usize, String) {
    (name.len(), name.to_owned())
}

/// Where a link leads to, by its last name.
fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}
