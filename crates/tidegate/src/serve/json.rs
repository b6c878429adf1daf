//! The objects of an SPDK JSON configuration file.

use std::fs;
use std::path::Path;

use control::methods;
use control::objects::Objects;

use super::objects::check;
use crate::config::{Config, ConfigError, Source};

/// The objects that the file names. They come from one file: a TOML file that names some, too, is refused.
///
/// # Errors
/// What is wrong with the file, or what the target would refuse. Nothing has been opened or made.
pub(super) fn objects(
    path: &Path,
    config: &Config,
    source: &Source,
) -> Result<Objects, ConfigError> {
    let refused = |problem: String| ConfigError::of_file(path, problem);
    let controllers = config.controllers.iter();
    let mut controllers = controllers.map(|(name, it)| (it.span(), format!("controllers.{name}")));
    let device =
        config.devices.iter().next().map(|(name, it)| (it.span(), format!("devices.{name}")));
    let subsystem = || config.subsystems.first().map(|it| (it.span(), "subsystems[0]".to_owned()));
    let referral = || config.referrals.first().map(|it| (it.span(), "referrals[0]".to_owned()));
    let object = controllers.next().or(device).or_else(subsystem).or_else(referral);
    if let Some((span, key)) = object {
        let problem = format!(
            "controllers, devices, subsystems and referrals come from {} already: leave these out, or --json",
            path.display()
        );
        return Err(source.error(span, key, problem));
    }
    let text =
        fs::read_to_string(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let objects = methods::objects(&text).map_err(|error| refused(error.message))?;
    check(&objects, config).map_err(|error| refused(error.to_string()))?;
    Ok(objects)
}
