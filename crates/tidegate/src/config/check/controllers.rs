//! Checks of `[controllers.NAME]`, and of the devices that are their namespaces.

use std::collections::BTreeMap;

use nvme_pcie::pci;
use toml::Spanned;

use super::Check;
use crate::config::{Config, Controller, DeviceKind, Source};

/// Bytes in a name, as in a device's.
const LONGEST_NAME: usize = 255;

/// The first thing that is wrong with them.
pub(super) fn check(config: &Config, source: &Source) -> Check {
    let mut places = BTreeMap::new();
    for (name, entry) in &config.controllers {
        let key = format!("controllers.{name}");
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(char::is_control) {
            let problem = "is no name: 1 to 255 bytes, no control characters";
            return Err(source.error(entry.span(), key, problem));
        }
        let (field, place, text) = place(entry, &key, source)?;
        if let Some(other) = places.insert(place, name) {
            let problem = format!("controller {other} is that one: one place, one controller");
            return Err(source.error(text.span(), format!("{key}.{field}"), problem));
        }
    }
    namespaces(config, source)
}

/// Where a controller is, and the key and text that say so.
fn place<'a>(
    entry: &'a Spanned<Controller>,
    key: &str,
    source: &Source,
) -> Result<(&'static str, String, &'a Spanned<String>), crate::config::ConfigError> {
    let refused = |text: &Spanned<String>, field: &str, problem: String| {
        Err(source.error(text.span(), format!("{key}.{field}"), problem))
    };
    match entry.get_ref() {
        Controller { address: Some(text), serial: None } => {
            match text.get_ref().parse::<pci::Address>() {
                Ok(address) => Ok(("address", address.to_string(), text)),
                Err(error) => refused(text, "address", error.to_string()),
            }
        }
        Controller { address: None, serial: Some(text) } if text.get_ref().trim().is_empty() => {
            refused(text, "serial", "is empty".to_owned())
        }
        // No address has a blank in it.
        Controller { address: None, serial: Some(text) } => {
            Ok(("serial", format!("serial {}", text.get_ref()), text))
        }
        Controller { address: Some(_), serial: Some(text) } => {
            refused(text, "serial", "is given beside an address: leave one of them out".to_owned())
        }
        Controller { address: None, serial: None } => {
            let problem = "is missing: give the PCI address of the controller, or its serial";
            Err(source.error(entry.span(), format!("{key}.address"), problem))
        }
    }
}

/// The devices that are namespaces: of a controller there is, each of them once.
fn namespaces(config: &Config, source: &Source) -> Check {
    let mut seen = BTreeMap::new();
    for (name, entry) in &config.devices {
        let device = entry.get_ref();
        if device.kind != DeviceKind::Nvme {
            continue;
        }
        let missing = |field: &str, problem: &str| {
            Err(source.error(entry.span(), format!("devices.{name}.{field}"), problem))
        };
        let Some(controller) = &device.controller else {
            return missing("controller", "is missing: name one of [controllers]");
        };
        if !config.controllers.contains_key(controller.get_ref()) {
            let problem = format!("{:?} is not in [controllers]", controller.get_ref());
            let key = format!("devices.{name}.controller");
            return Err(source.error(controller.span(), key, problem));
        }
        let Some(nsid) = &device.nsid else {
            return missing("nsid", "is missing: which namespace of the controller it is");
        };
        let refused = |problem: String| {
            Err(source.error(nsid.span(), format!("devices.{name}.nsid"), problem))
        };
        if matches!(*nsid.get_ref(), 0 | u32::MAX) {
            return refused(format!("{} is the number of no namespace", nsid.get_ref()));
        }
        if let Some(other) = seen.insert((controller.get_ref(), *nsid.get_ref()), name) {
            return refused(format!(
                "device {other} is that namespace already: one namespace, one device"
            ));
        }
    }
    Ok(())
}
