//! What a host knows of its paths: the group of each namespace, and the state of that group.

use std::collections::BTreeMap;

use nvme::admin::{self, GetLogPage};
use nvme::log::{AnaGroup, AnaHeader, AnaState, LogPage};
use zerocopy::FromBytes;

use super::host::{Job, Payload};
use super::world::World;

/// Bytes that hold the states of all groups there can be.
const PATHS: u32 = 512;

/// What page 0Ch says: the group of each namespace, and its state.
fn read_paths(data: &[u8]) -> BTreeMap<u32, (u32, AnaState)> {
    let (header, mut rest) = AnaHeader::read_from_prefix(data).unwrap();
    let mut paths = BTreeMap::new();
    for _ in 0..header.ngrps.get() {
        let (group, after) = AnaGroup::read_from_prefix(rest).unwrap();
        let (nsids, after) = after.split_at(4 * usize::try_from(group.nnsids.get()).unwrap());
        let state = AnaState::try_from(group.state).unwrap();
        for nsid in nsids.chunks_exact(4) {
            let nsid = u32::from_le_bytes(nsid.try_into().unwrap());
            paths.insert(nsid, (group.grpid.get(), state));
        }
        rest = after;
    }
    paths
}

impl World {
    /// Linux reads the states when it finds a namespace, and when it is told.
    pub(super) fn ask_for_paths(&mut self, host: usize) {
        let log = GetLogPage::new(LogPage::Ana, 0, PATHS.into());
        let sqe = admin::Command::GetLogPage(log).to_sqe(nvme::NSID_ALL);
        self.submit(host, 0, sqe, Payload::In(PATHS), Job::Paths);
    }

    /// The page has come: what changes from now on is told by another event.
    pub(super) fn paths_read(&mut self, host: usize, data: &[u8]) {
        let me = &mut self.hosts[host];
        me.paths_masked = false;
        me.paths = read_paths(data);
        me.looking = me.is_still_looking();
    }

    /// The host is told that something is different.
    pub(super) fn paths_changed(&mut self, host: usize) {
        let me = &mut self.hosts[host];
        assert!(!me.paths_masked, "paths were reported twice before their page was read");
        me.paths_masked = true;
        me.looking = true;
        self.ask_for_event(host);
        self.ask_for_paths(host);
    }
}
