//! NVMe controllers of a configuration file: what is wrong with them is refused by file, line and key.

use super::failure;
use crate::support::daemon::{ALONE, run, write_config};
use crate::support::folder;

/// A namespace of a controller that no machine has.
const GOOD: &str = r#"[controllers.ssd]
address = "fffe:00:1f.7"
[controllers.other]
serial = "no such serial number"

[devices.disk]
kind = "nvme"
controller = "ssd"
nsid = 1
[devices.second]
kind = "nvme"
controller = "ssd"
nsid = 2
"#;

/// What of [`GOOD`] is replaced by what, the line it is then on, and what the message has to name.
const REFUSED: &[(&str, &str, usize, &[&str])] = &[
    ("fffe:00:1f.7", "nowhere", 2, &["controllers.ssd.address", "\"nowhere\" is no PCI address"]),
    ("fffe:00:1f.7", "fffe:00:1f.8", 2, &["controllers.ssd.address"]),
    ("address = \"fffe:00:1f.7\"", "", 1, &["controllers.ssd.address", "is missing"]),
    ("no such serial number", " ", 4, &["controllers.other.serial", "is empty"]),
    ("serial =", "address = \"FFFE:00:1F.7\"\nserial =", 5, &["controllers.other.serial"]),
    (
        "serial = \"no such serial number\"",
        "address = \"FFFE:00:1F.7\"",
        2,
        &["controllers.ssd.address", "controller other is that one"],
    ),
    ("address =", "adress =", 2, &["adress"]),
    ("controller = \"ssd\"", "controller = \"hdd\"", 8, &["devices.disk.controller", "\"hdd\""]),
    ("controller = \"ssd\"", "", 6, &["devices.disk.controller", "is missing"]),
    ("nsid = 1", "", 6, &["devices.disk.nsid", "is missing"]),
    ("nsid = 1", "nsid = 0", 9, &["devices.disk.nsid", "no namespace"]),
    ("nsid = 1", "nsid = 4294967295", 9, &["devices.disk.nsid", "no namespace"]),
    ("nsid = 2", "nsid = 1", 13, &["devices.second.nsid", "device disk is that namespace"]),
    ("nsid = 1", "nsid = 1\nsize = 4096", 10, &["devices.disk.size", "belongs to devices"]),
    ("nsid = 1", "nsid = 1\nread_only = true", 6, &["devices.disk.read_only"]),
    (
        "kind = \"nvme\"\ncontroller = \"ssd\"\nnsid = 1",
        "kind = \"null\"\nsize = 4096\nnsid = 1",
        9,
        &["devices.disk.nsid", "belongs to devices of kind nvme"],
    ),
];

#[test]
fn what_is_wrong_with_controllers_is_refused_by_its_place() {
    let folder = folder();
    for (good, bad, line, named) in REFUSED {
        let config = GOOD.replacen(good, bad, 1);
        assert_ne!(config, GOOD, "{good}");
        write_config(folder.path(), &config);
        let said = failure(&[bad], &run(folder.path(), &["serve", "--config", "tidegate.toml"]), 2);
        let place = format!("tidegate.toml:{line}: ");
        assert!(said.contains(&place), "{bad}: {place}: {said}");
        for named in *named {
            assert!(said.contains(named), "{bad}: {named}: {said}");
        }
    }
}

#[test]
fn a_controller_that_a_file_names_has_to_be_there() {
    let folder = folder();
    write_config(
        folder.path(),
        &GOOD.replace("[controllers.other]\nserial = \"no such serial number\"\n", ""),
    );
    let arguments = [&["serve", "--config", "tidegate.toml"][..], &ALONE].concat();
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said.lines().find(|line| line.starts_with("tidegate: ")).unwrap();
    assert!(line.contains("NVMe controller ssd") && line.contains("fffe:00:1f.7"), "{line}");
}
