//! What happened to devices, for clients that ask now and then. Numbered from the start of the process; the latest are kept,
//! in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::state::{Opened, State};

/// As many as SPDK keeps.
const KEPT: usize = 1024;

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was configured.
    Registered,
    /// It was removed.
    Unregistered,
    /// It has another size.
    Resized,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Registered, Self::Unregistered, Self::Resized];

    /// As clients know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registered => "bdev_register",
            Self::Unregistered => "bdev_unregister",
            Self::Resized => "bdev_resize",
        }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Its number.
    pub id: u64,
    /// What happened.
    pub kind: Kind,
    /// To which device.
    pub device: String,
}

/// The latest of them. Any thread.
#[derive(Debug, Default)]
pub struct Notifications(Mutex<VecDeque<Notification>>);

impl Notifications {
    /// Notes that something happened.
    pub fn note(&self, kind: Kind, device: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = kept.back().map_or(0, |last| last.id + 1);
        kept.push_back(Notification { id, kind, device: device.to_owned() });
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }

    /// Notes what is different between two states.
    pub fn compare(&self, before: &State, after: &State) {
        for name in before.devices.keys().filter(|name| !after.devices.contains_key(*name)) {
            self.note(Kind::Unregistered, name);
        }
        for (name, device) in &after.devices {
            match before.devices.get(name) {
                None => self.note(Kind::Registered, name),
                Some(old) if !Arc::ptr_eq(old, device) && blocks(old) != blocks(device) => {
                    self.note(Kind::Resized, name);
                }
                Some(_) => {}
            }
        }
    }

    /// At most `max` of those kept, from the one with this number on.
    pub fn since(&self, id: u64, max: u64) -> Vec<Notification> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        kept.iter().filter(|it| it.id >= id).take(max).cloned().collect()
    }
}

/// The size of a device that is there.
fn blocks(opened: &Opened) -> Option<u64> {
    opened.device.as_ref().ok().map(|device| device.geometry().blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_under_their_numbers() {
        let all = Notifications::default();
        for number in 0..KEPT + 10 {
            all.note(Kind::Registered, &number.to_string());
        }
        let kept = all.since(0, u64::MAX);
        assert_eq!((kept.len(), kept[0].id, kept[0].device.as_str()), (KEPT, 10, "10"));
        assert_eq!(all.since(1030, 2).iter().map(|it| it.id).collect::<Vec<_>>(), [1030, 1031]);
        assert_eq!(all.since(5000, 2), []);
    }
}
