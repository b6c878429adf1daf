use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::super::machine::{Function, Machine};
use super::*;

fn driver(machine: &Machine, address: Address) -> String {
    machine.system.driver(address).unwrap_or_default()
}

fn write_mark(machine: &Machine, disk: &str) {
    let file = File::options().write(true).open(machine.disk(disk)).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
}

/// The message of a refusal after which everything is as it was, and for which nothing has been written.
fn refused(machine: &Machine, address: Address, i_know: bool) -> String {
    let before = machine.system.controller(address);
    let error = machine.system.bind(address, i_know).unwrap_err();
    assert_eq!(machine.kernel.written.lock().unwrap().len(), 0, "{error}");
    assert_eq!(machine.system.controller(address), before, "{error}");
    assert_eq!(
        machine.system.may_bind(address, i_know).unwrap_err().to_string(),
        error.to_string()
    );
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(&address.to_string()), "{line}");
    line
}

#[test]
fn there_and_back_again_and_twice_is_once() {
    let machine = Machine::new();
    let address = machine.add(Function { namespaces: 2, ..Function::default() });
    let before = machine.system.controller(address).unwrap();
    let moved = machine.system.bind(address, false).unwrap();
    assert_eq!((moved.from.as_deref(), moved.to.as_str()), (Some("nvme"), "vfio-pci"));
    assert_eq!(moved.group, Some(10));
    let bound = machine.system.controller(address).unwrap();
    assert_eq!(bound.driver_override.as_deref(), Some("vfio-pci"));
    assert_eq!((bound.model, bound.namespaces), (None, vec![]));
    let written = machine.kernel.written.lock().unwrap().len();

    let again = machine.system.bind(address, false).unwrap();
    assert_eq!((again.from.as_deref(), again.to.as_str()), (Some("vfio-pci"), "vfio-pci"));
    assert_eq!(machine.kernel.written.lock().unwrap().len(), written);

    let moved = machine.system.unbind(address).unwrap();
    assert_eq!((moved.from.as_deref(), moved.to.as_str()), (Some("vfio-pci"), "nvme"));
    assert_eq!(machine.system.controller(address).unwrap(), before);
    let written = machine.kernel.written.lock().unwrap().len();
    let again = machine.system.unbind(address).unwrap();
    assert_eq!(again.from.as_deref(), Some("nvme"));
    assert_eq!(machine.kernel.written.lock().unwrap().len(), written);
}

#[test]
fn what_is_in_use_is_never_taken() {
    let machine = Machine::new();
    let address = machine.add(Function { namespaces: 2, ..Function::default() });
    machine.kernel.busy.lock().unwrap().insert("nvme0n2".to_owned());
    for i_know in [false, true] {
        let line = refused(&machine, address, i_know);
        assert!(line.contains("nvme0n2 is open exclusively"), "{line}");
    }
    machine.mount("260:2", "/dev/nvme0n2", "/srv");
    for i_know in [false, true] {
        let line = refused(&machine, address, i_know);
        assert!(line.ends_with("in use: nvme0n2 is mounted on /srv: unmount it first"), "{line}");
    }
}

#[test]
fn one_who_only_looked_at_a_disk_is_waited_for() {
    let mut machine = Machine::new();
    let address = machine.add(Function::default());
    machine.opened(9, "(udev-worker)", "/dev/nvme0n1");
    assert!(refused(&machine, address, true).contains("nvme0n1 is open in (udev-worker) (9)"));
    machine.system.passing = std::time::Duration::from_mins(1);
    *machine.kernel.passing.lock().unwrap() = Some(machine.path("/proc/9/fd/0"));
    machine.system.bind(address, false).unwrap();
}

#[test]
fn what_holds_something_is_taken_only_from_who_knows() {
    let machine = Machine::new();
    let address = machine.add(Function { namespaces: 2, ..Function::default() });
    write_mark(&machine, "nvme0n2");
    let line = refused(&machine, address, false);
    assert!(line.contains("nvme0n2 holds XFS") && line.contains("--i-know"), "{line}");
    machine.system.bind(address, true).unwrap();
    assert_eq!(driver(&machine, address), "vfio-pci");
}

