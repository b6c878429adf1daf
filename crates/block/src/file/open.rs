//! Opening a medium: find it or make it, lock it, and ask what it can do. All of it may block.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{
    FileType, FlockOperation, Mode, OFlags, Stat, fallocate, flock, fstat, fsync, ftruncate,
    ioctl_blksszget, major, minor, stat,
};
use rustix::io::Errno;

use super::direct::{Alignment, go_direct};
use super::durability::Durability;
use super::medium::{Medium, PUNCH, Sort, Zeroing, size_of};
use super::{Direct, FileOptions};
use crate::disk::DiskFacts;
use crate::geometry::SharedGeometry;
use crate::lock;
use crate::{BlockError, Deallocation, Properties};

/// The page of the page cache, and the usual block of file systems.
const PAGE: u32 = 4096;

pub(super) fn open(options: &FileOptions) -> Result<Medium, BlockError> {
    let (name, path) = (&options.name, &options.path);
    let (file, facts) = lock::wait_for(name, path, options.lock_wait, || try_open_locked(options))?;
    let sort = sort(options, &facts)?;
    if sort == Sort::Regular {
        fill_out(options, &file, &facts)?;
    }
    let alignment = direct(options, &file)?;
    let logical = match sort {
        Sort::Regular => 512,
        Sort::BlockDevice => options.system("ask the block size of", ioctl_blksszget(&file))?,
    };
    let smallest = alignment.map_or(512, |alignment| alignment.offset).max(logical).max(512);
    let block_size = block_size(options, smallest)?;
    let bytes = options.system("ask the size of", size_of(&file, sort))?;
    if bytes < u64::from(block_size) {
        let problem = format!(
            "{} has {bytes} bytes, less than one block of {block_size}: make it larger, or choose another path",
            options.path.display()
        );
        return options.unsuitable(problem);
    }
    say_what_is_not_served(options, bytes, block_size);
    let disk = match sort {
        Sort::Regular => DiskFacts::default(),
        Sort::BlockDevice => DiskFacts::read(major(facts.st_rdev), minor(facts.st_rdev)),
    };
    let punch = !options.read_only
        && match sort {
            // Beyond the end there is nothing to lose, and the answer is the same.
            Sort::Regular => fallocate(&file, PUNCH, bytes.next_multiple_of(1 << 20), 4096).is_ok(),
            Sort::BlockDevice => disk.write_zeroes,
        };
    let in_blocks = |bytes: u32| (bytes / block_size).max(1);
    let unit = u32::try_from(facts.st_blksize).unwrap_or(PAGE);
    let granularity = match sort {
        Sort::Regular => unit,
        Sort::BlockDevice => disk.discard_granularity.unwrap_or(logical),
    };
    let properties = Properties {
        read_only: options.read_only,
        volatile_write_cache: match sort {
            Sort::BlockDevice if alignment.is_some() => disk.volatile_cache.unwrap_or(true),
            _ => true,
        },
        deallocation: punch
            .then(|| Deallocation { reads_zero: true, granularity: in_blocks(granularity) }),
        memory_alignment: alignment.map_or(1, |alignment| alignment.memory),
        optimal_blocks: in_blocks(disk.optimal_io.unwrap_or(PAGE)),
        description: description(sort, alignment),
    };
    tracing::info!(
        "device {}: {} {}",
        options.name,
        options.path.display(),
        properties.description
    );
    Ok(Medium {
        name: options.name.clone(),
        path: options.path.clone(),
        file: Arc::new(file),
        sort,
        properties,
        durability: Durability::new(alignment.is_none()),
        geometry: SharedGeometry::new(block_size, bytes),
        zeroing: Zeroing::new(punch),
        removed: AtomicBool::new(false),
    })
}

impl FileOptions {
    /// The error that names this device and its path.
    fn system<T>(
        &self,
        action: &'static str,
        result: rustix::io::Result<T>,
    ) -> Result<T, BlockError> {
        result.map_err(|errno| BlockError::System {
            device: self.name.clone(),
            action,
            path: self.path.display().to_string(),
            source: errno.into(),
        })
    }

    fn unsuitable<T>(&self, problem: String) -> Result<T, BlockError> {
        Err(BlockError::Unsuitable { device: self.name.clone(), problem })
    }
}

