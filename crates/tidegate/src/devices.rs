//! `tidegate devices`: the NVMe controllers of this machine, and who drives them.

use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use nvme_pcie::pci::{Address, Content, Controller, Moved, Status, System, Usage, VFIO_DRIVER};
use serde::{Serialize, Serializer};

use crate::output;

const LIST_EXAMPLES: &str = "\
Examples:
  tidegate devices
  tidegate devices --json
  tidegate devices bind 0000:03:00.0
  tidegate devices unbind 03:00.0

Without root it shows less: `?` stands where something could not be looked at.";

const BIND_EXAMPLES: &str = "\
Examples:
  tidegate devices bind 0000:03:00.0
  tidegate devices bind 03:00.0 04:00.0 --i-know

Refused, and nothing is changed: a controller of which anything is mounted, swap, held by another device or open; one that holds a \
partition table, a file system, LVM, RAID or the like (--i-know overrides this and nothing else); one without an IOMMU, or that \
shares its IOMMU group. It lasts until the machine starts anew.";

const UNBIND_EXAMPLES: &str = "\
Examples:
  tidegate devices unbind 0000:03:00.0

Refused while a program has the controller; it is named.";

/// Arguments of `devices`.
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct DevicesArgs {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    /// The root directory of the system to look at
    #[arg(long, global = true, hide = true, value_name = "FOLDER", default_value = "/")]
    sysroot: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Hand controllers to vfio-pci, for `serve` to drive them.
    #[command(after_help = BIND_EXAMPLES)]
    Bind {
        /// PCI addresses: 0000:03:00.0, or 03:00.0
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<Address>,

        /// Take a controller although there is something on it, which will be lost
        #[arg(long)]
        i_know: bool,
    },
    /// Give controllers back to the kernel.
    #[command(after_help = UNBIND_EXAMPLES)]
    Unbind {
        /// PCI addresses: 0000:03:00.0, or 03:00.0
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<Address>,
    },
}

/// Lists controllers, or gives them to a driver.
pub(crate) fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    let system = System::new(&args.sysroot);
    match &args.action {
        None => output::conclude(list(&system), args.json),
        Some(Action::Bind { addresses, i_know }) => {
            output::conclude(bind(&system, addresses, *i_know), args.json)
        }
        Some(Action::Unbind { addresses }) => {
            output::conclude(each(addresses, |address| system.unbind(address)), args.json)
        }
    }
}

fn list(system: &System) -> anyhow::Result<Listing> {
    let controllers = system
        .controllers()
        .context("cannot list PCI functions: see that /sys is that of the machine")?;
    if controllers.is_empty() {
        return Ok(Listing { controllers: Vec::new() });
    }
    let usage = Usage::read(system)
        .context("cannot tell what is in use: see that /proc is that of the machine")?;
    let rows = controllers.into_iter().map(|controller| {
        let status = system.status(&usage, &controller);
        Row::new(&controller, status)
    });
    Ok(Listing { controllers: rows.collect() })
}

/// Nothing is bound unless all may be.
fn bind(system: &System, addresses: &[Address], i_know: bool) -> anyhow::Result<Moves> {
    for address in addresses {
        system.may_bind(*address, i_know)?;
    }
    each(addresses, |address| system.bind(address, i_know))
}

/// Does the same to each, up to the first failure, which tells what has been done before it.
fn each<E: std::error::Error + Send + Sync + 'static>(
    addresses: &[Address],
    act: impl Fn(Address) -> Result<Moved, E>,
) -> anyhow::Result<Moves> {
    let mut moves: Vec<Move> = Vec::new();
    for address in addresses {
        match act(*address) {
            Ok(moved) => moves.push(moved.into()),
            Err(error) if moves.is_empty() => return Err(error.into()),
            Err(error) => {
                let done: Vec<_> = moves.iter().map(ToString::to_string).collect();
                return Err(anyhow::Error::from(error).context(done.join(", ")));
            }
        }
    }
    Ok(Moves { controllers: moves })
}

