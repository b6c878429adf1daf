//! The states of the ANA groups: log page 0Ch.
//!
//! A group is there if the host sees a namespace of it. Groups come in ascending order, and so do the NSIDs in each.

use nvme::log::{ANA_RETURN_GROUPS_ONLY, AnaGroup, AnaHeader};
use nvme::{U16, U32, U64};
use zerocopy::IntoBytes;

use super::Window;
use crate::configuration::View;

/// The groups of one controller.
pub(super) struct Groups<'a> {
    view: View<'a>,
    /// Group and NSID of each namespace, in that order.
    members: Vec<(u32, u32)>,
    /// NSIDs are left out.
    without_nsids: bool,
}

impl<'a> Groups<'a> {
    /// Those that a controller reports; `lsp` is that of the command.
    pub(super) fn of(view: View<'a>, lsp: u8) -> Self {
        let all = view.active_after(0);
        let mut members: Vec<_> = all.map(|it| (it.ana_group(), it.nsid())).collect();
        members.sort_unstable();
        Self { view, members, without_nsids: lsp & ANA_RETURN_GROUPS_ONLY != 0 }
    }

    fn groups(&self) -> impl Iterator<Item = &[(u32, u32)]> {
        self.members.chunk_by(|(one, _), (other, _)| one == other)
    }

    /// Bytes of the page.
    pub(super) fn length(&self) -> u64 {
        let nsids = if self.without_nsids { 0 } else { self.members.len() * size_of::<U32>() };
        let groups = self.groups().count() * size_of::<AnaGroup>();
        (size_of::<AnaHeader>() + groups + nsids) as u64
    }

    /// Fills the page.
    pub(super) fn write(&self, changes: u64, window: &mut Window<'_>) {
        let header = AnaHeader {
            chgcnt: U64::new(changes),
            ngrps: U16::new(u16::try_from(self.groups().count()).unwrap_or(u16::MAX)),
            ..AnaHeader::default()
        };
        window.put(0, header.as_bytes());
        let mut at = size_of::<AnaHeader>() as u64;
        let mut put = |piece: &[u8]| {
            window.put(at, piece);
            at += piece.len() as u64;
        };
        let states = self.view.ana_states().cloned().unwrap_or_default();
        for members in self.groups() {
            let Some((group, _)) = members.first() else { continue };
            let nsids = if self.without_nsids { &[] } else { members };
            let descriptor = AnaGroup {
                grpid: U32::new(*group),
                nnsids: U32::new(u32::try_from(nsids.len()).unwrap_or(u32::MAX)),
                state: states.of(*group).code(),
                ..AnaGroup::default()
            };
            put(descriptor.as_bytes());
            for (_, nsid) in nsids {
                put(&nsid.to_le_bytes());
            }
        }
    }
}
