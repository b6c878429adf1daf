//! Whether a controller could be handed over: what uses it, and what its namespaces hold.

use std::fs::File;
use std::io;

use super::{
    Controller, KERNEL_DRIVER, LOOK_LIMIT, Namespace, System, Usage, Use, signature, within,
};

/// What is on the namespaces of a controller.
#[derive(Debug, Default)]
pub struct Status {
    /// How it is in use.
    pub uses: Vec<Use>,
    /// What each namespace holds, in their order.
    pub contents: Vec<Content>,
    /// Namespaces that could not be claimed, for another reason than that somebody has them.
    pub(super) unclaimed: Vec<(String, io::Error)>,
    /// Those that are, as long as this lives.
    pub(super) claims: Vec<File>,
}

/// What a namespace holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// What has left its mark there; nothing if it is blank.
    Marks(Vec<&'static str>),
    /// Nobody knows, for this reason.
    Unknown(String),
}

impl System {
    /// Looks at all namespaces of a controller. Nobody is kept from them for longer than it takes to ask whether somebody has them.
    pub fn status(&self, usage: &Usage, controller: &Controller) -> Status {
        self.look(usage, controller, false)
    }

    /// The same, and with `keep` the claims stay.
    pub(super) fn look(&self, usage: &Usage, controller: &Controller, keep: bool) -> Status {
        let mut status = Status { uses: usage.of(self, controller), ..Status::default() };
        if controller.driver.as_deref() != Some(KERNEL_DRIVER) {
            return status;
        }
        for namespace in &controller.namespaces {
            let content = self.content(namespace, controller, keep, &mut status);
            status.contents.push(content);
        }
        status
    }

    fn content(
        &self,
        namespace: &Namespace,
        controller: &Controller,
        keep: bool,
        status: &mut Status,
    ) -> Content {
        if !namespace.has_disk {
            return Content::Unknown("it has no block device".to_owned());
        }
        if namespace.bytes == Some(0) {
            return Content::Unknown("the kernel cannot read its format".to_owned());
        }
        // I/O would wait for as long as that lasts.
        if !controller.is_live() {
            return Content::Unknown("the controller does not work now".to_owned());
        }
        let node = self.path(namespace.node());
        let claim = match self.claim(node.clone()) {
            Ok(claim) => Some(claim).filter(|_| keep),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let device = namespace.name.clone();
                // Unless the reason is known already.
                if !status.uses.iter().any(|found| found.device().starts_with(&device)) {
                    status.uses.push(Use::Claimed { device });
                }
                None
            }
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::PermissionDenied => "only root may look at it".to_owned(),
                    _ => error.to_string(),
                };
                status.unclaimed.push((namespace.node(), error));
                return Content::Unknown(why);
            }
        };
        let kept = claim.as_ref().map(File::try_clone).transpose();
        let marks = kept.and_then(|kept| {
            within(LOOK_LIMIT, move || signature::of(&kept.map_or_else(|| File::open(node), Ok)?))
        });
        status.claims.extend(claim);
        match marks {
            Ok(marks) => Content::Marks(marks),
            Err(error) => Content::Unknown(error.to_string()),
        }
    }
}

impl Controller {
    /// Whether it takes commands, as far as the system says.
    pub fn is_live(&self) -> bool {
        self.state.as_deref().is_none_or(|state| state == "live")
    }
}
