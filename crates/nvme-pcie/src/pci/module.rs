//! Loading what the kernel has as a module, without another program.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::{finit_module, uname};

use super::{ACT_LIMIT, System, within};

/// The kernel is to unpack the file by itself.
const COMPRESSED: i32 = 4;

impl System {
    /// Loads a module and what it needs, as `modules.dep` of the running kernel has them.
    ///
    /// # Errors
    /// There is no such module, or the kernel refuses it.
    pub(super) fn load_module(&self, name: &str) -> io::Result<()> {
        let release = uname().release().to_string_lossy().into_owned();
        let directory = self.path("/lib/modules").join(release);
        let dependencies = fs::read_to_string(directory.join("modules.dep"))?;
        let files = files(&dependencies, name).ok_or(io::ErrorKind::NotFound)?;
        for file in files {
            let path = directory.join(file);
            let is_plain = path.extension().is_some_and(|extension| extension == "ko");
            let flags = if is_plain { 0 } else { COMPRESSED };
            within(ACT_LIMIT, move || match finit_module(File::open(path)?, c"", flags) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(errno.into()),
            })?;
        }
        Ok(())
    }
}

/// The files to load for a module, in order. In a line `a.ko: b.ko c.ko`, a needs b, and b may need c.
fn files<'a>(dependencies: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let (file, needs) = lines.into_iter().find(|(file, _)| is_module(file, name))?;
    let mut files: Vec<_> = needs.split_whitespace().rev().collect();
    files.push(file);
    Some(files)
}

/// Whether a file, `kernel/drivers/vfio/pci/vfio-pci.ko.xz`, is of a module. The two kinds of dashes are one.
fn is_module(file: &str, name: &str) -> bool {
    let file = Path::new(file).file_name().and_then(|file| file.to_str()).unwrap_or_default();
    let stem = file.split(".ko").next().unwrap_or_default();
    stem.replace('-', "_") == name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/drivers/vfio/vfio.ko: kernel/drivers/iommu/iommufd.ko
kernel/drivers/vfio/pci/vfio-pci.ko.zst: kernel/drivers/vfio/pci/vfio-pci-core.ko.zst kernel/drivers/vfio/vfio.ko
kernel/drivers/block/null_blk.ko:
";

    #[test]
    fn what_a_module_needs_comes_before_it() {
        assert_eq!(
            files(DEPENDENCIES, "vfio_pci"),
            Some(vec![
                "kernel/drivers/vfio/vfio.ko",
                "kernel/drivers/vfio/pci/vfio-pci-core.ko.zst",
                "kernel/drivers/vfio/pci/vfio-pci.ko.zst",
            ])
        );
        assert_eq!(files(DEPENDENCIES, "null-blk"), Some(vec!["kernel/drivers/block/null_blk.ko"]));
        assert_eq!(files(DEPENDENCIES, "vfio-pci-core"), None);
        assert_eq!(files("", "vfio"), None);
    }
}
