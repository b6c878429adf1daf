//! Firmware: images that the host loads, the slots that they go to, and which of them runs.
//!
//! An image is anything whose first eight bytes are printable ASCII: they are its revision.

use nvme::event::Event;
use nvme::feature::AsynchronousEvents;
use nvme::identify::ascii;
use nvme::log::FirmwareSlots;
use nvme::pcie::{CommitAction, FirmwareCommit, FirmwareImageDownload};
use nvme::{Sqe, Status};

use super::options::Options;
use super::world::World;

#[derive(Debug)]
pub(super) struct Firmware {
    /// Revisions by slot.
    slots: Vec<Option<[u8; 8]>>,
    /// The slot that runs, counted from 1.
    active: u8,
    /// The one that runs after the next reset.
    next: Option<u8>,
    /// What has been loaded.
    image: Vec<u8>,
    /// Which bytes of it.
    loaded: Vec<std::ops::Range<usize>>,
}

impl Firmware {
    pub(super) fn new(options: &Options) -> Firmware {
        let mut slots = vec![None; usize::from(options.firmware_slots.clamp(1, 7))];
        if let Some(first) = slots.first_mut() {
            *first = Some(ascii(&options.firmware));
        }
        Firmware { slots, active: 1, next: None, image: Vec::new(), loaded: Vec::new() }
    }

    pub(super) fn reset(&mut self) {
        self.active = self.next.take().unwrap_or(self.active);
        self.image.clear();
        self.loaded.clear();
    }

    fn revision_in(&self, slot: u8) -> Option<[u8; 8]> {
        *self.slots.get(usize::from(slot).checked_sub(1)?)?
    }

    /// The revision that runs.
    pub(super) fn revision(&self) -> [u8; 8] {
        self.revision_in(self.active).unwrap_or([b' '; 8])
    }

    pub(super) fn page(&self) -> FirmwareSlots {
        let afi = self.active | self.next.unwrap_or(0) << 4;
        let mut page = FirmwareSlots { afi, ..FirmwareSlots::default() };
        for (revision, slot) in page.frs.iter_mut().zip(&self.slots) {
            *revision = slot.unwrap_or_default();
        }
        page
    }
}

impl World {
    fn has_firmware(&mut self) -> Result<(), Status> {
        match self.options.firmware_slots {
            0 => self.refuse(Status::INVALID_OPCODE, "firmware, which is not in OACS".to_owned()),
            _ => Ok(()),
        }
    }

    pub(super) fn download_firmware(
        &mut self,
        sqe: &Sqe,
        download: FirmwareImageDownload,
    ) -> Result<u32, Status> {
        self.has_firmware()?;
        let size = |bytes: u64| usize::try_from(bytes).ok().filter(|&bytes| bytes <= 16 << 20);
        let (start, length) = (size(download.byte_offset()), size(download.length()));
        let (Some(start), Some(length)) = (start, length) else {
            return Err(Status::INVALID_FIELD);
        };
        let piece = start..start + length;
        let overlaps =
            |other: &std::ops::Range<usize>| piece.start < other.end && other.start < piece.end;
        if self.firmware.loaded.iter().any(overlaps) {
            return self.refuse(Status::OVERLAPPING_RANGE, format!("firmware {piece:?} twice"));
        }
        let mut data = vec![0; length];
        self.ask_for(sqe, &mut data)?;
        let firmware = &mut self.firmware;
        firmware.image.resize(firmware.image.len().max(piece.end), 0);
        if let Some(place) = firmware.image.get_mut(piece.clone()) {
            place.copy_from_slice(&data);
        }
        firmware.loaded.push(piece);
        Ok(0)
    }

    pub(super) fn commit_firmware(&mut self, commit: FirmwareCommit) -> Result<u32, Status> {
        self.has_firmware()?;
        let firmware = &mut self.firmware;
        let slot = match commit.slot {
            // The controller's choice: the last, which is not the read-only one unless there is but one.
            0 => u8::try_from(firmware.slots.len()).unwrap_or(1),
            slot => slot,
        };
        if usize::from(slot) > firmware.slots.len() {
            return Err(Status::INVALID_FIRMWARE_SLOT);
        }
        let loaded = !firmware.loaded.is_empty();
        let replaces = match commit.action {
            CommitAction::Replace | CommitAction::ReplaceActivateAtReset => true,
            CommitAction::ActivateNow => loaded,
            CommitAction::ActivateAtReset => false,
            CommitAction::ReplaceBootPartition | CommitAction::ActivateBootPartition => {
                return Err(Status::INVALID_FIELD);
            }
        };
        if replaces {
            let covered: usize = firmware.loaded.iter().map(ExactSizeIterator::len).sum();
            let revision = firmware.image.first_chunk::<8>().copied();
            let valid = |byte: &u8| matches!(byte, b' '..=b'~');
            let revision = revision.filter(|revision| revision.iter().all(valid));
            let revision = revision.filter(|_| covered == firmware.image.len());
            firmware.image.clear();
            firmware.loaded.clear();
            let revision = revision.ok_or(Status::INVALID_FIRMWARE_IMAGE)?;
            if let Some(place) = firmware.slots.get_mut(usize::from(slot) - 1) {
                *place = Some(revision);
            }
        } else if firmware.revision_in(slot).is_none() {
            return Err(Status::INVALID_FIRMWARE_SLOT);
        }
        match commit.action {
            CommitAction::ActivateNow if self.options.activates_at_once => {
                firmware.active = slot;
                firmware.next = None;
                if self.features.wants(AsynchronousEvents::FIRMWARE) {
                    self.events.push(Event::FIRMWARE_ACTIVATION);
                }
                Ok(0)
            }
            CommitAction::Replace => Ok(0),
            CommitAction::ActivateNow => {
                firmware.next = Some(slot);
                Err(Status::FIRMWARE_NEEDS_CONTROLLER_RESET)
            }
            _ => {
                firmware.next = Some(slot);
                Ok(0)
            }
        }
    }
}
