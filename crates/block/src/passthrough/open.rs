//! Opening a namespace: find it, lock it, and ask what it can do. All of it may block.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};

use nvme::admin::Identify;
use nvme::identify::{Cns, Csi};
use reactor::ring::Features;
use reactor::ring::nvme::{Namespace, NamespaceError, PINNED, is_generic_device};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, stat};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::PassthroughOptions;
use super::medium::Medium;
use crate::disk::DiskFacts;
use crate::geometry::SharedGeometry;
use crate::namespace::{Identified, Limits, Sizes};
use crate::{BlockError, lock};

/// The page that kernels count pieces of memory in, and the least that controllers count MDTS in.
const PAGE: u32 = 4096;

/// A namespace's block device, as sysfs names it.
struct Disk {
    node: PathBuf,
    major: u32,
    minor: u32,
    nsid: u32,
}

pub(super) fn is_meant_by(path: &Path) -> bool {
    stat(path).is_ok_and(|facts| is_namespace(&facts))
}

fn is_namespace(facts: &Stat) -> bool {
    FileType::from_raw_mode(facts.st_mode) == FileType::CharacterDevice
        && is_generic_device(facts.st_rdev)
}

pub(super) fn open(options: &PassthroughOptions) -> Result<Medium, BlockError> {
    // Looked at before it is opened: opening a tape would move it.
    let facts = options.system("find", &options.path, stat(&options.path))?;
    if !is_namespace(&facts) {
        return options.unsuitable("no NVMe generic character device");
    }
    let (device_major, device_minor) = (major(facts.st_rdev), minor(facts.st_rdev));
    let entry = PathBuf::from(format!("/sys/dev/char/{device_major}:{device_minor}"));
    let Some(disk) = find_disk(&entry) else {
        return options
            .unsuitable("an NVMe generic character device without a block device beside it, which would be locked");
    };
    let claim = if options.read_only { None } else { Some(Arc::new(claim(options, &disk)?)) };
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let file = rustix::fs::open(&options.path, access | OFlags::CLOEXEC, Mode::empty());
    let file = options.system("open", &options.path, file)?;
    // It may have become another one meanwhile.
    let same = fstat(&file).is_ok_and(|now| now.st_rdev == facts.st_rdev);
    if !same {
        return options.unsuitable("another device than a moment ago");
    }
    let (namespace, said) = options.asked(Namespace::new(file))?;
    if namespace.nsid() != disk.nsid {
        return options.unsuitable("another namespace than the block device beside it");
    }
    let block_size = namespace.block_size();
    if let Some(wanted) = options.block_size.filter(|wanted| *wanted != block_size) {
        let problem = format!(
            "block size {wanted} is not that of {}, which is formatted with {block_size}",
            options.path.display()
        );
        return Err(BlockError::Unsuitable { device: options.name.clone(), problem });
    }
    let identified = identify(options, &namespace, said)?;
    if identified.namespace.nsze.get() == 0 {
        return options.unsuitable("a namespace without any blocks");
    }
    let facts = DiskFacts::read(disk.major, disk.minor);
    let features = namespace.try_commands(facts.polls);
    if !features.contains(Features::COMMANDS) {
        tracing::warn!(
            "device {}: the kernel does not take NVMe commands by io_uring; they are sent by worker threads instead, \
             which is slower",
            options.name
        );
    }
    let description = format!(
        "NVMe namespace {} of \"{}\", past the kernel's block layer",
        namespace.nsid(),
        text(&identified.controller.mn)
    );
    let properties = identified.properties(options.read_only, description);
    tracing::info!(
        "device {}: {} is {}",
        options.name,
        options.path.display(),
        properties.description
    );
    Ok(Medium {
        name: options.name.clone(),
        path: options.path.clone(),
        claim,
        entry,
        limits: Limits::new(&identified, sizes(&facts)),
        geometry: SharedGeometry::new(block_size, identified.bytes()),
        identity: identified.identity(),
        namespace,
        identified,
        properties,
        features,
        removed: AtomicBool::new(false),
        said: Once::new(),
    })
}

impl PassthroughOptions {
    /// The error that names this device and a path.
    fn system<T>(
        &self,
        action: &'static str,
        path: &Path,
        result: rustix::io::Result<T>,
    ) -> Result<T, BlockError> {
        result.map_err(|errno| BlockError::System {
            device: self.name.clone(),
            action,
            path: path.display().to_string(),
            source: errno.into(),
        })
    }

    fn unsuitable<T>(&self, what: &str) -> Result<T, BlockError> {
        let problem = format!("{} is {what}: choose another path", self.path.display());
        Err(BlockError::Unsuitable { device: self.name.clone(), problem })
    }

    fn asked<T>(&self, result: Result<T, NamespaceError>) -> Result<T, BlockError> {
        match result {
            Ok(answer) => Ok(answer),
            Err(NamespaceError::System(errno)) => self.system("identify", &self.path, Err(errno)),
            Err(error) => {
                let problem = format!("{}: {error}", self.path.display());
                Err(BlockError::Unsuitable { device: self.name.clone(), problem })
            }
        }
    }
}