/// What there is.
#[derive(Debug, Serialize)]
struct Listing {
    controllers: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(serialize_with = "as_text")]
    address: Address,
    vendor: Option<String>,
    device: Option<String>,
    iommu_group: Option<u32>,
    shares_group_with: Vec<String>,
    driver: Option<String>,
    driver_override: Option<String>,
    numa_node: Option<u32>,
    name: Option<String>,
    state: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    firmware: Option<String>,
    namespaces: Vec<NamespaceRow>,
    in_use: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NamespaceRow {
    name: String,
    nsid: Option<u32>,
    bytes: Option<u64>,
    block_bytes: Option<u32>,
    /// Empty: it is blank. Missing: nobody knows.
    content: Option<Vec<&'static str>>,
    content_unknown: Option<String>,
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Row {
    fn new(controller: &Controller, status: Status) -> Row {
        let id = |id: Option<u16>| id.map(|id| format!("{id:04x}"));
        let contents = status.contents.into_iter();
        let namespaces = controller.namespaces.iter().zip(contents).map(|(namespace, content)| {
            let (content, content_unknown) = match content {
                Content::Marks(marks) => (Some(marks), None),
                Content::Unknown(why) => (None, Some(why)),
            };
            NamespaceRow {
                name: namespace.name.clone(),
                nsid: namespace.nsid,
                bytes: namespace.bytes,
                block_bytes: namespace.block_bytes,
                content,
                content_unknown,
            }
        });
        let others = controller.companions.iter().map(|other| other.address.clone());
        Row {
            address: controller.address,
            vendor: id(controller.vendor),
            device: id(controller.device),
            iommu_group: controller.group,
            shares_group_with: others.collect(),
            driver: controller.driver.clone(),
            driver_override: controller.driver_override.clone(),
            numa_node: controller.numa_node,
            name: controller.name.clone(),
            state: controller.state.clone(),
            model: controller.model.clone(),
            serial: controller.serial.clone(),
            firmware: controller.firmware.clone(),
            namespaces: namespaces.collect(),
            in_use: status.uses.iter().map(ToString::to_string).collect(),
        }
    }

    /// What speaks against taking it, each in a line.
    fn findings(&self) -> String {
        let mut lines = self.in_use.clone();
        for namespace in &self.namespaces {
            match (&namespace.content, &namespace.content_unknown) {
                (Some(marks), _) if marks.is_empty() => {}
                (Some(marks), _) => {
                    lines.push(format!("{} holds {}", namespace.name, marks.join(", ")));
                }
                (None, why) => {
                    let why = why.as_deref().unwrap_or("not looked at");
                    lines.push(format!("{}: ? ({why})", namespace.name));
                }
            }
        }
        if !lines.is_empty() {
            lines.join("\n")
        } else if self.namespaces.is_empty() {
            UNKNOWN.to_owned()
        } else {
            "blank".to_owned()
        }
    }
}

/// In the place of what is not known.
const UNKNOWN: &str = "-";

fn or_unknown<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), ToString::to_string)
}

/// A size as it stands on drives: in powers of ten.
fn drive_size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        1_000_000_000_000.. => (1_000_000_000_000, "TB"),
        1_000_000_000.. => (1_000_000_000, "GB"),
        _ => (1_000_000, "MB"),
    };
    format!("{}.{} {name}", bytes / unit, bytes % unit / (unit / 10))
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.controllers.is_empty() {
            return writeln!(f, "there is no NVMe controller on this machine's PCI buses");
        }
        let mut table = output::table();
        table.set_header([
            "ADDRESS",
            "GROUP",
            "DRIVER",
            "MODEL",
            "SERIAL",
            "SIZE",
            "NAMESPACES",
            "IN USE/CONTENT",
        ]);
        for row in &self.controllers {
            let of_each = |text: fn(&NamespaceRow) -> String| {
                let lines: Vec<_> = row.namespaces.iter().map(text).collect();
                if lines.is_empty() { UNKNOWN.to_owned() } else { lines.join("\n") }
            };
            table.add_row([
                row.address.to_string(),
                or_unknown(row.iommu_group.as_ref()),
                or_unknown(row.driver.as_ref()),
                or_unknown(row.model.as_ref()),
                or_unknown(row.serial.as_ref()),
                of_each(|namespace| or_unknown(namespace.bytes.map(drive_size).as_ref())),
                of_each(|namespace| namespace.name.clone()),
                row.findings(),
            ]);
        }
        writeln!(f, "{table}")
    }
}

/// What became of each.
#[derive(Debug, Serialize)]
struct Moves {
    controllers: Vec<Move>,
}

#[derive(Debug, Serialize)]
struct Move {
    #[serde(serialize_with = "as_text")]
    address: Address,
    driver: String,
    driver_before: Option<String>,
    iommu_group: Option<u32>,
}

impl From<Moved> for Move {
    fn from(moved: Moved) -> Move {
        let (address, iommu_group) = (moved.address, moved.group);
        Move { address, driver: moved.to, driver_before: moved.from, iommu_group }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Move { address, driver, driver_before, .. } = self;
        match driver_before {
            Some(before) if before == driver => write!(f, "{address} is with {driver} already")?,
            Some(before) => write!(f, "{address} is with {driver} now, it was with {before}")?,
            None => write!(f, "{address} is with {driver} now, it was with no driver")?,
        }
        match self.iommu_group {
            Some(group) if driver == VFIO_DRIVER => write!(f, " (/dev/vfio/{group})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.controllers.iter().try_for_each(|moved| writeln!(f, "{moved}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_on_the_box() {
        for (bytes, text) in [
            (0, "0.0 MB"),
            (67_108_864, "67.1 MB"),
            (500_107_862_016, "500.1 GB"),
            (1_000_204_886_016, "1.0 TB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(drive_size(bytes), text);
        }
    }

    #[test]
    fn what_was_done_is_one_line_each() {
        let address = "03:00.0".parse().unwrap();
        let moved = |from: Option<&str>, to: &str| {
            let (from, to) = (from.map(str::to_owned), to.to_owned());
            Move::from(Moved { address, from, to, group: Some(12) }).to_string()
        };
        assert_eq!(
            moved(Some("nvme"), "vfio-pci"),
            "0000:03:00.0 is with vfio-pci now, it was with nvme (/dev/vfio/12)"
        );
        assert_eq!(
            moved(Some("vfio-pci"), "vfio-pci"),
            "0000:03:00.0 is with vfio-pci already (/dev/vfio/12)"
        );
        assert_eq!(moved(None, "nvme"), "0000:03:00.0 is with nvme now, it was with no driver");
    }
}
