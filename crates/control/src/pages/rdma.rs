//! The RDMA transport as the page shows it: what it counts itself, and what the kernel's drivers count of its devices.
//!
//! The kernel's counters are files, one a number. They are read when somebody asks, and for devices in use only.

use std::fs;
use std::path::Path;

use node::Node;
use transport_rdma::{DeviceCounters, DeviceReport};

/// Where the kernel shows RDMA devices.
const DEVICES: &str = "/sys/class/infiniband";

/// What there is to say of the transport.
#[derive(Debug)]
pub(crate) struct Rdma {
    pub(crate) connections: u64,
    pub(crate) counted: Vec<DeviceCounters>,
    pub(crate) devices: Vec<DeviceReport>,
    pub(crate) hardware: Vec<Hardware>,
}

/// A number that a driver counts of a port.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hardware {
    pub(crate) device: String,
    pub(crate) port: u8,
    /// As the driver calls it.
    pub(crate) counter: String,
    pub(crate) value: u64,
}

impl Rdma {
    /// Of a node that runs it.
    pub(crate) fn of(node: &Node) -> Option<Self> {
        let network = node.rdma()?.network();
        let devices = network.devices();
        Some(Self {
            connections: u64::try_from(network.connections()).unwrap_or(u64::MAX),
            counted: network.counters(),
            hardware: hardware(Path::new(DEVICES), &devices),
            devices,
        })
    }
}

/// What drivers count of these devices.
fn hardware(root: &Path, devices: &[DeviceReport]) -> Vec<Hardware> {
    let mut all = Vec::new();
    for device in devices.iter().filter(|device| !device.removed) {
        for port in device.ports.iter().map(|port| port.number) {
            let folder = root.join(&device.name).join("ports").join(port.to_string());
            for kind in ["counters", "hw_counters"] {
                let device = &device.name;
                all.extend(numbers(&folder.join(kind)).map(|(counter, value)| Hardware {
                    device: device.clone(),
                    port,
                    counter,
                    value,
                }));
            }
        }
    }
    // A name that both folders have is one counter.
    all.sort();
    all.dedup_by(|one, other| {
        (&one.device, one.port, &one.counter) == (&other.device, other.port, &other.counter)
    });
    all
}

/// The files of a folder that hold a number each. `lifespan` is a setting: how old the others may be.
fn numbers(folder: &Path) -> impl Iterator<Item = (String, u64)> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        let number = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
        (name != "lifespan").then_some((name, number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drivers_count_is_read_of_devices_in_use_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let ports = root.path().join("rxe0/ports");
        for (file, text) in [
            ("1/hw_counters/rcvd_rnr_err", "7\n"),
            ("1/hw_counters/lifespan", "10\n"),
            ("1/counters/port_rcv_data", "18446744073709551615\n"),
            ("1/counters/port_xmit_wait", "N/A (no PMA)\n"),
            ("1/counters/rcvd_rnr_err", "7\n"),
            ("2/hw_counters/rcvd_rnr_err", "9\n"),
        ] {
            let file = ports.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let port = transport_rdma::PortReport { number: 1, active: true, mtu: 1024 };
        let device = |name: &str, removed| DeviceReport {
            name: name.to_owned(),
            ports: vec![port],
            queue_pairs: 0,
            removed,
        };
        let found = hardware(root.path(), &[device("rxe0", false), device("elsewhere", false)]);
        let found: Vec<_> =
            found.iter().map(|it| (it.port, it.counter.as_str(), it.value)).collect();
        assert_eq!(found, [(1, "port_rcv_data", u64::MAX), (1, "rcvd_rnr_err", 7)]);
        assert_eq!(hardware(root.path(), &[device("rxe0", true)]), []);
    }
}
