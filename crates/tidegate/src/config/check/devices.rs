//! Checks of `[devices.NAME]`: what each is to be, and that no file is served twice.

mod layers;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf, absolute};

use block::passthrough::PassthroughDevice;
use toml::Spanned;

use super::{Check, machine_memory};
use crate::config::{Device, DeviceKind, Source};

pub(super) use layers::layer_on;

/// The first thing that is wrong with the devices.
pub(super) fn check(devices: &BTreeMap<String, Spanned<Device>>, source: &Source) -> Check {
    // Whether each file is only read.
    let mut files: BTreeMap<FileIdentity, (&str, bool)> = BTreeMap::new();
    layers::check(devices, source)?;
    for (name, entry) in devices {
        device(entry, &format!("devices.{name}"), source)?;
        let Device { path, read_only, .. } = entry.get_ref();
        let Some(path) = path else { continue };
        let refused = |problem: String| {
            Err(source.error(path.span(), format!("devices.{name}.path"), problem))
        };
        let shown = path.get_ref().display();
        let file = match FileIdentity::of(path.get_ref()) {
            Ok(file) => file,
            Err(error) => return refused(format!("{shown}: {error}")),
        };
        // Readers share a file; a writer locks it.
        if let Some((other, other_reads)) = files.insert(file, (name, *read_only))
            && !(*read_only && other_reads)
        {
            return refused(format!(
                "{shown} is the file of device {other} too: one file, one device"
            ));
        }
    }
    Ok(())
}

/// What a path leads to, however it is written.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FileIdentity {
    /// A file that is there: its file system and its number in it.
    Inode(u64, u64),
    /// A block device that is there.
    Device(u64),
    /// A file that is still to be made.
    New(PathBuf),
}

impl FileIdentity {
    fn of(path: &Path) -> io::Result<FileIdentity> {
        if let Ok(facts) = path.metadata() {
            return Ok(if facts.file_type().is_block_device() {
                FileIdentity::Device(facts.rdev())
            } else {
                FileIdentity::Inode(facts.dev(), facts.ino())
            });
        }
        // As far as it is there, as it really is; of the rest, the words.
        let path = absolute(path)?;
        let mut there = path.as_path();
        loop {
            if let Ok(real) = there.canonicalize() {
                let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
                return Ok(FileIdentity::New(without_dots(real.join(rest).as_path())));
            }
            match there.parent() {
                Some(parent) => there = parent,
                None => return Ok(FileIdentity::New(without_dots(&path))),
            }
        }
    }
}

/// The path without `.` and `..`, which no directory that has to be made first can give another meaning.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

fn device(entry: &Spanned<Device>, key: &str, source: &Source) -> Check {
    let device = entry.get_ref();
    if let Some(block_size) = &device.block_size
        && !matches!(block_size.get_ref(), 512 | 4096)
    {
        let key = format!("{key}.block_size");
        return Err(source.error(block_size.span(), key, "must be 512 or 4096"));
    }
    let smallest = if device.kind == DeviceKind::File { 512 } else { 4096 };
    let block_size = device.block_size.as_ref().map_or(smallest, |size| *size.get_ref());
    if let Some(size) = &device.size {
        let bytes = size.get_ref().0;
        let refused = |problem| Err(source.error(size.span(), format!("{key}.size"), problem));
        if bytes == 0 || !bytes.is_multiple_of(block_size.into()) {
            return refused(format!(
                "must be a multiple of the block size, {block_size} bytes, above 0"
            ));
        }
        let machine = machine_memory();
        if device.kind == DeviceKind::Ram && bytes > machine {
            return refused(format!(
                "is more than the memory of this machine, {} MiB",
                machine >> 20
            ));
        }
        if i64::try_from(bytes).is_err() {
            return refused("is more than a device can have, 2^63 bytes".to_owned());
        }
    }
    match (device.kind, &device.path, &device.size) {
        (DeviceKind::File, None, _) => {
            Err(source.error(entry.span(), format!("{key}.path"), "is missing: a file needs one"))
        }
        (DeviceKind::File, Some(path), size) => {
            file(path.get_ref(), size.is_some(), device.read_only, block_size)
                .map_err(|problem| source.error(path.span(), format!("{key}.path"), problem))
        }
        (DeviceKind::Null | DeviceKind::Ram, Some(path), _) => {
            let problem = "belongs to a file, not to memory: leave it out, or set kind = \"file\"";
            Err(source.error(path.span(), format!("{key}.path"), problem))
        }
        (DeviceKind::Null | DeviceKind::Ram, None, None) => {
            Err(source.error(entry.span(), format!("{key}.size"), "is missing"))
        }
        // Layers have been checked as such, and namespaces will be.
        (DeviceKind::Null | DeviceKind::Ram, None, Some(_))
        | (DeviceKind::Delay | DeviceKind::Error | DeviceKind::Nvme, ..) => Ok(()),
    }
}

/// Whether the file is there or can be made; nothing is made yet.
fn file(path: &Path, may_create: bool, read_only: bool, block_size: u32) -> Result<(), String> {
    let shown = path.display();
    if path.as_os_str().is_empty() {
        return Err("is empty: name a file".to_owned());
    }
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            Err(format!("{shown} is a directory: name a file in it"))
        }
        // An empty one that has a size is filled out: it was left by a start that was cut short.
        Ok(metadata)
            if metadata.is_file()
                && metadata.len() < block_size.into()
                && !(metadata.len() == 0 && may_create && !read_only) =>
        {
            Err(format!(
                "{shown} has {} bytes, less than one block of {block_size}: make it larger, or choose another path",
                metadata.len()
            ))
        }
        Ok(metadata) if metadata.is_file() || metadata.file_type().is_block_device() => Ok(()),
        Ok(_) if PassthroughDevice::is_meant_by(path) => Ok(()),
        Ok(_) => Err(format!(
            "{shown} is neither a regular file nor a block device nor one of /dev/ngXnY: name one"
        )),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{shown}: {error}"))
        }
        Err(_) if read_only => {
            Err(format!("{shown} does not exist, and a read-only device cannot create it"))
        }
        Err(_) if may_create => Ok(()),
        Err(_) => {
            Err(format!("{shown} does not exist: create it, or give a size to have it created"))
        }
    }
}
