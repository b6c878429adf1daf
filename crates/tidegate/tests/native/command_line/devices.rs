//! `tidegate devices` on made-up machines: what is listed, what is refused, and in which words. That controllers really change hands is shown in the
//! virtual machine.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use super::failure;
use crate::support::daemon::{run, run_json};
use crate::support::folder;

const ADDRESS: &str = "0000:03:00.0";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

/// A machine with one controller, of two blank namespaces of 4 MiB.
fn machine(root: &Path) {
    let function = format!("sys/bus/pci/devices/{ADDRESS}");
    for (name, text) in [
        ("class", "0x010802"),
        ("vendor", "0x144d"),
        ("device", "0xa80a"),
        ("numa_node", "1"),
        ("driver_override", "(null)"),
        ("nvme/nvme0/model", "Tidal Disk 980            "),
        ("nvme/nvme0/serial", "S5GX"),
        ("nvme/nvme0/firmware_rev", "2B2Q"),
        ("nvme/nvme0/state", "live"),
        ("nvme/nvme0/nvme0n1/nsid", "1"),
        ("nvme/nvme0/nvme0n2/nsid", "2"),
    ] {
        write(root, &format!("{function}/{name}"), text);
    }
    for (name, nsid) in [("nvme0n1", "1"), ("nvme0n2", "2")] {
        let disk = format!("sys/class/block/{name}");
        write(root, &format!("{disk}/size"), "8192");
        write(root, &format!("{disk}/nsid"), nsid);
        write(root, &format!("{disk}/dev"), &format!("259:{nsid}"));
        write(root, &format!("{disk}/queue/logical_block_size"), "512");
        fs::create_dir_all(root.join("dev")).unwrap();
        File::create(root.join("dev").join(name)).unwrap().set_len(4 << 20).unwrap();
    }
    write(root, "proc/self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw");
    write(root, "proc/swaps", "Filename Type Size Used Priority");
    write(root, "sys/bus/pci/drivers_probe", "");
    write(root, "sys/bus/pci/drivers/nvme/unbind", "");
    write(root, "sys/bus/pci/drivers/vfio-pci/unbind", "");
    symlink("../../drivers/nvme", root.join(&function).join("driver")).unwrap();
    let group = "sys/kernel/iommu_groups/15";
    fs::create_dir_all(root.join(group).join("devices")).unwrap();
    symlink(root.join(&function), root.join(group).join("devices").join(ADDRESS)).unwrap();
    symlink(root.join(group), root.join(&function).join("iommu_group")).unwrap();
}

#[test]
fn controllers_are_listed() {
    let folder = folder();
    machine(folder.path());
    write(folder.path(), "dev/nvme0n2", "XFSB");
    let listing = run_json(folder.path(), &["devices", "--sysroot", "."]);
    let controller = &listing["controllers"][0];
    for (key, value) in [
        ("address", ADDRESS),
        ("vendor", "144d"),
        ("driver", "nvme"),
        ("name", "nvme0"),
        ("model", "Tidal Disk 980"),
        ("serial", "S5GX"),
        ("firmware", "2B2Q"),
    ] {
        assert_eq!(controller[key], value, "{listing}");
    }
    assert_eq!((&controller["iommu_group"], &controller["numa_node"]), (&15.into(), &1.into()));
    assert_eq!(controller["namespaces"][0]["bytes"], 4 << 20);
    assert_eq!(controller["namespaces"][0]["content"].as_array().unwrap().len(), 0);
    assert_eq!(controller["namespaces"][1]["content"][0], "XFS");
    assert_eq!(controller["in_use"].as_array().unwrap().len(), 0);

    let output = run(folder.path(), &["devices", "--sysroot", "."]);
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "ADDRESS",
        "IN USE/CONTENT",
        ADDRESS,
        "15",
        "Tidal Disk 980",
        "4.1 MB",
        "nvme0n2 holds XFS",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_machine_without_controllers_or_pci_says_so() {
    let folder = folder();
    for _ in 0..2 {
        let output = run(folder.path(), &["devices", "--sysroot", "."]);
        assert!(output.status.success() && output.stderr.is_empty());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("no NVMe controller") && text.lines().count() == 1, "{text}");
        let listing = run_json(folder.path(), &["devices", "--sysroot", "."]);
        assert_eq!(listing["controllers"].as_array().unwrap().len(), 0);
        fs::create_dir_all(folder.path().join("sys/bus/pci/devices")).unwrap();
    }
}

#[test]
fn what_is_refused_is_one_line_with_its_reason_and_changes_nothing() {
    let function = format!("sys/bus/pci/devices/{ADDRESS}");
    for (path, text, arguments, named) in [
        (
            "proc/self/mountinfo",
            "40 22 259:2 / /srv rw - xfs /dev/nvme0n2 rw",
            &["bind", ADDRESS, "--i-know"][..],
            "nvme0n2 is mounted on /srv",
        ),
        ("proc/swaps", "heads\n/dev/nvme0n1 partition", &["bind", ADDRESS], "nvme0n1 is swap"),
        ("sys/class/block/nvme0n1/holders/md0/x", "", &["bind", "03:00.0"], "held by md0"),
        ("dev/nvme0n2", "XFSB", &["bind", "03:00.0"], "--i-know"),
        (&format!("{function}/nvme/nvme0/state"), "dead", &["bind", ADDRESS], "is dead"),
        (&format!("{function}/class"), "0x010601", &["bind", ADDRESS], "no NVMe controller"),
        (&format!("{function}/class"), "0x010601", &["unbind", ADDRESS], "no NVMe controller"),
        ("dev/x", "", &["bind", "04:00.0", ADDRESS], "0000:04:00.0 is no NVMe controller"),
        // The good one comes first, and nothing is done with it.
        ("dev/x", "", &["bind", ADDRESS, "04:00.0"], "0000:04:00.0 is no NVMe controller"),
    ] {
        let folder = folder();
        machine(folder.path());
        write(folder.path(), path, text);
        let arguments = [&["devices", "--sysroot", "."], arguments].concat();
        let line = failure(&arguments, &run(folder.path(), &arguments), 1);
        assert!(line.contains(named), "{arguments:?}: {line}");
        let kept = fs::read_to_string(folder.path().join(&function).join("driver_override"));
        assert_eq!(kept.unwrap(), "(null)\n", "{line}");
        let output = run(folder.path(), &[&arguments[..], &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1));
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(printed["error"].as_str().unwrap().contains(named), "{printed}");
    }
}

#[test]
fn a_controller_that_vfio_does_not_take_stays_where_it_is() {
    let folder = folder();
    machine(folder.path());
    // Files, which do nothing when they are written.
    let arguments = ["devices", "bind", ADDRESS, "--sysroot", "."];
    let line = failure(&arguments, &run(folder.path(), &arguments), 1);
    assert!(line.contains("vfio-pci did not take it; it is with nvme now"), "{line}");
}

#[test]
fn who_has_it_already_is_no_failure() {
    let folder = folder();
    machine(folder.path());
    let arguments = ["devices", "unbind", ADDRESS, "--sysroot", "."];
    let output = run(folder.path(), &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("{ADDRESS} is with nvme already\n"));
    let moved = run_json(folder.path(), &arguments);
    assert_eq!(moved["controllers"][0]["driver"], "nvme");
    assert_eq!(moved["controllers"][0]["driver_before"], "nvme");
}