/// The number of a namespace in the name of its generic device (`ng`) or block device (`nvme`). It is not the namespace's
/// identifier, but the same in both; that of the controller may differ.
fn number<'a>(name: &'a str, device: &str) -> Option<&'a str> {
    let (controller, namespace) = name.strip_prefix(device)?.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(controller) && is_number(namespace)).then_some(namespace)
}

/// The block device beside a generic device's entry in sysfs.
fn find_disk(entry: &Path) -> Option<Disk> {
    let entry = fs::canonicalize(entry).ok()?;
    let wanted = number(entry.file_name()?.to_str()?, "ng")?;
    let mut beside = fs::read_dir(entry.parent()?).ok()?.flatten();
    let disk = beside.find(|beside| {
        let name = beside.file_name();
        name.to_str().and_then(|name| number(name, "nvme")) == Some(wanted)
    })?;
    let item = |name| fs::read_to_string(disk.path().join(name)).ok();
    let device = item("dev")?;
    let (major, minor) = device.trim().split_once(':')?;
    Some(Disk {
        node: Path::new("/dev").join(disk.file_name()),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        nsid: item("nsid")?.trim().parse().ok()?,
    })
}

/// Opens the block device so that nobody else has it, and nobody mounts it.
fn claim(options: &PassthroughOptions, disk: &Disk) -> Result<OwnedFd, BlockError> {
    lock::wait_for(&options.name, &disk.node, options.lock_wait, || {
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&disk.node, flags, Mode::empty()) {
            Err(Errno::BUSY) => return Ok(None),
            result => options.system("lock", &disk.node, result)?,
        };
        let facts = options.system("look at", &disk.node, fstat(&file))?;
        let same = (major(facts.st_rdev), minor(facts.st_rdev)) == (disk.major, disk.minor);
        let block = FileType::from_raw_mode(facts.st_mode) == FileType::BlockDevice;
        options.system(
            "lock",
            &disk.node,
            if same && block { Ok(()) } else { Err(Errno::NODEV) },
        )?;
        Ok(Some(file))
    })
}

fn identify(
    options: &PassthroughOptions,
    namespace: &Namespace,
    said: Box<nvme::identify::IdentifyNamespace>,
) -> Result<Identified, BlockError> {
    let controller = options.asked(namespace.ask(&Identify::new(Cns::Controller), 0))?;
    let own = Identify { csi: Csi::Nvm.code(), ..Identify::new(Cns::CommandSetController) };
    let names = Identify::new(Cns::NamespaceDescriptors);
    Ok(Identified {
        controller,
        nvm: optional(options, namespace.ask(&own, 0))?,
        namespace: said,
        descriptors: optional(options, namespace.ask(&names, namespace.nsid()))?,
    })
}

/// Data that older controllers do not have.
fn optional<T: FromBytes + IntoBytes>(
    options: &PassthroughOptions,
    answer: Result<Box<T>, NamespaceError>,
) -> Result<Box<T>, BlockError> {
    match answer {
        Err(NamespaceError::Status(_)) => Ok(Box::new(T::new_zeroed())),
        answer => options.asked(answer),
    }
}

/// What the kernel allows, and what can be pinned. Memory that is not in one piece takes a segment per page, and one more
/// if it begins inside one.
fn sizes(facts: &DiskFacts) -> Sizes {
    let pages = facts.max_segments.map(|segments| segments.saturating_sub(1));
    let pieces = pages.map(|pages| pages.saturating_mul(u64::from(PAGE)));
    let least = [facts.max_bytes, pieces].into_iter().flatten().min();
    let least = least.unwrap_or(u64::from(PAGE));
    Sizes { page: PAGE, transfer: least.min(PINNED as u64) }
}

/// A name as controllers have them, padded with spaces.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_generic_devices() {
        assert_eq!(number("ng0n1", "ng"), Some("1"));
        assert_eq!(number("nvme12n345", "nvme"), Some("345"));
        for name in ["nvme0n1", "ng", "ngn", "ng0", "ng0n", "ngn1", "ng0n1p1", "ng0c0n1", "ng-1n1"]
        {
            assert_eq!(number(name, "ng"), None, "{name}");
        }
        assert_eq!(number("nvme0c1n2", "nvme"), None, "one path of several");
        for path in ["/dev/null", "/dev/tty", "/dev/ng0n1/x", "/", "", "ng0n1"] {
            assert!(!is_meant_by(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn the_kernel_allows_what_its_queue_says() {
        let facts = |max_bytes, max_segments| {
            sizes(&DiskFacts { max_bytes, max_segments, ..DiskFacts::default() }).transfer
        };
        assert_eq!(facts(Some(512 << 10), Some(33)), 32 << 12);
        assert_eq!(facts(Some(2 << 20), Some(512)), 256 << 10, "what is pinned in one piece");
        assert_eq!(facts(Some(128 << 10), Some(127)), 128 << 10);
        assert_eq!(facts(None, Some(0)), 0);
        assert_eq!(facts(None, None), 4096, "a page is always allowed");
    }
}
