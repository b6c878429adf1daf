//! Checks of devices that stand on others: each has a base for itself, and the last of them stands on the ground.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::Check;
use crate::config::{Device, DeviceKind, Source};

type Devices = BTreeMap<String, Spanned<Device>>;

/// The first thing that is wrong with them.
pub(super) fn check(devices: &Devices, source: &Source) -> Check {
    let mut above: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, entry) in devices {
        let key = format!("devices.{name}");
        strangers(entry, &key, source)?;
        if !entry.get_ref().kind.is_layer() {
            continue;
        }
        let Some(base) = &entry.get_ref().base else {
            let problem = "is missing: name the device that it stands on";
            return Err(source.error(entry.span(), format!("{key}.base"), problem));
        };
        let refused = |problem| Err(source.error(base.span(), format!("{key}.base"), problem));
        let base = base.get_ref().as_str();
        if !devices.contains_key(base) {
            return refused(format!("{base:?} is not in [devices]"));
        }
        if let Some(other) = above.insert(base, name) {
            return refused(format!(
                "device {other} stands on {base} already: one device, one layer"
            ));
        }
        if stands_on_itself(devices, name) {
            return refused(format!("{name} would stand on itself"));
        }
    }
    Ok(())
}

/// The device that stands on the one of this name.
pub(in crate::config::check) fn layer_on<'a>(devices: &'a Devices, base: &str) -> Option<&'a str> {
    let names = devices.keys().map(String::as_str);
    let mut above = names.filter(|name| base_of(devices, name) == Some(base));
    above.next()
}

fn base_of<'a>(devices: &'a Devices, name: &str) -> Option<&'a str> {
    let device = devices.get(name)?.get_ref();
    device.base.as_ref().map(|base| base.get_ref().as_str())
}

fn stands_on_itself(devices: &Devices, name: &str) -> bool {
    let below = std::iter::successors(base_of(devices, name), |name| base_of(devices, name));
    below.take(devices.len()).any(|base| base == name)
}

/// Keys that belong to devices of another kind.
fn strangers(entry: &Spanned<Device>, key: &str, source: &Source) -> Check {
    fn place<T>(value: Option<&Spanned<T>>) -> Option<Range<usize>> {
        value.map(Spanned::span)
    }
    let device = entry.get_ref();
    let (layer, delay) = (device.kind.is_layer(), device.kind == DeviceKind::Delay);
    let nvme = device.kind == DeviceKind::Nvme;
    let medium = !layer && !nvme;
    let places = [
        ("base", place(device.base.as_ref()), layer, "delay or error"),
        ("read_latency", place(device.read_latency.as_ref()), delay, "delay"),
        ("read_latency_p99", place(device.read_latency_p99.as_ref()), delay, "delay"),
        ("write_latency", place(device.write_latency.as_ref()), delay, "delay"),
        ("write_latency_p99", place(device.write_latency_p99.as_ref()), delay, "delay"),
        ("path", place(device.path.as_ref()), medium, "file"),
        ("size", place(device.size.as_ref()), medium, "file, ram or null"),
        ("block_size", place(device.block_size.as_ref()), medium, "file, ram or null"),
        ("read_only", device.read_only.then(|| entry.span()), medium, "file, ram or null"),
        ("controller", place(device.controller.as_ref()), nvme, "nvme"),
        ("nsid", place(device.nsid.as_ref()), nvme, "nvme"),
    ];
    for (field, place, fits, kinds) in places {
        if let Some(span) = place
            && !fits
        {
            let problem = format!("belongs to devices of kind {kinds}: leave it out");
            return Err(source.error(span, format!("{key}.{field}"), problem));
        }
    }
    for (field, average, p99) in [
        ("read_latency_p99", &device.read_latency, &device.read_latency_p99),
        ("write_latency_p99", &device.write_latency, &device.write_latency_p99),
    ] {
        let least = average.as_ref().map(|average| average.get_ref().0).unwrap_or_default();
        if let Some(p99) = p99
            && p99.get_ref().0 < least
        {
            let problem = "is less than the average latency";
            return Err(source.error(p99.span(), format!("{key}.{field}"), problem));
        }
    }
    Ok(())
}