#[test]
fn what_nobody_can_look_at_is_taken_only_from_who_knows() {
    for function in [
        Function { driver: None, ..Function::default() },
        Function { driver: Some("uio_pci_generic"), ..Function::default() },
        Function { namespaces: 0, ..Function::default() },
    ] {
        let machine = Machine::new();
        let address = machine.add(function);
        let line = refused(&machine, address, false);
        assert!(line.contains("nobody knows") && line.contains("--i-know"), "{line}");
        machine.system.bind(address, true).unwrap();
    }
    let machine = Machine::new();
    let address = machine.add(Function::default());
    machine.write("/sys/class/block/nvme0n1/size", "0\n");
    assert!(refused(&machine, address, false).contains("format"));
    machine.system.bind(address, true).unwrap();
}

#[test]
fn what_cannot_be_claimed_is_not_taken() {
    let machine = Machine::new();
    let address = machine.add(Function::default());
    std::fs::remove_file(machine.disk("nvme0n1")).unwrap();
    for i_know in [false, true] {
        let line = refused(&machine, address, i_know);
        assert!(line.contains("/dev/nvme0n1") && line.contains("cannot tell"), "{line}");
    }
}

#[test]
fn the_machine_has_to_be_fit_for_it() {
    let machine = Machine::new();
    let address = machine.add(Function { has_iommu: false, ..Function::default() });
    assert!(refused(&machine, address, true).contains("intel_iommu=on"));

    let machine = Machine::new();
    let address = machine.add(Function { companion: Some("0x020000"), ..Function::default() });
    let line = refused(&machine, address, true);
    assert!(line.contains("0000:01:00.1") && line.contains("group 10"), "{line}");

    let machine = Machine::new();
    let address = machine.add(Function::default());
    machine.write("/sys/bus/pci/devices/0000:01:00.0/nvme/nvme0/state", "resetting\n");
    assert!(refused(&machine, address, true).contains("resetting"));

    let missing = "0000:0f:00.0".parse().unwrap();
    let error = machine.system.bind(missing, true).unwrap_err().to_string();
    assert!(error.contains("0000:0f:00.0 is no NVMe controller"), "{error}");
    assert!(machine.system.unbind(missing).is_err());
}

#[test]
fn a_driver_that_is_not_there_is_named_with_the_way_to_have_it() {
    let machine = Machine::new();
    let address = machine.add(Function::default());
    std::fs::remove_dir(machine.path("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = machine.system.bind(address, false).unwrap_err().to_string();
    assert!(error.contains("modprobe vfio-pci"), "{error}");
    assert_eq!(machine.kernel.written.lock().unwrap().len(), 0);
    // Who is refused anyway is told that.
    machine.mount("260:1", "/dev/nvme0n1", "/srv");
    assert!(refused(&machine, address, false).contains("mounted"));
}

#[test]
fn after_a_failure_the_controller_is_where_it_was() {
    for (spoiled, named) in [
        ("vfio-pci", "vfio-pci did not take it"),
        ("driver_override", "driver_override"),
        ("driver/unbind", "driver/unbind"),
        ("drivers_probe", "drivers_probe"),
    ] {
        for (former, only) in [("nvme", None), ("nvme", Some("nvme")), ("uio_pci_generic", None)] {
            let machine = Machine::new();
            let address = machine.add(Function { driver: Some(former), ..Function::default() });
            if let Some(only) = only {
                machine.write("/sys/bus/pci/devices/0000:01:00.0/driver_override", only);
            }
            let before = machine.system.controller(address);
            // A driver or an attribute; nothing is both.
            machine.kernel.unwilling.lock().unwrap().insert(spoiled.to_owned());
            machine.kernel.forbidden.lock().unwrap().insert(spoiled.to_owned());
            let line = machine.system.bind(address, true).unwrap_err().to_string();
            assert!(line.contains(named) && line.contains(&format!("with {former} now")), "{line}");
            assert_eq!(machine.system.controller(address), before, "{line}");
        }
    }
}

#[test]
fn what_a_program_has_is_not_given_back() {
    let machine = Machine::new();
    let address = machine.add(Function { driver: Some("vfio-pci"), ..Function::default() });
    machine.kernel.busy.lock().unwrap().insert("10".to_owned());
    let line = machine.system.unbind(address).unwrap_err().to_string();
    assert!(line.contains("vfio/10 is open exclusively"), "{line}");
    machine.opened(815, "tidegate", "/dev/vfio/10");
    let line = machine.system.unbind(address).unwrap_err().to_string();
    assert!(line.contains("vfio/10 is open in tidegate (815)"), "{line}");
    assert_eq!(machine.kernel.written.lock().unwrap().len(), 0);
}

#[test]
fn the_kernel_takes_back_what_no_driver_has_and_no_other_driver_is_robbed() {
    let machine = Machine::new();
    let address = machine.add(Function { driver: None, ..Function::default() });
    machine.write("/sys/bus/pci/devices/0000:01:00.0/driver_override", "vfio-pci\n");
    assert_eq!(machine.system.unbind(address).unwrap().from, None);
    assert_eq!(driver(&machine, address), "nvme");

    let other = machine.add(Function { driver: Some("uio_pci_generic"), ..Function::default() });
    let line = machine.system.unbind(other).unwrap_err().to_string();
    assert!(line.contains("uio_pci_generic"), "{line}");

    let third = machine.add(Function { driver: Some("vfio-pci"), ..Function::default() });
    machine.kernel.unwilling.lock().unwrap().insert("nvme".to_owned());
    let line = machine.system.unbind(third).unwrap_err().to_string();
    assert!(line.contains("nvme did not take it; it is with no driver now"), "{line}");
}

/// A tree of what stands on namespaces: what each device stands on, as an index into those before it, and whether as its partition.
fn devices() -> impl Strategy<Value = Vec<(prop::sample::Index, bool)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..12)
}