/// `None`: somebody else has it.
fn try_open_locked(options: &FileOptions) -> Result<Option<(OwnedFd, Stat)>, BlockError> {
    let path = options.path.as_path();
    // Looked at before it is opened: opening a FIFO would block, opening a tape would move it.
    let create = match stat(path) {
        Ok(facts) => {
            sort(options, &facts)?;
            false
        }
        Err(Errno::NOENT) if options.create_size.is_some() && !options.read_only => true,
        Err(errno) => return options.system("find", Err(errno)),
    };
    let is_disk = !create
        && stat(path)
            .is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::BlockDevice);
    let mut flags = OFlags::CLOEXEC;
    flags |= if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if create {
        make_directory(options, path)?;
        flags |= OFlags::CREATE;
    }
    if is_disk && !options.read_only {
        flags |= OFlags::EXCL;
    }
    let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::BUSY) => return Ok(None),
        result => options.system("open", result)?,
    };
    let facts = options.system("look at", fstat(&file))?;
    if sort(options, &facts)? == Sort::BlockDevice {
        return Ok(Some((file, facts)));
    }
    let lock = if options.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(&file, lock) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        result => options.system("lock", result)?,
    }
    // While we waited for it, the file may have been replaced by another of the same name.
    let same = stat(path).is_ok_and(|now| (now.st_dev, now.st_ino) == (facts.st_dev, facts.st_ino));
    Ok(same.then_some((file, facts)))
}

fn sort(options: &FileOptions, facts: &Stat) -> Result<Sort, BlockError> {
    match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile => Ok(Sort::Regular),
        FileType::BlockDevice => Ok(Sort::BlockDevice),
        other => {
            let path = options.path.display();
            let what = match other {
                FileType::Directory => "a directory",
                FileType::CharacterDevice => "a character device",
                FileType::Fifo => "a FIFO",
                FileType::Socket => "a socket",
                _ => "something else",
            };
            options.unsuitable(format!(
                "{path} is {what}, neither a regular file nor a block device: choose another path"
            ))
        }
    }
}

fn make_directory(options: &FileOptions, path: &Path) -> Result<(), BlockError> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::create_dir_all(parent).map_err(|source| BlockError::System {
        device: options.name.clone(),
        action: "create the directory of",
        path: path.display().to_string(),
        source,
    })
}

/// What a user who looks at the configuration, or at the file, would not expect.
fn say_what_is_not_served(options: &FileOptions, bytes: u64, block_size: u32) {
    let (name, path) = (&options.name, options.path.display());
    if let Some(size) = options.create_size.filter(|size| *size != bytes) {
        tracing::warn!(
            "device {name}: {path} has {bytes} bytes already, not {size}: a size is for a file that has to be made"
        );
    }
    let rest = bytes % u64::from(block_size);
    if rest != 0 {
        tracing::warn!(
            "device {name}: the last {rest} bytes of {path} fill no block of {block_size} and are not served"
        );
    }
}

/// Makes a file that is new, or was left empty by a start that was cut short, as long as it is to
/// be, and its name and size durable.
fn fill_out(options: &FileOptions, file: &OwnedFd, facts: &Stat) -> Result<(), BlockError> {
    let Some(size) = options.create_size.filter(|_| facts.st_size == 0 && !options.read_only)
    else {
        return Ok(());
    };
    if let Err(errno) = ftruncate(file, size) {
        // Empty, it would only be in the way of the next attempt.
        let _ = rustix::fs::unlink(&options.path);
        return options.system("set the size of", Err(errno));
    }
    options.system("make durable", fsync(file))?;
    let parent = match options.path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let durable = File::open(parent).and_then(|directory| directory.sync_all());
    durable.map_err(|source| BlockError::System {
        device: options.name.clone(),
        action: "make durable the directory of",
        path: options.path.display().to_string(),
        source,
    })
}

/// Sets direct I/O as the options want; what it needs, `None` if the page cache is used.
fn direct(options: &FileOptions, file: &OwnedFd) -> Result<Option<Alignment>, BlockError> {
    if options.direct == Direct::Never {
        return Ok(None);
    }
    let alignment = options.system("set direct I/O on", go_direct(file))?;
    if alignment.is_none() && options.direct == Direct::Always {
        let path = options.path.display();
        return options.unsuitable(format!(
            "the file system of {path} has no direct I/O: allow the page cache, or choose another path"
        ));
    }
    Ok(alignment)
}

/// The block size to use, which the medium must be able to address.
fn block_size(options: &FileOptions, smallest: u32) -> Result<u32, BlockError> {
    let path = options.path.display();
    if smallest > 4096 {
        return options.unsuitable(format!(
            "{path} can only be accessed in units of {smallest} bytes, and blocks have 512 or 4096: \
             choose another path, or the page cache"
        ));
    }
    match options.block_size {
        None => Ok(if smallest > 512 { 4096 } else { 512 }),
        Some(wanted) if !matches!(wanted, 512 | 4096) => {
            options.unsuitable(format!("block size {wanted} is not supported: use 512 or 4096"))
        }
        Some(wanted) if wanted < smallest => options.unsuitable(format!(
            "block size {wanted} is below the {smallest} bytes in which {path} is accessed: use 4096"
        )),
        Some(wanted) => Ok(wanted),
    }
}

fn description(sort: Sort, alignment: Option<Alignment>) -> String {
    let sort = match sort {
        Sort::Regular => "file",
        Sort::BlockDevice => "block device",
    };
    match alignment {
        Some(Alignment { offset, .. }) => format!("{sort}, direct I/O aligned to {offset} bytes"),
        None => format!("{sort}, through the page cache"),
    }
}