proptest! {
    /// Whichever of its namespaces, partitions and holders is used, and however: it stays. Unused and without holders, it goes.
    #[test]
    fn nothing_in_use_is_taken(
        namespaces in 1..4_usize,
        above in devices(),
        used in prop::option::of((any::<prop::sample::Index>(), 0..4_u8)),
        is_marked: bool,
        i_know: bool,
    ) {
        let machine = Machine::new();
        let address = machine.add(Function { namespaces, ..Function::default() });
        // Each by its place below /sys/class/block, its name and number.
        let mut all: Vec<(String, String, String)> = (1..=namespaces)
            .map(|nsid| (format!("nvme0n{nsid}"), format!("nvme0n{nsid}"), format!("260:{nsid}")))
            .collect();
        let mut has_holders = false;
        for (number, (below, is_partition)) in above.into_iter().enumerate() {
            let (place, name, _) = below.get(&all).clone();
            let device_number = format!("253:{number}");
            if is_partition && !place.contains('/') {
                let partition = format!("{name}p{number}");
                machine.partition(&place, &partition, &device_number);
                all.push((format!("{place}/{partition}"), partition, device_number));
            } else {
                let holder = format!("dm-{number}");
                machine.hold(&place, &holder, None, &device_number);
                has_holders = true;
                all.push((holder.clone(), holder, device_number));
            }
        }
        if let Some((which, how)) = &used {
            let (_, name, device_number) = which.get(&all);
            match how {
                0 => machine.mount(device_number, "none", "/srv"),
                1 => machine.mount("0:77", &format!("/dev/{name}"), "/srv"),
                2 => machine.swap(&format!("/dev/{name}")),
                _ => machine.opened(9, "dd", &format!("/dev/{name}")),
            }
        }
        if is_marked {
            write_mark(&machine, "nvme0n1");
        }
        let result = machine.system.bind(address, i_know);
        if used.is_some() || has_holders {
            prop_assert!(matches!(result, Err(BindError::InUse { .. })), "{:?}", result);
            prop_assert_eq!(machine.kernel.written.lock().unwrap().len(), 0);
            prop_assert_eq!(driver(&machine, address), "nvme");
        } else if is_marked && !i_know {
            prop_assert!(matches!(result, Err(BindError::NotBlank { .. })), "{:?}", result);
        } else {
            prop_assert!(result.is_ok(), "{:?}", result);
            prop_assert_eq!(driver(&machine, address), "vfio-pci");
        }
    }
}
